"""What a client may write: every bound names its field, nothing repeats a prompt, and what passes is bounded."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.api.errors import ApiError
from scheduler.api.schemas import (
    CHAT_PATH,
    COMPLETION_PATH,
    DROPPED,
    MAX_CHOICES,
    MAX_MESSAGES,
    MAX_PROMPTS,
    OPERATOR_ONLY,
    UNSUPPORTED,
    Ask,
    parse,
)

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": HELLO, **fields}).encode()


def completion(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "hello", **fields}).encode()


def admitted(body: bytes, *, path: str = CHAT_PATH, max_output_tokens: int = 1000) -> Ask:
    return parse(path, body, max_output_tokens=max_output_tokens)


def refused(body: bytes, *, path: str = CHAT_PATH) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(path, body, max_output_tokens=1000)
    assert 400 == caught.value.status
    return caught.value


# -- what passes


def test_a_chat_is_read() -> None:
    """Everything that the relay and the core need to know of it."""
    body = chat(max_completion_tokens=9, n=2, stream=True, stream_options={"include_usage": True}, service_tier="flex")
    ask = admitted(body)
    assert (CHAT_PATH, "m", True, True, "flex", 2, 9, 1) == (
        ask.path, ask.model, ask.is_stream, ask.includes_usage, ask.service_tier, ask.num_sequences,
        ask.max_output_tokens, ask.messages,
    )  # fmt: skip


def test_a_completion_with_several_prompts_is_that_many_sequences() -> None:
    """Choices × prompts."""
    ask = admitted(completion(prompt=["a", "b", "c"], n=2, max_tokens=5), path=COMPLETION_PATH)
    assert (6, 5) == (ask.num_sequences, ask.max_output_tokens)


@pytest.mark.parametrize("prompt", ["text", [1, 2, 3], ["a", "b"], [[1, 2], [3]]])
def test_a_prompt_is_text_or_tokens_one_or_many(prompt: object) -> None:
    """OpenAI's four forms."""
    assert admitted(completion(prompt=prompt), path=COMPLETION_PATH).body


def test_the_engine_gets_what_was_admitted_and_its_limit() -> None:
    """The client's own limit is replaced by the cap, fields of OpenAI's bookkeeping are taken out."""
    body = chat(max_tokens=500, temperature=0.5, user="u", metadata={"a": "b"}, store=False, service_tier="auto")
    ask = admitted(body)
    sent = json.loads(ask.render(7))
    assert {"model": "m", "messages": HELLO, "temperature": 0.5, "max_completion_tokens": 7} == sent
    assert not set(DROPPED) & sent.keys()
    assert 7 == json.loads(admitted(completion(max_tokens=500), path=COMPLETION_PATH).render(7))["max_tokens"]


@pytest.mark.parametrize("field", ["ignore_eos", "min_tokens", "top_k"])
def test_what_benchmark_clients_send_passes(field: str) -> None:
    """vLLM's own serving benchmark and ours."""
    value: object = True if field == "ignore_eos" else 1
    assert value == json.loads(admitted(chat(**{field: value})).body)[field]


def test_null_is_as_good_as_absent() -> None:
    """openai-python sends null for what is not set by some callers."""
    ask = admitted(chat(max_tokens=None, n=None, stream=None, stop=None, service_tier=None))
    assert (None, 1, False, None) == (ask.max_output_tokens, ask.num_sequences, ask.is_stream, ask.service_tier)


@given(st.text(max_size=200), st.text(max_size=200))
def test_the_prompt_bound_covers_every_byte(system: str, user: str) -> None:
    """A token stands for at least one byte, so no tokenizer can make more tokens of it."""
    try:
        system_bytes, user_bytes = system.encode(), user.encode()
    except UnicodeEncodeError:
        return
    body = chat(messages=[{"role": "system", "content": system}, {"role": "user", "content": user}])
    bound = admitted(body).prompt_tokens_bound(1)
    assert bound >= len(system_bytes) + len(user_bytes)
    assert admitted(body).prompt_tokens_bound(11) >= 11 * (len(system_bytes) + len(user_bytes))


def test_tools_count_into_the_prompt_bound() -> None:
    """A template writes them into the prompt."""
    tool = {"type": "function", "function": {"name": "f", "description": "x" * 1000, "parameters": {}}}
    assert admitted(chat(tools=[tool])).prompt_tokens_bound(1) > admitted(chat()).prompt_tokens_bound(1) + 1000


def test_media_counts_by_piece_and_not_by_byte() -> None:
    """The base64 of an image is not text."""
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 10_000}"}}
    ask = admitted(chat(messages=[{"role": "user", "content": [{"type": "text", "text": "see"}, image]}]))
    assert 1 == ask.media
    assert ask.text_bytes < 1000


# -- issue 3, "Bad input"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_value"),
        (b"\xff\xfe", "invalid_json"),
        (chat()[:-1], "invalid_json"),
        (chat() + b"x", "invalid_json"),
        (b'{"model":"m","model":"x","messages":[{"role":"user","content":"a"}]}', "duplicate_key"),
        (b'{"model":"m","messages":[{"role":"user","content":"a","content":"b"}]}', "duplicate_key"),
        (b"[" * 100_000, "json_too_deep"),
        (b'{"a":' * 100_000, "json_too_deep"),
        (chat(response_format=None)[:-5] + b"[" * 100_000 + b"]" * 100_000 + b"}", "json_too_deep"),
        (chat(temperature=math.nan), "invalid_json"),
        (chat(temperature=-math.inf), "invalid_json"),
        (b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', "invalid_json"),
        (b'{"model":"m","messages":[{"role":"user","content":"\\udc00\\ud800"}]}', "invalid_json"),
        (b'{"model":"m","messages":[{"role":"user","content":"\xed\xa0\x80"}]}', "invalid_json"),
    ],
)
def test_what_is_no_json_is_refused(body: bytes, code: str) -> None:
    """Broken, too deep, NaN, lone surrogates, a key twice: each with its word."""
    assert code == refused(body).code


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1), ("max_tokens", 0), ("max_tokens", 1001), ("max_tokens", 10**30), ("max_tokens", 1.5),
        ("max_tokens", "5"), ("max_tokens", True), ("n", 0), ("n", MAX_CHOICES + 1), ("n", 10**9), ("seed", 2**70),
        ("temperature", "hot"), ("stop", ["x"] * 5), ("logprobs", "yes"), ("top_logprobs", 21), ("messages", []),
        ("messages", "hello"), ("messages", [HELLO[0]] * (MAX_MESSAGES + 1)), ("tools", [{}] * 129),
        ("model", 5), ("model", "x" * 257), ("service_tier", "gold"), ("store", True), ("logit_bias", {"1": "x"}),
        ("stream_options", {"include_usage": True}),
    ],
)  # fmt: skip
def test_each_bound_names_its_field(field: str, value: object) -> None:
    """``param`` and the message's first word."""
    error = refused(chat(**{field: value}))
    assert (field, "invalid_value") == (error.param, error.code)
    assert error.message.startswith(field)


def test_a_million_messages_are_refused() -> None:
    """As valid JSON of 3 MB, if an operator lets such a body in at all."""
    error = refused(b'{"model":"m","messages":[%b{}]}' % (b"{}," * 999_999))
    assert ("messages", "invalid_value") == (error.param, error.code)


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(missing: str) -> None:
    """So that nobody has to guess."""
    fields = {name: value for name, value in json.loads(chat()).items() if name != missing}
    error = refused(json.dumps(fields).encode())
    assert (missing, f"{missing}: is missing.") == (error.param, error.message)


def test_an_unknown_field_is_named() -> None:
    """Never dropped in silence: a typing error would change the answer."""
    error = refused(chat(temprature=0.5))
    assert ("unknown_parameter", "temprature") == (error.code, error.param)
    nested = refused(chat(stream=True, stream_options={"usage": True}))
    assert ("unknown_parameter", "stream_options") == (nested.code, nested.param)


@pytest.mark.parametrize("field", sorted(OPERATOR_ONLY))
def test_an_operator_only_field_is_named_as_such(field: str) -> None:
    """It exists, but not for clients."""
    error = refused(chat(**{field: 1}))
    assert ("operator_only_parameter", field) == (error.code, error.param)


@pytest.mark.parametrize("field", sorted(UNSUPPORTED))
def test_an_unsupported_field_says_why(field: str) -> None:
    """Also false: it is not part of what is served."""
    assert ("unsupported_parameter", field) == ((error := refused(chat(**{field: False}))).code, error.param)


@pytest.mark.parametrize(
    "prompt", [[], [1, "x"], [[1], "x"], [[1, "x"]], [[]], [1.5], [None], {"a": 1}, 5, None, [True]]
)
def test_a_prompt_of_another_form_is_refused(prompt: object) -> None:
    """Mixed and empty lists would be counted wrong."""
    assert "prompt" == refused(completion(prompt=prompt), path=COMPLETION_PATH).param


def test_too_many_prompts_are_refused() -> None:
    """Each is a sequence in the engine."""
    assert MAX_PROMPTS == admitted(completion(prompt=["a"] * MAX_PROMPTS), path=COMPLETION_PATH).num_sequences
    assert "prompt" == refused(completion(prompt=["a"] * (MAX_PROMPTS + 1)), path=COMPLETION_PATH).param


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "audio_url", "audio_url": {"url": "http://169.254.169.254/"}},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": "text", "text": "x", "image_embeds": "AAAA"},
        5,
    ],
)
def test_parts_that_would_make_the_engine_fetch_or_unpickle_are_refused(part: object) -> None:
    """Addresses are not fetched, tensors not loaded."""
    assert "messages" == refused(chat(messages=[{"role": "user", "content": [part]}])).param


@pytest.mark.parametrize("message", [{}, {"content": "x"}, {"role": 5, "content": "x"}, {"role": "user", "content": 5}])
def test_a_message_without_form_is_refused(message: dict[str, Any]) -> None:
    """Role and content are what templates read."""
    assert "messages" == refused(chat(messages=[message])).param


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": {"CANARY": 1}}]},
        {"messages": [{"role": 5, "content": "CANARY"}]},
        {"messages": "CANARY"},
        {"max_tokens": "CANARY"},
        {"stop": {"CANARY": 1}},
        {"logit_bias": {"CANARY": "x"}},
        {"messages": [{"role": "user", "content": "CANARY"}], "temperature": "x"},
    ],
)
def test_no_message_repeats_what_was_sent(fields: dict[str, Any]) -> None:
    """An error body may be logged by whoever gets it."""
    assert "CANARY" not in refused(chat(**fields)).body().decode()


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.text(max_size=5), LEAVES, max_size=3)
FIELDS = ["model", "messages", "prompt", "n", "max_tokens", "stop", "stream", "tools", "logit_bias", "x"]


@settings(max_examples=60)
@given(st.sampled_from([CHAT_PATH, COMPLETION_PATH]), st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=4))
def test_whatever_is_sent_is_admitted_or_refused(path: str, fields: dict[str, Any]) -> None:
    """No body raises anything but an ApiError, and what passes can be rendered."""
    body = json.dumps({"model": "m", "messages": HELLO, **fields} if path == CHAT_PATH else fields).encode()
    try:
        ask = parse(path, body, max_output_tokens=1000)
    except ApiError:
        return
    assert 1 <= ask.num_sequences <= MAX_CHOICES * MAX_PROMPTS
    json.loads(ask.render(1))


@given(st.binary(max_size=60))
def test_no_bytes_break_the_parser(body: bytes) -> None:
    """Random bytes are refused."""
    with pytest.raises(ApiError):
        parse(CHAT_PATH, body, max_output_tokens=10)

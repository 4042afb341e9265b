"""Every route's bodies: each bound names its field, nothing repeats a prompt, and what passes is bounded."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.api.errors import ApiError
from scheduler.api.schema_chat import CHAT_PATH
from scheduler.api.schema_completion import MAX_PROMPTS
from scheduler.api.schema_fields import MAX_CHOICES, MAX_MESSAGES, OPERATOR_ONLY, SAMPLING_UNSUPPORTED
from scheduler.api.schemas import ROUTES, TOOLS_EXPANSION, parse
from tests.schema_bodies import HELLO, LEAST, admitted, body_of, sent


def chat(**fields: Any) -> bytes:
    return body_of(CHAT_PATH, **fields)


def refused(body: bytes, *, path: str = CHAT_PATH) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(path, body, max_output_tokens=1000)
    assert 400 == caught.value.status
    return caught.value


# -- what passes


@pytest.mark.parametrize("path", ROUTES)
def test_the_least_body_of_every_route_passes(path: str) -> None:
    """What is read of it is what it says, and what is sent is what was admitted."""
    ask = admitted(path)
    assert (path, "m", False, None, 1) == (ask.path, ask.model, ask.is_stream, ask.service_tier, ask.num_sequences)
    assert {"model": "m", **LEAST[path]}.items() <= {**sent(ask), **LEAST[path]}.items()


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("tier", ["auto", "default", "flex", "priority"])
def test_the_tier_is_read_on_every_route_and_not_sent(path: str, tier: str) -> None:
    """It is the priority here; engines do not know it."""
    ask = admitted(path, service_tier=tier)
    assert tier == ask.service_tier
    assert "service_tier" not in sent(ask)


@pytest.mark.parametrize("path", ROUTES)
def test_the_salt_can_be_appended(path: str) -> None:
    """The relay adds it as the last field."""
    rendered = admitted(path).render(7)
    assert "s" == json.loads(b'%b,"cache_salt":"s"}' % rendered[:-1])["cache_salt"]


@pytest.mark.parametrize("field", ["ignore_eos", "min_tokens", "top_k"])
def test_what_benchmark_clients_send_passes(field: str) -> None:
    """vLLM's own serving benchmark and ours."""
    value: object = True if field == "ignore_eos" else 1
    assert value == sent(admitted(CHAT_PATH, **{field: value}))[field]


def test_null_is_as_good_as_absent() -> None:
    """openai-python sends null for what is not set by some callers."""
    ask = admitted(CHAT_PATH, max_tokens=None, n=None, stream=None, stop=None, service_tier=None)
    assert (None, 1, False, None) == (ask.max_output_tokens, ask.num_sequences, ask.is_stream, ask.service_tier)


PROMPTS: dict[str, Any] = {
    "/v1/chat/completions": lambda text: {"messages": [{"role": "system", "content": text}, HELLO[0]]},
    "/v1/completions": lambda text: {"prompt": [text, "x"]},
    "/v1/embeddings": lambda text: {"input": text},
    "/v1/responses": lambda text: {"instructions": text},
    "/v1/messages": lambda text: {"system": [{"type": "text", "text": text}]},
}


@pytest.mark.parametrize("path", ROUTES)
@settings(max_examples=40)
@given(text=st.text(max_size=300))
def test_the_prompt_bound_covers_every_byte(path: str, text: str) -> None:
    """A token stands for at least one byte, so no tokenizer can make more tokens of it."""
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError:
        return
    ask = admitted(path, **PROMPTS[path](text))
    assert ask.prompt_tokens_bound(1) >= num_bytes
    assert ask.prompt_tokens_bound(11) >= 11 * num_bytes


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=30,
)


@settings(max_examples=60)
@given(JSON_VALUES)
def test_tools_count_as_a_template_may_write_them(schema: Any) -> None:
    """Indented, with a run of blanks as one token of its own: the compact JSON has fewer bytes than that has tokens."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"x": schema}}}
    try:
        indented = json.dumps(tool, indent=4, ensure_ascii=False)
        num_characters = len(indented.encode())
    except UnicodeEncodeError:
        return
    num_blanks = sum(len(line) - len(line.lstrip(" ")) for line in indented.splitlines())
    num_runs = sum(line.startswith(" ") for line in indented.splitlines())
    bound = admitted(CHAT_PATH, tools=[tool]).prompt_tokens_bound(1) - admitted(CHAT_PATH).prompt_tokens_bound(1)
    assert bound >= num_characters - num_blanks + num_runs
    assert TOOLS_EXPANSION == 4


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


@pytest.mark.parametrize("field", sorted(SAMPLING_UNSUPPORTED))
def test_an_unsupported_field_says_why(field: str) -> None:
    """Also false: it is not part of what is served."""
    assert ("unsupported_parameter", field) == ((error := refused(chat(**{field: False}))).code, error.param)


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
FIELDS = [
    "model", "messages", "prompt", "n", "max_tokens", "stop", "stream", "tools", "logit_bias", "x", "input", "system",
    "instructions", "max_output_tokens", "metadata", "dimensions",
]  # fmt: skip


@settings(max_examples=120)
@given(st.sampled_from(sorted(ROUTES)), st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=4))
def test_whatever_is_sent_is_admitted_or_refused(path: str, fields: dict[str, Any]) -> None:
    """No body raises anything but an ApiError, and what passes can be rendered."""
    body = json.dumps({"model": "m", **LEAST[path], **fields}).encode()
    try:
        ask = parse(path, body, max_output_tokens=1000)
    except ApiError:
        return
    assert 1 <= ask.num_sequences <= MAX_CHOICES * MAX_PROMPTS
    assert ask.max_output_tokens is None or 0 <= ask.max_output_tokens <= 1000
    json.loads(ask.render(1))


@given(st.sampled_from(sorted(ROUTES)), st.binary(max_size=60))
def test_no_bytes_break_the_parser(path: str, body: bytes) -> None:
    """Random bytes are refused."""
    with pytest.raises(ApiError):
        parse(path, body, max_output_tokens=10)

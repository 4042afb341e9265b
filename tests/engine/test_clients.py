"""Clients as they are, unmodified, against `jouleway serve` with two real models on vLLM: openai-python,
langchain-openai, anthropic, and vLLM's own serving benchmark.

The chat model has 135 M parameters: what is checked is that its answers arrive whole, in the client's own types, with
counts that agree; its tool calls and JSON are forced by schema. ``benchmarks/clients.py`` records the outcome.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

from benchmarks.jouleway_server import ADMIN_KEY, OPERATOR_KEY, configuration, serving
from benchmarks.servers import ROOT, Server
from scheduler.config import BUILTIN_EMBEDDING_WEIGHTS, BUILTIN_WEIGHTS, weights_folder
from workers.engines.minilm import MINILM

pytest.importorskip("vllm", reason="vLLM is not installed")

CHAT, EMBEDDING = "smollm2-135m", "all-minilm-l6-v2"
QUESTION = "What is the capital of France?"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
METERED = {"x-jouleway-metering": "1"}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "get_weather", "description": "The weather in a city.", "parameters": SCHEMA, "strict": True}
CITIES = ({"city": "Paris"}, {"city": "Rome"})


class City(BaseModel):
    """Where it is."""

    city: Literal["Paris", "Rome"]


@pytest.fixture(scope="module")
def server(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two engines, each in an actor of its own."""
    if not MINILM.is_complete(MINILM.default_folder()):
        pytest.skip("the embedding model's weights are not built: run `make setup`")
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    fields: dict[str, Any] = {"engine": "vllm", "environment": environment, "calibration_s": 2}
    tools = {
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
        "structured_outputs_config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
    }
    sizes = {"max_num_seqs": 16, "enforce_eager": True}
    chat = {**fields, "name": "chat", "model": CHAT, "engine_args": {**sizes, "max_model_len": 2048, **tools}}
    embed = {**fields, "name": "embed", "model": EMBEDDING, "engine_args": {**sizes, "max_model_len": 256}}
    models = {
        CHAT: {"weights": BUILTIN_WEIGHTS, "normalizer": "none"},
        EMBEDDING: {"weights": BUILTIN_EMBEDDING_WEIGHTS, "normalizer": "none"},
    }
    whole = configuration(chat, models)
    whole["workers"] = [chat, embed]
    with serving(whole, tmp_path_factory.mktemp("serve"), timeout_s=400.0) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=OPERATOR_KEY, max_retries=0, timeout=120.0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    """Its key is in a header of its own."""
    with anthropic.Anthropic(base_url=server.url, api_key=OPERATOR_KEY, max_retries=0, timeout=120.0) as client:
        yield client


@pytest.fixture(scope="module")
def chain(server: Server) -> ChatOpenAI:
    return ChatOpenAI(
        model=CHAT, base_url=f"{server.url}/v1", api_key=SecretStr(OPERATOR_KEY), temperature=0, max_retries=0,
        timeout=120.0, max_completion_tokens=60,
    )  # fmt: skip


# -- openai-python: chats


def test_openai_chat(client: openai.OpenAI) -> None:
    """Whole and streamed are the same text; usage agrees; joules are there for who asks."""
    whole = client.chat.completions.create(
        model=CHAT, messages=MESSAGES, max_tokens=12, temperature=0, extra_headers=METERED
    )
    stream = client.chat.completions.create(
        model=CHAT, messages=MESSAGES, max_tokens=12, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_headers=METERED,
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.choices[0].message.content == text
    assert "Paris" in text
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert whole.usage is not None
    assert {(whole.usage.prompt_tokens, whole.usage.completion_tokens)} == {
        (usage.prompt_tokens, usage.completion_tokens) for usage in usages
    }
    for answer in (whole, chunks[-1]):
        assert answer.model_extra is not None
        assert answer.model_extra["jouleway"]["energy_joules"] > 0


def test_openai_chat_choices_and_logprobs(client: openai.OpenAI) -> None:
    """n choices, each with the logprobs of its tokens."""
    answer = client.chat.completions.create(
        model=CHAT, messages=MESSAGES, max_tokens=3, n=3, logprobs=True, top_logprobs=2
    )
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert {2} == {len(token.top_logprobs) for token in choice.logprobs.content}
    assert 3 == len(answer.choices)


def test_openai_chat_tools(client: openai.OpenAI) -> None:
    """A forced call, its result sent back, an answer; and the model's own choice is taken."""
    tools: Any = [{"type": "function", "function": WEATHER}]
    asked = client.chat.completions.create(
        model=CHAT, messages=MESSAGES, tools=tools, tool_choice="required", max_tokens=60, temperature=0
    )
    [call] = asked.choices[0].message.tool_calls or []
    assert "function" == call.type
    assert ("get_weather", True) == (call.function.name, json.loads(call.function.arguments) in CITIES)
    messages = [
        *MESSAGES,
        asked.choices[0].message.model_dump(include={"role", "content", "tool_calls"}),
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    answered = client.chat.completions.create(model=CHAT, messages=messages, tools=tools, max_tokens=5)
    assert answered.choices[0].finish_reason in ("length", "stop")
    assert 5 >= answered.usage.completion_tokens  # type: ignore[union-attr]


def test_openai_chat_tools_streamed(client: openai.OpenAI) -> None:
    """The pieces of the arguments are the same call."""
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    stream = client.chat.completions.create(
        model=CHAT, messages=MESSAGES, tools=[{"type": "function", "function": WEATHER}], tool_choice=named,
        max_tokens=60, temperature=0, stream=True,
    )  # type: ignore[call-overload]  # fmt: skip
    calls = [call for chunk in stream if chunk.choices for call in chunk.choices[0].delta.tool_calls or []]
    assert "get_weather" == calls[0].function.name
    assert json.loads("".join(call.function.arguments or "" for call in calls)) in CITIES


def test_openai_chat_schema(client: openai.OpenAI) -> None:
    """The helper that parses into a model of the caller."""
    answer = client.chat.completions.parse(
        model=CHAT, messages=MESSAGES, response_format=City, max_tokens=60, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, City)


def test_openai_completions(client: openai.OpenAI) -> None:
    """Several prompts in one."""
    answer = client.completions.create(model=CHAT, prompt=["One", "Two"], max_tokens=4, extra_body={"ignore_eos": True})
    assert (2, 8) == (len(answer.choices), answer.usage.completion_tokens)  # type: ignore[union-attr]


# -- openai-python: responses


def test_openai_responses(client: openai.OpenAI) -> None:
    """Whole and by the streaming helper."""
    asked: dict[str, Any] = {"model": CHAT, "input": QUESTION, "max_output_tokens": 12, "temperature": 0}
    whole = client.responses.create(**asked, instructions="Be brief.", extra_headers=METERED)
    with client.responses.stream(**asked, instructions="Be brief.", extra_headers=METERED) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert whole.output_text == final.output_text
    assert whole.output_text
    assert whole.usage is not None
    assert final.usage is not None
    assert whole.usage.output_tokens == final.usage.output_tokens
    assert ("response.created", "response.completed") == (kinds[0], kinds[-1])
    assert "jouleway" in kinds
    assert whole.model_extra is not None
    assert whole.model_extra["jouleway"]["energy_joules"] > 0


def test_openai_responses_conversation(client: openai.OpenAI) -> None:
    """Stateless: the client sends back what it got; a function's call and its output in between."""
    tools: Any = [{"type": "function", **WEATHER}]
    first = client.responses.create(
        model=CHAT, input=QUESTION, tools=tools, tool_choice="required", max_output_tokens=60, temperature=0
    )
    call = next(item for item in first.output if item.type == "function_call")
    assert json.loads(call.arguments) in CITIES
    conversation: Any = [
        {"role": "user", "content": QUESTION},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    second = client.responses.create(model=CHAT, input=conversation, max_output_tokens=5)
    assert second.status in ("incomplete", "completed")


def test_openai_responses_schema(client: openai.OpenAI) -> None:
    """The helper that parses."""
    answer = client.responses.parse(model=CHAT, input=QUESTION, text_format=City, max_output_tokens=60, temperature=0)
    assert isinstance(answer.output_parsed, City)


@pytest.mark.parametrize("field", [{"store": True}, {"background": True}, {"previous_response_id": "resp_1"}])
def test_openai_responses_keep_nothing(client: openai.OpenAI, field: dict[str, Any]) -> None:
    """Refused by name."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=CHAT, input=QUESTION, **field)
    assert ("unsupported_parameter", next(iter(field))) == (caught.value.code, caught.value.param)


# -- openai-python: embeddings


def test_openai_embeddings(client: openai.OpenAI) -> None:
    """Alike texts are nearer; the client asks for bytes, lists of numbers are the same vectors."""
    texts = ["A cat sits on the mat.", "A kitten is sitting on a rug.", "Stock markets fell sharply."]
    packed = client.embeddings.create(model=EMBEDDING, input=texts, extra_headers=METERED)
    plain = client.embeddings.create(model=EMBEDDING, input=texts, encoding_format="float")
    cat, kitten, stocks = [each.embedding for each in packed.data]
    assert 384 == len(cat)
    assert math.isclose(1.0, _dot(cat, cat), abs_tol=1e-3)
    assert _dot(cat, kitten) > 0.5 > _dot(cat, stocks)
    assert [pytest.approx(each.embedding, abs=1e-4) for each in plain.data] == [cat, kitten, stocks]
    assert packed.usage.prompt_tokens == plain.usage.prompt_tokens > 20
    assert packed.model_extra is not None
    assert packed.model_extra["jouleway"]["energy_joules"] > 0


def test_openai_embeddings_of_tokens(client: openai.OpenAI) -> None:
    """Lists of token ids, as langchain sends them for OpenAI's own models."""
    answer = client.embeddings.create(model=EMBEDDING, input=[[101, 4937, 102], [101, 3899, 102]])
    assert (2, 6) == (len(answer.data), answer.usage.prompt_tokens)


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


# -- openai-python: errors


def test_openai_errors(client: openai.OpenAI) -> None:
    """Each of the client's own classes, with our words."""
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "word " * 3000}])
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    with pytest.raises(openai.NotFoundError) as unserved:
        client.embeddings.create(model=CHAT, input="x")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    assert ["context_length_exceeded", "model_not_found", "route_not_served"] == [
        error.value.code for error in (too_long, unknown, unserved)
    ]


@pytest.mark.parametrize("tier", ["auto", "default", "flex", "priority"])
def test_openai_service_tiers(client: openai.OpenAI, tier: Any) -> None:
    """On every route; it is the priority here."""
    asked: Any = {"service_tier": tier}
    assert client.chat.completions.create(model=CHAT, messages=MESSAGES, max_tokens=1, **asked).choices
    assert client.completions.create(model=CHAT, prompt="x", max_tokens=1, extra_body=asked).choices
    assert client.responses.create(model=CHAT, input="x", max_output_tokens=1, **asked).output
    assert client.embeddings.create(model=EMBEDDING, input="x", extra_body=asked).data


# -- langchain-openai


def test_langchain_chat(chain: ChatOpenAI) -> None:
    """Whole, in pieces, and over the responses API; with usage."""
    whole = chain.invoke(QUESTION)
    assert "Paris" in whole.text
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0
    pieces = list(chain.stream(QUESTION))
    assert whole.text == "".join(piece.text for piece in pieces)
    response = chain.model_copy(update={"use_responses_api": True}).invoke(QUESTION)
    assert "Paris" in response.text


def test_langchain_tools(chain: ChatOpenAI) -> None:
    """Bound, called, answered."""
    bound = chain.bind_tools([{"type": "function", "function": WEATHER}], tool_choice="required")
    asked = bound.invoke(QUESTION)
    [call] = asked.tool_calls
    assert ("get_weather", True) == (call["name"], call["args"] in CITIES)
    answered = chain.invoke([HumanMessage(QUESTION), asked, ToolMessage("rain", tool_call_id=call["id"])])
    assert answered.response_metadata["finish_reason"] in ("length", "stop")


def test_langchain_structured_output(chain: ChatOpenAI) -> None:
    """By JSON schema."""
    assert isinstance(chain.with_structured_output(City, method="json_schema").invoke(QUESTION), City)


def test_langchain_embeddings(server: Server) -> None:
    """Documents and a query. (It would ask the internet for OpenAI's tokenizer, unless told not to count.)"""
    embeddings = OpenAIEmbeddings(
        model=EMBEDDING, base_url=f"{server.url}/v1", api_key=SecretStr(OPERATOR_KEY), check_embedding_ctx_length=False
    )
    cat, stocks = embeddings.embed_documents(["A cat sits on the mat.", "Stock markets fell sharply."])
    query = embeddings.embed_query("Where is the kitten?")
    assert _dot(query, cat) > _dot(query, stocks)


# -- anthropic


def test_anthropic_messages(claude: anthropic.Anthropic) -> None:
    """Whole, and by the streaming helper; the id is where its client looks."""
    # The client has no argument for it any more; the API has.
    asked: dict[str, Any] = {"model": CHAT, "max_tokens": 12, "messages": MESSAGES, "extra_body": {"temperature": 0}}
    whole = claude.messages.create(**asked, system="Be brief.", extra_headers=METERED)
    with claude.messages.stream(**asked, system="Be brief.", extra_headers=METERED) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert "text" == whole.content[0].type
    assert whole.content[0].text == text
    assert text
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (
        final.usage.input_tokens, final.usage.output_tokens,
    )  # fmt: skip
    assert (whole.stop_reason, 1) == (final.stop_reason, len(final.content))
    assert (whole._request_id or "").startswith("req-")
    assert whole.model_extra is not None
    assert whole.model_extra["jouleway"]["energy_joules"] > 0


def test_anthropic_tools(claude: anthropic.Anthropic) -> None:
    """A forced call, and its result sent back."""
    tools: Any = [{"name": "get_weather", "description": "…", "input_schema": SCHEMA, "strict": True}]
    asked = claude.messages.create(
        model=CHAT, max_tokens=60, messages=MESSAGES, tools=tools, tool_choice={"type": "any"}
    )
    call = next(block for block in asked.content if block.type == "tool_use")
    assert ("tool_use", True) == (asked.stop_reason, call.input in CITIES)
    results: Any = [
        *MESSAGES,
        {"role": "assistant", "content": [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.input}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}]},
    ]
    answered = claude.messages.create(model=CHAT, max_tokens=5, messages=results, tools=tools)
    assert answered.stop_reason in ("max_tokens", "end_turn", "tool_use")


def test_anthropic_errors(claude: anthropic.Anthropic) -> None:
    """Its own classes and shape."""
    with pytest.raises(anthropic.BadRequestError) as operator_only:
        claude.messages.create(model=CHAT, max_tokens=5, messages=MESSAGES, extra_body={"priority": 1})
    with pytest.raises(anthropic.BadRequestError) as too_long:
        claude.messages.create(model=CHAT, max_tokens=5, messages=[{"role": "user", "content": "word " * 3000}])
    with pytest.raises(anthropic.NotFoundError) as unknown:
        claude.messages.create(model="no-such-model", max_tokens=5, messages=MESSAGES)
    with pytest.raises(anthropic.AuthenticationError) as stranger:
        claude.with_options(api_key="wrong").messages.create(model=CHAT, max_tokens=5, messages=MESSAGES)
    found: list[Any] = [error.value.body for error in (operator_only, too_long, unknown, stranger)]
    assert [
        ("error", "invalid_request_error", "operator_only_parameter"),
        ("error", "invalid_request_error", "context_length_exceeded"),
        ("error", "not_found_error", "model_not_found"),
        ("error", "authentication_error", "invalid_api_key"),
    ] == [(body["type"], body["error"]["type"], body["error"]["code"]) for body in found]


# -- vLLM's serving benchmark


@pytest.mark.parametrize(
    ("backend", "endpoint", "model", "weights_name"),
    [
        ("openai-chat", "/v1/chat/completions", CHAT, BUILTIN_WEIGHTS),
        ("openai", "/v1/completions", CHAT, BUILTIN_WEIGHTS),
        ("openai-embeddings", "/v1/embeddings", EMBEDDING, BUILTIN_EMBEDDING_WEIGHTS),
    ],
)
def test_vllm_bench_serve(server: Server, backend: str, endpoint: str, model: str, weights_name: str) -> None:
    """Every request succeeds."""
    command = [
        sys.executable, "benchmarks/vllm_bench_serve.py", "--backend", backend, "--endpoint", endpoint,
        "--model", model, "--tokenizer", str(weights_folder(weights_name)), "--dataset-name", "random",
        "--random-input-len", "64", "--random-output-len", "8", "--num-prompts", "8", "--request-rate", "4",
        "--base-url", server.url, *(["--ignore-eos"] if model == CHAT else []),
    ]  # fmt: skip
    environment = {**os.environ, "OPENAI_API_KEY": OPERATOR_KEY, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    found = re.search(r"Successful requests:\s+(\d+)", done.stdout)
    assert found is not None, done.stdout[-2000:]
    assert "8" == found[1]


# -- afterwards


def test_z_what_all_of_them_used_adds_up(server: Server) -> None:
    """Every token of every route was counted on both sides, every joule has its place."""
    asked = urllib.request.Request(
        f"{server.admin_url}/v1/jouleway/balance", headers={"Authorization": f"Bearer {ADMIN_KEY}"}
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        told = json.load(answer)
    balance = told["balance"]
    assert (0, 0, 0, 0) == (
        balance["difference_mj"], balance["token_difference"], balance["inexact_sequences"],
        balance["posting_difference_mj"],
    )  # fmt: skip
    embedded = next(worker for worker in told["workers"] if worker["worker_id"].startswith("embed"))
    assert (0, True) == (embedded["output_tokens"], embedded["requests_mj"] > 0)

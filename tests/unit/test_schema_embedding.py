"""Embeddings: texts or tokens in, nothing generated, no limit to send."""

import pytest

from scheduler.api.schema_embedding import EMBEDDING, EMBEDDING_PATH, MAX_INPUTS
from tests.schema_bodies import admitted, refused, sent


def test_it_generates_nothing() -> None:
    """One sequence an input; the engine gets no token limit, and not whom it is for."""
    ask = admitted(EMBEDDING_PATH, input=["a", "b", "c"], user="u", service_tier="flex", encoding_format="base64")
    assert (3, 0, "flex", False) == (ask.num_sequences, ask.max_output_tokens, ask.service_tier, ask.is_stream)
    assert {"model": "m", "input": ["a", "b", "c"], "encoding_format": "base64"} == sent(ask)


@pytest.mark.parametrize("value", ["text", [1, 2, 3], ["a", "b"], [[1, 2], [3]]])
def test_an_input_is_text_or_tokens_one_or_many(value: object) -> None:
    """OpenAI's four forms; langchain-openai sends lists of tokens."""
    assert value == sent(admitted(EMBEDDING_PATH, input=value))["input"]


@pytest.mark.parametrize("value", [[], [1, "x"], [[]], [[{"role": "user", "content": "x"}]], {"a": 1}, 5, None, [True]])
def test_an_input_of_another_form_is_refused(value: object) -> None:
    """Mixed and empty lists would be counted wrong."""
    assert "input" == refused(EMBEDDING_PATH, input=value).param


def test_the_number_of_inputs_is_bounded() -> None:
    """As OpenAI's."""
    assert MAX_INPUTS == admitted(EMBEDDING_PATH, input=["a"] * MAX_INPUTS).num_sequences
    assert "input" == refused(EMBEDDING_PATH, input=["a"] * (MAX_INPUTS + 1)).param


@pytest.mark.parametrize("encoding", ["bytes", "bytes_only", None, 5])
def test_an_answer_is_json(encoding: object) -> None:
    """vLLM could also send raw bytes, in which no usage would be found."""
    assert "encoding_format" == refused(EMBEDDING_PATH, encoding_format=encoding).param


@pytest.mark.parametrize("field", sorted(EMBEDDING.unsupported))
def test_an_unsupported_field_says_why(field: str) -> None:
    """Padding would make more tokens of a text than it has."""
    assert ("unsupported_parameter", field) == (
        (error := refused(EMBEDDING_PATH, **{field: "x"})).code,
        error.param,
    )

"""No real tokenizer makes more tokens of an admitted prompt than its bound says: hostile Unicode, tools, templates."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schema_bodies import admitted
from workers.engines.minilm import MINILM
from workers.engines.smollm2 import SMOLLM2

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

INDENTING = """{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson(indent=4) }}
{% endfor %}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
"""Models' own templates write tools at most as wastefully."""

# What expands most: combining marks, Hangul, ligatures, emoji sequences, blanks of every kind, bytes of rare planes.
HOSTILE = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(
            "\u0300\u0345\u1f82\uac01\ufdfa\u3300\ufb03\u200d\ufe0f\U0001f468\U0001f9d1\u00a0\u2003\t\n\x00\x7f"
        ),
    ),
    max_size=60,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | HOSTILE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HOSTILE, inner, max_size=4),
    max_leaves=15,
)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return _tokenizer(SMOLLM2)


@pytest.fixture(scope="module")
def minilm() -> Any:
    return _tokenizer(MINILM)


def _tokenizer(weights: Any) -> Any:
    folder = weights.default_folder()
    if not weights.is_complete(folder):
        pytest.skip("the weights are not built: run `make setup`")
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(HOSTILE, min_size=1, max_size=4))
def test_chats(smollm2: Any, texts: list[str]) -> None:
    """Byte pairs without a normaliser: a token stands for a byte at least."""
    messages = [{"role": "user", "content": text} for text in texts]
    bound = admitted("/v1/chat/completions", messages=messages).prompt_tokens_bound(1)
    assert bound >= len(smollm2.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])


@settings(max_examples=300, deadline=None)
@given(schemas=st.lists(VALUES, min_size=1, max_size=3))
def test_tools_that_a_template_indents(smollm2: Any, schemas: list[Any]) -> None:
    """Without the allowance for the template around them: it does not pay for the blanks."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": schema}}} for schema in schemas]
    messages = [{"role": "user", "content": "x"}]
    with_tools = smollm2.apply_chat_template(messages, tools=tools, chat_template=INDENTING)["input_ids"]
    without = smollm2.apply_chat_template(messages, chat_template=INDENTING)["input_ids"]
    path = "/v1/chat/completions"
    allowed = admitted(path, messages=messages, tools=tools).text_bytes - admitted(path, messages=messages).text_bytes
    assert allowed >= len(with_tools) - len(without), json.dumps(tools)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(HOSTILE, min_size=1, max_size=20))
def test_embeddings(minilm: Any, texts: list[str]) -> None:
    """Word pieces behind a normaliser that decomposes, lowers and strips: never more than the bytes, and two marks."""
    bound = admitted("/v1/embeddings", input=texts).prompt_tokens_bound(1)
    assert bound >= sum(len(tokens) for tokens in minilm(texts)["input_ids"])

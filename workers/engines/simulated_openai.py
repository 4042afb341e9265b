"""What a simulated engine is asked, as vLLM would check it, and the words that it answers with.

Called by ``workers.engines.simulated_answer`` and ``workers.engines.simulated_writers``. Pure: bytes in, values out. It
must never know a step, a clock or a meter.

A token is four bytes of text. What comes out is pseudo-words drawn by seed, never anything of the prompt.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import msgspec

BYTES_PER_TOKEN = 4
MAX_CHOICES = 128
DEFAULT_COMPLETION_TOKENS = 16
"""vLLM's default max_tokens of /v1/completions; a chat may fill the context."""

CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"
EMBEDDING_PATH = "/v1/embeddings"
RESPONSES_PATH = "/v1/responses"
MESSAGES_PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"
PATHS = (CHAT_PATH, COMPLETION_PATH, EMBEDDING_PATH, RESPONSES_PATH, MESSAGES_PATH)
LIMIT_NAMES = {RESPONSES_PATH: "max_output_tokens"}
"""What a route calls its token limit where it is not max_tokens."""
MAX_DIMENSIONS = 64
"""Length of an embedding."""


class BadRequest(Exception):
    """The body is refused; carries what vLLM's error object carries."""

    def __init__(self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param

    def body(self, path: str) -> bytes:
        """As vLLM says it on that route."""
        if path.startswith(MESSAGES_PATH):
            return msgspec.json.encode({"type": "error", "error": {"type": self.kind, "message": self.message}})
        return error_body(self.message, kind=self.kind, status=self.status, param=self.param)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One checked body."""

    path: str
    prompts: tuple[bytes, ...]
    num_choices: int
    max_tokens: int | None
    """0 where nothing is generated; None: as many as there is room for."""
    min_tokens: int
    ignore_eos: bool
    seed: int | None
    is_stream: bool
    include_usage: bool
    continuous_usage: bool
    num_dimensions: int = MAX_DIMENSIONS
    is_base64: bool = False
    """Embeddings as bytes in base64, as openai-python asks for them."""


def error_body(message: str, *, kind: str, status: int, param: str | None = None) -> bytes:
    """vLLM's error object: nearly OpenAI's, its ``code`` is the status as a number."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


def parse_ask(path: str, body: bytes, *, models: tuple[str, ...]) -> Ask:
    """Checks a body of one of ``PATHS``, or of ``COUNT_PATH``. Raises: BadRequest."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest("the body is not valid JSON") from error
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object")
    model = fields.get("model")
    if model is not None and model not in models:
        raise BadRequest(f"The model `{model}` does not exist.", status=404, kind="NotFoundError", param="model")
    stream_options = fields.get("stream_options") or {}
    if not isinstance(stream_options, dict):
        raise BadRequest("stream_options must be an object", param="stream_options")
    return Ask(
        path=path,
        prompts=_prompts_of(path, fields),
        num_choices=_integer(fields, "n", least=1, most=MAX_CHOICES) or 1,
        max_tokens=_limit_of(path, fields),
        min_tokens=_integer(fields, "min_tokens", least=0) or 0,
        ignore_eos=fields.get("ignore_eos") is True,
        seed=_integer(fields, "seed"),
        is_stream=path != EMBEDDING_PATH and fields.get("stream") is True,
        include_usage=stream_options.get("include_usage") is True,
        continuous_usage=stream_options.get("continuous_usage_stats") is True,
        num_dimensions=_integer(fields, "dimensions", least=1, most=MAX_DIMENSIONS) or MAX_DIMENSIONS,
        is_base64=fields.get("encoding_format") == "base64",
    )


def _limit_of(path: str, fields: dict[str, object]) -> int | None:
    if path == EMBEDDING_PATH:
        return 0
    name = LIMIT_NAMES.get(path, "max_tokens")
    if path == CHAT_PATH and fields.get("max_completion_tokens"):
        name = "max_completion_tokens"
    limit = _integer(fields, name, least=1)
    if limit is None and path == COMPLETION_PATH:
        return DEFAULT_COMPLETION_TOKENS
    if limit is None and path == MESSAGES_PATH:
        raise BadRequest("max_tokens is required", param=name)
    return limit


def _prompts_of(path: str, fields: dict[str, object]) -> tuple[bytes, ...]:
    """The texts that are computed: one a conversation, several where a route takes a list."""
    if path == COMPLETION_PATH:
        return _prompts(fields.get("prompt"), "prompt")
    if path == EMBEDDING_PATH:
        return _prompts(fields.get("input"), "input")
    if path == CHAT_PATH:
        return (_conversation(fields.get("messages"), "messages"),)
    if path in (MESSAGES_PATH, COUNT_PATH):
        return (_utf8(_text_of(fields.get("system"))) + _conversation(fields.get("messages"), "messages"),)
    before = _utf8(_text_of(fields.get("instructions")))
    asked = fields.get("input")
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    elif isinstance(asked, list):  # calls and their outputs have no role
        asked = [{"role": "tool", **item} if isinstance(item, dict) else item for item in asked]
    return (before + _conversation(asked, "input"),)


def _integer(fields: dict[str, object], name: str, *, least: int | None = None, most: int | None = None) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadRequest(f"{name} must be an integer", param=name)
    if least is not None and value < least:
        raise BadRequest(f"{name} must be at least {least}, got {value}.", param=name)
    if most is not None and value > most:
        raise BadRequest(f"{name} must be at most {most}, got {value}.", param=name)
    return value


def _conversation(messages: object, name: str) -> bytes:
    """Messages as one text, each with its role, as a chat template would write them."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest(f"{name} must be a list with at least one message", param=name)
    parts: list[str] = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest("each message needs a role", param=name)
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise BadRequest("content must be a string or a list of parts", param=name)
        parts.append(f"<|{message['role']}|>{_text_of(content)}")
    return _utf8("".join(parts))


def _text_of(content: object) -> str:
    """A text, or the texts of a list of parts."""
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _prompts(prompt: object, name: str) -> tuple[bytes, ...]:
    """One prompt or several, each as text or as token ids (a token id counts as one token)."""
    if isinstance(prompt, str):
        return (_utf8(prompt),)
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
            return (b"".join((item & 0xFFFFFFFF).to_bytes(BYTES_PER_TOKEN, "little") for item in prompt),)
        if all(isinstance(item, str | list) for item in prompt):
            return tuple(text for item in prompt for text in _prompts(item, name))
    raise BadRequest(f"{name} must be a string, a list of strings, or lists of token ids", param=name)


def count_tokens(text: bytes) -> int:
    """At least one, as a beginning-of-text token would make it."""
    return max(-(-len(text) // BYTES_PER_TOKEN), 1)


def hash_blocks(text: bytes, *, block_tokens: int) -> tuple[int, ...]:
    """One hash per full block, each over everything before it; equal within a process only."""
    size = block_tokens * BYTES_PER_TOKEN
    hashes: list[int] = []
    before = 0
    for end in range(size, len(text) + 1, size):
        before = hash((before, text[end - size : end]))
        hashes.append(before)
    return tuple(hashes)


# -- what comes out


def _make_words() -> tuple[bytes, ...]:
    """256 pseudo-words, the same in every process; each begins with a blank and needs no JSON escape."""
    stream = random.Random("words")
    syllables = [onset + vowel for onset in "bdfgklmnprstvz" for vowel in "aeiou"]
    words: dict[bytes, None] = {}
    while len(words) < 256:
        words[b" " + "".join(stream.choices(syllables, k=stream.randint(1, 4))).encode()] = None
    return tuple(words)


WORDS = _make_words()


def word(phase: int, position: int) -> bytes:
    """The output token at ``position`` of a sequence; ``phase`` is its seeded start."""
    # 37 is odd, so that 256 words pass before the first one comes again.
    return WORDS[(phase + 37 * position + (position >> 4)) & 255]


def text_of(phase: int, num_tokens: int) -> bytes:
    """The first ``num_tokens`` tokens of a sequence's output."""
    return b"".join([word(phase, position) for position in range(num_tokens)])

"""OpenAI's words for a simulated engine: bodies checked as vLLM checks them, answers written as vLLM writes them.

Called by ``workers.engines.simulated``. Pure: bytes in, values out. It must never know a step, a clock or a meter.

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


class BadRequest(Exception):
    """The body is refused; carries what vLLM's error object carries."""

    def __init__(self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.status = status
        self.body = error_body(message, kind=kind, status=status, param=param)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One checked body."""

    is_chat: bool
    prompts: tuple[bytes, ...]
    num_choices: int
    max_tokens: int | None
    min_tokens: int
    ignore_eos: bool
    seed: int | None
    is_stream: bool
    include_usage: bool
    continuous_usage: bool


def error_body(message: str, *, kind: str, status: int, param: str | None = None) -> bytes:
    """vLLM's error object: nearly OpenAI's, its ``code`` is the status as a number."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


def parse_ask(path: str, body: bytes, *, models: tuple[str, ...]) -> Ask:
    """Checks a body of ``/v1/chat/completions`` or ``/v1/completions``. Raises: BadRequest."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest("the body is not valid JSON") from error
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object")
    model = fields.get("model")
    if model is not None and model not in models:
        raise BadRequest(f"The model `{model}` does not exist.", status=404, kind="NotFoundError", param="model")
    is_chat = path.endswith("/chat/completions")
    limit_name = "max_completion_tokens" if is_chat and fields.get("max_completion_tokens") else "max_tokens"
    stream_options = fields.get("stream_options") or {}
    if not isinstance(stream_options, dict):
        raise BadRequest("stream_options must be an object", param="stream_options")
    max_tokens = _integer(fields, limit_name, least=1)
    if max_tokens is None and not is_chat:
        max_tokens = DEFAULT_COMPLETION_TOKENS
    return Ask(
        is_chat=is_chat,
        prompts=(_chat_prompt(fields.get("messages")),) if is_chat else _prompts(fields.get("prompt")),
        num_choices=_integer(fields, "n", least=1, most=MAX_CHOICES) or 1,
        max_tokens=max_tokens,
        min_tokens=_integer(fields, "min_tokens", least=0) or 0,
        ignore_eos=fields.get("ignore_eos") is True,
        seed=_integer(fields, "seed"),
        is_stream=fields.get("stream") is True,
        include_usage=stream_options.get("include_usage") is True,
        continuous_usage=stream_options.get("continuous_usage_stats") is True,
    )


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


def _chat_prompt(messages: object) -> bytes:
    """Messages as one text, each with its role, as a chat template would write them."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with at least one message", param="messages")
    parts: list[str] = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest("each message needs a role", param="messages")
        content = message.get("content")
        if isinstance(content, list):
            texts = [part.get("text") for part in content if isinstance(part, dict)]
            content = "\n".join(text for text in texts if isinstance(text, str))
        elif content is not None and not isinstance(content, str):
            raise BadRequest("content must be a string or a list of parts", param="messages")
        parts.append(f"<|{message['role']}|>{content or ''}")
    return "".join(parts).encode("utf-8", "surrogatepass")


def _prompts(prompt: object) -> tuple[bytes, ...]:
    """One prompt or several, each as text or as token ids (a token id counts as one token)."""
    if isinstance(prompt, str):
        return (prompt.encode("utf-8", "surrogatepass"),)
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
            return (b"".join((item & 0xFFFFFFFF).to_bytes(BYTES_PER_TOKEN, "little") for item in prompt),)
        if all(isinstance(item, str | list) for item in prompt):
            return tuple(text for item in prompt for text in _prompts(item))
    raise BadRequest("prompt must be a string, a list of strings, or lists of token ids", param="prompt")


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


def usage_fields(prompt_tokens: int, output_tokens: int, cached_tokens: int) -> dict[str, object]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Writes the chunks of one answer; what does not change from token to token is encoded once."""

    answer_id: str
    model: str
    created: int
    is_chat: bool
    include_usage: bool

    @property
    def _head(self) -> bytes:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        fields = {"id": self.answer_id, "object": kind, "created": self.created, "model": self.model}
        return b"data: " + msgspec.json.encode(fields)[:-1]

    def frame(self, index: int) -> tuple[bytes, bytes]:
        """What stands before and after the text of a token's chunk."""
        # As vLLM: with include_usage each chunk before the last says usage null.
        usage = b',"usage":null' if self.include_usage else b""
        start = b'%b,"choices":[{"index":%d,' % (self._head, index)
        if self.is_chat:
            return start + b'"delta":{"content":"', b'"},"logprobs":null,"finish_reason":null}]%b}\n\n' % usage
        return start + b'"text":"', b'","logprobs":null,"finish_reason":null,"stop_reason":null}]%b}\n\n' % usage

    def role(self, index: int) -> bytes:
        """The first chunk of a chat choice; a completion has none."""
        if not self.is_chat:
            return b""
        usage = b',"usage":null' if self.include_usage else b""
        delta = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        return b'%b,"choices":[{"index":%d,%b}]%b}\n\n' % (self._head, index, delta, usage)

    def last(self, index: int, text: bytes, reason: str) -> bytes:
        """The chunk that ends a choice."""
        before, after = self.frame(index)
        return before + text + after.replace(b'"finish_reason":null', b'"finish_reason":"%b"' % reason.encode())

    def usage(self, usage: dict[str, object]) -> bytes:
        """The chunk after the last choice."""
        return b'%b,"choices":[],"usage":%b}\n\n' % (self._head, msgspec.json.encode(usage))

    def whole(self, choices: list[tuple[bytes, str]], usage: dict[str, object]) -> bytes:
        """The body of an answer that is not streamed; ``choices`` are (text, finish_reason)."""
        listed: list[dict[str, object]] = []
        for index, (text, reason) in enumerate(choices):
            content: dict[str, object] = {"text": text.decode()}
            if self.is_chat:
                content = {"message": {"role": "assistant", "content": text.decode()}}
            listed.append({"index": index, **content, "logprobs": None, "finish_reason": reason})
        kind = "chat.completion" if self.is_chat else "text_completion"
        fields = {"id": self.answer_id, "object": kind, "created": self.created, "model": self.model}
        return msgspec.json.encode({**fields, "choices": listed, "usage": usage})

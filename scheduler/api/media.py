"""Images and sounds inside a body: never fetched, bounded in pixels before anybody decodes them, and in tokens.

Called by the files of the routes. It reads headers of image files only; it must never decode a picture.
"""

from __future__ import annotations

import binascii
import struct
from typing import NamedTuple

from scheduler.api.errors import ApiError

MAX_IMAGE_PIXELS = 1 << 24
"""4,096 × 4,096. A file of a few KiB may claim any size, and whoever decodes it pays for it in memory."""
MAX_PIXELS = 1 << 26
"""Of one request."""
IMAGE_TOKENS = 8192
"""Models that cut an image into tiles enlarge a small one up to so many tokens."""
PIXELS_PER_TOKEN = 14 * 14
"""The smallest patch in use; most models merge four of them into one token."""
SOUND_TOKENS = 4096
"""Bound beside one token a byte: no codec in use needs less than a byte for what is one token to a model."""
FORMATS = "PNG, JPEG, GIF or WebP"


class Media(NamedTuple):
    """Of a part of a body, or of all of it."""

    tokens: int
    num_bytes: int
    """Of the JSON, which are not text."""
    pixels: int = 0

    def with_more(self, other: Media, param: str) -> Media:
        """The sum. Raises: ApiError where a request has too many pixels."""
        pixels = self.pixels + other.pixels
        if pixels > MAX_PIXELS:
            raise _refused(param, f"at most {MAX_PIXELS} pixels in one request", code="image_too_large")
        return Media(self.tokens + other.tokens, self.num_bytes + other.num_bytes, pixels)


NO_MEDIA = Media(0, 0)


def image_of_url(url: object, *, where: str, param: str) -> Media:
    """An image as a data: URL. Raises: ApiError for an address, another format, too many pixels."""
    return _image(_base64_of(url, where, param), where, param)


def image_of_base64(data: object, *, where: str, param: str) -> Media:
    """An image as base64 alone. Raises: ApiError."""
    if not isinstance(data, str):
        raise _refused(param, f"{where}: expected base64")
    return _image(data, where, param)


def sound_of_url(url: object, *, where: str, param: str) -> Media:
    """A sound as a data: URL. Raises: ApiError for an address."""
    return _sound(_base64_of(url, where, param))


def sound_of_base64(data: object, *, where: str, param: str) -> Media:
    """A sound as base64 alone. Raises: ApiError."""
    if not isinstance(data, str):
        raise _refused(param, f"{where}: expected base64")
    return _sound(data)


def _base64_of(url: object, where: str, param: str) -> str:
    if not isinstance(url, str) or not url.startswith("data:"):
        raise _refused(
            param, f"{where}: must be a data: URL; addresses are not fetched here", code="remote_media_refused"
        )
    kind, comma, data = url.partition(",")
    if not comma or not kind.endswith(";base64"):
        raise _refused(param, f"{where}: a data: URL must be base64")
    return data


def _sound(data: str) -> Media:
    return Media(SOUND_TOKENS + len(data) * 3 // 4, len(data))


def _image(data: str, where: str, param: str) -> Media:
    try:
        content = binascii.a2b_base64(data)
    except (binascii.Error, ValueError):
        raise _refused(param, f"{where}: not valid base64") from None
    size = size_of_image(content)
    if size is None:
        raise _refused(param, f"{where}: expected {FORMATS}", code="unsupported_image")
    pixels = size[0] * size[1]
    if not 0 < pixels <= MAX_IMAGE_PIXELS:
        raise _refused(param, f"{where}: an image has 1 to {MAX_IMAGE_PIXELS} pixels", code="image_too_large")
    return Media(IMAGE_TOKENS + pixels // PIXELS_PER_TOKEN, len(data), pixels)


def _refused(param: str, message: str, *, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"{message}.", code=code, param=param)


# -- headers of image files


def size_of_image(content: bytes) -> tuple[int, int] | None:
    """Width and height in pixels, as the file's header claims; None where it is none of ``FORMATS``, or cut off."""
    try:
        if content.startswith(b"\x89PNG\r\n\x1a\n") and content[12:16] == b"IHDR":
            return struct.unpack_from(">II", content, 16)
        if content.startswith((b"GIF87a", b"GIF89a")):
            return struct.unpack_from("<HH", content, 6)
        if content.startswith(b"\xff\xd8"):
            return _size_of_jpeg(content)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return _size_of_webp(content)
    except (struct.error, IndexError):
        return None
    return None


_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
"""Markers without a length."""


def _size_of_jpeg(content: bytes) -> tuple[int, int] | None:
    """The largest of all frame headers before the picture itself: decoders differ in which one they believe."""
    found: tuple[int, int] | None = None
    at = 2
    while True:
        if content[at] != 0xFF:
            return None
        marker = content[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in (0xDA, 0xD9):
            return found
        if marker in _JPEG_ALONE:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", content, at + 2)
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", content, at + 5)
            if found is None or width * height > found[0] * found[1]:
                found = (width, height)
        at += 2 + length


def _size_of_webp(content: bytes) -> tuple[int, int] | None:
    kind = content[12:16]
    if kind == b"VP8X" and len(content) >= 30:
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if kind == b"VP8L" and content[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", content, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and content[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None

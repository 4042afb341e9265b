"""Headers of image files of any size, without a picture behind them."""

import base64
import struct


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 2, 0, 0, 0) + b"\0\0\0\0"


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0"


def jpeg(*frames: tuple[int, int]) -> bytes:
    """One frame header for each (width, height), behind a comment; then the picture begins."""
    parts = [b"\xff\xd8", b"\xff\xfe\x00\x06\xff\xd8ab"]
    for width, height in frames:
        parts.append(b"\xff\xff\xc2" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\1\x11\0")
    return b"".join([*parts, b"\xff\xda\x00\x02", b"\0" * 8])


def webp(kind: bytes, width: int, height: int) -> bytes:
    if kind == b"VP8X":
        content = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        content = b"\x2f" + struct.pack("<I", width - 1 | height - 1 << 14)
    else:
        content = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width | 0x4000, height)
    return b"RIFF\0\0\0\0WEBP" + kind + struct.pack("<I", len(content)) + content


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def url_of(content: bytes) -> str:
    return f"data:image/png;base64,{base64_of(content)}"

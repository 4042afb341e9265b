"""Media: nothing is fetched, an image's size is known before it is decoded, and its tokens are bounded."""

import io
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.api.errors import ApiError
from scheduler.api.media import (
    IMAGE_TOKENS,
    MAX_IMAGE_PIXELS,
    MAX_PIXELS,
    NO_MEDIA,
    PIXELS_PER_TOKEN,
    SOUND_TOKENS,
    Media,
    image_of_base64,
    image_of_url,
    size_of_image,
    sound_of_base64,
    sound_of_url,
)
from tests.image_files import base64_of, gif, jpeg, png, url_of, webp

SIDES = st.integers(1, 16383)
FILES: dict[str, Callable[[int, int], bytes]] = {
    "png": png,
    "gif": gif,
    "jpeg": lambda width, height: jpeg((width, height)),
    "webp, extended": lambda width, height: webp(b"VP8X", width, height),
    "webp, lossless": lambda width, height: webp(b"VP8L", width, height),
    "webp, lossy": lambda width, height: webp(b"VP8 ", width, height),
}


def refused(read: Callable[[], object]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read()
    assert (400, "messages") == (caught.value.status, caught.value.param)
    assert caught.value.message.startswith("here: ")
    return caught.value


@pytest.mark.parametrize("kind", FILES)
@given(width=SIDES, height=SIDES)
def test_the_size_is_read_from_the_header(kind: str, width: int, height: int) -> None:
    """Four formats, and three forms of the last."""
    assert (width, height) == size_of_image(FILES[kind](width, height))


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("GIF", {}), ("JPEG", {"progressive": True}),
                                               ("WEBP", {}), ("WEBP", {"lossless": True})])  # fmt: skip
def test_real_files_are_read_as_a_decoder_reads_them(form: str, options: dict[str, bool]) -> None:
    """As the library writes them that engines decode with."""
    image = pytest.importorskip("PIL.Image").new("RGB", (321, 45), (200, 10, 10))
    written = io.BytesIO()
    image.save(written, form, **options)
    assert (321, 45) == size_of_image(written.getvalue())


def test_of_several_frame_headers_the_largest_counts() -> None:
    """One decoder believes the first, another the last."""
    assert (4000, 3000) == size_of_image(jpeg((1, 1), (4000, 3000), (2, 2)))


@given(st.sampled_from(sorted(FILES)), st.integers(0, 40))
def test_a_file_cut_off_never_breaks_the_reader(kind: str, length: int) -> None:
    """It has a size or none."""
    size = size_of_image(FILES[kind](7, 9)[:length])
    assert size is None or size == (7, 9)


@given(st.binary(max_size=64), st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"]))
def test_no_bytes_break_the_reader(content: bytes, start: bytes) -> None:
    """Whatever stands behind a known beginning."""
    size = size_of_image(start + content)
    assert size is None or len(size) == 2


def test_an_image_is_bounded_by_its_pixels() -> None:
    """One token for the smallest patch in use, and what an enlarged small image may take."""
    content = url_of(png(1400, 700))
    media = image_of_url(content, where="here", param="messages")
    assert IMAGE_TOKENS + 1400 * 700 // PIXELS_PER_TOKEN == media.tokens
    assert len(content) - len("data:image/png;base64,") == media.num_bytes
    assert media == image_of_base64(base64_of(png(1400, 700)), where="here", param="messages")


@pytest.mark.parametrize("size", [(4097, 4096), (0, 5), (5, 0), (2**31, 2**31)])
def test_an_image_of_too_many_pixels_or_none_is_refused(size: tuple[int, int]) -> None:
    """However small the file is."""
    error = refused(lambda: image_of_url(url_of(png(*size)), where="here", param="messages"))
    assert "image_too_large" == error.code
    assert MAX_IMAGE_PIXELS == image_of_url(url_of(png(4096, 4096)), where="here", param="messages").pixels


def test_a_request_of_too_many_pixels_is_refused() -> None:
    """Each may pass alone."""
    image = image_of_url(url_of(png(4096, 4096)), where="here", param="messages")
    total = NO_MEDIA
    for _ in range(MAX_PIXELS // MAX_IMAGE_PIXELS):
        total = total.with_more(image, "messages")
    assert (4 * image.tokens, 4 * image.num_bytes, MAX_PIXELS) == total
    with pytest.raises(ApiError, match="pixels in one request") as caught:
        total.with_more(image_of_url(url_of(png(1, 1)), where="here", param="messages"), "messages")
    assert "image_too_large" == caught.value.code


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://example.org/x.png", "remote_media_refused"),
        ("file:///etc/passwd", "remote_media_refused"),
        ("http://169.254.169.254/", "remote_media_refused"),
        ("DATA:image/png;base64,AAAA", "remote_media_refused"),
        (None, "remote_media_refused"),
        (5, "remote_media_refused"),
        ("data:image/png,%89PNG", "invalid_value"),
        ("data:image/png;base64", "invalid_value"),
        ("data:image/png;base64,A", "invalid_value"),
        ("data:image/png;base64,Ä", "invalid_value"),
        ("data:image/png;base64,", "unsupported_image"),
        ("data:image/svg+xml;base64,PHN2Zz4=", "unsupported_image"),
    ],
)
def test_what_is_no_image_in_the_body_is_refused(url: object, code: str) -> None:
    """Addresses are not fetched; what cannot be measured is not decoded."""
    assert code == refused(lambda: image_of_url(url, where="here", param="messages")).code


@pytest.mark.parametrize("read", [image_of_base64, sound_of_base64])
def test_base64_is_text(read: Callable[..., Media]) -> None:
    """Anything else is refused."""
    refused(lambda: read({"url": "x"}, where="here", param="messages"))


def test_a_sound_is_bounded_by_its_bytes() -> None:
    """No codec packs more than a token into a byte."""
    data = base64_of(b"x" * 3000)
    assert Media(SOUND_TOKENS + 3000, len(data)) == sound_of_base64(data, where="here", param="messages")
    assert Media(SOUND_TOKENS + 3000, len(data)) == sound_of_url(
        f"data:audio/wav;base64,{data}", where="here", param="messages"
    )
    refused(lambda: sound_of_url("https://example.org/x.wav", where="here", param="messages"))

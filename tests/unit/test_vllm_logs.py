"""vLLM's log about requests: its own words and the type of an error, never what the error quotes."""

import io
import logging
from collections.abc import Iterator

import pytest

from workers.engines.vllm_logs import PARTS, keep_texts_out

CANARY = "zebrafinch-canary-3105"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Where a handler of vLLM's writes, as its own configuration sets one up."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("vllm")
    logger.addHandler(handler)
    keep_texts_out()
    keep_texts_out()
    yield stream
    logger.removeHandler(handler)
    assert 1 == len(handler.filters)


@pytest.mark.parametrize("part", PARTS)
def test_an_error_about_a_request_is_told_without_it(written: io.StringIO, part: str) -> None:
    """Neither by an argument nor by a traceback."""
    try:
        raise ValueError(f"input_value={CANARY}")
    except ValueError as error:
        logging.getLogger(f"{part}.x").exception("Error in create_messages: %s", error)
    assert "Error in create_messages: %s [ValueError]\n" == written.getvalue()


def test_what_is_no_error_has_no_arguments_either(written: io.StringIO) -> None:
    """A debug line quotes whole requests."""
    logging.getLogger(f"{PARTS[0]}.x").warning("Received %s", CANARY)
    assert "Received %s\n" == written.getvalue()


def test_the_engine_s_own_lines_stay_whole(written: io.StringIO) -> None:
    """They say what ails a machine."""
    logging.getLogger("vllm.v1.engine.core").error("out of %s", "memory")
    assert "out of memory\n" == written.getvalue()

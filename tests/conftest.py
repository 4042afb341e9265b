"""For every test: hypothesis prints what reproduces a failure, a slow machine is no failure, and logs are heard."""

import logging
import os

import pytest
from hypothesis import settings

EXAMPLES = int(os.environ.get("JOULEWAY_EXAMPLES", "100"))
"""Of each property that names no number of its own. `make unit` tries fewer, to stay quick; `make test` all."""

settings.register_profile("jouleway", deadline=None, print_blob=True, max_examples=EXAMPLES)
settings.load_profile("jouleway")


@pytest.fixture(autouse=True)
def root_logger_as_python_has_it() -> None:
    """A real engine that died in an earlier test leaves the root logger at ERROR: warnings would not be heard."""
    logging.root.setLevel(logging.WARNING)

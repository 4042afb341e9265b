"""For every test: hypothesis prints what reproduces a failure, a slow machine is no failure, and logs are heard."""

import logging

import pytest
from hypothesis import settings

settings.register_profile("jouleway", deadline=None, print_blob=True)
settings.load_profile("jouleway")


@pytest.fixture(autouse=True)
def root_logger_as_python_has_it() -> None:
    """A real engine that died in an earlier test leaves the root logger at ERROR: warnings would not be heard."""
    logging.root.setLevel(logging.WARNING)

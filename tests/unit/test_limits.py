"""The relay's bounds are those that the configuration promises."""

from dataclasses import fields

import pytest

from scheduler.api.limits import RelayLimits, ServedModel
from scheduler.config_sections import LimitsConfig, ModelConfig


def test_defaults_are_the_configurations() -> None:
    """A test of the relay alone runs under the bounds that an operator gets."""
    configured = LimitsConfig()
    shared = [field.name for field in fields(RelayLimits) if hasattr(configured, field.name)]
    assert [
        "max_body_bytes",
        "max_output_tokens",
        "request_timeout_s",
        "max_window_s",
        "keep_alive_s",
        "slow_reader_s",
    ] == shared
    assert {name: getattr(configured, name) for name in shared} == {
        name: getattr(RelayLimits(), name) for name in shared
    }


def test_a_model_without_a_limit_gets_the_configured_default() -> None:
    """4,096 tokens, never the whole context."""
    assert ModelConfig().default_output_tokens == ServedModel(name="m").default_output_tokens


def test_limits_cannot_be_changed_while_serving() -> None:
    """Values travel; nobody edits them on the way."""
    with pytest.raises(AttributeError):
        RelayLimits().max_body_bytes = 1  # type: ignore[misc]

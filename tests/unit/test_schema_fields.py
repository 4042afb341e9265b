"""The words of a refusal: the field's name as the client wrote it, its rule, never its value."""

import pytest

from scheduler.api.schema_fields import OPERATOR_ONLY, field_error


@pytest.mark.parametrize(
    ("said", "param", "code", "message"),
    [
        ("Expected `int`, got `str` - at `$.max_tokens`", "max_tokens", "invalid_value", "max_tokens: expected int"),
        ("Expected `int` >= 1 - at `$.a[3].b`", "a", "invalid_value", "a[3].b: expected int >= 1"),
        ("Expected `object`, got `array`", None, "invalid_value", "body: expected object, got array"),
        ("Object missing required field `model`", "model", "invalid_value", "model: is missing"),
        ("Object contains unknown field `temprature`", "temprature", "unknown_parameter", "Unknown parameter"),
        ("Object contains unknown field `x` - at `$.stream_options`", "stream_options", "unknown_parameter",
         "Unknown field in stream_options"),
        ("Object contains unknown field `priority`", "priority", "operator_only_parameter", "use service_tier"),
        ("Object contains unknown field `conversation`", "conversation", "unsupported_parameter", "nothing is kept"),
    ],
)  # fmt: skip
def test_a_decoder_s_words_become_ours(said: str, param: str | None, code: str, message: str) -> None:
    """As OpenAI's: ``param`` names the field, ``code`` the kind of fault."""
    error = field_error(said, {"conversation": "nothing is kept between requests"})
    assert (400, param, code) == (error.status, error.param, error.code)
    assert message in error.message


def test_a_route_may_say_itself_why_it_does_not_serve_a_field() -> None:
    """Its own reason goes before the general one."""
    error = field_error("Object contains unknown field `priority`", {"priority": "there is none"})
    assert "unsupported_parameter" == error.code
    assert "priority" in OPERATOR_ONLY


def test_a_long_name_is_cut() -> None:
    """The name comes from outside."""
    error = field_error(f"Object contains unknown field `{'x' * 10_000}`", {})
    assert len(error.message) < 200

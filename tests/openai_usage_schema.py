"""What OpenAI publishes of its usage and costs, to hold real answers against.

Used by tests of ``scheduler.api`` (``from tests.openai_usage_schema import check_page``). The published schema is no
part of this repository: ``FIELDS`` is its essence and always checked, the schema itself where it lies beside the
checkout; a test compares the two.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "data" / "openai" / "organization_usage_costs.openapi.json"
WHOLE, TEXT, TRUTH, NUMBER, OBJECT = (int,), (str, type(None)), (bool, type(None)), (int, float, type(None)), (dict,)
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "organization.usage.completions.result": {
        **dict.fromkeys(("input_tokens", "output_tokens", "num_model_requests"), WHOLE),
        **dict.fromkeys(("input_cached_tokens", "input_cache_write_tokens", "input_uncached_tokens"), WHOLE),
        **dict.fromkeys(("input_text_tokens", "output_text_tokens", "input_cached_text_tokens"), WHOLE),
        **dict.fromkeys(("input_audio_tokens", "input_cached_audio_tokens", "output_audio_tokens"), WHOLE),
        **dict.fromkeys(("input_image_tokens", "input_cached_image_tokens", "output_image_tokens"), WHOLE),
        **dict.fromkeys(("project_id", "user_id", "api_key_id", "model", "service_tier"), TEXT),
        "batch": TRUTH,
    },
    "organization.costs.result": {
        "amount": OBJECT,
        **dict.fromkeys(("line_item", "project_id", "api_key_id", "quantity_unit"), TEXT),
        "quantity": NUMBER,
    },
}
"""Of each result's fields beside ``object``, the types that they may have."""
REQUIRED = {
    "organization.usage.completions.result": {"input_tokens", "output_tokens", "num_model_requests"},
    "organization.costs.result": set(),
}


def published() -> dict[str, Any] | None:
    """The schema as it was published; None where it does not lie beside the checkout."""
    return json.loads(PUBLISHED.read_text()) if PUBLISHED.exists() else None


def check_page(page: dict[str, Any]) -> None:
    """Asserts that an answer is what OpenAI's clients expect."""
    assert {"object", "data", "has_more", "next_page"} == page.keys()
    assert ("page", True) == (page["object"], page["has_more"] is (page["next_page"] is not None))
    assert isinstance(page["has_more"], bool)
    for bucket in page["data"]:
        assert {"object", "start_time", "end_time", "results"} == bucket.keys()
        assert "bucket" == bucket["object"]
        assert {int} == {type(bucket["start_time"]), type(bucket["end_time"])}
        for result in bucket["results"]:
            _check_result(result)
    validator = _validator()
    if validator is not None:
        validator.validate(page)


@cache
def _validator() -> Draft202012Validator | None:
    document = published()
    if document is None:
        return None
    return Draft202012Validator({"$ref": "#/components/schemas/UsageResponse", "components": document["components"]})


def _check_result(result: dict[str, Any]) -> None:
    fields = FIELDS[result["object"]]
    assert REQUIRED[result["object"]] <= result.keys() <= {"object", *fields}
    assert {} == {name: value for name, value in result.items() if name in fields and type(value) not in fields[name]}
    if "amount" in result:
        assert {"value", "currency"} == result["amount"].keys()
        assert result["amount"]["currency"].islower()

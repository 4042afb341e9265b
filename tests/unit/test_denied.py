"""What denies is noted, with the hash of what was offered; nothing else is."""

import hashlib
from typing import Any

import pytest

from scheduler.api.denied import note
from scheduler.api.errors import ApiError
from scheduler.api.exchange import Exchange


class Noting:
    def __init__(self, error: Exception | None = None) -> None:
        self.noted: list[dict[str, Any]] = []
        self.error = error

    async def denied(self, **fields: Any) -> None:
        if self.error is not None:
            raise self.error
        self.noted.append(fields)


async def nothing(*message: Any) -> Any:
    raise AssertionError


def exchange(**scope: Any) -> Exchange:
    return Exchange({"method": "GET", "path": "/x", "headers": [], **scope}, nothing, nothing, request_id="req-1")


@pytest.mark.parametrize(("status", "is_noted"), [(401, True), (403, True), (400, False), (404, False), (429, False)])
async def test_only_what_denies_is_noted(status: int, is_noted: bool) -> None:
    """With the template of the route, the word and where it came from."""
    notes, error = Noting(), ApiError(status, "no", code="word")
    await note(
        notes, exchange(client=("10.0.0.1", 5)), error, listener="admin", route="/x/{y}", values=[b"Bearer the-key"]
    )
    expected = {
        "listener": "admin", "source": "10.0.0.1", "route": "/x/{y}", "status": status, "code": "word",
        "sha256": hashlib.sha256(b"the-key").hexdigest(),
    }  # fmt: skip
    assert ([expected] if is_noted else []) == notes.noted


@pytest.mark.parametrize("values", [[], [b"Bearer"], [b"Bearer a", b"Bearer b"]])
async def test_what_is_no_key_has_no_hash(values: list[bytes]) -> None:
    """Nor is there a source where the server knows none."""
    notes = Noting()
    await note(notes, exchange(), ApiError(401, "no", code=None), listener="server", route="/x", values=values)
    assert [("unknown", "", None)] == [(each["source"], each["code"], each["sha256"]) for each in notes.noted]


async def test_a_note_that_fails_is_said_and_ends_there(caplog: pytest.LogCaptureFixture) -> None:
    """The client has its answer."""
    error = ApiError(401, "no", code=None)
    await note(Noting(OSError("the-key")), exchange(), error, listener="admin", route="/x", values=[])
    assert "not in the audit log: OSError" in caplog.text
    assert "the-key" not in caplog.text
    await note(None, exchange(), error, listener="admin", route="/x", values=[])

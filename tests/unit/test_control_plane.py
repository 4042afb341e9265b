"""Who asks a running control plane finds it and its key, and learns in words and exit code why there is no answer."""

import asyncio
from pathlib import Path

import pytest

from scheduler.commands.control_plane import (
    ADMIN_KEY_VARIABLE,
    ADMIN_URL,
    KEY_VARIABLE,
    SERVER_URL,
    Listener,
    admin_listener,
    ask,
    own_listener,
    read_words,
    root_of,
    send,
    tenant_listener,
)
from scheduler.commands.exits import CommandError, ExitCode
from tests.canned_http import Asked, Told, serving

CONFIG = """
server: {port: 0}
admin: {port: %s}
state_dir: state
models: {m: {}}
workers: [{name: w, engine: simulated, model: m}]
tenants: [{name: t}]
generate_keys: true
"""


def config(folder: Path, port: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(CONFIG % port)
    return path


@pytest.mark.parametrize(
    ("told", "code"),
    [
        (Told(status=401), ExitCode.POLICY),
        (Told(status=403), ExitCode.POLICY),
        (Told(status=500, body={}), ExitCode.FAILURE),
        (Told(status=404, body={}), ExitCode.FAILURE),
        (Told(body=[1]), ExitCode.FAILURE),
        (Told(body=b"<html>"), ExitCode.UNAVAILABLE),
        (None, ExitCode.UNAVAILABLE),
    ],
)
def test_every_bad_answer_has_its_exit_code(told: Told | None, code: ExitCode) -> None:
    """And no message repeats the key."""
    with serving(lambda _: told) as url, pytest.raises(CommandError) as caught:
        ask(Listener(url=url, key="the-key", remedy="ask"), "/v1/jouleway/workers")
    assert code == caught.value.code
    assert "the-key" not in str(caught.value) + caught.value.remedy


def test_nobody_there_is_exit_code_6() -> None:
    """A closed port."""
    with pytest.raises(CommandError) as caught:
        ask(Listener(url="http://127.0.0.1:1", key="the-key", remedy="ask"), "/v1/jouleway/workers")
    assert ExitCode.UNAVAILABLE == caught.value.code
    assert "http://127.0.0.1:1" in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://[", "127.0.0.1:8001", "ftp://h", "http://h:0", ""])
def test_what_is_no_address_is_exit_code_2(url: str) -> None:
    """Before anything is sent."""
    with pytest.raises(CommandError) as caught:
        root_of(url)
    assert ExitCode.USAGE == caught.value.code


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "//"])
def test_an_address_is_taken_as_clients_write_it(end: str) -> None:
    """OpenAI's clients want ``/v1`` at the end of theirs."""
    assert "https://h:1/under" == root_of("https://h:1/under" + end)


def test_a_tenants_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nowhere else."""
    monkeypatch.setenv(KEY_VARIABLE, "k")
    assert ("http://h:1", "k") == (tenant_listener("http://h:1/v1").url, tenant_listener("http://h:1").key)
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(CommandError) as caught:
        tenant_listener("http://h:1")
    assert (ExitCode.POLICY, True) == (caught.value.code, KEY_VARIABLE in caught.value.remedy)


def test_a_key_that_no_header_can_carry_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pasted with a dash that is none, or on two lines."""
    for key in ("clé–1", "two\nlines"):
        monkeypatch.setenv(ADMIN_KEY_VARIABLE, key)
        with pytest.raises(CommandError) as caught:
            admin_listener(None, None)
        assert ExitCode.POLICY == caught.value.code
        assert ADMIN_KEY_VARIABLE in str(caught.value)
        assert key not in str(caught.value)


def test_port_and_key_come_from_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An operator on the same machine needs no variable."""
    monkeypatch.delenv(ADMIN_KEY_VARIABLE, raising=False)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "admin.key").write_text("key-of-the-file\n")
    seen: list[Asked] = []
    with serving(lambda _: Told(body={"a": 1}), seen=seen) as url:
        listener = admin_listener(config(tmp_path, url.rpartition(":")[2]), None)
        assert {"a": 1} == ask(listener, "/x")
    assert ["Bearer key-of-the-file"] == [asked.headers["authorization"] for asked in seen]


def test_variable_and_url_go_before_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever says something else means it; a slash at the end of a URL is no part of it."""
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, " own-key ")
    assert (ADMIN_URL, "own-key") == (admin_listener(None, None).url, admin_listener(None, None).key)
    assert "http://10.0.0.1:5" == admin_listener(config(tmp_path, "1"), "http://10.0.0.1:5/").url


def test_without_key_or_port_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Port 0 is known to the running process alone; a key is never guessed."""
    monkeypatch.delenv(ADMIN_KEY_VARIABLE, raising=False)
    path = config(tmp_path, "0")
    with pytest.raises(CommandError, match=r"admin\.port is 0"):
        admin_listener(path, None)
    with pytest.raises(CommandError) as caught:
        admin_listener(path, "http://127.0.0.1:1")
    assert (ExitCode.POLICY, True) == (caught.value.code, ADMIN_KEY_VARIABLE in caught.value.remedy)


def test_whoever_has_a_key_of_its_own_asks_as_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the operator where a configuration is named, or where its key is the only one."""
    monkeypatch.setenv(KEY_VARIABLE, "tenant-key")
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, "admin-key")
    assert ("tenant-key", SERVER_URL) == ((own := own_listener(None, None)).key, own.url)
    assert ("admin-key", "http://127.0.0.1:5") == ((own := own_listener(config(tmp_path, "5"), None)).key, own.url)
    monkeypatch.delenv(KEY_VARIABLE)
    assert ("admin-key", ADMIN_URL) == ((own := own_listener(None, None)).key, own.url)
    monkeypatch.delenv(ADMIN_KEY_VARIABLE)
    with pytest.raises(CommandError) as caught:
        own_listener(None, None)
    assert KEY_VARIABLE in caught.value.remedy


@pytest.mark.parametrize(
    ("told", "code", "words"),
    [
        (Told(status=400, body={"error": {"message": "by: day", "code": "x"}}), ExitCode.USAGE, "by: day"),
        (Told(status=404, body={"error": {"code": "route_not_found"}}), ExitCode.NOT_FOUND, "has no /x"),
        (Told(status=404, body={"error": {"message": "no such", "code": "x"}}), ExitCode.NOT_FOUND, "no such"),
        (Told(status=409, body={"error": {"message": "often", "code": "x"}}), ExitCode.FAILURE, "often"),
        (Told(status=503, body={}), ExitCode.UNAVAILABLE, "status 503"),
        (Told(status=503, body=[]), ExitCode.UNAVAILABLE, "status 503"),
        (Told(status=503, body=b"<"), ExitCode.UNAVAILABLE, "no control plane"),
        (Told(status=400, body={"error": {"message": "x" * 5_000}}), ExitCode.USAGE, "x" * 900),
        (Told(status=401, body={}), ExitCode.POLICY, "refuses the key"),
        (Told(status=500, body={}), ExitCode.FAILURE, "status 500"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_in_its_own_words(told: Told, code: ExitCode, words: str) -> None:
    """So many of them, with the exit code of its status."""
    with serving(lambda _: told) as url:
        listener = Listener(url=url, key="the-key", remedy="ask")
        reply = asyncio.run(send(listener, "/x"))
    with pytest.raises(CommandError, match=words) as caught:
        read_words(listener, "/x", reply)
    assert code == caught.value.code
    assert len(str(caught.value)) < 1_200


def test_a_good_answer_is_read() -> None:
    """As it is."""
    with serving(lambda _: Told(body={"a": 1})) as url:
        listener = Listener(url=url, key="the-key", remedy="ask")
        assert {"a": 1} == read_words(listener, "/x", asyncio.run(send(listener, "/x")))

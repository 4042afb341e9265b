"""Checkpoints: signed, read by the format's own rules, and refused for every single changed byte."""

from __future__ import annotations

import pytest

from scheduler.accounting.checkpoints import Checkpoint, PublicKey, Signer, parse

ROOT = bytes(range(32))
SIGNER = Signer("jouleway/test", b"\x07" * 32)
NOTE = SIGNER.sign(42, ROOT)


def test_what_was_signed_is_read_again() -> None:
    assert SIGNER.public_key.verify(NOTE) == Checkpoint("jouleway/test", 42, ROOT)
    assert NOTE.startswith("jouleway/test\n42\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n\u2014 jouleway/test ")


def test_the_key_is_signed_notes() -> None:
    """The public key of C2SP signed-note's own example, with its hash."""
    text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert str(PublicKey.parse(text)) == text
    note = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
        "\n"
        "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyB"
        "wJnAM=\n"
    )
    with pytest.raises(ValueError, match="not a checkpoint"):
        PublicKey.parse(text).verify(note)  # a note, and no checkpoint


def test_every_changed_byte_is_found() -> None:
    data = NOTE.encode()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        try:
            text = changed.decode()
        except UnicodeDecodeError:
            continue
        with pytest.raises(ValueError, match="checkpoint"):
            SIGNER.public_key.verify(text)


def test_another_key_and_another_name_are_not_believed() -> None:
    for other in (Signer("jouleway/test", b"\x08" * 32), Signer("jouleway/tess", b"\x07" * 32)):
        with pytest.raises(ValueError, match="not signed by"):
            other.public_key.verify(NOTE)


def test_a_witness_may_have_signed_too() -> None:
    witness = Signer("witness.example", b"\x09" * 32)
    text = NOTE.partition("\n\n")[0] + "\n"
    line = "\u2014 witness.example " + "AAAA" * 22 + "\n"
    assert SIGNER.public_key.verify(NOTE + line).size == 42
    assert parse(NOTE + line)[1][1][0] == witness.public_key.name
    assert text.count("\n") == 3


@pytest.mark.parametrize(
    "text",
    ["", "a", "a+b", "a+b+c", "+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", "x+00000000+AQAA", "a++"],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="public key"):
        PublicKey.parse(text)
    with pytest.raises(ValueError, match="copied wrong"):
        PublicKey.parse(str(SIGNER.public_key).replace("jouleway", "joulewaz"))


@pytest.mark.parametrize("note", ["", "a\n1\nAAAA\n\n", "a\n01\n" + NOTE[17:], "x" * 5000, NOTE.replace("42", "-1")])
def test_what_is_no_checkpoint_is_refused(note: str) -> None:
    with pytest.raises(ValueError, match="checkpoint"):
        parse(note)

"""Signed checkpoints: who says that a ledger has so many rows and this root. C2SP's tlog-checkpoint and signed-note.

Called by ``scheduler.accounting`` where rows are sealed and verified. Pure: keys come as bytes. It must never know
where a checkpoint is kept.

A checkpoint is text that any tool of that family reads::

    jouleway/6f1d…            origin: the ledger's name
    1042                      rows
    d3XfK…=                   root, base64

    — jouleway/6f1d… q83vAT…  signature: base64 of key hash (4 bytes) and Ed25519 signature
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ALGORITHM = b"\x01"
"""Ed25519, in signed-note's key hashes and public keys."""
MAX_NOTE_BYTES = 4096
SEED_BYTES = 32


class Checkpoint(NamedTuple):
    """What is signed."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64_of(self.root)}\n"


class PublicKey:
    """Checks signatures. Its text form is signed-note's: ``name+hash+base64``."""

    def __init__(self, name: str, key: bytes) -> None:
        self.name = name
        self.bytes = key
        self._key = Ed25519PublicKey.from_public_bytes(key)
        self.key_hash = hashlib.sha256(name.encode() + b"\n" + ALGORITHM + key).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_hash.hex()}+{base64_of(ALGORITHM + self.bytes)}"

    @staticmethod
    def parse(text: str) -> PublicKey:
        """Raises: ValueError where this is no public key."""
        name, _, rest = text.strip().partition("+")
        key_hash, _, encoded = rest.partition("+")
        try:
            decoded = base64.b64decode(encoded, validate=True)
            if decoded[:1] != ALGORITHM or len(decoded) != 1 + 32 or not name:
                raise ValueError
            key = PublicKey(name, decoded[1:])
        except (binascii.Error, ValueError):
            raise ValueError("not a public key of the form NAME+HASH+BASE64 (Ed25519)") from None
        if key.key_hash.hex() != key_hash:
            raise ValueError("the public key does not fit its own hash: it was copied wrong")
        return key

    def verify(self, note: str) -> Checkpoint:
        """What a note says, if this key signed it. Raises: ValueError, which says why not."""
        checkpoint, signatures = parse(note)
        for name, signature in signatures:
            if name != self.name or signature[:4] != self.key_hash:
                continue
            try:
                self._key.verify(signature[4:], checkpoint.text.encode())
            except InvalidSignature:
                raise ValueError("the checkpoint's signature is wrong") from None
            return checkpoint
        raise ValueError(f"the checkpoint is not signed by {self.name} ({self.key_hash.hex()})")


class Signer:
    """Signs checkpoints of one origin."""

    def __init__(self, origin: str, seed: bytes) -> None:
        """``seed``: 32 secret bytes."""
        self.seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = PublicKey(origin, self._key.public_key().public_bytes_raw())

    def sign(self, size: int, root: bytes) -> str:
        """The note of a tree."""
        text = Checkpoint(self.public_key.name, size, root).text
        signature = self.public_key.key_hash + self._key.sign(text.encode())
        return f"{text}\n\u2014 {self.public_key.name} {base64_of(signature)}\n"


def parse(note: str) -> tuple[Checkpoint, list[tuple[str, bytes]]]:
    """A note's checkpoint and its signatures (name, bytes), nothing verified. Raises: ValueError."""
    if len(note) > MAX_NOTE_BYTES:
        raise ValueError("too long for a checkpoint")
    text, _, rest = note.partition("\n\n")
    lines = text.split("\n")
    signatures = []
    try:
        origin, size_text, root_text = lines[:3]
        size, root = int(size_text), bytes_of(root_text)
        if str(size) != size_text or size < 0 or len(root) != 32 or not origin or len(lines) != 3:
            raise ValueError
        *signed, last = rest.split("\n")
        if last:
            raise ValueError
        for line in signed:
            dash, name, encoded = line.split(" ")
            if dash != "\u2014":
                raise ValueError
            signatures.append((name, bytes_of(encoded)))
    except (ValueError, binascii.Error):
        raise ValueError("not a checkpoint (C2SP tlog-checkpoint: origin, size, root, signatures)") from None
    return Checkpoint(origin, size, root), signatures


def base64_of(data: bytes) -> str:
    """As checkpoints and proofs are written."""
    return base64.b64encode(data).decode()


def bytes_of(text: str) -> bytes:
    """Raises: ValueError also for another spelling of the same bytes: what is signed or proven has one text."""
    data = base64.b64decode(text, validate=True)
    if base64_of(data) != text:
        raise ValueError
    return data

"""The tree against a direct transcription of RFC 9162, for every size up to a few tiles' edges."""

from __future__ import annotations

import contextlib
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.merkle import (
    EMPTY_ROOT,
    TILE_BITS,
    Tree,
    consistency_proof,
    inclusion_proof,
    is_consistent,
    leaf_hash,
    root_of_inclusion,
)


def mth(leaves: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1, word by word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


class Stored:
    """A tree with everything that ``append`` hands out."""

    def __init__(self, size: int) -> None:
        self.tree = Tree()
        self.nodes: dict[tuple[int, int], bytes] = {}
        self.leaves: list[bytes] = []
        for number in range(size):
            leaf = leaf_hash(b"row %d" % number)
            self.leaves.append(leaf)
            self.nodes[0, number] = leaf
            for level, index, node in self.tree.append(leaf):
                assert level > 0
                self.nodes[level, index] = node

    def hashes(self, level: int, start: int, count: int) -> list[bytes]:
        assert count <= 1 << TILE_BITS
        return [self.nodes[level, index] for index in range(start, start + count)]


@pytest.fixture(scope="module")
def stored() -> Stored:
    return Stored(1100)


def test_the_rfcs_own_vectors_hold() -> None:
    """The trees of RFC 6962's reference implementation (certificate-transparency test vectors)."""
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    roots = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ]
    tree = Tree()
    assert tree.root() == EMPTY_ROOT
    for text, root in zip(inputs, roots, strict=True):
        tree.append(leaf_hash(bytes.fromhex(text)))
        assert tree.root().hex() == root


def test_the_root_is_the_rfcs_for_every_small_size(stored: Stored) -> None:
    tree = Tree()
    for size in range(130):
        assert tree.root() == mth(stored.leaves[:size])
        assert tree.size == size
        tree.append(stored.leaves[size])
    assert stored.tree.root() == mth(stored.leaves)


def test_a_tree_is_found_again_from_what_was_stored(stored: Stored) -> None:
    for size in (0, 1, 2, 255, 256, 257, 511, 512, 513, 1023, 1100):
        again = Tree.of(size, stored.hashes)
        assert again.root() == mth(stored.leaves[:size])
        assert Tree(size, again.peaks).root() == again.root()


@given(size=st.integers(1, 1100), data=st.data())
def test_every_leaf_has_a_proof_and_no_other_fits(stored: Stored, size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, stored.hashes)
    root = mth(stored.leaves[:size])
    assert root_of_inclusion(stored.leaves[index], index, size, proof) == root
    other = data.draw(st.integers(0, size - 1).filter(lambda each: each != index)) if size > 1 else None
    if other is not None:
        for leaf, place in ((stored.leaves[other], index), (stored.leaves[index], other)):
            with contextlib.suppress(ValueError):  # the proof cannot be one of that place
                assert root_of_inclusion(leaf, place, size, proof) != root
    with pytest.raises(ValueError, match="too long"):
        root_of_inclusion(stored.leaves[index], index, size, [*proof, root])
    if proof:
        with pytest.raises(ValueError, match="too short"):
            root_of_inclusion(stored.leaves[index], index, size, proof[:-1])


@given(sizes=st.tuples(st.integers(1, 1100), st.integers(1, 1100)).map(sorted), flip=st.integers(0, 255))
def test_growth_is_proven_and_a_fork_is_not(stored: Stored, sizes: list[int], flip: int) -> None:
    old, new = sizes
    proof = consistency_proof(old, new, stored.hashes)
    old_root, root = mth(stored.leaves[:old]), mth(stored.leaves[:new])
    assert is_consistent(old, old_root, new, root, proof)
    forked = bytearray(old_root)
    forked[flip // 8] ^= 1 << flip % 8
    assert not is_consistent(old, bytes(forked), new, root, proof)
    assert not is_consistent(old, old_root, new, bytes(forked), proof)
    assert not is_consistent(old, old_root, new, root, [*proof, root])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3)])
def test_what_is_not_in_the_tree_has_no_proof(stored: Stored, index: int, size: int) -> None:
    with pytest.raises(ValueError, match="not in a tree"):
        inclusion_proof(index, size, stored.hashes)
    with pytest.raises(ValueError, match="not in a tree"):
        root_of_inclusion(b"", index, size, [])


def test_missing_hashes_are_said(stored: Stored) -> None:
    with pytest.raises(ValueError, match="missing"):
        inclusion_proof(0, 4, lambda level, start, count: [])
    with pytest.raises(ValueError, match="peaks"):
        Tree(3, [b"x" * 32])
    with pytest.raises(ValueError, match="begin"):
        consistency_proof(5, 4, stored.hashes)
    assert not is_consistent(5, b"", 4, b"", [])

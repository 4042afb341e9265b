"""A hash tree over rows as RFC 9162 (Certificate Transparency 2.0) has it: roots, proofs, and how they are checked.

Called by ``scheduler.accounting`` wherever rows are sealed, proven or verified. Pure. It must never know what a row
says or where hashes are stored.

A tree of n leaves is kept as its *peaks*: the roots of the complete subtrees that n's binary digits name, largest
first. Nodes at every eighth level are handed out as they become complete (``Tree.append``), so that a proof reads at
most 256 hashes a level instead of all leaves (the tiles of C2SP's tlog-tiles).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import sha256

TILE_BITS = 8
"""Levels between stored nodes."""
HASH_BYTES = 32
LEAF_PREFIX = b"\x00"

Hashes = Callable[[int, int, int], list[bytes]]
"""(tile level, first index, count) -> that many stored hashes; tile level 0 are the leaves, 1 the nodes above 256."""


def leaf_hash(body: bytes) -> bytes:
    """Of one row's bytes."""
    return sha256(LEAF_PREFIX + body).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Of two neighbours."""
    return sha256(b"\x01" + left + right).digest()


EMPTY_ROOT = sha256(b"").digest()


class Tree:
    """Grows leaf by leaf; memory is logarithmic."""

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        self.size = size
        self._peaks = list(peaks)
        if len(self._peaks) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} peaks, not {len(self._peaks)}")

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """One more leaf, by its hash. Returns nodes to be stored that are complete now: (tile level, index, hash)."""
        return self._push(leaf, 0)

    def _push(self, node: bytes, level: int) -> list[tuple[int, int, bytes]]:
        """The root of a complete subtree of ``2 ** level`` leaves, which begins where the tree ends."""
        peaks, index, complete = self._peaks, self.size >> level, []
        self.size += 1 << level
        while True:
            if level and level % TILE_BITS == 0:
                complete.append((level // TILE_BITS, index, node))
            if not index & 1:
                break
            node = sha256(b"\x01" + peaks.pop() + node).digest()
            index >>= 1
            level += 1
        peaks.append(node)
        return complete

    def extend(self, leaves: list[bytes]) -> list[tuple[int, int, bytes]]:
        """Many more leaves; the same as to append each, in a fraction of the time where whole tiles are among them."""
        complete, place, tile = [], 0, 1 << TILE_BITS
        while place < len(leaves):
            if self.size % tile or len(leaves) - place < tile:
                complete += self.append(leaves[place])
                place += 1
                continue
            nodes = leaves[place : place + tile]
            while len(nodes) > 1:
                pairs = zip(nodes[::2], nodes[1::2], strict=True)
                nodes = [sha256(b"\x01" + left + right).digest() for left, right in pairs]
            complete += self._push(nodes[0], TILE_BITS)
            place += tile
        return complete

    def root(self) -> bytes:
        """Of all leaves so far."""
        if not self._peaks:
            return EMPTY_ROOT
        *rest, root = self._peaks
        for peak in reversed(rest):
            root = node_hash(peak, root)
        return root

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """Largest subtree first; with ``size`` all that a tree is."""
        return tuple(self._peaks)

    def copy(self) -> Tree:
        """The tree as it is now."""
        return Tree(self.size, self._peaks)

    @staticmethod
    def of(size: int, hashes: Hashes) -> Tree:
        """The tree over the first ``size`` stored leaves."""
        peaks, start = [], 0
        for level in reversed(range(size.bit_length())):
            if size >> level & 1:
                peaks.append(_range_hash(start, start + (1 << level), hashes))
                start += 1 << level
        return Tree(size, peaks)


def inclusion_proof(index: int, size: int, hashes: Hashes) -> list[bytes]:
    """That leaf ``index`` is in the tree of ``size`` leaves, lowest sibling first. Raises: ValueError."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    proof, start, end = [], 0, size
    while end - start > 1:
        middle = start + _left_size(end - start)
        if index < middle:
            proof.append(_range_hash(middle, end, hashes))
            end = middle
        else:
            proof.append(_range_hash(start, middle, hashes))
            start = middle
    return proof[::-1]


def root_of_inclusion(leaf: bytes, index: int, size: int, proof: list[bytes]) -> bytes:
    """The root that a proof leads to (RFC 9162, 2.1.3.2). Raises: ValueError where it cannot be one of this place."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    node, place, last = leaf, index, size - 1
    for sibling in proof:
        if not last:
            raise ValueError("the proof is too long")
        if place & 1 or place == last:
            node = node_hash(sibling, node)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise ValueError("the proof is too short")
    return node


def consistency_proof(old_size: int, size: int, hashes: Hashes) -> list[bytes]:
    """That the tree of ``old_size`` leaves is a beginning of the one of ``size`` (RFC 9162, 2.1.4.1).

    Raises: ValueError where it cannot be.
    """
    if not 0 < old_size <= size:
        raise ValueError(f"a tree of {size} leaves does not begin with one of {old_size}")
    proof, start, end, old, is_whole = [], 0, size, old_size, True
    while old != end - start:
        middle = _left_size(end - start)
        if old <= middle:
            proof.append(_range_hash(start + middle, end, hashes))
            end = start + middle
        else:
            proof.append(_range_hash(start, start + middle, hashes))
            start, old, is_whole = start + middle, old - middle, False
    if not is_whole:
        proof.append(_range_hash(start, end, hashes))
    return proof[::-1]


def is_consistent(old_size: int, old_root: bytes, size: int, root: bytes, proof: list[bytes]) -> bool:
    """Whether a proof shows that one tree grew out of the other (RFC 9162, 2.1.4.2)."""
    if not 0 < old_size <= size:
        return False
    if old_size == size:
        return not proof and old_root == root
    path = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    if not path:
        return False
    place, last = old_size - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    old_node = node = path[0]
    for sibling in path[1:]:
        if not last:
            return False
        if place & 1 or place == last:
            old_node, node = node_hash(sibling, old_node), node_hash(sibling, node)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        place, last = place >> 1, last >> 1
    return not last and old_node == old_root and node == root


def _left_size(size: int) -> int:
    """The largest power of two below ``size``."""
    return 1 << (size - 1).bit_length() - 1


def _range_hash(start: int, end: int, hashes: Hashes) -> bytes:
    """Of the leaves from ``start`` to ``end``, which is a range that the tree itself splits off."""
    size = end - start
    if size & (size - 1):
        middle = start + _left_size(size)
        return node_hash(_range_hash(start, middle, hashes), _range_hash(middle, end, hashes))
    tile_level, level = divmod(size.bit_length() - 1, TILE_BITS)
    nodes = hashes(tile_level, start >> tile_level * TILE_BITS, 1 << level)
    if len(nodes) != 1 << level:
        raise ValueError(f"hashes of rows {start} to {end - 1} are missing")
    while len(nodes) > 1:
        nodes = [node_hash(*nodes[place : place + 2]) for place in range(0, len(nodes), 2)]
    return nodes[0]

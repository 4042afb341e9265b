"""Why a request went where it did: every worker's filter or score, kept small, told in full when somebody asks.

Made by ``scheduler.core.placement``, kept by ``scheduler.core.scheduler``. It must never know a prompt, nor decide
anything: what it tells is what was computed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.core.cluster import Worker
from scheduler.core.filters import Codes, Filter
from scheduler.core.score import TERMS

MAX_BYTES = 32 * 1024 * 1024
"""Of all evidence that is kept: about 10,000 decisions among 100 workers."""

OVERHEAD_BYTES = 512
"""Of one decision besides its arrays."""


class Evidence(NamedTuple):
    """One column a worker, as in the cluster's table when it was decided."""

    ids: tuple[tuple[str, str, str], ...]
    """(worker id, zone, whose curve it was placed by); shared between decisions."""
    codes: Codes
    terms: NDArray[np.float32] | None
    """Shape (terms, columns), in 10⁻⁹ currency units; None where nobody passed."""

    @property
    def num_bytes(self) -> int:
        """What it occupies alone."""
        return OVERHEAD_BYTES + self.codes.nbytes + (0 if self.terms is None else self.terms.nbytes)

    def workers(self) -> list[dict[str, Any]]:
        """Every worker by id: the filter that it did not pass, or its terms and their sum."""
        order = sorted((name, column) for column, (name, _, _) in enumerate(self.ids) if name)
        return [self._worker(column) for _, column in order]

    def _worker(self, column: int) -> dict[str, Any]:
        word = Filter(int(self.codes[column])).word
        told: dict[str, Any] = dict(zip(("worker_id", "zone", "curve"), self.ids[column], strict=True))
        told |= {"filter": word, "terms": None, "score": None}
        if word is None and self.terms is not None:
            # Whole units of 10⁻⁹: what a reader adds up is the score that he reads.
            terms = [round(float(term)) for term in self.terms[:, column]]
            told["terms"], told["score"] = dict(zip(TERMS, terms, strict=True)), sum(terms)
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Where a request goes, or that it goes nowhere now, and why."""

    worker: Worker | None
    reason: str
    """In one line."""
    cached_tokens: int
    """Prompt tokens that the worker probably has."""
    first_s: float
    """Predicted seconds from now to its first token."""
    due_s: float
    """When its first token is due; of an answer that decodes the last token is due at its own pace."""
    evidence: Evidence
    is_crowded: bool = False
    """Some promise is missed by it, the newcomer's or somebody's there: no worker that is up kept all of them."""

    def explain(self) -> dict[str, Any]:
        """Plain values. The terms of a worker sum to its score; the least score of those that passed was chosen."""
        return {"reason": self.reason, "workers": self.evidence.workers()}


class EvidenceBook:
    """The last decisions, by whatever they are asked for by; bounded in bytes."""

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, tuple[str, Evidence]] = OrderedDict()
        self.num_bytes = 0

    def keep(self, key: str, decision: Decision) -> None:
        """In place of what was kept under this key; the oldest go."""
        self.drop(key)
        self._kept[key] = (decision.reason, decision.evidence)
        self.num_bytes += decision.evidence.num_bytes
        while self.num_bytes > self._max_bytes:
            _, (_, evidence) = self._kept.popitem(last=False)
            self.num_bytes -= evidence.num_bytes

    def drop(self, key: str) -> None:
        """Unknown ones are ignored."""
        known = self._kept.pop(key, None)
        if known is not None:
            self.num_bytes -= known[1].num_bytes

    def explain(self, key: str) -> dict[str, Any] | None:
        """As ``Decision.explain``; None where it is unknown or too old."""
        known = self._kept.get(key)
        return None if known is None else {"reason": known[0], "workers": known[1].workers()}

    def __len__(self) -> int:
        return len(self._kept)

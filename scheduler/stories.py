"""The life of a request with what it cost: what the core remembers and what the accounts know, as one answer.

Called by ``scheduler.dispatcher``. Pure. It must never hold a prompt, an answer or a key.
"""

from __future__ import annotations

from typing import Any

from scheduler.accounting.settlement import RequestDetails


def with_costs(story: dict[str, Any], details: RequestDetails | None) -> dict[str, Any]:
    """Adds GPU-seconds, joules, their grade and the price (10⁻⁹ currency units) to each attempt; says what is final.

    Energy of an attempt is what its windows measured once its posting is there, before that what was predicted
    (``is_final`` False).
    """
    charges = {} if details is None else details.charges
    postings = {} if details is None else details.postings
    differences = {} if details is None else details.differences
    attempts = []
    for attempt in story["attempts"]:
        charge, posting = charges.get(attempt["attempt_id"]), postings.get(attempt["attempt_id"])
        energy_mj = gpu_us = None
        grade = None
        if posting is not None:
            energy_mj, gpu_us, grade = posting.energy_mj, posting.gpu_us, posting.grade.value
        elif charge is not None:
            energy_mj, gpu_us, grade = charge.provisional_mj, charge.provisional_gpu_us, charge.grade.value
        attempts.append(
            {
                **attempt,
                "energy_joules": None if energy_mj is None else energy_mj / 1_000,
                "gpu_seconds": None if gpu_us is None else gpu_us / 1_000_000,
                "cost_nano": None if charge is None else charge.cost_nano + differences.get(attempt["attempt_id"], 0),
                "grade": grade,
                "is_final": posting is not None,
            }
        )
    return {**story, "attempts": attempts, "is_final": details is not None and details.is_final}

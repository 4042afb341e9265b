"""What requests hold on the budgets above them, from their admission until their last joule is booked.

Owned by ``scheduler.core.scheduler``. It must never know a queue or why a worker was chosen.

Held is the worst case, before anything starts; the first step's count of the prompt trims it; the end of the attempt
that is paid charges tokens and money; what is booked of its energy settles joules, GPU-time and carbon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from scheduler.core.actions import Payer, Rejection
from scheduler.core.attempts import Attempt, Entry
from scheduler.core.budget_accounts import Amounts
from scheduler.core.budgets import Budgets, Granted
from scheduler.core.cluster import WorkerView
from scheduler.core.energy_bounds import EnergyBound, EnergyBounds
from scheduler.core.request import Request
from scheduler.core.rules import Rules
from workers.types import Outcome


class _Owed(NamedTuple):
    """Charged in an earlier life and not measured yet."""

    request: Request
    zone: str
    difference_nano: Callable[..., int]
    release: Callable[[], None]


class Holds:
    """Budgets and the energy bounds that they hold by, told what happens to requests and attempts."""

    def __init__(self, rules: Rules) -> None:
        self.budgets = Budgets(rules.budgets, rules.task_budgets)
        self._energy = EnergyBounds(carbon_ug_per_mj=rules.carbon_ug_per_mj)
        self._unbooked: dict[str, Attempt] = {}
        """Settled attempts whose energy is not booked yet."""
        self._owed: dict[str, _Owed] = {}
        """The same of an earlier life of this core, whose holds are gone."""

    def reload(self, rules: Rules) -> None:
        """Other limits from now on; what runs keeps what it holds."""
        self.budgets.reload(rules.budgets, rules.task_budgets)
        self._energy.reload(rules.carbon_ug_per_mj)

    def reload_carbon(self, carbon_ug_per_mj: Mapping[str, float]) -> None:
        """Other intensities by zone from now on, and nothing else."""
        self._energy.reload(carbon_ug_per_mj)

    # -- workers

    def hear(self, view: WorkerView) -> None:
        """A worker's curves."""
        self._energy.hear(view)

    def forget(self, worker_id: str) -> None:
        """The worker is gone."""
        self._energy.forget(worker_id)

    # -- one request, in the order of its life

    def hold(self, entry: Entry) -> Rejection | None:
        """Everything it may use, on every budget above it, or nothing; caps its output to what they cover."""
        return _grant(entry, self._ask(self.budgets.hold, entry.request))

    def check(self, entry: Entry) -> Rejection | None:
        """What ``hold`` would answer; nothing is held."""
        return _grant(entry, self._ask(self.budgets.check, entry.request))

    def _ask(self, budgets: Callable[..., Granted | Rejection], request: Request) -> Granted | Rejection:
        return budgets(
            request,
            prompt_tokens=request.prompt_tokens_bound,
            bound=lambda prompt, output: self._energy.bound(request, prompt_tokens=prompt, output_tokens=output),
        )

    def counted(self, attempt: Attempt) -> None:
        """The engine counted its prompt."""
        self.budgets.trim(attempt.entry.request.request_id, attempt.prompt_tokens)

    def settled(self, attempt: Attempt) -> None:
        """Its tokens and money are charged, if its request pays them; its energy follows."""
        settle = attempt.settled
        assert settle is not None
        if attempt.entry.request.is_counting:
            return
        self._unbooked[attempt.attempt_id] = attempt
        if settle.payer is Payer.REQUEST:
            self.budgets.charge(settle.request_id, settle.attempt_id, settle.tokens, settle.cost_nano)

    def end(self, entry: Entry) -> None:
        """The request is over: what it did not use of tokens, money and concurrency is free."""
        self.budgets.end(entry.request.request_id)

    def owe(
        self,
        attempt_id: str,
        request: Request,
        zone: str,
        *,
        most_nano: int = 0,
        difference_nano: Callable[..., int] = lambda energy_mj, gpu_us: 0,
    ) -> None:
        """It was charged in an earlier life; its energy is still to come, and with it what that costs beyond the
        estimate: at most ``most_nano``, which is held meanwhile.
        """
        self._owed[attempt_id] = _Owed(request, zone, difference_nano, self.budgets.reserve(request, most_nano))

    def book_energy(self, attempt_id: str, energy_mj: int, gpu_us: int) -> EnergyBound | None:
        """What a settled attempt took is booked; later words on it are ignored.

        Returns what its budgets carry of it, where that is less: the rest is the operator's.
        """
        if (owed := self._owed.pop(attempt_id, None)) is not None:
            owed.release()
            amounts = Amounts(
                money_nano=owed.difference_nano(energy_mj=energy_mj, gpu_us=gpu_us),
                energy_mj=energy_mj,
                gpu_us=gpu_us,
                carbon_ug=self._energy.carbon_ug(owed.zone, energy_mj),
            )
            self.budgets.restore(owed.request, amounts)
        attempt = self._unbooked.pop(attempt_id, None)
        if attempt is None:
            return None
        settle, entry = attempt.settled, attempt.entry
        assert settle is not None
        tokens = settle.tokens
        if settle.outcome is Outcome.COMPLETED:
            self._energy.observe(
                entry.request,
                prompt_tokens=tokens.input_tokens,
                output_tokens=tokens.output_tokens,
                energy_mj=energy_mj,
                gpu_us=gpu_us,
            )
        if settle.payer is not Payer.REQUEST:
            return None
        took = EnergyBound(energy_mj, gpu_us, self._energy.carbon_ug(attempt.zone, energy_mj))
        cost_nano = entry.request.rates.cost_plus_nano(
            energy_mj=energy_mj, gpu_us=gpu_us, most_nano=settle.most_plus_nano
        )
        carried = self.budgets.post(attempt_id, took, money_nano=cost_nano - settle.plus_nano)
        return None if carried == took else carried

    @property
    def num_unbooked(self) -> int:
        """Settled attempts whose energy is not booked yet."""
        return len(self._unbooked)


def _grant(entry: Entry, answer: Granted | Rejection) -> Rejection | None:
    if isinstance(answer, Rejection):
        return answer
    entry.granted_tokens, entry.hold = answer.output_tokens, answer.hold
    return None

"""Admission: who is refused at once, who may wait, and who has waited too long for a worker that does not come."""

import pytest

from scheduler.core.admission import CLEAR_RATIO, Admission, Limits
from scheduler.core.cluster import Cluster
from scheduler.core.data_policy import DataPolicy
from scheduler.core.queue import Queue, QueueLimits
from scheduler.core.request import DataClass
from tests.core_words import MODEL, curves, request, view
from workers.types import Outcome, UsageRecord, WorkerState


class Gate:
    """Admission over an empty queue and one ready worker."""

    def __init__(self, **limits: object) -> None:
        self.limits = Limits(**limits)  # type: ignore[arg-type]
        self.cluster, self.queue = Cluster(), Queue(self.limits.queue)
        self.admission = Admission(
            self.cluster,
            self.queue,
            self.limits,
            DataPolicy({"safe": DataClass.CORE}, {"placed": ["here"]}),
            models=[MODEL, "placed"],
        )
        self.num_places = 0

    def wait(self, name: str, **values: object) -> None:
        self.num_places += 1
        self.queue.push(request(name, **values), self.num_places)

    def unserved(self, now_s: float) -> list[str]:
        names = []
        for each, rejection in self.admission.unserved(now_s):
            assert rejection.reason == "no_worker"
            names.append(each.request_id)
            self.queue.remove(each.request_id)
        return names


def refusal(gate: Gate, now_s: float = 0.0, **values: object) -> str | None:
    rejection = gate.admission.refusal(request(**values), now_s)
    return rejection.reason if rejection else None


def test_an_ordinary_request_is_admitted() -> None:
    """Even before any worker is there: one may come."""
    assert refusal(Gate()) is None


def test_an_unknown_model_is_refused_and_a_served_one_is_known() -> None:
    """Configured or ever served."""
    gate = Gate()
    assert "model_not_found" == refusal(gate, model="other")
    gate.admission.models.update(("other",))
    assert refusal(gate, model="other") is None


def test_whoever_comes_during_shutdown_is_refused() -> None:
    """Before anything else is asked."""
    gate = Gate()
    gate.admission.is_draining = True
    assert "shutting_down" == refusal(gate, model="other")


def test_a_deadline_that_has_passed_is_refused() -> None:
    """At its very instant too."""
    assert "deadline_exceeded" == refusal(Gate(), now_s=5.0, deadline_s=5.0)


def test_only_a_clearly_hopeless_deadline_is_refused() -> None:
    """A prompt bound overstates and a cached prefix is free: a quarter of the least time is granted."""
    gate = Gate()
    gate.cluster.update(view(curves=curves(t0_s=1.0, prefill_s=0.03)), 0.0)
    least_s = 1.0 + 100 * 0.03
    assert "deadline_infeasible" == refusal(gate, deadline_s=0.99 * CLEAR_RATIO * least_s)
    assert refusal(gate, deadline_s=1.01 * CLEAR_RATIO * least_s) is None
    gate.cluster.update(view(state=WorkerState.SICK), 0.0)
    assert refusal(gate, deadline_s=0.001) is None


def test_a_full_band_says_when_to_come_back() -> None:
    """From the rate at which this band and those above it drain."""
    gate = Gate(queue=QueueLimits(max_requests=1))
    assert gate.admission.no_room(request("a"), 0.0) is None
    gate.wait("a")
    rejection = gate.admission.no_room(request("b"), 0.0)
    assert rejection is not None
    assert ("queue_full", 503) == (rejection.reason, rejection.status)
    assert gate.admission.no_room(request("b", band=0), 0.0) is None


def test_retry_after_counts_the_bands_above() -> None:
    """Flex waits for everybody; priority for nobody below it."""
    gate = Gate()
    for number in range(30):
        gate.wait(f"r{number}", band=number % 3)
        gate.admission.left_queue(0, number / 30)
    few_s, many_s = gate.admission.retry_after_s(0, 1.0), gate.admission.retry_after_s(2, 1.0)
    assert (1, 2) == (few_s, many_s)


def test_who_waits_for_a_worker_that_does_not_come_is_refused() -> None:
    """Each after the same time, counted from its own arrival or from when the last worker went."""
    gate = Gate(no_worker_timeout_s=60.0)
    gate.wait("a", arrival_s=0.0)
    gate.wait("b", arrival_s=30.0, band=2)
    assert [] == gate.unserved(1.0)
    assert [] == gate.unserved(60.0)
    assert ["a"] == gate.unserved(61.0)
    assert ["b"] == gate.unserved(90.0)


def test_an_age_without_a_worker_begins_anew_after_one_was_there() -> None:
    """A request that came back from a lost worker is not refused for an absence of long ago."""
    gate = Gate(no_worker_timeout_s=60.0)
    gate.wait("a", arrival_s=0.0)
    gate.unserved(0.0)
    gate.queue.remove("a")
    gate.admission.is_served((MODEL,))
    gate.wait("b", arrival_s=50.0)
    assert [] == gate.unserved(200.0)
    assert ["b"] == gate.unserved(260.0)


def test_nobody_is_unserved_while_a_worker_is_ready() -> None:
    """However long it takes; a wait without end has another bound."""
    gate = Gate(no_worker_timeout_s=60.0)
    gate.wait("a")
    gate.cluster.update(view(), 0.0)
    assert [] == gate.unserved(1e6)


@pytest.mark.parametrize(
    ("state", "models", "is_waited_for"),
    [
        (WorkerState.PARKED, (MODEL,), True),
        (WorkerState.STARTING, (MODEL,), True),
        (WorkerState.STARTING, (), False),
        (WorkerState.SICK, (MODEL,), False),
        (WorkerState.DRAINING, (MODEL,), False),
        (WorkerState.STOPPED, (MODEL,), False),
        (WorkerState.PARKED, ("another",), False),
    ],
    ids=["parked", "woken", "starts for the first time", "sick", "draining", "stopped", "of another model"],
)
def test_a_parked_worker_serves_although_it_is_not_ready(
    state: WorkerState, models: tuple[str, ...], is_waited_for: bool
) -> None:
    """It can be woken for whoever waits: they are not refused for want of a worker. No other absence is waited for."""
    gate = Gate(no_worker_timeout_s=60.0)
    gate.wait("a", arrival_s=0.0)
    gate.cluster.update(view(state=state, models=models), 0.0)
    gate.unserved(0.0)
    assert is_waited_for is gate.admission.can_serve(MODEL)
    assert ([] if is_waited_for else ["a"]) == gate.unserved(100.0)


def test_a_parked_worker_that_goes_begins_the_wait_for_one() -> None:
    """From when it went, not from when it was parked."""
    gate = Gate(no_worker_timeout_s=60.0)
    gate.wait("a", arrival_s=0.0)
    gate.cluster.update(view(state=WorkerState.PARKED), 0.0)
    gate.unserved(100.0)
    gate.cluster.remove("w")
    assert [] == gate.unserved(101.0)
    assert [] == gate.unserved(160.0)
    assert ["a"] == gate.unserved(161.0)


def test_a_deadline_is_not_called_infeasible_while_all_are_parked() -> None:
    """How long a start takes nobody knows for sure; its end is refused when it comes."""
    gate = Gate()
    gate.cluster.update(view(state=WorkerState.PARKED, curves=curves(t0_s=10.0)), 0.0)
    assert refusal(gate, deadline_s=1.0) is None


@pytest.mark.parametrize(("num_sequences", "expected"), [(1, 40), (4, 10)])
def test_outputs_are_learned_per_sequence(num_sequences: int, expected: int) -> None:
    """Four choices of ten tokens are ten tokens each."""
    gate, asked = Gate(), request(num_sequences=num_sequences, max_output_tokens=1000)
    for _ in range(50):
        gate.admission.observe_end(asked, UsageRecord(attempt_id="a", outcome=Outcome.COMPLETED, output_tokens=40))
    tokens = gate.admission.estimates_of(MODEL).output_tokens(asked) / num_sequences
    assert expected <= tokens <= 1.25 * expected


def test_prompts_of_several_sequences_teach_nothing() -> None:
    """They may share a prompt or have one each."""
    gate, many = Gate(), request(num_sequences=2, body_bytes=200)
    before = gate.admission.estimates_of(MODEL).prompt_tokens(many)
    gate.admission.observe_prompt(many, 1)
    assert before == gate.admission.estimates_of(MODEL).prompt_tokens(many)
    gate.admission.observe_prompt(request(body_bytes=200), 1)
    assert gate.admission.estimates_of(MODEL).prompt_tokens(many) < before


def test_timed_out_says_how_long() -> None:
    """The operator's limit, not the client's clock."""
    rejection = Gate(max_wait_s=7.0).admission.timed_out(request(), 9.0)
    assert ("queue_timeout", 503) == (rejection.reason, rejection.status)
    assert "7 s" in rejection.message


# -- residency


def test_data_that_no_zone_of_the_model_may_hold_is_refused_at_once() -> None:
    """It does not wait for a worker that can never come; where none is known yet, any fit zone may get one."""
    gate = Gate()
    assert "data_residency_mismatch" == refusal(gate, model="placed", data_class=DataClass.IMPORTANT)
    assert refusal(gate, model="placed") is None
    gate.admission.models.add("nowhere")
    assert refusal(gate, model="nowhere", data_class=DataClass.CORE) is None


def test_whoever_is_shed_is_told_that_the_queue_is_full() -> None:
    """Nobody while there is room."""
    gate = Gate()
    assert [] == list(gate.admission.shed_for(request(), 0.0))


def test_nothing_is_admitted_that_could_not_be_booked() -> None:
    """Whatever it asks for; a shutdown comes first, and who was refused may come again."""
    gate = Gate()
    gate.admission.is_ledger_writable = False
    for model in (MODEL, "other"):
        assert "ledger_unavailable" == refusal(gate, model=model)
    rejection = gate.admission.refusal(request(), 0.0)
    assert rejection is not None
    assert (503, True) == (rejection.status, rejection.retry_after_s is not None)
    gate.admission.is_draining = True
    assert "shutting_down" == refusal(gate)
    gate.admission.is_draining, gate.admission.is_ledger_writable = False, True
    assert refusal(gate) is None

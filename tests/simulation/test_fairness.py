"""The service gap is bounded: whatever tenants ask for, declare and write, and whenever it is heard of.

Here the bound is tested on the queue and its counters alone, with an engine that is all chance: it computes what it
likes when it likes, and reports late. ``benchmarks/fairness.py`` measures the whole core on simulated GPUs.
"""

import random
from dataclasses import dataclass, field
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fairness import CASES, run
from scheduler.core.fairness import Fairness, WorkWeights
from scheduler.core.queue import Queue
from scheduler.core.request import Request
from tests.core_words import MODEL, request, thorough

WORK = WorkWeights(prefill_gpu_s=1.0, cached_gpu_s=0.25, decode_gpu_s=3.0)
MAX_RUNNING = 6


@dataclass
class Running:
    """What runs, and how much of it was computed."""

    request: Request
    max_service: float
    output_tokens: int
    computed: int = 0
    written: int = 0

    @property
    def service(self) -> float:
        return WORK.gpu_seconds(prompt_tokens=self.computed, cached_tokens=0, output_tokens=self.written)

    @property
    def is_done(self) -> bool:
        return self.computed == self.request.prompt_tokens_bound and self.written == self.output_tokens


@dataclass
class Chaos:
    """Tenants that always wait, and an engine whose every move is drawn."""

    seed: int
    weights: dict[str, float]
    expected_ratio: float | None
    """Of what is declared, expected at a start: fixed, or (None) drawn anew each time."""
    kind: type[Fairness] = Fairness
    running: dict[str, Running] = field(default_factory=dict)
    done: dict[str, float] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)
    max_credit: dict[str, float] = field(default_factory=dict)
    """By tenant: the most that it ever had in flight, as if all of it were written to its limit."""
    largest: float = 0.0
    """The largest single charge there can be."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.fairness = self.kind(self.weights, {MODEL: WORK})
        self.queue = Queue(fairness=self.fairness)
        self.num_asked = 0
        self.gaps = {pair: [0.0, 0.0] for pair in permutations(sorted(self.weights), 2)}
        self.since: dict[tuple[str, str], float] = {}
        self.style = {tenant: self.chance.choice(["short", "long", "any"]) for tenant in self.weights}
        for tenant in self.weights:
            self.done[tenant] = self.max_credit[tenant] = 0.0
            self.ask(tenant)
            self.ask(tenant)

    def ask(self, tenant: str) -> None:
        self.num_asked += 1
        prompt, output = self.chance.choice([1, 5, 60]), self.chance.choice([1, 10, 40])
        each = request(f"r{self.num_asked}", tenant=tenant, prompt_tokens_bound=prompt, max_output_tokens=output)
        self.queue.push(each, self.num_asked)

    def start(self) -> None:
        (line,) = self.queue.lines_of(MODEL)
        head = line.head
        assert head is not None
        ratio = self.chance.random() if self.expected_ratio is None else self.expected_ratio
        most = WORK.gpu_seconds(
            prompt_tokens=head.prompt_tokens_bound, cached_tokens=0, output_tokens=head.max_output_tokens
        )
        style = self.style[head.tenant]
        written = {"short": 0, "long": head.max_output_tokens, "any": self.chance.randint(0, head.max_output_tokens)}
        self.fairness.start(
            head.request_id, head, prompt_tokens=head.prompt_tokens_bound, cached_tokens=0,
            output_tokens=round(ratio * head.max_output_tokens),
        )  # fmt: skip
        self.largest = max(self.largest, most / self.weights[head.tenant])
        self.running[head.request_id] = Running(head, most, written[style])
        self.queue.remove(head.request_id)
        self.ask(head.tenant)
        self.started.add(head.tenant)
        credit = sum(each.max_service for each in self.running.values() if each.request.tenant == head.tenant)
        self.max_credit[head.tenant] = max(self.max_credit[head.tenant], credit / self.weights[head.tenant])

    def compute(self, name: str) -> None:
        each = self.running[name]
        each.computed = self.chance.randint(each.computed, each.request.prompt_tokens_bound)
        if each.computed == each.request.prompt_tokens_bound:
            each.written = self.chance.randint(each.written, each.output_tokens)
        if self.chance.random() < 0.3:
            self.fairness.true_up(
                name, prompt_tokens=each.request.prompt_tokens_bound, cached_tokens=0, output_tokens=each.written
            )
        if each.is_done or self.chance.random() < 0.1:  # or its client went away
            self.done[each.request.tenant] += each.service
            self.fairness.close(name, input_tokens=each.computed, output_tokens=each.written)
            del self.running[name]

    def note(self) -> None:
        """The gap of each pair so far: how far the difference of their services ever moved."""
        service = dict(self.done)
        for each in self.running.values():
            service[each.request.tenant] += each.service
        for one, other in self.gaps:
            if {one, other} <= self.started:
                gap = service[one] / self.weights[one] - service[other] / self.weights[other]
                since = self.since.setdefault((one, other), gap)
                low, high = self.gaps[one, other]
                self.gaps[one, other] = [min(low, gap - since), max(high, gap - since)]

    def run(self, num_starts: int = 150) -> None:
        while num_starts:
            if len(self.running) < MAX_RUNNING and self.chance.random() < 0.6:
                self.start()
                num_starts -= 1
            elif self.running:
                self.compute(self.chance.choice(sorted(self.running)))
            self.note()


weights = st.lists(st.sampled_from([0.5, 1.0, 1.0, 2.0, 4.0]), min_size=2, max_size=4)


@thorough
@given(st.integers(0, 2**32), weights)
def test_the_service_gap_never_exceeds_its_bound(seed: int, chosen: list[float]) -> None:
    """However wrong what is expected of each request: 2 · (largest charge + credit in flight of either)."""
    chaos = Chaos(seed, {f"t{number}": weight for number, weight in enumerate(chosen)}, None)
    chaos.run()
    for (one, other), (low, high) in chaos.gaps.items():
        bound = 2 * (chaos.largest + chaos.max_credit[one] + chaos.max_credit[other])
        assert high - low <= bound + 1e-6, (one, other)


@thorough
@given(st.integers(0, 2**32), weights, st.sampled_from([0.0, 0.3, 1.0]))
def test_a_constant_expectation_halves_what_is_in_flight(seed: int, chosen: list[float], ratio: float) -> None:
    """Then the credit of one of them is enough: 2 · (largest charge + the larger credit in flight)."""
    chaos = Chaos(seed, {f"t{number}": weight for number, weight in enumerate(chosen)}, ratio)
    chaos.run()
    for (one, other), (low, high) in chaos.gaps.items():
        bound = 2 * (chaos.largest + max(chaos.max_credit[one], chaos.max_credit[other]))
        assert high - low <= bound + 1e-6, (one, other)


@thorough
@given(st.integers(0, 2**32))
def test_a_lone_request_of_a_new_tenant_is_next(seed: int) -> None:
    """It waits for one start at most, whatever backlog the others have: its own."""
    chaos = Chaos(seed, {"a": 1.0, "b": 2.0, "c": 1.0}, None)
    while len(chaos.started) < 3 or chaos.chance.random() < 0.95:
        if len(chaos.running) < MAX_RUNNING:
            chaos.start()
        else:
            chaos.compute(chaos.chance.choice(sorted(chaos.running)))
    chaos.queue.push(request("new", tenant="new"), 10**6)
    (line,) = chaos.queue.lines_of(MODEL)
    assert line.head is not None
    assert "new" == line.head.request_id


class ChargesNobody(Fairness):
    """Whoever was first stays first."""

    def start(self, attempt_id: str, request: Request, **tokens: int) -> None:
        super().start(attempt_id, request, **dict.fromkeys(tokens, 0))

    def close(self, attempt_id: str, **tokens: int) -> None:
        super().close(attempt_id)


class BelievesWhatIsExpected(Fairness):
    """Never hears how much was written."""

    def close(self, attempt_id: str, **tokens: int) -> None:
        charge = self._charges[attempt_id]
        super().close(attempt_id)
        charge.account.charged += charge.expected_tokens * 3 * 10**9


@pytest.mark.parametrize("wrong", [ChargesNobody, BelievesWhatIsExpected])
def test_the_bound_catches_wrong_counters(wrong: type[Fairness]) -> None:
    """Else it would be no bound."""
    chaos = Chaos(3, {"a": 1.0, "b": 1.0}, 0.0, kind=wrong)
    chaos.style = {"a": "long", "b": "short"}
    chaos.run(num_starts=1_000)
    low, high = chaos.gaps["a", "b"]
    assert high - low > 2 * (chaos.largest + sum(chaos.max_credit.values()))


@pytest.mark.parametrize(("case", "each_gpu_s"), [("heavy_prompts", 12.0), ("long_writers", 12.0), ("weights", 4.0)])
def test_the_production_core_keeps_bound_and_shares_on_simulated_gpus(case: str, each_gpu_s: float) -> None:
    """Two bounds of it in seconds; ``benchmarks/fairness.py`` goes on for a hundred."""
    found = run(CASES[case], seed=1, each_gpu_s=each_gpu_s)
    assert found.num_bounds >= 1.0
    assert found.worst_gap_ratio <= 1.0
    assert found.worst_share_error_ratio <= 0.05

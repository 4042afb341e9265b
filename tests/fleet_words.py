"""Small simulated fleets and arrivals, for tests of what runs on them."""

from collections.abc import Sequence

from scheduler.simulation.fleet import FleetWorker
from scheduler.simulation.power import Draw
from scheduler.simulation.traces import MODEL, Arrival
from workers.engines.simulated_options import SimulatedOptions

OPTIONS = SimulatedOptions(kv_tokens=20_000, max_sequences=32, energy_context_joules=0.0)
DRAW = Draw(idle_watts=100.0, parked_watts=50.0, start_s=20.0, start_watts=200.0)


def worker(number: int, **fields: object) -> FleetWorker:
    return FleetWorker(**{"worker_id": f"w-{number}", "options": OPTIONS, "draw": DRAW, **fields})  # type: ignore[arg-type]


def workers(num: int, *, first: int = 0, **fields: object) -> list[FleetWorker]:
    return [worker(first + number, **fields) for number in range(num)]


def arrival(
    at_s: float, *, prompt: int = 100, output: int = 20, blocks: Sequence[int] = (), model: str = MODEL
) -> Arrival:
    return Arrival(
        arrival_s=at_s, prompt_tokens=prompt, output_tokens=output, prompt_tokens_bound=4 * prompt, model=model,
        blocks=tuple(blocks), full_blocks=tuple(blocks),
    )  # fmt: skip


def steady(num: int, gap_s: float, **fields: int) -> list[Arrival]:
    return [arrival(gap_s * number, **fields) for number in range(num)]

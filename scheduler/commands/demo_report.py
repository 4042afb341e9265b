"""What the demo shows at its end: the table per tenant, the joule balance, the JSON, and whether it holds.

Called by ``scheduler.commands.demo``. Pure: figures in, text and verdict out. It must never know where they came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

SCHEMA_VERSION = 1
MAX_UNATTRIBUTED_RATIO = 0.02
PREDICTED_RANGE = (0.9, 1.1)
"""Design §5, invariant E: bounds of a clean live run after calibration."""
MIN_REQUESTS_RATIO = 0.90
"""Requests' share of busy energy (meter − idle) in a clean run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantFigures:
    """One tenant's row."""

    tenant: str
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    gpu_seconds: float
    """Step time × the engine's GPUs; a CPU engine counts as one."""
    energy_mj: int

    @property
    def joules_per_token(self) -> float | None:
        """Joules of its requests ÷ its output tokens; None without output."""
        return self.energy_mj / 1000 / self.output_tokens if self.output_tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFigures:
    """All that the demo measured, from the moment that serving began (calibration over)."""

    tenants: tuple[TenantFigures, ...]
    requests: int
    aborted: int
    failed: int
    grade: str
    meter: str
    meter_mj: int
    requests_mj: int
    idle_mj: int
    overhead_mj: int
    unattributed_mj: int
    in_flight_mj: int
    token_difference: int
    """Σ of the token identity's two sides over all engine requests; 0 when every token is accounted."""
    predicted_over_measured: float | None
    num_windows: int
    first_token_s: float | None
    """From the start of the command to the first token at the client."""

    @property
    def output_tokens(self) -> int:
        """Of all tenants."""
        return sum(row.output_tokens for row in self.tenants)

    @property
    def joules_per_token(self) -> float | None:
        """Joules of requests ÷ output tokens, the project's J/token; None without output."""
        return self.requests_mj / 1000 / self.output_tokens if self.output_tokens else None

    @property
    def difference_mj(self) -> int:
        """What the meter counted beyond the sum of the accounts; 0, always."""
        accounts = self.requests_mj + self.idle_mj + self.overhead_mj + self.unattributed_mj + self.in_flight_mj
        return self.meter_mj - accounts

    def as_dict(self) -> dict[str, object]:
        """For --json: every figure, and the derived ones."""
        tenants = {
            row.tenant: {
                **{name: value for name, value in asdict(row).items() if name != "tenant"},
                "joules_per_token": row.joules_per_token,
            }
            for row in self.tenants
        }
        return {
            "schema_version": SCHEMA_VERSION,
            **asdict(self),
            "tenants": tenants,
            "output_tokens": self.output_tokens,
            "joules_per_token": self.joules_per_token,
            "difference_mj": self.difference_mj,
            "faults": faults(self),
            "cautions": cautions(self),
        }


def faults(figures: DemoFigures) -> list[str]:
    """What must never be: each makes the demo fail."""
    found = []
    if figures.difference_mj:
        found.append(f"the accounts miss the meter by {figures.difference_mj} mJ")
    if figures.token_difference:
        found.append(f"the token identity is off by {figures.token_difference} tokens")
    if figures.in_flight_mj:
        found.append(f"{figures.in_flight_mj} mJ are still in flight")
    tenants_mj = sum(row.energy_mj for row in figures.tenants)
    if tenants_mj != figures.requests_mj:
        found.append(f"the tenants' joules differ from the requests' account by {tenants_mj - figures.requests_mj} mJ")
    if figures.failed:
        found.append(f"{figures.failed} of {figures.requests} requests failed")
    if figures.meter_mj <= 0:
        found.append("the meter counted nothing")
    return found


def cautions(figures: DemoFigures) -> list[str]:
    """Bounds of a clean run that a busy machine can miss: said, but no failure."""
    found = []
    if figures.meter_mj > 0 and abs(figures.unattributed_mj) > MAX_UNATTRIBUTED_RATIO * figures.meter_mj:
        share = figures.unattributed_mj / figures.meter_mj
        found.append(f"unattributed is {share:.1%} of the meter (clean runs: at most {MAX_UNATTRIBUTED_RATIO:.0%})")
    busy_mj = figures.meter_mj - figures.idle_mj
    if busy_mj > 0 and figures.requests_mj < MIN_REQUESTS_RATIO * busy_mj:
        share = figures.requests_mj / busy_mj
        found.append(f"requests are {share:.1%} of the busy energy (clean runs: at least {MIN_REQUESTS_RATIO:.0%})")
    ratio = figures.predicted_over_measured
    if ratio is None or not PREDICTED_RANGE[0] <= ratio <= PREDICTED_RANGE[1]:
        said = "unknown" if ratio is None else f"{ratio:.3f}"
        found.append(f"predicted / measured is {said} (clean live runs: {PREDICTED_RANGE[0]} to {PREDICTED_RANGE[1]})")
    return found


TENANT_COLUMNS = (
    "tenant",
    "requests",
    "input",
    "cached",
    "output tokens",
    "GPU-seconds",
    "joules",
    "J per output token",
)


def tenant_rows(figures: DemoFigures) -> list[tuple[str, ...]]:
    """The table's rows, the sum last. Joules with three digits, so that the column adds up to the millijoule."""
    total = TenantFigures(
        tenant="all",
        requests=sum(row.requests for row in figures.tenants),
        input_tokens=sum(row.input_tokens for row in figures.tenants),
        cached_tokens=sum(row.cached_tokens for row in figures.tenants),
        output_tokens=figures.output_tokens,
        gpu_seconds=sum(row.gpu_seconds for row in figures.tenants),
        energy_mj=sum(row.energy_mj for row in figures.tenants),
    )
    return [
        (
            row.tenant,
            f"{row.requests:,}",
            f"{row.input_tokens:,}",
            f"{row.cached_tokens:,}",
            f"{row.output_tokens:,}",
            f"{row.gpu_seconds:.3f}",
            f"{row.energy_mj / 1000:,.3f}",
            "–" if row.joules_per_token is None else f"{row.joules_per_token:.3f}",
        )
        for row in (*figures.tenants, total)
    ]


def balance_lines(figures: DemoFigures) -> list[str]:
    """The joule balance as plain lines, the meter first, its parts below, the difference last."""
    parts: Sequence[tuple[str, int]] = (
        ("requests", figures.requests_mj),
        ("idle", figures.idle_mj),
        ("overhead", figures.overhead_mj),
        ("unattributed", figures.unattributed_mj),
    )
    if figures.in_flight_mj:
        parts = (*parts, ("in flight", figures.in_flight_mj))
    lines = [f"meter        {figures.meter_mj / 1000:>12,.3f} J   {figures.meter}, grade {figures.grade}"]
    for sign, (name, value_mj) in zip(["="] + ["+"] * len(parts), parts, strict=False):
        share = f"{value_mj / figures.meter_mj:7.1%}" if figures.meter_mj else ""
        lines.append(f"{sign} {name:<11}{value_mj / 1000:>12,.3f} J {share}")
    ratio = figures.predicted_over_measured
    lines += [
        f"difference   {figures.difference_mj:>9} mJ     over {figures.num_windows} windows since serving began",
        f"predicted / measured {'unknown' if ratio is None else f'{ratio:.3f}'}",
        f"token identity: difference {figures.token_difference}",
    ]
    return lines

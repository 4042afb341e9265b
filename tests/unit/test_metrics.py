"""Prometheus metrics: every one described, bounded labels, one snapshot a scrape, and the sums of the accounts."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from scheduler.accounting.accounts import OPERATOR, Accounts, TenantRow, WindowTotals, WorkerEnergy
from scheduler.core.budgets import Excess
from scheduler.metric_table import METRIC_HELP
from scheduler.metrics import CONTENT_TYPE, OTHER, Labels, Metrics
from scheduler.snapshot import BandSnapshot, BudgetSnapshot, CreditSnapshot, Snapshot, WorkerSnapshot
from workers.types import Grade, WorkerState, WorkerStatus

ROOT = Path(__file__).resolve().parents[2]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def worker(worker_id: str, *, phase: str = "connected", status: WorkerStatus | None = None) -> WorkerSnapshot:
    credit = CreditSnapshot(sequences=1, prefill_tokens=2, decode_tokens=3, context_tokens=4, kv_tokens=5)
    return WorkerSnapshot(
        worker_id=worker_id, phase=phase, cause="", epoch=1, is_ready=phase == "connected", num_attempts=1,
        credit=credit, status=status,
    )  # fmt: skip


def energy(worker_id: str, grade: Grade = Grade.A) -> WorkerEnergy:
    return WorkerEnergy(
        worker_id=worker_id, meter_mj=10_000, requests_mj=6_000, idle_mj=2_500, overhead_mj=1_000, unattributed_mj=-500,
        in_flight_mj=1_000, requests_gpu_us=0, windows=WindowTotals(grade=grade),
    )  # fmt: skip


def payer(tenant: str) -> TenantRow:
    return TenantRow(
        tenant=tenant, requests=1, attempts=1, aborted=0, failed=0, input_tokens=10, cached_tokens=4, output_tokens=6,
        cost_nano=7_000, energy_mj=1_500, gpu_us=250_000,
    )  # fmt: skip


def budget(level: str) -> BudgetSnapshot:
    return BudgetSnapshot(
        level=level, measure="tokens", window="1h", limit=10, used=9, held=1, left=0, resets_unix_s=None
    )


def an_excess() -> Excess:
    excess = Excess()
    excess.add("energy_mj", 7)
    excess.add("energy_mj", 2)
    return excess


def snapshot(**values: Any) -> Snapshot:
    fields: dict[str, Any] = {
        "workers": (), "queue": (), "models": (), "ready_models": (), "num_open": 3, "num_running": 2, "submitted": 9,
        "dispatched": 8, "retried": 1, "bounced": 4, "preempted": 6, "lost_workers": 1, "rejected": {}, "finished": {},
        "balance": Accounts().balance(), "tenants": (), "worker_energy": (), "duplicate_records": 5, "bad_windows": 0,
        "open_attempts": 2, "budget_held": {}, "budgets_near_limit": (), "budget_excess": Excess(),
        "is_draining": False, **values,
    }  # fmt: skip
    return Snapshot(**fields)


def samples(metrics: Metrics) -> Samples:
    """Every sample of a scrape, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def seen(source: Snapshot, **how: Any) -> Samples:
    metrics = Metrics(**how)
    metrics.set_source(lambda: source)
    return samples(metrics)


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


# -- the list


def full() -> Metrics:
    """Metrics in which every family has a sample."""
    status = WorkerStatus(worker_id="w-0", state=WorkerState.READY, power_watts=300.0, meter_up=True)
    balance = replace(Accounts().balance(), predicted_over_measured=1.01)
    source = snapshot(
        workers=(worker("w-0", status=status),),
        queue=(BandSnapshot(band="default", num_requests=1, num_bytes=2, retry_after_s=1, tenants=(("alpha", 1),)),),
        budget_held={"tokens": 5}, budgets_near_limit=(budget("tenant alpha"),), budget_excess=an_excess(),
        rejected={"queue_full": 1}, finished={"completed": 1}, balance=balance, tenants=(payer("alpha"),),
        worker_energy=(energy("w-0"),),
    )  # fmt: skip
    metrics = Metrics()
    metrics.set_source(lambda: source)
    metrics.observe(
        tenant="alpha", model="m", band="default", outcome="completed", e2e_s=1, queue_s=1, ttft_s=1, tpot_s=1
    )
    metrics.count_error(status=401, code="invalid_api_key")
    metrics.observe_ledger_wait("end", 0.1)
    return metrics


def test_every_listed_metric_exists_with_its_kind_labels_and_help() -> None:
    """The list is what documentation and dashboards are held against."""
    shown: dict[str, tuple[str, frozenset[str], str]] = {}
    for family in text_string_to_metric_families(full().render().decode()):
        assert family.samples, f"{family.name} has no sample in this test"
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = frozenset(family.samples[0].labels) - {"le"}
        shown[name] = (family.type, labels, family.documentation)
    assert {name: (info.kind, frozenset(info.labels), info.help) for name, info in METRIC_HELP.items()} == shown


def test_names_follow_the_conventions() -> None:
    """Base units, ``_total`` on counters alone, no colon, no label that grows with requests."""
    for name, info in METRIC_HELP.items():
        assert re.fullmatch(r"jouleway_[a-z_]+", name)
        assert name.endswith("_total") == (info.kind == "counter"), name
        assert not re.search(r"_(ms|mj|us|kwh|percent|milli\w*)(_|$)", name)
        assert not {"request", "request_id", "attempt", "key", "user"} & set(info.labels)
        if info.kind == "histogram":
            assert name.endswith("_seconds")


def test_metrics_that_the_documents_name_exist() -> None:
    """An operator at three in the morning does not look for a metric that was renamed."""
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    named = {name for page in pages if page.exists() for name in re.findall(r"`?(jouleway_[a-z_]+)", page.read_text())}
    known = {f"{name}{end}" for name in METRIC_HELP for end in ("", "_bucket", "_count", "_sum")}
    assert {name for name in named if not name.endswith("_")} <= known
    assert {"jouleway_step_records_dropped_total"} <= named


def test_nothing_is_registered_globally() -> None:
    """Two control planes in one process do not share counters."""
    first, second = Metrics(), Metrics()
    first.count_error(status=400, code="x")
    assert b'code="x"' not in second.render()
    assert not [family for family in REGISTRY.collect() if family.name.startswith("jouleway")]


def test_the_content_type_is_that_of_the_text() -> None:
    """What Prometheus asks for by default."""
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


# -- a scrape


def test_budgets_are_seen_without_a_name_of_theirs() -> None:
    """Tasks and keys are words of clients: how many are near their limit is counted, by level."""
    near = tuple(map(budget, ("tenant alpha", "task alpha/night", "task alpha/day")))
    found = seen(snapshot(budget_held={"tokens": 5}, budgets_near_limit=near, budget_excess=an_excess()))
    assert 5 == value(found, "jouleway_budget_held", measure="tokens")
    assert [1, 0, 0, 2] == [
        value(found, "jouleway_budgets_near_limit", level=kind) for kind in ("tenant", "project", "key", "task")
    ]
    assert (9, 2) == (
        value(found, "jouleway_budget_excess_total", part="energy_mj"),
        value(found, "jouleway_budget_excess_attempts_total", part="energy_mj"),
    )


def test_the_ledger_is_seen_up_or_down() -> None:
    """Without the words of its problem: they are in the log and in `jouleway top`."""
    names = ("jouleway_ledger_up", "jouleway_ledger_rows", "jouleway_ledger_pending_rows")
    for problem, is_up in (("", 1), ("LedgerError: disk full", 0)):
        found = seen(snapshot(ledger_problem=problem, ledger_rows=7, ledger_pending_rows=3))
        assert [is_up, 7, 3] == [value(found, name) for name in names]


def test_what_the_ledger_adds_is_seen_by_part() -> None:
    """In buckets as fine as a disk's commit."""
    metrics = Metrics()
    metrics.observe_ledger_wait("first_byte", 0.0035)
    metrics.observe_ledger_wait("end", 0.5)
    found = samples(metrics)
    name = "jouleway_ledger_wait_seconds_bucket"
    assert [0, 1] == [value(found, name, part="first_byte", le=le) for le in ("0.003", "0.004")]
    assert [0, 1] == [value(found, name, part="end", le=le) for le in ("0.1", "0.5")]


def test_who_waits_is_seen_by_tenant_and_money_by_payer() -> None:
    """Tenants beyond the bound share one row."""
    band = BandSnapshot(band="flex", num_requests=3, num_bytes=2, retry_after_s=1, tenants=(("alpha", 1), ("beta", 2)))
    found = seen(snapshot(queue=(band,), tenants=(payer("alpha"), payer("beta"))), max_tenants=2)
    assert 1 == value(found, "jouleway_queue_tenant_requests", tenant="alpha", band="flex")
    assert 2 == value(found, "jouleway_queue_tenant_requests", tenant=OTHER, band="flex")
    assert 7e-6 == value(found, "jouleway_tenant_cost_total", tenant="alpha")


def test_a_scrape_reads_one_snapshot() -> None:
    """Numbers of one page belong together."""
    num_read = 0

    def source() -> Snapshot:
        nonlocal num_read
        num_read += 1
        return snapshot()

    metrics = Metrics()
    assert 0 == num_read
    metrics.set_source(source)
    metrics.render()
    assert 1 == num_read


def test_without_a_source_only_what_was_observed_is_shown() -> None:
    """The relay can be tested alone."""
    assert {} == samples(Metrics())


def test_joules_by_account_sum_to_the_meter() -> None:
    """The page itself balances: meter = accounts + in flight."""
    found = seen(snapshot(worker_energy=(energy("w-0"), energy("w-1", Grade.D))))
    for name, grade in (("w-0", "A"), ("w-1", "D")):
        accounts = [
            value(found, "jouleway_energy_joules_total", account=account, worker=name, grade=grade)
            for account in ("requests", "idle", "overhead", "unattributed")
        ]
        in_flight = value(found, "jouleway_in_flight_joules", worker=name)
        assert value(found, "jouleway_meter_joules_total", worker=name, grade=grade) == sum(accounts) + in_flight == 10


def test_tokens_are_shown_in_classes_that_sum() -> None:
    """Cached tokens are not counted as input again."""
    found = seen(snapshot(tenants=(payer("alpha"),)))
    classes = {name: value(found, "jouleway_tokens_total", tenant="alpha", **{"class": name}) for name in
               ("input", "cached", "output")}  # fmt: skip
    assert {"input": 6.0, "cached": 4.0, "output": 6.0} == classes
    assert 1.5 == value(found, "jouleway_tenant_energy_joules_total", tenant="alpha")
    assert 0.25 == value(found, "jouleway_tenant_gpu_seconds_total", tenant="alpha")


def test_workers_are_counted_by_state_and_a_link_that_is_down_by_its_phase() -> None:
    """States nobody is in are 0, not absent: an alert can compare them."""
    ready = WorkerStatus(worker_id="a", state=WorkerState.READY)
    sick = WorkerStatus(worker_id="b", state=WorkerState.SICK)
    found = seen(
        snapshot(
            workers=(
                worker("a", status=ready), worker("b", status=sick), worker("c", phase="lost", status=ready),
                worker("d", phase="connecting"), worker("e", phase="gone", status=sick), worker("f"),
            )
        )
    )  # fmt: skip
    states = {dict(labels)["state"]: count for (name, labels), count in found.items() if name == "jouleway_workers"}
    assert {
        "ready": 1, "sick": 1, "lost": 1, "connecting": 2, "gone": 1, "fenced": 0, "starting": 0, "draining": 0,
        "stopped": 0, "parked": 0,
    } == states  # fmt: skip


def test_what_a_worker_says_of_itself() -> None:
    """Meter, outbox, dropped records: the names that docs/operations.md sends people to."""
    status = WorkerStatus(
        worker_id="w", state=WorkerState.READY, meter_up=False, outbox_depth=7, outbox_dropped_total=2,
        dropped_step_records_total=3, num_running=4, num_waiting=5, kv_used_tokens=6, steps_total=8,
    )  # fmt: skip
    found = seen(snapshot(workers=(worker("w", status=status),)))
    expected = {
        "jouleway_meter_up": 0, "jouleway_outbox_depth": 7, "jouleway_outbox_dropped_total": 2,
        "jouleway_step_records_dropped_total": 3, "jouleway_kv_used_tokens": 6, "jouleway_engine_steps_total": 8,
    }  # fmt: skip
    assert expected == {name: value(found, name, worker="w") for name in expected}
    assert 4 == value(found, "jouleway_worker_sequences", worker="w", state="running")
    assert 3 == value(found, "jouleway_credit_tokens", worker="w", **{"class": "decode"})
    assert ("jouleway_power_watts", frozenset({("worker", "w")})) not in found


def test_a_ratio_that_does_not_exist_is_absent() -> None:
    """Never a 0 that looks like a measurement."""
    name = ("jouleway_predicted_over_measured_ratio", frozenset[tuple[str, str]]())
    assert name not in seen(snapshot())
    measured = replace(Accounts().balance(), predicted_over_measured=0.98)
    assert 0.98 == seen(snapshot(balance=measured))[name]


def test_the_core_counts() -> None:
    """Rejections by reason, queue by band."""
    queue = (BandSnapshot(band="flex", num_requests=3, num_bytes=99, retry_after_s=1),)
    found = seen(snapshot(rejected={"queue_full": 2}, finished={"aborted": 1}, queue=queue, is_draining=True))
    assert 2 == value(found, "jouleway_requests_rejected_total", reason="queue_full")
    assert 1 == value(found, "jouleway_requests_finished_total", outcome="aborted")
    assert 3 == value(found, "jouleway_queue_requests", band="flex")
    assert (9, 1, 1) == tuple(
        value(found, name)
        for name in ("jouleway_requests_submitted_total", "jouleway_attempts_retried_total", "jouleway_draining")
    )


# -- what the relay observes


def test_one_observation_per_request() -> None:
    """Counter, and each histogram of which there was a moment."""
    metrics = Metrics()
    metrics.observe(tenant="alpha", model="m", band="default", outcome="completed", e2e_s=2.0, queue_s=0.5, ttft_s=1.0)
    metrics.observe(tenant="alpha", model="m", band="default", outcome="aborted", e2e_s=1.0)
    found = samples(metrics)
    assert 1 == value(found, "jouleway_requests_total", tenant="alpha", band="default", outcome="aborted")
    labels = {"model": "m", "band": "default"}
    assert 2 == value(found, "jouleway_request_seconds_count", **labels)
    assert 3.0 == value(found, "jouleway_request_seconds_sum", **labels)
    assert 1 == value(found, "jouleway_time_to_first_token_seconds_count", **labels)
    assert 0 == sum(
        count for (name, _), count in found.items() if name == "jouleway_time_per_output_token_seconds_count"
    )


# -- bounds


def test_tenants_beyond_the_cap_share_one_label() -> None:
    """Their counters are summed; those within the cap, and the operator's, keep their names."""
    rows = (*(payer(f"t{number}") for number in range(5)), payer(OPERATOR))
    found = seen(snapshot(tenants=rows), max_tenants=3)
    joules = {
        dict(labels)["tenant"]: count
        for (name, labels), count in found.items()
        if name == "jouleway_tenant_energy_joules_total"
    }
    assert {"t0": 1.5, "t1": 1.5, OTHER: 4.5, OPERATOR: 1.5} == joules


def test_a_name_keeps_its_label_for_ever() -> None:
    """Else a counter would fall when somebody new comes."""
    labels = Labels(2)
    assert ["a", "b", OTHER, "a", OTHER] == [labels.of(each) for each in ("a", "b", "c", "a", "c")]


@pytest.mark.parametrize("num_strangers", [1_000])
def test_no_stranger_makes_the_page_grow(num_strangers: int) -> None:
    """Models and codes are bounded too."""
    metrics = Metrics(max_tenants=5)
    for number in range(num_strangers):
        metrics.observe(tenant=f"t{number}", model=f"m{number}", band="flex", outcome="failed", e2e_s=1.0)
        metrics.count_error(status=400, code=f"c{number}")
    found = samples(metrics)
    assert 6 >= len({dict(labels).get("tenant") for name, labels in found if name == "jouleway_requests_total"})
    assert 201 >= len({dict(labels).get("code") for name, labels in found if name == "jouleway_errors_total"})
    assert 201 >= len({dict(labels).get("model") for name, labels in found if name == "jouleway_request_seconds_sum"})

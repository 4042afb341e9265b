"""`jouleway demo`: the whole loop once on this machine, then who used what and whether the joules add up.

Called by ``scheduler.cli``. It serves like `serve`, asks like any client, and reads the accounts when all is settled.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from scheduler.accounting.accounts import TenantRow
from scheduler.accounting.checkpoints import PublicKey
from scheduler.accounting.errors import LedgerError
from scheduler.accounting.ledger_reader import Reader, sqlite_url
from scheduler.accounting.rows import OPERATOR
from scheduler.accounting.verify import Fault, verify
from scheduler.commands import configuration
from scheduler.commands.demo_drive import Met, drive
from scheduler.commands.demo_report import (
    TENANT_COLUMNS,
    DemoFigures,
    TenantFigures,
    balance_lines,
    cautions,
    faults,
    tenant_rows,
)
from scheduler.commands.demo_requests import TENANTS_NEEDED, DemoRequest, plan_requests
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.output import Progress, print_json, print_lines, print_table
from scheduler.commands.serve import make_service, set_up_logging
from scheduler.config import Config
from scheduler.config_sections import LedgerConfig
from scheduler.ledger_files import key_path, ledger_url
from scheduler.service import Service
from workers.errors import WorkerError

SETTLE_TIMEOUT_S = 30.0
"""Two windows, and what a slow machine needs beside them."""
HEARTBEAT_S = 5.0


def run(
    *, json_path: Path | None, num_requests: int, seed: int, config_path: Path | None, ledger_path: Path | None = None
) -> ExitCode:
    """Serve, ask, settle, stop, print. Exit code 7 where the figures do not add up."""
    progress = Progress()
    path = config_path or configuration.demo_path()
    config = configuration.load(path)
    _check(config)
    if ledger_path is not None and ledger_path.exists():
        raise CommandError(f"{ledger_path} is there already", code=ExitCode.USAGE, remedy="name a new file")
    set_up_logging("WARNING")  # the progress lines say the rest
    progress(f"demo: {num_requests} requests, seed {seed}, {path.name}")
    with tempfile.TemporaryDirectory(prefix="jouleway-demo-") as folder:
        config = with_ledger(config, (ledger_path or Path(folder) / "ledger.db").absolute())
        figures = uvloop.run(_demo(config, progress, num_requests=num_requests, seed=seed))
        verified = _verify(config, progress)
    broken = [*faults(figures), *verified]
    _print(figures, broken, json_path)
    if ledger_path is not None:
        key = f"{ledger_path}.key.pub"
        line = f"ledger: {ledger_path}; jouleway ledger verify {ledger_path} --key {key}"
        print_lines([line], to_stderr=str(json_path) == "-")
    return ExitCode.VERIFICATION if broken else ExitCode.OK


def with_ledger(config: Config, path: Path) -> Config:
    """The ledger in this file, its key and its checkpoints beside it."""
    ledger = LedgerConfig(
        url=sqlite_url(path), key_file=path.with_name(f"{path.name}.key"), checkpoint_dir=path.with_name("checkpoints")
    )
    return config.model_copy(update={"ledger": ledger})


def _verify(config: Config, progress: Progress) -> list[str]:
    """What is wrong with the ledger that was left, as anybody would find it."""
    reader = Reader(ledger_url(config))
    try:
        public_key = key_path(config).with_name(f"{key_path(config).name}.pub").read_text(encoding="ascii")
        found = verify(reader, key=PublicKey.parse(public_key))
    except (Fault, LedgerError) as error:
        return [f"the ledger: {error}"]
    finally:
        reader.close()
    progress(f"ledger: {found.num_rows} rows verified, {found.num_open_holds} holds open")
    return ["the ledger: a hold is still open"] if found.num_open_holds else []


def _check(config: Config) -> None:
    """What would fail a minute later is said now. Raises: CommandError."""
    if len(config.tenants) < TENANTS_NEEDED or not config.generate_keys:
        raise CommandError(
            f"the demo needs {TENANTS_NEEDED} tenants and generate_keys: true",
            code=ExitCode.USAGE,
            remedy="no --config",
        )
    for model, folder in configuration.model_folders(config).items():
        if not (folder / "config.json").exists():
            raise CommandError(
                f"models.{model}.weights: nothing is built in {folder}",
                code=ExitCode.NOT_FOUND,
                remedy="make setup builds the demo's weights",
            )


@dataclass(slots=True, kw_only=True)
class _Watch:
    """Says each request as it ends, and remembers the first token."""

    progress: Progress
    num_requests: int
    num_done: int = 0
    first_token_s: float | None = None

    def __call__(self, met: Met) -> None:
        self.num_done += 1
        ending = "hung up on purpose" if met.was_aborted else met.error or f"{met.num_events} events"
        self.progress(f"{self.num_done:>3}/{self.num_requests} {met.request.label}: {ending} in {met.took_s:.1f} s")


async def _demo(config: Config, progress: Progress, *, num_requests: int, seed: int) -> DemoFigures:
    service = make_service(config)
    is_stopped = False
    beating = asyncio.create_task(_heartbeat(progress))
    try:
        try:
            await service.start(progress=progress)
            await service.wait_ready(progress=progress)
        except (WorkerError, LedgerError) as error:
            raise CommandError(str(error), code=ExitCode.UNAVAILABLE) from None
        finally:
            beating.cancel()
        tenants = [(tenant.name, service.generated_keys[tenant.name]) for tenant in config.tenants]
        model = config.workers[0].model
        plan = plan_requests(tenants[:TENANTS_NEEDED], num_requests=num_requests, seed=seed)
        watch = _Watch(progress=progress, num_requests=len(plan))
        started_s = progress.elapsed_s
        met = await drive(service.url, plan, model, clock=time.monotonic, on_met=watch)
        first_token_s = _first_token_s(met, plan, started_s)
        progress("all requests ended; waiting for their last windows")
        await _settled(service)
        await service.stop(drain_s=0.0, stop_workers=True)
        is_stopped = True
        progress("engine and Ray are stopped, the accounts are closed")
        return _figures(service, met, first_token_s)
    finally:
        beating.cancel()
        if not is_stopped:
            progress("stopping")
            await service.stop(drain_s=0.0, stop_workers=True)


async def _heartbeat(progress: Progress) -> None:
    """Nobody wonders whether it still runs."""
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        progress("… still starting")


async def _settled(service: Service) -> None:
    """Until every attempt has its charge and its posting, or long enough."""
    until_s = time.monotonic() + SETTLE_TIMEOUT_S
    while service.snapshot().open_attempts and time.monotonic() < until_s:
        await asyncio.sleep(0.2)


def _first_token_s(met: Sequence[Met], plan: Sequence[DemoRequest], started_s: float) -> float | None:
    """Since the command began."""
    firsts = [
        started_s + request.starts_after_s + each.ttft_s
        for each, request in zip(met, plan, strict=True)
        if each.ttft_s is not None
    ]
    return round(min(firsts), 2) if firsts else None


def _figures(service: Service, met: Sequence[Met], first_token_s: float | None) -> DemoFigures:
    accounts = service.settlement.accounts
    balance = accounts.balance()
    rows = [row for row in accounts.tenant_rows() if row.tenant != OPERATOR or row.attempts or row.energy_mj]
    return DemoFigures(
        tenants=tuple(_tenant(row) for row in rows),
        requests=len(met),
        aborted=sum(each.was_aborted for each in met),
        failed=sum(bool(each.error) for each in met),
        grade=balance.grade,
        meter=", ".join(balance.meters),
        meter_mj=balance.meter_mj,
        requests_mj=balance.requests_mj,
        idle_mj=balance.idle_mj,
        overhead_mj=balance.overhead_mj,
        unattributed_mj=balance.unattributed_mj,
        in_flight_mj=balance.in_flight_mj,
        token_difference=balance.token_difference,
        predicted_over_measured=balance.predicted_over_measured,
        num_windows=balance.num_windows,
        first_token_s=first_token_s,
    )


def _tenant(row: TenantRow) -> TenantFigures:
    return TenantFigures(
        tenant=row.tenant,
        requests=row.requests,
        input_tokens=row.input_tokens,
        cached_tokens=row.cached_tokens,
        output_tokens=row.output_tokens,
        gpu_seconds=row.gpu_us / 1e6,
        energy_mj=row.energy_mj,
    )


def _print(figures: DemoFigures, broken: Sequence[str], json_path: Path | None) -> None:
    if json_path is not None and str(json_path) == "-":
        print_json(figures.as_dict())
    else:
        print_table("who used what", TENANT_COLUMNS, tenant_rows(figures))
        print_lines(["", "joule balance", *balance_lines(figures)])
        if figures.first_token_s is not None:
            print_lines([f"first token {figures.first_token_s:.1f} s after the command began"])
    if json_path is not None and str(json_path) != "-":
        json_path.write_text(json.dumps(figures.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for line in cautions(figures):
        sys.stderr.write(f"caution: {line}\n")
    for line in broken:
        sys.stderr.write(f"FAULT: {line}\n")

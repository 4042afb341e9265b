"""`jouleway doctor`: looks at this machine and says, line by line, what is wrong and what to do about it.

Called by ``scheduler.cli``. It changes nothing and starts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from scheduler.commands import configuration, doctor_checks
from scheduler.commands.doctor_checks import Finding, Machine, Status
from scheduler.commands.exits import ExitCode
from scheduler.commands.output import print_json, print_lines, print_table
from scheduler.config_prices import book_of
from workers.cache import cache_folder
from workers.errors import MeterUnavailable
from workers.power.choose import open_meter
from workers.types import Grade, MeterSpec
from workers.windows import MeterReading, PowerMeter

OpenMeter = Callable[[tuple[str, ...]], tuple[PowerMeter, tuple[str, ...]]]
"""GPU UUIDs to the best meter and the notes on better ones that could not be had."""


def best_meter(gpu_uuids: tuple[str, ...]) -> tuple[PowerMeter, tuple[str, ...]]:
    """The meter that an engine on these GPUs (none: on this CPU) would get. Raises MeterUnavailable."""
    return open_meter(MeterSpec(), gpu_uuids=gpu_uuids, pids=(os.getpid(),), counter=None)


def check_meter(machine: Machine, opened: OpenMeter = best_meter) -> Finding:
    """Opens the meter that an engine here would get, and reads it once."""
    uuids = tuple(line.split(",")[-1].strip() for line in machine.driver_lines() or ())
    remedy_of_none = "see the lines driver and nvml; engine: simulated and meter: {kind: modelled} work without"
    try:
        meter, notes = opened(uuids)
    except MeterUnavailable as error:
        return Finding(check="meter", status=Status.FAIL, detail=str(error), remedy=remedy_of_none)
    try:
        reading: MeterReading = meter.read()
    except MeterUnavailable as error:
        return Finding(check="meter", status=Status.FAIL, detail=f"{meter.name}: {error}", remedy=remedy_of_none)
    finally:
        meter.close()
    detail = f"{meter.name}, grade {reading.grade} with the step hook"
    if reading.grade in {Grade.A, Grade.B} and not notes and not reading.fault:
        return Finding(check="meter", status=Status.OK, detail=detail)
    causes = "; ".join([*notes, *([reading.fault] if reading.fault else [])])
    remedy = f"joules are usable but of grade {reading.grade}: {causes or 'see docs/metering.md'}"
    return Finding(check="meter", status=Status.WARN, detail=detail, remedy=remedy)


def examine(config_path: Path | None, machine: Machine, opened: OpenMeter = best_meter) -> list[Finding]:
    """All findings, in the order in which an operator would look. Raises CommandError for a bad configuration."""
    path = config_path or configuration.demo_path()
    config = configuration.load(path)
    address, _ = configuration.ray_target(config)
    book = book_of(config.prices, config.models, currency=config.currency)
    return [
        Finding(check="configuration", status=Status.OK, detail=str(path)),
        doctor_checks.check_python(machine),
        doctor_checks.check_ray(machine),
        doctor_checks.check_ray_auth(machine, address),
        doctor_checks.check_engine(machine),
        doctor_checks.check_driver(machine),
        doctor_checks.check_nvml(machine),
        check_meter(machine, opened),
        *doctor_checks.check_ports(machine, configuration.listeners(config)),
        *doctor_checks.check_models(machine, configuration.model_folders(config)),
        *doctor_checks.check_prices(machine, book, config.models),
        doctor_checks.check_memory(machine),
        doctor_checks.check_disk(machine, cache_folder()),
        doctor_checks.check_shared_memory(machine),
        doctor_checks.check_clock(machine),
        doctor_checks.check_open_files(machine),
    ]


def run(*, config_path: Path | None, as_json: bool, machine: Machine | None = None) -> ExitCode:
    """Examine, print, and fail if any check failed."""
    findings = examine(config_path, machine or Machine())
    num_failed = sum(finding.status is Status.FAIL for finding in findings)
    if as_json:
        print_json({"ok": num_failed == 0, "findings": [finding.as_dict() for finding in findings]})
    else:
        rows = [(str(finding.status), finding.check, finding.detail) for finding in findings]
        print_table("jouleway doctor", ("status", "check", "found"), rows, numeric_from=3)
        remedies = [f"{finding.check}: {finding.remedy}" for finding in findings if finding.remedy]
        print_lines(["", "What to do", *(f"  {remedy}" for remedy in remedies)] if remedies else ["", "Nothing to do."])
    return ExitCode.FAILURE if num_failed else ExitCode.OK

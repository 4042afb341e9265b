"""`jouleway reconcile`: ledger, engine counters and meter, worker by worker; every difference with its source.

Called by ``scheduler.cli``. It reads a ledger and must never change it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from scheduler.accounting.reconcile import WorkerFigures, reconcile
from scheduler.commands import configuration
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.instants import period_us
from scheduler.commands.ledger import reading, rows_of
from scheduler.commands.output import print_json, print_table
from scheduler.config_errors import ConfigError
from scheduler.ledger_files import ledger_url

KINDS = frozenset({"window", "energy", "charge", "daily"})


def run(
    source: str | None, *, config: Path | None, from_text: str | None, to_text: str | None, as_json: bool
) -> ExitCode:
    """Exit code 7 where something is unexplained."""
    if (source is None) == (config is None):
        raise CommandError("give a ledger's file or --config", code=ExitCode.USAGE)
    with reading(source or _url_of(config or Path())) as reader:
        from_us, to_us = period_us(from_text, to_text)
        found = reconcile(rows_of(reader, KINDS), from_us=from_us, to_us=to_us)
    if as_json:
        print_json({"workers": [_told(figures) for figures in found]})
    else:
        _show(found)
    wrong = [figures.worker_id for figures in found if not figures.is_explained]
    if wrong:
        raise CommandError(f"unexplained differences on {', '.join(wrong)}", code=ExitCode.VERIFICATION)
    return ExitCode.OK


def _url_of(config: Path) -> str:
    try:
        return ledger_url(configuration.load(config))
    except ConfigError as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from None


def _told(figures: WorkerFigures) -> dict[str, object]:
    return {
        **dataclasses.asdict(figures),
        "unexplained_counter_mj": figures.unexplained_counter_mj,
        "unexplained_mj": figures.unexplained_mj,
        "unexplained_tokens": figures.unexplained_tokens,
    }


def _show(found: list[WorkerFigures]) -> None:
    for each in found:
        counted_mj = each.last_counter_mj - (each.first_counter_mj or 0)
        causes = [(f"    {cause}", _j(energy_mj)) for cause, energy_mj in sorted(each.causes.items()) if energy_mj]
        rows = [
            ("counter, last \u2212 first", _j(counted_mj)),
            ("  fell at resets", _j(each.reset_mj)),
            ("  stood when first read", _j(each.found_mj)),
            (f"  elsewhere after restarts ({each.num_restarts})", _j(each.restarted_mj)),
            ("metered", _j(each.metered_mj)),
            ("  requests of tenants", _j(each.requests_mj)),
            ("  in vain, the operator's", _j(each.operator_mj)),
            ("  idle", _j(each.idle_mj)),
            ("  overhead", _j(each.overhead_mj)),
            ("  unattributed", _j(each.unattributed_mj)),
            *causes,
            ("  in flight over the edges", _j(each.in_flight_mj)),
            ("unexplained", f"{each.unexplained_counter_mj} + {each.unexplained_mj} mJ"),
            ("tokens scheduled by the engine", f"{each.scheduled_tokens:,}"),
            ("  billed: input \u2212 cached", f"{each.input_tokens - each.cached_tokens:,}"),
            ("  billed: output", f"{each.output_tokens:,}"),
            ("  last tokens, never scheduled", f"{-each.last_tokens:,}"),
            ("  prompts computed more than once", f"{each.repeated_prompt_tokens:,}"),
            ("  prompts not computed (aborted)", f"{-each.uncomputed_prompt_tokens:,}"),
            (
                "  recomputed, drafts, overrun",
                f"{each.recomputed_tokens + each.rejected_tokens + each.overrun_tokens:,}",
            ),
            ("unexplained", f"{each.unexplained_tokens:,} tokens"),
            ("scheduled in vain (the operator's)", f"{each.in_vain_tokens:,}"),
            ("in no step that was metered", f"{each.unmetered_tokens:,}"),
            ("charges, without the engine's word", f"{each.num_charges:,}, {each.num_inexact:,}"),
        ]
        print_table(f"{each.worker_id}: {each.num_windows} windows", ("", ""), rows)


def _j(energy_mj: int) -> str:
    return f"{energy_mj / 1_000:,.3f} J"

"""Says whether a run's figures may be quoted, and why not.

Called by ``scheduler.bench.command``. It must never know HTTP or a clock; every limit has a name here.
"""

from __future__ import annotations

from scheduler.bench.report import Figures, Finding, Verdict

MIN_DURATION_S = 10.0
MIN_REQUESTS = 30
MIN_LIFETIMES = 3.0
"""The measured span must be this many median request lifetimes long, or its edges weigh too much."""
MAX_FAILED_RATIO = 0.01
MAX_LAG_S = 0.01
MAX_LAG_SHARE = 0.05
"""The client's own lag may be 10 ms, or this share of the median TTFT, whichever is more."""
MAX_CPU_RATIO = 0.9
MAX_DRIFT_RATIO = 1.5
MIN_DRIFT_S = 0.02
"""Medians closer than this have not drifted, whatever their ratio."""
MAX_OTHER_LENGTH_RATIO = 0.01
MAX_INPUT_ERROR_RATIO = 0.1


def judge(
    figures: Figures, *, duration_s: float, exact_output: bool, interrupted: bool, notes: tuple[str, ...] = ()
) -> Verdict:
    """Every finding on a run; valid when none of them voids it."""
    findings = [
        *_length(figures, duration_s, interrupted),
        *_errors(figures),
        *_client(figures),
        *_drift(figures),
        *_tokens(figures, exact_output),
        *(Finding(reason="note", message=note, voids=False) for note in notes),
    ]
    return Verdict(valid=not any(finding.voids for finding in findings), findings=tuple(findings))


def _length(figures: Figures, duration_s: float, interrupted: bool) -> list[Finding]:
    found = []
    if interrupted:
        message = f"stopped by hand; {figures.requests.unsent} planned requests were not sent"
        found.append(Finding(reason="interrupted", message=message))
    if duration_s < MIN_DURATION_S:
        found.append(Finding(reason="too_short", message=f"measured {duration_s:g} s, at least {MIN_DURATION_S:g} s"))
    if figures.requests.completed < MIN_REQUESTS:
        message = f"{figures.requests.completed} requests completed, at least {MIN_REQUESTS}"
        found.append(Finding(reason="too_few_requests", message=message))
    if figures.e2e is not None and duration_s < MIN_LIFETIMES * figures.e2e.p50_s:
        message = f"measured {duration_s:g} s, but a median request takes {figures.e2e.p50_s:.3g} s"
        found.append(Finding(reason="too_short_for_requests", message=f"{message}: at least {MIN_LIFETIMES:g} of them"))
    return found


def _errors(figures: Figures) -> list[Finding]:
    requests = figures.requests
    if requests.failed == 0:
        return []
    ratio = requests.failed / requests.measured
    reasons = ", ".join(f"{reason} {count}" for reason, count in requests.by_reason.items())
    message = f"{requests.failed} of {requests.measured} requests failed ({ratio:.1%}): {reasons}"
    return [Finding(reason="errors", message=message, voids=ratio > MAX_FAILED_RATIO)]


def _client(figures: Figures) -> list[Finding]:
    client = figures.client
    allowed_s = max(MAX_LAG_S, MAX_LAG_SHARE * figures.ttft.p50_s if figures.ttft else 0.0)
    worst = {
        "its event loop woke late": client.lag and (client.lag.p99_s or client.lag.max_s),
        "it sent late": client.send_delay and (client.send_delay.p99_s or client.send_delay.max_s),
    }
    found = [
        Finding(reason="client_bound", message=f"the client measured itself: {what} by {value:.3g} s (p99), "
                f"allowed {allowed_s:.3g} s")
        for what, value in worst.items()
        if value and value > allowed_s
    ]  # fmt: skip
    if client.cpu_ratio > MAX_CPU_RATIO:
        message = f"the client used {client.cpu_ratio:.0%} of a core: run it elsewhere or lower the rate"
        found.append(Finding(reason="client_bound", message=message))
    return found


def _drift(figures: Figures) -> list[Finding]:
    found = []
    for name, pair in (("TTFT", figures.halves.ttft_s), ("TPOT", figures.halves.tpot_s)):
        if pair is None:
            continue
        first_s, second_s = pair
        low_s, high_s = min(pair), max(pair)
        if high_s > MAX_DRIFT_RATIO * low_s and high_s - low_s > MIN_DRIFT_S:
            message = f"median {name} went from {first_s:.3g} s in the first half to {second_s:.3g} s in the second"
            found.append(
                Finding(reason="drift", message=f"{message}: not a steady state (overload, or a warm-up too short)")
            )
    return found


def _tokens(figures: Figures, exact_output: bool) -> list[Finding]:
    found = []
    tokens = figures.tokens
    if figures.requests.completed and not tokens.counted_by_server:
        message = "the server sends no usage: output tokens are pieces of text, which may hold several tokens"
        found.append(Finding(reason="tokens_not_counted", message=message, voids=False))
    if exact_output and figures.requests.failed == 0 and tokens.counted_by_server and tokens.planned_output:
        wrong = abs(tokens.output / tokens.planned_output - 1)
        if wrong > MAX_OTHER_LENGTH_RATIO:
            message = f"{tokens.output} output tokens came, {tokens.planned_output} were asked for with ignore_eos"
            found.append(Finding(reason="output_lengths_differ", message=message))
    if tokens.input and tokens.planned_input and figures.requests.failed == 0:
        wrong = tokens.input / tokens.planned_input - 1
        if abs(wrong) > MAX_INPUT_ERROR_RATIO:
            message = f"prompts are {wrong:+.0%} off the planned lengths (by the server's count)"
            found.append(Finding(reason="input_lengths_differ", message=message, voids=False))
    return found

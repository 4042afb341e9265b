"""Budgets under a race through the whole stack: `jouleway serve`, Ray, HTTP, simulated engines."""

from benchmarks.budget_race import CONNECTIONS, run


def test_a_race_for_the_last_tokens_and_cents_overspends_nothing() -> None:
    """Five tenants, one of each kind of budget, sixteen connections each; the benchmark runs a hundred tenants."""
    values = run(num_tenants=5, seed=1)
    assert [] == values["problems"]
    assert {0} == set(values["overspent"].values())
    assert 5 * CONNECTIONS == values["connections"]
    assert values["ended"]["insufficient_quota"] > 0
    assert values["used_of_the_tightest_budget_ratio_min"] > 0.95

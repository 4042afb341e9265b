"""The sections: bounds of every value, what belongs together, and what may leave loopback."""

import math
from decimal import Decimal

import pytest
from pydantic import BaseModel, ValidationError

from scheduler.config_sections import (
    AdminConfig,
    LimitsConfig,
    MeterConfig,
    ModelConfig,
    PriceConfig,
    RayConfig,
    SchedulingConfig,
    Section,
    ServerConfig,
    SloConfig,
    WorkConfig,
    WorkerConfig,
    ledger_amount,
    rank,
)
from scheduler.config_tenants import BudgetConfig, KeyConfig, ProjectConfig, TenantConfig, ZoneConfig

SECTIONS = (
    ServerConfig, AdminConfig, RayConfig, LimitsConfig, ModelConfig, MeterConfig, WorkerConfig, KeyConfig, TenantConfig,
    BudgetConfig, PriceConfig, ProjectConfig, SchedulingConfig, SloConfig, WorkConfig, ZoneConfig,
)  # fmt: skip
TLS = {"tls_cert_file": "c", "tls_key_file": "k"}
WORKER = {"name": "w", "engine": "simulated", "model": "m"}


def words_of(section: type[BaseModel], values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        section.model_validate(values)
    return str(caught.value)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_section_refuses_unknown_keys_and_hides_values(section: type[Section]) -> None:
    """None of them can forget it."""
    words = words_of(section, {"no_such_key": "hunter2"})
    assert "Extra inputs are not permitted" in words
    assert "hunter2" not in words


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_no_number_can_be_infinite_or_true(section: type[Section]) -> None:
    """A NaN wins every comparison; `port: yes` is no port."""
    for name, field in section.model_fields.items():
        if field.annotation in (float, Decimal, float | None, Decimal | None):
            for value in (math.nan, math.inf):
                assert f"{name}\n" in words_of(section, {**WORKER, name: value} if "engine" in section.model_fields
                                               else {name: value})  # fmt: skip
        if field.annotation in (int, float, Decimal, int | None, float | None, Decimal | None):
            assert f"{name} is a number, not true or false" in words_of(section, {name: True})


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (ServerConfig, {"port": -1}),
        (ServerConfig, {"port": 65_536}),
        (RayConfig, {"num_cpus": 0}),
        (LimitsConfig, {"max_body_bytes": 10}),
        (LimitsConfig, {"max_output_tokens": 0}),
        (LimitsConfig, {"request_timeout_s": 0}),
        (LimitsConfig, {"drain_s": -1}),
        (LimitsConfig, {"max_queued_requests": 0}),
        (ModelConfig, {"default_output_tokens": 0}),
        (ModelConfig, {"normalizer": "nfd"}),
        (MeterConfig, {"kind": "guess"}),
        (MeterConfig, {"idle_watts": -1}),
        (WorkerConfig, {**WORKER, "count": 0}),
        (WorkerConfig, {**WORKER, "gpus": -1}),
        (WorkerConfig, {**WORKER, "window_s": 61}),
        (WorkerConfig, {**WORKER, "window_s": 0}),
        (WorkerConfig, {**WORKER, "policy": "fair"}),
        (WorkerConfig, {**WORKER, "name": "(operator)"}),
        (WorkerConfig, {**WORKER, "zone": "Hall A"}),
        (PriceConfig, {"input": -1}),
        (PriceConfig, {"output": 1_000_001}),
        (PriceConfig, {"cached_input": "1e-10"}),
        (SloConfig, {"ttft_s": 0}),
        (SloConfig, {"ttft_ratio": 0.5}),
        (SloConfig, {"value_per_s": -1}),
        (WorkConfig, {"prefill_gpu_s": 0}),
        (WorkConfig, {"decode_gpu_s": 0}),
        (SchedulingConfig, {"reserve_ratio": 1}),
        (SchedulingConfig, {"ageing_every": 1}),
    ],
)
def test_values_out_of_bounds_are_refused(section: type[Section], values: dict[str, object]) -> None:
    """A bad value is never replaced by a default."""
    words_of(section, values)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_nothing_more(host: str) -> None:
    """Nobody outside can connect."""
    assert ServerConfig.model_validate({"host": host}).is_loopback


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "beyond loopback: give tls_cert_file and tls_key_file, or behind_proxy"),
        ({"allowed_hosts": ["x"]}, "beyond loopback: give tls_cert_file"),
        ({"behind_proxy": True}, "name the hosts that may be asked, allowed_hosts"),
        (TLS, "name the hosts that may be asked, allowed_hosts"),
        ({"tls_cert_file": "c"}, "belong together"),
    ],
)
def test_beyond_loopback_only_with_tls_or_a_proxy_and_named_hosts(values: dict[str, object], words: str) -> None:
    """Design: TLS files or a proxy that speaks it, and a Host allow-list."""
    assert words in words_of(ServerConfig, {"host": "0.0.0.0", **values})
    for enough in ({"behind_proxy": True}, TLS):
        config = ServerConfig.model_validate({"host": "0.0.0.0", "allowed_hosts": ["x.example"], **enough})
        assert not config.is_loopback


def test_admin_is_loopback_always() -> None:
    """Whatever stands in front of the server."""
    words_of(AdminConfig, {"host": "0.0.0.0"})
    assert "127.0.0.1" == AdminConfig().host


def test_engines_that_share_a_process_are_simulated() -> None:
    """A vLLM engine needs one of its own."""
    assert "one_process is for simulated engines" in words_of(
        WorkerConfig, {**WORKER, "engine": "vllm", "one_process": True}
    )


def test_classes_of_data_have_an_order() -> None:
    """What needs more comes later."""
    assert [0, 1, 2] == [rank(name) for name in ("general", "important", "core")]


@pytest.mark.parametrize(
    ("value", "places", "amount"), [("1.5", 3, 1500), ("1e3", 0, 1000), ("9223372036854775807", 0, 2**63 - 1)]
)
def test_an_amount_is_the_ledgers_integer(value: str, places: int, amount: int) -> None:
    """Exactly, however it was written."""
    assert amount == ledger_amount(Decimal(value), places)


@pytest.mark.parametrize(
    ("value", "places", "words"),
    [
        ("-1", 0, "must be 0 or more"),
        ("1.5", 0, "must be a whole number"),
        ("0.0001", 3, "at most 3 decimal places"),
        ("1e-999999", 9, "at most 9 decimal places"),
        ("9223372036854775808", 0, "must be at most 9223372036854775807; leave it out for no limit"),
        ("1e999999", 9, "must be at most 9223372036.854775807"),
    ],
)
def test_an_amount_that_the_ledger_cannot_keep_is_refused(value: str, places: int, words: str) -> None:
    """Never rounded to nothing, never overflown."""
    with pytest.raises(ValueError, match=words):
        ledger_amount(Decimal(value), places)

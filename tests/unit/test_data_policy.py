"""Where data may be: classes and zones, closed unless said otherwise, and refused only where nobody ever may."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.data_policy import MAX_KEPT, DataPolicy
from scheduler.core.request import DataClass
from tests.core_words import MODEL, request

GENERAL, IMPORTANT, CORE = DataClass
ZONES = {"vault": CORE, "hall": IMPORTANT, "yard": GENERAL}
POLICY = DataPolicy(ZONES)


@pytest.mark.parametrize(
    ("data_class", "may"),
    [(GENERAL, {"vault", "hall", "yard", "unnamed"}), (IMPORTANT, {"vault", "hall"}), (CORE, {"vault"})],
)
def test_a_zone_holds_data_up_to_its_class(data_class: DataClass, may: set[str]) -> None:
    """A zone that nobody named holds general data only."""
    asked = request(data_class=data_class)
    assert may == {zone for zone in (*ZONES, "unnamed") if POLICY.may(asked, zone)}


def test_named_zones_tighten_and_never_loosen() -> None:
    """A zone that the request allows still needs the class."""
    asked = request(data_class=IMPORTANT, zones=frozenset({"hall", "yard"}))
    assert ["hall"] == [zone for zone in ZONES if POLICY.may(asked, zone)]
    assert not any(POLICY.may(request(zones=frozenset()), zone) for zone in ZONES)


@given(
    st.sampled_from(DataClass),
    st.none() | st.frozensets(st.sampled_from([*ZONES, "unnamed"])),
    st.lists(st.sampled_from([*ZONES, "unnamed", "other"]), unique=True),
)
def test_the_mask_is_may_for_each_zone(data_class: DataClass, zones: frozenset[str] | None, names: list[str]) -> None:
    """Also when a further zone was seen since the last time, or they stand in another order."""
    policy, asked = DataPolicy(ZONES), request(data_class=data_class, zones=zones)
    for order in [*(names[:end] for end in range(len(names) + 1)), names[::-1]]:
        assert [policy.may(asked, zone) for zone in order] == policy.mask(asked, order).tolist()


def test_answers_that_are_kept_are_bounded() -> None:
    """However many combinations of zones are asked for."""
    policy = DataPolicy(ZONES)
    for number in range(2 * MAX_KEPT):
        policy.mask(request(zones=frozenset({f"z{number}"})), ["vault"])
    assert len(policy._kept) <= MAX_KEPT


def test_a_request_that_no_worker_may_ever_run_is_a_mismatch() -> None:
    """Its model's zones count, configured or seen; a worker that is gone may come back."""
    policy = DataPolicy(ZONES, {MODEL: ["hall"]})
    assert policy.mismatch(request(data_class=CORE))
    assert policy.mismatch(request(zones=frozenset({"yard"})))
    assert not policy.mismatch(request(data_class=IMPORTANT))
    policy.see((MODEL, "other"), "vault")
    assert not policy.mismatch(request(data_class=CORE))
    assert ["vault"] == policy.zones_of(request(data_class=CORE))
    assert policy.mismatch(request(model="other", zones=frozenset({"hall"})))


def test_where_no_worker_is_known_yet_some_zone_must_be_able_to() -> None:
    """A model that nobody configured or served: it may still come, but not where no zone may hold the data."""
    assert not DataPolicy(ZONES).mismatch(request(data_class=CORE))
    assert DataPolicy({"hall": IMPORTANT}).mismatch(request(data_class=CORE))
    assert DataPolicy(ZONES).mismatch(request(data_class=CORE, zones=frozenset({"hall"})))
    assert not DataPolicy().mismatch(request(zones=frozenset({"anywhere"})))
    assert DataPolicy().mismatch(request(zones=frozenset()))
    assert DataPolicy().mismatch(request(data_class=IMPORTANT))


def test_a_reload_counts_at_once() -> None:
    """What was kept of the old rules is gone; what was seen stays."""
    policy, asked = DataPolicy(ZONES), request(data_class=CORE)
    policy.see((MODEL,), "vault")
    assert [True] == policy.mask(asked, ["vault"]).tolist()
    policy.reload({"vault": IMPORTANT}, {})
    assert [False] == policy.mask(asked, ["vault"]).tolist()
    assert policy.mismatch(asked)
    assert ["vault"] == policy.known_zones(MODEL)

"""The file's tenants become changes: each difference one, none where nothing differs, whatever stood before."""

import hashlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting import changes
from scheduler.accounting.changes import Deed
from scheduler.accounting.directory import Directory
from scheduler.config_tenants import TenantConfig
from scheduler.credentials import directory_keys, file_keys, key_of
from scheduler.directory_file import deeds_of_file, file_sha256
from tests.directory_words import NOW_US, SECOND_US, WHO, changed, key_id, sha256


def tenants_of(*written: dict[str, Any]) -> tuple[TenantConfig, ...]:
    return tuple(TenantConfig.model_validate(each) for each in written)


def read(directory: Directory, tenants: tuple[TenantConfig, ...], first: int = 0) -> list[str]:
    """The file is read: what it changed, applied one by one."""
    keys, _ = file_keys(tenants, generate=False)
    whats = []
    for number, deed in enumerate(deeds_of_file(directory, tenants, keys)):
        (change,) = changed(deed, first=first + number)
        assert directory.apply(change), deed
        whats.append(f"{change.what} {change.target}")
    return whats


def sha(secret: str) -> str:
    return f"sha256:{sha256(secret)}"


ACME = {
    "name": "acme",
    "max_tier": "default",
    "weight": 2.5,
    "data_class": "important",
    "zones": ["a", "b"],
    "project": "search",
    "projects": {"search": {}, "support": {"budgets": [{"tokens": 5, "per": "1h"}]}},
    "budgets": [{"money": 1, "per": "total"}],
    "task_budgets": [{"requests": 9, "per": "total"}],
    "keys": [sha("one"), {"sha256": sha256("two"), "project": "support", "max_tier": "flex", "zones": ["a"],
                          "budgets": [{"requests": 1, "per": "1m"}]}],
}  # fmt: skip


def test_a_file_read_for_the_first_time_is_all_new() -> None:
    """In an order in which each rests on the one before."""
    directory = Directory()
    assert [
        "tenant_created acme", "project_created acme/search", "project_created acme/support",
        f"key_created {key_id('one')}", f"key_created {key_id('two')}",
    ] == read(directory, tenants_of(ACME))  # fmt: skip
    acme, two = directory.tenants["acme"], directory.keys[key_id("two")]
    assert ("default", 2_500_000, "important", ("a", "b"), "search") == (
        acme.terms.max_tier, acme.terms.weight_micro, acme.terms.data_class, acme.terms.zones, acme.terms.project,
    )  # fmt: skip
    assert ([10**9], [9], [5]) == (
        [term.limit for term in acme.budgets], [term.limit for term in acme.task_budgets],
        [term.limit for term in acme.projects["support"]],
    )  # fmt: skip
    assert ("support", "flex", ("a",), 1) == (two.project, two.terms.max_tier, two.terms.zones, two.budgets[0].limit)


def test_a_file_read_twice_changes_nothing() -> None:
    """Also after the ledger made the directory again."""
    directory = Directory()
    read(directory, tenants_of(ACME))
    assert [] == read(directory, tenants_of(ACME), 100)


def test_callers_of_the_directory_are_those_of_the_file() -> None:
    """Whoever owns it, the same keys open the same."""
    tenants = tenants_of(ACME, {"name": "b", "keys": [{"sha256": sha256("three"), "max_tier": "flex"}]})
    directory = Directory()
    read(directory, tenants)
    of_file = [key_of(each) for each in file_keys(tenants, generate=False)[0]]
    assert sorted(of_file, key=lambda key: key.digest) == sorted(directory_keys(directory), key=lambda key: key.digest)


def test_each_difference_is_one_change() -> None:
    """Of terms, projects, budgets and keys."""
    directory = Directory()
    read(directory, tenants_of(ACME))
    edited = {
        **ACME,
        "weight": 1,
        "projects": {"search": {"budgets": [{"tokens": 1, "per": "1h"}]}, "new": {}},
        "budgets": [],
        "task_budgets": [],
        "keys": [{"sha256": sha256("two"), "project": "new", "data_class": "core"}, sha("three")],
    }
    assert [
        f"key_revoked {key_id('one')}", "budgets_set acme/search", "project_created acme/new", "tenant_changed acme",
        "budgets_set acme", "budgets_set acme", f"key_changed {key_id('two')}", f"key_moved {key_id('two')}",
        f"budgets_set {key_id('two')}", f"key_created {key_id('three')}", "project_removed acme/support",
    ] == read(directory, tenants_of(edited), 100)  # fmt: skip
    assert [] == read(directory, tenants_of(edited), 200)


def test_a_tenant_that_is_gone_is_closed_and_may_come_back() -> None:
    """With the keys that the file gives it then."""
    directory = Directory()
    read(directory, tenants_of(ACME, {"name": "b", "keys": [sha("three")]}))
    assert [f"key_revoked {key_id('three')}", "tenant_closed b"] == read(directory, tenants_of(ACME), 100)
    back = tenants_of(ACME, {"name": "b", "keys": [sha("three")]})
    assert ["tenant_reopened b", f"key_created {key_id('three')}"] == read(directory, back, 200)


def test_a_key_that_is_no_longer_as_the_file_has_it_begins_anew() -> None:
    """Given an end, rotated, or moved to another tenant by the API."""
    for deed in (
        changes.KeyChanged(
            key_id=key_id("one"), terms=changes.KeyTerms(expires_us=NOW_US + 10**9 * SECOND_US // 10**3)
        ),
        changes.KeyRotated(key_id=key_id("one"), sha256=sha256("newer"), overlap_s=0),
        changes.KeyMoved(key_id=key_id("one"), tenant="b", project=None),
    ):
        tenants, directory = (
            tenants_of({"name": "a", "keys": [sha("one")]}, {"name": "b", "keys": [sha("x")]}),
            Directory(),
        )
        read(directory, tenants)
        directory.apply(changed(deed, first=50)[0])
        assert [f"key_revoked {key_id('one')}", f"key_created {key_id('one')}"] == read(directory, tenants, 100)


def test_what_the_file_may_say_and_the_api_not_is_taken_as_ever() -> None:
    """A tier above its tenant's is lowered, a zone named twice is one."""
    tenants = tenants_of(
        {
            "name": "a",
            "max_tier": "flex",
            "zones": ["z", "z"],
            "keys": [{"sha256": sha256("k"), "max_tier": "priority"}],
        }
    )
    directory = Directory()
    read(directory, tenants)
    assert (("z",), None) == (directory.tenants["a"].terms.zones, directory.keys[key_id("k")].terms.max_tier)
    assert [] == read(directory, tenants, 100)


def test_keys_that_were_made_for_a_demo_are_of_their_tenant_in_everything() -> None:
    """They live as long as the process: the next one revokes them."""
    tenants, directory = tenants_of({"name": "a"}), Directory()
    keys, made = file_keys(tenants, generate=True)
    deeds = list(_applied(directory, tenants, keys))
    assert [changes.TenantCreated, changes.KeyCreated] == [type(deed) for deed in deeds]
    assert key_id(made["a"]) in directory.keys
    assert [f"key_revoked {key_id(made['a'])}"] == read(directory, tenants, 100)


def _applied(directory: Directory, tenants: tuple[TenantConfig, ...], keys: Any) -> Any:
    for number, deed in enumerate(deeds_of_file(directory, tenants, keys)):
        directory.apply(changed(deed, first=number)[0])
        yield deed


def test_an_edit_is_told_by_the_files_hash() -> None:
    """Of whatever it says of tenants."""
    first, second = file_sha256(tenants_of(ACME)), file_sha256(tenants_of({**ACME, "weight": 3}))
    assert first == file_sha256(tenants_of(ACME))
    assert first != second
    assert len(first) == len(hashlib.sha256().hexdigest())


# -- any two files

BUDGETS = st.sampled_from([[], [{"tokens": 1, "per": "1h"}], [{"tokens": 2, "per": "1h"}]])


def key_configs(name: str, projects: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    secrets = st.sampled_from([f"{name}-{number}" for number in range(3)] + ["shared"])
    return st.fixed_dictionaries(
        {"sha256": secrets.map(sha256)},
        optional={
            "project": st.sampled_from(projects),
            "max_tier": st.sampled_from(["flex", "default"]),
            "zones": st.just(["x"]),
            "budgets": BUDGETS,
        },
    )


def tenant_configs(name: str) -> st.SearchStrategy[dict[str, Any]]:
    own = st.sampled_from(["default", "p", "q"])
    extra = st.sets(st.sampled_from(["p", "q", "r"]))

    def with_projects(chosen: tuple[str, set[str]]) -> st.SearchStrategy[dict[str, Any]]:
        project, others = chosen
        projects = sorted({project, *others})
        return st.fixed_dictionaries(
            {
                "name": st.just(name),
                "project": st.just(project),
                "projects": st.fixed_dictionaries(
                    {each: st.fixed_dictionaries({"budgets": BUDGETS}) for each in projects}
                ),
                "keys": st.lists(key_configs(name, projects), max_size=3, unique_by=lambda key: key["sha256"]),
            },
            optional={"zones": st.sampled_from([["x"], ["x", "y"]]), "budgets": BUDGETS, "weight": st.just(2.0)},
        )

    return st.tuples(own, extra).flatmap(with_projects)


def files() -> st.SearchStrategy[tuple[TenantConfig, ...]]:
    def once(written: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen: set[str] = set()
        for tenant in written:
            tenant["keys"] = [key for key in tenant["keys"] if not (key["sha256"] in seen or seen.add(key["sha256"]))]
        return written

    chosen = st.sets(st.sampled_from("abc"), min_size=1).flatmap(
        lambda names: st.tuples(*(tenant_configs(name) for name in sorted(names))).map(list)
    )
    return chosen.map(once).map(lambda written: tenants_of(*written))


@given(st.lists(files(), min_size=1, max_size=4))
def test_whatever_was_read_before_the_file_read_last_counts(read_in_turn: list[tuple[TenantConfig, ...]]) -> None:
    """Its callers, its budgets, and nothing when it is read again; the log makes the same again."""
    directory, logged = Directory(), []
    for tenants in read_in_turn:
        keys, _ = file_keys(tenants, generate=False)
        for deed in deeds_of_file(directory, tenants, keys):
            change = changes.Change(change_id=f"chg-{len(logged)}", at_us=NOW_US + len(logged), who=WHO, deed=deed)
            assert directory.apply(change)
            logged.append(change)
        of_file = sorted((key_of(each) for each in keys), key=lambda key: key.digest)
        assert of_file == sorted(directory_keys(directory), key=lambda key: key.digest)
        for tenant in tenants:
            standing = directory.tenants[tenant.name]
            assert tuple(each.term for each in tenant.budgets) == standing.budgets
            named = {name: tuple(each.term for each in project.budgets) for name, project in tenant.projects.items()}
            assert named == standing.projects
        left: list[Deed] = list(deeds_of_file(directory, tenants, keys))
        assert [] == left
    assert directory.state() == Directory.of(logged).state()

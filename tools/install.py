"""Makes .venv from nothing: hash-locked packages, this project, the demo's weights.

Called by `make setup` with any Python of the locked version; standard library only, no input, progress at once.
It must never install a package whose hash is not in the lock.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
LOCKS = ROOT / "configs" / "locks"
LOCKED_PYTHON = (3, 11)
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Fallback only: the ordinary index does not carry torch's local version +cpu, a find-links folder of pip's may."""

WARM = (
    "import vllm.entrypoints.openai.api_server, vllm.v1.engine.core, ray, uvicorn, rich.table, scheduler.core.scheduler"
)
"""What a run imports first; compiled ahead where even a user's PYTHONDONTWRITEBYTECODE would repeat it each time. With
the last the core's loops become machine code."""
STARTED_S = time.monotonic()


class InstallFailed(Exception):
    """One step failed; the message says which and what to do."""


def say(text: str) -> None:
    """One progress line, with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED_S:6.1f} s] {text}", flush=True)


def run(command: list[str | Path], *, env: dict[str, str] | None = None) -> bool:
    """Run with our own output streams; True if it succeeded."""
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, check=False).returncode == 0


def has_nvidia_gpu() -> bool:
    """Whether the driver lists at least one GPU; JOULEWAY_LOCK=cpu or cuda overrides what is found."""
    forced = os.environ.get("JOULEWAY_LOCK", "")
    if forced:
        if forced not in {"cpu", "cuda"}:
            raise InstallFailed(f"JOULEWAY_LOCK is {forced!r}; it may be cpu or cuda")
        return forced == "cuda"
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU " in listed.stdout


def digest_of(*paths: Path) -> str:
    """What the environment was made from; a change of any of these makes it stale."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    whole.update(f"{sys.version_info[:2]} {VENV}".encode())
    return whole.hexdigest()


def is_current(stamp: Path, wanted: str) -> bool:
    """Whether the environment was made from just these files; --force says no."""
    if "--force" in sys.argv or not stamp.exists() or stamp.read_text() != wanted:
        return False
    say(".venv is up to date")
    return True


def pip_setting(name: str) -> str:
    """A value of the user's pip configuration (file or environment), or nothing."""
    command = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    value = asked.stdout.strip() if asked.returncode == 0 else ""
    return os.environ.get("PIP_" + name.upper().replace("-", "_"), value)


def uv_environment() -> dict[str, str]:
    """uv reads no pip configuration: hand over where pip looks, so that both find the same files."""
    env = dict(os.environ, VIRTUAL_ENV=str(VENV))
    handed = {
        "UV_FIND_LINKS": pip_setting("find-links"),
        "UV_DEFAULT_INDEX": pip_setting("index-url"),
        "UV_INDEX": " ".join(pip_setting("extra-index-url").split()),
        "SSL_CERT_FILE": pip_setting("cert"),
    }
    for name, value in handed.items():
        if value and name not in env:
            env[name] = ",".join(value.split()) if name == "UV_FIND_LINKS" else value
    env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # safe: each file must have a hash of the lock
    env.setdefault("UV_HTTP_TIMEOUT", "180")
    return env


def make_venv() -> None:
    """The empty environment; an existing one of the right Python is kept."""
    python = VENV / "bin" / "python"
    if python.exists() and run([python, "-c", f"import sys; sys.exit(sys.version_info[:2] != {LOCKED_PYTHON})"]):
        return
    say(f"making {VENV.name} with Python {sys.version.split()[0]}")
    if not run([sys.executable, "-m", "venv", "--clear", VENV]):
        raise InstallFailed("python -m venv failed; on Debian and Ubuntu: apt-get install python3-venv, then again")


def install_locked(lock: Path) -> None:
    """Exactly the lock: by uv (4 times faster), else by pip; from where pip looks, else with torch's own index too."""
    python = VENV / "bin" / "python"
    locked = ["--require-hashes", "--no-deps", "-r"]
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-compile"]
    say("fetching the installer uv (hash-locked)")
    attempts: list[tuple[str, list[str | Path], dict[str, str] | None]] = []
    elsewhere = ["--extra-index-url", TORCH_CPU_INDEX] if lock.name == "cpu.lock" else []
    if run([*pip, "-q", *locked, LOCKS / "bootstrap.lock"]):
        uv = [VENV / "bin" / "uv", "pip", "install"]
        attempts.append(("uv", [*uv, *locked, lock], uv_environment()))
        if elsewhere:
            attempts.append(("uv and PyTorch's CPU wheel index", [*uv, *elsewhere, *locked, lock], uv_environment()))
    attempts.append(("pip", [*pip, *locked, lock], None))
    if elsewhere:
        attempts.append(("pip and PyTorch's CPU wheel index", [*pip, *elsewhere, *locked, lock], None))
    for name, command, env in attempts:
        say(f"installing {lock.name} ({lock.read_text().count('==')} packages) by {name}")
        if run(command, env=env):
            return
        say(f"{name} did not succeed")
    raise InstallFailed(f"no way to install {lock.name} succeeded; the lines above say why (network? disk? hashes?)")


def install_project() -> None:
    """This checkout, editable: `.venv/bin/jouleway` works from any folder."""
    say("installing jouleway itself")
    options = ["--no-deps", "--no-build-isolation", "-e", "."]
    uv = VENV / "bin" / "uv"
    if uv.exists() and run([uv, "pip", "install", "-q", *options], env=uv_environment()):
        return
    pip = [VENV / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    if not run([*pip, *options]):
        raise InstallFailed("installing this project failed; the lines above say why")


def warm_and_build_weights() -> None:
    """On one core what a run imports is compiled (its first import is halved), on the other the weights are built."""
    say("building two small models' weights (SmolLM2, MiniLM) and compiling engine, Ray and core, side by side")
    python = VENV / "bin" / "python"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    warming = subprocess.Popen([python, "-c", WARM], cwd=ROOT, env=env, **quiet)
    built = all(run([python, "-m", f"workers.engines.{model}"], env=env) for model in ("smollm2", "minilm"))
    warmed = warming.wait() == 0
    if not built:
        raise InstallFailed("the weights could not be built; the lines above say why")
    if not warmed:
        say("importing the engine failed: `jouleway doctor` will say more")


def warn_of_missing_libraries() -> None:
    """vLLM's CPU build links to one library that no Python package brings."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        say(
            "libnuma.so.1 is missing and vLLM's CPU build needs it: apt-get install libnuma1 (dnf install numactl-libs)"
        )


def main() -> int:
    """Bring .venv up to date, or say that it is."""
    if sys.version_info[:2] != LOCKED_PYTHON:
        wanted = ".".join(map(str, LOCKED_PYTHON))
        raise InstallFailed(
            f"the locks are made for CPython {wanted}, this is {sys.version.split()[0]}: "
            f"run `make setup PYTHON=/path/to/python{wanted}`"
        )
    lock = LOCKS / ("cuda.lock" if has_nvidia_gpu() else "cpu.lock")
    wanted = digest_of(lock, LOCKS / "bootstrap.lock", ROOT / "pyproject.toml", Path(__file__))
    stamp = VENV / ".jouleway-setup"
    if is_current(stamp, wanted):
        return 0
    say(f"setting up {ROOT.name}: {lock.name}; the first time takes 1 to 5 minutes and 4 GB")
    with (ROOT / ".jouleway-setup.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # two makes at once: the second waits, then finds nothing to do
        if is_current(stamp, wanted):
            return 0
        if lock.name == "cpu.lock":
            warn_of_missing_libraries()
        make_venv()
        install_locked(lock)
        install_project()
        warm_and_build_weights()
        stamp.write_text(wanted)
    say("ready: .venv/bin/jouleway --help")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InstallFailed as error:
        print(f"setup failed: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)

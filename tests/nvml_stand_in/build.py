"""Compiles the stand-in for NVML.

Called by tests of the NVML meter, and by hand: ``python tests/nvml_stand_in/build.py FOLDER``. It must never be
installed where a real program could find it.
"""

import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_stand_in.c")


def compiler() -> str | None:
    """The C compiler of this machine."""
    return shutil.which("gcc") or shutil.which("cc")


def build(folder: Path, *, name: str) -> Path:
    """The compiled library; under NVML's own name only a program with LD_LIBRARY_PATH finds it."""
    found = compiler()
    if found is None:
        raise RuntimeError("no C compiler (gcc or cc)")
    library = folder / name
    command = [found, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), name="libnvidia-ml.so.1"))

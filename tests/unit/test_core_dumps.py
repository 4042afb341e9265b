"""A crash writes no memory to a disk, in the process and in those it starts."""

import subprocess
import sys


def test_neither_it_nor_its_children_dump_core() -> None:
    """Soft and hard limit are 0."""
    code = (
        "import subprocess; from workers.core_dumps import forbid_core_dumps; forbid_core_dumps(); "
        "print(open('/proc/self/limits').read()); print(subprocess.check_output(['cat', '/proc/self/limits']).decode())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in told.splitlines() if line.startswith("Max core file size")]
    assert [["0", "0"]] * 2 == [line[4:6] for line in lines]

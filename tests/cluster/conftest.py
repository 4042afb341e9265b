"""One Ray for all tests of this folder that run in this process; its folder and its processes end with the session."""

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from workers.ray_worker import RayCluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """A cluster of our own. Its folder has a short path: Ray's sockets lie in it."""
    folder = tempfile.mkdtemp(prefix="jw", dir="/tmp")
    os.environ["RAY_TMPDIR"] = folder
    cluster = RayCluster(num_cpus=8)
    try:
        cluster.connect()
        yield cluster
    finally:
        cluster.shutdown()
        del os.environ["RAY_TMPDIR"]
        shutil.rmtree(folder, ignore_errors=True)

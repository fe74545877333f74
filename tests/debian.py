"""Debian's packages for tests that need a program."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def need(program: str, *packages: str) -> str:
    """A program's path; installs the packages if TSD_TEST_INSTALL=1, else skips the test.

    Tests run in several processes, and apt-get does not wait for itself.
    """
    found = _find(program)
    if found is None and os.environ.get("TSD_TEST_INSTALL") == "1":
        with (Path(tempfile.gettempdir()) / "tsd-apt.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _find(program) is None:
                environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
                install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
                for command in (["apt-get", "update", "-qq"], install):
                    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        found = _find(program)
    if found is None:
        pytest.skip(f"{program} is not installed; TSD_TEST_INSTALL=1 installs {', '.join(packages)}")
    return found


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")

"""What the repository held at an earlier commit."""

import re
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

from tsd.errors import InputError, WorkError

SETTINGS = ("params", "workflow/schemas", "data.dvc")
"""What settings and the data's identity are resolved from."""


def has_commit(commit: str) -> bool:
    """Whether the commit is in this clone; never where this is none."""
    try:
        return _git("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0
    except OSError:
        return False


def export_settings(commit: str, target: Path) -> None:
    """Write :data:`SETTINGS` as they were at a commit of this clone into a folder.

    Raises:
        InputError: the commit has no params.
        WorkError: git failed.
    """
    there = _checked("ls-tree", "--name-only", "-z", commit, "--", *SETTINGS).decode().split("\0")
    names = [name for name in SETTINGS if name in there]
    if "params" not in names or "workflow/schemas" not in names:
        raise InputError(f"git commit {commit}: has no params/ or no workflow/schemas/: not a commit of this project")
    with tarfile.open(fileobj=BytesIO(_checked("archive", "--format=tar", commit, "--", *names))) as archive:
        archive.extractall(target, filter="data")


def revision_at(commit: str) -> int | None:
    """``tsd.REVISION`` at a commit of this clone, None if it had none."""
    done = _git("show", f"{commit}:./tsd/__init__.py")
    found = re.search(rb"^REVISION = (\d+)$", done.stdout, re.MULTILINE)
    return int(found[1]) if done.returncode == 0 and found else None


def _git(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *words], capture_output=True)


def _checked(*words: str) -> bytes:
    done = _git(*words)
    if done.returncode:
        raise WorkError(f"git {' '.join(words)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout

"""File systems: locks and renaming where results are written, space, and which of them are on the network."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tsd.doctor.checks import PATIENCE, Check, Context
from tsd.engine.budget import picture_files, still_to_come, to_count
from tsd.engine.identity import ABSENT, data_digest
from tsd.engine.networks import networks_of
from tsd.engine.params import get_runs
from tsd.engine.upcoming import missing_data
from tsd.errors import InputError
from tsd.files import nearest

MOUNTS = Path("/proc/self/mounts")

NETWORK = (
    "nfs",
    "lustre",
    "gpfs",
    "beegfs",
    "cifs",
    "smb",
    "ceph",
    "glusterfs",
    "wekafs",
    "panfs",
    "afs",
    "9p",
    "fuse.sshfs",
)
"""Beginnings of the names of file systems that several machines share."""

LOCAL_LOCKS = ("localflock", "nolock", "local_lock=all", "local_lock=flock")
"""Mount options under which a lock holds on one machine only."""

RESULTS, DATA = Path("results"), Path("data")

SMALL = 10.0
"""GB that the trainings of a suite without GPUs fit into."""

_TRY_LOCK = """import fcntl, sys
with open(sys.argv[1], "r+") as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(9)
"""

_ELSEWHERE = "Put the folder on another file system: `ln -s /path/to/results results`."
_OR_ELSEWHERE = f"or p{_ELSEWHERE[1:]}"


@dataclass(frozen=True)
class Mount:
    """A file system: where it is mounted, of what kind, with which options."""

    place: str
    kind: str
    options: tuple[str, ...]

    @property
    def is_network(self) -> bool:
        """Whether several machines share it."""
        return self.kind.startswith(NETWORK)


def mount_of(path: Path) -> Mount:
    """The file system that a path is on, or would be."""
    real = str(Path(path).resolve())
    found = Mount("/", "unknown", ())
    for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines() if MOUNTS.is_file() else ():
        _, place, kind, options, *_ = line.split(" ")
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place)
        inside = real == place or real.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(found.place):
            found = Mount(place, kind, tuple(options.split(",")))
    return found


def locks(context: Context) -> Check:
    """Whether runs can be locked, and files replaced whole, where results are written; leaves nothing behind."""
    target = context.suite.root / RESULTS
    place = nearest(target)
    mount = mount_of(place)
    where = f"{place} ({mount.kind})"
    if target.exists() and not target.is_dir():
        return Check("locks", "error", f"{target} is no folder", "Move it away: `mv results results.old`.")
    try:
        folder = Path(tempfile.mkdtemp(prefix=".tsd-doctor-", dir=place))
    except OSError as error:
        finding = f"{where} can't be written to: {error.strerror}"
        return Check("locks", "error", finding, f"Let yourself write there: `chmod u+w {place}`, {_OR_ELSEWHERE}")
    try:
        problem = next(_problems(folder, mount), None)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if problem:
        return Check("locks", "error", f"{where}: {problem[0]}", problem[1])
    if local := next((option for option in mount.options if option in LOCAL_LOCKS), None):
        finding = f"{where}: locks hold on one machine only, by the mount option {local}"
        return Check("locks", "warning", finding, f"Start a run from one machine at a time, {_OR_ELSEWHERE}")
    return Check("locks", "ok", f"{where}: a lock keeps a second process out; renaming and fsync work")


def _problems(folder: Path, mount: Mount) -> Iterator[tuple[str, str]]:
    """(problem, remedy) of locks, of renaming, of writing through to the disk."""
    path, other = folder / "lock", folder / "other"
    flock = f"Have it mounted with `-o flock`, {_OR_ELSEWHERE}" if mount.kind == "lustre" else _ELSEWHERE
    try:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            command = [sys.executable, "-I", "-S", "-c", _TRY_LOCK, str(path)]
            second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except OSError as error:
        yield f"files can't be locked: {error.strerror}", flock
        return
    except subprocess.TimeoutExpired:
        yield f"a second process waits for a lock for more than {PATIENCE:g} s", flock
        return
    if second.returncode != 9:
        said = second.stderr.strip().splitlines()
        yield f"a lock does not keep a second process out{': ' + said[-1] if said else ''}", flock
    try:
        path.write_text("old")
        with other.open("w") as file:
            file.write("new")
            file.flush()
            os.fsync(file.fileno())
        os.replace(other, path)
        if path.read_text() != "new" or other.exists():
            yield "renaming does not replace a file", _ELSEWHERE
    except OSError as error:
        yield f"a file can't be written and renamed over another: {error.strerror}", _ELSEWHERE


def space(context: Context) -> list[Check]:
    """Free space against what the suite's plan says it needs; one line where both folders share a file system."""
    data, results, unknown = need(context)
    places = {name: nearest(context.suite.root / name) for name in (DATA, RESULTS)}
    files = _files(context, places[DATA])
    if places[DATA].stat().st_dev == places[RESULTS].stat().st_dev:
        larger = DATA if data > results else RESULTS
        return [_space(context, f"{DATA}/ and {RESULTS}/", places[larger], larger, data + results, unknown), *files]
    return [
        _space(context, f"{DATA}/", places[DATA], DATA, data, None),
        _space(context, f"{RESULTS}/", places[RESULTS], RESULTS, results, unknown),
        *files,
    ]


def _files(context: Context, place: Path) -> list[Check]:
    """A line where the pictures that are still to come are more files than the file system takes."""
    wanted = picture_files(context.suite) if missing_data(context.suite) else 0
    system = os.statvfs(place)
    if system.f_files == 0 or wanted <= system.f_favail:  # 0: it has no such limit
        return []
    finding = f"{DATA}/: {wanted:,} files to come, and room for {system.f_favail:,}"
    return [Check("space", "error", finding, f"Move to a file system with more: `df --inodes {DATA} /large/disk`.")]


def _space(context: Context, name: str, place: Path, folder: Path, wanted: float, unknown: str | None) -> Check:
    free = shutil.disk_usage(place).free / 1e9
    needs = [f"{wanted:,.1f} GB to come by the plan of suite {context.suite.name}"] if wanted or not unknown else []
    needs += ["checkpoints of a size that is not known yet"] if unknown else []
    finding = f"{name}: {free:,.1f} GB free; {' and '.join(needs)}"
    if free < wanted:
        remedy = (
            f"Make room, or move to a larger disk: `mv {folder} /large/disk/ && ln -s /large/disk/{folder} {folder}`."
        )
        return Check("space", "error", finding, remedy)
    if unknown and (context.gpus or free < wanted + SMALL):
        return Check("space", "warning", finding, f"Have the networks counted: `{unknown}`.")
    return Check("space", "ok", finding)


def need(context: Context) -> tuple[float, float, str | None]:
    """GB of data and of checkpoints still to come, and the command that makes the latter known."""
    suite = context.suite
    try:
        digest = ABSENT if context.quick else data_digest(suite)
    except InputError:  # of this the line of the data speaks
        digest = ABSENT
    todo = [run for run in get_runs(suite, digest) if not run.checkpoint.exists()]
    data, checkpoints = still_to_come(suite, todo, networks_of(suite))
    return data, checkpoints or 0.0, None if checkpoints is not None else to_count(suite)

"""MLflow as a mirror of one run, beside a training or an evaluation that it must not hold.

``mlflow.pending`` in a run's folder says that MLflow may be behind: while the run trains, and after that until MLflow
is in step with it. Its text is the reason. `tsd mlflow sync` brings what is missing.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tsd.files import write_text
from tsd.status import read_status
from tsd.tracking.process import NoAnswerError, Process, RefusedError
from tsd.tracking.store import why_not_from_here, without_password

PENDING = "mlflow.pending"

EVERY = 60.0
"""Seconds: MLflow is brought up to date at checkpoints, but not more often than this."""

BESIDE = 120.0
"""Seconds without a step forward, after which an update that nobody waits for gives up."""

AT_END = 30.0
"""Seconds to wait for MLflow at the end of a training and of an evaluation."""

WHEN_STOPPED = 10.0
"""Seconds to wait for MLflow where a scheduler ends the training: it kills soon after it asked."""


class Follower:
    """Keeps MLflow in step with a run while it trains. It never raises, and waits only in :meth:`end`.

    Args:
        folder: the run's folder.
        uri: of the store; None for no mirror at all.
    """

    def __init__(self, folder: Path, uri: str | None) -> None:
        self.folder, self.uri = folder, uri
        self._process = Process()
        self._asked = float("-inf")
        self._failed = False

    def begin(self) -> None:
        """Show the run in MLflow, and leave ``mlflow.pending``: from now on the files are ahead."""
        if self.uri is None:
            return
        mark(self.folder, "the run is being trained")
        if not _allowed(self.folder, self.uri):
            self.uri = None
        self.checkpoint()

    def checkpoint(self) -> None:
        """Have MLflow brought up to date, if it was not within :data:`EVERY` seconds. Does not wait for it."""
        if self.uri is None or time.monotonic() - self._asked < EVERY:
            return
        if self._process.busy:
            self._take(0)
        if not self._process.busy:
            self._asked = time.monotonic()
            self._ask(self.uri)

    def end(self, seconds: float = AT_END, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Bring MLflow up to date with the run's end, and end the process that does it; whether it is in step.

        Args:
            seconds: how long to wait for it at most.
            given_up: is asked again and again; what it makes true ends the wait.
        """
        if self.uri is None:
            return False
        deadline = time.monotonic() + seconds
        try:
            if self._process.busy:
                self._take(seconds, given_up)
            if self._process.busy or not self._ask(self.uri):
                return False
            if not self._take(deadline - time.monotonic(), given_up):
                return False
            settle(self.folder)
            return True
        finally:
            self._process.close()

    def _ask(self, uri: str) -> bool:
        try:
            self._process.ask("sync_run", folder=self.folder.resolve(), uri=uri, seconds=BESIDE)
        except NoAnswerError as error:
            self._fail(str(error))
            return False
        return True

    def _take(self, seconds: float, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Whether an update came to its end by then, and well."""
        try:
            self._process.answer(max(seconds, 0.0), patient=True, given_up=given_up)
        except (NoAnswerError, RefusedError) as error:
            if not self._process.busy or seconds > 0:
                self._fail(str(error))
            return False
        self._failed = False
        return True

    def _fail(self, reason: str) -> None:
        """Leave a note, and say so once until it works again."""
        assert self.uri is not None
        if not self._failed:
            _tell(self.uri, reason)
        self._failed = True
        mark(self.folder, reason)


def mirror(folder: Path, uri: str, seconds: float = AT_END) -> bool:
    """Bring MLflow in step with a run's folder; whether it is. Never raises: what fails leaves ``mlflow.pending``.

    Args:
        folder: the run's folder.
        uri: of the store.
        seconds: how long it may take at most.
    """
    with Process() as process:
        return update(process, folder, uri, seconds)


def update(process: Process, folder: Path, uri: str, seconds: float = AT_END) -> bool:
    """The same as :func:`mirror`, by a process that is there: it imports MLflow once."""
    mark(folder, "MLflow is being brought up to date")
    if not _allowed(folder, uri):
        return False
    try:
        process.call("sync_run", folder=folder.resolve(), uri=uri, seconds=seconds)
    except (NoAnswerError, RefusedError) as error:
        _tell(uri, str(error))
        mark(folder, str(error))
        return False
    settle(folder)
    return True


def mark(folder: Path, reason: str) -> None:
    """Note in the run's folder that MLflow is behind, and why."""
    with suppress(OSError):
        write_text(folder / PENDING, f"{reason}\n")


def pending_since(folder: Path) -> int | None:
    """When the note was written, in nanoseconds since 1970; None if there is none."""
    try:
        return (folder / PENDING).stat().st_mtime_ns
    except OSError:
        return None


def settle(folder: Path) -> None:
    """Remove the note, unless the run is being trained: then its files are ahead again soon."""
    with suppress(OSError):
        status = read_status(folder)
        if status is None or status["status"] != "RUNNING":
            (folder / PENDING).unlink(missing_ok=True)


def _allowed(folder: Path, uri: str) -> bool:
    """Whether this process may write to the store; says so, and leaves a note, where it may not."""
    reason = why_not_from_here(uri, os.environ)
    if reason is None:
        return True
    print(
        f"MLflow at {without_password(uri)} is not updated from this Slurm job, because {reason}; "
        "`tsd mlflow sync` (or `tsd mlflow sync --watch`) on the login node brings the run there",
        file=sys.stderr,
    )
    mark(folder, f"not updated from a Slurm job: {reason}")
    return False


def _tell(uri: str, reason: str) -> None:
    print(
        f"MLflow at {without_password(uri)} was not updated ({reason}); `tsd mlflow sync` will catch up",
        file=sys.stderr,
    )

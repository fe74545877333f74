"""All runs of a folder ``results/`` → MLflow: once, or again and again while trainings go on elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsd.engine.run_files import read_figures
from tsd.errors import InputError
from tsd.status import FILE, read_status
from tsd.tracking.follow import PENDING, mark, settle
from tsd.tracking.mirror import newest_metrics, newest_step
from tsd.tracking.process import NoAnswerError, Process, RefusedError
from tsd.tracking.store import seconds_to_answer, without_password

PATIENCE = 120.0
"""Seconds without a step forward, after which a store counts as away."""

Titles = Callable[[str], Mapping[str, str]]
"""Suite → names and titles of the tables that it makes."""

Stamp = tuple[tuple[str, int, int], ...]
"""Name, size and time of each file that says that there is something new."""


class AwayError(Exception):
    """The store does not answer."""


@dataclass(frozen=True)
class SyncReport:
    """Run folders that are in step with MLflow now, those that could not be brought so, and why."""

    synced: list[Path] = field(default_factory=list)
    failed: list[Path] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


class _Session:
    """A process that brings one folder after the other in step."""

    def __init__(self, root: Path, uri: str, titles: Titles) -> None:
        self.root, self.uri, self.titles = root.resolve(), uri, titles
        self.process = Process()
        self.ready: set[str] = set()
        """Suites whose experiment and tables' parents are there."""

    def bring(self, function: str, suite: str, folder: Path) -> None:
        """Sync a run's folder, or a suite's tables.

        Raises:
            AwayError: the store does not answer.
            RefusedError: it does, but not to this.
        """
        self._prepare(suite)
        try:
            self.process.call(function, folder=folder.resolve(), uri=self.uri, seconds=PATIENCE, while_moving=True)
        except NoAnswerError as error:
            self.ready.clear()
            raise AwayError(str(error)) from None
        except RefusedError as error:
            self.ready.clear()
            self._prepare(suite)
            raise RefusedError(str(error).replace(f"{folder.resolve()}/", "")) from None

    def _prepare(self, suite: str) -> None:
        if suite in self.ready:
            return
        arguments: dict[str, Any] = {
            "root": self.root,
            "experiments": [f"tsd-{suite}"],
            "tables": dict(self.titles(suite)),
        }
        try:
            seconds = seconds_to_answer(self.uri)
            self.process.call("init", uri=self.uri, seconds=seconds, while_moving=True, **arguments)
        except (NoAnswerError, RefusedError) as error:
            raise AwayError(str(error)) from None
        self.ready.add(suite)


def run_folders(root: Path, suite: str | None = None) -> list[Path]:
    """Folders of all runs under ``results/``, of one suite or of all."""
    return sorted(path.parent for path in (root / "results").glob(f"{suite or '*'}/runs/*/*/seed*/experiment.yaml"))


def sync_all(
    root: Path, uri: str, suite: str | None = None, *, pending: bool = False, titles: Titles | None = None
) -> SyncReport:
    """Mirror the runs' folders, and the tables to their parent runs.

    A store that does not answer is asked once, not for every run.

    Args:
        root: the repository.
        uri: of the store.
        suite: its runs; None for all suites.
        pending: only runs with ``mlflow.pending``.
        titles: tables of a suite; without them no parent runs are made.
    """
    report = SyncReport()
    todo = [folder for folder in run_folders(root, suite) if not pending or (folder / PENDING).exists()]
    session = _Session(root, uri, titles or (lambda _: {}))
    with session.process:
        try:
            for folder in todo:
                try:
                    session.bring("sync_run", suite_of(folder), folder)
                except RefusedError as error:
                    _failed(report, folder, str(error))
                else:
                    settle(folder)
                    report.synced.append(folder)
            for tables in sorted((root / "results").glob(f"{suite or '*'}/tables")):
                try:
                    session.bring("sync_tables", tables.parent.name, tables)
                except RefusedError as error:
                    report.reasons.append(f"{tables}: {error}")
        except AwayError as error:
            report.reasons.append(f"MLflow at {without_password(uri)} does not answer ({error})")
            for folder in todo[len(report.synced) + len(report.failed) :]:
                mark(folder, str(error))
                report.failed.append(folder)
    return report


def _failed(report: SyncReport, folder: Path, reason: str) -> None:
    mark(folder, reason)
    report.failed.append(folder)
    report.reasons.append(f"{folder}: {reason}")


def suite_of(folder: Path) -> str:
    """Suite of a run's folder, ``results/<suite>/runs/<experiment>/<digest>/seed<k>``."""
    return folder.parents[3].name


def has_ended(folder: Path, evaluation: Path) -> bool:
    """Whether nothing more is to be expected of a run: it has failed, or is trained and evaluated.

    One that a scheduler stopped (``KILLED``) goes on with its next attempt.

    Args:
        folder: the run's folder.
        evaluation: the folder of the evaluation that its suite asks for.
    """
    try:
        found = read_status(folder)
    except InputError:  # the watch says what is wrong with it
        return False
    status = found["status"] if found else None
    return status == "FAILED" or (status == "FINISHED" and (evaluation / "metrics.json").exists())


class Watcher:
    """Follows the runs' files, and tells a line for each change that it brought to MLflow.

    Args:
        root: the repository.
        uri: of the store.
        suite: whose runs; None for all.
        titles: tables of a suite.
        say: takes the lines.
    """

    def __init__(
        self, root: Path, uri: str, suite: str | None, titles: Titles, say: Callable[[str], None] = print
    ) -> None:
        self.root, self.suite, self.say = root, suite, say
        self.session = _Session(root, uri, titles)
        self.where = without_password(uri)
        self.seen: dict[Path, Stamp] = {}
        self.refused: dict[Path, str] = {}
        self.away = False

    def look(self) -> bool:
        """Bring to MLflow what changed since the last look; whether it is in step with all files now."""
        todo = [(folder, _stamp(folder)) for folder in run_folders(self.root, self.suite)]
        tables = sorted((self.root / "results").glob(f"{self.suite or '*'}/tables"))
        work = [("sync_run", suite_of(folder), folder, stamp) for folder, stamp in todo]
        work += [("sync_tables", folder.parent.name, folder, _stamp_of(folder.glob("*.*"))) for folder in tables]
        changed = [item for item in work if self.seen.get(item[2]) != item[3]]
        try:
            taken = [self._bring(*item) for item in changed]
        except AwayError as error:
            if not self.away:
                self._tell(f"MLflow at {self.where} does not answer ({error}); trying again")
            self.away = True
            return False
        return all(taken)

    def _bring(self, function: str, suite: str, folder: Path, stamp: Stamp) -> bool:
        try:
            self.session.bring(function, suite, folder)
        except RefusedError as error:
            if self.refused.get(folder) != str(error):
                self._tell(f"{folder.relative_to(self.root)}: not taken by MLflow ({error})")
            self.refused[folder] = str(error)
            return False
        finally:
            if self.away and suite in self.session.ready:
                self._tell(f"MLflow at {self.where} answers again")
                self.away = False
        self.seen[folder] = stamp
        self.refused.pop(folder, None)
        if function == "sync_run":
            settle(folder)
            self._tell(f"{_title(folder)}: {_state(folder)}")
        else:
            self._tell(f"{suite}: tables")
        return True

    def _tell(self, text: str) -> None:
        self.say(f"{time.strftime('%H:%M:%S')} {text}")


def watch(watcher: Watcher, every: float, missing: Callable[[], list[str]] | None = None) -> bool:
    """Look every so many seconds, until interrupted; whether MLflow was in step with the files in the end.

    Args:
        watcher: what looks.
        every: seconds between two looks.
        missing: gives what is waited for; the watch ends when that is nothing and MLflow is in step.
    """
    in_step = False
    with watcher.session.process:
        try:
            while True:
                done = missing is not None and not missing()  # asked first: what ends now is brought by the next look
                in_step = watcher.look()
                sys.stdout.flush()
                if done and in_step:
                    watcher.say("all runs have ended, and MLflow is in step with them")
                    return True
                time.sleep(every)
        except KeyboardInterrupt:
            watcher.say("stopped; " + ("MLflow is in step with the files" if in_step else "`tsd mlflow sync` goes on"))
    return in_step


def _stamp(folder: Path) -> Stamp:
    """What changes with a run. Its log alone does not: MLflow gets its lines when a checkpoint confirms them."""
    newest = newest_metrics(folder)
    files = [folder / name for name in ("experiment.yaml", "environment.json", "config.py", FILE)]
    files += folder.glob("checkpoints/step_*.pth")
    if newest is not None:
        files += [newest, *newest.parent.glob("pictures/*.png")]
    return _stamp_of(files)


def _stamp_of(files: Iterable[Path]) -> Stamp:
    found = []
    for path in files:
        try:
            facts = path.stat()
        except FileNotFoundError:  # an old checkpoint that was removed meanwhile
            continue
        found.append((str(path), facts.st_size, facts.st_mtime_ns))
    return tuple(sorted(found))


def _title(folder: Path) -> str:
    """What a line calls a run: with its digest where runs of the same experiment and seed differ in it."""
    digest, experiment = folder.parent, folder.parents[1]
    is_one = len(list(experiment.glob(f"*/{folder.name}/experiment.yaml"))) < 2
    return "/".join((suite_of(folder), experiment.name, *([] if is_one else [digest.name]), folder.name))


def _state(folder: Path) -> str:
    """What a line says of a run; FINISHED is one that is evaluated too."""
    found = read_status(folder)
    status = found["status"] if found else "not begun"
    metrics = newest_metrics(folder)
    if status == "FINISHED" and metrics is None:
        return "trained, not evaluated"
    said = f"{status}, step {newest_step(folder)}" if status != "FINISHED" else status
    if metrics is not None:
        figures = read_figures(metrics)
        name = next((name for name in ("AP", "AP50") if name in figures), None)
        said += f", {name} {100 * figures[name]:.1f}" if name else ", evaluated"
    return said

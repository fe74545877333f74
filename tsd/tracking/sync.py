"""All runs of a folder ``results/`` → MLflow."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tsd.tracking.follow import PENDING, mark, settle
from tsd.tracking.process import NoAnswerError, Process, RefusedError
from tsd.tracking.store import without_password

PER_RUN = 120.0
"""Seconds for one run; what it brought by then counts, and the next time goes on from there."""

Titles = Callable[[str], Mapping[str, str]]
"""Suite → names and titles of the tables that it makes."""


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
            self.process.call(function, folder=folder.resolve(), uri=self.uri, seconds=PER_RUN)
        except NoAnswerError as error:
            self.ready.clear()
            raise AwayError(str(error)) from None
        except RefusedError:
            self.ready.clear()
            self._prepare(suite)
            raise

    def _prepare(self, suite: str) -> None:
        if suite in self.ready:
            return
        arguments = {"root": self.root, "experiments": [f"tsd-{suite}"], "tables": dict(self.titles(suite))}
        try:
            self.process.call("init", uri=self.uri, seconds=PER_RUN, **arguments)
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

"""Train one run: resumable at any moment, recorded in files first, mirrored to MLflow when it can be."""

import datetime
import functools
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml

from tsd.data.coco import load_coco
from tsd.data.manifest import verify_annotations
from tsd.engine import distributed, pieces, slurm, stopping
from tsd.engine.device import set_up
from tsd.engine.environment import environment
from tsd.engine.identity import manifest_path
from tsd.engine.params import Run, cautions, verified_path
from tsd.engine.run_files import read_environment
from tsd.errors import InputError, WorkError, sentence
from tsd.files import exclusive, remove_leftovers, write_json, write_text
from tsd.status import FILE, read_status
from tsd.tracking.follow import WHEN_STOPPED, Follower

Watch = Callable[[int, float], str | None]
"""Is told each logged step and its loss as soon as they are known; a text ends the training, and is the reason."""


def train(
    run: Run, uri: str | None = None, table_rows: list[str] | None = None, watch: Watch = lambda step, loss: None
) -> Path:
    """Train, or go on where a killed training stopped. Returns the run's folder with ``checkpoint.pth`` in it.

    Args:
        run: the run; all files go to ``run.folder`` below the current folder.
        uri: MLflow tracking URI, None for no mirror.
        table_rows: rows of the paper's tables that show this run, as ``table/row``.
        watch: what looks at the losses of the logged steps.

    Raises:
        InputError: bad data, pictures or checkpoint; no GPU where one is asked for; another process trains this run.
        DivergedError: a loss became NaN or infinite.
        WorkError: its jobs are too short for a step.
        SystemExit: it was told to stop; see :mod:`tsd.engine.stopping` and :mod:`tsd.engine.pieces`.
    """
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    set_up(run)
    if distributed.rank():
        return _train_along(run, folder)
    _check_data(run)
    for caution in cautions(run):
        print(f"warning: {caution}", file=sys.stderr)
    with _exclusive(folder), stopping.listening() as request:
        for place in (folder, folder / "checkpoints"):
            remove_leftovers(place)
        piece = _begin(folder)
        write_text(folder / "experiment.yaml", _yaml(run.describe() | {"tables": table_rows or []}))
        write_json(folder / "environment.json", environment() | _weights_of(folder))
        _set_status(folder, "RUNNING")
        follower = Follower(folder, uri)
        left = functools.partial(slurm.seconds_left, piece.job) if piece.job else None
        try:
            follower.begin()
            with stopping.by_the_clock(request, left, 60 * run.resources["margin"]):
                _train(run, folder, follower, request, watch)
        except SystemExit as error:
            _stop(folder, piece, _reason(error), follower, by_clock=request.expired is not None)
            raise
        except BaseException as error:
            if request.interrupted:
                _end(folder, "KILLED", "interrupted by Ctrl-C")
            else:
                _end(folder, "FAILED", _reason(error))
            follower.end(given_up=request.is_made)
            if request.interrupted:
                raise KeyboardInterrupt from error
            raise
        _set_status(folder, "FINISHED")
        follower.end(given_up=request.is_made)
    return folder


def _begin(folder: Path) -> pieces.Piece:
    try:
        return pieces.begin(folder)
    except (InputError, WorkError) as error:
        _set_status(folder, "FAILED", str(error))
        raise


def _stop(folder: Path, piece: pieces.Piece, reason: str, follower: Follower, *, by_clock: bool) -> None:
    """The end of a training that was told to: saved, told, and then its job started again.

    Raises:
        WorkError: the clock stopped it before it had done a step.
    """
    error = None
    try:
        pieces.end(folder, piece, reason, by_clock=by_clock)
    except WorkError as problem:
        error = problem
    _end(folder, "FAILED" if error else "KILLED", str(error or reason))
    follower.end(WHEN_STOPPED)
    if error:
        raise error
    if said := pieces.again(folder, piece):
        print(f"{reason}; {said}", file=sys.stderr, flush=True)


def _check_data(run: Run) -> None:
    """A file that changed since it was verified must not be trained on; other data is part of the run's digest.

    Pictures are looked for unless the suite's data has been verified: one process does, for on a cluster's file system
    it takes minutes.
    """
    suite = run.suite
    if suite.is_openimages:
        return
    if not verified_path(suite, run.data_digest).exists():
        for split in ("train", "val"):
            load_coco(*suite.split(split), on_degenerate=suite.on_degenerate)
    manifest = manifest_path(suite)
    if manifest is not None and manifest.exists() and (problems := verify_annotations(manifest)):
        raise InputError("\n".join(problems))


def _train_along(run: Run, folder: Path) -> Path:
    """What every process but the first does: the same steps, without files. Its error is the run's."""
    stopping.ignoring()  # the first process stops all, see StopHook
    try:
        _train(run, folder, None, stopping.StopRequest(), lambda step, loss: None)
    except Exception as error:
        _end(folder, "FAILED", f"process {distributed.rank()}: {_reason(error)}")
        raise
    return folder


def _train(run: Run, folder: Path, follower: Follower | None, request: stopping.StopRequest, watch: Watch) -> None:
    with distributed.process_group(run.on_gpu):
        _train_in_group(run, folder, follower, request, watch)


def _train_in_group(
    run: Run, folder: Path, follower: Follower | None, request: stopping.StopRequest, watch: Watch
) -> None:
    from tsd.engine import checkpoint, weights
    from tsd.engine.adapters.journal import CheckpointHook, JournalHook, StartHook, StopHook
    from tsd.engine.config import load_config
    from tsd.engine.runner import StrictRunner

    first = distributed.rank() == 0
    checkpoints = folder / "checkpoints"
    found = checkpoint.newest_whole(checkpoints) if first else None
    newest = distributed.agree_on(found[1] if found else None)
    pretrained = run.settings["backbone"]["pretrained"]
    if first and newest is None and pretrained is not None:
        weights.find_weights(pretrained)  # missing ones are told before the network is built
    config = load_config(run)
    if distributed.world() > 1:
        config.launcher = "pytorch"
    if first:
        write_text(folder / "config.py", config.pretty_text)
    if first and "SLURM_JOB_ID" in os.environ:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
        print(f"GPU {devices} of Slurm job {os.environ['SLURM_JOB_ID']}", file=sys.stderr)
    runner = StrictRunner.from_cfg(config)
    runner.identity = run.identity
    title = f"{run.experiment} seed{run.seed}"

    def saved(_: int) -> None:
        if follower is not None:
            follower.checkpoint()

    def logged(step: int, loss: float) -> None:
        if reason := watch(step, loss):
            request.reason = request.reason or reason

    runner.register_hook(JournalHook(folder / "log.jsonl", run.suite.monitor["log_steps"], title, logged))
    every = run.suite.monitor["checkpoint_steps"]
    runner.register_hook(CheckpointHook(checkpoints, every, saved))
    runner.register_hook(StopHook(request, lambda epoch, step: runner.save_training_state(checkpoints, epoch, step)))
    if first and pretrained is not None:

        def started() -> None:
            facts = environment() | {"pretrained_sha256": runner.pretrained_sha256}
            write_json(folder / "environment.json", facts)

        runner.register_hook(StartHook(started))
    if newest is not None:
        if found:
            print(f"{title}: resuming after step {found[0]} from {newest}", file=sys.stderr)
        runner._resume, runner._load_from = True, str(newest)
    runner.train()
    if first:
        checkpoint.save(folder / "checkpoint.pth", runner.weights(runner.epoch, runner.iter))


def _weights_of(folder: Path) -> dict[str, Any]:
    """What is known of the weights that a run started from, if it has been started before."""
    known = read_environment(folder) if (folder / "environment.json").exists() else {}
    return {key: known[key] for key in ("pretrained_sha256",) if known.get(key)}


def _set_status(folder: Path, status: str, error: str | None = None) -> None:
    path = folder / FILE
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    before = read_status(folder)
    started = before["started"] if before else now
    ended = None if status == "RUNNING" else now
    try:
        write_json(path, {"status": status, "error": error, "started": started, "ended": ended})
    except OSError as problem:  # a full disk must not hide the error that is being reported
        print(f"{path}: not written: {problem}", file=sys.stderr)


def _end(folder: Path, status: str, error: str) -> None:
    """Mark the run; the first of several processes to fail is the one that says why."""
    before = read_status(folder)
    if before is None or before["status"] == "RUNNING":
        _set_status(folder, status, error)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {sentence(error)}"[:2000]


def _yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)


def is_training(folder: Path) -> bool:
    """Whether a process holds the lock of a run's folder."""
    if not (folder / ".lock").exists():
        return False
    try:
        with _exclusive(folder):
            return False
    except InputError:
        return True


def _exclusive(folder: Path) -> AbstractContextManager[None]:
    """Hold the run's lock."""
    return exclusive(folder / ".lock", f"{folder}: another process is training this run")

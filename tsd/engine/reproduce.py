"""Make a published run anew, beside all results, in stages of a process each: train, then predict and evaluate.

Each stage leaves files from which the same command goes on. Predictions are made in a process of their own, as the
workflow makes them: what a training sets in its process can't touch them.
"""

import datetime
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tsd.data.generate import SceneSpec, generate
from tsd.data.manifest import digest, read_manifest
from tsd.engine import distributed
from tsd.engine.identity import manifest_path, pinned
from tsd.engine.params import Run, Suite
from tsd.engine.published import Published
from tsd.engine.resolve import Resolved
from tsd.engine.verify import verify_suite
from tsd.errors import InputError
from tsd.evaluation.comparison import LossDifference, first_difference
from tsd.files import exclusive, read_json, read_whole_lines, write_json

PLACE = Path("reproduced")
"""Where repetitions are, each in a folder of its own; results are elsewhere."""

REPORT = "report.json"
"""In a repetition's folder: it is finished, and the next one begins anew in another."""

STATE = "reproduction.json"
"""In a repetition's folder: its attempts and how long they took."""


@dataclass(frozen=True)
class Next:
    """The command that this process is to become, and its environment."""

    command: list[str]
    environment: dict[str, str]


@dataclass(frozen=True)
class StoppedAt:
    """The training was ended at the first step whose loss differs; its state is saved."""

    loss: LossDifference


def home_of(run: Run) -> Path:
    """The folder of a run's unfinished repetition, or of a new one."""
    base = _base(run)
    numbers = sorted(int(path.name) for path in base.glob("*") if path.name.isdecimal())
    if numbers and not (base / str(numbers[-1]) / REPORT).exists():
        return base / str(numbers[-1])
    return base / str(numbers[-1] + 1 if numbers else 1)


def _base(run: Run) -> Path:
    return PLACE / run.suite.name / run.experiment / run.digest / f"seed{run.seed}"


def placed(found: Resolved, published: Published) -> Run:
    """The run as it is made anew: in a folder of its own, logging and evaluating as often as the record tells, and with
    scenes of its own if others are where its suite's would be."""
    suite = found.run.suite
    monitor = dict(suite.monitor)
    if published.losses:
        monitor["log_steps"] = math.gcd(*published.losses)
    if epochs := [line["epoch"] for line in published.facts.get("history", [])]:
        monitor["val_epochs"] = math.gcd(*epochs)
    suite = replace(suite, data=_placed_data(found.run), monitor=monitor)
    return replace(found.run, suite=suite, home=home_of(found.run))


def _placed_data(run: Run) -> dict[str, Any]:
    suite = run.suite
    manifest = manifest_path(suite)
    if suite.data["format"] != "generated" or manifest is None or not manifest.parent.exists():
        return suite.data
    if manifest.exists() and _is_of(manifest, suite):
        return suite.data
    return suite.data | {"folder": str(PLACE / "data" / run.data_digest)}


def _is_of(manifest: Path, suite: Suite) -> bool:
    """Whether a manifest is that of the suite's scenes."""
    try:
        same = SceneSpec.from_dict(read_manifest(manifest)["spec"]) == SceneSpec.from_dict(suite.data["generate"])
    except (InputError, TypeError, KeyError):
        return False
    return same and pinned(suite) in (None, digest(manifest, "md5"))


def is_to_generate(run: Run) -> bool:
    """Whether the run's scenes are to be generated first."""
    manifest = manifest_path(run.suite)
    return run.suite.data["format"] == "generated" and manifest is not None and not manifest.exists()


def reproduce(
    found: Resolved, published: Published, arguments: Sequence[str], stop: bool, is_worker: bool
) -> Run | Next | StoppedAt | None:
    """Do the next stage.

    Args:
        found: the run, see :func:`tsd.engine.resolve.resolved`.
        published: what it is compared with while it trains.
        arguments: of the command line, which the next stage is started with.
        stop: whether to end at the first step whose loss differs.
        is_worker: whether this is one of several processes that only train, which the command started.

    Returns:
        The run, whose ``metrics.json`` is there; or what this process is to become; or where it was stopped; or None
        in a process that has trained along.

    Raises:
        InputError: data, weights or checkpoint can't be used; another process makes the same run anew.
    """
    run = placed(found, published)
    if is_worker:
        return _train(run, published, arguments, stop)
    if "WORLD_SIZE" in os.environ:
        raise InputError("tsd reproduce: start it without torchrun: it starts its processes itself")
    run.folder.mkdir(parents=True, exist_ok=True)
    with exclusive(_base(run) / ".lock", f"{_base(run)}: another process makes this run anew"):
        if not run.checkpoint.exists():
            _introduce(found, published, run)
            _make_data(found, run)
            _check_weights(run, published)
            command = distributed.launch(run, [*arguments, "--only-train"], os.environ)
            if command:
                _say(" ".join(command))
                return Next(command, dict(os.environ))
            return _train(run, published, arguments, stop)
        _evaluate(run)
    return run


def _introduce(found: Resolved, published: Published, run: Run) -> None:
    goes_on = (run.folder / "experiment.yaml").exists()
    _say(f"{published.key}: {'going on in' if goes_on else 'anew in'} {run.folder}, settings: {found.origin}")
    if published.facts.get("git_dirty"):
        _say(f"warning: {published.path}: made with changes that were not committed; nobody can tell which")
    if not published.losses:
        _say(f"{published.path}: tells no losses: the first that can be compared are the predictions")


def _make_data(found: Resolved, run: Run) -> None:
    """Generate scenes that are not there, as the workflow does; check all data."""
    manifest, pin = manifest_path(run.suite), pinned(found.run.suite)
    if manifest is not None and is_to_generate(run):
        workers = min(2, os.cpu_count() or 1)
        generate(SceneSpec.from_dict(run.suite.data["generate"]), manifest.parent, workers=workers)
    verify_suite(run.suite)
    if manifest is not None and pin not in (None, digest(manifest, "md5")):
        raise InputError(
            f"{manifest}: its MD5 is not {pin}, which data.dvc pinned when the run was made: these are other scenes"
        )


def _check_weights(run: Run, published: Published) -> None:
    """Say at once if a training that has not begun would start from other weights."""
    name, recorded = run.settings["backbone"]["pretrained"], published.pretrained_sha256
    if name is None or recorded is None or list((run.folder / "checkpoints").glob("*")):
        return
    from tsd.engine.weights import find_weights

    path = find_weights(name)
    if (here := digest(path)) != recorded:
        _say(f"warning: {path}: other weights than those recorded: its SHA-256 is {here}, recorded is {recorded}")


class _Watch:
    """Compares each logged loss with the recorded one and says at once where the first differs."""

    def __init__(self, recorded: Mapping[int, float], log: Path, stop: bool) -> None:
        self.recorded, self.stop = recorded, stop
        self.first: LossDifference | None = None
        for line in read_whole_lines(log):  # of attempts before
            if "loss" in line:
                self(line["step"], line["loss"])

    def __call__(self, step: int, loss: float) -> str | None:
        if self.first is None and (found := first_difference(self.recorded, {step: loss})):
            self.first = found
            tqdm.write(f"step {step}: loss {loss!r}, recorded is {found.recorded!r}: they differ", file=sys.stderr)
        return f"the loss of step {self.first.step} differs" if self.stop and self.first else None


def _train(run: Run, published: Published, arguments: Sequence[str], stop: bool) -> Next | StoppedAt | None:
    from tsd.engine.train import train

    is_first = distributed.rank() == 0
    watch = _Watch(published.losses, run.folder / "log.jsonl", stop and is_first)
    if watch.stop and watch.first:
        return StoppedAt(watch.first)
    try:
        with _attempt(run.folder / STATE) if is_first else nullcontext():
            train(run, watch=watch)
    except SystemExit:
        if watch.stop and watch.first:
            return StoppedAt(watch.first)
        raise
    if not is_first:
        return None
    words = [word for word in arguments if word != "--only-train"]
    return Next([sys.executable, "-m", "tsd.cli", *words], _without_launcher(os.environ))


@contextmanager
def _attempt(path: Path) -> Iterator[None]:
    """Note that the training was started, and how long it went on if it ends in order."""
    attempts = read_json(path)["attempts"] if path.exists() else []
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    attempt: dict[str, Any] = {"started": now, "seconds": None}
    write_json(path, {"attempts": [*attempts, attempt]})
    started = time.monotonic()
    try:
        yield
    finally:
        attempt["seconds"] = round(time.monotonic() - started, 1)
        write_json(path, {"attempts": [*attempts, attempt]})


def _without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what torchrun tells its processes."""
    told = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_")
    return {
        name: value for name, value in environment.items() if not name.startswith((*told, "ROLE_", "TORCHELASTIC_"))
    }


def _evaluate(run: Run) -> None:
    """Predict, evaluate, and write ``metrics.json`` as the workflow does."""
    from tsd.engine.predict import predict
    from tsd.engine.record import run_facts

    started = time.monotonic()
    predict(run, run.checkpoint, run.predictions)
    figures = _figures(run) | {"run": run_facts(run.folder, run.predictions)}
    write_json(run.eval_folder / "metrics.json", figures)
    path = run.folder / STATE
    write_json(path, read_json(path) | {"evaluation_seconds": round(time.monotonic() - started, 1)})


def _figures(run: Run) -> dict[str, Any]:
    if run.suite.is_openimages:
        from tsd.evaluation.openimages import PROTOCOLS, compare_files

        files = run.suite.challenge
        named = (files.boxes("val"), files.labels("val"), files.classes, files.hierarchy, run.predictions)
        return compare_files(*named, protocols=PROTOCOLS, expand_predictions=True)
    from tsd.engine.settings import has_masks
    from tsd.evaluation.coco import evaluate_boxes_and_masks, evaluate_coco

    evaluate = evaluate_boxes_and_masks if has_masks(run.settings) else evaluate_coco
    return evaluate(run.suite.split("val")[0], run.predictions)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

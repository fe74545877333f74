"""How long trainings take: by the steps that were timed, else by multiply-adds and a GPU's speed. Light: for a dry run.

Hours are of one GPU, or of one process where there is none: those of a training are multiplied by its :func:`width`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

from tsd.engine.identity import suite_source
from tsd.engine.networks import Network, networks_of
from tsd.engine.params import Run, Suite, verified_path
from tsd.errors import InputError
from tsd.files import read_json, read_whole_lines, read_yaml

GPUS = Path("params/gpus.yaml")

FLOPS = 6
"""Floating-point operations in training for each multiply-add forward: two, and twice that backward."""


@dataclass(frozen=True)
class Speeds:
    """What GPUs get done.

    Attributes:
        tflops: GPU → 10¹² floating-point operations per second.
        least_step: seconds that a step takes at least.
        error: what an estimate may be wrong by, as a fraction.
    """

    tflops: dict[str, float]
    least_step: float
    error: float


def read_speeds(root: Path) -> Speeds:
    """``params/gpus.yaml``.

    Raises:
        InputError: it is not a list of positive numbers; names the key.
    """
    path = root / GPUS
    content = read_yaml(path)
    keys = {"error", "least_step", "tflops"}
    if not isinstance(content, dict) or content.keys() != keys:
        raise InputError(f"{path}: expected the keys {', '.join(sorted(keys))}")
    tflops = content.pop("tflops")
    if not isinstance(tflops, dict) or not tflops:
        raise InputError(f"{path}: tflops: expected lines of a GPU's name and a number, got {tflops!r}")
    if odd := [gpu for gpu in tflops if not isinstance(gpu, str)]:
        raise InputError(f"{path}: tflops.{odd[0]}: expected a GPU's name")
    amounts = [*content.items(), *((f"tflops.{gpu}", value) for gpu, value in tflops.items())]
    for key, value in amounts:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise InputError(f"{path}: {key}: expected a number above 0, got {value!r:.40}")
    return Speeds({str(gpu): float(value) for gpu, value in tflops.items()}, **content)


def width(run: Run) -> int:
    """GPUs of a training; without them its processes."""
    return run.resources["gpu"] or run.processes


def training_pictures(suite: Suite, data_digest: str) -> int | None:
    """Pictures of an epoch: as generated, as verified, or as the source publishes it; None: not known yet."""
    if "generate" in suite.data:
        from tsd.data.generate import SceneSpec

        return SceneSpec.from_dict(suite.data["generate"]).train
    verified = verified_path(suite, data_digest)
    if verified.exists():
        content = read_json(verified)
        count = content.get("train") if isinstance(content, dict) else None
        if type(count) is not int or count < 1:
            raise InputError(f"{verified}: train: expected a number of pictures, got {count!r}; remove the file")
        return count
    if suite.is_openimages or suite.fetched is not None:
        return suite_source(suite).pictures["train"]
    if "import" in suite.data:
        return suite_source(suite).pictures.get(suite.data["import"].get("train", ""))
    return None


def steps_left(run: Run, pictures: int) -> int:
    """Steps of a training over so many pictures that its log does not have."""
    schedule = run.settings["schedule"]
    steps = int(schedule["epochs"]) * math.ceil(pictures / schedule["batch_size"])
    return max(0, steps - max((step for step, _ in _logged(run)), default=0))


def seconds_per_step(run: Run) -> float | None:
    """What a step of the training took from its log, waiting for data included; None: too little of it is there.

    The median over the log's lines: evaluations and pauses between two jobs do not count.
    """
    pairs = [(a, b) for a, b in pairwise(_logged(run)) if b[0] > a[0] and b[1] > a[1]]
    return median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs) if pairs else None


def _logged(run: Run) -> list[tuple[int, float]]:
    """(step, time) of the log's lines.

    Raises:
        InputError: a line that no training wrote; names file and line.
    """
    path = run.folder / "log.jsonl"
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(read_whole_lines(path), start=1):
        step, time = (line.get(key) if isinstance(line, dict) else None for key in ("step", "time"))
        if type(step) is not int or not isinstance(time, int | float) or not math.isfinite(time):
            raise InputError(f"{path}, line {number}: expected a step and a time; remove the line, or the run's folder")
        if "loss" in line:
            found.append((step, float(time)))
    return found


@dataclass(frozen=True)
class Hours:
    """GPU-hours of several trainings.

    Attributes:
        hours: of all of them.
        timed: experiment → seconds of a step, of those whose steps were timed here.
        others: trainings of other experiments, for which the timed ones stand.
    """

    hours: float
    timed: dict[str, float]
    others: int


def measured_hours(runs: Sequence[Run], todo: Sequence[Run], pictures: int | None) -> Hours | None:
    """What trainings will take by steps timed here: an experiment's own, else all that were timed, by multiply-adds.

    Args:
        runs: all runs of a suite, in whose logs is looked.
        todo: those to be done.
        pictures: of an epoch.

    Returns:
        None if no step was timed, or the number of pictures isn't known.
    """
    times: dict[str, list[tuple[float, int]]] = {}
    for run in runs:
        if (seconds := seconds_per_step(run)) is not None:
            times.setdefault(run.experiment, []).append((seconds, _width_then(run)))
    if not times or pictures is None or not todo:
        return None
    networks = networks_of(todo[0].suite)
    own = {experiment: mean(seconds * gpus for seconds, gpus in values) for experiment, values in times.items()}
    known = {run.experiment: _gmacs(run, networks) for run in runs}
    hours = sum(steps_left(run, pictures) * _step(run, own, known) for run in todo) / 3600
    timed = {experiment: mean(seconds for seconds, _ in values) for experiment, values in times.items()}
    return Hours(hours, timed, sum(run.experiment not in own for run in todo))


def _width_then(run: Run) -> int:
    """How wide the training was when it was timed: its suite's resources may have been changed since."""
    path = run.folder / "environment.json"
    facts = read_json(path) if path.exists() else {}
    processes = facts.get("processes") if isinstance(facts, dict) else None
    return processes if type(processes) is int and processes > 0 else width(run)


def _step(run: Run, own: Mapping[str, float], known: Mapping[str, float | None]) -> float:
    """GPU-seconds of a step: the experiment's own; else as the others', by multiply-adds where all are known."""
    if run.experiment in own:
        return own[run.experiment]
    counted = [known[experiment] for experiment in own]
    mine = known[run.experiment]
    if mine is None or None in counted:
        return mean(own.values())
    return mine * sum(own.values()) / sum(gmacs for gmacs in counted if gmacs is not None)


def _gmacs(run: Run, networks: Mapping[str, Network]) -> float | None:
    """10⁹ multiply-adds of a step forward."""
    network = networks.get(run.experiment)
    return None if network is None else network.gmacs(run.settings) * run.settings["schedule"]["batch_size"]


def estimated_hours(todo: Sequence[Run], pictures: int | None, speeds: Speeds) -> dict[str, tuple[float, int]] | None:
    """GPU → GPU-hours of all trainings, by multiply-adds, and how many of them rest on the least time of a step.

    None: a network or the number of pictures isn't known.
    """
    if not todo or pictures is None:
        return None
    networks = networks_of(todo[0].suite)
    amounts = [_gmacs(run, networks) for run in todo]
    if None in amounts:
        return None
    found = {}
    for gpu, tflops in speeds.tflops.items():
        steps = [FLOPS * (gmacs or 0.0) / tflops / 1e3 / width(run) for run, gmacs in zip(todo, amounts, strict=True)]
        seconds = [
            max(step, speeds.least_step) * width(run) * steps_left(run, pictures)
            for run, step in zip(todo, steps, strict=True)
        ]
        found[gpu] = sum(seconds) / 3600, sum(step < speeds.least_step for step in steps)
    return found

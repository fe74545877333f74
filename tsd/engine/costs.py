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
from tsd.engine.networks import Network
from tsd.engine.params import Run, Suite, verified_path
from tsd.engine.run_files import read_environment, read_log
from tsd.errors import InputError
from tsd.files import read_json, read_yaml

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
    return Speeds({gpu: float(value) for gpu, value in tflops.items()}, **content)


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


@dataclass(frozen=True)
class Progress:
    """What the log of a training says.

    Attributes:
        steps: that are done.
        seconds: of a step, waiting for data included; None: too little was logged. The median over the log's lines:
            evaluations and pauses between two jobs do not count.
        width: GPUs when they were timed; the suite's resources may have been changed since.
    """

    steps: int
    seconds: float | None
    width: int


def progress(run: Run) -> Progress:
    """How far a training has come, and how fast.

    Raises:
        InputError: a line of the log that no training wrote; names file and line.
    """
    logged = _logged(run)
    pairs = [(a, b) for a, b in pairwise(logged) if b[0] > a[0] and b[1] > a[1]]
    seconds = median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs) if pairs else None
    return Progress(max((step for step, _ in logged), default=0), seconds, _width_then(run))


def _logged(run: Run) -> list[tuple[int, float]]:
    """(step, time) of the log's lines."""
    return [(line["step"], float(line["time"])) for line in read_log(run.folder) if "loss" in line]


def _width_then(run: Run) -> int:
    there = (run.folder / "environment.json").exists()
    return int(read_environment(run.folder).get("processes", width(run))) if there else width(run)


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


@dataclass(frozen=True)
class Workload:
    """What the hours of trainings follow from.

    Attributes:
        todo: trainings to be done.
        pictures: of an epoch.
        gmacs: experiment → 10⁹ multiply-adds of a step forward, of those whose networks have been counted.
        made: (experiment, seed) → what the logs of all trainings say.
    """

    todo: Sequence[Run]
    pictures: int
    gmacs: Mapping[str, float]
    made: Mapping[tuple[str, int], Progress]

    def measured(self) -> Hours | None:
        """By steps timed here: an experiment's own, else all that were timed, by multiply-adds; None: none was."""
        times: dict[str, list[tuple[float, int]]] = {}
        for (experiment, _), made in self.made.items():
            if made.seconds is not None:
                times.setdefault(experiment, []).append((made.seconds, made.width))
        if not times:
            return None
        timed = {name: mean(seconds for seconds, _ in values) for name, values in times.items()}
        own = {name: mean(seconds * gpus for seconds, gpus in values) for name, values in times.items()}
        hours = sum(self._steps_left(run) * self._gpu_seconds(run, own) for run in self.todo) / 3600
        return Hours(hours, timed, sum(run.experiment not in own for run in self.todo))

    def estimated(self, speeds: Speeds) -> dict[str, tuple[float, int]] | None:
        """GPU → GPU-hours by multiply-adds, and how many trainings rest on the least time of a step.

        None: a network has not been counted.
        """
        if any(run.experiment not in self.gmacs for run in self.todo):
            return None
        found = {}
        for gpu, tflops in speeds.tflops.items():
            hours, least = 0.0, 0
            for run in self.todo:
                seconds = FLOPS * self.gmacs[run.experiment] / tflops / 1e3 / width(run)
                least += seconds < speeds.least_step
                hours += max(seconds, speeds.least_step) * width(run) * self._steps_left(run) / 3600
            found[gpu] = hours, least
        return found

    def _steps_left(self, run: Run) -> int:
        schedule = run.settings["schedule"]
        steps = int(schedule["epochs"]) * math.ceil(self.pictures / schedule["batch_size"])
        return max(0, steps - self.made[run.experiment, run.seed].steps)

    def _gpu_seconds(self, run: Run, own: Mapping[str, float]) -> float:
        """Of a step: the experiment's own; else as the others', by multiply-adds where all are known."""
        if run.experiment in own:
            return own[run.experiment]
        if run.experiment not in self.gmacs or not own.keys() <= self.gmacs.keys():
            return mean(own.values())
        return self.gmacs[run.experiment] * sum(own.values()) / sum(self.gmacs[name] for name in own)


def read_workload(runs: Sequence[Run], todo: Sequence[Run], networks: Mapping[str, Network], pictures: int) -> Workload:
    """What the hours of a suite's trainings follow from; reads the logs of all its runs.

    Args:
        runs: all of the suite.
        todo: those to be done.
        networks: by experiment, those that have been counted.
        pictures: of an epoch.

    Raises:
        InputError: a log that no training wrote.
    """
    counted = {run.experiment: run.settings for run in runs if run.experiment in networks}
    gmacs = {
        name: networks[name].gmacs(settings) * settings["schedule"]["batch_size"] for name, settings in counted.items()
    }
    return Workload(todo, pictures, gmacs, {(run.experiment, run.seed): progress(run) for run in runs})

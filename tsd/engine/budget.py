"""What a suite will cost, before it is started: trainings, GPU-hours and disk. Light: a dry run prints it."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tsd.engine.params import KEPT_CHECKPOINTS, Run, Suite
from tsd.engine.upcoming import archives_of, format_upcoming
from tsd.files import read_json
from tsd.report.tables import experiments_of

STATES = {"sgd": 1, "adamw": 2}
"""Tensors of a weight's size that the optimiser keeps."""


def format_budget(suite: Suite, runs: Sequence[Run], shown: dict[str, dict[str, Any]]) -> str:
    """The plan of a suite in a few lines: what is fetched, runs per table, GPU-hours (at most, and as measured), disk.

    Args:
        suite: the suite.
        runs: all its runs.
        shown: the tables that it makes, and the figures, as in ``params/tables.yaml``.
    """
    todo = [run for run in runs if not (_trained(run) or run.metrics_file.exists())]
    lines = format_upcoming(suite)
    lines += [f"suite {suite.name}: {len(suite.experiments)} experiments, {_number(len(suite.seeds), 'seed')}"]
    lines.append(f"  trainings: {len(runs)}, of which {len(runs) - len(todo)} are there and {len(todo)} to be done")
    counted: set[str] = set()
    for name, definition in shown.items():
        wanted = experiments_of(definition) & set(suite.experiments)
        if not wanted:
            continue
        missing = sum(run.experiment in wanted for run in todo)
        shared = len(wanted & counted)
        counted |= wanted
        also = f", {shared} of them also above" if shared else ""
        lines.append(f"    {name}: {_number(len(wanted), 'experiment')}{also}; {missing} to be trained")
    if others := [name for name in suite.experiments if name not in counted]:
        lines.append(f"    in no table or curve: {', '.join(others)}")
    lines += [f"  {line}" for line in (_hours(suite, runs, todo), *_disk(suite, runs))]
    return "\n".join(lines)


def _number(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _trained(run: Run) -> bool:
    return run.checkpoint.exists()


def _hours(suite: Suite, runs: Sequence[Run], todo: Sequence[Run]) -> str:
    """The limit on time is one job's, and a training may need several; finished runs say what it really takes."""
    widths = sorted({_width(run) for run in todo or runs})
    unit = "GPU-hours on" if suite.resources["gpu"] else "hours of"
    what = "GPU" if suite.resources["gpu"] else "process"
    width = f"{' or '.join(map(str, widths))} {what if widths == [1] else f'{what}s' if what == 'GPU' else f'{what}es'}"
    at_limit = sum(_width(run) * run.resources["runtime"] / 60 for run in todo)
    limits = " or ".join(f"{limit / 60:g}" for limit in sorted({run.resources["runtime"] for run in todo or runs}))
    text = (
        f"{unit} {width} each: {at_limit:,.0f} if each of the {len(todo)} trainings takes its job's limit of {limits} h"
    )
    measured = [hours for run in runs if (hours := duration(run)) is not None]
    if measured:
        mean, number = sum(measured) / len(measured), sum(map(_width, todo))
        text += f"; {number * mean:,.1f} by the {len(measured)} that are finished ({mean:.2f} h each)"
    return text


def _width(run: Run) -> int:
    return run.resources["gpu"] or run.processes


def duration(run: Run) -> float | None:
    """Hours from the first start of a finished training to its end."""
    path = run.folder / "status.json"
    if not path.exists():
        return None
    content = read_json(path)
    if content["status"] != "FINISHED" or not content["ended"]:
        return None
    ended, started = (datetime.fromisoformat(content[key]) for key in ("ended", "started"))
    return (ended - started).total_seconds() / 3600


def _disk(suite: Suite, runs: Sequence[Run]) -> list[str]:
    lines = []
    if (known := archives_of(suite)) is not None:
        source, files, _ = known
        size = sum(file.bytes for file in files) + source.picture_bytes * sum(source.pictures.values())
        what = "files and all pictures" if source.picture_bytes else "archives, and as much again unpacked"
        lines.append(f"disk, data: {size / 1e9:,.{0 if size > 1e10 else 1}f} GB of {what} from {source.files_url}")
    path = Path("results", suite.name, "models.json")
    if not path.exists():
        lines.append(f"disk, checkpoints: not known before `tsd inspect --suite {suite.name} --output {path}`")
        return lines
    models = read_json(path)["models"]
    weights = 0.0
    for run in runs:
        if run.experiment in models:
            states = STATES[run.settings["schedule"]["optimizer"]]
            weights += 4e6 * models[run.experiment]["params_m"] * (1 + KEPT_CHECKPOINTS * (1 + states))
    lines.append(
        f"disk, checkpoints: {weights / 1e9:,.1f} GB: of each run the weights, "
        f"and its last {KEPT_CHECKPOINTS} states to go on from"
    )
    return lines

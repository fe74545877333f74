"""What a suite will cost, before it is started: trainings, GPU-hours and disk. Light: a dry run prints it."""

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from tsd.engine.costs import GPUS, Hours, read_speeds, read_workload, training_pictures, width
from tsd.engine.networks import Network, models_path, networks_of
from tsd.engine.params import KEPT_CHECKPOINTS, Run, Suite
from tsd.engine.upcoming import archives_of, format_upcoming, missing_data
from tsd.files import nearest
from tsd.report.tables import experiments_of

STATES = {"sgd": 1, "adamw": 2}
"""Tensors of a weight's size that the optimiser keeps."""

Networks = Mapping[str, Network]
"""By experiment, those that have been counted."""

SHOWN = 4
"""Experiments whose steps are named."""


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
    networks = networks_of(suite)
    lines += [f"  {line}" for line in (*_hours(suite, runs, todo, networks), *_disk(suite, runs, todo, networks))]
    return "\n".join(lines)


def _number(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _trained(run: Run) -> bool:
    return run.checkpoint.exists()


def _hours(suite: Suite, runs: Sequence[Run], todo: Sequence[Run], networks: Networks) -> list[str]:
    """Hours by steps timed here, else by multiply-adds on each kind of GPU, and by the limits of the jobs."""
    count = _number(len(todo), "training")
    if not todo:
        return [f"hours: nothing is left of {_number(len(runs), 'training')}"]
    widths = " or ".join(map(str, sorted({width(run) for run in todo})))
    unit, what = ("GPU-hours", "GPU") if suite.resources["gpu"] else ("hours", "process")
    plural = "" if widths == "1" else "s" if what == "GPU" else "es"
    each = f"{widths} {what}{plural} each"
    pictures = training_pictures(suite, todo[0].data_digest)
    lines = []
    work = None if pictures is None else read_workload(runs, todo, networks, pictures)
    if work and (measured := work.measured()):
        lines.append(f"{unit}, {count} on {each}: {_amount(measured.hours)} by steps timed here ({_timed(measured)})")
    elif work and suite.resources["gpu"] and (estimated := work.estimated(speeds := read_speeds(suite.root))):
        named = ", ".join(f"{_amount(float(f'{hours:.2g}'))} on {gpu}" for gpu, (hours, _) in estimated.items())
        lines.append(f"{unit}, {count} on {each}: about {named}")
        lines.append(f"  estimated from multiply-adds and {GPUS}, ± {speeds.error:.0%}; nothing was timed here yet")
        if least := max(number for _, number in estimated.values()):
            floor = f"{speeds.least_step:g} s, the least that the estimate allows a step"
            lines.append(f"  {_number(least, 'training')} of small networks at {floor}")
    at_limit = sum(width(run) * run.resources["runtime"] / 60 for run in todo)
    limits = " or ".join(_limit(limit) for limit in sorted({run.resources["runtime"] for run in todo}))
    says = f"{_amount(at_limit)} if each fills one job of {limits}; a longer one goes on in a further job"
    lines.append(f"  {says}" if lines else f"{unit}, {count} on {each}: {says}")
    return lines


def _limit(minutes: int) -> str:
    return f"{minutes / 60:g} h" if minutes % 30 == 0 else f"{minutes} min"


def _timed(measured: Hours) -> str:
    shown = [f"{experiment} {seconds:.2f} s" for experiment, seconds in measured.timed.items()]
    text = ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")
    return text + (f", which stand for the {_number(measured.others, 'other')}" if measured.others else "")


def _amount(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"


def data_size(suite: Suite) -> tuple[float, float]:
    """GB that are fetched, and GB that they take once unpacked beside what was fetched; 0 without a source."""
    known = archives_of(suite)
    if known is None:
        return 0.0, 0.0
    source, files, _ = known
    archives = sum(file.bytes for file in files) / 1e9
    pictures = source.picture_bytes * sum(source.pictures.values()) / 1e9
    return archives + pictures, 0.0 if source.picture_bytes else archives


def picture_files(suite: Suite) -> int:
    """Files of pictures that fetching makes; 0 without a source."""
    known = archives_of(suite)
    return sum(known[0].pictures.values()) if known else 0


def checkpoints_size(runs: Sequence[Run], networks: Networks) -> float | None:
    """GB of the weights that runs leave, and of their states to go on from; None: a network has not been counted."""
    if any(run.experiment not in networks for run in runs):
        return None
    states = [STATES[run.settings["schedule"]["optimizer"]] for run in runs]
    sizes = [4e-3 * networks[run.experiment].params_m for run in runs]
    return sum(size * (1 + KEPT_CHECKPOINTS * (1 + state)) for size, state in zip(sizes, states, strict=True))


def to_count(suite: Suite) -> str:
    """The command that counts the suite's networks."""
    return f"tsd inspect --suite {suite.name} --output {models_path(suite)}"


def still_to_come(suite: Suite, todo: Sequence[Run], networks: Networks) -> tuple[float, float | None]:
    """GB of data and of checkpoints that trainings to be done will add; None: a network has not been counted."""
    return sum(data_size(suite)) if missing_data(suite) else 0.0, checkpoints_size(todo, networks)


def _disk(suite: Suite, runs: Sequence[Run], todo: Sequence[Run], networks: Networks) -> list[str]:
    lines = []
    if (known := archives_of(suite)) is not None:
        fetched, unpacked = data_size(suite)
        what = "archives, and as much again unpacked" if unpacked else "files and all pictures"
        lines.append(f"disk, data: {fetched:,.{0 if fetched > 10 else 1}f} GB of {what} from {known[0].files_url}")
    size = checkpoints_size(runs, networks)
    if size is None:
        return [*lines, f"disk, checkpoints: not known before `{to_count(suite)}`"]
    kept = f"of each run the weights, and its last {KEPT_CHECKPOINTS} states to go on from"
    lines.append(f"disk, checkpoints: {size:,.1f} GB: {kept}")
    return lines + _lack(suite, *still_to_come(suite, todo, networks))


def _lack(suite: Suite, data: float, checkpoints: float | None) -> list[str]:
    """A line where the free space of results/ does not hold what is still to come there."""
    places = [nearest(suite.root / name) for name in ("data", "results")]
    results = places[1]
    wanted = (checkpoints or 0.0) + (data if len({place.stat().st_dev for place in places}) == 1 else 0.0)
    free = shutil.disk_usage(results).free / 1e9
    return [f"  too little: {wanted:,.0f} GB are still to come, and {free:,.0f} GB are free"] if free < wanted else []

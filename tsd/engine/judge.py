"""The paper's claims, judged by the figures that are kept beside a suite's metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tsd.engine.identity import data_digest
from tsd.engine.params import Run, Suite, existing_metrics, experiment_names, get_runs
from tsd.engine.published import check_suite
from tsd.errors import InputError
from tsd.evaluation.bootstrap import paired_difference
from tsd.evaluation.draws import SUFFIX, draws_beside, figure_of
from tsd.files import write_text
from tsd.report.claims import (
    Claim,
    Judgement,
    format_claims,
    load_claims,
    paper_difference,
    to_csv,
)
from tsd.report.tables import commit_notes, load_reported, read_run

PARAMS = Path("params")

LEAST_DRAWS = 40
"""Of which one lies outside the interval at each end."""


@dataclass(frozen=True)
class Evidence:
    """A run's metrics file, what it says of its run, and the figures of its draws."""

    path: Path
    run: dict[str, Any]
    draws: pd.DataFrame

    @property
    def key(self) -> tuple[str, int]:
        """(experiment, seed)."""
        return self.run["experiment"], self.run["seed"]


def make_claims(suite: Suite, output: Path, metrics: Sequence[Path] | None = None) -> str:
    """Judge every claim by the draws that are here; writes the page and, beside it, the same as CSV.

    Args:
        suite: whose runs; a claim with an experiment that has no draws says ``not run``.
        output: the Markdown page.
        metrics: metrics files, the draws beside them; None: those that today's params resolve to. With files the
            suite's data need not be here.

    Raises:
        InputError: a suite that is not scored by COCO's metric; broken files; metrics of another suite, two of one
            experiment and seed, runs on other data than the rest, or draws of other predictions than the metrics.
    """
    if output.suffix == ".csv":
        raise InputError(f"{output}: the page is Markdown, with the CSV beside it; expected a name like claims.md")
    digest = data_digest(suite) if metrics is None else None
    files = existing_metrics(get_runs(suite, digest)) if digest else list(metrics or ())
    check_suite(suite.name, files, digest)
    judgements, notes = judge(suite, files)
    text = format_claims(judgements, f"Claims of the paper, judged by suite {suite.name}", notes)
    write_text(output, text)
    write_text(output.with_suffix(".csv"), to_csv(judgements))
    return text


def judge(suite: Suite, files: Sequence[Path]) -> tuple[list[Judgement], list[str]]:
    """A verdict on each claim by the draws beside metrics files, and notes on them; errors as :func:`make_claims`."""
    if suite.is_openimages:
        raise InputError(
            f"tsd claims: {suite.name}: the claims are about COCO's AP; this suite has Open Images' metric"
        )
    reported = load_reported(PARAMS)
    claims = load_claims(PARAMS, experiment_names())
    with_draws = [path for path in files if path.with_suffix(SUFFIX).exists()]
    for path in (path for path in files if path not in with_draws):
        _run_of(suite, path)
    runs = _read(suite, with_draws)
    judgements = [_judge(claim, paper_difference(claim, reported), runs) for claim in claims]
    return judgements, _notes(suite, runs, judgements, len(files) - len(with_draws))


def _read(suite: Suite, files: Sequence[Path]) -> dict[tuple[str, int], Evidence]:
    """The runs by experiment and seed; all of one suite, on the same data, with as many draws."""
    found: dict[tuple[str, int], Evidence] = {}
    first: Evidence | None = None
    for path in files:
        run = _run_of(suite, path)
        own = Evidence(path, run, draws_beside(path))
        first = first or own
        if own.key in found:
            raise InputError(f"{path}: the same experiment and seed as {found[own.key].path}; remove one of them")
        for name in ("data_digest", "test_digest"):
            if run[name] != first.run[name]:
                raise InputError(f"{path}: {name} {run[name]} is not that of {first.path}: {first.run[name]}")
        if len(own.draws) != len(first.draws):
            raise InputError(
                f"{path.with_suffix(SUFFIX)}: {len(own.draws) - 1} draws, {first.path.with_suffix(SUFFIX)} has "
                f"{len(first.draws) - 1}; make both with the same number"
            )
        if len(own.draws) - 1 < LEAST_DRAWS:
            few = f"{path.with_suffix(SUFFIX)}: {len(own.draws) - 1} draws"
            raise InputError(f"{few}; an interval of 95 % takes {LEAST_DRAWS} at least")
        found[own.key] = own
    return found


def _run_of(suite: Suite, path: Path) -> dict[str, Any]:
    """What a metrics file says of its run, which must be one of the suite."""
    run = read_run(path)
    if run["suite"] != suite.name:
        raise InputError(f"{path}: of suite {run['suite']}; expected {suite.name}")
    return run


def _judge(claim: Claim, paper: float | None, runs: dict[tuple[str, int], Evidence]) -> Judgement:
    """By the seeds that both experiments have been trained with."""
    of_both = {name: {seed for experiment, seed in runs if experiment == name} for name in (claim.more, claim.less)}
    seeds = tuple(sorted(of_both[claim.more] & of_both[claim.less]))
    if not seeds:
        return Judgement(claim, paper)
    more, less = (
        [figure_of(claim.figure, runs[name, seed].draws) for seed in seeds] for name in (claim.more, claim.less)
    )
    found = paired_difference(more, less)
    return Judgement(claim, paper, found.value, found.low, found.high, seeds)


def _notes(
    suite: Suite, runs: dict[tuple[str, int], Evidence], judgements: Sequence[Judgement], without: int
) -> list[str]:
    notes = [f"Measured on suite {suite.name} ({suite.description}); the paper's differences are for COCO minival."]
    if without:
        notes.append(f"Not judged: {without} runs whose metrics are here without their draws (`*{SUFFIX}`).")
    judged = {(name, seed) for item in judgements for name in (item.claim.more, item.claim.less) for seed in item.seeds}
    if not judged:
        return notes
    draws = len(next(iter(runs.values())).draws) - 1
    notes.append(
        "Interval: paired bootstrap over validation pictures and over trainings (by seed), 2.5th to 97.5th "
        f"percentile of {draws} draws; of one training each, over pictures alone."
    )
    notes.append("Supported, contradicted: the whole interval is on that side of zero.")
    if any("lost_" in item.claim.figure or item.claim.figure == "agreement" for item in judgements if item.seeds):
        notes.append(
            "lost_*: AP50 lost to a kind of error (TIDE). Agreement: 100 times the rank correlation of score and IoU "
            "over detections that match an object."
        )
    if any("_tail" in item.claim.figure for item in judgements if item.seeds):
        notes.append("Tail: the half of the classes that are in the fewest training pictures.")
    others = sorted(name for name, seed in judged if _settings_changed(suite, runs[name, seed]))
    if others:
        notes.append(f"Made with other settings than those of today's params: {', '.join(dict.fromkeys(others))}.")
    return notes + commit_notes(pd.DataFrame([runs[key].run for key in sorted(judged)]))


def _settings_changed(suite: Suite, found: Evidence) -> bool:
    name, seed = found.key
    if name not in suite.settings:
        return True
    run = Run(suite, name, seed, found.run["data_digest"])
    return (run.digest, run.test_digest) != (found.run["digest"], found.run["test_digest"])


def intervals(files: Sequence[Path], figures: Sequence[str]) -> dict[tuple[str, str], tuple[float, float]]:
    """95 % intervals, fractions, of figures by experiment, over pictures and trainings, where the draws are here.

    Args:
        files: metrics files of one suite.
        figures: as :func:`tsd.evaluation.draws.figure_of` takes them.
    """
    by_experiment: dict[str, list[pd.DataFrame]] = {}
    for path in files if figures else ():
        if path.with_suffix(SUFFIX).exists():
            by_experiment.setdefault(read_run(path)["experiment"], []).append(draws_beside(path))
    result = {}
    for experiment, several in by_experiment.items():
        for figure in figures:
            values = [figure_of(figure, draws) for draws in several]
            found = paired_difference(values, [np.zeros_like(value) for value in values])
            if not np.isnan(found.low):
                result[experiment, figure] = (found.low, found.high)
    return result

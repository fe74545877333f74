"""The paper's claims, judged by a suite's own predictions."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from tsd.data.coco import read_coco
from tsd.engine.identity import data_digest
from tsd.engine.params import Run, Suite, get_runs
from tsd.errors import InputError
from tsd.evaluation.bootstrap import match, paired_difference, rarer_half, resample
from tsd.files import read_json, read_yaml, write_text
from tsd.report.claims import (
    Claim,
    Judgement,
    figure_of,
    format_claims,
    is_of_tail,
    load_claims,
    paper_difference,
    to_csv,
)
from tsd.report.tables import commit_notes, load_reported

PARAMS = Path("params")


def make_claims(suite: Suite, output: Path, draws: int = 1000) -> str:
    """Judge every claim by the predictions that are here; writes the page and, beside it, the same as CSV.

    Args:
        suite: whose runs; a claim with an experiment that has no predictions says ``not run``.
        output: the Markdown page.
        draws: of each bootstrap.

    Raises:
        InputError: a suite that is not scored by COCO's metric, predictions that are not those of the run's metrics, or
            broken annotations.
    """
    if suite.is_openimages:
        raise InputError(
            f"tsd claims: {suite.name}: the claims are about COCO's AP; this suite has Open Images' metric"
        )
    if output.suffix == ".csv":
        raise InputError(f"{output}: the page is Markdown, with the CSV beside it; expected a name like claims.md")
    reported = load_reported(PARAMS)
    claims = load_claims(PARAMS, list(read_yaml(PARAMS / "experiments.yaml")["experiments"]))
    every = get_runs(suite, data_digest(suite))
    runs: dict[tuple[str, int], Run] = {(run.experiment, run.seed): run for run in every if run.predictions.exists()}
    elsewhere = sum(run.metrics_file.exists() and not run.predictions.exists() for run in every)
    wanted = {name for claim in claims for name in (claim.more, claim.less)}
    truth = read_coco(suite.split("val")[0]) if any(name in wanted for name, _ in runs) else {}
    drawn: dict[tuple[str, int], np.ndarray] = {}

    def table(name: str, seed: int) -> np.ndarray:
        if (name, seed) not in drawn:
            _check_predictions(runs[name, seed])
            drawn[name, seed] = resample(match(truth, runs[name, seed].predictions), draws)
        return drawn[name, seed]

    tail = None
    if any(is_of_tail(claim.figure) and _seeds(claim, suite, runs) for claim in claims):
        trained = read_coco(suite.split("train")[0])
        if {entry["id"] for entry in trained["categories"]} != {entry["id"] for entry in truth["categories"]}:
            raise InputError(f"{suite.split('val')[0]}: other categories than in {suite.split('train')[0]}")
        tail = rarer_half(trained)
    judgements = []
    for claim in claims:
        paper = paper_difference(claim, reported)
        seeds = _seeds(claim, suite, runs)
        if not seeds:
            judgements.append(Judgement(claim, paper))
            continue
        more, less = ([table(name, seed) for seed in seeds] for name in (claim.more, claim.less))
        found = paired_difference(more, less, figure_of(claim.figure, tail))
        judgements.append(Judgement(claim, paper, found.value, found.low, found.high, seeds))
    number = max((len(judged.seeds) for judged in judgements), default=0)
    notes = [f"Measured on suite {suite.name} ({suite.description}); the paper's differences are for COCO minival."]
    if elsewhere:
        notes.append(f"Not judged: {elsewhere} runs whose metrics are here and whose predictions are not.")
    if number:
        notes.append(
            "Interval: paired bootstrap over validation pictures and over trainings (by seed), 2.5th to 97.5th "
            f"percentile of {draws} draws; of one training each, over pictures alone."
        )
        notes.append("Supported, contradicted: the whole interval is on that side of zero.")
        if tail is not None:
            notes.append("Tail: the half of the classes that are in the fewest training pictures.")
        judged = {
            (name, seed) for item in judgements for name in (item.claim.more, item.claim.less) for seed in item.seeds
        }
        facts = [read_json(runs[key].folder / "environment.json") for key in sorted(judged)]
        notes += commit_notes(pd.DataFrame(facts))
    text = format_claims(judgements, f"Claims of the paper, judged by suite {suite.name}", notes)
    write_text(output, text)
    write_text(output.with_suffix(".csv"), to_csv(judgements))
    return text


def _check_predictions(run: Run) -> None:
    if not run.metrics_file.exists():
        return
    expected = read_json(run.metrics_file)["run"]["predictions_sha256"]
    if hashlib.sha256(run.predictions.read_bytes()).hexdigest() != expected:
        raise InputError(
            f"{run.predictions}: changed since {run.metrics_file} was made of it; remove it to predict anew"
        )


def _seeds(claim: Claim, suite: Suite, runs: dict[tuple[str, int], Run]) -> tuple[int, ...]:
    """Seeds with which both experiments have been trained."""
    return tuple(seed for seed in suite.seeds if {(claim.more, seed), (claim.less, seed)} <= set(runs))

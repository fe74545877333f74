"""A run's figures on all pictures and on each draw of a bootstrap: what verdicts need of its predictions, as text.

A table of 1,001 lines that is kept beside the run's metrics. All runs on the same pictures have the same draws, so
that differences between runs, and their intervals, follow from the tables alone.
"""

import csv
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tsd.errors import InputError
from tsd.evaluation.bootstrap import (
    THRESHOLDS,
    Array,
    Hits,
    average_precision,
    draw_weights,
    match_and_hits,
    mean_over_classes,
    rarer_half,
)
from tsd.evaluation.coco import read_predictions
from tsd.evaluation.kinds import KINDS, lost_to_kinds, match_kinds
from tsd.files import read_json, write_text

DRAWS = 1000
UNIT = 1e-5
"""Of the numbers in the file: a thousandth of a percent point."""

AT_IOU = tuple(f"AP{round(100 * value)}" for value in THRESHOLDS)
OF_TAIL = tuple(f"{name}_tail" for name in AT_IOU)
LOST = tuple(f"lost_{kind}" for kind in KINDS)
COLUMNS = (*AT_IOU, *OF_TAIL, "agreement", *LOST)
"""AP at each IoU threshold; the same over the rarer half of the classes; rank correlation of score and IoU; AP50 lost
to each kind of error."""

SUFFIX = ".draws.csv"


def draw_figures(
    truth: Mapping[str, Any],
    predictions: Path | list[dict[str, Any]],
    trained: Mapping[str, Any] | None = None,
    draws: int = DRAWS,
) -> pd.DataFrame:
    """Columns :data:`COLUMNS`, fractions; the first line of all pictures, then a line for each draw.

    Args:
        truth: COCO instances.
        predictions: COCO results of boxes, a file or its content.
        trained: COCO instances of the training, which say what classes are rare; None: the tail's columns are NaN.
        draws: of as many pictures with replacement.

    Raises:
        InputError: predictions that are no COCO results of the annotations, or other categories in ``trained``.
    """
    tail = None
    if trained is not None:
        if {entry["id"] for entry in trained["categories"]} != {entry["id"] for entry in truth["categories"]}:
            raise InputError("the training annotations have other categories than the annotations")
        tail = rarer_half(trained)
    results = read_predictions(predictions, truth, "bbox")
    matches, hits = match_and_hits(truth, results)
    kinds = match_kinds(truth, results)
    lines = []
    for weights in draw_weights(matches.pictures, draws):
        precision = average_precision(matches, weights)
        rare = np.full(len(THRESHOLDS), np.nan) if tail is None else mean_over_classes(precision, tail)
        lost = lost_to_kinds(kinds, weights)
        lines.append([*mean_over_classes(precision), *rare, agreement(hits, weights), *(lost[kind] for kind in KINDS)])
    return pd.DataFrame(lines, columns=list(COLUMNS))


def agreement(hits: Hits, weights: Array | None = None) -> float:
    """Spearman's rank correlation of the class score with the IoU, over detections that match an object at IoU 0.5.

    NaN where there are fewer than two, or all scores or all IoUs are equal.

    Args:
        hits: of :func:`tsd.evaluation.bootstrap.match_and_hits`.
        weights: (P,) how often each picture counts; None: once.
    """
    from scipy.stats import spearmanr  # takes a while to import

    number = len(hits.picture)
    chosen = np.arange(number) if weights is None else np.repeat(np.arange(number), weights[hits.picture])
    score, iou = hits.score[chosen], hits.iou[chosen]
    if len(chosen) < 2 or np.ptp(score) == 0 or np.ptp(iou) == 0:
        return float("nan")
    return float(spearmanr(score, iou).statistic)


def write_draws(figures: pd.DataFrame, path: Path) -> None:
    """A line per draw, whole numbers of :data:`UNIT`, nothing for NaN."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(figures.columns)
    for line in figures.to_numpy():
        writer.writerow("" if np.isnan(value) else round(value / UNIT) for value in line)
    write_text(path, text.getvalue())


def read_draws(path: Path) -> pd.DataFrame:
    """What :func:`write_draws` wrote, as fractions.

    Raises:
        InputError: missing file, other columns, or a value that is no whole number; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if not text:
            raise InputError(f"{path}: is empty; make it anew")
        frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; make it anew") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None
    commas = [line.count(",") for line in text.splitlines()]
    if not text.endswith("\n") or set(commas) != {len(COLUMNS) - 1}:
        short = next((number for number, count in enumerate(commas, start=1) if count != len(COLUMNS) - 1), len(commas))
        raise InputError(f"{path}: line {short}: is cut off or has other columns; make the file anew")
    if tuple(frame.columns) != COLUMNS:
        raise InputError(f"{path}: expected the columns {','.join(COLUMNS)}")
    odd = frame.map(lambda text: re.fullmatch(r"-?\d*", text) is None or text == "-")
    if odd.any(axis=None):
        row, column = (int(places[0]) for places in np.nonzero(odd.to_numpy()))
        raise InputError(
            f"{path}: line {row + 2}: {COLUMNS[column]}: expected a whole number, got {frame.iat[row, column]!r}"
        )
    if len(frame) < 2:
        raise InputError(f"{path}: expected a line of all pictures and one for each draw, got {len(frame)} lines")
    values = frame.replace("", np.nan).astype(float) * UNIT
    if ((values.abs() > 1) | (values[[*AT_IOU, *OF_TAIL]] < 0)).any(axis=None):
        raise InputError(f"{path}: a figure is out of its range: expected up to {round(1 / UNIT)}, in units of {UNIT}")
    return values


def draws_beside(metrics: Path) -> pd.DataFrame:
    """The draws beside a metrics file, ``<its name>.draws.csv``.

    Raises:
        InputError: as :func:`read_draws`, or they are of other predictions than the metrics.
    """
    path = metrics.with_suffix(SUFFIX)
    draws = read_draws(path)
    content = read_json(metrics)
    figures = content.get("metrics") if isinstance(content, dict) else None
    for name in ("AP", "AP50", "AP75"):
        published = figures.get(name) if isinstance(figures, dict) else math.nan
        if not isinstance(published, int | float | None) or math.isnan(published or 0):
            raise InputError(f"{metrics}: not the metrics of a run: metrics.{name}: expected a number or null")
        value = figure_of(name, draws)[0]
        if published is not None and not abs(published - value) <= UNIT:
            raise InputError(
                f"{path}: {name} {value:.5f} on all pictures, {metrics} says {published:.5f}: one of them was "
                "edited, or they are of different predictions or annotations; make both anew"
            )
    return draws


def figure_of(name: str, draws: pd.DataFrame) -> Array:
    """(draws + 1,) a figure on all pictures and on each draw.

    Args:
        name: ``AP``, a column of :data:`COLUMNS`, ``AP_tail``, or a difference of two of these.
        draws: of :func:`read_draws`.

    Raises:
        ValueError: an unknown figure.
    """
    parts = [_one_figure(part, draws) for part in split_figure(name)]
    return parts[0] if len(parts) == 1 else parts[0] - parts[1]


def split_figure(name: str) -> list[str]:
    """A figure's name, or the two of a difference.

    Raises:
        ValueError: an unknown figure.
    """
    parts = name.split(" - ")
    if len(parts) > 2 or not set(parts) <= {"AP", "AP_tail", *COLUMNS}:
        raise ValueError(
            f"expected AP, AP50, AP55 … AP95, one of these with _tail, agreement, {', '.join(LOST)}, or a difference "
            f"of two, got {name!r}"
        )
    return parts


def _one_figure(name: str, draws: pd.DataFrame) -> Array:
    several = {"AP": AT_IOU, "AP_tail": OF_TAIL}
    if name in several:
        return draws[list(several[name])].to_numpy().mean(axis=1)
    return draws[name].to_numpy()

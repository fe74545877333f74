"""How sure a difference between two detectors is: a paired bootstrap over pictures and over trainings.

Detections are matched to objects once; a resampled set of pictures then only changes how much each picture counts. A
picture that is drawn twice counts as two pictures with the same content do in pycocotools.
"""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsd.evaluation.coco import _plain, read_predictions

Array = np.ndarray

RECALLS = np.linspace(0, 1, 101)
"""Where COCO reads the precision."""

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's IoU thresholds."""


@dataclass(frozen=True)
class ClassMatches:
    """Detections of one class, best score first, and its objects.

    Attributes:
        picture: (D,) index of each detection's picture.
        true: by IoU threshold, places of the detections that match an object, rising.
        neither: by IoU threshold, places of those that match a crowd, rising; all others are false.
        objects: (P,) objects of each picture that count.
    """

    picture: Array
    true: tuple[Array, ...]
    neither: tuple[Array, ...]
    objects: Array


@dataclass(frozen=True)
class Matches:
    """A detector's detections on a set of pictures, matched as COCO does (all sizes, 100 per picture)."""

    pictures: int
    classes: tuple[ClassMatches, ...]


@dataclass(frozen=True)
class Hits:
    """Detections of all classes that match an object at IoU 0.5: index of the picture, score and IoU, (N,) each."""

    picture: Array
    score: Array
    iou: Array


def match(truth: Mapping[str, Any], predictions: Path | list[dict[str, Any]]) -> Matches:
    """Match COCO results of boxes to COCO instances with pycocotools.

    Raises:
        InputError: predictions that are no COCO results of the annotations.
    """
    return match_and_hits(truth, predictions)[0]


def match_and_hits(truth: Mapping[str, Any], predictions: Path | list[dict[str, Any]]) -> tuple[Matches, Hits]:
    """:func:`match`, and how well its true detections fit."""
    evaluation = _evaluated(truth, predictions)
    number = len(evaluation.params.imgIds)
    classes, hits = [], [np.zeros((3, 0))]
    for place in range(len(evaluation.params.catIds)):
        entries = evaluation.evalImgs[place * number : (place + 1) * number]
        classes.append(_class_matches(entries))
        hits += [_hits(evaluation, index, entry) for index, entry in enumerate(entries) if entry is not None]
    picture, score, iou = np.concatenate(hits, axis=1)
    return Matches(number, tuple(classes)), Hits(picture.astype(np.int64), score, iou)


def _hits(evaluation: Any, index: int, entry: dict[str, Any]) -> Array:
    """(3, N) picture, score and IoU of one picture's true detections of one class at the first threshold."""
    matched = np.asarray(entry["dtMatches"]).reshape(len(THRESHOLDS), -1)[0]
    ignored = np.asarray(entry["dtIgnore"]).reshape(len(THRESHOLDS), -1)[0] > 0
    places = np.flatnonzero((matched > 0) & ~ignored)
    key = (entry["image_id"], entry["category_id"])
    columns = {int(gt["id"]): column for column, gt in enumerate(evaluation._gts[key])}
    overlaps = np.asarray(evaluation.ious[key])
    ious = [overlaps[place, columns[int(matched[place])]] for place in places]
    return np.array([np.full(len(places), index), np.asarray(entry["dtScores"], dtype=float)[places], ious])


def _evaluated(truth: Mapping[str, Any], predictions: Path | list[dict[str, Any]]) -> Any:
    """pycocotools' evaluation of boxes of all sizes, its pictures matched."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = read_predictions(predictions, truth, "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        index, found = COCO(), COCO()
        index.dataset = _plain(truth)
        index.createIndex()
        if results:
            found = index.loadRes([dict(result) for result in results])
        else:
            found.dataset = {**index.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(index, found, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    return evaluation


def _class_matches(pictures: Sequence[dict[str, Any] | None]) -> ClassMatches:
    objects = np.zeros(len(pictures), dtype=np.int64)
    scores, owners, hits, ignored = [np.zeros(0)], [np.zeros(0, np.int64)], [], []
    empty = np.zeros((len(THRESHOLDS), 0), dtype=bool)
    hits.append(empty)
    ignored.append(empty)
    for place, entry in enumerate(pictures):
        if entry is None:
            continue
        objects[place] = int((np.asarray(entry["gtIgnore"]) == 0).sum())
        scores.append(np.asarray(entry["dtScores"], dtype=float))
        owners.append(np.full(len(entry["dtScores"]), place))
        hits.append(np.asarray(entry["dtMatches"]).reshape(len(THRESHOLDS), -1) > 0)
        ignored.append(np.asarray(entry["dtIgnore"]).reshape(len(THRESHOLDS), -1) > 0)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    hit, skip = np.concatenate(hits, axis=1)[:, order], np.concatenate(ignored, axis=1)[:, order]
    true, neither = (tuple(np.flatnonzero(row) for row in rows) for rows in (hit & ~skip, skip))
    return ClassMatches(np.concatenate(owners)[order], true, neither, objects)


def average_precision(matches: Matches, weights: Array | None = None) -> Array:
    """(C, T) average precision by class, in the order of the category ids, and IoU threshold.

    Args:
        matches: of a detector.
        weights: (P,) how often each picture counts; None: once.

    Returns:
        Fractions; NaN for a class of which no picture that counts has an object.
    """
    weights = np.ones(matches.pictures, dtype=np.int64) if weights is None else weights
    return np.stack([_class_precision(part, weights) for part in matches.classes])


def mean_over_classes(precision: Array, classes: Array | None = None) -> Array:
    """(..., C, T) average precision → (..., T): mean over the classes that have an object, NaN where none has.

    Args:
        precision: of :func:`average_precision` or :func:`resample`.
        classes: places of those that count; None: all.
    """
    chosen = precision if classes is None else precision[..., classes, :]
    measured = ~np.isnan(chosen)
    with np.errstate(invalid="ignore"):
        return np.where(measured, chosen, 0.0).sum(axis=-2) / measured.sum(axis=-2)


def rarer_half(truth: Mapping[str, Any]) -> Array:
    """Places, in the order of the category ids, of the half of the classes that are in the fewest pictures.

    The smaller half of an odd number; of two classes in as many pictures the one with the higher id is the rarer. A
    crowd does not count.

    Args:
        truth: COCO instances that were trained on.
    """
    ids = sorted(category["id"] for category in truth["categories"])
    found = {(entry["category_id"], entry["image_id"]) for entry in truth["annotations"] if not entry.get("iscrowd")}
    counts = Counter(label for label, _ in found)
    order = sorted(range(len(ids)), key=lambda place: (counts[ids[place]], -place))
    return np.array(sorted(order[: len(ids) // 2]), dtype=np.int64)


def _class_precision(part: ClassMatches, weights: Array) -> Array:
    """(T,) of one class. Recall rises, and precision is highest, at true detections: the others are only counted."""
    objects = weights @ part.objects
    if not objects:
        return np.full(len(part.true), np.nan)
    own = weights[part.picture]
    seen = np.cumsum(own)
    result = np.empty(len(part.true))
    for row, (true, neither) in enumerate(zip(part.true, part.neither, strict=True)):
        found = np.cumsum(own[true])
        skipped = np.concatenate(([0], np.cumsum(own[neither])))[np.searchsorted(neither, true)]
        precision = found / (seen[true] - skipped + np.spacing(1))
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(found / objects, RECALLS, side="left")
        result[row] = precision[places[places < len(precision)]].sum() / len(RECALLS)
    return result


@dataclass(frozen=True)
class Difference:
    """A difference of two detectors' figures and its 95 % confidence interval; NaN without objects."""

    value: float
    low: float
    high: float


def draw_weights(pictures: int, draws: int, seed: int = 0) -> Iterator[Array]:
    """How often each picture counts: once, then in each draw of as many pictures with replacement.

    With the same seed, all detectors on the same pictures get the same draws.
    """
    yield np.ones(pictures, dtype=np.int64)
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(rng.integers(pictures, size=pictures), minlength=pictures)


def resample(matches: Matches, draws: int, seed: int = 0) -> Array:
    """(draws + 1, C, T) average precision: of all pictures, then of each of the :func:`draw_weights`."""
    return np.stack([average_precision(matches, weights) for weights in draw_weights(matches.pictures, draws, seed)])


def paired_difference(more: Sequence[Array], less: Sequence[Array], *, seed: int = 0) -> Difference:
    """Bootstrap of the mean difference between two detectors, each trained with the same seeds.

    Each draw takes pictures with replacement, the same for all trainings, and pairs of trainings with replacement. The
    interval is between the 2.5th and the 97.5th percentile. A plain bootstrap of n trainings shows (n - 1) / n of
    their variance: the deviations of the pairs from their mean are widened to make up for it. One pair has none; the
    interval is then over pictures alone.

    Args:
        more: by training, a detector's figure (draws + 1,): on all pictures, then on each draw.
        less: the other's, of the same seeds of training, with the same draws; zeros for the figure's own interval.
        seed: of the draws of trainings.

    Raises:
        ValueError: no pairs, not as many trainings of one as of the other, or other draws.
    """
    if not more or len(more) != len(less):
        raise ValueError(f"expected the same trainings of both, got {len(more)} and {len(less)}")
    if len({table.shape for table in (*more, *less)}) != 1:
        raise ValueError("expected the same draws for all trainings")
    gains = np.stack([a - b for a, b in zip(more, less, strict=True)], axis=1)
    value, gains = gains[0].mean(), gains[1:]
    number = gains.shape[1]
    means = gains.mean(axis=1, keepdims=True)
    if number > 1:
        gains = means + (gains - means) * np.sqrt(number / (number - 1))
    pairs = np.random.default_rng(seed).integers(number, size=gains.shape)
    values = np.take_along_axis(gains, pairs, axis=1).mean(axis=1)
    if np.isnan(values).all():
        return Difference(float(value), math.nan, math.nan)
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return Difference(float(value), float(low), float(high))

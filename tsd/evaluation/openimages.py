"""The Open Images Challenge's detection metric (AP at IoU 0.5, mean over classes), as the reference computes it.

Reference: ``tensorflow/models``, ``research/object_detection``: ``OpenImagesChallengeEvaluator`` and
``oid_hierarchical_labels_expansion``. In each class and picture

1. a detection is a true positive if the box that it overlaps most, groups aside, has IoU >= 0.5 and was not claimed by
   a better detection; there is no second choice;
2. of the others, one that lies to at least half in a group box (intersection over its own area) is absorbed by the
   group that it lies in most: it is no false positive, and each group that absorbed one counts once, with their best
   score and with ``group_of_weight``;
3. a detection of a class that is neither in the picture's boxes nor verified for it is left out.

The number of objects is that of single boxes plus ``group_of_weight`` times that of groups. Nothing here loops over
pictures: within a class every step is an operation on whole arrays. Equal scores are ordered by picture, then by place
in the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsd.data.openimages import Array, Hierarchy, Table, expand, read_boxes, read_classes, read_hierarchy, read_labels
from tsd.errors import InputError

METRICS = ("AP50_val", "AP50_val_boxed")
"""Over all pictures, and over those with a box."""

PROTOCOLS = ("official", "released")
"""``released``: Sense-X/TSD's evaluator, which forgets the image-level labels: a detection counts only if its class has
a box in the picture, or is the first class. Its figures are higher, and comparable to the released README only."""

IOU = 0.5


@dataclass(frozen=True)
class Truth:
    """Boxes: picture (N,), label (N,), box (N, 4) xyxy and whether it is around a group (N,)."""

    picture: Array
    label: Array
    box: Array
    group: Array


@dataclass(frozen=True)
class Detections:
    """Detections: picture (N,), label (N,), box (N, 4) xyxy and score (N,)."""

    picture: Array
    label: Array
    box: Array
    score: Array


def evaluate(
    truth: Truth,
    detections: Detections,
    verified: tuple[Array, Array],
    num_classes: int,
    *,
    group_of_weight: float = 1.0,
) -> dict[str, Array]:
    """Average precision of each class; everything has been expanded to ancestors before.

    Args:
        truth: boxes.
        detections: any order.
        verified: (picture, label) pairs that people looked at; detections of other pairs without a box are left out.
        num_classes: labels are 0 … num_classes − 1.
        group_of_weight: of a group box, 1 in the challenge.

    Returns:
        ``ap`` (C,), NaN without an object; ``objects`` (C,), groups weighted; ``counted`` (C,) detections that count.
    """
    known = np.unique(np.concatenate((_pair(truth.picture, truth.label, num_classes), _pair(*verified, num_classes))))
    sides = detections.box[:, 2:] - detections.box[:, :2]
    kept = np.isin(_pair(detections.picture, detections.label, num_classes), known) & (sides > 0).all(axis=1)
    chosen = np.flatnonzero(kept)
    order = np.lexsort((chosen, detections.picture[chosen], -detections.score[chosen], detections.label[chosen]))
    chosen = chosen[order]
    gt_order = np.lexsort((truth.picture, truth.label))
    bounds = np.searchsorted(detections.label[chosen], np.arange(num_classes + 1))
    gt_bounds = np.searchsorted(truth.label[gt_order], np.arange(num_classes + 1))
    result = {name: np.zeros(num_classes) for name in ("ap", "objects", "counted")}
    for label in range(num_classes):
        own = chosen[bounds[label] : bounds[label + 1]]
        gt = gt_order[gt_bounds[label] : gt_bounds[label + 1]]
        groups, singles = gt[truth.group[gt]], gt[~truth.group[gt]]
        objects = len(singles) + group_of_weight * len(groups)
        result["objects"][label], result["counted"][label] = objects, len(own)
        scores, hits = _entries(detections, own, truth, singles, groups, group_of_weight)
        result["ap"][label] = average_precision(scores, hits, objects)
    return result


def _pair(picture: Array, label: Array, num_classes: int) -> Array:
    return picture.astype(np.int64) * num_classes + label


def _entries(
    detections: Detections, own: Array, truth: Truth, singles: Array, groups: Array, weight: float
) -> tuple[Array, Array]:
    """Scores and hits (1, 0, or a group's weight) of one class; ``own`` by falling score."""
    picture, box = detections.picture[own], detections.box[own]
    best, overlap = _best(picture, box, truth.picture[singles], truth.box[singles], "iou")
    claims = np.flatnonzero(overlap >= IOU)
    hits = np.zeros(len(own))
    hits[claims[np.unique(best[claims], return_index=True)[1]]] = 1.0  # the first, and so the best, of each box
    rest = np.flatnonzero(hits == 0)
    group, inside = _best(picture[rest], box[rest], truth.picture[groups], truth.box[groups], "ioa")
    absorbed = np.flatnonzero(inside >= IOU)
    first = absorbed[np.unique(group[absorbed], return_index=True)[1]]
    group_scores = detections.score[own[rest[first]]]
    group_scores = group_scores[group_scores > 0] if weight > 0 else group_scores[:0]
    alone = np.ones(len(own), dtype=bool)
    alone[rest[absorbed]] = False
    scores = np.concatenate((detections.score[own[alone]], group_scores))
    return scores, np.concatenate((hits[alone], np.full(len(group_scores), weight)))


def _best(picture: Array, box: Array, gt_picture: Array, gt_box: Array, measure: str) -> tuple[Array, Array]:
    """(N,) place of the box of the same picture that fits each detection best, and how well; −1 and 0 without one.

    ``gt_picture`` rises. ``iou``, or ``ioa``: intersection over the detection's area.
    """
    start = np.searchsorted(gt_picture, picture, side="left")
    counts = np.searchsorted(gt_picture, picture, side="right") - start
    best, value = np.full(len(picture), -1, dtype=np.int64), np.zeros(len(picture))
    some = np.flatnonzero(counts)
    if len(some) == 0:
        return best, value
    counts = counts[some]
    ends = np.cumsum(counts)
    firsts = ends - counts
    place = np.repeat(start[some] - firsts, counts) + np.arange(ends[-1])
    values = _overlap(np.repeat(box[some], counts, axis=0), gt_box[place], measure)
    top = np.maximum.reduceat(values, firsts)
    is_top = np.flatnonzero(values == np.repeat(top, counts))
    best[some] = place[is_top[np.searchsorted(is_top, firsts)]]
    value[some] = top
    return best, value


def _overlap(first: Array, second: Array, measure: str) -> Array:
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    common = np.clip(sides, 0, None).prod(axis=1)
    area = (first[:, 2:] - first[:, :2]).prod(axis=1)
    if measure == "ioa":
        return common / area
    return common / (area + (second[:, 2:] - second[:, :2]).prod(axis=1) - common)


def average_precision(scores: Array, hits: Array, objects: float) -> float:
    """Area below the monotone envelope of precision over recall (VOC 2010), NaN without objects.

    Args:
        scores: (N,) in any order; equal ones count in the order given.
        hits: (N,) weight of a true positive, 0 for a false one.
        objects: number of objects, groups weighted.
    """
    if objects == 0:
        return float("nan")
    hits = hits[np.argsort(-scores, kind="stable")]
    true, false = np.cumsum(hits), np.cumsum(hits <= 0)
    if len(hits) == 0:
        return 0.0
    precision = np.maximum.accumulate((true / (true + false))[::-1])[::-1]
    return float(np.sum(np.diff(true / objects, prepend=0.0) * precision))


def evaluate_files(
    boxes: Path,
    image_labels: Path,
    classes: Path,
    hierarchy: Path,
    predictions: Path,
    *,
    protocol: str = "official",
    group_of_weight: float = 1.0,
    expand_predictions: bool = False,
) -> dict[str, Any]:
    """``metrics.json`` of a predictions file, from the challenge's own files, which are expanded here.

    Args:
        boxes: ``challenge-2019-validation-detection-bbox.csv``.
        image_labels: ``challenge-2019-validation-detection-human-imagelabels.csv``.
        classes: ``challenge-2019-classes-description-500.csv``.
        hierarchy: ``challenge-2019-label500-hierarchy.json``.
        predictions: ImageID, LabelName, Score, XMin, XMax, YMin, YMax.
        protocol: one of :data:`PROTOCOLS`.
        group_of_weight: see :func:`evaluate`.
        expand_predictions: give each detection to its ancestors too; the official evaluator does not.

    Returns:
        ``metrics``: ``AP50_val`` over all pictures of both files and ``AP50_val_boxed`` over those with a box, as
        fractions; ``classes``: AP, objects and detections of each; ``counts``: pictures, boxes, and what was left out.

    Raises:
        InputError: an unknown protocol, a weight that is not from 0 to 1, or a file that can't be used; names file,
            row and value.
    """
    return compare_files(
        boxes,
        image_labels,
        classes,
        hierarchy,
        predictions,
        protocols=[protocol],
        group_of_weight=group_of_weight,
        expand_predictions=expand_predictions,
    )


def compare_files(
    boxes: Path,
    image_labels: Path,
    classes: Path,
    hierarchy: Path,
    predictions: Path,
    *,
    protocols: Sequence[str],
    group_of_weight: float = 1.0,
    expand_predictions: bool = False,
) -> dict[str, Any]:
    """As :func:`evaluate_files` by the first protocol; ``protocols`` adds the figures by each further one.

    Their ``metrics`` have the protocol's name behind theirs: ``AP50_val_released``.
    """
    found = read_boxes(predictions, read_classes(classes)[0], scores=True)
    truth = ground_truth(boxes, image_labels, classes, hierarchy)
    detections = _detections(found, truth.pictures)
    first, *others = (
        score(truth, detections, protocol=name, group_of_weight=group_of_weight, expand_predictions=expand_predictions)
        for name in protocols
    )
    first["protocols"] = {}
    for figures in others:
        name = figures["protocol"]["name"]
        first["protocols"][name] = figures
        first["metrics"] |= {f"{metric}_{name}": value for metric, value in figures["metrics"].items()}
    return first


def format_protocols(figures: dict[str, Any]) -> str:
    """The mean APs of :func:`compare_files`, protocols side by side."""
    every = {figures["protocol"]["name"]: figures, **figures["protocols"]}
    lines = [" " * 16 + "".join(f"{name:>12}" for name in every)]
    for metric, pictures in zip(METRICS, ("pictures", "pictures_with_boxes"), strict=True):
        values = [own["metrics"][metric] for own in every.values()]
        shown = "".join(f"{'undefined' if value is None else f'{value:.4f}':>12}" for value in values)
        lines.append(f"{metric:16}{shown}   {figures['counts'][pictures]} {pictures}")
    unknown = figures["counts"]["detections_of_unknown_pictures"]
    if unknown:
        lines.append(f"{unknown} detections of pictures in neither file left out")
    return "\n".join(lines)


@dataclass(frozen=True)
class GroundTruth:
    """What detections are compared with: a split's files, expanded along the hierarchy.

    Attributes:
        tree: classes and their ancestors.
        pictures: ImageID → number; those with a box come first.
        boxed: pictures with a box.
        boxes: rows of the boxes' file.
        truth: expanded boxes.
        verified: expanded (picture, label) pairs that people looked at.
    """

    tree: Hierarchy
    pictures: dict[str, int]
    boxed: int
    boxes: int
    truth: Truth
    verified: tuple[Array, Array]


def ground_truth(boxes: Path, image_labels: Path, classes: Path, hierarchy: Path) -> GroundTruth:
    """Read and expand; files and errors as for :func:`evaluate_files`."""
    tree = read_hierarchy(classes, hierarchy)
    box_table, label_table = read_boxes(boxes, tree.mids), read_labels(image_labels, tree.mids)
    boxed = {picture: number for number, picture in enumerate(sorted(box_table.pictures))}
    pictures = boxed | {
        picture: len(boxed) + number for number, picture in enumerate(sorted(set(label_table.pictures) - set(boxed)))
    }
    truth, verified = _expanded_truth(box_table, label_table, tree, pictures)
    return GroundTruth(tree, pictures, len(boxed), len(box_table), truth, verified)


def score(
    known: GroundTruth,
    detections: Detections,
    *,
    protocol: str = "official",
    group_of_weight: float = 1.0,
    expand_predictions: bool = False,
) -> dict[str, Any]:
    """Figures of detections; arguments, result and errors as for :func:`evaluate_files`.

    Args:
        known: the ground truth.
        detections: not expanded; those of picture −1 are of no picture of it, and are counted.
        protocol: one of :data:`PROTOCOLS`.
        group_of_weight: see :func:`evaluate`.
        expand_predictions: give each detection to its ancestors too.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if not 0 <= group_of_weight <= 1:
        raise InputError(f"group-of-weight: expected a number from 0 to 1, got {group_of_weight}")
    tree, boxed, count = known.tree, known.boxed, len(known.tree.mids)
    total = len(detections.picture)
    rows = np.flatnonzero(detections.picture >= 0)
    unknown = total - len(rows)
    labels = detections.label[rows]
    if expand_predictions:
        copies, labels = expand(labels, tree.ancestors)
        rows = rows[copies]
    every = Detections(detections.picture[rows], labels, detections.box[rows], detections.score[rows])
    verified = known.verified
    if protocol == "released":
        verified = (np.arange(boxed), np.zeros(boxed, dtype=np.int64))
    whole = evaluate(known.truth, every, verified, count, group_of_weight=group_of_weight)
    inside = every.picture < boxed
    part = Detections(*(getattr(every, name)[inside] for name in ("picture", "label", "box", "score")))
    few = evaluate(known.truth, part, verified, count, group_of_weight=group_of_weight)
    return {
        "protocol": {"name": protocol, "group_of_weight": group_of_weight, "expand_predictions": expand_predictions},
        "metrics": dict(zip(METRICS, (_mean(whole["ap"]), _mean(few["ap"])), strict=True)),
        "classes": [
            {
                "mid": mid,
                "name": name,
                "AP50": _number(whole["ap"][label]),
                "objects": whole["objects"][label],
                "detections": int(whole["counted"][label]),
            }
            for label, (mid, name) in enumerate(zip(tree.mids, tree.names, strict=True))
        ],
        "counts": {
            "pictures": len(known.pictures),
            "pictures_with_boxes": boxed,
            "boxes": known.boxes,
            "detections": total,
            "detections_of_unknown_pictures": unknown,
            "classes_without_objects": int(np.isnan(whole["ap"]).sum()),
        },
    }


def _expanded_truth(
    boxes: Table, labels: Table, tree: Hierarchy, pictures: dict[str, int]
) -> tuple[Truth, tuple[Array, Array]]:
    """Boxes copied to their ancestors; labels, present ones to ancestors and absent ones to descendants."""
    rows, classes = expand(boxes.columns["LabelName"], tree.ancestors)
    truth = Truth(_pictures(boxes, pictures)[rows], classes, _corners(boxes)[rows], boxes.columns["IsGroupOf"][rows])
    present = labels.columns["Confidence"]
    own, label = _pictures(labels, pictures), labels.columns["LabelName"]
    parts = [
        (own[chosen][rows], classes)
        for chosen, related in ((present, tree.ancestors), (~present, tree.descendants))
        for rows, classes in [expand(label[chosen], related)]
    ]
    return truth, (np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))


def _detections(found: Table, pictures: dict[str, int]) -> Detections:
    """Rows of a predictions file; −1 is the picture of those of unknown ones."""
    return Detections(_pictures(found, pictures), found.columns["LabelName"], _corners(found), found.columns["Score"])


def _pictures(table: Table, pictures: dict[str, int]) -> Array:
    """(N,) number of each row's picture, −1 if it is unknown."""
    numbers = np.array([pictures.get(picture, -1) for picture in table.pictures], dtype=np.int64)
    return numbers[table.columns["ImageID"]] if len(table) else np.zeros(0, dtype=np.int64)


def _corners(table: Table) -> Array:
    return np.stack([table.columns[name] for name in ("XMin", "YMin", "XMax", "YMax")], axis=1)


def _mean(values: Array) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

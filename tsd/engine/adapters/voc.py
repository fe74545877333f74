"""VOC's own figure: AP at IoU 0.5, over 11 points of recall (the challenge of 2007) and over all points (since 2010).

mmdet's ``eval_map`` matches and accumulates. A detection belongs to the object that it overlaps most; of several, the
best counts; objects marked difficult, ``iscrowd`` in the annotations, count neither way (Everingham et al., IJCV 2010,
section 4.2). Boxes are continuous here, so no pixel is added to a side.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsd.data.coco import read_coco
from tsd.evaluation.coco import VOC_NAMES, read_predictions

IOU = 0.5
ROUNDING = 1e-9
"""Added to recalls: 3 of 10 objects reach the point 0.3, which is a little more in floating point."""

Boxes = np.ndarray


def add_voc(figures: Mapping[str, Any], annotations: Path, predictions: Path) -> dict[str, Any]:
    """COCO's figures with VOC's among ``metrics`` and in each entry of ``per_class``.

    Args:
        figures: of :func:`tsd.evaluation.coco.evaluate_coco` of the same boxes.
        annotations: COCO instances.
        predictions: COCO results.

    Raises:
        InputError: as :func:`tsd.evaluation.coco.evaluate_coco`.
    """
    found = evaluate_voc(annotations, predictions)
    per_class = [entry | found[entry["id"]] for entry in figures["per_class"]]
    return {**figures, "metrics": figures["metrics"] | mean_of(found), "per_class": per_class}


def mean_of(found: Mapping[int, Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of each of :data:`VOC_NAMES` over the classes that have objects; None if none has."""
    means: dict[str, float | None] = {}
    for name in VOC_NAMES:
        values = [value for figures in found.values() if (value := figures[name]) is not None]
        means[name] = float(np.mean(values)) if values else None
    return means


def format_voc(metrics: Mapping[str, float | None]) -> str:
    """:data:`VOC_NAMES` in percent, in one line."""
    values = [(name, metrics[name]) for name in VOC_NAMES]
    return "  ".join(f"{name} {'-' if value is None else f'{100 * value:.1f}'}" for name, value in values)


def evaluate_voc(
    annotations: Path | Mapping[str, Any], predictions: Path | list[dict[str, Any]]
) -> dict[int, dict[str, float | None]]:
    """Category id → :data:`VOC_NAMES` → fraction, None for a class without objects that are not difficult.

    Args:
        annotations: COCO instances, a file or its content.
        predictions: COCO results, a file or its content. Of two with one score, the order is that of
            :func:`tsd.evaluation.coco.read_predictions`.

    Raises:
        InputError: as :func:`tsd.evaluation.coco.evaluate_coco`.
    """
    from mmdet.evaluation.functional import average_precision, eval_map

    truth = read_coco(annotations) if isinstance(annotations, Path) else annotations
    results = read_predictions(predictions, truth, "bbox")
    categories = sorted(category["id"] for category in truth["categories"])
    images = [image["id"] for image in truth["images"]]
    _, by_class = eval_map(
        _detections(results, images, categories),
        _objects(truth["annotations"], images, categories),
        iou_thr=IOU,
        logger="silent",
        nproc=1,
    )
    figures: dict[int, dict[str, float | None]] = {}
    for category, own in zip(categories, by_class, strict=True):
        recall, precision = own["recall"].astype(float) + ROUNDING, own["precision"].astype(float)
        values = (average_precision(recall, precision, "11points"), own["ap"])
        figures[category] = {
            name: float(value) if own["num_gts"] else None for name, value in zip(VOC_NAMES, values, strict=True)
        }
    return figures


def _detections(
    results: Sequence[dict[str, Any]], images: Sequence[int], categories: Sequence[int]
) -> list[list[Boxes]]:
    """Of each picture, of each class: (n, 5) boxes xyxy and a score that says their place among all detections.

    Places stand for scores since only their order matters, and no two are equal.
    """
    order = sorted(range(len(results)), key=lambda place: -results[place]["score"])  # stable
    places = np.empty(len(results))
    places[order] = np.arange(len(results), 0, -1)
    rows: dict[tuple[int, int], list[list[float]]] = {}
    for result, place in zip(results, places, strict=True):
        row = [*_corners(result["bbox"]), float(place)]
        rows.setdefault((result["image_id"], result["category_id"]), []).append(row)
    return [
        [np.array(rows.get((image, category), []), dtype=float).reshape(-1, 5) for category in categories]
        for image in images
    ]


def _objects(
    annotations: Sequence[dict[str, Any]], images: Sequence[int], categories: Sequence[int]
) -> list[dict[str, Boxes]]:
    """Of each picture, as mmdet wants it: (n, 4) boxes xyxy and their labels, the difficult ones apart."""
    labels = {category: label for label, category in enumerate(categories)}
    found: dict[int, tuple[list[Any], list[Any]]] = {image: ([], []) for image in images}
    for annotation in annotations:
        kind = 1 if annotation.get("iscrowd", 0) else 0
        row = (*_corners(annotation["bbox"]), labels[annotation["category_id"]])
        found[annotation["image_id"]][kind].append(row)
    content = []
    for image in images:
        own, difficult = (np.array(rows, dtype=float).reshape(-1, 5) for rows in found[image])
        content.append(
            {
                "bboxes": own[:, :4],
                "labels": own[:, 4].astype(int),
                "bboxes_ignore": difficult[:, :4],
                "labels_ignore": difficult[:, 4].astype(int),
            }
        )
    return content


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    """From COCO's left, top, width and height to xyxy."""
    x, y, width, height = box
    return x, y, x + width, y + height

"""COCO's figures: the 12 of the summary, AP per class, and AP by object size and IoU (Table 9, Figure 6)."""

import contextlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tsd.data.coco import read_coco
from tsd.data.masks import detected_mask_problem
from tsd.errors import InputError
from tsd.files import read_json

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The 12 figures in pycocotools' order."""

VOC_NAMES = ("VOC07_AP50", "VOC_AP50")
"""VOC's own figure, which may stand beside them: over 11 points of recall, and over all."""

AREAS = ("all", "small", "medium", "large")
IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
BACKENDS = ("faster", "pycocotools")

Figures = dict[str, Any]


def evaluate_coco(
    annotations: Path | Mapping[str, Any],
    predictions: Path | list[dict[str, Any]],
    iou_type: str = "bbox",
    backend: str = "faster",
) -> Figures:
    """Evaluate standard COCO results.

    Args:
        annotations: COCO instances, a file or its content.
        predictions: COCO results (image_id, category_id, score, bbox xywh or segmentation), a file or its content.
        iou_type: ``bbox`` or ``segm``.
        backend: ``faster`` (faster-coco-eval) or ``pycocotools``, the reference; equal to 1e-6.

    Returns:
        ``metrics`` (the 12 figures, fractions; None where undefined), ``per_class`` (AP, AP50, instances),
        ``scale_iou`` (AP by area range and IoU from 0.5 to 0.9), and counts.

    Raises:
        InputError: annotations that :func:`tsd.data.coco.read_coco` refuses, or predictions that are no COCO results of
            them; names file and index.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    truth = read_coco(annotations, masks=iou_type == "segm") if isinstance(annotations, Path) else annotations
    results = read_predictions(predictions, truth, iou_type)
    evaluation = _evaluate(truth, results, iou_type, backend)
    precision = evaluation.eval["precision"]  # (T IoUs, R recalls, K classes, A areas, M detections per picture)
    stats = dict(zip(NAMES, (_number(value) for value in evaluation.stats[:12]), strict=True))
    counts: dict[int, int] = {}
    for annotation in truth["annotations"]:
        if not annotation.get("iscrowd", 0):
            counts[annotation["category_id"]] = counts.get(annotation["category_id"], 0) + 1
    names = {category["id"]: category["name"] for category in truth["categories"]}
    per_class = [
        {
            "id": int(category),
            "name": names[category],
            "AP": _mean(precision[:, :, index, 0, -1]),
            "AP50": _mean(precision[0, :, index, 0, -1]),
            "instances": counts.get(category, 0),
        }
        for index, category in enumerate(evaluation.params.catIds)
    ]
    thresholds = np.asarray(evaluation.params.iouThrs)
    scale_iou = {
        area: {
            f"{iou:.2f}": _mean(precision[int(np.argmin(np.abs(thresholds - iou))), :, :, place, -1]) for iou in IOUS
        }
        for place, area in enumerate(AREAS)
    }
    return {
        "protocol": "coco",
        "iou_type": iou_type,
        "metrics": stats,
        "per_class": per_class,
        "scale_iou": scale_iou,
        "images": len(truth["images"]),
        "instances": sum(counts.values()),
        "detections": len(results),
    }


def evaluate_boxes_and_masks(annotations: Path, predictions: Path) -> Figures:
    """:func:`evaluate_coco` of the boxes, with the masks' 12 figures among its metrics as ``mask_AP``, ``mask_AP50``, …

    Raises:
        InputError: as :func:`evaluate_coco`, and a detection without a mask.
    """
    figures = evaluate_coco(annotations, predictions)
    masks = evaluate_coco(annotations, predictions, iou_type="segm")["metrics"]
    return figures | {"metrics": figures["metrics"] | {f"mask_{name}": value for name, value in masks.items()}}


def format_summary(metrics: Mapping[str, float | None]) -> str:
    """The 12 figures in percent, in two lines."""
    cells = [f"{name} {'-' if metrics[name] is None else f'{100 * metrics[name]:.1f}'}" for name in NAMES]  # type: ignore[operator]
    return "  ".join(cells[:6]) + "\n" + "  ".join(cells[6:])


def read_predictions(
    predictions: Path | list[dict[str, Any]], truth: Mapping[str, Any], iou_type: str
) -> list[dict[str, Any]]:
    """Checked results in a canonical order: both evaluators depend on the order of tied scores.

    Raises:
        InputError: see :func:`evaluate_coco`.
    """
    source = str(predictions) if isinstance(predictions, Path) else "predictions"
    content = read_json(predictions) if isinstance(predictions, Path) else predictions
    if not isinstance(content, list):
        raise InputError(f"{source}: expected a list of COCO results, got {type(content).__name__}")
    images = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    shape = "bbox" if iou_type == "bbox" else "segmentation"
    for index, result in enumerate(content):
        problem = _problem(result, images, categories, shape)
        if problem:
            raise InputError(f"{source}: entry {index}: {problem}")
    return sorted(
        content,
        key=lambda r: (r["image_id"], -r["score"], r["category_id"], json.dumps(r[shape], sort_keys=True)),
    )


def _problem(result: Any, images: dict[int, tuple[int, int]], categories: set[int], shape: str) -> str | None:
    if not isinstance(result, dict):
        return f"expected an object, got {type(result).__name__}"
    for key in ("image_id", "category_id", "score", shape):
        if key not in result:
            return f"missing key {key!r}"
    for key in ("image_id", "category_id"):
        if type(result[key]) is not int:
            return f"{key} {result[key]!r}: expected an integer"
    if result["image_id"] not in images:
        return f"image_id {result['image_id']} is not in the annotations"
    if result["category_id"] not in categories:
        return f"category_id {result['category_id']} is not in the annotations"
    if not _finite(result["score"]):
        return f"score {result['score']!r}: expected a finite number"
    if shape == "bbox":
        box = result["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(_finite(value) for value in box):
            return f"bbox {box!r}: expected four finite numbers [x, y, width, height]"
        if box[2] < 0 or box[3] < 0:
            return f"bbox {box!r}: width and height must not be negative"
    elif problem := detected_mask_problem(result[shape], images[result["image_id"]]):
        return f"segmentation: {problem}"
    return None


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _evaluate(truth: Mapping[str, Any], results: list[dict[str, Any]], iou_type: str, backend: str) -> Any:
    if backend == "faster":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        truth_index, found = COCO(), COCO()
        truth_index.dataset = _plain(truth)
        truth_index.createIndex()
        if results:
            found = truth_index.loadRes([dict(result) for result in results])
        else:  # loadRes refuses an empty list
            found.dataset = {**truth_index.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth_index, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _plain(truth: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that an evaluator may write to, with the keys that it wants.

    Annotations are numbered from 1: a match is noted by its object's id, and an id of 0 would read as none.
    """
    annotations = [
        {"iscrowd": 0, "area": annotation["bbox"][2] * annotation["bbox"][3], **annotation, "id": number}
        for number, annotation in enumerate(truth["annotations"], start=1)
    ]
    return {**truth, "annotations": annotations}


def _number(value: float) -> float | None:
    return None if value < 0 or not math.isfinite(value) else float(value)


def _mean(precision: np.ndarray) -> float | None:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else None

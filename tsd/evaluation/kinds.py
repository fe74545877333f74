"""Which errors cost how much AP50: the kinds of TIDE (Bolya et al., ECCV 2020), by the package ``tidecv``.

tidecv matches detections, says of what kind each error is, and what the detections would be with one kind put right.
Here that is done once for a set of pictures; a resampled set only changes how much each picture counts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tsd.evaluation.bootstrap import Array, ClassMatches, Matches, average_precision, mean_over_classes
from tsd.evaluation.coco import read_predictions

KINDS = ("cls", "loc", "both", "dupe", "bkg", "miss")
"""Wrong class; wrong box; both; a second detection of an object; background; an object that nothing finds."""


def match_kinds(truth: Mapping[str, Any], predictions: Path | list[dict[str, Any]]) -> dict[str, Matches]:
    """The detections at IoU 0.5 as they are (key ``""``), and with all errors of each of :data:`KINDS` put right.

    Args:
        truth: COCO instances; a crowd is a region where a false detection of its class is not counted.
        predictions: COCO results of boxes, a file or its content.

    Raises:
        InputError: predictions that are no COCO results of the annotations.
    """
    from tidecv import TIDE
    from tidecv.errors.main_errors import MissedError
    from tidecv.quantify import TIDERun

    objects, found = _objects(truth), _detections(truth, predictions)
    run = TIDERun(objects, found, 0.5, 0.1, TIDE.BOX, objects.max_dets)
    places = {number: place for place, number in enumerate(sorted(image["id"] for image in truth["images"]))}
    owners = np.array([places[entry["image"]] for entry in found.annotations], dtype=np.int64)
    categories = sorted(category["id"] for category in truth["categories"])
    counts = np.zeros((len(categories), len(places)), dtype=np.int64)
    missed = counts.copy()
    for entry in objects.annotations:
        if not entry["ignore"]:
            counts[categories.index(entry["class"]), places[entry["image"]]] += 1
    for error in run.error_dict[MissedError]:
        missed[categories.index(error.gt["class"]), places[error.gt["image"]]] += 1

    def matches(data: Any, counted: Array) -> Matches:
        points = [data.objs[label].data_points if label in data.objs else {} for label in categories]
        classes = [_class_matches(own, owners, objects) for own, objects in zip(points, counted, strict=True)]
        return Matches(len(places), tuple(classes))

    result = {"": matches(run.ap_data, counts)}
    for kind, error_type in zip(KINDS, TIDE._error_types, strict=True):
        fixed = run.fix_errors(lambda error, wanted=error_type: isinstance(error, wanted))
        result[kind] = matches(fixed, counts - missed if error_type is MissedError else counts)
    return result


def lost_to_kinds(matches: Mapping[str, Matches], weights: Array | None = None) -> dict[str, float]:
    """AP50 (a fraction) that would be won if the errors of one kind were put right, by kind; NaN without objects.

    As tidecv's, it is not below zero, and a class all of whose objects are missed, but for false detections, has AP 0
    when the misses are put right. A class of which no picture that counts has an object is left out, which tidecv
    counts as 0.

    Args:
        matches: of :func:`match_kinds`.
        weights: (P,) how often each picture counts; None: once.
    """
    before = average_precision(matches[""], weights)
    has_objects = ~np.isnan(before)
    lost = {}
    for kind in KINDS:
        after = average_precision(matches[kind], weights)
        emptied = has_objects & np.isnan(after) & _detects(matches[kind], weights)[:, None]
        after[emptied] = 0.0
        lost[kind] = float(np.maximum(mean_over_classes(after)[0] - mean_over_classes(before)[0], 0.0))
    return lost


def _detects(matches: Matches, weights: Array | None) -> Array:
    """(C,) whether a class has a detection in a picture that counts."""
    return np.array(
        [len(part.picture) > 0 and (weights is None or weights[part.picture].any()) for part in matches.classes]
    )


def _objects(truth: Mapping[str, Any]) -> Any:
    from tidecv import Data

    data = Data("objects")
    for category in truth["categories"]:
        data.add_class(category["id"], category["name"])
    for image in truth["images"]:
        data.add_image(image["id"], image["file_name"])
    for entry in truth["annotations"]:
        add = data.add_ignore_region if entry.get("iscrowd", 0) else data.add_ground_truth
        add(entry["image_id"], entry["category_id"], entry["bbox"])
    return data


def _detections(truth: Mapping[str, Any], predictions: Path | list[dict[str, Any]]) -> Any:
    from tidecv import Data

    data = Data("detections")
    for entry in read_predictions(predictions, truth, "bbox"):
        data.add_detection(entry["image_id"], entry["category_id"], entry["score"], entry["bbox"])
    return data


def _class_matches(points: Mapping[int, tuple[float, bool, Any]], owners: Array, objects: Array) -> ClassMatches:
    """tidecv's data points of one class, by detection: score and whether it is true."""
    ids = np.fromiter(points, dtype=np.int64, count=len(points))
    order = np.argsort(np.array([-score for score, *_ in points.values()]), kind="mergesort")
    true = np.array([bool(hit) for _, hit, _ in points.values()], dtype=bool)
    nothing = np.zeros(0, dtype=np.int64)
    return ClassMatches(owners[ids[order]], (np.flatnonzero(true[order]),), (nothing,), objects)

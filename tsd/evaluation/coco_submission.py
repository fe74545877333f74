"""The file that COCO's evaluation server takes for test-dev: validated standard results, zipped without folders."""

import json
import math
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from tsd.errors import InputError
from tsd.files import atomic_path, read_json

MOST = 100
"""Detections of a picture that the server counts; more are allowed and ignored, so they are refused here."""

KEYS = {"image_id", "category_id", "bbox", "score"}


def write_coco(predictions: Path, pictures: Path, algorithm: str, folder: Path) -> tuple[Path, int]:
    """Validate predictions and write ``detections_test-dev2017_<algorithm>_results.zip``; returns it and their number.

    Boxes are rounded to tenths of a pixel and scores to six digits, as the site suggests, for the file's size.

    Args:
        predictions: standard COCO results.
        pictures: ``image_info_test-dev2017.json``.
        algorithm: name in the file's name.
        folder: where the zip goes.

    Raises:
        InputError: a name that is no part of a file name; or what :func:`validate_coco` finds.
    """
    if not re.fullmatch(r"[A-Za-z0-9.+-]+", algorithm):
        raise InputError(f"algorithm: expected letters, digits, dots and dashes, got {algorithm!r}")
    entries = validate_coco(predictions, pictures)
    rounded = [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": [round(float(value), 1) for value in entry["bbox"]],
            "score": round(float(entry["score"]), 6),
        }
        for entry in entries
    ]
    name = f"detections_test-dev2017_{algorithm}_results"
    output = folder / f"{name}.zip"
    with atomic_path(output) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        # A fixed date: the same predictions give the same bytes.
        archive.writestr(zipfile.ZipInfo(f"{name}.json"), json.dumps(rounded), zipfile.ZIP_DEFLATED)
    return output, len(rounded)


def validate_coco(predictions: Path, pictures: Path) -> list[dict[str, Any]]:
    """Check standard results against the list of pictures; returns them.

    Raises:
        InputError: no list, an entry without a key, an unknown picture or category, a box that is not four finite
            numbers of positive extent, a score that is not from 0 to 1, a picture with more than 100 detections, or
            no detection in any picture; names the entry.
    """
    entries = read_json(predictions)
    info = read_json(pictures)
    try:
        known = {image["id"] for image in info["images"]}
        categories = {category["id"] for category in info["categories"]}
    except (KeyError, TypeError):
        raise InputError(f"{pictures}: expected lists `images` and `categories` with ids") from None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{predictions}: expected a list of detections")
    for place, entry in enumerate(entries):
        problem = _problem(entry, known, categories)
        if problem:
            raise InputError(f"{predictions}: entry {place}: {problem}")
    picture, count = Counter(entry["image_id"] for entry in entries).most_common(1)[0]
    if count > MOST:
        raise InputError(f"{predictions}: picture {picture} has {count} detections; the server counts {MOST}")
    return entries


def _problem(entry: Any, known: set[int], categories: set[int]) -> str | None:
    if not isinstance(entry, dict) or not set(entry) >= KEYS:
        return f"expected the keys {', '.join(sorted(KEYS))}"
    if entry["image_id"] not in known:
        return f"image_id {entry['image_id']} is not among the {len(known)} pictures"
    if entry["category_id"] not in categories:
        return f"category_id {entry['category_id']} is not among the {len(categories)} categories"
    box, score = entry["bbox"], entry["score"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_finite, box)):
        return f"bbox {box}: expected [x, y, width, height]"
    if box[2] <= 0 or box[3] <= 0:
        return f"bbox {box}: expected a positive width and height"
    if not _finite(score) or not 0 <= score <= 1:
        return f"score {score}: expected 0 to 1"
    return None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

"""COCO instances files, read with every assumption checked before a training relies on it."""

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from tsd.errors import InputError
from tsd.files import read_json

MOST = 20
"""Problems listed before the rest is only counted."""

TOLERANCE = 1.0
"""Pixels by which a box may lie outside its picture: COCO's own annotations are rounded so."""

Coco = dict[str, Any]


def load_coco(annotations: Path, images: Path | None, check_pictures: bool = False) -> Coco:
    """Read and check a COCO instances file.

    Args:
        annotations: the JSON file.
        images: folder of the pictures; each listed one must be there. None: pictures are not looked at.
        check_pictures: also decode every picture and compare its size with the annotation's.

    Raises:
        InputError: broken JSON, missing keys, repeated ids, unknown picture or category, a box of zero size or
            outside its picture, a missing, corrupt or wrongly sized picture. All problems are listed (the first
            20), each with its file, id and what would be right.
    """
    annotations = Path(annotations)
    content = _load(annotations, annotations.stat().st_mtime_ns if annotations.exists() else 0)
    if images is not None:
        _raise(annotations, _picture_problems(content, Path(images), check_pictures))
    return content


@lru_cache(maxsize=4)
def _load(annotations: Path, _changed: int) -> Coco:
    content = read_json(annotations)
    _raise(annotations, _structure_problems(content))
    _raise(annotations, _content_problems(content))
    return content


def _raise(annotations: Path, problems: Iterator[str]) -> None:
    found = list(problems)
    if found:
        listed = [f"{annotations}: {problem}" for problem in found[:MOST]]
        rest = [f"{annotations}: and {len(found) - MOST} more problems"] if len(found) > MOST else []
        raise InputError("\n".join(listed + rest))


def _structure_problems(content: Any) -> Iterator[str]:
    if not isinstance(content, dict):
        yield "expected a JSON object with images, annotations and categories"
        return
    keys = {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for name, wanted in keys.items():
        entries = content.get(name)
        if not isinstance(entries, list):
            yield f"{name}: expected a list, got {type(entries).__name__}"
            continue
        seen = set()
        for index, entry in enumerate(entries):
            missing = [key for key in wanted if not isinstance(entry, dict) or key not in entry]
            if missing:
                yield f"{name}.{index}: missing key {missing[0]!r}"
            elif entry["id"] in seen:
                yield f"{name}.{index}: id {entry['id']} is used twice"
            else:
                seen.add(entry["id"])
    if content.get("categories") == []:
        yield "categories: empty"


def _content_problems(content: Coco) -> Iterator[str]:
    pictures = {image["id"]: image for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    names = [category["name"] for category in content["categories"]]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"categories: name {name!r} is used twice"
    for annotation in content["annotations"]:
        where = f"annotation {annotation['id']}"
        picture = pictures.get(annotation["image_id"])
        if annotation["category_id"] not in categories:
            yield f"{where}: category_id {annotation['category_id']} is not listed in categories"
        if picture is None:
            yield f"{where}: image_id {annotation['image_id']} is not listed in images"
            continue
        if problem := _box_problem(annotation["bbox"], picture):
            yield f"{where} (picture {picture['id']}, {picture['file_name']}): {problem}"


def _box_problem(box: Any, picture: dict[str, Any]) -> str | None:
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box)
    if not numbers or not all(math.isfinite(value) for value in box):
        return f"bbox {box!r}: expected four finite numbers [x, y, width, height]"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return f"bbox {box}: width and height must be above 0; remove the annotation"
    right, bottom = picture["width"] + TOLERANCE, picture["height"] + TOLERANCE
    if x < -TOLERANCE or y < -TOLERANCE or x + width > right or y + height > bottom:
        return f"bbox {box} (x, y, width, height) lies outside its picture of {picture['width']}x{picture['height']} pixels"
    return None


def _picture_problems(content: Coco, folder: Path, decode: bool) -> Iterator[str]:
    if not folder.is_dir():
        yield f"picture folder {folder} does not exist"
        return
    for image in content["images"]:
        path = folder / image["file_name"]
        if not path.is_file():
            yield f"picture {image['id']}: {path} is missing"
        elif decode and (problem := _decode_problem(path, image)):
            yield f"picture {image['id']}: {path} {problem}"


def _decode_problem(path: Path, image: dict[str, Any]) -> str | None:
    try:
        with Image.open(path) as picture:
            picture.load()
            size = picture.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        return f"is corrupt: {error}"
    if size != (image["width"], image["height"]):
        return f"is {size[0]}x{size[1]} pixels, but its annotation says {image['width']}x{image['height']}"
    return None

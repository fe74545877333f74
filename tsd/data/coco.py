"""COCO instances files, read with every assumption checked before a training relies on it."""

import io
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError

from tsd.data.decode import decode
from tsd.data.masks import annotated_mask_problem
from tsd.errors import InputError
from tsd.files import path_problem, read_json

MOST = 20
"""Problems listed before the rest is only counted."""

TOLERANCE = 1.0
"""Pixels by which a box may lie outside its picture: COCO's own annotations are rounded so."""

EXACT = 2**53
"""Evaluators hold the ids of pictures and annotations as 64-bit floats, which are exact below this."""

ORIENTATION = 0x0112
"""EXIF's tag."""

TURNED = (5, 6, 7, 8)
"""Orientations that exchange width and height."""

Coco = dict[str, Any]
Policy = Literal["drop", "error"]

LOG = logging.getLogger(__name__)


def load_coco(
    annotations: Path,
    images: Path | None,
    check_pictures: bool = False,
    on_degenerate: Policy = "drop",
    masks: bool = False,
    sizes: Sequence[tuple[int, int]] = (),
) -> Coco:
    """Read and check a COCO instances file that is trained on or validated with.

    Args:
        annotations: the JSON file.
        images: folder of the pictures; each listed one must be there. None: pictures are not looked at.
        check_pictures: also decode every picture, as training does, and compare its size with the annotation's.
        on_degenerate: what becomes of an annotation that training passes over (:data:`PASSED_OVER`). COCO's own
            train2017 has such, so "drop" leaves them out of what is returned and logs a warning; "error" refuses them.
        masks: every annotation must have a segmentation: polygons or a run-length code, of its picture's size.
        sizes: (longer, shorter) sides in pixels that pictures are resized to fit; each must keep a pixel.

    Returns:
        The file's content: 2.7 GB of Python objects for COCO's train2017, so let go of it.

    Raises:
        InputError: broken JSON, missing keys, values of a wrong type, repeated ids, ids of 2**53 or more, unknown
            picture or category, a box of negative size or outside its picture, no picture, no annotation that is
            trained on, a missing or broken mask, a picture too thin to resize, a missing, corrupt or wrongly sized
            picture. All problems are listed (the first 20), each with its file, id and what would be right.
    """
    annotations = Path(annotations)
    content = _load(annotations, on_degenerate)
    if masks:
        _raise(annotations, _mask_problems(content))
    _raise(annotations, _thin_problems(content, sizes))
    if images is not None:
        _raise(annotations, _picture_problems(content, Path(images), check_pictures))
    return content


def read_coco(annotations: Path, masks: bool = False) -> Coco:
    """A checked instances file with every annotation in it, those of zero size too, as evaluators want it.

    Raises:
        InputError: as :func:`load_coco`, of the file alone; that nothing is trained on is none.
    """
    content: Coco = read_json(annotations)
    _raise(annotations, _structure_problems(content))
    _raise(annotations, _content_problems(content))
    if masks:
        _raise(annotations, _mask_problems(content))
    return content


def check_trained_on(annotations: Path, content: Coco) -> None:
    """Refuse a checked instances file of which nothing would be trained on or evaluated.

    Raises:
        InputError: no picture, no annotation, or none but those that training passes over; says why, how many each.
    """
    _raise(annotations, _void_problems(content))


def read_categories(
    annotations: Path, on_degenerate: Policy = "drop", masks: bool = False, sizes: tuple[tuple[int, int], ...] = ()
) -> tuple[tuple[int, str], ...]:
    """(id, name) of each category, in the file's order, after the checks of :func:`load_coco` on the file alone.

    Read once per process while the file does not change; nothing else of the file is kept.

    Raises:
        InputError: as :func:`load_coco`.
    """
    annotations = Path(annotations)
    changed = annotations.stat().st_mtime_ns if annotations.exists() else 0
    return _categories(annotations, changed, on_degenerate, masks, sizes)


@lru_cache(maxsize=16)
def _categories(
    annotations: Path, _changed: int, on_degenerate: Policy, masks: bool, sizes: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, str], ...]:
    content = load_coco(annotations, None, on_degenerate=on_degenerate, masks=masks, sizes=sizes)
    return tuple((category["id"], category["name"]) for category in content["categories"])


def _load(annotations: Path, on_degenerate: Policy) -> Coco:
    content = read_coco(annotations)
    check_trained_on(annotations, content)
    passed = [(annotation, why) for annotation, why in _judged(content) if why not in (None, "crowd")]
    if passed and on_degenerate == "error":
        _raise(annotations, (_passed_over(annotation, why) for annotation, why in passed if why))
    if passed:
        first, why = passed[0]
        LOG.warning(
            "%s: %d annotations left out, first annotation %s %s",
            annotations,
            len(passed),
            first["id"],
            PASSED_OVER[why],
        )
    left_out = {annotation["id"] for annotation, _ in passed}
    return {**content, "annotations": [entry for entry in content["annotations"] if entry["id"] not in left_out]}


def _raise(annotations: Path, problems: Iterator[str]) -> None:
    found = list(problems)
    if found:
        listed = [f"{annotations}: {problem}" for problem in found[:MOST]]
        rest = [f"{annotations}: and {len(found) - MOST} more problems"] if len(found) > MOST else []
        raise InputError("\n".join(listed + rest))


KEYS: dict[str, dict[str, str]] = {
    "images": {"id": "integer", "file_name": "path", "width": "size", "height": "size"},
    "annotations": {"id": "integer", "image_id": "integer", "category_id": "integer", "bbox": "box", "area": "number"},
    "categories": {"id": "integer", "name": "text"},
}
"""What is read of an instances file, and what it must be."""

EXPECTED = {
    "integer": "an integer",
    "size": "a positive integer",
    "text": "text",
    "path": "a file's path in UTF-8, of at most 255 bytes a name",
    "number": "a number of at least 0",
    "box": "four finite numbers [x, y, width, height]",
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is(kind: str, value: Any) -> bool:
    match kind:
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "size":
            return isinstance(value, int) and not isinstance(value, bool) and value > 0
        case "text":
            return isinstance(value, str) and value != ""
        case "path":
            return isinstance(value, str) and path_problem(value) is None
        case "number":
            return _is_number(value) and value >= 0
        case _:
            return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _structure_problems(content: Any) -> Iterator[str]:
    if not isinstance(content, dict):
        yield "expected a JSON object with images, annotations and categories"
        return
    for name, wanted in KEYS.items():
        entries = content.get(name)
        if not isinstance(entries, list):
            yield f"{name}: expected a list, got {type(entries).__name__}"
            continue
        seen = set()
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                yield f"{name}.{index}: expected an object, got {entry!r}"
                continue
            wrong = next((key for key, kind in wanted.items() if key not in entry or not _is(kind, entry[key])), None)
            where = f"{name}.{index}" + (f" (id {entry['id']})" if "id" in entry else "")
            if wrong is not None and wrong not in entry:
                yield f"{where}: missing key {wrong!r}"
            elif wrong is not None:
                yield f"{where}: {wrong}: expected {EXPECTED[wanted[wrong]]}, got {entry[wrong]!r:.100}"
            elif "iscrowd" in entry and entry["iscrowd"] not in (0, 1):
                yield f"{where}: iscrowd: expected 0 or 1, got {entry['iscrowd']!r}"
            elif name != "categories" and abs(entry["id"]) >= EXACT:
                yield f"{where}: id: expected an integer below 2**53, since evaluators confuse larger ones"
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


def _box_problem(box: list[float], picture: dict[str, Any]) -> str | None:
    x, y, width, height = box
    if min(width, height) < 0:
        return f"bbox {box}: width and height must be above 0; remove the annotation"
    right, bottom = picture["width"] + TOLERANCE, picture["height"] + TOLERANCE
    if x < -TOLERANCE or y < -TOLERANCE or x + width > right or y + height > bottom:
        size = f"{picture['width']}x{picture['height']}"
        return f"bbox {box} (x, y, width, height) lies outside its picture of {size} pixels"
    return None


PASSED_OVER = {
    "zero": "with a box of zero width or height",
    "outside": "with a box wholly outside its picture",
    "small": "with a box narrower or lower than a pixel",
    "area": "with area 0",
    "ignored": "marked ignore: 1",
    "crowd": "marked iscrowd: 1",
}
"""Why training passes over an annotation. mmdet does so without a word; a crowd alone is meant to be passed over."""


def _judged(content: Coco) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Each annotation, and the key of :data:`PASSED_OVER` that says why it is not trained on; None: it is."""
    pictures = {image["id"]: image for image in content["images"]}
    for annotation in content["annotations"]:
        yield annotation, _why_passed_over(annotation, pictures[annotation["image_id"]])


def _why_passed_over(annotation: dict[str, Any], picture: dict[str, Any]) -> str | None:
    x, y, width, height = annotation["bbox"]
    if min(width, height) <= 0:
        return "zero"
    if min(x + width, picture["width"]) <= max(x, 0) or min(y + height, picture["height"]) <= max(y, 0):
        return "outside"
    if min(width, height) < 1:
        return "small"
    if annotation["area"] <= 0:
        return "area"
    if annotation.get("ignore"):
        return "ignored"
    return "crowd" if annotation.get("iscrowd") else None


def _passed_over(annotation: dict[str, Any], why: str) -> str:
    return (
        f"annotation {annotation['id']} (picture {annotation['image_id']}, bbox {annotation['bbox']}, area "
        f"{annotation['area']}) {PASSED_OVER[why]}: training leaves it out; mend or remove it, or say "
        "`degenerate: drop` in the suite's data"
    )


def _void_problems(content: Coco) -> Iterator[str]:
    for name in ("images", "annotations"):
        if not content[name]:
            yield f"{name}: empty; expected one at least"
            return
    judged = [(annotation["id"], why) for annotation, why in _judged(content)]
    if any(why is None for _, why in judged):
        return
    counts = Counter(why for _, why in judged)
    first = {why: number for number, why in reversed(judged)}
    listed = ", ".join(
        f"{count} {PASSED_OVER[why]} (first annotation {first[why]})"
        for why, count in counts.items()
        if why is not None
    )
    hint = "; bbox is in pixels, and these read like fractions of the picture" if _are_fractions(content) else ""
    yield f"annotations: none of {len(judged)} can be trained on: {listed}{hint}"


def _are_fractions(content: Coco) -> bool:
    """Whether every box lies between 0 and 1, in pictures of more than a pixel."""
    boxes = (annotation["bbox"] for annotation in content["annotations"])
    return all(image["width"] > 1 and image["height"] > 1 for image in content["images"]) and all(
        min(box) >= 0 and max(box[0] + box[2], box[1] + box[3]) <= 1 + 1e-6 for box in boxes
    )


def _mask_problems(content: Coco) -> Iterator[str]:
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for annotation in content["annotations"]:
        if problem := annotated_mask_problem(annotation.get("segmentation"), sizes[annotation["image_id"]]):
            yield f"annotation {annotation['id']}: segmentation, which a detector with masks needs: {problem}"


def _thin_problems(content: Coco, sizes: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Pictures that lose all pixels of a side when they are resized with their proportions, as mmcv rounds it."""
    for image in content["images"]:
        longer, shorter = max(image["width"], image["height"]), min(image["width"], image["height"])
        for size in sizes:
            scale = min(size[0] / longer, size[1] / shorter)
            if int(shorter * scale + 0.5) < 1:
                own = f"{image['width']}x{image['height']}"
                yield (
                    f"picture {image['id']}, {image['file_name']}: {own} pixels are too thin: resized "
                    f"to fit {size[0]}x{size[1]} no pixel is left of a side; remove or cut the picture"
                )
                break


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
    wanted, turned = (image["width"], image["height"]), False
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            size, form = picture.size, picture.format
            if size != wanted and size == wanted[::-1]:
                turned = picture.getexif().get(ORIENTATION) in TURNED
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        return f"is corrupt: {error}"
    if size != wanted:
        said = f"is {size[0]}x{size[1]} pixels, but its annotation says {wanted[0]}x{wanted[1]}"
        return said + ("; it must be of the stored pixels, not turned by EXIF's orientation" if turned else "")
    if form != "JPEG":  # that has 8 bits, and training reads it as Pillow does
        try:
            decode(content)
        except ValueError as problem:
            return str(problem)
    return None

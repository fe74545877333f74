"""Masks of COCO's files, checked without drawing them: a wrong number in one can ask for gigabytes."""

from itertools import chain
from typing import Any

import numpy as np

Size = tuple[int, int]

LONGEST = 7
"""Characters of one run in a compressed code: 35 bits, more than the pixels of any picture."""


def annotated_mask_problem(mask: Any, size: Size) -> str | None:
    """What is wrong with the mask of an annotation; None: nothing.

    Args:
        mask: its ``segmentation``: polygons, or a run-length code.
        size: (width, height) of its picture in pixels.
    """
    if isinstance(mask, dict) and {"size", "counts"} <= set(mask):
        return _code_problem(mask, size, drawn=True)
    if isinstance(mask, list) and mask:
        return _polygons_problem(mask, size)
    return f"expected polygons of at least three points or a run-length code, got {_cut(mask)}"


def detected_mask_problem(mask: Any, size: Size) -> str | None:
    """What is wrong with the mask of a detection, which is a run-length code; None: nothing. It may be empty.

    Args:
        mask: its ``segmentation``.
        size: (width, height) of its picture in pixels.
    """
    # Evaluators read no polygons here, and no lists of runs.
    if not (isinstance(mask, dict) and {"size", "counts"} <= set(mask)):
        return f"expected a run-length code with size and counts, got {_cut(mask)}"
    return _code_problem(mask, size, drawn=False)


def _polygons_problem(polygons: list[Any], size: Size) -> str | None:
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return f"expected polygons of at least three points, x and y of each, got {_cut(polygon)}"
    numbers = _numbers(list(chain.from_iterable(polygons)))
    if numbers is None:
        wrong = next((polygon for polygon in polygons if _numbers(polygon) is None), polygons)
        return f"expected polygons of finite numbers, got {_cut(wrong)}"
    x, y = numbers[::2], numbers[1::2]
    (left, top), (right, bottom) = (x.min(), y.min()), (x.max(), y.max())
    reach = f"from ({left:g}, {top:g}) to ({right:g}, {bottom:g})"
    width, height = size
    # Polygons are drawn point by point along their edges, which are all held in memory.
    if min(left + width, top + height, 2 * width - right, 2 * height - bottom) < 0:
        return f"a polygon reaches {reach}, far outside {_picture(size)}"
    length, most = np.maximum(abs(x[1:] - x[:-1]), abs(y[1:] - y[:-1])).sum(), 4 * (width + 1) * (height + 1)
    if length > most:
        return f"its edges are {length:.0f} pixels long; expected {most} at most, for {_picture(size)}"
    if min(right, bottom) <= 0 or left >= width or top >= height:
        return f"it lies outside {_picture(size)}: {reach}"
    return None


def _numbers(values: list[Any]) -> np.ndarray | None:
    """The list as finite numbers; None: something in it is none."""
    try:
        numbers = np.asarray(values)
    except ValueError:  # lists of various lengths in it
        return None
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
        return None
    numbers = numbers.astype(float)
    return numbers if np.isfinite(numbers).all() else None


def _code_problem(code: dict[str, Any], size: Size, drawn: bool) -> str | None:
    width, height = size
    if code["size"] != [height, width]:
        return f"size: expected [{height}, {width}], the picture's [height, width], got {_cut(code['size'])}"
    counts = code["counts"]
    runs = _runs(counts) if isinstance(counts, str) else _counted(counts) if drawn else None
    if runs is None:
        either = "the lengths of runs, as a list of integers or as COCO's text of them"
        expected = either if drawn else "COCO's text of the lengths of runs"
        return f"counts: expected {expected}, got {_cut(counts)}"
    if (total := sum(runs)) != width * height:
        return f"counts: expected {width * height} pixels in all, {width} x {height}, got {total}"
    if drawn and sum(runs[1::2]) == 0:
        return "counts: expected a pixel at least that belongs to the object, got none"
    return None


def _counted(counts: Any) -> list[int] | None:
    whole = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    return counts if whole else None


def _runs(text: str) -> list[int] | None:
    """Lengths of runs from COCO's text, as pycocotools reads it; None: it is no such text.

    A number is written five bits a character, lowest first; all but the first three say by how much they differ from
    the one before the last.
    """
    if not text or not text.isascii():
        return None
    digits = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) - ord("0")
    follows = digits & 32 != 0
    if digits.min() < 0 or digits.max() > 63 or follows[-1]:
        return None
    ends = np.flatnonzero(~follows)
    starts = np.append(0, ends[:-1] + 1)
    places = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if places.max() >= LONGEST:
        return None
    runs = np.add.reduceat((digits & 31) << 5 * places, starts)
    runs -= np.where(digits[ends] & 16, 1 << 5 * (places[ends] + 1), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    found: list[int] = runs.tolist()
    return found if min(found) >= 0 else None


def _picture(size: Size) -> str:
    return f"its picture of {size[0]}x{size[1]} pixels"


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"

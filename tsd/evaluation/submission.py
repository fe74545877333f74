"""The leaderboard's file for Open Images: written with ancestors, and validated."""

import csv
import io
import math
from pathlib import Path

import numpy as np

from tsd.data.openimages import Hierarchy, expand, read_boxes, read_hierarchy
from tsd.errors import InputError
from tsd.files import write_text

HEADER = ["ImageId", "PredictionString"]
TOKENS = 6
"""MID, score, XMin, YMin, XMax, YMax of a box; another order than in the challenge's other files."""


def write_openimages(predictions: Path, pictures: Path, classes: Path, hierarchy: Path, output: Path) -> int:
    """Turn predictions into the file that the leaderboard takes; returns its number of boxes.

    A line for every picture, in the order of ``pictures``; boxes by falling score, each repeated for the ancestors of
    its class. Where a class has the same box several times in a picture, the best score stays.

    Args:
        predictions: ImageID, LabelName, Score, XMin, XMax, YMin, YMax.
        pictures: an ImageID per line: all pictures of the test set.
        classes: ``challenge-2019-classes-description-500.csv``.
        hierarchy: ``challenge-2019-label500-hierarchy.json``.
        output: written atomically, after it was validated.

    Raises:
        InputError: a file that can't be used, a picture that is not in the list, a score that is not above 0 and at
            most 1; or what :func:`validate_openimages` finds.
    """
    tree = read_hierarchy(classes, hierarchy)
    table = read_boxes(predictions, tree.mids, scores=True)
    ids = read_pictures(pictures)
    known = set(ids)
    strange = [picture for picture in table.pictures if picture not in known]
    if strange:
        raise InputError(f"{predictions}: picture {strange[0]} is not in {pictures}")
    scores = table.columns["Score"]
    bad = np.flatnonzero((scores <= 0) | (scores > 1))
    if len(bad):
        raise InputError(f"{predictions}: line {bad[0] + 2}: Score {scores[bad[0]]:g}: expected above 0 and at most 1")
    rows, labels = expand(table.columns["LabelName"], tree.ancestors)
    best: dict[str, dict[str, float]] = {picture: {} for picture in ids}
    corners = np.stack([table.columns[name] for name in ("XMin", "YMin", "XMax", "YMax")], axis=1)
    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        box = " ".join(f"{value:.6g}" for value in corners[row])
        boxes = best[table.pictures[table.columns["ImageID"][row]]]
        key = f"{tree.mids[label]} {{}} {box}"
        boxes[key] = max(boxes.get(key, 0.0), float(scores[row]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for picture in ids:
        ordered = sorted(best[picture].items(), key=lambda entry: (-entry[1], entry[0]))
        writer.writerow([picture, " ".join(key.format(f"{score:.6g}") for key, score in ordered)])
    content = text.getvalue()
    number = _validate(content, str(output), ids, tree)
    write_text(output, content)
    return number


def validate_openimages(submission: Path, pictures: Path, classes: Path, hierarchy: Path) -> int:
    """Check a leaderboard file; returns its number of boxes.

    Raises:
        InputError: a wrong header, a picture that is missing, unknown or there twice, tokens that are not six a box,
            an unknown class, a number out of range, a box twice, or one that its ancestors lack; names the line.
    """
    try:
        content = submission.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{submission}: {error}") from None
    return _validate(content, str(submission), read_pictures(pictures), read_hierarchy(classes, hierarchy))


def read_pictures(path: Path) -> list[str]:
    """ImageIDs, one per line.

    Raises:
        InputError: no such file, nothing in it, or an id twice.
    """
    try:
        ids = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None
    if not ids:
        raise InputError(f"{path}: no ImageID in it")
    if len(set(ids)) < len(ids):
        twice = next(picture for place, picture in enumerate(ids) if picture in ids[:place])
        raise InputError(f"{path}: {twice} is there twice")
    return ids


def _validate(content: str, name: str, ids: list[str], tree: Hierarchy) -> int:
    rows = list(csv.reader(content.splitlines()))
    if not rows or rows[0] != HEADER:
        raise InputError(f"{name}: line 1: expected {','.join(HEADER)}, got {','.join(rows[0]) if rows else 'nothing'}")
    place = {mid: label for label, mid in enumerate(tree.mids)}
    left = dict.fromkeys(ids)
    number = 0
    for line, row in enumerate(rows[1:], 2):
        where = f"{name}: line {line}"
        if len(row) != len(HEADER):
            raise InputError(f"{where}: expected {len(HEADER)} columns, got {len(row)}")
        if row[0] not in left:
            raise InputError(f"{where}: picture {row[0]} is unknown, or there twice")
        del left[row[0]]
        number += _validate_boxes(row[1].split(), where, place, tree)
    if left:
        raise InputError(f"{name}: {len(left)} pictures are missing, first {next(iter(left))}")
    return number


def _validate_boxes(tokens: list[str], where: str, place: dict[str, int], tree: Hierarchy) -> int:
    if len(tokens) % TOKENS:
        raise InputError(f"{where}: expected {TOKENS} tokens for each box, got {len(tokens)} in all")
    boxes: dict[tuple[int, str], float] = {}
    for start in range(0, len(tokens), TOKENS):
        mid, *numbers = tokens[start : start + TOKENS]
        if mid not in place:
            raise InputError(f"{where}: {mid} is not among the {len(place)} classes")
        try:
            score, x1, y1, x2, y2 = map(float, numbers)
        except ValueError:
            raise InputError(f"{where}: {' '.join(numbers)}: expected a score and four numbers") from None
        if not (math.isfinite(score) and 0 < score <= 1):
            raise InputError(f"{where}: score {numbers[0]}: expected above 0 and at most 1")
        if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
            raise InputError(f"{where}: box {' '.join(numbers[1:])}: expected 0 <= XMin <= XMax <= 1, and so for Y")
        key = (place[mid], " ".join(numbers[1:]))
        if key in boxes:
            raise InputError(f"{where}: {mid} has the box {key[1]} twice")
        boxes[key] = score
    for label, box in boxes:
        for ancestor in tree.ancestors[label]:
            if (ancestor, box) not in boxes:
                raise InputError(
                    f"{where}: {tree.mids[label]} has a box that its ancestor {tree.mids[ancestor]} lacks: {box}"
                )
    return len(boxes)

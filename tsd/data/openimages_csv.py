"""The files of the Open Images Challenge 2019 for generated scenes: the same columns, the same rules of annotation.

What the challenge adds to plain boxes is here too: a class hierarchy whose parents are classes themselves, boxes
around groups, and image-level labels that people verified, present or absent. A class that nobody verified is neither.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsd.data.openimages import SPLITS
from tsd.files import write_text

ROOT = "/m/tsd000"
"""The hierarchy's root; like the challenge's "Entity" it is no class."""

GROUP = 5
"""Overlapping objects of one class from which on the challenge asks for one box around them all."""

ABSENT = 2
"""Classes per picture that are verified as absent."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Classes:
    """Machine ids of the classes.

    Attributes:
        leaves: COCO category id → id.
        parents: supercategory → id.
        children: id of a parent → ids of its classes.
        titles: id → display name, classes first, then their parents.
    """

    leaves: dict[int, str]
    parents: dict[str, str]
    children: dict[str, list[str]]
    titles: dict[str, str]


def number_classes(categories: Sequence[dict[str, Any]]) -> Classes:
    """Give every category and supercategory an id such as ``/m/tsd001``."""
    leaves = {category["id"]: f"/m/tsd{number:03d}" for number, category in enumerate(categories, 1)}
    kinds = dict.fromkeys(category["supercategory"] for category in categories)
    parents = {kind: f"/m/tsd{number:03d}" for number, kind in enumerate(kinds, len(leaves) + 1)}
    children: dict[str, list[str]] = {mid: [] for mid in parents.values()}
    for category in categories:
        children[parents[category["supercategory"]]].append(leaves[category["id"]])
    titles = {leaves[category["id"]]: category["name"] for category in categories}
    titles |= {mid: kind for kind, mid in parents.items()}
    return Classes(leaves, parents, children, titles)


def write_openimages(coco: dict[str, Any], split: str, folder: Path, seed: int) -> None:
    """Write a split's boxes and image-level labels, and the classes and their hierarchy, which all splits share.

    ``challenge-2019-{train,validation}-detection-bbox.csv``: ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf, where
    coordinates are fractions of the picture's width and height and XMax comes before YMin.
    ``…-detection-human-imagelabels.csv``: ImageID,Source,LabelName,Confidence, 1 for present and 0 for absent.
    ``challenge-2019-classes-description-<n>.csv``: id, name, without a header.
    ``challenge-2019-label<n>-hierarchy.json``: nested LabelName and Subcategory.

    Args:
        coco: the split's COCO instances; a picture's ImageID is its file name without the suffix.
        split: "train" or "val".
        folder: where the files go.
        seed: of the choices (which overlapping objects form a group, which absent classes are verified); they are
            drawn for each picture on its own.
    """
    classes = number_classes(coco["categories"])
    objects: dict[int, dict[int, list[Box]]] = {image["id"]: {} for image in coco["images"]}
    for annotation in coco["annotations"]:
        x, y, width, height = annotation["bbox"]
        by_class = objects[annotation["image_id"]]
        by_class.setdefault(annotation["category_id"], []).append((x, y, x + width, y + height))
    boxes: list[Sequence[Any]] = []
    labels: list[Sequence[Any]] = []
    for image in coco["images"]:
        key = [seed, 2 + list(SPLITS).index(split), image["id"]]  # 0 and 1 are the streams of the pictures themselves
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        name, size = Path(image["file_name"]).stem, (image["width"], image["height"])
        present = sorted(objects[image["id"]])
        for category in present:
            mid = classes.leaves[category]
            for box, group in merge_groups(objects[image["id"]][category], rng):
                boxes.append((name, mid, *_normalised(box, size), int(group)))
            labels.append((name, "verification", mid, 1))
        seen = {classes.leaves[category] for category in present}
        labels.extend((name, "verification", mid, 0) for mid in verified_absent(classes, seen, rng))
    prefix = f"challenge-2019-{SPLITS[split]}-detection"
    header: Sequence[str] = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
    write_text(folder / f"{prefix}-bbox.csv", _csv([header, *boxes]))
    header = ("ImageID", "Source", "LabelName", "Confidence")
    write_text(folder / f"{prefix}-human-imagelabels.csv", _csv([header, *labels]))
    count = len(classes.titles)
    write_text(folder / f"challenge-2019-classes-description-{count}.csv", _csv(classes.titles.items()))
    write_text(folder / f"challenge-2019-label{count}-hierarchy.json", json.dumps(hierarchy(classes), indent=1) + "\n")


def hierarchy(classes: Classes) -> dict[str, Any]:
    """The challenge's nested form: the root, the parents, their classes."""
    parents = [
        {"LabelName": parent, "Subcategory": [{"LabelName": child} for child in children]}
        for parent, children in classes.children.items()
    ]
    return {"LabelName": ROOT, "Subcategory": parents}


def merge_groups(boxes: Sequence[Box], rng: np.random.Generator) -> list[tuple[Box, bool]]:
    """Boxes of one class in one picture, (x0, y0, x1, y1) each, with whether the box is around a group.

    Clusters of overlapping boxes become one box from `GROUP` members on, and by the toss of a coin below that: such
    scenes are rarely crowded, and the protocol's rules for groups would otherwise go untried.
    """
    merged = []
    for members in clusters(boxes):
        if len(members) >= GROUP or (len(members) > 1 and int(rng.integers(2))):
            x0, y0, x1, y1 = zip(*members, strict=True)
            merged.append(((min(x0), min(y0), max(x1), max(y1)), True))
        else:
            merged.extend((box, False) for box in members)
    return merged


def clusters(boxes: Sequence[Box]) -> list[list[Box]]:
    """Boxes that overlap, directly or through others, in one list each."""
    found: list[list[Box]] = []
    for box in boxes:
        touching = [members for members in found if any(_overlap(box, other) for other in members)]
        found = [members for members in found if members not in touching]
        found.append([other for members in touching for other in members] + [box])
    return found


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def verified_absent(classes: Classes, seen: set[str], rng: np.random.Generator) -> list[str]:
    """Up to `ABSENT` ids verified as absent: classes that are not seen, or parents none of whose classes is."""
    absent = [mid for mid in classes.leaves.values() if mid not in seen]
    absent += [parent for parent, children in classes.children.items() if not seen.intersection(children)]
    chosen: list[str] = []
    while absent and len(chosen) < ABSENT:
        chosen.append(absent.pop(int(rng.integers(len(absent)))))
    return sorted(chosen)


def _normalised(box: Box, size: tuple[int, int]) -> tuple[str, str, str, str]:
    """XMin, XMax, YMin, YMax."""
    (x0, y0, x1, y1), (width, height) = box, size
    return f"{x0 / width:.6f}", f"{x1 / width:.6f}", f"{y0 / height:.6f}", f"{y1 / height:.6f}"


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()

"""Pascal VOC's annotation files → COCO JSON and a folder of pictures for each split.

VOC (Everingham et al., IJCV 2010; development kit of 2007) writes one XML file a picture. Corners are pixels, counted
from 1, both of which belong to the box; here they become continuous ``xyxy``: (xmin − 1, ymin − 1, xmax, ymax). What is
marked ``difficult`` becomes ``iscrowd``, which COCO's evaluation ignores as VOC's ignores difficult objects.
"""

import hashlib
import json
import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from tsd.errors import InputError
from tsd.files import write_text

CLASSES: tuple[str, ...] = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""VOC's own twenty, in its order."""

SHOWN = 20
"""Faults that are listed."""

PICTURES = {".jpg", ".jpeg", ".png", ".bmp"}

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class VocObject:
    """An object of an XML file: continuous ``xyxy`` in pixels of the picture."""

    name: str
    box: Box
    difficult: bool


@dataclass(frozen=True)
class VocPicture:
    """A picture and what its XML file says of it."""

    path: Path
    width: int
    height: int
    objects: tuple[VocObject, ...]

    @property
    def stem(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class Options:
    """How pictures and boxes are written.

    Attributes:
        max_side: longest side in pixels; larger pictures are reduced (Lanczos), their boxes with them. None: all stay.
        quality: of JPEG pictures, each of which is then saved anew; None: those that are not reduced are copied as they
            are, the others saved with 90.
        first_pixel: the number of a picture's first pixel: 1 in VOC, 0 in files of tools that count from there.
        classes: names, in the order of the categories; None: those that occur, by name.
        workers: threads.
    """

    max_side: int | None = None
    quality: int | None = None
    first_pixel: int = 1
    classes: tuple[str, ...] | None = CLASSES
    workers: int = 1


def fraction(stem: str) -> float:
    """A number of [0, 1) that depends on the name alone: SHA-256 as a fraction."""
    return int(hashlib.sha256(stem.encode()).hexdigest(), 16) / 2**256


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of classes, one a line; empty lines do not count.

    Raises:
        InputError: no such file, no name in it, or one twice.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a text file with a class a line, `voc` or `found`: {error}") from None
    if not names or len(set(names)) < len(names):
        wrong = next((name for name in names if names.count(name) > 1), None)
        raise InputError(f"{path}: {f'{wrong} is there twice' if wrong else 'empty'}; expected a class a line")
    return tuple(names)


def import_voc(splits: Mapping[str, Sequence[VocPicture]], out: Path, options: Options) -> dict[str, tuple[int, int]]:
    """Write ``annotations/instances_<split>.json`` and the folder ``<split>`` of each split into ``out``.

    Nothing is left of it if anything is wrong.

    Args:
        splits: from :func:`read_folder` and :func:`split_by_digest`.
        out: a folder that is not there, or empty.
        options: how.

    Returns:
        Pictures and boxes of each split.

    Raises:
        InputError: ``out`` holds something, a class is unknown, or no split has a picture.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: is there already; expected the name of a new folder")
    pictures = [picture for split in splits.values() for picture in split]
    if not pictures:
        raise InputError("no picture in any split; see --train and --val")
    categories = _categories(pictures, options.classes)
    numbers = _numbers([picture.stem for picture in pictures])
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    counts = {}
    try:
        for split, members in splits.items():
            folder = temporary / split
            folder.mkdir(parents=True)
            with ThreadPoolExecutor(options.workers) as pool:
                sizes = list(pool.map(partial(_write, folder=folder, options=options), members))
            content = _coco(zip(members, sizes, strict=True), categories, numbers)
            write_text(temporary / "annotations" / f"instances_{split}.json", json.dumps(content) + "\n")
            counts[split] = (len(content["images"]), len(content["annotations"]))
        if out.is_dir():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def read_folder(folder: Path, listed: str | None, first_pixel: int = 1) -> list[VocPicture]:
    """The pictures of a folder in VOC's layout (``Annotations``, ``JPEGImages``, ``ImageSets/Main``), by name.

    Args:
        folder: such as ``VOCdevkit/VOC2007``.
        listed: a list of ``ImageSets/Main``, such as ``trainval``; None: all that have an XML file.
        first_pixel: see :class:`Options`.

    Raises:
        InputError: every fault that was found, a line each: no such folder or list, a picture without XML file or the
            reverse, two pictures of one stem, broken XML, no size, a size that is not the picture's, a box outside it.
    """
    for name in ("Annotations", "JPEGImages"):
        if not (folder / name).is_dir():
            raise InputError(f"{folder}: no folder {name} in it; expected VOC's layout: Annotations/ and JPEGImages/")
    faults: list[str] = []
    pictures: dict[str, Path] = {}
    for path in sorted((folder / "JPEGImages").iterdir()):
        if path.suffix.lower() in PICTURES:
            if path.stem in pictures:
                faults.append(f"{path}: there is {pictures[path.stem].name} too; expected one picture of each stem")
            pictures[path.stem] = path
    described = {path.stem: path for path in sorted((folder / "Annotations").glob("*.xml"))}
    stems = _listed(folder, listed) if listed else sorted(described.keys() | pictures.keys())
    found = []
    for stem in stems:
        if stem not in described:
            faults.append(f"{folder / 'Annotations' / stem}.xml: not there, but the picture {stem} is wanted")
        elif stem not in pictures:
            faults.append(f"{described[stem]}: no picture {stem} in {folder / 'JPEGImages'}")
        else:
            try:
                found.append(read_xml(described[stem], pictures[stem], first_pixel))
            except InputError as error:
                faults.append(str(error))
    if faults:
        more = f"\n… and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise InputError("\n".join(faults[:SHOWN]) + more)
    return found


def _listed(folder: Path, name: str) -> list[str]:
    """Stems of a list; VOC's lists of one class have a second column, -1 for pictures without it."""
    path = folder / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt"))[:10]) or "nothing"
        raise InputError(f"{path}: no such list; there is: {known}")
    return [line.split()[0] for line in path.read_text().splitlines() if line.split() and line.split()[-1] != "-1"]


def read_xml(path: Path, picture: Path, first_pixel: int = 1) -> VocPicture:
    """What an XML file says of its picture.

    Raises:
        InputError: broken XML, a value that is missing or no number, a size that is not the picture's, a box that is
            empty or outside the picture, a picture that can't be read.
    """
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid XML: {error}") from None
    width, height = (int(_number(root, f"size/{side}", path)) for side in ("width", "height"))
    try:
        with Image.open(picture) as opened:
            size = opened.size
    except OSError as error:
        raise InputError(f"{picture}: not a picture: {error}") from None
    if size != (width, height):
        raise InputError(f"{path}: size: {width}x{height}, but {picture.name} is {size[0]}x{size[1]} pixels")
    objects = []
    for place, element in enumerate(root.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise InputError(f"{path}: object {place}: no name; expected its class")
        box = _box(element, (width, height), first_pixel, f"{path}: object {place} ({name})")
        objects.append(VocObject(name, box, (element.findtext("difficult") or "0").strip() == "1"))
    return VocPicture(picture, width, height, tuple(objects))


def _box(element: ET.Element, size: tuple[int, int], first_pixel: int, where: str) -> Box:
    x0, y0, x1, y1 = (_number(element, f"bndbox/{name}", where) for name in ("xmin", "ymin", "xmax", "ymax"))
    shift = first_pixel
    box = (x0 - shift, y0 - shift, x1 - shift + 1, y1 - shift + 1)
    if box[0] >= box[2] or box[1] >= box[3]:
        raise InputError(f"{where}: bndbox {x0:g} {y0:g} {x1:g} {y1:g} is empty; expected xmin ≤ xmax and ymin ≤ ymax")
    if min(box[:2]) < 0 or box[2] > size[0] or box[3] > size[1]:
        hint = "; do these files count pixels from 0? then --first-pixel 0" if shift and min(x0, y0) == 0 else ""
        raise InputError(
            f"{where}: bndbox {x0:g} {y0:g} {x1:g} {y1:g} is outside the picture of {size[0]}x{size[1]} pixels, which "
            f"are counted from {shift}{hint}"
        )
    return box


def _number(element: ET.Element, key: str, where: Any) -> float:
    text = element.findtext(key)
    if text is None:
        raise InputError(f"{where}: no {key}; expected pixels")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e9:
        raise InputError(f"{where}: {key}: expected pixels, got {text.strip()!r}")
    return value


def split_by_digest(pictures: Iterable[VocPicture], val_fraction: float) -> dict[str, list[VocPicture]]:
    """``val``: those whose :func:`fraction` of the stem is below a threshold; a new picture moves no other."""
    splits: dict[str, list[VocPicture]] = {"train": [], "val": []}
    for picture in pictures:
        splits["val" if fraction(picture.stem) < val_fraction else "train"].append(picture)
    return splits


def _categories(pictures: Sequence[VocPicture], classes: Sequence[str] | None) -> list[str]:
    occurring = sorted({item.name for picture in pictures for item in picture.objects})
    if classes is None:
        return occurring
    for picture in pictures:
        for item in picture.objects:
            if item.name not in classes:
                raise InputError(
                    f"{picture.path.stem}.xml: unknown class {item.name!r}; known: {', '.join(classes)}. Other classes "
                    "than VOC's: --classes FILE (a name a line), or --classes found"
                )
    return list(classes)


def _numbers(stems: Sequence[str]) -> dict[str, int]:
    """Picture ids: the stems' own numbers where all are such, else places in their order.

    Raises:
        InputError: a stem is there twice, in the same split or in two.
    """
    ordered = sorted(stems)
    for one, other in pairwise(ordered):
        if one == other:
            raise InputError(f"picture {one}: there twice; the splits have to be apart")
    if all(stem.isdecimal() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return {stem: int(stem) for stem in stems}
    return {stem: place for place, stem in enumerate(ordered, start=1)}


def _write(picture: VocPicture, folder: Path, options: Options) -> tuple[int, int]:
    """Copy or reduce a picture; returns its size there."""
    longest = max(picture.width, picture.height)
    scale = min(1.0, (options.max_side or longest) / longest)
    jpeg = picture.path.suffix.lower() in (".jpg", ".jpeg")
    if scale == 1.0 and not (jpeg and options.quality):
        shutil.copyfile(picture.path, folder / picture.path.name)
        return picture.width, picture.height
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    try:
        with Image.open(picture.path) as opened:
            reduced = opened.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    except OSError as error:
        raise InputError(f"{picture.path}: not a whole picture: {error}") from None
    encoding: dict[str, Any] = {"quality": options.quality or 90, "optimize": True} if jpeg else {}
    reduced.save(folder / picture.path.name, **encoding)
    return size


def _coco(
    written: Iterable[tuple[VocPicture, tuple[int, int]]], categories: Sequence[str], numbers: dict[str, int]
) -> dict[str, Any]:
    ids = {name: place for place, name in enumerate(categories, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for picture, (width, height) in written:
        number = numbers[picture.stem]
        images.append({"id": number, "file_name": picture.path.name, "width": width, "height": height})
        across, down = width / picture.width, height / picture.height
        for item in picture.objects:
            x0, y0, x1, y1 = item.box[0] * across, item.box[1] * down, item.box[2] * across, item.box[3] * down
            box = [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids[item.name],
                    "bbox": box,
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": int(item.difficult),
                }
            )
    return {
        "info": {"description": "made from Pascal VOC's XML files by tsd data import voc"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }

"""Pascal VOC's files: what pictures there are, what their XML says, and every fault in them.

VOC (Everingham et al., IJCV 2010; development kit of 2007) writes one XML file a picture. Corners are pixels, counted
from 1, both of which belong to the box; here they become continuous ``xyxy``: (xmin − 1, ymin − 1, xmax, ymax).
"""

import hashlib
import os
import re
import struct
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from tsd.errors import InputError

CLASSES: tuple[str, ...] = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""VOC's own twenty, in its order."""

SHOWN = 20
"""Faults that are listed."""

PICTURES = {".jpg", ".jpeg", ".png", ".bmp"}

BROKEN = (
    *(OSError, SyntaxError, ValueError, LookupError, EOFError, TypeError, struct.error, zlib.error),
    Image.DecompressionBombError,
)
"""What Pillow raises for a file that is no picture, or no whole one."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class VocObject:
    """An object of an XML file: continuous ``xyxy`` in pixels of the picture."""

    name: str
    box: Box
    difficult: bool


@dataclass(frozen=True)
class VocPicture:
    """A picture, its size, and what its XML file says of it."""

    path: Path
    width: int
    height: int
    objects: tuple[VocObject, ...]

    @property
    def stem(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class Lists:
    """Which pictures are whose.

    Attributes:
        train: a list of ``ImageSets/Main``, such as ``trainval``; None: all pictures but val's.
        val: another, such as ``test``; None: by ``val_fraction``.
        val_fraction: see :func:`split_by_digest`.
    """

    train: str | None = None
    val: str | None = None
    val_fraction: float = 0.0


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
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a text file with a class a line, `voc` or `found`: {error}") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names or len(set(names)) < len(names):
        wrong = next((name for name in names if names.count(name) > 1), None)
        raise InputError(f"{path}: {f'{wrong} is there twice' if wrong else 'empty'}; expected a class a line")
    return tuple(names)


def each(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> list[Result]:
    """In threads; who is interrupted waits only for what is being done."""
    pool = ThreadPoolExecutor(workers)
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)


def read_splits(folder: Path, lists: Lists, options: Options) -> dict[str, list[VocPicture]]:
    """The pictures of ``train`` and ``val``, each of which is decoded to see that it is whole.

    Raises:
        InputError: every fault that was found, a line each (the first 20): no such folder or list, a picture without
            XML file or the reverse, two pictures of one stem, one picture in both splits, broken XML, a broken
            picture, no size, a size that is not the picture's, a value that is none, an unknown class, a box that is
            empty, outside the picture or too small for ``max_side``. Without such: a split that has no picture.
    """
    for name in ("Annotations", "JPEGImages"):
        if not os.path.isdir(folder / name):
            raise InputError(f"{folder}: no folder {name} in it; expected VOC's layout: Annotations/ and JPEGImages/")
    faults: list[str] = []
    described = _by_stem(folder / "Annotations", {".xml"}, faults)
    pictures = _by_stem(folder / "JPEGImages", PICTURES, faults)
    stems = _stems(folder, lists, described.keys() | pictures.keys(), faults)

    def read(stem: str) -> tuple[VocPicture | None, list[str]]:
        if stem not in described:
            return None, [f"{folder / 'Annotations' / stem}.xml: not there, but the picture {stem} is wanted"]
        if stem not in pictures:
            return None, [f"{described[stem]}: no picture {stem} in {folder / 'JPEGImages'}"]
        return read_xml(described[stem], pictures[stem], options)

    splits: dict[str, list[VocPicture]] = {}
    for split, members in stems.items():
        results = each(read, members, options.workers)
        faults += [fault for _, found in results for fault in found]
        splits[split] = [picture for picture, _ in results if picture]
    if faults:
        more = f"\n… and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise InputError("\n".join(faults[:SHOWN]) + more)
    if lists.val is None and lists.val_fraction:
        splits = split_by_digest(splits["train"], lists.val_fraction)
    for split, found in splits.items():
        if not found:
            raise InputError(f"{folder}: no picture for {split}; see --train, --val and --val-fraction")
    return splits


def _by_stem(folder: Path, suffixes: set[str], faults: list[str]) -> dict[str, Path]:
    """Files of these suffixes, in any case, by stem."""
    found: dict[str, Path] = {}
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    except OSError as error:
        raise InputError(f"{folder}: can't be read: {error.strerror}") from None
    for path in paths:
        if path.stem in found:
            faults.append(f"{path}: there is {found[path.stem].name} too; expected one file of each stem")
        elif re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", path.name):
            faults.append(f"{str(path)!a}: expected a name in UTF-8 without control characters")
        found.setdefault(path.stem, path)
    return found


def _stems(folder: Path, lists: Lists, known: set[str], faults: list[str]) -> dict[str, list[str]]:
    """Of each split; a split by digest comes later, and all are ``train`` until then."""
    val = _listed(folder, lists.val, known, faults) if lists.val else []
    if lists.train is None:
        return {"train": sorted(known - set(val)), "val": val}
    train = _listed(folder, lists.train, known, faults)
    for stem in sorted(set(train) & set(val)):
        faults.append(f"{_list(folder, lists.val or '')}: picture {stem}: there twice, in {lists.train} too")
    return {"train": train, "val": val}


def _list(folder: Path, name: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{name}.txt"


def _listed(folder: Path, name: str, known: set[str], faults: list[str]) -> list[str]:
    """Stems of a list; VOC's lists of one class have a last column, -1 for pictures without it."""
    path = _list(folder, name)
    try:
        if not os.path.isfile(path):
            there = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt"))[:10]) or "nothing"
            faults.append(f"{path}: no such list; there is: {there}")
            return []
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{path}: expected UTF-8 text, a picture a line: {error}")
        return []
    stems: dict[str, None] = {}
    for line in filter(None, map(str.strip, lines)):
        stem, mark = line, ""
        # A picture may be named `photo 1`.
        if (parts := re.fullmatch(r"(.*\S)\s+(-1|0|1)", line)) and not (line in known and parts[1] not in known):
            stem, mark = parts.groups()
        if stem in stems:
            faults.append(f"{path}: picture {stem}: there twice")
        elif mark != "-1":
            stems[stem] = None
    return list(stems)


def read_xml(path: Path, picture: Path, options: Options) -> tuple[VocPicture | None, list[str]]:
    """What an XML file says of its picture, and every fault of both; only with faults there may be no picture."""
    faults: list[str] = []
    root, size, stated = None, None, None
    try:
        size = _decoded(picture)
    except InputError as error:
        faults.append(str(error))
    try:
        root = _parsed(path)
        stated = (_number(root, "size/width", path), _number(root, "size/height", path))
    except InputError as error:
        faults.append(str(error))
    if root is None:
        return None, faults
    if stated and size and stated != size:
        faults.append(f"{path}: size: {stated[0]:g}x{stated[1]:g}, but {picture.name} is {size[0]}x{size[1]} pixels")
    objects = []
    for place, element in enumerate(root.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        where = f"{path}: object {place}" + (f" ({name})" if name else "")
        if not name:
            faults.append(f"{where}: no name; expected its class")
        elif options.classes is not None and name not in options.classes:
            faults.append(f"{where}: unknown class {name!r}; {_known(options.classes)}")
        try:
            box = _box(element, stated or size, options.first_pixel, where)
            if size and min(reduced_box(box, size, reduced_size(size, options))[2:]) <= 0:
                raise InputError(
                    f"{where}: its box has no width or height with --max-side {options.max_side}; take a larger one"
                )
            objects.append(VocObject(name, box, _is_difficult(element, where)))
        except InputError as error:
            faults.append(str(error))
    return (VocPicture(picture, *size, tuple(objects)) if size else None), faults


def _known(classes: Sequence[str]) -> str:
    if tuple(classes) == CLASSES:
        return "VOC has none such. Other classes than VOC's: --classes FILE (a name a line), or --classes found"
    return f"known: {', '.join(classes[:SHOWN])}{', …' if len(classes) > SHOWN else ''}"


def _parsed(path: Path) -> ET.Element:
    if not os.path.isfile(path):
        raise InputError(f"{path}: is no file; expected an XML file")
    try:
        return ET.parse(path).getroot()
    except (ET.ParseError, ValueError, LookupError) as error:
        # The latter two: an encoding that expat lacks.
        raise InputError(f"{path}: not valid XML: {error}; expected XML, best in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from None


def _decoded(picture: Path) -> tuple[int, int]:
    """Its size, once all of it was decoded."""
    if not os.path.isfile(picture):
        raise InputError(f"{picture}: is no file; expected a picture")
    try:
        with Image.open(picture) as opened:
            size = opened.size
            opened.load()
    except BROKEN as error:
        raise InputError(f"{picture}: not a picture, or not a whole one: {error}") from None
    return size


def _box(element: ET.Element, size: tuple[float, float] | None, first_pixel: int, where: str) -> Box:
    x0, y0, x1, y1 = (_number(element, f"bndbox/{name}", where) for name in ("xmin", "ymin", "xmax", "ymax"))
    shift = first_pixel
    box = (x0 - shift, y0 - shift, x1 - shift + 1, y1 - shift + 1)
    if x0 > x1 or y0 > y1:
        raise InputError(f"{where}: bndbox {x0:g} {y0:g} {x1:g} {y1:g} is empty; expected xmin ≤ xmax and ymin ≤ ymax")
    if size and (min(box[:2]) < 0 or box[2] > size[0] or box[3] > size[1]):
        hint = "; do these files count pixels from 0? then --first-pixel 0" if shift and min(x0, y0) == 0 else ""
        raise InputError(
            f"{where}: bndbox {x0:g} {y0:g} {x1:g} {y1:g} is outside the picture of {size[0]:g}x{size[1]:g} pixels, "
            f"which are counted from {shift}{hint}"
        )
    return box


def _is_difficult(element: ET.Element, where: str) -> bool:
    text = element.findtext("difficult", "0").strip()
    if text.lower() not in ("0", "1", "false", "true"):
        raise InputError(f"{where}: difficult: expected 0 or 1, got {text!r}")
    return text.lower() in ("1", "true")


def _number(element: ET.Element, key: str, where: Any) -> float:
    text = element.findtext(key)
    if text is None:
        raise InputError(f"{where}: no {key}; expected pixels")
    plain = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)", text.strip())
    if not plain or not abs(float(plain[0])) < 1e9:
        raise InputError(f"{where}: {key}: expected pixels, got {text.strip()!r}")
    return float(plain[0])


def split_by_digest(pictures: Iterable[VocPicture], val_fraction: float) -> dict[str, list[VocPicture]]:
    """``val``: those whose :func:`fraction` of the stem is below a threshold; a new picture moves no other."""
    splits: dict[str, list[VocPicture]] = {"train": [], "val": []}
    for picture in pictures:
        splits["val" if fraction(picture.stem) < val_fraction else "train"].append(picture)
    return splits


def reduced_size(size: tuple[int, int], options: Options) -> tuple[int, int]:
    """Width and height that a picture is written with."""
    scale = min(1.0, (options.max_side or max(size)) / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def reduced_box(box: Box, size: tuple[int, int], target: tuple[int, int]) -> list[float]:
    """Left, top, width and height in the written picture."""
    across, down = target[0] / size[0], target[1] / size[1]
    x0, y0, x1, y1 = box[0] * across, box[1] * down, box[2] * across, box[3] * down
    return [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]

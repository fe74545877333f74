"""Pascal VOC's annotation files → COCO JSON and a folder of pictures for each split.

VOC (Everingham et al., IJCV 2010; development kit of 2007) writes one XML file a picture. Corners are pixels, counted
from 1, both of which belong to the box; here they become continuous ``xyxy``: (xmin − 1, ymin − 1, xmax, ymax). What is
marked ``difficult`` becomes ``iscrowd``, which COCO's evaluation ignores as VOC's ignores difficult objects.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import struct
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EDQUOT, EIO, ENOSPC
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from tsd.errors import InputError, WorkError
from tsd.files import write_text

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


def import_voc(folder: Path, lists: Lists, out: Path, options: Options) -> dict[str, tuple[int, int]]:
    """Write ``annotations/instances_<split>.json`` and the folder ``<split>`` of each split into ``out``.

    Nothing is left of it if anything is wrong.

    Args:
        folder: in VOC's layout (``Annotations``, ``JPEGImages``, ``ImageSets/Main``), such as ``VOCdevkit/VOC2007``.
        lists: which pictures are for training.
        out: a folder that is not there, or empty.
        options: how.

    Returns:
        Pictures and boxes of each split.

    Raises:
        InputError: ``out`` can't become a new folder, which is tried first; or as :func:`read_splits`.
        WorkError: the disk is full or fails.
    """
    counts = {}
    with _new_folder(out) as temporary:
        splits = read_splits(folder, lists, options)
        pictures = [picture for split in splits.values() for picture in split]
        categories = _categories(pictures, options.classes)
        numbers = _numbers([picture.stem for picture in pictures])
        for split, members in splits.items():
            with _writing(temporary / split):
                (temporary / split).mkdir()
            sizes = _each(partial(_write, folder=temporary / split, options=options), members, options.workers)
            content = _coco(zip(members, sizes, strict=True), categories, numbers)
            path = temporary / "annotations" / f"instances_{split}.json"
            with _writing(path):
                write_text(path, json.dumps(content) + "\n")
            counts[split] = (len(content["images"]), len(content["annotations"]))
    return counts


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` when all went well; that it can is tried at once, by doing it empty."""
    expected = "expected the name of a new folder"
    if out.name in ("", "..") or os.path.islink(out) or os.path.ismount(out):
        raise InputError(f"{out}: is a mount, a link, or has no name of its own; {expected}")
    temporary = out.parent / f".tsd-import.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    made = [path for path in (out, *out.parents) if not os.path.lexists(path)]
    try:
        try:
            if os.path.lexists(out) and (not out.is_dir() or os.listdir(out) or out.samefile(Path.cwd())):
                raise InputError(f"{out}: is there already; {expected}")
            out.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            temporary.rename(out)
            temporary.mkdir()
        except OSError as error:
            sentence = f"{out}: can't be made: {error.strerror}"
            if error.errno in (ENOSPC, EDQUOT, EIO):
                raise WorkError(sentence) from None
            raise InputError(f"{sentence}; {expected}") from None
        yield temporary
        with _writing(out):
            temporary.rename(out)
        made = []
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for path in made:
            with suppress(OSError):
                path.rmdir()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorkError(f"{path}: can't be written: {error.strerror or error}") from None


def _each(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> list[Result]:
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
        results = _each(read, members, options.workers)
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
            if size and min(_reduced(box, size, _target(size, options))[2:]) <= 0:
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


def _categories(pictures: Sequence[VocPicture], classes: Sequence[str] | None) -> list[str]:
    if classes is not None:
        return list(classes)
    occurring = sorted({item.name for picture in pictures for item in picture.objects})
    if not occurring:
        raise InputError("--classes found: no picture has an object; expected one at least, or the classes' names")
    return occurring


def _numbers(stems: Sequence[str]) -> dict[str, int]:
    """Picture ids: the stems' own numbers where all are such and below 2**31, else places in their order.

    Evaluators hold ids as floats: they would take two timestamps of 17 digits for one.
    """
    if all(re.fullmatch("[0-9]+", stem) and int(stem) < 2**31 for stem in stems):
        numbers = {stem: int(stem) for stem in stems}
        if len(set(numbers.values())) == len(stems):
            return numbers
    return {stem: place for place, stem in enumerate(sorted(stems), start=1)}


def _target(size: tuple[int, int], options: Options) -> tuple[int, int]:
    """Width and height that a picture is written with."""
    scale = min(1.0, (options.max_side or max(size)) / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _write(picture: VocPicture, folder: Path, options: Options) -> tuple[int, int]:
    """Copy or reduce a picture; returns its size there."""
    size = _target((picture.width, picture.height), options)
    jpeg = picture.path.suffix.lower() in (".jpg", ".jpeg")
    target = folder / picture.path.name
    if size == (picture.width, picture.height) and not (jpeg and options.quality):
        with _writing(target):
            shutil.copyfile(picture.path, target)
        return size
    try:
        with Image.open(picture.path) as opened:
            reduced = _eight_bits(opened).resize(size, Image.Resampling.LANCZOS)
    except BROKEN as error:
        raise InputError(f"{picture.path}: not a whole picture: {error}") from None
    encoding: dict[str, Any] = {"quality": options.quality or 90, "optimize": True} if jpeg else {}
    with _writing(target):
        reduced.save(target, **encoding)
    return size


def _eight_bits(picture: Image.Image) -> Image.Image:
    """As RGB. Pillow's own conversion cuts 16 bits at 255, which makes them white."""
    if picture.mode.startswith("I;16"):
        picture = picture.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    elif picture.mode in ("I", "F"):
        raise ValueError(f"mode {picture.mode}, of 32 bits; expected 8 or 16 bits a channel")
    return picture.convert("RGB")


def _reduced(box: Box, size: tuple[int, int], target: tuple[int, int]) -> list[float]:
    """Left, top, width and height in the written picture."""
    across, down = target[0] / size[0], target[1] / size[1]
    x0, y0, x1, y1 = box[0] * across, box[1] * down, box[2] * across, box[3] * down
    return [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]


def _coco(
    written: Iterable[tuple[VocPicture, tuple[int, int]]], categories: Sequence[str], numbers: dict[str, int]
) -> dict[str, Any]:
    ids = {name: place for place, name in enumerate(categories, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for picture, (width, height) in written:
        number = numbers[picture.stem]
        images.append({"id": number, "file_name": picture.path.name, "width": width, "height": height})
        for item in picture.objects:
            box = _reduced(item.box, (picture.width, picture.height), (width, height))
            area = box[2] * box[3]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids[item.name],
                    "bbox": box,
                    "area": round(area, 2) or area,
                    "iscrowd": int(item.difficult),
                }
            )
    return {
        "info": {"description": "made from Pascal VOC's XML files by tsd data import voc"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }

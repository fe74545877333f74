"""Pascal VOC's files → COCO JSON and a folder of pictures for each split.

What is marked ``difficult`` becomes ``iscrowd``, which COCO's evaluation ignores as VOC's ignores difficult objects.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EDQUOT, EIO, ENOSPC
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from tsd.data.formats.voc_files import BROKEN, Lists, Options, VocPicture, each, read_splits, reduced_box, reduced_size
from tsd.errors import InputError, WorkError
from tsd.files import write_text


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
            sizes = each(partial(_write, folder=temporary / split, options=options), members, options.workers)
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


def _write(picture: VocPicture, folder: Path, options: Options) -> tuple[int, int]:
    """Copy or reduce a picture; returns its size there."""
    size = reduced_size((picture.width, picture.height), options)
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
            box = reduced_box(item.box, (picture.width, picture.height), (width, height))
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

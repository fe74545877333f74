"""A folder in COCO's format, made of VOC's archives: they are fetched, unpacked beside it and imported.

The folder is there whole or not at all. Whoever was killed goes on with what has been fetched.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsd.data.fetch import alone, fetch_files
from tsd.data.formats.voc import import_voc
from tsd.data.formats.voc_files import CLASSES, Lists, Options
from tsd.data.sources import Source
from tsd.data.unpack import is_whole, untar
from tsd.errors import InputError, WorkError

WANTED = ("Annotations", "JPEGImages", "ImageSets")
"""Of what the archives hold."""


@dataclass(frozen=True)
class Archives:
    """What a folder is made of, and how.

    Attributes:
        source: name of a source of ``params/sources.yaml``.
        archives: which of its files.
        layout: the folder in them with ``Annotations``, ``JPEGImages`` and ``ImageSets``, such as VOCdevkit/VOC2007.
        lists: which pictures are for training.
        options: how they are written.
        out: the folder to make.
    """

    source: str
    archives: tuple[str, ...]
    layout: str
    lists: Lists
    options: Options
    out: Path

    @property
    def parts(self) -> list[Path]:
        """What is in the folder once it is whole."""
        return [path for split in ("train", "val") for path in _places(self.out, split)]

    @property
    def store(self) -> Path:
        """Where the archives are kept: beside the folder, for all that is made of the same source."""
        return self.out.parent / "archives" / self.source

    @property
    def scratch(self) -> Path:
        """Where they are unpacked and imported."""
        return self.out.with_name(f".{self.out.name}.import")


def read_archives(data: Mapping[str, Any]) -> Archives:
    """What ``data`` of a suite says.

    Args:
        data: valid by ``workflow/schemas/suite.schema.yaml``, with the key ``import``.

    Raises:
        InputError: keys that do not go together, or folders that are not those of an import; names the key.
    """
    told = data["import"]
    for key, why in (
        ("source", "a source of params/sources.yaml, which data.import takes its archives from"),
        ("classes", "the number of classes, to plan with before the data is made"),
    ):
        if key not in data:
            raise InputError(f"{key}: missing key: {why}")
    if ("val" in told) == ("val_fraction" in told):
        got = "both" if "val" in told else "neither"
        raise InputError(f"import.val: expected val, a list of ImageSets/Main, or val_fraction; got {got}")
    layout = Path(told["voc"])
    if layout.is_absolute() or ".." in layout.parts:
        raise InputError(f"import.voc: expected a folder in the archives, got {told['voc']!r}")
    out = Path(data["train"]["annotations"]).parent.parent
    for split in ("train", "val"):
        annotations, images = _places(out, split)
        if (Path(data[split]["annotations"]), Path(data[split]["images"])) != (annotations, images) or not out.name:
            got = f"{data[split]['annotations']} and {data[split]['images']}"
            raise InputError(
                f"{split}: expected what an import makes in a FOLDER, the same for train and val: "
                f"FOLDER/annotations/instances_{split}.json and FOLDER/{split}; got {got}"
            )
    classes = told.get("classes", "voc")
    named = {"voc": CLASSES, "found": None}[classes] if isinstance(classes, str) else tuple(classes)
    options = Options(told.get("max_side"), told.get("quality"), told.get("first_pixel", 1), named)
    lists = Lists(told.get("train"), told.get("val"), told.get("val_fraction", 0.0))
    return Archives(data["source"], tuple(told["archives"]), told["voc"], lists, options, out)


def check_source(archives: Archives, source: Source) -> None:
    """Refuse archives that the source does not have.

    Raises:
        InputError: names the key.
    """
    known = [file.path for file in source.files]
    for index, name in enumerate(archives.archives):
        if name not in known:
            raise InputError(
                f"import.archives.{index}: {name!r} is not of source {source.name}; it has: {', '.join(known)}"
            )


def is_made(archives: Archives) -> bool:
    """Whether the folder is there: whole, whoever put it there; or not at all. Folders without files do not count.

    Raises:
        InputError: something is there, but not all of it.
    """
    return is_whole(archives.out, archives.parts, "it to have it made of the archives")


def make_folder(archives: Archives, source: Source) -> dict[str, tuple[int, int]] | None:
    """Make the folder unless it is there; returns pictures and boxes of each split, or None if it was there.

    The archives stay.

    Raises:
        InputError: another process fetches the same source; part of a folder is there; or the archives hold what
            :func:`tsd.data.formats.voc.import_voc` refuses.
        WorkError: an archive could not be had, is broken or is not to be trusted; or the disk is full.
    """
    if is_made(archives):
        shutil.rmtree(archives.scratch, ignore_errors=True)  # of a process that was killed at the very end
        return None
    check_source(archives, source)
    with alone(archives.store):
        if is_made(archives):
            return None
        files = fetch_files(source, archives.store, only=frozenset(archives.archives).__contains__)
        with _emptied(archives.scratch) as scratch:
            for file in files:
                untar(file, scratch, lambda name: _is_wanted(name, archives.layout))
            return _import(archives, scratch)


def _places(out: Path, split: str) -> tuple[Path, Path]:
    return out / "annotations" / f"instances_{split}.json", out / split


def _is_wanted(name: str, layout: str) -> bool:
    return any(Path(name).is_relative_to(Path(layout, part)) for part in WANTED)


@contextmanager
def _emptied(scratch: Path) -> Iterator[Path]:
    """A new folder, removed in the end; what a killed process left there is removed first."""
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _import(archives: Archives, scratch: Path) -> dict[str, tuple[int, int]]:
    made = scratch / "made"
    try:
        counts = import_voc(scratch / archives.layout, archives.lists, made, archives.options)
    except InputError as error:
        said = str(error).replace(f"{scratch}/", "")  # that folder goes
        raise InputError(f"in {', '.join(archives.archives)}:\n{said}") from None
    try:
        for path in sorted(archives.out.rglob("*"), reverse=True):
            path.rmdir()
        made.rename(archives.out)
    except OSError as error:
        raise WorkError(f"{archives.out}: can't be written: {error.strerror}") from None
    return counts

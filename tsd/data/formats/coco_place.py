"""COCO 2017's folder: which archives it is made of, where it and what belongs to it are, and whether it is there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsd.data.sources import Source, SourceFile
from tsd.data.unpack import is_whole
from tsd.errors import InputError


@dataclass(frozen=True)
class Part:
    """An archive, by its path below the source's address; what is wanted of it; and where that is, in the folder."""

    archive: str
    member: str
    places: tuple[str, ...]


PARTS = {
    "train2017": Part("zips/train2017.zip", r"train2017/[^/]+\.jpg", ("train2017",)),
    "val2017": Part("zips/val2017.zip", r"val2017/[^/]+\.jpg", ("val2017",)),
    "annotations": Part(
        "annotations/annotations_trainval2017.zip", r"annotations/instances_(train|val)2017\.json", ("annotations",)
    ),
    "test2017": Part("zips/test2017.zip", r"test2017/[^/]+\.jpg", ("test2017",)),
    "test_info": Part(
        "annotations/image_info_test2017.zip", r"annotations/image_info_test(-dev)?2017\.json", ("annotations",)
    ),
}
NEEDED = ("train2017", "val2017", "annotations")
"""Parts that the folder is made of; the others are put into it when they are asked for."""

SPLITS = {"train": "train2017", "val": "val2017"}


@dataclass(frozen=True)
class Place:
    """Where a source's folder is, and what belongs to it.

    Attributes:
        source: its name in ``params/sources.yaml``.
        out: the folder, with ``train2017``, ``val2017`` and ``annotations``.
    """

    source: str
    out: Path

    @property
    def parts(self) -> list[Path]:
        """What is in the folder once it is whole."""
        return [path for split in SPLITS for path in self.split(split)]

    def split(self, name: str) -> tuple[Path, Path]:
        """(annotation file, picture folder) of ``train`` or ``val``."""
        return self.out / "annotations" / f"instances_{SPLITS[name]}.json", self.out / SPLITS[name]

    @property
    def store(self) -> Path:
        """Where the archives are kept: beside the folder."""
        return self.out.parent / "archives" / self.source

    @property
    def scratch(self) -> Path:
        """Where they are unpacked."""
        return self.out.with_name(f".{self.out.name}.unpacked")

    @property
    def manifest(self) -> Path:
        """What the folder holds, in a kilobyte. It is beside the folder, which may be somebody else's."""
        return self.out.with_name(f"{self.out.name}.json")

    @property
    def sizes(self) -> Path:
        """The bytes of every picture, part of the manifest."""
        return self.out.with_name(f"{self.out.name}.parquet")


def read_place(data: Mapping[str, Any]) -> Place:
    """What ``data`` of a suite says.

    Args:
        data: valid by ``workflow/schemas/suite.schema.yaml``, of format ``coco``, with ``source`` and no ``import``.

    Raises:
        InputError: no number of classes, or files that are not where the archives have them; names the key.
    """
    if "classes" not in data:
        raise InputError("classes: missing key: the number of classes, to plan with before the data is fetched")
    place = Place(data["source"], Path(data["train"]["annotations"]).parent.parent)
    for split in SPLITS:
        annotations, images = place.split(split)
        if (Path(data[split]["annotations"]), Path(data[split]["images"])) != (annotations, images):
            got = f"{data[split]['annotations']} and {data[split]['images']}"
            raise InputError(
                f"{split}: expected {annotations} and {images}, as the archives of a source have them; got {got}; "
                "leave data.source out for data of your own"
            )
    if not place.out.name:
        raise InputError("train.annotations: expected a file in FOLDER/annotations, got no folder")
    return place


def wanted_files(source: Source, parts: Iterable[str] = NEEDED) -> list[SourceFile]:
    """The source's archives of those parts.

    Raises:
        InputError: the source has no such archive.
    """
    known = {file.path: file for file in source.files}
    for part in parts:
        if PARTS[part].archive not in known:
            raise InputError(
                f"source: {source.name} of params/sources.yaml has no {PARTS[part].archive}: expected the archives of "
                f"COCO 2017; it has: {', '.join(known)}"
            )
    return [known[PARTS[part].archive] for part in parts]


def identity(source: Source) -> list[list[str]]:
    """What the folder is, before it is there: path and SHA-256 of each archive that it is made of."""
    return [[file.path, file.sha256] for file in wanted_files(source)]


def is_there(place: Place) -> bool:
    """Whether the folder is there, whoever put it there; or not at all. Folders without files do not count.

    Raises:
        InputError: something is there, but not all of it.
    """
    otherwise = f"{place.out} to have it fetched; if it is data of your own, make a suite of it (docs/own-data.md)"
    return is_whole(place.out, place.parts, otherwise)

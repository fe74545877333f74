"""COCO 2017's folder: made of its published archives, or one's own in its place, which must be the same.

The folder is there whole or not at all; beside it is a manifest of it. Whoever was killed goes on where he was.
"""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from tsd.data.coco import MOST, Coco, read_coco
from tsd.data.fetch import alone, fetch_files
from tsd.data.manifest import Manifest, describe_file, digest, dump, read_manifest, verify_annotations
from tsd.data.picture_sizes import compare_pictures
from tsd.data.sources import Source, SourceFile
from tsd.data.unpack import holds_nothing, unzip
from tsd.errors import InputError, WorkError
from tsd.files import atomic_path, write_text


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
    missing = [path for path in place.parts if not path.exists()]
    if not missing:
        return True
    out = place.out
    if out.is_symlink() or (out.exists() and not holds_nothing(out)):
        raise InputError(
            f"{missing[0]}: not there, but {out} is; complete it, or remove {out} to have it fetched; if it is data of "
            "your own, make a suite of it (docs/own-data.md)"
        )
    return False


def make_folder(place: Place, source: Source, parts: Sequence[str] = NEEDED) -> dict[str, int] | None:
    """Fetch and unpack what is missing; returns the files of each part, or None if the folder was there.

    The folder appears when all of :data:`NEEDED` are unpacked. One that somebody put there is compared with the source
    and then used as it is. The archives stay.

    Raises:
        InputError: another process fetches the same source; too little space; the folder is there in part, or is not
            what the source has.
        WorkError: an archive could not be had, is broken, or does not hold what the source says; or the disk is full.
    """
    files = wanted_files(source, parts)
    needed = [part for part in parts if part in NEEDED]
    further = [part for part in parts if part not in NEEDED]
    there = is_there(place)
    if there and not further and _is_described(place, source):
        return None
    with alone(place.store):
        for path in place.out.parent.glob(f".{place.out.name}.*.tmp.*"):  # of a process that was killed at the very end
            path.unlink()
        there = is_there(place)
        todo = further if there else parts
        if todo:
            names = {file.path for file in wanted_files(source, todo)}
            room = sum(_left_to_unpack(file, place) for file in files if file.path in names)
            fetch_files(source, place.store, only=names.__contains__, beside=room)
        counts = {part: _unpack(part, place.scratch, place, source) for part in needed} if not there else {}
        if not there and all((place.scratch / PARTS[part].places[0]).is_dir() for part in NEEDED):
            _appear(place)
        if is_there(place) and not _is_described(place, source):
            _describe(place, source, check=there)
        if further and not is_there(place):
            raise InputError(f"{place.out}: not there: fetch it before {', '.join(further)}, which goes into it")
        counts |= {part: _unpack(part, place.out, place, source) for part in further}
        return counts or None


def verify_folder(place: Place, source: Source) -> dict[str, int]:
    """Compare the folder with its source and, where there is one, its manifest; returns pictures of each split.

    Raises:
        InputError: anything is missing or differs; the message lists what, and what can be done.
    """
    if not is_there(place):
        raise InputError(f"{place.out}: no such folder; `tsd data fetch` makes it, or put or link your own COCO there")
    return {split: len(sizes) for split, sizes in _look_through(place, source).items()}


def _left_to_unpack(file: SourceFile, place: Place) -> int:
    """Pictures hardly get smaller in a zip: its size, less what is unpacked of it already."""
    name = next(part.places[0] for part in PARTS.values() if part.archive == file.path)
    return max(0, file.bytes - sum(path.stat().st_size for path in (place.scratch / name).glob("*")))


def _unpack(part: str, folder: Path, place: Place, source: Source) -> int:
    archive = place.store / PARTS[part].archive
    wanted = re.compile(PARTS[part].member)
    count = unzip(archive, folder, lambda name: bool(wanted.fullmatch(name)))
    expected = source.pictures.get(part.removesuffix("2017")) if part.endswith("2017") else None
    if expected is not None and count != expected:
        raise InputError(f"{archive}: {count} pictures, expected {expected} by params/sources.yaml, {source.name}")
    return count


def _appear(place: Place) -> None:
    """Give the unpacked folder its name; what describes an earlier one goes first."""
    try:
        place.manifest.unlink(missing_ok=True)
        place.sizes.unlink(missing_ok=True)
        if place.out.exists():
            shutil.rmtree(place.out)  # nothing but empty folders
        place.scratch.rename(place.out)
    except OSError as error:
        raise WorkError(f"{place.out}: can't be written: {error.strerror}") from None


def _is_described(place: Place, source: Source) -> bool:
    return place.manifest.is_file() and read_manifest(place.manifest).get("source") == identity(source)


def _describe(place: Place, source: Source, check: bool) -> None:
    """Write the manifest of the folder, which is compared with the source first if it was not fetched here."""
    if check:
        sizes = _look_through(place, source)
    else:
        sizes = {
            split: {path.name: path.stat().st_size for path in place.split(split)[1].glob("*.jpg")} for split in SPLITS
        }
    rows = [(split, name, size) for split in SPLITS for name, size in sorted(sizes[split].items())]
    columns = dict(zip(("split", "name", "bytes"), map(list, zip(*rows, strict=True)), strict=True))
    with atomic_path(place.sizes) as temporary:
        parquet.write_table(pa.table(columns), temporary)
    home = place.manifest.parent
    splits = {}
    for split in SPLITS:
        annotations, images = place.split(split)
        own = sizes[split]
        splits[split] = {
            "annotations": describe_file(home, str(annotations.relative_to(home))),
            "images": {"path": str(images.relative_to(home)), "count": len(own), "bytes": sum(own.values())},
        }
    made: Manifest = {"format": "coco", "spec": None, "source": identity(source), "splits": splits}
    write_text(place.manifest, dump(made | {"files": {"pictures": describe_file(home, place.sizes.name)}}))


def _look_through(place: Place, source: Source) -> dict[str, dict[str, int]]:
    """Bytes of each split's pictures, by name, of a folder in which nothing differs from source and manifest.

    Raises:
        InputError: see :func:`verify_folder`.
    """
    sizes: dict[str, dict[str, int]] = {}
    problems: list[str] = []
    known: dict[str, dict[str, int]] | None = None
    if place.manifest.is_file():
        if not _is_described(place, source):
            problems.append(
                f"{place.manifest}: describes a folder of other archives than those of source {source.name}"
            )
        else:
            problems += verify_annotations(place.manifest)
            known = _known_sizes(place)
    for split in SPLITS:
        annotations, images = place.split(split)
        content = read_coco(annotations)
        problems += _count_problems(annotations, content, source, split)
        sizes[split], wrong = compare_pictures(images, content["images"], known[split] if known is not None else None)
        problems += wrong
    if problems:
        more = [f"and {len(problems) - MOST} more"] if len(problems) > MOST else []
        raise InputError("\n".join([*problems[:MOST], *more, _advice(place, source)]))
    return sizes


def _advice(place: Place, source: Source) -> str:
    return (
        f"{place.out}: not what source {source.name} of params/sources.yaml has. If it was fetched, remove it and "
        f"{place.manifest}, and fetch it again. If it is data of your own, make a suite of it (docs/own-data.md)"
    )


def _known_sizes(place: Place) -> dict[str, dict[str, int]]:
    entry = read_manifest(place.manifest)["files"]["pictures"]
    if not place.sizes.is_file() or digest(place.sizes) != entry["sha256"]:
        raise InputError(
            f"{place.sizes}: missing, or not the one that belongs to {place.manifest}; remove both, and "
            "`tsd data fetch` writes them anew"
        )
    rows = parquet.read_table(place.sizes).to_pylist()
    sizes: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    for row in rows:
        sizes[row["split"]][row["name"]] = row["bytes"]
    return sizes


def _count_problems(annotations: Path, content: Coco, source: Source, split: str) -> list[str]:
    expected = {
        "images": source.pictures.get(split),
        "annotations": source.annotations.get(split),
        "categories": source.categories or None,
    }
    words = {"images": "pictures"}
    return [
        f"{annotations}: {len(content[key])} {words.get(key, key)}, expected {number}"
        for key, number in expected.items()
        if number is not None and len(content[key]) != number
    ]

"""COCO 2017's folder: made of its published archives, or one's own in its place, which must be the same.

The folder is there whole or not at all; beside it is a manifest of it. Whoever was killed goes on where he was.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from tsd.data.coco import MOST, Coco, check_trained_on, read_coco
from tsd.data.fetch import alone, fetch_files
from tsd.data.formats.coco_place import NEEDED, PARTS, SPLITS, Place, identity, is_there, wanted_files
from tsd.data.manifest import Manifest, describe_file, digest, dump, read_manifest, verify_annotations
from tsd.data.picture_sizes import compare_pictures
from tsd.data.sources import Source, SourceFile
from tsd.data.unpack import unzip
from tsd.errors import InputError, WorkError
from tsd.files import atomic_path, write_text


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
        if not problems:
            check_trained_on(annotations, content)
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

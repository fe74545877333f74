"""Open Images annotations in columns on disk: opened by mapping the file into memory, so that all processes share one.

A store is a folder: ``boxes.arrow`` (one row per box, picture by picture), ``pictures.arrow`` (one row per picture, by
ImageID), ``starts.arrow`` (where each picture's rows begin), ``labels.arrow`` (image-level labels, picture by picture)
and ``store.json`` (classes, ancestors, counts,
digests of the files that it was made from). Labels are numbers into the classes, keyed by MID.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tsd.data.class_aware import ClassIndex
from tsd.data.manifest import digest
from tsd.data.openimages import Array, Hierarchy, Table, expand, read_boxes, read_hierarchy, read_labels
from tsd.data.pictures import read_pictures
from tsd.errors import InputError
from tsd.files import read_json, write_json

VERSION = 1
FILES = ("boxes.arrow", "pictures.arrow", "labels.arrow", "starts.arrow")


@dataclass(frozen=True)
class Store:
    """Annotations of one split; arrays are views of the mapped files.

    Attributes:
        folder: where it is.
        hierarchy: classes and their ancestors.
        ids: ImageID of each picture, rising.
        starts: (M + 1,) first box of each picture.
        size: (M, 2) width and height in pixels, 0 where the picture has not been fetched.
        box: (N, 4) XMin, YMin, XMax, YMax as fractions, float32.
        label: (N,) label.
        group: (N,) whether the box is around a group.
        label_starts: (M + 1,) first image-level label of each picture.
        seen_label: (L,) image-level labels.
        seen_present: (L,) whether verified present, or absent.
    """

    folder: Path
    hierarchy: Hierarchy
    ids: pa.Array
    starts: Array
    size: Array
    box: Array
    label: Array
    group: Array
    label_starts: Array
    seen_label: Array
    seen_present: Array

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """Map a store into memory.

        Raises:
            InputError: no store, one of another version, or a file that is broken.
        """
        facts = read_json(folder / "store.json")
        if facts.get("version") != VERSION:
            raise InputError(f"{folder}: a store of version {facts.get('version')}, expected {VERSION}; make it anew")
        tree = Hierarchy(tuple(facts["mids"]), tuple(facts["names"]), tuple(map(tuple, facts["ancestors"])))
        boxes, pictures, labels, starts = (_map(folder / name) for name in FILES)
        return cls(
            folder=folder,
            hierarchy=tree,
            ids=pictures.column("id"),
            starts=_view(starts, "boxes"),
            size=_view(pictures, "size"),
            box=_view(boxes, "box"),
            label=_view(boxes, "label"),
            group=_view(boxes, "group"),
            label_starts=_view(starts, "labels"),
            seen_label=_view(labels, "label"),
            seen_present=_view(labels, "present"),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def boxed(self) -> Array:
        """Numbers of the pictures with a box, in the order of their ids."""
        return np.flatnonzero(np.diff(self.starts))

    def boxes_of(self, picture: int) -> slice:
        """The picture's rows of ``box``, ``label`` and ``group``."""
        return slice(int(self.starts[picture]), int(self.starts[picture + 1]))

    def class_index(self, pictures: Array, *, ancestors: bool = False, groups: bool = True) -> ClassIndex:
        """Which of some pictures have a box of each class; pictures are numbered by their place in ``pictures``.

        Args:
            pictures: rising numbers of pictures.
            ancestors: a box counts for the classes above its own as well.
            groups: boxes around groups count.
        """
        place = np.full(len(self), -1, dtype=np.int32)
        place[pictures] = np.arange(len(pictures), dtype=np.int32)
        owner = np.repeat(place, np.diff(self.starts))
        kept = owner >= 0
        if not groups:
            kept &= self.group == 0
        labels, owner = self.label[kept].astype(np.int32), owner[kept]
        if ancestors:
            rows, labels = expand(labels, self.hierarchy.ancestors)
            owner = owner[rows]
        return ClassIndex.from_pairs(labels, owner, len(self.hierarchy.mids))


def _map(path: Path) -> pa.RecordBatch:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: not a part of a store: {error}; make the store anew") from None


def _view(batch: pa.RecordBatch, name: str) -> Array:
    """A column as numpy sees it, (N,) or (N, k), where it lies. (pyarrow's own way imports pandas.)"""
    column = batch.column(name)
    shape: tuple[int, ...] = (-1,)
    if pa.types.is_fixed_size_list(column.type):
        shape = (-1, column.type.list_size)
        column = column.values
    buffer = column.buffers()[1]
    dtype = np.dtype("float32" if column.type == pa.float32() else str(column.type))
    flat = np.frombuffer(buffer, dtype, count=len(column)) if len(column) else np.zeros(0, dtype)
    return flat.reshape(shape) if len(column) else np.zeros((0, *shape[1:]), dtype)


def build_store(
    boxes: Path,
    labels: Path,
    classes: Path,
    hierarchy: Path,
    out: Path,
    *,
    pictures: Path | None = None,
    split: str = "",
) -> dict[str, Any]:
    """CSV files → a store; returns what ``store.json`` counts.

    Pictures are those of both files. A box that is there twice, in every column, is kept once, and one without extent
    is left out; both are counted.

    Args:
        boxes: ``challenge-2019-<split>-detection-bbox.csv``.
        labels: ``challenge-2019-<split>-detection-human-imagelabels.csv``.
        classes: ``challenge-2019-classes-description-500.csv``.
        hierarchy: ``challenge-2019-label500-hierarchy.json``.
        out: the store's folder; one that is there is replaced when the new one is whole.
        pictures: record of the fetched pictures, for their sizes.
        split: whose pictures of that record.

    Raises:
        InputError: a file that can't be used; names file, row and value.
    """
    tree = read_hierarchy(classes, hierarchy)
    box_table = read_boxes(boxes, tree.mids)
    label_table = read_labels(labels, tree.mids)
    ids = sorted({*box_table.pictures, *label_table.pictures})
    number = {name: place for place, name in enumerate(ids)}
    if out.exists() and any(path.name not in (*FILES, "store.json", ".snakemake_timestamp") for path in out.iterdir()):
        raise InputError(f"{out}: holds something else than a store; choose an empty folder")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        per_picture, dropped = _write_boxes(box_table, number, temporary / FILES[0])
        rows = len(box_table)
        with_boxes = len(box_table.pictures)
        del box_table
        labels_per_picture = _write_labels(label_table, number, temporary / FILES[2])
        sizes = _sizes(pictures, split, ids)
        flat = pa.array(sizes.reshape(-1), pa.int32())
        columns = {"id": pa.array(ids, pa.string()), "size": pa.FixedSizeListArray.from_arrays(flat, 2)}
        _write(temporary / FILES[1], columns)
        _write(temporary / FILES[3], {"boxes": _starts(per_picture), "labels": _starts(labels_per_picture)})
        counts = {
            "pictures": len(ids),
            "pictures_with_boxes": with_boxes,
            "boxes": rows - sum(dropped.values()),
            "image_level_labels": len(label_table),
            "pictures_of_known_size": int((sizes[:, 0] > 0).sum()),
            **dropped,
        }
        sources = {path.name: digest(path) for path in (boxes, labels, classes, hierarchy)}
        content = {"mids": list(tree.mids), "names": list(tree.names), "ancestors": [list(a) for a in tree.ancestors]}
        write_json(temporary / "store.json", {"version": VERSION, "counts": counts, "sources": sources, **content})
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def _write_boxes(table: Table, number: dict[str, int], path: Path) -> tuple[Array, dict[str, int]]:
    """Write the boxes picture by picture; returns the number of each picture's, and what was left out."""
    columns = table.columns
    owner = _owner(table, number)
    box = np.empty((len(table), 4), dtype=np.float32)
    for place, name in enumerate(("XMin", "YMin", "XMax", "YMax")):
        box[:, place] = columns.pop(name)
    label = columns.pop("LabelName").astype(np.uint16)
    group = columns.pop("IsGroupOf").astype(np.uint8)
    extent = (box[:, 2:] > box[:, :2]).all(axis=1)
    repeated = _repeated(owner, box, label, group)
    kept = np.flatnonzero(extent & ~repeated)
    kept = kept[np.argsort(owner[kept], kind="stable")]
    flat = pa.array(box[kept].reshape(-1), pa.float32())
    _write(
        path,
        {
            "box": pa.FixedSizeListArray.from_arrays(flat, 4),
            "label": pa.array(label[kept], pa.uint16()),
            "group": pa.array(group[kept], pa.uint8()),
        },
    )
    dropped = {
        "boxes_without_extent": int((~extent).sum()),
        "boxes_repeated": int((repeated & extent).sum()),
    }
    return np.bincount(owner[kept], minlength=len(number)), dropped


def _repeated(owner: Array, box: Array, label: Array, group: Array) -> Array:
    """(N,) whether a row equals an earlier one."""
    mixed = owner.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for column in (*box.T.astype(np.float32).view(np.uint32), label, group):
        mixed = (mixed ^ (mixed >> np.uint64(29)) ^ column) * np.uint64(0xBF58476D1CE4E5B9)
    order = np.argsort(mixed, kind="stable")
    same = np.flatnonzero(mixed[order][1:] == mixed[order][:-1])
    result = np.zeros(len(owner), dtype=bool)
    if len(same):  # equal hashes are few: compare the rows themselves
        first, second = order[same], order[same + 1]
        equal = (owner[first] == owner[second]) & (box[first] == box[second]).all(axis=1)
        equal &= (label[first] == label[second]) & (group[first] == group[second])
        result[second[equal]] = True
    return result


def _write_labels(table: Table, number: dict[str, int], path: Path) -> Array:
    owner = _owner(table, number)
    order = np.argsort(owner, kind="stable")
    _write(
        path,
        {
            "label": pa.array(table.columns["LabelName"][order].astype(np.uint16), pa.uint16()),
            "present": pa.array(table.columns["Confidence"][order].astype(np.uint8), pa.uint8()),
        },
    )
    return np.bincount(owner, minlength=len(number))


def _owner(table: Table, number: dict[str, int]) -> Array:
    """(N,) number of each row's picture."""
    places = np.array([number[name] for name in table.pictures], dtype=np.int32)
    return places[table.columns["ImageID"]] if len(table) else np.zeros(0, dtype=np.int32)


def _sizes(pictures: Path | None, split: str, ids: Sequence[str]) -> Array:
    """(M, 2) width and height, 0 where unknown."""
    sizes = np.zeros((len(ids), 2), dtype=np.int32)
    if pictures is None:
        return sizes
    table = read_pictures(pictures)
    table = table.filter(pc.equal(table["split"], split))
    place = pc.index_in(table["id"], pa.array(ids, pa.string())).combine_chunks()
    known = place.is_valid().to_numpy(zero_copy_only=False)
    rows = place.drop_null().to_numpy()
    for column, name in enumerate(("width", "height")):
        sizes[rows, column] = table[name].to_numpy()[known]
    return sizes


def _starts(counts: Array) -> pa.Array:
    return pa.array(np.concatenate(([0], np.cumsum(counts))), pa.int64())


def _write(path: Path, columns: dict[str, pa.Array]) -> None:
    """One batch, not compressed: only so can it be mapped without copying."""
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)

"""The Open Images files: classes, hierarchy, boxes and image-level labels, read by column name and keyed by MID."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from tsd.errors import InputError

Array = np.ndarray

ID = pa.dictionary(pa.int32(), pa.string())
"""Pictures and classes are few beside the rows that name them."""

SPLITS = {"train": "train", "val": "validation"}
"""What the challenge calls the splits."""


@dataclass(frozen=True)
class Challenge:
    """Where a copy of the challenge's data is, under the official names.

    Attributes:
        folder: of everything.
        classes_count: classes, 500 in the challenge; the names of two files have it.
    """

    folder: Path
    classes_count: int

    @property
    def annotations(self) -> Path:
        """Folder of the six files."""
        return self.folder / "annotations"

    def boxes(self, split: str) -> Path:
        """Boxes of ``train`` or ``val``."""
        return self.annotations / f"challenge-2019-{SPLITS[split]}-detection-bbox.csv"

    def labels(self, split: str) -> Path:
        """Image-level labels of ``train`` or ``val``."""
        return self.annotations / f"challenge-2019-{SPLITS[split]}-detection-human-imagelabels.csv"

    @property
    def classes(self) -> Path:
        """Classes: MID and name."""
        return self.annotations / f"challenge-2019-classes-description-{self.classes_count}.csv"

    @property
    def hierarchy(self) -> Path:
        """Who is above whom."""
        return self.annotations / f"challenge-2019-label{self.classes_count}-hierarchy.json"

    @property
    def files(self) -> tuple[Path, ...]:
        """The six files."""
        return (*map(self.boxes, SPLITS), *map(self.labels, SPLITS), self.classes, self.hierarchy)

    def pictures(self, split: str) -> Path:
        """Folder of the pictures of ``train`` or ``val``."""
        return self.folder / SPLITS[split]

    def store(self, split: str) -> Path:
        """Columnar store of ``train`` or ``val``."""
        return self.folder / "store" / SPLITS[split]


BOX_COLUMNS = {name: pa.float64() for name in ("XMin", "XMax", "YMin", "YMax")}


@dataclass(frozen=True)
class Hierarchy:
    """Classes and who is above whom.

    Attributes:
        mids: machine ids such as ``/m/0k4j``, in the order of the classes file; a label is a place in it.
        names: display names, not unique.
        ancestors: labels above each label, without itself, in rising order; several parents are allowed.
    """

    mids: tuple[str, ...]
    names: tuple[str, ...]
    ancestors: tuple[tuple[int, ...], ...]

    @cached_property
    def descendants(self) -> tuple[tuple[int, ...], ...]:
        """Labels below each label, without itself, in rising order."""
        below: list[list[int]] = [[] for _ in self.mids]
        for label, above in enumerate(self.ancestors):
            for ancestor in above:
                below[ancestor].append(label)
        return tuple(tuple(labels) for labels in below)


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(MIDs, display names) of a classes file: ``MID,name`` without a header.

    Raises:
        InputError: no such file, a line without two columns, a MID twice; names the line.
    """
    mids: dict[str, int] = {}
    names = []
    for number, row in enumerate(csv.reader(_text(path).splitlines()), 1):
        if len(row) != 2 or not row[0].startswith("/"):
            raise InputError(f"{path}: line {number}: expected a MID and a name such as /m/0k4j,Car, got {row}")
        if row[0] in mids:
            raise InputError(f"{path}: line {number}: {row[0]} is there twice, first in line {mids[row[0]]}")
        mids[row[0]] = number
        names.append(row[1])
    if not mids:
        raise InputError(f"{path}: no class in it")
    return tuple(mids), tuple(names)


def read_hierarchy(classes: Path, hierarchy: Path) -> Hierarchy:
    """Classes with their ancestors. Nodes that are no class, such as the root, are passed through.

    Raises:
        InputError: broken files, a class below itself, a class that the hierarchy does not have; names file and MID.
    """
    mids, names = read_classes(classes)
    try:
        tree = json.loads(_text(hierarchy))
    except json.JSONDecodeError as error:
        raise InputError(f"{hierarchy}: broken JSON: {error}") from None
    except RecursionError:
        raise InputError(f"{hierarchy}: nested too deeply to be a hierarchy of classes") from None
    place = {mid: label for label, mid in enumerate(mids)}
    above: dict[str, set[int]] = {}
    _walk(tree, (), place, above, hierarchy)
    missing = [mid for mid in mids if mid not in above]
    if missing:
        raise InputError(f"{hierarchy}: {len(missing)} classes of {classes} are not in it, first {missing[0]}")
    return Hierarchy(mids, names, tuple(tuple(sorted(above[mid])) for mid in mids))


def _walk(node: Any, path: tuple[str, ...], place: dict[str, int], above: dict[str, set[int]], file: Path) -> None:
    if not isinstance(node, dict) or not isinstance(node.get("LabelName"), str):
        raise InputError(f"{file}: below {path[-1] if path else 'the root'}: expected an object with a LabelName")
    mid = node["LabelName"]
    if mid in path:
        raise InputError(f"{file}: {mid} is below itself: {' > '.join((*path[path.index(mid) :], mid))}")
    above.setdefault(mid, set()).update(place[ancestor] for ancestor in path if ancestor in place)
    for child in node.get("Subcategory", []):
        _walk(child, (*path, mid), place, above, file)


def expand(labels: Array, related: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """Rows with a copy for each related class: (row of the source, label), the row itself first.

    Args:
        labels: (N,) label of each row.
        related: labels to copy to, for each label.
    """
    counts = np.array([1 + len(others) for others in related], dtype=np.int64)
    flat = np.array([value for label, others in enumerate(related) for value in (label, *others)], dtype=np.int64)
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    rows = np.repeat(np.arange(len(labels)), counts[labels])
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts[labels]) - counts[labels], counts[labels])
    return rows, flat[starts[labels[rows]] + place]


@dataclass(frozen=True)
class Table:
    """Rows of a CSV file: columns by name; ``ImageID`` and ``LabelName`` as numbers into ``pictures`` and MIDs."""

    path: Path
    pictures: tuple[str, ...]
    columns: dict[str, Array]

    def __len__(self) -> int:
        return len(self.columns["ImageID"])


def read_boxes(path: Path, mids: Sequence[str], *, scores: bool = False) -> Table:
    """Boxes: ImageID, LabelName, XMin, XMax, YMin, YMax and IsGroupOf (bool), or, for predictions, Score.

    Raises:
        InputError: a missing column, a value that is no number, an unknown class, XMin above XMax, a coordinate
            outside 0 … 1, a NaN; names file, row and value.
    """
    last = {"Score": pa.float64()} if scores else {"IsGroupOf": pa.int8()}
    table = _read(path, BOX_COLUMNS | last, mids)
    columns = table.columns
    for low, high in (("XMin", "XMax"), ("YMin", "YMax")):
        for name in (low, high):
            bad = ~((columns[name] >= 0) & (columns[name] <= 1))  # also true for NaN
            _refuse(path, bad, columns, name, "expected a fraction from 0 to 1")
        _refuse(path, columns[low] > columns[high], columns, low, f"is above {high}")
    if scores:
        _refuse(path, ~np.isfinite(columns["Score"]), columns, "Score", "expected a finite number")
    else:
        _refuse(path, ~np.isin(columns["IsGroupOf"], (-1, 0, 1)), columns, "IsGroupOf", "expected 0, 1 or -1 (unknown)")
        columns["IsGroupOf"] = columns["IsGroupOf"] == 1
    return table


def read_labels(path: Path, mids: Sequence[str]) -> Table:
    """Image-level labels: ImageID, LabelName and Confidence (bool: verified present, or absent).

    Raises:
        InputError: as :func:`read_boxes`, or a confidence that is neither 0 nor 1.
    """
    table = _read(path, {"Confidence": pa.float64()}, mids)
    _refuse(path, ~np.isin(table.columns["Confidence"], (0, 1)), table.columns, "Confidence", "expected 0 or 1")
    table.columns["Confidence"] = table.columns["Confidence"] == 1
    return table


def _read(path: Path, numbers: dict[str, pa.DataType], mids: Sequence[str]) -> Table:
    wanted = {"ImageID": ID, "LabelName": ID, **numbers}
    header = _header(path)
    for name in wanted:
        if header.count(name) != 1:
            what = f"column {name} is there {header.count(name)} times" if name in header else f"no column {name}"
            raise InputError(f"{path}: {what}; there are {', '.join(header) or 'none: the file is empty'}")
    try:
        content = arrow_csv.read_csv(
            path, convert_options=arrow_csv.ConvertOptions(include_columns=list(wanted), column_types=wanted)
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from None
    nulls = [name for name in numbers if content.column(name).null_count]
    if nulls:
        row = int(np.flatnonzero(content.column(nulls[0]).is_null().to_numpy())[0]) + 2
        raise InputError(f"{path}: line {row}: {nulls[0]}: no value")
    columns = {name: content.column(name).to_numpy() for name in numbers}
    columns["ImageID"], pictures = _codes(content.column("ImageID"))
    codes, found = _codes(content.column("LabelName"))
    place = {mid: label for label, mid in enumerate(mids)}
    labels = np.array([place.get(mid, -1) for mid in found], dtype=np.int64)
    columns["LabelName"] = labels[codes] if len(codes) else codes
    if "" in pictures:
        row = int(np.flatnonzero(columns["ImageID"] == pictures.index(""))[0]) + 2
        raise InputError(f"{path}: line {row}: ImageID: no value")
    unknown = np.flatnonzero(columns["LabelName"] < 0)
    if len(unknown):
        raise InputError(
            f"{path}: line {unknown[0] + 2}: {found[codes[unknown[0]]]} is not among the {len(mids)} classes"
        )
    return Table(path, tuple(pictures), columns)


def _codes(column: pa.ChunkedArray) -> tuple[Array, list[str]]:
    """Numbers of a dictionary column, and what they stand for."""
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        if whole.num_chunks == 0:
            return np.zeros(0, dtype=np.int64), []
        whole = whole.chunk(0)
    return pc.cast(whole.indices, pa.int64()).to_numpy(), whole.dictionary.to_pylist()


def _refuse(path: Path, bad: Array, columns: dict[str, Array], name: str, why: str) -> None:
    """Raise for the first bad row."""
    places = np.flatnonzero(bad)
    if len(places):
        raise InputError(f"{path}: line {places[0] + 2}: {name} {columns[name][places[0]]:g}: {why}")


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None

"""Pictures in folders, ``<split>/<id>.jpg``, and the record of what each of them is."""

import hashlib
import io
import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from tsd.data.manifest import digest
from tsd.errors import InputError
from tsd.files import atomic_path, read_json, read_whole_lines, write_json, write_lines

PICTURES = "pictures.parquet"
SUMMARY = "pictures.json"
JOURNAL = "pictures.part.jsonl"

SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("id", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("frames", pa.int32()),
        ("orientation", pa.int32()),
    ]
)

LEAST = 8
"""Pixels of a picture's shorter side at least: less is what servers put in place of one that they don't have."""

Key = tuple[str, str]
Record = dict[str, Any]


def look(content: bytes) -> Record:
    """What a picture is: bytes, sha256, width, height, mode, frames and EXIF orientation. It is decoded in whole.

    Boxes follow the stored pixels, so an orientation is noted and not applied; of several frames the first is meant.

    Raises:
        ValueError: it can't be decoded, or is too small for a picture of anything.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            record: Record = {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "width": picture.width,
                "height": picture.height,
                "mode": picture.mode,
                "frames": getattr(picture, "n_frames", 1),
                "orientation": int(picture.getexif().get(0x0112, 1)),
            }
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(f"can't be decoded: {error}") from None
    if min(record["width"], record["height"]) < LEAST:
        size = f"{record['width']} x {record['height']} pixels"
        raise ValueError(f"a placeholder of {size}, expected at least {LEAST} x {LEAST}")
    return record


class PictureStore:
    """Pictures of a folder, ``<split>/<id>.jpg``, and the record of each that is whole.

    The record is a parquet file; what came since is in a journal beside it, so that nothing is lost if the process
    is killed. A picture counts as there if it has a record and its file has the recorded size.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[Key, Record] = {}
        for record in self._read():
            path = self.path((record["split"], record["id"]))
            try:
                if path.stat().st_size == record["bytes"]:
                    self.records[record["split"], record["id"]] = record
            except OSError:
                continue
        self._lock = threading.Lock()
        self._journal: TextIO | None = None

    def path(self, key: Key) -> Path:
        """File of a picture."""
        return self.folder / key[0] / f"{key[1]}.jpg"

    def _read(self) -> Iterator[Record]:
        path = self.folder / PICTURES
        if path.exists():
            yield from read_pictures(path).to_pylist()
        yield from read_whole_lines(self.folder / JOURNAL)

    def add(self, key: Key, content: bytes) -> None:
        """Keep a picture.

        Raises:
            ValueError: as :func:`look`.
            OSError: it can't be written.
        """
        record = {"split": key[0], "id": key[1], **look(content)}
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_bytes(content)
        temporary.replace(path)
        with self._lock:
            if self._journal is None:
                self._start_journal()
            assert self._journal is not None
            self._journal.write(json.dumps(record) + "\n")
            self._journal.flush()
            self.records[key] = record

    def remove(self, key: Key) -> None:
        """Remove a picture that is there, and its record."""
        self.path(key).unlink()
        del self.records[key]

    def _start_journal(self) -> None:
        path = self.folder / JOURNAL
        if path.exists():  # drop a line cut off
            write_lines(path, read_whole_lines(path))
        self._journal = path.open("a", encoding="utf-8")

    def close(self) -> dict[str, Any]:
        """Write the record and its summary; returns the summary."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        rows = [self.records[key] for key in sorted(self.records)]
        self.folder.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        with atomic_path(self.folder / PICTURES) as temporary:
            parquet.write_table(table, temporary)
        summary = summarise(rows)
        write_json(self.folder / SUMMARY, summary)
        (self.folder / JOURNAL).unlink(missing_ok=True)
        return summary


def summarise(rows: Iterable[Record]) -> dict[str, Any]:
    """Counts and one digest of a record of pictures: small enough for git, DVC and Snakemake's checksums."""
    total = hashlib.sha256()
    size, splits, modes = 0, Counter[str](), Counter[str]()
    frames = rotated = 0
    for row in rows:
        total.update(f"{row['split']}/{row['id']} {row['bytes']} {row['sha256']}\n".encode())
        size += row["bytes"]
        splits[row["split"]] += 1
        modes[row["mode"]] += 1
        frames += row["frames"] > 1
        rotated += row["orientation"] != 1
    return {
        "sha256": total.hexdigest(),
        "bytes": size,
        "pictures": dict(splits),
        "modes": dict(modes),
        "with_several_frames": frames,
        "with_orientation": rotated,
    }


def read_pictures(path: Path) -> pa.Table:
    """A record of pictures.

    Raises:
        InputError: no such file, or not a record.
    """
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: not a record of pictures: {str(error).splitlines()[0]}") from None
    if not table.schema.equals(SCHEMA):
        raise InputError(f"{path}: not a record of pictures: expected the columns {', '.join(SCHEMA.names)}")
    return table


def verify_pictures(folder: Path, wanted: Iterable[Key], contents: bool = False) -> list[str]:
    """Problems of fetched pictures, a sentence each.

    Args:
        folder: where they are.
        wanted: (split, id) of each that must be there.
        contents: compare digests too, not sizes alone.

    Raises:
        InputError: there is no record of pictures.
    """
    table = read_pictures(folder / PICTURES)
    summary = read_json(folder / SUMMARY)
    rows = table.to_pylist()
    if summarise(rows) != summary:
        return [f"{folder / PICTURES}: differs from {SUMMARY} beside it; fetch the pictures again"]
    records = {(row["split"], row["id"]): row for row in rows}
    absent = [key for key in wanted if key not in records]
    problems = []
    if absent:
        problems.append(f"{folder}: {len(absent)} pictures are not there, first {absent[0][0]}/{absent[0][1]}")
    for (split, name), row in records.items():
        path = folder / split / f"{name}.jpg"
        if not path.is_file() or path.stat().st_size != row["bytes"]:
            problems.append(f"{path}: missing or of another size than recorded")
        elif contents and digest(path) != row["sha256"]:
            problems.append(f"{path}: content differs from its record")
        if len(problems) >= 10:
            break
    return problems

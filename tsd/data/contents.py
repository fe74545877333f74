"""Digests of the contents of a folder's pictures: each is read once, and remembered by size, times and inode."""

import csv
import io
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from tsd.data.manifest import digest
from tsd.data.progress import interval
from tsd.files import write_text

THREADS = 16
"""They mostly wait for a disk or a server."""

SETTLED = 2.0
"""Seconds: a file that was written later before it was read may be written again without another time."""

Stamp = tuple[int, int, int, int]
"""Size in bytes, times in nanoseconds of the content's last change and of the inode's, which nobody can set, inode."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def stamp_of(path: Path) -> Stamp:
    """What tells that a file was changed.

    Raises:
        OSError: there is none.
    """
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def content_digests(folder: Path, stamps: dict[str, Stamp], memory: Path) -> dict[str, str]:
    """SHA-256 of each picture's content.

    Args:
        folder: of the pictures.
        stamps: name in the folder → its stamp now.
        memory: a CSV of name, stamp and SHA-256. What it knows is not read again; it is written anew where
            something was read.

    Raises:
        OSError: a picture can't be read.
    """
    known = _recall(memory)
    found = {name: known[name, stamp] for name, stamp in stamps.items() if (name, stamp) in known}
    unread = [name for name in stamps if name not in found]
    if not unread:
        return found
    started = time.time_ns() - int(SETTLED * 1e9)
    found.update(_read(folder, unread))
    settled = {name: stamp for name, stamp in stamps.items() if max(stamp[1:3]) < started}
    try:
        _remember(memory, settled, found)
    except OSError as error:
        print(f"{memory}: can't be written ({error.strerror}): the pictures will be read again", file=sys.stderr)
    return found


def _read(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and SHA-256 of files; progress is shown where it takes long."""
    with ThreadPoolExecutor(min(THREADS, 4 * (os.cpu_count() or 1))) as pool:
        sums = pool.map(lambda name: digest(folder / name), names)
        bar = tqdm(sums, desc=f"reading {folder}", total=len(names), unit="picture", delay=5, mininterval=interval())
        yield from zip(names, bar, strict=True)


def _recall(memory: Path) -> dict[tuple[str, Stamp], str]:
    """What is remembered; nothing of a line that is damaged."""
    try:
        text = memory.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    known = {}
    for line in csv.reader(io.StringIO(text.replace("\0", ""))):
        if len(line) == 6 and all(number.isdecimal() for number in line[1:5]) and _SHA256.fullmatch(line[5]):
            size, changed, inode_changed, inode = map(int, line[1:5])
            known[line[0], (size, changed, inode_changed, inode)] = line[5]
    return known


def _remember(memory: Path, stamps: dict[str, Stamp], digests: dict[str, str]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((name, *stamp, digests[name]) for name, stamp in stamps.items())
    write_text(memory, text.getvalue())

"""Writing files so that a reader finds the old content or the new, and never a part of it."""

import csv
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:4]
"""This machine, in the names of temporary files: process numbers are its own."""

_TEMPORARY = re.compile(r"\..+\.(\d+)\.([0-9a-f]{4})\.tmp[^/]*")

OF_DISKS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOENT,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENFILE,
)
"""Errors that a full, read-only or broken disk gives, or a place that may not be written to or read."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success sync it to disk and rename it to ``path``.

    On any failure (exception, full disk) the temporary file is removed and ``path`` stays as it was; an error of the
    disk names ``path``. What a killed process left of it is removed too. The temporary name keeps the suffix, since
    some writers choose the format by it.

    Raises:
        InputError: ``path`` is a folder or a device, is in something that is no folder, or its name is too long.
    """
    from tsd.errors import InputError

    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; expected the name of a file to write")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is a device or a pipe, which would be replaced; expected a file's name")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        raise InputError(f"{path}: can't be written: {error.strerror}; expected a file's name in a folder") from None
    remove_leftovers(path.parent, path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{_HOST}.tmp{path.suffix}")
    try:
        with naming(path, temporary):
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, of: Path | None = None) -> None:
    """Remove temporary files that processes of this machine left when they were killed, and any machine's after a day.

    Args:
        folder: where :func:`atomic_path` wrote.
        of: only those of this file.
    """
    for path in folder.glob(f".{glob.escape(of.stem)}.*.tmp{glob.escape(of.suffix)}" if of else ".*.tmp*"):
        made_by = _TEMPORARY.fullmatch(path.name)
        if made_by is None:
            continue
        with suppress(OSError):  # another process removes it, too
            ended = made_by[2] == _HOST and not _is_running(int(made_by[1]))
            if ended or time.time() - path.stat().st_mtime > 86400:
                path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let an error of the disk name ``path`` where it names no file, as that of a write does, or the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno in OF_DISKS and error.filename in (None, temporary, str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def exclusive(path: Path, refusal: str | None) -> Iterator[None]:
    """Hold the lock ``path``; the system frees it when the process ends, however it ends.

    Without a refusal it is waited for. A file system without locks (Lustre mounted without ``flock``) gives none: that
    is said, and the work goes on.

    Raises:
        InputError: another process holds it; the message is ``refusal``.
    """
    from tsd.errors import InputError

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise InputError(refusal) from None
        except OSError as error:
            print(
                f"{path}: this file system has no locks ({error.strerror}): see to it yourself that no two processes "
                "do the same",
                file=sys.stderr,
            )
        yield


def nearest(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    real = Path(path).resolve()
    return next(folder for folder in (real, *real.parents) if folder.is_dir())


def path_problem(path: str) -> str | None:
    """What is expected in place of a path that no file can have; None: one can. Limits are Linux's."""
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        return "a path in UTF-8"
    if not encoded or b"\0" in encoded:
        return "a path, of one character at least and without a zero byte"
    if len(encoded) > 4095 or max(map(len, encoded.split(b"/"))) > 255:
        return "a path of at most 4095 bytes, and 255 of each name in it"
    return None


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON with stable key order, atomically. NaN is refused: undefined figures are ``null``."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        InputError: the file is missing or is not JSON; the message names file, line and column.
    """
    from tsd.errors import InputError

    try:
        if Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir():
            raise InputError(f"{path}: is a device or a pipe; expected a JSON file")
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; expected a JSON file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON: line {error.lineno} column {error.colno}: {error.msg}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not valid JSON: not UTF-8 text") from None
    except (RecursionError, ValueError) as error:  # brackets by the thousand, a number of as many digits
        raise InputError(f"{path}: not valid JSON: {error}") from None


MOST_REPEATED = 10_000
"""Values that the aliases of a YAML file may repeat in all: a few lines of them can stand for billions."""


def read_yaml(path: Path) -> Any:
    """Read YAML with plain types; a key given twice is an error, one that a merge (``<<``) brings and that is given is
    not.

    Raises:
        ParamsError: missing file, broken YAML, a repeated key, or aliases that repeat too much; names line and column.
    """
    from tsd.errors import ParamsError

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ParamsError(f"{path}: is a folder; expected a YAML file") from None
    except UnicodeDecodeError:
        raise ParamsError(f"{path}: not UTF-8 text") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """As :func:`read_yaml`, of a text; ``where`` it is from.

    Raises:
        ParamsError: as :func:`read_yaml`.
    """
    from tsd.errors import ParamsError

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        sizes: dict[int, int] = {}
        if _size(node, sizes) - len(sizes) > MOST_REPEATED:
            raise yaml.YAMLError(f"aliases repeat more than {MOST_REPEATED} values; write out what is meant")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1} column {mark.column + 1}: " if mark else ""
        raise ParamsError(f"{where}: {place}{getattr(error, 'problem', error)}") from None
    except (
        ValueError,
        TypeError,
        RecursionError,
    ) as error:
        # A date that is none, a list as a key, thousands of brackets.
        raise ParamsError(f"{where}: not plain YAML: {error}") from None


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes that a node has in all, written out. ``known`` takes those of each node in it, by identity."""
    if id(node) not in known:
        known[id(node)] = 1  # for one that is in itself
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] += sum(_size(part, known) for part in parts)
    return known[id(node)]


def read_csv(path: Path, columns: Sequence[str]) -> dict[int, dict[str, str]]:
    """Line's number → column → text, of a CSV file with these columns and a value in each; empty lines are passed over.

    Raises:
        ParamsError: missing file, not UTF-8, other columns, or a line with fewer or more values; names the line.
    """
    from tsd.errors import ParamsError

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, cells) for cells in reader]
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; expected the columns {','.join(columns)}") from None
    except IsADirectoryError:
        raise ParamsError(f"{path}: is a folder; expected a CSV file") from None
    except UnicodeDecodeError:
        raise ParamsError(f"{path}: not UTF-8 text") from None
    except csv.Error as error:
        raise ParamsError(f"{path}: line {reader.line_num}: not CSV: {error}") from None
    if not lines:
        raise ParamsError(f"{path}: is empty; expected columns {','.join(columns)}")
    if lines[0][1] != list(columns):
        raise ParamsError(f"{path}: line 1: expected columns {','.join(columns)}, got {','.join(lines[0][1])}")
    rows = {}
    for line, cells in lines[1:]:
        if not cells:
            continue
        if len(cells) != len(columns):
            raise ParamsError(
                f"{path}: line {line}: expected {len(columns)} values, {','.join(columns)}, got {len(cells)}"
            )
        rows[line] = dict(zip(columns, map(str.strip, cells), strict=True))
        missing = [name for name, cell in rows[line].items() if not cell]
        if missing:
            raise ParamsError(f"{path}: line {line}: {missing[0]}: no value")
    return rows


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Bring in what is merged; before that, keys are as they are written."""
        if id(node) not in self.checked:
            self.checked.add(id(node))
            seen: set[Any] = set()
            for key_node, _ in node.value:
                merges = key_node.tag == "tag:yaml.org,2002:merge"
                key = key_node.value if merges else self.construct_object(key_node, deep=True)
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key!r} is given twice", key_node.start_mark
                    )
                seen.add(key)
        super().flatten_mapping(node)


def read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that is appended to, one JSON object a line; none if there is no such file.

    It ends before the first line that is no object: the one that was being written when a process was killed.
    """
    if not path.is_file():
        return []
    whole = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(content, dict):
            break
        whole.append(content)
    return whole


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))

"""Where data sets come from: ``params/sources.yaml``."""

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tsd.errors import ParamsError
from tsd.files import read_yaml

MIRROR = "TSD_MIRROR"
"""Environment variable: address below which every source has a folder of its name."""


@dataclass(frozen=True)
class SourceFile:
    """A file to fetch: its path below the source's address, its bytes and its SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """A data set's origin.

    Attributes:
        name: key in ``params/sources.yaml``.
        files_url: address of the files, with a slash at its end.
        files: annotation files and archives.
        pictures_url: address of single pictures, ``<split>/<id>.jpg`` below it; None if they come in archives.
        pictures: pictures that each split must have.
        picture_bytes: of a picture, on average, for the estimate before fetching.
        annotations: annotations that each split must have, in COCO's format.
        categories: categories that each split must have, in COCO's format; 0: not known.
    """

    name: str
    files_url: str
    files: tuple[SourceFile, ...]
    pictures_url: str | None
    pictures: dict[str, int]
    picture_bytes: int = 0
    annotations: dict[str, int] = field(default_factory=dict)
    categories: int = 0

    def file(self, ending: str) -> SourceFile:
        """The one file whose path ends so.

        Raises:
            KeyError: none, or several.
        """
        found = [file for file in self.files if file.path.endswith(ending)]
        if len(found) != 1:
            raise KeyError(f"{self.name}: {len(found)} files end in {ending}")
        return found[0]


def load_source(name: str, root: Path = Path(".")) -> Source:
    """A source as ``params/sources.yaml`` describes it, or its mirror if ``TSD_MIRROR`` is set.

    Raises:
        ParamsError: no such file or source, a key that is missing or unknown, a value of the wrong type.
    """
    path = root / "params" / "sources.yaml"
    content = read_yaml(path)
    if not isinstance(content, dict) or name not in content:
        known = ", ".join(content) if isinstance(content, dict) else "none"
        raise ParamsError(f"{path}: no source {name!r}; there are: {known}")
    source = _parse(name, content[name], path)
    if mirror := os.environ.get(MIRROR):
        base = f"{mirror.rstrip('/')}/{name}/"
        source = replace(source, files_url=base, pictures_url=base if source.pictures_url else None)
    return source


def _parse(name: str, entry: Any, path: Path) -> Source:
    keys = {
        "files_url": str,
        "files": list,
        "pictures_url": str,
        "pictures": dict,
        "picture_bytes": int,
        "annotations": dict,
        "categories": int,
    }
    if not isinstance(entry, dict):
        raise ParamsError(f"{path}: {name}: expected a mapping")
    for key, value in entry.items():
        if key not in keys:
            raise ParamsError(f"{path}: {name}.{key}: unknown key; known: {', '.join(keys)}")
        if not isinstance(value, keys[key]) or isinstance(value, bool):
            raise ParamsError(f"{path}: {name}.{key}: expected {keys[key].__name__}, got {value!r}")
    for key in ("files_url", "files"):
        if key not in entry:
            raise ParamsError(f"{path}: {name}.{key}: missing key")
    for key in ("pictures", "annotations"):
        for split, count in entry.get(key, {}).items():
            if type(count) is not int or count < 0:
                raise ParamsError(f"{path}: {name}.{key}.{split}: expected a number of {key}, got {count!r}")
    files = []
    for index, file in enumerate(entry["files"]):
        wanted = {"path": str, "bytes": int, "sha256": str}
        if not isinstance(file, dict) or set(file) != set(wanted):
            raise ParamsError(f"{path}: {name}.files.{index}: expected the keys path, bytes and sha256")
        for key, kind in wanted.items():
            if type(file[key]) is not kind:
                raise ParamsError(f"{path}: {name}.files.{index}.{key}: expected {kind.__name__}, got {file[key]!r}")
        if file["bytes"] < 0:
            raise ParamsError(f"{path}: {name}.files.{index}.bytes: expected an integer from 0, got {file['bytes']}")
        if not re.fullmatch("[0-9a-f]{64}", file["sha256"]):
            raise ParamsError(
                f"{path}: {name}.files.{index}.sha256: expected 64 hexadecimal digits, got {file['sha256']!r}"
            )
        parts = Path(file["path"]).parts
        if ".." in parts or Path(file["path"]).is_absolute():
            raise ParamsError(f"{path}: {name}.files.{index}.path: leads out of the folder: {file['path']}")
        files.append(SourceFile(**file))
    return Source(
        name,
        entry["files_url"],
        tuple(files),
        entry.get("pictures_url"),
        entry.get("pictures", {}),
        entry.get("picture_bytes", 0),
        entry.get("annotations", {}),
        entry.get("categories", 0),
    )

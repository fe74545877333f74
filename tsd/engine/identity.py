"""What a suite's data is, as one digest that enters every run's folder name."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tsd.data.manifest import folder_manifest, pinned_md5
from tsd.data.sources import Source, load_source
from tsd.engine.params import Suite
from tsd.errors import InputError

PIN = Path("data.dvc")

ABSENT = "0" * 12
"""Digest of a known data set that is not here: it can be planned with, and no run has it."""


def manifest_path(suite: Suite) -> Path | None:
    """The manifest of generated or unpacked data or the summary of fetched pictures; None for what has none: a folder
    of the user's own, or one that is imported."""
    if suite.fetched is not None:
        return suite.fetched.manifest
    names = {"generated": "manifest.json", "openimages": "pictures.json"}
    name = names.get(suite.data["format"])
    return Path(suite.data["folder"], name) if name else None


def suite_source(suite: Suite) -> Source:
    """Where a suite is fetched from that has a source: an Open Images suite always has one."""
    return load_source(suite.data.get("source", "openimages"), suite.root)


def pinned(suite: Suite) -> str | None:
    """MD5 of the suite's manifest as pinned in ``data.dvc``; None if it is not listed there."""
    path = manifest_path(suite)
    return pinned_md5(suite.root / PIN, str(path)) if path else None


def data_digest(suite: Suite) -> str:
    """Digest of the suite's data, known before the data is there.

    Generated scenes: of the generator's parameters and, if listed, of the pin in ``data.dvc``; the rule that
    verifies the data ties both to the bytes on disk. COCO with a source: of the published digests of the archives that
    the folder is made of, which verifying ties to what is on disk. A folder of the user's own: of its manifest (digests
    of the annotation files and of the pictures that they list); one that is imported of the same, but names and sizes
    stand for the pictures, whose bytes follow from the archives. :data:`ABSENT` if neither annotation file is here and
    the suite says how many classes to expect. Open Images: of the digests of its
    annotation files as the source has them, or of the generator's parameters; and, if listed, of the pictures' pin in
    ``data.dvc``.

    Raises:
        InputError: an annotation file of the user's own data is missing or broken; or neither is here.
    """
    if suite.data["format"] == "generated":
        content = [suite.data["generate"], pinned(suite)]
    elif suite.is_openimages:
        if "generate" in suite.data:
            described: Any = suite.data["generate"]
        else:
            described = [[file.path, file.sha256] for file in suite_source(suite).files]
        content = ["openimages", described, pinned(suite)]
    elif suite.fetched is not None:
        from tsd.data.formats.coco_place import identity

        content = ["coco", identity(suite_source(suite))]
    else:
        train, val = suite.split("train"), suite.split("val")
        if not train[0].exists() and not val[0].exists():
            if "classes" in suite.data:
                return ABSENT
            raise InputError(absence(suite))
        content = [folder_manifest(train, val, contents_memory(suite))["splits"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def contents_memory(suite: Suite) -> Path | None:
    """Folder for what is remembered of the pictures' contents; None: they are not part of the data's digest."""
    return None if "import" in suite.data else Path("results", suite.name, "data")


def absence(suite: Suite) -> str:
    """What to put where, in a sentence, for a suite whose data is the user's own and not here."""
    (train, train_pictures), (val, val_pictures) = suite.split("train"), suite.split("val")
    return (
        f"{train}: no such file: the data of suite {suite.name} is your own; put or link it there, in COCO's format: "
        f"{train} with the pictures in {train_pictures}, and {val} with those in {val_pictures} (docs/own-data.md)"
    )

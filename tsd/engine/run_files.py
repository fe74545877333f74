"""The files of a run, checked as they are read, so that a damaged one is named with its key or its line.

All who read them come here; ``status.json`` is read in :mod:`tsd.status`, metrics in :mod:`tsd.report.tables`.
"""

import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tsd.engine.params import Validator, validate
from tsd.errors import InputError
from tsd.files import read_json, read_yaml

_TEXT = {"type": "string", "minLength": 1}

_EXPERIMENT = Validator(
    {
        "type": "object",
        "required": [
            "suite",
            "experiment",
            "seed",
            "digest",
            "test_digest",
            "data_digest",
            "recipe",
            "revision",
            "data",
            "params",
        ],
        "properties": {
            **dict.fromkeys(("suite", "experiment", "digest", "test_digest", "data_digest", "recipe"), _TEXT),
            "seed": {"type": "integer", "minimum": 0},
            "revision": {"type": "integer"},
            "data": {"type": "object", "required": ["format"]},
            "params": {"type": "object"},
            "tables": {
                "type": "array",
                "items": {"type": "string", "pattern": ".+/.+", "description": "a row of a table, as table/row"},
            },
        },
    }
)

_ENVIRONMENT = Validator(
    {
        "type": "object",
        "required": ["git_commit", "git_dirty"],
        "properties": {
            "git_commit": {"type": ["string", "null"]},
            "git_dirty": {"type": ["boolean", "null"]},
            "processes": {"type": "integer", "minimum": 1},
            "pretrained_sha256": {"type": ["string", "null"]},
        },
    }
)

_RUNTIME = Validator(
    {
        "type": "object",
        "required": ["median_ms", "device"],
        "properties": {"median_ms": {"type": ["number", "null"]}, "device": _TEXT},
    }
)

_FIGURES = {"type": "object", "additionalProperties": {"type": ["number", "null"]}}

_METRICS = Validator(
    {
        "type": "object",
        "required": ["metrics"],
        "properties": {
            "metrics": _FIGURES,
            "scale_iou": {"type": "object", "additionalProperties": _FIGURES},
            "per_class": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "AP"],
                    "properties": {"name": {"type": "string"}, "AP": {"type": ["number", "null"]}},
                },
            },
        },
    }
)

_PROPOSALS = ("image_id", "category_id", "bbox", "score")


def read_experiment(folder: Path) -> dict[str, Any]:
    """A run's ``experiment.yaml``.

    Raises:
        InputError: the folder is not a run's, or the file is damaged; names the key.
    """
    path = folder / "experiment.yaml"
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a run's folder, made by `tsd train`")
    content: dict[str, Any] = read_yaml(path)
    validate(content, _EXPERIMENT, str(path))
    return content


def read_environment(folder: Path) -> dict[str, Any]:
    """A run's ``environment.json``.

    Raises:
        InputError: missing or damaged; names the key.
    """
    return _object(folder / "environment.json", _ENVIRONMENT)


def read_runtime(path: Path) -> dict[str, Any]:
    """``runtime.json`` of predictions; errors as for :func:`read_environment`."""
    return _object(path, _RUNTIME)


def read_figures(path: Path) -> dict[str, float]:
    """All figures of an evaluation's ``metrics.json`` by name; those that are undefined are left out.

    Raises:
        InputError: missing or damaged; names the key.
    """
    content = _object(path, _METRICS)
    values = dict(content["metrics"])
    values |= {f"per_class/{entry['name']}/AP": entry["AP"] for entry in content.get("per_class", [])}
    for area, by_iou in content.get("scale_iou", {}).items():
        values |= {f"scale_iou/{area}/{iou}": value for iou, value in by_iou.items()}
    return {name: float(value) for name, value in values.items() if value is not None}


def _object(path: Path, schema: Any) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path)
    validate(content, schema, str(path))
    return content


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``log.jsonl``: step, epoch, time and figures; none without the file.

    A last line without its end is being written, or was when a process was killed: it is left out.

    Raises:
        InputError: any other line that no training wrote; names it.
    """
    path = folder / "log.jsonl"
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_log_line(path, number, line) for number, line in enumerate(lines, start=1)]


def _log_line(path: Path, number: int, text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError:  # no JSON, or not UTF-8
        line = None
    known = isinstance(line, dict) and type(line.get("step")) is int and all(map(_is_number, line.values()))
    if not known or "time" not in line:
        raise InputError(
            f"{path}, line {number}: expected a step and a time, and figures that are numbers; remove the line, or the "
            "run's folder"
        )
    if "epoch" not in line and any(name.startswith("val/") for name in line):
        raise InputError(f"{path}, line {number}: epoch: missing key; remove the line, or the run's folder")
    return dict(line)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def read_proposals(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a run's ``proposals.npz``: (N,) image_id, category_id and score, (N, 4) bbox, and of TSD others of N.

    Raises:
        InputError: missing or damaged; names the array.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `tsd predict` makes it") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not readable: {error}; make it anew by `tsd predict`") from None
    for name in _PROPOSALS:
        if name not in arrays:
            raise InputError(f"{path}: {name}: missing array; make it anew by `tsd predict`")
    number = len(np.atleast_1d(arrays["image_id"]))
    for name in (*_PROPOSALS, "proposal", "reg_proposal", "cls_points"):
        shape = arrays[name].shape if name in arrays else (number,)
        if shape[:1] != (number,) or (name == "bbox" and shape != (number, 4)):
            wanted = (number, 4) if name == "bbox" else f"({number}, …)"
            raise InputError(f"{path}: {name}: expected the shape {wanted}, got {shape}; make it anew by `tsd predict`")
    return arrays

"""Checkpoints: tensors and plain types only, written atomically, read by one strict loader.

mmengine's own loader tries ``weights_only=True`` and falls back to unpickling, which runs whatever code a file
carries; nothing in this package uses it.
"""

import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tsd.errors import CheckpointError
from tsd.files import atomic_path

_STEP = re.compile(r"step_(\d{8})\.pth$")


@dataclass(frozen=True)
class KeyReport:
    """How the keys of a state dict met those of a model."""

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} matched"]
        for name in ("missing", "unexpected", "misshapen"):
            keys = getattr(self, name)
            if keys:
                parts.append(f"{len(keys)} {name} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})")
        return ", ".join(parts)


def load(path: Path | str, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running anything that it carries.

    Raises:
        CheckpointError: missing or truncated file, a file that holds more than tensors and plain types,
            or one without a ``state_dict``.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    return _load(path, path, map_location)


def loads(content: bytes, path: Path) -> dict[str, Any]:
    """As :func:`load`, of a file that has been read.

    Args:
        content: of the file.
        path: its name, for messages.
    """
    return _load(io.BytesIO(content), path, "cpu")


def _load(source: Path | io.BytesIO, path: Path, map_location: str | torch.device) -> dict[str, Any]:
    try:
        content = torch.load(source, map_location=map_location, weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: refused: not a whole checkpoint of tensors and plain types ({reason[:160]})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary with a state_dict, got {type(content).__name__}")
    return content


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically and read it back under the strict loader's rules before it counts."""
    with atomic_path(path) as temporary:
        # A file of ours: of a full disk torch's own says "unexpected pos", and it stays open, its space taken.
        with temporary.open("wb") as file:
            torch.save(content, file)
        load(temporary)


def load_model(model: nn.Module, path: Path) -> dict[str, Any]:
    """Load a run's weights; every key must fit. Returns the checkpoint's ``meta``.

    Raises:
        CheckpointError: any missing, unexpected or misshapen key.
    """
    content = load(path)
    report = fit(model, _state_dict(content, path))
    if report.missing or report.unexpected or report.misshapen:
        raise CheckpointError(f"{path}: does not fit the model: {report}")
    meta = content.get("meta", {})
    return meta if isinstance(meta, dict) else {}


def fit(module: nn.Module, state: dict[str, torch.Tensor]) -> KeyReport:
    """Copy what fits of ``state`` into ``module``, and say what did not."""
    own = module.state_dict()
    misshapen = [key for key in own if key in state and own[key].shape != state[key].shape]
    matched = {key: state[key] for key in own if key in state and key not in misshapen}
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    module.load_state_dict(matched, strict=False)
    return KeyReport(sorted(matched), missing, sorted(set(state) - set(own)), misshapen)


def steps(folder: Path) -> Iterator[tuple[int, Path]]:
    """Checkpoints of a training, newest first, as (step, file)."""
    found = [(int(match[1]), path) for path in folder.glob("step_*.pth") if (match := _STEP.search(path.name))]
    yield from sorted(found, reverse=True)


def newest_whole(folder: Path) -> tuple[int, Path] | None:
    """(step, file) of the newest checkpoint that can be read; damaged ones after it are renamed, and it is said.

    Raises:
        CheckpointError: there are checkpoints and none can be read.
    """
    problems = []
    for step, path in steps(folder):
        try:
            load(path)
        except CheckpointError as error:
            problems.append((path, str(error)))
            continue
        for damaged, reason in problems:
            damaged.replace(damaged.with_name(f"{damaged.name}.damaged"))
            print(f"{reason}; going back to {path}", file=sys.stderr)
        return step, path
    if problems:
        raise CheckpointError(
            f"{problems[0][1]}; no older checkpoint is whole: remove {folder} to train from the beginning"
        )
    return None


def step_path(folder: Path, step: int) -> Path:
    """File of the checkpoint after ``step`` optimiser steps."""
    return folder / f"step_{step:08d}.pth"


def _state_dict(content: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    state = content.get("state_dict")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: no state_dict in it")
    return state

"""Checkpoints: tensors and plain types only, written atomically, read by one strict loader.

mmengine's own loader tries ``weights_only=True`` and falls back to unpickling, which runs whatever code a file
carries; nothing in this package uses it.
"""

import io
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
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
        CheckpointError: missing or truncated file, one whose content is not what was written, or that holds more than
            tensors and plain types.
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
    _check_sums(source, path)
    if isinstance(source, io.BytesIO):
        source.seek(0)
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


def _check_sums(source: Path | io.BytesIO, path: Path) -> None:
    """Compare the checksum of every record: ``torch.save`` writes one for each tensor, ``torch.load`` does not look.

    Files from before PyTorch 1.6 are no archives and have none.

    Raises:
        CheckpointError: a bit of a tensor is not as it was written.
    """
    if not zipfile.is_zipfile(source):
        return
    try:
        with zipfile.ZipFile(source) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged header shows as whatever its reader stumbles over
        raise CheckpointError(
            f"{path}: refused: not a whole checkpoint ({str(error) or type(error).__name__})"
        ) from error
    if damaged is not None:
        raise CheckpointError(
            f"{path}: damaged: the checksum of {damaged} in it is another; restore or remove the file"
        )


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically and read it back under the strict loader's rules before it counts."""
    with atomic_path(path) as temporary:
        # A file of ours: of a full disk torch's own says "unexpected pos", and it stays open, its space taken.
        with temporary.open("wb") as file:
            torch.save(content, file)
        load(temporary)


def load_model(model: nn.Module, path: Path, of: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Load a run's weights; every key must fit. Returns the checkpoint's ``meta``.

    Args:
        model: what gets them; stays as it was on any error but of a key.
        path: the checkpoint.
        of: what the checkpoint must say of its run, see :attr:`tsd.engine.params.Run.identity`; None: any run's.

    Raises:
        CheckpointError: another run's; values that are not finite; any missing, unexpected or misshapen key.
    """
    content = load(path)
    meta = content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    if of is not None:
        check_run(meta, of, path)
    state = _state_dict(content, path)
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: {key}: holds values that are not finite: no weights of a trained network")
    report = fit(model, state)
    if report.missing or report.unexpected or report.misshapen:
        raise CheckpointError(f"{path}: does not fit the model: {report}")
    return meta


def check_run(meta: Mapping[str, Any], of: Mapping[str, Any], path: Path) -> None:
    """Compare what a checkpoint says of its run. One that says nothing, from before it was written, is only named.

    Raises:
        CheckpointError: it is another run's.
    """
    said = meta.get("run")
    if said is None:
        print(f"{path}: does not say of which run it is; taken for this one's", file=sys.stderr)
    elif said != of:
        raise CheckpointError(f"{path}: is of the run {_named(said)}; expected {_named(of)}")


def check_classes(meta: Mapping[str, Any], classes: Sequence[str], path: Path) -> None:
    """Compare the classes that a checkpoint says it was trained on, if it does.

    Raises:
        CheckpointError: others, or in another order.
    """
    described = meta.get("dataset_meta")
    said = described.get("classes") if isinstance(described, dict) else None
    if said is None or list(said) == list(classes):
        return
    place = next((i for i, (one, other) in enumerate(zip(said, classes, strict=False)) if one != other), None)
    what = f"{len(said)} classes" if place is None else f"class {place} is {said[place]!r}"
    expected = f"{len(classes)}" if place is None else f"{classes[place]!r}"
    raise CheckpointError(f"{path}: was trained on other classes: {what}; expected {expected}")


def _named(run: Any) -> str:
    """``suite/experiment/digest/seed0``."""
    if not isinstance(run, Mapping):
        return repr(run)[:100]
    return "/".join(str(run.get(key)) for key in ("suite", "experiment", "digest")) + f"/seed{run.get('seed')}"


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

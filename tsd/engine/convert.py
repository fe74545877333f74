"""Checkpoints of the released code (Sense-X/TSD, mmdet 1.1) → ours, tensor by tensor."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tsd.engine import checkpoint
from tsd.engine.params import Suite
from tsd.errors import CheckpointError, InputError

_TSD_LAYERS = {
    "shared_fc.0": "delta_shared",
    "delta_c.0": "delta.cls.0",
    "delta_c.2": "delta.cls.2",
    "delta_r.0": "delta.reg.0",
    "delta_r.2": "delta.reg.2",
    "shared_fcs.0": "sibling_fcs.0",
    "shared_fcs.1": "sibling_fcs.2",
    "TSD_pc_fcs.0": "cls_fcs.0",
    "TSD_pc_fcs.1": "cls_fcs.2",
    "TSD_pr_fcs.0": "reg_fcs.0",
    "TSD_pr_fcs.1": "reg_fcs.2",
    "fc_cls": "sibling_fc_cls",
    "fc_reg": "sibling_fc_reg",
    "TSD_fc_cls": "fc_cls",
    "TSD_fc_reg": "fc_reg",
}
"""Layers of ``TSDSharedFCBBoxHead`` (``tsd_bbox_head.py``) → of :class:`tsd.models.TSDBBoxHead`."""

_HEAD = re.compile(r"(?P<head>bbox_head|mask_head)(?P<stage>\.\d+)?\.(?P<rest>.+)")


def convert(suite: Suite, experiment: str, source: Path, target: Path) -> dict[str, Any]:
    """Turn a released checkpoint into one that :func:`tsd.engine.predict.predict` takes.

    Class 0, the background of mmdet 1.x, becomes the last score; its slot in class-wise regression and in masks is
    dropped. Every other tensor of the source finds its place, and every tensor of the model is filled.

    Args:
        suite: says the recipe and the number of classes.
        experiment: of the suite, whose detector the checkpoint is for; it must say ``coordinates: legacy``.
        source: the released file.
        target: written atomically.

    Returns:
        The ``meta`` of the written checkpoint: where it is from, its digest, epoch and step if known.

    Raises:
        InputError: no such experiment in the suite, or its coordinates are not legacy.
        CheckpointError: a damaged file, one that holds more than tensors and plain types, or a tensor that is missing,
            left over or of another shape.
    """
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict
    from mmengine.registry import init_default_scope

    import tsd.models  # noqa: F401  registers the detectors
    from tsd.engine.model import build_model

    if experiment not in suite.settings:
        raise InputError(f"experiment {experiment!r}: not in suite {suite.name}, which has {', '.join(suite.settings)}")
    settings = suite.settings[experiment]
    if settings.get("coordinates", "continuous") != "legacy":
        raise InputError(
            f"{experiment}: released checkpoints need `coordinates: legacy` in their experiment; "
            "params/suites/released.yaml lists some"
        )
    content = checkpoint.load(source)
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{source}: expected a state_dict: names and tensors")
    tsd_head = settings["head"]["type"] == "tsd"
    translated = translate(state, tsd_head, suite.num_classes, source)
    init_default_scope("mmdet")
    model = MODELS.build(ConfigDict(build_model(settings, suite.num_classes, suite.recipe)))
    report = checkpoint.fit(model, translated)
    if report.missing or report.unexpected or report.misshapen:
        raise CheckpointError(f"{source}: does not fit {experiment}: {report}")
    old = content.get("meta")
    old = old if isinstance(old, dict) else {}
    meta = {
        "converted_from": source.name,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "coordinates": "legacy",
        "tensors": len(report.matched),
        **{key: old[key] for key in ("epoch", "iter") if isinstance(old.get(key), int)},
    }
    checkpoint.save(target, {"meta": meta, "state_dict": model.state_dict()})
    return meta


def translate(state: Mapping[str, Tensor], tsd_head: bool, num_classes: int, source: Path) -> dict[str, Tensor]:
    """Released names and class order → ours.

    Args:
        state: the released state dict.
        tsd_head: whether its box head is TSD's.
        num_classes: without background.
        source: named in messages.

    Raises:
        CheckpointError: a box head's layer that the released code does not have, or a wrong number of classes.
    """
    translated = {}
    for key, value in state.items():
        name = key.removeprefix("module.").replace("conv2_offset.", "conv2.conv_offset.")
        match = _HEAD.fullmatch(name)
        if match is None:
            translated[name] = value
            continue
        layer, _, kind = match["rest"].rpartition(".")
        value = _reorder(value, match["head"], layer, num_classes, f"{source}: {key}")
        if match["head"] == "bbox_head" and tsd_head:
            if layer not in _TSD_LAYERS:
                raise CheckpointError(f"{source}: {key}: not a layer of the released TSD head")
            layer = _TSD_LAYERS[layer]
        translated[f"roi_head.{match['head']}{match['stage'] or ''}.{layer}.{kind}"] = value
    return translated


def _reorder(value: Tensor, head: str, layer: str, num_classes: int, where: str) -> Tensor:
    """Rows of a predictor in our order: the background's last, or dropped."""
    scores = num_classes + 1
    if layer.endswith("fc_cls"):
        _expect_rows(value, scores, where)
        return value[[*range(1, scores), 0]]
    if layer.endswith("fc_reg") and len(value) != 4:  # four rows: the same deltas for all classes
        _expect_rows(value, 4 * scores, where)
        return value[4:].clone()
    if head == "mask_head" and layer == "conv_logits" and len(value) != 1:
        _expect_rows(value, scores, where)
        return value[1:].clone()
    return value


def _expect_rows(value: Tensor, rows: int, where: str) -> None:
    if len(value) != rows:
        raise CheckpointError(f"{where}: expected {rows} rows (with background), got {len(value)}")

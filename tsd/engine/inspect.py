"""Parameters and multiply-adds of an experiment's detector, counted without data, weights or arithmetic."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tsd.engine.model import Config, build_model
from tsd.engine.params import Suite
from tsd.files import write_json

MILLION, GIGA = 1e6, 1e9
PARTS = ("backbone", "neck", "rpn_head", "roi_head")

Facts = dict[str, Any]


def inspect_suite(suite: Suite, size: tuple[int, int], proposals: int) -> dict[str, Facts]:
    """:func:`inspect_model` of each experiment of a suite, and ``network``, the digest of what it follows from.

    Equal models are counted once.
    """
    digests = suite.network_digests()
    seen: dict[str, Facts] = {}
    facts = {}
    for experiment in suite.experiments:
        config = build_model(suite.settings[experiment], suite.num_classes, suite.recipe)
        key = json.dumps(config, sort_keys=True, default=str)
        if key not in seen:
            seen[key] = inspect_model(config, size, proposals)
        facts[experiment] = seen[key] | {"network": digests[experiment]}
    return facts


def inspect_model(config: Config, size: tuple[int, int], proposals: int) -> Facts:
    """Count a detector on torch's ``meta`` device, where tensors have shapes only.

    Args:
        config: from :func:`tsd.engine.model.build_model`.
        size: (height, width) of the padded picture, for the multiply-adds.
        proposals: RoIs per picture at test time.

    Returns:
        ``params_m``: million parameters, and ``params`` by part; ``gmacs``: 10⁹ multiply-adds of convolutions and
        matrix products for one picture at test time, the mask branch and all pooling, suppression and
        interpolation left out, and ``macs`` by part.
    """
    import torch
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict
    from mmengine.registry import init_default_scope
    from mmengine.utils import import_modules_from_strings

    import_modules_from_strings(["tsd.models", "tsd.engine.adapters"])
    init_default_scope("mmdet")
    with torch.device("meta"):
        model = MODELS.build(ConfigDict(config)).eval()
    params = {part: sum(value.numel() for value in getattr(model, part).parameters()) for part in PARTS}
    macs = dict(_multiply_adds(model, size, proposals))
    return {
        "params_m": sum(params.values()) / MILLION,
        "params": params,
        "gmacs": sum(macs.values()) / GIGA,
        "macs": macs,
    }


def format_facts(facts: dict[str, Facts]) -> str:
    """A line per experiment: parameters by part and in all, multiply-adds."""
    head = f"{'experiment':32}" + "".join(f"{part:>10}" for part in (*PARTS, "params M", "GMAC"))
    lines = [head]
    for experiment, entry in facts.items():
        numbers = [entry["params"][part] / MILLION for part in PARTS] + [entry["params_m"], entry["gmacs"]]
        lines.append(f"{experiment:32}" + "".join(f"{number:10.2f}" for number in numbers))
    return "\n".join(lines)


def write_facts(path: Path, facts: dict[str, Facts], size: tuple[int, int], proposals: int) -> None:
    """Write what was counted, and for which picture."""
    write_json(path, {"size": list(size), "proposals": proposals, "models": facts})


def _multiply_adds(model: Any, size: tuple[int, int], proposals: int) -> Iterator[tuple[str, int]]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    deformable = {torch.ops.torchvision.deform_conv2d: _deformable_convolution}

    def count(run: Any) -> tuple[int, Any]:
        with FlopCounterMode(display=False, custom_mapping=deformable) as counter, torch.no_grad():
            result = run()
        return counter.get_total_flops() // 2, result

    with torch.device("meta"):
        macs, features = count(lambda: model.backbone(torch.empty(1, 3, *size)))
        yield "backbone", macs
        macs, pyramid = count(lambda: model.neck(features))
        yield "neck", macs
        yield "rpn_head", count(lambda: model.rpn_head(pyramid))[0]
        yield "roi_head", count(lambda: _run_heads(model.roi_head, proposals))[0]


def _deformable_convolution(x_shape: Any, weight_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """As many products as the plain convolution of its shape; that of its offsets is counted by itself."""
    from torch.utils.flop_counter import conv_flop_count

    return conv_flop_count(x_shape, weight_shape, out_shape)


def _run_heads(roi_head: Any, proposals: int) -> None:
    """Every box head on pooled features of the right shape: pooling is not counted."""
    import torch

    from tsd.models import BranchedBBoxHead, TSDBBoxHead

    heads: Any = roi_head.bbox_head if isinstance(roi_head.bbox_head, torch.nn.ModuleList) else [roi_head.bbox_head]
    for head in heads:
        pooled = torch.empty(proposals, head.in_channels, *head.roi_feat_size)
        if isinstance(head, TSDBBoxHead):
            head(pooled, torch.empty(proposals, 5), lambda _, pooled=pooled: pooled)
        elif isinstance(head, BranchedBBoxHead):
            head(pooled, pooled)
        else:
            head(pooled)

"""Every kind of head, and whole narrowed detectors, as cases of :mod:`gpu_check`: losses, gradients, detections."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_check import Case, Outputs, Place, Special, default_dtype
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

import tsd.models  # noqa: F401  registers the heads
from tsd.engine.model import build_model, has_masks
from tsd.engine.params import Settings, load_suite
from tsd.models.tsd_bbox_head import MANNERS

ROOT = Path(__file__).resolve().parents[1]

CLASSES, OBJECTS, PROPOSALS = 4, 3, 12
"""Of each of two pictures."""

WIDTH, HEIGHT = 128, 96

LOSSES = {
    "alone": {"joint_sibling": False, "pc_cls": False, "pc_loc": False},
    "joint": {"joint_sibling": True, "pc_cls": False, "pc_loc": False},
    "PC cls": {"joint_sibling": True, "pc_cls": True, "pc_loc": False},
    "PC loc": {"joint_sibling": True, "pc_cls": False, "pc_loc": True},
    "PC": {"joint_sibling": True, "pc_cls": True, "pc_loc": True},
}

HEADS = ("baseline", "d_s16", "d_head", "mask_r50", "mask_r50_tsd", "cascade_r50", "cascade_r50_tsd")
HEADS += ("cascade_mask_r50_tsd", "released_r50", "released_cascade_r50")
"""Experiments whose heads are of another kind, beside the variants of ``tsd_pc``."""

DETECTORS = ("tsd_pc", *HEADS, "tsd_joint", "d_s8", "d_s32", "tsd_pc_r101_dcn")
"""Experiments whose detectors differ; with ResNet's backbones: the gradients of deeper random networks are chaotic."""

QUICK = ("tsd_pc", "d_s16")

NARROW: Settings = {
    "backbone": {"base_channels": 8, "norm": "bn", "frozen_stages": -1, "pretrained": None},
    "neck": {"channels": 16},
    "rpn": {"samples": 32, "train_proposals": 40},
    "roi": {"samples": 16},
    "head": {"fc_channels": 32, "delta_channels": 16},
    "test": {"proposals": 20, "max_per_image": 10, "score_threshold": 0.05},
}
"""Laid over an experiment's settings where it has them."""

LIMITS = {"float64": 1e-5, "float32": 1e-3}
"""Of a detector. mmdet works out some of the RPN's loss in single precision whatever the model's."""

HEAD_LIMITS = {"float64": 5e-6, "float32": 2e-4}
"""Of a head. mmdet encodes the targets of boxes in single precision."""

FOUND_LIMITS = {"float64": 1e-8, "float32": 1e-3}
"""Of detections."""

AMP_LIMIT = 0.2
"""Of a loss in mixed precision: another proposal may be chosen."""


def head_cases(quick: bool) -> dict[str, Case]:
    """RoI heads on given features and proposals: losses with gradients, and detections. What matters most is first."""
    cases: dict[str, Case] = {}
    for experiment in ("mask_r50_tsd", "cascade_r50_tsd") if quick else HEADS:
        cases[experiment] = _case(_head_losses, HEAD_LIMITS, experiment)
    for experiment in ("tsd_pc",) if quick else ("tsd_pc", *HEADS):
        cases[f"{experiment}, detections"] = _case(_head_detections, FOUND_LIMITS, experiment)
    cases["TSD by the backend torch"] = _case(_head_losses, HEAD_LIMITS, "tsd_pc", head={"backend": "torch"})
    cases["TSD, recipe released"] = _case(_head_losses, HEAD_LIMITS, "tsd_pc", recipe="released")
    manners = [("pointwise", "proposalwise")] if quick else [(cls, reg) for cls in MANNERS for reg in MANNERS]
    for cls, reg in manners:
        for name in ("alone", "PC") if quick else LOSSES:
            head = LOSSES[name] | {"cls_proposal": cls, "reg_proposal": reg}
            cases[f"P̂c {cls}, P̂r {reg}, {name}"] = _case(_head_losses, HEAD_LIMITS, "tsd_pc", head=head)
    return cases


def detector_cases(quick: bool) -> dict[str, Case | Special]:
    """Whole detectors from pictures on: losses with gradients, detections, and a step in mixed precision."""
    cases: dict[str, Case | Special] = {}
    for experiment in QUICK if quick else DETECTORS:
        cases[f"{experiment}, losses and gradients"] = _case(_losses, LIMITS, experiment)
        if not quick or experiment == QUICK[0]:
            cases[f"{experiment}, detections"] = _case(_detections, FOUND_LIMITS, experiment)
            cases[f"{experiment}, mixed precision"] = partial(_mixed, experiment)
    return cases


def _case(run: Any, limits: dict[str, float], experiment: str, **options: Any) -> Case:
    recipe, head = options.get("recipe", ""), tuple(options.get("head", {}).items())
    case = Case(partial(run, experiment, recipe, head), limits, floor=1e-3)
    if "mask" in experiment and run in (_detections, _head_detections):  # mmdet pastes masks in single precision
        return replace(case, limits={"float32": limits["float32"]}, exact=torch.float32)
    return case


# Building.


@lru_cache(maxsize=4)
def _suite(name: str) -> Any:
    return load_suite(name, root=ROOT)


def narrow_config(experiment: str, recipe: str = "", head: tuple[tuple[str, Any], ...] = ()) -> dict[str, Any]:
    """The detector of an experiment of the suites ``coco`` and ``released``, with few channels.

    Args:
        experiment: its name.
        recipe: other than the suite's.
        head: settings of the head other than the experiment's.
    """
    suite = _suite("released" if experiment.startswith("released") else "coco")
    settings = copy.deepcopy(suite.settings[experiment])
    for part, values in NARROW.items():
        settings[part] |= {key: value for key, value in values.items() if key in settings[part]}
    if settings["head"]["type"] == "tsd":
        settings["head"]["delta_channels"] = NARROW["head"]["delta_channels"]
    if "depth" in settings["backbone"]:
        plain = settings["backbone"].get("type", "resnet") == "resnet" and not settings["backbone"].get("dcn")
        settings["backbone"]["depth"] = 18 if plain else 50
    options = dict(head)
    backend = options.pop("backend", None)
    settings["head"] |= options
    config = build_model(settings, CLASSES, recipe or suite.recipe)
    if backend:
        config["roi_head"]["bbox_head"]["backend"] = backend
    stages = config["train_cfg"]["rcnn"]
    for part in (config["train_cfg"]["rpn"], *(stages if isinstance(stages, list) else [stages])):
        kept = {key: value for key, value in part["sampler"].items() if key not in ("seed", "stage")}
        part["sampler"] = kept | {"type": "RandomSampler"}  # these pictures have no position
    config["with_masks"] = has_masks(settings)
    return config


def _built(config: dict[str, Any], seed: int) -> nn.Module:
    """In double precision, with weights that hardly make two scores nearly equal."""
    init_default_scope("mmdet")
    MMLogger.get_instance("benchmark", log_level="WARNING")
    torch.manual_seed(seed)
    module = MODELS.build(ConfigDict(config))
    module.init_weights()
    for name, value in module.named_parameters():
        if name.endswith(("fc_cls.weight", "rpn_cls.weight")):
            value.data.mul_(20)
        elif name.endswith("conv_offset.weight"):  # deformable convolutions start where plain ones are
            nn.init.normal_(value, std=0.05)
    return module.double()


@cache
def _detector(experiment: str, recipe: str, head: tuple[tuple[str, Any], ...], seed: int) -> tuple[nn.Module, bool]:
    config = narrow_config(experiment, recipe, head)
    masks = config.pop("with_masks")
    return _built(config, seed), masks


@cache
def _head(experiment: str, recipe: str, head: tuple[tuple[str, Any], ...], seed: int) -> tuple[nn.Module, bool]:
    config = narrow_config(experiment, recipe, head)
    own = {"train_cfg": config["train_cfg"]["rcnn"], "test_cfg": config["test_cfg"]["rcnn"]}
    return _built(config["roi_head"] | own, seed), config["with_masks"]


def _put(module: nn.Module, place: Place) -> nn.Module:
    """A copy of the reference's module, its parameters moved by the place's noise."""
    own = copy.deepcopy(module)
    for index, value in enumerate(own.parameters()):
        value.data = place.moved(value.data, 1000 + index)
    return own.to(place.device, place.dtype)


# Inputs.


def _boxes(place: Place, picture: int) -> tuple[Tensor, Tensor]:
    """Objects and proposals, some of which lie on objects; xyxy."""
    generator = place.generator(30 + picture)
    size = torch.tensor([WIDTH, HEIGHT], dtype=torch.float64)
    corner = torch.rand(OBJECTS, 2, generator=generator, dtype=torch.float64) * size * 0.6
    side = size * (0.15 + 0.25 * torch.rand(OBJECTS, 2, generator=generator, dtype=torch.float64))
    objects = torch.cat((corner, corner + side), dim=1)
    near = objects.repeat(2, 1) + 4 * torch.randn(2 * OBJECTS, 4, generator=generator, dtype=torch.float64)
    corner = torch.rand(PROPOSALS - len(near), 2, generator=generator, dtype=torch.float64) * size * 0.6
    far = torch.cat((corner, corner + size * 0.3), dim=1)
    limit = size.repeat(2)
    proposals = torch.minimum(torch.cat((near, far)).clamp(min=0), limit)
    return place.put(objects, 30 + picture), place.put(proposals, 40 + picture)


def _samples(place: Place, masks: bool) -> list[DetDataSample]:
    samples = []
    for picture in range(2):
        shape = (HEIGHT, WIDTH)
        sample = DetDataSample(
            metainfo={
                "img_shape": shape,
                "ori_shape": shape,
                "pad_shape": shape,
                "batch_input_shape": shape,
                "scale_factor": (1.0, 1.0),
                "img_id": picture,
            }
        )
        boxes, _ = _boxes(place, picture)
        labels = torch.randint(0, CLASSES, (OBJECTS,), generator=place.generator(50 + picture)).to(place.device)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        if masks:
            sample.gt_instances.masks = _masks()
        samples.append(sample)
    return samples


def _masks() -> BitmapMasks:
    """All of the picture or nothing of it: the target of a cell on a mask's outline is often a half, a draw."""
    whole = [np.full((HEIGHT, WIDTH), number % 2 == 0, dtype=np.uint8) for number in range(OBJECTS)]
    return BitmapMasks(np.stack(whole), HEIGHT, WIDTH)


def _features(place: Place, branched: bool) -> tuple[Tensor, ...]:
    maps = []
    for level, stride in enumerate((4, 8, 16, 32, 64) * (2 if branched else 1)):
        shape = (2, NARROW["neck"]["channels"], math.ceil(HEIGHT / stride), math.ceil(WIDTH / stride))
        value = torch.randn(shape, generator=place.generator(10 + level), dtype=torch.float64)
        maps.append(place.put(value, 10 + level).requires_grad_())
    return tuple(maps)


def _proposals(place: Place) -> list[InstanceData]:
    found = []
    for picture in range(2):
        _, boxes = _boxes(place, picture)
        scores = torch.linspace(1, 0.1, len(boxes), device=place.device)
        found.append(InstanceData(bboxes=boxes, scores=scores, labels=torch.zeros_like(scores, dtype=torch.long)))
    return found


# Running.


def _with_gradients(losses: dict[str, Any], inputs: dict[str, Tensor]) -> Outputs:
    """Each loss, and the gradient of their sum for each input that it reaches."""
    named = {}
    for name, value in losses.items():
        if "loss" in name:
            named[name] = sum(part.mean() for part in value) if isinstance(value, (list, tuple)) else value.mean()
    found = torch.autograd.grad(sum(named.values()), list(inputs.values()), allow_unused=True)
    gradients = {f"gradient of {name}": value for name, value in zip(inputs, found, strict=True) if value is not None}
    return named | gradients


def _trainable(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def _listed(results: list[InstanceData]) -> Outputs:
    """Detections as tensors; of a mask its area, in which a pixel on the edge counts little."""
    found: Outputs = {}
    for picture, result in enumerate(results):
        for name in ("bboxes", "scores", "labels"):
            found[f"{name}, picture {picture}"] = result[name]
        if "masks" in result:
            found[f"mask areas, picture {picture}"] = result.masks.flatten(1).double().mean(dim=1)
    return found


def _head_losses(experiment: str, recipe: str, head: Any, place: Place) -> Outputs:
    module, masks = _head(experiment, recipe, head, place.seed)
    with default_dtype(place.dtype):
        own = _put(module, place).train()
        maps = _features(place, experiment.startswith("d_s"))
        torch.manual_seed(place.seed)
        losses = own.loss(maps, _proposals(place), _samples(place, masks))
        inputs = {f"map {level}": value for level, value in enumerate(maps)} | _trainable(own)
        return _with_gradients(losses, inputs)


@torch.no_grad()
def _head_detections(experiment: str, recipe: str, head: Any, place: Place) -> Outputs:
    module, masks = _head(experiment, recipe, head, place.seed)
    with default_dtype(place.dtype):
        own = _put(module, place).eval()
        maps = _features(place, experiment.startswith("d_s"))
        return _listed(own.predict(maps, _proposals(place), _samples(place, masks), rescale=False))


def _data(place: Place, masks: bool) -> dict[str, Any]:
    pictures = [
        torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=place.generator(60 + picture), dtype=torch.uint8)
        for picture in range(2)
    ]
    return {"inputs": pictures, "data_samples": _samples(place, masks)}


def _losses(experiment: str, recipe: str, head: Any, place: Place) -> Outputs:
    module, masks = _detector(experiment, recipe, head, place.seed)
    with default_dtype(place.dtype):
        own = _put(module, place).train()
        torch.manual_seed(place.seed)
        data = own.data_preprocessor(_data(place, masks), True)
        return _with_gradients(own(**data, mode="loss"), _trainable(own))


@torch.no_grad()
def _detections(experiment: str, recipe: str, head: Any, place: Place) -> Outputs:
    module, masks = _detector(experiment, recipe, head, place.seed)
    with default_dtype(place.dtype):
        own = _put(module, place)
        for part in own.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.track_running_stats, part.running_mean, part.running_var = False, None, None
        own.eval()  # by the statistics of the batch: a random network is of no use with those it starts from
        samples = own.test_step(_data(place, masks))
        return _listed([sample.pred_instances for sample in samples])


def _mixed(experiment: str, device: torch.device) -> dict[str, Any]:
    """A training step under autocast: everything finite, and the losses near those of single precision."""
    module, masks = _detector(experiment, "", (), 0)
    place = Place(device, torch.float32)
    totals: dict[str, float] = {}
    found: dict[str, Any] = {}
    names = ["float32", "float16"] if device.type == "cpu" else ["float32", "float16", "bfloat16"]
    for name in names:  # on a CPU torchvision's RoIAlign has no bfloat16
        own = _put(module, place).train()
        torch.manual_seed(0)
        data = own.data_preprocessor(_data(place, masks), True)
        half = torch.autocast(device.type, getattr(torch, name)) if name != "float32" else nullcontext()
        with half:
            total, _ = own.parse_losses(own(**data, mode="loss"))
        (256 * total).backward()
        totals[name] = float(total)
        odd = [
            key for key, value in own.named_parameters() if value.grad is not None and not value.grad.isfinite().all()
        ]
        if name != "float32":
            apart = abs(totals[name] - totals["float32"]) / abs(totals["float32"])
            finite = math.isfinite(apart) and not odd
            found[name] = {
                "worst": apart if finite else None,
                "output": odd[0] if odd else "loss",
                "limit": AMP_LIMIT,
                "correct": finite and apart <= AMP_LIMIT,
            }
    return found

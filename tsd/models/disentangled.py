"""Disentangling in the backbone (Figure 3, Table 1): D_s8, D_s16 and D_s32.

The backbone is shared through a stride; later stages, the FPN and the 2-fc head exist twice, once for each task. The
two pyramids travel as one tuple, classification's levels first, so that any two-stage detector of mmdet can hold these
parts: the RPN looks at one half of the tuple, the RoI head pools from each.

D_head, where only the 2-fc head exists twice, is mmdet's ``ConvFCBBoxHead`` without shared layers.
"""

import copy
from collections.abc import Mapping
from typing import Any

from mmdet.models.backbones import ResNet
from mmdet.models.dense_heads import RPNHead
from mmdet.models.necks import FPN
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

BRANCHES = ("cls", "reg")

Maps = tuple[Tensor, ...]


@MODELS.register_module()
class BranchedResNet(ResNet):
    """ResNet whose last stages exist twice: ``layer3``, … for classification, ``reg_layer3``, … for localisation.

    Args:
        shared_stages: stages that both tasks share: 2, 3 or 4 for D_s8, D_s16 and D_s32.
        **kwargs: of mmdet's ``ResNet``, of four stages that are all returned.

    Raises:
        ValueError: ``shared_stages`` is out of range, or not all stages are returned.
    """

    def __init__(self, shared_stages: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if tuple(self.out_indices) != tuple(range(len(self.res_layers))):
            raise ValueError(f"out_indices: expected all {len(self.res_layers)} stages, got {self.out_indices}")
        if not 1 <= shared_stages <= len(self.res_layers):
            raise ValueError(f"shared_stages: expected 1 to {len(self.res_layers)}, got {shared_stages}")
        self.shared_stages = shared_stages
        for name in self.res_layers[shared_stages:]:
            self.add_module(f"reg_{name}", copy.deepcopy(getattr(self, name)))
        self._freeze_stages()

    def forward(self, x: Tensor) -> Maps:
        """(B, 3, H, W) → four maps of the classification branch, then four of the localisation branch."""
        x = self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x)))
        x = self.maxpool(x)
        shared = []
        for name in self.res_layers[: self.shared_stages]:
            x = getattr(self, name)(x)
            shared.append(x)
        return (*shared, *self._later(x, ""), *shared, *self._later(x, "reg_"))

    def _later(self, x: Tensor, prefix: str) -> list[Tensor]:
        maps = []
        for name in self.res_layers[self.shared_stages :]:
            x = getattr(self, prefix + name)(x)
            maps.append(x)
        return maps

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        for name in self.res_layers[: max(self.frozen_stages, 0)]:
            layer = getattr(self, f"reg_{name}", None)  # not there while the parent is being built
            if layer is not None:
                layer.eval()
                layer.requires_grad_(False)

    def train(self, mode: bool = True) -> "BranchedResNet":
        """Training mode, but for what is frozen."""
        super().train(mode)
        return self

    def state_dict_from_plain(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a plain ResNet with those of its later stages given to both branches."""
        later = tuple(f"{name}." for name in self.res_layers[self.shared_stages :])
        doubled = {f"reg_{key}": value for key, value in state.items() if key.startswith(later)}
        return {**state, **doubled}


@MODELS.register_module()
class BranchedFPN(BaseModule):
    """One FPN for each task.

    Args:
        **kwargs: of mmdet's ``FPN``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({branch: FPN(**kwargs) for branch in BRANCHES})

    def forward(self, inputs: Maps) -> Maps:
        """Maps of both branches, classification's first → pyramids of both, in the same order."""
        return tuple(level for branch in BRANCHES for level in self.branches[branch](half(inputs, branch)))


@MODELS.register_module()
class BranchRPNHead(RPNHead):
    """RPN on one of the two pyramids.

    Args:
        branch: ``cls`` or ``reg``.
        **kwargs: of mmdet's ``RPNHead``.

    Raises:
        ValueError: another branch.
    """

    def __init__(self, *args: Any, branch: str = "cls", **kwargs: Any) -> None:
        if branch not in BRANCHES:
            raise ValueError(f"branch: expected one of {', '.join(BRANCHES)}, got {branch!r}")
        super().__init__(*args, **kwargs)
        self.branch = branch

    def forward(self, x: Maps) -> tuple[list[Tensor], ...]:
        """Both pyramids → objectness logits and deltas of each level of one."""
        return super().forward(half(x, self.branch))


@MODELS.register_module()
class BranchedBBoxHead(ConvFCBBoxHead):
    """Two hidden layers and a predictor for each task, on features of their own.

    Args:
        fc_out_channels: width of the hidden layers.
        **kwargs: of mmdet's ``ConvFCBBoxHead``.
    """

    def __init__(self, fc_out_channels: int = 1024, **kwargs: Any) -> None:
        super().__init__(num_cls_fcs=2, num_reg_fcs=2, fc_out_channels=fc_out_channels, **kwargs)

    def forward(self, cls_features: Tensor, reg_features: Tensor) -> tuple[Tensor, Tensor]:
        """(K, C, P, P) of each task → logits (K, num_classes + 1) and deltas (K, 4 · num_classes)."""
        cls_hidden, reg_hidden = cls_features.flatten(1), reg_features.flatten(1)
        for layer in self.cls_fcs:
            cls_hidden = layer(cls_hidden).relu()
        for layer in self.reg_fcs:
            reg_hidden = layer(reg_hidden).relu()
        return self.fc_cls(cls_hidden), self.fc_reg(reg_hidden)


@MODELS.register_module()
class BranchedRoIHead(StandardRoIHead):
    """RoI head that pools the same RoIs from two pyramids, for a :class:`BranchedBBoxHead`."""

    def _bbox_forward(self, x: Maps, rois: Tensor) -> dict[str, Tensor]:
        extractor = self.bbox_roi_extractor
        features = [extractor(half(x, branch)[: extractor.num_inputs], rois) for branch in BRANCHES]
        cls_score, bbox_pred = self.bbox_head(*features)
        return {"cls_score": cls_score, "bbox_pred": bbox_pred, "bbox_feats": features[0]}


def half(maps: Maps, branch: str) -> Maps:
    """The maps of one branch out of a tuple that has classification's first."""
    middle = len(maps) // 2
    return maps[:middle] if branch == "cls" else maps[middle:]

"""SENet-154 as a backbone, with the parameter names of its published weights."""

from collections import OrderedDict
from typing import Any

from mmcv.cnn import build_conv_layer, build_norm_layer
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from tsd.models.deform_conv import TorchvisionDCN

BLOCKS = (3, 8, 36, 3)
EXPANSION = 4
REDUCTION = 16


class SEModule(nn.Module):
    """Squeeze and excitation: a weight for each channel from the mean of the map (Hu et al., CVPR 2018, Sec. 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, max(channels // REDUCTION, 1), 1)
        self.fc2 = nn.Conv2d(max(channels // REDUCTION, 1), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same, each channel weighted."""
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class SEBottleneck(nn.Module):
    """SENet-154's block: 1×1 to twice the planes, grouped 3×3 to four times, 1×1, squeeze and excitation.

    Args:
        inputs: channels that come in.
        planes: a quarter of the channels that go out.
        groups: of the 3×3 convolution.
        stride: of the 3×3 convolution.
        downsample: kernel size of the shortcut's convolution; None: the shortcut is the identity.
        norm: mmcv's ``norm_cfg``.
        dcn: mmcv's ``conv_cfg`` of a deformable 3×3 convolution, None for a plain one.
        with_cp: recompute the block in the backward pass instead of keeping it.
    """

    def __init__(
        self,
        inputs: int,
        planes: int,
        groups: int,
        stride: int,
        downsample: int | None,
        norm: dict[str, Any],
        dcn: dict[str, Any] | None,
        with_cp: bool,
    ) -> None:
        super().__init__()
        outputs = planes * EXPANSION
        self.with_cp = with_cp
        self.conv1 = nn.Conv2d(inputs, planes * 2, 1, bias=False)
        self.bn1 = build_norm_layer(norm, planes * 2)[1]
        self.conv2 = build_conv_layer(dcn, planes * 2, outputs, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = build_norm_layer(norm, outputs)[1]
        self.conv3 = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn3 = build_norm_layer(norm, outputs)[1]
        self.se_module = SEModule(outputs)
        self.downsample = None
        if downsample is not None:
            shortcut = nn.Conv2d(inputs, outputs, downsample, stride=stride, padding=downsample // 2, bias=False)
            self.downsample = nn.Sequential(shortcut, build_norm_layer(norm, outputs)[1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, 4 · planes, H / stride, W / stride)."""
        if self.with_cp and x.requires_grad:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        out = self.se_module(self.bn3(self.conv3(out)))
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


@MODELS.register_module()
class SENet(BaseModule):
    """SENet-154 (Hu et al., CVPR 2018): feature maps of strides 4, 8, 16 and 32.

    Parameters are named as in the published weights (timm's ``legacy_senet154``), so that they load as they are.

    Args:
        base_channels: planes of the first stage, and groups of its 3×3 convolutions: 64 in SENet-154.
        out_indices: stages that are returned.
        frozen_stages: the stem and so many stages have no gradient and fixed statistics; -1: none, 0: the stem.
        norm_cfg: mmcv's.
        norm_eval: statistics of all normalisation layers stay fixed in training.
        dcn: ``conv_cfg`` of deformable 3×3 convolutions.
        stage_with_dcn: the stages that have them.
        with_cp: recompute blocks in the backward pass to save memory.
        init_cfg: mmengine's; the default is Kaiming's for convolutions.

    Raises:
        ValueError: ``frozen_stages`` or ``out_indices`` name no stage.
    """

    def __init__(
        self,
        base_channels: int = 64,
        out_indices: tuple[int, ...] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_cfg: dict[str, Any] | None = None,
        norm_eval: bool = True,
        dcn: dict[str, Any] | None = None,
        stage_with_dcn: tuple[bool, ...] = (False, False, False, False),
        with_cp: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg or {"type": "Kaiming", "layer": "Conv2d"})
        stages = len(BLOCKS)
        if not -1 <= frozen_stages <= stages:
            raise ValueError(f"frozen_stages: expected -1 to {stages}, got {frozen_stages}")
        if not set(out_indices) <= set(range(stages)):
            raise ValueError(f"out_indices: expected numbers from 0 to {stages - 1}, got {out_indices}")
        norm = norm_cfg or {"type": "BN", "requires_grad": True}
        self.out_indices, self.frozen_stages, self.norm_eval = tuple(out_indices), frozen_stages, norm_eval
        self.layer0 = _stem(base_channels, norm)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        inputs = 2 * base_channels
        for stage, blocks in enumerate(BLOCKS):
            planes = base_channels * 2**stage
            deformable = dcn if stage_with_dcn[stage] else None
            layer = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                downsample = None if block else (3 if stage else 1)
                layer.append(SEBottleneck(inputs, planes, base_channels, stride, downsample, norm, deformable, with_cp))
                inputs = planes * EXPANSION
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
        self._freeze()

    def init_weights(self) -> None:
        """As ``init_cfg`` says; offsets of deformable convolutions start at zero."""
        super().init_weights()
        for module in self.modules():
            if isinstance(module, TorchvisionDCN):
                module.init_weights()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) → one map per index of ``out_indices``."""
        x = self.pool(self.layer0(x))
        outputs = []
        for stage in range(len(BLOCKS)):
            x = getattr(self, f"layer{stage + 1}")(x)
            if stage in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def train(self, mode: bool = True) -> "SENet":
        """Training mode, but for what is frozen."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        for stage in range(self.frozen_stages + 1):
            layer: nn.Module = getattr(self, f"layer{stage}")
            layer.eval()
            layer.requires_grad_(False)


def _stem(channels: int, norm: dict[str, Any]) -> nn.Sequential:
    """Three 3×3 convolutions, the first of stride 2; 2 · ``channels`` go out."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    widths = (3, channels, channels, 2 * channels)
    for number in (1, 2, 3):
        stride = 2 if number == 1 else 1
        layers[f"conv{number}"] = nn.Conv2d(widths[number - 1], widths[number], 3, stride=stride, padding=1, bias=False)
        layers[f"bn{number}"] = build_norm_layer(norm, widths[number])[1]
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)

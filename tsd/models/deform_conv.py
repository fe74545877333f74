"""Deformable convolution (Dai et al., ICCV 2017) on torchvision's kernels, for the backbones of Tables 5, 6 and 8."""

from typing import Any

import torch
from mmengine.registry import MODELS  # where mmcv looks for convolutions
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


@MODELS.register_module()
class TorchvisionDCN(nn.Module):
    """A 3×3 (or other) convolution that samples where a plain convolution of its input says.

    Parameters are named as mmcv's ``DCN``: ``weight``, and ``conv_offset`` of 2 · deform_groups · kH · kW channels, y
    then x of each sample; it starts at zero, as the plain convolution does. There is no modulation and no bias.
    mmcv's interface has two functions for the backward, each of which would run all of torchvision's.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: of both convolutions.
        stride: of both.
        padding: of both.
        dilation: of both.
        groups: of the deformable one.
        deform_groups: groups of channels with offsets of their own.
        bias: False, as mmcv's.

    Raises:
        ValueError: a bias is asked for.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if bias:
            raise ValueError("bias: expected False: a normalisation layer follows")
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        offsets = 2 * deform_groups * kernel_size**2
        self.conv_offset = nn.Conv2d(in_channels, offsets, kernel_size, stride, padding, dilation)
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.init_weights()

    def init_weights(self) -> None:
        """Offsets of zero. A backbone's own initialisation, which goes before, takes ``conv_offset`` for any other."""
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C_out, H_out, W_out); sampled in single precision where the input has less."""
        offset = self.conv_offset(x)
        nothing = (offset * 0).sum(dim=1, keepdim=True)  # but NaN where an offset is
        wide = torch.promote_types(x.dtype, torch.float32)  # there is no kernel for bfloat16
        # The kernel takes NaN for a place in memory.
        tensors: list[Any] = [tensor.to(wide) for tensor in (x, offset.nan_to_num(nan=0.0), self.weight)]
        out = deform_conv2d(*tensors, stride=self.stride, padding=self.padding, dilation=self.dilation)
        return out.to(offset.dtype) + nothing

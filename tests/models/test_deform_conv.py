"""Deformable convolution against its definition, and how it starts."""

import pytest
import torch
from mmdet.models.backbones import ResNet, ResNeXt
from torch.nn import functional as F

from tsd.models import BranchedResNet, SENet, TorchvisionDCN

DCN = {"dcn": {"type": "TorchvisionDCN"}, "stage_with_dcn": (False, False, False, True)}


def bilinear(image: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """(C,) at a place of (C, H, W), zero beyond the border."""
    y0, x0 = int(torch.floor(torch.tensor(y))), int(torch.floor(torch.tensor(x)))
    total = torch.zeros(len(image), dtype=image.dtype)
    for row, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for column, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                total = total + wy * wx * image[:, row, column]
    return total


def slow(layer: TorchvisionDCN, x: torch.Tensor, groups: int, deform_groups: int) -> torch.Tensor:
    """Sample by sample (Dai et al., Eq. 2)."""
    offset = layer.conv_offset(x)
    size = layer.weight.shape[2]
    (batch, channels), (height, width) = x.shape[:2], offset.shape[2:]
    out = torch.zeros(batch, len(layer.weight), height, width, dtype=x.dtype)
    per_group, per_offsets = channels // groups, channels // deform_groups
    outputs = len(layer.weight) // groups
    for b, row, column in torch.cartesian_prod(*map(torch.arange, (batch, height, width))).tolist():
        for i, j in torch.cartesian_prod(torch.arange(size), torch.arange(size)).tolist():
            samples = torch.zeros(channels, dtype=x.dtype)
            for g in range(deform_groups):
                dy, dx = offset[b, 2 * (g * size**2 + i * size + j) :][:2, row, column].tolist()
                y = row * layer.stride - layer.padding + i * layer.dilation + dy
                x_place = column * layer.stride - layer.padding + j * layer.dilation + dx
                own = slice(g * per_offsets, (g + 1) * per_offsets)
                samples[own] = bilinear(x[b, own], y, x_place)
            for g in range(groups):
                weight = layer.weight[g * outputs : (g + 1) * outputs, :, i, j]
                out[b, g * outputs : (g + 1) * outputs, row, column] += (
                    weight @ samples[g * per_group : (g + 1) * per_group]
                )
    return out


@pytest.mark.parametrize(("groups", "deform_groups", "stride"), [(1, 1, 1), (2, 1, 2), (2, 2, 1)])
def test_it_is_the_sum_over_samples_at_shifted_places(groups, deform_groups, stride):
    torch.manual_seed(0)
    layer = TorchvisionDCN(4, 6, 3, stride=stride, padding=1, groups=groups, deform_groups=deform_groups).double()
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.3)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), slow(layer, x, groups, deform_groups), atol=1e-10, rtol=1e-10)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    layer = TorchvisionDCN(2, 2, 3, padding=1).double()
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


def test_with_offsets_of_zero_it_is_the_plain_convolution():
    torch.manual_seed(0)
    layer = TorchvisionDCN(4, 4, 3, padding=1)
    x = torch.randn(1, 4, 7, 7)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, padding=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_less_than_single_precision_is_sampled_in_single_precision(dtype):
    torch.manual_seed(0)
    layer = TorchvisionDCN(4, 4, 3, padding=1).to(dtype)
    x = torch.randn(1, 4, 7, 7, dtype=dtype)
    exact = F.conv2d(x.float(), layer.weight.float(), padding=1).to(dtype)
    out = layer(x)
    assert out.dtype == dtype
    assert torch.equal(out, exact)
    with torch.autocast("cpu", torch.bfloat16):
        out = TorchvisionDCN(4, 4, 3, padding=1)(torch.randn(1, 4, 7, 7))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()


def test_a_diverged_offset_gives_nan_and_not_a_crash():
    layer = TorchvisionDCN(4, 4, 3, padding=1)
    x = torch.rand(1, 4, 32, 32, requires_grad=True)
    x.data[0, :, 20, 20] = float("nan")
    out = layer(x)
    assert out[0, :, 20, 20].isnan().all()
    assert torch.isfinite(out[0, :, :10, :10]).all()
    out.sum().backward()


@pytest.mark.parametrize(
    "build",
    [
        lambda: ResNet(depth=50, base_channels=8, stem_channels=8, **DCN),
        lambda: ResNeXt(depth=50, base_channels=8, stem_channels=8, groups=4, base_width=4, **DCN),
        lambda: SENet(base_channels=8, **DCN),
        lambda: BranchedResNet(3, depth=50, base_channels=8, stem_channels=8, **DCN),
    ],
    ids=["ResNet", "ResNeXt", "SENet", "BranchedResNet"],
)
def test_offsets_are_zero_after_a_backbones_own_initialisation(build):
    backbone = build()
    backbone.init_weights()
    offsets = [value for name, value in backbone.named_parameters() if "conv_offset" in name]
    assert offsets
    assert not any(value.any() for value in offsets)


def test_a_bias_is_refused():
    with pytest.raises(ValueError, match="bias: expected False"):
        TorchvisionDCN(1, 1, 3, bias=True)

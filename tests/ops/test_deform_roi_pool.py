"""The operator against torchvision's RoIAlign and against a slow implementation of its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from tsd.ops import FeaturePyramid, deform_roi_pool, map_roi_levels

STRIDES = [4, 8, 16, 32]
P = 7


def pyramid(dtype=torch.float64, channels=3, side=64, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, side // 2**level, side // 2**level, dtype=dtype, generator=generator)
        for level in range(4)
    ]


def random_rois(count, dtype=torch.float64, extent=256.0, batch=2, seed=1):
    """Boxes of all levels' sizes, some partly outside the picture."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, dtype=dtype, generator=generator) * extent - extent / 8
    size = torch.rand(count, 2, dtype=dtype, generator=generator) ** 2 * extent * 1.5 + 1
    image = torch.randint(0, batch, (count, 1), generator=generator).to(dtype)
    return torch.cat((image, corner, corner + size), dim=1)


def pool(features, rois, offset=None, sampling_ratio=2, gamma=0.1, size=P):
    return deform_roi_pool(
        features, rois, offset, strides=STRIDES, output_size=size, sampling_ratio=sampling_ratio, gamma=gamma
    )


def aligned(features, rois, levels, sampling_ratio, size=P):
    """RoIAlign level by level."""
    ratio = sampling_ratio or -1
    out = features[0].new_zeros(len(rois), features[0].shape[1], size, size)
    for level, feature in enumerate(features):
        own = levels == level
        if own.any():
            out[own] = roi_align(feature, rois[own], size, 1 / STRIDES[level], ratio, aligned=True)
    return out


def slow(features, rois, offset, sampling_ratio, gamma, size):
    """Eq. 6, sample by sample, in plain Python."""
    levels = map_roi_levels(rois, 4).tolist()
    out = torch.zeros(len(rois), features[0].shape[1], size, size, dtype=rois.dtype)
    for k, roi in enumerate(rois.tolist()):
        feature, scale = features[levels[k]][int(roi[0])], 1 / STRIDES[levels[k]]
        height, width = feature.shape[1:]
        x1, y1, x2, y2 = (value * scale - 0.5 for value in roi[1:])
        for i in range(size):
            for j in range(size):
                shift_x = gamma * float(offset[k, 0, i, j]) * (x2 - x1)
                shift_y = gamma * float(offset[k, 1, i, j]) * (y2 - y1)
                for a in range(sampling_ratio):
                    for b in range(sampling_ratio):
                        y = y1 + (i + (a + 0.5) / sampling_ratio) * (y2 - y1) / size + shift_y
                        x = x1 + (j + (b + 0.5) / sampling_ratio) * (x2 - x1) / size + shift_x
                        if not (-1 <= y <= height and -1 <= x <= width):
                            continue
                        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                        low_y, low_x = math.floor(y), math.floor(x)
                        for row, wy in ((low_y, 1 - (y - low_y)), (min(low_y + 1, height - 1), y - low_y)):
                            for column, wx in ((low_x, 1 - (x - low_x)), (min(low_x + 1, width - 1), x - low_x)):
                                out[k, :, i, j] += wy * wx * feature[:, row, column] / sampling_ratio**2
    return out


@pytest.mark.parametrize("sampling_ratio", [1, 2, 3, 0])
@pytest.mark.parametrize("zeros", [True, False])
def test_without_shift_it_is_roi_align(sampling_ratio, zeros):
    features, rois = pyramid(), random_rois(60)
    offset = torch.zeros(60, 2, P, P, dtype=torch.float64) if zeros else None
    expected = aligned(features, rois, map_roi_levels(rois, 4), sampling_ratio)
    torch.testing.assert_close(pool(features, rois, offset, sampling_ratio), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_one_shift_for_all_cells_is_roi_align_of_the_translated_roi(sampling_ratio):
    features, rois = pyramid(), random_rois(60)
    shift = torch.randn(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    moved = rois.clone()
    moved[:, 1:] += (0.1 * shift * (rois[:, 3:] - rois[:, 1:3])).repeat(1, 2)
    expected = aligned(features, moved, map_roi_levels(rois, 4), sampling_ratio)
    offset = shift[:, :, None, None].expand(-1, -1, P, P)
    torch.testing.assert_close(pool(features, rois, offset, sampling_ratio), expected, atol=1e-10, rtol=0)


def test_in_single_precision_it_is_within_1e_5_of_the_exact_result():
    features, rois = pyramid(torch.float32), random_rois(60, torch.float32)
    shift = torch.randn(60, 2, generator=torch.Generator().manual_seed(3))
    shift[:20] = 0
    moved = rois.double()
    moved[:, 1:] += (0.1 * shift.double() * (moved[:, 3:] - moved[:, 1:3])).repeat(1, 2)
    exact = aligned([f.double() for f in features], moved, map_roi_levels(rois, 4), 2)
    got = pool(features, rois, shift[:, :, None, None].expand(-1, -1, P, P))
    torch.testing.assert_close(got.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.1)])
def test_in_half_precision_only_values_are_rounded_and_not_positions(dtype, tolerance):
    features, rois = pyramid(torch.float32, side=256), random_rois(60, torch.float32, extent=1000.0)
    offset = torch.randn(60, 2, P, P, generator=torch.Generator().manual_seed(3))
    halves = [feature.to(dtype).requires_grad_() for feature in features]
    got = pool(halves, rois, offset)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), pool(features, rois, offset), atol=tolerance, rtol=tolerance)
    got.sum().backward()
    assert halves[0].grad.dtype == dtype


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 4),
    size=st.integers(1, 3),
    sampling_ratio=st.integers(1, 3),
    gamma=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**16),
)
def test_it_is_its_definition_for_any_shape(count, size, sampling_ratio, gamma, seed):
    features = pyramid(side=16, channels=2, seed=seed)
    rois = random_rois(count, extent=64.0, seed=seed + 1)
    offset = torch.randn(count, 2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    got = pool(features, rois, offset, sampling_ratio, gamma, size)
    expected = slow(features, rois, offset, sampling_ratio, gamma, size)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


def test_gradients_to_features_and_offset_are_right():
    features = [feature.requires_grad_() for feature in pyramid(channels=2, side=8)]
    rois = random_rois(3, extent=24.0)
    offset = torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()

    def function(offset, *features):
        return pool(list(features), rois, offset, size=2)

    assert torch.autograd.gradcheck(function, (offset, *features), atol=1e-6)


def test_rois_get_no_gradient():
    rois = random_rois(4).requires_grad_()
    features = [feature.requires_grad_() for feature in pyramid()]
    pool(features, rois).sum().backward()
    assert rois.grad is None


def test_no_rois_give_an_empty_result_that_still_belongs_to_the_graph():
    features = [feature.requires_grad_() for feature in pyramid()]
    offset = torch.zeros(0, 2, P, P, dtype=torch.float64, requires_grad=True)
    out = pool(features, torch.zeros(0, 5, dtype=torch.float64), offset)
    assert out.shape == (0, 3, P, P)
    out.sum().backward()
    assert all(feature.grad is not None and not feature.grad.any() for feature in features)
    assert offset.grad is not None


def test_a_level_without_rois_gets_a_zero_gradient_and_not_none():
    features = [feature.requires_grad_() for feature in pyramid()]
    rois = torch.tensor([[0, 10, 10, 20, 20]], dtype=torch.float64)  # of the finest level only
    pool(features, rois).sum().backward()
    assert features[0].grad.any()
    assert all(feature.grad is not None and not feature.grad.any() for feature in features[1:])


def test_poolings_of_one_pyramid_share_its_table_and_their_gradients_add_up():
    features = [feature.requires_grad_() for feature in pyramid()]
    rois = random_rois(5)
    offset = torch.randn(5, 2, P, P, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    shared = FeaturePyramid(features, STRIDES)
    options = {"output_size": P, "sampling_ratio": 2, "gamma": 0.1}
    first, second = shared.pool(rois, offset, **options), shared.pool(rois, None, **options)
    assert torch.equal(first, pool(features, rois, offset))
    assert torch.equal(second, pool(features, rois))
    together = torch.autograd.grad((first * 2 + second).sum(), features)
    apart = torch.autograd.grad((pool(features, rois, offset) * 2 + pool(features, rois)).sum(), features)
    for got, expected in zip(together, apart, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_roi_far_outside_its_picture_pools_zeros():
    rois = torch.tensor([[0, 900, 900, 1000, 1000]], dtype=torch.float64)
    assert not pool(pyramid(), rois).any()


def test_a_roi_turned_inside_out_pools_as_roi_align_does_and_has_no_adaptive_samples():
    rois = torch.tensor([[0, 60, 20, 10, 80], [1, 90, 90, 10, 10], [0, 30, 30, 30, 60]], dtype=torch.float64)
    features = pyramid()
    torch.testing.assert_close(pool(features, rois), aligned(features, rois, map_roi_levels(rois, 4), 2))
    assert not pool(features, rois, sampling_ratio=0).any()


@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_a_nan_roi_gives_nan_and_no_crash(sampling_ratio):
    rois = random_rois(3)
    rois[1, 1:] = float("nan")
    pooled = pool(pyramid(), rois, sampling_ratio=sampling_ratio)
    assert pooled[1].isnan().all()
    assert not pooled[[0, 2]].isnan().any()


def test_a_nan_offset_gives_nan_in_its_own_roi_and_no_crash():
    features, rois = pyramid(), random_rois(3)
    offset = torch.zeros(3, 2, P, P, dtype=torch.float64)
    offset[1] = float("nan")
    pooled = pool(features, rois, offset)
    assert pooled[1].isnan().all()
    assert torch.equal(pooled[[0, 2]], pool(features, rois[[0, 2]]))


@pytest.mark.parametrize(("side", "level"), [(10, 0), (111, 0), (112, 1), (223, 1), (224, 2), (448, 3), (5000, 3)])
def test_the_level_follows_the_rois_own_size(side, level):
    rois = torch.tensor([[0, 0, 0, side, side]], dtype=torch.float64)
    assert map_roi_levels(rois, 4).tolist() == [level]


def test_levels_are_mmdets():
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    extractor = SingleRoIExtractor(
        roi_layer={"type": "RoIAlign", "output_size": 7}, out_channels=3, featmap_strides=STRIDES
    )
    rois = random_rois(200, torch.float32, extent=900.0)
    assert torch.equal(map_roi_levels(rois, 4), extractor.map_roi_levels(rois, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "cuda"}, "backend: expected one of auto"),
        ({"rois": torch.zeros(3, 4)}, r"rois: expected \(K, 5\), got \(3, 4\)"),
        ({"offset": torch.zeros(3, 2, 2, 2)}, "offset: expected"),
        ({"strides": [4, 8]}, "one stride per feature map"),
        ({"features": [torch.zeros(1, 3, 8)] * 4}, r"features\[0\]"),
        ({"sampling_ratio": -1}, "sampling_ratio >= 0"),
        ({"rois": torch.tensor([[2.0, 0, 0, 9, 9]])}, "pictures 0 to 1 in column 0, got .2.0."),
        ({"rois": torch.zeros(3, 5, device="meta")}, "on one device, got .'cpu', 'meta'."),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"features": pyramid(), "rois": random_rois(3), "offset": None, "strides": STRIDES}
    arguments |= {"output_size": P, "sampling_ratio": 2, "gamma": 0.1} | change
    features, rois, offset = arguments.pop("features"), arguments.pop("rois"), arguments.pop("offset")
    with pytest.raises(ValueError, match=message):
        deform_roi_pool(features, rois, offset, **arguments)

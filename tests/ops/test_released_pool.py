"""The released pooling against its kernel, transcribed line by line."""

import math

import pytest
import torch

from tests.ops.test_deform_roi_pool import STRIDES, pyramid, random_rois
from tsd.ops import FeaturePyramid, map_roi_levels, released_pool


def c_round(value):
    return math.copysign(math.floor(abs(value) + 0.5), value)


def kernel(features, rois, offset, size, gamma, samples=4):
    """``DeformablePSROIPoolForwardKernel`` with group_size 1 and one class, in plain Python."""
    levels = map_roi_levels(rois, 4, inclusive=True).tolist()
    out = torch.zeros(len(rois), features[0].shape[1], size, size, dtype=rois.dtype)
    for n, roi in enumerate(rois.tolist()):
        data, scale = features[levels[n]][int(roi[0])], 1 / STRIDES[levels[n]]
        height, width = data.shape[1:]
        start_w, start_h = c_round(roi[1]) * scale - 0.5, c_round(roi[2]) * scale - 0.5
        end_w, end_h = (c_round(roi[3]) + 1.0) * scale - 0.5, (c_round(roi[4]) + 1.0) * scale - 0.5
        roi_width, roi_height = max(end_w - start_w, 0.1), max(end_h - start_h, 0.1)
        bin_w, bin_h = roi_width / size, roi_height / size
        for ph in range(size):
            for pw in range(size):
                wstart = pw * bin_w + start_w + float(offset[n, 0, ph, pw]) * gamma * roi_width
                hstart = ph * bin_h + start_h + float(offset[n, 1, ph, pw]) * gamma * roi_height
                total, count = torch.zeros(data.shape[0], dtype=rois.dtype), 0
                for ih in range(samples):
                    for iw in range(samples):
                        w, h = wstart + iw * bin_w / samples, hstart + ih * bin_h / samples
                        if w < -0.5 or w > width - 0.5 or h < -0.5 or h > height - 0.5:
                            continue
                        w, h = min(max(w, 0.0), width - 1.0), min(max(h, 0.0), height - 1.0)
                        x1, x2, y1, y2 = math.floor(w), math.ceil(w), math.floor(h), math.ceil(h)
                        dx, dy = w - x1, h - y1
                        total += (1 - dx) * (1 - dy) * data[:, y1, x1] + (1 - dx) * dy * data[:, y2, x1]
                        total += dx * (1 - dy) * data[:, y1, x2] + dx * dy * data[:, y2, x2]
                        count += 1
                if count:
                    out[n, :, ph, pw] = total / count
    return out


def offsets(count, size):
    return torch.randn(count, 2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_it_is_the_kernel():
    features, rois, offset = pyramid(side=32), random_rois(12, extent=128.0), offsets(12, 3)
    rois[0, 1:] = torch.tensor([-3.5, 2.5, 40.5, 61.5])  # halves are rounded away from zero
    rois[1, 1:] = torch.tensor([30.0, 30.0, 29.0, 29.0])  # no extent: a tenth of a cell
    rois[2, 1:] = torch.tensor([900.0, 900.0, 990.0, 990.0])  # no sample inside: zero
    offset[3:6] *= 20
    got = released_pool(FeaturePyramid(features, STRIDES), rois, offset, output_size=3, gamma=0.1)
    torch.testing.assert_close(got, kernel(features, rois, offset, 3, 0.1), atol=1e-10, rtol=0)
    assert not got[2].any()


def test_gradients():
    features = [feature.requires_grad_() for feature in pyramid(side=8, channels=2, batch=1)]
    rois, offset = random_rois(3, extent=32.0, batch=1), offsets(3, 2).requires_grad_()

    def pool(offset, *features):
        return released_pool(FeaturePyramid(features, STRIDES), rois, offset, output_size=2, gamma=0.1)

    torch.autograd.gradcheck(pool, (offset, *features))


def test_no_roi_keeps_the_graph():
    features = [feature.requires_grad_() for feature in pyramid(side=8)]
    offset = offsets(0, 3).requires_grad_()
    pooled = released_pool(FeaturePyramid(features, STRIDES), random_rois(0), offset, output_size=3, gamma=0.1)
    assert pooled.shape == (0, 3, 3, 3)
    pooled.sum().backward()
    assert offset.grad is not None


@pytest.mark.parametrize(("side", "level"), [(110, 0), (111, 1), (222, 1), (223, 2)])
def test_levels_count_the_far_corner(side, level):
    rois = torch.tensor([[0, 0, 0, side, side]], dtype=torch.float64)
    assert map_roi_levels(rois, 4, inclusive=True).tolist() == [level]

"""mmdet 1.x's coordinates, by hand."""

import math

import pytest
import torch

from tests.ops.test_deform_roi_pool import STRIDES, pyramid, random_rois
from tsd.engine.adapters.evaluation import to_continuous
from tsd.models.legacy import InclusiveOverlaps, InclusiveRoIExtractor, ReleasedBoxCoder
from tsd.ops import map_roi_levels

STDS = (0.1, 0.1, 0.2, 0.2)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_encoding_counts_the_far_corner():
    coder = ReleasedBoxCoder(target_stds=STDS)
    deltas = coder.encode(boxes([0, 0, 9, 9]), boxes([5, 0, 24, 9]))  # 10 x 10 at 4.5, 4.5 → 20 x 10 at 14.5, 4.5
    assert deltas[0].tolist() == pytest.approx([1.0 / 0.1, 0, math.log(2) / 0.2, 0])


def test_decoding_is_its_inverse_and_clips_to_the_last_pixel():
    coder = ReleasedBoxCoder(target_stds=STDS)
    rois = random_rois(20)[:, 1:]
    truth = rois * 1.5 + boxes([3, -7, 20, 9])
    encoded = coder.encode(rois, truth)  # mmdet does this in single precision
    torch.testing.assert_close(coder.decode(rois, encoded), truth, atol=1e-3, rtol=0)
    deltas = coder.encode(boxes([0, 0, 9, 9]), boxes([-5, -5, 200, 9])).repeat(1, 2)
    assert coder.decode(boxes([0, 0, 9, 9]), deltas, (50, 100))[0].tolist() == pytest.approx([0, 0, 99, 9] * 2)


def test_overlaps_count_the_far_corner():
    first, second = boxes([0, 0, 9, 9], [0, 0, 0, 0]), boxes([5, 0, 14, 9], [20, 20, 30, 30])
    overlaps = InclusiveOverlaps()
    assert overlaps(first, second).flatten().tolist() == pytest.approx([50 / 150, 0, 0, 0])
    assert overlaps(first[:0], second).shape == (0, 2)
    assert overlaps(first, second, is_aligned=True).tolist() == pytest.approx([50 / 150, 0])
    assert overlaps(first, second, "iof")[0, 0] == 0.5
    with pytest.raises(ValueError, match="mode: expected iou or iof"):
        overlaps(first, second, "giou")


def old_roi_align(feature, roi, scale, size, samples):
    """mmdet 1.x's ``ROIAlignForwardV1`` for one RoI, in plain Python."""
    height, width = feature.shape[1:]
    start_w, start_h = roi[0] * scale, roi[1] * scale
    bin_w, bin_h = max((roi[2] + 1) * scale - start_w, 0) / size, max((roi[3] + 1) * scale - start_h, 0) / size
    out = torch.zeros(feature.shape[0], size, size, dtype=feature.dtype)
    for ph in range(size):
        for pw in range(size):
            for iy in range(samples):
                for ix in range(samples):
                    y = start_h + ph * bin_h + (iy + 0.5) * bin_h / samples
                    x = start_w + pw * bin_w + (ix + 0.5) * bin_w / samples
                    if y < -1.0 or y > height or x < -1.0 or x > width:
                        continue
                    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                    y1, x1 = math.floor(y), math.floor(x)
                    y2, x2 = min(y1 + 1, height - 1), min(x1 + 1, width - 1)
                    dy, dx = y - y1, x - x1
                    upper = (1 - dx) * feature[:, y1, x1] + dx * feature[:, y1, x2]
                    lower = (1 - dx) * feature[:, y2, x1] + dx * feature[:, y2, x2]
                    out[:, ph, pw] += ((1 - dy) * upper + dy * lower) / samples**2
    return out


def test_the_extractor_is_the_old_roi_align():
    features, rois = pyramid(side=32), random_rois(10, extent=128.0)
    rois[0, 1:] = torch.tensor([5.0, 5.0, 5.5, 6.0])  # narrower than a cell
    extractor = InclusiveRoIExtractor(
        roi_layer={"type": "RoIAlign", "output_size": 3, "sampling_ratio": 2}, out_channels=3, featmap_strides=STRIDES
    )
    got = extractor(features, rois)
    levels = map_roi_levels(rois, 4, inclusive=True).tolist()
    for index, roi in enumerate(rois.tolist()):
        feature = features[levels[index]][int(roi[0])]
        expected = old_roi_align(feature, roi[1:], 1 / STRIDES[levels[index]], 3, 2)
        torch.testing.assert_close(got[index], expected, atol=1e-9, rtol=0)


def test_results_get_their_far_corner_back():
    assert to_continuous(boxes([3, 4, 12, 5])).tolist() == [[3, 4, 13, 6]]

"""Slow references in double precision: sums over pixels, written out, that share nothing with what they judge.

Gradients are compared along one direction for each input: its central difference there is all that a reference needs.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np

Array = np.ndarray
Function = Callable[..., Array]

STEP = 1e-5
"""Of a central difference: small beside the distance of every sample of :mod:`tsd.doctor.operators` from a kink."""


def wave(shape: tuple[int, ...], phase: float = 0.3) -> Array:
    """Fixed numbers from −1 to 1, no two of them alike: weights of a sum, and directions."""
    return np.cos(1.7 * np.arange(int(np.prod(shape))) + phase).reshape(shape)


def differentiate(function: Function, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """A function's output, and how its weighted sum changes along :func:`wave` of each input.

    Args:
        function: of arrays by name.
        inputs: those arrays.

    Returns:
        ``output``, and for each input ``gradient of NAME``, one number.
    """
    output = function(**inputs)
    weight = wave(output.shape, 0.9)
    found = {"output": output}
    for name, value in inputs.items():
        ahead, behind = (
            (function(**{**inputs, name: value + sign * STEP * wave(value.shape)}) * weight).sum() for sign in (1, -1)
        )
        found[f"gradient of {name}"] = np.asarray((ahead - behind) / (2 * STEP))
    return found


def bilinear(height: int, width: int, y: float, x: float) -> Array:
    """(H, W) weights of the four pixels around a point; those outside the picture are left out."""
    weights = np.zeros((height, width))
    top, left = int(np.floor(y)), int(np.floor(x))
    for row, along_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, along_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= row < height and 0 <= column < width:
                weights[row, column] = along_y * along_x
    return weights


def pool(features: Array, box: Array, offset: Array | None, size: int, samples: int, gamma: float) -> Array:
    """RoIAlign of one box, (C, P, P), each cell moved by its offset (2, P, P) in units of γ × the box's size (Eq. 6).

    Args:
        features: (C, H, W).
        box: x1, y1, x2, y2 in cells of the map, centres at integers.
        offset: x then y, or None.
        size: P.
        samples: per cell and axis.
        gamma: γ.
    """
    _, height, width = features.shape
    x1, y1, box_width, box_height = box[0], box[1], box[2] - box[0], box[3] - box[1]
    pooled = np.zeros((len(features), size, size))
    for row, column, down, right in np.ndindex(size, size, samples, samples):
        x = x1 + (column + (right + 0.5) / samples) * box_width / size
        y = y1 + (row + (down + 0.5) / samples) * box_height / size
        if offset is not None:
            x += gamma * box_width * offset[0, row, column]
            y += gamma * box_height * offset[1, row, column]
        if -1 <= x <= width and -1 <= y <= height:  # RoIAlign's border: what is near counts as on it
            weights = bilinear(height, width, min(max(y, 0), height - 1), min(max(x, 0), width - 1))
            pooled[:, row, column] += (features * weights).sum(axis=(1, 2)) / samples**2
    return pooled


def deformable_convolution(features: Array, offset: Array, weight: Array) -> Array:
    """(C, H, W) and offsets (2 · kH · kW, H, W), y then x, → (C_out, H, W): stride 1, padded to the same size."""
    out_channels, _, kernel, _ = weight.shape
    _, height, width = features.shape
    result = np.zeros((out_channels, height, width))
    for row, column, tap_y, tap_x in np.ndindex(height, width, kernel, kernel):
        place = 2 * (tap_y * kernel + tap_x)
        y = row + tap_y - kernel // 2 + offset[place, row, column]
        x = column + tap_x - kernel // 2 + offset[place + 1, row, column]
        sampled = (features * bilinear(height, width, y, x)).sum(axis=(1, 2))
        result[:, row, column] += weight[:, :, tap_y, tap_x] @ sampled
    return result


def convolution(pictures: Array, weight: Array) -> Array:
    """(B, C, H, W) → (B, C_out, H, W): stride 1, padded with zeros to the same size."""
    kernel = weight.shape[-1]
    height, width = pictures.shape[2:]
    border = kernel // 2
    padded = np.pad(pictures, ((0, 0), (0, 0), (border, border), (border, border)))
    result = np.zeros((len(pictures), len(weight), height, width))
    for y, x in np.ndindex(kernel, kernel):
        result += np.einsum("oc,bchw->bohw", weight[:, :, y, x], padded[:, :, y : y + height, x : x + width])
    return result


def batch_norm(values: Array, epsilon: float = 1e-5) -> Array:
    """(B, C, H, W) with mean 0 and variance 1 of each channel."""
    mean = values.mean(axis=(0, 2, 3), keepdims=True)
    variance = values.var(axis=(0, 2, 3), keepdims=True)
    return (values - mean) / np.sqrt(variance + epsilon)


def wrongly_suppressed(boxes: Array, scores: Array, kept: list[int], threshold: float) -> int:
    """Boxes that break the rules of NMS; 0 for every order in which equal scores may be taken.

    Kept boxes fall in score and overlap each other by no more than the threshold; every other box overlaps by more
    with a kept one of no smaller score.
    """
    wrong = sum(scores[after] > scores[before] for before, after in pairwise(kept))
    wrong += len(kept) - len(set(kept))
    for index in range(len(boxes)):
        by = [one for one in kept if one != index and overlap(boxes[index], boxes[one]) > threshold]
        wrong += bool(by) if index in kept else not any(scores[one] >= scores[index] for one in by)
    return int(wrong)


def overlap(first: Array, second: Array) -> float:
    """Intersection over union of two boxes, x1, y1, x2, y2."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = np.prod(np.maximum(sides, 0))
    return float(shared / (np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - shared))

"""Every operator that the detectors call, run once on each device: on the CPU against a slow reference, on a GPU
against the CPU."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsd.doctor import reference
from tsd.doctor.checks import SETUP, Check, Context, sentence
from tsd.doctor.reference import Array, wave

Results = dict[str, Tensor]

TOLERANCE = 1e-4
"""Of single precision: the largest difference, beside the largest value expected."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Operator:
    """An operator and a case of it.

    Attributes:
        name: as the field calls it.
        run: its results on a device.
        expect: the same in another way. One number in place of a gradient is its product with :func:`wave`.
    """

    name: str
    run: Callable[[torch.device], Results]
    expect: Callable[[], Mapping[str, Array]]


def operators(context: Context) -> list[Check]:
    """A line for each device, or for each operator that is wrong there."""
    devices = [CPU]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if torch.cuda.is_available():
            count = torch.cuda.device_count()
            own = range(count) if context.here.world == 1 else [context.here.device(count)]
            devices += [torch.device("cuda", index) for index in own]
        return [line for device in devices for line in look_at(device)]


def look_at(device: torch.device) -> list[Check]:
    """Run all operators on one device."""
    cases = listed(device)
    against = "slow references" if device.type == "cpu" else "the CPU's"
    wrong = [(case, problem) for case in cases if (problem := outcome(case, device)) is not None]
    if not wrong:
        names = ", ".join(case.name for case in cases)
        return [Check("operators", "ok", f"on {device}: {names}: as {against}, to {TOLERANCE:g}")]
    return [
        Check("operators", "error", f"on {device}: {case.name}: {problem}", _remedy(device)) for case, problem in wrong
    ]


def outcome(case: Operator, device: torch.device) -> str | None:
    """What is wrong with an operator on a device; None if nothing is."""
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            found = case.run(device)
            expected = (
                {name: torch.from_numpy(np.asarray(value)) for name, value in case.expect().items()}
                if device.type == "cpu"
                else case.run(CPU)
            )
    except Exception as error:
        return sentence(error)
    for name, value in expected.items():
        got, value = found[name].detach().cpu().double(), value.double()
        if value.numel() == 1 and got.numel() > 1:
            got = (got * torch.from_numpy(wave(tuple(got.shape)))).sum()
        if got.shape != value.shape:
            return f"{name}: {tuple(got.shape)} in place of {tuple(value.shape)}"
        difference = float((got - value).abs().max()) / max(1.0, float(value.abs().max()))
        if not difference <= TOLERANCE:  # a NaN is no small difference either
            return f"{name} differs by {difference:.2g}"
    return None


def listed(device: torch.device) -> list[Operator]:
    """The operators that can run on a device."""
    import torchvision
    from mmcv.ops import deform_conv2d as mmcv_deform_conv2d

    from tsd.ops import BACKENDS

    def convolve(features: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        return torchvision.ops.deform_conv2d(features, offset, weight, padding=1)

    def convolve_by_mmcv(features: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        return mmcv_deform_conv2d(features, offset, weight, 1, 1)

    backends = [name for name in BACKENDS if name != "auto" and _can_run(name, device)]
    return [
        Operator("NMS", _nms, lambda: {"boxes": np.zeros(1)}),
        Operator("soft-NMS", _soft_nms, _expected_soft_nms),
        _smooth("RoIAlign", _roi_align, _expected_roi_align, {"features": wave((1, 2, 8, 8))}),
        _smooth("deformable convolution", convolve, _expected_convolve, _deformable()),
        _smooth("mmcv's deformable convolution", convolve_by_mmcv, _expected_convolve, _deformable()),
        *(pooling(name) for name in backends),
        _smooth("convolution and batch norm", _conv_and_norm, _expected_conv_and_norm, _convolution()),
    ]


def _can_run(backend: str, device: torch.device) -> bool:
    from tsd.ops.backends import choose_backend

    try:
        choose_backend(backend, device)
    except RuntimeError:
        return False
    return True


def _smooth(
    name: str, function: Callable[..., Tensor], slow: Callable[..., Array], inputs: Mapping[str, Array]
) -> Operator:
    """An operator with gradients for all its inputs."""

    def run(device: torch.device) -> Results:
        given = {key: torch.from_numpy(value).float().to(device).requires_grad_() for key, value in inputs.items()}
        output = function(**given)
        weight = torch.from_numpy(wave(tuple(output.shape), 0.9)).to(output)
        gradients = torch.autograd.grad((output * weight).sum(), list(given.values()))
        return {"output": output} | {f"gradient of {key}": value for key, value in zip(given, gradients)}

    return Operator(name, run, lambda: reference.differentiate(slow, inputs))


def _scattered() -> tuple[Array, Array]:
    """Sixty boxes, many of which overlap, and scores of which many are equal."""
    corner = 24 + 24 * wave((60, 2))
    side = 14 + 6 * wave((60, 2), 1.1)
    return np.concatenate([corner, corner + side], axis=1), np.round(5 + 4 * wave((60,), 0.5)) / 10


def _nms(device: torch.device) -> Results:
    from mmcv.ops import nms

    boxes, scores = _scattered()
    given = [torch.from_numpy(value).float().to(device) for value in (boxes, scores)]
    _, kept = nms(*given, 0.5)
    return {"boxes": torch.tensor([float(reference.wrongly_suppressed(boxes, scores, kept.tolist(), 0.5))])}


def _soft_nms(device: torch.device) -> Results:
    """The second box lies in the first and is half of it, the third lies elsewhere."""
    from mmcv.ops import soft_nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]], device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    found, order = soft_nms(boxes, scores, sigma=0.5, method="gaussian")
    return {"scores": found[:, 4], "order": order}


def _expected_soft_nms() -> dict[str, Array]:
    return {"scores": np.array([0.9, 0.7, 0.8 * np.exp(-(0.5**2) / 0.5)]), "order": np.array([0, 2, 1])}


_BOXES = np.array([[3.0, 5.0, 21.0, 27.0], [-2.0, 9.0, 14.0, 34.0], [11.0, 1.0, 59.0, 47.0]])
"""x1, y1, x2, y2 in pixels: inside, over the border, and large enough for the second level."""

_SIZE, _SAMPLES, _STRIDES = 2, 2, (4, 8)


def _rois(boxes: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros((len(boxes), 1)), boxes], axis=1)).to(like)


def _roi_align(features: Tensor) -> Tensor:
    from mmcv.ops import roi_align

    return roi_align(features, _rois(_BOXES[:2], features), _SIZE, 1 / _STRIDES[0], _SAMPLES, "avg", True)


def _expected_roi_align(features: Array) -> Array:
    boxes = _BOXES[:2] / _STRIDES[0] - 0.5
    return np.stack([reference.pool(features[0], box, None, _SIZE, _SAMPLES, 0) for box in boxes])


def pooling(backend: str, gamma: float = 0.3) -> Operator:
    """Deformable RoI pooling over two levels by one of its backends."""

    def run(low: Tensor, high: Tensor, offset: Tensor) -> Tensor:
        from tsd.ops import deform_roi_pool

        sizes = {"output_size": _SIZE, "sampling_ratio": _SAMPLES, "finest_scale": 16}
        rois = _rois(_BOXES, low)
        return deform_roi_pool([low, high], rois, offset, strides=_STRIDES, gamma=gamma, backend=backend, **sizes)

    def expect(low: Array, high: Array, offset: Array) -> Array:
        levels = [(low, _STRIDES[0]), (low, _STRIDES[0]), (high, _STRIDES[1])]
        return np.stack(
            [
                reference.pool(features[0], box / stride - 0.5, shift, _SIZE, _SAMPLES, gamma)
                for (features, stride), box, shift in zip(levels, _BOXES, offset)
            ]
        )

    inputs = {"low": wave((1, 2, 16, 16)), "high": wave((1, 2, 8, 8), 0.8), "offset": wave((3, 2, _SIZE, _SIZE))}
    return _smooth(f"deformable RoI pooling ({backend})", run, expect, inputs)


def _deformable() -> dict[str, Array]:
    """Offsets that keep every sample away from the pixels' centres, where the gradient jumps."""
    whole = np.arange(18 * 25).reshape(1, 18, 5, 5) % 3 - 1
    offset = whole + 0.5 + 0.4 * wave((1, 18, 5, 5))
    return {"features": wave((1, 2, 5, 5)), "offset": offset, "weight": wave((3, 2, 3, 3), 0.6)}


def _expected_convolve(features: Array, offset: Array, weight: Array) -> Array:
    return reference.deformable_convolution(features[0], offset[0], weight)[None]


def _convolution() -> dict[str, Array]:
    return {"pictures": wave((2, 3, 6, 6)), "weight": wave((4, 3, 3, 3), 0.6)}


def _conv_and_norm(pictures: Tensor, weight: Tensor) -> Tensor:
    functional = torch.nn.functional
    return functional.batch_norm(functional.conv2d(pictures, weight, padding=1), None, None, training=True)


def _expected_conv_and_norm(pictures: Array, weight: Array) -> Array:
    return reference.batch_norm(reference.convolution(pictures, weight))


def _remedy(device: torch.device) -> str:
    if device.type == "cpu":
        return SETUP
    return (
        f"If other GPUs do it right, `nvidia-smi -q -i {device.index} -d ECC,PAGE_RETIREMENT` may say what this one "
        "has; let Slurm pass its node over: `sbatch --exclude=NODE …`."
    )

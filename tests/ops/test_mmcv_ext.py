"""mmcv's operators from torchvision's: by slow references here, and (slow) against mmcv compiled."""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmcv.ops import DeformConv2dPack, RoIAlign, soft_nms
from mmcv.ops import nms as mmcv_nms
from torch.nn import functional as F

from tests.conftest import ROOT
from tsd.errors import InputError
from tsd.ops import mmcv_ext

BROUGHT = set(mmcv_ext.__all__)


def names_that_mmcv_asks_for() -> set[str]:
    """What `mmcv.ops` loads of its extension."""
    found: set[str] = set()
    for path in Path(mmcv.__file__).parent.glob("ops/*.py"):
        for listed in re.findall(r"load_ext\(\s*'_ext',\s*(\[.*?\])", path.read_text(), re.DOTALL):
            found |= set(re.findall(r"'(\w+)'", listed))
    return found


def boxes_and_scores(number: int, tied: bool, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes that overlap a lot; scores in ten values if ``tied``."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, generator=generator) * 60
    sides = torch.rand(number, 2, generator=generator) * 40 + 1
    scores = torch.rand(number, generator=generator)
    if tied:
        scores = (scores * 10).floor() / 10
    return torch.cat((corners, corners + sides), dim=1), scores


def slow_overlap(one: np.ndarray, other: np.ndarray, offset: int) -> np.float32:
    single = np.float32
    width = max(single(0), min(one[2], other[2]) - max(one[0], other[0]) + single(offset))
    height = max(single(0), min(one[3], other[3]) - max(one[1], other[1]) + single(offset))
    areas = [(box[2] - box[0] + single(offset)) * (box[3] - box[1] + single(offset)) for box in (one, other)]
    return width * height / (areas[0] + areas[1] - width * height)


def slow_nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, offset: int) -> list[int]:
    """In the order of torch's sort, which is not stable: mmcv's order of equal scores."""
    left = scores.sort(0, descending=True)[1].tolist()
    kept = []
    while left:
        kept.append(left.pop(0))
        best = boxes[kept[-1]].numpy()
        left = [i for i in left if slow_overlap(best, boxes[i].numpy(), offset) <= np.float32(threshold)]
    return kept


def slow_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    """Box by box, as mmcv's loop: swap the best to the front, lower the others, drop by swapping with the last."""
    rows = [[*map(np.float32, box), np.float32(score), index] for index, (box, score) in enumerate(zip(boxes, scores))]
    count, here = len(rows), 0
    while here < count:
        best = max(range(here, count), key=lambda i: (rows[i][4], -i))
        rows[here], rows[best] = rows[best], rows[here]
        place = here + 1
        while place < count:
            overlap = slow_overlap(rows[here], rows[place], offset)
            weight = np.float32(1)
            if method == 2:
                weight = np.float32(np.exp(float(-(overlap * overlap) / np.float32(sigma))))
            elif overlap >= np.float32(threshold):
                weight = np.float32(1) - overlap if method == 1 else np.float32(0)
            rows[place][4] = rows[place][4] * weight
            if rows[place][4] < np.float32(min_score):
                rows[place] = rows[count - 1]
                count -= 1
                continue
            place += 1
        here += 1
    return rows[:count]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_nms_keeps_what_its_definition_does_in_mmcvs_order(tied, offset, threshold):
    boxes, scores = boxes_and_scores(300, tied)
    assert mmcv_ext.nms(boxes, scores, threshold, offset).tolist() == slow_nms(boxes, scores, threshold, offset)


def test_nms_drops_a_box_only_above_the_threshold_in_single_precision():
    """Two of three cells shared: IoU 0.5 in every precision; 0.3 rounds up in single precision."""
    boxes = torch.tensor([[0.0, 0.0, 3.0, 1.0], [1.0, 0.0, 4.0, 1.0], [0.0, 5.0, 13.0, 6.0], [7.0, 5.0, 20.0, 6.0]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert mmcv_ext.nms(boxes, scores, 0.5, 0).tolist() == [0, 1, 2, 3]
    assert mmcv_ext.nms(boxes, scores, 0.4999, 0).tolist() == [0, 2, 3]
    assert mmcv_ext.nms(boxes, scores, 0.3, 0).tolist() == [0, 2, 3]  # the second pair: 6 of 20 cells, 0.3


@pytest.mark.parametrize("method", [0, 1, 2])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms_is_the_loop_box_by_box(method, tied, offset):
    boxes, scores = boxes_and_scores(80, tied)
    dets = boxes.new_empty((80, 5))
    kept = mmcv_ext.softnms(boxes, scores, dets, 0.3, 0.5, 0.05, method, offset)
    expected = slow_soft_nms(boxes.tolist(), scores.tolist(), 0.3, 0.5, 0.05, method, offset)
    assert kept.tolist() == [row[5] for row in expected]
    assert dets[: len(kept)].tolist() == [[float(value) for value in row[:5]] for row in expected]


def test_empty_input_is_kept_empty():
    none = torch.zeros(0, 4)
    assert mmcv_ext.nms(none, torch.zeros(0), 0.5, 0).tolist() == []
    assert mmcv_ext.softnms(none, torch.zeros(0), torch.zeros(0, 5), 0.5, 0.5, 0.0, 2, 0).tolist() == []
    assert RoIAlign(7)(torch.rand(1, 2, 8, 8), torch.zeros(0, 5)).shape == (0, 2, 7, 7)


def test_mmcvs_own_functions_run_on_them():
    boxes, scores = boxes_and_scores(50, tied=False)
    kept = mmcv_nms(boxes, scores, 0.5)[1]
    assert kept.tolist() == slow_nms(boxes, scores, 0.5, 0)
    assert len(soft_nms(boxes, scores, 0.5)[1]) > len(kept)


def test_roi_align_has_the_gradient_of_finite_differences():
    torch.manual_seed(0)
    features = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 1.2, 4.3, 5.1], [0, 0.0, 0.0, 9.0, 3.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: RoIAlign(2, 0.5, 2)(x, rois), features)
    whole = RoIAlign(1, 1.0, 1)(features, torch.tensor([[0, 1.5, 1.5, 2.5, 2.5]], dtype=torch.float64))
    torch.testing.assert_close(whole.flatten(), features[0, :, 1:3, 1:3].mean((1, 2)))  # its centre: between four cells


def test_roi_align_by_maxima_is_refused():
    with pytest.raises(RuntimeError, match=r"roi_align with pool_mode='max' is not here"):
        RoIAlign(2, pool_mode="max")(torch.rand(1, 1, 4, 4), torch.tensor([[0, 0.0, 0.0, 2.0, 2.0]]))


def test_mmcvs_deformable_convolution_starts_as_the_plain_one_and_has_gradients():
    torch.manual_seed(0)
    layer = DeformConv2dPack(2, 3, 3, padding=1).double()
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, padding=1))
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)

    def run(x, weight):
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(run, (x, layer.weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_roi_align_of_less_than_single_precision_is_that_of_single_precision_rounded(dtype):
    torch.manual_seed(0)
    features = torch.randn(1, 2, 8, 8).to(dtype).requires_grad_()
    rois = torch.tensor([[0, 1.0, 1.0, 6.0, 5.0]], dtype=dtype)
    pooled = RoIAlign(2, 1.0, 2)(features, rois)
    assert pooled.dtype == dtype
    wide = features.detach().float().requires_grad_()
    exact = RoIAlign(2, 1.0, 2)(wide, rois.float())
    assert torch.equal(pooled, exact.to(dtype))
    pooled.sum().backward()
    exact.sum().backward()
    assert torch.equal(features.grad, wide.grad.to(dtype))


@pytest.mark.parametrize(
    "roi", [[0, float("nan"), 1, 9, 9], [0, 1, 1, float("inf"), 9], [-1, 1, 1, 9, 9], [2, 1, 1, 9, 9]]
)
def test_a_roi_that_is_nowhere_is_an_error_and_not_a_crash(roi):
    with pytest.raises(RuntimeError, match="RoIAlign: expected finite RoIs of pictures 0 to 1"):
        RoIAlign(2)(torch.rand(2, 1, 16, 16), torch.tensor([roi]))


def test_a_diverged_offset_gives_nan_and_not_a_crash():
    layer = DeformConv2dPack(4, 4, 3, padding=1)
    layer.conv_offset.bias.data.fill_(float("nan"))
    x = torch.rand(1, 4, 32, 32, requires_grad=True)
    out = layer(x)
    assert out.isnan().all()
    out.sum().backward()


def test_every_other_operator_says_its_name_and_how_to_have_it():
    names = names_that_mmcv_asks_for()
    assert len(names) == 113
    for name in sorted(names - BROUGHT):
        with pytest.raises(RuntimeError, match=rf"mmcv's operator {name} is not here.*MMCV_WITH_OPS=1 uv pip install"):
            getattr(mmcv_ext, name)(1, key=2)
    assert not hasattr(mmcv_ext, "__path__")


def test_mmdets_own_tools_find_it_before_anything_of_this_project_is_imported(tmp_path):
    code = (
        "import sys, mmcv.ops, mmcv._ext\n"
        "from mmcv.utils import collect_env\n"
        "print(mmcv._ext.__file__, collect_env()['MMCV CUDA Compiler'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("_ext.py not available")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty package `mmcv`, found before the real one."""
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "mmcv"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "mmcv"


def test_set_up_writes_the_file_and_a_compiled_one_goes_before_it(package):
    with pytest.raises(InputError, match=r"mmcv has no operators .*python -m tsd.ops.mmcv_ext"):
        mmcv_ext.origin()
    assert mmcv_ext.install() == package / "_ext.py"
    assert mmcv_ext.origin() == "torchvision"
    compiled = package / f"_ext{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    compiled.touch()
    assert mmcv_ext.install() == compiled
    assert mmcv_ext.origin() == "compiled"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """mmcv compiled: from the folder TSD_COMPILED_MMCV, or compiled now, which takes half an hour of two cores."""
    folder = Path(os.environ.get("TSD_COMPILED_MMCV") or tmp_path_factory.mktemp("compiled"))
    if not list(folder.glob("mmcv/_ext.*.so")):
        uv, version = Path(sys.executable).with_name("uv"), importlib.metadata.version("onedl-mmcv")
        tools = tmp_path_factory.mktemp("ninja")
        subprocess.run([uv, "pip", "install", "-q", "--target", tools, "ninja"], check=True)
        environment = os.environ | {
            "MMCV_WITH_OPS": "1",
            "PYTHONPATH": str(tools),
            "PATH": f"{tools / 'bin'}:{os.environ['PATH']}",
        }
        options = ["--no-deps", "--no-build-isolation", "--no-cache", "--no-binary", "onedl-mmcv"]
        command = [uv, "pip", "install", "-q", "--python", sys.executable, "--target", folder, *options]
        subprocess.run([*command, f"onedl-mmcv=={version}"], check=True, env=environment, cwd=ROOT)
    (library,) = folder.glob("mmcv/_ext.*.so")
    spec = importlib.util.spec_from_file_location("_ext", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 7, 1000])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
def test_compiled_suppression_keeps_the_same_boxes_in_the_same_order(compiled, number, tied, offset):
    boxes, scores = boxes_and_scores(number, tied, seed=number)
    for threshold in (0.3, 0.5, 0.7):
        theirs = compiled.nms(boxes, scores, iou_threshold=threshold, offset=offset)
        assert torch.equal(mmcv_ext.nms(boxes, scores, threshold, offset), theirs)
        for method in (0, 1, 2):
            options = {"iou_threshold": threshold, "sigma": 0.5, "min_score": 0.05, "method": method, "offset": offset}
            ours, theirs = boxes.new_zeros(number, 5), boxes.new_zeros(number, 5)
            kept = mmcv_ext.softnms(boxes, scores, ours, **options)
            assert torch.equal(kept, compiled.softnms(boxes, scores, theirs, **options))
            last_bits = {"rtol": 1e-6, "atol": 0} if method == 2 else {"rtol": 0, "atol": 0}  # the C library's expf
            torch.testing.assert_close(ours[: len(kept)], theirs[: len(kept)], **last_bits)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 50])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_compiled_roi_align_gives_the_same_bits(compiled, number, ratio, aligned):
    torch.manual_seed(number)
    features = torch.randn(2, 3, 20, 30)
    boxes = boxes_and_scores(number, tied=False)[0] * 2
    rois = torch.cat((torch.randint(2, (number, 1)).float(), boxes), dim=1)
    none = features.new_zeros(0)
    sizes = {"aligned_height": 7, "aligned_width": 5, "spatial_scale": 0.25, "sampling_ratio": ratio, "pool_mode": 1}
    sizes["aligned"] = aligned
    ours, theirs = torch.zeros(number, 3, 7, 5), torch.zeros(number, 3, 7, 5)
    mmcv_ext.roi_align_forward(features, rois, ours, none, none, **sizes)
    compiled.roi_align_forward(features, rois, theirs, none, none, **sizes)
    assert torch.equal(ours, theirs)
    gradient = torch.randn_like(ours)
    ours, theirs = torch.zeros_like(features), torch.zeros_like(features)
    mmcv_ext.roi_align_backward(gradient, rois, none, none, ours, **sizes)
    compiled.roi_align_backward(gradient, rois, none, none, theirs, **sizes)
    assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "stride", "spread"), [(1, 1, 0.0), (1, 1, 2.0), (2, 2, 2.0)])
def test_compiled_deformable_convolution_agrees_to_single_precision(compiled, groups, stride, spread):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 12, 10), torch.randn(6, 8 // groups, 3, 3)
    height, width = (-(-side // stride) for side in x.shape[2:])
    offset = torch.randn(2, 18, height, width) * spread
    sizes = {"kW": 3, "kH": 3, "dW": stride, "dH": stride, "padW": 1, "padH": 1, "dilationW": 1, "dilationH": 1}
    sizes |= {"group": groups, "deformable_group": 1, "im2col_step": 2}
    gradient = torch.randn(2, 6, height, width)

    def run(extension):
        work = [x.new_empty(0), x.new_empty(0)]
        out, dx, doffset, dweight = (torch.zeros_like(t) for t in (gradient, x, offset, weight))
        extension.deform_conv_forward(x, weight, offset, out, *work, **sizes)
        extension.deform_conv_backward_input(x, offset, gradient, dx, doffset, weight, work[0], **sizes)
        extension.deform_conv_backward_parameters(x, offset, gradient, dweight, *work, scale=1.0, **sizes)
        return out, dx, doffset, dweight

    for name, ours, theirs in zip(("out", "dx", "doffset", "dweight"), run(mmcv_ext), run(compiled), strict=True):
        if name == "doffset" and spread == 0:
            continue  # samples on the grid, where the derivative has two sides: beyond the border they differ in which
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max(), name

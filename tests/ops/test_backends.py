"""The other backends against the reference: on the GPU if there is one, else Triton's through its interpreter."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.ops.test_deform_roi_pool import STRIDES, pyramid, random_rois
from tsd.ops import backends, deform_roi_pool, triton_backend
from tsd.ops.backends import choose_backend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def run(backend, features, rois, offset, size, sampling_ratio):
    """Pooled features, and the gradients of features and offset for a fixed gradient of the output."""
    features = [feature.detach().clone().to(DEVICE).requires_grad_() for feature in features]
    inputs = list(features)
    if offset is not None:
        offset = offset.detach().clone().to(DEVICE).requires_grad_()
        inputs.append(offset)
    options = {"strides": STRIDES, "output_size": size, "sampling_ratio": sampling_ratio, "gamma": 0.1}
    pooled = deform_roi_pool(features, rois.to(DEVICE), offset, backend=backend, **options)
    generator = torch.Generator().manual_seed(9)
    weight = torch.randn(pooled.shape, generator=generator, dtype=torch.float64).to(pooled)
    gradients = torch.autograd.grad((pooled * weight).sum(), inputs)
    return [pooled.detach(), *gradients]


def compare(features, rois, offset, size=3, sampling_ratio=2, tolerance=None):
    expected = run("torch", features, rois, offset, size, sampling_ratio)
    got = run("triton", features, rois, offset, size, sampling_ratio)
    tolerance = tolerance or TOLERANCE[features[0].dtype]
    for ours, reference in zip(got, expected, strict=True):
        assert ours.dtype == reference.dtype
        torch.testing.assert_close(ours, reference, atol=tolerance, rtol=tolerance)


def offsets(count, size=3, dtype=torch.float64):
    return torch.randn(count, 2, size, size, dtype=dtype, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("sampling_ratio", [1, 2, 0])
def test_triton_is_the_reference_forward_and_backward(sampling_ratio, deterministic):
    torch.use_deterministic_algorithms(deterministic)
    try:
        compare(pyramid(side=16), random_rois(5, extent=64.0), offsets(5), sampling_ratio=sampling_ratio)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_triton_in_lower_precision(dtype):
    features = [feature.to(dtype) for feature in pyramid(torch.float32, side=16)]
    # The reference adds up in the features' precision, the kernel in single: the tolerance is the reference's error.
    compare(features, random_rois(4, torch.float32, extent=64.0), offsets(4, dtype=torch.float32))


def test_triton_without_offset_and_with_one_shift_for_all_cells():
    features, rois = pyramid(side=16), random_rois(4, extent=64.0)
    compare(features, rois, None)
    compare(features, rois, offsets(4, 1).expand(-1, -1, 3, 3))


def test_triton_with_more_channels_than_a_block_and_not_a_power_of_two():
    from tsd.ops import triton_backend

    channels = triton_backend.MAX_BLOCK + 3
    compare(pyramid(side=8, channels=channels), random_rois(2, extent=32.0), offsets(2, 2), size=2, sampling_ratio=1)


def test_triton_with_no_roi_keeps_the_graph_and_with_nan_does_not_crash():
    features = [feature.requires_grad_() for feature in pyramid(side=16)]
    options = {"strides": STRIDES, "output_size": 3, "sampling_ratio": 2, "gamma": 0.1, "backend": "triton"}
    features = [feature.to(DEVICE) for feature in features]
    empty = deform_roi_pool(features, random_rois(0).to(DEVICE), offsets(0).to(DEVICE), **options)
    assert empty.shape == (0, 3, 3, 3)
    assert empty.requires_grad
    shift = offsets(2)
    shift[1] = float("nan")
    pooled = deform_roi_pool(features, random_rois(2, extent=64.0).to(DEVICE), shift.to(DEVICE), **options)
    assert pooled[1].isnan().all()
    assert not pooled[0].isnan().any()


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 2),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
)
def test_triton_with_random_shapes(count, size, channels, batch, sampling_ratio, shifted):
    features = pyramid(side=16, channels=channels, batch=batch, seed=count)
    rois = random_rois(count, extent=64.0, batch=batch, seed=channels)
    compare(features, rois, offsets(count, size) if shifted else None, size, sampling_ratio)


def test_triton_passes_gradcheck():
    features = [feature.to(DEVICE).requires_grad_() for feature in pyramid(side=8, channels=2, batch=1)]
    rois = random_rois(2, extent=32.0, batch=1).to(DEVICE)
    offset = offsets(2, 2).to(DEVICE).requires_grad_()

    def pool(offset, *features):
        options = {"strides": STRIDES, "output_size": 2, "sampling_ratio": 2, "gamma": 0.1}
        return deform_roi_pool(features, rois, offset, backend="triton", **options)

    torch.autograd.gradcheck(pool, (offset, *features), nondet_tol=1e-12, fast_mode=True)


def test_auto_is_the_reference_on_a_cpu():
    assert choose_backend("auto", torch.device("cpu")) == "torch"


@pytest.fixture
def untried(monkeypatch):
    backends._compiles.cache_clear()
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    yield
    backends._compiles.cache_clear()


def test_auto_is_triton_on_a_gpu_where_it_compiles(untried, monkeypatch):
    tried = []
    monkeypatch.setattr(backends, "_try_triton", tried.append)
    assert choose_backend("auto", torch.device("cuda")) == "triton"
    assert choose_backend("auto", torch.device("cuda")) == "triton"
    assert tried == [torch.device("cuda")]  # once
    assert not os.environ["TRITON_CACHE_DIR"].startswith(os.path.expanduser("~"))


def test_auto_is_the_reference_where_triton_does_not_compile_and_says_so_once(untried, monkeypatch):
    def no_compiler(device):
        raise RuntimeError("Failed to find C compiler\nmore")

    monkeypatch.setattr(backends, "_try_triton", no_compiler)
    with pytest.warns(UserWarning, match="on cuda .RuntimeError: Failed to find C compiler.; .* slower"):
        assert choose_backend("auto", torch.device("cuda")) == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend("auto", torch.device("cuda")) == "torch"
    assert choose_backend("triton", torch.device("cuda")) == "triton"  # who asks for it gets it, or its error


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_trial_itself_runs_the_kernels(mode, monkeypatch):
    seen = []
    own = triton_backend.pool
    monkeypatch.setattr(triton_backend, "pool", lambda *args: seen.append(args) or own(*args))
    with mode():
        backends._try_triton(DEVICE)
    assert len(seen) == 1


def test_a_backend_that_cannot_run_here_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"'triton' can't run here: it needs CUDA tensors, and these are on cpu"):
        choose_backend("triton", torch.device("cpu"))
    with pytest.raises(RuntimeError, match="'mmcv' can't run here: it needs CUDA tensors"):
        choose_backend("mmcv", torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="the package triton is not installed"):
        choose_backend("triton", torch.device("cuda"))
    assert choose_backend("auto", torch.device("cuda")) == "torch"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="mmcv's operator needs a GPU")
def test_mmcv_is_the_reference():
    features, rois = pyramid(torch.float32, side=16), random_rois(5, torch.float32, extent=64.0)
    expected = run("torch", features, rois, offsets(5, dtype=torch.float32), 3, 2)
    got = run("mmcv", features, rois, offsets(5, dtype=torch.float32), 3, 2)
    for ours, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


def test_the_operator_needs_nothing_but_torch():
    code = "import sys, tsd.ops; print(sorted({'mmdet', 'mmcv', 'mmengine', 'triton'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    """To machine code of Volta, Ampere and Hopper, in every precision: Triton brings its own assembler."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "ops" / "compile_kernels.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = {line.split()[0] for line in done.stdout.splitlines()}
    assert kernels == {"_forward", "_backward", "_rows"}

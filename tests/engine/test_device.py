"""GPUs that are asked for and are not here: an error that says what to do, not days on the CPU."""

import pytest
import torch

from tests.conftest import tsd
from tests.workflow.test_pipeline import edit
from tsd.engine.device import check_device
from tsd.engine.params import get_run, load_suite
from tsd.errors import InputError

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def ask_for(project, **resources):
    edit(project / "params/suites/tiny.yaml", lambda suite: suite["resources"].update(resources))
    return get_run(load_suite("tiny"), "baseline", 0, "0" * 12)


@no_gpu
@pytest.mark.parametrize("verb", ["train", "predict"])
def test_training_and_predicting_without_cuda_end_before_anything_is_done(verb, project):
    ask_for(project, gpu=1)
    done = tsd("data", "generate", "--suite", "tiny")
    assert done.returncode == 0, done.stderr
    if verb == "predict":
        ask_for(project, device="cpu")
        assert tsd("train", "--suite", "tiny", "--experiment", "baseline", "--no-mlflow").returncode == 0
        edit(project / "params/suites/tiny.yaml", lambda suite: suite["resources"].pop("device"))
    options = ["--no-mlflow"] if verb == "train" else []
    done = tsd(verb, "--suite", "tiny", "--experiment", "baseline", *options)
    assert done.returncode == 2, done.stderr
    assert "params/suites/tiny.yaml: resources.gpu: baseline asks for 1, but torch can use none on" in done.stderr
    assert "nvidia-smi" in done.stderr or "built without CUDA" in done.stderr
    assert "TORCH_BACKEND=" in done.stderr
    assert "gpu: 0 trains on the CPU" in done.stderr
    assert not list(project.glob("results/**/predictions.json"))


@no_gpu
def test_gpus_of_a_scheduler_only_compute_on_the_cpu(project):
    run = ask_for(project, gpu=2, device="cpu")
    check_device(run)
    assert not run.on_gpu


def test_more_processes_than_gpus_on_a_machine_are_refused(project, monkeypatch):
    run = ask_for(project, gpu=4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_device(run)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match=r"asks for 4, one for each process, but .* has 2.* and this is its process 3"):
        check_device(run)

"""Checkpoints: nothing in them runs, nothing half-written counts, every key is accounted for."""

import os
import pickle

import pytest
import torch
from torch import nn

from tsd.engine import checkpoint
from tsd.engine.weights import load_pretrained
from tsd.errors import CheckpointError


class Payload:
    """Pickled, it would make a file when it is loaded."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("place", ["whole file", "state_dict", "meta"])
def test_a_planted_payload_does_not_run(tmp_path, place):
    target, path = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"state_dict": {"weight": torch.zeros(1)}, "meta": {}}
    if place == "whole file":
        path.write_bytes(pickle.dumps(Payload(target)))
    else:
        content[place]["x"] = Payload(target)
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"evil.pth: refused"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match="refused"):
        load_pretrained(nn.Linear(1, 1), path)
    assert not target.exists()


def test_the_runner_uses_the_strict_loader_only():
    from mmengine.runner import Runner

    from tsd.engine.runner import StrictRunner

    assert StrictRunner.load_checkpoint is not Runner.load_checkpoint
    assert StrictRunner.resume is not Runner.resume


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"state_dict": nn.Linear(50, 50).state_dict()})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"a.pth: refused: not a whole checkpoint"):
        checkpoint.load(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="refused"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match=r"none.pth: no such checkpoint"):
        checkpoint.load(tmp_path / "none.pth")


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"state_dict": {}, "meta": {"iter": 1}})
    with pytest.raises(CheckpointError):  # would not be readable by the strict loader
        checkpoint.save(path, {"state_dict": {}, "meta": {"x": Payload(tmp_path / "ran")}})
    assert checkpoint.load(path)["meta"] == {"iter": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"state_dict": {}, "meta": {"iter": 1}})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"state_dict": {}, "meta": {"iter": 2}})
    monkeypatch.undo()
    assert checkpoint.load(path)["meta"] == {"iter": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_every_key_must_fit(tmp_path):
    path = tmp_path / "a.pth"
    state = nn.Linear(2, 2).state_dict()
    checkpoint.save(path, {"state_dict": state})
    checkpoint.load_model(nn.Linear(2, 2), path)
    for wrong, word in (
        ({"weight": state["weight"]}, r"1 missing \(bias\)"),
        (state | {"more": torch.zeros(1)}, r"1 unexpected \(more\)"),
        (state | {"bias": torch.zeros(3)}, r"1 misshapen \(bias\)"),
    ):
        checkpoint.save(path, {"state_dict": wrong})
        with pytest.raises(CheckpointError, match=f"does not fit the model.*{word}"):
            checkpoint.load_model(nn.Linear(2, 2), path)


def test_the_newest_checkpoint_comes_first(tmp_path):
    for step in (5, 100, 20):
        checkpoint.save(checkpoint.step_path(tmp_path, step), {"state_dict": {}})
    (tmp_path / ".step_00000200.1.tmp.pth").write_bytes(b"half")
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [100, 20, 5]

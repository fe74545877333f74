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


def test_a_flipped_bit_of_a_tensor_is_found(tmp_path):
    """torch itself loads such a file, with another value in it."""
    path = tmp_path / "a.pth"
    weight = torch.arange(1000, dtype=torch.float32)
    checkpoint.save(path, {"state_dict": {"weight": weight}})
    content = path.read_bytes()
    place = content.index(weight.numpy().tobytes()[400:800])
    damaged = content[:place] + bytes([content[place] ^ 8]) + content[place + 1 :]
    path.write_bytes(damaged)
    assert not torch.equal(torch.load(path, weights_only=True)["state_dict"]["weight"], weight)
    for load in (checkpoint.load, lambda name: checkpoint.loads(damaged, name)):
        with pytest.raises(CheckpointError, match=r"a\.pth: damaged: the checksum of .*data/0"):
            load(path)
    assert torch.equal(checkpoint.loads(content, path)["state_dict"]["weight"], weight)


def test_no_flipped_bit_gives_other_weights(tmp_path):
    path = tmp_path / "a.pth"
    state = nn.Linear(6, 6).state_dict()
    checkpoint.save(path, {"state_dict": state, "meta": {"iter": 1}})
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            found = checkpoint.load(path)
        except CheckpointError:
            refused += 1
            continue
        assert found["meta"] == {"iter": 1}
        assert all(torch.equal(found["state_dict"][key], state[key]) for key in state)
    assert refused > 100


def test_weights_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"state_dict": {"weight": torch.zeros(2, 2), "bias": torch.tensor([0.0, float("nan")])}})
    with pytest.raises(CheckpointError, match=r"a\.pth: bias: holds values that are not finite"):
        checkpoint.load_model(nn.Linear(2, 2), path)


RUN = {"suite": "demo", "experiment": "tsd", "seed": 0, "digest": "0" * 12, "data_digest": "1" * 12}


@pytest.mark.parametrize("key", RUN)
def test_another_runs_weights_are_refused(tmp_path, key, capsys):
    path = tmp_path / "a.pth"
    state = nn.Linear(2, 2).state_dict()
    other = RUN | {key: 7 if key == "seed" else "other"}
    checkpoint.save(path, {"state_dict": state, "meta": {"run": other}})
    with pytest.raises(CheckpointError, match=r"a\.pth: is of the run .*; expected demo/tsd/000000000000/seed0"):
        checkpoint.load_model(nn.Linear(2, 2), path, RUN)
    checkpoint.load_model(nn.Linear(2, 2), path)  # where any weights are asked for
    checkpoint.save(path, {"state_dict": state, "meta": {"run": dict(reversed(RUN.items()))}})
    checkpoint.load_model(nn.Linear(2, 2), path, RUN)
    assert capsys.readouterr().err == ""
    checkpoint.save(path, {"state_dict": state})
    checkpoint.load_model(nn.Linear(2, 2), path, RUN)
    assert "a.pth: does not say of which run it is" in capsys.readouterr().err


def test_weights_for_other_classes_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    for said, word in ((["dog", "cat"], "class 0 is 'dog'; expected 'cat'"), (["cat"], "1 classes; expected 2")):
        with pytest.raises(CheckpointError, match=f"was trained on other classes: {word}"):
            checkpoint.check_classes({"dataset_meta": {"classes": said}}, ("cat", "dog"), path)
    checkpoint.check_classes({"dataset_meta": {"classes": ["cat", "dog"]}}, ("cat", "dog"), path)
    checkpoint.check_classes({}, ("cat", "dog"), path)


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
    (tmp_path / ".step_00000200.1.0000.tmp.pth").write_bytes(b"half")
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [100, 20, 5]

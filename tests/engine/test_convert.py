"""Released checkpoints: names, shapes and class order of Sense-X/TSD's head, every tensor accounted for."""

import pickle

import pytest
import torch
import torch.nn.functional as F
import yaml
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

import tsd.models  # noqa: F401  registers the detectors
from tests.conftest import tsd as command
from tsd.engine import checkpoint
from tsd.engine.convert import convert
from tsd.engine.model import build_model
from tsd.engine.params import load_suite
from tsd.errors import CheckpointError, InputError

CLASSES, CHANNELS, WIDTH, DELTA = 4, 16, 32, 16
SCORES, INPUTS = CLASSES + 1, CHANNELS * 49


@pytest.fixture
def suite(project):
    """A suite of small released networks."""
    path = project / "params" / "suites" / "tiny.yaml"
    content = yaml.safe_load(path.read_text())
    content["experiments"] = ["baseline", "released_r50", "released_cascade_r50", "released_mask_r50"]
    content["override"]["head"] = {"fc_channels": WIDTH, "delta_channels": DELTA}
    content.pop("tables")
    path.write_text(yaml.safe_dump(content))
    return load_suite("tiny")


def linear(inputs, outputs, generator):
    shapes = {"weight": (outputs, inputs), "bias": (outputs,)}
    return {kind: torch.randn(shape, generator=generator) for kind, shape in shapes.items()}


def released_head(deltas=4 * SCORES, seed=0):
    """State dict of ``TSDSharedFCBBoxHead`` (tsd_bbox_head.py), without prefix."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        "shared_fc.0": (INPUTS, DELTA),
        "delta_c.0": (DELTA, DELTA),
        "delta_c.2": (DELTA, 98),
        "delta_r.0": (DELTA, DELTA),
        "delta_r.2": (DELTA, 2),
        "shared_fcs.0": (INPUTS, WIDTH),
        "shared_fcs.1": (WIDTH, WIDTH),
        "TSD_pc_fcs.0": (INPUTS, WIDTH),
        "TSD_pc_fcs.1": (WIDTH, WIDTH),
        "TSD_pr_fcs.0": (INPUTS, WIDTH),
        "TSD_pr_fcs.1": (WIDTH, WIDTH),
        "fc_cls": (WIDTH, SCORES),
        "fc_reg": (WIDTH, deltas),
        "TSD_fc_cls": (WIDTH, SCORES),
        "TSD_fc_reg": (WIDTH, deltas),
    }
    return {
        f"{name}.{kind}": value
        for name, (inputs, outputs) in layers.items()
        for kind, value in linear(inputs, outputs, generator).items()
    }


def released(suite, experiment):
    """A whole released state dict; backbone, neck and RPN have had the same names since."""
    init_default_scope("mmdet")
    model = MODELS.build(ConfigDict(build_model(suite.settings[experiment], CLASSES, "released")))
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("roi_head")}
    if "cascade" in experiment:
        for stage in range(3):
            state |= {f"bbox_head.{stage}.{key}": value for key, value in released_head(4, stage).items()}
        return state
    state |= {f"bbox_head.{key}": value for key, value in released_head().items()}
    for name, value in model.state_dict().items():
        if name.startswith("roi_head.mask_head."):
            if "conv_logits" in name:  # one mask for the background
                value = torch.cat((torch.full_like(value[:1], 7.0), value))
            state[name.removeprefix("roi_head.")] = value
    return state


def save(path, state, **meta):
    torch.save({"meta": {"epoch": 14, "iter": 51310, "CLASSES": ("a",)} | meta, "state_dict": state}, path)
    return path


def converted_head(suite, path, experiment="released_r50"):
    init_default_scope("mmdet")
    model = MODELS.build(ConfigDict(build_model(suite.settings[experiment], CLASSES, "released")))
    checkpoint.load_model(model, path)
    return model.eval()


def old_forward(state, prefix, x):
    """The released head's test: hidden layers, then scores with the background first."""
    for layer in ("0", "1"):
        x = F.linear(x, state[f"{prefix}.{layer}.weight"], state[f"{prefix}.{layer}.bias"]).relu()
    return x


def test_the_converted_head_says_what_the_released_one_says(suite, tmp_path):
    state = released(suite, "released_r50")
    meta = convert(suite, "released_r50", save(tmp_path / "old.pth", state), tmp_path / "new.pth")
    assert meta["coordinates"] == "legacy"
    assert (meta["epoch"], meta["iter"]) == (14, 51310)
    head = converted_head(suite, tmp_path / "new.pth").roi_head.bbox_head
    old = {key.removeprefix("bbox_head."): value for key, value in state.items() if key.startswith("bbox_head")}
    x = torch.randn(6, CHANNELS, 7, 7, generator=torch.Generator().manual_seed(1)) / 100
    rois = torch.tensor([[0.0, 10, 20, 49, 79]]).repeat(6, 1)
    asked = []

    def pool(offset):
        asked.append(offset)
        return x * len(asked)

    with torch.no_grad():
        output = head(x, rois, pool)
    hidden = F.linear(x.flatten(1), old["shared_fc.0.weight"], old["shared_fc.0.bias"]).relu()

    def delta(name):
        inner = F.linear(hidden, old[f"{name}.0.weight"], old[f"{name}.0.bias"]).relu()
        return F.linear(inner, old[f"{name}.2.weight"], old[f"{name}.2.bias"])

    torch.testing.assert_close(asked[0], delta("delta_c").view(6, 2, 7, 7))
    torch.testing.assert_close(asked[1], delta("delta_r")[:, :, None, None].expand(-1, -1, 7, 7))
    shift = 0.1 * delta("delta_r") * torch.tensor([40.0, 60.0])  # sides of 10 … 49 and 20 … 79
    torch.testing.assert_close(output.reg_rois[:, 1:], rois[:, 1:] + shift.repeat(1, 2))
    cls = F.linear(old_forward(old, "TSD_pc_fcs", x.flatten(1)), old["TSD_fc_cls.weight"], old["TSD_fc_cls.bias"])
    torch.testing.assert_close(output.cls_score[:, :CLASSES], cls[:, 1:])
    torch.testing.assert_close(output.cls_score[:, CLASSES], cls[:, 0])
    reg = F.linear(old_forward(old, "TSD_pr_fcs", 2 * x.flatten(1)), old["TSD_fc_reg.weight"], old["TSD_fc_reg.bias"])
    torch.testing.assert_close(output.bbox_pred, reg[:, 4:])


def test_the_sibling_head_is_converted_too(suite, tmp_path):
    state = released(suite, "released_r50")
    convert(suite, "released_r50", save(tmp_path / "old.pth", state), tmp_path / "new.pth")
    head = converted_head(suite, tmp_path / "new.pth").roi_head.bbox_head
    assert torch.equal(head.sibling_fc_cls.bias, state["bbox_head.fc_cls.bias"][[1, 2, 3, 4, 0]])
    assert torch.equal(head.sibling_fc_reg.weight, state["bbox_head.fc_reg.weight"][4:])
    assert torch.equal(head.sibling_fcs[2].weight, state["bbox_head.shared_fcs.1.weight"])


def test_a_cascade_has_three_heads_and_a_mask_head_loses_its_background(suite, tmp_path):
    state = released(suite, "released_cascade_r50")
    convert(suite, "released_cascade_r50", save(tmp_path / "old.pth", state), tmp_path / "new.pth")
    heads = converted_head(suite, tmp_path / "new.pth", "released_cascade_r50").roi_head.bbox_head
    for stage, head in enumerate(heads):
        assert torch.equal(head.fc_reg.weight, state[f"bbox_head.{stage}.TSD_fc_reg.weight"])
    state = released(suite, "released_mask_r50")
    convert(suite, "released_mask_r50", save(tmp_path / "old.pth", state), tmp_path / "new.pth")
    mask_head = converted_head(suite, tmp_path / "new.pth", "released_mask_r50").roi_head.mask_head
    assert torch.equal(mask_head.conv_logits.weight, state["mask_head.conv_logits.weight"][1:])


def drop(key):
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("bbox_head.delta_r.2.bias"), "1 missing .roi_head.bbox_head.delta.reg.2.bias"),
        (lambda state: state.update({"neck.extra": torch.zeros(1)}), "1 unexpected .neck.extra"),
        (lambda state: state.update({"bbox_head.conv.weight": torch.zeros(1)}), "not a layer of the released TSD head"),
        (lambda state: state.update({"bbox_head.fc_cls.bias": torch.zeros(4)}), r"expected 5 rows .* got 4"),
        (lambda state: state.update({"rpn_head.rpn_cls.bias": torch.zeros(9)}), "1 misshapen .rpn_head.rpn_cls.bias"),
    ],
)
def test_every_tensor_is_accounted_for(suite, tmp_path, spoil, message):
    state = released(suite, "released_r50")
    spoil(state)
    with pytest.raises(CheckpointError, match=message):
        convert(suite, "released_r50", save(tmp_path / "old.pth", state), tmp_path / "new.pth")
    assert not (tmp_path / "new.pth").exists()


class Payload:
    def __reduce__(self):
        return print, ("executed",)


def test_bad_files_and_experiments_are_refused(suite, tmp_path, capsys):
    state = released(suite, "released_r50")
    source = save(tmp_path / "old.pth", state)
    with pytest.raises(InputError, match="baseline: released checkpoints need `coordinates: legacy`"):
        convert(suite, "baseline", source, tmp_path / "new.pth")
    with pytest.raises(InputError, match="'nothing': not in suite tiny, which has baseline"):
        convert(suite, "nothing", source, tmp_path / "new.pth")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Payload()}))
    for name, message in (("none.pth", "no such checkpoint"), ("evil.pth", "refused")):
        with pytest.raises(CheckpointError, match=message):
            convert(suite, "released_r50", tmp_path / name, tmp_path / "new.pth")
    source.write_bytes(source.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="refused: not a whole checkpoint"):
        convert(suite, "released_r50", source, tmp_path / "new.pth")
    assert "executed" not in capsys.readouterr().out
    assert not (tmp_path / "new.pth").exists()


def test_the_command_converts(suite, tmp_path, project):
    source = save(tmp_path / "old.pth", released(suite, "released_r50"))
    arguments = ("--suite", "tiny", "--experiment", "released_r50")
    done = command("convert", str(source), str(tmp_path / "new.pth"), *arguments, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "tensors from" in done.stdout
    assert checkpoint.load(tmp_path / "new.pth")["meta"]["coordinates"] == "legacy"

"""ImageNet weights in the layouts that they are published in: every tensor accounted for, and the same features."""

import hashlib

import pytest
import torch
import torchvision
from mmdet.models.backbones import MobileNetV2, ResNet, ResNeXt

from tsd.engine.weights import find_weights, load_pretrained, mobilenet_v2_names
from tsd.errors import CheckpointError, InputError
from tsd.models import BranchedResNet, SENet


def features(model):
    """mmdet's ``eval`` returns nothing."""
    model.eval()
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.rand(1, 3, 64, 64))[-1]


def published(model, path):
    """A classifier with statistics of its own, and its file, which is named by its digest."""
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if "running" in name:
            value.copy_(torch.rand_like(value) + 0.5)
    torch.save(model.state_dict(), path)
    return model.eval(), named_by_digest(path)


def named_by_digest(path):
    """As files are published: `resnet18.pth` → `resnet18-<digest>.pth`."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(path.with_stem(f"{path.stem}-{digest[:8]}"))


def test_resnet_loads_torchvisions_weights_and_has_its_features(tmp_path):
    classifier, path = published(torchvision.models.resnet18(), tmp_path / "resnet18.pth")
    backbone = ResNet(depth=18)
    loaded = load_pretrained(backbone, path)
    assert loaded.keys.unexpected == ["fc.bias", "fc.weight"]
    assert not loaded.keys.missing
    assert len(loaded.sha256) == 64
    layers = torch.nn.Sequential(*list(classifier.children())[:-2])
    torch.testing.assert_close(features(backbone), layers(torch.rand(1, 3, 64, 64, generator=seeded())))


def seeded():
    return torch.Generator().manual_seed(1)


def test_mobilenet_v2_loads_torchvisions_weights_and_has_its_features(tmp_path):
    classifier, path = published(torchvision.models.mobilenet_v2(), tmp_path / "mobilenet_v2.pth")
    backbone = MobileNetV2(out_indices=(1, 2, 4, 7))
    load_pretrained(backbone, path)
    torch.testing.assert_close(features(backbone), classifier.features(torch.rand(1, 3, 64, 64, generator=seeded())))
    assert set(mobilenet_v2_names().values()) == set(backbone.state_dict())


def test_resnext_64x4d_has_torchvisions_names_and_shapes(tmp_path):
    with torch.device("meta"):
        theirs = torchvision.models.resnext101_64x4d().state_dict()
        ours = ResNeXt(depth=101, groups=64, base_width=4).state_dict()
    assert {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")} == {
        key: value.shape for key, value in ours.items()
    }


def test_both_branches_and_offsets_start_from_plain_weights(tmp_path):
    _, path = published(torchvision.models.resnet50(), tmp_path / "resnet50.pth")
    branched = BranchedResNet(3, depth=50)
    load_pretrained(branched, path)
    assert torch.equal(branched.layer4[2].conv3.weight, branched.reg_layer4[2].conv3.weight)
    deformable = ResNet(depth=50, dcn={"type": "TorchvisionDCN"}, stage_with_dcn=(False, False, False, True))
    loaded = load_pretrained(deformable, path)
    assert {key.split(".")[0] for key in loaded.keys.missing} == {"layer4"}
    assert all("conv_offset" in key for key in loaded.keys.missing)


def test_senet_loads_a_file_of_its_published_names(tmp_path):
    source = SENet(base_channels=8)
    state = source.state_dict() | {"last_linear.weight": torch.zeros(10, 256), "last_linear.bias": torch.zeros(10)}
    torch.save(state, tmp_path / "legacy_senet154.pth")
    backbone = SENet(base_channels=8)
    load_pretrained(backbone, named_by_digest(tmp_path / "legacy_senet154.pth"))
    assert torch.equal(features(source), features(backbone))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer4.1.conv2.weight"), r"1 missing \(layer4.1.conv2.weight\)"),
        (lambda state: state.update({"neck": torch.zeros(1)}), r"1 unexpected \(neck\)"),
        (lambda state: state.update({"conv1.weight": torch.zeros(1)}), r"1 misshapen \(conv1.weight\)"),
        (lambda state: state.update({"epoch": 3}), "expected a state_dict: names and tensors"),
        (lambda state: state.update({3: torch.zeros(1)}), "expected a state_dict: names and tensors"),
        (
            lambda state: state["conv1.weight"].view(-1)[7].fill_(float("nan")),
            "conv1.weight: holds values that are not",
        ),
        (lambda state: state["bn1.bias"].fill_(float("inf")), "bn1.bias: holds values that are not finite"),
        (lambda state: state["bn1.running_var"].neg_(), "bn1.running_var: holds negative variances"),
        (lambda state: state.update({"bn1.bias": state["bn1.bias"].long()}), "expected dense floating numbers, got"),
        (lambda state: state.update({"bn1.bias": state["bn1.bias"].to_sparse()}), "expected dense floating numbers"),
    ],
)
def test_a_wrong_file_is_refused_with_its_keys(tmp_path, change, message):
    state = torchvision.models.resnet18().state_dict()
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(ResNet(depth=18), tmp_path / "a.pth")


def test_a_truncated_file_and_another_networks_are_refused(tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    with pytest.raises(CheckpointError, match="does not fit the backbone ResNet: "):
        load_pretrained(ResNet(depth=34), path)
    path.write_bytes(path.read_bytes()[:10000])
    with pytest.raises(CheckpointError, match="refused: not a whole checkpoint"):
        load_pretrained(ResNet(depth=18), path)


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path):
    _, path = published(torchvision.models.resnet18(), tmp_path / "resnet18.pth")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged or another file: its SHA-256 begins with .*, its name says"):
        load_pretrained(ResNet(depth=18), path)


def test_weights_are_found_by_file_by_name_and_by_published_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "weights"
    folder.mkdir()
    (tmp_path / "mine.pth").touch()
    for name in ("resnet50-0676ba61.pth", "resnet50_other.pth", "legacy_senet154-e9eb9fe6.pth", "resnet101.pth"):
        (folder / name).touch()
    monkeypatch.setenv("TSD_WEIGHTS", str(folder))
    assert find_weights("mine.pth").name == "mine.pth"
    assert find_weights("resnet50").name == "resnet50-0676ba61.pth"
    assert find_weights("resnet50_other.pth").name == "resnet50_other.pth"
    assert find_weights("senet154").name == "legacy_senet154-e9eb9fe6.pth"
    assert find_weights("resnet101").name == "resnet101.pth"
    monkeypatch.setenv("TSD_WEIGHTS", str(tmp_path / "mine.pth"))
    assert find_weights("resnet50").name == "mine.pth"


def test_weights_that_are_not_there_or_not_alone_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TSD_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=r"no file resnet50, resnet50.pth or .* there is: nothing"):
        find_weights("resnet50")
    for name in ("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"several files fit .*resnet50-0676ba61.pth, resnet50-11ad3fa6.pth"):
        find_weights("resnet50")
    monkeypatch.setenv("TSD_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"nowhere: expected a folder of weights or one file"):
        find_weights("resnet50")
    monkeypatch.delenv("TSD_WEIGHTS")
    with pytest.raises(InputError, match=r"no file resnet50 here, and TSD_WEIGHTS is not set"):
        find_weights("resnet50")

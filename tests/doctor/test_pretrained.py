"""ImageNet weights: as they should be, damaged, and of another network."""

import hashlib
import os

import pytest
import torch
from safetensors.torch import save_file

from tests.doctor.conftest import context
from tsd.doctor import pretrained

PUBLISHED = (
    "convnext_tiny",
    "mobilenet_v2",
    "resnet101",
    "resnet152",
    "resnet50",
    "resnext101_32x4d",
    "resnext101_64x4d",
    "senet154",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that TSD_WEIGHTS names."""
    place = tmp_path / "weights"
    place.mkdir()
    monkeypatch.setenv("TSD_WEIGHTS", str(place))
    return place


def published():
    """Names and tensors of the backbone of the suite ``tiny``, and a classifier's last layer."""
    (config,) = pretrained._backbones(only_resnet50(context()).suite)["resnet50"]
    state = {name: torch.ones(value.shape) for name, value in pretrained._on_meta(config).state_dict().items()}
    return state | {"fc.weight": torch.ones(10, 8)}


def put(folder, name, digest=None, state=None):
    """A whole file of weights under its published name, with its own digest unless told another."""
    path = folder / "new"
    torch.save(published() if state is None else state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8] if digest is None else digest
    return path.rename(folder / f"{name}-{digest}.pth")


def only_resnet50(about):
    for own in about.suite.settings.values():
        own["backbone"]["pretrained"] = "resnet50"
    return about


def coco(**options):
    """The suite ``coco`` without what an installed package has the weights of."""
    about = context("coco", **options)
    for own in about.suite.settings.values():
        if own["backbone"]["pretrained"] == "efficientnet_lite0":
            own["backbone"]["pretrained"] = None
    return about


def test_a_suite_from_random_weights_needs_none(examined):
    assert "random weights" in examined("weights", context()).only("ok").finding


def test_weights_that_are_nowhere_have_one_line_and_the_variable_to_set(examined, monkeypatch):
    monkeypatch.delenv("TSD_WEIGHTS", raising=False)
    line = examined("weights", coco()).only("error")
    assert all(name in line.finding for name in PUBLISHED)
    assert "TSD_WEIGHTS is not set" in line.finding
    assert "`export TSD_WEIGHTS=/path/to/weights`" in line.remedy


def test_weights_that_are_all_there_are_named(examined, folder):
    files = [put(folder, f"legacy_{name}" if name == "senet154" else name) for name in PUBLISHED]
    line = examined("weights", coco(quick=True)).only("ok")
    assert line.finding.startswith("there: ")
    assert all(file.name in line.finding for file in files)


def test_one_file_of_them_that_is_missing_has_a_line_beside_the_others(examined, folder):
    for name in PUBLISHED[1:]:
        put(folder, name)
    missing, there = examined("weights", coco(quick=True)).lines
    assert missing.state == "error"
    assert missing.finding.startswith(
        f"{PUBLISHED[0]}: TSD_WEIGHTS={folder}: no file {PUBLISHED[0]}, {PUBLISHED[0]}.pth"
    )
    assert "Put the published files there" in missing.remedy
    assert there.state == "ok"
    assert PUBLISHED[0] not in there.finding


def test_several_files_that_are_missing_share_a_line(examined, folder):
    line = examined("weights", coco()).only("error")
    assert line.finding.startswith(", ".join(PUBLISHED) + f": TSD_WEIGHTS={folder}: no file NAME")


def test_two_files_that_fit_have_to_be_chosen_from(examined, folder):
    put(folder, "resnet50", "0676ba61")
    put(folder, "resnet50", "11ad3fa6")
    line = examined("weights", only_resnet50(context())).only("error")
    assert "resnet50-0676ba61.pth, resnet50-11ad3fa6.pth" in line.finding
    assert line.remedy.startswith("Name one of them")


def test_a_truncated_file_is_an_error_unless_only_its_name_is_looked_at(examined, folder):
    path = put(folder, "resnet50")
    path.write_bytes(path.read_bytes()[:2000])
    path = path.rename(folder / "resnet50.pth")  # without a digest, which would tell
    line = examined("weights", only_resnet50(context())).only("error")
    assert "not a whole checkpoint" in line.finding
    assert path.name in line.finding
    assert "sha256sum" in line.remedy
    examined("weights", only_resnet50(context(quick=True))).only("ok")


def test_a_file_that_is_not_the_one_its_name_says(examined, folder):
    put(folder, "resnet50", "0676ba61")
    line = examined("weights", only_resnet50(context())).only("error")
    assert "its name says 0676ba61" in line.finding


def test_a_file_that_holds_code_is_refused(examined, folder):
    torch.save({"conv1.weight": test_a_file_that_holds_code_is_refused}, folder / "resnet50.pth")
    assert "refused" in examined("weights", only_resnet50(context())).only("error").finding


def test_the_file_of_the_network_fits(examined, folder):
    path = put(folder, "resnet50")
    assert examined("weights", only_resnet50(context())).only("ok").finding == f"whole: {path.name}"
    path.unlink()
    save_file(published(), folder / "resnet50.safetensors")
    assert examined("weights", only_resnet50(context())).only("ok").finding == "whole: resnet50.safetensors"


def test_the_file_of_another_network_is_an_error_unless_only_looked_for(examined, folder):
    put(folder, "resnet50", state={"conv1.weight": torch.ones(1000)})
    line = examined("weights", only_resnet50(context())).only("error")
    assert "does not fit the backbone ResNet" in line.finding
    assert "1 misshapen (conv1.weight)" in line.finding
    assert "that network's published file" in line.remedy
    examined("weights", only_resnet50(context(quick=True))).only("ok")


def test_values_that_are_not_finite_are_an_error(examined, folder):
    state = published()
    state["conv1.weight"].view(-1)[3] = float("nan")
    put(folder, "resnet50", state=state)
    assert "conv1.weight: holds values that are not finite" in (
        examined("weights", only_resnet50(context())).only("error").finding
    )


def test_all_networks_that_one_wrong_file_is_found_for_are_named(examined, folder, monkeypatch):
    path = folder / "one.pth"
    path.write_bytes(b"nothing")
    monkeypatch.setenv("TSD_WEIGHTS", str(path))
    line = examined("weights", coco()).only("error")
    assert line.finding.startswith(", ".join(PUBLISHED) + f": {path}: refused")


def test_a_network_of_several_that_one_file_is_found_for_fits(examined, folder, monkeypatch):
    monkeypatch.setenv("TSD_WEIGHTS", str(put(folder, "resnet50")))
    about = only_resnet50(context())
    other = next(iter(about.suite.settings.values()))["backbone"]
    other |= {"pretrained": "resnet101", "depth": 101}
    line = examined("weights", about).lines[0]
    assert line.state == "error"
    assert line.finding.startswith("resnet101: ")
    assert "missing" in line.finding


def test_a_file_that_you_may_not_read_is_to_be_opened(examined, folder, monkeypatch):
    path = put(folder, "resnet50")
    monkeypatch.setattr(os, "access", lambda place, mode: place != path)
    assert examined("weights", only_resnet50(context())).only("error").remedy == (
        f"Let yourself read it: `chmod u+r {path}`."
    )

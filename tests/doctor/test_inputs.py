"""Weights and data, as they should be and damaged."""

import hashlib
import shutil

import pytest
import torch

from tests.conftest import project_with_scenes
from tests.doctor.conftest import context

PUBLISHED = ("mobilenet_v2", "resnet101", "resnet152", "resnet50", "resnext101_32x4d", "resnext101_64x4d", "senet154")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that TSD_WEIGHTS names."""
    place = tmp_path / "weights"
    place.mkdir()
    monkeypatch.setenv("TSD_WEIGHTS", str(place))
    return place


def put(folder, name, digest=None):
    """A whole file of weights under its published name, with its own digest unless told another."""
    path = folder / "new"
    torch.save({"conv1.weight": torch.arange(1000.0)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8] if digest is None else digest
    return path.rename(folder / f"{name}-{digest}.pth")


def only_resnet50(about):
    for own in about.suite.settings.values():
        own["backbone"]["pretrained"] = "resnet50"
    return about


def test_a_suite_from_random_weights_needs_none(examined):
    assert "random weights" in examined("weights", context()).only("ok").finding


def test_weights_that_are_nowhere_have_one_line_and_the_variable_to_set(examined, monkeypatch):
    monkeypatch.delenv("TSD_WEIGHTS", raising=False)
    line = examined("weights", context("coco")).only("error")
    assert all(name in line.finding for name in PUBLISHED)
    assert "TSD_WEIGHTS is not set" in line.finding
    assert "`export TSD_WEIGHTS=/path/to/weights`" in line.remedy


def test_weights_that_are_all_there_are_named(examined, folder):
    files = [put(folder, f"legacy_{name}" if name == "senet154" else name) for name in PUBLISHED]
    line = examined("weights", context("coco")).only("ok")
    assert line.finding.startswith("whole: ")
    assert all(file.name in line.finding for file in files)


def test_one_file_of_them_that_is_missing_has_a_line_beside_the_others(examined, folder):
    for name in PUBLISHED[1:]:
        put(folder, name)
    missing, there = examined("weights", context("coco")).lines
    assert missing.state == "error"
    assert missing.finding.startswith(f"mobilenet_v2: TSD_WEIGHTS={folder}: no file mobilenet_v2, mobilenet_v2.pth")
    assert "Put the published files there" in missing.remedy
    assert there.state == "ok"
    assert "mobilenet" not in there.finding


def test_several_files_that_are_missing_share_a_line(examined, folder):
    line = examined("weights", context("coco")).only("error")
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
    line = examined("weights", only_resnet50(context())).only("error")
    assert "not a whole checkpoint" in line.finding
    assert path.name in line.finding
    assert "sha256sum" in line.remedy
    examined("weights", only_resnet50(context(quick=True))).only("ok")


def test_a_file_that_is_not_the_one_its_name_says(examined, folder):
    put(folder, "resnet50", "0676ba61")
    line = examined("weights", only_resnet50(context())).only("error")
    assert "and its name says 0676ba61" in line.finding


def test_a_file_that_holds_code_is_refused(examined, folder):
    torch.save({"conv1.weight": test_a_file_that_holds_code_is_refused}, folder / "resnet50.pth")
    assert "refused" in examined("weights", only_resnet50(context())).only("error").finding


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The data of the suite ``tiny``."""
    with pytest.MonkeyPatch.context() as patch:
        return project_with_scenes(tmp_path_factory.mktemp("doctor") / "project", patch) / "data"


@pytest.fixture
def data(project, scenes):
    return shutil.copytree(scenes, project / "data") / "tiny"


def test_data_that_can_be_made_is_a_warning(examined):
    line = examined("data", context()).only("warning")
    assert line.finding == "not here: data/tiny/manifest.json and 2 more"
    assert line.remedy == "Make it: `tsd data generate --suite tiny`."


def test_data_that_can_be_fetched_is_a_warning(examined):
    assert "`tsd data fetch --suite coco`" in examined("data", context("coco")).only("warning").remedy
    line = examined("data", context("openimages")).only("warning")
    assert "tsd data fetch --suite openimages && tsd data openimages --suite openimages" in line.remedy


def test_data_of_the_users_own_that_is_missing_is_an_error(examined):
    line = examined("data", context("evidence-photos")).only("error")
    assert "data/photos/annotations/instances_train2017.json" in line.finding


def test_whole_data_is_counted(examined, data):
    line = examined("data", context()).only("ok")
    assert line.finding.startswith("12 training and 6 val pictures are there")


def test_data_that_was_changed_is_an_error_unless_only_looked_for(examined, data):
    annotations = data / "annotations/instances_val.json"
    annotations.write_text(annotations.read_text().replace("0", "1", 1))
    line = examined("data", context()).only("error")
    assert "instances_val.json: content differs" in line.finding
    assert "`tsd data verify --suite tiny`" in line.remedy
    examined("data", context(quick=True)).only("ok")


def test_pictures_that_are_still_in_their_archive_are_left_there(examined, data):
    shutil.rmtree(data / "train")
    line = examined("data", context()).only("warning")
    assert line.finding == "not here: data/tiny/train"
    assert line.remedy == "Unpack the pictures: `tsd data verify --suite tiny`."
    assert not (data / "train").exists()

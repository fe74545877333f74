"""The data, as it should be and damaged."""

import shutil

import pytest

from tests.conftest import project_with_scenes
from tests.doctor.conftest import context


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

"""The evaluation server's file for COCO test-dev."""

import json
import zipfile

import pytest

from tests.conftest import tsd
from tsd.errors import InputError
from tsd.evaluation.coco_submission import validate_coco, write_coco

ENTRY = {"image_id": 7, "category_id": 90, "bbox": [1.04, 2.06, 3, 4], "score": 0.12345678}


@pytest.fixture
def folder(tmp_path):
    info = {"images": [{"id": 7}, {"id": 9}], "categories": [{"id": 1}, {"id": 90}]}
    (tmp_path / "info.json").write_text(json.dumps(info))
    (tmp_path / "found.json").write_text(json.dumps([ENTRY]))
    return tmp_path


def test_the_zip_has_the_servers_name_and_no_folder(folder):
    path, number = write_coco(folder / "found.json", folder / "info.json", "tsd-r101", folder / "out")
    assert (path.name, number) == ("detections_test-dev2017_tsd-r101_results.zip", 1)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["detections_test-dev2017_tsd-r101_results.json"]
        (entry,) = json.loads(archive.read(archive.namelist()[0]))
    assert entry == {"image_id": 7, "category_id": 90, "bbox": [1.0, 2.1, 3.0, 4.0], "score": 0.123457}
    first = path.read_bytes()
    write_coco(folder / "found.json", folder / "info.json", "tsd-r101", folder / "out")
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 8}, "entry 1: image_id 8 is not among the 2 pictures"),
        ({"category_id": 2}, "entry 1: category_id 2 is not among the 2 categories"),
        ({"bbox": [1, 2, 0, 4]}, r"entry 1: bbox \[1, 2, 0, 4\]: expected a positive width"),
        ({"bbox": [1, 2, 3]}, r"entry 1: bbox \[1, 2, 3\]: expected \[x, y, width, height\]"),
        ({"bbox": [1, 2, 3, float("nan")]}, "entry 1: bbox"),
        ({"score": 1.5}, "entry 1: score 1.5: expected 0 to 1"),
        ({"score": "high"}, "entry 1: score high"),
    ],
)
def test_a_bad_entry_is_named_and_nothing_is_written(folder, change, message):
    (folder / "found.json").write_text(json.dumps([ENTRY, ENTRY | change]))
    with pytest.raises(InputError, match=message):
        write_coco(folder / "found.json", folder / "info.json", "a", folder / "out")
    assert not (folder / "out").exists()


def test_too_many_none_at_all_and_other_files(folder):
    (folder / "found.json").write_text(json.dumps([ENTRY] * 101))
    with pytest.raises(InputError, match="picture 7 has 101 detections; the server counts 100"):
        validate_coco(folder / "found.json", folder / "info.json")
    for content in ([], {}, [3], [{}]):
        (folder / "found.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"expected a list of detections|expected the keys"):
            validate_coco(folder / "found.json", folder / "info.json")
    with pytest.raises(InputError, match="expected lists `images`"):
        validate_coco(folder / "found.json", folder / "found.json")
    with pytest.raises(InputError, match="algorithm: expected letters"):
        write_coco(folder / "found.json", folder / "info.json", "a/b", folder / "out")


def test_the_command_validates_and_writes(folder):
    options = ("--pictures", "info.json", "--predictions", "found.json")
    done = tsd("submission", "coco", *options, "--validate", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "found.json: valid, 1 detections\n")
    done = tsd("submission", "coco", *options, "--algorithm", "tsd", "--output", ".", cwd=folder)
    assert "detections_test-dev2017_tsd_results.zip: valid, 1 detections" in done.stdout
    assert tsd("submission", "coco", *options, cwd=folder).returncode == 2

"""The Open Images leaderboard's file: ancestors, order and every rule of its validation."""

import pytest

from tests.conftest import tsd
from tests.evaluation.test_openimages import files  # noqa: F401  the fixture
from tsd.errors import InputError
from tsd.evaluation.submission import validate_openimages, write_openimages


@pytest.fixture
def folder(files):  # noqa: F811
    (files / "pictures.txt").write_text("p3\np1\np2\np4\n")
    (files / "found.csv").write_text(
        "ImageID,LabelName,Score,XMin,XMax,YMin,YMax\np1,/b,0.5,0.1,0.4,0.2,0.3\np2,/d,0.9,0,1,0,0.5\np1,/a,0.7,0.1,0.4,0.2,0.3\n"
    )
    return files


def write(folder):
    names = ("found.csv", "pictures.txt", "classes.csv", "hierarchy.json", "submission.csv")
    return write_openimages(*(folder / name for name in names))


def validate(folder):
    return validate_openimages(
        *(folder / n for n in ("submission.csv", "pictures.txt", "classes.csv", "hierarchy.json"))
    )


def test_every_picture_has_a_line_and_every_box_its_ancestors(folder):
    assert write(folder) == 6
    lines = (folder / "submission.csv").read_text().splitlines()
    assert lines[0] == "ImageId,PredictionString"
    # a has the box of b with its own, better score; XMin YMin XMax YMax
    assert lines[2] == "p1,/a 0.7 0.1 0.2 0.4 0.3 /b 0.5 0.1 0.2 0.4 0.3"
    assert lines[3] == "p2," + " ".join(f"/{name} 0.9 0 0 1 0.5" for name in "acdf")
    assert [line for line in lines if line.endswith(",")] == ["p3,", "p4,"]
    assert validate(folder) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ImageId,", "ImageID,"), "line 1: expected ImageId,PredictionString"),
        (("p4,\n", ""), "1 pictures are missing, first p4"),
        (("p4,", "p3,"), "line 5: picture p3 is unknown, or there twice"),
        (("p4,", "p5,"), "line 5: picture p5 is unknown"),
        (("p4,", "p4,x,"), "line 5: expected 2 columns, got 3"),
        (("/b 0.5", "0.5"), "line 3: expected 6 tokens for each box, got 11 in all"),
        (("/b 0.5", "/z 0.5"), "line 3: /z is not among the 6 classes"),
        (("/b 0.5", "/b half"), "line 3: half 0.1 0.2 0.4 0.3: expected a score and four numbers"),
        (("/b 0.5", "/b 0"), "line 3: score 0: expected above 0"),
        (("/b 0.5", "/b nan"), "line 3: score nan: expected above 0"),
        (("/b 0.5 0.1", "/b 0.5 0.5"), "line 3: box 0.5 0.2 0.4 0.3: expected 0 <= XMin <= XMax"),
        (("/b 0.5", "/a 0.5"), "line 3: /a has the box 0.1 0.2 0.4 0.3 twice"),
        (("/c 0.9", "/b 0.9"), "line 4: /d has a box that its ancestor /c lacks"),
    ],
)
def test_what_a_leaderboard_would_refuse_is_named_with_its_line(folder, change, message):
    write(folder)
    path = folder / "submission.csv"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(InputError, match=message):
        validate(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("found.csv", ("p2,", "p9,"), "picture p9 is not in .*pictures.txt"),
        ("found.csv", ("/b,0.5", "/b,1.5"), "found.csv: line 2: Score 1.5: expected above 0 and at most 1"),
        ("pictures.txt", ("p4", "p1"), "pictures.txt: p1 is there twice"),
        ("pictures.txt", ("p3\np1\np2\np4\n", ""), "pictures.txt: no ImageID in it"),
    ],
)
def test_nothing_is_written_from_bad_input(folder, name, change, message):
    path = folder / name
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(InputError, match=message):
        write(folder)
    assert not (folder / "submission.csv").exists()


def test_the_command_writes_and_validates(folder):
    common = ("--pictures", "pictures.txt", "--classes", "classes.csv", "--hierarchy", "hierarchy.json")
    done = tsd("submission", "openimages", *common, "--predictions", "found.csv", "--output", "out.csv", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = tsd("submission", "openimages", *common, "--validate", "out.csv", cwd=folder)
    assert done.stdout == "out.csv: valid, 6 boxes\n"
    assert tsd("submission", "openimages", *common, cwd=folder).returncode == 2

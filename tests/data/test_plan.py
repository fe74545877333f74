"""The list of pictures that a training will draw."""

import json

import numpy as np
import pytest

from tests.conftest import tsd
from tsd.data.plan import Options, plan, write_plans
from tsd.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Two classes: one of two pictures, one of forty; rows out of order."""
    (tmp_path / "classes.csv").write_text("/rare,Rare\n/often,Often\n/never,Never\n")
    rows = [f"often{i:02},/often,0,1,0,1,0" for i in range(40)] + ["rare0,/rare,0,1,0,1,0", "rare1,/rare,0,1,0,1,0"]
    rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    (tmp_path / "boxes.csv").write_text("\n".join(["ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf", *rows, ""]))
    return tmp_path


def run(folder, options=Options(), **others):  # noqa: B008
    made = plan(folder / "boxes.csv", folder / "classes.csv", None, options, **({"seed": 0, "epochs": 1} | others))
    write_plans([made], folder / "plan.txt")
    return made.facts


def test_an_epoch_draws_each_class_as_often(folder):
    facts = run(folder)
    assert facts["draws"] == 42
    assert [entry["draws"] for entry in facts["classes"]] == [21, 21, 0]
    assert facts["touched"] == 2 + 21
    assert facts["never"] == 19
    assert facts["most_repeated"] == 11
    ids = (folder / "plan.txt").read_text().split()
    assert ids == sorted(ids)
    assert len(ids) == 23
    assert json.loads((folder / "plan.json").read_text()) == [facts]


def test_two_epochs_draw_all_and_the_order_of_rows_does_not_matter(folder):
    assert run(folder, epochs=2)["never"] == 0
    run(folder)
    first = (folder / "plan.txt").read_text()
    header, *rows = (folder / "boxes.csv").read_text().splitlines()
    (folder / "boxes.csv").write_text("\n".join([header, *sorted(rows), ""]))
    run(folder)
    assert (folder / "plan.txt").read_text() == first
    run(folder, seed=1)
    assert (folder / "plan.txt").read_text() != first


def test_the_command_says_what_it_found(folder):
    arguments = ("--boxes", "boxes.csv", "--classes", "classes.csv", "--output", "plan.txt", "--epochs", "1")
    done = tsd("sample", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (
        "plan.txt: class_aware: 23 of 42 pictures in 42 draws; 19 are never drawn, the most frequent 11 times"
        in done.stdout
    )


def test_a_file_without_boxes_is_named(folder):
    (folder / "boxes.csv").write_text("ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n")
    with pytest.raises(InputError, match=r"boxes.csv: no box in it"):
        run(folder)
    assert not (folder / "plan.txt").exists()


def test_the_list_and_its_statistics_need_two_names(folder):
    with pytest.raises(InputError, match=r"plan.json: the list needs another suffix"):
        write_plans([], folder / "plan.json")


def test_every_picture_is_drawn_in_each_epoch_of_uniform_sampling(folder):
    facts = run(folder, Options(sampling="uniform"), epochs=3)
    assert (facts["draws"], facts["never"], facts["most_repeated"]) == (126, 0, 3)
    assert [entry["draws"] for entry in facts["classes"]] == [6, 120, 0]


def test_drawing_with_replacement_has_the_same_shares(folder):
    facts = run(folder, Options(sampling="class_aware_replacement"), epochs=50)
    assert [entry["draws"] for entry in facts["classes"]] == [1050, 1050, 0]
    assert run(folder, Options(sampling="class_aware_replacement"))["touched"] < 23  # some come twice before others


def test_ancestors_need_the_hierarchy(folder):
    with pytest.raises(InputError, match="the hierarchy's file is needed"):
        run(folder, Options(hierarchy="ancestors"))

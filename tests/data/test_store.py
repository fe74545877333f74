"""The columnar store holds what the CSV files say, and is opened without reading it."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tests.conftest import ROOT
from tsd.data.class_aware import ClassIndex
from tsd.data.pictures import SCHEMA
from tsd.data.plan import Options, plan
from tsd.data.store import Store, build_store
from tsd.errors import InputError

BOXES = """ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf
b,/m/dog,0.1,0.5,0.2,0.6,0
a,/m/cat,0,1,0,1,1
b,/m/cat,0.25,0.75,0,0.5,-1
b,/m/dog,0.1,0.5,0.2,0.6,0
c,/m/car,0.5,0.5,0,1,0
c,/m/dog,0.3,0.4,0.3,0.4,1
"""
LABELS = """ImageID,Source,LabelName,Confidence
a,verification,/m/cat,1
z,crowdsource-verification,/m/dog,0
a,verification,/m/car,0
"""
CLASSES = "/m/animal,Animal\n/m/cat,Cat\n/m/dog,Dog\n/m/car,Car\n"
TREE = """{"LabelName": "/m/0", "Subcategory": [
  {"LabelName": "/m/animal", "Subcategory": [{"LabelName": "/m/cat"}, {"LabelName": "/m/dog"}]},
  {"LabelName": "/m/car"}]}"""


@pytest.fixture
def files(tmp_path):
    for name, text in (("boxes.csv", BOXES), ("labels.csv", LABELS), ("classes.csv", CLASSES), ("tree.json", TREE)):
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in ("boxes.csv", "labels.csv", "classes.csv", "tree.json")]


def test_rows_are_kept_by_picture_and_odd_ones_counted(files, tmp_path):
    record = [
        {"split": split, "id": name, "bytes": 1, "sha256": "", "width": width, "height": 20, "mode": "RGB", "frames": 1}
        | {"orientation": 1}
        for split, name, width in (("train", "b", 30), ("train", "z", 40), ("validation", "a", 50), ("train", "x", 9))
    ]
    parquet.write_table(pa.Table.from_pylist(record, schema=SCHEMA), tmp_path / "pictures.parquet")
    counts = build_store(*files, tmp_path / "store", pictures=tmp_path / "pictures.parquet", split="train")
    assert counts == {
        "pictures": 4,
        "pictures_with_boxes": 3,
        "boxes": 4,
        "image_level_labels": 3,
        "pictures_of_known_size": 2,
        "boxes_without_extent": 1,
        "boxes_repeated": 1,
    }
    store = Store.open(tmp_path / "store")
    assert store.ids.to_pylist() == ["a", "b", "c", "z"]
    assert store.size.tolist() == [[0, 0], [30, 20], [0, 0], [40, 20]]
    rows = store.boxes_of(1)
    np.testing.assert_allclose(store.box[rows], [[0.1, 0.2, 0.5, 0.6], [0.25, 0, 0.75, 0.5]], atol=1e-7)
    assert store.label[rows].tolist() == [2, 1]
    assert store.group.tolist() == [1, 0, 0, 1]
    assert store.boxed.tolist() == [0, 1, 2]
    assert store.label_starts.tolist() == [0, 2, 2, 2, 3]
    assert store.seen_label.tolist() == [1, 3, 2]
    assert store.seen_present.tolist() == [1, 0, 0]
    assert store.hierarchy.ancestors == ((), (0,), (0,), ())


def test_the_index_follows_the_options(files, tmp_path):
    build_store(*files, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.class_index(store.boxed).counts.tolist() == [0, 2, 2, 0]
    assert store.class_index(store.boxed, ancestors=True).counts.tolist() == [3, 2, 2, 0]
    assert store.class_index(np.array([1]), groups=False).counts.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("options", [Options(), Options(hierarchy="ancestors"), Options(group_of="drop")])
def test_a_plan_draws_what_training_on_the_store_draws(files, tmp_path, options):
    from tsd.engine.adapters.openimages import StoredOpenImages

    build_store(*files, tmp_path / "store")
    dataset = StoredOpenImages(
        str(tmp_path / "store"), {"img": ""}, [], {}, group_of=options.group_of, hierarchy=options.hierarchy
    )
    made = plan(files[0], files[2], files[3], options, seed=3, epochs=1)
    names = [dataset.store.ids[int(picture)].as_py() for picture in dataset.pictures]
    assert made.facts["pictures"] == len(dataset)
    assert [entry["pictures"] for entry in made.facts["classes"]] == dataset.class_index().counts.tolist()
    from tsd.data.class_aware import ClassAwareSequence

    drawn = ClassAwareSequence(dataset.class_index(), 3).draw(0, len(dataset))[1]
    assert list(made.pictures) == sorted({names[picture] for picture in drawn})


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 4), st.booleans()), max_size=40))
@settings(max_examples=40, deadline=None)
def test_any_rows_come_back_once_each(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("any")
    mids = ("/m/animal", "/m/cat", "/m/dog", "/m/car")
    lines = [f"p{p},{mids[c]},{x / 10},{(x + 1) / 10},0,0.5,{int(group)}" for p, c, x, group in rows]
    header = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf"
    (folder / "boxes.csv").write_text("\n".join([header, *lines, ""]))
    (folder / "labels.csv").write_text("ImageID,LabelName,Confidence\n")
    (folder / "classes.csv").write_text(CLASSES)
    (folder / "tree.json").write_text(TREE)
    names = ("boxes.csv", "labels.csv", "classes.csv", "tree.json")
    counts = build_store(*(folder / name for name in names), folder / "store")
    store = Store.open(folder / "store")
    found = {
        (
            store.ids[picture].as_py(),
            int(store.label[row]),
            round(float(store.box[row, 0]) * 10),
            bool(store.group[row]),
        )
        for picture in range(len(store))
        for row in range(*store.boxes_of(picture).indices(len(store.box)))
    }
    assert found == {(f"p{p}", c, x, group) for p, c, x, group in rows}
    assert counts["boxes"] == len(found)
    assert counts["boxes_repeated"] == len(rows) - len(found)
    labels = np.array([c for _, c, _, _ in sorted(found)], dtype=int)
    owners = np.array([sorted({f"p{p}" for p, *_ in rows}).index(p) for p, *_ in sorted(found)], dtype=int)
    expected = ClassIndex.from_pairs(labels, owners, 4)
    assert store.class_index(store.boxed).counts.tolist() == expected.counts.tolist()


def test_processes_share_the_mapped_files(files, tmp_path):
    """Columns are views of the files, not copies of them."""
    build_store(*files, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    for array in (store.box, store.label, store.group, store.seen_label):
        assert not array.flags.owndata
        assert not array.flags.writeable


@pytest.mark.parametrize("name", ["boxes.arrow", "pictures.arrow", "store.json"])
def test_a_broken_store_is_named(files, tmp_path, name):
    build_store(*files, tmp_path / "store")
    (tmp_path / "store" / name).write_bytes(b"{")
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        Store.open(tmp_path / "store")


def test_a_failure_leaves_the_old_store(files, tmp_path):
    build_store(*files, tmp_path / "store")
    files[0].write_text(BOXES.replace("/m/car", "/m/bus"))
    with pytest.raises(InputError, match=r"boxes.csv: line 6: /m/bus is not among the 4 classes"):
        build_store(*files, tmp_path / "store")
    assert Store.open(tmp_path / "store").label.tolist() == [1, 2, 1, 2]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_another_folder_is_not_overwritten(files, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(InputError, match="holds something else than a store"):
        build_store(*files, tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"


def test_opening_needs_no_heavy_library(files, tmp_path):
    build_store(*files, tmp_path / "store")
    code = (
        "import sys; from pathlib import Path; from tsd.data.store import Store; "
        f"Store.open(Path({str(tmp_path / 'store')!r})); "
        "print([name for name in ('torch', 'pandas', 'requests') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"

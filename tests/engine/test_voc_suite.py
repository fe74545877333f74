"""Suites whose data is made of VOC's archives: what their params say, and what they must not."""

import pytest

from tests.engine.test_params import edit
from tests.voc_kit import TEST, TRAINVAL, drawn, expect, write_archive
from tsd.cli import main
from tsd.data.serve import served
from tsd.engine.identity import ABSENT, data_digest
from tsd.engine.params import get_runs, load_suite
from tsd.errors import ParamsError

SUITE = "params/suites/voc.yaml"
ARMS = ["baseline", "d_head", "tsd", "tsd_joint", "tsd_pc_cls", "tsd_pc_loc", "tsd_pc"]


def test_the_suite_is_planned_before_its_data_is_there(project):
    suite = load_suite("voc")
    assert (list(suite.experiments), suite.seeds, suite.num_classes) == (ARMS, (0, 1, 2), 20)
    assert data_digest(suite) == ABSENT
    assert suite.evaluate == ("voc",)


@pytest.mark.parametrize("name", ["voc", "evidence-voc"])
def test_how_the_data_is_made_and_what_is_evaluated_enter_no_digest(project, name):
    def digests():
        suite = load_suite(name)
        runs = get_runs(suite, "d" * 12)
        return [(run.digest, run.test_digest) for run in runs], suite.models_digest

    before = digests()

    def without(content):
        for key in ("import", "source"):
            del content["data"][key]
        content.pop("evaluate", None)

    edit(project, without, f"params/suites/{name}.yaml")
    assert digests() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("source"), r"data.source: missing key: a source of params/sources.yaml"),
        (lambda data: data.pop("classes"), r"data.classes: missing key: the number of classes"),
        (lambda data: data.update(source="voc"), r"no source 'voc'; there are: coco, voc2007"),
        (lambda data: data["import"].pop("val"), r"data.import.val: expected val, .*, or val_fraction; got neither"),
        (lambda data: data["import"].update(val_fraction=0.2), r"or val_fraction; got both"),
        (lambda data: data["import"].update(val_fraction=1), r"data.import.val_fraction: .*1"),
        (
            lambda data: data["import"].update(quality=99),
            r"import.quality: expected an integer from 1 to 95, got 99",
        ),
        (lambda data: data["import"].update(max_side=0), r"data.import.max_side: expected a positive integer, got 0"),
        (
            lambda data: data["import"].update(maxside=9),
            r"import.maxside: unknown key \(did you mean 'max_side'\?\)",
        ),
        (lambda data: data["import"].pop("archives"), r"data.import.archives: missing key"),
        (
            lambda data: data["import"].update(archives=[TEST, "VOC2012test.tar"]),
            rf"data.import.archives.1: 'VOC2012test.tar' is not of source voc2007; it has: {TRAINVAL}, {TEST}",
        ),
        (lambda data: data["import"].update(voc="../VOC2007"), r"data.import.voc: expected a folder in the archives"),
        (
            lambda data: data["val"].update(images="data/other/val"),
            r"data.val: expected what an import makes .*: FOLDER/annotations/instances_val.json and FOLDER/val; "
            r"got data/voc2007/annotations/instances_val.json and data/other/val",
        ),
    ],
)
def test_what_does_not_go_together_is_named(project, change, message):
    edit(project, lambda content: change(content["data"]), SUITE)
    with pytest.raises(ParamsError, match=message) as caught:
        load_suite("voc")
    assert "params/s" in str(caught.value)


def test_only_data_in_cocos_format_is_imported_or_evaluated_so(project):
    edit(project, lambda content: content["data"].update({"import": {}}), "params/suites/tiny.yaml")
    with pytest.raises(ParamsError, match=r"tiny.yaml: data.import: unknown key"):
        load_suite("tiny")
    edit(project, lambda content: content.update(evaluate=["voc"]), "params/suites/openimages-demo.yaml")
    with pytest.raises(ParamsError, match=r"openimages-demo.yaml: evaluate: only annotations in COCO's format"):
        load_suite("openimages-demo")


def test_one_command_fetches_and_imports(project, tmp_path, monkeypatch, capsys):
    write_archive(tmp_path / "mirror/voc2007" / TRAINVAL, drawn([5, 7, 9]), "trainval")
    write_archive(tmp_path / "mirror/voc2007" / TEST, drawn([6, 8]), "test")
    expect(project, tmp_path / "mirror")
    with served({"mirror": tmp_path / "mirror"}) as url:
        monkeypatch.setenv("TSD_MIRROR", f"{url}/mirror")
        assert main(["data", "fetch", "--suite", "voc", "--parts", "val2017"]) == 2
        assert "only the archives of COCO" in capsys.readouterr().err
        assert main(["data", "fetch", "--suite", "voc", "--workers", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("data/voc2007/annotations/instances_train.json: 3 pictures, ")
    assert second.startswith("data/voc2007/annotations/instances_val.json: 2 pictures, ")
    assert main(["data", "fetch", "--suite", "voc"]) == 0
    assert capsys.readouterr().out.count("is there, used as it is") == 2
    assert main(["data", "verify", "--suite", "voc", "--pictures"]) == 0
    assert "3 training and 2 validation pictures" in capsys.readouterr().out
    assert data_digest(load_suite("voc")) != ABSENT

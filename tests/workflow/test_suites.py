"""Every suite of the project in a fresh clone, without any data: what a dry run says."""

import os
import sys

import pytest
import yaml

from tests.conftest import ROOT

NAMES = sorted(path.stem for path in (ROOT / "params/suites").glob("*.yaml"))
FETCHED = {
    "coco": "to be fetched: 3 files, 20.4 GB, from http://images.cocodataset.org/ to data/archives/coco",
    "released": "to be fetched: 3 files, 20.4 GB, from http://images.cocodataset.org/ to data/archives/coco",
    "openimages": "to be fetched: 6 files, 1.3 GB, from https://storage.googleapis.com/openimages/challenge_2019/ to "
    "data/openimages/annotations",
    "voc": "to be fetched: 2 files, 0.9 GB, from http://host.robots.ox.ac.uk/pascal/VOC/voc2007/ to "
    "data/archives/voc2007",
    "evidence-voc": "to be fetched: 1 file, 0.5 GB, from http://host.robots.ox.ac.uk/pascal/VOC/voc2007/ to "
    "data/archives/voc2007",
}
OWN = {"evidence-photos"}


def planned(project, name, key="suite"):
    """Exit status and what was said by a dry run, in a forked process: Snakemake is imported once for all suites."""
    from snakemake.cli import main

    words = ["snakemake", "-n", "--quiet", "all", "--cores", "1", "--config", f"{key}={name}"]
    said = project.parent / "said"
    process = os.fork()
    if process == 0:
        status = 1
        try:
            file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.argv, sys.stdout, sys.stderr = words, os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
            main(words[1:])
            status = 0
        except SystemExit as end:
            status = end.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), said.read_text()


def test_every_suite_is_of_a_known_kind():
    for name in NAMES:
        data = yaml.safe_load((ROOT / f"params/suites/{name}.yaml").read_text())["data"]
        fetched = "source" in data or (data["format"] == "openimages" and "generate" not in data)
        assert fetched == (name in FETCHED), name
        assert (not fetched and "generate" not in data) == (name in OWN), name


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_of_a_fresh_clone_says_what_is_fetched_or_what_to_put_where(project, name):
    status, said = planned(project, name)
    lines = said.splitlines()
    if name in OWN:
        assert status == 1
        assert (
            f"data/photos/annotations/instances_train2017.json: no such file: the data of suite {name} is your own; "
            "put or link it there, in COCO's format: " in said
        )
        assert "MissingInput" not in said
        assert "Traceback" not in said
    else:
        assert status == 0, said
        if name in FETCHED:
            assert lines[0] == FETCHED[name]
            assert any(line.startswith("  ") and "GB are free there" in line for line in lines[1:3])
        else:
            assert lines[0].startswith(f"suite {name}: ")
    assert not (project / "data").exists()


def test_a_slip_in_the_name_of_the_key_plans_no_other_suite(project):
    status, said = planned(project, "tiny", key="siute")
    assert status == 1
    assert "--config siute: unknown key (did you mean 'suite'?); known: suite" in said
    assert "suite demo" not in said
    assert "Traceback" not in said

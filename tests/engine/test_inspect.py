"""Counting parameters and multiply-adds: every model of the paper's suite can be built where it is counted."""

from dataclasses import astuple, replace
from pathlib import Path

import pytest
import yaml

from tests.conftest import tsd
from tsd.engine.inspect import inspect_suite
from tsd.engine.networks import network_of, networks_of
from tsd.engine.params import load_suite
from tsd.errors import InputError


def test_in_a_process_of_its_own_a_suite_of_recipe_paper_is_counted(project, tmp_path):
    """Its samplers are plugins, which this test's process has loaded already."""
    content = yaml.safe_load((project / "params/suites/coco.yaml").read_text())
    content.pop("experiment_resources")
    small = content | {"experiments": ["baseline", "tsd"]}
    (project / "params/suites/pair.yaml").write_text(yaml.safe_dump(small))
    done = tsd("inspect", "--suite", "pair", "--output", "models.json", fresh=True)
    assert done.returncode == 0, done.stderr


def test_table_1s_parameters(root, monkeypatch):
    monkeypatch.chdir(root)
    suite = load_suite("coco")
    printed = {"baseline": 41.8, "d_s8": 81.1, "d_s16": 74.0, "d_s32": 59.0, "d_head": 55.7, "tsd": 58.9}
    facts = inspect_suite(replace(suite, experiments=tuple(printed)), (800, 1344), 1000)
    recorded = networks_of(suite)
    for experiment, millions in printed.items():
        assert facts[experiment]["params_m"] == pytest.approx(millions, abs=0.15), experiment
        assert astuple(network_of(facts[experiment])) == pytest.approx(astuple(recorded[experiment]), abs=0.0006)


def test_the_networks_of_every_suite_are_recorded(root, monkeypatch):
    """For the rest of a suite: `tsd inspect --suite NAME --record`."""
    monkeypatch.chdir(root)
    for path in sorted(Path("params/suites").glob("*.yaml")):
        suite = load_suite(path.stem)
        assert sorted(networks_of(suite)) == sorted(suite.experiments), path


def test_a_record_is_replaced_by_suite(project):
    first = Path("params/networks.csv").read_text()
    assert tsd("inspect", "--suite", "tiny", "--record", fresh=True).returncode == 0
    assert Path("params/networks.csv").read_text() == first
    done = tsd("inspect", "--suite", "tiny", "--record", "--proposals", "5")
    assert done.returncode == 2
    assert "--record: params/networks.csv holds counts for --size 1344 800 --proposals 1000 alone" in done.stderr
    Path("params/networks.csv").write_text("network,suite\n")
    with pytest.raises(InputError, match=r"params/networks\.csv, line 1: expected network,suite,experiment"):
        networks_of(load_suite("tiny"))

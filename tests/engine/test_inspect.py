"""Counting parameters and multiply-adds: every model of the paper's suite can be built where it is counted."""

from dataclasses import replace

import pytest
import yaml

from tests.conftest import tsd
from tsd.engine.inspect import inspect_suite
from tsd.engine.params import load_suite


def test_in_a_process_of_its_own_a_suite_of_recipe_paper_is_counted(project, tmp_path):
    """Its samplers are plugins, which this test's process has loaded already."""
    content = yaml.safe_load((project / "params/suites/coco.yaml").read_text())
    small = {key: value for key, value in content.items() if key != "experiment_resources"} | {"experiments": ["baseline", "tsd"]}
    (project / "params/suites/pair.yaml").write_text(yaml.safe_dump(small))
    done = tsd("inspect", "--suite", "pair", "--output", "models.json", fresh=True)
    assert done.returncode == 0, done.stderr


def test_table_1s_parameters(root, monkeypatch):
    monkeypatch.chdir(root)
    suite = load_suite("coco")
    printed = {"baseline": 41.8, "d_s8": 81.1, "d_s16": 74.0, "d_s32": 59.0, "d_head": 55.7, "tsd": 58.9}
    facts = inspect_suite(replace(suite, experiments=tuple(printed)), (800, 1344), 1000)
    for experiment, millions in printed.items():
        assert facts[experiment]["params_m"] == pytest.approx(millions, abs=0.15), experiment

"""What the rules ask for, read from their files: a login node must stay usable."""

import dataclasses
import re

from tests.conftest import ROOT
from tsd.engine.params import load_suite

LIGHT = {
    # from and to other machines; compute nodes often have no internet
    "fetch_annotations",
    "fetch_archives",
    "fetch_pictures",
    "import_data",
    # seconds of reading, writing and copying
    "init_tracking",
    "sync_tracking",
    "plan_sampling",
    "build_stores",
    "publish_metrics",
    "publish_draws",
    "make_tables",
    "judge_claims",
    "list_runs",
    "make_report",
}
"""Rules that may run where Snakemake runs; all others are jobs."""


def rules():
    """Name → text of each rule with a command."""
    found = {}
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for block in re.split(r"(?m)^(?=\s*(?:rule|checkpoint) \w+:)", path.read_text()):
            if (name := re.match(r"\s*(?:rule|checkpoint) (\w+):", block)) and "shell:" in block:
                found[name[1]] = block
    return found


def test_what_takes_long_is_a_job():
    local = {name for name, text in rules().items() if "localrule: True" in text}
    assert {"train_detector", "predict_detections", "evaluate_detections", "draw_figures"} <= rules().keys() - local
    assert local <= LIGHT


def test_a_job_asks_for_memory_of_its_own():
    for name, text in rules().items():
        assert "localrule: True" in text or "mem_mb=" in text, name


def test_a_prediction_asks_for_one_gpus_share_of_a_node():
    own = load_suite("coco", ROOT)
    for gpu, nodes in ((16, 2), (8, 1)):
        suite = dataclasses.replace(own, resources=own.resources | {"gpu": gpu, "nodes": nodes, "threads": 32})
        assert suite.share_of_gpu("threads") == 4
    suite = dataclasses.replace(own, resources=own.resources | {"gpu": 0, "nodes": 1, "threads": 3, "mem_mb": 4000})
    assert (suite.share_of_gpu("threads"), suite.share_of_gpu("mem_mb")) == (3, 4000)

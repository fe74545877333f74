"""An evaluation over processes that can't have the same number of pictures is that of one process, exactly."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, project_with_scenes, tsd
from tests.workflow.test_pipeline import edit

WORKER = ROOT / "tests/engine/uneven_worker.py"
PICTURES = 7


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """What each process says, by number of processes."""
    with pytest.MonkeyPatch.context() as patch:
        folder = project_with_scenes(tmp_path_factory.mktemp("uneven") / "project", patch)
    edit(folder / "params/suites/tiny.yaml", lambda suite: suite["data"]["generate"].update(val=PICTURES))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = tsd("data", "generate", "--suite", "tiny", "--force", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = {}
    for world in (1, 2, 3):
        pipe = {"cwd": folder, "env": environment, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, WORKER, str(world), folder]
        workers = [
            subprocess.Popen([*command[:2], str(rank), *command[2:]], stdout=subprocess.DEVNULL, **pipe)
            for rank in range(world)
        ]
        for worker in workers:
            error = worker.communicate(timeout=300)[1]
            assert worker.returncode == 0, error[-2000:]
        found[world] = [json.loads((folder / f"{rank}of{world}.json").read_text()) for rank in range(world)]
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_uneven_processes_have_the_figures_of_one(figures, world):
    (one,) = figures[1]
    assert one["pictures"] == PICTURES
    assert 0.1 < one["figures"]["AP50"] < 0.95  # a picture more or less would be seen
    assert PICTURES % world
    for process in figures[world]:
        assert process["figures"] == one["figures"]

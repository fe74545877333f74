"""What is said of the end of a training in several processes, without training."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from tests.conftest import ROOT
from tsd.engine import launcher
from tsd.engine.distributed import tell_launcher


def launch(program, **options):
    command = [sys.executable, "-m", "tsd.engine.launcher", "--nproc-per-node=2", "--standalone"]
    command += ["--signals-to-handle=SIGTERM,SIGUSR1", "--no-python", sys.executable, "-c", program]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options)


@pytest.mark.parametrize(
    ("program", "status", "last"),
    [
        (
            "import os, sys, time; from tsd.cli import _failed;"
            "sys.exit(_failed('a.yaml: b: expected c', 2)) if os.environ['RANK'] == '1' else time.sleep(60)",
            2,
            "a.yaml: b: expected c",
        ),
        ("import sys; sys.exit(3)", 3, "of the training ended with status 3; what it said stands above"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 1, "of the training was ended by SIGKILL"),
    ],
)
def test_the_last_line_is_the_sentence_of_the_process_that_failed(program, status, last):
    process = launch(program)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == status
    assert error.strip().splitlines()[-1].endswith(last)
    assert "ChildFailedError" not in error


def test_bad_input_is_the_cause_of_what_failed_before(tmp_path):
    failures = []
    for rank, (status, said) in enumerate(
        [(1, "train failed: connection closed by peer"), (2, "a.yaml: b: expected c")]
    ):
        file = tmp_path / f"{rank}.json"
        tell_launcher(said, {"TORCHELASTIC_ERROR_FILE": str(file)})
        failures.append(ProcessFailure(rank, 1000 + rank, status, str(file)))
    assert launcher.sentence(launcher.first_failure(failures)) == "a.yaml: b: expected c"
    assert launcher.sentence(failures[0]) == "train failed: connection closed by peer"


def test_a_signal_is_passed_on_and_told(tmp_path):
    file = tmp_path / "told"
    program = (
        "import os, pathlib, signal, sys, time;"
        f"place = pathlib.Path({str(file)!r} + os.environ['RANK']);"
        "signal.signal(signal.SIGTERM, lambda *_: (place.write_text('told'), sys.exit(1)));"
        "place.write_text('ready'); time.sleep(60)"
    )
    process = launch(program)
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"told{rank}").exists() for rank in range(2)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert [(tmp_path / f"told{rank}").read_text() for rank in range(2)] == ["told", "told"]
    assert error.strip().splitlines()[-1] == "stopped by SIGTERM"


def test_without_a_launcher_nothing_is_left_for_it(tmp_path):
    tell_launcher("a sentence", {})
    tell_launcher("a sentence", {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "no" / "place")})
    tell_launcher("a sentence", {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")})
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "a sentence"

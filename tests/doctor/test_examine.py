"""The command as a whole: order, exit status, output, and checks that fail themselves."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.conftest import project_with_scenes, tsd
from tests.doctor.conftest import context
from tsd.cli import main
from tsd.doctor import examine, places, report
from tsd.doctor.checks import Check, sentence
from tsd.doctor.meeting import Meeting
from tsd.doctor.processes import Processes
from tsd.errors import InputError, WorkError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The command on a project with its data, once: a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = project_with_scenes(tmp_path_factory.mktemp("doctor") / "project", patch)
        return tsd("doctor", "--suite", "tiny", cwd=folder, env={"PATH": str(folder)})  # no Slurm, no server's tools


def test_a_machine_that_is_well(whole):
    assert whole.returncode == 0, whole.stdout
    lines = [line for line in whole.stdout.splitlines() if not line.startswith(" ")]
    names = [line[9:24].strip() for line in lines[:-1]]
    expected = "Python packages mmcv GPU operators Triton processes locks space weights MLflow Slurm data"
    assert names == expected.split()
    states = {line[9:24].strip(): line.split()[0] for line in lines[:-1]}
    assert states.pop("packages") == "warning"  # the copy has no lock
    states.pop("MLflow")
    assert set(states.values()) == {"ok"}
    assert "\x1b" not in whole.stdout
    assert lines[-1].split(";")[0].endswith("warning")
    assert whole.stderr == ""


def test_an_error_is_status_1_and_every_check_is_run(project, capsys, monkeypatch):
    monkeypatch.delenv("TSD_WEIGHTS", raising=False)
    monkeypatch.setenv("PATH", str(project))
    monkeypatch.setattr(places.shutil, "disk_usage", lambda place: SimpleNamespace(free=1e12))
    assert main(["doctor", "--suite", "coco", "--quick"]) == 1
    text = capsys.readouterr().out
    assert "error    weights" in text
    assert "warning  data" in text
    assert text.splitlines()[-1].startswith("1 error, ")


def test_json_is_alone_on_standard_output(project, capfd, monkeypatch):
    def noisy(context):
        print("a library's remark")
        subprocess.run(["echo", "a program's"])
        return Check("noise", "ok", "made")

    monkeypatch.setattr(examine, "entries", lambda meeting: [examine.Entry("noise", noisy, "job", "")])
    assert main(["doctor", "--suite", "tiny", "--json"]) == 0
    out, err = capfd.readouterr()
    (line,) = json.loads(out)
    assert {key: line[key] for key in ("name", "state", "finding", "remedy", "rank")} == {
        "name": "noise",
        "state": "ok",
        "finding": "made",
        "remedy": "",
        "rank": 0,
    }
    assert "a library's remark" in err
    assert "a program's" in err


def test_a_suite_that_is_not_there_is_bad_usage(project, capsys):
    assert main(["doctor", "--suite", "nope"]) == 2
    assert "no such suite" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--slow"])
    assert stop.value.code == 2


def test_a_check_that_raises_is_an_error_and_the_next_ones_run(project, monkeypatch, capsys):
    def broken(place):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(places, "nearest", broken)
    listed = [entry for entry in examine.entries(Meeting()) if entry.name in ("locks", "space", "weights")]
    first, second, third = examine.run(context(), listed)
    assert first == Check(
        "locks", "error", "ZeroDivisionError: division by zero", "See what is there: `ls -ld results`."
    )
    assert second.state == "error"
    assert third.state == "ok"


def test_every_check_has_a_remedy_for_when_it_raises():
    for entry in examine.entries(Meeting()):
        assert "`" in entry.remedy, entry.name


def test_what_is_the_same_for_all_processes_is_looked_at_once(project):
    def names(rank, local_rank):
        listed = [
            examine.Entry(entry.name, lambda about, name=entry.name: Check(name, "ok", ""), entry.where, "")
            for entry in examine.entries(Meeting())
        ]
        here = Processes(rank, 16, local_rank, "srun", "n1")
        return [check.name for check in examine.run(context(here=here), listed)]

    assert len(names(0, 0)) == 13
    assert names(1, 1) == ["GPU", "operators", "processes"]
    assert {"locks", "weights", "data", "packages"} < set(names(8, 0))
    assert not {"space", "Slurm"} & set(names(8, 0))


def test_a_line_has_colour_on_a_terminal_only(monkeypatch):
    class Terminal:
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert report.is_coloured(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not report.is_coloured(Terminal())
    check = Check("GPU", "error", "none here", "Run it on a node: `srun …`.")
    assert report.line(check) == "error    GPU            none here\n         Run it on a node: `srun …`."
    assert report.line(check, coloured=True).startswith("\x1b[31merror    \x1b[0mGPU")


def test_errors_are_one_sentence():
    assert sentence(InputError("a.json: broken")) == "a.json: broken"
    assert sentence(WorkError("one\ntwo\nthree")) == "one (and 2 more lines)"
    assert sentence(KeyError("x")) == "KeyError: 'x'"
    assert sentence(RuntimeError()) == "RuntimeError"


def test_the_help_is_quick():
    code = "import sys\nfrom tsd.cli import main\ntry:\n    main({})\nfinally:\n    print('torch' in sys.modules)"
    for arguments in (["--help"], ["doctor", "--help"]):
        done = subprocess.run([sys.executable, "-c", code.format(arguments)], capture_output=True, text=True)
        assert done.stdout.endswith("False\n")
    assert "--quick" in done.stdout
    assert "Exit status" in done.stdout

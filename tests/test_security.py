"""Nothing that is fetched, resumed from or configured runs code; other folders and machines are out of reach.

Members of archives that lead out of their folder: tests/data/test_fetch.py and tests/data/test_manifest.py.
Addresses that lead out of a served folder: tests/data/test_transfer.py.
Checkpoints with a payload that a training would resume from: tests/engine/test_training.py.
"""

import ast
import json
import pickle
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import ROOT, project_with_scenes, tsd
from tests.workflow.test_pipeline import edit, snakemake
from tsd.engine.params import load_suite
from tsd.errors import ParamsError

SOURCES = sorted((ROOT / "tsd").rglob("*.py"))
HOSTILE = [
    "a; touch pwned; b",
    "$(touch pwned)",
    "`touch pwned`",
    "a' || touch pwned #",
    'a" && touch pwned; "',
    "a\ntouch pwned",
]


class Payload:
    """Pickled, it creates a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def calls(name):
    """(file, call) of every call of a function of that dotted name in the sources."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                yield path, node


def option(call, name):
    return next((ast.literal_eval(word.value) for word in call.keywords if word.arg == name), None)


@pytest.mark.parametrize("command", ["predict", "convert"])
def test_a_planted_checkpoint_runs_nothing(tmp_path, monkeypatch, command):
    project_with_scenes(tmp_path / "project", monkeypatch)
    target, planted = tmp_path / "pwned", tmp_path / "checkpoint.pth"
    for content in ({"state_dict": {"a": Payload(target)}}, Payload(target)):
        torch.save(content, planted)
        if command == "predict":
            done = tsd(
                "predict", "--suite", "tiny", "--experiment", "baseline", "--checkpoint", planted, "--output", "p.json"
            )
        else:
            done = tsd("convert", planted, tmp_path / "out.pth", "--suite", "released", "--experiment", "released_r50")
        assert done.returncode == 2, done.stderr
        assert "checkpoint.pth" in done.stderr
        assert not target.exists()
        assert not Path("p.json").exists()
    with planted.open("wb") as file:
        pickle.dump(Payload(target), file)
    pickle.load(planted.open("rb"))
    assert target.exists()  # the payload works: it was refused, not broken


def test_one_loader_of_checkpoints_and_no_pickle():
    loads = list(calls("torch.load"))
    assert loads
    assert all(option(call, "weights_only") is True for _, call in loads)
    assert all(option(call, "allow_pickle") is False for _, call in calls("np.load"))
    imported = re.compile(r"^\s*(import|from) (pickle|dill|cloudpickle|joblib|marshal|shelve)\b", re.MULTILINE)
    assert not [path for path in SOURCES if imported.search(path.read_text())]


def test_no_command_goes_through_a_shell():
    for name in ("os.system", "os.popen", "subprocess.getoutput", "eval", "exec", "yaml.unsafe_load", "yaml.full_load"):
        assert list(calls(name)) == [], name
    for name in ("subprocess.run", "subprocess.Popen", "subprocess.check_output", "subprocess.check_call"):
        assert all(option(call, "shell") is None for _, call in calls(name))


@pytest.mark.parametrize("place", ["params/suites/tiny.yaml", "params/experiments.yaml", "params/tables.yaml"])
def test_a_params_file_runs_no_code(project, place):
    path = project / place
    text = path.read_text()
    planted = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [pwned]]"
    path.write_text(f"{text}\nextra: {planted}\n")
    if place == "params/tables.yaml":
        from tsd.report.tables import chosen_tables

        with pytest.raises(ParamsError, match=r"tables.yaml: .*could not determine a constructor"):
            chosen_tables(Path("params"), None)
    else:
        with pytest.raises(ParamsError, match=r"\.yaml: line \d+ .*could not determine a constructor"):
            load_suite("tiny")
    assert not Path("pwned").exists()


@pytest.mark.parametrize("path", ["".join(HOSTILE[:3]), "".join(HOSTILE[3:5])])
def test_paths_of_a_suite_stay_one_word_of_a_command(project, path):
    """The printed commands, read as a shell reads them."""
    (project / "data").mkdir()
    (project / "data/1.jpg").touch()
    split = {"annotations": f"data/{path}.json", "images": "data"}
    (project / split["annotations"]).parent.mkdir(parents=True, exist_ok=True)
    (project / split["annotations"]).write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "1.jpg", "width": 8, "height": 8}],
                "annotations": [],
                "categories": [{"id": 1, "name": "a"}],
            }
        )
    )
    edit(
        project / "params/suites/tiny.yaml",
        lambda suite: suite.update(data={"format": "coco", "train": split, "val": split, "classes": 4}),
    )
    done = snakemake("all", options=("-n", "-p"), cwd=project)
    lines = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if "tsd evaluate coco" in line]
    assert lines
    for line in lines:
        words = shlex.split(line.strip().removeprefix("Shell command:"))
        assert words[words.index("--annotations") + 1] == split["annotations"]
    assert not list(project.rglob("pwned"))


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_could_be_commands_are_refused(project, name):
    for option in ("--suite", "--experiment"):
        words = {"--suite": "tiny", "--experiment": "baseline"} | {option: name}
        done = tsd("config", *[word for pair in words.items() for word in pair])
        assert done.returncode == 2, done.stderr
    edit(project / "params/experiments.yaml", lambda book: book["experiments"].update({name: {"title": "x"}}))
    with pytest.raises(ParamsError, match=r"experiments.yaml"):
        load_suite("tiny")


def test_servers_listen_on_this_machine_only():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split() or [
        str(path.relative_to(ROOT)) for path in [*SOURCES, ROOT / "Makefile", ROOT / "README.md"]
    ]
    for name in tracked:
        if name.endswith((".py", ".smk", ".yaml", ".md", "Makefile", ".sh")) and name != "tests/test_security.py":
            assert "0.0.0.0" not in (ROOT / name).read_text(), name
    assert "--host 127.0.0.1" in (ROOT / "Makefile").read_text()
    from tsd.data import serve

    assert serve.HOST == "127.0.0.1"


def test_settings_hold_plain_types_only(project):
    for suite in project.glob("params/suites/*.yaml"):
        text = suite.read_text()
        assert yaml.safe_load(text)
        assert "!!" not in text

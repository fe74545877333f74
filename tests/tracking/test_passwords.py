"""The password of a store's address is seen nowhere: not in what is printed, kept or raised."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tracking.test_mirror import make_run
from tsd.cli import main
from tsd.tracking.follow import mirror
from tsd.tracking.process import NoAnswerError, Process
from tsd.tracking.store import scrubbed, without_password

URI = "postgresql://user:hid%20den@127.0.0.1:1/db?sslpassword=concealed"
SHOWN = "postgresql://127.0.0.1:1/db"
FORMS = ("hid%20den", "hid den", "concealed")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (URI, SHOWN),
        ("postgresql://host/db?user=user&password=hidden", "postgresql://host/db"),
        ("postgresql://host/db?user=a@b&password=hidden", "postgresql://…"),
        ("postgresql://host/db?password=hid@den", "postgresql://…"),
        ("postgresql://user:hid?den@host/db", "postgresql://…"),
        ("postgresql://user:hid/d@n#@host/db", "postgresql://host/db"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER=x;PWD=hidden", "mssql+pyodbc:///"),
        ("user:hidden@host", "host"),
        ("host=h user=u password=hidden", "…"),
        ("sqlite:////home/a@b/x.db", "sqlite:////home/a@b/x.db"),
    ],
)
def test_an_address_is_shown_without_it(uri, shown):
    assert without_password(uri) == shown


@pytest.mark.parametrize(
    ("uri", "secrets"),
    [
        (URI, FORMS),
        ("postgresql://host/db?user=user&password=hid%2Bden", ("hid%2Bden", "hid+den")),
        ("postgresql://user:hid?den@host/db", ("hid?den",)),
        ("mssql+pyodbc:///?odbc_connect=DRIVER=x;PWD=hidden", ("DRIVER=x;PWD=hidden",)),
    ],
)
def test_what_a_library_says_is_shown_without_it(uri, secrets):
    for secret in (uri, *secrets):
        said = scrubbed(f"no connection with {secret} to the data base", uri)
        assert said.startswith("no connection with ")
        assert said.endswith(" to the data base")
        assert not [form for form in secrets if form in said]
    assert scrubbed("nothing to hide", uri) == "nothing to hide"


def test_no_verb_shows_or_keeps_it(project, monkeypatch, capfd):
    """A data base that is away, whose driver says why."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    folder = make_run(project)
    assert main(["mlflow", "init", "--suite", "tiny", "--output", "tracking.json"]) == 0
    assert json.loads(Path("tracking.json").read_text()) == {"uri": SHOWN, "ready": False}
    assert main(["mlflow", "sync", "--output", "mlflow.json"]) == 0
    assert json.loads(Path("mlflow.json").read_text())["uri"] == SHOWN
    assert mirror(folder, URI) is False
    said = "".join(capfd.readouterr())
    assert said.count("port 1 failed: Connection refused") == 3
    kept = [
        path.read_text(errors="replace") for path in Path().rglob("*") if path.is_file() and "tests" not in str(path)
    ]
    assert any("Connection refused" in text for text in kept)
    for form in (*FORMS, "hid"):
        assert form not in said
    assert not [text for text in kept for form in FORMS if form in text]


def test_a_process_that_breaks_does_not_say_it(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(f"raise SystemExit('no such place: {URI}')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Process() as process, pytest.raises(NoAnswerError, match=r"ended with status 1: ") as raised:
        process.call("find_run", uri=URI, seconds=30, suite="demo", key="key")
    assert f"no such place: {SHOWN}" in str(raised.value)


def test_make_ui_hands_it_on_unseen(tmp_path):
    """Neither make nor the list of processes shows it."""
    for name in ("mlflow", "tsd"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$0 $*"\n[ -z "$MLFLOW_BACKEND_STORE_URI" ] || echo handed on\n')
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["make", "-o", "setup", "ui", f"PATH={path}"],
        cwd=ROOT,
        env=os.environ | {"MLFLOW_TRACKING_URI": URI},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "mlflow ui --host 127.0.0.1 --port 5000\nhanded on\n" in done.stdout
    assert not [form for form in FORMS if form in done.stdout + done.stderr]

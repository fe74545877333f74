"""Where MLflow shows the runs: files, servers that answer, and addresses where nobody listens."""

import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.doctor.conftest import context
from tsd.errors import InputError
from tsd.tracking.follow import mirror
from tsd.tracking.store import tracking_uri, without_password


@pytest.fixture
def server():
    """A server that answers every request with the status in ``server.status``."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(running.status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    running = HTTPServer(("127.0.0.1", 0), Answer)
    running.status = 200
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def test_the_file_beside_the_repository_will_be_made(examined, project):
    line = examined("MLflow", context()).only("ok")
    assert line.finding == f"{project / 'mlflow.db'}, which will be made"
    assert not (project / "mlflow.db").exists()


def test_a_file_on_the_network_is_a_warning(examined, project, mounted):
    mounted(project, "nfs4")
    line = examined("MLflow", context()).only("warning")
    assert "one file on nfs4" in line.finding
    assert "export MLFLOW_TRACKING_URI=" in line.remedy


def test_a_file_that_cannot_be_written_is_a_warning(examined, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "can't be written to" in examined("MLflow", context()).only("warning").finding


def test_a_uri_that_is_no_store_is_an_error(examined, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///tmp/mlruns")
    line = examined("MLflow", context()).only("error")
    assert "no longer takes file stores" in line.finding
    assert "unset MLFLOW_TRACKING_URI" in line.remedy


def test_a_server_that_answers(examined, monkeypatch, server):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{server.server_port}")
    line = examined("MLflow", context()).only("ok")
    assert line.finding == f"http://127.0.0.1:{server.server_port} answers"
    for server.status in (503, 404, 401):
        line = examined("MLflow", context()).only("warning")
        assert f"answers with status {server.status}" in line.finding
        assert f"`curl -i http://127.0.0.1:{server.server_port}/health`" in line.remedy


def test_a_server_that_trickles_is_not_waited_for(examined, monkeypatch):
    monkeypatch.setattr("tsd.doctor.tracking.PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        over = threading.Event()

        def trickle():
            connection, _ = listening.accept()
            with connection:
                for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100:
                    if over.wait(0.2):
                        return
                    connection.send(bytes([byte]))

        thread = threading.Thread(target=trickle)
        thread.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening.getsockname()[1]}")
        started = time.monotonic()
        line = examined("MLflow", context()).only("warning")
        assert time.monotonic() - started < 10
        over.set()
        thread.join()
    assert "does not answer within 1 s" in line.finding


def test_a_folder_is_no_file(examined, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}")
    finding = examined("MLflow", context()).only("error").finding
    assert f"{tmp_path}: is a folder; name a file in it: sqlite:///{tmp_path}/mlflow.db" in finding


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite://user:secret@h/x", "sqlite://h/x: expected sqlite:///FILE.db"),
        ("http://user:secret@h:port", "http://h:port: expected SCHEME://HOST:PORT"),
        ("http://user:secret@[::1", "http://[::1: expected SCHEME://HOST:PORT"),
        ("postgres://u:secret@h/x", "postgres://h/x: expected one of"),
        ("file://u:secret@h/x", "file://h/x: MLflow no longer takes file stores"),
        ("u:secret@h", "h: MLflow no longer takes file stores"),
    ],
)
def test_an_address_that_is_none_is_shown_without_its_password(examined, monkeypatch, uri, shown):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    line = examined("MLflow", context()).only("error")
    assert f"MLFLOW_TRACKING_URI={shown}" in line.finding
    assert "secret" not in f"{line.finding} {line.remedy}"


def test_trainings_do_not_show_a_password_either(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgres://u:secret@h/x")
    with pytest.raises(InputError) as raised:
        tracking_uri(tmp_path)
    assert "secret" not in str(raised.value)
    assert not mirror(tmp_path, f"http://u:secret@127.0.0.1:{free_port()}/?password=secret")
    said = capsys.readouterr().err
    assert "MLflow at http://127.0.0.1:" in said
    assert "secret" not in said + (tmp_path / "mlflow.pending").read_text()
    assert without_password("postgresql://u:se/cr@t#@h/x?password=p") == "postgresql://h/x"
    assert without_password("sqlite:////home/a@b/x.db") == "sqlite:////home/a@b/x.db"


@pytest.mark.parametrize("scheme", ["http", "postgresql", "postgresql+psycopg2"])
def test_an_address_where_nobody_listens_is_a_warning(examined, monkeypatch, scheme):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://127.0.0.1:{free_port()}/runs")
    line = examined("MLflow", context()).only("warning")
    assert "does not answer" in line.finding
    assert "`tsd mlflow sync` catches up" in line.remedy


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "sqlite:///mlflow.db"])
def test_what_a_job_does_not_write_to_is_left_to_the_login_node(examined, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "is not written to in a job: " in examined("MLflow", context()).only("ok").finding


def test_a_job_asks_another_machines_server(examined, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{socket.gethostname()}.invalid:1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "does not answer" in examined("MLflow", context()).only("warning").finding


def test_a_relative_file_is_the_projects(examined, monkeypatch, project):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///kept/runs.db")
    Path("kept").mkdir()
    Path("kept/runs.db").touch()
    assert examined("MLflow", context()).only("ok").finding == str(project / "kept/runs.db")

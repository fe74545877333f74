"""Where MLflow shows the runs: files, servers that answer, and addresses where nobody listens."""

import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.doctor.conftest import context


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
    server.status = 503
    assert "answers with status 503" in examined("MLflow", context()).only("warning").finding


@pytest.mark.parametrize("scheme", ["http", "postgresql", "postgresql+psycopg2"])
def test_an_address_where_nobody_listens_is_a_warning(examined, monkeypatch, scheme):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://127.0.0.1:{free_port()}/runs")
    line = examined("MLflow", context()).only("warning")
    assert "does not answer" in line.finding
    assert "`tsd mlflow sync` catches up" in line.remedy


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_loopback_address_in_a_job_of_several_nodes_is_a_warning(examined, monkeypatch, server, host):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{host}:{server.server_port}")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert "this node's own" in examined("MLflow", context()).only("warning").finding


def test_a_relative_file_is_the_projects(examined, monkeypatch, project):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///kept/runs.db")
    Path("kept").mkdir()
    Path("kept/runs.db").touch()
    assert examined("MLflow", context()).only("ok").finding == str(project / "kept/runs.db")

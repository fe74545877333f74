"""No server holds a training or an evaluation, whatever it does; and no job of a cluster writes where it can't."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tracking.server import Server, wait_until
from tests.tracking.test_mirror import client, history, make_run, runs, set_status, write_log
from tsd.cli import main
from tsd.tracking import follow
from tsd.tracking.follow import Follower, mirror
from tsd.tracking.process import STARTING, NoAnswerError, Process
from tsd.tracking.store import init, tracking_uri, why_not_from_here

DEADLINE = 4.0
asked: list[socket.socket] = []
"""Connections that the server of this test was given."""
SLACK = 3.0
"""Seconds for this machine to kill a process and go on, while it does other work."""


@contextmanager
def server(answer):
    """A socket on 127.0.0.1 whose every connection is given to ``answer``; yields its address."""
    ended = threading.Event()
    asked.clear()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while not ended.is_set():
                with suppress(OSError):
                    connection, _ = listener.accept()
                    asked.append(connection)
                    threading.Thread(target=answer, args=(connection, ended), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()


def silent(connection, ended):
    """Take the request and never answer."""
    with connection:
        ended.wait(300)


def dripping(connection, ended):
    """Answer a byte at a time, for ever: each comes within every timeout."""
    with connection, suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")
        while not ended.wait(0.3):
            connection.sendall(b" ")


def dripping_headers(connection, ended):
    """The same, before the answer's body."""
    with connection, suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not ended.wait(0.3):
            connection.sendall(b"y")


def asks_for_an_hour(status):
    """Refuse every request for now, and say that the next one may come in an hour."""

    def answer(connection, ended):
        with connection, suppress(OSError):
            while connection.recv(65536):
                reply = f"HTTP/1.1 {status} Later\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n"
                connection.sendall(reply.encode())

    return answer


def processes_of(uri):
    """Processes that hold a connection to the address."""
    port = f":{int(uri.rpartition(':')[2]):04X}"
    peers = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{row[9]}]" for row in peers if row[2].endswith(port) and row[3] == "01"}
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link) in inodes:
                found.add(int(link.parts[2]))
    return found - {os.getpid()}


@pytest.mark.parametrize("answer", [silent, dripping, dripping_headers])
def test_an_evaluation_waits_no_longer_than_it_was_told(tmp_path, capsys, answer):
    folder = make_run(tmp_path)
    with server(answer) as uri:
        started = time.monotonic()
        assert mirror(folder, uri, seconds=DEADLINE) is False
        assert time.monotonic() - started < STARTING + DEADLINE + SLACK
        assert asked
        assert not processes_of(uri)
    assert (folder / "mlflow.pending").read_text() == "no answer within 4 s\n"
    assert "was not updated (no answer within 4 s); `tsd mlflow sync` will catch up" in capsys.readouterr().err


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_for_an_hour_is_told_of_and_not_obeyed(tmp_path, capsys, status):
    folder = make_run(tmp_path)
    with server(asks_for_an_hour(status)) as uri:
        assert mirror(folder, uri, seconds=60) is False
    said = capsys.readouterr().err
    assert str(status) in said
    assert "no answer" not in said
    assert str(status) in (folder / "mlflow.pending").read_text()


@pytest.mark.parametrize("verb", ["init", "sync"])
def test_the_verbs_give_up_on_a_silent_server(project, monkeypatch, capsys, verb):
    for module in ("store", "sync"):
        monkeypatch.setattr(f"tsd.tracking.{module}.seconds_to_answer", lambda uri: DEADLINE)
    make_run(project)
    with server(silent) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        started = time.monotonic()
        assert main(["mlflow", verb, *(["--suite", "tiny"] if verb == "init" else [])]) == (verb == "sync")
        assert time.monotonic() - started < STARTING + DEADLINE + SLACK
        assert not processes_of(uri)
    assert "(no answer within 4 s)" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["init", "--suite", "tiny"], ["sync"], ["sync", "--watch", "5"]])
def test_the_verbs_end_at_once_when_told_and_leave_no_process(project, words):
    make_run(project)
    with server(silent) as uri:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}
        with subprocess.Popen([sys.executable, "-m", "tsd.cli", "mlflow", *words], env=environment) as asks:
            try:
                wait_until(lambda: processes_of(uri), lambda: "nobody asked the server", 60)
                started = time.monotonic()
                asks.terminate()
                assert asks.wait(60) != 0
                assert time.monotonic() - started < SLACK
            finally:
                asks.kill()
        wait_until(lambda: not processes_of(uri), lambda: "a process hangs", SLACK)


def test_the_end_of_a_training_is_not_waited_for_by_one_that_is_told_to_stop(tmp_path):
    folder = make_run(tmp_path)
    with server(silent) as uri:
        follower = Follower(folder, uri)
        follower.begin()
        wait_until(lambda: processes_of(uri), lambda: "nobody asked the server", 60)
        stop = threading.Event()
        threading.Timer(1.0, stop.set).start()
        started = time.monotonic()
        assert follower.end(60, given_up=stop.is_set) is False
        assert time.monotonic() - started < 1 + SLACK
        assert not processes_of(uri)
    assert (folder / "mlflow.pending").read_text() == "told to stop\n"


@pytest.mark.parametrize("answer", [silent, dripping])
def test_a_checkpoint_never_waits_and_the_end_only_so_long(tmp_path, capsys, monkeypatch, answer):
    monkeypatch.setattr(follow, "EVERY", 0.0)
    folder = make_run(tmp_path, status="RUNNING")
    with server(answer) as uri:
        follower = Follower(folder, uri)
        times = []
        for step in (follower.begin, *[follower.checkpoint] * 20):
            started = time.monotonic()
            step()
            times.append(time.monotonic() - started)
            time.sleep(0.1)
        assert max(times) < 1.0
        wait_until(lambda: processes_of(uri), lambda: "nobody asked the server", 60)
        set_status(folder, "FINISHED")
        started = time.monotonic()
        assert follower.end(DEADLINE) is False
        assert time.monotonic() - started < DEADLINE + SLACK
        assert not processes_of(uri)
    assert (folder / "mlflow.pending").exists()
    assert capsys.readouterr().err.count("was not updated") == 1


def test_an_update_that_hangs_gives_up_by_itself_and_the_next_checkpoint_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(follow, "EVERY", 0.0)
    monkeypatch.setattr(follow, "BESIDE", 2.0)
    folder = make_run(tmp_path, status="RUNNING")
    with server(silent) as uri:
        follower = Follower(folder, uri)
        follower.begin()

        def told():
            follower.checkpoint()
            return (folder / "mlflow.pending").read_text() == "no answer by the deadline\n"

        wait_until(told, (folder / "mlflow.pending").read_text, 60)
        follower.end(1)
    assert capsys.readouterr().err.count("was not updated") == 1


def test_who_asks_can_be_killed_and_leaves_no_process(tmp_path):
    folder = make_run(tmp_path)
    code = (
        "import sys, time, pathlib as p; from tsd.tracking.process import Process; process = Process();"
        "process.ask('sync_run', seconds=5, uri=sys.argv[2], folder=p.Path(sys.argv[1])); time.sleep(300)"
    )
    with (
        server(silent) as uri,
        subprocess.Popen([sys.executable, "-c", code, folder, uri], env=os.environ | {"PYTHONPATH": str(ROOT)}) as asks,
    ):
        try:
            wait_until(lambda: processes_of(uri), lambda: "nobody asked the server", 60)
            (hung,) = processes_of(uri)
            assert hung != asks.pid
        finally:
            asks.kill()
        wait_until(lambda: not processes_of(uri), lambda: f"{hung} hangs", 30)


def test_the_signals_of_a_scheduler_do_not_end_an_update(tmp_path):
    """Slurm sends them to every process of a job; the training then still wants to say how it ended."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    init(tmp_path, uri, ["tsd-demo"])
    folder = make_run(tmp_path)
    with Process() as process:
        process.call("sync_run", folder=folder, uri=uri, seconds=60)
        assert process._process is not None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            process._process.send_signal(number)
        assert process.call("sync_run", folder=folder, uri=uri, seconds=60) == runs(uri)[0].info.run_id


def test_a_process_that_ends_says_what_it_ended_with(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('no such disk')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Process() as process, pytest.raises(NoAnswerError, match=r"ended with status 1: .*no such disk"):
        process.call("sync_run", folder=tmp_path, uri="sqlite:///none.db", seconds=30)


@contextmanager
def hanging_uploads(target):
    """A proxy before MLflow's server that passes everything on but uploads, which it never answers."""
    ended = threading.Event()

    class Pass(BaseHTTPRequestHandler):
        def answer(self):
            if self.command == "PUT":
                ended.wait(300)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
            request = urllib.request.Request(target + self.path, body, dict(self.headers), method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=60) as reply:
                    status, content = reply.status, reply.read()
            except urllib.error.HTTPError as error:
                status, content = error.code, error.read()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = answer

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pass) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}"
        finally:
            ended.set()
            proxy.shutdown()


def test_an_upload_that_hangs_holds_nothing_and_is_done_later(tmp_path):
    real = Server(f"sqlite:///{tmp_path}/server.db", tmp_path)
    real.start()
    try:
        folder = make_run(tmp_path)
        with hanging_uploads(real.uri) as uri:
            started = time.monotonic()
            assert mirror(folder, uri, seconds=15) is False
            assert time.monotonic() - started < STARTING + 15 + SLACK
        (run,) = runs(real.uri)
        assert len(history(real.uri, run.info.run_id, "loss")) == 20  # what was brought before it counts
        assert client(real.uri).list_artifacts(run.info.run_id) == []
        assert mirror(folder, real.uri) is True
        (run,) = runs(real.uri)
        assert (run.info.status, len(history(real.uri, run.info.run_id, "loss"))) == ("FINISHED", 20)
        assert client(real.uri).list_artifacts(run.info.run_id)
        assert not (folder / "mlflow.pending").exists()
    finally:
        real.kill()


def test_a_training_shows_itself_at_once_and_again_when_it_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "EVERY", 0.0)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    init(tmp_path, uri, ["tsd-demo"])
    folder = make_run(tmp_path, status="RUNNING", steps=12)
    (folder / "checkpoints/step_00000010.pth").touch()
    for status in ("KILLED", "FINISHED"):
        set_status(folder, "RUNNING")
        follower = Follower(folder, uri)
        follower.begin()
        wait_until(lambda: [run.info.status for run in runs(uri)] == ["RUNNING"], lambda: "not shown", 60)
        assert (folder / "mlflow.pending").exists(), "the files will be ahead again"
        set_status(folder, status)
        write_log(folder, range(1, 21))
        assert follower.end() is True
        assert [run.info.status for run in runs(uri)] == [status]
        assert not (folder / "mlflow.pending").exists()
    assert len(history(uri, runs(uri)[0].info.run_id, "loss")) == 20


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:////shared/mlflow.db", "a sqlite file does not take the jobs of a cluster as writers"),
        ("http://127.0.0.1:5000", "127.0.0.1 is this node's own"),
        ("http://user:secret@localhost:5000", "localhost is this node's own"),
        ("http://[::1]:5000", "::1 is this node's own"),
        ("http://127.8.9.1", "127.8.9.1 is this node's own"),
        ("postgresql+psycopg2://tsd@localhost/mlflow", "localhost is this node's own"),
        ("postgresql:///mlflow", "a socket is this node's own"),
        ("http://login:5000", None),
        ("https://mlflow.example.org", None),
        ("http://10.0.0.7:5000", None),
        ("postgresql+psycopg2://tsd@db.cluster/mlflow", None),
    ],
)
def test_a_job_of_a_cluster_writes_only_to_another_machine(uri, reason):
    assert why_not_from_here(uri, {"SLURM_JOB_ID": "7"}) == reason
    assert why_not_from_here(uri, {}) is None


def test_a_training_in_a_job_says_once_that_it_leaves_mlflow_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(follow, "EVERY", 0.0)
    folder = make_run(tmp_path, status="RUNNING")
    follower = Follower(folder, tracking_uri(tmp_path))
    follower.begin()
    follower.checkpoint()
    set_status(folder, "FINISHED")
    follower.end()
    said = capsys.readouterr().err
    assert said.count("is not updated from this Slurm job, because a sqlite file") == 1
    assert said.count("\n") == 1
    assert "`tsd mlflow sync`" in said
    assert "not updated from a Slurm job" in (folder / "mlflow.pending").read_text()
    assert not (tmp_path / "mlflow.db").exists()
    assert mirror(folder, tracking_uri(tmp_path)) is False
    assert capsys.readouterr().err == said


def test_the_note_is_written_before_mlflow_is_asked(tmp_path):
    """So that a process which is killed at any moment leaves it."""
    folder = make_run(tmp_path, status="RUNNING")
    with server(silent) as uri:
        follower = Follower(folder, uri)
        follower.begin()
        assert (folder / "mlflow.pending").exists()
        follower.end(0.1)
    assert json.loads((folder / "status.json").read_text())["status"] == "RUNNING"


def test_a_long_update_has_as_long_as_it_moves(tmp_path, monkeypatch):
    """A deadline is for a server that hangs: one that is slow gets through a log of days."""
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n"
        "from tsd.tracking import mirror\n"
        "def slow(folder, uri, moved):\n"
        "    for _ in range(6):\n"
        "        time.sleep(1.0)\n"
        "        moved()\n"
        "    return 'done'\n"
        "mirror.sync_run = slow\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    with Process() as process:
        assert process.call("sync_run", seconds=3, uri="", folder="", while_moving=True) == "done"
        with pytest.raises(NoAnswerError, match="no answer within 3 s"):
            process.call("sync_run", seconds=3, uri="", folder="")

"""The server of a team: PostgreSQL from Debian, and `mlflow server` on it; both on 127.0.0.1, both ended again."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import free_port
from tests.debian import need


@contextmanager
def postgres() -> Iterator[str]:
    """An empty data base; yields its URI."""
    need("psql", "postgresql")
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    # The server refuses to run as root, and its user must reach the folder: pytest's are closed to others.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        if user:
            shutil.chown(folder, "postgres")
        options = ["--auth=trust", "--username=tsd", "--no-sync", "-D", f"{folder}/data"]
        subprocess.run([*user, programs / "initdb", *options], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        places = ["-D", f"{folder}/data", "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([*user, programs / "postgres", *places], stderr=log, stdout=log, cwd=folder)
            try:
                ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
                wait_until(lambda: subprocess.run(ready).returncode == 0, (folder / "log").read_text)
                make = ["createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "tsd", "mlflow"]
                subprocess.run([programs / make[0], *make[1:]], check=True)
                yield f"postgresql+psycopg2://tsd@127.0.0.1:{port}/mlflow"
            finally:
                # runuser does not hand signals on: the server's own pid is in its folder.
                with suppress(FileNotFoundError, ProcessLookupError):
                    os.kill(int((folder / "data/postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
                process.wait(60)


class Server:
    """``mlflow server`` as the README starts it; it can be killed and started again on the same port."""

    def __init__(self, store: str, folder: Path) -> None:
        self.store, self.folder, self.port = store, folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.store]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wait_until(self._answers, (self.folder / "server.log").read_text)

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        """End it and its workers, as a machine that loses power does."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None


def wait_until(true, text, seconds=120) -> None:
    """Wait; what does not come fails with ``text()``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return
        time.sleep(0.3)
    raise AssertionError(f"not after {seconds} s: {text()[-2000:]}")

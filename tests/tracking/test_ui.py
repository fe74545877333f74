"""The comparison of runs as a person sees it, in MLflow's own pages."""

import os
import subprocess
import sys

import pytest

from tests.conftest import free_port
from tests.engine.browser import find_chromium, visit
from tests.tracking.test_mirror import client, make_run, wait_for
from tsd.tracking.mirror import sync_run
from tsd.tracking.store import init, tracking_uri

pytestmark = pytest.mark.browser


def test_all_runs_are_listed_with_their_ap_and_two_can_be_compared(tmp_path, monkeypatch):
    find_chromium()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = tracking_uri(tmp_path)
    (page,) = init(tmp_path, uri, ["tsd-demo"])
    ids = [sync_run(make_run(tmp_path, name), uri) for name in ("baseline", "tsd_joint", "tsd_pc")]
    experiment = client(uri).get_experiment_by_name("tsd-demo").experiment_id
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with subprocess.Popen(
        [*command, "--backend-store-uri", uri],
        cwd=tmp_path,
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/health")
            base = f"http://127.0.0.1:{port}"
            names = ["baseline seed0", "tsd_joint seed0", "tsd_pc seed0"]
            visit(base + page, [*names, "AP", "AP50"], tmp_path / "runs.png")
            pair = f'["{ids[0]}","{ids[2]}"]'.replace('"', "%22")
            visit(
                f"{base}/#/compare-runs?runs={pair}&experiments=[%22{experiment}%22]",
                ["AP50", names[0], names[2]],
                tmp_path / "compare.png",
            )
        finally:
            server.terminate()
    assert (tmp_path / "runs.png").stat().st_size > 10_000
    assert (tmp_path / "compare.png").stat().st_size > 10_000

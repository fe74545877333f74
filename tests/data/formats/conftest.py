"""What tests of fetched folders share."""

import pytest

from tests.data.test_transfer import QUICK
from tsd.data import fetch


@pytest.fixture
def fetching(tmp_path, monkeypatch):
    """A current folder to fetch to, and fetching that gives up soon."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    real = fetch.download
    monkeypatch.setattr(fetch, "download", lambda *args, **options: real(*args, **options | {"policy": QUICK}))

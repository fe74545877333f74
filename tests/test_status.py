"""Whether a run is being trained: one reader, which names what is damaged."""

import json

import pytest

from tsd.errors import InputError
from tsd.status import FILE, read_status

WHOLE = {
    "status": "FINISHED",
    "error": None,
    "started": "2026-01-01T00:00:00+00:00",
    "ended": "2026-01-01T01:00:00+00:00",
}


def test_what_a_training_wrote_is_read(tmp_path):
    assert read_status(tmp_path) is None
    (tmp_path / FILE).write_text(json.dumps(WHOLE))
    assert read_status(tmp_path) == WHOLE


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "status: expected one of RUNNING, FINISHED, KILLED, FAILED, got None"),
        ({}, "status: expected one of"),
        (WHOLE | {"status": "DONE"}, "status: expected one of RUNNING, FINISHED, KILLED, FAILED, got 'DONE'"),
        (WHOLE | {"started": 5}, "started: expected a time, got 5"),
        (WHOLE | {"started": "2026-01-01T00:00:00"}, "started: expected a time"),
        (WHOLE | {"ended": "later"}, "ended: expected a time or null, got 'later'"),
        (WHOLE | {"error": 3}, "error: expected a text or null, got 3"),
    ],
)
def test_what_is_damaged_is_named(tmp_path, content, said):
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_status(tmp_path)
    assert f"{tmp_path / FILE}: {said}" in str(caught.value)
    assert "remove the file" in str(caught.value)

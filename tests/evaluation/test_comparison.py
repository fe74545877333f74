"""A run's metrics beside those of its repetition."""

import copy

import pytest

from tsd.evaluation.comparison import Difference, LossDifference, compare, first_difference

ONE = {
    "metrics": {"AP": 0.25, "APl": None},
    "images": 6,
    "per_class": [{"id": 1, "name": "disc", "AP": 0.5}, {"id": 2, "name": "disc", "AP": 0.75}],
    "scale_iou": {"all": {"0.50": 0.5}},
    "run": {
        "predictions_sha256": "a",
        "losses": [[10, 0.1 + 0.2], [20, 0.25]],
        "history": [{"epoch": 1, "AP": 0.125}],
        "environment": {"torch": "2", "cpu": "X", "threads": 1, "abacus": "old"},
        "runtime": {"median_ms": 1.0, "device": "a CPU with 1 thread"},
    },
}


def changed(*keys, value):
    content = copy.deepcopy(ONE)
    *above, last = keys
    place = content
    for key in above:
        place = place[key]
    place[last] = value
    return content


def test_the_same_is_identical_whatever_it_took():
    found = compare(ONE, changed("run", "runtime", "median_ms", value=9.0))
    assert found.identical
    assert (found.metrics_compared, found.losses_compared, found.machine) == (11, 2, ())


@pytest.mark.parametrize(
    ("keys", "value", "name"),
    [
        (("metrics", "AP"), 0.25 + 2**-54, "AP"),
        (("metrics", "APl"), 0.5, "APl"),
        (("images",), 7, "images"),
        (("per_class", 1, "AP"), 0.5, "per_class.1 (disc).AP"),
        (("scale_iou", "all", "0.50"), None, "scale_iou.all.0.50"),
        (("run", "history", 0, "AP"), 0.25, "epoch 1.AP"),
    ],
)
def test_every_figure_counts_to_the_last_bit(keys, value, name):
    found = compare(ONE, changed(*keys, value=value))
    assert not found.identical
    assert [one.name for one in found.metrics] == [name]
    assert found.metrics[0].here == value


def test_predictions_count():
    found = compare(ONE, changed("run", "predictions_sha256", value="b"))
    assert not found.identical
    assert found.predictions == Difference("predictions_sha256", "a", "b")


def test_the_first_loss_that_differs_is_named():
    found = compare(ONE, changed("run", "losses", value=[[10, 0.3], [20, 0.5]]))
    assert found.loss == LossDifference(10, 0.1 + 0.2, 0.3)
    assert not found.identical


def test_losses_of_steps_that_only_one_tells_are_not_compared():
    assert first_difference({10: 1.0, 20: 2.0}, {15: 9.0, 20: 2.5, 30: 7.0}) == LossDifference(20, 2.0, 2.5)
    assert first_difference({10: 1.0}, {20: 9.0}) is None


def test_another_machine_does_not_make_results_differ_and_likely_reasons_come_first():
    machine = {"torch": "3", "cpu": "Y", "threads": 1, "pretrained_sha256": "only here"}
    found = compare(ONE, changed("run", "environment", value=machine))
    assert found.identical
    assert [(one.name, one.recorded, one.here) for one in found.machine] == [
        ("cpu", "X", "Y"),
        ("torch", "2", "3"),
        ("abacus", "old", None),
    ]


def test_an_older_file_tells_neither_machine_nor_losses():
    old = copy.deepcopy(ONE)
    del old["run"]["environment"], old["run"]["losses"]
    found = compare(old, changed("run", "runtime", value={"device": "a GPU"}))
    assert found.identical
    assert found.machine is None
    assert found.losses_recorded == found.losses_compared == 0
    assert found.device == Difference("device", "a CPU with 1 thread", "a GPU")


def test_by_how_much_numbers_differ():
    assert Difference("AP", 0.5, 0.25).change == -0.25
    assert Difference("AP", None, 0.25).change is None
    assert Difference("cpu", "X", "Y").change is None

"""What is said of a run that was made anew."""

from pathlib import Path

import pytest

from tsd.evaluation.comparison import Comparison, Difference, LossDifference
from tsd.report.reproduction import SHOWN, format_report, minutes, report_content

SAME = {
    "predictions": None,
    "metrics": (),
    "metrics_compared": 40,
    "loss": None,
    "losses_recorded": 0,
    "losses_compared": 0,
    "machine": None,
    "device": None,
}
FACTS = {"digest": "1", "test_digest": "2", "data_digest": "3", "predictions_sha256": "a"}
CLEAN = {"git_commit": "c" * 40, "git_dirty": False}
MACHINE = {"environment": {"threads": 1, "kernels": "AVX2", "cpu": "X"}}


def said(recorded=CLEAN, here=CLEAN, took=(60.0,), **found) -> str:
    comparison = Comparison(**(SAME | found))
    attempts = {"attempts": [{"started": "", "seconds": seconds} for seconds in took], "evaluation_seconds": 5.0}
    facts = (FACTS | recorded, FACTS | MACHINE | here)
    content = report_content("a/b/seed0", Path("x.json"), "those of this checkout", *facts, comparison, attempts)
    assert content["identical"] is comparison.identical
    return format_report(content, comparison)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (290, "4 min 50 s"), (7260, "2 h 1 min")]
)
def test_times_are_in_words(seconds, text):
    assert minutes(seconds) == text


def test_an_older_file_that_is_met_says_what_it_could_not_tell():
    assert said() == (
        "a/b/seed0: identical to the bit: predictions, 40 figures (the file tells no losses)\n"
        "  machine     the file does not tell what CPU, instructions, threads and versions it was made with\n"
        "    here: cpu X, kernels AVX2, threads 1\n"
        "  took 1 min 0 s to train, 5 s to predict and evaluate"
    )


def test_identical_on_another_machine_says_both():
    text = said(losses_recorded=8, losses_compared=8, machine=(Difference("cpu", "X", "Y"),))
    assert text.startswith("a/b/seed0: identical to the bit: predictions, 40 figures and 8 losses\n")
    assert "    cpu: recorded X, here Y\n" in text


def test_losses_that_differ_where_predictions_do_not_are_a_difference():
    text = said(loss=LossDifference(30, 0.5, 0.75), losses_recorded=8, losses_compared=8, machine=())
    assert text.startswith("a/b/seed0: DIFFERS from x.json\n")
    assert "  losses      first differ at step 30: recorded 0.5, here 0.75 (+0.25)\n" in text
    assert "  predictions the same to the bit\n" in text
    assert "  machine     and versions: as recorded\n" in text


def test_of_many_figures_the_first_are_shown():
    metrics = tuple(Difference(f"figure{number}", 0.5, 0.25) for number in range(40))
    text = said(metrics=metrics, predictions=Difference("predictions_sha256", "a" * 64, "b" * 64))
    assert text.count(": recorded 0.5, here 0.25 (-0.25)") == SHOWN
    assert f"and {40 - SHOWN} more, all of them in the report" in text
    assert "the file tells none" in text


def test_whole_numbers_differ_by_whole_numbers():
    assert "detections: recorded 27560, here 29179 (+1619)\n" in said(metrics=(Difference("detections", 27560, 29179),))


def test_code_that_has_changed_is_said():
    text = said(recorded=CLEAN | {"git_dirty": True}, here={"git_commit": "d" * 40, "git_dirty": False})
    assert "  code        git commit recorded cccccccc, here dddddddd, recorded with uncommitted changes\n" in text
    assert "code " not in said()


def test_attempts_that_were_killed_are_not_counted():
    assert "took 50 s in 3 attempts (not counted: 1 that was killed) to train" in said(took=(20.0, None, 30.0))

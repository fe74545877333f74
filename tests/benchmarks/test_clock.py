"""Time that is given."""

from clock import Clock


def test_it_counts_down_and_never_below_nothing():
    now = [100.0]
    clock = Clock(2, lambda: now[0])
    assert clock.left == 120
    assert clock.has(120)
    now[0] += 50
    assert clock.left == 70
    assert clock.has(70)
    assert not clock.has(71)
    now[0] += 500
    assert clock.left == 0
    assert clock.has(0)


def test_it_can_be_stopped():
    clock = Clock(9, lambda: 0.0)
    clock.stop()
    assert clock.left == 0
    assert not clock.has(1)

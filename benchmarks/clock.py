"""Time that is given, so that what is started is also finished."""

import time
from collections.abc import Callable


class Clock:
    """Counts down from the moment that it is made.

    Args:
        minutes: that are given in all.
        now: seconds of a clock that never goes back.
    """

    def __init__(self, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds that are left, 0 if none."""
        return max(0.0, self._end - self._now())

    def has(self, seconds: float) -> bool:
        """Whether something that takes so long can be started."""
        return self.left >= seconds

    def stop(self) -> None:
        """No time is left from now on."""
        self._end = self._now()

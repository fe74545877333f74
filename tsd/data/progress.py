"""How often a progress bar is drawn."""

import sys


def interval() -> float:
    """Seconds between two drawings: seldom where they go into a log."""
    return 0.5 if sys.stderr.isatty() else 20.0

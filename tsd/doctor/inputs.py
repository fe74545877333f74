"""The data that a training reads."""

import time
from pathlib import Path

from tsd.doctor.checks import Check, Context, sentence
from tsd.engine.params import Suite
from tsd.engine.upcoming import missing_data
from tsd.errors import InputError


def data(context: Context) -> Check:
    """Whether the suite's data is there and whole, as ``tsd data verify`` sees it without ``--pictures``."""
    from tsd.engine.verify import verify_suite

    suite = context.suite
    if missing := missing_data(suite):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        how = _how_to_get(suite, missing)
        return Check("data", "warning" if how else "error", f"not here: {missing[0]}{more}", how or _bring(missing))
    if context.quick or not context.here.is_first:
        return Check("data", "ok", "files and folders are there; their content was not looked at")
    started = time.monotonic()
    try:
        counts = verify_suite(suite)
    except InputError as error:
        again = f"tsd data verify --suite {suite.name}"
        return Check("data", "error", sentence(error), f"See all that is wrong: `{again}`.")
    took = time.monotonic() - started
    return Check(
        "data", "ok", f"{counts['train']:,} training and {counts['val']:,} val pictures are there, {took:.1f} s"
    )


def _how_to_get(suite: Suite, missing: list[Path]) -> str:
    """The command that makes or fetches the data; empty if there is none."""
    name = suite.name
    if suite.data["format"] == "generated":
        if missing[0].name != "manifest.json":
            return f"Unpack the pictures: `tsd data verify --suite {name}`."
        return f"Make it: `tsd data generate --suite {name}`."
    if suite.is_openimages:
        if any(path.suffix for path in missing):
            fetch = f"tsd data fetch --suite {name}"
            return f"Fetch it, and then make its stores: `{fetch} && tsd data openimages --suite {name}`."
        return f"Make its stores: `tsd data openimages --suite {name}`."
    return f"Fetch it: `tsd data fetch --suite {name}`." if "source" in suite.data else ""


def _bring(missing: list[Path]) -> str:
    return f"Put your own there: `ln -s /path/to/yours {missing[0].parent}`."

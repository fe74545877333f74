"""What a training reads: its data, and the ImageNet weights that its backbone starts from."""

import re
import time
from pathlib import Path

from tsd.data.manifest import digest
from tsd.doctor.checks import Check, Context, sentence
from tsd.engine.identity import manifest_path
from tsd.engine.params import Suite
from tsd.errors import CheckpointError, InputError

_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.(pth|pt|bin)$")
"""Of a published file's name: the first digits of its SHA-256."""


def missing_data(suite: Suite) -> list[Path]:
    """Files and folders of the suite's data that are not there."""
    manifest = manifest_path(suite)
    wanted = [manifest] if manifest else []
    if suite.is_openimages:
        challenge = suite.challenge
        wanted += challenge.files
        wanted += [challenge.store(split) for split in ("train", "val")]
    elif suite.data["format"] == "generated":
        folder = Path(suite.data["folder"])
        wanted += [folder / "train", folder / "val"]
    else:
        wanted += [path for name in ("train", "val") for path in suite.split(name)]
    return [path for path in wanted if not path.exists()]


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


def weights(context: Context) -> list[Check]:
    """Whether the ImageNet weights that the suite's backbones start from are there, whole, and the published ones."""
    settings = context.suite.settings.values()
    names = sorted({own["backbone"]["pretrained"] for own in settings if own["backbone"].get("pretrained")})
    if not names:
        return [Check("weights", "ok", f"suite {context.suite.name} starts from random weights")]
    good: list[str] = []
    wrong: dict[tuple[str, str], list[str]] = {}
    for name in names:
        try:
            good.append(_look_at(name, context.quick))
        except CheckpointError as error:
            wrong[sentence(error), "Fetch it again from where it was published, and compare: `sha256sum FILE`."] = [
                name
            ]
        except InputError as error:
            finding, _, remedy = sentence(error).replace("backbone.pretrained: ", "").partition("; ")
            wrong.setdefault((finding.replace(name, "NAME"), _remedy(remedy)), []).append(name)
    lines = [
        Check("weights", "error", f"{', '.join(who)}: {what if len(who) > 1 else what.replace('NAME', who[0])}", how)
        for (what, how), who in wrong.items()
    ]
    if good:
        lines.append(Check("weights", "ok", f"{'there' if context.quick else 'whole'}: {', '.join(good)}"))
    return lines


_NAME = "`export TSD_WEIGHTS=/path/to/weights`"


def _remedy(text: str) -> str:
    """What the error says is to be done, with the command."""
    if "set it" in text:
        return f"Name a folder with the published files: {_NAME}."
    if not text or text.startswith("there is"):
        return f"Put the published files there, or name a folder that has them: {_NAME}."
    return f"{text[0].upper()}{text[1:]}, or name another folder: {_NAME}."


def _look_at(name: str, quick: bool) -> str:
    """The file of a backbone's weights.

    Raises:
        InputError: it is not there.
        CheckpointError: it is not whole, or not the one whose digest its name has.
    """
    from tsd.engine import checkpoint
    from tsd.engine.weights import find_weights

    path = find_weights(name)
    if quick:
        return path.name
    checkpoint.load(path)
    published = _DIGEST.search(path.name)
    if published and not (found := digest(path)).startswith(published[1]):
        raise CheckpointError(f"{path}: its SHA-256 begins with {found[:8]}, and its name says {published[1]}")
    return path.name

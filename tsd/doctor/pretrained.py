"""The ImageNet weights that backbones start from: there, whole, and those of the networks that they are for."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

from tsd.doctor.checks import Check, Context, sentence
from tsd.engine.params import Suite
from tsd.errors import CheckpointError, InputError

_NAME = "`export TSD_WEIGHTS=/path/to/weights`"

_AGAIN = "Fetch it again from where it was published, and compare: `sha256sum {path}`."

_OTHER = "Put that network's published file in its place, or name it in backbone.pretrained; see `ls -l {folder}`."

Problem = tuple[str, str]
"""Finding and remedy."""


def weights(context: Context) -> list[Check]:
    """Whether the ImageNet weights that the suite's backbones start from are there, whole, and fit the backbones."""
    backbones = _backbones(context.suite)
    if not backbones:
        return [Check("weights", "ok", f"suite {context.suite.name} starts from random weights")]
    files: dict[Path, list[str]] = {}
    wrong: dict[Problem, list[str]] = {}
    for name in sorted(backbones):
        try:
            files.setdefault(_find(name), []).append(name)
        except InputError as error:
            wrong.setdefault(_nowhere(name, sentence(error)), []).append(name)
    for path, names in files.items():
        for name, problem in _look_at(path, {name: backbones[name] for name in names}, context.quick).items():
            wrong.setdefault(problem, []).append(name)
    lines = [
        Check("weights", "error", f"{', '.join(who)}: {what if len(who) > 1 else what.replace('NAME', who[0])}", how)
        for (what, how), who in wrong.items()
    ]
    bad = {name for who in wrong.values() for name in who}
    good = [path.name for path, names in files.items() if not bad.issuperset(names)]
    if good:
        lines.append(Check("weights", "ok", f"{'there' if context.quick else 'whole'}: {', '.join(good)}"))
    return lines


def _backbones(suite: Suite) -> dict[str, list[dict[str, Any]]]:
    """Name of weights → the different backbones, as configs, that start from them."""
    from tsd.engine.model import build_model

    found: dict[str, dict[str, dict[str, Any]]] = {}
    for own in suite.settings.values():
        if name := own["backbone"].get("pretrained"):
            config = build_model(own, suite.num_classes, suite.recipe)["backbone"]
            found.setdefault(str(name), {})[json.dumps(config, sort_keys=True)] = config
    return {name: list(configs.values()) for name, configs in found.items()}


def _find(name: str) -> Path:
    from tsd.engine.weights import find_weights

    return find_weights(name)


def _nowhere(name: str, said: str) -> Problem:
    finding, _, text = said.replace("backbone.pretrained: ", "").partition("; ")
    finding = finding.replace(name, "NAME")
    if "can't be read" in finding:
        return finding, "Let yourself read it: `chmod u+rx $TSD_WEIGHTS`."
    if "set it" in text:
        return finding, f"Name a folder with the published files: {_NAME}."
    if not text or text.startswith("there is"):
        return finding, f"Put the published files there, or name a folder that has them: {_NAME}."
    return finding, f"{text[0].upper()}{text[1:]}, or name another folder: {_NAME}."


def _look_at(path: Path, backbones: dict[str, list[dict[str, Any]]], quick: bool) -> dict[str, Problem]:
    """What is wrong with a file for each of the networks that it is found for."""
    from tsd.engine.weights import fit, read_weights

    if not os.access(path, os.R_OK):
        return dict.fromkeys(backbones, (f"{path} can't be read", f"Let yourself read it: `chmod u+r {path}`."))
    if quick:
        return {}
    try:
        state, _ = read_weights(path)
    except CheckpointError as error:
        return dict.fromkeys(backbones, (sentence(error), _AGAIN.format(path=path)))
    found: dict[str, Problem] = {}
    for name, configs in backbones.items():
        for config in configs:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch says for each tensor that the meta device keeps no values
                    fit(_on_meta(config), state, path)
            except CheckpointError as error:
                found.setdefault(name, (sentence(error), _OTHER.format(folder=path.parent)))
    return found


def _on_meta(config: dict[str, Any]) -> Any:
    """A backbone whose tensors have shapes only."""
    import torch
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict
    from mmengine.registry import init_default_scope
    from mmengine.utils import import_modules_from_strings

    import_modules_from_strings(["tsd.models", "tsd.engine.adapters"])
    init_default_scope("mmdet")
    with torch.device("meta"):
        return MODELS.build(ConfigDict(config))

"""The two recipes: every choice of the head in which the paper and the released code differ.

This file imports nothing heavy: :mod:`tsd.engine.params` reads it by its path, for the digests of runs.
"""

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    # Sec. 3.2. Where the paper is silent, the released code speaks: the margin's cap, since the literal Eq. 7 and 8
    # can't be met above 1 - margin, and the gradient of P̂r, which goes through targets and decoding too.
    "paper": {
        "margin_cls": 0.2,
        "margin_loc": 0.2,
        "margin_cap": True,
        "sibling_detach": True,
        "pr_grad": "all",
        "pc_cls_rois": "all",
        "pc_loc_normalizer": "positives",
    },
    # Sense-X/TSD at fb1fdd7: margins of every config.
    "released": {
        "margin_cls": 0.3,
        "margin_loc": 0.3,
        "margin_cap": True,
        "sibling_detach": True,
        "pr_grad": "all",
        "pc_cls_rois": "all",
        "pc_loc_normalizer": "positives",
    },
}

FIRST: dict[str, dict[str, Any]] = {
    "paper": {
        "margin_cls": 0.2,
        "margin_loc": 0.2,
        "margin_cap": True,
        "sibling_detach": True,
        "pr_grad": "pooling",
        "pc_cls_rois": "all",
        "pc_loc_normalizer": "positives",
    },
    "released": {
        "margin_cls": 0.3,
        "margin_loc": 0.3,
        "margin_cap": True,
        "sibling_detach": True,
        "pr_grad": "all",
        "pc_cls_rois": "all",
        "pc_loc_normalizer": "positives",
    },
}
"""The presets as they first were; not to be edited. What :data:`RECIPES` says otherwise enters the digests of runs, so
that a run made by an older preset is not taken for one by today's."""


def recipe_changes(name: str) -> dict[str, Any]:
    """Today's arguments of a recipe that :data:`FIRST` had otherwise or not at all."""
    first = FIRST.get(name, {})
    return {key: value for key, value in RECIPES[name].items() if key not in first or first[key] != value}


def recipe_defaults(name: str) -> dict[str, Any]:
    """Arguments of :class:`tsd.models.TSDBBoxHead` that a recipe sets.

    Raises:
        ValueError: unknown recipe.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    return dict(RECIPES[name])

"""The two recipes: every choice of the head in which the paper and the released code differ."""

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    # Sec. 3.2; the margin's cap is the released code's, since the literal Eq. 7 and 8 can't be met above 1 - margin.
    "paper": {
        "margin_cls": 0.2,
        "margin_loc": 0.2,
        "margin_cap": True,
        "sibling_detach": True,
        "pr_grad": "pooling",
        "pc_cls_rois": "all",
        "pc_loc_normalizer": "positives",
    },
    # Sense-X/TSD at fb1fdd7: margins of every config; P̂r carries gradient through targets and decoding too.
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


def recipe_defaults(name: str) -> dict[str, Any]:
    """Arguments of :class:`tsd.models.TSDBBoxHead` that a recipe sets.

    Raises:
        ValueError: unknown recipe.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    return dict(RECIPES[name])

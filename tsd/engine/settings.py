"""What an experiment's settings say of its detector; light, for what asks no network."""

from tsd.engine.params import Settings


def has_masks(settings: Settings) -> bool:
    """Whether the detector predicts instance masks."""
    return settings["detector"] in ("mask_rcnn", "cascade_mask_rcnn")


def resized_to(settings: Settings) -> tuple[tuple[int, int], ...]:
    """(longer, shorter) sides in pixels that training and evaluation resize pictures to fit; the least of a range."""
    sizes = [settings["input"]["size"], *settings["test"].get("sizes", [])]
    bounds = {(max(size), min(size)) for size in sizes}
    if training := settings["input"].get("train_sizes"):
        bounds.add((min(max(size) for size in training), min(min(size) for size in training)))
    return tuple(sorted(bounds))

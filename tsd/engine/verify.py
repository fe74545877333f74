"""A suite's data, checked before anything is trained on it."""

from pathlib import Path

from tsd.data.coco import load_coco
from tsd.data.formats.coco_archives import verify_folder
from tsd.data.manifest import read_manifest, unpack, verify
from tsd.engine.identity import data_digest, manifest_path, pinned, suite_source
from tsd.engine.params import Suite
from tsd.engine.settings import has_masks, resized_to
from tsd.errors import InputError


def verify_suite(suite: Suite, check_pictures: bool = False) -> dict[str, object]:
    """Check pin, manifest, digests and annotations; restore the pictures from their archive if they are missing.

    Args:
        suite: whose data.
        check_pictures: decode every picture too.

    Raises:
        InputError: anything is missing or differs; the message lists what.
    """
    if suite.is_openimages:
        from tsd.engine.acquire import verify_openimages

        return {
            "suite": suite.name,
            "data_digest": data_digest(suite),
            **verify_openimages(suite, contents=check_pictures),
        }
    if suite.fetched is not None:
        counts = verify_folder(suite.fetched, suite_source(suite))
        if not check_pictures and suite.on_degenerate == "drop":
            return {"suite": suite.name, "data_digest": data_digest(suite), **counts}
    manifest = manifest_path(suite)
    if manifest is not None and suite.fetched is None:
        _verify_generated(suite, manifest)
    masks = any(map(has_masks, suite.settings.values()))
    sizes = sorted({size for settings in suite.settings.values() for size in resized_to(settings)})
    counts, categories = {}, {}
    for split in ("train", "val"):
        content = load_coco(*suite.split(split), check_pictures, suite.on_degenerate, masks, sizes)
        counts[split] = len(content["images"])
        categories[split] = [(category["id"], category["name"]) for category in content["categories"]]
    if categories["train"] != categories["val"]:
        odd = sorted(set(categories["train"]) ^ set(categories["val"]))
        raise InputError(
            f"{suite.split('val')[0]}: categories differ from those of {suite.split('train')[0]}"
            f"{f': {odd[:5]}' if odd else ''}; both files must list the same, in the same order"
        )
    return {"suite": suite.name, "data_digest": data_digest(suite), **counts}


def _verify_generated(suite: Suite, manifest: Path) -> None:
    pin = pinned(suite)
    if not manifest.exists():
        raise InputError(f"{manifest}: no such file; `make data` makes it, `dvc pull data.dvc` fetches it")
    from tsd.data.generate import SceneSpec

    wanted = SceneSpec.from_dict(suite.data["generate"])
    made = read_manifest(manifest).get("spec")
    if made is None or SceneSpec.from_dict(made) != wanted:
        raise InputError(
            f"{manifest}: made with other parameters than data.generate of params/suites/{suite.name}.yaml; "
            "make it again with `tsd data generate --force` and, if data.dvc pins it, `dvc commit data.dvc`"
        )
    folder = manifest.parent
    if not (folder / "train").is_dir() or not (folder / "val").is_dir():
        unpack(folder / "pictures.tar", folder)
    problems = verify(manifest, pin)
    if problems:
        raise InputError("\n".join(problems))

"""Where in a picture a detector classifies and localises an instance well (Figure 1).

The paper shows heat maps of the sibling head and does not print how they were made. Here a proposal of the instance's
own size is moved over the picture. At each position the head sees only the features under that proposal, and says the
probability of the instance's class and the box of that class, of which the IoU with the instance is taken.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tsd.engine.params import Run
from tsd.engine.record import Annotated, annotated_pictures
from tsd.errors import InputError
from tsd.files import atomic_path
from tsd.report.figures import iou
from tsd.report.sensitivity import Instance, Sensitivity, figure1

MARGIN = 0.5
"""How far beyond the instance the proposal's centre goes, in widths and heights of it."""

SHARE = 0.1
"""Of the picture's area, that an instance to look at has."""


def positions(box: np.ndarray, size: tuple[int, int], grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of proposals, evenly over the instance and :data:`MARGIN` around it, inside the picture.

    Args:
        box: (4,) xyxy.
        size: (width, height) of the picture.
        grid: number of positions along each side.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    x = np.linspace(max(0, box[0] - MARGIN * width), min(size[0], box[2] + MARGIN * width), grid)
    y = np.linspace(max(0, box[1] - MARGIN * height), min(size[1], box[3] + MARGIN * height), grid)
    return x, y


def measure(run: Run, checkpoint_path: Path, instances: Sequence[Instance], grid: int = 33) -> list[Sensitivity]:
    """Sensitivity of a detector to where it looks, for some instances of the suite's val pictures.

    Args:
        run: whose detector.
        checkpoint_path: its weights.
        instances: at least one.
        grid: positions along each side.

    Raises:
        InputError: an unusable checkpoint, mmdet 1.x's coordinates, or a picture or class that the suite has not.
    """
    import torch
    from mmengine.dataset import pseudo_collate
    from mmengine.runner import Runner
    from mmengine.structures import InstanceData

    from tsd.engine.config import load_config
    from tsd.engine.predict import load_detector

    if run.settings.get("coordinates", "continuous") != "continuous":
        raise InputError(f"{run.experiment}: its coordinates are legacy; the sensitivity is drawn for continuous ones")
    config = load_config(run)
    model = load_detector(run, config, checkpoint_path)
    dataset = Runner.build_dataloader(config.test_dataloader).dataset
    places = {dataset.get_data_info(place)["img_id"]: place for place in range(len(dataset))}
    classes = list(dataset.metainfo["classes"])
    found = []
    for instance in instances:
        if instance.image_id not in places or instance.name not in classes:
            raise InputError(f"suite {run.suite.name}: no val picture {instance.image_id} with a {instance.name}")
        with torch.inference_mode():
            batch = model.data_preprocessor(pseudo_collate([dataset[places[instance.image_id]]]), False)
            meta = batch["data_samples"][0].metainfo
            features = model.extract_feat(batch["inputs"])
            factor = np.tile(meta["scale_factor"], 2)
            height, width = meta["ori_shape"]
            x, y = positions(instance.box, (width, height), grid)
            proposals = torch.as_tensor(_moved(instance.box, x, y) * factor, dtype=torch.float32)
            given = InstanceData(bboxes=proposals.to(features[0].device))
            (result,) = model.roi_head.predict_bbox(features, [meta], [given], None, rescale=False)
            label = classes.index(instance.name)
            boxes = result.bboxes.reshape(len(proposals), -1, 4)
            own = boxes[:, label if boxes.shape[1] > 1 else 0].cpu().numpy() / factor
            scores = result.scores[:, label].cpu().numpy()
        overlap = iou(own, instance.box[None]).reshape(grid, grid)
        found.append(Sensitivity(instance, x, y, scores.reshape(grid, grid), overlap))
    return found


def _moved(box: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(len(y) · len(x), 4) boxes of the same size, centred at every position, row by row."""
    centre_y, centre_x = (part.ravel() for part in np.meshgrid(y, x, indexing="ij"))
    half = (box[2:] - box[:2]) / 2
    centres = np.stack([centre_x, centre_y], axis=1)
    return np.concatenate([centres - half, centres + half], axis=1)


def choose(pictures: Iterable[Annotated], count: int) -> list[Instance]:
    """Instances to look at: of each picture the one whose share of it is nearest to :data:`SHARE`, the nearest first.

    Larger ones leave no room to move a proposal, smaller ones are a few cells of the pyramid. Those that the picture's
    border cuts come last. The order of the pictures decides between equals.
    """
    found = []
    for image_id, image, boxes, names in pictures:
        with Image.open(image) as picture:
            width, height = picture.size
        cut = (boxes < 1).any(axis=1) | (boxes[:, 2] > width - 1) | (boxes[:, 3] > height - 1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        distance = np.abs(np.log(area / (width * height) / SHARE))
        best = int(np.lexsort((distance, cut))[0])
        found.append((bool(cut[best]), float(distance[best]), Instance(image_id, image, boxes[best], names[best])))
    return [instance for _, _, instance in sorted(found, key=lambda entry: entry[:2])[:count]]


def find(pictures: Iterable[Annotated], picture: str, place: int) -> Instance:
    """The instance of that place, from 0, among those of the picture with that id, crowds left out.

    Raises:
        InputError: no such picture or instance.
    """
    for image_id, image, boxes, names in pictures:
        if str(image_id) == picture:
            if not 0 <= place < len(names):
                raise InputError(f"--instance {place}: picture {picture} has {len(names)}: {', '.join(names)}, from 0")
            return Instance(image_id, image, boxes[place], names[place])
    raise InputError(f"--picture {picture}: no val picture of the suite with that id has an instance")


def draw(
    run: Run, checkpoint_path: Path | None, picture: str | None, place: int, grid: int, output: Path
) -> Sensitivity:
    """Figure 1 of one instance: ``output`` (PNG), and beside it the maps as ``.npz``: x, y, probability, iou, box.

    Args:
        run: whose detector.
        checkpoint_path: its weights; None: the run's own.
        picture: id of a val picture; None: the instance that :func:`choose` finds.
        place: of the instance among the picture's.
        grid: positions along each side.
        output: PNG.

    Raises:
        InputError: as :func:`measure` and :func:`find`, no instance at all, or a suite of Open Images.
    """
    if run.suite.is_openimages:
        raise InputError(f"suite {run.suite.name}: the sensitivity is drawn for classes of COCO, not of Open Images")
    every = annotated_pictures(run.suite.data)
    instances = choose(every, 1) if picture is None else [find(every, picture, place)]
    if not instances:
        raise InputError(f"suite {run.suite.name}: its val pictures have no instances")
    (found,) = measure(run, checkpoint_path or run.checkpoint, instances, grid)
    figure1({run.settings.get("title", run.experiment): [found]}, output)
    with atomic_path(output.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez(file, x=found.x, y=found.y, probability=found.probability, iou=found.iou, box=found.instance.box)
    return found

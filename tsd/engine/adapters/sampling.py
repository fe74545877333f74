"""Sampling of anchors and RoIs that depends on (seed, position of the picture), not on the process or the batch."""

from typing import Any

import numpy as np
import torch
from mmdet.models.task_modules.samplers import RandomSampler, SamplingResult
from mmdet.registry import TASK_UTILS
from torch import Tensor


@TASK_UTILS.register_module()
class PositionSampler(RandomSampler):
    """mmdet's ``RandomSampler``, drawing the same for a picture wherever it is processed.

    :class:`tsd.engine.adapters.loading.SeededDataset` notes each picture's position with its ground truth.

    Args:
        seed: of the run.
        stage: 0 for the RPN, 1 and on for the stages of the RoI head, so that they draw differently.
        **kwargs: of ``RandomSampler``.
    """

    def __init__(self, *args: Any, seed: int, stage: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed, self.stage = seed, stage
        self.generator = torch.Generator()

    def sample(self, assign_result: Any, pred_instances: Any, gt_instances: Any, **kwargs: Any) -> SamplingResult:
        """As the parent's.

        Raises:
            ValueError: the ground truth does not say its picture's position.
        """
        position = gt_instances.metainfo.get("position")
        if position is None:
            raise ValueError("PositionSampler: gt_instances have no position; the training set must be a SeededDataset")
        words = np.random.SeedSequence([self.seed, 5, self.stage, position]).generate_state(2)
        self.generator.manual_seed(int(words[0]) << 32 | int(words[1]))
        return super().sample(assign_result, pred_instances, gt_instances, **kwargs)

    def random_choice(self, gallery: Tensor, num: int) -> Tensor:
        """``num`` of ``gallery``'s elements, none twice."""
        permutation = torch.randperm(len(gallery), generator=self.generator)[:num]
        return gallery[permutation.to(gallery.device)]

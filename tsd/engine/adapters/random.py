"""Random numbers as a function of (seed, position): there is no random state to save or to lose."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


def seed_all(*key: int) -> None:
    """Seed python, numpy and torch (all devices) from a key of non-negative integers."""
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


@HOOKS.register_module()
class StatelessRandomHook(Hook):
    """Before each step, seed what the model draws (RPN and RoI sampling) from (seed, step, rank)."""

    priority = "VERY_HIGH"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed from the step that is about to run."""
        seed_all(self.seed, 1, runner.iter, get_rank())

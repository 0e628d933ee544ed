"""Initial weights that depend on a seed alone."""

from collections.abc import Callable

import torch
from torch import nn


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """The module that `build` makes, with the initial weights of a seed; PyTorch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()

"""Statistics for the batch norms of a network that is not trained."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def calibrate_batchnorm(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of all batch norms by their mean over batches; weights stay, as does the mode.

    An untrained network in evaluation mode divides by the initial variance of 1, which is that of no data; a trained
    one by the variance of its views. Compare the two only after this.

    Args:
        module: changed in place.
        batches: inputs of `module`, at least one.

    Raises:
        ValueError: no batch.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept, modes = [norm.momentum for norm in norms], {m: m.training for m in module.modules()}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches instead of a moving one
    seen = 0
    try:
        module.train()
        for batch in batches:
            module(batch)
            seen += 1
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
        for m, mode in modes.items():
            m.training = mode
    if not seen:
        raise ValueError("batches: expected at least one, got none")

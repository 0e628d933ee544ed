"""How far a number measured on a finite test set can be trusted."""

import torch
from torch import Tensor


@torch.no_grad()
def bootstrap_interval(
    values: Tensor, *, level: float = 0.95, resamples: int = 2000, generator: torch.Generator | None = None
) -> tuple[float, float]:
    """A percentile bootstrap interval of the mean (Efron 1979): test points are redrawn with replacement.

    The interval of an accuracy is that of `logits.argmax(1) == labels`; of a paired difference, that of the difference
    of two such vectors. It says how much the test set matters, not how much the seed of the training does.

    Args:
        values: (N,), any dtype.
        level: probability that the interval should cover.
        resamples: number of redrawn test sets.
        generator: of the draws, on the device of `values`.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: no values, another shape, level outside (0, 1), resamples < 1.
    """
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values: expected shape (N,) with N >= 1, got {tuple(values.shape)}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number in (0, 1), got {level}")
    if resamples < 1:
        raise ValueError(f"resamples: expected >= 1, got {resamples}")
    values = values.double()
    means = []
    for count in torch.arange(resamples).split(max(1, 2**24 // len(values))):  # bounded memory: 128 MB of indices
        size = (len(count), len(values))
        drawn = torch.randint(len(values), size, generator=generator, device=values.device)
        means.append(values[drawn].mean(1))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device=values.device)
    low, high = torch.quantile(torch.cat(means), ends).tolist()
    return low, high

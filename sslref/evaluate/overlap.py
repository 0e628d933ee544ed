"""How well a set of masks covers a set of true masks: the best overlap of each."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def best_iou(found: Tensor, true: Tensor) -> Tensor:
    """For every true mask the largest intersection over union with one of the masks found, each on its own.

    Nothing keeps one mask from being the best for several true ones. Its mean is the average best overlap; the share
    above a threshold is the recall.

    Args:
        found: (n, H, W) bool, n may be 0. true: (m, H, W) bool.

    Returns:
        (m,) float64; 0 where nothing was found, or for two empty masks.

    Raises:
        ValueError: shapes that do not fit. TypeError: masks that are not bool.
    """
    for name, masks in {"found": found, "true": true}.items():
        if masks.ndim != 3 or masks.shape[1:] != true.shape[1:]:
            raise ValueError(f"{name}: expected shape (n, {', '.join(map(str, true.shape[1:]))}), got {masks.shape}")
        if masks.dtype != torch.bool:
            raise TypeError(f"{name}: expected torch.bool, got {masks.dtype}")
    if not len(found):
        return torch.zeros(len(true), dtype=torch.float64, device=true.device)
    with torch.autocast(true.device.type, enabled=False):
        a, b = (masks.flatten(1).double() for masks in (true, found))
        both = a @ b.T
        either = a.sum(1)[:, None] + b.sum(1) - both
        return (both / either.clamp(min=1)).amax(1)


def average_recall(best: Tensor) -> float:
    """Share of true masks whose best overlap reaches a threshold, the mean over the thresholds 0.5, 0.55 … 0.95.

    Args:
        best: (m,) overlaps, as `best_iou` gives them, of the true masks of one picture or of many.

    Raises:
        ValueError: not (m,), or no true mask.
    """
    if best.ndim != 1 or not len(best):
        raise ValueError(f"best: expected shape (m,), m >= 1, got {tuple(best.shape)}")
    thresholds = torch.arange(50, 100, 5, device=best.device) / 100 - 1e-6  # an overlap of 0.7 reaches 0.7
    return (best[:, None] >= thresholds).double().mean().item()


@torch.no_grad()
def nested_share(levels: Sequence[Tensor]) -> float:
    """Share of pairs of masks from different levels that are disjoint or the finer inside the coarser; 1 without pairs.

    Args:
        levels: (n, H, W) bool masks of each level, from fine to coarse.
    """
    rows = [masks.flatten(1).double() for masks in levels]
    pairs, good = 0, 0.0
    for a, b in itertools.combinations(rows, 2):
        with torch.autocast(a.device.type, enabled=False):
            both = a @ b.T
        good += ((both == 0) | (both == a.sum(1)[:, None])).sum().item()
        pairs += both.numel()
    return good / pairs if pairs else 1.0

"""How well groups found without labels match the labels."""

import torch
from torch import Tensor


def _check_maps(name: str, maps: Tensor, other_name: str, other: Tensor) -> None:
    if maps.shape != other.shape:
        raise ValueError(f"{name}: expected the shape of {other_name}, {tuple(other.shape)}, got {tuple(maps.shape)}")
    if maps.numel() == 0:
        raise ValueError(f"{name}: expected one element at least, got shape {tuple(maps.shape)}")
    for key, value in {name: maps, other_name: other}.items():
        if value.is_floating_point() or value.is_complex():
            raise TypeError(f"{key}: expected integers, got {value.dtype}")


@torch.no_grad()
def _contingency(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """(B, N) labels twice and which of them count -> (B, labels of a, labels of b) float64 counts."""
    a_names, a = torch.unique(a, return_inverse=True)
    b_names, b = torch.unique(b, return_inverse=True)
    shape = (len(a), len(a_names), len(b_names))
    cell = (a * shape[2] + b) + torch.arange(shape[0], device=a.device)[:, None] * (shape[1] * shape[2])
    return torch.bincount(cell[weight], minlength=shape[0] * shape[1] * shape[2]).view(shape).double()


def _adjusted_rand(counts: Tensor) -> Tensor:
    """Adjusted Rand index (Hubert and Arabie 1985) of contingency tables (B, P, T) -> (B,); 1 for full agreement."""
    pairs = counts.square().sum((1, 2))
    same_a, same_b = counts.sum(2).square().sum(1), counts.sum(1).square().sum(1)
    total = counts.sum((1, 2)).square()
    # ordered pairs: together in both, in b alone, in a alone, in neither
    both, only_b, only_a = pairs - counts.sum((1, 2)), same_b - pairs, same_a - pairs
    neither = total - same_a - same_b + pairs
    agree = (only_a == 0) & (only_b == 0)
    bottom = (both + only_a) * (only_a + neither) + (both + only_b) * (only_b + neither)
    return torch.where(agree, 1.0, 2 * (both * neither - only_a * only_b) / bottom)


def ari(a: Tensor, b: Tensor) -> float:
    """The adjusted Rand index of two labellings of the same things, any shape: 1 = the same groups, 0 = chance.

    Raises:
        ValueError: shapes differ, or nothing to compare.
        TypeError: labels that are not integers.
    """
    _check_maps("a", a, "b", b)
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(a.flatten().cpu().numpy(), b.flatten().cpu().numpy()))


def nmi(a: Tensor, b: Tensor) -> float:
    """Normalised mutual information of two labellings of the same things, any shape; arithmetic mean of the entropies.

    Raises:
        ValueError: shapes differ, or nothing to compare.
        TypeError: labels that are not integers.
    """
    _check_maps("a", a, "b", b)
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(a.flatten().cpu().numpy(), b.flatten().cpu().numpy()))


@torch.no_grad()
def foreground_ari(pred: Tensor, target: Tensor, *, background: int = 0) -> Tensor:
    """The adjusted Rand index of each picture, over the pixels whose target is not background.

    Args:
        pred: (B, H, W) integers, any labels.
        target: (B, H, W) integers.
        background: the target label that is left out.

    Returns:
        (B,) float64; nan for a picture without foreground.

    Raises:
        ValueError: shapes differ, not 3-D, or empty.
        TypeError: labels that are not integers.
    """
    _check_maps("pred", pred, "target", target)
    if pred.ndim != 3:
        raise ValueError(f"pred: expected shape (B, H, W), got {tuple(pred.shape)}")
    foreground = (target != background).flatten(1)
    index = _adjusted_rand(_contingency(pred.flatten(1), target.flatten(1), foreground))
    return torch.where(foreground.any(1), index, torch.nan)


@torch.no_grad()
def hungarian_miou(pred: Tensor, target: Tensor, *, num_classes: int, ignore_index: int | None = None) -> float:
    """Mean IoU after the one-to-one renaming of the predicted classes that matches most pixels.

    One confusion matrix over all pixels of the batch; the mean goes over classes that the target has.

    Args:
        pred: integers in [0, num_classes), any shape; anything where the target is ignored.
        target: integers in [0, num_classes) or `ignore_index`, the same shape.
        num_classes: K.
        ignore_index: pixels with this target do not count.

    Raises:
        ValueError: shapes differ, labels outside the range, no pixel that counts, num_classes < 1.
        TypeError: labels that are not integers.
    """
    _check_maps("pred", pred, "target", target)
    if num_classes < 1:
        raise ValueError(f"num_classes: expected >= 1, got {num_classes}")
    if ignore_index is not None:
        counted = target != ignore_index
        pred, target = pred[counted], target[counted]
        if target.numel() == 0:
            raise ValueError(f"target: expected a pixel other than ignore_index {ignore_index}, got none")
    for name, maps in {"pred": pred, "target": target}.items():
        low, high = int(maps.min()), int(maps.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"{name}: expected labels in [0, {num_classes}), got {low} to {high}")
    from scipy.optimize import linear_sum_assignment

    cell = target.flatten().long() * num_classes + pred.flatten().long()
    confusion = torch.bincount(cell, minlength=num_classes**2).view(num_classes, num_classes).cpu().numpy()
    rows, columns = linear_sum_assignment(confusion, maximize=True)  # rows are 0, 1, 2 ... as the matrix is square
    matched = confusion[rows, columns]
    in_target = confusion.sum(1)
    union = in_target + confusion.sum(0)[columns] - matched
    present = in_target > 0
    return float((matched[present] / union[present]).mean())

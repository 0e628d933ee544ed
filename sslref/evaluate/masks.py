"""Region and boundary similarity of masks, as in the DAVIS evaluation (Perazzi et al. 2016, Sec. 4)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _check_masks(pred: Tensor, target: Tensor) -> None:
    if pred.ndim != 3 or pred.numel() == 0:
        raise ValueError(f"pred: expected shape (B, H, W), got {tuple(pred.shape)}")
    if pred.shape != target.shape:
        raise ValueError(f"target: expected the shape of pred, {tuple(pred.shape)}, got {tuple(target.shape)}")
    for name, mask in {"pred": pred, "target": target}.items():
        if mask.dtype != torch.bool:
            raise TypeError(f"{name}: expected torch.bool, got {mask.dtype}")


@torch.no_grad()
def region_j(pred: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of each mask; two empty masks: 1.

    Args:
        pred: (B, H, W) bool.
        target: (B, H, W) bool.

    Returns:
        (B,) float64.

    Raises:
        ValueError: shapes differ, not 3-D, or empty.
        TypeError: masks that are not bool.
    """
    _check_masks(pred, target)
    union = (pred | target).sum((1, 2)).double()
    return torch.where(union > 0, (pred & target).sum((1, 2)) / union, 1.0)


def _boundary(mask: Tensor) -> Tensor:
    """Pixels that differ from their right, lower or lower-right neighbour; missing neighbours do not count."""
    edge = torch.zeros_like(mask)
    edge[:, :, :-1] |= mask[:, :, :-1] != mask[:, :, 1:]
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:, :-1, :-1] |= mask[:, :-1, :-1] != mask[:, 1:, 1:]
    return edge


def _near(boundary: Tensor, radius: float) -> Tensor:
    """Pixels with a boundary pixel within the Euclidean distance `radius`."""
    reach = min(math.floor(radius), max(boundary.shape[1:]) - 1)
    offset = torch.arange(-reach, reach + 1, device=boundary.device)
    disc = (offset[:, None].square() + offset.square() <= radius**2).float()
    with torch.autocast(boundary.device.type, enabled=False):
        hits = F.conv2d(boundary[:, None].float(), disc[None, None], padding=reach)[:, 0]
    return hits > 0.5  # whole numbers, up to the rounding of a fast convolution


@torch.no_grad()
def boundary_f(pred: Tensor, target: Tensor, *, tolerance: float = 0.008) -> Tensor:
    """F measure of each mask's boundary: harmonic mean of precision and recall of boundary pixels.

    A pixel is on the boundary if it differs from its right, lower or lower-right neighbour (inside the picture), and it
    is matched if the other boundary has a pixel within the Euclidean distance r. Two empty boundaries: 1; one: 0.

    Args:
        pred: (B, H, W) bool.
        target: (B, H, W) bool.
        tolerance: r in pixels if >= 1, else r = ceil(tolerance * length of the diagonal).

    Returns:
        (B,) float64.

    Raises:
        ValueError: shapes differ, not 3-D, or empty; tolerance <= 0.
        TypeError: masks that are not bool.
    """
    _check_masks(pred, target)
    if not tolerance > 0:
        raise ValueError(f"tolerance: expected > 0, got {tolerance}")
    radius = tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(*pred.shape[1:]))
    found, true = _boundary(pred), _boundary(target)
    count_found, count_true = found.sum((1, 2)).double(), true.sum((1, 2)).double()
    precision = (found & _near(true, radius)).sum((1, 2)) / count_found
    recall = (true & _near(found, radius)).sum((1, 2)) / count_true
    f = 2 * precision * recall / (precision + recall)
    # 0 / 0 above wherever a boundary is empty or nothing matches
    return torch.where((count_found == 0) & (count_true == 0), 1.0, f.nan_to_num(nan=0.0))

"""How close two pictures are."""

import torch
import torch.nn.functional as F
from torch import Tensor


def _check_pair(pred: Tensor, target: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    if pred.shape != target.shape:
        raise ValueError(f"target: expected the shape of pred, {tuple(pred.shape)}, got {tuple(target.shape)}")
    if pred.ndim < 2 or pred.numel() == 0:
        raise ValueError(f"pred: expected shape (B, ...), not empty, got {tuple(pred.shape)}")
    if not data_range > 0:
        raise ValueError(f"data_range: expected > 0, got {data_range}")
    dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    return pred.to(dtype), target.to(dtype)


def psnr(pred: Tensor, target: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, 10 log10(R^2 / max(MSE, 1e-12)).

    Args:
        pred: (B, ...).
        target: the same shape.
        data_range: R, the largest possible difference of two values.

    Returns:
        (B,), float32 at least; equal pictures of range 1 have 120 dB.

    Raises:
        ValueError: shapes differ, empty, data_range <= 0.
    """
    pred, target = _check_pair(pred, target, data_range)
    error = (pred - target).square().flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / error.clamp_min(1e-12))


def ssim(pred: Tensor, target: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Structural similarity of each picture (Wang et al. 2004, Eq. 13), the mean over positions and channels.

    An 11x11 Gaussian window with sigma 1.5 inside the picture, population covariance, K = (0.01, 0.03).

    Args:
        pred: (B, C, H, W).
        target: the same shape.
        data_range: the largest possible difference of two values.

    Returns:
        (B,), float32 at least; differentiable.

    Raises:
        ValueError: shapes differ, not 4-D, sides smaller than 11, data_range <= 0.
    """
    pred, target = _check_pair(pred, target, data_range)
    if pred.ndim != 4 or min(pred.shape[2:]) < 11:
        raise ValueError(f"pred: expected shape (B, C, H, W) with sides >= 11, got {tuple(pred.shape)}")
    taps = torch.exp(-torch.arange(-5, 6, device=pred.device, dtype=pred.dtype).square() / (2 * 1.5**2))
    taps = taps / taps.sum()
    moments = torch.stack([pred, target, pred * pred, target * target, pred * target])
    with torch.autocast(pred.device.type, enabled=False):
        flat = moments.flatten(0, 2)[:, None]
        flat = F.conv2d(F.conv2d(flat, taps.view(1, 1, 11, 1)), taps.view(1, 1, 1, 11))
    mean_p, mean_t, square_p, square_t, product = flat.view(5, *pred.shape[:2], *flat.shape[2:])
    var_p, var_t, cov = square_p - mean_p**2, square_t - mean_t**2, product - mean_p * mean_t
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    top = (2 * mean_p * mean_t + c1) * (2 * cov + c2)
    return (top / ((mean_p**2 + mean_t**2 + c1) * (var_p + var_t + c2))).mean((1, 2, 3))

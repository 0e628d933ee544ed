"""What a certified classifier guarantees."""

import torch
from torch import Tensor


@torch.no_grad()
def certified_accuracy(predictions: Tensor, radii: Tensor, targets: Tensor, at: Tensor) -> Tensor:
    """The share of test points that are classified rightly and certified at each radius (Cohen et al. 2019, Sec. 4).

    Args:
        predictions: (N,) int64, -1 = the classifier abstains, which is never right.
        radii: (N,), the certified radius of each point.
        targets: (N,) int64.
        at: (R,), the radii to evaluate.

    Returns:
        (R,) float64, the mean of `(prediction == target) & (radius >= r)`.

    Raises:
        ValueError: shapes that do not fit, or no test point.
    """
    if predictions.ndim != 1 or len(predictions) == 0:
        raise ValueError(f"predictions: expected shape (N,) with N >= 1, got {tuple(predictions.shape)}")
    for name, value in {"radii": radii, "targets": targets}.items():
        if value.shape != predictions.shape:
            raise ValueError(f"{name}: expected shape {tuple(predictions.shape)}, got {tuple(value.shape)}")
    if at.ndim != 1:
        raise ValueError(f"at: expected shape (R,), got {tuple(at.shape)}")
    right = (predictions == targets) & (predictions >= 0)
    return (right & (radii >= at[:, None])).double().mean(1)

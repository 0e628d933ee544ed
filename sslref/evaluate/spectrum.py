"""How many directions an embedding uses: its singular values, and one number that counts them."""

import torch
from torch import Tensor

from .probe import _check_matrix, _float64


@torch.no_grad()
def spectrum(z: Tensor, *, center: bool = False) -> Tensor:
    """The singular values of a batch of embeddings, largest first.

    Values that rounding alone explains are set to 0, so that a batch of equal rows has one value, or none when its
    mean is taken away. Squares divided by N are, with `center`, the eigenvalues of the (biased) covariance.

    Args:
        z: (N, D), one row a sample, as it comes: normalise the rows before if only directions count.
        center: take the mean row away first. A common shift of all rows is a direction of its own otherwise.

    Returns:
        (min(N, D),) float64.

    Raises:
        ValueError: another shape, nothing in it, or numbers that are not finite.
    """
    _check_matrix("z", z)
    precision = torch.finfo(z.dtype).eps if z.is_floating_point() else 0.0
    x = _float64(z)
    if not x.isfinite().all():
        raise ValueError("z: expected finite numbers, got nan or inf")
    noise = precision * x.norm()
    values = torch.linalg.svdvals(x - x.mean(0) if center else x)
    return values.where(values > noise, 0)


@torch.no_grad()
def effective_rank(z: Tensor, *, center: bool = False) -> float:
    """The exponential of the entropy of the singular values divided by their sum (Roy and Vetterli 2007).

    k equal singular values give k. Without `center`, a batch that collapsed to one point gives 1; with it, 0, because
    nothing is left.

    Args:
        z, center: as in `spectrum`.

    Returns:
        A number from 1 to min(N, D), or 0 where all singular values are 0.

    Raises:
        ValueError: as `spectrum`.
    """
    values = spectrum(z, center=center)
    total = values.sum()
    return torch.special.entr(values / total).sum().exp().item() if total > 0 else 0.0

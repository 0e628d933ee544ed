"""Losses that several papers use, the rows of all processes, and two measures of what a loss achieved."""

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        # Every process holds the loss of the whole batch, so what reaches this process's rows is the sum over
        # processes. The average that DistributedDataParallel takes afterwards divides it by their number again.
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.narrow(0, dist.get_rank() * ctx.rows, ctx.rows)


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks, with gradients; in one process, x itself.

    A loss of the gathered rows has in every process the value that one process has on the joined batch, and after
    DistributedDataParallel's average the parameters have its gradient.

    Args:
        x: (n, ...), of the same shape in every process.

    Returns:
        (n * processes, ...).
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return _Gather.apply(x)


def info_nce(q: Tensor, k: Tensor, queue: Tensor, *, temperature: float = 0.2) -> Tensor:
    """-log of the softmax share of each query's own key among that key and the queue (He et al. 2020, Eq. 1).

    Args:
        q: (N, D) queries. k: (N, D), key i belongs to query i; detached here. queue: (K, D) negatives, detached here.
            All three are normalised here.
        temperature: 0.07 in MoCo, 0.2 in MoCo v2.

    Returns:
        Scalar, mean over the queries.

    Raises:
        ValueError: other shapes, no query, temperature <= 0.
    """
    if q.ndim != 2 or q.shape != k.shape or not len(q):
        raise ValueError(f"q, k: expected one shape (N, D) with N >= 1, got {tuple(q.shape)} and {tuple(k.shape)}")
    if queue.ndim != 2 or queue.shape[1] != q.shape[1]:
        raise ValueError(f"queue: expected shape (K, {q.shape[1]}), got {tuple(queue.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    with torch.autocast(q.device.type, enabled=False):  # cosines over a small temperature need full precision
        q, k, queue = (F.normalize(x.float() if x.dtype.itemsize < 4 else x, dim=1) for x in (q, k, queue))
        logits = torch.cat([(q * k.detach()).sum(1, keepdim=True), q @ queue.detach().to(q.dtype).T], dim=1)
        return F.cross_entropy(logits / temperature, torch.zeros(len(q), dtype=torch.int64, device=q.device))


def byol_loss(p: Tensor, t: Tensor) -> Tensor:
    """2 - 2 cos(p, t), the squared distance of unit vectors; one direction (Grill et al. 2020, Eq. 2).

    Args:
        p: (N, D) predictions. t: (N, D) targets, detached here.

    Returns:
        Scalar, mean over the batch; 0 for the same direction, 4 for the opposite one.
    """
    if p.shape != t.shape or p.ndim != 2 or not len(p):
        raise ValueError(f"p, t: expected one shape (N, D) with N >= 1, got {tuple(p.shape)} and {tuple(t.shape)}")
    return 2 - 2 * F.cosine_similarity(p, t.detach(), dim=1).mean()


def alignment(z1: Tensor, z2: Tensor) -> Tensor:
    """Mean squared distance between the unit vectors of a pair (Wang & Isola 2020); 0 where all pairs agree.

    Args:
        z1, z2: (N, D), normalised here.

    Raises:
        ValueError: shapes differ or are not (N, D) with N >= 1.
    """
    if z1.ndim != 2 or z1.shape != z2.shape or len(z1) < 1:
        raise ValueError(f"z1, z2: expected one shape (N, D), got {tuple(z1.shape)} and {tuple(z2.shape)}")
    return (F.normalize(z1, dim=1) - F.normalize(z2, dim=1)).square().sum(1).mean()


def uniformity(z: Tensor, *, t: float = 2.0) -> Tensor:
    """Logarithm of the mean of exp(-t distance^2) over pairs of unit vectors (Wang & Isola 2020).

    0 where all vectors are equal; the lower, the more evenly they cover the sphere (-2 t at most in many dimensions).

    Args:
        z: (N, D), normalised here.

    Raises:
        ValueError: not (N, D) with N >= 2.
    """
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"z: expected shape (N, D) with at least two rows, got {tuple(z.shape)}")
    return torch.pdist(F.normalize(z, dim=1)).square().mul(-t).exp().mean().log()

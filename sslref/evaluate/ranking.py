"""Scores that only depend on order: detection and retrieval."""

import torch
from torch import Tensor


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Probability that a positive has a higher score than a negative, ties counted half.

    Args:
        scores: any shape, higher = positive.
        labels: the same shape, 0 or 1, or bool.

    Raises:
        ValueError: shapes differ, one class only, other labels, scores that are not finite.
    """
    if scores.shape != labels.shape:
        raise ValueError(f"labels: expected the shape of scores, {tuple(scores.shape)}, got {tuple(labels.shape)}")
    values = torch.unique(labels).tolist()
    if values != [0, 1]:
        raise ValueError(f"labels: expected both 0 and 1 and nothing else, got {values[:5]}")
    if not scores.isfinite().all():
        raise ValueError("scores: expected finite numbers, got nan or inf")
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels.flatten().cpu().numpy(), scores.detach().flatten().cpu().double().numpy()))


@torch.no_grad()
def recall_at_k(similarity: Tensor, match: Tensor, *, k: int = 1) -> float:
    """The share of queries whose one match is among the k most similar; ties go to the lower index.

    Args:
        similarity: (Q, G), one row a query.
        match: (Q,) int64, the index of each query's match.
        k: number of results that are looked at.

    Raises:
        ValueError: shapes that do not fit, no query, k outside [1, G], an index outside [0, G), nan.
        TypeError: indices that are not integers.
    """
    if similarity.ndim != 2 or similarity.numel() == 0:
        raise ValueError(f"similarity: expected shape (Q, G), got {tuple(similarity.shape)}")
    queries, gallery = similarity.shape
    if match.shape != (queries,):
        raise ValueError(f"match: expected shape ({queries},), got {tuple(match.shape)}")
    if match.is_floating_point() or match.dtype == torch.bool:
        raise TypeError(f"match: expected integers, got {match.dtype}")
    if not 1 <= k <= gallery:
        raise ValueError(f"k: expected a number in [1, {gallery}], got {k}")
    if int(match.min()) < 0 or int(match.max()) >= gallery:
        raise ValueError(f"match: expected indices in [0, {gallery}), got {int(match.min())} to {int(match.max())}")
    if similarity.isnan().any():
        raise ValueError("similarity: expected numbers, got nan")
    match = match.long()[:, None]
    own = similarity.gather(1, match)
    earlier = torch.arange(gallery, device=similarity.device) < match
    rank = ((similarity > own) | ((similarity == own) & earlier)).sum(1)
    return (rank < k).double().mean().item()

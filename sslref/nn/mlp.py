"""The small perceptron behind an encoder: a projection or a prediction head."""

from torch import nn


def mlp(in_dim: int, hidden: int, out_dim: int, *, bias: bool = False) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear: (B, in_dim) -> (B, out_dim).

    Args:
        bias: of the first layer, from which batch norm takes the mean away again.
    """
    return nn.Sequential(
        nn.Linear(in_dim, hidden, bias=bias), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out_dim)
    )

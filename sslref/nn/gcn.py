"""A graph convolutional network of two layers (Kipf and Welling 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def undirected(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Both directions of every edge, each once, sorted, without self loops: (2, E) int64 -> (2, E') int64.

    Raises:
        ValueError: another shape, or an index outside [0, num_nodes).
    """
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index: expected shape (2, E), got {tuple(edge_index.shape)}")
    if num_nodes < 1:
        raise ValueError(f"num_nodes: expected >= 1, got {num_nodes}")
    if edge_index.numel():
        low, high = (int(end) for end in edge_index.aminmax())
        if low < 0 or high >= num_nodes:
            raise ValueError(f"edge_index: expected indices in [0, {num_nodes}), got {low} to {high}")
    row, col = edge_index[:, edge_index[0] != edge_index[1]]
    # one number a pair: much quicker to sort than columns
    pairs = torch.unique(torch.cat([row * num_nodes + col, col * num_nodes + row]))
    return torch.stack([pairs // num_nodes, pairs % num_nodes])


def gcn_norm(edge_index: Tensor, num_nodes: int, *, sparse: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """The propagation matrix D^(-1/2) (A + I) D^(-1/2) of an undirected graph (Kipf and Welling 2017, Eq. 9).

    Args:
        edge_index: (2, E) int64, read as undirected; duplicates and self loops change nothing.
        num_nodes: N.
        sparse: return a sparse COO tensor, for graphs whose dense matrix is too large.
        dtype: of the result; the default dtype if None.

    Returns:
        (N, N), on the device of `edge_index`.

    Raises:
        ValueError: another shape, or an index outside [0, num_nodes).
    """
    nodes = torch.arange(num_nodes, device=edge_index.device)
    row, col = torch.cat([undirected(edge_index, num_nodes), torch.stack([nodes, nodes])], dim=1)
    scale = torch.bincount(row, minlength=num_nodes).to(dtype or torch.get_default_dtype()).rsqrt()
    values = scale[row] * scale[col]
    if sparse:
        index = torch.stack([row, col])
        return torch.sparse_coo_tensor(index, values, (num_nodes, num_nodes), check_invariants=False).coalesce()
    return values.new_zeros(num_nodes, num_nodes).index_put_((row, col), values)


class GCN(nn.Module):
    """Z = A_hat ReLU(A_hat X W1 + b1) W2 + b2, with dropout on the hidden layer (Kipf and Welling 2017, Eq. 9).

    Args:
        in_dim: features of a node.
        hidden: width of the hidden layer.
        num_classes: width of the output.
        dropout: share of hidden units set to 0 in training.
    """

    def __init__(self, in_dim: int, hidden: int, num_classes: int, *, dropout: float = 0.5):
        super().__init__()
        self.first, self.second = nn.Linear(in_dim, hidden), nn.Linear(hidden, num_classes)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.first, self.second):  # Glorot, as the authors
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def hidden(self, x: Tensor, a_hat: Tensor) -> Tensor:
        """The hidden layer, (N, hidden), from features (N, in_dim) and the matrix of `gcn_norm` (N, N).

        Raises:
            ValueError: shapes that do not fit.
        """
        if x.ndim != 2 or x.shape[1] != self.first.in_features:
            raise ValueError(f"x: expected shape (N, {self.first.in_features}), got {tuple(x.shape)}")
        if a_hat.shape != (len(x), len(x)):
            raise ValueError(f"a_hat: expected shape {(len(x), len(x))}, got {tuple(a_hat.shape)}")
        return F.relu(_propagate(a_hat, self.first, x))

    def forward(self, x: Tensor, a_hat: Tensor) -> Tensor:
        """The logits, (N, num_classes)."""
        return self.output(self.hidden(x, a_hat), a_hat)

    def output(self, hidden: Tensor, a_hat: Tensor) -> Tensor:
        """The logits, (N, num_classes), from the hidden layer, (N, hidden)."""
        return _propagate(a_hat, self.second, self.dropout(hidden))


def _propagate(a_hat: Tensor, layer: nn.Linear, x: Tensor) -> Tensor:
    # the weights first: they shrink what the large matrix has to move
    x = F.linear(x, layer.weight)
    if not a_hat.is_sparse:
        return a_hat @ x + layer.bias
    with torch.autocast(x.device.type, enabled=False):  # sparse products have no half-precision kernels everywhere
        return a_hat @ x.to(a_hat.dtype) + layer.bias

"""Connected components of a graph, on any device."""

import torch
from torch import Tensor


@torch.no_grad()
def connected_components(edge_index: Tensor, count: int) -> Tensor:
    """The component of each of `count` nodes, components numbered in the order of their lowest members.

    Every node points at a lower member of its component, first at itself. In a round, what the ends of an edge point at
    is joined, the higher to the lower; then every node jumps to what its target points at, until all point at a root.
    There is no loop over nodes or edges; the host waits for the device to know whether anything has moved.

    Args:
        edge_index: (2, E) int64, nodes 0 to count - 1, in any order and direction.

    Returns:
        (count,) int64.

    Raises:
        ValueError: edge_index is not (2, E).
    """
    if edge_index.ndim != 2 or len(edge_index) != 2:
        raise ValueError(f"edge_index: expected shape (2, E), got {tuple(edge_index.shape)}")
    itself = torch.arange(count, device=edge_index.device)
    root, before = itself, None
    while before is None or not torch.equal(root, before):
        before = root
        ends = root[edge_index]
        root = root.scatter_reduce(0, ends.amax(0), ends.amin(0), "amin")
        while not torch.equal(further := root[root], root):
            root = further
    return ((root == itself).cumsum(0) - 1)[root]

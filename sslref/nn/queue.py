"""A first-in, first-out memory of embeddings."""

import torch
from torch import Tensor, nn


class MemoryQueue(nn.Module):
    """The last `size` rows that were put in (He et al. 2020, Sec. 3.2: the dictionary as a queue).

    It lives in the state dict, follows the device of the rows, and never changes a tensor that `items` has returned,
    so a loss that was computed from it can still be differentiated after the next `enqueue`.

    Args:
        size: most rows to keep.
        dim: length of a row.

    Raises:
        ValueError: a size or dimension below 1.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        for name, value in {"size": size, "dim": dim}.items():
            if value < 1:
                raise ValueError(f"{name}: expected >= 1, got {value}")
        self.size, self.dim = size, dim
        self.register_buffer("rows", torch.zeros(size, dim))  # the newest row is the last one
        self.filled = 0  # a plain number, so that `items` has no need to ask the device

    def enqueue(self, rows: Tensor) -> None:
        """Put rows (n, dim) in, detached, the last one as the newest; the oldest rows beyond `size` drop out.

        Raises:
            ValueError: another shape.
        """
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"rows: expected shape (n, {self.dim}), got {tuple(rows.shape)}")
        new = rows.detach()[-self.size :]
        self.rows = torch.cat([self.rows[len(new) :].to(new.device), new])
        self.filled = min(self.filled + len(new), self.size)

    def items(self) -> Tensor:
        """(min(seen, size), dim), the oldest row first."""
        return self.rows[self.size - self.filled :]

    def get_extra_state(self) -> int:
        return self.filled

    def set_extra_state(self, state: int) -> None:
        self.filled = state

"""First-in, first-out memories of embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


class KeyQueue(nn.Module):
    """A ring of `size` unit rows that starts full of random ones, as MoCo's code keeps its negatives.

    Where `MemoryQueue` is empty at first and hands out its rows by age, this one always holds `size` rows and
    overwrites the oldest in place.

    Args:
        size: rows kept. dim: length of a row.
        generator: draws the first rows.

    Attributes:
        keys: (size, dim) unit rows.
        pointer: () int64, the row that is overwritten next.

    Raises:
        ValueError: a size or dimension below 1.
    """

    def __init__(self, size: int, dim: int, *, generator: torch.Generator | None = None):
        super().__init__()
        for name, value in {"size": size, "dim": dim}.items():
            if value < 1:
                raise ValueError(f"{name}: expected >= 1, got {value}")
        device = None if generator is None else generator.device
        first = torch.randn(size, dim, generator=generator, device=device)
        self.register_buffer("keys", F.normalize(first, dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Write rows (n, dim), normalised and detached, over the n oldest ones. Call it after the loss was computed.

        Raises:
            ValueError: another width, no row, or more rows than the ring has.
        """
        size, dim = self.keys.shape
        if keys.ndim != 2 or keys.shape[1] != dim or not 1 <= len(keys) <= size:
            raise ValueError(f"keys: expected shape (n, {dim}) with n from 1 to {size}, got {tuple(keys.shape)}")
        rows = (self.pointer + torch.arange(len(keys), device=self.pointer.device)) % size
        # a new tensor: a loss that was computed from the old one can still be differentiated
        self.keys = self.keys.index_copy(0, rows, F.normalize(keys, dim=1).to(self.keys))
        self.pointer = (self.pointer + len(keys)) % size

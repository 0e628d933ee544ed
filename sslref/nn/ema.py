"""The teacher that follows its student as an exponential moving average."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .schedule import cosine_schedule


def _check_momentum(momentum: float) -> None:
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, *, momentum: float = 0.99) -> None:
    """theta_t <- m theta_t + (1 - m) theta_s for the parameters of `teacher`, in place; its buffers are copied.

    Raises:
        ValueError: a momentum outside [0, 1], or a student with other parameters or buffers.
    """
    _check_momentum(momentum)
    mine, theirs = list(teacher.parameters()), list(student.parameters())
    my_buffers, their_buffers = list(teacher.buffers()), list(student.buffers())
    expected = [tuple(t.shape) for t in mine + my_buffers]
    got = [tuple(t.shape) for t in theirs + their_buffers]
    if len(mine) != len(theirs) or expected != got:
        raise ValueError(f"student: expected parameters and buffers of shapes {expected}, got {got}")
    if mine:
        get_ema_multi_avg_fn(momentum)(mine, theirs, None)  # one kernel for all, not one a parameter
    for buffer, new in zip(my_buffers, their_buffers, strict=True):
        buffer.copy_(new)


class EMATeacher(nn.Module):
    """A frozen copy of a student: theta_t <- m theta_t + (1 - m) theta_s (Tarvainen and Valpola 2017, Eq. 2).

    Buffers are copied, not averaged: `requires_grad=False` does not stop batch norm from updating its statistics, and
    some buffers are integers. The copy starts in the mode (train or eval) of the student and has one of its own.

    Args:
        student: the module to follow; deep-copied.
        momentum: m of an update that names none.

    Attributes:
        module: the copy.

    Raises:
        ValueError: a momentum outside [0, 1].
    """

    def __init__(self, student: nn.Module, *, momentum: float = 0.996):
        super().__init__()
        _check_momentum(momentum)
        self.momentum = momentum
        self.module = copy.deepcopy(student).requires_grad_(False)

    def update(self, student: nn.Module, *, momentum: float | None = None) -> None:
        """Take one step towards the student; a wrapped student (DDP, compiled) is fine, as the order counts.

        Raises:
            ValueError: a momentum outside [0, 1], or a student with other parameters or buffers.
        """
        ema_update(self.module, student, momentum=self.momentum if momentum is None else momentum)

    @torch.no_grad()
    def forward(self, *args, **kwargs):
        """What the copy returns, without gradient."""
        return self.module(*args, **kwargs)


def rising_update(teacher: EMATeacher, student: nn.Module, step: int, steps: int, *, base: float | None = None) -> None:
    """An update whose momentum rises from `base`, by default the teacher's own, to 1 along half a cosine."""
    base = teacher.momentum if base is None else base
    teacher.update(student, momentum=cosine_schedule(step, steps, base=base, final=1.0))

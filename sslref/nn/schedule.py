"""The schedule that most recipes share: a linear warm-up, then half a cosine."""

import math


def cosine_schedule(step: int, total_steps: int, *, base: float, final: float = 0.0, warmup_steps: int = 0) -> float:
    """The value at a step: from 0 to `base` in a straight line, then by half a cosine to `final`.

    The cosine is that of Loshchilov and Hutter 2017, Eq. 5, without restarts.

    Args:
        step: 0 is the first; after `total_steps` the value stays at `final`.
        total_steps: S, the step at which `final` is reached.
        base: the largest value, reached at step `warmup_steps`.
        final: the last value.
        warmup_steps: w, the length of the straight line.

    Returns:
        `base * step / w` before w, then `final + (base - final) / 2 * (1 + cos(pi * (step - w) / (S - w)))`.

    Raises:
        ValueError: total_steps < 1, warmup_steps outside [0, total_steps), step < 0.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps: expected >= 1, got {total_steps}")
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps: expected a number in [0, {total_steps}), got {warmup_steps}")
    if step < 0:
        raise ValueError(f"step: expected >= 0, got {step}")
    if step < warmup_steps:
        return base * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * progress))

"""The lesion world: pieces of a healthy brain, and the same with a lesion whose mask is exact.

**What it models**: something that does not belong, among something that varies and yet has its rules. **What it leaves
out**: other people (the brain is one, an average of 152), scanners, noise, lesions that push or change what is around
them. A detector that works here has passed the easiest of tests.

**Material.** `embedded.brain()`, horizontal slices of 2 mm, grey levels times 0.7, so that a bright lesion has room.

**Splits** are by height, with 6 mm between them that no split uses, so that no test slice has a neighbour in training:
`SLICES` lists them. "val" is for thresholds; it is healthy, as is "train". A neighbour at 6 mm is still much alike.

**A picture**: `field` x `field` voxels (20, so 40 mm) of a random slice of the split, at a random place where at least
70 % of the voxels are brain, drawn bilinearly at S x S pixels (S = 32, so 1.25 mm a pixel), mirrored with
probability 1/2. Finer than the voxels, so that what a patch of 4 pixels shows can be told from its neighbours.

**A lesion** (`plant`): an ellipse, half axes from U(`radius`) pixels, any direction, its middle on a random pixel of
tissue such that the circle of the larger half axis lies in the picture where there is such a pixel; brighter or darker,
each with probability 1/2, by U(`contrast`) times its profile. The profile is 1 inside, 0 outside, and falls linearly
over `blur` pixels around the outline. Grey levels are clipped to [0, 1]. **Truth**: pixels of tissue inside of the
outline; outside of tissue a lesion changes nothing.

**A moved piece** (`move`): a disc of the picture replaced by what lies in a disc elsewhere in it. Its grey levels and
its texture are normal, its place is not.

**Check.** `tests/data/test_worlds_lesions.py` draws lesions by loops. Nothing is stored.
"""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslref.data import embedded

#: first and last slice of each piece, both included; the brain has slices 0 to 93, from below
SLICES = {"train": ((12, 21), (32, 41), (51, 60)), "val": ((45, 47),), "test": ((25, 28), (64, 67))}


class Pictures(NamedTuple):
    images: Tensor  # (B, 1, S, S) in [0, 1]
    tissue: Tensor  # (B, S, S) bool: brain


class Lesions(NamedTuple):
    images: Tensor  # (B, 1, S, S) in [0, 1]
    masks: Tensor  # (B, S, S) bool: lesion


@functools.cache
def _places(split: str, field: int, device: str) -> tuple[Tensor, Tensor]:
    """The slices of a split (K, 116, 98), and (slice, top, left) of every piece that is brain enough, (P, 3)."""
    if split not in SLICES:
        raise ValueError(f"split: expected one of {', '.join(map(repr, SLICES))}, got {split!r}")
    t1 = torch.cat([embedded.brain().t1[first : last + 1] for first, last in SLICES[split]]).to(device)
    if not 1 <= field <= min(t1.shape[1:]):
        raise ValueError(f"field: expected 1 to {min(t1.shape[1:])} voxels, got {field}")
    share = F.avg_pool2d((t1 > 0).double()[:, None], field, 1)[:, 0]
    return 0.7 * t1, (share >= 0.7).nonzero()


def healthy(
    split: str, count: int, *, size: int = 32, field: int = 20, generator: torch.Generator | None = None
) -> Pictures:
    """Healthy pictures of a split, on the generator's device.

    Raises:
        ValueError: an unknown split, a field that does not fit.
    """
    device = torch.device("cpu") if generator is None else generator.device
    slices, places = _places(split, field, str(device))
    chosen = places[torch.randint(len(places), (count,), generator=generator, device=device)]
    inside = torch.arange(field, device=device)
    rows, columns = chosen[:, 1, None] + inside, chosen[:, 2, None] + inside
    voxels = slices[chosen[:, 0, None, None], rows[:, :, None], columns[:, None, :]]
    mirrored = torch.rand(count, 1, 1, generator=generator, device=device) < 0.5
    voxels = torch.where(mirrored, voxels.flip(2), voxels)[:, None]
    images, brain = (F.interpolate(x, (size, size), mode="bilinear") for x in (voxels, (voxels > 0).float()))
    return Pictures(images, brain[:, 0] >= 0.5)


def _between(low_high: tuple[float, float], like: Tensor, generator: torch.Generator | None, *more: int) -> Tensor:
    low, high = low_high
    return low + (high - low) * torch.rand(len(like), *more, generator=generator, device=like.device)


def _middles(tissue: Tensor, margin: Tensor, generator: torch.Generator | None) -> Tensor:
    """(B, 2) row and column of a random pixel of tissue, `margin` (B,) pixels away from the border where possible."""
    size = tissue.shape[-1]
    at = torch.arange(size, device=tissue.device)
    far = torch.minimum(at, size - 1 - at)
    deep = torch.minimum(far[:, None], far) >= margin[:, None, None]
    # noise decides, but tissue beats the rest, and tissue away from the border beats tissue
    rank = torch.rand(tissue.shape, generator=generator, device=tissue.device) + 2 * tissue + (tissue & deep)
    best = rank.flatten(1).argmax(1)
    return torch.stack((best // size, best % size), 1)


def ellipse(middles: Tensor, axes: Tensor, angle: Tensor, size: int) -> Tensor:
    """Signed distance to an outline, roughly in pixels, negative inside: (B, 2), (B, 2), (B,) -> (B, size, size).

    The distance is (r - 1) times the smaller half axis, r being 1 on the outline; exact for circles.
    """
    at = torch.arange(size, device=middles.device, dtype=axes.dtype)
    y, x = at[:, None] - middles[:, 0, None, None], at - middles[:, 1, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    u, v = (cos * x + sin * y) / axes[:, 0, None, None], (cos * y - sin * x) / axes[:, 1, None, None]
    return (torch.hypot(u, v) - 1) * axes.amin(1)[:, None, None]


def plant(
    pictures: Pictures,
    *,
    radius: tuple[float, float] = (3.0, 6.0),
    contrast: tuple[float, float] = (0.15, 0.35),
    blur: float = 1.0,
    generator: torch.Generator | None = None,
) -> Lesions:
    """One lesion in each picture.

    Raises:
        ValueError: an interval that is empty or not positive, blur <= 0.
    """
    for name, (low, high) in (("radius", radius), ("contrast", contrast), ("blur", (blur, blur))):
        if not 0 < low <= high:
            raise ValueError(f"{name}: expected positive numbers in order, got {low} and {high}")
    images, tissue = pictures
    axes = _between(radius, images, generator, 2)
    middles = _middles(tissue, axes.amax(1), generator)
    outline = ellipse(middles, axes, _between((0.0, torch.pi), images, generator), images.shape[-1])
    sign = 2 * torch.randint(2, (len(images),), generator=generator, device=images.device) - 1
    strength = (sign * _between(contrast, images, generator))[:, None, None]
    profile = (0.5 - outline / blur).clamp(0, 1) * tissue
    return Lesions((images + (strength * profile)[:, None]).clamp(0, 1), (outline < 0) & tissue)


def move(pictures: Pictures, *, radius: float = 4.5, generator: torch.Generator | None = None) -> Lesions:
    """In each picture a disc of tissue replaced by one from elsewhere, two radii away or more where possible."""
    images, tissue = pictures
    size, margin = images.shape[-1], images.new_full((len(images),), radius)
    middles = _middles(tissue, margin, generator)
    axes = images.new_full((len(images), 2), radius)
    inside = (ellipse(middles, axes, axes[:, 0], size) < 0) & tissue
    apart = ellipse(middles, 2 * axes, axes[:, 0], size) >= 0
    source = _middles(tissue & apart, margin, generator)
    at = torch.arange(size, device=images.device)
    rows, columns = ((at + (source - middles)[:, k, None]).clamp(0, size - 1) for k in (0, 1))
    moved = images[
        torch.arange(len(images), device=images.device)[:, None, None], 0, rows[:, :, None], columns[:, None]
    ]
    return Lesions(torch.where(inside, moved, images[:, 0])[:, None], inside)

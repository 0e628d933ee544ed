"""The hierarchy world: grids of patch vectors of scenes whose objects are made of parts, with the whole hierarchy.

**What it models**: what a self-supervised backbone hands to a segmenter. A scene is a grid of S×S places with one
vector each; places of one part are alike, parts of one object are related, objects are strangers. Two ways to spoil it
are independent: noise on every place, and borders over which neighbours mix. **What it leaves out**: pixels, context,
and parts that look like parts of another object.

**Codes.** There are `kinds` kinds of objects and the background. Kind k owns four unit vectors e, f_0, f_1, f_2 that
are orthogonal to all others; part p of it has the code √`likeness` · e + √(1 - `likeness`) · f_p. So two parts of one
kind have the cosine `likeness`, and places of two kinds have the cosine 0. The dimension is D = 4 · (`kinds` + 1). The
background is kind 0 with part 0 alone. Codes are scaled to a mean square of 1 and are the same in every scene.

**One scene.** Draws are independent and uniform; integers include both ends. Lengths are in places of a grid of 28 and
grow with S.
1. A number of objects in `objects`; centres in [2, 26]²; radii in [3, 6]; kinds without repetition.
2. A place belongs to the object for which |p - centre|² - radius² is smallest, and to the background where that is not
   negative: discs, divided along straight lines where they overlap, so that every object is convex.
3. A number of parts in `parts` (3 at most). Their seeds stand evenly on a circle of half the radius, turned at random;
   a place belongs to the nearest seed: straight cuts, so that parts are convex too.
4. Features: the code of each place; mixed by a Gaussian of `blur` places, if that is not 0, with the border repeated;
   plus `sigma` times normal noise in every coordinate.
Two places of one part have the expected cosine 1 / (1 + sigma²) where nothing is mixed.

**Truth.** `objects` numbers the objects of a scene from 1, `parts` is 3 (object - 1) + part + 1, `kinds` says which
kind; all are 0 in the background. A crowded object may be left with a few places or none, so `truth` leaves out what is
too small.

**Check.** `tests/data/test_hierarchy.py` assigns places by loops. A thousand scenes of 28×28 take a few seconds.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

PARTS = 3  # the most parts of an object


@dataclass(frozen=True, eq=False)
class Hierarchies:
    """Scenes with their ground truth; the first axis of everything is the scene."""

    features: Tensor  #: (B, D, S, S) float32
    parts: Tensor  #: (B, S, S) int64, 0 background, 3 (n - 1) + p + 1 for part p of the n-th object
    objects: Tensor  #: (B, S, S) int64, 0 background, n for the n-th object
    kinds: Tensor  #: (B, S, S) int64, 0 background, else which kind of object

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Tensor | slice) -> "Hierarchies":
        """Some of the scenes."""
        return Hierarchies(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class HierarchyWorld:
    """Draws scenes; the module's docstring says how.

    Args:
        size: S. objects: range of their number, at most `kinds`. parts: range of the number of parts, 1 to 3.
        kinds: number of kinds. likeness: cosine of two parts of one kind, in [0, 1].
        sigma: standard deviation of the noise. blur: standard deviation, in places, of the mixing.

    Raises:
        ValueError: an argument out of range.
    """

    size: int = 28
    objects: tuple[int, int] = (3, 8)
    parts: tuple[int, int] = (1, 3)
    kinds: int = 10
    likeness: float = 0.65
    sigma: float = 0.4
    blur: float = 0.0

    def __post_init__(self):
        for name in ("size", "kinds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name, most in (("objects", self.kinds), ("parts", PARTS)):
            low, high = getattr(self, name)
            if not 1 <= low <= high <= most:
                raise ValueError(f"{name}: expected a range (low, high) within 1 to {most}, got {(low, high)}")
        if not 0 <= self.likeness <= 1:
            raise ValueError(f"likeness: expected a cosine in [0, 1], got {self.likeness}")
        for name in ("sigma", "blur"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")

    def codes(self, device: torch.device | str = "cpu") -> Tensor:
        """(kinds + 1, 3, D): the vector of every part of every kind, the background first."""
        own = torch.eye(4 * (self.kinds + 1), device=device).view(self.kinds + 1, 4, -1)
        code = self.likeness**0.5 * own[:, :1] + (1 - self.likeness) ** 0.5 * own[:, 1:]
        return code * code.shape[2] ** 0.5

    def sample(self, count: int, generator: torch.Generator) -> Hierarchies:
        """`count` scenes on the generator's device.

        Raises:
            ValueError: count < 1.
        """
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        most, device, unit = self.objects[1], generator.device, self.size / 28

        def uniform(*shape: int) -> Tensor:
            return torch.rand(count, most, *shape, generator=generator, device=device)

        def between(low: int, high: int, draw: Tensor) -> Tensor:
            return low + (draw * (high - low + 1)).long().clamp(max=high - low)

        there = torch.arange(most, device=device) < between(*self.objects, uniform()[:, :1])
        centre, radius = (2 + 24 * uniform(2)) * unit, (3 + 3 * uniform()) * unit
        kind = 1 + torch.rand(count, self.kinds, generator=generator, device=device).argsort(1)[:, :most]
        number, turn = between(*self.parts, uniform()), 2 * torch.pi * uniform()

        line = torch.arange(self.size, device=device) + 0.5
        place = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)  # (S, S, 2), (x, y)
        power = (place[None, None] - centre[:, :, None, None]).square().sum(-1) - radius.square()[:, :, None, None]
        nearest, owner = power.masked_fill(~there[:, :, None, None], torch.inf).min(1)
        inside = nearest < 0

        p = torch.arange(PARTS, device=device)
        angle = turn[:, :, None] + 2 * torch.pi * p / number[:, :, None]
        seeds = centre[:, :, None] + radius[:, :, None, None] / 2 * torch.stack([angle.cos(), angle.sin()], -1)
        row = torch.arange(count, device=device)[:, None, None]
        away = (place[None, :, :, None] - seeds[row, owner]).square().sum(-1)
        part = away.masked_fill(p >= number[row, owner][..., None], torch.inf).argmin(-1)

        kinds = kind[row, owner] * inside
        clean = self.codes(device)[kinds, part * inside].movedim(-1, 1)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        return Hierarchies(
            features=_mixed(clean, self.blur) + self.sigma * noise,
            parts=(PARTS * owner + part + 1) * inside,
            objects=(owner + 1) * inside,
            kinds=kinds,
        )


def _mixed(maps: Tensor, width: float) -> Tensor:
    """A Gaussian over the places of maps (B, D, H, W), the border repeated; none where width is 0."""
    if width == 0:
        return maps
    reach = int(3 * width + 0.5)
    weight = (-0.5 * (torch.arange(-reach, reach + 1, device=maps.device) / width).square()).exp()
    weight, channels = weight / weight.sum(), maps.shape[1]
    for shape, pad in (((1, 1, 1, -1), (reach, reach, 0, 0)), ((1, 1, -1, 1), (0, 0, reach, reach))):
        kernel = weight.view(shape).expand(channels, -1, -1, -1)
        maps = F.conv2d(F.pad(maps, pad, mode="replicate"), kernel.to(maps), groups=channels)
    return maps


def truth(scenes: Hierarchies, i: int, *, least: int = 4) -> tuple[Tensor, Tensor]:
    """True masks (n, H, W) bool of scene i: its objects, and the parts of those objects that show more than one part.

    A mask needs `least` places or more, and a part as many other places in its object, else it says nothing new.
    """
    objects, parts = (_regions(labels[i], least) for labels in (scenes.objects, scenes.parts))
    if not len(parts):
        return objects, parts
    mine = (parts[:, None] & objects).any(3).any(2)  # (parts, objects)
    whole = objects.sum((1, 2))[mine.long().argmax(1)]
    return objects, parts[whole - parts.sum((1, 2)) >= least]


def _regions(labels: Tensor, least: int) -> Tensor:
    names, counts = labels[labels > 0].unique(return_counts=True)
    return labels == names[counts >= least][:, None, None]

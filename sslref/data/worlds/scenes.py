"""The scene world: several emoji on a piece of a photograph, with class map, instance map and boxes.

**What it models**: several things in one picture, occlusion, scale, two ways to draw a thing, a background that says
nothing about the things. **What it leaves out**: context (which thing stands on what), perspective, light, shadows,
pose: a drawing is upright and always the same but for size, mirror and artist.

**Material.** `things` are names of emoji; each is drawn as Noto or as Twemoji has it. The default are twelve that are
easy to tell apart. The same things occur in training and in test scenes, as in any data set with closed classes.
Backgrounds are ten photographs (two more are mostly black): training scenes cut theirs from columns 0 … 0.55 W, test
scenes from 0.6 W … W, so no pixel of a background is in both.

**One scene**, S×S pixels, S = 64. All draws are independent and uniform; integers include both ends.
1. Background: a photograph, a square of side S … the largest that fits into its part, a place; area-averaged to S.
2. Things: a number in `number`, drawn one after the other, later ones in front: name, artist, side of the square in
   `side`, mirrored with probability 1/2, place such that the square lies inside the scene. Bilinear sampling, "over"
   with premultiplied alpha.
3. Truth: a pixel belongs to the front-most thing whose alpha exceeds 1/2. Class 0 is the background, class k is
   `things[k - 1]`; instance n is the n-th thing drawn, from 1. Boxes are those of the visible pixels.

**A view** (`random_views`) is a square crop of relative area U(`scale`), anywhere, resized bilinearly, mirrored with
probability 1/2, then changed in colour: contrast about the mean of the view, brightness and every channel, each times
U(0.6, 1.4); grey with probability 0.2; clipped to [0, 1]. Its box is relative to the scene; a mirrored view stores
x1 > x2, so that `nn.geometry.pixel_centers` says where its cells lie, mirrored or not. Two views overlap if the lower
end of `scale` exceeds 1/4.

**Check.** `tests/data/test_scenes.py` composes scenes by loops and finds the class of every pixel of a view where its
box says. Nothing is stored: a thousand scenes take a second or two on one thread.
"""

import functools
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sslref.data import embedded
from sslref.nn.geometry import pixel_centers

CHUNK = 32  # scenes drawn together; larger chunks are slower, because they no longer fit into the cache
PHOTOGRAPHS = (
    "astronaut", "brick", "chelsea", "china", "coffee", "flower", "grass", "gravel", "hubble_deep_field", "rocket",
)  # fmt: skip
THINGS = (
    "RED APPLE", "DOG FACE", "HOUSE BUILDING", "BICYCLE", "SOCCER BALL", "ROSE", "GRINNING FACE", "AUTOMOBILE", "OWL",
    "GUITAR", "MUSHROOM", "FISH",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scenes:
    """Scenes with their ground truth; the first axis of everything is the scene. N is the largest number of things."""

    images: Tensor  #: (B, 3, S, S) float32 in [0, 1]
    classes: Tensor  #: (B, S, S) int64: 0 background, k for the k-th of the world's `things`
    instances: Tensor  #: (B, S, S) int64: 0 background, n for the n-th thing of the scene
    labels: Tensor  #: (B, N) int64, class of each thing of the scene, 0 where there is none
    boxes: Tensor  #: (B, N, 4) int64, (x1, y1, x2, y2) around its visible pixels, ends excluded; 0 where there are none
    photographs: Tensor  #: (B,) int64, index into PHOTOGRAPHS

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor | slice) -> "Scenes":
        """Some of the scenes."""
        return Scenes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


class Views(NamedTuple):
    """Views of pictures and where they come from."""

    images: Tensor  # (B, 3, size, size)
    boxes: Tensor  # (B, 4), (x1, y1, x2, y2) relative to the picture; x1 > x2 where the view is mirrored


# -------------------------------------------------------------------------------------------------------- material


@functools.cache
def _sprites(things: tuple[str, ...], device: torch.device) -> Tensor:
    """(artists, K, 4, 32, 32) float32, colour multiplied by alpha."""
    drawn = []
    for vendor in embedded.VENDORS:
        emoji = embedded.emoji("all", vendor=vendor)
        rgba = emoji.rgba[[emoji.names.index(name) for name in things]].float() / 255
        drawn.append(torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1))
    return torch.stack(drawn).to(device)


@functools.cache
def _places(split: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What a split may use of the photographs: sums over everything above and to the left, (N, 3, H + 1, W + 1) in
    float64, padded on the right and below; heights (N,) and widths (N,) of the parts."""
    parts = []
    for photo in embedded.photographs(PHOTOGRAPHS).values():
        width = photo.shape[2]
        parts.append(photo[..., : int(0.55 * width)] if split == "train" else photo[..., int(0.6 * width) :])
    height, width = (max(p.shape[axis] for p in parts) for axis in (1, 2))
    sums = [F.pad(p.double(), (1, width - p.shape[2], 1, height - p.shape[1])).cumsum(1).cumsum(2) for p in parts]
    sizes = torch.tensor([p.shape[1:] for p in parts], device=device)
    return torch.stack(sums).to(device), *sizes.unbind(1)


# ----------------------------------------------------------------------------------------------------------- world


@dataclass(frozen=True, kw_only=True)
class SceneWorld:
    """Draws scenes; the module's docstring says how.

    Args:
        size: S, at most 96, the width of the narrowest part of a photograph.
        number: range of the number of things in a scene, from 0 up.
        side: range of the side of a thing's square, pixels, at most S.
        things: names of emoji, as `sslref.data.emoji("all").names` has them; their order gives the classes.
        split: "train" or "test", of the photographs.

    Raises:
        ValueError: an argument out of range, an unknown name or split.
    """

    size: int = 64
    number: tuple[int, int] = (2, 4)
    side: tuple[int, int] = (20, 36)
    things: tuple[str, ...] = THINGS
    split: str = "train"

    def __post_init__(self):
        if not 1 <= self.size <= 96:
            raise ValueError(f"size: expected 1 to 96, got {self.size}")
        for name, least, most in (("number", 0, None), ("side", 1, self.size)):
            low, high = getattr(self, name)
            if not least <= low <= high or (most is not None and high > most):
                bound = "up" if most is None else f"to {most}"
                raise ValueError(f"{name}: expected a range (low, high) from {least} {bound}, got {(low, high)}")
        if self.split not in ("train", "test"):
            raise ValueError(f"split: expected 'train' or 'test', got {self.split!r}")
        unknown = set(self.things) - set(embedded.emoji("all").names)
        if unknown or not self.things or len(set(self.things)) < len(self.things):
            raise ValueError(f"things: expected different names of emoji, got {self.things} ({len(unknown)} unknown)")

    def sample(self, count: int, generator: torch.Generator) -> Scenes:
        """Draw scenes, on the generator's device.

        Args:
            count: number of scenes. The first n of many are the scenes that n alone would be, for multiples of 32.

        Raises:
            ValueError: count < 1.
        """
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        chunks = [self._chunk(min(CHUNK, count - start), generator) for start in range(0, count, CHUNK)]
        return Scenes(**{f.name: torch.cat([getattr(c, f.name) for c in chunks]) for f in fields(Scenes)})

    def _chunk(self, scenes: int, generator: torch.Generator) -> Scenes:
        device = generator.device

        def uniform() -> Tensor:
            return torch.rand(scenes, generator=generator, device=device)

        def between(low: int | Tensor, high: int | Tensor) -> Tensor:
            return low + (uniform() * (high - low + 1)).long().clamp(max=high - low)

        image, photograph = self._background(between)
        sprites = _sprites(self.things, device)
        number, most = between(*self.number), self.number[1]
        classes = torch.zeros(scenes, self.size, self.size, dtype=torch.int64, device=device)
        instances, labels = classes, torch.zeros(scenes, most, dtype=torch.int64, device=device)
        line = torch.arange(self.size, device=device) + 0.5
        for n in range(most):
            there = n < number
            thing, artist, side = between(0, len(self.things) - 1), between(0, len(sprites) - 1), between(*self.side)
            left, top = between(0, self.size - side), between(0, self.size - side)
            mirror = torch.where(uniform() < 0.5, -1.0, 1.0)
            x, y = (2 * (line - start[:, None]) / side[:, None] - 1 for start in (left, top))
            x = (mirror[:, None] * x)[:, None, :].expand(-1, self.size, -1)
            grid = torch.stack([x, y[:, :, None].expand(-1, -1, self.size)], dim=-1)
            drawn = F.grid_sample(sprites[artist, thing], grid, align_corners=False) * there[:, None, None, None]
            image = drawn[:, :3] + (1 - drawn[:, 3:]) * image
            solid = drawn[:, 3] > 0.5
            labels[:, n] = (thing + 1) * there
            classes = torch.where(solid, labels[:, n, None, None], classes)
            instances = torch.where(solid, n + 1, instances)
        boxes = _boxes(instances, most)
        return Scenes(image.clamp(0, 1), classes, instances, labels, boxes, photograph)

    def _background(self, between) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, S, S) and which photograph (B,).

        The mean over an area is a difference of sums over everything above and to the left, and between whole pixels
        such sums are bilinear: area averaging is exact for any side.
        """
        photograph = between(0, len(PHOTOGRAPHS) - 1)
        sums, heights, widths = _places(self.split, photograph.device)
        height, width = heights[photograph], widths[photograph]
        side = between(self.size, torch.minimum(height, width))
        left, top = between(0, width - side), between(0, height - side)
        step = torch.arange(self.size + 1, device=side.device, dtype=torch.float64) / self.size
        rows, columns = sums.shape[2:]
        # all photographs as one tall picture, so that none is copied
        y = (top[:, None] + side[:, None] * step + photograph[:, None] * rows) * (2 / (len(sums) * rows - 1)) - 1
        x = (left[:, None] + side[:, None] * step) * (2 / (columns - 1)) - 1
        grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1).flatten(0, 1)[None]
        tall = sums.transpose(0, 1).flatten(1, 2)[None]
        corner = F.grid_sample(tall, grid, align_corners=True)[0].unflatten(1, (-1, self.size + 1))
        area = (side.double() / self.size).square()[None, :, None, None]
        return (corner.diff(dim=2).diff(dim=3) / area).transpose(0, 1).float(), photograph


def _boxes(instances: Tensor, most: int) -> Tensor:
    """(B, most, 4) int64 around the pixels of every instance from 1 to `most`, ends excluded."""
    if most == 0:
        return instances.new_zeros(len(instances), 0, 4)
    mine = instances[:, None] == torch.arange(1, most + 1, device=instances.device)[:, None, None]
    ends = []
    for axis in (2, 3):  # along rows, then along columns
        line = mine.any(axis).int()
        first, last = line.argmax(2), line.shape[2] - line.flip(2).argmax(2)
        ends.append((first, last))
    (x1, x2), (y1, y2) = ends
    return torch.stack([x1, y1, x2, y2], dim=2) * mine.any((2, 3))[:, :, None]


# ----------------------------------------------------------------------------------------------------------- views


def cut(maps: Tensor, boxes: Tensor, size: int, *, nearest: bool = False) -> Tensor:
    """The parts of pictures inside boxes, each at size×size points: bilinear, or the nearest pixel for labels.

    Args:
        maps: (B, C, H, W) pictures, or (B, H, W) integer labels with `nearest`.
        boxes: (B, 4), (x1, y1, x2, y2) relative to the picture; mirrored where x1 > x2.
        size: side of the result.

    Returns:
        (B, C, size, size), or (B, size, size) of the labels' type.

    Raises:
        ValueError: shapes that do not fit, size < 1.
    """
    if maps.ndim != 4 - nearest:
        raise ValueError(f"maps: expected {'(B, H, W)' if nearest else '(B, C, H, W)'}, got {tuple(maps.shape)}")
    if boxes.shape != (len(maps), 4):
        raise ValueError(f"boxes: expected shape ({len(maps)}, 4), got {tuple(boxes.shape)}")
    points = pixel_centers(boxes, size, size)
    if nearest:
        height, width = maps.shape[1:]
        x, y = ((points[..., i] * n).long().clamp(0, n - 1) for i, n in enumerate((width, height)))
        return maps.flatten(1).gather(1, (y * width + x).flatten(1)).view(-1, size, size)
    return F.grid_sample(maps, (2 * points - 1).to(maps), padding_mode="border", align_corners=False)


def random_views(
    images: Tensor,
    *,
    size: int = 48,
    scale: tuple[float, float] = (0.3, 1.0),
    flip_p: float = 0.5,
    color: float = 0.4,
    gray_p: float = 0.2,
    generator: torch.Generator | None = None,
) -> Views:
    """One random view of each picture, with its box; the module's docstring says how.

    Args:
        images: (B, 3, H, W) in [0, 1].
        size: side of a view in pixels.
        scale: range of the relative area; the crop is as wide as it is high, relative to the picture.
        flip_p, gray_p: probabilities of a mirror and of a grey view.
        color: contrast, brightness and channels are multiplied by U(1 - color, 1 + color).

    Raises:
        ValueError: images not (B, 3, H, W), not 0 < scale[0] <= scale[1] <= 1, color outside [0, 1), a probability
            outside [0, 1], size < 1.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"images: expected float (B, 3, H, W), got {images.dtype} of shape {tuple(images.shape)}")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale: expected 0 < low <= high <= 1, got {scale}")
    if not 0 <= color < 1:
        raise ValueError(f"color: expected a number in [0, 1), got {color}")
    for name, p in (("flip_p", flip_p), ("gray_p", gray_p)):
        if not 0 <= p <= 1:
            raise ValueError(f"{name}: expected a probability in [0, 1], got {p}")

    def uniform(*shape: int) -> Tensor:
        drawn = torch.rand(len(images), *shape, generator=generator, device=images.device)
        return drawn.to(torch.promote_types(images.dtype, torch.float32))

    side = (scale[0] + (scale[1] - scale[0]) * uniform(1)).sqrt()
    start = uniform(2) * (1 - side)
    boxes = torch.cat([start, start + side], dim=1)
    boxes = torch.where(uniform(1) < flip_p, boxes[:, [2, 1, 0, 3]], boxes)
    views = cut(images, boxes, size)
    contrast, brightness, *channels = (1 + color * (2 * uniform(5) - 1)).to(images.dtype).unbind(1)
    factor = brightness[:, None] * torch.stack(channels, dim=1)
    mean = views.mean((1, 2, 3))
    views = views * (factor * contrast[:, None])[:, :, None, None]
    views = views + (factor * (mean * (1 - contrast))[:, None])[:, :, None, None]
    weight = views.new_tensor([0.2989, 0.587, 0.114])[:, None, None]
    gray = (uniform(1, 1, 1) < gray_p).to(views.dtype)
    views = gray * (weight * views).sum(1, keepdim=True) + (1 - gray) * views
    return Views(views.clamp(0, 1), boxes)

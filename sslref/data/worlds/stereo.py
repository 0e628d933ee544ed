"""The stereo world: flat layers of photograph before two cameras, with exact disparity; and one real pair beside it.

**What it models**: a rectified pair of pictures of a static scene. A point of the scene lies on the same row of both
views; between its columns lies its *disparity*, and what is nearer has more of it. Near layers hide far ones, in
another place in each view. Optionally texture tells depth: what is far is seen smaller, so its texture is finer.
**What it leaves out**: slanted surfaces, perspective inside a layer, light that changes between the views, shine,
noise of the cameras, vertical parallax, things with a meaning.

**Material.** The ten photographs of the scene world (two more are mostly black), area-averaged by each factor of
`shrink`. Training scenes cut theirs from columns 0 … 0.55 W, test scenes from 0.6 W … W: no pixel is in both.

**One pair**, two views of S×S pixels. All draws are independent and uniform; integers include both ends.
1. `layers` different ones of `disparities`, sorted: the farthest first. The first layer fills the view. Every other
   one is a rectangle with sides in `side`, whose place in the left view lies inside it; nearer ones are in front.
2. Each layer has a texture: a photograph and a corner. With `cue` the k-th disparity uses the k-th factor of `shrink`,
   else any factor.
3. A point of disparity d that the left view shows in column x is in column x - d of the right view. Disparities are
   whole pixels, so that both views show the very same values, without any interpolation. (They may be negative: only
   differences of disparity are physical, the rest is where the two windows were cut.)
4. Truth: `disparity` is that of the surface which the left view shows at a pixel. `seen` says whether the right view
   shows it too: inside the frame, and not hidden by a nearer layer.

**The real pair** (`motorcycle`) is one of the Middlebury 2014 set: two rectified photographs and a disparity that was
measured with structured light, known for 93 % of the left view. It is not stored here, scikit-image brings it along.
Middlebury grants permission to use and publish the images and disparity maps of its site and asks to be cited.

**Check.** `tests/data/test_stereo.py` composes pairs by loops, and finds every pixel that is `seen` where its disparity
says, to the last bit. Nothing is stored: a thousand pairs take a fraction of a second.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sslref.data import embedded
from sslref.data.worlds.scenes import PHOTOGRAPHS
from sslref.nn.mae import patchify


class Pairs(NamedTuple):
    """Pairs with their ground truth; the first axis of everything is the pair."""

    left: Tensor  # (B, 3, S, S) float32 in [0, 1]
    right: Tensor  # (B, 3, S, S)
    disparity: Tensor  # (B, S, S) float32, pixels, of the left view
    seen: Tensor  # (B, S, S) bool: the right view shows this point too

    def matches(self, patch_size: int) -> tuple[Tensor, Tensor]:
        """Which patch of the right view shows what a patch of the left one shows: index (B, N), and where one does.

        One does where the patch has one disparity, a multiple of its side, and all of it is seen.
        """
        disparity = patchify(self.disparity[:, None], patch_size)
        whole = (disparity == disparity[..., :1]).all(-1) & (disparity[..., 0] % patch_size == 0)
        place = torch.arange(disparity.shape[1], device=disparity.device) - (disparity[..., 0] / patch_size).long()
        return place, whole & patchify(self.seen[:, None], patch_size).all(-1)

    def match_accuracy(self, attention: Tensor, mask: Tensor) -> float:
        """Share of the masked patches that moved, to the right view's patch at which attention peaks.

        Args:
            attention: (B, N, N), of patches of the left view to patches of the right one. mask: (B, N) bool.

        Returns:
            nan where nothing masked has moved.
        """
        place, exists = self.matches(self.left.shape[-1] // math.isqrt(mask.shape[1]))
        moved = place != torch.arange(mask.shape[1], device=mask.device)
        return (attention.argmax(-1) == place)[exists & moved & mask].double().mean().item()


@functools.cache
def _textures(split: str, shrink: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, int]:
    """What a split may use: (K, N, H, W, 3) padded, sizes (K, N, 2) of what is not padding, and the smallest side."""
    parts = []
    for photo in embedded.photographs(PHOTOGRAPHS).values():
        width = photo.shape[2]
        parts.append(photo[..., : int(0.55 * width)] if split == "train" else photo[..., int(0.6 * width) :])
    small = [[F.avg_pool2d(part, k) for part in parts] for k in shrink]
    sizes = torch.tensor([[p.shape[1:] for p in row] for row in small])
    height, width = sizes.amax((0, 1)).tolist()
    padded = [[F.pad(p, (0, width - p.shape[2], 0, height - p.shape[1])) for p in row] for row in small]
    stacked = torch.stack([torch.stack(row) for row in padded]).movedim(2, -1).contiguous()
    return stacked.to(device), sizes.to(device), int(sizes.min())


@dataclass(frozen=True, kw_only=True)
class StereoWorld:
    """Draws pairs; the module's docstring says how.

    Args:
        size: S.
        disparities: whole pixels, rising: far to near.
        layers: surfaces in a scene, 1 to the number of disparities.
        side: range of the sides of the nearer layers, pixels, at most S.
        shrink: whole factors, one a disparity, by which the photographs on a layer are reduced.
        cue: whether a layer's factor is that of its disparity.
        split: "train" or "test", of the photographs.

    Raises:
        ValueError: an argument out of range, or photographs too small for such a view.
    """

    size: int = 16
    disparities: tuple[int, ...] = (-4, 0, 4)
    layers: int = 2
    side: tuple[int, int] = (6, 12)
    shrink: tuple[int, ...] = (3, 2, 1)
    cue: bool = False
    split: str = "train"

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size: expected at least 1, got {self.size}")
        if not self.disparities or list(self.disparities) != sorted(set(self.disparities)):
            raise ValueError(f"disparities: expected rising whole numbers, got {self.disparities}")
        if not 1 <= self.layers <= len(self.disparities):
            raise ValueError(f"layers: expected 1 to {len(self.disparities)}, got {self.layers}")
        if not 1 <= self.side[0] <= self.side[1] <= self.size:
            raise ValueError(f"side: expected a range (low, high) from 1 to {self.size}, got {self.side}")
        if len(self.shrink) != len(self.disparities) or min(self.shrink) < 1:
            raise ValueError(f"shrink: expected {len(self.disparities)} factors from 1 up, got {self.shrink}")
        if self.split not in ("train", "test"):
            raise ValueError(f"split: expected 'train' or 'test', got {self.split!r}")
        smallest = _textures(self.split, self.shrink, torch.device("cpu"))[2]
        if self._width > smallest:
            raise ValueError(
                f"size: expected at most {smallest - self._width + self.size} pixels with these disparities and "
                f"factors, got {self.size}"
            )

    @property
    def _reach(self) -> tuple[int, int]:
        """How far the right view looks beyond the left one's frame, to the left (<= 0) and to the right."""
        return min(0, *self.disparities, 0), max(0, *self.disparities, 0)

    @property
    def _width(self) -> int:
        return self.size + self._reach[1] - self._reach[0]

    def sample(self, count: int, generator: torch.Generator) -> Pairs:
        """Draw pairs, on the generator's device.

        Raises:
            ValueError: count < 1.
        """
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        device, size, layers = generator.device, self.size, self.layers

        def between(low: int | Tensor, high: int | Tensor) -> Tensor:
            """(B, L) int64, both ends included."""
            u = torch.rand(count, layers, generator=generator, device=device, dtype=torch.float64)
            return low + (u * (high - low + 1)).long()

        textures, sizes, _ = _textures(self.split, self.shrink, device)
        kinds = len(self.disparities)
        order = torch.rand(count, kinds, generator=generator, device=device).argsort(1)
        level = order[:, :layers].sort(1).values  # (B, L), far to near
        disparity = torch.tensor(self.disparities, device=device)[level]
        any_factor = between(0, kinds - 1)
        factor = level if self.cue else any_factor
        photo = between(0, len(PHOTOGRAPHS) - 1)
        high, wide = sizes[factor, photo].unbind(-1)
        row, column = between(0, high - size), between(0, wide - self._width)
        tall, broad = between(*self.side), between(*self.side)
        top, start = between(0, size - tall), between(0, size - broad)

        at = torch.arange(size, device=device)
        y, x = at[:, None], at
        surface = torch.arange(layers, device=device)[:, None, None]
        first = surface == 0

        def per(v: Tensor) -> Tensor:
            return v[:, :, None, None]

        views, fronts = [], []
        for shift in (torch.zeros_like(disparity), disparity):
            column_of = x + per(shift)  # where the left view has what this view shows in column x: (B, L, 1, S)
            inside = (y >= per(top)) & (y < per(top + tall))
            inside = inside & (column_of >= per(start)) & (column_of < per(start + broad))
            front = torch.where(inside | first, surface, 0).amax(1)  # (B, S, S): the nearest layer that covers a pixel
            color = textures[per(factor), per(photo), per(row) + y, per(column) + column_of - self._reach[0]]
            chosen = front[:, None, :, :, None].expand(-1, 1, -1, -1, 3)
            views.append(color.gather(1, chosen)[:, 0].movedim(-1, 1).contiguous())
            fronts.append(front)
        left, right = fronts
        depth = disparity.gather(1, left.flatten(1)).view_as(left)
        there = x - depth
        same = right.gather(2, there.clamp(0, size - 1)) == left
        return Pairs(*views, depth.float(), same & (there >= 0) & (there < size))


@functools.cache
def _motorcycle() -> tuple[Tensor, Tensor, Tensor]:
    try:
        from skimage.data import stereo_motorcycle
    except ImportError as error:
        raise embedded.DataError(
            "motorcycle: expected scikit-image, which brings the two photographs along, got none: "
            "pip install scikit-image"
        ) from error
    left, right, disparity = (torch.from_numpy(a.copy()) for a in stereo_motorcycle())
    return left.movedim(-1, 0).float() / 255, right.movedim(-1, 0).float() / 255, disparity.float()


def motorcycle(shrink: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """The real pair, area-averaged: left (3, 500 // k, 741 // k), right, and disparity (500 // k, 741 // k).

    The disparity is in pixels of these pictures and belongs to the left one; nan where none was measured.

    Raises:
        ValueError: shrink below 1. DataError: scikit-image is missing.
    """
    if shrink < 1:
        raise ValueError(f"shrink: expected at least 1, got {shrink}")
    left, right, disparity = _motorcycle()
    known = disparity.isfinite().float()
    total, weight = (F.avg_pool2d(v[None], shrink)[0] for v in (disparity.nan_to_num(0, 0, 0) * known, known))
    return F.avg_pool2d(left, shrink), F.avg_pool2d(right, shrink), total / weight / shrink  # nan where weight is 0


def motorcycle_pairs(
    count: int,
    generator: torch.Generator,
    *,
    size: int = 16,
    shifts: tuple[int, ...] = (-4, 0, 4),
    shrink: int = 4,
) -> Pairs:
    """Windows of the real pair: the left one anywhere, the right one where most of its disparity is one of `shifts`.

    The two cameras are turned, so to say, towards what the left window shows: the right window is moved by its mean
    disparity, rounded, less a shift. `seen` is true where the point lies inside the right window; what is hidden by
    something nearer is not known here. Windows in which a disparity is missing are left out.

    Raises:
        ValueError: count < 1, or no window fits. DataError: scikit-image is missing.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    left, right, disparity = motorcycle(shrink)
    if not 1 <= size <= min(disparity.shape):
        raise ValueError(f"size: expected 1 to {min(disparity.shape)}, got {size}")
    mean = F.avg_pool2d(disparity[None, None], size, 1)[0, 0]  # nan where anything is missing
    center = mean.nan_to_num(0).round().long()
    column = torch.arange(mean.shape[1])
    fits = mean.isfinite() & (column - center + min(shifts) >= 0) & (column - center + max(shifts) < mean.shape[1])
    places = fits.nonzero()
    if not len(places):
        raise ValueError(f"size: expected windows that fit into the right view with shifts {shifts}, got {size}")
    device = generator.device
    which = torch.randint(len(places), (count,), generator=generator, device=device).cpu()
    turn = torch.randint(len(shifts), (count,), generator=generator, device=device).cpu()
    row, start = places[which].unbind(1)
    offset = center[row, start] - torch.tensor(shifts)[turn]
    y = row[:, None, None] + torch.arange(size)[:, None]
    x = start[:, None, None] + torch.arange(size)
    local = disparity[y, x] - offset[:, None, None]
    there = torch.arange(size) - local
    views = (left[:, y, x].movedim(1, 0), right[:, y, x - offset[:, None, None]].movedim(1, 0))
    seen = (there >= 0) & (there <= size - 1)
    return Pairs(*(t.contiguous().to(device) for t in (*views, local, seen)))

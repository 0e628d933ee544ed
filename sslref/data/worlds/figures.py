"""The figure world: stick figures with a head, two arms and a leg, with their joints and masks.

**What it models**: a class of things with one skeleton and many poses, on which keypoints and their links can be
measured. **What it leaves out**: everything else. Limbs have one length and one width, nothing hides a limb, the ground
is flat, and a figure never turns upside down, so "up" alone tells the head from the leg.

**One figure**, S×S pixels, S = 32. All draws are independent and uniform.
1. Pose: the trunk, joint 0, lies in [-0.3, 0.3]² of the picture's [-1, 1]². From it four limbs of length 0.55 go up,
   left, right and down, each turned by an angle in [-0.6, 0.6] rad. Their ends are joints 1 to 4: head, hands, foot.
2. Mask: the four limbs are capsules, all points within 0.09 of the segment; a pixel holds the share that is covered,
   approximated by a ramp one pixel wide.
3. Colours: the ground is any colour; each channel of the figure is 0.3 to 0.7 further, around the circle [0, 1).
4. Gaussian noise of deviation 0.05 on every value, clipped to [0, 1].

**Check.** `tests/data/test_stick_figures.py` draws figures by loops. Nothing is stored: a thousand figures take 0.1 s.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sslref.nn.geometry import pixel_centers

JOINTS = ("trunk", "head", "left hand", "right hand", "foot")
LIMBS = ((0, 1), (0, 2), (0, 3), (0, 4))  # which joints a limb joins
DIRECTIONS = (-math.pi / 2, math.pi, 0.0, math.pi / 2)  # of the limbs at rest; y points down


@dataclass(frozen=True, eq=False)
class Figures:
    """Figures with their ground truth; the first axis of everything is the figure."""

    images: Tensor  #: (B, 3, S, S) float32 in [0, 1]
    joints: Tensor  #: (B, 5, 2) float32, (x, y) in [-1, 1], in the order of JOINTS
    masks: Tensor  #: (B, 1, S, S) float32, share of the pixel that the figure covers

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor | slice) -> "Figures":
        """Some of the figures."""
        return Figures(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class FigureWorld:
    """Draws figures; the module's docstring says how.

    Args:
        size: S, at least 8.
        length: of a limb. radius: half the width of a limb. shift: largest offset of the trunk from the middle.
        swing: largest angle of a limb from its rest, rad. noise: deviation of the noise.

    Raises:
        ValueError: size < 8, a negative number, a limb that may leave the picture.
    """

    size: int = 32
    length: float = 0.55
    radius: float = 0.09
    shift: float = 0.3
    swing: float = 0.6
    noise: float = 0.05

    def __post_init__(self):
        if self.size < 8:
            raise ValueError(f"size: expected at least 8, got {self.size}")
        for name in ("length", "radius", "shift", "swing", "noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        reach = self.shift + self.length + self.radius
        if reach > 1:
            raise ValueError(f"length, radius, shift: expected a sum of at most 1, got {reach:.3g}")

    def sample(self, count: int, generator: torch.Generator) -> Figures:
        """Draw figures, on the generator's device. Raises ValueError if count < 1."""
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")

        def uniform(*shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator, device=generator.device)

        trunk = self.shift * (2 * uniform(1, 2) - 1)
        turned = torch.tensor(DIRECTIONS, device=trunk.device) + self.swing * (2 * uniform(4) - 1)
        ends = trunk + self.length * torch.stack([turned.cos(), turned.sin()], dim=2)
        joints = torch.cat([trunk, ends], dim=1)
        masks = self.draw(joints)
        ground = uniform(3, 1, 1)
        ink = (ground + 0.3 + 0.4 * uniform(3, 1, 1)).remainder(1)
        noise = torch.randn(count, 3, self.size, self.size, generator=generator, device=trunk.device)
        images = (ground + (ink - ground) * masks + self.noise * noise).clamp(0, 1)
        return Figures(images, joints, masks)

    def draw(self, joints: Tensor) -> Tensor:
        """The masks (B, 1, S, S) of figures with these joints (B, 5, 2)."""
        if joints.ndim != 3 or joints.shape[1:] != (len(JOINTS), 2):
            raise ValueError(f"joints: expected shape (B, {len(JOINTS)}, 2), got {tuple(joints.shape)}")
        pixels = pixel_centers(joints.new_tensor([[-1.0, -1.0, 1.0, 1.0]]), self.size, self.size)[:, None]
        starts, ends = (joints[:, [limb[i] for limb in LIMBS], None, None] for i in (0, 1))
        along = ends - starts
        share = ((pixels - starts) * along).sum(-1, keepdim=True) / along.square().sum(-1, keepdim=True).clamp_min(1e-8)
        nearest = (pixels - starts - share.clamp(0, 1) * along).norm(dim=-1).amin(1, keepdim=True)
        return ((self.radius - nearest) * self.size / 2 + 0.5).clamp(0, 1)

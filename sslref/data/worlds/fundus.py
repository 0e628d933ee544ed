"""Pieces of a healthy retina to learn from, and of a sick one to look at.

**What it models**: thin dark vessels on an even ground, as the green channel of a fundus photograph shows them. **What
it leaves out**: nearly all of medicine. The healthy eye is one photograph of 240 pixels, the sick one a detail of 102
pixels of another, taken with another camera and some twelve times larger. On neither side of the comparison is there
more than one person. Vessels are about equally wide in pixels in both, and `flat_field` gives both the same mean and
deviation; else they would be told apart by their light.

**A picture** (`healthy`): 32 x 32 pixels of the healthy eye, 12 pixels or more away from the edge of the field of view,
mirrored with probability 1/2, turned by a quarter and mirrored with probability 1/2. The sick eye is
`embedded.microaneurysms()`.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from sslref.data import embedded

MARGIN = 12


def flat_field(image: Tensor) -> Tensor:
    """A picture (1, H, W) less its mean over squares of 31 pixels, as usual for the fundus: mean 0.5, deviation 0.1."""
    detail = image - F.avg_pool2d(F.pad(image[None], (15,) * 4, mode="reflect"), 31, 1)[0]
    return (0.5 + 0.1 * (detail - detail.mean()) / detail.std()).clamp(0, 1)


@functools.cache
def _places(device: str) -> tuple[Tensor, Tensor]:
    """The flat green channel of the healthy eye (1, 240, 240); top and left of the pieces well inside of it, (P, 2)."""
    red, green, _ = embedded.photographs(["retina"])["retina"].to(device)
    outside = (red < 0.2).float()[None, None]
    return flat_field(green[None]), (F.max_pool2d(outside, 32 + 2 * MARGIN, 1)[0, 0] == 0).nonzero() + MARGIN


def healthy(count: int, generator: torch.Generator) -> Tensor:
    """Pieces of the healthy eye, (count, 1, 32, 32), on the generator's device."""
    image, places = _places(str(generator.device))
    rows = torch.randint(len(places), (count,), generator=generator, device=generator.device)
    corner = places[rows, :, None] + torch.arange(32, device=generator.device)
    pieces = image[0][corner[:, 0, :, None], corner[:, 1, None]][:, None]
    mirrored, turned = torch.rand(2, count, 1, 1, 1, generator=generator, device=generator.device) < 0.5
    pieces = torch.where(mirrored, pieces.flip(3), pieces)
    return torch.where(turned, pieces.mT, pieces)

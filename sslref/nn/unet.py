"""A small U-Net for tasks that answer with a picture."""

import math

import torch
from torch import Tensor, nn


def _double(inputs: int, outputs: int) -> nn.Sequential:
    # group norm: a picture's output must not depend on the pictures next to it
    groups = math.gcd(8, outputs)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.GroupNorm(groups, outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.GroupNorm(groups, outputs),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Down `depth` times by 2, up again, with the map of the same size concatenated (Ronneberger et al. 2015, Fig. 1).

    Level i has `width * 2**i` channels. The output has the size of the input and no activation.

    Args:
        in_chans: channels of the input.
        out_chans: channels of the output.
        width: channels of the first level.
        depth: number of poolings.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, *, in_chans: int = 3, out_chans: int = 1, width: int = 16, depth: int = 2):
        super().__init__()
        for name, value in {"in_chans": in_chans, "out_chans": out_chans, "width": width, "depth": depth}.items():
            if value < 1:
                raise ValueError(f"{name}: expected >= 1, got {value}")
        self.in_chans, self.depth = in_chans, depth
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList([_double(i, o) for i, o in zip([in_chans, *widths[:-1]], widths, strict=True)])
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList([nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1])])
        self.merge = nn.ModuleList([_double(2 * w, w) for w in reversed(widths[:-1])])
        self.out = nn.Conv2d(width, out_chans, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, out_chans, H, W).

        Raises:
            ValueError: another number of channels, or H or W is no multiple of `2**depth`.
        """
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise ValueError(f"images: expected shape (B, {self.in_chans}, H, W), got {tuple(images.shape)}")
        factor = 2**self.depth
        if images.shape[2] % factor or images.shape[3] % factor:
            raise ValueError(f"images: expected height and width in multiples of {factor}, got {tuple(images.shape)}")
        x, skips = self.down[0](images), []
        for block in self.down[1:]:
            skips.append(x)
            x = block(self.pool(x))
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
        return self.out(x)

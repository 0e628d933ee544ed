"""Video networks that convolve over the frame and over time in turn: R(2+1)D (Tran et al. 2018)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv2plus1d(
    in_chans: int, out_chans: int, *, mid: int | None = None, kernel: int = 3, stride: tuple[int, int] = (1, 1)
) -> list[nn.Module]:
    """A convolution over the frame, then one over time (Tran et al. 2018); stride: (time, space).

    Without `mid` the channels in between are such that it has as many weights as a full 3-D convolution.
    """
    space = kernel * kernel * in_chans
    time = min(kernel, 3)
    mid = mid or time * space * out_chans // (space + time * out_chans)
    return [
        nn.Conv3d(
            in_chans, mid, (1, kernel, kernel), (1, stride[1], stride[1]), (0, kernel // 2, kernel // 2), bias=False
        ),
        nn.BatchNorm3d(mid),
        nn.ReLU(),
        nn.Conv3d(mid, out_chans, (time, 1, 1), (stride[0], 1, 1), (time // 2, 0, 0), bias=False),
        nn.BatchNorm3d(out_chans),
    ]


class _Residual(nn.Module):
    def __init__(self, in_chans: int, out_chans: int, stride: int):
        super().__init__()
        first = _conv2plus1d(in_chans, out_chans, stride=(stride, stride))
        self.body = nn.Sequential(*first, nn.ReLU(), *_conv2plus1d(out_chans, out_chans))
        same = stride == 1 and in_chans == out_chans
        down = [] if same else _conv2plus1d(in_chans, out_chans, kernel=1, stride=(stride, stride))
        self.skip = nn.Sequential(*down)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.body(x))


class R2Plus1D(nn.Module):
    """The R(2+1)D of the official code: a 3×7×7 stem and four residual blocks; (B, T, 3, S, S) -> (B, out_dim).

    Args:
        widths: channels of the stem and of each block.

    Raises:
        ValueError: another shape.
    """

    def __init__(self, *, widths: tuple[int, ...] = (64, 64, 128, 256, 512)):
        super().__init__()
        stem = [*_conv2plus1d(3, widths[0], kernel=7, stride=(1, 2)), nn.ReLU()]
        pairs = zip(widths, widths[1:], strict=False)
        blocks = [_Residual(a, b, stride=1 if i == 0 else 2) for i, (a, b) in enumerate(pairs)]
        self.layers, self.out_dim = nn.Sequential(*stem, *blocks), widths[-1]

    def forward(self, video: Tensor) -> Tensor:
        if video.ndim != 5 or video.shape[2] != 3:
            raise ValueError(f"video: expected shape (B, T, 3, S, S), got {tuple(video.shape)}")
        return self.layers(video.transpose(1, 2)).mean((2, 3, 4))


class SmallR2Plus1D(nn.Module):
    """Four convolutions over space and time and one linear layer; (B, T, 3, 32, 32) -> (B, out_dim).

    The map in front of the linear layer is flattened, not averaged (as in C3D): where something is must not get lost.

    Raises:
        ValueError: another shape.
    """

    def __init__(self, *, widths: tuple[int, ...] = (16, 24, 32, 48), out_dim: int = 64):
        super().__init__()
        strides, chans, layers = ((1, 2), (2, 2), (2, 2), (1, 1)), 3, []
        for width, stride in zip(widths, strides, strict=True):
            layers += [*_conv2plus1d(chans, width, mid=width, stride=stride), nn.ReLU()]
            chans = width
        self.layers, self.out_dim = nn.Sequential(*layers), out_dim
        self.head = nn.Sequential(nn.Linear(16 * chans, out_dim), nn.BatchNorm1d(out_dim), nn.ReLU())
        self.to(memory_format=torch.channels_last_3d)  # a quarter faster on a CPU

    def forward(self, video: Tensor) -> Tensor:
        if video.ndim != 5 or video.shape[2:] != (3, 32, 32):
            raise ValueError(f"video: expected shape (B, T, 3, 32, 32), got {tuple(video.shape)}")
        return self.head(self.layers(video.transpose(1, 2)).mean(2).flatten(1))

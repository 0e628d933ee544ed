"""Two small convolutional encoders: a residual network and a plain stack of strided convolutions."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


def _check_images(images: Tensor, channels: int) -> None:
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(f"images: expected shape (B, {channels}, H, W), got {tuple(images.shape)}")


def _conv(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution and its batch norm, whose shift makes a bias needless."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


class _BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus the input, then ReLU (He et al. 2016, Fig. 2), projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(*_conv(inputs, outputs, stride=stride), nn.ReLU(), *_conv(outputs, outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv(inputs, outputs, kernel=1, stride=stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual network for pictures of 16 to 64 pixels: a 3x3 stem without stride, then stages of basic blocks.

    Stage i has `width * 2**i` channels and, from the second stage on, stride 2 in its first block.

    Args:
        in_chans: channels of the pictures.
        width: channels of the stem and the first stage.
        blocks: number of basic blocks of every stage.
        num_classes: if given, `forward` ends in a linear layer.

    Attributes:
        out_dim: channels of the last stage, the dimension of the representation.

    Raises:
        ValueError: a size below 1, or no stage.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        width: int = 16,
        blocks: Sequence[int] = (1, 1, 1),
        num_classes: int | None = None,
    ):
        super().__init__()
        if not blocks or min(blocks) < 1:
            raise ValueError(f"blocks: expected one number >= 1 a stage, got {tuple(blocks)}")
        for name, value in {"in_chans": in_chans, "width": width, "num_classes": num_classes}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected >= 1, got {value}")
        self.in_chans = in_chans
        self.stem = nn.Sequential(*_conv(in_chans, width), nn.ReLU())
        stages, inputs = [], width
        for i, count in enumerate(blocks):
            outputs = width * 2**i
            first = _BasicBlock(inputs, outputs, stride=1 if i == 0 else 2)
            stages.append(nn.Sequential(first, *(_BasicBlock(outputs, outputs, 1) for _ in range(count - 1))))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.out_dim = inputs
        self.head = nn.Identity() if num_classes is None else nn.Linear(inputs, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The last feature map, (B, out_dim, h, w), of pictures (B, in_chans, H, W)."""
        _check_images(images, self.in_chans)
        return self.stages(self.stem(images))

    def forward(self, images: Tensor) -> Tensor:
        """(B, out_dim), the mean over positions, or (B, num_classes) where the network has a classifier."""
        return self.head(self.features(images).mean((2, 3)))


class ConvNet(nn.Module):
    """3x3 convolutions of stride 2, each followed by batch norm and ReLU: the cheapest encoder that still learns.

    With the default widths, a picture of 32 pixels costs about one million multiply-adds.

    Args:
        in_chans: channels of the pictures.
        widths: output channels of the convolutions.

    Attributes:
        out_dim: the last width, the dimension of the representation.

    Raises:
        ValueError: a size below 1, or no width.
    """

    def __init__(self, *, in_chans: int = 3, widths: Sequence[int] = (24, 48, 96, 192)):
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths: expected one number >= 1 a convolution, got {tuple(widths)}")
        if in_chans < 1:
            raise ValueError(f"in_chans: expected >= 1, got {in_chans}")
        self.in_chans = in_chans
        self.out_dim = widths[-1]
        layers = [nn.Sequential(*_conv(i, o, stride=2), nn.ReLU()) for i, o in pairwise((in_chans, *widths))]
        self.layers = nn.Sequential(*layers)

    def features(self, images: Tensor) -> Tensor:
        """The last feature map, (B, out_dim, h, w), of pictures (B, in_chans, H, W)."""
        _check_images(images, self.in_chans)
        return self.layers(images)

    def forward(self, images: Tensor) -> Tensor:
        """(B, out_dim): the mean of the last feature map over positions."""
        return self.features(images).mean((2, 3))

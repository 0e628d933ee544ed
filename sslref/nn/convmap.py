"""The small convolutional encoder with strides of its own, for maps that keep more places."""

from collections.abc import Sequence

from .resnet import ConvNet


class ConvMap(ConvNet):
    """A `ConvNet` whose strides are chosen: by default a view of 48 pixels gives 6×6 places.

    Args:
        in_chans, widths: as in `ConvNet`.
        strides: stride of each convolution.

    Raises:
        ValueError: a size below 1, no width, not one stride a width.
    """

    def __init__(
        self, *, in_chans: int = 3, widths: Sequence[int] = (24, 48, 96, 192), strides: Sequence[int] = (2, 2, 2, 1)
    ):
        super().__init__(in_chans=in_chans, widths=widths)
        if len(strides) != len(widths) or min(strides) < 1:
            raise ValueError(f"strides: expected {len(widths)} numbers >= 1, got {tuple(strides)}")
        for (convolution, *_), stride in zip(self.layers, strides, strict=True):
            convolution.stride = (stride, stride)  # no weight depends on it

"""The GPU check of `eva`."""

from torch import Tensor, nn

from sslref.cases import NET, Case


def _gradient(scale: type, x: Tensor) -> Tensor:
    return scale(x, 0.1) * x


def _few_enough(mask: Tensor, batch: int, grid: tuple[int, int]) -> bool:
    count = mask.sum(1)
    return mask.shape == (batch, grid[0] * grid[1]) and bool(((count > 0) & (count <= 102)).all())


def _hidden(model: nn.Module, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return model(images, mask), model(images)


CASES = (
    Case("eva.block_mask", lambda d: (40, (16, 16)), law=_few_enough),
    Case("eva.mask_tokens", lambda d: (d.normal(3, 16, 8), d.order(3, 16) < 6, d.normal(8))),
    Case("eva.feature_loss", lambda d: (d.normal(3, 16, 8), d.normal(3, 16, 8), d.chance(0.4, 3, 16))),
    Case("eva.scale_gradient", lambda d: (d.normal(3, 16, 8),), call=_gradient),
    Case("eva.QVBiasAttention", lambda d: (d.normal(2, 9, 16),), build={"dim": 16}, bf16=0.05),
    Case(
        "eva.EVA",
        lambda d: (d.uniform(2, 3, 16, 16), d.order(2, 16) < 6),
        build={"image_size": 16, "embed_dim": 32},
        call=_hidden,
        **NET,
    ),
    Case("eva.image_text_loss", lambda d: (d.normal(8, 16), d.normal(8, 16), d.labels(5, 8))),
)

"""The GPU check of `croco`."""

from torch import Tensor, nn

from sslref.cases import NET, Case

SIZES = {"image_size": 16, "embed_dim": 16, "decoder_embed_dim": 12, "mask_ratio": 0.75}


def _hidden(out: Tensor, batch: int, count: int) -> bool:
    return out.shape == (batch, count) and bool((out.sum(1) == int(0.9 * count)).all())


def _masked(model: nn.Module, first: Tensor, second: Tensor, mask: Tensor) -> tuple:
    return model(first, second, mask=mask)


CASES = (
    Case("croco.random_mask", lambda d: (6, 49), law=_hidden),
    Case("croco.gather_visible", lambda d: (d.normal(3, 9, 4), d.order(3, 9) < 5), float32=0),
    Case("croco.scatter_visible", lambda d: (d.normal(3, 4, 6), d.order(3, 9) < 5, d.normal(6))),
    Case("croco.CrossAttention", lambda d: (d.normal(2, 3, 8), d.normal(2, 5, 8)), build={"dim": 8}, **NET),
    Case("croco.DecoderBlock", lambda d: (d.normal(2, 3, 8), d.normal(2, 5, 8)), build={"dim": 8}, **NET),
    Case(
        "croco.CroCo",
        lambda d: (d.normal(2, 3, 16, 16), d.normal(2, 3, 16, 16), d.order(2, 16) < 12),
        build=SIZES,
        call=_masked,
        **NET,
    ),
    Case("croco.completion_loss", lambda d: (d.normal(2, 9, 12), d.normal(2, 9, 12), d.order(2, 9) < 6)),
)

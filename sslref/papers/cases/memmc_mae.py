"""The GPU check of `memmc_mae`."""

from torch import Tensor, nn

from sslref.cases import NET, Case, Draw


def _noise(model: nn.Module, images: Tensor, noise: Tensor) -> tuple:
    return model(images, noise=noise)


def _levels(module: nn.Module, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return module(x, (low, high))


def _alike(d: Draw) -> tuple[Tensor, Tensor]:
    x = d.uniform(2, 2, 32, 32)
    return x, 0.7 * x + 0.3 * d.uniform(2, 2, 32, 32)


CASES = (
    Case(
        "memmc_mae.memory_attention",
        lambda d: (*(d.normal(2, 2, 9, 4) for _ in range(3)), *(d.normal(2, 5, 4) for _ in range(2))),
    ),
    Case("memmc_mae.MemoryAttention", lambda d: (d.normal(2, 9, 8),), build={"dim": 8, "num_heads": 2}, **NET),
    Case(
        "memmc_mae.MultiLevelCrossAttention",
        lambda d: (d.normal(2, 9, 8), d.normal(2, 4, 8), d.normal(2, 4, 8)),
        build={"dim": 8, "num_heads": 2},
        call=_levels,
        **NET,
    ),
    Case("memmc_mae.ms_ssim", _alike, float32=1e-4, bf16=1e-4),
    Case("memmc_mae.anomaly_score", _alike, float32=1e-4, bf16=1e-4),
    Case("memmc_mae.anomaly_map", _alike, bf16=1e-4),
    Case("memmc_mae.MemMCMAE", lambda d: (d.uniform(2, 1, 32, 32), d.uniform(2, 64)), build={}, call=_noise, **NET),
)

"""NuTime: numerically multi-scaled embedding for time series (Lin et al., TMLR 2024, arXiv 2310.07402).

Series from different sources live on different scales: millivolts here, megawatts there. Normalising every series
throws its level away; keeping raw values lets the largest numbers drown the rest. NuTime cuts a series into windows
and describes each by its normalised *shape* and by two numbers, its *mean* and *standard deviation*. A number of
unknown size is embedded at many scales at once, and the scales nearest to it weigh most.

    paper                                    here
    -------------------------------------    -----------------------------------
    scales 10^-4 ... 10^4            (3.2)   numerical_scales
    weights alpha_i(x)               (3.2)   scale_weights
    NME(x) = sum_i alpha_i LN(x w_i + k_i b_i)    NumericallyMultiscaledEmbedding
    shape, mean, deviation of a window (3.1) window_statistics
    window token                     (3.1)   WindowEmbedding
    views for BYOL                   (3.3)   random_resized_crop
    pre-training                     (3.3)   NuTime, BYOL
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslref.claims import Claim, Experiment
from sslref.data import embedded, folders
from sslref.evaluate import accuracy, linear_probe, standardize
from sslref.losses import byol_loss
from sslref.nn import Block, EMATeacher, cosine_schedule, mlp, seeded
from sslref.registry import Paper
from sslref.train import Recipe, Task, adamw, fit, recipe_size, warmup_cosine

PAPER = Paper(
    slug="nutime",
    title="NuTime: Numerically Multi-Scaled Embedding for Large-Scale Time-Series Pretraining",
    authors=(
        "Chenguo Lin",
        "Xumeng Wen",
        "Wei Cao",
        "Congrui Huang",
        "Jiang Bian",
        "Stephen Lin",
        "Zhirong Wu",
    ),
    venue="Transactions on Machine Learning Research",
    year=2024,
    arxiv="2310.07402",
    code="https://github.com/chenguolin/NuTime",
    part="structure",
    data=("series",),
    idea="Describe each window of a series by its shape and by two numbers, and embed a number at many scales at once.",
    minutes=35,
    needs=("attention", "BYOL"),
)

# ------------------------------------------------------------------------------------- numbers at many scales (3.2)


def numerical_scales(num_scales: int = 9, base: float = 10.0) -> Tensor:
    """The scales k_i = base^i, i = -floor(S/2), ..., -floor(S/2) + S - 1, ascending (section 3.2).

    Returns:
        (S,) of the default dtype; nine scales run from 10^-4 to 10^4.

    Raises:
        ValueError: num_scales < 1 or base <= 1.
    """
    if num_scales < 1:
        raise ValueError(f"num_scales: expected at least 1, got {num_scales}")
    if not base > 1:
        raise ValueError(f"base: expected more than 1, got {base}")
    first = -(num_scales // 2)
    return torch.tensor([float(base) ** i for i in range(first, first + num_scales)])


def scale_weights(x: Tensor, scales: Tensor, *, eps: float = 1e-6) -> Tensor:
    """How much each scale counts for each number: a_i = 1 / (|ln(|x|/k_i + eps)| + eps), normalised (section 3.2).

    The logarithm vanishes at |x| = k_i, so the nearest scale takes nearly all; between two scales they share.
    The outer eps stands in the official code only; without it the weight at |x| = k_i would be about 1/eps anyway.

    Args:
        x: (...) numbers of any sign and size. scales: (S,) positive.

    Returns:
        (..., S), summing to 1 over the last axis.
    """
    if scales.ndim != 1 or not scales.numel():
        raise ValueError(f"scales: expected shape (S,) with S >= 1, got {tuple(scales.shape)}")
    if (scales <= 0).any():
        raise ValueError(f"scales: expected positive numbers, got {scales.tolist()}")
    return _weights(x, scales, eps)


def _weights(x: Tensor, scales: Tensor, eps: float) -> Tensor:
    # without the look at the values of `scales`, which would wait for the device in every step
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision knows no 10^-8 and no 10^8
    a = 1 / ((x.abs()[..., None] / scales + eps).log().abs() + eps)
    return a / a.sum(-1, keepdim=True)


class NumericallyMultiscaledEmbedding(nn.Module):
    """NME(x) = sum_i alpha_i(x) LN(x w_i + k_i b_i): a number of unknown size as a vector (section 3.2).

    LayerNorm makes branch i depend on x / k_i alone: it saturates to a constant for |x| << k_i, to another one times
    the sign for |x| >> k_i, and is sensitive in between. Some branch is sensitive everywhere.
    """

    def __init__(self, embed_dim: int = 16, *, num_scales: int = 9, base: float = 10.0, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.register_buffer("scales", numerical_scales(num_scales, base))
        self.weight = nn.Parameter(torch.empty(num_scales, embed_dim).uniform_(-1, 1))
        self.bias = nn.Parameter(torch.empty(num_scales, embed_dim).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (..., D)."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        branches = x[..., None, None] * self.weight + self.scales[:, None] * self.bias
        branches = F.layer_norm(branches, branches.shape[-1:])
        return (_weights(x, self.scales, self.eps)[..., None] * branches).sum(-2)


# --------------------------------------------------------------------------------------------- windows (3.1)


class WindowStats(NamedTuple):
    shape: Tensor  # (B, C, N, W)
    mean: Tensor  # (B, C, N)
    std: Tensor  # (B, C, N)


def _windows(x: Tensor, window_size: int) -> Tensor:
    if x.ndim != 3:
        raise ValueError(f"x: expected shape (B, C, T), got {tuple(x.shape)}")
    if window_size < 2:
        raise ValueError(f"window_size: expected at least 2 (a deviation needs two values), got {window_size}")
    if x.shape[-1] == 0 or x.shape[-1] % window_size:
        raise ValueError(f"x: expected a length that is a positive multiple of {window_size}, got {x.shape[-1]}")
    return x.unflatten(-1, (-1, window_size))


def window_statistics(x: Tensor, window_size: int, *, eps: float = 1e-8) -> WindowStats:
    """Cut series into windows and split each into normalised shape, mean and deviation (section 3.1).

    Mean and deviation (unbiased) are constants for the gradient, also inside the shape: each value of the shape
    moves with one value of the series only.

    Args:
        x: (B, C, T), T a positive multiple of `window_size`.
        window_size: W, at least 2.

    Returns:
        shape (B, C, N, W) = (w - mean) / (std + eps), mean (B, C, N), std (B, C, N).
    """
    w = _windows(x, window_size)
    mean, std = w.detach().mean(-1), w.detach().std(-1)
    return WindowStats((w - mean[..., None]) / (std[..., None] + eps), mean, std)


class WindowEmbedding(nn.Module):
    """Series to tokens: LN(Linear([LN(Linear(shape)); NME(mean); NME(std)])) for each window (section 3.1).

    One embedding of numbers serves mean and deviation. The C tokens of a window are concatenated, channel by
    channel, and mapped to one; with one channel nothing is mapped.
    """

    def __init__(
        self,
        *,
        window_size: int = 16,
        embed_dim: int = 128,
        scalar_dim: int = 16,
        num_channels: int = 1,
        num_scales: int = 9,
        base: float = 10.0,
    ):
        super().__init__()
        self.window_size, self.num_channels = window_size, num_channels
        self.shape_proj = nn.Linear(window_size, embed_dim)
        self.shape_norm = nn.LayerNorm(embed_dim)
        self.scalar = NumericallyMultiscaledEmbedding(scalar_dim, num_scales=num_scales, base=base)
        self.fuse = nn.Linear(embed_dim + 2 * scalar_dim, embed_dim)
        self.fuse_norm = nn.LayerNorm(embed_dim)
        if num_channels > 1:
            self.channel = nn.Linear(num_channels * embed_dim, embed_dim)
            self.channel_norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, N, D). Raises ValueError for another C, or a T that windows do not fill."""
        if x.ndim == 3 and x.shape[1] != self.num_channels:
            raise ValueError(f"x: expected {self.num_channels} channels, got {x.shape[1]}")
        shape, mean, std = window_statistics(x, self.window_size)
        parts = [self.shape_norm(self.shape_proj(shape)), self.scalar(mean), self.scalar(std)]
        tokens = self.fuse_norm(self.fuse(torch.cat(parts, -1)))  # (B, C, N, D)
        if self.num_channels == 1:
            return tokens[:, 0]
        return self.channel_norm(self.channel(tokens.transpose(1, 2).flatten(2)))


def random_resized_crop(
    x: Tensor, size: int, *, scale: tuple[float, float] = (0.8, 1.0), generator: torch.Generator | None = None
) -> Tensor:
    """A random stretch of each series, resampled to `size` steps by linear interpolation: the only augmentation.

    Length round(T u) with u uniform in `scale`, at least 2; start uniform; the same crop for all channels of a
    sample. Sampling is that of `interpolate(..., align_corners=False)`.

    Args:
        x: (B, C, T). size: steps of the result.

    Returns:
        (B, C, size).
    """
    if x.ndim != 3 or x.shape[-1] < 1:
        raise ValueError(f"x: expected shape (B, C, T) with T >= 1, got {tuple(x.shape)}")
    if size < 1:
        raise ValueError(f"size: expected at least 1, got {size}")
    low, high = scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"scale: expected 0 < low <= high <= 1, got {scale}")
    batch, steps = x.shape[0], x.shape[-1]
    u = torch.rand(2, batch, generator=generator, device=x.device, dtype=torch.float64)
    length = (steps * (low + (high - low) * u[0])).round().clamp(min=min(2, steps), max=steps)
    start = (u[1] * (steps - length + 1)).floor().clamp(max=steps - length)
    centre = (torch.arange(size, device=x.device, dtype=torch.float64) + 0.5) / size
    at = (centre * length[:, None] - 0.5).clamp(min=0)  # (B, size), position inside the crop
    left = at.floor().clamp(max=length[:, None] - 1)
    right = torch.minimum(left + 1, length[:, None] - 1)
    fraction = (at - left).to(x.dtype)[:, None]
    left, right = ((i + start[:, None]).long()[:, None].expand(-1, x.shape[1], -1) for i in (left, right))
    return torch.lerp(x.gather(-1, left), x.gather(-1, right), fraction)


# ----------------------------------------------------------------------------------- encoder and pre-training (3.3)


def sincos_1d(length: int, dim: int, *, device: torch.device | None = None) -> Tensor:
    """(length, dim) fixed positions: sine and cosine interleaved, frequencies 10000^(-2i/dim)."""
    frequency = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    angle = torch.arange(length, device=device)[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)


class NuTime(nn.Module):
    """Window tokens, class token, fixed positions, pre-norm Transformer; the class token represents the series."""

    def __init__(self, embedding: nn.Module, *, embed_dim: int = 128, depth: int = 6, num_heads: int = 8):
        super().__init__()
        self.embedding = embedding
        self.class_token = nn.Parameter(torch.randn(embed_dim) * 1e-6)
        self.blocks = nn.Sequential(*(Block(embed_dim, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, D)."""
        tokens = self.embedding(x)
        tokens = torch.cat((self.class_token.expand(len(tokens), 1, -1), tokens), 1)
        positions = sincos_1d(tokens.shape[1], tokens.shape[2], device=tokens.device).to(tokens.dtype)
        return self.norm(self.blocks(tokens + positions))[:, 0]


class BYOL(nn.Module):
    """Predict the teacher's projection of one view from the student's of the other (section 3.3).

    The student is encoder + projector, the teacher its moving average, the predictor has the projector's form.
    """

    def __init__(self, encoder: nn.Module, *, dim: int, hidden: int, momentum: float = 0.99):
        super().__init__()
        self.student = nn.Sequential(encoder, mlp(dim, hidden, dim))
        self.predictor = mlp(dim, hidden, dim)
        self.teacher = EMATeacher(self.student, momentum=momentum)

    @property
    def encoder(self) -> nn.Module:
        return self.student[0]

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Two views (B, C, T) of the same series -> scalar, the mean of both directions."""
        p1, p2 = self.predictor(self.student(x1)), self.predictor(self.student(x2))
        t1, t2 = self.teacher(x1), self.teacher(x2)
        return (byol_loss(p1, t2) + byol_loss(p2, t1)) / 2

    def update(self, step: int, steps: int) -> None:
        """The teacher follows more slowly as training goes on: momentum from its base to 1 along a cosine."""
        base = self.teacher.momentum
        self.teacher.update(self.student, momentum=1 - cosine_schedule(step, steps, base=1 - base))


def byol_task(model: BYOL, series: Tensor, *, batch_size: int, lr: float, weight_decay: float = 0.05) -> Task:
    """Pre-training of `model` on `series` (M, C, T) with two random resized crops of each."""
    kept = {}

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        device = generator.device
        if device not in kept:  # the series move to the device once
            kept[device] = series.to(device)
        pick = torch.randint(len(series), (batch_size,), generator=generator, device=device)
        x = kept[device][pick]
        return tuple(random_resized_crop(x, x.shape[-1], generator=generator) for _ in range(2))

    return Task(
        model=model,
        batch=batch,
        loss=lambda model, views: model(*views),
        optimizer=functools.partial(adamw, lr=lr, weight_decay=weight_decay),
        schedule=warmup_cosine(0.05, final=0.01),
        after_step=lambda model, step, steps: model.update(step, steps),
    )


def recipe(
    source: Path | None = None, *, batch_size: int | None = None, device: str = "cpu", size: str | None = None
) -> Recipe:
    """The released recipe on a folder of UCR/UEA sets, every channel a series of 512 steps; or the miniature.

    Args:
        source: folder of the archive, one folder a set; None: the embedded series.
        size: "paper" (six blocks of width 128, windows of 16) or "miniature" (two of width 32, windows of 8).
    """
    size = recipe_size(size, source)
    if size == "miniature":
        steps, window, dim, depth, heads, batch_size = 64, 8, 32, 2, 4, batch_size or 64
    else:
        steps, window, dim, depth, heads, batch_size = 512, 16, 128, 6, 8, batch_size or 1024
    sets = embedded_sets() if source is None else {k: train for k, (train, _) in folders.ucr_folder(source).items()}
    pool = torch.cat([F.interpolate(s.x, steps, mode="linear").flatten(0, 1)[:, None] for s in sets.values()])

    def byol() -> BYOL:
        embedding = WindowEmbedding(window_size=window, embed_dim=dim, num_scales=5 if size == "paper" else 9)
        encoder = NuTime(embedding, embed_dim=dim, depth=depth, num_heads=heads)
        return BYOL(encoder, dim=dim, hidden=16 * dim if size == "paper" else 2 * dim)

    model = seeded(0, byol).to(device)
    lr = 2e-3 if size == "miniature" else 2e-3 * batch_size / 1024
    epochs = 200
    return Recipe(
        task=byol_task(model, pool, batch_size=batch_size, lr=lr),
        steps=300 if size == "miniature" else math.ceil(epochs * len(pool) / batch_size),
        batch_size=batch_size,
        about=f"NuTime, {len(pool):,} series of {steps} steps from {len(sets)} sets, BYOL",
    )


# --------------------------------------------------------------------------------------------------- the miniature

# Four sets that the archive holds normalised get the units they might have had: a power of ten, and a level.
# The other two are recordings in their own units, in which level and amplitude mean something.
UNITS = {"GunPoint": 1e-3, "ArrowHead": 1e-1, "ItalyPowerDemand": 1e2, "OSULeaf": 1e3}
MEASURED = ("BasicMotions", "JapaneseVowels")
STEPS, WINDOW, DIM = 64, 8, 32


def embedded_sets(split: str = "train") -> dict[str, embedded.Series]:
    """The six sets of the miniature by name, (N, C, STEPS) each, in their units."""
    sets = {name: embedded.series(name, split, length=STEPS) for name in (*UNITS, *MEASURED)}
    return {name: replace(s, x=(s.x + 2) * UNITS[name]) if name in UNITS else s for name, s in sets.items()}


class _ScaledLinear(nn.Module):
    """A number through one linear layer and LayerNorm: what the multi-scaled embedding is compared with."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x[..., None])
        return F.layer_norm(out, out.shape[-1:])


class _Windows(nn.Module):
    """Windows through one linear layer, raw or (normalize) with each series brought to mean 0 and deviation 1."""

    def __init__(self, window_size: int, embed_dim: int, *, normalize: bool):
        super().__init__()
        self.window_size, self.normalize = window_size, normalize
        self.proj, self.norm = nn.Linear(window_size, embed_dim), nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.normalize:
            x = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-8)
        return self.norm(self.proj(_windows(x, self.window_size)[:, 0]))


def embedding(arm: str) -> nn.Module:
    """The tokens of an arm, (B, 1, STEPS) -> (B, N, DIM). Arms differ in nothing else.

    "instance": each series normalised as a whole; "raw": raw windows; "linear": shape and two numbers, each through
    one linear layer; "one scale", "nine scales": shape and two numbers, each through the embedding of the paper.
    """
    if arm in ("instance", "raw"):
        return _Windows(WINDOW, DIM, normalize=arm == "instance")
    tokens = WindowEmbedding(
        window_size=WINDOW, embed_dim=DIM, num_scales={"one scale": 1, "nine scales": 9, "linear": 1}[arm]
    )
    if arm == "linear":
        tokens.scalar = _ScaledLinear(16)
    return tokens


@torch.no_grad()
def features(encoder: nn.Module, x: Tensor) -> Tensor:
    """(B, C, T) -> (B, C * D): every channel is encoded as a series of its own."""
    return encoder(x.flatten(0, 1)[:, None]).unflatten(0, (len(x), -1)).flatten(1)


def encoder_of(arm: str, *, seed: int, around: Callable[[NuTime], nn.Module] = lambda encoder: encoder) -> nn.Module:
    """A new encoder, or what `around` makes of it; arms of one seed share what they can of the initialisation.

    "untrained" has nine scales.
    """
    tokens = seeded(seed, lambda: embedding("nine scales" if arm == "untrained" else arm))
    return seeded(seed + 1, lambda: around(NuTime(tokens, embed_dim=DIM, depth=2, num_heads=4)))


def pretrain(arm: str, *, seed: int, device: str = "cpu", steps: int = 150, progress: bool | Callable = False):
    """BYOL on the training series of all six sets together, each set equally often. Returns (encoder, history)."""
    model = encoder_of(arm, seed=seed, around=lambda encoder: BYOL(encoder, dim=DIM, hidden=2 * DIM)).to(device)
    generator = torch.Generator().manual_seed(seed)
    pool = []
    for series in embedded_sets().values():
        x = series.x.flatten(0, 1)[:, None]
        pool.append(x[torch.randperm(len(x), generator=generator)[torch.arange(240) % len(x)]])
    task = byol_task(model, torch.cat(pool), batch_size=64, lr=2e-3)
    history = fit(task, steps=steps, seed=seed, device=device, progress=progress)
    return model.encoder.eval(), history


def run_transfer(arm: str, *, seed: int, device: str, steps: int, test: int = 300) -> dict[str, float]:
    """Pre-train, then a linear probe on each set with its official split; per cent of the test series."""
    if arm == "untrained":
        encoder = encoder_of(arm, seed=seed).to(device).eval()
    else:
        encoder, _ = pretrain(arm, seed=seed, device=device, steps=steps)
    scores = {}
    train, tests = embedded_sets(), embedded_sets("test")
    for name in train:
        x, x_test = (features(encoder, s.to(device)).cpu() for s in (train[name].x, tests[name].x[:test]))
        x, x_test = standardize(x, x_test)
        scores[name] = 100 * accuracy(linear_probe(x, train[name].y, x_test, C=0.1), tests[name].y[:test])
    return scores | {
        "measured": sum(scores[n] for n in MEASURED) / len(MEASURED),
        "rescaled": sum(scores[n] for n in UNITS) / len(UNITS),
        "all": sum(scores.values()) / len(scores),
    }


def decades(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Signed numbers over eight decades, 10^-4 to 10^4, and the decade of each: (count,), (count,) int64."""
    exponent = torch.rand(count, generator=generator) * 8 - 4
    sign = torch.randint(2, (count,), generator=generator) * 2 - 1
    return sign * 10**exponent, (exponent.floor() + 4).long()


def run_decades(arm: str, *, seed: int, device: str, count: int) -> dict[str, float]:
    """Can a probe read the order of magnitude from an *untrained* embedding of a number? Per cent of 8 classes."""
    generator = torch.Generator().manual_seed(seed)
    (x, y), (x_test, y_test) = decades(count, generator), decades(count, generator)

    def learned() -> nn.ModuleDict:
        modules = {"linear": _ScaledLinear(16)}
        for name, scales in {"one scale": 1, "nine scales": 9}.items():
            modules[name] = NumericallyMultiscaledEmbedding(16, num_scales=scales)
        return nn.ModuleDict(modules)

    modules = seeded(seed, learned).to(device)
    fixed = {"normalised": lambda x: x.sign()[:, None], "raw": lambda x: x[:, None]}  # one number, normalised: its sign
    embed = fixed[arm] if arm in fixed else modules[arm]
    with torch.no_grad():
        x, x_test = standardize(*(embed(v.to(device)).cpu() for v in (x, x_test)))
    return {"decade": 100 * accuracy(linear_probe(x, y, x_test, C=10.0), y_test)}


EXPERIMENTS = {
    "decades": Experiment(
        run_decades,
        ("normalised", "raw", "linear", "one scale", "nine scales"),
        {
            "smoke": {"seeds": 2, "count": 200},
            "ci": {"seeds": 3, "count": 400},
            "ledger": {"seeds": 20, "count": 1500},
            "gpu": {"seeds": 32, "count": 1500},
        },
    ),
    "transfer": Experiment(
        run_transfer,
        ("instance", "raw", "linear", "one scale", "nine scales", "untrained"),
        {
            "smoke": {"seeds": 2, "steps": 3, "test": 40},
            "ci": {"seeds": 1, "steps": 30, "test": 100},
            "ledger": {"seeds": 10, "steps": 240},
            "gpu": {"seeds": 32, "steps": 3000},
        },
    ),
}

_ORDER = {"experiment": "decades", "metric": "decade", "unit": "% of numbers", "higher_is_better": True}
_PROBE = {"experiment": "transfer", "unit": "% of test series", "higher_is_better": True, "kind": "gain"}
CLAIMS = (
    Claim(
        id="scales_keep_the_order_of_magnitude",
        statement="An untrained multi-scaled embedding lets a linear probe read the order of magnitude of a number "
        "better than one linear layer with LayerNorm does.",
        baseline="linear",
        method="nine scales",
        ablations=("raw", "normalised"),
        **_ORDER,
    ),
    Claim(
        id="nine_scales_beat_one",
        statement="It takes several scales: nine read the order of magnitude better than one.",
        baseline="one scale",
        method="nine scales",
        **_ORDER,
    ),
    Claim(
        id="level_helps_where_it_means_something",
        statement="On recordings in their own units, window statistics at nine scales transfer better than series "
        "that were normalised.",
        metric="measured",
        baseline="instance",
        method="nine scales",
        ablations=("untrained",),
        **_PROBE,
    ),
    Claim(
        id="scales_survive_a_mix_of_units",
        statement="Pre-trained on a mix of units, nine scales transfer better than raw values to sets whose shape "
        "alone tells the class.",
        metric="rescaled",
        baseline="raw",
        method="nine scales",
        ablations=("instance", "untrained"),
        **_PROBE,
    ),
    Claim(
        id="nine_scales_beat_a_linear_layer",
        statement="On recordings in their own units, nine scales transfer better than mean and deviation through "
        "one linear layer.",
        metric="measured",
        baseline="linear",
        method="nine scales",
        ablations=("one scale",),
        **_PROBE,
    ),
    Claim(
        id="pretraining_helps",
        statement="Pre-training makes the nine-scale encoder transfer better than it does with random weights.",
        metric="all",
        baseline="untrained",
        method="nine scales",
        **_PROBE,
    ),
)

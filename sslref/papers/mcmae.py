"""MCMAE: masked convolution meets masked autoencoders (Gao et al., NeurIPS 2022, arXiv 2205.03892; first ConvMAE).

A hybrid encoder, convolutions where the grid is fine and a Transformer where it is coarse, cannot simply be put into a
masked autoencoder: a convolution mixes neighbours, so what is hidden flows into what is seen. MCMAE draws one mask at
the coarsest grid and up-samples it to the finer ones, multiplies by it inside every depth-wise convolution, and adds
the fine maps, strided to the token grid, to the output of the encoder.

    paper (section 3)                        here
    -------------------------------------    ----------------------
    block-wise masking                       upsample_mask
    masked convolution block                 MaskedConvBlock
    multi-scale features for the decoder     MultiScaleFusion
    the network, its loss                    MCMAE
    the network without a mask               MCMAE.features

Masking, positions and targets are those of `sslref.nn.mae`. There is no class token. The patch embeddings are plain
convolutions; the official ones add LayerNorm and GELU, which act on single places and so leak nothing either.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sslref.claims import Claim, Experiment
from sslref.masked import MAE_DECODER, drawings, mae_task, picture_source, probe_drawings
from sslref.nn import Block, mae, seeded
from sslref.nn.mae import MaskedAutoencoder, patchify, select
from sslref.nn.vit import check_grid, check_images
from sslref.registry import Paper
from sslref.train import History, Recipe, fit, recipe_size

PAPER = Paper(
    slug="mcmae",
    title="MCMAE: Masked Convolution Meets Masked Autoencoders",
    authors=("Peng Gao", "Teli Ma", "Hongsheng Li", "Ziyi Lin", "Jifeng Dai", "Yu Qiao"),
    venue="NeurIPS",
    year=2022,
    arxiv="2205.03892",
    code="https://github.com/Alpha-VL/ConvMAE",
    part="masked",
    data=("emoji", "photographs"),
    idea="Mask the convolutions of a hybrid encoder too, so that what is hidden cannot leak into what is seen.",
    minutes=30,
    needs=("masked autoencoder",),
)


# ---------------------------------------------------------------------------------------------- the three parts


def upsample_mask(mask: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """The mask of the coarsest grid at a finer one (block-wise masking): every token becomes factor x factor cells.

    Args:
        mask: (B, rows * columns) bool, True = hidden. grid: (rows, columns).

    Returns:
        (B, 1, rows * factor, columns * factor) bool.

    Raises:
        ValueError: a grid that does not hold the tokens, factor below 1.
    """
    rows, columns = grid
    if mask.ndim != 2 or mask.shape[1] != rows * columns:
        raise ValueError(f"mask: expected shape (B, {rows} * {columns}), got {tuple(mask.shape)}")
    if factor < 1:
        raise ValueError(f"factor: expected at least 1, got {factor}")
    return mask.view(-1, 1, rows, columns).repeat_interleave(factor, 2).repeat_interleave(factor, 3)


class MaskedConvBlock(nn.Module):
    """A Transformer block with a masked depth-wise convolution in place of attention.

    y = x + W2 DW(v * W1 LN(x)), z = y + F2 GELU(F1 LN(y)): v is 1 where something may be seen. The mask stands last
    before the depth-wise convolution, the one layer that mixes places; the skip path is not masked.

    Raises:
        ValueError: an even kernel, a size below 1.
    """

    def __init__(self, dim: int, *, kernel_size: int = 5, mlp_ratio: float = 4.0):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.attn = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, D, H, W) -> the same shape.

        Args:
            visible: (B, 1, H, W) bool or float, True or 1 = visible; None hides nothing.

        Raises:
            ValueError: `visible` of another size.
        """
        expected = (len(x), 1, *x.shape[2:])
        if visible is not None and visible.shape != expected:
            raise ValueError(f"visible: expected shape {expected}, got {tuple(visible.shape)}")
        h = self.conv1(_over_channels(self.norm1, x))
        if visible is not None:
            h = h.mul_(visible).masked_fill_(visible == 0, 0)  # zero times infinity must be zero too
        y = x + self.conv2(self.attn(h))
        return y + self.fc2(self.act(self.fc1(_over_channels(self.norm2, y))))


def _over_channels(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x.movedim(1, -1)).movedim(-1, 1)


class MultiScaleFusion(nn.Module):
    """Adds the fine maps to the tokens: each is strided to the token grid and gathered where tokens are kept.

    Args:
        dims: widths of all stages, the coarsest last. strides: cells of each fine map along one side of a token.

    Raises:
        ValueError: not one stride for each stage but the last.
    """

    def __init__(self, dims: Sequence[int], *, strides: Sequence[int] = (4, 2)):
        super().__init__()
        if len(dims) != len(strides) + 1:
            raise ValueError(f"dims: expected {len(strides) + 1} widths for {len(strides)} strides, got {len(dims)}")
        self.projections = nn.ModuleList(
            nn.Conv2d(dim, dims[-1], s, stride=s) for dim, s in zip(dims, strides, strict=False)
        )

    def forward(self, maps: Sequence[Tensor], tokens: Tensor, ids_keep: Tensor) -> Tensor:
        """Fine maps (B, D_i, H_i, W_i), kept tokens (B, K, D) and their places (B, K) -> (B, K, D).

        Raises:
            ValueError: another number of maps, places that are not those of the tokens.
        """
        if len(maps) != len(self.projections):
            raise ValueError(f"maps: expected {len(self.projections)}, got {len(maps)}")
        if ids_keep.shape != tokens.shape[:2]:
            raise ValueError(f"ids_keep: expected shape {tuple(tokens.shape[:2])}, got {tuple(ids_keep.shape)}")
        for x, projection in zip(maps, self.projections, strict=True):
            tokens = tokens + select(projection(x).flatten(2).transpose(1, 2), ids_keep)
        return tokens


# -------------------------------------------------------------------------------------------------- the network


class MCMAEEncoding(NamedTuple):
    tokens: Tensor  # (B, K, D), in the order of ids_keep
    mask: Tensor  # (B, N) bool, True = hidden
    ids_keep: Tensor  # (B, K) int64
    ids_restore: Tensor  # (B, N) int64


MCMAEOutput = mae.MAEOutput


class MCMAE(nn.Module):
    """Masked convolutions, a Transformer on the kept tokens, multi-scale fusion, and the decoder of a plain MAE.

    Args:
        patch_sizes, embed_dims, depths: one number a stage; all stages but the last are convolutional. A token covers
            prod(patch_sizes) pixels along one side.
        masked_conv: False lets the convolutions see everything. multi_scale: False leaves the fusion out.

    Raises:
        ValueError: sizes that do not divide, not one number a stage.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        in_chans: int = 3,
        patch_sizes: Sequence[int] = (2, 2, 2),
        embed_dims: Sequence[int] = (16, 32, 64),
        depths: Sequence[int] = (1, 1, 2),
        num_heads: int = 4,
        decoder_embed_dim: int = 32,
        decoder_depth: int = 1,
        decoder_num_heads: int = 4,
        mlp_ratio: float = 4.0,
        norm_pix: bool = True,
        masked_conv: bool = True,
        multi_scale: bool = True,
    ):
        super().__init__()
        if not len(patch_sizes) == len(embed_dims) == len(depths) >= 2:
            got = f"{len(patch_sizes)}, {len(embed_dims)} and {len(depths)}"
            raise ValueError(f"patch_sizes, embed_dims, depths: expected one number for each stage, got {got}")
        self.patch_size = math.prod(patch_sizes)
        self.side = check_grid(image_size, self.patch_size)
        self.image_shape = (in_chans, image_size, image_size)
        self.norm_pix, self.masked_conv = norm_pix, masked_conv
        self.factors = [math.prod(patch_sizes[i + 1 :]) for i in range(len(depths) - 1)]
        dim, patch_dim, widths = embed_dims[-1], self.patch_size**2 * in_chans, (in_chans, *embed_dims)
        self.patch_embeds = nn.ModuleList(
            nn.Conv2d(a, b, p, stride=p) for a, b, p in zip(widths, embed_dims, patch_sizes, strict=False)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(MaskedConvBlock(d, mlp_ratio=mlp_ratio) for _ in range(n))
            for d, n in zip(embed_dims[:-1], depths, strict=False)
        )
        self.proj = nn.Linear(dim, dim)
        self.blocks = nn.Sequential(*(Block(dim, num_heads, mlp_ratio=mlp_ratio) for _ in range(depths[-1])))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_embed = nn.Linear(dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.empty(decoder_embed_dim))
        self.decoder_blocks = nn.Sequential(
            *(Block(decoder_embed_dim, decoder_num_heads, mlp_ratio=mlp_ratio) for _ in range(decoder_depth))
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_dim)
        for name, d in (("positions", dim), ("decoder_positions", decoder_embed_dim)):
            self.register_buffer(name, mae.sincos_2d(d, (self.side, self.side)).to(self.mask_token), persistent=False)
        mae.xavier_(self)
        nn.init.normal_(self.mask_token, std=0.02)
        # made last: with and without it, all other weights begin alike
        self.fusion = MultiScaleFusion(embed_dims, strides=self.factors) if multi_scale else None

    def encode(
        self,
        images: Tensor,
        *,
        mask_ratio: float = 0.75,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> MCMAEEncoding:
        """(B, C, S, S) -> the visible tokens. `noise` (B, N) chooses what stays: the smallest values."""
        check_images(images, self.image_shape)
        places = images.new_empty(len(images), self.side**2, 1)
        _, mask, ids_keep, ids_restore = mae.random_masking(places, mask_ratio, noise=noise, generator=generator)
        x, maps = images, []
        for embed, blocks, factor in zip(self.patch_embeds, self.stages, self.factors, strict=False):
            x = embed(x)
            visible = ~upsample_mask(mask, (self.side, self.side), factor) if self.masked_conv else None
            for block in blocks:
                x = block(x, visible)
            maps.append(x)
        x = self.patch_embeds[-1](x).flatten(2).transpose(1, 2)
        tokens = self.blocks(select(self.proj(x) + self.positions, ids_keep))
        if self.fusion is not None:
            tokens = self.fusion(maps, tokens, ids_keep)
        return MCMAEEncoding(self.norm(tokens), mask, ids_keep, ids_restore)

    def features(self, images: Tensor) -> Tensor:
        """All tokens of whole images in raster order, (B, N, D): nothing is hidden, as in fine-tuning."""
        order = torch.arange(self.side**2, device=images.device).expand(len(images), -1)
        return self.encode(images, mask_ratio=0.0, noise=order).tokens

    def target(self, images: Tensor) -> Tensor:
        """What the decoder regresses: (B, N, p*p*C)."""
        patches = patchify(images, self.patch_size)
        return mae.normalize_patches(patches) if self.norm_pix else patches

    def forward(
        self,
        images: Tensor,
        *,
        mask_ratio: float = 0.75,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> MCMAEOutput:
        """Hide, encode, decode, compare on hidden patches."""
        tokens, mask, ids_keep, ids_restore = self.encode(
            images, mask_ratio=mask_ratio, noise=noise, generator=generator
        )
        if ids_keep.shape == mask.shape:
            raise ValueError(f"mask_ratio: {mask_ratio} hides no patch, so there is nothing to predict")
        x = mae.restore_tokens(self.decoder_embed(tokens), self.mask_token, ids_restore) + self.decoder_positions
        pred = self.decoder_pred(self.decoder_norm(self.decoder_blocks(x)))
        error = (pred - self.target(images)).square().mean(-1)
        return MCMAEOutput(mae.hidden_mean(error, mask), pred, mask)


# ------------------------------------------------------------------------------------------------------ training


def recipe(
    source: Path | None = None, *, batch_size: int | None = None, device: str = "cpu", size: str | None = None
) -> Recipe:
    """MCMAE-B on a folder of images for 1,600 epochs, or the miniature on emoji.

    Args:
        source: folder with one subfolder of images a class; None: the embedded emoji.
    """
    size = recipe_size(size, source)
    draw, count, pixels = picture_source(source, size, device)
    if size == "miniature":
        batch_size, steps, lr, warmup, model = batch_size or 64, 150, 2e-3, 0.1, build("MCMAE", 0)
    else:
        batch_size = batch_size or 3072
        steps, lr, warmup = math.ceil(1600 * count / batch_size), 1.5e-4 * batch_size / 256, 40 / 1600
        encoder = {"embed_dims": (256, 384, 768), "depths": (2, 2, 11), "num_heads": 12}
        patches = {"image_size": pixels, "patch_sizes": (4 if pixels == 224 else 2, 2, 2)}
        model = seeded(0, lambda: MCMAE(**patches, **encoder, **MAE_DECODER))
    return Recipe(
        task=mae_task(model.to(device), draw, batch_size=batch_size, lr=lr, warmup=warmup),
        steps=steps,
        batch_size=batch_size,
        about=f"MCMAE on {count:,} images of {pixels} pixels",
    )


# ------------------------------------------------------------------------------------------------- the experiments

ARMS = {"MCMAE": {}, "leaky": {"masked_conv": False}, "no fusion": {"multi_scale": False}}


def build(arm: str, seed: int, depth: int = 1) -> MCMAE | MaskedAutoencoder:
    """A miniature with tokens of 8 pixels, `depth` convolution blocks a stage, or "MAE" with Transformer blocks alone.

    Arms of a seed begin with the same weights, as far as they have them in common.
    """
    decoder = {"decoder_embed_dim": 48, "decoder_depth": 1}
    if arm == "MAE":
        return seeded(seed, lambda: MaskedAutoencoder(patch_size=8, embed_dim=96, depth=3, **decoder))
    return seeded(seed, lambda: MCMAE(embed_dims=(24, 48, 96), depths=(depth, depth, 2), **decoder, **ARMS[arm]))


def swap_hidden(images: Tensor, other: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    """The images with their hidden patches taken from `other`: who sees visible patches alone cannot tell."""
    patches = torch.where(mask[..., None], patchify(other, patch_size), patchify(images, patch_size))
    return mae.unpatchify(patches, patch_size)


def run_leak(arm: str, *, seed: int, device: str, images: int = 64, depths: Sequence[int] = (1, 2, 3)) -> dict:
    """Nothing is trained: what do the visible tokens know of hidden pixels? In float64, for each number of blocks.

    "change": relative change of the tokens when hidden pixels are those of another picture. "gradient": share of the
    gradient of a random function of the tokens, by its norm, that falls on hidden pixels. Both are the largest of all
    depths.
    """
    generator = torch.Generator().manual_seed(seed)
    x = drawings(seed, device).noto[:images].double()
    noise = torch.rand(len(x), 16, generator=generator).to(device)
    direction = torch.randn(len(x), 4, 96, generator=generator, dtype=x.dtype).to(device)
    changes, gradients = [], []
    for depth in depths:
        model = build(arm, seed, depth).double().to(device)
        tokens, mask, *_ = model.encode(x.requires_grad_(), noise=noise)
        (gradient,) = torch.autograd.grad((tokens * direction).sum(), x)
        hidden = patchify(gradient, 8) * mask[..., None]
        gradients.append((hidden.norm() / gradient.norm()).item())
        with torch.no_grad():
            swapped = model.encode(swap_hidden(x, x.roll(1, 0), mask, 8), noise=noise).tokens
            changes.append(((swapped - tokens).norm() / tokens.norm()).item())
    by_depth = {f"change, {depth} a stage": change for depth, change in zip(depths, changes, strict=True)}
    return {"change": max(changes), "gradient": max(gradients), **by_depth}


def pretrain(
    arm: str, *, seed: int, device: str = "cpu", steps: int = 80, progress: bool | Callable = False
) -> tuple[MCMAE | MaskedAutoencoder, History]:
    """A miniature; arms of a seed share emoji, first weights, pictures, flips and masks."""
    model = build(arm, seed).to(device)
    task = mae_task(model, drawings(seed, device).sample, batch_size=64, lr=2e-3)
    history = fit(task, steps=steps, seed=seed, device=device, channels_last=True, progress=progress)
    return model.eval(), history


@torch.no_grad()
def swap_test(model: MCMAE | MaskedAutoencoder, images: Tensor, *, seed: int) -> dict[str, float]:
    """Loss on hidden patches, and against the same targets once the encoder is given other hidden pixels."""
    noise = torch.rand(len(images), len(model.positions), generator=torch.Generator().manual_seed(seed + 10**6))
    noise = noise.to(images.device)
    _, honest, mask = model(images, noise=noise)
    swapped = model(swap_hidden(images, images.roll(1, 0), mask, model.patch_size), noise=noise).pred
    low, high = (mae.masked_patch_loss(pred, model.target(images), mask).item() for pred in (honest, swapped))
    return {"loss": low, "swapped": high, "swap costs": high - low}


def run_train(arm: str, *, seed: int, device: str, steps: int) -> dict[str, float]:
    """Pre-train one arm: the swap test on held-out emoji, and a linear probe of nine categories (per cent)."""
    name, _, untrained = arm.partition(", ")
    data = drawings(seed, device)
    model = build(name, seed).to(device) if untrained else pretrain(name, seed=seed, device=device, steps=steps)[0]
    encode = model.features if isinstance(model, MCMAE) else model.encode
    return {**swap_test(model, data.noto, seed=seed), **probe_drawings(encode, data)}


def run_budget(arm: str, *, seed: int, device: str, steps: Sequence[int] = ()) -> dict[str, float]:
    """`run_train` at other lengths; the chapter's own run has no time for it and asks for none."""
    runs = {n: run_train(arm, seed=seed, device=device, steps=n) for n in steps}
    return {f"{name}, {n} steps": value for n, run in runs.items() for name, value in run.items()}


EXPERIMENTS = {
    "leak": Experiment(
        run_leak,
        ("leaky", "MCMAE"),
        {
            "smoke": {"seeds": 2, "images": 4, "depths": (1,)},
            "ci": {"seeds": 3, "images": 32, "depths": (1, 2)},
            "ledger": {"seeds": 10},
            "gpu": {"seeds": 32},
        },
    ),
    "train": Experiment(
        run_train,
        ("MCMAE", "leaky", "no fusion", "MAE", "MCMAE, untrained", "MAE, untrained"),
        {
            "smoke": {"seeds": 2, "steps": 2},
            "ci": {"seeds": 1, "steps": 24},
            "ledger": {"seeds": 10, "steps": 80},
            "gpu": {"seeds": 32, "steps": 4000},
        },
    ),
    "budget": Experiment(
        run_budget,
        ("MCMAE", "leaky", "MAE"),
        {
            "smoke": {"seeds": 1, "steps": (1,)},
            "ci": {"seeds": 1},
            "ledger": {"seeds": 3, "steps": (240,)},
            "gpu": {"seeds": 8, "steps": (100, 1000, 20000)},
        },
    ),
}

_leak = partial(Claim, experiment="leak", baseline="leaky", method="MCMAE", higher_is_better=False, exact=True)
_loss = partial(Claim, experiment="train", baseline="MCMAE", method="leaky", ablations=("no fusion",))
_probe = partial(
    Claim, experiment="train", metric="noto", unit="% of emoji", method="MCMAE", higher_is_better=True, kind="gain"
)
CLAIMS = (
    _leak(
        id="hidden_pixels_change_nothing",
        statement="Masked convolution leaks nothing: other hidden pixels leave every visible token as it is, exactly.",
        metric="change",
    ),
    _leak(
        id="no_gradient_on_hidden_pixels",
        statement="With masked convolution no gradient of the visible tokens falls on hidden pixels.",
        metric="gradient",
    ),
    _loss(
        id="the_leaky_hybrid_cheats",
        statement="With ordinary convolution the hybrid reaches a lower loss on the hidden patches of held-out emoji.",
        metric="loss",
        higher_is_better=False,
    ),
    _loss(
        id="its_loss_breaks_under_the_swap",
        statement="The leaky hybrid notices the swap: with the hidden pixels of another emoji its loss rises.",
        metric="swap costs",
        higher_is_better=True,
    ),
    _loss(
        id="its_gain_is_borrowed",
        statement="All of its gain is borrowed: after the swap its loss lies above that of the masked hybrid.",
        metric="swapped",
        higher_is_better=True,
    ),
    Claim(
        id="the_swap_costs_nothing",
        statement="The trained masked hybrid does not notice the swap: its loss stays the same, exactly.",
        experiment="train",
        metric="swap costs",
        higher_is_better=False,
        exact=True,
        baseline="leaky",
        method="MCMAE",
    ),
    _probe(
        id="hybrid_features_beat_mae",
        statement="The masked hybrid learns better features than a plain masked autoencoder of its size: linear probe "
        "on held-out emoji.",
        baseline="MAE",
        ablations=("MCMAE, untrained", "MAE, untrained"),
    ),
    _probe(
        id="honest_features_are_better",
        statement="The masked hybrid learns better features than the leaky one: linear probe on held-out emoji.",
        baseline="leaky",
        ablations=("MCMAE, untrained",),
    ),
    _probe(
        id="fusion_makes_better_features",
        statement="Multi-scale fusion makes better features: linear probe on held-out emoji.",
        baseline="no fusion",
        ablations=("MCMAE, untrained",),
    ),
)

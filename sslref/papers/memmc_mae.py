"""MemMC-MAE: a masked autoencoder with memory and many levels finds lesions (Tian et al., MLMI 2023, arXiv 2203.11725).

Learn to redraw healthy pictures, and a lesion betrays itself because it is redrawn badly. The trouble is that networks
redraw lesions well. MemMC-MAE fights that three times: most of the picture is hidden, so that a lesion probably is too,
and what is painted in its place is what belongs there; every self-attention of the encoder also reads a learned memory,
the same for all pictures, which knows only the normal; and the decoder reads all levels of the encoder through gates.

    paper (section 2)                        here
    -------------------------------------    -------------------------------
    memory-augmented self-attention          memory_attention, MemoryAttention
    multi-level cross-attention              MultiLevelCrossAttention
    the network and its loss                 MemMCMAE
    score, by multi-scale SSIM               ms_ssim, anomaly_score
    localisation                             anomaly_map

There is no official code (its repository holds a README). Both attentions are those of the Meshed-Memory Transformer
(Cornia et al., CVPR 2020). Ours are: no self-attention in the decoder, one LayerNorm a level, gates not divided by the
number of levels, the loss on all pixels, and a reconstruction that is the mean over several masks.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslref.claims import Claim, Experiment
from sslref.data import embedded
from sslref.data.worlds import fundus, lesions
from sslref.evaluate import auroc
from sslref.masked import mae_task, picture_source
from sslref.nn import Block, mae, seeded
from sslref.nn.numbers import at_least_float32, check_positive
from sslref.nn.vit import check_grid, check_images
from sslref.registry import Paper
from sslref.train import History, Recipe, fit, recipe_size

PAPER = Paper(
    slug="memmc_mae",
    title="Unsupervised Anomaly Detection in Medical Images with a Memory-augmented Multi-level Cross-attentional "
    "Masked Autoencoder",
    authors=(
        "Yu Tian",
        "Guansong Pang",
        "Yuyuan Liu",
        "Chong Wang",
        "Yuanhong Chen",
        "Fengbei Liu",
        "Rajvinder Singh",
        "Johan W. Verjans",
        "Mengyu Wang",
        "Gustavo Carneiro",
    ),
    venue="MLMI",
    year=2023,
    arxiv="2203.11725",
    code="",
    part="masked",
    data=("medical", "photographs"),
    idea="Hide a lesion, and what is painted in its place is healthy: the difference shows where it was.",
    minutes=35,
    needs=("masked autoencoder",),
)


# ------------------------------------------------------------------------------- memory-augmented self-attention


def _with_memory(k: Tensor, memory: Tensor) -> Tensor:
    """Keys or values (B, h, N, d) and then the slots (h, M, d), the same for all samples: (B, h, N + M, d)."""
    return torch.cat((k, memory.to(k.dtype).expand(len(k), -1, -1, -1)), 2)


def _check_memory(q: Tensor, k: Tensor, v: Tensor, mem_k: Tensor, mem_v: Tensor) -> None:
    if q.ndim != 4 or not q.shape == k.shape == v.shape:
        got = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k, v: expected one shape (B, h, N, d), got {got}")
    fits = mem_k.ndim == 3 and mem_k.shape[0] == q.shape[1] and mem_k.shape[2] == q.shape[3]
    if not fits or mem_k.shape != mem_v.shape:
        expected = f"({q.shape[1]}, M, {q.shape[3]})"
        got = f"{tuple(mem_k.shape)} and {tuple(mem_v.shape)}"
        raise ValueError(f"mem_k, mem_v: expected one shape {expected}, got {got}")


def memory_attention(q: Tensor, k: Tensor, v: Tensor, mem_k: Tensor, mem_v: Tensor) -> Tensor:
    """One softmax over tokens and memory: softmax(q [k; mem_k]^T / sqrt(d)) [v; mem_v].

    Args:
        q, k, v: (B, h, N, d). mem_k, mem_v: (h, M, d), M may be 0; no queries come from them.

    Returns:
        (B, h, N, d).

    Raises:
        ValueError: shapes of tokens differ, or memory shapes differ or do not fit heads and width.
    """
    _check_memory(q, k, v, mem_k, mem_v)
    return F.scaled_dot_product_attention(q, _with_memory(k, mem_k), _with_memory(v, mem_v))


def memory_mass(q: Tensor, k: Tensor, mem_k: Tensor) -> Tensor:
    """Share of its attention that each query spends on the memory: (B, h, N, d) twice, (h, M, d) -> (B, h, N)."""
    _check_memory(q, k, k, mem_k, mem_k)
    logits = q @ _with_memory(k, mem_k).mT / q.shape[-1] ** 0.5
    return logits.softmax(-1)[..., k.shape[2] :].sum(-1)


class MemoryAttention(nn.Module):
    """Self-attention with `num_memory` learned slots a head.

    Raises:
        ValueError: num_heads does not divide dim, num_memory < 0.
    """

    def __init__(self, dim: int, *, num_heads: int = 4, num_memory: int = 16):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of the width {dim}, got {num_heads}")
        if num_memory < 0:
            raise ValueError(f"num_memory: expected at least 0, got {num_memory}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        width = dim // num_heads
        self.mem_k, self.mem_v = (
            nn.Parameter(torch.randn(num_heads, num_memory, width) / width**0.5) for _ in range(2)
        )

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> queries, keys, values, each (B, h, N, D / h)."""
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        out = memory_attention(*self.heads(x), self.mem_k, self.mem_v)
        return self.proj(out.transpose(1, 2).flatten(2))

    def mass(self, x: Tensor) -> Tensor:
        """Share of attention on the memory: (B, N, D) -> (B, h, N)."""
        q, k, _ = self.heads(x)
        return memory_mass(q, k, self.mem_k)


# ---------------------------------------------------------------------------------- multi-level cross-attention


class MultiLevelCrossAttention(nn.Module):
    """Read every level of the encoder with the same attention, and add up what the gates let through.

    f(x) = sum over l of sigmoid(W_l [x; r_l] + b_l) * r_l, where r_l is cross-attention from x to level l.

    Raises:
        ValueError: num_heads does not divide dim, num_levels < 1.
    """

    def __init__(self, dim: int, *, num_heads: int = 4, num_levels: int = 2):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of the width {dim}, got {num_heads}")
        if num_levels < 1:
            raise ValueError(f"num_levels: expected at least 1, got {num_levels}")
        self.num_heads = num_heads
        self.projq, self.projk, self.projv, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.gates = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(num_levels))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def read(self, x: Tensor, level: Tensor) -> Tensor:
        """Cross-attention from x (B, N, D) to one level (B, K, D): (B, N, D)."""
        q, k, v = self._split(self.projq(x)), self._split(self.projk(level)), self._split(self.projv(level))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def gated(self, x: Tensor, levels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """For each level the gate (B, N, D), in (0, 1), and what was read, (B, N, D)."""
        if len(levels) != len(self.gates):
            raise ValueError(f"levels: expected {len(self.gates)}, got {len(levels)}")
        reads = [self.read(x, level) for level in levels]
        return [(gate(torch.cat((x, r), -1)).sigmoid(), r) for gate, r in zip(self.gates, reads, strict=True)]

    def forward(self, x: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """(B, N, D) and the levels, each (B, K, D) -> (B, N, D), without skip. ValueError: another number of levels."""
        return sum(gate * read for gate, read in self.gated(x, levels))


# ------------------------------------------------------------------------------------------- the score: MS-SSIM

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli, Bovik 2003


def _ssim_maps(x: Tensor, y: Tensor, window: int, sigma: float, data_range: float) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure part at each place where the window fits: (B, C, H, W) twice -> the same twice.

    Gaussian window, biased moments, c1 = (0.01 R)^2, c2 = (0.03 R)^2.
    """
    at = torch.arange(window, dtype=x.dtype, device=x.device) - window // 2
    kernel = torch.exp(-at.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()

    def blur(z: Tensor) -> Tensor:
        z = F.conv2d(z.flatten(0, -3)[:, None], kernel.view(1, 1, -1, 1))
        return F.conv2d(z, kernel.view(1, 1, 1, -1)).unflatten(0, (5, *x.shape[:2]))[:, :, :, 0]

    mx, my, xx, yy, xy = blur(torch.stack((x, y, x * x, y * y, x * y)))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    structure = (2 * (xy - mx * my) + c2) / (xx - mx * mx + yy - my * my + c2)
    return (2 * mx * my + c1) / (mx * mx + my * my + c1) * structure, structure


def _check_pair(x: Tensor, y: Tensor, window: int, sigma: float, data_range: float) -> tuple[Tensor, Tensor]:
    if x.ndim != 4 or x.shape != y.shape or not x.numel():
        raise ValueError(f"x, y: expected one shape (B, C, H, W), got {tuple(x.shape)} and {tuple(y.shape)}")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window: expected an odd number of pixels, got {window}")
    check_positive(sigma=sigma, data_range=data_range)
    return at_least_float32(x), at_least_float32(y)


def ms_ssim(
    x: Tensor, y: Tensor, *, scales: int = 3, window: int = 7, sigma: float = 1.5, data_range: float = 1.0
) -> Tensor:
    """Multi-scale structural similarity of pictures, (B, C, H, W) twice -> (B,) in [0, 1].

    The mean contrast-structure term of each scale but the last, and the mean SSIM of the last, each (if negative: 0) to
    the power of its weight, multiplied; 2 x 2 means between scales. The weights are the first `scales` of Wang's,
    divided by their sum. Channels are averaged at the end.

    Raises:
        ValueError: shapes, scales outside 1..5, an even window, pictures smaller than the window at the last scale.
    """
    x, y = _check_pair(x, y, window, sigma, data_range)
    if not 1 <= scales <= len(MS_SSIM_WEIGHTS):
        raise ValueError(f"scales: expected 1 to {len(MS_SSIM_WEIGHTS)}, got {scales}")
    least = window * 2 ** (scales - 1)
    if min(x.shape[2:]) < least:
        raise ValueError(f"x, y: expected sides of {least} pixels or more, got {tuple(x.shape[2:])}")
    weights = MS_SSIM_WEIGHTS[:scales]
    out = 1.0
    with torch.autocast(x.device.type, enabled=False):
        for scale, weight in enumerate(weights, 1):
            ssim, structure = _ssim_maps(x, y, window, sigma, data_range)
            term = (ssim if scale == scales else structure).mean((2, 3)).clamp(min=0)
            out = out * term ** (weight / sum(weights))
            if scale < scales:
                x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return out.mean(1)


def anomaly_score(images: Tensor, recon: Tensor, **ms_ssim_options) -> Tensor:
    """How much a picture differs from its reconstruction: 1 - MS-SSIM, (B, C, H, W) twice -> (B,)."""
    return 1 - ms_ssim(images, recon, **ms_ssim_options)


def anomaly_map(
    images: Tensor, recon: Tensor, *, window: int = 7, sigma: float = 1.5, data_range: float = 1.0
) -> Tensor:
    """Where: 1 - SSIM at every pixel, borders reflected, mean over channels: (B, C, H, W) twice -> (B, H, W)."""
    images, recon = _check_pair(images, recon, window, sigma, data_range)
    if min(images.shape[2:]) <= window // 2:
        raise ValueError(f"images: expected sides above {window // 2} pixels, got {tuple(images.shape[2:])}")
    with torch.autocast(images.device.type, enabled=False):
        padded = (F.pad(z, (window // 2,) * 4, mode="reflect") for z in (images, recon))
        return 1 - _ssim_maps(*padded, window, sigma, data_range)[0].mean(1)


# --------------------------------------------------------------------------------------------------- the network


class MemOutput(NamedTuple):
    loss: Tensor  # scalar, mean squared error of all pixels
    recon: Tensor  # (B, C, S, S)
    mask: Tensor  # (B, N) bool, True = hidden


class MemMCMAE(nn.Module):
    """The masked autoencoder with both attentions; no class token. ValueError: sizes that do not divide.

    Args:
        num_memory: slots a head in every block of the encoder; 0 is ordinary attention.
        multi_level: whether the decoder reads the output of every block, or of the last one alone.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        patch_size: int = 4,
        in_chans: int = 1,
        embed_dim: int = 64,
        depth: int = 3,
        num_heads: int = 4,
        num_memory: int = 16,
        decoder_depth: int = 2,
        mlp_ratio: float = 4.0,
        multi_level: bool = True,
    ):
        super().__init__()
        side = check_grid(image_size, patch_size)
        self.patch_size, self.multi_level = patch_size, multi_level
        self.image_shape = (in_chans, image_size, image_size)
        heads, patch_dim = {"num_heads": num_heads}, patch_size**2 * in_chans
        self.patch_embed = nn.Linear(patch_dim, embed_dim)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                attention=MemoryAttention(embed_dim, num_memory=num_memory, **heads),
            )
            for _ in range(depth)
        )
        num_levels = depth if multi_level else 1
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dim, eps=1e-6) for _ in range(num_levels))
        self.mask_token = nn.Parameter(torch.empty(embed_dim))
        self.decoder = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                attention=MultiLevelCrossAttention(embed_dim, num_levels=num_levels, **heads),
            )
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(embed_dim, patch_dim)
        self.register_buffer("positions", mae.sincos_2d(embed_dim, (side, side)).float(), persistent=False)
        mae.xavier_(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def encode(self, tokens: Tensor) -> list[Tensor]:
        """Embedded visible tokens (B, K, D) -> the levels that the decoder reads, each (B, K, D), the last one last."""
        outputs = []
        for block in self.blocks:
            tokens = block(tokens)
            outputs.append(tokens)
        return [norm(z) for norm, z in zip(self.norms, outputs if self.multi_level else outputs[-1:], strict=True)]

    def embed(
        self,
        images: Tensor,
        *,
        mask_ratio: float = 0.75,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> mae.Masking:
        """Visible patches as tokens with their positions; `noise` (B, N) chooses what stays: the smallest values."""
        check_images(images, self.image_shape)
        patches = mae.patchify(images, self.patch_size)
        masking = mae.random_masking(patches, mask_ratio, noise=noise, generator=generator)
        return masking._replace(tokens=self.patch_embed(masking.tokens) + self.positions[masking.ids_keep])

    def forward(
        self,
        images: Tensor,
        *,
        mask_ratio: float = 0.75,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> MemOutput:
        """Hide, encode, decode, compare everywhere. A ratio of 0 is an ordinary autoencoder."""
        masking = self.embed(images, mask_ratio=mask_ratio, noise=noise, generator=generator)
        levels = self.encode(masking.tokens)
        y = mae.restore_tokens(levels[-1], self.mask_token, masking.ids_restore) + self.positions
        for block in self.decoder:
            y = block(y, levels)
        recon = mae.unpatchify(self.decoder_pred(self.decoder_norm(y)), self.patch_size)
        return MemOutput((recon - images).square().mean(), recon, masking.mask)

    @torch.no_grad()
    def inside(self, images: Tensor, **options) -> dict[str, list[Tensor]]:
        """For each block of the encoder its attention on the memory, (B, h, K); for each of the decoder its gates.

        Gates of a block are (levels, B, N, D). Options are those of `forward`.
        """
        masking = self.embed(images, **options)
        x, mass = masking.tokens, []
        for block in self.blocks:
            mass.append(block.attention.mass(block.norm1(x)))
            x = block(x)
        levels, gates = self.encode(masking.tokens), []
        y = mae.restore_tokens(levels[-1], self.mask_token, masking.ids_restore) + self.positions
        for block in self.decoder:
            gates.append(torch.stack([gate for gate, _ in block.attention.gated(block.norm1(y), levels)]))
            y = block(y, levels)
        return {"mass": mass, "gates": gates}


@torch.no_grad()
def reconstruct(
    model: MemMCMAE,
    images: Tensor,
    *,
    mask_ratio: float = 0.75,
    masks: int = 4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The mean reconstruction over several random masks, (B, C, S, S). ValueError: masks < 1."""
    if masks < 1:
        raise ValueError(f"masks: expected at least 1, got {masks}")
    return sum(model(images, mask_ratio=mask_ratio, generator=generator).recon for _ in range(masks)) / masks


# ------------------------------------------------------------------------------------------------------ training


MEAN, STD = 0.45, 0.15  # of the pictures of a brain; networks get standardised grey levels, or learning is slow


def scaled(images: Tensor) -> Tensor:
    """Grey levels as the networks of this chapter get them."""
    return (images - MEAN) / STD


def brains(count: int, generator: torch.Generator) -> Tensor:
    """Healthy pictures to learn from: (count, 1, 32, 32)."""
    return lesions.healthy("train", count, generator=generator).images


def recipe(
    source: Path | None = None, *, batch_size: int | None = None, device: str = "cpu", size: str | None = None
) -> Recipe:
    """MemMC-MAE of ViT-S size for 400 epochs on a folder of healthy pictures, or the miniature on brain slices.

    Args:
        source: folder with subfolders of healthy images; pictures with lesions do not belong there.
    """
    size = recipe_size(size, source)
    draw, count, pixels = (brains, 500, 32) if source is None else picture_source(source, size, device)
    if size == "miniature":
        batch_size, steps, lr, warmup = batch_size or BATCH, 500, LR, 0.1
        model = build("MemMC-MAE", 0, in_chans=1 if source is None else 3)
    else:
        batch_size = batch_size or 256
        steps, lr, warmup = math.ceil(400 * count / batch_size), 1.5e-4 * batch_size / 256, 40 / 400
        sizes = {"image_size": pixels, "patch_size": 16 if pixels == 224 else 4, "in_chans": 1 if source is None else 3}
        model = seeded(0, lambda: MemMCMAE(**sizes, embed_dim=384, depth=12, num_heads=6, decoder_depth=4))
    return Recipe(
        task=mae_task(model.to(device), lambda *args: scaled(draw(*args)), batch_size=batch_size, lr=lr, warmup=warmup),
        steps=steps,
        batch_size=batch_size,
        about=f"MemMC-MAE on {'slices of a brain' if source is None else f'{count:,} images'} of {pixels} pixels",
    )


# ------------------------------------------------------------------------------------------------- the miniature

BATCH, LR = 16, 3e-3
PLAIN = {"num_memory": 0, "multi_level": False}
ARMS = {  # share of hidden patches, and what differs in the network
    "autoencoder": (0.0, PLAIN),
    "MAE": (0.75, PLAIN),
    "memory": (0.75, {"multi_level": False}),
    "MemMC-MAE": (0.75, {}),
}


def build(arm: str, seed: int, **sizes: int) -> MemMCMAE:
    """Two blocks of width 48, two of the decoder, 8 x 8 patches of 4 pixels."""
    return seeded(seed, lambda: MemMCMAE(embed_dim=48, depth=2, **ARMS[arm][1], **sizes))


def pretrain(
    arm: str,
    *,
    seed: int,
    device: str = "cpu",
    steps: int = 300,
    draw: Callable[[int, torch.Generator], Tensor] = brains,
    progress: bool | Callable = False,
) -> tuple[MemMCMAE, History]:
    """One arm on healthy pictures; arms of a seed share pictures, mirrorings and, where they hide, masks."""
    model = build(arm, seed).to(device)
    task = mae_task(model, lambda *args: scaled(draw(*args)), batch_size=BATCH, lr=LR, mask_ratio=ARMS[arm][0])
    history = fit(task, steps=steps, seed=seed, device=device, progress=progress)
    return model.eval(), history


@functools.lru_cache(maxsize=64)  # two experiments look at the same networks
def trained(arm: str, seed: int, device: str, steps: int) -> MemMCMAE:
    """The network of `pretrain` on brains, without gradients; not to be changed."""
    return pretrain(arm, seed=seed, device=device, steps=steps)[0].requires_grad_(False)


class HeldOut(NamedTuple):
    """Pictures of the test slices; lesions are planted into `before`."""

    normal: Tensor  # (B, 1, 32, 32)
    before: lesions.Pictures
    lesion: lesions.Lesions
    moved: lesions.Lesions
    val: Tensor  # (B, 1, 32, 32), healthy, for the threshold


def held_out(seed: int, count: int, device: str = "cpu", **lesion: tuple[float, float]) -> HeldOut:
    """`count` pictures of each kind, drawn from a seed of their own."""
    generator = torch.Generator(device).manual_seed(seed + 10**6)
    normal, before = (lesions.healthy("test", count, generator=generator) for _ in range(2))
    planted = lesions.plant(before, **lesion, generator=generator)
    moved = lesions.move(before, generator=generator)
    val = lesions.healthy("val", count, generator=generator).images
    return HeldOut(normal.images, before, planted, moved, val)


def pixel_auc(maps: Tensor, found: lesions.Lesions, tissue: Tensor) -> float:
    """AUC of pixels of tissue, per cent: of the lesions against the rest of the same pictures."""
    return 100 * auroc(maps[tissue], found.masks[tissue].long())


def repaint(model: MemMCMAE, images: Tensor, ratio: float, seed: int) -> Tensor:
    """Pictures in grey levels as the network would have them, (B, C, S, S); four masks where it hides."""
    generator = torch.Generator(images.device).manual_seed(seed + 2 * 10**6)
    masks = 4 if ratio else 1
    return STD * reconstruct(model, scaled(images), mask_ratio=ratio, masks=masks, generator=generator) + MEAN


def detect(images: Tensor, model: MemMCMAE, ratio: float, seed: int) -> tuple[Tensor, Tensor]:
    """Score (B,) by MS-SSIM of two scales, and map (B, S, S)."""
    recon = repaint(model, images, ratio, seed)
    return anomaly_score(images, recon, scales=2), anomaly_map(images, recon)


def lesion_noise(masks: Tensor, patch_size: int, *, hide: bool, generator: torch.Generator) -> Tensor:
    """Noise (B, N) for masks that hide every patch that a lesion (B, S, S) touches, or none of them where they fit."""
    touched = mae.patchify(masks[:, None].float(), patch_size).amax(-1)
    noise = torch.rand(touched.shape, generator=generator, device=touched.device)
    return noise + touched if hide else noise - touched


@torch.no_grad()
def lesion_errors(model: MemMCMAE, test: HeldOut, *, hide: bool, seed: int) -> dict[str, float]:
    """Reconstruct with every lesion hidden, or every lesion visible, and 75 % of the patches hidden either way.

    "error": squared error on the lesion's pixels. "from healthy": the same against what was there before. "painted
    over": per cent of lesions whose reconstruction is nearer to the healthy tissue than to the lesion.
    """
    generator = torch.Generator(test.normal.device).manual_seed(seed + 3 * 10**6)
    noise = lesion_noise(test.lesion.masks, model.patch_size, hide=hide, generator=generator)
    recon, weight = STD * model(scaled(test.lesion.images), noise=noise).recon + MEAN, test.lesion.masks[:, None]
    error, healthy = (
        ((recon - x).square() * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1)
        for x in (test.lesion.images, test.before.images)
    )
    values = {"error": error, "from healthy": healthy, "painted over": 100 * (healthy < error).double()}
    return {name: value.mean().item() for name, value in values.items()}


def run_detect(arm: str, *, seed: int, device: str, steps: int, count: int) -> dict[str, float]:
    """Train one arm on healthy brain: how well it tells pictures and pixels with a lesion, in per cent of AUC."""
    ratio, test, model = ARMS[arm][0], held_out(seed, count, device), trained(arm, seed, device, steps)
    normal, _ = detect(test.normal, model, ratio, seed)
    val, _ = detect(test.val, model, ratio, seed)
    labels = torch.arange(2).repeat_interleave(count)
    scores = {}
    for kind, found in (("", test.lesion), (", moved", test.moved)):
        score, maps = detect(found.images, model, ratio, seed)
        scores[f"image AUC{kind}"] = 100 * auroc(torch.cat((normal, score)), labels.to(score.device))
        scores[f"pixel AUC{kind}"] = pixel_auc(maps, found, test.before.tissue)
        scores[f"found{kind}"] = 100 * (score > val.quantile(0.95)).double().mean().item()
    scores["false alarms"] = 100 * (normal > val.quantile(0.95)).double().mean().item()
    scores["background"] = normal.mean().item()
    if ratio:
        scores |= {f"visible {k}": v for k, v in lesion_errors(model, test, hide=False, seed=seed).items()}
        look = model.inside(scaled(test.normal), generator=torch.Generator(device).manual_seed(seed))
        scores |= {f"mass, block {i}": 100 * mass.mean().item() for i, mass in enumerate(look["mass"], 1)}
        scores["mass"] = 100 * torch.stack(look["mass"]).mean().item()
        for i, gates in enumerate(look["gates"], 1):
            scores |= {f"gate, block {i}, level {k}": g.mean().item() for k, g in enumerate(gates, 1)}
    return scores


def run_hide(arm: str, *, seed: int, device: str, steps: int, count: int) -> dict[str, float]:
    """The plain MAE on the same lesions, once all hidden, once all visible."""
    model, test = trained("MAE", seed, device, steps), held_out(seed, count, device)
    return lesion_errors(model, test, hide=arm == "lesion hidden", seed=seed)


class Fundus(NamedTuple):
    """The sick retina, and what a network says of it."""

    image: Tensor  # (1, 102, 102)
    lesion: Tensor  # (102, 102) bool: discs of radius 3 pixels around the two marks
    map: Tensor  # (102, 102)
    scores: Tensor  # (64,): of the windows, every ten pixels
    labels: Tensor  # (64,) int64: whether the middle of a lesion lies in the window


def look_at_fundus(model: MemMCMAE, ratio: float, seed: int, device: str = "cpu") -> Fundus:
    """Score every window of the picture; where windows overlap the map is their mean."""
    image, marks = (x.to(device) for x in embedded.microaneurysms())
    image = fundus.flat_field(image)
    at = torch.arange(image.shape[-1], device=device)
    apart = (at[:, None, None] - marks[:, 0]) ** 2 + (at[:, None] - marks[:, 1]) ** 2  # (H, W, marks)
    windows = F.unfold(image[None], 32, stride=10)[0].T.unflatten(1, (1, 32, 32))
    centre = F.unfold((apart == 0).any(2)[None, None].float(), 32, stride=10)[0].amax(0)
    scores, maps = detect(windows, model, ratio, seed)
    total, count = (
        F.fold(x.flatten(1).T[None], image.shape[1:], 32, stride=10)[0, 0] for x in (maps, torch.ones_like(maps))
    )
    return Fundus(image, (apart <= 9).any(2), total / count, scores, centre.long())


def run_fundus(arm: str, *, seed: int, device: str, steps: int) -> dict[str, float]:
    """Train one arm on a healthy retina; AUC, in per cent, on another one with two microaneurysms."""
    model, _ = pretrain(arm, seed=seed, device=device, steps=steps, draw=fundus.healthy)
    found = look_at_fundus(model.requires_grad_(False), ARMS[arm][0], seed, device)
    pixels = auroc(found.map, found.lesion.long())
    return {"pixel AUC": 100 * pixels, "window AUC": 100 * auroc(found.scores, found.labels)}


def _budgets(**profiles: tuple) -> dict[str, dict[str, int]]:
    return {name: dict(zip(("seeds", "steps", "count"), values, strict=False)) for name, values in profiles.items()}


EXPERIMENTS = {
    "detect": Experiment(
        run_detect,
        tuple(ARMS),
        _budgets(smoke=(2, 2, 6), ci=(1, 40, 60), ledger=(10, 250, 200), gpu=(32, 10000, 1000)),
    ),
    "hide": Experiment(
        run_hide,
        ("lesion visible", "lesion hidden"),
        _budgets(smoke=(2, 2, 6), ci=(1, 40, 60), ledger=(10, 250, 200), gpu=(32, 10000, 1000)),
    ),
    "fundus": Experiment(
        run_fundus, ("autoencoder", "MAE"), _budgets(smoke=(2, 2), ci=(1, 20), ledger=(10, 120), gpu=(32, 10000))
    ),
    "longer": Experiment(  # no claim rests on it: what changes with more than twice the steps
        run_detect,
        ("MAE", "MemMC-MAE"),
        _budgets(smoke=(1, 2, 6), ci=(1, 2, 6), ledger=(2, 600, 200), gpu=(8, 40000, 1000)),
    ),
}

_HIDE = {"experiment": "hide", "baseline": "lesion visible", "method": "lesion hidden", "higher_is_better": True}
_DETECT = {"experiment": "detect", "unit": "% AUC", "kind": "gain", "higher_is_better": True}
CLAIMS = (
    Claim(
        id="hidden_lesions_are_lost",
        statement="The masked model reconstructs a lesion worse when it is hidden than when it is visible.",
        **{"metric": "error", "unit": "squared error"} | _HIDE,
    ),
    Claim(
        id="hidden_lesions_are_painted_over",
        statement="What is painted over a hidden lesion is nearer to healthy tissue more often than if it is seen.",
        **{"metric": "painted over", "unit": "% of lesions"} | _HIDE,
    ),
    Claim(
        id="memory_resists_visible_lesions",
        statement="With a memory in the encoder even visible lesions are reconstructed worse than without.",
        experiment="detect",
        metric="visible error",
        unit="squared error",
        higher_is_better=True,
        baseline="MAE",
        method="memory",
        ablations=("MemMC-MAE",),
    ),
    Claim(
        id="masking_finds_the_pixels",
        statement="Masking finds the pixels of lesions better than the same autoencoder without masks.",
        **{"metric": "pixel AUC", "baseline": "autoencoder", "method": "MAE"} | _DETECT,
        ablations=("memory", "MemMC-MAE"),
    ),
    Claim(
        id="masking_finds_the_pictures",
        statement="Masking finds the pictures with a lesion better than the same autoencoder without masks.",
        **{"metric": "image AUC", "baseline": "autoencoder", "method": "MAE"} | _DETECT,
    ),
    Claim(
        id="memory_finds_more_pictures",
        statement="Memory finds pictures with a lesion better than the plain masked autoencoder.",
        **{"metric": "image AUC", "baseline": "MAE", "method": "memory"} | _DETECT,
    ),
    Claim(
        id="levels_find_more_pictures",
        statement="Reading all levels on top of it finds pictures with a lesion better than memory alone.",
        **{"metric": "image AUC", "baseline": "memory", "method": "MemMC-MAE"} | _DETECT,
        ablations=("MAE",),
    ),
    Claim(
        id="masking_finds_microaneurysms",
        statement="On a real retina masking finds the pixels of two microaneurysms better than the same autoencoder "
        "without masks.",
        **{"metric": "pixel AUC", "baseline": "autoencoder", "method": "MAE"} | _DETECT | {"experiment": "fundus"},
    ),
)

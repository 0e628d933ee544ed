"""CroCo: cross-view completion (Weinzaepfel, Leroy, Lucas and others, NeurIPS 2022, arXiv 2210.10716).

Masked autoencoders learn what things look like. CroCo wants a network that knows *where* things are: it masks nearly
all of one view of a scene and leaves a second view whole. What is missing can be looked up there, once one finds the
place that shows the same point of the scene. One encoder serves both views; a decoder with cross-attention from the
first to the second predicts the pixels.

    paper (section 3, appendix)                  here
    -----------------------------------------    ---------------------------------
    the mask of the first view, 90 %             random_mask
    visible tokens, mask tokens at their places  gather_visible, scatter_visible
    cross-attention, "CrossBlock" decoder        CrossAttention, DecoderBlock
    encoder on both views, decoder, head         CroCo
    squared error on hidden, normalised patches  completion_loss

All else is the masked autoencoder of `sslref.nn.mae`: patches, positions, normalised targets, optimizer.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslref.augment import color_distort
from sslref.claims import Claim, Experiment
from sslref.data import folders
from sslref.data.worlds.stereo import Pairs, StereoWorld, motorcycle_pairs
from sslref.evaluate import ridge_r2, standardize
from sslref.masked import MAE_DECODER, VIT_B, masked_task
from sslref.nn import Block, mae, seeded
from sslref.nn.mae import patchify, restore_tokens, select
from sslref.nn.numbers import at_least_float32
from sslref.nn.vit import Attention, check_grid, check_images
from sslref.registry import Paper
from sslref.train import History, Recipe, Task, fit, recipe_size, warmup_cosine

PAPER = Paper(
    slug="croco",
    title="CroCo: Self-Supervised Pre-training for 3D Vision Tasks by Cross-View Completion",
    authors=(
        "Philippe Weinzaepfel", "Vincent Leroy", "Thomas Lucas", "Romain Brégier", "Yohann Cabon", "Vaibhav Arora",
        "Leonid Antsfeld", "Boris Chidlovskii", "Gabriela Csurka", "Jérôme Revaud",
    ),
    venue="NeurIPS", year=2022, arxiv="2210.10716", code="https://github.com/naver/croco",
    part="masked", data=("stereo world", "photographs"), minutes=35, needs=("masked autoencoder", "attention"),
    idea="Complete a masked view from a second view of the scene: whoever can has found what corresponds.",
)  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- the method


def random_mask(
    batch: int, num_patches: int, *, mask_ratio: float = 0.9, generator: torch.Generator | None = None
) -> Tensor:
    """Hide exactly int(ratio N) patches of each picture, uniformly: (batch, N) bool, True = hidden (`RandomMask`).

    A masked autoencoder counts what *stays*, int(N (1 - ratio)): 19 of 196 at 90 %, where here 20 stay.
    """
    if batch < 1:
        raise ValueError(f"batch: expected at least 1, got {batch}")
    if not (0 < mask_ratio < 1 and mask_ratio * num_patches >= 1):
        raise ValueError(f"mask_ratio: expected from 1 / {num_patches} (a patch) to below 1, got {mask_ratio}")
    device = generator.device if generator is not None else None
    order = torch.rand(batch, num_patches, generator=generator, device=device).argsort(1)
    return order < int(mask_ratio * num_patches)  # a permutation is random in itself: no ranks are needed


def _order(mask: Tensor) -> Tensor:
    """Places (B, N) in raster order, the visible ones before the hidden ones."""
    return mask.to(torch.uint8).argsort(dim=1, stable=True)


def _visible(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Places (B, V) of the visible tokens, in raster order. Raises ValueError: shape, dtype, uneven rows."""
    if mask.shape != shape or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool of shape {tuple(shape)}, got {mask.dtype} of shape {tuple(mask.shape)}")
    visible = (~mask).sum(1).tolist()
    if not visible or len(set(visible)) > 1:
        raise ValueError(f"mask: expected the same number of hidden tokens in every row, got visible ones {visible}")
    return _order(mask)[:, : visible[0]]


def gather_visible(tokens: Tensor, mask: Tensor) -> Tensor:
    """The visible tokens in raster order: (B, N, D), mask (B, N) -> (B, V, D). ValueError: shapes, uneven rows."""
    if tokens.ndim != 3:
        raise ValueError(f"tokens: expected shape (B, N, D), got {tuple(tokens.shape)}")
    return select(tokens, _visible(mask, tokens.shape[:2]))


def scatter_visible(visible: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """Visible tokens back at their places, the mask token at the hidden ones: (B, V, D), (B, N), (D,) -> (B, N, D).

    Raises ValueError: shapes that do not fit, or a mask that does not leave V tokens of each row visible.
    """
    if visible.ndim != 3 or mask.ndim != 2 or _visible(mask, mask.shape).shape != visible.shape[:2]:
        got = f"{tuple(visible.shape)} and a mask {tuple(mask.shape)} with {(~mask).sum(-1).tolist()} visible"
        raise ValueError(f"visible: expected (B, V, D) for a mask (B, N) that leaves V of each row visible, got {got}")
    return restore_tokens(visible, mask_token, _order(mask).argsort(1))


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from another, scaled by 1 / sqrt(width of a head)."""

    def __init__(self, dim: int, *, num_heads: int = 4):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of the width {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.projq, self.projk, self.projv, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, query: Tensor, memory: Tensor, return_attention: bool = False):
        """(B, Nq, D), (B, Nk, D) -> (B, Nq, D), and the attention (B, heads, Nq, Nk) where it is asked for."""
        x = self.projq(query), self.projk(memory), self.projv(memory)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in x)
        out = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (out, (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)) if return_attention else out


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention to the second view (never updated), MLP, each on a LayerNorm and added."""

    def __init__(self, dim: int, *, num_heads: int = 4, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1, self.norm2, self.norm3, self.norm_y = (nn.LayerNorm(dim, eps=1e-6) for _ in range(4))
        self.attn = Attention(dim, num_heads)
        self.cross_attn = CrossAttention(dim, num_heads=num_heads)
        self.fc1, self.fc2 = nn.Linear(dim, int(dim * mlp_ratio)), nn.Linear(int(dim * mlp_ratio), dim)

    def forward(self, x: Tensor, memory: Tensor, return_attention: bool = False):
        """(B, N, D), second view (B, M, D) -> (B, N, D), and the cross-attention where it is asked for."""
        x = x + self.attn(self.norm1(x))
        found = self.cross_attn(self.norm2(x), self.norm_y(memory), return_attention)
        x = x + (found[0] if return_attention else found)
        x = x + self.fc2(F.gelu(self.fc1(self.norm3(x))))
        return (x, found[1]) if return_attention else x


class CroCoOutput(NamedTuple):
    pred: Tensor  # (B, N, p*p*C)
    mask: Tensor  # (B, N) bool, True = hidden
    target: Tensor  # (B, N, p*p*C), the patches of the first view as they are


class CroCo(nn.Module):
    """One encoder for both views, and a decoder that completes the first with the help of the second."""

    def __init__(
        self, *, image_size: int = 32, patch_size: int = 4, in_chans: int = 3,
        embed_dim: int = 64, depth: int = 2, num_heads: int = 4,
        decoder_embed_dim: int = 64, decoder_depth: int = 2, decoder_num_heads: int = 4,
        mlp_ratio: float = 4.0, mask_ratio: float = 0.9,
    ):  # fmt: skip
        super().__init__()
        side = check_grid(image_size, patch_size)
        self.patch_size, self.mask_ratio, self.num_patches = patch_size, mask_ratio, side**2
        self.image_shape = (in_chans, image_size, image_size)
        patch_dim, wide = patch_size**2 * in_chans, decoder_embed_dim
        self.patch_embed = nn.Linear(patch_dim, embed_dim)
        self.blocks = nn.Sequential(*(Block(embed_dim, num_heads, mlp_ratio=mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(embed_dim, wide)
        self.mask_token = nn.Parameter(torch.empty(wide))
        decoder = (DecoderBlock(wide, num_heads=decoder_num_heads, mlp_ratio=mlp_ratio) for _ in range(decoder_depth))
        self.decoder_blocks = nn.ModuleList(decoder)
        self.decoder_norm = nn.LayerNorm(wide, eps=1e-6)
        self.decoder_pred = nn.Linear(wide, patch_dim)
        # positions follow from the sizes: they are not saved
        for name, dim in (("positions", embed_dim), ("decoder_positions", wide)):
            self.register_buffer(name, mae.sincos_2d(dim, (side, side)).to(self.mask_token), persistent=False)
        mae.xavier_(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def encode(self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Tokens of whole pictures, or of what the mask (B, N) leaves visible: (B, N or V, D), in raster order.

        `keep` (B, V) may give the visible places where they are known: then the mask is not looked at.
        """
        check_images(images, self.image_shape)
        patches, positions = patchify(images, self.patch_size), self.positions
        if mask is not None:
            keep = _visible(mask, patches.shape[:2]) if keep is None else keep
            patches, positions = select(patches, keep), positions[keep]
        return self.norm(self.blocks(self.patch_embed(patches) + positions))

    def decode(self, first: Tensor, second: Tensor, mask: Tensor | None = None, return_attention: bool = False):
        """Encoder tokens (B, V, D), (B, N, D) -> (B, N, decoder width), and each block's attention where asked for."""
        x, memory = self.decoder_embed(first), self.decoder_embed(second) + self.decoder_positions
        if mask is not None:
            x = restore_tokens(x, self.mask_token, _order(mask).argsort(1))
        x, maps = x + self.decoder_positions, []
        for block in self.decoder_blocks:
            x, attention = block(x, memory, True) if return_attention else (block(x, memory), None)
            maps.append(attention)
        return (x, maps) if return_attention else x

    def predict(self, decoded: Tensor) -> Tensor:
        """The head: (B, N, decoder width) -> (B, N, p*p*C)."""
        return self.decoder_pred(self.decoder_norm(decoded))

    def forward(
        self, img1: Tensor, img2: Tensor, *, mask: Tensor | None = None, keep: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> CroCoOutput:  # fmt: skip
        """Complete the first view (B, C, S, S) with the help of the second.

        `mask` (B, N) bool, True = hidden, the same number in every row; None draws one with `generator`. `keep` as for
        `encode`: a training step need not wait for the device then.
        """
        if img1.shape != img2.shape:
            raise ValueError(f"img1, img2: expected one shape, got {tuple(img1.shape)} and {tuple(img2.shape)}")
        if mask is None:
            mask = random_mask(len(img1), self.num_patches, mask_ratio=self.mask_ratio, generator=generator)
            mask = mask.to(img1.device)
        pred = self.predict(self.decode(self.encode(img1, mask, keep), self.encode(img2), mask))
        return CroCoOutput(pred, mask, patchify(img1, self.patch_size))


def completion_loss(pred: Tensor, target: Tensor, mask: Tensor, *, norm_pix: bool = True, eps: float = 1e-6) -> Tensor:
    """Mean squared error of (B, N, P) over the hidden patches of the batch, mask (B, N) bool, True = hidden.

    With `norm_pix` each target has mean 0 and variance 1. Raises ValueError: shapes that do not fit, nothing hidden.
    """
    return mae.masked_patch_loss(*_regressed(pred, target, norm_pix, eps), mask)


def _regressed(pred: Tensor, target: Tensor, norm_pix: bool, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    target = at_least_float32(target)
    return at_least_float32(pred), mae.normalize_patches(target, eps=eps) if norm_pix else target


# ------------------------------------------------------------------------------------------------------- training

# what stands in for the second view of a batch
ARMS = {
    "croco": lambda left, right: right,
    "mae": lambda left, right: torch.zeros_like(right),
    "mismatched": lambda left, right: right.roll(1, 0),
    "in place": lambda left, right: left,
    "free keys": lambda left, right: right,  # as "croco"; `miniature_model` says what is free
}


def standardize_pairs(left: Tensor, right: Tensor, *, least: float = 0.05) -> tuple[Tensor, Tensor]:
    """Both views less the mean of the left one, over its deviation (or `least`): (B, C, S, S) each."""
    std, mean = torch.std_mean(left, dim=(1, 2, 3), keepdim=True)
    return (left - mean) / std.clamp(min=least), (right - mean) / std.clamp(min=least)


def croco_task(
    model: CroCo, draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]], *,
    batch_size: int, lr: float, arm: str = "croco", norm_pix: bool = True,
) -> Task:  # fmt: skip
    """Cross-view completion with the second view of an arm; draw(count, generator) gives two views (count, C, S, S)."""
    visible = model.num_patches - int(model.mask_ratio * model.num_patches)

    def views(count: int, generator: torch.Generator) -> Tensor:
        left, right = draw(count, generator)
        return torch.stack((left, ARMS[arm](left, right)), 1)

    def masks(pairs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mask = random_mask(len(pairs), model.num_patches, mask_ratio=model.mask_ratio, generator=generator)
        return mask, _order(mask)[:, :visible]

    def loss(net: CroCo, pairs: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
        out = net(pairs[:, 0], pairs[:, 1], mask=mask, keep=keep)
        pred, target = _regressed(out.pred, out.target, norm_pix)
        return mae.hidden_mean((pred - target).square().mean(-1), mask)

    return masked_task(model, views, loss, batch_size=batch_size, lr=lr, also=masks)


def recipe(
    source: Path | None = None, *, batch_size: int | None = None, device: str = "cpu", size: str | None = None
) -> Recipe:
    """The miniature on the stereo world; on a folder ViT-B, normalised pixels, 400 epochs of an 800-epoch cosine.

    The folder has two subfolders, first and second views: equally many pictures, paired by their order.
    """
    small = recipe_size(size, source) == "miniature"
    if source is None:
        if not small:
            raise ValueError("source: expected a folder of pairs for the paper's size, got none")
        draw, about = scenes, "CroCo on scenes of the stereo world"
    else:
        pictures = folders.image_folder(source, 16 if small else 224)
        count, about = len(pictures) // 2, f"CroCo on {len(pictures) // 2:,} pairs of pictures"
        if torch.bincount(pictures.labels).tolist() != [count, count]:
            raise ValueError(f"source: expected two subfolders with equally many pictures, got {source}")

        def draw(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            rows = torch.randint(count, (number,), generator=generator, device=generator.device)
            views = (color_distort(pictures.images(rows + k * count), generator=generator) for k in (0, 1))
            return standardize_pairs(*views) if small else tuple(views)

    batch_size = batch_size or (32 if small else 256)
    if small:
        task = croco_task(miniature_model(0).to(device), draw, batch_size=batch_size, lr=3e-3, norm_pix=False)
        return Recipe(task, 400, batch_size, about)
    model = seeded(0, lambda: CroCo(image_size=224, patch_size=16, **VIT_B, **MAE_DECODER)).to(device)
    task = croco_task(model, draw, batch_size=batch_size, lr=1.5e-4 * batch_size / 256)
    whole = warmup_cosine(40 / 800)
    task = replace(task, schedule=lambda step, steps: whole(step, 2 * steps))
    return Recipe(task, math.ceil(400 * count / batch_size), batch_size, about)


# -------------------------------------------------------------------------------------------------- the miniature

SCENES = {"layers": 2, "cue": True}


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Standardised pairs of the world from which the miniature learns."""
    return standardize_pairs(*StereoWorld(**SCENES).sample(count, generator)[:2])


def miniature_model(seed: int, *, same_keys: bool = True) -> CroCo:
    """Sixteen patches of 4 pixels, one encoder block, two decoder blocks, all of width 64.

    With `same_keys` every cross-attention starts with keys that are its queries: like finds like from the first step.
    """
    sizes = {"image_size": 16, "depth": 1, "num_heads": 2, "decoder_num_heads": 2, "mlp_ratio": 2.0}
    model = seeded(seed, lambda: CroCo(**sizes, mask_ratio=0.75))
    for block in model.decoder_blocks if same_keys else ():
        block.cross_attn.projk.load_state_dict(block.cross_attn.projq.state_dict())
    return model


def pretrain(
    arm: str, *, seed: int, device: str = "cpu", steps: int = 400, progress: bool | Callable = False
) -> tuple[CroCo, History]:
    """The miniature with what an arm has for a second view; arms of a seed share weights, scenes and masks."""
    model = miniature_model(seed, same_keys=arm != "free keys").to(device)
    task = croco_task(model, scenes, batch_size=32, lr=3e-3, arm=arm, norm_pix=False)
    history = fit(task, steps=steps, seed=seed, device=device, progress=progress)
    return model.eval(), history


@torch.no_grad()
def complete(model: CroCo, pairs: Pairs, arm: str = "croco", *, seed: int = 0) -> tuple[CroCoOutput, list[Tensor]]:
    """Standardised pairs completed under masks of a seed, and the cross-attention of each decoder block."""
    left, right = standardize_pairs(pairs.left, pairs.right)
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask(len(left), model.num_patches, mask_ratio=model.mask_ratio, generator=generator).to(left.device)
    x, maps = model.decode(model.encode(left, mask), model.encode(ARMS[arm](left, right)), mask, True)
    return CroCoOutput(model.predict(x), mask, patchify(left, model.patch_size)), maps


@torch.no_grad()
def probe_disparity(model: CroCo, train: Pairs, test: Pairs, *, views: int) -> float:
    """R^2 of a linear probe of each patch's disparity: on decoder tokens of two views, or encoder tokens of one."""
    sets = []
    for pairs in (train, test):
        left, right = standardize_pairs(pairs.left, pairs.right)
        tokens = model.encode(left)
        tokens = model.decode(tokens, model.encode(right)) if views == 2 else tokens
        sets.append((tokens.flatten(0, 1), patchify(pairs.disparity[:, None], model.patch_size).mean(-1).flatten()))
    (x, y), (test_x, test_y) = sets
    return ridge_r2(*standardize(x)[:1], y, standardize(x, test_x)[1], test_y, alpha=10.0)


def run_train(arm: str, *, seed: int, device: str, steps: int, pairs: int = 600) -> dict[str, float]:
    """Pre-train one arm; then completion, attention and probes on unseen scenes, and completion of the real pair."""
    model, second = miniature_model(seed).to(device).eval(), "croco"
    if arm != "untrained":
        (model, _), second = pretrain(arm, seed=seed, device=device, steps=steps), arm
    generator = torch.Generator(device).manual_seed(seed + 10**6)
    train = StereoWorld(**SCENES).sample(pairs, generator)
    test, plain = (StereoWorld(**SCENES | {"split": "test", "cue": c}).sample(pairs, generator) for c in (True, False))
    metrics = {}
    for name, shown in (("loss", test), ("real", motorcycle_pairs(pairs, generator))):
        out, _ = complete(model, shown, second, seed=seed)
        metrics[name] = completion_loss(out.pred, out.target, out.mask, norm_pix=False).item()
    out, maps = complete(model, plain, seed=seed)  # texture tells nothing here
    metrics["match"] = 100 * plain.match_accuracy(maps[-1].mean(1), out.mask)
    probes = {"disparity": 2, "depth": 1}
    return metrics | {name: probe_disparity(model, train, test, views=views) for name, views in probes.items()}


def _budgets(**profiles: tuple[int, int]) -> dict[str, dict[str, int]]:
    small = {"smoke": {"pairs": 20}, "ci": {"pairs": 200}}
    return {p: {"seeds": seeds, "steps": steps, **small.get(p, {})} for p, (seeds, steps) in profiles.items()}


# fmt: off
EXPERIMENTS = {
    "train": Experiment(run_train, ("croco", "mae", "mismatched", "in place", "untrained"),
                        _budgets(smoke=(2, 2), ci=(1, 40), ledger=(10, 400), gpu=(16, 8000))),
    # no claim rests on these: keys that start anywhere, and three times the steps
    "keys": Experiment(run_train, ("free keys",), _budgets(smoke=(1, 2), ci=(1, 2), ledger=(3, 400), gpu=(16, 8000))),
    "longer": Experiment(run_train, ("croco", "mae"),
                         _budgets(smoke=(1, 2), ci=(1, 2), ledger=(2, 1200), gpu=(16, 24000))),
}
_ROWS = (  # id, metric, baseline, ablations, statement
    ("a_second_view_completes", "loss", "mae", ("mismatched",),
     "A second view of a scene helps to complete the first: the error is lower than without it."),
    ("it_must_be_the_same_scene", "loss", "mismatched", ("mae",),
     "It is the scene that helps, not just a second picture: the error is lower than with that of another scene."),
    ("parallax_teaches_matching", "match", "in place", ("mae", "untrained"),
     "Parallax teaches attention to find the true patch; a second view equal to the first teaches it less."),
    ("the_real_pair_is_completed", "real", "mae", ("mismatched",),
     "What flat layers taught helps on a real stereo pair: the error is lower than without its second view."),
    ("the_decoder_knows_disparity", "disparity", "mae", ("in place", "untrained"),
     "Given both views, a linear probe reads disparity better from CroCo's decoder than from a single-view MAE's."),
    ("the_encoder_knows_depth", "depth", "mae", ("in place", "untrained"),
     "Given one view, a linear probe reads depth better from CroCo's encoder than from a single-view MAE's."),
)
_UNITS = {"match": "% of hidden patches that moved", "disparity": "R²", "depth": "R²"}
CLAIMS = tuple(
    Claim(id=id, statement=statement, experiment="train", metric=metric, unit=_UNITS.get(metric, "squared error"),
          higher_is_better=metric in _UNITS, baseline=baseline, method="croco", ablations=ablations,
          kind="mechanism" if metric in ("loss", "match") else "gain")
    for id, metric, baseline, ablations, statement in _ROWS
)
# fmt: on

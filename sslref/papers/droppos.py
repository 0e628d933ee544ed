"""DropPos: where does this patch belong? (Wang, Fan, Wang, Song, Wang, Zhang, NeurIPS 2023, arXiv 2309.03576).

A vision Transformer hardly minds the order of its patches, so DropPos makes place the question. Hide most patches, as a
masked autoencoder does; of those that stay, take the position away from most; then let the network say, for each patch
without a position, from which place it came. The answer is not always to be had, for two patches of sky are alike: the
targets are blurred over neighbouring places at first, and patches count by how near they are to the whole picture.

    paper (section 3)                              here
    -------------------------------------------    ------------------
    dropped positions                              drop_positions
    encoder, and a decoder that knows no place     DropPos
    position smoothing w*, sigma from 1 to 0       position_smoothing
    attentive reconstruction                       affinity_weights
    the loss                                       position_loss

Masking, patches and positions are those of `sslref.nn.mae`.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslref.claims import Claim, Experiment
from sslref.masked import VIT_B, drawings, ink, masked_task, picture_source, probe_drawings
from sslref.nn import seeded
from sslref.nn.mae import MaskedAutoencoder, num_visible, patchify, random_masking, sincos_2d, xavier_
from sslref.nn.numbers import at_least_float32, check_positive
from sslref.nn.vit import Block, check_grid, check_images
from sslref.registry import Paper
from sslref.train import History, Recipe, Task, fit, recipe_size

PAPER = Paper(
    slug="droppos",
    title="DropPos: Pre-Training Vision Transformers by Reconstructing Dropped Positions",
    authors=("Haochen Wang", "Junsong Fan", "Yuxi Wang", "Kaiyou Song", "Tong Wang", "Zhaoxiang Zhang"),
    venue="NeurIPS",
    year=2023,
    arxiv="2309.03576",
    code="https://github.com/Haochen-Wang409/DropPos",
    part="masked",
    data=("emoji",),
    idea="Take the positions away from most visible patches, and let the network say where each came from.",
    minutes=30,
    needs=("masked autoencoder",),
)


# ----------------------------------------------------------------------------------------------- dropped positions


class Drop(NamedTuple):
    pos: Tensor  # (B, V, D), to be added to the visible tokens
    dropped: Tensor  # (B, V) bool, True = the token does not know its place


def drop_positions(
    pos: Tensor,
    ids_keep: Tensor,
    mask_token: Tensor,
    *,
    drop_ratio: float = 0.75,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Drop:
    """Positions of the visible tokens, most of them replaced by one shared vector (section 3.1).

    The int(V (1 - drop_ratio)) tokens of smallest noise keep theirs; ties go to the lower index.

    Args:
        pos: (N, D), one row a place. ids_keep: (B, V) int64, the places of the visible tokens. mask_token: (D,).
        noise: (B, V), in place of uniform noise from `generator`.

    Raises:
        ValueError: shapes, drop_ratio outside (0, 1], or so small that nothing is dropped.
    """
    if pos.ndim != 2 or ids_keep.ndim != 2 or mask_token.shape != pos.shape[1:]:
        got = f"{tuple(pos.shape)}, {tuple(ids_keep.shape)} and {tuple(mask_token.shape)}"
        raise ValueError(f"pos, ids_keep, mask_token: expected shapes (N, D), (B, V) and (D,), got {got}")
    if not 0 < drop_ratio <= 1:
        raise ValueError(f"drop_ratio: expected a number in (0, 1], got {drop_ratio}")
    visible = ids_keep.shape[1]
    known = int(visible * (1 - drop_ratio))
    if known >= visible:
        raise ValueError(f"drop_ratio: {drop_ratio} drops none of {visible} positions")
    if noise is None:
        noise = torch.rand(ids_keep.shape, generator=generator, device=ids_keep.device)
    elif noise.shape != ids_keep.shape:
        raise ValueError(f"noise: expected shape {tuple(ids_keep.shape)}, got {tuple(noise.shape)}")
    dropped = noise.argsort(dim=1, stable=True).argsort(dim=1) >= known
    return Drop(torch.where(dropped[..., None], mask_token, pos[ids_keep]), dropped)


class DropPosOutput(NamedTuple):
    logits: Tensor  # (B, V, N), one score a place for each visible token, in the order of `ids_keep`
    ids_keep: Tensor  # (B, V) int64, the true places
    dropped: Tensor  # (B, V) bool


class DropPos(nn.Module):
    """Encoder on visible patches of which most lost their position, and a decoder that knows no positions (3.1, 3.2).

    Raises:
        ValueError: sizes that do not divide.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        decoder_embed_dim: int = 32,
        decoder_depth: int = 1,
        decoder_num_heads: int = 4,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        side = check_grid(image_size, patch_size)
        self.patch_size, self.grid, self.num_patches = patch_size, (side, side), side**2
        self.image_shape = (in_chans, image_size, image_size)
        self.patch_embed = nn.Linear(patch_size**2 * in_chans, embed_dim)
        self.class_token = nn.Parameter(torch.empty(embed_dim))
        self.pos_token = nn.Parameter(torch.empty(embed_dim))  # stands for every position that was dropped
        self.blocks = nn.Sequential(*(Block(embed_dim, num_heads, mlp_ratio=mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        decoder = (Block(decoder_embed_dim, decoder_num_heads, mlp_ratio=mlp_ratio) for _ in range(decoder_depth))
        self.decoder_blocks = nn.Sequential(*decoder)
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_embed_dim, self.num_patches)
        self.register_buffer("positions", sincos_2d(embed_dim, self.grid).to(self.class_token), persistent=False)
        xavier_(self)
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.pos_token, std=0.02)

    def embed(self, images: Tensor) -> Tensor:
        """Patch tokens that know no place: (B, C, S, S) -> (B, N, D)."""
        check_images(images, self.image_shape)
        return self.patch_embed(patchify(images, self.patch_size))

    encode_tokens = MaskedAutoencoder.encode_tokens

    def encode(self, images: Tensor) -> Tensor:
        """Features of whole pictures with all positions, as they are used after training: (B, N, D)."""
        return self.encode_tokens(self.embed(images) + self.positions)[:, 1:]

    @torch.no_grad()
    def affinity(self, images: Tensor, *, temperature: float = 0.1) -> Tensor:
        """Weights (B, N) of all patches, from whole pictures with all positions, without gradient."""
        encoded = self.encode_tokens(self.embed(images) + self.positions)
        return affinity_weights(encoded[:, 0], encoded[:, 1:], temperature=temperature)

    def forward(
        self,
        images: Tensor,
        *,
        mask_ratio: float = 0.75,
        drop_ratio: float = 0.75,
        noise: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> DropPosOutput:
        """Hide patches, drop positions, and score every place for every visible patch.

        Args:
            noise: (B, N) for the patches and (B, V) for the positions, in place of draws from `generator`.
        """
        hide, forget = noise or (None, None)
        tokens, _, places, _ = random_masking(self.embed(images), mask_ratio, noise=hide, generator=generator)
        drop = drop_positions(
            self.positions, places, self.pos_token, drop_ratio=drop_ratio, noise=forget, generator=generator
        )
        x = self.decoder_embed(self.encode_tokens(tokens + drop.pos))
        logits = self.decoder_pred(self.decoder_norm(self.decoder_blocks(x)))[:, 1:]
        return DropPosOutput(logits, places, drop.dropped)


# ------------------------------------------------------------------------------------- what is asked, and how much


def position_smoothing(grid: tuple[int, int], sigma: float) -> Tensor:
    """Targets that spread over neighbouring places: row i is exp(-|c_i - c_j|^2 / sigma^2), made to sum to one.

    Args:
        grid: (rows, columns) of places. sigma: in places; 0 gives the identity.

    Returns:
        (N, N) float64, row i for the patch that came from place i.

    Raises:
        ValueError: an empty grid, a negative sigma.
    """
    if len(grid) != 2 or min(grid) < 1:
        raise ValueError(f"grid: expected (rows, columns), both at least 1, got {tuple(grid)}")
    if not sigma >= 0:
        raise ValueError(f"sigma: expected a number >= 0, got {sigma}")
    if sigma == 0:
        return torch.eye(grid[0] * grid[1], dtype=torch.float64)
    at = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid))
    # scaled before it is squared: the square of a tiny sigma would be 0
    return ((at[:, None] - at) / sigma).square().sum(-1).neg().softmax(1)


def affinity_weights(cls: Tensor, tokens: Tensor, *, temperature: float = 0.1) -> Tensor:
    """How much each patch counts: softmax over the patches of cos(class token, patch) / temperature, detached.

    Args:
        cls: (B, D). tokens: (B, M, D).

    Returns:
        (B, M), each row sums to one.

    Raises:
        ValueError: shapes, a temperature that is not positive.
    """
    if cls.ndim != 2 or tokens.ndim != 3 or cls.shape != (tokens.shape[0], tokens.shape[2]) or not tokens.numel():
        got = f"{tuple(cls.shape)} and {tuple(tokens.shape)}"
        raise ValueError(f"cls, tokens: expected shapes (B, D) and (B, M, D), not empty, got {got}")
    check_positive(temperature=temperature)
    cls, tokens = (at_least_float32(x.detach()) for x in (cls, tokens))
    return (F.cosine_similarity(cls[:, None], tokens, dim=-1) / temperature).softmax(1)


def _check_answer(logits: Tensor, ids_keep: Tensor, dropped: Tensor) -> None:
    if logits.ndim != 3 or not logits.numel():
        raise ValueError(f"logits: expected shape (B, V, N), not empty, got {tuple(logits.shape)}")
    for name, x, dtype in (("ids_keep", ids_keep, torch.int64), ("dropped", dropped, torch.bool)):
        if x.shape != logits.shape[:2] or x.dtype != dtype:
            expected = f"{dtype} of shape {tuple(logits.shape[:2])}"
            raise ValueError(f"{name}: expected {expected}, got {x.dtype} {tuple(x.shape)}")


def position_loss(
    logits: Tensor, ids_keep: Tensor, dropped: Tensor, *, smooth: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Weighted mean, over all dropped positions of the batch, of the cross-entropy with the (smoothed) true place.

    Args:
        logits: (B, V, N). ids_keep: (B, V) int64, the true places. dropped: (B, V) bool.
        smooth: (N, N), rows = targets; None: the true place alone. weights: (B, V); None: all alike. Neither gets a
            gradient.

    Raises:
        ValueError: shapes, or nothing that was dropped has a weight.
    """
    _check_answer(logits, ids_keep, dropped)
    places = logits.shape[2]
    if smooth is not None and smooth.shape != (places, places):
        raise ValueError(f"smooth: expected shape {(places, places)}, got {tuple(smooth.shape)}")
    if weights is not None and weights.shape != dropped.shape:
        raise ValueError(f"weights: expected shape {tuple(dropped.shape)}, got {tuple(weights.shape)}")
    if not (dropped if weights is None else dropped & (weights != 0)).any():
        raise ValueError("dropped: expected at least one dropped position that counts, got none")
    return _weighted_loss(logits, ids_keep, dropped, smooth, weights)


def _weighted_loss(
    logits: Tensor, ids_keep: Tensor, dropped: Tensor, smooth: Tensor | None, weights: Tensor | None
) -> Tensor:
    log_p = at_least_float32(logits).log_softmax(-1)
    if smooth is None:
        loss = -log_p.gather(-1, ids_keep[..., None])[..., 0]
    else:
        loss = -(smooth.detach().to(log_p)[ids_keep] * log_p).sum(-1)
    count = dropped.to(log_p) if weights is None else dropped * weights.detach().to(log_p)
    return (loss * count).sum() / count.sum()


def position_accuracy(logits: Tensor, ids_keep: Tensor, dropped: Tensor) -> Tensor:
    """Share of the dropped positions whose highest score is the true place; nan where nothing was dropped."""
    _check_answer(logits, ids_keep, dropped)
    hit = (logits.argmax(-1) == ids_keep) & dropped
    return hit.sum() / dropped.sum()


# ------------------------------------------------------------------------------------------------------ training


class Training(nn.Module):
    """DropPos with what its training adds: the smoothed targets of the moment, and attentive weights.

    Args:
        sigma: width of the targets at the first step. temperature: of the weights; None: every patch counts alike.
        borrowed: each picture takes the weights of another, as unequal as its own, but without regard to its patches
            (not in the paper: it tells what the choice of patches does).
    """

    def __init__(
        self,
        net: DropPos,
        *,
        sigma: float = 1.0,
        temperature: float | None = None,
        mask_ratio: float = 0.75,
        drop_ratio: float = 0.75,
        borrowed: bool = False,
    ):
        super().__init__()
        self.net, self.sigma, self.temperature, self.borrowed = net, sigma, temperature, borrowed
        self.mask_ratio, self.drop_ratio = mask_ratio, drop_ratio
        self.register_buffer("smooth", position_smoothing(net.grid, sigma).to(net.class_token))

    def noise(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What a step is random in: (B, N) for the patches, (B, V) for the positions."""
        widths = self.net.num_patches, num_visible(self.net.num_patches, self.mask_ratio)
        a, b = (torch.rand(len(images), n, generator=generator, device=generator.device) for n in widths)
        return a, b

    def forward(self, images: Tensor, *noise: Tensor) -> tuple[DropPosOutput, Tensor]:
        """The answers, and the weights (B, V) of the visible patches."""
        out = self.net(images, mask_ratio=self.mask_ratio, drop_ratio=self.drop_ratio, noise=noise)
        if self.temperature is None:
            weights = torch.ones_like(out.dropped, dtype=self.smooth.dtype)
        else:
            weights = self.net.affinity(images, temperature=self.temperature).gather(1, out.ids_keep)
        return out, weights.roll(1, 0) if self.borrowed else weights

    def anneal(self, step: int, steps: int) -> None:
        """After step e of E: sigma (1 - (e + 1) / E)."""
        self.smooth.copy_(position_smoothing(self.net.grid, self.sigma * (1 - (step + 1) / steps)))


def droppos_task(
    model: Training, draw: Callable[[int, torch.Generator], Tensor], *, batch_size: int, lr: float, warmup: float = 0.1
) -> Task:
    """The loss, the accuracy, and the share of the weight that lies on patches that are not blank.

    Args:
        draw: (batch size, generator) -> images (B, C, H, W) on the generator's device.
    """

    def loss(model: Training, images: Tensor, *noise: Tensor) -> dict[str, Tensor]:
        out, weights = model(images, *noise)
        counted = weights * out.dropped
        on_ink = ink(images, model.net.patch_size).gather(1, out.ids_keep)
        return {
            # what `position_loss` checks holds by now, and its look at the values would wait for the device
            "loss": _weighted_loss(*out, model.smooth, weights),
            "accuracy": position_accuracy(*out),
            "weight on ink": (counted * on_ink).sum() / counted.sum(),
        }

    task = masked_task(model, draw, loss, batch_size=batch_size, lr=lr, warmup=warmup, also=model.noise)
    task.after_step = lambda model, step, steps: model.anneal(step, steps)
    return task


def recipe(
    source: Path | None = None, *, batch_size: int | None = None, device: str = "cpu", size: str | None = None
) -> Recipe:
    """ViT-B/16 on a folder of images for 800 epochs, as in the official command, or the miniature on emoji.

    The miniature takes weights of temperature 1: on pictures with blank patches 0.1 keeps it from learning.

    Args:
        source: folder with one subfolder of images a class; None: the embedded emoji.
    """
    size = recipe_size(size, source)
    draw, count, pixels = picture_source(source, size, device)
    if size == "miniature":
        batch_size, steps, lr, warmup, temperature, model = batch_size or 64, 300, 3e-3, 0.1, 1.0, miniature_model(0)
    else:
        batch_size = batch_size or 2048
        steps, lr, warmup = math.ceil(800 * count / batch_size), 1.5e-4 * batch_size / 256, 10 / 800
        encoder = VIT_B | {"image_size": pixels, "patch_size": 16 if pixels == 224 else 4}
        decoder = {"decoder_embed_dim": 512, "decoder_depth": 2, "decoder_num_heads": 16}
        temperature, model = 0.1, seeded(0, lambda: DropPos(**encoder, **decoder))
    training = Training(model, temperature=temperature).to(device)
    return Recipe(
        task=droppos_task(training, draw, batch_size=batch_size, lr=lr, warmup=warmup),
        steps=steps,
        batch_size=batch_size,
        about=f"DropPos on {count:,} images of {pixels} pixels",
    )


# -------------------------------------------------------------------------------------------------- the miniature

ARMS = {
    "noise pixels": {"sigma": 0.0, "drop_ratio": 1.0},
    "no anchors": {"sigma": 0.0, "drop_ratio": 1.0},
    "positions only": {"sigma": 0.0},
    "smoothing": {},
    "weights, 0.1": {"temperature": 0.1},
    "weights, 1": {"temperature": 1.0},
    "weights, borrowed": {"temperature": 0.1, "borrowed": True},
    "nothing hidden": {"sigma": 0.0, "mask_ratio": 0.0},
}
PROBED = ("random weights", "smoothing", "weights, 0.1")


def miniature_model(seed: int) -> DropPos:
    """Three blocks of width 64 on 8 x 8 patches of 4 pixels, one decoder block of width 48."""
    return seeded(seed, lambda: DropPos(depth=3, decoder_embed_dim=48))


def noise_pictures(count: int, generator: torch.Generator) -> Tensor:
    """Pictures (count, 3, 32, 32) of independent pixels: nothing tells one place from another."""
    return torch.rand(count, 3, 32, 32, generator=generator, device=generator.device)


def pretrain(
    arm: str, *, seed: int, device: str = "cpu", steps: int = 160, progress: bool | Callable = False
) -> tuple[Training, History]:
    """The miniature as one arm trains it; arms of a seed share emoji, initialisation, pictures and flips."""
    training = Training(miniature_model(seed), **ARMS.get(arm, {})).to(device)
    if arm == "random weights":
        return training.eval(), History()
    draw = noise_pictures if arm == "noise pixels" else drawings(seed, device).sample
    task = droppos_task(training, draw, batch_size=24, lr=3e-3)
    history = fit(task, steps=steps, seed=seed, device=device, progress=progress)
    return training.eval(), history


@torch.no_grad()
def place(training: Training, images: Tensor, *, seed: int) -> dict[str, float]:
    """Where patches of pictures are put, hidden and dropped as in training, and what counts. All in per cent.

    "accuracy" is over all dropped positions, "accuracy on ink" over those of patches that are not blank, "weighted
    accuracy" counts each by its weight. "weight on ink" is a share of the weight of the dropped positions, "patches
    with ink" of their number. "patches that count" is 100 / (M sum w^2), w the weights of the M dropped positions of a
    picture, made to sum to one: 100 if all count alike, 100 / M if one has all the weight.
    """
    noise = training.noise(images, torch.Generator().manual_seed(seed + 10**6))
    out, weights = training(images, *(v.to(images.device) for v in noise))
    has_ink = ink(images, training.net.patch_size).gather(1, out.ids_keep)
    hit = out.logits.argmax(-1) == out.ids_keep
    w = weights * out.dropped
    counting = w.sum(1).square() / (w.square().sum(1) * out.dropped.sum(1))
    shares = {
        "accuracy": position_accuracy(*out),
        "accuracy on ink": position_accuracy(out.logits, out.ids_keep, out.dropped & has_ink),
        "weighted accuracy": (w * hit).sum() / w.sum(),
        "weight on ink": (w * has_ink).sum() / w.sum(),
        "patches with ink": (out.dropped & has_ink).sum() / out.dropped.sum(),
        "patches that count": counting.mean(),
    }
    return {name: 100 * share.item() for name, share in shares.items()}


def run_train(arm: str, *, seed: int, device: str, steps: int) -> dict[str, float]:
    """Train one arm: place of held-out patches, and for some a linear probe of nine categories (per cent)."""
    data = drawings(seed, device)
    training, _ = pretrain(arm, seed=seed, device=device, steps=steps)
    fresh = torch.Generator().manual_seed(seed + 2 * 10**6)
    images = noise_pictures(len(data.noto), fresh).to(device) if arm == "noise pixels" else data.noto
    scores = place(training, images, seed=seed)
    return scores | (probe_drawings(training.net.encode, data) if arm in PROBED else {})


# fmt: off
EXPERIMENTS = {
    name: Experiment(run_train, arms, {
        "smoke": {"seeds": 2, "steps": 2}, "ci": {"seeds": 1, "steps": ci},
        "ledger": {"seeds": 10, "steps": ledger}, "gpu": {"seeds": 32, "steps": 4000},
    })
    for name, arms, ci, ledger in (
        ("train", ("random weights", *(arm for arm in ARMS if arm != "nothing hidden")), 6, 160),
        ("hide", ("positions only", "nothing hidden"), 4, 100),
    )
}
_ROWS = (  # id, baseline, method, statement
    ("content_tells_place", "noise pixels", "no anchors",
     "Without a single known position, places are found more often on held-out emoji than on pictures of noise."),
    ("anchors_help", "no anchors", "positions only",
     "A quarter of known positions helps to find the others: places are found more often than without any."),
    ("smoothing_helps", "positions only", "smoothing",
     "With position smoothing, sigma from 1 to 0, places are found more often."),
    ("attentive_weights_help", "smoothing", "weights, 0.1",
     "With attentive weights at the paper's temperature of 0.1, places are found more often than with equal weights."),
    ("soft_weights_do_better", "weights, 0.1", "weights, 1",
     "With attentive weights at temperature 1, places are found more often than at 0.1."),
    ("weights_prefer_ink", "smoothing", "weights, 0.1",
     "Attentive weights at temperature 0.1 lie on patches with ink more than equal weights do."),
    ("the_choice_hurts", "weights, 0.1", "weights, borrowed",
     "With weights as sharp but borrowed from another picture, places are found more often than with its own."),
    ("hiding_makes_it_harder", "positions only", "nothing hidden",
     "With no patch hidden, places are found more often than with three quarters hidden."),
    ("smoothed_places_make_features", "random weights", "smoothing",
     "Features learned from places, with smoothing alone, are better than those of random weights: linear probe."),
    ("the_full_method_makes_features", "random weights", "weights, 0.1",
     "Features learned by the full method, attentive weights included, are better than those of random weights.")
)
_METRIC = {  # metric, unit
    "weights_prefer_ink": ("weight on ink", "% of the weight"),
    "smoothed_places_make_features": ("noto", "% of emoji"),
    "the_full_method_makes_features": ("noto", "% of emoji"),
}
CLAIMS = tuple(
    Claim(id=id, statement=statement, experiment="hide" if method == "nothing hidden" else "train", metric=metric,
          unit=unit, higher_is_better=True, baseline=baseline, method=method, kind="gain" if metric == "noto" else
          "mechanism")
    for id, baseline, method, statement in _ROWS
    for metric, unit in (_METRIC.get(id, ("accuracy", "% of dropped positions")),)
)
# fmt: on

"""EVA: regress an image-text teacher's features at hidden places (Fang et al., CVPR 2023, arXiv 2211.07636).

What should a masked model predict? Pixels make it spend itself on texture, learned codes need a tokeniser. EVA takes
what is lying about: the features of a frozen network that was trained on pictures and their captions (CLIP). Blocks of
patches are replaced by a mask token, a plain vision Transformer sees them all, and a linear layer predicts the
teacher's feature vectors at the hidden places, up to their length. The words make the target mean something, the mask
makes the network look at the whole picture; no pixel, no code and no visible token enters the loss.

    paper, and its code                                      here
    ------------------------------------------------------   -------------------------------
    block-wise masks (`masking_generator.py`)                block_mask (shared)
    mask tokens go through the encoder                       mask_tokens, EVA
    biases for queries and values only                       QVBiasAttention
    negative cosine on hidden tokens                         feature_loss
    a tenth of the gradient for the first layer              scale_gradient, EVA(patch_gradient=)
    the teacher, CLIP ViT-L/14                               ImageText, trained on emoji and words

The teacher of the miniature is trained here, in seconds, on emoji and the words of their names and tags.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslref.augment import random_flip
from sslref.claims import Claim, Experiment
from sslref.data import embedded
from sslref.losses import gather
from sslref.masked import VIT_B, Drawings, drawings, masked_task, picture_source, probe_drawings
from sslref.nn import Block, ConvMap, calibrate_batchnorm, seeded
from sslref.nn.mae import hidden_mean, patchify
from sslref.nn.masks import block_mask
from sslref.nn.numbers import at_least_float32, check_positive
from sslref.nn.vit import check_grid, check_images
from sslref.registry import Paper
from sslref.train import History, Recipe, Task, adamw, fit, recipe_size, warmup_cosine

PAPER = Paper(
    slug="eva",
    title="EVA: Exploring the Limits of Masked Visual Representation Learning at Scale",
    authors=("Yuxin Fang", "Wen Wang", "Binhui Xie", "Quan Sun", "Ledell Wu", "Xinggang Wang", "Tiejun Huang",
             "Xinlong Wang", "Yue Cao"),
    venue="CVPR",
    year=2023,
    arxiv="2211.07636",
    code="https://github.com/baaivision/EVA",
    part="masked",
    data=("emoji",),
    idea="Predict, at hidden places, the features of a teacher that learned from pictures and words.",
    minutes=35,
    needs=("masked autoencoder", "vision Transformer", "contrastive loss"),
)  # fmt: skip

# ----------------------------------------------------------------------------------------------------- the student


def mask_tokens(tokens: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """The mask token at hidden places, the tokens elsewhere.

    Args:
        tokens: (B, N, D). mask: (B, N) bool, True = hidden. mask_token: (D,).

    Raises:
        ValueError: mask of another shape or type.
    """
    _check_mask(mask, tokens)
    return torch.where(mask[..., None], mask_token.to(tokens.dtype), tokens)


def _check_mask(mask: Tensor, tokens: Tensor) -> None:
    if tokens.ndim != 3 or mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
        got = f"{tuple(tokens.shape)} and {mask.dtype} {tuple(mask.shape)}"
        raise ValueError(f"tokens, mask: expected shapes (B, N, D) and (B, N) of bool, got {got}")


def feature_loss(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Minus the mean cosine of prediction and target over the hidden tokens of the whole batch: -1 to 1.

    Args:
        pred: (B, N, D). target: (B, N, D), detached here. mask: (B, N) bool, True = hidden.

    Raises:
        ValueError: shapes differ, or nothing is hidden.
    """
    if pred.shape != target.shape:
        raise ValueError(f"target: expected the shape of pred, {tuple(pred.shape)}, got {tuple(target.shape)}")
    _check_mask(mask, pred)
    if not mask.any():
        raise ValueError("mask: expected at least one hidden token, got none")
    return _mean_over_hidden(pred, target, mask)


def _mean_over_hidden(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    cosine = F.cosine_similarity(at_least_float32(pred), at_least_float32(target.detach()), dim=-1, eps=1e-8)
    return -hidden_mean(cosine, mask)


def scale_gradient(x: Tensor, alpha: float = 0.1) -> Tensor:
    """x itself; its gradient comes back times alpha (`stop_grad_conv1`, from MoCo v3). ValueError: outside [0, 1]."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a number in [0, 1], got {alpha}")
    still = x.detach()
    return still + alpha * (x - still)


class QVBiasAttention(nn.Module):
    """Self-attention whose queries and values have a bias; one of the keys would change nothing.

    A key bias b adds q.b to all scores of a query alike, and the softmax takes it out again. Scores are in float32.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """

    def __init__(self, dim: int, *, num_heads: int = 4):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of the width {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, D / heads)
        with torch.autocast(x.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(*(at_least_float32(part) for part in (q, k, v)))
        return self.proj(mixed.to(qkv.dtype).transpose(1, 2).flatten(2))


class EVA(nn.Module):
    """A plain vision Transformer that sees mask tokens, and a linear layer to the teacher's features.

    Patches, mask tokens at hidden places, a class token in front, learned positions for all, pre-norm blocks,
    LayerNorm, a linear layer. What each block adds starts divided by sqrt(2 l) in block l.

    Args:
        target_dim: width of the teacher's features. patch_gradient: alpha of `scale_gradient` for the embedded patches.

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
        mlp_ratio: float = 4.0,
        target_dim: int = 32,
        patch_gradient: float = 1.0,
    ):
        super().__init__()
        self.image_shape, self.patch_gradient = (in_chans, image_size, image_size), patch_gradient
        self.num_patches = check_grid(image_size, patch_size) ** 2
        self.patch_embed = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.mask_token, self.class_token = (nn.Parameter(torch.empty(embed_dim)) for _ in range(2))
        self.positions = nn.Parameter(torch.empty(1 + self.num_patches, embed_dim))
        blocks = [
            Block(embed_dim, num_heads, mlp_ratio=mlp_ratio, attention=QVBiasAttention(embed_dim, num_heads=num_heads))
            for _ in range(depth)
        ]
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(embed_dim, eps=1e-6)
        for parameter in (self.mask_token, self.class_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.head = nn.Linear(embed_dim, target_dim)  # last, so that students of other targets start alike
        with torch.no_grad():
            for layer, block in enumerate(blocks, 1):
                for last in (block.attention.proj, block.mlp[-1]):
                    last.weight /= math.sqrt(2 * layer)

    def encode(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, N, D) after the final norm, without the class token; arguments as in `forward`."""
        check_images(images, self.image_shape)
        x = scale_gradient(self.patch_embed(images).flatten(2).mT, self.patch_gradient)
        if mask is not None:
            x = mask_tokens(x, mask, self.mask_token)
        x = torch.cat((self.class_token.to(x.dtype).expand(len(x), 1, -1), x), 1) + self.positions
        return self.norm(self.blocks(x))[:, 1:]

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Predicted features of all patches, hidden or not: (B, N, target_dim).

        Args:
            images: (B, C, S, S). mask: (B, N) bool, True = hidden; None shows every patch.
        """
        return self.head(self.encode(images, mask))


Draw = Callable[[int, torch.Generator], Tensor]  # (count, generator) -> pictures
Target = Callable[[Tensor], Tensor]  # pictures -> token features (B, N, D)


def eva_task(model: EVA, draw: Draw, target: Target, masks: Tensor | None, **options: float) -> Task:
    """Pictures, the target's features of the whole pictures, a mask for each; options of `masked_task`.

    Args:
        masks: (L, N) bool, drawn beforehand with `block_mask`, from which each picture takes one. None: nothing is
            hidden and all tokens are compared, which is plain distillation.
    """

    def also(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            features = target(images)
        if masks is None:
            return features, torch.ones(features.shape[:2], dtype=torch.bool, device=images.device)
        rows = torch.randint(len(masks), (len(images),), generator=generator, device=generator.device)
        return features, masks[rows]

    def loss(model: EVA, images: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        return _mean_over_hidden(model(images, None if masks is None else mask), features, mask)

    return masked_task(model, draw, loss, also=also, **options)


# ----------------------------------------------------------------------------------------------------- the teacher


def words_of(data: Drawings) -> tuple[tuple[str, ...], Tensor]:
    """Words of the names and tags of the emoji to learn from, those that two of them or more have.

    Returns:
        The words, and their numbers from 1 for each emoji in the order of `data.pool`: (1400, L) int64, 0 for none.
    """
    emoji, learn = embedded.emoji("all"), set(data.codes[0])
    said = [
        sorted(set(re.findall("[a-z]+", " ".join((name, *tags)).lower())))
        for name, tags, code in zip(emoji.names, emoji.tags, emoji.codes, strict=True)
        if code in learn
    ]
    count = Counter(word for words in said for word in words)
    known = tuple(sorted(word for word in count if count[word] > 1))
    number = {word: i for i, word in enumerate(known, 1)}
    rows = [torch.tensor([number[word] for word in words if word in number], dtype=torch.int64) for words in said]
    return known, nn.utils.rnn.pad_sequence(rows, batch_first=True)


def image_text_loss(images: Tensor, texts: Tensor, names: Tensor, *, temperature: float | Tensor = 0.1) -> Tensor:
    """CLIP's loss: each picture picks its text among all of the batch, and each text its picture; the mean of both.

    Args:
        images, texts: (B, D), row i of one belongs to row i of the other; normalised here.
        names: (B,) int64; rows of one name are no negatives for each other.

    Raises:
        ValueError: shapes, a temperature that is not positive (where it is a number).
    """
    if images.ndim != 2 or images.shape != texts.shape or names.shape != images.shape[:1]:
        got = f"{tuple(images.shape)}, {tuple(texts.shape)} and {tuple(names.shape)}"
        raise ValueError(f"images, texts, names: expected (B, D), (B, D) and (B,), got {got}")
    if not isinstance(temperature, Tensor):
        check_positive(temperature=temperature)
    with torch.autocast(images.device.type, enabled=False):
        images, texts = (F.normalize(at_least_float32(x), dim=1) for x in (images, texts))
        right = torch.arange(len(names), device=names.device)
        double = (names[:, None] == names) & (right[:, None] != right)
        scores = (images @ texts.T / temperature).masked_fill(double, -math.inf)
        return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


class ImageText(nn.Module):
    """The stand-in for CLIP: four convolutions for pictures, a bag of words for texts, 64 numbers for either."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.net = ConvMap(widths=(32, 64, 96, 96), strides=(2, 2, 1, 1))
        self.image_head = nn.Linear(96, 64)
        self.words = nn.EmbeddingBag(vocabulary + 1, 64, mode="mean", padding_idx=0)
        self.text_head = nn.Sequential(nn.ReLU(), nn.Linear(64, 64))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.1)))

    def tokens(self, images: Tensor) -> Tensor:
        """What the last ReLU gets, one vector a patch of 4 pixels: (B, 3, 32, 32) -> (B, 64, 96)."""
        return self.net.layers[-1][:-1](self.net.layers[:-1](images)).flatten(2).mT

    def texts(self, words: Tensor) -> Tensor:
        """Numbers of words (B, L) int64, 0 for none -> (B, 64)."""
        return self.text_head(self.words(words))

    def forward(self, images: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        return self.image_head(self.tokens(images).relu().mean(1)), self.texts(words)


def image_text_task(model: ImageText, pool: Tensor, words: Tensor, *, batch_size: int = 128) -> Task:
    """Pictures (2 M, 3, 32, 32), every emoji drawn by one firm and then by the other, with words (M, L)."""

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.randint(len(pool), (batch_size,), generator=generator, device=generator.device)
        names = rows % len(words)
        return random_flip(pool[rows], generator=generator), words[names], names

    def loss(model: ImageText, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        images, texts = model(batch[0], batch[1])
        temperature = at_least_float32(model.log_temperature).exp()
        return image_text_loss(gather(images), gather(texts), gather(batch[2]), temperature=temperature)

    optimizer = functools.partial(adamw, lr=3e-3, weight_decay=0.05, betas=(0.9, 0.95))
    return Task(model=model, batch=batch, loss=loss, optimizer=optimizer, schedule=warmup_cosine(0.1))


@functools.lru_cache(maxsize=4)  # the arms of a seed share it
def teacher(seed: int | None, device: str = "cpu", *, steps: int = 120) -> ImageText:
    """The teacher of a split of the emoji, frozen; with 0 steps random weights, and batch norms that know the pool."""
    data = drawings(seed, device)
    known, words = words_of(data)
    model = seeded(seed or 0, lambda: ImageText(len(known))).to(device)
    if steps:
        fit(image_text_task(model, data.pool, words.to(device)), steps=steps, seed=seed or 0, device=device)
    else:
        calibrate_batchnorm(model.net, data.pool[::7].split(100))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def standardized(features: Target, pictures: Tensor) -> Target:
    """The same features, each channel with mean 0 and deviation 1 over all tokens of the pictures (B, C, H, W).

    Without it, vectors that share a large mean have a cosine near 1 whatever is predicted.
    """
    std, mean = torch.std_mean(torch.cat([features(part) for part in pictures.split(200)]), dim=(0, 1))
    return lambda images: (features(images) - mean) / std


def recipe(
    source: Path | None = None, *, batch_size: int | None = None, device: str = "cpu", size: str | None = None
) -> Recipe:
    """EVA's schedule for a ViT-B/16 on a folder, 150 epochs, or the miniature on emoji with a teacher trained first.

    Args:
        source: folder with one subfolder of images a class, and beside them `teacher.pt2`, an exported program (see
            `torch.export.save`) that gives the features of 14 x 14 patches, (B, 196, D), of pictures
            (B, 3, 224, 224) in [0, 1]: CLIP's vision tower, say. None: the embedded emoji.

    Raises:
        DataError: no such program. ValueError: it gives another number of vectors.
    """
    size = recipe_size(size, source)
    draw, count, pixels = picture_source(source, size, device)
    target = targets("teacher", None, device) if pixels == 32 else _exported(Path(source) / "teacher.pt2", device)
    features = target(draw(1, torch.Generator(device).manual_seed(0)))
    patches, width = (pixels // (16 if pixels == 224 else 4)) ** 2, features.shape[-1]
    if features.shape != (1, patches, width):
        raise ValueError(f"teacher: expected features (B, {patches}, D), got {tuple(features.shape)} of one picture")
    if size == "miniature":
        batch_size, steps, options, model = batch_size or 64, 150, {"lr": 2e-3}, student(0, width)
    else:
        batch_size = batch_size or 4096
        steps, options = math.ceil(150 * count / batch_size), {"lr": 1e-3 * batch_size / 4096, "warmup": 2 / 150}
        sizes = VIT_B | {"image_size": pixels, "patch_size": 16 if pixels == 224 else 4, "patch_gradient": 0.1}
        model = seeded(0, lambda: EVA(target_dim=width, **sizes))
    masks = mask_bank(math.isqrt(model.num_patches), 0, device)
    task = eva_task(model.to(device), draw, target, masks, batch_size=batch_size, **options)
    about = f"EVA on {count:,} images of {pixels} pixels, 40 % of the patches hidden, targets of {width} numbers"
    return Recipe(task=task, steps=steps, batch_size=batch_size, about=about)


def _exported(file: Path, device: str) -> Target:
    from torch.export.passes import move_to_device_pass

    if not file.is_file():
        raise embedded.DataError(
            f"{file}: expected the teacher, an exported program (torch.export.save), found nothing"
        )
    return move_to_device_pass(torch.export.load(file), device).module()


def mask_bank(side: int, seed: int, device: str = "cpu", *, count: int = 4096, ratio: float = 0.4) -> Tensor:
    """Block masks drawn beforehand, since to draw them is to wait for the device: (count, side^2) bool."""
    generator = torch.Generator().manual_seed(seed)
    least = max(1, side**2 // 16)  # 16 of the 256 patches of the paper
    return block_mask(count, (side, side), mask_ratio=ratio, min_block=least, generator=generator).to(device)


# -------------------------------------------------------------------------------------------------- the miniature


def student(seed: int, width: int) -> EVA:
    """Three blocks of width 64 on 8 x 8 patches of 4 pixels; only the head knows the width of the target."""
    return seeded(seed, lambda: EVA(depth=3, target_dim=width))


@functools.lru_cache(maxsize=4)
def targets(name: str, seed: int | None, device: str = "cpu", *, steps: int = 120) -> Target:
    """Standardised targets of a split: "pixels" of each patch, or the features of a "teacher" or an "untrained" one."""
    if name == "pixels":
        return standardized(lambda images: patchify(images, 4), drawings(seed, device).pool)
    network = teacher(seed, device, steps=0 if name == "untrained" else steps)
    return standardized(network.tokens, drawings(seed, device).pool)


def pretrain(
    arm: str,
    *,
    seed: int,
    device: str = "cpu",
    steps: int,
    teacher_steps: int = 120,
    batch_size: int = 64,
    progress: bool | Callable = False,
) -> tuple[EVA, Target, History]:
    """One student with its target; those of a seed share emoji, first weights, pictures and masks.

    Args:
        arm: the target's name, or "no mask", which distils the teacher's features at all places of the whole picture.
    """
    target = targets("teacher" if arm == "no mask" else arm, seed, device, steps=teacher_steps)
    data = drawings(seed, device)
    masks = None if arm == "no mask" else mask_bank(8, seed, device)
    model = student(seed, target(data.noto[:1]).shape[2]).to(device)
    task = eva_task(model, data.sample, target, masks, batch_size=batch_size, lr=2e-3)
    history = fit(task, steps=steps, seed=seed, device=device, progress=progress)
    return model.eval(), target, history


@torch.no_grad()
def mean_per_place(target: Target, pictures: Tensor) -> Tensor:
    """The best guess that does not look: the mean direction of the features at each place, (N, D)."""
    return sum(F.normalize(target(part), dim=-1).sum(0) for part in pictures.split(200)) / len(pictures)


@functools.lru_cache(maxsize=4)  # arms share it
def _guess(name: str, seed: int, device: str, *, steps: int) -> Tensor:
    return mean_per_place(targets(name, seed, device, steps=steps), drawings(seed, device).pool)


def run_student(arm: str, *, seed: int, device: str, steps: int, teacher_steps: int, batch_size: int) -> dict:
    """Train a teacher and a student, hide parts of held-out emoji, then probe.

    Returns:
        cosine: of prediction and target at hidden places of held-out Noto emoji. guess: the same of `mean_per_place`.
        whole: of all places of the whole picture. noto, twemoji: linear probe of nine categories, per cent.
    """
    data = drawings(seed, device)
    hidden = mask_bank(8, seed + 10**6, device, count=len(data.noto))
    if arm == "random weights":
        return probe_drawings(student(seed, 1).to(device).eval().encode, data)
    name = "teacher" if arm in ("mean per place", "no mask", "teacher itself") else arm
    target = targets(name, seed, device, steps=teacher_steps)
    if arm == "teacher itself":
        return probe_drawings(target, data)
    if arm != "mean per place":
        train = {"steps": steps, "teacher_steps": teacher_steps, "batch_size": batch_size}
        model, _, _ = pretrain(arm, seed=seed, device=device, **train)
    with torch.no_grad():
        truth = target(data.noto)
        guess = _guess(name, seed, device, steps=teacher_steps).expand_as(truth)
        guess = -feature_loss(guess, truth, hidden).item()
        if arm == "mean per place":
            return {"cosine": guess}
        scores = {"cosine": -feature_loss(model(data.noto, hidden), truth, hidden).item(), "guess": guess}
        scores["whole"] = -feature_loss(model(data.noto), truth, torch.ones_like(hidden)).item()
    return scores | probe_drawings(model.encode, data)


_SPENT = {"smoke": (2, 2, 2, 8), "ci": (1, 8, 40, 16), "ledger": (10, 150, 100, 48), "gpu": (32, 4000, 1000, 64)}
_ARMS = ("mean per place", "random weights", "pixels", "untrained", "teacher", "no mask", "teacher itself")
_NAMES = ("seeds", "steps", "teacher_steps", "batch_size")
_BUDGETS = {profile: dict(zip(_NAMES, spent, strict=True)) for profile, spent in _SPENT.items()}
EXPERIMENTS = {"students": Experiment(run_student, _ARMS, _BUDGETS)}


_GAIN = {"metric": "twemoji", "unit": "% of emoji", "kind": "gain"}
# fmt: off
_ROWS = (  # id, baseline, ablations, statement about the student of the teacher's features, options
    ("the_picture_tells_the_features", "mean per place", (),
     "At hidden places of unseen emoji its predictions are nearer than the mean direction of the features there.",
     {"metric": "cosine", "unit": "cosine"}),
    ("features_beat_pixels", "pixels", ("random weights",),
     "On the other firm's drawings, the teacher's features as a target make better features than pixels.", _GAIN),
    ("the_words_matter", "untrained", ("teacher itself",),
     "They also make better ones, there, than features of the same teacher before it was trained.", _GAIN),
    ("masks_beat_plain_distillation", "no mask", (),
     "Predicting them at hidden places makes better features than copying all of them with nothing hidden, "
     "in as many steps.", _GAIN),
)
# fmt: on
CLAIMS = tuple(
    Claim(
        id=id,
        statement=statement,
        experiment="students",
        higher_is_better=True,
        baseline=baseline,
        method="teacher",
        ablations=ablations,
        **options,
    )
    for id, baseline, ablations, statement, options in _ROWS
)  # fmt: skip

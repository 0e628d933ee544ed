"""ExtreMA: extreme masking for learning instance and distributed visual representations.

Z. Wu, Z. Lai, X. Sun, S. Lin, TMLR 2023, arXiv 2206.04667; official code: microsoft/ExtreMA.

Masking serves as the augmentation of a siamese network. A student sees 10 to 25 % of a picture's tokens, a slow copy of
it, the teacher, sees all; the student's one vector for its part must predict the teacher's one vector for the whole.
The tokens talk among themselves in the trunk; class attention on top reads them into that vector and never writes back,
so that one network gives both an instance and a distributed representation. A view costs a fifth of a picture, so
several disjoint views share one pass of the teacher.

    section 3.1  sample_masks, view_cost          section 3.3, Eq. 3  extrema_loss, ema_momentum, Extrema
    section 3.2  ClassAttentionBlock, ExtremaEncoder
"""

import functools
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sslref.augment import crop_and_resize, random_crop_boxes, random_flip
from sslref.claims import Claim, Experiment
from sslref.data import folders
from sslref.evaluate import accuracy, linear_probe, standardize
from sslref.losses import byol_loss
from sslref.nn import Block, EMATeacher, cosine_schedule, seeded
from sslref.nn.mae import patchify, select, sincos_2d
from sslref.registry import Paper
from sslref.train import History, Recipe, Task, fit, recipe_size, warmup_cosine

PAPER = Paper(
    slug="extrema",
    title="Extreme Masking for Learning Instance and Distributed Visual Representations",
    authors=("Zhirong Wu", "Zihang Lai", "Xiao Sun", "Stephen Lin"),
    venue="TMLR",
    year=2023,
    arxiv="2206.04667",
    code="https://github.com/microsoft/ExtreMA",
    part="joint_embedding",
    data=("digits",),
    idea="From a few visible patches of a picture predict what a slow copy of the network makes of all of them.",
    minutes=35,
    needs=("simclr",),
)


# --------------------------------------------------------------------------------------------------- extreme masking


def num_visible(num_tokens: int, mask_ratio: float) -> int:
    """V = floor(N (1 - r)), with a guard against rounding: int(10 * (1 - 0.9)) is 0. Errors as `sample_masks`."""
    if num_tokens < 1:
        raise ValueError(f"num_tokens: expected at least 1, got {num_tokens}")
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio: expected a number in [0, 1), got {mask_ratio}")
    count = int(num_tokens * (1 - mask_ratio) + 1e-6)
    if count < 1:
        raise ValueError(f"mask_ratio: expected a visible token at least, got {mask_ratio} of {num_tokens} hidden")
    return count


def sample_masks(
    batch: int,
    num_tokens: int,
    *,
    mask_ratio: float = 0.8,
    num_masks: int = 5,
    disjoint: bool = True,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The *visible* tokens of each view; elsewhere in this book a mask says what is hidden.

    Args:
        batch: B pictures, each with a random order of its own. num_tokens: N of a picture.
        mask_ratio: share r that is hidden. num_masks: M views of a picture.
        disjoint: view i takes the places iV to (i + 1)V - 1 of one order, so that no token is in two views of a
            picture; else every view has an order of its own.
        device: of the result; by default the generator's.

    Returns:
        int64 (M, B, V), V = int(N (1 - r) + 1e-6).

    Raises:
        ValueError: mask_ratio outside [0, 1), V < 1, a size below 1, disjoint and M V > N.
    """
    for name, value in (("batch", batch), ("num_masks", num_masks)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    count = num_visible(num_tokens, mask_ratio)
    if disjoint and num_masks * count > num_tokens:
        raise ValueError(f"num_masks: expected at most {num_tokens // count} disjoint views, got {num_masks}")
    orders = 1 if disjoint else num_masks
    source = device if generator is None else generator.device
    order = torch.rand(orders, batch, num_tokens, generator=generator, device=source).argsort(2)
    kept = order[:, :, : num_masks * count // orders].unflatten(2, (-1, count))  # (orders, B, M / orders, V)
    return kept.transpose(1, 2).flatten(0, 1).to(source if device is None else device)


class Cost(NamedTuple):
    linear: float  # of the MLPs and projections, which see every token on its own: M V / N
    quadratic: float  # of comparing tokens with each other in attention: M V^2 / N^2


def view_cost(num_tokens: int, *, mask_ratio: float, num_masks: int = 1) -> Cost:
    """What a trunk spends on M views of a picture, as a share of what it spends on the whole picture."""
    share = num_visible(num_tokens, mask_ratio) / num_tokens
    return Cost(num_masks * share, num_masks * share**2)


# ------------------------------------------------------------------------ one network, two kinds of representation


class ClassAttention(nn.Module):
    """Attention with a single query, the class vector, over [class; tokens]: the class row has key and value too."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of the width {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def _heads(self, layer: nn.Linear, u: Tensor) -> Tensor:
        return layer(u).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, rows, D / heads)

    def weights(self, u: Tensor) -> Tensor:
        """(B, 1 + N, D) -> (B, heads, 1 + N): how the class vector shares out its attention, itself first."""
        q, k = self._heads(self.q, u[:, :1]), self._heads(self.k, u)
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).squeeze(2)

    def forward(self, u: Tensor) -> Tensor:
        """(B, 1 + N, D) -> (B, 1, D)."""
        parts = self._heads(self.q, u[:, :1]), self._heads(self.k, u), self._heads(self.v, u)
        return self.proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class ClassAttentionBlock(nn.Module):
    """Reads tokens into the class vector c; the tokens stay as they are (section 3.2, after CaiT).

        u = LN1([c; tokens]),   c <- c + gamma_1 * CA(u),   c <- c + gamma_2 * MLP(LN2(c))

    Args:
        layer_scale: start of the learned factors gamma, 0.1 for ViT-B.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """

    def __init__(self, dim: int, *, num_heads: int, mlp_ratio: float = 4.0, layer_scale: float = 0.1):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.attn = ClassAttention(dim, num_heads)
        fc1, fc2 = nn.Linear(dim, int(dim * mlp_ratio)), nn.Linear(int(dim * mlp_ratio), dim)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, gelu=nn.GELU(), fc2=fc2))
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((dim,), float(layer_scale))) for _ in range(2))

    def joined(self, tokens: Tensor, cls: Tensor) -> Tensor:
        """What class attention reads: (B, N, D), (B, 1, D) -> (B, 1 + N, D)."""
        return self.norm1(torch.cat([cls, tokens], 1))

    def forward(self, tokens: Tensor, cls: Tensor) -> Tensor:
        """(B, N, D), (B, 1, D) -> (B, 1, D)."""
        cls = cls + self.gamma_1 * self.attn(self.joined(tokens, cls))
        return cls + self.gamma_2 * self.mlp(self.norm2(cls))


class Encoded(NamedTuple):
    cls: Tensor  # (M*B, D) instance representation
    tokens: Tensor  # (M*B, V, D) distributed representation


class ExtremaEncoder(nn.Module):
    """Pre-norm blocks on the visible tokens alone, then class attention.

    Args:
        num_tokens, token_dim: N patches of a picture, each of so many numbers.
        depth, class_depth: blocks of the trunk; of class attention.
        layer_scale: as `ClassAttentionBlock`.

    Raises:
        ValueError: sizes that do not divide.
    """

    def __init__(
        self,
        num_tokens: int,
        token_dim: int,
        *,
        embed_dim: int = 64,
        depth: int = 2,
        class_depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        layer_scale: float = 0.1,
    ):
        super().__init__()
        self.num_tokens, self.token_dim, self.embed_dim = num_tokens, token_dim, embed_dim
        self.embed = nn.Linear(token_dim, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.blocks = nn.Sequential(*(Block(embed_dim, num_heads, mlp_ratio=mlp_ratio) for _ in range(depth)))
        options = {"num_heads": num_heads, "mlp_ratio": mlp_ratio, "layer_scale": layer_scale}
        self.class_blocks = nn.ModuleList(ClassAttentionBlock(embed_dim, **options) for _ in range(class_depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=0.02)
        side = math.isqrt(num_tokens)
        if side**2 == num_tokens:
            positions = sincos_2d(embed_dim, (side, side))
        else:  # on a line: the half that belongs to the column
            positions = sincos_2d(2 * embed_dim, (1, num_tokens))[:, :embed_dim]
        self.register_buffer("positions", positions.to(self.cls_token), persistent=False)

    def trunk(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """What self-attention makes of the visible tokens: (M*B, V, D), before the final norm. As `forward`."""
        expected = (self.num_tokens, self.token_dim)
        if tokens.ndim != 3 or tokens.shape[1:] != expected:
            raise ValueError(f"tokens: expected shape (B, {expected[0]}, {expected[1]}), got {tuple(tokens.shape)}")
        x = self.embed(tokens) + self.positions  # before tokens are dropped, so that each keeps its own place
        if visible is not None:
            views = visible[None] if visible.ndim == 2 else visible
            if views.ndim != 3 or views.shape[1] != len(tokens) or not views.numel():
                expected = f"(M, {len(tokens)}, V) or ({len(tokens)}, V)"
                raise ValueError(f"visible: expected shape {expected}, got {tuple(visible.shape)}")
            if views.dtype != torch.int64:
                raise TypeError(f"visible: expected the int64 indices of visible tokens, got {visible.dtype}")
            x = select(x, views.transpose(0, 1).flatten(1)).unflatten(1, (len(views), -1))
            x = x.transpose(0, 1).flatten(0, 1)  # mask-major: all pictures of view 0, then of view 1
        return self.blocks(x)

    def _classes(self, x: Tensor) -> list[Tensor]:
        """The class vector before the first and after every class block."""
        states = [self.cls_token.expand(len(x), -1, -1)]
        for block in self.class_blocks:
            states.append(block(x, states[-1]))
        return states

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Encoded:
        """Encode M views of every picture.

        Args:
            tokens: (B, N, token_dim) patches.
            visible: int64 (M, B, V) or (B, V), indices of the visible tokens; None: all.

        Returns:
            Encoded: rows iB to (i + 1)B - 1 are view i. Both after the final norm.

        Raises:
            ValueError: another number or width of tokens, visible of another batch. TypeError: visible is not int64.
        """
        x = self.trunk(tokens, visible)
        return Encoded(self.norm(self._classes(x)[-1]).squeeze(1), self.norm(x))

    def attention(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """(M*B, heads, 1 + V): attention of the class vector in the last class block, itself first."""
        x = self.trunk(tokens, visible)
        block = self.class_blocks[-1]
        return block.attn.weights(block.joined(x, self._classes(x)[-2]))


# --------------------------------------------------------------------------------------- the whole from a part


def extrema_loss(q: Tensor, k: Tensor, *, num_masks: int) -> Tensor:
    """Squared distance of unit vectors, 2 - 2 cos, of every view's prediction to the teacher's vector of its picture.

    Args:
        q: (M*B, D) predictions, mask-major. k: (B, D) of the teacher, detached here. Both are normalised here.
        num_masks: M.

    Returns:
        Scalar, mean over views and pictures.

    Raises:
        ValueError: rows or widths do not fit, num_masks < 1.
    """
    if num_masks < 1:
        raise ValueError(f"num_masks: expected at least 1, got {num_masks}")
    if k.ndim != 2 or not len(k) or q.shape != (num_masks * len(k), k.shape[1]):
        expected = f"({num_masks}*B, D) and (B, D) with B >= 1"
        raise ValueError(f"q, k: expected shapes {expected}, got {tuple(q.shape)} and {tuple(k.shape)}")
    return byol_loss(q, k.repeat(num_masks, 1))


def ema_momentum(step: int, total_steps: int, *, base: float = 0.996) -> float:
    """Momentum of the teacher: from `base` along half a cosine to 1. Raises ValueError: step outside [0, total]."""
    if not 0 <= step <= total_steps:
        raise ValueError(f"step: expected 0 to total_steps = {total_steps}, got {step}")
    return cosine_schedule(step, total_steps, base=base, final=1.0)


def head(in_dim: int, hidden: int, out_dim: int, *, num_layers: int, norm: str = "layer") -> nn.Sequential:
    """Linear layers with norm and GELU between. norm: "layer" in the paper, "batch" in the miniature.

    Raises:
        ValueError: another norm.
    """
    norms = {"layer": functools.partial(nn.LayerNorm, eps=1e-6), "batch": nn.BatchNorm1d}
    if norm not in norms:
        raise ValueError(f'norm: expected "layer" or "batch", got {norm!r}')
    sizes = [in_dim] + [hidden] * (num_layers - 1)
    inner = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), norms[norm](b), nn.GELU())]
    return nn.Sequential(*inner, nn.Linear(sizes[-1], out_dim))


class Branch(nn.Module):
    """Encoder, and a head on its instance vector."""

    def __init__(self, encoder: ExtremaEncoder, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(tokens, visible).cls)


class Output(NamedTuple):
    q: Tensor  # (M*B, D) the student's predictions, from parts
    k: Tensor  # (B, D) the teacher's vectors, from wholes


class Extrema(nn.Module):
    """Student: encoder, projector (3 layers), predictor (2 layers). Teacher: slow copy of encoder and projector."""

    def __init__(
        self,
        encoder: ExtremaEncoder,
        *,
        hidden: int = 4096,
        out_dim: int = 256,
        norm: str = "layer",
        momentum: float = 0.996,
    ):
        super().__init__()
        projector = head(encoder.embed_dim, hidden, out_dim, num_layers=3, norm=norm)
        predictor = head(out_dim, hidden, out_dim, num_layers=2, norm=norm)
        self.student = Branch(encoder, nn.Sequential(projector, predictor))
        self.teacher = EMATeacher(self._followed(), momentum=momentum)

    def _followed(self) -> Branch:
        return Branch(self.student.encoder, self.student.head[0])

    def forward(self, tokens: Tensor, visible: Tensor) -> Output:
        return Output(self.student(tokens, visible), self.teacher(tokens))

    def follow(self, step: int, steps: int) -> None:
        """Move the teacher after a step, with the next step's momentum.

        The official code moves it at the start of a step, before its forward pass. That gives the same teachers: its
        first move finds both networks equal, our last one has momentum 1.
        """
        self.teacher.update(self._followed(), momentum=ema_momentum(step + 1, steps, base=self.teacher.momentum))


def _spread(k: Tensor) -> Tensor:
    return F.normalize(k, dim=1).var(0, correction=0).sum().sqrt()


def predict_whole(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Loss of one batch, and how far the teacher's unit vectors spread: 0 if all are equal, 1 if evenly in all axes.

    Args:
        batch: tokens (B, N, token_dim); visible (B, M, V), the picture first, so that processes can divide it.
    """
    tokens, visible = batch
    q, k = model(tokens, visible.transpose(0, 1))
    return {"loss": extrema_loss(q, k, num_masks=visible.shape[1]), "spread": _spread(k)}


def adamw(model: nn.Module, *, lr: float, weight_decay: float = 0.1) -> torch.optim.Optimizer:
    """AdamW with the paper's betas; no decay for biases, norms, layer scale and the class vector."""
    trained = list(model.student.parameters())
    matrices = [p for p in trained if p.ndim == 2]
    others = [p for p in trained if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def task(
    model: Extrema,
    draw: Callable[[int, torch.Generator], Tensor],
    *,
    batch_size: int,
    lr: float,
    warmup: float,
    mask_ratio: float = 0.8,
    num_masks: int = 5,
    disjoint: bool = True,
) -> Task:
    """What `train.fit` trains.

    Args:
        draw: (batch size, generator) -> tokens (B, N, token_dim) on the generator's device.
        warmup: share of the steps in which the learning rate rises; it then falls along a cosine to 0.
    """
    masks = {"mask_ratio": mask_ratio, "num_masks": num_masks, "disjoint": disjoint}

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = draw(batch_size, generator)
        visible = sample_masks(*tokens.shape[:2], **masks, generator=generator)
        return tokens, visible.transpose(0, 1)

    return Task(
        model=model,
        batch=batch,
        loss=predict_whole,
        optimizer=functools.partial(adamw, lr=lr),
        schedule=warmup_cosine(warmup),
        after_step=lambda model, step, steps: model.follow(step, steps),
    )


def recipe(
    source: Path | None = None, *, batch_size: int | None = None, device: str = "cpu", size: str | None = None
) -> Recipe:
    """What `sslref train extrema` trains.

    Args:
        source: CIFAR-10's binary version, or a folder with one subfolder of images a class; None: optical digits.
        batch_size: in place of 512 ("paper"), where the learning rate grows with it, or 64 ("miniature").
        size: "paper" is the paper's recipe (five views of 20 %, crops, no colour augmentation, LayerNorm heads) with
            ViT-Ti/4 at 32 pixels, 200 epochs and no drop path; "miniature" this chapter's. By default by the source.

    Raises:
        ValueError: unknown size, "paper" without a source. DataError: source is not what is expected.
    """
    if recipe_size(size, source) == "miniature":
        batch_size, tokens = batch_size or 64, digits(0, device=device).train.tokens
        model = seeded(0, lambda: Extrema(ExtremaEncoder(16, 4, **NET), **HEADS, norm="batch"))
        job = task(model, _draw(tokens), batch_size=batch_size, mask_ratio=0.75, num_masks=4, **MINIATURE)
        return Recipe(job, 350, batch_size, f"ExtreMA, miniature: {len(tokens):,} digits, four views of a quarter")
    if source is None:
        raise ValueError('source: expected a path for the size "paper", got None')
    batch_size, found = batch_size or 512, folders.pictures(source, 32, device=device)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        x = found.images(torch.randint(len(found), (count,), generator=generator, device=generator.device))
        boxes = random_crop_boxes(count, 32, 32, scale=(0.2, 1.0), generator=generator)
        x = random_flip(crop_and_resize(x, boxes.to(x.device), 32), generator=generator)
        return patchify((x - 0.45) / 0.22, 4)

    model = seeded(0, lambda: Extrema(ExtremaEncoder(64, 48, embed_dim=192, depth=12, num_heads=3)))
    job = task(model, draw, batch_size=batch_size, lr=1.5e-4 * batch_size / 256, warmup=40 / 300)
    about = f"ExtreMA, paper's recipe with ViT-Ti/4, {len(found):,} pictures ({found.name})"
    return Recipe(job, max(1, 200 * len(found) // batch_size), batch_size, about)


# ------------------------------------------------------------------------------------ the claim in miniature: digits

NET = {"embed_dim": 48, "depth": 1, "class_depth": 1, "num_heads": 3, "mlp_ratio": 2.0, "layer_scale": 1.0}
HEADS = {"hidden": 128, "out_dim": 64, "momentum": 0.98}
MINIATURE = {"lr": 3e-3, "warmup": 0.1}


class Part(NamedTuple):
    images: Tensor  # (B, 1, 8, 8) in [0, 1]
    tokens: Tensor  # (B, 16, 4) patches of 2x2, each of the four entries standardised by the training part
    labels: Tensor  # (B,)


class Digits(NamedTuple):
    train: Part  # 1,200 pictures
    test: Part  # the other 597


def digits(seed: int, *, device: str = "cpu") -> Digits:
    """The optical digits of scikit-learn, 8x8 pixels, divided at random by a seed."""
    from sklearn.datasets import load_digits

    pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    images = pixels[order].float().view(-1, 1, 8, 8) / 16
    patches = patchify(images, 2)
    std, mean = torch.std_mean(patches[:1200], dim=(0, 1), correction=0)
    every = [t.to(device) for t in (images, (patches - mean) / std, labels[order])]
    return Digits(Part(*(t[:1200] for t in every)), Part(*(t[1200:] for t in every)))


class Arm(NamedTuple):
    mask_ratio: float = 0.75
    num_masks: int = 1
    length: float = 1.0  # factor on the steps
    norm: str = "batch"  # in the heads


ARMS = {
    "random weights": Arm(0.0, length=0.0),
    "r = 0": Arm(0.0),
    "r = 0.25": Arm(0.25),
    "r = 0.5": Arm(0.5),
    "r = 0.75": Arm(),
    "r = 0.5, 2 views": Arm(0.5, 2),
    "r = 0.75, 4 views": Arm(num_masks=4),
    "r = 0.75, longer": Arm(length=16 / 7),  # as many token passes as with 4 views
    "LayerNorm heads": Arm(num_masks=4, norm="layer"),
}


def _draw(pictures: Tensor) -> Callable[[int, torch.Generator], Tensor]:
    """(batch size, generator) -> so many of the pictures, none twice."""
    count = len(pictures)
    return lambda size, generator: pictures[torch.randperm(count, generator=generator, device=generator.device)[:size]]


def token_passes(num_tokens: int, *, mask_ratio: float, num_masks: int) -> int:
    """Tokens that pass a trunk for one picture in one step: the teacher's N, and the student's, whose backward pass
    costs about two forward passes."""
    return num_tokens + 3 * num_masks * num_visible(num_tokens, mask_ratio)


class Trained(NamedTuple):
    model: Extrema
    history: History | None
    digits: Digits


_KEPT: dict[tuple, Trained] = {}  # a chapter shows what its claims used


def pretrain(
    arm: str, *, seed: int = 0, device: str = "cpu", steps: int = 350, batch_size: int = 64, progress=False
) -> Trained:
    """The network of an arm, with the data split, the initial weights and the batches of a seed, in evaluation mode.

    Raises:
        ValueError: unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"arm: expected one of {', '.join(ARMS)}, got {arm!r}")
    ratio, views, length, norm = ARMS[arm]
    key = (arm, seed, device, steps, batch_size)
    if key not in _KEPT:
        data, history = digits(seed, device=device), None
        model = seeded(seed, lambda: Extrema(ExtremaEncoder(16, 4, **NET), **HEADS, norm=norm)).to(device)
        if length:
            job = task(
                model, _draw(data.train.tokens), batch_size=batch_size, mask_ratio=ratio, num_masks=views, **MINIATURE
            )
            history = fit(job, steps=round(length * steps), seed=seed, device=device, log_every=10, progress=progress)
        while len(_KEPT) >= 12:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = Trained(model.eval(), history, data)
    return _KEPT[key]


@torch.no_grad()
def measure(model: Extrema, data: Digits) -> dict[str, float]:
    """What the teacher's encoder knows of test digits.

    Returns:
        probe, token_probe: accuracy, in %, of a linear probe on the instance vector; on the mean of the tokens.
        found: share, in %, of test digits whose quarter finds them, by cosine, among the instance vectors of all.
        spread: of the teacher's unit vectors, as `predict_whole`.
    """
    encoder = model.teacher.module.encoder
    train, test = (encoder(part.tokens) for part in data)
    logits = (
        linear_probe(x, data.train.labels, y, C=0.1)
        for x, y in (standardize(train.cls, test.cls), standardize(train.tokens.mean(1), test.tokens.mean(1)))
    )
    probe, token_probe = (100 * accuracy(rows, data.test.labels) for rows in logits)
    count = len(test.cls)
    quarter = sample_masks(count, 16, mask_ratio=0.75, num_masks=1, generator=torch.Generator().manual_seed(0))
    part = encoder(data.test.tokens, quarter.to(test.cls.device)).cls
    nearest = (F.normalize(part, dim=1) @ F.normalize(test.cls, dim=1).T).argmax(1)
    found = 100 * (nearest == torch.arange(count, device=nearest.device)).double().mean().item()
    spread = _spread(model.teacher(data.test.tokens)).item()
    return {"probe": probe, "token_probe": token_probe, "found": found, "spread": spread}


def run(arm: str, *, seed: int, device: str, **budget) -> dict[str, float]:
    """One arm of the experiment with one seed: metrics of `measure`."""
    model, _, data = pretrain(arm, seed=seed, device=device, **budget)
    return measure(model, data)


# ------------------------------------------------------------------------------- how noisy is the gradient, exactly


def view_gradients(model: Extrema, tokens: Tensor, subsets: Tensor) -> Tensor:
    """Gradient of the loss of one picture by all weights of the student, for each of its possible views.

    Args:
        tokens: (1, N, token_dim). subsets: int64 (S, V), e.g. all of `torch.combinations(torch.arange(N), V)`.

    Returns:
        (S, P). Only with LayerNorm heads do the views of a batch not see each other.
    """
    weights = {name: w.detach() for name, w in model.student.named_parameters()}
    k = model.teacher(tokens)

    def loss(weights: dict[str, Tensor], visible: Tensor) -> Tensor:
        q = torch.func.functional_call(model.student, weights, (tokens, visible[None]))
        return extrema_loss(q, k, num_masks=1)

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), chunk_size=260)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of a CPU know no vmap
        return torch.cat([g.flatten(1) for g in each(weights, subsets).values()], 1)


class Moments(NamedTuple):
    variance: float  # of one view's gradient, summed over the weights
    covariance: float  # of two views without a common token

    def of_mean(self, views: int, *, disjoint: bool) -> float:
        """Variance of the mean gradient of so many views of a picture."""
        return self.variance / views + disjoint * (1 - 1 / views) * self.covariance


def moments(gradients: Tensor, subsets: Tensor) -> Moments:
    """Exact, over all views (S, V) int64 with gradients (S, P): nothing is sampled."""
    centred = gradients - gradients.mean(0)
    member = F.one_hot(subsets).sum(1).to(centred)
    apart, products = member @ member.T == 0, centred @ centred.T
    return Moments(products.diagonal().mean().item(), ((products * apart).sum() / apart.sum()).item())


SAMPLING = {"1 view": (1, False), "4 independent": (4, False), "2 disjoint": (2, True), "4 disjoint": (4, True)}


@functools.lru_cache(maxsize=4)
def picture_moments(seed: int, device: str, pictures: int) -> list[Moments]:
    """For so many digits, over all 1,820 views of 4 of 16 tokens, in a small network that is not trained."""
    subsets = torch.combinations(torch.arange(16, device=device), 4)
    sizes = NET | {"embed_dim": 16, "num_heads": 2}
    model = seeded(seed, lambda: Extrema(ExtremaEncoder(16, 4, **sizes), hidden=32, out_dim=16)).to(device)
    tokens = digits(seed, device=device).train.tokens[:pictures]
    return [moments(view_gradients(model, one[None], subsets), subsets) for one in tokens]


def run_gradient(arm: str, *, seed: int, device: str, pictures: int) -> dict[str, float]:
    """Variance of the gradient of a fixed batch, in % of what one view of each picture leaves."""
    views, disjoint = SAMPLING[arm]
    found = picture_moments(seed, device, pictures)
    left = sum(m.of_mean(views, disjoint=disjoint) for m in found)
    return {"variance": 100 * left / sum(m.variance for m in found)}


_TINY, _GPU = {"steps": 2, "batch_size": 16}, {"steps": 4000, "batch_size": 256}
# fmt: off
EXPERIMENTS = {
    name: Experiment(run=function, arms=arms, budgets=dict(zip(("smoke", "ci", "ledger", "gpu"), budgets, strict=True)))
    for name, function, arms, budgets in (
        ("masks", run, tuple(ARMS), (
            {"seeds": 2, **_TINY}, {"seeds": 1, "steps": 100}, {"seeds": 10, "steps": 350}, {"seeds": 16, **_GPU},
        )),
        ("gradient", run_gradient, tuple(SAMPLING), (
            {"seeds": 2, "pictures": 1}, {"seeds": 1, "pictures": 1},
            {"seeds": 10, "pictures": 2}, {"seeds": 16, "pictures": 16},
        )),
        ("longer", run, ("random weights", "r = 0", "r = 0.75, 4 views"), (  # no claim rests on it
            {"seeds": 1, **_TINY}, {"seeds": 1, **_TINY}, {"seeds": 2, "steps": 1050}, {"seeds": 4, "steps": 12000},
        )),
    )
}

_FOUR = "r = 0.75, 4 views"
_ROWS = (  # id, experiment, metric, whether more is better, baseline, method, kind, statement
    ("variance", "gradient", "variance", False, "4 independent", "4 disjoint", "mechanism",
     "At a fixed batch the gradient of four disjoint views varies less than that of four independent ones."),
    ("more_views", "gradient", "variance", False, "1 view", "4 disjoint", "mechanism",
     "At a fixed batch the gradient of four disjoint views varies less than that of one view."),
    ("found", "masks", "found", True, "r = 0", _FOUR, "mechanism",
     "After training on parts, a quarter of a picture finds that picture among 597 more often than without masking."),
    ("collapse", "masks", "spread", True, "LayerNorm heads", _FOUR, "mechanism",
     "At this size the teacher's vectors stay apart with batch norm in the heads, and not with LayerNorm."),
    ("masking", "masks", "probe", True, "r = 0", "r = 0.75", "gain",
     "For equal pictures, one view of a quarter makes a better instance vector for a linear probe than no masking."),
    ("masking_equal_cost", "masks", "probe", True, "r = 0", _FOUR, "gain",
     "For equal token passes, four quarters make a better instance vector for a linear probe than no masking."),
    ("masking_tokens", "masks", "token_probe", True, "r = 0", _FOUR, "gain",
     "For equal token passes, four quarters make better tokens (their mean, linear probe) than no masking."),
    ("views", "masks", "probe", True, "r = 0.75", _FOUR, "gain",
     "For equal pictures, four quarters make a better instance vector for a linear probe than one."),
    ("views_equal_cost", "masks", "probe", True, "r = 0.75, longer", _FOUR, "gain",
     "For equal token passes, four quarters make a better instance vector for a linear probe than one for longer."),
    ("extreme", "masks", "probe", True, "r = 0.5, 2 views", _FOUR, "gain",
     "For equal token passes, four quarters make a better instance vector for a linear probe than two halves."),
    ("trained", "masks", "probe", True, "random weights", _FOUR, "gain",
     "Training on four quarters makes a better instance vector for a linear probe than random weights."),
    ("trained_tokens", "masks", "token_probe", True, "random weights", _FOUR, "gain",
     "Training on four quarters makes better tokens (their mean, linear probe) than random weights."),
)
# fmt: on
_UNITS = {"probe": "points", "token_probe": "points", "found": "points", "variance": "points", "spread": ""}
CLAIMS = tuple(
    Claim(
        id=id,
        statement=statement,
        experiment=experiment,
        metric=metric,
        higher_is_better=better,
        baseline=baseline,
        method=method,
        kind=kind,
        unit=_UNITS[metric],
    )
    for id, experiment, metric, better, baseline, method, kind, statement in _ROWS
)

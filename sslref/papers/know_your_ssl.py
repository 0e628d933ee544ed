"""Know your self-supervised learning: five families of losses, side by side on one backbone.

U. Ozbulak, H. J. Lee, B. Boga, E. T. Anzaku, H. Park, A. Van Messem, W. De Neve, J. Vankerschaver, TMLR 2023,
arXiv 2305.13689. A survey without experiments and without code; the losses follow the papers and codes named below.

Two views of one picture should be represented alike. Alone, that wish has a worthless solution: the same vector for
every picture. Four families add a guard against it: equal shares of the batch for every cluster; other pictures to stay
away from; a predictor and a target without gradient; a batch whose features must vary and differ. The fifth predicts
pixels, for which a constant is a bad answer, and needs no guard.

    clustering                SwAV           sinkhorn, swav_loss                      Clustering
    contrastive               MoCo           info_nce, KeyQueue, ema_update           Contrastive
    distillation              BYOL, DINO     byol_loss, dino_loss, update_center      Distillation
    information maximisation  Barlow Twins,
                              VICReg         barlow_twins_loss, vicreg_loss           Information
    generative                MAE            masked_patch_loss                        Generative
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sslref.augment import crop_and_resize, random_crop_boxes, random_view
from sslref.claims import Claim, Experiment
from sslref.data import Images, folders, mnist
from sslref.evaluate import accuracy, effective_rank, knn_classify, linear_probe, standardize
from sslref.losses import alignment, gather
from sslref.losses import byol_loss as byol_loss
from sslref.losses import info_nce as info_nce
from sslref.nn import ConvNet, SmallResNet, mae, mlp, seeded
from sslref.nn import KeyQueue as KeyQueue
from sslref.nn import ema_update as ema_update
from sslref.nn.numbers import at_least_float32, check_positive
from sslref.registry import Paper
from sslref.train import History, Recipe, Task, adamw, distinct, fit, recipe_size, warmup_cosine

PAPER = Paper(
    slug="know_your_ssl",
    title="Know Your Self-supervised Learning: A Survey on Image-based Generative and Discriminative Training",
    authors=(
        "Utku Ozbulak",
        "Hyun Jung Lee",
        "Beril Boga",
        "Esla Timothy Anzaku",
        "Homin Park",
        "Arnout Van Messem",
        "Wesley De Neve",
        "Joris Vankerschaver",
    ),
    venue="TMLR",
    year=2023,
    arxiv="2305.13689",
    code="",
    part="joint_embedding",
    data=("mnist",),
    idea="Five families of self-supervised losses differ in what keeps them from giving every picture the same vector.",
    minutes=40,
)


def _pair(least: int = 1, **named: Tensor) -> list[Tensor]:
    """Two tensors of one shape (B, D), B >= least, in float32 at least."""
    a, b = named.values()
    if a.ndim != 2 or a.shape != b.shape or len(a) < least or not a.shape[1]:
        names, shapes = ", ".join(named), f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"{names}: expected one shape (B, D) with B >= {least}, got {shapes}")
    return [at_least_float32(x) for x in (a, b)]


# --------------------------------------------------------------------------- clustering: SwAV (Caron et al. 2020)


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Soft codes that share the batch out equally among the prototypes (SwAV, Eq. 3-5).

    exp(scores / epsilon) is scaled in turn so that every prototype gets an equal part of the batch and every sample
    gives away 1 in all; the samples come last. In logarithms: float32 exponentials overflow beyond |s| / epsilon = 88.

    Args:
        scores: (B, K), cosines of samples and prototypes.
        epsilon: softness; 0 in the limit gives hard codes.
        iterations: scalings of both kinds. Many give columns that sum to B / K.

    Returns:
        (B, K), float32 at least, rows sum to 1; no gradient.

    Raises:
        ValueError: not (B, K), nothing in it, epsilon <= 0, iterations < 1.
    """
    if scores.ndim != 2 or not scores.numel():
        raise ValueError(f"scores: expected shape (B, K), not empty, got {tuple(scores.shape)}")
    check_positive(epsilon=epsilon)
    if iterations < 1:
        raise ValueError(f"iterations: expected >= 1, got {iterations}")
    log_q = at_least_float32(scores) / epsilon
    for _ in range(iterations):
        log_q = log_q.log_softmax(0)
        log_q = log_q.log_softmax(1)
    return log_q.exp()


def swav_loss(
    scores1: Tensor, scores2: Tensor, *, temperature: float = 0.1, epsilon: float = 0.05, iterations: int = 3
) -> Tensor:
    """Swapped prediction (SwAV, Eq. 1-2): the code of one view is the target of the other, the mean of both directions.

    Args:
        scores1, scores2: (B, K), cosines of the two views with the prototypes.

    Raises:
        ValueError: shapes differ or are not (B, K), a temperature or epsilon <= 0, iterations < 1.
    """
    scores1, scores2 = _pair(scores1=scores1, scores2=scores2)
    check_positive(temperature=temperature)
    q1, q2 = (sinkhorn(s, epsilon=epsilon, iterations=iterations) for s in (scores1, scores2))
    return _swapped(q1, q2, scores1, scores2, temperature)


def _swapped(q1: Tensor, q2: Tensor, scores1: Tensor, scores2: Tensor, temperature: float) -> Tensor:
    return (_cross_entropy(q1, scores2 / temperature) + _cross_entropy(q2, scores1 / temperature)) / 2


def _cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    return -(target * logits.log_softmax(1)).sum(1).mean()


# ------------------------------------------------------------------- distillation: DINO (Caron et al. 2021), and BYOL


def dino_loss(
    student: Tensor, teacher: Tensor, center: Tensor, *, student_temp: float = 0.1, teacher_temp: float = 0.04
) -> Tensor:
    """Cross-entropy from the centred, sharpened teacher to the student (DINO, Eq. 2 and Alg. 1); one pairing of views.

    Args:
        student, teacher: (B, K) logits of different views; the teacher is detached here. center: (K,), detached too.

    Raises:
        ValueError: shapes that do not fit, a temperature <= 0.
    """
    student, teacher = _pair(student=student, teacher=teacher)
    check_positive(student_temp=student_temp, teacher_temp=teacher_temp)
    _check_center(center, teacher)
    target = ((teacher - center).detach() / teacher_temp).softmax(1)
    return _cross_entropy(target, student / student_temp)


@torch.no_grad()
def update_center(center: Tensor, teacher: Tensor, *, momentum: float = 0.9) -> Tensor:
    """m c + (1 - m) mean of the teacher's logits (DINO, Eq. 4), over the rows of all processes. Call it after the loss.

    Args:
        center: (K,), left as it is. teacher: (B, K) logits.

    Returns:
        (K,), the new centre.

    Raises:
        ValueError: shapes that do not fit, no row, momentum outside [0, 1].
    """
    if teacher.ndim != 2 or not teacher.numel():
        raise ValueError(f"teacher: expected shape (B, K), not empty, got {tuple(teacher.shape)}")
    _check_center(center, teacher)
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")
    return momentum * center + (1 - momentum) * gather(teacher).to(center.dtype).mean(0)


def _check_center(center: Tensor, teacher: Tensor) -> None:
    if center.shape != teacher.shape[1:]:
        raise ValueError(f"center: expected shape {tuple(teacher.shape[1:])}, got {tuple(center.shape)}")


# ---------------------------------- information maximisation: Barlow Twins (Zbontar et al. 2021), VICReg (Bardes 2022)


def barlow_twins_loss(z1: Tensor, z2: Tensor, *, off_diag_weight: float = 0.0051) -> Tensor:
    """The cross-correlation of two views should be the identity (Barlow Twins, Eq. 1-2).

    Each feature is standardised over the batch as batch norm does: biased variance, 1e-5 added.

    Args:
        z1, z2: (B, D), B >= 2. off_diag_weight: lambda.

    Raises:
        ValueError: shapes differ or are not (B, D), B < 2.
    """
    z1, z2 = _pair(2, z1=z1, z2=z2)
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = (F.batch_norm(z, None, None, training=True) for z in (z1, z2))
        c = z1.T @ z2 / len(z1)
    on = (c.diagonal() - 1).square().sum()
    return on + off_diag_weight * (c.square().sum() - c.diagonal().square().sum())


def vicreg_loss(
    z1: Tensor, z2: Tensor, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Tensor:
    """Views agree, every feature varies, no two features vary together (VICReg, Eq. 1-6).

    The code halves the variance term, the paper's Eq. 6 does not; this follows the code. Variance and covariance are
    unbiased.

    Args:
        z1, z2: (B, D), B >= 2. invariance, variance, covariance: the three weights.

    Raises:
        ValueError: shapes differ or are not (B, D), B < 2.
    """
    z1, z2 = _pair(2, z1=z1, z2=z2)
    with torch.autocast(z1.device.type, enabled=False):
        spread = sum(F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (z1, z2)) / 2
        redundant = z1.new_zeros(())
        for z in (z1, z2):
            centred = z - z.mean(0)
            c = centred.T @ centred / (len(z) - 1)
            redundant = redundant + (c.square().sum() - c.diagonal().square().sum()) / z.shape[1]
        return invariance * F.mse_loss(z1, z2) + variance * spread + covariance * redundant


# ------------------------------------------------------------------------- generative: MAE (He et al. 2022)


def masked_patch_loss(pred: Tensor, target: Tensor, mask: Tensor, *, normalize: bool = True) -> Tensor:
    """Mean squared error over the hidden patches of the batch (MAE, section 3).

    Args:
        pred, target: (B, N, P). mask: (B, N) bool, True = hidden.
        normalize: compare with patches of mean 0 and (unbiased) variance 1 each, the paper's better target.

    Raises:
        ValueError: shapes that do not fit, nothing hidden, patches of one value that were to be normalised.
    """
    if normalize:
        if target.ndim != 3 or target.shape[2] < 2 or not target.numel():
            raise ValueError(f"target: expected shape (B, N, P), not empty, with P >= 2, got {tuple(target.shape)}")
        target = mae.normalize_patches(at_least_float32(target))
    return mae.masked_patch_loss(at_least_float32(pred), at_least_float32(target), mask)


# -------------------------------------------------------------------- five learners on one backbone, and their guards


class Views(NamedTuple):
    first: Tensor  # (B, C, H, W)
    second: Tensor  # (B, C, H, W), another view of the same pictures
    noise: Tensor  # (B, N), decides which patches are hidden


def head(in_dim: int, out_dim: int) -> nn.Sequential:
    """The projector of the four discriminative families: linear, batch norm, ReLU, linear."""
    return mlp(in_dim, 2 * in_dim, out_dim)


class Learner(nn.Module):
    """Encoder and projector: `student[0]` gives h, which a probe reads, `student` gives z, which the loss reads.

    The forward of a family takes two views of a batch and returns the loss; rows of all processes are gathered there.

    Args:
        encoder: pictures -> (B, encoder.out_dim); its `features` are the maps (B, out_dim, h, w) before the mean.
    """

    def __init__(self, encoder: nn.Module, *, out_dim: int = 64):
        super().__init__()
        self.student = nn.Sequential(encoder, head(encoder.out_dim, out_dim))
        self.out_dim = out_dim

    def embed(self, *views: Tensor, network: nn.Module | None = None) -> list[Tensor]:
        """z of every view; the views pass together, so that batch norm sees them all."""
        z = (network or self.student)(torch.cat(views))
        return [gather(part) for part in z.chunk(len(views))]

    def follow(self, momentum: float) -> None:
        """Move the teacher, where there is one, one step towards the student."""


class _Taught(Learner):
    """A learner whose targets come from a slow copy of itself."""

    def __init__(self, encoder: nn.Module, **options):
        super().__init__(encoder, **options)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    @torch.no_grad()
    def target(self, *views: Tensor) -> list[Tensor]:
        return self.embed(*views, network=self.teacher)

    def follow(self, momentum: float) -> None:
        ema_update(self.teacher, self.student, momentum=momentum)


class Clustering(Learner):
    """SwAV. Without its guard a sample's code is the softmax of its own scores, whatever the others get."""

    def __init__(self, encoder: nn.Module, *, guard: bool = True, prototypes: int = 32, **options):
        super().__init__(encoder, **options)
        self.guard = guard
        self.prototypes = nn.Linear(self.out_dim, prototypes, bias=False)

    def forward(self, views: Views) -> Tensor:
        unit = F.normalize(self.prototypes.weight, dim=1)
        s1, s2 = (at_least_float32(F.normalize(z, dim=1) @ unit.T) for z in self.embed(views.first, views.second))
        if self.guard:
            return swav_loss(s1, s2)
        q1, q2 = ((s.detach() / 0.05).softmax(1) for s in (s1, s2))
        return _swapped(q1, q2, s1, s2, 0.1)


class Contrastive(_Taught):
    """MoCo v2. Without its guard nothing but the pull towards the key is left of the loss: -cos / temperature."""

    def __init__(self, encoder: nn.Module, *, guard: bool = True, queue: int = 1024, **options):
        super().__init__(encoder, **options)
        self.guard = guard
        self.queue = KeyQueue(queue, self.out_dim)

    def forward(self, views: Views) -> Tensor:
        (q,), (k,) = self.embed(views.first), self.target(views.second)
        if not self.guard:
            return byol_loss(q, k) / (2 * 0.2)
        loss = info_nce(q, k, self.queue.keys)
        self.queue.push(k)
        return loss


class Distillation(_Taught):
    """BYOL. Without its guard there is no predictor, no teacher: the target, the other view's own z, learns too."""

    def __init__(self, encoder: nn.Module, *, guard: bool = True, **options):
        super().__init__(encoder, **options)
        self.guard = guard
        self.predict = head(self.out_dim, self.out_dim) if guard else nn.Identity()

    def forward(self, views: Views) -> Tensor:
        z1, z2 = self.embed(views.first, views.second)
        if not self.guard:
            return alignment(z1, z2)
        t1, t2 = self.target(views.first, views.second)
        p1, p2 = self.predict(torch.cat([z1, z2])).chunk(2)
        return (byol_loss(p1, t2) + byol_loss(p2, t1)) / 2


class Information(Learner):
    """VICReg with its weights."""

    def __init__(self, encoder: nn.Module, *, variance: float = 25.0, covariance: float = 1.0, **options):
        super().__init__(encoder, **options)
        self.weights = {"variance": variance, "covariance": covariance}

    def forward(self, views: Views) -> Tensor:
        return vicreg_loss(*self.embed(views.first, views.second), **self.weights)


class Generative(Learner):
    """MAE's loss. A convolution cannot leave patches out as a Transformer can: here the hidden ones are painted grey.

    Args:
        patch_size, mask_ratio: of the hiding. cell: side of the square that one place of the encoder's map paints.
    """

    def __init__(
        self, encoder: nn.Module, *, patch_size: int = 7, mask_ratio: float = 0.75, cell: int = 14, in_chans: int = 1
    ):
        super().__init__(encoder)
        self.student = self.student[:1]  # no projector: z is h
        self.patch_size, self.mask_ratio = patch_size, mask_ratio
        wide = 2 * encoder.out_dim
        paint = nn.ConvTranspose2d(wide, in_chans, cell, stride=cell)
        self.decoder = nn.Sequential(nn.Conv2d(encoder.out_dim, wide, 1), nn.ReLU(), paint)

    def forward(self, views: Views) -> Tensor:
        patches = mae.patchify(views.first, self.patch_size)
        mask = mae.random_masking(patches, self.mask_ratio, noise=views.noise).mask
        holes = mae.unpatchify(patches.masked_fill(mask[..., None], 0.5), self.patch_size)
        painted = self.decoder(self.student[0].features(holes))
        return masked_patch_loss(mae.patchify(painted, self.patch_size), patches, mask)


# ------------------------------------------------------------------------- training: one backbone, views, budget

FAMILIES: dict[str, Callable[..., Learner]] = {
    "clustering": Clustering,
    "contrastive": Contrastive,
    "distillation": Distillation,
    "information": Information,
    "generative": Generative,
}
OPEN = {  # what is taken away, of which family
    "no Sinkhorn": ("clustering", {"guard": False}),
    "no negatives": ("contrastive", {"guard": False}),
    "no predictor": ("distillation", {"guard": False}),
    "no variance": ("information", {"variance": 0.0}),
    "no covariance": ("information", {"covariance": 0.0}),
}
UNTRAINED = ("random weights", "pixels")
ARMS = (*FAMILIES, *OPEN, *UNTRAINED)
WIDTHS = (24, 48, 96, 64)  # of the backbone's four convolutions


def build(arm: str, *, seed: int = 0, encoder: Callable[[], nn.Module] | None = None, **options) -> Learner:
    """The learner of an arm with the initial weights of a seed; PyTorch's generator is left as it was.

    Args:
        arm: a family, one of `OPEN`, or one of `UNTRAINED`.
        encoder: makes the backbone; None: four convolutions for 28-pixel digits. options: of the family's class.

    Raises:
        ValueError: unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"arm: expected one of {', '.join(ARMS)}, got {arm!r}")
    family, change = OPEN.get(arm, (arm, {}))

    def learner() -> Learner:
        # the backbone is drawn first, so that all arms of a seed start from the same one
        backbone = encoder() if encoder else ConvNet(in_chans=1, widths=WIDTHS)
        return FAMILIES.get(family, Information)(backbone, **(options | change))

    return seeded(seed, learner)


@functools.cache
def cost(family: str) -> float:
    """Billions of floating-point operations, forward and backward, that a family spends on one digit of a batch.

    Convolutions and matrix products count, as PyTorch counts them: two operations a multiply-add.
    """
    pictures = torch.zeros(4, 1, 28, 28)
    with FlopCounterMode(display=False) as counter:
        build(family)(Views(pictures, pictures, torch.zeros(4, 16))).backward()
    return counter.get_total_flops() / len(pictures) / 1e9


def steps(arm: str, gigaflops: float, batch_size: int = 32) -> int:
    """Steps that a budget allows the family of an arm; 0 for what is not trained."""
    family = OPEN.get(arm, (arm,))[0]
    return 0 if arm in UNTRAINED else max(1, round(gigaflops / (batch_size * cost(family))))


def task(
    model: Learner,
    read: Callable[[Tensor], Tensor],
    count: int,
    *,
    batch_size: int,
    view: Callable[[Tensor, torch.Generator], Tensor],
    patches: int = 16,
    lr: float = 2e-3,
    momentum: float = 0.99,
) -> Task:
    """What `train.fit` trains: each step draws `batch_size` of `count` pictures, no picture twice, and two views each.

    Args:
        read: indices (B,) -> pictures on the device of the indices. view: (pictures, generator) -> one view of each.
        patches: of a picture, for the hiding. momentum: of the teacher.

    Raises:
        ValueError: batch_size outside [2, count].
    """
    draw = distinct(read, count, batch_size)

    def batch(generator: torch.Generator) -> Views:
        first, second = view(draw(generator).repeat(2, 1, 1, 1), generator).chunk(2)
        return Views(first, second, torch.rand(batch_size, patches, generator=generator, device=generator.device))

    return Task(
        model=model,
        batch=batch,
        loss=lambda model, views: model(views),
        optimizer=functools.partial(adamw, lr=lr),
        schedule=warmup_cosine(0.1),
        after_step=lambda model, step, steps: model.follow(momentum),
    )


def crop(x: Tensor, generator: torch.Generator | None = None, *, scale: tuple[float, float] = (0.4, 1.0)) -> Tensor:
    """A random crop of each digit, resized; no mirror, as a mirrored digit may be another one."""
    boxes = random_crop_boxes(len(x), *x.shape[2:], scale=scale, generator=generator).to(x.device)
    return crop_and_resize(x, boxes, x.shape[2:])


def recipe(
    source: Path | None = None,
    *,
    batch_size: int | None = None,
    device: str = "cpu",
    size: str | None = None,
    family: str = "contrastive",
) -> Recipe:
    """What `sslref train know_your_ssl` trains.

    Args:
        source: CIFAR-10's binary version, or a folder with one subfolder of images a class; None: the digits.
        batch_size: in place of 256 (paper) or 32 (miniature).
        size: the survey trains nothing; "paper" is the comparison on pictures, ResNet-18 with a 3x3 stem and 200
            epochs for every family. "miniature" has this chapter's network and views. By default "paper" where there
            is a source.
        family: a key of `FAMILIES`.

    Raises:
        ValueError: unknown size or family, more samples a batch than pictures. DataError: source is not as expected.
    """
    size = recipe_size(size, source)
    if family not in FAMILIES:
        raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")
    small, gray = size == "miniature", source is None
    batch_size, side, patch_size = batch_size or (32 if small else 256), 28 if gray else 32, 7 if gray else 4
    if gray:
        read, count, name = _digits(device)[0].images.__getitem__, len(_digits(device)[0]), "digits"
    else:
        found = folders.pictures(source, side, device=device)
        read, count, name = found.images, len(found), found.name
    sizes = {"widths": WIDTHS} if small else {"width": 64, "blocks": (2, 2, 2, 2)}
    cell, network = (side // 2, ConvNet) if small else (side // 4, SmallResNet)
    painting = {"patch_size": patch_size, "cell": cell, "in_chans": 1 if gray else 3}
    options = painting if family == "generative" else {}
    model = build(family, encoder=lambda: network(in_chans=painting["in_chans"], **sizes), **options)
    job = task(
        model,
        read,
        count,
        batch_size=batch_size,
        view=crop if gray else lambda x, generator: random_view(x, strength=0.5, generator=generator),
        patches=(side // patch_size) ** 2,
        **({} if small else {"lr": 1e-3, "momentum": 0.996}),
    )
    about = f"{family}, {size} recipe: {'four convolutions' if small else 'ResNet-18'}, {count:,} pictures ({name})"
    return Recipe(job, 300 if small else 200 * count // batch_size, batch_size, about)


# ------------------------------------------------------------------------------- the survey's comparison, in miniature


@functools.cache
def _digits(device: str) -> tuple[Images, Images]:
    """4,000 digits for training, 1,000 for testing."""
    train, test = (mnist(split) for split in ("train", "test"))
    return tuple(replace(d, images=d.images.to(device), labels=d.labels.to(device)) for d in (train, test))


SHARES = (0.0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of the steps, after which z is kept


class Trained(NamedTuple):
    model: Learner
    history: History | None
    z: dict[float, Tensor]  # share of the steps -> z (250, D) of every fourth test digit


_KEPT: dict[tuple, Trained] = {}  # the last few, so that a chapter shows the networks on which its claims rest


def pretrain(
    arm: str, *, seed: int = 0, device: str = "cpu", gigaflops: float = 110.0, batch_size: int = 32, progress=False
) -> Trained:
    """The network of an arm after a budget of arithmetic, in evaluation mode.

    Arms of one seed share the backbone's first weights and, step for step, pictures and views. An arm without its
    guard takes as many steps as its family with it.

    Args:
        gigaflops: billions of floating-point operations, of which `cost` says how far they reach.

    Raises:
        ValueError: unknown arm.
    """
    key = (arm, seed, device, gigaflops, batch_size)
    if key not in _KEPT:
        model, history, kept = build(arm, seed=seed).to(device), None, {}
        train, test = (d.images for d in _digits(device))
        watched = test[:: len(test) // 250]  # of all classes, which the file holds in order
        kept[0.0] = embeddings(model, watched)
        if arm not in UNTRAINED:
            job = task(model, train.__getitem__, len(train), batch_size=batch_size, view=crop)
            total, follow = steps(arm, gigaflops, batch_size), job.after_step
            due = {max(1, round(share * total)): share for share in SHARES[1:]}

            def after_step(model: Learner, step: int, steps: int) -> None:
                follow(model, step, steps)
                if step + 1 in due:
                    kept[due[step + 1]] = embeddings(model, watched)

            job.after_step = after_step
            history = fit(job, steps=total, seed=seed, device=device, log_every=5, progress=progress)
        while len(_KEPT) >= 16:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = Trained(model.eval(), history, kept)
    return _KEPT[key]


@torch.no_grad()
def embeddings(model: Learner, images: Tensor) -> Tensor:
    """z as the loss sees it: batch norm uses the statistics of these pictures. The model stays as it was."""
    return copy.deepcopy(model.student).train()(images)


def spread(z: Tensor) -> float:
    """1 - |mean of the unit rows|^2: 0 if all rows of (N, D) point in one direction, 1 if they cancel out.

    Raises:
        ValueError: not (N, D), or nothing in it.
    """
    if z.ndim != 2 or not z.numel():
        raise ValueError(f"z: expected shape (N, D), not empty, got {tuple(z.shape)}")
    return 1 - F.normalize(at_least_float32(z), dim=1).mean(0).square().sum().item()


def measure(
    train_h: Tensor, train_y: Tensor, test_h: Tensor, test_y: Tensor, test_z: Tensor | None = None
) -> dict[str, float]:
    """What a representation is worth, and how much room it uses.

    Args:
        train_h, train_y: (N, D) and (N,), the labelled pictures. test_h, test_y: (M, D) and (M,).
        test_z: (M, E), what the loss reads; None: h itself.

    Returns:
        probe, knn: accuracy, in %, of a linear probe and of 20 nearest neighbours on standardised h.
        spread: of z. rank: effective rank of what the unit rows of z have beyond their mean. rank_h: the same of h.
    """
    train, test = standardize(train_h, test_h)
    rank = rank_h = effective_rank(F.normalize(test_h, dim=1), center=True)
    if test_z is not None:
        rank = effective_rank(F.normalize(test_z, dim=1), center=True)
    return {
        "probe": 100 * accuracy(linear_probe(train, train_y, test, C=0.01), test_y),
        "knn": 100 * accuracy(knn_classify(train, train_y, test), test_y),
        "spread": spread(test_h if test_z is None else test_z),
        "rank": rank,
        "rank_h": rank_h,
    }


LABELS = 1000  # digits whose label the probe may see; the losses see none


def run(arm: str, *, seed: int, device: str, gigaflops: float, batch_size: int = 32) -> dict[str, float]:
    """One arm with one seed: metrics of `measure`, and the steps that the budget allowed."""
    train, test = _digits(device)
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:LABELS].to(device)
    pictures, z = (train.images[chosen], test.images), None
    if arm == "pixels":
        h = [x.flatten(1) for x in pictures]
    else:
        model = pretrain(arm, seed=seed, device=device, gigaflops=gigaflops, batch_size=batch_size).model
        with torch.no_grad():
            h = [model.student[0](x) for x in pictures]
        z = embeddings(model, test.images)
    measured = measure(h[0], train.labels[chosen], h[1], test.labels, z)
    return measured | {"steps": steps(arm, gigaflops, batch_size)}


EXPERIMENTS = {
    "families": Experiment(
        run=run,
        arms=ARMS,
        budgets={
            "smoke": {"seeds": 2, "gigaflops": 0.5, "batch_size": 16},
            "ci": {"seeds": 1, "gigaflops": 30.0},
            "ledger": {"seeds": 10, "gigaflops": 110.0},
            "gpu": {"seeds": 32, "gigaflops": 20_000.0, "batch_size": 256},
        },
    )
}

# fmt: off
_ROWS = (  # id, metric, baseline, method, statement
    ("sinkhorn_spread", "spread", "no Sinkhorn", "clustering",
     "Equal shares keep the embedding of the clustering family spread out; softmax codes of its own do not."),
    ("negatives_spread", "spread", "no negatives", "contrastive",
     "Negatives keep the embedding of the contrastive family spread out; the pull alone does not."),
    ("predictor_spread", "spread", "no predictor", "distillation",
     "Predictor, stopped gradient and slow teacher keep the embedding of the distillation family spread out."),
    ("variance_spread", "spread", "no variance", "information",
     "The variance term keeps the embedding of the information family spread out."),
    ("covariance_rank", "rank", "no covariance", "information",
     "The covariance term makes the information family's embedding use more directions: its effective rank is higher."),
    ("generative_rank", "rank_h", "no predictor", "generative",
     "Without a guard the generative family's h keeps a higher effective rank than distillation's without its own."),
    ("sinkhorn_probe", "probe", "no Sinkhorn", "clustering",
     "A linear probe reads more from the clustering family with Sinkhorn's codes than without."),
    ("negatives_probe", "probe", "no negatives", "contrastive",
     "A linear probe reads more from the contrastive family with negatives than without."),
    ("predictor_probe", "probe", "no predictor", "distillation",
     "A linear probe reads more from distillation with predictor, stopped gradient and slow teacher than without."),
    ("variance_probe", "probe", "no variance", "information",
     "A linear probe reads more from the information family with the variance term than without."),
    ("covariance_probe", "probe", "no covariance", "information",
     "A linear probe reads more from the information family with the covariance term than without."),
    *((f"{family}_trained", "probe", "random weights", family,
       f"A linear probe reads more from the backbone after {family} training than from its random weights.")
      for family in FAMILIES),
    *((f"{family}_generative", "probe", "generative", family,
       f"After equal arithmetic a linear probe reads more from the {family} family than from the generative one.")
      for family in list(FAMILIES)[:-1]),
)
# fmt: on
CLAIMS = tuple(
    Claim(
        id=id,
        statement=statement,
        experiment="families",
        metric=metric,
        higher_is_better=True,
        baseline=baseline,
        method=method,
        kind="gain" if metric == "probe" else "mechanism",
        unit="points" if metric == "probe" else "",
    )
    for id, metric, baseline, method, statement in _ROWS
)

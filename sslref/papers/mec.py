"""MEC: self-supervised learning via maximum entropy coding.

X. Liu, Z. Wang, Y.-L. Li, S. Wang, NeurIPS 2022, arXiv 2210.11464; official code: xinliu20/MEC.

Two views of a picture should get the same vector; that alone is solved by one vector for all pictures. Among the
representations that agree, MEC asks for the one that says most: whose vectors take the most bits to write down up to
an error eps. That number is a log-determinant. Its Taylor series needs matrix products only, and is cut after a few
terms; one term is the cosine of SimSiam and BYOL, two terms repel pictures from each other, or decorrelate features.

    section 2.1, Eq. 1  coding_constants, coding_length     section 2.1, Eq. 2  taylor_log_det
    section 2.2, Eq. 3  mec_loss (exact_loss: no series)    official code    lamda_schedule, projector, predictor, MEC

The paper writes vectors as columns (d, m); here they are rows (m, d).
"""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslref.augment import two_views
from sslref.claims import Claim, Experiment
from sslref.data import emoji, folders
from sslref.evaluate import accuracy, effective_rank, linear_probe, standardize
from sslref.losses import gather
from sslref.nn import ConvNet, EMATeacher, SmallResNet, mlp, rising_update, seeded
from sslref.nn.numbers import at_least_float32, check_positive
from sslref.registry import Paper
from sslref.train import History, Recipe, Task, adamw, distinct, fit, recipe_size, sgd, warmup_cosine

PAPER = Paper(
    slug="mec",
    title="Self-Supervised Learning via Maximum Entropy Coding",
    authors=("Xin Liu", "Zhongdao Wang", "Yali Li", "Shengjin Wang"),
    venue="NeurIPS",
    year=2022,
    arxiv="2210.11464",
    code="https://github.com/xinliu20/MEC",
    part="joint_embedding",
    data=("emoji",),
    idea="Of all representations that agree between two views, learn the one that takes the most bits to write down.",
    minutes=35,
)


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1, in float32 at least: a trace adds up many small numbers."""
    return F.normalize(at_least_float32(x), dim=1)


# ------------------------------------------------------------------------- the length of a code (section 2.1, Eq. 1)


def coding_constants(batch_size: int, dim: int, *, eps_sq: float = 64.0) -> tuple[float, float]:
    """mu = (m + d) / 2 and lambda = d / (m eps^2) for m vectors of d numbers.

    Args:
        eps_sq: the squared error eps^2 that the code may make; the official flag `eps` is this square.

    Raises:
        ValueError: a size below 1, eps_sq <= 0.
    """
    for name, size in (("batch_size", batch_size), ("dim", dim)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    check_positive(eps_sq=eps_sq)
    return (batch_size + dim) / 2, dim / (batch_size * eps_sq)


def log_det(c: Tensor) -> Tensor:
    """log |det(I + C)| of a square matrix."""
    return torch.linalg.slogdet(torch.eye(len(c), dtype=c.dtype, device=c.device) + c).logabsdet


def coding_length(z: Tensor, *, eps_sq: float = 64.0) -> Tensor:
    """Nats that code a batch up to the squared error eps^2: mu log det(I + lambda Z Z^T), exactly (Eq. 1).

    Args:
        z: (m, d), rows normalised here. Z^T Z has the same determinant; the smaller of the two is taken.

    Raises:
        ValueError: z is not (m, d) or is empty, eps_sq <= 0.
    """
    if z.ndim != 2 or not z.numel():
        raise ValueError(f"z: expected shape (m, d), not empty, got {tuple(z.shape)}")
    mu, lamda = coding_constants(*z.shape, eps_sq=eps_sq)
    with torch.autocast(z.device.type, enabled=False):
        z = _unit(z)
        return mu * log_det(lamda * (z @ z.T if len(z) <= z.shape[1] else z.T @ z))


# ------------------------------------------------------------------------------------ its series (section 2.1, Eq. 2)


def _check_order(order: int) -> None:
    if not isinstance(order, int) or isinstance(order, bool):
        raise TypeError(f"order: expected an integer, got {order!r}")
    if order < 1:
        raise ValueError(f"order: expected at least 1, got {order}")


def taylor_log_det(c: Tensor, *, order: int = 4) -> Tensor:
    """The first terms of log det(I + C): the trace of sum_k (-1)^(k+1) C^k / k, k = 1 .. order.

    It converges where the spectral radius of C is below 1. tr(C^(a+b)) is the sum of C^a times the transpose of C^b,
    entry by entry, so powers up to half the order suffice: order 4 takes one product of matrices, order 2 none.

    Args:
        c: (n, n), symmetric or not.

    Raises:
        ValueError: c is not square or is empty, order < 1. TypeError: order is no integer.
    """
    if c.ndim != 2 or c.shape[0] != c.shape[1] or not c.numel():
        raise ValueError(f"c: expected shape (n, n), not empty, got {tuple(c.shape)}")
    _check_order(order)
    with torch.autocast(c.device.type, enabled=False):
        high = low = c = at_least_float32(c)  # powers with exponents that add up to k
        total = c.trace()
        for k in range(2, order + 1):
            if k % 2:
                high = low @ c
            else:
                low = high
            total = total + (-1) ** (k + 1) / k * (high * low.T).sum()
        return total


# ------------------------------------------------------------------------- two views, and the loss (section 2.2, Eq. 3)

SIDES = ("auto", "batch", "feature")


def mec_loss(
    z1: Tensor, z2: Tensor, t1: Tensor, t2: Tensor, *, lamda: float | Tensor, order: int = 4, side: str = "auto"
) -> Tensor:
    """-1 / (2 m lambda) times the sum of the series of lambda t1 z2^T and of lambda t2 z1^T.

    One factor of Z Z^T is the other view, so that agreeing and spreading are rewarded at once. Because of 1 / lambda,
    order 1 is minus the mean cosine whatever lambda is.

    Args:
        z1, z2: (m, d), of the two views by the student. t1, t2: by the teacher, detached here. Rows normalised here.
            m is the whole batch: with several processes, `losses.gather` first.
        lamda: of `coding_constants`, or of `lamda_schedule`; a tensor is not checked, which would stall a device.
        side: "batch" works on matrices (m, m) of pictures, "feature" on (d, d) of features, with the same value;
            "auto" takes the smaller.

    Raises:
        ValueError: shapes differ or are not (m, d), lamda <= 0, order < 1, unknown side.
    """
    _check_order(order)
    return _two_views(z1, z2, t1, t2, lamda, side, functools.partial(taylor_log_det, order=order))


def exact_loss(z1: Tensor, z2: Tensor, t1: Tensor, t2: Tensor, *, lamda: float | Tensor, side: str = "auto") -> Tensor:
    """`mec_loss` with log |det(I + C)| itself in the place of the series. Errors as there."""
    return _two_views(z1, z2, t1, t2, lamda, side, log_det)


def _two_views(z1, z2, t1, t2, lamda, side: str, code: Callable[[Tensor], Tensor]) -> Tensor:
    shapes = [tuple(x.shape) for x in (z1, z2, t1, t2)]
    if len(set(shapes)) > 1 or z1.ndim != 2 or not z1.numel():
        raise ValueError(f"z1, z2, t1, t2: expected one shape (m, d), not empty, got {', '.join(map(str, shapes))}")
    if side not in SIDES:
        raise ValueError(f"side: expected one of {', '.join(SIDES)}, got {side!r}")
    if not isinstance(lamda, Tensor):
        check_positive(lamda=lamda)
    m, d = z1.shape
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2, t1, t2 = (_unit(x) for x in (z1, z2, t1.detach(), t2.detach()))
        by_batch = side == "batch" or (side == "auto" and m <= d)
        pairs = [t @ z.T if by_batch else t.T @ z for t, z in ((t1, z2), (t2, z1))]
        return -sum(code(lamda * pair) for pair in pairs) / (2 * m * lamda)


def lamda_schedule(step: int, *, warmup_steps: int, lamda: float, factor: float = 8.0) -> float:
    """lambda at a step: 1 / lambda falls in a straight line from `factor` times its last value to it, then stays.

    Args:
        step: 0 is the first. warmup_steps: length of the line, both of its ends included; 10 epochs in the paper.
        lamda: the last value.

    Raises:
        ValueError: step < 0, warmup_steps < 0, lamda <= 0, factor <= 0.
    """
    for name, value in (("step", step), ("warmup_steps", warmup_steps)):
        if value < 0:
            raise ValueError(f"{name}: expected at least 0, got {value}")
    check_positive(lamda=lamda, factor=factor)
    if step >= warmup_steps:
        return lamda
    share = step / (warmup_steps - 1) if warmup_steps > 1 else 0.0
    return lamda / (factor + (1 - factor) * share)


# ------------------------------------------------------------------------------- the networks (official code)


def projector(in_dim: int, *, hidden: int, out_dim: int, layers: int = 3, norm: bool = True) -> nn.Sequential:
    """(B, in_dim) -> (B, out_dim): linear layers with batch norm and ReLU between; batch norm without scale at the end.

    Args:
        norm: False leaves the batch norm at the end away; the last linear layer then has a bias.

    Raises:
        ValueError: layers < 2.
    """
    if layers < 2:
        raise ValueError(f"layers: expected at least 2, got {layers}")
    widths, parts = [in_dim] + [hidden] * (layers - 1), []
    for a, b in zip(widths, widths[1:], strict=False):
        parts += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
    parts.append(nn.Linear(hidden, out_dim, bias=not norm))
    return nn.Sequential(*parts, *([nn.BatchNorm1d(out_dim, affine=False)] if norm else []))


def predictor(dim: int, *, hidden: int = 512) -> nn.Sequential:
    """(B, dim) -> (B, dim) through a bottleneck, as in SimSiam."""
    return mlp(dim, hidden, dim)


class Output(NamedTuple):
    z1: Tensor  # (B, out_dim) of the first and second view, by the student, behind the predictor
    z2: Tensor
    t1: Tensor  # by the teacher, which has no predictor
    t2: Tensor
    lamda: Tensor  # of this step


class MEC(nn.Module):
    """Student (encoder, projector, predictor) and its teacher, the moving average of encoder and projector.

    Args:
        encoder: pictures -> (B, encoder.out_dim).
        crutches: False takes predictor, teacher and the batch norm behind the projector away; the targets are then the
            student's own vectors.
    """

    def __init__(self, encoder: nn.Module, *, hidden: int, out_dim: int, bottleneck: int, crutches: bool = True):
        super().__init__()
        head = projector(encoder.out_dim, hidden=hidden, out_dim=out_dim, norm=crutches)
        self.online = nn.Sequential(encoder, head)
        self.predictor = predictor(out_dim, hidden=bottleneck) if crutches else nn.Identity()
        self.teacher = EMATeacher(self.online) if crutches else None
        self.register_buffer("lamda", torch.tensor(1.0))

    def forward(self, x1: Tensor, x2: Tensor) -> Output:
        both = torch.cat([x1, x2])  # one pass, so that batch norm sees both views
        z = self.online(both)
        t = z if self.teacher is None else self.teacher(both)
        return Output(*self.predictor(z).chunk(2), *t.chunk(2), self.lamda)


# --------------------------------------------------------------------------------------------------- training


def code_batch(model: nn.Module, views: tuple[Tensor, Tensor], *, order: int | None, eps_sq: float | None = None):
    """Loss of one batch and what to watch.

    Args:
        order: of the series; None: the determinant itself. eps_sq: also watch the spectrum of the targets.

    Returns:
        loss; agreement, the mean cosine of the targets of two views. With eps_sq: length, nats a picture of the
        targets of the first view at the final lambda; radius and error, the spectral radius of lambda T T^T at this
        step's lambda and the relative error of the series of order 4 there.
    """
    *z, lamda = model(*views)
    z1, z2, t1, t2 = (gather(x) for x in z)
    given = {"lamda": lamda.to(z1.dtype)}
    loss = exact_loss(z1, z2, t1, t2, **given) if order is None else mec_loss(z1, z2, t1, t2, order=order, **given)
    with torch.no_grad():
        watched = {"agreement": F.cosine_similarity(t1, t2, dim=1).mean()}
        if eps_sq is not None:
            c = lamda * _unit(t1).T @ _unit(t1)
            whole = log_det(c)
            watched["length"] = coding_length(t1, eps_sq=eps_sq) / len(t1)
            watched["radius"] = torch.linalg.eigvalsh(c)[-1]
            watched["error"] = (taylor_log_det(c) / whole - 1).abs()
    return {"loss": loss, **watched}


def task(
    model: MEC,
    read: Callable[[Tensor], Tensor],
    count: int,
    *,
    batch_size: int,
    lamda: float,
    lamda_warmup: int,
    views: Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    order: int | None = 4,
    warmup: float = 0.1,
    momentum: float = 0.996,
    watch: float | None = None,
) -> Task:
    """What `train.fit` trains: each step draws `batch_size` of `count` pictures, no picture twice, and two views each.

    Args:
        read: indices (B,) -> pictures on the device of the indices. views: (pictures, generator) -> two views of each.
        lamda: its final value. lamda_warmup: steps in which it rises. order: of the series; None: no series.
        warmup: share of the steps in which the learning rate rises; it then falls along a cosine to 0.
        momentum: of the teacher, at the beginning; it rises along a cosine to 1.
        watch: eps_sq of `code_batch`.

    Raises:
        ValueError: batch_size outside [2, count].
    """
    draw = distinct(read, count, batch_size)
    scheduled = functools.partial(lamda_schedule, warmup_steps=lamda_warmup, lamda=lamda)
    model.lamda.fill_(scheduled(0))

    def after_step(model: MEC, step: int, steps: int) -> None:
        model.lamda.fill_(scheduled(step + 1))
        if model.teacher is not None:
            rising_update(model.teacher, model.online, step, steps, base=momentum)

    return Task(
        model=model,
        batch=lambda generator: views(draw(generator), generator=generator),
        loss=functools.partial(code_batch, order=order, eps_sq=watch),
        optimizer=optimizer,
        schedule=warmup_cosine(warmup),
        after_step=after_step,
    )


def recipe(
    source: Path | None = None, *, batch_size: int | None = None, device: str = "cpu", size: str | None = None
) -> Recipe:
    """What `sslref train mec` trains.

    Args:
        source: CIFAR-10's binary version, or a folder with one subfolder of images a class; None: the emoji.
        batch_size: in place of 512 (paper) or 64 (miniature); the paper's learning rate grows with it.
        size: "paper" is the recipe of the official code, order 4 and lambda 1/32, on pictures of 32 pixels: ResNet-18
            with a 3x3 stem, d = 512, 400 epochs. "miniature" has the network and views of this chapter. By default
            "paper" where there is a source.

    Raises:
        ValueError: unknown size, more samples a batch than pictures. DataError: source is not what is expected.
    """
    size = recipe_size(size, source)
    if source is None:
        images = emoji("train").images().to(device)
        read, count, name = images.__getitem__, len(images), "emoji"
    else:
        found = folders.pictures(source, 32, device=device)
        read, count, name = found.images, len(found), found.name
    if size == "miniature":
        batch_size, steps, network = batch_size or 64, 300, "four convolutions"
        model = seeded(0, lambda: MEC(ConvNet(widths=WIDTHS), **SIZES))
        lamda, options = coding_constants(batch_size, SIZES["out_dim"], eps_sq=EPS_SQ)[1], MINIATURE
        options = options | {"lamda_warmup": int(LAMDA_WARMUP * steps)}
    else:
        batch_size, network = batch_size or 512, "ResNet-18"
        resnet = functools.partial(SmallResNet, width=64, blocks=(2, 2, 2, 2))
        model = seeded(0, lambda: MEC(resnet(), hidden=512, out_dim=512, bottleneck=128))
        epoch = count // batch_size
        steps, lamda = 400 * epoch, 1 / 32

        # the jitter of the official views is (0.4, 0.4, 0.2, 0.1); they also blur and solarise, for larger pictures
        options = {
            "optimizer": functools.partial(sgd, lr=0.5 * batch_size / 256, weight_decay=1e-5),
            "warmup": 10 / 400,
            "lamda_warmup": 10 * epoch,
        }
        options |= {"views": functools.partial(two_views, scale=(0.2, 1.0), strength=0.5)}
    about = f"MEC, {size} recipe: {network}, {count:,} pictures ({name})"
    return Recipe(task(model, read, count, batch_size=batch_size, lamda=lamda, **options), steps, batch_size, about)


# ---------------------------------------------------------------------------------------- the claim in miniature


WIDTHS = (16, 32, 64, 128)
SIZES = {"hidden": 128, "out_dim": 64, "bottleneck": 32}
EPS_SQ = 16.0  # lambda m = d / eps^2 = 4
LAMDA_WARMUP = 0.2  # of the steps
SMALL_VIEWS = functools.partial(two_views, scale=(0.5, 1.0), strength=0.5)
MINIATURE = {"optimizer": adamw, "views": SMALL_VIEWS, "momentum": 0.97}

ARMS = {
    "random weights": {"trained": False},
    "order 1": {"order": 1},
    "order 2": {"order": 2},
    "order 3": {"order": 3},
    "order 4": {"order": 4},
    "log det": {"order": None},
    "order 4 warmed up": {"order": 4, "warm": True},
    "order 1 with crutches": {"order": 1, "crutches": True, "warm": True},
    "order 4 with crutches": {"order": 4, "crutches": True, "warm": True},
}


class Trained(NamedTuple):
    model: MEC
    history: History | None


_KEPT: dict[tuple, Trained] = {}  # the last few, so that a chapter shows the networks on which its claims rest


def pretrain(
    arm: str, *, seed: int = 0, device: str = "cpu", steps: int = 200, batch_size: int = 64, progress=False
) -> Trained:
    """The network of an arm, with the initialisation and the batches of a seed, in evaluation mode.

    Raises:
        ValueError: unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"arm: expected one of {', '.join(ARMS)}, got {arm!r}")
    key = (arm, seed, device, steps, batch_size)
    if key not in _KEPT:
        options = {"trained": True, "order": 4, "warm": False, "crutches": False} | ARMS[arm]
        model = seeded(seed, lambda: MEC(ConvNet(widths=WIDTHS), **SIZES, crutches=options["crutches"])).to(device)
        history = None
        if options["trained"]:
            images = world(device).train
            job = task(
                model,
                images.__getitem__,
                len(images),
                batch_size=batch_size,
                lamda=coding_constants(batch_size, SIZES["out_dim"], eps_sq=EPS_SQ)[1],
                lamda_warmup=int(LAMDA_WARMUP * steps) if options["warm"] else 0,
                order=options["order"],
                watch=EPS_SQ,
                **MINIATURE,
            )
            history = fit(job, steps=steps, seed=seed, device=device, log_every=5, progress=progress)
        while len(_KEPT) >= 12:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = Trained(model.eval(), history)
    return _KEPT[key]


class World(NamedTuple):
    train: Tensor  # (1400, 3, 32, 32) emoji
    test: Tensor  # 511 other emoji
    other: Tensor  # the same 511 as another artist draws them
    train_labels: Tensor  # category of the emoji
    labels: Tensor


@functools.cache
def world(device: str = "cpu") -> World:
    """Emoji as they are: the drawings of one artist to train on, and others of two artists to test on."""
    parts = emoji("train"), emoji("test"), emoji("test", vendor="twitter")
    images = [e.images() for e in parts]
    return World(*(x.to(device) for x in (*images, parts[0].labels, parts[1].labels)))


@torch.no_grad()
def projections(model: MEC, images: Tensor) -> Tensor:
    """z as training sees it: batch norm takes the statistics of these pictures. The model stays as it was."""
    return copy.deepcopy(model.online).train()(images)


def measure(model: MEC, pictures: World) -> dict[str, float]:
    """What the representation says of emoji that were not trained on.

    Returns:
        rank: effective rank of the unit rows of the projections of the 511 test emoji. length: nats a picture of
        their code. radius: spectral radius of lambda Z Z^T. probe: accuracy, in %, of a linear probe of the category
        on h. twins: share, in %, of drawings whose nearest drawing of another artist, by the cosine of standardised
        h, is the same emoji.
    """
    with torch.no_grad():
        h = [model.online[0](x) for x in pictures[:3]]
    z = F.normalize(projections(model, pictures.test).double(), dim=1)
    train_h, test_h, other_h = standardize(*h)
    nearest = (F.normalize(test_h, dim=1) @ F.normalize(other_h, dim=1).T).argmax(1)
    lamda = coding_constants(*z.shape, eps_sq=EPS_SQ)[1]
    return {
        "rank": effective_rank(z),
        "length": coding_length(z, eps_sq=EPS_SQ).item() / len(z),
        "radius": lamda * torch.linalg.matrix_norm(z, 2).item() ** 2,
        "probe": 100 * accuracy(linear_probe(train_h, pictures.train_labels, test_h, C=0.01), pictures.labels),
        "twins": 100 * (nearest == torch.arange(len(test_h), device=nearest.device)).double().mean().item(),
    }


def run(arm: str, *, seed: int, device: str, steps: int, batch_size: int = 64) -> dict[str, float]:
    """One arm of the experiment with one seed: metrics of `measure`."""
    model = pretrain(arm, seed=seed, device=device, steps=steps, batch_size=batch_size).model
    return measure(model, world(device))


EXPERIMENTS = {
    "orders": Experiment(
        run=run,
        arms=tuple(ARMS),
        budgets={
            "smoke": {"seeds": 2, "steps": 2, "batch_size": 16},
            "ci": {"seeds": 1, "steps": 50},
            "ledger": {"seeds": 10, "steps": 150},
            "gpu": {"seeds": 32, "steps": 2000, "batch_size": 256},
        },
    )
}


# fmt: off
_ROWS = (  # id, metric, whether more is better, baseline, method, statement
    ("length", "length", True, "order 1", "order 4",
     "Without crutches, order 4 gives unseen pictures a longer code than order 1."),
    ("rank", "rank", True, "order 1", "order 4",
     "Without crutches, order 4 uses more directions (a larger effective rank) than order 1."),
    ("two", "rank", True, "order 1", "order 2",
     "Without crutches, one term more than the cosine, order 2, already uses more directions than order 1."),
    ("odd", "rank", True, "order 3", "order 4",
     "Order 4, which punishes a crowded direction, uses more directions than order 3, which rewards it."),
    ("wall", "radius", False, "log det", "order 4",
     "Under order 4 the most crowded direction holds less than under the determinant that the series approximates."),
    ("warmup", "rank", True, "order 4 warmed up", "order 4",
     "Without crutches, order 4 uses more directions if lambda has its full value from the start."),
    ("crutches_length", "length", True, "order 1 with crutches", "order 4 with crutches",
     "With predictor, teacher and batch norm too, order 4 gives a longer code than order 1."),
    ("probe", "probe", True, "order 1", "order 4",
     "Without crutches, a linear probe of the category gains from order 4 over order 1."),
    ("twins", "twins", True, "order 1", "order 4",
     "Without crutches, more drawings find the same emoji by another artist under order 4 than under order 1."),
    ("crutches_probe", "probe", True, "order 1 with crutches", "order 4 with crutches",
     "With all crutches, the probe gains from order 4 over order 1."),
    ("four_over_two", "probe", True, "order 2", "order 4",
     "The probe gains from order 4 over order 2."),
    ("trained", "probe", True, "random weights", "order 4 with crutches",
     "The whole method makes a better representation for the probe than random weights."),
)
# fmt: on
CLAIMS = tuple(
    Claim(
        id=id,
        statement=statement,
        experiment="orders",
        metric=metric,
        higher_is_better=better,
        baseline=baseline,
        method=method,
        kind="gain" if metric in ("probe", "twins") else "mechanism",
        unit={"probe": "points", "twins": "points", "length": "nats a picture"}.get(metric, ""),
    )
    for id, metric, better, baseline, method, statement in _ROWS
)

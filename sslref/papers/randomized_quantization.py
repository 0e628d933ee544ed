"""Randomized Quantization: a generic augmentation for data agnostic self-supervised learning.

H. Wu, C. Lei, X. Sun, P.-S. Wang, Q. Chen, K.-T. Cheng, S. Lin, Z. Wu, ICCV 2023, arXiv 2212.08663; official code:
microsoft/random_quantize.

Masking hides whole positions: pixels, time steps, words. This paper hides precision instead, channel by channel: cut
the range of a channel at random places and replace each value by a random one from its own bin. What happens inside a
bin is lost, the order of the bins survives. Nothing in this asks what a channel means, so that the same function makes
the two views of a picture, a series or a graph's features.

    section 3, edges of the bins        bin_edges                  section 3, which bin       bin_index
    section 3, value of a bin           quantize                   both drawn at random       randomized_quantization
    section 4, siamese training         Siamese, contrast          ablation of the two draws  VIEWS

Channels are axis 1 of (B, C, *positions). A graph is one sample: its features are channels, its nodes positions.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslref.augment import crop_and_resize, random_crop_boxes, random_flip
from sslref.claims import Claim, Experiment
from sslref.data import digits_graph, emoji, folders, series
from sslref.evaluate import accuracy, linear_probe, standardize
from sslref.losses import gather, info_nce
from sslref.nn import GCN, ConvNet, EMATeacher, SmallResNet, cosine_schedule, gcn_norm, mlp, seeded
from sslref.nn.numbers import at_least_float32
from sslref.registry import Paper
from sslref.train import History, Recipe, Task, adamw, distinct, fit, recipe_size, warmup_cosine

PAPER = Paper(
    slug="randomized_quantization",
    title="Randomized Quantization: A Generic Augmentation for Data Agnostic Self-supervised Learning",
    authors=(
        "Huimin Wu",
        "Chenyang Lei",
        "Xiao Sun",
        "Peng-Shuai Wang",
        "Qifeng Chen",
        "Kwang-Ting Cheng",
        "Stephen Lin",
        "Zhirong Wu",
    ),
    venue="ICCV",
    year=2023,
    arxiv="2212.08663",
    code="https://github.com/microsoft/random_quantize",
    part="joint_embedding",
    data=("emoji", "series", "digits"),
    idea="Round each channel to a few values, with random bins and random values, and any data has two views.",
    minutes=30,
    needs=("simclr",),
)


# -------------------------------------------------------------------------------------------- the quantizer (section 3)


def _check_positions(x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x: expected floats, got {x.dtype}")
    if x.ndim < 3 or not x.numel():
        raise ValueError(f"x: expected shape (B, C, *positions), not empty, got {tuple(x.shape)}")


def _check_draws(name: str, draws: Tensor, rows: tuple[int, ...], last: int | None = None) -> None:
    if draws.ndim != 3 or draws.shape[:2] != rows or (last is not None and draws.shape[2] != last):
        raise ValueError(f"{name}: expected shape {(*rows, last or 'R')}, got {tuple(draws.shape)}")
    if not ((draws >= 0) & (draws <= 1)).all():
        raise ValueError(f"{name}: expected numbers in [0, 1], got {draws.min().item()} to {draws.max().item()}")


def bin_edges(x: Tensor, edge_u: Tensor) -> Tensor:
    """Where the range of each sample and channel is cut: its minimum, the sorted interior edges, its maximum.

    Args:
        x: (B, C, *positions), one position axis or more.
        edge_u: (B, C, R - 1), places of the interior edges in [0, 1] as shares of the range, in any order.

    Returns:
        (B, C, R + 1), in the precision of x, at least float32.

    Raises:
        ValueError: shapes that do not fit, nothing in x, a share outside [0, 1]. TypeError: x holds no floats.
    """
    _check_positions(x)
    _check_draws("edge_u", edge_u, tuple(x.shape[:2]))
    return _edges(x, edge_u)


def _edges(x: Tensor, edge_u: Tensor) -> Tensor:
    low, high = (end[..., None] for end in at_least_float32(x).flatten(2).aminmax(dim=2))
    # lerp meets both ends exactly, where low + u * (high - low) may round past them
    return torch.cat([low, torch.lerp(low, high, edge_u.to(low)).sort(dim=2).values, high], dim=2)


def bin_index(x: Tensor, edges: Tensor) -> Tensor:
    """The bin of each value: the number of interior edges that are not above it.

    Args:
        x: (B, C, *positions). edges: (B, C, R + 1), ascending, as `bin_edges` returns them.

    Returns:
        int64 of the shape of x, in 0 ... R - 1. Bins are closed on the left; the last one holds the maximum too.
    """
    _check_positions(x)
    if edges.ndim != 3 or edges.shape[:2] != x.shape[:2] or edges.shape[2] < 2:
        raise ValueError(f"edges: expected shape {(*x.shape[:2], 'R + 1')}, got {tuple(edges.shape)}")
    kind = torch.promote_types(x.dtype, edges.dtype)
    interior, values = edges[..., 1:-1].to(kind).contiguous(), x.flatten(2).to(kind).contiguous()
    return torch.searchsorted(interior, values, right=True).view(x.shape)


def quantize(x: Tensor, edge_u: Tensor, value_u: Tensor) -> Tensor:
    """Each value becomes the representative of its bin, y = left + v (right - left). Nothing here is random.

    The result depends on x through minimum and maximum only, and so does its gradient.

    Args:
        x: (B, C, *positions).
        edge_u: (B, C, R - 1) in [0, 1], as in `bin_edges`.
        value_u: (B, C, R) in [0, 1], one v for each bin in ascending order.

    Returns:
        Shape and dtype of x.

    Raises:
        ValueError: as `bin_edges`; value_u of another shape or outside [0, 1]. TypeError: x holds no floats.
    """
    _check_positions(x)
    _check_draws("edge_u", edge_u, tuple(x.shape[:2]))
    _check_draws("value_u", value_u, tuple(x.shape[:2]), edge_u.shape[2] + 1)
    return _quantize(x, edge_u, value_u)


def _quantize(x: Tensor, edge_u: Tensor, value_u: Tensor) -> Tensor:
    edges = _edges(x, edge_u)
    representatives = torch.lerp(edges[..., :-1], edges[..., 1:], value_u.to(edges))
    return representatives.gather(2, bin_index(x, edges).flatten(2)).view(x.shape).to(x.dtype)


def randomized_quantization(
    x: Tensor,
    *,
    num_bins: int = 8,
    spacing: str = "random",
    reproduction: str = "random",
    p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One random view of each sample: every channel through a quantizer of its own (section 3).

    Drawn in this order: edges, representatives, and where p < 1 the samples that are changed; on the generator's
    device, so that a generator of the CPU gives every device the same view.

    Args:
        x: (B, C, *positions).
        num_bins: R; 8 in the paper's recipe for pictures.
        spacing: "random" edges, or "uniform" ones at k / R of the range.
        reproduction: "random" representatives, or the "middle" of each bin.
        p: probability that a sample is changed; else it is returned as it is.

    Returns:
        Shape and dtype of x.

    Raises:
        ValueError: num_bins < 1, an unknown word, p outside [0, 1], fewer than three axes, nothing in x.
        TypeError: x holds no floats.
    """
    _check_positions(x)
    _check_options(num_bins, spacing, reproduction, p)
    batch, channels = x.shape[:2]
    device = x.device if generator is None else generator.device

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device).to(x.device)

    if spacing == "random":
        edge_u = rand(batch, channels, num_bins - 1)
    else:
        edge_u = torch.arange(1, num_bins, device=x.device, dtype=at_least_float32(x[:0]).dtype) / num_bins
        edge_u = edge_u.expand(batch, channels, -1)
    if reproduction == "random":
        value_u = rand(batch, channels, num_bins)
    else:
        value_u = torch.full((batch, channels, num_bins), 0.5, device=x.device)
    out = _quantize(x, edge_u, value_u)
    if p == 1:
        return out
    return torch.where(rand(batch).view(-1, *[1] * (x.ndim - 1)) < p, out, x)


def _check_options(num_bins: int, spacing: str, reproduction: str, p: float) -> None:
    if num_bins < 1:
        raise ValueError(f"num_bins: expected at least 1, got {num_bins}")
    for name, word, fixed in (("spacing", spacing, "uniform"), ("reproduction", reproduction, "middle")):
        if word not in ("random", fixed):
            raise ValueError(f'{name}: expected "random" or "{fixed}", got {word!r}')
    if not 0 <= p <= 1:
        raise ValueError(f"p: expected a probability in [0, 1], got {p}")


class RandomizedQuantization(nn.Module):
    """`randomized_quantization` as a layer, for inputs or for embeddings inside a network; identity in eval mode."""

    def __init__(
        self,
        num_bins: int = 8,
        *,
        spacing: str = "random",
        reproduction: str = "random",
        p: float = 1.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        _check_options(num_bins, spacing, reproduction, p)
        self.options = {"num_bins": num_bins, "spacing": spacing, "reproduction": reproduction, "p": p}
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return randomized_quantization(x, **self.options, generator=self.generator) if self.training else x

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


# ------------------------------------------------------------------------------------ what it is compared with (arms)


def same_error_noise(x: Tensor, *, generator: torch.Generator | None = None, **options) -> Tensor:
    """Gaussian noise with, in each channel, the mean squared error of a randomized quantization with `options`.

    It withholds as much of the value, but keeps no order. (B, C, *positions) -> the same.
    """
    error = (randomized_quantization(x, generator=generator, **options) - x).flatten(2).square().mean(2).sqrt()
    device = x.device if generator is None else generator.device
    noise = torch.randn(x.shape, generator=generator, device=device).to(x)
    return x + error.view(*error.shape, *[1] * (x.ndim - 2)) * noise


def mask_positions(x: Tensor, *, ratio: float = 0.3, generator: torch.Generator | None = None) -> Tensor:
    """Random positions lose all their channels: they get the mean of the channel. (B, C, *positions) -> the same."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio: expected a share in [0, 1], got {ratio}")
    device = x.device if generator is None else generator.device
    hidden = torch.rand((len(x), 1, *x.shape[2:]), generator=generator, device=device).to(x.device) < ratio
    return torch.where(hidden, x.flatten(2).mean(2).view(*x.shape[:2], *[1] * (x.ndim - 2)), x)


def tone_curves(x: Tensor, *, spread: float = 0.7, generator: torch.Generator | None = None) -> Tensor:
    """A smooth increasing curve for each sample and channel: t -> t^gamma on its range, log gamma ~ N(0, spread^2).

    No arm is trained with it. It asks what the views taught. (B, C, *positions) -> the same.
    """
    low, high = (end.view(*x.shape[:2], *[1] * (x.ndim - 2)) for end in x.flatten(2).aminmax(dim=2))
    device = x.device if generator is None else generator.device
    gamma = (spread * torch.randn(low.shape, generator=generator, device=device)).exp().to(x)
    span = high - low
    return low + span * ((x - low) / span.where(span > 0, 1)).clamp(0, 1) ** gamma


# ---------------------------------------------------------------------------------------- siamese training (section 4)


class Siamese(nn.Module):
    """Encoder and projection head; with `momentum` also MoCo v3's predictor and the teacher that makes the keys.

    `encoder` maps (B, C, *positions) to rows (N, encoder.out_dim): one a sample, or one a node.
    """

    def __init__(self, encoder: nn.Module, *, hidden: int = 128, out_dim: int = 64, momentum: float | None = None):
        super().__init__()
        self.student = nn.Sequential(encoder, mlp(encoder.out_dim, hidden, out_dim, bias=True))
        self.predictor = nn.Identity() if momentum is None else mlp(out_dim, hidden, out_dim, bias=True)
        self.teacher = None if momentum is None else EMATeacher(self.student, momentum=momentum)

    @property
    def encoder(self) -> nn.Module:
        return self.student[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, (N, out_dim) each; without a teacher they are the same rows."""
        z = self.student(x)
        return self.predictor(z), z if self.teacher is None else self.teacher(x)

    def update(self, step: int, steps: int) -> None:
        """One step of the teacher, if there is one, with a momentum that rises to 1 along a cosine."""
        if self.teacher is not None:
            self.teacher.update(self.student, momentum=1 - cosine_schedule(step, steps, base=1 - self.teacher.momentum))


def contrast(model: nn.Module, views: tuple[Tensor, Tensor], *, temperature: float) -> dict[str, Tensor]:
    """Each row must find its key in the other view; its negatives are both views of the other half of the batch.

    That is `losses.info_nce` four times: two directions, two halves. Also returned: the share of rows whose key is
    nearer than every key of the other half in the same view.

    Raises:
        ValueError: fewer than two rows a view.
    """
    q, k = (gather(z) for z in model(torch.cat(views)))
    if len(q) < 4:
        raise ValueError(f"views: expected at least two rows each, else there is no negative, got {len(q) // 2}")
    q, k = ([view.tensor_split(2) for view in z.chunk(2)] for z in (q, k))  # [view][half]
    losses, found = [], []
    for view, half in ((0, 0), (0, 1), (1, 0), (1, 1)):
        query, key = q[view][half], k[1 - view][half]
        losses.append(info_nce(query, key, torch.cat([k[0][1 - half], k[1][1 - half]]), temperature=temperature))
        with torch.no_grad():
            query, key, others = (F.normalize(z.float(), dim=1) for z in (query, key, k[1 - view][1 - half]))
            found.append(((query * key).sum(1) > (query @ others.T).amax(1)).float().mean())
    return {"loss": torch.stack(losses).mean(), "accuracy": torch.stack(found).mean()}


def task(
    model: Siamese,
    read: Callable[[Tensor], Tensor],
    count: int,
    *,
    batch_size: int,
    view: Callable[[Tensor, torch.Generator], Tensor],
    temperature: float = 0.2,
    lr: float = 2e-3,
) -> Task:
    """What `train.fit` trains: `batch_size` of `count` samples a step, none of them twice, and two views of each.

    Args:
        read: indices (B,) -> samples (B, C, *positions) on the device of the indices.
    """
    draw = distinct(read, count, batch_size, least=1)

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = draw(generator)
        return view(x, generator), view(x, generator)

    return Task(
        model=model,
        batch=batch,
        loss=lambda model, views: contrast(model, views, temperature=temperature),
        optimizer=functools.partial(adamw, lr=lr),
        schedule=warmup_cosine(0.1),
        after_step=lambda model, step, steps: model.update(step, steps),
    )


def crop_and_quantize(x: Tensor, generator: torch.Generator) -> Tensor:
    """The paper's view of a picture (B, C, H, W): random crop, mirror, randomized quantization with 8 bins."""
    boxes = random_crop_boxes(len(x), *x.shape[2:], scale=(0.2, 1.0), generator=generator)
    x = random_flip(crop_and_resize(x, boxes, tuple(x.shape[2:])), generator=generator)
    return randomized_quantization(x, generator=generator)


def recipe(
    source: Path | None = None, *, batch_size: int | None = None, device: str = "cpu", size: str | None = None
) -> Recipe:
    """What `sslref train randomized_quantization` trains.

    Args:
        source: CIFAR-10's binary version, or a folder with one subfolder of images a class; None: the emoji.
        batch_size: in place of 512 (paper) or 64 (miniature).
        size: "paper" is crop + RQ under the loss, the predictor and the teacher of MoCo v3, with a ResNet-18 for
            small pictures and 300 epochs; "miniature" is this chapter's. By default "paper" where there is a source.

    Raises:
        ValueError: unknown size, more samples a batch than pictures. DataError: source is not what is expected.
    """
    size = recipe_size(size, source)
    if source is None:
        images = emoji().images().to(device)
        read, count, name = images.__getitem__, len(images), "emoji"
    else:
        found = folders.pictures(source, 32, device=device)
        read, count, name = found.images, len(found), found.name
    if size == "paper":
        resnet18 = {"width": 64, "blocks": (2, 2, 2, 2)}
        model = seeded(0, lambda: Siamese(SmallResNet(**resnet18), hidden=2048, out_dim=256, momentum=0.99))
    else:
        model = seeded(0, lambda: Siamese(ConvNet()))
    batch_size = batch_size or (512 if size == "paper" else 64)
    steps = 300 * count // batch_size if size == "paper" else 200
    view = crop_and_quantize if size == "paper" else VIEWS["RQ"]
    about = f"Randomized quantization, {size} recipe, {count:,} pictures ({name})"
    return Recipe(task(model, read, count, batch_size=batch_size, view=view, lr=1e-3), steps, batch_size, about)


# ----------------------------------------------------------------------------- the claim in miniature: three modalities


class World(NamedTuple):
    x: Tensor  # (B, C, *positions), all samples; of a graph (1, F, N), its nodes being the positions
    y: Tensor  # (N,) labels of the rows: samples, or nodes
    train: Tensor  # (N,) bool, the rows whose labels a probe may see
    a_hat: Tensor | None = None  # (N, N) propagation matrix of a graph


def pictures(seed: int = 0) -> World:
    """1,911 emoji at 16 px, nine categories; the split is that of the data."""
    parts = emoji("train"), emoji("test")
    x = torch.cat([F.avg_pool2d(part.images(), 2) for part in parts])
    return World(x, torch.cat([part.labels for part in parts]), torch.arange(len(x)) < len(parts[0]))


def vowels(seed: int = 0) -> World:
    """640 recordings of two Japanese vowels, 12 channels, resampled to 24 steps, nine speakers; the official split."""
    parts = series("JapaneseVowels", "train", length=24), series("JapaneseVowels", "test", length=24)
    x, y = torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])
    return World(x, y, torch.arange(len(x)) < len(parts[0]))


def nodes(seed: int = 0) -> World:
    """600 digits as nodes of a graph that the seed draws, 64 noisy features, ten classes, 100 labels for the probe."""
    graph = digits_graph(generator=torch.Generator().manual_seed(seed))
    train = torch.arange(graph.num_nodes) < 100  # the nodes are in random order
    return World(graph.x.T[None].contiguous(), graph.y, train, gcn_norm(graph.edge_index, graph.num_nodes))


WORLDS = {"pictures": pictures, "series": vowels, "graph": nodes}


class Encoder(nn.Module):
    """(B, C, *positions) -> rows: a convolutional network for pictures and series, a GCN for the nodes of a graph."""

    def __init__(self, channels: int, a_hat: Tensor | None = None):
        super().__init__()
        self.net = ConvNet(in_chans=channels) if a_hat is None else GCN(channels, 128, 64, dropout=0.0)
        self.out_dim = self.net.out_dim if a_hat is None else 64
        self.register_buffer("a_hat", a_hat)

    def forward(self, x: Tensor) -> Tensor:
        if self.a_hat is not None:
            return torch.cat([self.net(features.T, self.a_hat) for features in x])
        return self.net(x if x.ndim == 4 else x[:, :, None])  # a series is a picture of height 1


def _rq(**options) -> Callable[[Tensor, torch.Generator], Tensor]:
    return lambda x, generator: randomized_quantization(x, **options, generator=generator)


def _by_node(x: Tensor, generator: torch.Generator) -> Tensor:
    """The other reading of a graph (1, F, N): each node is a sample of one channel, its features are positions."""
    return randomized_quantization(x[0].T[:, None], generator=generator)[:, 0].T[None]


# How a view is made. Numbers of bins are such that uniform data suffers about the same squared error in all arms.
VIEWS: dict[str, Callable[[Tensor, torch.Generator], Tensor] | None] = {
    "untrained": None,
    "nothing random": _rq(num_bins=3, spacing="uniform", reproduction="middle"),
    "random values": _rq(num_bins=4, spacing="uniform"),
    "random edges": _rq(num_bins=5, reproduction="middle"),
    "RQ": _rq(num_bins=8),
    "noise": lambda x, generator: same_error_noise(x, num_bins=8, generator=generator),
    "masking": lambda x, generator: mask_positions(x, generator=generator),
    "masking + RQ": lambda x, generator: mask_positions(
        randomized_quantization(x, num_bins=8, generator=generator), generator=generator
    ),
}
ARMS, SWEEP = tuple(VIEWS), tuple(f"R = {bins}" for bins in (2, 4, 8, 16, 32))
VIEWS |= {"RQ by node": _by_node} | {name: _rq(num_bins=int(name[4:])) for name in SWEEP}


class Trained(NamedTuple):
    model: Siamese
    history: History | None
    world: World


def pretrain(
    arm: str,
    modality: str,
    *,
    seed: int = 0,
    device: str = "cpu",
    steps: int = 200,
    batch_size: int = 64,
    progress=False,
) -> Trained:
    """The network of an arm, with the data, the initialisation and the batches of a seed, in evaluation mode.

    Raises:
        ValueError: unknown arm or modality.
    """
    for name, value, known in (("arm", arm, VIEWS), ("modality", modality, WORLDS)):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    world = World(*(part if part is None else part.to(device) for part in WORLDS[modality](seed)))
    model, history = seeded(seed, lambda: Siamese(Encoder(world.x.shape[1], world.a_hat))).to(device), None
    view = VIEWS[arm]
    if view is not None:
        x = world.x if world.a_hat is not None else world.x[world.train]  # a graph is seen whole, without labels
        job = task(model, x.__getitem__, len(x), batch_size=min(batch_size, len(x)), view=view)
        history = fit(job, steps=steps, seed=seed, device=device, log_every=5, progress=progress)
    return Trained(model.eval(), history, world)


@torch.no_grad()
def compare_views(arm: str, x: Tensor, generator: torch.Generator) -> dict[str, float]:
    """How strong the views of an arm are. 100 % is the variance of the channels of x.

    Returns:
        distortion: mean squared difference, in %, between x and a view. gap: half of that between two views.
        equal: share of samples whose two views agree to the last bit.
    """
    view = VIEWS[arm] or (lambda x, generator: x)
    a, b = view(x, generator), view(x, generator)
    variance = (x - x.flatten(2).mean(2).view(*x.shape[:2], *[1] * (x.ndim - 2))).square().mean()
    return {
        "distortion": 100 * ((a - x).square().mean() / variance).item(),
        "gap": 50 * ((a - b).square().mean() / variance).item(),
        "equal": (a == b).flatten(1).all(1).double().mean().item(),
    }


@torch.no_grad()
def measure(trained: Trained, *, seed: int) -> dict[str, float]:
    """What the representation knows, and what a curve does to it; features standardised by the training rows.

    The curve's share takes the test rows and their copies after an increasing curve on each channel. 0 %: the copies
    are equal; 50 %: they are strangers; more: all of them moved the same way.

    Returns:
        probe: accuracy, in %, of a linear probe on the test rows.
        curve_share: share of the variance of rows and copies, in %, that lies between a row and its own copy.
    """
    model, _, world = trained
    generator = torch.Generator().manual_seed(seed)
    plain, curved = (model.encoder(x) for x in (world.x, tone_curves(world.x, generator=generator)))
    train, test, bent = standardize(plain[world.train], plain[~world.train], curved[~world.train])
    logits = linear_probe(train, world.y[world.train], test, C=0.01)
    within = (test - bent).square().sum(1).mean() / 4
    return {
        "probe": 100 * accuracy(logits, world.y[~world.train]),
        "curve_share": 100 * (within / torch.cat([test, bent]).var(0, correction=0).sum()).item(),
    }


def run(arm: str, *, seed: int, device: str, modality: str, steps: int = 200, batch_size: int = 64) -> dict[str, float]:
    """One arm, one modality, one seed: `measure`, `compare_views`, and loss and accuracy of the last steps."""
    trained = pretrain(arm, modality, seed=seed, device=device, steps=steps, batch_size=batch_size)
    generator = torch.Generator().manual_seed(seed)
    last = {name: trained.history.last(name) if trained.history else float("nan") for name in ("loss", "accuracy")}
    return measure(trained, seed=seed) | compare_views(arm, trained.world.x, generator) | last


def _experiment(modality: str, arms: tuple[str, ...], ci: int, ledger: int, **gpu) -> Experiment:
    budgets = {
        "smoke": {"seeds": 2, "steps": 2, "batch_size": 16},
        "ci": {"seeds": 1, "steps": ci},
        "ledger": {"seeds": 10, "steps": ledger},
        "gpu": {"seeds": 32, "steps": 2000, **gpu},
    }
    return Experiment(run, arms, {profile: spent | {"modality": modality} for profile, spent in budgets.items()})


EXPERIMENTS = {
    "pictures": _experiment("pictures", ARMS, 30, 120, batch_size=256),
    "series": _experiment("series", ARMS, 30, 120, batch_size=128),
    "graph": _experiment("graph", (*ARMS, "RQ by node"), 15, 60),
    "bins": _experiment("series", SWEEP, 30, 120, batch_size=128),
}


# fmt: off
_ROWS = (  # what, metric, baseline, ablations, statement; the method is RQ
    ("curve", "curve_share", "noise", ("untrained", "nothing random"),
     "at equal error, training on RQ leaves less of an increasing curve in the representation than noise does"),
    ("random", "probe", "nothing random", ("untrained", "random values", "random edges"),
     "a probe reads more after training on random edges and values than on a quantizer without randomness"),
    ("noise", "probe", "noise", ("untrained", "masking", "masking + RQ"),
     "a probe reads more after training on RQ than on noise of equal error"),
)
# fmt: on
CLAIMS = (
    Claim(
        id="identical",
        statement="With fixed edges and middle values two views of a picture are the same to the last bit.",
        experiment="pictures",
        metric="equal",
        higher_is_better=True,
        baseline="RQ",
        method="nothing random",
        exact=True,
    ),
    *(
        Claim(
            id=f"{what}_{modality}",
            statement=f"{modality.capitalize()}: {statement}.",
            experiment=modality,
            metric=metric,
            higher_is_better=metric == "probe",
            baseline=baseline,
            method="RQ",
            ablations=ablations,
            kind="gain" if metric == "probe" else "mechanism",
            unit="points",
        )
        for what, metric, baseline, ablations, statement in _ROWS
        for modality in WORLDS
    ),
    *(
        Claim(
            id=f"bins_{bins}",
            statement=f"Series: a probe reads more after training with 8 bins than with {bins}.",
            experiment="bins",
            metric="probe",
            higher_is_better=True,
            baseline=f"R = {bins}",
            method="R = 8",
            ablations=tuple(name for name in SWEEP if name not in ("R = 8", f"R = {bins}")),
            kind="gain",
            unit="points",
        )
        for bins in (2, 32)
    ),
)

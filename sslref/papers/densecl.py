"""DenseCL: dense contrastive learning for self-supervised visual pre-training.

X. Wang, R. Zhang, C. Shen, T. Kong, L. Li, CVPR 2021, arXiv 2011.09157; official code: WXinlong/DenseCL.

MoCo averages a picture into one vector and never asks whether a single place of the feature map is good for anything.
DenseCL keeps that loss and adds one of the same form for every place: its positive is the place of the other view
whose backbone feature is most similar, its negatives are a queue of other pictures, one vector each. A second head
without pooling makes the vectors. The two losses are mixed half and half.

    section 3.2  DenseHead           section 3.3, Eq. 2     info_nce, dense_info_nce, densecl_loss
    section 3.4  dense_correspondence (Eq. 3)               section 3.1, after MoCo  KeyQueue, DenseCL
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sslref.augment import two_views
from sslref.claims import Claim, Experiment
from sslref.data.worlds.scenes import Scenes, Views, random_views
from sslref.evaluate import (
    cells_apart,
    nearest_cells,
)
from sslref.evaluate.scenes import probe_scenes, scene_source, scene_test
from sslref.losses import gather
from sslref.losses import info_nce as info_nce
from sslref.nn import ConvMap, EMATeacher, SmallResNet, calibrate_batchnorm, cosine_schedule, seeded, true_matches
from sslref.nn import KeyQueue as KeyQueue
from sslref.registry import Paper
from sslref.train import History, Recipe, Task, adamw, distinct, fit, recipe_size, sgd, warmup_cosine

PAPER = Paper(
    slug="densecl",
    title="Dense Contrastive Learning for Self-Supervised Visual Pre-Training",
    authors=("Xinlong Wang", "Rufeng Zhang", "Chunhua Shen", "Tao Kong", "Lei Li"),
    venue="CVPR",
    year=2021,
    arxiv="2011.09157",
    code="https://github.com/WXinlong/DenseCL",
    part="dense",
    data=("scene world", "emoji", "photographs"),
    idea="Contrast every place of a picture with the most similar place of another view, not only whole pictures.",
    minutes=35,
    needs=("simclr",),
)


# --------------------------------------------------------------------------------------------- the heads (section 3.2)


class Projected(NamedTuple):
    image: Tensor  # (B, out_dim), of the pooled feature map
    dense: Tensor  # (B, out_dim, S, S), of every place on its own
    pooled: Tensor  # (B, out_dim), the mean of `dense` over places


class DenseHead(nn.Module):
    """Two small networks on one feature map: pool, then project; and project every place. Nothing is normalised here.

    Args:
        in_dim: channels of the feature map.
        hidden_dim: width of the hidden layers, `in_dim` where None.
        out_dim: of the projections.
        grid: side to which the map is average-pooled before the dense projection, or None.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, in_dim: int, *, hidden_dim: int | None = None, out_dim: int = 128, grid: int | None = None):
        super().__init__()
        hidden_dim = in_dim if hidden_dim is None else hidden_dim
        sizes = {"in_dim": in_dim, "hidden_dim": hidden_dim, "out_dim": out_dim, "grid": 1 if grid is None else grid}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.mlp = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, out_dim))
        self.pool = nn.Identity() if grid is None else nn.AdaptiveAvgPool2d(grid)
        self.mlp2 = nn.Sequential(nn.Conv2d(in_dim, hidden_dim, 1), nn.ReLU(), nn.Conv2d(hidden_dim, out_dim, 1))

    def forward(self, feat: Tensor) -> Projected:
        """`feat` (B, in_dim, H, W). Raises ValueError: another shape."""
        if feat.ndim != 4 or feat.shape[1] != self.mlp[0].in_features:
            raise ValueError(f"feat: expected shape (B, {self.mlp[0].in_features}, H, W), got {tuple(feat.shape)}")
        dense = self.mlp2(self.pool(feat))
        return Projected(self.mlp(feat.mean((2, 3))), dense, dense.mean((2, 3)))


# ------------------------------------------------------------------------------------- correspondence (section 3.4)


def dense_correspondence(feat_q: Tensor, feat_k: Tensor) -> Tensor:
    """For every place of the query the place of the key with the largest cosine (Eq. 3); no gradient.

    It reads backbone features, not projections, and need not be one to one.

    Args:
        feat_q: (B, D, H, W). feat_k: (B, D, H2, W2). Normalised here.

    Returns:
        (B, H * W) int64, row-major places of the key, ties to the lower index.

    Raises:
        ValueError: not 4-D, or B or D differ.
    """
    return nearest_cells(feat_q, feat_k)


# ------------------------------------------------------------------------------------------- the losses (section 3.3)


def _rows(maps: Tensor) -> Tensor:
    """(B, D, H, W) -> (B * H * W, D), one row a place."""
    return maps.flatten(2).mT.flatten(0, 1)


def _at(k_map: Tensor, match: Tensor) -> Tensor:
    """The vectors of a map (B, D, H2, W2) at places (B, N): (B * N, D)."""
    index = match[:, None].expand(-1, k_map.shape[1], -1)
    return k_map.flatten(2).gather(2, index).mT.flatten(0, 1)


def _dense(q_map: Tensor, k_map: Tensor, match: Tensor, queue: Tensor, temperature: float) -> Tensor:
    return info_nce(_rows(q_map), _at(k_map, match), queue, temperature=temperature)


def dense_info_nce(q_map: Tensor, k_map: Tensor, match: Tensor, queue: Tensor, *, temperature: float = 0.2) -> Tensor:
    """Eq. 2: `info_nce` of every place of the query with its matched place of the key, the mean over B * H * W.

    Args:
        q_map: (B, D, H, W) projections of the query. k_map: (B, D, H2, W2) of the key, detached.
        match: (B, H * W) int64, row-major places of `k_map`.
        queue: (K, D) negatives, detached, the same for all places.

    Raises:
        ValueError: shapes that do not fit, an index out of range (the host waits for the device to know), temperature
            <= 0.
    """
    if q_map.ndim != 4 or k_map.ndim != 4 or q_map.shape[:2] != k_map.shape[:2]:
        got = f"{tuple(q_map.shape)} and {tuple(k_map.shape)}"
        raise ValueError(f"q_map, k_map: expected (B, D, H, W) and (B, D, H2, W2), got {got}")
    places, keys = q_map.shape[2] * q_map.shape[3], k_map.shape[2] * k_map.shape[3]
    if match.shape != (len(q_map), places) or match.dtype != torch.int64:
        got = f"{match.dtype} of shape {tuple(match.shape)}"
        raise ValueError(f"match: expected int64 of shape ({len(q_map)}, {places}), got {got}")
    if match.numel() and not 0 <= int(match.min()) <= int(match.max()) < keys:
        raise ValueError(f"match: expected places 0 to {keys - 1}, got {int(match.min())} to {int(match.max())}")
    return _dense(q_map, k_map, match, queue, temperature)


class DenseCLLoss(NamedTuple):
    total: Tensor  # (1 - dense_weight) * image + dense_weight * dense
    image: Tensor
    dense: Tensor


def _mixed(image: Tensor, dense: Tensor, dense_weight: float) -> DenseCLLoss:
    if not 0 <= dense_weight <= 1:
        raise ValueError(f"dense_weight: expected a number in [0, 1], got {dense_weight}")
    return DenseCLLoss((1 - dense_weight) * image + dense_weight * dense, image, dense)


def densecl_loss(
    q: Tensor,
    k: Tensor,
    q_map: Tensor,
    k_map: Tensor,
    feat_q: Tensor,
    feat_k: Tensor,
    queue: Tensor,
    dense_queue: Tensor,
    *,
    temperature: float = 0.2,
    dense_weight: float = 0.5,
) -> DenseCLLoss:
    """The whole loss: pictures against `queue`, places against `dense_queue`, matched by backbone features.

    Args:
        q, k: (B, D) image projections of query and key. q_map, k_map: (B, D, H, W) dense projections.
        feat_q, feat_k: (B, C, H, W) backbone maps. queue, dense_queue: (K, D).
        dense_weight: the paper's lambda.

    Raises:
        ValueError: shapes that do not fit, temperature <= 0, dense_weight outside [0, 1].
    """
    image = info_nce(q, k, queue, temperature=temperature)
    if q_map.shape[2:] != feat_q.shape[2:] or k_map.shape[2:] != feat_k.shape[2:]:
        got = " and ".join(str(tuple(x.shape)) for x in (q_map, feat_q, k_map, feat_k))
        raise ValueError(f"q_map, feat_q, k_map, feat_k: expected the same places for queries, and for keys, got {got}")
    match = dense_correspondence(feat_q, feat_k)  # in range, so it need not be looked at
    return _mixed(image, _dense(q_map, k_map, match, dense_queue, temperature), dense_weight)


def located_loss(
    q: Tensor,
    k: Tensor,
    q_map: Tensor,
    k_map: Tensor,
    match: Tensor,
    inside: Tensor,
    queue: Tensor,
    dense_queue: Tensor,
    *,
    temperature: float = 0.2,
    dense_weight: float = 0.5,
) -> DenseCLLoss:
    """`densecl_loss` with matches that are given, for places `inside` (B, H * W) the other view alone.

    Not in the paper's method: its control, with `nn.true_matches` for the matches.
    """
    kept = inside.flatten()
    image = info_nce(q, k, queue, temperature=temperature)
    dense = info_nce(_rows(q_map)[kept], _at(k_map, match)[kept], dense_queue, temperature=temperature)
    return _mixed(image, dense, dense_weight)


# ------------------------------------------------------------------------- the network (section 3.1: as MoCo has it)


class Branch(nn.Module):
    """Encoder and head: pictures -> (feature map, Projected)."""

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> tuple[Tensor, Projected]:
        feat = self.encoder.features(x)
        return feat, self.head(feat)


class Output(NamedTuple):
    feat_q: Tensor
    query: Projected
    feat_k: Tensor  # of the slow copy, without gradient, as is `key`
    key: Projected
    queue: Tensor  # (K, D), both queues as they were before this batch
    dense_queue: Tensor


class DenseCL(nn.Module):
    """Query branch, its slow copy for the keys, and two queues of keys; `encoder.features` gives (B, out_dim, H, W).

    In training mode a forward pass pushes its keys: to one queue the image vectors, to the other the *means* of the
    dense maps, one vector a picture. The loss reads the queues that the pass returns, which are those before the push.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        hidden_dim: int | None = None,
        out_dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
    ):
        super().__init__()
        self.query = Branch(encoder, DenseHead(encoder.out_dim, hidden_dim=hidden_dim, out_dim=out_dim))
        self.key = EMATeacher(self.query, momentum=momentum)
        self.queue, self.dense_queue = (KeyQueue(queue_size, out_dim) for _ in range(2))

    @property
    def encoder(self) -> nn.Module:
        return self.query.encoder

    def forward(self, x_q: Tensor, x_k: Tensor) -> Output:
        (feat_q, query), (feat_k, key) = self.query(x_q), self.key(x_k)
        out = Output(feat_q, query, feat_k, key, self.queue.keys, self.dense_queue.keys)
        if self.training:
            self.queue.push(gather(key.image))
            self.dense_queue.push(gather(key.pooled))
        return out


# --------------------------------------------------------------------------------------------------------- training


class Pair(NamedTuple):
    x_q: Tensor
    x_k: Tensor
    boxes_q: Tensor | None = None  # where the views were cut, if that is known
    boxes_k: Tensor | None = None


def contrast(
    model: nn.Module, pair: Pair, *, temperature: float, dense_weight: float, matches: str = "features"
) -> dict[str, Tensor]:
    """Loss of one batch and what to watch.

    Args:
        matches: "features", the paper's, or "boxes", the true ones.
    """
    out = model(pair.x_q, pair.x_k)
    options = {"temperature": temperature, "dense_weight": dense_weight}
    heads = (out.query.image, out.key.image, out.query.dense, out.key.dense)
    queues = (out.queue, out.dense_queue)
    watched = {}
    if pair.boxes_q is not None:
        size = tuple(out.feat_q.shape[2:])
        true, inside = true_matches(pair.boxes_q, pair.boxes_k, *size)
        near = cells_apart(dense_correspondence(out.feat_q, out.feat_k), true, size[1]) <= 1
        watched["matched"] = (near & inside).sum() / inside.sum()
    if matches == "boxes":
        loss = located_loss(*heads, true, inside, *queues, **options)
    else:
        loss = densecl_loss(*heads, out.feat_q, out.feat_k, *queues, **options)
    return {"loss": loss.total, "image": loss.image.detach(), "dense": loss.dense.detach(), **watched}


def task(
    model: DenseCL,
    read: Callable[[Tensor], Tensor],
    count: int,
    *,
    batch_size: int,
    views: Callable[[Tensor, torch.Generator], Pair],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    warmup: float = 0.0,
    rising: bool = False,
    temperature: float = 0.2,
    dense_weight: float = 0.5,
    matches: str = "features",
) -> Task:
    """What `train.fit` trains: each step draws `batch_size` of `count` pictures, no picture twice, and two views each.

    Args:
        read: indices (B,) -> pictures (B, 3, H, W) in [0, 1] on the device of the indices.
        views: (pictures, generator) -> two views of each.
        warmup: share of the steps in which the learning rate rises; it then falls along a cosine to 0.
        rising: the slow copy's momentum rises from its own value to 1 along a cosine; the paper keeps it.

    Raises:
        ValueError: more samples a batch than pictures or than the queues hold, unknown matches.
    """
    draw = distinct(read, count, batch_size, least=1)
    if batch_size > len(model.queue.keys):
        raise ValueError(f"batch_size: expected at most {len(model.queue.keys)}, the number of keys, got {batch_size}")
    if matches not in ("features", "boxes"):
        raise ValueError(f'matches: expected "features" or "boxes", got {matches!r}')

    def follow(model: nn.Module, step: int, steps: int) -> None:
        base = model.key.momentum
        model.key.update(model.query, momentum=cosine_schedule(step, steps, base=base, final=1.0) if rising else base)

    options = {"temperature": temperature, "dense_weight": dense_weight, "matches": matches}
    return Task(
        model=model,
        batch=lambda generator: views(draw(generator), generator),
        loss=lambda model, pair: contrast(model, pair, **options),
        optimizer=optimizer,
        schedule=warmup_cosine(warmup),
        after_step=follow,
    )


def located_views(images: Tensor, generator: torch.Generator) -> Pair:
    """Two views of each scene with their boxes."""
    a, b = (random_views(images, generator=generator) for _ in range(2))
    return Pair(a.images, b.images, a.boxes, b.boxes)


def resnet18(*, width: int = 64) -> SmallResNet:
    """ResNet-18 for large pictures: the stem is a 7x7 convolution of stride 2 and a max-pooling of stride 2."""
    net = SmallResNet(width=width, blocks=(2, 2, 2, 2))
    convolution = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    net.stem = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return net


def recipe(
    source: Path | None = None, *, batch_size: int | None = None, device: str = "cpu", size: str | None = None
) -> Recipe:
    """What `sslref train densecl` trains.

    Args:
        source: a folder with one subfolder of images a class (any one will do); None: the scene world.
        batch_size: in place of 256 (paper) or 48 (miniature).
        size: "paper" is the official COCO recipe with ResNet-18 in place of ResNet-50: views of 224 px, SGD with a
            learning rate of 0.3 at 256 pictures, 800 epochs. "miniature" has the network, the size of the views and
            the optimiser of this chapter. By default "paper" where there is a source.

    Raises:
        ValueError: unknown size, a batch that does not fit. DataError: source is not what is expected.
    """
    size = recipe_size(size, source)
    side = 224 if size == "paper" else 48
    read, count, name = scene_source(source, round(8 / 7 * side), device)

    def views(images: Tensor, generator: torch.Generator) -> Pair:
        options = {"size": side, "scale": (0.2, 1.0), "strength": 0.5, "blur_p": 0.5}
        return Pair(*two_views(images, generator=generator, **options))

    if size == "miniature":
        options = MINIATURE | ({"views": located_views} if source is None else {"views": views})
        options["batch_size"] = batch_size or 48
        model, steps, network = seeded(0, lambda: DenseCL(ConvMap(), **SIZES)), 250, "four convolutions"
    else:
        batch_size = batch_size or 256

        options = {
            "optimizer": functools.partial(sgd, lr=0.3 * batch_size / 256, weight_decay=1e-4),
            "views": views,
            "batch_size": batch_size,
        }
        model, steps, network = seeded(0, lambda: DenseCL(resnet18())), 800 * count // batch_size, "ResNet-18"
    about = f"DenseCL, {size} recipe: {network}, {count:,} pictures ({name})"
    return Recipe(task(model, read, count, **options), steps, options["batch_size"], about)


# -------------------------------------------------------------- the claim in miniature: things on pieces of photographs


class World(NamedTuple):
    train: Tensor  # (N, 3, 64, 64) pictures to pre-train on
    labelled: Scenes  # for the probes
    test: Scenes  # on other parts of the photographs
    views: tuple[Views, Views]  # two views of every test scene
    copies: tuple[Tensor, Tensor]  # two windows (B, 3, 48, 48) of grainy test scenes, 8 pixels apart


@functools.lru_cache(maxsize=1)  # all arms of a seed share it
def world(seed: int, *, scenes: int = 3000, labelled: int = 150, test: int = 200, device: str = "cpu") -> World:
    """Scenes of the twelve things, drawn anew for every seed."""
    data = scene_test(seed, scenes=scenes, labelled=labelled, test=test, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    # with grain no two places are equal, so that there is one right answer
    grainy = data.test.images + 0.1 * torch.rand(data.test.images.shape, generator=generator, device=device)
    return World(*data, (grainy[..., :48, :48], grainy[..., :48, 8:56]))


SIZES = {"out_dim": 64, "queue_size": 240, "momentum": 0.99}
MINIATURE = {"optimizer": adamw, "warmup": 0.08, "rising": True}

ARMS = {
    "random weights": None,
    "pictures alone": {"dense_weight": 0.0},
    "own matches": {},
    "true matches": {"matches": "boxes"},
}


class Trained(NamedTuple):
    model: DenseCL
    history: History | None
    world: World


_KEPT: dict[tuple, Trained] = {}  # the last few, so that a chapter shows the very networks that its claims used


def pretrain(
    arm: str, *, seed: int = 0, device: str = "cpu", steps: int = 250, batch_size: int = 48, progress=False, **sizes
) -> Trained:
    """The network of an arm, with the scenes, the initialisation and the views of a seed, in evaluation mode.

    Args:
        sizes: of `world`.

    Raises:
        ValueError: unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"arm: expected one of {', '.join(ARMS)}, got {arm!r}")
    key = (arm, seed, device, steps, batch_size, *sorted(sizes.items()))
    if key not in _KEPT:
        scenes, history = world(seed, device=device, **sizes), None
        model = seeded(seed, lambda: DenseCL(ConvMap(), **SIZES)).to(device)
        if ARMS[arm] is None:
            calibrate_batchnorm(model.query, scenes.views[0].images.split(50))
        else:
            options = MINIATURE | ARMS[arm] | {"batch_size": batch_size, "views": located_views}
            job = task(model, scenes.train.__getitem__, len(scenes.train), **options)
            history = fit(job, steps=steps, seed=seed, device=device, log_every=5, progress=progress)
        while len(_KEPT) >= 4:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = Trained(model.eval(), history, scenes)
    return _KEPT[key]


@torch.no_grad()
def measure(encoder: nn.Module, scenes: World) -> dict[str, float]:
    """What frozen maps know of scenes that were not trained on: `evaluate.scenes.probe_scenes`, and one metric more.

    Returns:
        shifted: share (0 to 1) of places matched right in a copy of the picture that is shifted by one place.
    """
    still, moved = (encoder.features(copy) for copy in scenes.copies)
    # places 3, 4 of one and 2, 3 of the other see no border; the first is the second's right neighbour
    found = dense_correspondence(still[:, :, 2:5, 3:5], moved[:, :, 2:5, 1:5])
    expected = torch.tensor([[4 * r + c for r in range(3) for c in (1, 2)]], device=found.device)
    return probe_scenes(encoder, scenes) | {"shifted": (found == expected).double().mean().item()}


def run(arm: str, *, seed: int, device: str, steps: int, **budget) -> dict[str, float]:
    """One arm of the experiment with one seed: metrics of `measure`."""
    model, _, scenes = pretrain(arm, seed=seed, device=device, steps=steps, **budget)
    return measure(model.encoder, scenes)


EXPERIMENTS = {
    "scenes": Experiment(
        run=run,
        arms=tuple(ARMS),
        budgets={
            "smoke": {"seeds": 2, "steps": 2, "batch_size": 8, "scenes": 32, "labelled": 24, "test": 24},
            "ci": {"seeds": 1, "steps": 60, "scenes": 960, "labelled": 48, "test": 80},
            "ledger": {"seeds": 10, "steps": 250},
            "gpu": {"seeds": 16, "steps": 1000},
        },
    )
}


# fmt: off
_ROWS = (  # id, metric, baseline, method, statement
    ("match", "match", "pictures alone", "own matches",
     "With the dense loss, places find their counterparts in another view more often than with the image loss alone."),
    ("same_thing", "same_thing", "pictures alone", "own matches",
     "With the dense loss, places on a thing are matched to the same thing more often than with the image loss alone."),
    ("limit", "miou", "own matches", "true matches",
     "With true matches, at the places that both views show, the same loss gives maps that a probe segments better."),
    ("miou", "miou", "pictures alone", "own matches",
     "With the dense loss a linear probe segments the maps better than with the image loss alone."),
    ("trained", "miou", "random weights", "own matches",
     "A linear probe segments the maps of DenseCL better than those of random weights."),
    ("located", "miou", "random weights", "true matches",
     "With true matches a linear probe segments the maps better than those of random weights."),
    ("presence", "presence", "pictures alone", "own matches",
     "With the dense loss the averaged map tells better which things a picture shows."),
)
# fmt: on
CLAIMS = (
    Claim(
        id="shifted",
        statement="In a copy shifted by one place, matching by features makes no mistake away from the border.",
        experiment="scenes",
        metric="shifted",
        higher_is_better=True,
        baseline="random weights",
        method="own matches",
        exact=True,
    ),
    *(
        Claim(
            id=id,
            statement=statement,
            experiment="scenes",
            metric=metric,
            higher_is_better=True,
            baseline=baseline,
            method=method,
            ablations=tuple(arm for arm in ARMS if arm not in (baseline, method)) if id in ("match", "miou") else (),
            kind="mechanism" if id in ("match", "same_thing", "limit") else "gain",
            unit="points",
        )
        for id, metric, baseline, method, statement in _ROWS
    ),
)

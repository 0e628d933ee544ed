"""PixPro: propagate yourself, pixel-level consistency for unsupervised visual representation learning.

Z. Xie, Y. Lin, Z. Zhang, Y. Cao, S. Lin, H. Hu, CVPR 2021, arXiv 2011.10043; official code: zdaxie/PixPro.

Two crops of a picture overlap, and their boxes say where. So each cell of a feature map has a place in the picture, and
cells of the two views whose places nearly coincide must agree. PixContrast makes them agree by contrast with all other
cells; PixPro has no negatives: one branch first *propagates*, replacing each cell by the sum of all cells of its view
that resemble it, and must then agree with the plain cell of a slow copy of the network.

    section 3.1, Eq. 1  pixel_centers, positive_mask        section 3.2, Eq. 3  pixel_propagation, PixelPropagation
    section 3.1, Eq. 2  pix_contrast_loss                   section 3.2, Eq. 4  consistency_loss, pixpro_loss
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslref.augment import color_distort, crop_and_resize, random_blur, random_crop_boxes
from sslref.claims import Claim, Experiment
from sslref.data.worlds.scenes import Views, cut, random_views
from sslref.evaluate import (
    likeness,
    region_spread,
)
from sslref.evaluate.scenes import SceneTest, match_views, scene_source, scene_test, segment_scenes, things_seen
from sslref.nn import ConvMap, EMATeacher, SmallResNet, calibrate_batchnorm, rising_update
from sslref.nn.geometry import pixel_centers as pixel_centers
from sslref.nn.numbers import at_least_float32, check_positive
from sslref.nn.seeded import seeded
from sslref.registry import Paper
from sslref.train import History, Recipe, Task, adamw, distinct, fit, recipe_size, sgd, warmup_cosine

PAPER = Paper(
    slug="pixpro",
    title="Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised Visual Representation Learning",
    authors=("Zhenda Xie", "Yutong Lin", "Zheng Zhang", "Yue Cao", "Stephen Lin", "Han Hu"),
    venue="CVPR",
    year=2021,
    arxiv="2011.10043",
    code="https://github.com/zdaxie/PixPro",
    part="dense",
    data=("emoji", "photographs"),
    idea="Two crops of a picture must agree cell by cell, wherever they show the same place.",
    minutes=35,
    needs=("simclr",),
)


# ------------------------------------------------------------------- which cells belong together (section 3.1, Eq. 1)


def positive_mask(boxes_q: Tensor, boxes_k: Tensor, height: int, width: int, *, threshold: float = 0.7) -> Tensor:
    """Which cells of two views show the same place: distance < threshold times the longer diagonal of a cell (Eq. 1).

    Args:
        boxes_q, boxes_k: (B, 4), (x1, y1, x2, y2) of the two views in one unit, x1 > x2 where a view is mirrored.
        height, width: cells of both maps.
        threshold: T. With identical boxes of square cells a direct neighbour lies 0.707 diagonals away.

    Returns:
        bool (B, H*W, H*W): rows are cells of the first view, columns cells of the second, both in row-major order.

    Raises:
        ValueError: shapes differ or are not (B, 4), a size below 1, threshold <= 0.
    """
    if boxes_q.shape != boxes_k.shape:
        raise ValueError(f"boxes_k: expected the shape of boxes_q, {tuple(boxes_q.shape)}, got {tuple(boxes_k.shape)}")
    check_positive(threshold=threshold)
    q, k = (pixel_centers(boxes, height, width).flatten(1, 2) for boxes in (boxes_q, boxes_k))
    sides = (((b[:, 2] - b[:, 0]) / width, (b[:, 3] - b[:, 1]) / height) for b in (boxes_q, boxes_k))
    diagonal = torch.maximum(*(torch.hypot(w, h) for w, h in sides))
    distance = (q[:, :, None] - k[:, None]).square().sum(3).sqrt()
    return distance < threshold * diagonal[:, None, None]


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """(B, D, H, W) twice -> (B, H*W, H*W) cosines of every cell of a with every cell of b, in full precision."""
    with torch.autocast(a.device.type, enabled=False):
        a, b = (F.normalize(at_least_float32(x), dim=1).flatten(2) for x in (a, b))
        return a.mT @ b


def _check_pair(names: str, a: Tensor, b: Tensor, mask: Tensor) -> None:
    if a.ndim != 4 or a.shape != b.shape or not a.numel():
        raise ValueError(f"{names}: expected one shape (B, D, H, W), got {tuple(a.shape)} and {tuple(b.shape)}")
    cells = a.shape[2] * a.shape[3]
    if mask.shape != (len(a), cells, cells):
        raise ValueError(f"mask: expected shape {(len(a), cells, cells)}, got {tuple(mask.shape)}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected torch.bool, got {mask.dtype}")


# ---------------------------------------------------------------------------------- PixContrast (section 3.1, Eq. 2)


def pix_contrast_loss(x1: Tensor, x2: Tensor, mask: Tensor, *, temperature: float = 0.3) -> Tensor:
    """PixContrast, one direction (Eq. 2): the softmax share of a cell's positives among all cells of the other view.

    Args:
        x1: (B, D, H, W) projections of the first view. x2: of the second, detached here. Both are normalised here.
        mask: bool (B, H*W, H*W), from `positive_mask`.

    Returns:
        Scalar, the mean of -log(share) over all cells of the batch that have a positive; 0 if none has one.

    Raises:
        ValueError: other shapes, temperature <= 0. TypeError: a mask that is not bool.
    """
    _check_pair("x1, x2", x1, x2, mask)
    check_positive(temperature=temperature)
    logits = _cosines(x1, x2.detach()) / temperature
    counts = mask.any(2)
    chosen = mask | ~counts[:, :, None]  # a cell without positives chooses all, so that its loss and gradient vanish
    loss = logits.logsumexp(2) - logits.masked_fill(~chosen, -torch.inf).logsumexp(2)
    return (loss * counts).sum() / counts.sum().clamp(min=1)


# ---------------------------------------------------------------------------------------- PixPro (section 3.2, Eq. 3)


def pixel_propagation(x: Tensor, values: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Each cell becomes a sum over all cells of its own map: y_i = sum_j max(cos(x_i, x_j), 0)^gamma g_j (Eq. 3).

    As in the official code the values g_j are scaled to length 1 first, and the sum is not divided by the weights: the
    loss looks at directions. For gamma < 1, whose power has no derivative at 0, 1e-6 is added to the similarity.

    Args:
        x: (B, D, H, W), what is compared. values: (B, Dv, H, W), what is summed.
        gamma: the larger, the less is shared.

    Returns:
        (B, Dv, H, W), in float32 at least.

    Raises:
        ValueError: batch or sizes differ, gamma not a positive finite number.
    """
    if x.ndim != 4 or values.ndim != 4 or (len(x), *x.shape[2:]) != (len(values), *values.shape[2:]):
        expected = "expected (B, D, H, W) and (B, Dv, H, W)"
        raise ValueError(f"x, values: {expected}, got {tuple(x.shape)} and {tuple(values.shape)}")
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma: expected a positive finite number, got {gamma}")
    similarity = _cosines(x, x).clamp(min=0)
    with torch.autocast(x.device.type, enabled=False):
        weights = (similarity + 1e-6 if gamma < 1 else similarity) ** gamma
        unit = F.normalize(at_least_float32(values), dim=1).flatten(2)
        return (unit @ weights.mT.to(unit.dtype)).unflatten(2, values.shape[2:])


class PixelPropagation(nn.Module):
    """The module of Eq. 3, with the learned g: `layers` 1x1 convolutions, batch norm and ReLU between (paper: 1).

    Raises:
        ValueError: layers < 0; with the first call, a gamma that `pixel_propagation` refuses.
    """

    def __init__(self, dim: int, *, gamma: float = 2.0, layers: int = 1):
        super().__init__()
        if layers < 0:
            raise ValueError(f"layers: expected at least 0, got {layers}")
        self.gamma = gamma
        between = [part for _ in range(layers - 1) for part in (nn.Conv2d(dim, dim, 1), nn.BatchNorm2d(dim), nn.ReLU())]
        self.g = nn.Sequential(*between, *([nn.Conv2d(dim, dim, 1)] if layers else []))

    def forward(self, x: Tensor) -> Tensor:
        return pixel_propagation(x, self.g(x), gamma=self.gamma)


# ------------------------------------------------------------------------------------- the loss (section 3.2, Eq. 4)


def consistency_loss(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """One direction of Eq. 4: minus the cosine of positive pairs, averaged in each picture, then over pictures.

    A picture without positives adds 0 and still counts, as in the official code.

    Args:
        pred: (B, D, H, W), propagated cells of one view. target: plain cells of the other, detached here.
        mask: bool (B, H*W, H*W), rows are cells of `pred`.

    Raises:
        ValueError: other shapes. TypeError: a mask that is not bool.
    """
    _check_pair("pred, target", pred, target, mask)
    cosines = _cosines(pred, target.detach())
    pairs = mask.sum((1, 2), dtype=cosines.dtype)
    return -((cosines * mask).sum((1, 2)) / (pairs + 1e-6)).mean()


def pixpro_loss(
    pred1: Tensor,
    target2: Tensor,
    pred2: Tensor,
    target1: Tensor,
    boxes1: Tensor,
    boxes2: Tensor,
    *,
    threshold: float = 0.7,
) -> Tensor:
    """Eq. 4, both directions, between -2 and 2. The official code takes twice this value.

    Args:
        pred1, pred2: (B, D, H, W), propagated cells of the two views. target1, target2: plain cells of the slow copy.
        boxes1, boxes2: (B, 4), as for `positive_mask`.

    Raises:
        ValueError: shapes that do not fit, threshold <= 0.
    """
    mask = positive_mask(boxes1, boxes2, *pred1.shape[-2:], threshold=threshold)
    return consistency_loss(pred1, target2, mask) + consistency_loss(pred2, target1, mask.mT)


# ------------------------------------------------------------------------------------------------------- the network


def projector(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """1x1 convolution, batch norm, ReLU, 1x1 convolution: the same small network at every cell."""
    return nn.Sequential(
        nn.Conv2d(in_dim, hidden_dim, 1), nn.BatchNorm2d(hidden_dim), nn.ReLU(), nn.Conv2d(hidden_dim, out_dim, 1)
    )


class Projected(nn.Module):
    """Encoder and projector: pictures -> (B, out_dim, H, W), or (B, out_dim, 1, 1) of the mean cell if `pooled`."""

    def __init__(self, encoder: nn.Module, hidden_dim: int, out_dim: int, *, pooled: bool = False):
        super().__init__()
        self.encoder, self.pooled = encoder, pooled
        self.projector = projector(encoder.out_dim, hidden_dim, out_dim)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.encoder.features(images)
        return self.projector(maps.mean((2, 3), keepdim=True) if self.pooled else maps)


class Output(NamedTuple):
    x: Tensor  # (B, out_dim, H, W) projection
    y: Tensor  # (B, out_dim, H, W) what is made of it before the loss: propagated, in PixPro
    target: Tensor  # (B, out_dim, H, W) projection by the slow copy, without gradient


class PixPro(nn.Module):
    """The two branches of Fig. 3. `encoder.features` maps pictures to (B, encoder.out_dim, H, W).

    Args:
        predictor: "propagation" (Eq. 3); "g", its learned part alone; "mlp", a projector of its own; or "none".
        gamma, layers: of the propagation.
        pooled: one cell, the mean, in place of the map; with the predictor "mlp" this is BYOL.
        momentum: of the slow copy at the start.

    Raises:
        ValueError: unknown predictor, layers < 0, a momentum outside [0, 1].
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        predictor: str = "propagation",
        gamma: float = 2.0,
        layers: int = 1,
        pooled: bool = False,
        momentum: float = 0.99,
    ):
        super().__init__()
        build = {
            "propagation": lambda: PixelPropagation(out_dim, gamma=gamma, layers=layers),
            "g": lambda: PixelPropagation(out_dim, layers=layers).g,
            "mlp": lambda: projector(out_dim, hidden_dim, out_dim),
            "none": nn.Identity,
        }
        if predictor not in build:
            raise ValueError(f"predictor: expected one of {', '.join(build)}, got {predictor!r}")
        self.online = Projected(encoder, hidden_dim, out_dim, pooled=pooled)
        self.teacher = EMATeacher(self.online, momentum=momentum)
        self.predictor = build[predictor]()

    @property
    def encoder(self) -> nn.Module:
        return self.online.encoder

    def forward(self, images: Tensor) -> Output:
        x = self.online(images)
        return Output(x, self.predictor(x), self.teacher(images))


# --------------------------------------------------------------------------------------------------------- training


def agree(
    model: nn.Module,
    views: tuple[Tensor, ...],
    *,
    loss: str = "consistency",
    located: bool = True,
    threshold: float = 0.7,
    temperature: float = 0.3,
) -> dict[str, Tensor]:
    """Loss of one batch. Both views pass the network together, so that batch norm sees both.

    Args:
        views: (images, boxes) of the first view, then of the second.
        loss: "consistency" (Eq. 4) or "contrast" (Eq. 2, the mean of both directions).
        located: whether the boxes are used; if not, the same cell of both maps counts as the same place.
    """
    first, boxes1, second, boxes2 = views
    (x1, x2), (y1, y2), (t1, t2) = (part.chunk(2) for part in model(torch.cat([first, second])))
    if not located:
        boxes1 = boxes2 = (torch.arange(4, device=first.device) >= 2).to(boxes1).expand_as(boxes1)  # (0, 0, 1, 1)
    if loss == "consistency":
        value = pixpro_loss(y1, t2, y2, t1, boxes1, boxes2, threshold=threshold)
    else:
        mask = positive_mask(boxes1, boxes2, *y1.shape[-2:], threshold=threshold)
        forth = pix_contrast_loss(y1, t2, mask, temperature=temperature)
        value = (forth + pix_contrast_loss(y2, t1, mask.mT, temperature=temperature)) / 2
    if y1.shape[-2:].numel() == 1:
        return {"loss": value}
    cells, pictures = likeness(t1)
    return {"loss": value, "cells alike": cells, "pictures alike": pictures}


def task(
    model: PixPro,
    read: Callable[[Tensor], Tensor],
    count: int,
    *,
    batch_size: int,
    views: Callable[[Tensor, torch.Generator], Views],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    warmup: float,
    **options,
) -> Task:
    """What `train.fit` trains: each step draws `batch_size` of `count` pictures, and two views of each.

    Args:
        read: indices (B,) -> pictures (B, 3, H, W) in [0, 1] on the device of the indices.
        views: (pictures, generator) -> one view of each with its box.
        warmup: share of the steps in which the learning rate rises; it then falls along a cosine to 0.
        options: of `agree`.

    Raises:
        ValueError: more samples a batch than pictures, or fewer than two.
    """
    draw = distinct(read, count, batch_size)

    def batch(generator: torch.Generator) -> tuple[Tensor, ...]:
        images = draw(generator)
        return (*views(images, generator), *views(images, generator))

    return Task(
        model=model,
        batch=batch,
        loss=lambda model, pair: agree(model, pair, **options),
        optimizer=optimizer,
        schedule=warmup_cosine(warmup),
        after_step=lambda model, step, steps: rising_update(model.teacher, model.online, step, steps),
    )


def boxed_view(images: Tensor, generator: torch.Generator | None = None, *, size: int = 112) -> Views:
    """One view of each picture (B, 3, H, W) with its box in pixels, by the paper's crops (8 % of the area and more)."""
    boxes = random_crop_boxes(len(images), *images.shape[-2:], generator=generator).to(images.device)
    mirrored = torch.rand(len(images), 1, generator=generator, device=images.device) < 0.5
    boxes = torch.where(mirrored, boxes[:, [2, 1, 0, 3]], boxes)
    view = color_distort(crop_and_resize(images, boxes, size), strength=0.5, generator=generator)
    return Views(random_blur(view, generator=generator), boxes)


def recipe(
    source: Path | None = None, *, batch_size: int | None = None, device: str = "cpu", size: str | None = None
) -> Recipe:
    """What `sslref train pixpro` trains.

    Args:
        source: a folder with one subfolder of images a class; None: the scene world.
        batch_size: in place of 256 (paper) or 48 (miniature); the paper's learning rate grows with it.
        size: "paper" is the paper's method and schedule of 100 epochs, with what fits one GPU: ResNet-18 on views of
            112 pixels (14x14 cells) and SGD in place of ResNet-50 on 224 pixels (7x7 cells) and LARS. "miniature" has
            the network and views of this chapter. By default "paper" where there is a source.

    Raises:
        ValueError: unknown size, more samples a batch than pictures. DataError: source is not what is expected.
    """
    size = recipe_size(size, source)
    read, count, name = scene_source(source, 64 if size == "miniature" else 160, device)
    if size == "miniature":
        model, network = seeded(0, lambda: PixPro(ConvMap(), **SIZES)), "four convolutions"
        options, steps, batch_size = MINIATURE, 200, batch_size or 48
    else:
        batch_size = batch_size or 256
        encoder = {"width": 64, "blocks": (2, 2, 2, 2)}
        model, network = seeded(0, lambda: PixPro(SmallResNet(**encoder), hidden_dim=2048)), "ResNet-18"
        steps = 100 * count // batch_size

        options = {
            "optimizer": partial(sgd, lr=0.1 * batch_size / 256, weight_decay=1e-5),
            "warmup": 0.05,
            "views": boxed_view,
        }
    about = f"PixPro, {size} recipe: {network}, {count:,} pictures ({name})"
    return Recipe(task(model, read, count, batch_size=batch_size, **options), steps, batch_size, about)


# -------------------------------------------------------------- the claim in miniature: things on pieces of photographs


def _scene_views(images: Tensor, generator: torch.Generator) -> Views:
    return random_views(images, generator=generator)


MINIATURE = {"optimizer": adamw, "warmup": 0.1, "views": _scene_views}
SIZES = {"hidden_dim": 192, "out_dim": 64}

# options of the network, and of `agree`
ARMS = {
    "random weights": ({}, {}),
    "BYOL": ({"predictor": "mlp", "pooled": True}, {"located": False}),
    "boxes ignored": ({"predictor": "none"}, {"loss": "contrast", "located": False}),
    "PixContrast": ({"predictor": "none"}, {"loss": "contrast"}),
    "PixPro": ({}, {}),
    "no propagation": ({"predictor": "g"}, {}),
    "no g": ({"layers": 0}, {}),
    "neither": ({"predictor": "none"}, {}),
}


class Trained(NamedTuple):
    model: PixPro
    history: History | None
    data: SceneTest


_KEPT: dict[tuple, Trained] = {}  # the last few, so that a chapter shows the very networks that its claims used


def pretrain(
    arm: str, *, seed: int = 0, device: str = "cpu", steps: int = 200, batch_size: int = 48, progress=False, **sizes
) -> Trained:
    """The network of an arm, with the scenes, the initialisation and the views of a seed, in evaluation mode.

    Args:
        sizes: options of `evaluate.scenes.scene_test`.

    Raises:
        ValueError: unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"arm: expected one of {', '.join(ARMS)}, got {arm!r}")
    key = (arm, seed, device, steps, batch_size, *sizes.items())
    if key not in _KEPT:
        scenes = scene_test(seed, device=device, **sizes)
        network, options = ARMS[arm]
        model, history = seeded(seed, lambda: PixPro(ConvMap(), **SIZES, **network)).to(device), None
        if arm == "random weights":
            calibrate_batchnorm(model.online, scenes.train[:384].split(96))
        else:
            read = scenes.train.__getitem__
            job = task(model, read, len(scenes.train), batch_size=batch_size, **MINIATURE, **options)
            how = {"device": device, "channels_last": True, "log_every": 5, "progress": progress}
            history = fit(job, steps=steps, seed=seed, **how)
        while len(_KEPT) >= 8:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = Trained(model.eval(), history, scenes)
    return _KEPT[key]


@torch.no_grad()
def measure(model: PixPro, scenes: SceneTest, *, probe: bool = True) -> dict[str, float]:
    """What the encoder's maps, frozen, know of scenes that were not trained on.

    Returns:
        `scenes.match_views`; with `probe`, `scenes.segment_scenes` too.
        cells_alike, pictures_alike: `evaluate.likeness` of the projections of views.
    """
    first = scenes.views[0].images
    cells, pictures = likeness(model.online.projector(model.encoder.features(first)))
    found = {"cells_alike": cells.item(), "pictures_alike": pictures.item()} | match_views(model.encoder, scenes)
    return found | (segment_scenes(model.encoder, scenes, l2=0.01) if probe else {})


def run(arm: str, *, seed: int, device: str, steps: int, probe: bool = True, **budget) -> dict[str, float]:
    """One arm with one seed: metrics of `measure`."""
    model, _, scenes = pretrain(arm, seed=seed, device=device, steps=steps, **budget)
    return measure(model, scenes, probe=probe)


@torch.no_grad()
def run_grid(arm: str, *, seed: int, device: str, views: int) -> dict[str, float]:
    """Does Eq. 1 find the right pairs? The picture is its own coordinates, so every cell can be asked where it lies.

    Returns:
        agreement: intersection over union of the positives by the boxes and by the coordinates read from the views.
    """
    generator = torch.Generator(device).manual_seed(seed)
    line = (torch.arange(64, device=device, dtype=torch.float64) + 0.5) / 64
    picture = torch.stack(torch.meshgrid(line, line, indexing="xy")).expand(views, 2, 64, 64)  # x, then y
    blank = torch.zeros(views, 3, 8, 8, device=device, dtype=torch.float64)
    boxes = [0.01 + 0.98 * random_views(blank, size=8, generator=generator).boxes for _ in range(2)]  # off the border
    seen = [F.avg_pool2d(cut(picture, box, 48), 8) for box in boxes]  # (views, 2, 6, 6) mean coordinates of each cell
    diagonal = torch.stack([(m[..., 1, 1] - m[..., 0, 0]).norm(dim=1) for m in seen]).amax(0)
    first, second = (m.flatten(2).mT for m in seen)
    true = (first[:, :, None] - second[:, None]).norm(dim=3) < 0.7 * diagonal[:, None, None]
    if arm == "flips forgotten":
        boxes = [torch.cat([b[:, :2].minimum(b[:, 2:]), b[:, :2].maximum(b[:, 2:])], dim=1) for b in boxes]
    mask = positive_mask(*boxes, 6, 6)
    return {"agreement": ((mask & true).sum() / (mask | true).sum()).item()}


def run_start(arm: str, *, seed: int, device: str, **sizes) -> dict[str, float]:
    """What propagation does to the projections of a network that is not trained.

    Returns:
        region_spread, picture_spread: `evaluate.region_spread`, around a thing (or background) and a picture.
        region_share: the first as a share of the second, in %.
    """
    model, _, scenes = pretrain("random weights", seed=seed, device=device, steps=1, **sizes)
    with torch.no_grad():
        x = model.online(scenes.views[0].images)
        maps = pixel_propagation(x, x) if arm == "propagated" else x
    region, picture = region_spread(maps, things_seen(scenes, 0, maps.shape[-1]))
    share = 100 * (region / picture).item()
    return {"region_spread": region.item(), "picture_spread": picture.item(), "region_share": share}


_SMALL = {"scenes": 96, "labelled": 32, "test": 32}
_FEW = {"scenes": 384, "labelled": 32, "test": 200}
_TINY = {"steps": 2, "batch_size": 8, **_SMALL}
_GPU = {"steps": 2000, "batch_size": 256}
# fmt: off
EXPERIMENTS = {
    name: Experiment(run=function, arms=arms, budgets=dict(zip(("smoke", "ci", "ledger", "gpu"), budgets, strict=True)))
    for name, function, arms, budgets in (
        ("grid", run_grid, ("flips forgotten", "boxes with flips"), (
            {"seeds": 2, "views": 16}, {"seeds": 10, "views": 64},
            {"seeds": 10, "views": 512}, {"seeds": 32, "views": 512},
        )),
        ("start", run_start, ("plain", "propagated"), (
            {"seeds": 2, **_SMALL}, {"seeds": 1, **_FEW}, {"seeds": 10, **_FEW}, {"seeds": 32, **_FEW},
        )),
        ("places", run, ("random weights", "BYOL", "boxes ignored", "PixContrast", "PixPro"), (
            {"seeds": 2, **_TINY}, {"seeds": 1, "steps": 28, "scenes": 600, "labelled": 50, "test": 64},
            {"seeds": 10, "steps": 40}, {"seeds": 16, **_GPU},
        )),
        ("propagation", run, ("neither", "no propagation", "no g", "PixPro"), (
            {"seeds": 2, "probe": False, **_TINY}, {"seeds": 1, "probe": False, "steps": 4, **_SMALL},
            {"seeds": 10, "probe": False, "steps": 40}, {"seeds": 16, "probe": False, **_GPU},
        )),
        ("longer", run, ("PixContrast", "no g", "PixPro"), (  # no claim rests on it
            {"seeds": 1, "probe": False, **_TINY}, {"seeds": 1, "probe": False, **_TINY},
            {"seeds": 1, "probe": False, "steps": 160}, {"seeds": 4, **_GPU | {"steps": 8000}},
        )),
    )
}
# fmt: on


# fmt: off
_ROWS = (  # id, experiment, metric, whether more is better, baseline, method, kind, statement
    ("start", "start", "region_spread", False, "plain", "propagated", "mechanism",
     "Before any training, propagation moves the cells of a thing closer together."),
    ("start_share", "start", "region_share", False, "plain", "propagated", "mechanism",
     "Before any training, propagation lowers the share of the cells' spread that lies within things."),
    ("located", "places", "match", True, "boxes ignored", "PixContrast", "mechanism",
     "Cells find their place in another view more often if positives were chosen by boxes, not by the cell's number."),
    ("match", "places", "match", True, "BYOL", "PixContrast", "mechanism",
     "Cells find their place in another view more often after PixContrast than after BYOL on the pooled map."),
    ("miou", "places", "miou", True, "BYOL", "PixContrast", "gain",
     "A linear probe segments better on the maps of PixContrast than on those of BYOL."),
    ("trained", "places", "miou", True, "random weights", "PixContrast", "gain",
     "A linear probe segments better on the maps of PixContrast than on those of random weights."),
    ("order", "places", "miou", True, "PixContrast", "PixPro", "gain",
     "A linear probe segments better on the maps of PixPro than on those of PixContrast."),
    ("propagation", "propagation", "match", True, "no propagation", "PixPro", "gain",
     "With g in both arms, cells find their place more often if they were propagated in training."),
    ("propagation_alone", "propagation", "match", True, "neither", "no g", "gain",
     "Without g in both arms, cells find their place more often if they were propagated in training."),
)
# fmt: on
CLAIMS = (
    Claim(
        id="grid",
        statement="The boxes, with x1 > x2 where a view is mirrored, name exactly the pairs of cells that lie close.",
        experiment="grid",
        metric="agreement",
        higher_is_better=True,
        baseline="flips forgotten",
        method="boxes with flips",
        exact=True,
    ),
    *(
        Claim(
            id=id,
            statement=statement,
            experiment=experiment,
            metric=metric,
            higher_is_better=better,
            baseline=baseline,
            method=method,
            kind=kind,
            unit="squared distance" if metric == "region_spread" else "points",
        )
        for id, experiment, metric, better, baseline, method, kind, statement in _ROWS
    ),
)

"""SlotCon: self-supervised visual representation learning with semantic grouping.

X. Wen, B. Zhao, A. Zheng, X. Zhang, X. Qi, NeurIPS 2022, arXiv 2205.15288; official code: CVMI-Lab/SlotCon.

A picture of a scene shows several things, so one vector a picture is too few. K prototypes, shared by all pictures,
compete for the cells of a feature map; the cells that a prototype wins are averaged into a *slot*, this picture's
version of the prototype. Two losses train all of it: cells at the same place of two crops must be assigned alike, as a
slow copy of the network assigns them (grouping), and a slot that both crops hold must find its counterpart among all
slots of the batch (contrast).

    section 3.2  semantic_grouping, inverse_augmentation, grouping_loss, update_center
    section 3.3  slot_presence, slot_contrastive_loss        section 3.4  SlotCon, learn
"""

import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslref.augment import color_distort, crop_and_resize, random_blur, random_crop_boxes
from sslref.claims import Claim, Experiment
from sslref.data.worlds.scenes import cut, random_views
from sslref.evaluate import assignment_spread
from sslref.evaluate.scenes import SceneTest, k_means, probe_scenes, scene_source, scene_test, score_groups
from sslref.losses import gather
from sslref.nn import ConvMap, EMATeacher, SmallResNet, calibrate_batchnorm, pixel_centers, rising_update
from sslref.nn.numbers import at_least_float32, check_positive
from sslref.nn.seeded import seeded
from sslref.registry import Paper
from sslref.train import History, Recipe, Task, adamw, distinct, fit, recipe_size, sgd, warmup_cosine

PAPER = Paper(
    slug="slotcon",
    title="Self-Supervised Visual Representation Learning with Semantic Grouping",
    authors=("Xin Wen", "Bingchen Zhao", "Anlin Zheng", "Xiangyu Zhang", "Xiaojuan Qi"),
    venue="NeurIPS",
    year=2022,
    arxiv="2205.15288",
    code="https://github.com/CVMI-Lab/SlotCon",
    part="dense",
    data=("emoji", "photographs"),
    idea="Prototypes divide a picture among them; the parts must agree across crops and differ from all other parts.",
    minutes=35,
    needs=("simclr", "pixpro"),
)


# ------------------------------------------------------------------------------------------- grouping (section 3.2)


class Grouping(NamedTuple):
    slots: Tensor  # (B, K, D)
    scores: Tensor  # (B, K, H, W), cosines


def semantic_grouping(x: Tensor, prototypes: Tensor, *, temperature: float = 0.07, eps: float = 1e-6) -> Grouping:
    """Divide every cell among the prototypes, and average for each prototype what it got.

    A = softmax over k of cos(P_k, x_hw) / temperature, plus eps; slot k = sum of A_k x over the sum of A_k. The
    softmax goes over prototypes, so they compete; the slots are means of the cells as they are, not of unit vectors.

    Args:
        x: (B, D, H, W), cells. prototypes: (K, D).

    Returns:
        slots (B, K, D) and scores (B, K, H, W), the cosines before the temperature; in float32 at least.

    Raises:
        ValueError: other shapes, widths that differ, temperature <= 0.
    """
    if x.ndim != 4 or prototypes.ndim != 2 or x.shape[1] != prototypes.shape[1] or not x.numel():
        expected = "expected (B, D, H, W) and (K, D)"
        raise ValueError(f"x, prototypes: {expected}, got {tuple(x.shape)} and {tuple(prototypes.shape)}")
    check_positive(temperature=temperature)
    with torch.autocast(x.device.type, enabled=False):
        x, prototypes = at_least_float32(x), at_least_float32(prototypes)
        scores = torch.einsum("kd,bdhw->bkhw", F.normalize(prototypes, dim=1), F.normalize(x, dim=1))
        share = (scores / temperature).softmax(1) + eps
        total = share.sum((2, 3))
        return Grouping(torch.einsum("bkhw,bdhw->bkd", share, x) / total[:, :, None], scores)


def overlap_boxes(boxes: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Where the overlap of two crops of a picture lies in the first one's view, and whether this view is mirrored.

    Args:
        boxes, other: (B, 4), (x1, y1, x2, y2) of both crops in the picture, x1 > x2 where the view is mirrored.

    Returns:
        (B, 4) relative to the view as it is, with x1 < x2, and (B,) bool.

    Raises:
        ValueError: shapes differ or are not (B, 4).
    """
    if boxes.shape != other.shape or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes, other: expected one shape (B, 4), got {tuple(boxes.shape)} and {tuple(other.shape)}")
    corners = torch.stack([boxes, other]).unflatten(2, (2, 2))  # crop, picture, corner, axis
    ends = torch.stack([corners.amin(2).amax(0), corners.amax(2).amin(0)])
    place = (ends - boxes[:, :2]) / (boxes[:, 2:] - boxes[:, :2])
    return torch.cat([place.amin(0), place.amax(0)], dim=1), boxes[:, 0] > boxes[:, 2]


def inverse_augmentation(x: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """The maps inside boxes, resized to the maps' size and then mirrored back: bilinear, clamped at the border.

    Args:
        x: (B, C, H, W). boxes: (B, 4), relative to the view as it is. flips: (B,) bool, whether it is mirrored.

    Raises:
        ValueError: not one box or one flag a picture. TypeError: flags that are not bool.
    """
    if x.ndim != 4 or boxes.shape != (len(x), 4) or flips.shape != (len(x),):
        shapes = f"{tuple(x.shape)}, {tuple(boxes.shape)}, {tuple(flips.shape)}"
        raise ValueError(f"x, boxes, flips: expected (B, C, H, W), (B, 4) and (B,), got {shapes}")
    if flips.dtype != torch.bool:
        raise TypeError(f"flips: expected torch.bool, got {flips.dtype}")
    height, width = x.shape[2:]
    boxes = torch.where(flips[:, None], boxes[:, [2, 1, 0, 3]], boxes)  # read from right to left: cut, then mirrored
    return crop_and_resize(x, boxes * boxes.new_tensor([width, height, width, height]), (height, width))


def grouping_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    center: Tensor,
    *,
    student_temp: float = 0.1,
    teacher_temp: float = 0.07,
) -> Tensor:
    """Cross-entropy from the teacher's assignment of a cell, centred and sharpened, to the student's; one pairing.

    Args:
        student_scores, teacher_scores: (B, K, H, W), aligned by `inverse_augmentation`; the teacher is detached here.
        center: (K,).

    Returns:
        Scalar, the mean over pictures and cells.

    Raises:
        ValueError: shapes that do not fit, a temperature <= 0.
    """
    if student_scores.shape != teacher_scores.shape or student_scores.ndim != 4 or not student_scores.numel():
        shapes = f"{tuple(student_scores.shape)} and {tuple(teacher_scores.shape)}"
        raise ValueError(f"student_scores, teacher_scores: expected one shape (B, K, H, W), got {shapes}")
    _check_center(center, teacher_scores)
    check_positive(student_temp=student_temp, teacher_temp=teacher_temp)
    with torch.autocast(student_scores.device.type, enabled=False):
        target = (at_least_float32(teacher_scores - center[:, None, None]).detach() / teacher_temp).softmax(1)
        return -(target * (at_least_float32(student_scores) / student_temp).log_softmax(1)).sum(1).mean()


@torch.no_grad()
def update_center(center: Tensor, teacher_scores: Tensor, *, momentum: float = 0.9) -> Tensor:
    """m c + (1 - m) mean score of each prototype, over the pictures of all processes. Call it after the loss.

    Args:
        center: (K,), left as it is. teacher_scores: (B, K, H, W), as they are before the alignment.

    Raises:
        ValueError: shapes that do not fit, momentum outside [0, 1].
    """
    if teacher_scores.ndim != 4 or not teacher_scores.numel():
        raise ValueError(f"teacher_scores: expected (B, K, H, W), not empty, got {tuple(teacher_scores.shape)}")
    _check_center(center, teacher_scores)
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected a number in [0, 1], got {momentum}")
    return momentum * center + (1 - momentum) * gather(teacher_scores.mean((2, 3)).to(center.dtype)).mean(0)


def _check_center(center: Tensor, scores: Tensor) -> None:
    if center.shape != scores.shape[1:2]:
        raise ValueError(f"center: expected shape {tuple(scores.shape[1:2])}, got {tuple(center.shape)}")


# ------------------------------------------------------------------------------------- group contrast (section 3.3)


def slot_presence(scores: Tensor) -> Tensor:
    """Whether a prototype has the largest score of at least one cell. (B, K, H, W) -> bool (B, K).

    Ties go to the lower index. Raises ValueError: another shape.
    """
    if scores.ndim != 4 or not scores.numel():
        raise ValueError(f"scores: expected shape (B, K, H, W), not empty, got {tuple(scores.shape)}")
    winner = scores.argmax(1).flatten(1)
    return torch.zeros(scores.shape[:2], dtype=torch.bool, device=scores.device).scatter_(1, winner, True)


def slot_contrastive_loss(
    student_slots: Tensor,
    teacher_slots: Tensor,
    student_scores: Tensor,
    teacher_scores: Tensor,
    *,
    temperature: float = 0.2,
    predictor: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Each slot that both views hold must find its counterpart among all slots that the teacher holds in the batch.

    Args:
        student_slots: (B, K, D), of one view. teacher_slots: of the other view, detached here.
        student_scores, teacher_scores: (B, K, h, w), not aligned; they say which slots are there (`slot_presence`).
        predictor: (n, D) -> (n, D), sees the queries that are left, and no others.

    Returns:
        2 * temperature * the mean cross-entropy over the queries; 0 where there is none.

    Raises:
        ValueError: shapes that do not fit, temperature <= 0.
    """
    slots, seen = (student_slots, teacher_slots), (student_scores, teacher_scores)
    if slots[0].ndim != 3 or len({s.shape for s in slots}) > 1 or any(s.shape[:2] != slots[0].shape[:2] for s in seen):
        shapes = ", ".join(str(tuple(s.shape)) for s in slots + seen)
        raise ValueError(f"slots, scores: expected (B, K, D) twice and (B, K, h, w) twice, got {shapes}")
    present = slot_presence(teacher_scores)
    common = slot_presence(student_scores) & present
    queries = student_slots
    if predictor is not None and common.any():
        found = predictor(student_slots[common])
        queries = torch.zeros_like(student_slots, dtype=found.dtype).index_put((common,), found)
    return slot_nce(queries, teacher_slots, common, present, temperature=temperature)


def slot_nce(queries: Tensor, keys: Tensor, common: Tensor, present: Tensor, *, temperature: float = 0.2) -> Tensor:
    """The loss of `slot_contrastive_loss` on tensors whose size does not depend on what is present.

    Args:
        queries: (B, K, D). keys: (B, K, D), detached here; key k of picture b belongs to query k of picture b.
        common: bool (B, K), which queries count. present: which keys exist.

    Raises:
        ValueError: temperature <= 0.
    """
    check_positive(temperature=temperature)
    flags = (gather(flag.to(torch.uint8)).flatten() > 0 for flag in (common, present))
    with torch.autocast(queries.device.type, enabled=False):
        q, k = (F.normalize(gather(at_least_float32(rows)).flatten(0, 1), dim=1) for rows in (queries, keys.detach()))
        common, present = flags
        logits = (q @ k.T / temperature).masked_fill(~present, -torch.inf)
        loss = logits.logsumexp(1) - (q * k).sum(1) / temperature
        return 2 * temperature * torch.where(common, loss, 0).sum() / common.sum().clamp(min=1)


# ------------------------------------------------------------------------------------------------------ the network


class RowNorm(nn.Module):
    """Batch norm over those rows (..., D) that count, in all processes; it keeps no statistics for later.

    Leaving the other rows out first would give the same, but a device would have to wait until their number is known.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x, counts = at_least_float32(x), counts[..., None]
            number = gather(counts.sum()[None]).sum().clamp(min=1)

            def mean(values: Tensor) -> Tensor:
                return gather((values * counts).flatten(0, -2).sum(0)[None]).sum(0) / number

            x = x - mean(x)
            return x * (mean(x.square()) + self.eps).rsqrt() * self.weight + self.bias


class Predictor(nn.Module):
    """Linear layers, `RowNorm` and GELU between. (..., D) and which rows count, by default all -> (..., D)."""

    def __init__(self, dim: int, hidden_dim: int, *, layers: int = 3):
        super().__init__()
        sizes = [dim, *[hidden_dim] * (layers - 1)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([*sizes, dim]))
        self.norms = nn.ModuleList(RowNorm(size) for size in sizes[1:])

    def forward(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        counts = x.new_ones(x.shape[:-1], dtype=torch.bool) if counts is None else counts
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = F.gelu(norm(layer(x), counts))
        return self.layers[-1](x)


class Groups(nn.Module):
    """Encoder, projector (the same small network at every cell) and prototypes: pictures -> `Grouping`."""

    def __init__(self, encoder: nn.Module, prototypes: int, *, hidden_dim: int, out_dim: int, layers: int):
        super().__init__()
        self.encoder = encoder
        sizes = [encoder.out_dim, *[hidden_dim] * (layers - 1)]
        hidden = [m for a, b in pairwise(sizes) for m in (nn.Conv2d(a, b, 1), nn.BatchNorm2d(b), nn.GELU())]
        self.projector = nn.Sequential(*hidden, nn.Conv2d(sizes[-1], out_dim, 1))
        self.prototypes = nn.Parameter(torch.randn(prototypes, out_dim))

    def forward(self, images: Tensor) -> Grouping:
        return semantic_grouping(self.projector(self.encoder.features(images)), self.prototypes)


class Output(NamedTuple):
    """Of both views, the first one's pictures first. N = min(K, cells): a picture holds no more slots than cells."""

    student: Grouping
    teacher: Grouping  # of the slow copy, without gradient
    queries: Tensor  # (2B, N, D), the student's slots after the predictor
    keys: Tensor  # (2B, N, D), the teacher's slots in the other view
    common: Tensor  # bool (2B, N), whether both views hold the slot
    present: Tensor  # bool (2B, N), whether the teacher's view does


class SlotCon(nn.Module):
    """Student, slow copy, predictor and centre. `encoder.features` maps pictures to (B, encoder.out_dim, H, W).

    Args:
        prototypes: K. hidden_dim, out_dim, layers: of projector and predictor.
        momentum: of the slow copy at the start.

    Raises:
        ValueError: a momentum outside [0, 1].
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        prototypes: int = 256,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        layers: int = 3,
        momentum: float = 0.99,
    ):
        super().__init__()
        self.online = Groups(encoder, prototypes, hidden_dim=hidden_dim, out_dim=out_dim, layers=layers)
        self.teacher = EMATeacher(self.online, momentum=momentum)
        self.predictor = Predictor(out_dim, hidden_dim, layers=layers)
        self.register_buffer("center", torch.zeros(prototypes))

    @property
    def encoder(self) -> nn.Module:
        return self.online.encoder

    def forward(self, first: Tensor, second: Tensor) -> Output:
        images = torch.cat([first, second])
        student, teacher = self.online(images), self.teacher(images)
        keys, present = (rows.roll(len(first), 0) for rows in (teacher.slots, slot_presence(teacher.scores)))
        queries, common = student.slots, slot_presence(student.scores) & present
        most = student.scores.shape[2:].numel()
        if most < keys.shape[1]:  # what is present comes first, the rest is cut off
            rows = present.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
            common, present = (flags.gather(1, rows) for flags in (common, present))
            rows = rows[:, :, None].expand(-1, -1, keys.shape[2])
            queries, keys = (slots.gather(1, rows) for slots in (queries, keys))
        halves = zip(queries.chunk(2), common.chunk(2), strict=True)
        return Output(student, teacher, torch.cat([self.predictor(*half) for half in halves]), keys, common, present)


# --------------------------------------------------------------------------------------------------------- training


@torch.no_grad()
def perplexity(scores: Tensor) -> Tensor:
    """How many prototypes are in use: exp of the entropy of their shares of all cells (argmax). 1 to K."""
    rows = scores.movedim(1, -1).flatten(0, -2)
    return assignment_spread(torch.zeros_like(rows).scatter(1, rows.argmax(1, keepdim=True), 1.0))[0]


def learn(
    model: nn.Module, views: tuple[Tensor, ...], *, weights: tuple[float, float] = (0.5, 0.5), centring: bool = True
) -> dict[str, Tensor]:
    """Loss of one batch and what to watch; moves the centre.

    Args:
        views: (images, boxes) of the first view, then of the second.
        weights: of grouping and contrast, lambda and 1 - lambda in the paper.
    """
    first, boxes1, second, boxes2 = views
    out = model(first, second)
    where, flips = overlap_boxes(torch.cat([boxes1, boxes2]), torch.cat([boxes2, boxes1]))
    student, teacher = (inverse_augmentation(g.scores, where, flips).chunk(2) for g in (out.student, out.teacher))
    grouping = sum(grouping_loss(student[i], teacher[1 - i], model.center) for i in (0, 1))
    pairings = zip(*(part.chunk(2) for part in out[2:]), strict=True)
    contrast = sum(slot_nce(*pairing) for pairing in pairings)
    if centring:
        model.center.copy_(update_center(model.center, out.teacher.scores))
    return {
        "loss": weights[0] * grouping + weights[1] * contrast,
        "grouping": grouping.detach(),
        "contrast": contrast.detach(),
        "prototypes in use": perplexity(out.teacher.scores),
        "slots in both views": out.common.sum(1, dtype=torch.float32).mean(),
    }


def task(
    model: SlotCon,
    read: Callable[[Tensor], Tensor],
    count: int,
    *,
    batch_size: int,
    views: Callable[..., tuple[Tensor, ...]],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    warmup: float,
    **options,
) -> Task:
    """What `train.fit` trains: each step draws `batch_size` of `count` pictures, and two views of each.

    Args:
        read: indices (B,) -> pictures (B, 3, H, W) in [0, 1] on the device of the indices.
        views: (pictures, generator) -> images and boxes of two views. optimizer: model -> optimizer.
        warmup: share of the steps in which the learning rate rises. options: of `learn`.

    Raises:
        ValueError: more samples a batch than pictures, or fewer than two.
    """
    draw = distinct(read, count, batch_size)
    return Task(
        model=model,
        batch=lambda generator: views(draw(generator), generator),
        loss=lambda model, pair: learn(model, pair, **options),
        optimizer=optimizer,
        schedule=warmup_cosine(warmup),
        after_step=lambda model, step, steps: rising_update(model.teacher, model.online, step, steps),
    )


def overlapping_views(images: Tensor, generator: torch.Generator, *, size: int = 112) -> tuple[Tensor, ...]:
    """Images and boxes (in pixels) of two views of each picture, by the paper's recipe.

    Crops of 8 % of the area and more, the second drawn up to 16 times until the two share 1 % of the picture; colours
    as in BYOL: the first view is always blurred, the second one time in ten, and solarised two times in ten.
    """
    batch, (height, width), device = len(images), images.shape[-2:], images.device
    boxes = random_crop_boxes(17 * batch, height, width, generator=generator).to(device).view(17, batch, 4)
    shared = torch.minimum(boxes[0, :, 2:], boxes[1:, :, 2:]) - torch.maximum(boxes[0, :, :2], boxes[1:, :, :2])
    enough = shared.clamp(min=0).prod(2) >= 0.01 * height * width
    chosen = (enough.to(torch.uint8).argmax(0) + 1) * enough.any(0)  # the first crop itself where none shares enough
    views: list[Tensor] = []
    for pick, blur_p, solarize_p in ((torch.zeros_like(chosen), 1.0, 0.0), (chosen, 0.1, 0.2)):
        box = boxes.gather(0, pick[None, :, None].expand(1, batch, 4))[0]
        mirror, solarize = torch.rand(2, batch, 1, 1, 1, generator=generator, device=device)
        box = torch.where(mirror.view(batch, 1) < 0.5, box[:, [2, 1, 0, 3]], box)
        view = color_distort(crop_and_resize(images, box, size), strength=0.5, generator=generator)
        view = random_blur(view, p=blur_p, generator=generator)
        views += [torch.where((solarize < solarize_p) & (view >= 0.5), 1 - view, view), box]
    return tuple(views)


def scene_views(images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Images and boxes of two views of each scene."""
    return *random_views(images, generator=generator), *random_views(images, generator=generator)


def recipe(
    source: Path | None = None, *, batch_size: int | None = None, device: str = "cpu", size: str | None = None
) -> Recipe:
    """What `sslref train slotcon` trains.

    Args:
        source: a folder with one subfolder of images a class (any one will do); None: the scene world.
        batch_size: in place of 128 (paper) or 48 (miniature); the paper's learning rate grows with it.
        size: "paper" is the COCO recipe (256 prototypes, 800 epochs) with what fits one GPU: ResNet-18 on views of 112
            pixels (14x14 cells) and SGD in place of ResNet-50 on 224 pixels (7x7 cells) and LARS. "miniature" has the
            network and views of this chapter. By default "paper" where there is a source.

    Raises:
        ValueError: unknown size, more samples a batch than pictures. DataError: source is not what is expected.
    """
    size = recipe_size(size, source)
    read, count, name = scene_source(source, 64 if size == "miniature" else 160, device)
    if size == "miniature":
        model, network = seeded(0, lambda: SlotCon(ConvMap(), **SIZES)), "four convolutions"
        options, steps, batch_size = MINIATURE, 200, batch_size or 48
    else:
        batch_size = batch_size or 128
        encoder = {"width": 64, "blocks": (2, 2, 2, 2)}
        model, network = seeded(0, lambda: SlotCon(SmallResNet(**encoder))), "ResNet-18"
        steps = 800 * count // batch_size

        options = {
            "optimizer": partial(sgd, lr=0.1 * batch_size / 256, weight_decay=1e-5),
            "warmup": 0.01,
            "views": overlapping_views,
        }
    about = f"SlotCon, {size} recipe: {network}, {count:,} pictures ({name})"
    return Recipe(task(model, read, count, batch_size=batch_size, **options), steps, batch_size, about)


# -------------------------------------------------------------- the claim in miniature: things on pieces of photographs


MINIATURE = {"optimizer": adamw, "warmup": 0.1, "views": scene_views}
SIZES = {"prototypes": 16, "hidden_dim": 192, "out_dim": 64, "layers": 2}
ARMS = {  # options of `learn`
    "random weights": None,
    "grouping only": {"weights": (1.0, 0.0)},
    "contrast only": {"weights": (0.0, 1.0)},
    "both": {},
    "no centring": {"weights": (1.0, 0.0), "centring": False},
    "half of grouping": {"weights": (0.5, 0.0)},
    "some contrast": {"weights": (1.0, 0.1)},
}


class Trained(NamedTuple):
    model: SlotCon
    history: History | None
    data: SceneTest
    kept: dict[int, Groups]  # copies of student and prototypes, by the number of steps


_KEPT: dict[tuple, Trained] = {}  # the last few, so that a chapter shows the very networks that its claims used


def pretrain(
    arm: str,
    *,
    seed: int = 0,
    device: str = "cpu",
    steps: int = 100,
    batch_size: int = 48,
    keep=(),
    progress=None,
    **sizes,
) -> Trained:
    """The network of an arm, with the scenes, the initialisation and the views of a seed, in evaluation mode.

    The statistics of batch norm, which lag behind in so short a training, are measured anew, in all arms alike.

    Args:
        keep: after how many steps (multiples of 5) copies are kept. progress: as for `train.fit`, called.
        sizes: options of `evaluate.scenes.scene_test`.

    Raises:
        ValueError: unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"arm: expected one of {', '.join(ARMS)}, got {arm!r}")
    key = (arm, seed, device, steps, batch_size, *sizes.items())
    if key not in _KEPT:
        data = scene_test(seed, device=device, **sizes)
        model, history, kept = seeded(seed, lambda: SlotCon(ConvMap(), **SIZES)).to(device), None, {}

        def say(done: int, total: int, row: dict[str, float]) -> None:
            if done in keep:
                kept[done] = copy.deepcopy(model.online).eval()
            if progress is not None:
                progress(done, total, row)

        if ARMS[arm] is not None:
            job = task(model, data.train.__getitem__, len(data.train), batch_size=batch_size, **MINIATURE, **ARMS[arm])
            how = {"device": device, "channels_last": True, "log_every": 5, "progress": say}
            history = fit(job, steps=steps, seed=seed, **how)
        for network in (model.online, model.teacher.module, *kept.values()):
            calibrate_batchnorm(network, data.train[:384].split(96))
        while len(_KEPT) >= 8:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = Trained(model.eval(), history, data, kept)
    return _KEPT[key]


def run(arm: str, *, seed: int, device: str, steps: int, probe: bool = True, **budget) -> dict[str, float]:
    """One arm with one seed.

    Returns:
        in_use: `perplexity` over the test scenes. With `probe`: `scenes.probe_scenes`, and `scenes.score_groups` of the
        assignments, or of k-means where nothing is trained.
    """
    model, _, data, _ = pretrain(arm, seed=seed, device=device, steps=steps, **budget)
    with torch.no_grad():
        scores = [model.online(part.images).scores for part in (data.labelled, data.test)]
        found = {"in_use": perplexity(scores[1]).item()}
        if probe:
            trained = ARMS[arm] is not None
            groups = [s.argmax(1) for s in scores] if trained else k_means(model.encoder, data, len(model.center))
            found |= probe_scenes(model.encoder, data) | score_groups(*groups, data)
    return found


def run_align(arm: str, *, seed: int, device: str, views: int) -> dict[str, float]:
    """Does the inverse of the crops line them up? The picture is its own coordinates, so every cell says where it lies.

    Returns:
        agreement: share of cells, among those that no border clamps, where the two maps differ by less than 1e-6.
    """
    generator = torch.Generator(device).manual_seed(seed)
    line = (torch.arange(64, device=device, dtype=torch.float64) + 0.5) / 64
    picture = torch.stack(torch.meshgrid(line, line, indexing="xy")).expand(views, 2, 64, 64)  # x, then y
    blank = torch.zeros(views, 3, 8, 8, device=device, dtype=torch.float64)
    boxes = [0.01 + 0.98 * random_views(blank, size=8, generator=generator).boxes for _ in range(2)]  # off the border
    aligned, free = [], torch.ones(views, 6, 6, dtype=torch.bool, device=device)
    for box, other in (boxes, boxes[::-1]):
        maps = F.avg_pool2d(cut(picture, box, 48), 8)  # (views, 2, 6, 6), mean coordinates of each cell
        where, flips = overlap_boxes(box, other)
        place = pixel_centers(torch.where(flips[:, None], where[:, [2, 1, 0, 3]], where), 6, 6)
        free &= ((place > 1 / 12) & (place < 11 / 12)).all(3)  # between the first and the last centre of a cell
        if arm == "mirrored before the cut":
            maps = torch.where(flips[:, None, None, None], maps.flip(3), maps)
        aligned.append(inverse_augmentation(maps, where, flips & (arm == "true inverse")))
    alike = (aligned[0] - aligned[1]).abs().amax(1) < 1e-6
    return {"agreement": ((alike & free).sum() / free.sum()).item()}


_SMALL = {"steps": 2, "batch_size": 8, "scenes": 96, "labelled": 32, "test": 32}
_PAGE = {"steps": 30, "scenes": 600, "labelled": 40, "test": 48}
_GPU = {"steps": 2000, "batch_size": 256}
# fmt: off
EXPERIMENTS = {
    name: Experiment(run=function, arms=arms, budgets=dict(zip(("smoke", "ci", "ledger", "gpu"), budgets, strict=True)))
    for name, function, arms, budgets in (
        ("align", run_align, ("flips forgotten", "mirrored before the cut", "true inverse"), (
            {"seeds": 2, "views": 16}, {"seeds": 10, "views": 64},
            {"seeds": 10, "views": 512}, {"seeds": 32, "views": 512},
        )),
        ("centring", run, ("no centring", "grouping only"), (
            {"seeds": 2, "probe": False, **_SMALL}, {"seeds": 1, "probe": False, **_PAGE},
            {"seeds": 10, "probe": False, "steps": 20, "scenes": 960}, {"seeds": 16, "probe": False, **_GPU},
        )),
        ("scenes", run, ("random weights", "grouping only", "contrast only", "both"), (
            {"seeds": 2, **_SMALL}, {"seeds": 1, **_PAGE}, {"seeds": 10, "steps": 100}, {"seeds": 16, **_GPU},
        )),
        ("weights", run, ("half of grouping", "some contrast"), (  # no claim rests on these two
            {"seeds": 1, **_SMALL}, {"seeds": 1, **_SMALL}, {"seeds": 1, "steps": 100}, {"seeds": 4, **_GPU},
        )),
        ("longer", run, ("grouping only", "both"), (
            {"seeds": 1, **_SMALL}, {"seeds": 1, **_SMALL}, {"seeds": 1, "steps": 250},
            {"seeds": 4, **_GPU | {"steps": 8000}},
        )),
    )
}
_ROWS = (  # id, experiment, metric, baseline, method, kind, statement
    ("align", "align", "agreement", "flips forgotten", "true inverse", "mechanism",
     "After the inverse of crop and mirror, cells of two views that no border clamps show the same place."),
    ("centring", "centring", "in_use", "no centring", "grouping only", "mechanism",
     "With centring the cells are spread over more prototypes."),
    ("match", "scenes", "match", "contrast only", "both", "mechanism",
     "Cells find their place in another view more often if grouping is added to the contrast of slots."),
    ("match_contrast", "scenes", "match", "grouping only", "both", "mechanism",
     "Cells find their place in another view more often if the contrast of slots is added to grouping."),
    ("both_over_contrast", "scenes", "miou", "contrast only", "both", "gain",
     "A linear probe segments better on maps of both losses than on maps of the contrast alone."),
    ("both_over_grouping", "scenes", "miou", "grouping only", "both", "gain",
     "A linear probe segments better on maps of both losses than on maps of grouping alone."),
    ("trained", "scenes", "miou", "random weights", "both", "gain",
     "A linear probe segments better on maps of both losses than on maps of random weights."),
    ("grouping_trained", "scenes", "miou", "random weights", "grouping only", "gain",
     "A linear probe segments better on maps of grouping alone than on maps of random weights."),
)
CLAIMS = tuple(
    Claim(id=id, statement=statement, experiment=experiment, metric=metric, higher_is_better=True, baseline=baseline,
          method=method, kind=kind, exact=metric == "agreement",
          unit={"in_use": "prototypes", "agreement": ""}.get(metric, "points"))
    for id, experiment, metric, baseline, method, kind, statement in _ROWS
)
# fmt: on

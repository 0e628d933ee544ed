"""SimCLR: a simple framework for contrastive learning of visual representations.

T. Chen, S. Kornblith, M. Norouzi, G. Hinton, ICML 2020, arXiv 2002.05709; official code: google-research/simclr.

Take every picture of a batch twice through a random augmentation, encode both, project them with a small network, and
ask which of the other 2N - 1 vectors of the batch comes from the same picture. The composition of augmentations decides
what the network may not use as a shortcut; the projection head does the forgetting that the task demands, so that the
representation before it need not; the rest of the batch supplies the negatives.

    section 2.1, Eq. 1  nt_xent, contrastive_accuracy      appendix A  random_crop_boxes, color_distort, gaussian_blur
    section 4.2         projection_head, SimCLR            section 2.2 LARS
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslref.augment import color_distort as color_distort
from sslref.augment import gaussian_blur as gaussian_blur
from sslref.augment import random_crop_boxes as random_crop_boxes
from sslref.augment import two_views
from sslref.claims import Claim, Experiment
from sslref.data import emoji, folders
from sslref.evaluate import accuracy, linear_probe, ridge_r2, standardize
from sslref.losses import alignment, gather, tiled_logsumexp, uniformity
from sslref.nn import ConvNet, SmallResNet, seeded
from sslref.nn.numbers import at_least_float32, check_positive
from sslref.registry import Paper
from sslref.train import History, Recipe, Task, adamw, distinct, fit, recipe_size, warmup_cosine

PAPER = Paper(
    slug="simclr",
    title="A Simple Framework for Contrastive Learning of Visual Representations",
    authors=("Ting Chen", "Simon Kornblith", "Mohammad Norouzi", "Geoffrey Hinton"),
    venue="ICML",
    year=2020,
    arxiv="2002.05709",
    code="https://github.com/google-research/simclr",
    part="joint_embedding",
    data=("emoji",),
    idea="Pull two random views of one picture together and push the views of all other pictures away.",
    minutes=35,
)


# ------------------------------------------------------------------------------------ the loss (section 2.1, Eq. 1)


def _check(z1: Tensor, z2: Tensor, temperature: float = 1.0) -> None:
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"z1, z2: expected one shape (N, D), got {tuple(z1.shape)} and {tuple(z2.shape)}")
    if len(z1) < 2:
        raise ValueError(f"z1, z2: expected at least 2 pictures, else there is no negative, got {len(z1)}")
    check_positive(temperature=temperature)


def cosine_matrix(z1: Tensor, z2: Tensor) -> Tensor:
    """(2N, 2N) cosines of the stacked rows, in full precision, with -inf where a row would meet itself."""
    _check(z1, z2)
    z = torch.cat([z1, z2])
    with torch.autocast(z.device.type, enabled=False):  # at a low temperature bfloat16 cannot tell neighbours apart
        z = F.normalize(at_least_float32(z), dim=1)
        return (z @ z.T).masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)


def positives(pairs: int, device: torch.device) -> Tensor:
    """Row of the positive of each of 2N stacked rows: i + N for the first view, i - N for the second."""
    return torch.arange(2 * pairs, device=device).roll(pairs)


def nt_xent(z1: Tensor, z2: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Eq. 1), the mean over all 2N rows.

    Each row must find the other view of its picture among the 2N - 1 rows that are not itself. The official code
    returns twice this value: it adds the means over the two halves.

    Args:
        z1, z2: (N, D), row i of both from picture i; normalised here. With several processes: `losses.gather` first.
        temperature: 0.5 for CIFAR-10, 0.1 for long training on ImageNet (appendix B).

    Raises:
        ValueError: shapes differ or are not (N, D), N < 2, temperature <= 0.
    """
    _check(z1, z2, temperature)
    cosines = cosine_matrix(z1, z2)
    return F.cross_entropy(cosines / temperature, positives(len(z1), cosines.device))


def nt_xent_tiled(z1: Tensor, z2: Tensor, *, temperature: float = 0.5, tile: int = 512) -> Tensor:
    """`nt_xent` in memory that grows linearly with the batch: the same value and gradient, band by band.

    Args:
        z1, z2, temperature: as `nt_xent`.
        tile: rows of the (2N, 2N) matrix that exist at a time.
    """
    _check(z1, z2, temperature)
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = (F.normalize(at_least_float32(z), dim=1) for z in (z1, z2))
        z = torch.cat([z1, z2])
        itself = torch.arange(len(z), device=z.device)
        everyone = tiled_logsumexp(z / temperature, z, skip=itself, tile=tile)
        return everyone.mean() - (z1 * z2).sum(1).mean() / temperature


def contrastive_accuracy(z1: Tensor, z2: Tensor) -> Tensor:
    """Share of the 2N rows whose positive has the largest cosine among the 2N - 1 others. Errors as `nt_xent`."""
    cosines = cosine_matrix(z1, z2)
    return (cosines.argmax(1) == positives(len(z1), cosines.device)).to(cosines.dtype).mean()


# ------------------------------------------------------------------------------- encoder and head (section 4.2)


def projection_head(in_dim: int, *, mode: str = "nonlinear", out_dim: int = 128, num_layers: int = 2) -> nn.Module:
    """The network g between the representation h, which is kept, and z, which the loss sees.

    Args:
        mode: "none" is the identity; "linear" one linear layer; "nonlinear" has `num_layers` of them, hidden width
            `in_dim`, ReLU between. As in the official code each linear layer is followed by batch norm, the last one
            without a shift.

    Returns:
        A module (B, in_dim) -> (B, out_dim); with "none" -> (B, in_dim).

    Raises:
        ValueError: unknown mode, num_layers < 2.
    """
    if mode not in ("none", "linear", "nonlinear"):
        raise ValueError(f'mode: expected "none", "linear" or "nonlinear", got {mode!r}')
    if num_layers < 2:
        raise ValueError(f"num_layers: expected at least 2, got {num_layers}")
    if mode == "none":
        return nn.Identity()
    layers: list[nn.Module] = []
    for _ in range(num_layers - 1 if mode == "nonlinear" else 0):
        layers += [nn.Linear(in_dim, in_dim, bias=False), nn.BatchNorm1d(in_dim), nn.ReLU()]
    last = nn.BatchNorm1d(out_dim)
    last.bias.requires_grad_(False)  # stays 0: PyTorch has no batch norm with a scale and no shift
    return nn.Sequential(*layers, nn.Linear(in_dim, out_dim, bias=False), last)


class Output(NamedTuple):
    h: Tensor  # (B, encoder.out_dim) representation, what a probe reads
    z: Tensor  # (B, out_dim) projection, what the loss reads


class SimCLR(nn.Module):
    """Encoder f and projection head g. `encoder` maps pictures to (B, encoder.out_dim)."""

    def __init__(self, encoder: nn.Module, *, head: str = "nonlinear", out_dim: int = 128, num_layers: int = 2):
        super().__init__()
        self.encoder = encoder
        self.head = projection_head(encoder.out_dim, mode=head, out_dim=out_dim, num_layers=num_layers)

    def forward(self, x: Tensor) -> Output:
        h = self.encoder(x)
        return Output(h, self.head(h))


# ------------------------------------------------------------------------------------- optimiser (section 2.2)


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling, with the learning rate inside the momentum, as SimCLR's code has it.

        d = gradient + weight_decay * w
        trust = eta * |w| / |d|    (1 if a norm is 0, or if the group has layer_adaptation=False)
        v = momentum * v + lr * trust * d;    w = w - v

    Groups may set lr, momentum, weight_decay, eta and layer_adaptation; `parameter_groups` makes the usual two.
    """

    def __init__(self, params, lr: float, *, momentum: float = 0.9, weight_decay: float = 0.0, eta: float = 0.001):
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay), ("eta", eta)):
            if value < 0:
                raise ValueError(f"{name}: expected at least 0, got {value}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "layer_adaptation": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                d = w.grad.add(w, alpha=group["weight_decay"])
                if group["layer_adaptation"]:
                    w_norm, d_norm = w.norm(), d.norm()
                    trust = torch.where((w_norm > 0) & (d_norm > 0), group["eta"] * w_norm / d_norm, 1.0)
                    d = d * trust
                state = self.state[w]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(w)
                v = state["momentum_buffer"].mul_(group["momentum"]).add_(d, alpha=group["lr"])
                w.sub_(v)
        return loss


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict]:
    """Two groups for an optimiser: weights with decay; biases and batch norm without decay and, in LARS, adaptation."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "layer_adaptation": False},
    ]


# --------------------------------------------------------------------------------------------------- training


def contrast(model: nn.Module, views: tuple[Tensor, Tensor], *, temperature: float) -> dict[str, Tensor]:
    """Loss of one batch and what to watch. Both views pass the network together, so that batch norm sees both."""
    z1, z2 = (gather(z) for z in model(torch.cat(views)).z.chunk(2))
    with torch.no_grad():
        watched = {
            "accuracy": contrastive_accuracy(z1, z2),
            "alignment": alignment(z1, z2),
            "uniformity": (uniformity(z1) + uniformity(z2)) / 2,
        }
    return {"loss": nt_xent(z1, z2, temperature=temperature), **watched}


def task(
    model: nn.Module,
    read: Callable[[Tensor], Tensor],
    count: int,
    *,
    batch_size: int,
    temperature: float,
    views: Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    warmup: float,
) -> Task:
    """What `train.fit` trains: each step draws `batch_size` of `count` pictures, no picture twice, and two views each.

    Args:
        read: indices (B,) -> pictures (B, 3, H, W) in [0, 1] on the device of the indices.
        views: (pictures, generator) -> two views of each, e.g. by `augment.two_views`.
        warmup: share of the steps in which the learning rate rises; it then falls along a cosine to 0.
    """
    draw = distinct(read, count, batch_size)
    return Task(
        model=model,
        batch=lambda generator: views(draw(generator), generator=generator),
        loss=lambda model, pair: contrast(model, pair, temperature=temperature),
        optimizer=optimizer,
        schedule=warmup_cosine(warmup),
    )


def recipe(
    source: Path | None = None, *, batch_size: int | None = None, device: str = "cpu", size: str | None = None
) -> Recipe:
    """What `sslref train simclr` trains.

    Args:
        source: CIFAR-10's binary version, or a folder with one subfolder of images a class; None: the lit emoji.
        batch_size: in place of 512 (paper) or 64 (miniature); the paper's learning rate grows with it.
        size: "paper" is the CIFAR-10 recipe of paper and official code: ResNet-18 with a 3x3 stem, LARS, 1,000 epochs,
            temperature 0.5, colour strength 0.5, no blur. "miniature" has the network and views of this chapter. By
            default "paper" where there is a source.

    Raises:
        ValueError: unknown size, more samples a batch than pictures. DataError: source is not what is expected.
    """
    size = recipe_size(size, source)
    if source is None:
        images = world(0, device=device).train.images
        read, count, name = images.__getitem__, len(images), "lit emoji"
    else:
        found = folders.pictures(source, 32, device=device)
        read, count, name = found.images, len(found), found.name
    if size == "miniature":
        # temperature of the paper's small pictures and a long warm-up: rounding grows slowly, so that one can compare
        # one process with several
        options = MINIATURE | {"temperature": 0.5, "warmup": 0.3, "batch_size": batch_size or 64}
        options |= {"views": functools.partial(two_views, **VIEWS)}
        model, steps, network = seeded(0, lambda: SimCLR(ConvNet())), 300, "four convolutions"
    else:
        batch_size = batch_size or 512
        model, network = seeded(0, lambda: SimCLR(SmallResNet(width=64, blocks=(2, 2, 2, 2)))), "ResNet-18"
        steps = 1000 * count // batch_size

        def lars(model: nn.Module) -> LARS:
            return LARS(parameter_groups(model, weight_decay=1e-4), lr=batch_size / 256)

        options = {"temperature": 0.5, "optimizer": lars, "warmup": 0.01}
        options |= {"batch_size": batch_size, "views": functools.partial(two_views, strength=0.5)}
    about = f"SimCLR, {size} recipe: {network}, {count:,} pictures ({name})"
    return Recipe(task(model, read, count, **options), steps, options["batch_size"], about)


# ------------------------------------------------- the claim in miniature: emoji, each under a lamp of its own colour


class Lit(NamedTuple):
    images: Tensor  # (N, 3, 32, 32), the drawing on white, multiplied by the lamp
    lamps: Tensor  # (N, 3), colour of the light
    labels: Tensor  # (N,), category of the emoji


class World(NamedTuple):
    train: Lit  # 1,400 emoji as Noto draws them
    test: Lit  # 511 other emoji
    other: Lit  # the same 511 as Twemoji draws them, under other lamps
    relit: Lit  # the drawings of `test` under other lamps


def world(seed: int, *, contrast: float = 0.6, device: str = "cpu") -> World:
    """Emoji whose shortcut is colour: each channel of each picture is multiplied by a factor in [1 - contrast, 1].

    The lamp is the same in two crops of a picture and says nothing about what is drawn. The seed draws the lamps.
    """
    generator = torch.Generator().manual_seed(seed)

    def lit(split: str, vendor: str = "google") -> Lit:
        drawings = emoji(split, vendor=vendor)
        lamps = 1 - contrast * torch.rand(len(drawings), 3, generator=generator)
        return Lit(*(t.to(device) for t in (drawings.images() * lamps[:, :, None, None], lamps, drawings.labels)))

    return World(train=lit("train"), test=lit("test"), other=lit("test", "twitter"), relit=lit("test"))


VIEWS = {"scale": (0.5, 1.0)}  # the paper's 0.08 leaves little but paper of a drawing in the middle of a white square
MINIATURE = {"temperature": 0.1, "optimizer": adamw, "warmup": 0.1}

ARMS = {
    "random weights": {"trained": False},
    "crops": {"strength": 0.0, "gray_p": 0.0},
    "crops + colour": {},
    "read at z": {"readout": "z"},
    "linear head": {"head": "linear"},
    "no head": {"head": "none"},
}


class Trained(NamedTuple):
    model: SimCLR
    history: History | None
    world: World


_KEPT: dict[tuple, Trained] = {}  # the last few: two arms read one network, and a chapter shows what its claims used


def pretrain(
    arm: str, *, seed: int = 0, device: str = "cpu", steps: int = 300, batch_size: int = 64, progress=False
) -> Trained:
    """The network of an arm, with the lamps, the initialisation and the batches of a seed, in evaluation mode.

    Raises:
        ValueError: unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"arm: expected one of {', '.join(ARMS)}, got {arm!r}")
    options = {"trained": True, "strength": 1.0, "gray_p": 0.2, "head": "nonlinear", "readout": "h"} | ARMS[arm]
    del options["readout"]
    key = (*options.items(), seed, device, steps, batch_size)
    if key not in _KEPT:
        lit = world(seed, device=device)
        model, history = seeded(seed, lambda: SimCLR(ConvNet(), head=options["head"])).to(device), None
        if options["trained"]:
            colour = {name: options[name] for name in ("strength", "gray_p")}
            views, read = functools.partial(two_views, **VIEWS, **colour), lit.train.images
            job = task(model, read.__getitem__, len(read), batch_size=batch_size, views=views, **MINIATURE)
            history = fit(job, steps=steps, seed=seed, device=device, log_every=5, progress=progress)
        while len(_KEPT) >= 8:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = Trained(model.eval(), history, lit)
    return _KEPT[key]


def measure(model: SimCLR, lit: World, *, readout: str = "h") -> dict[str, float]:
    """What h (or z) knows of the drawing and of the lamp. All features standardised by the training pictures.

    Returns:
        probe, probe_other: accuracy, in %, of a linear probe of the category trained on Noto, on Noto and on Twemoji.
        retrieval: share, in %, of Noto drawings whose nearest Twemoji drawing by cosine is the same emoji.
        lamp_r2: R^2 of a ridge regression from the features to the lamp.
        lamp_share: share of the features' variance, in %, that comes from the lamp: a picture under two lamps.
        relit_cosine: cosine between the features of a picture and of its copy under another lamp.
    """
    with torch.no_grad():
        features = [getattr(model(part.images), readout) for part in lit]
    train, test, other, relit = standardize(*features)
    logits = linear_probe(train, lit.train.labels, torch.cat([test, other]), C=0.01)
    on_test, on_other = logits.chunk(2)
    nearest = (F.normalize(test, dim=1) @ F.normalize(other, dim=1).T).argmax(1)
    spread = test.var(0).sum() + relit.var(0).sum()
    return {
        "probe": 100 * accuracy(on_test, lit.test.labels),
        "probe_other": 100 * accuracy(on_other, lit.other.labels),
        "retrieval": 100 * (nearest == torch.arange(len(test), device=nearest.device)).double().mean().item(),
        "lamp_r2": ridge_r2(train, lit.train.lamps, test, lit.test.lamps, alpha=10.0),
        "lamp_share": 100 * ((test - relit).square().sum(1).mean() / spread).item(),
        "relit_cosine": F.cosine_similarity(test, relit).mean().item(),
    }


def run(arm: str, *, seed: int, device: str, steps: int, batch_size: int = 64) -> dict[str, float]:
    """One arm of the experiment with one seed: metrics of `measure`."""
    model, _, lit = pretrain(arm, seed=seed, device=device, steps=steps, batch_size=batch_size)
    return measure(model, lit, readout=ARMS[arm].get("readout", "h"))


EXPERIMENTS = {
    "lamps": Experiment(
        run=run,
        arms=tuple(ARMS),
        budgets={
            "smoke": {"seeds": 2, "steps": 2, "batch_size": 16},
            "ci": {"seeds": 1, "steps": 80},
            "ledger": {"seeds": 10, "steps": 300},
            "gpu": {"seeds": 32, "steps": 2000, "batch_size": 256},
        },
    )
}


# fmt: off
_ROWS = (  # id, metric, whether more is better, baseline, method, statement
    ("relit", "relit_cosine", True, "crops", "crops + colour",
     "With colour distortion a picture keeps its representation when only the lamp changes."),
    ("lamp_r2", "lamp_r2", False, "crops", "crops + colour",
     "With colour distortion a ridge regression reads less of the lamp's colour from the representation."),
    ("head_discards", "lamp_r2", False, "crops + colour", "read at z",
     "The head throws the lamp away: less of it can be read from the projection z than from h before the head."),
    ("probe", "probe", True, "crops", "crops + colour",
     "With colour distortion a linear probe of the category gains on new emoji by the artist it was trained on."),
    ("probe_other", "probe_other", True, "crops", "crops + colour",
     "With colour distortion the same probe gains on another artist's drawings."),
    ("retrieval", "retrieval", True, "crops", "crops + colour",
     "With colour distortion more drawings find the same emoji among another artist's drawings."),
    ("trained", "probe", True, "random weights", "crops + colour",
     "Training with colour distortion makes a better representation for the probe than random weights."),
    ("head", "probe", True, "no head", "crops + colour",
     "A non-linear head makes the representation before it better for the probe than training without a head."),
    ("before_head", "probe", True, "read at z", "crops + colour",
     "The probe reads more from h, before the head, than from the projection z."),
)
# fmt: on
CLAIMS = tuple(
    Claim(
        id=id,
        statement=statement,
        experiment="lamps",
        metric=metric,
        higher_is_better=better,
        baseline=baseline,
        method=method,
        ablations=("random weights", "linear head", "no head") if baseline == "crops" else (),
        kind="mechanism" if metric in ("relit_cosine", "lamp_r2") else "gain",
        unit="points" if metric in ("probe", "probe_other", "retrieval") else "",
    )
    for id, metric, better, baseline, method, statement in _ROWS
)

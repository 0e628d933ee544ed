"""The chapters of joint embedding and dense learning on one probe: the same scenes, views, budget and questions.

Every method trains the same four convolutions (`nn.ConvMap`: a view of 48 pixels becomes 6×6 places of 192 numbers)
with the same optimiser on the same views of the same scenes, drawn anew for every seed. Then the maps are frozen and
asked what lies where, which things a scene shows, and where a place is in another view (`densecl.measure`). Nothing is
tuned for this table: loss, heads and their options are those of the chapters' miniatures.

Three methods do not fit that mould, and the table says how they were fitted:
- ExtreMA drops tokens; a convolution cannot, so hidden patches are grey. The method's saving of time is lost.
- ScatSimCLR *is* another first half of the network: wavelets, then convolutions that learn.
- The survey (`know_your_ssl`) has no method; its family of information maximisation (VICReg) stands for it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sslref.claims import Claim, Experiment
from sslref.data.worlds.scenes import Views, random_views
from sslref.nn import ConvMap, calibrate_batchnorm, seeded
from sslref.papers import densecl, know_your_ssl, mec, pixpro, randomized_quantization, simclr
from sslref.train import Task, fit

Read = Callable[[Tensor], Tensor]  # indices -> scenes (B, 3, 64, 64)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=1e-4)


def _view(images: Tensor, generator: torch.Generator) -> Tensor:
    return random_views(images, generator=generator).images


def _two_views(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _view(images, generator), _view(images, generator)


def _boxed(images: Tensor, generator: torch.Generator) -> Views:
    return random_views(images, generator=generator)


def _quantized(images: Tensor, generator: torch.Generator) -> Tensor:
    return randomized_quantization.randomized_quantization(_view(images, generator), num_bins=5, generator=generator)


_SHARED = {"optimizer": _optimizer, "warmup": 0.1}

# (indices -> scenes, their number, batch size) -> what `train.fit` trains


def _simclr(read: Read, count: int, batch_size: int) -> Task:
    options = {"temperature": 0.5, "views": _two_views, **_SHARED}
    return simclr.task(simclr.SimCLR(ConvMap(), out_dim=64), read, count, batch_size=batch_size, **options)


def _vicreg(read: Read, count: int, batch_size: int) -> Task:
    model = know_your_ssl.build("information", encoder=ConvMap)
    return know_your_ssl.task(model, read, count, batch_size=batch_size, view=_view)


def _mec(read: Read, count: int, batch_size: int) -> Task:
    lamda = mec.coding_constants(batch_size, mec.SIZES["out_dim"], eps_sq=mec.EPS_SQ)[1]
    options = {"lamda": lamda, "lamda_warmup": 0, "views": _two_views, **_SHARED, "momentum": 0.97}
    return mec.task(mec.MEC(ConvMap(), **mec.SIZES), read, count, batch_size=batch_size, **options)


def _quantization(read: Read, count: int, batch_size: int) -> Task:
    model = randomized_quantization.Siamese(ConvMap())
    return randomized_quantization.task(model, read, count, batch_size=batch_size, view=_quantized)


def _densecl(read: Read, count: int, batch_size: int) -> Task:
    options = densecl.MINIATURE | {"views": densecl.located_views}
    return densecl.task(densecl.DenseCL(ConvMap(), **densecl.SIZES), read, count, batch_size=batch_size, **options)


def _pixcontrast(read: Read, count: int, batch_size: int) -> Task:
    model = pixpro.PixPro(ConvMap(), **pixpro.SIZES, predictor="none")
    return pixpro.task(model, read, count, batch_size=batch_size, views=_boxed, loss="contrast", **_SHARED)


def _pixpro(read: Read, count: int, batch_size: int) -> Task:
    model = pixpro.PixPro(ConvMap(), **pixpro.SIZES)
    return pixpro.task(model, read, count, batch_size=batch_size, views=_boxed, **_SHARED)


METHODS = {  # arm -> (the chapter it stands for, how its training is made)
    "SimCLR": ("simclr", _simclr),
    "VICReg": ("know_your_ssl", _vicreg),
    "MEC": ("mec", _mec),
    "Randomized Quantization": ("randomized_quantization", _quantization),
    "DenseCL": ("densecl", _densecl),
    "PixContrast": ("pixpro", _pixcontrast),
    "PixPro": ("pixpro", _pixpro),
}
UNTRAINED = "random weights"


def encoder_of(task: Task) -> nn.Module:
    """The network that learns; in every model it stands before its slow copy."""
    return next(m for m in task.model.modules() if isinstance(m, ConvMap))


def run(arm: str, *, seed: int, device: str, steps: int, batch_size: int = 48, **sizes) -> dict[str, float]:
    """One arm with one seed: metrics of `densecl.measure`. `sizes` are options of `densecl.world`.

    Raises:
        ValueError: unknown arm.
    """
    if arm != UNTRAINED and arm not in METHODS:
        raise ValueError(f"arm: expected {UNTRAINED!r} or one of {', '.join(METHODS)}, got {arm!r}")
    scenes = densecl.world(seed, device=device, **sizes)
    if arm == UNTRAINED:
        encoder = seeded(seed, ConvMap).to(device)
        calibrate_batchnorm(encoder, scenes.views[0].images.split(50))
    else:
        task = seeded(seed, lambda: METHODS[arm][1](scenes.train.__getitem__, len(scenes.train), batch_size))
        fit(task, steps=steps, seed=seed, device=device)
        encoder = encoder_of(task)
    return densecl.measure(encoder.eval(), scenes)


_TINY = {"steps": 2, "batch_size": 8, "scenes": 64, "labelled": 32, "test": 32}
EXPERIMENTS = {
    "probe": Experiment(
        run=run,
        arms=(UNTRAINED, *METHODS),
        budgets={
            "smoke": {"seeds": 2} | _TINY,
            "ci": {"seeds": 2} | _TINY,
            "ledger": {"seeds": 10, "steps": 100},
            "gpu": {"seeds": 16, "steps": 4000, "batch_size": 256},
        },
    )
}
CLAIMS = tuple(
    Claim(
        id=f"{slug}/{method}",
        statement=f"A linear probe segments better on maps of {method} than on those of random weights.",
        experiment="probe",
        metric="miou",
        higher_is_better=True,
        baseline=UNTRAINED,
        method=method,
        kind="gain",
        unit="points",
    )
    for method, (slug, _) in METHODS.items()
)

"""Run under torchrun by test_train.py: what two processes compute, saved for comparison with one.

usage: ddp_worker.py FOLDER
"""

import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from sslref import losses, train
from sslref.nn.sync import sync_batchnorm


class Net(nn.Module):
    """Encoder with BatchNorm, and a moving average of its weights as a teacher would be."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 5)
        )
        self.head = nn.Sequential(nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 4))
        self.register_buffer("average", torch.zeros(5))

    def forward(self, x):
        return self.head(self.body(x))


def task(dtype: torch.dtype = torch.float32, rows: int = 8, width: int = 6) -> train.Task:
    """A contrastive loss over the gathered rows and a mean over rows, so that both kinds of gradient are there."""
    torch.manual_seed(3)

    def batch(generator):
        x = torch.randn(rows, 2, 6, 6, generator=generator, dtype=dtype)
        return {"a": x, "b": x + 0.3 * torch.randn(x.shape, generator=generator, dtype=dtype)}

    def loss(model, batch):
        a, b = model(torch.cat([batch["a"], batch["b"]])).chunk(2)
        za, zb = (F.normalize(losses.gather(z)) for z in (a, b))
        contrast = F.cross_entropy(za @ zb.T / 0.5, torch.arange(len(za)))
        near = (a - b).square().mean()
        return {"loss": contrast + near, "near": near}

    def after_step(model, step, steps):
        model.average.lerp_(model.body[-1].bias.detach(), 0.1)

    def optimizer(model):
        # not Adam: it turns the rounding of a gradient that is zero (a bias before BatchNorm) into whole steps
        return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    return train.Task(Net(width).to(dtype), batch, loss, optimizer, train.warmup_cosine(0.3), after_step)


def trained(dtype: torch.dtype, **options) -> dict:
    job = task(dtype)
    history = train.fit(job, steps=6, seed=5, log_every=4, **options)
    return {"values": history.values, "steps": history.steps, "model": job.model.state_dict()}


def batchnorm(dtype: torch.dtype, rank: int, world: int) -> dict:
    """Output, gradients and running statistics of BatchNorm on this process's rows of fixed data."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for kind, shape in (("1d", (8, 3)), ("2d", (8, 3, 4, 5)), ("3d", (4, 3, 2, 3, 2))):
        for momentum in (0.1, None):
            x = torch.randn(shape, generator=generator, dtype=dtype) * 2 + 7
            w = torch.randn(shape, generator=generator, dtype=dtype)
            norm = {"1d": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}[kind](3, momentum=momentum)
            norm = sync_batchnorm(norm.to(dtype)) if world > 1 else norm.to(dtype)
            nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(2))
            rows = slice(rank * len(x) // world, (rank + 1) * len(x) // world)
            x, w = x[rows].requires_grad_(), w[rows]
            for _ in range(3):
                y = norm(x)
            (y.square() * w).sum().backward()
            for p in norm.parameters() if world > 1 else ():
                dist.all_reduce(p.grad)
            norm.eval()
            found[f"{kind}, {momentum}"] = {
                "y": y.detach(),
                "x.grad": x.grad,
                "weight.grad": norm.weight.grad,
                "bias.grad": norm.bias.grad,
                "eval": norm(x).detach(),
                **{k: v.double() for k, v in norm.named_buffers()},
            }
    return found


def main(folder: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = {"float32": trained(torch.float32), "float64": trained(torch.float64)}
    found["batchnorm"] = batchnorm(torch.float64, rank, world)
    try:
        train.fit(task(rows=7), steps=1)
    except ValueError as error:
        found["indivisible"] = str(error)

    # Ctrl-C reaches one process only, in the middle of a run with a checkpoint, which is then continued
    def press(step, steps, values):
        if rank == 0 and step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    checkpoint = folder / "run.pt"
    try:
        train.fit(task(), steps=6, seed=5, log_every=2, checkpoint=checkpoint, save_every=100, progress=press)
    except KeyboardInterrupt:
        found["stopped"] = torch.load(checkpoint, weights_only=True)["step"]
    job = task()
    found["resumed"] = {
        "values": train.fit(job, steps=6, seed=5, log_every=2, checkpoint=checkpoint).values,
        "model": job.model.state_dict(),
    }
    torch.save(found, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

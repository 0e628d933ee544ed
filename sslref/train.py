"""The one training loop: any device, any number of processes, progress, checkpoints, exact resume.

A `Task` says what is trained; `fit` trains it. Lightning Fabric places model and processes, chooses the precision and
wraps the model for `torchrun`. What is decided here is the rest:

- batch t depends on the seed and on t alone, so a run that was killed and resumed gives the numbers of one that was
  not, and every process of a distributed run sees the batch that one process sees, of which it takes its rows;
- the host never waits for the device inside a step: losses stay there until a row of the history is due.
"""

import contextlib
import logging
import math
import os
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sslref.nn.schedule import cosine_schedule
from sslref.nn.sync import sync_batchnorm

PRECISIONS = ("32-true", "bf16-mixed", "64-true")
Progress = Callable[[int, int, Mapping[str, float]], Any]  # (steps done, steps, newest row of the history)


def constant(step: int, steps: int) -> float:
    """The base learning rate throughout."""
    return 1.0


def warmup_cosine(fraction: float = 0.1, final: float = 0.0) -> Callable[[int, int], float]:
    """A schedule: a straight line from 0 over `fraction` of the steps, then half a cosine from 1 to `final`.

    Raises:
        ValueError: fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction: expected a number in [0, 1), got {fraction}")
    return lambda step, steps: cosine_schedule(
        step, steps, base=1.0, final=final, warmup_steps=math.floor(fraction * steps)
    )


def distinct(
    read: Callable[[Tensor], Tensor], count: int, batch_size: int, *, least: int = 2
) -> Callable[[torch.Generator], Tensor]:
    """Draws `batch_size` of `count` samples a step, none of them twice: generator -> samples (B, ...).

    Args:
        read: indices (B,) -> samples on the device of the indices.

    Raises:
        ValueError: batch_size outside [least, count].
    """
    if not least <= batch_size <= count:
        raise ValueError(f"batch_size: expected {least} to {count}, the number of samples, got {batch_size}")
    return lambda generator: read(torch.randperm(count, generator=generator, device=generator.device)[:batch_size])


def adamw(
    model: nn.Module, lr: float = 2e-3, *, weight_decay: float = 1e-4, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """AdamW on all parameters that are trained; the defaults are those of the miniatures."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, betas=betas)


def sgd(model: nn.Module, lr: float, *, weight_decay: float) -> torch.optim.Optimizer:
    """SGD with a momentum of 0.9 on all parameters that are trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=lr, momentum=0.9, weight_decay=weight_decay)


@dataclass
class Task:
    """What is trained.

    Args:
        model: already initialised. State that is not learned (a teacher, a queue) lives in it as submodule or buffer.
        batch: draws the whole batch of all processes: tensor, tuple or dict of tensors with the sample as first axis.
            What is random per sample (indices, augmentation, masks) is drawn here with the generator given, on whose
            device the tensors are best made.
        loss: (model, batch) -> scalar, or a dict of scalars of which "loss" is minimised and all are kept. It calls
            the model once, as `model(...)`; what it computes after that is in float32, autocast or not. In several
            processes it gets their rows and returns their mean; losses that compare samples use `losses.gather`.
        optimizer: model -> optimizer, with its base learning rates.
        schedule: (step, steps) -> factor on them, step 0 first.
        after_step: called with (model, step, steps) after each update, e.g. to move a teacher.
    """

    model: nn.Module
    batch: Callable[[torch.Generator], Any]
    loss: Callable[[nn.Module, Any], Tensor | dict[str, Tensor]]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    schedule: Callable[[int, int], float] = constant
    after_step: Callable[[nn.Module, int, int], None] | None = None


@dataclass
class Recipe:
    """A task with the length of its run; what `recipe` of a paper returns.

    Args:
        batch_size: samples in one batch of all processes. about: one sentence on data, model and source.
    """

    task: Task
    steps: int
    batch_size: int
    about: str


def recipe_size(size: str | None, source: object) -> str:
    """ "paper" or "miniature"; where nothing is said, "paper" on the user's own data.

    Raises:
        ValueError: anything else.
    """
    if size not in (None, "paper", "miniature"):
        raise ValueError(f'size: expected "paper" or "miniature", got {size!r}')
    return size or ("miniature" if source is None else "paper")


@dataclass
class History:
    """What a run said: a row every `log_every` steps and one at the end, each the mean over the steps since the last.

    `steps` counts the finished steps at each row; `seconds` adds up the parts of a resumed run.
    """

    steps: list[int] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def last(self, name: str = "loss") -> float:
        """The newest value of a name. Raises KeyError, naming what there is."""
        if name not in self.values:
            raise KeyError(f"the history has no {name!r}; it has {', '.join(self.values) or 'no rows'}")
        return self.values[name][-1]


def step_generator(seed: int, step: int, device: str | torch.device = "cpu") -> torch.Generator:
    """The generator of batch `step`: it depends on (seed, step) alone. Raises ValueError if one is negative."""
    return torch.Generator(device).manual_seed(_mixed(seed, step))


def _mixed(*numbers: int) -> int:
    # neighbouring seeds must give unrelated streams, and PyTorch's own seeding keeps 32 bits
    if min(numbers) < 0:
        raise ValueError(f"seed: expected integers >= 0, got {numbers}")
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def local_device(device: str) -> str:
    """The device of this process: under torchrun "cuda" means one GPU a process.

    Raises:
        ValueError: no such device here.
    """
    try:
        target = torch.device(device)
    except RuntimeError:
        raise ValueError(f'device: expected "cpu", "cuda", "cuda:1" or "mps", got {device!r}') from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    index = int(os.environ.get("LOCAL_RANK", 0)) if device == "cuda" else target.index or 0
    if index >= there.get(target.type, 0):
        found = ", ".join(f"{count} × {name}" for name, count in there.items() if count and name != "cpu")
        raise ValueError(f"device: PyTorch finds no {device!r} for this process here, only {found or 'the CPU'}")
    return f"cuda:{index}" if target.type == "cuda" else device


def fit(
    task: Task,
    *,
    steps: int,
    seed: int = 0,
    device: str = "cpu",
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true",
    compile: bool = False,
    channels_last: bool = False,
    log_every: int = 10,
    checkpoint: Path | None = None,
    save_every: int | None = None,
    progress: bool | Progress = False,
) -> History:
    """Train `task.model` in place and return its history. The model is left on the device, in training mode.

    Under torchrun every process takes its rows of the batch and BatchNorm counts them all; except for what the model
    draws itself (dropout), the result is that of one process. PyTorch's global generator, which such a model uses, is
    seeded for every step and put back at the end.

    Args:
        steps: length of the run; an existing checkpoint is continued up to it.
        seed: of the batches, not of the initialisation.
        device: "cpu", "cuda", "cuda:1", "mps"; under torchrun "cuda" means one GPU a process.
        precision: "bf16-mixed" runs the model under autocast; "64-true" turns model and batches to float64, in which
            one process and several agree to the last digits (in float32, rounding flips a ReLU sooner or later).
        log_every: steps a row of the history; only there does the host wait for the device.
        checkpoint: file to continue from, where there is one, and to write: every `save_every` steps (by default ten
            times a run), at the end and at Ctrl-C.
        progress: True for a bar in the terminal, or called with (steps done, steps, newest row) at every row.

    Raises:
        ValueError: an argument out of range, a device that is not there, a checkpoint that cannot be read or belongs
            to another run, a batch that cannot be divided among the processes, a loss that is no scalar.
        KeyboardInterrupt: Ctrl-C; the step is finished and the checkpoint written first.
    """
    save_every = max(1, steps // 10) if save_every is None else save_every
    for name, value in (("steps", steps), ("log_every", log_every), ("save_every", save_every)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    fabric = _fabric(device, precision)
    device, rank, world = fabric.device, fabric.global_rank, fabric.world_size
    dtype = torch.float64 if precision == "64-true" else None

    def place(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)
        images = channels_last and tensor.ndim == 4
        return tensor.contiguous(memory_format=torch.channels_last) if images else tensor

    model = task.model.to(device, dtype).train()
    for parameter in model.parameters():
        parameter.data = place(parameter.data)
    if world > 1:
        model = task.model = sync_batchnorm(model)
    optimizer = task.optimizer(model)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    run = _identity(model, optimizer, steps, seed)
    history, pending, first = History(), [], 0
    if checkpoint is not None and Path(checkpoint).exists():
        state = _load(Path(checkpoint), run)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, history = state["step"], History(**state["history"])
        pending = list(state["pending"].to(device))
    forward, stepper = fabric.setup(torch.compile(model) if compile else model, optimizer)

    names = tuple(history.values)
    devices = [device] if device.type == "cuda" else []
    start = time.perf_counter() - history.seconds
    with (
        _bar(progress if rank == 0 else False) as report,
        _ctrl_c() as pressed,
        torch.random.fork_rng(devices),
        sound_convolutions(model, device, bf16=precision == "bf16-mixed"),
    ):
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * task.schedule(step, steps)
            torch.manual_seed(_mixed(seed, step, 1 + rank))
            batch = _map(place, _rows(task.batch(step_generator(seed, step, device)), rank, world))
            values = _named(task.loss(forward, batch), names)
            names, loss = tuple(values), values["loss"]
            stepper.zero_grad(set_to_none=True)
            fabric.backward(loss)
            stepper.step()
            if task.after_step is not None:
                task.after_step(model, step, steps)

            done = step + 1
            kind = torch.promote_types(loss.dtype, torch.float32)
            row = torch.stack([torch.as_tensor(v, device=device).detach().to(kind) for v in values.values()])
            pending.append(fabric.all_reduce(row, reduce_op="mean"))
            log = done % log_every == 0 or done == steps
            if log:
                means = dict(zip(names, torch.stack(pending).cpu().double().mean(0).tolist(), strict=True))
                pending = []
                history.steps.append(done)
                for name, value in means.items():
                    history.values.setdefault(name, []).append(value)
                report(done, steps, means)
            stop = bool(pressed)
            if world > 1:  # a signal reaches the processes at different steps: they agree when they meet anyway
                stop = log and bool(fabric.all_reduce(torch.tensor(float(stop), device=device), reduce_op="sum"))
            if checkpoint is not None and (done % save_every == 0 or done == steps or stop):
                history.seconds = time.perf_counter() - start
                if rank == 0:
                    rows = torch.stack(pending).cpu() if pending else torch.empty(0, len(names))
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "pending": rows}
                    _save(Path(checkpoint), state | {"run": run, "step": done, "history": asdict(history)})
                fabric.barrier()
            if stop:
                raise KeyboardInterrupt
    history.seconds = time.perf_counter() - start if first < steps else history.seconds
    return history


@contextlib.contextmanager
def sound_convolutions(model: nn.Module, device: str | torch.device, *, bf16: bool) -> Iterator[None]:
    """Keep oneDNN out of the bfloat16 Conv3d of a CPU.

    Where a kernel of three frames meets two frames of video it reads memory that is not its own (PyTorch 2.13):
    gradients differ from run to run, and at times are not finite.
    """
    backend = torch.backends.mkldnn
    unsound = bf16 and torch.device(device).type == "cpu" and any(isinstance(m, nn.Conv3d) for m in model.modules())
    was = backend.enabled
    backend.set_flags(_enabled=was and not unsound)
    try:
        yield
    finally:
        backend.set_flags(_enabled=was)


def _fabric(device: str, precision: str):
    """Fabric, launched: one process here, or those that torchrun started."""
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
    except ModuleNotFoundError:  # the same library inside the package "lightning"
        from lightning.fabric import Fabric
        from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    for name in ("lightning_fabric", "lightning.fabric"):  # it reports its settings on stderr
        logging.getLogger(name).setLevel(logging.WARNING)
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    precision = "32-true" if precision == "64-true" else precision  # Fabric's hands the loss float32; `fit` converts
    target = torch.device(local_device(device))
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        devices = [target.index or 0] if target.type == "cuda" else 1
        fabric = Fabric(accelerator=target.type, devices=devices, precision=precision, plugins=[LightningEnvironment()])
    else:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        fabric = Fabric(
            accelerator=target.type,
            devices=local,
            num_nodes=world // local,
            strategy="ddp",
            precision=precision,
            plugins=[TorchElasticEnvironment()],
        )
    fabric.launch()
    return fabric


def _map(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """The function on every tensor of a batch; what is neither tensor nor container stays as it is."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {k: _map(function, v) for k, v in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [_map(function, v) for v in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def _rows(batch: Any, rank: int, world: int) -> Any:
    """The rows of one process."""
    if world == 1:
        return batch
    sizes: list[int] = []
    _map(lambda x: sizes.append(len(x) if x.ndim else 0) or x, batch)
    if len(set(sizes)) != 1 or sizes[0] == 0 or sizes[0] % world:
        got = ", ".join(map(str, sizes)) or "no tensor"
        raise ValueError(
            f"batch: expected tensors with one number of rows, a multiple of the {world} processes, got {got}"
        )
    count = sizes[0] // world
    return _map(lambda x: x[rank * count : (rank + 1) * count], batch)


def _named(values: Tensor | Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """What the task's loss returned, by name, checked. `names` are those of the steps before, if there are any."""
    values = dict(values) if isinstance(values, Mapping) else {"loss": values}
    if "loss" not in values:
        raise ValueError(f"loss: expected a dict with the key 'loss', got {', '.join(map(str, values)) or 'no key'}")
    loss = values["loss"]
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss: expected a scalar tensor, got {got}")
    if names and names != tuple(values):
        raise ValueError(f"loss: expected the names {', '.join(names)} at every step, got {', '.join(values)}")
    return values


# ---------------------------------------------------------------------------------------------------- checkpoints


def _identity(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> dict[str, Any]:
    """What must be the same for a checkpoint to belong to a run."""
    groups = [{k: str(v) for k, v in g.items() if k not in ("params", "lr")} for g in optimizer.param_groups]
    return {
        "steps": steps,
        "seed": seed,
        "model": {k: list(v.shape) for k, v in model.state_dict().items()},
        "optimizer": [type(optimizer).__name__, groups],
    }


def _save(path: Path, content: dict) -> None:
    """Write in one step: a reader finds the old checkpoint or the new one, whatever happens in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _load(path: Path, run: dict[str, Any]) -> dict:
    help = "delete it to start anew, or name another file"
    try:
        # PyTorch's reader skips the archive's checksums; a flipped bit must not become a weight
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"checksum of {damaged} does not match")
        content = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"run", "step", "model", "optimizer", "history", "pending"} - content.keys()
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except OSError:
        raise
    except Exception as error:  # a damaged file fails anywhere in the unpickler
        raise ValueError(f"{path}: not a readable checkpoint ({error}); {help}") from None
    for key, value in run.items():
        saved = content["run"].get(key)
        if saved != value:
            short = f"{key} {saved}, this one {value}" if isinstance(value, int) else f"another {key}"
            raise ValueError(f"{path}: the checkpoint of another run, with {short}; {help}")
    return content


# ---------------------------------------------------------------------------------------------------- contexts


@contextlib.contextmanager
def _ctrl_c() -> Iterator[list]:
    """Collects the first Ctrl-C, so that a step is not cut in two; the second one interrupts at once."""
    pressed: list = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield pressed
        return
    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler

    def note(*_) -> None:
        pressed.append(True)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _bar(progress: bool | Progress) -> Iterator[Progress]:
    """The caller's own progress, a bar where there is a terminal, or nothing."""
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress:
        yield lambda done, steps, values: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[said]}")
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task("", total=None, said="")
        yield lambda done, steps, values: bar.update(
            line, completed=done, total=steps, said="  ".join(f"{k} {v:.4g}" for k, v in values.items())
        )

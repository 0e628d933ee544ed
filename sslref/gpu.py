"""Check the implementations on a device against the CPU in float64, and measure training there.

`sslref gpu-check`, or `python -m sslref.gpu` in a plain checkout: PyTorch, NumPy, SciPy and scikit-learn are enough,
except for the claims, which also need what training needs (extra `run`). Three parts:

- every function of the contracts (`gpu_cases.CASES`): CPU float64 against the device in float32, outputs and
  gradients, and in float32 under bfloat16 autocast as in training, outputs alone, since a coarse number may fall on
  the other side of a ReLU;
- a training step of every paper's miniature: time, memory, eager and compiled, and whether the host has to wait;
- with `--claims`, the profile `gpu` of every claim, which is also written to `book/results`.

The file holds one object:

    device, kind, memory_mb   name of the device, its type ("cuda", "cpu", ...), its memory (null for a CPU)
    date, seconds             day of the run; how long it took
    code_digest               of the code of all papers, as in book/results
    versions                  of Python, PyTorch and the libraries
    passed                    whether no check and no training step failed
    checks                    list of {name, precision, error, tolerance, passed, note}; precision is "float32" or
                              "bf16", error the largest deviation as a share of the largest value of an output (1 where
                              whole numbers differ or a random function breaks its law)
    training                  list of {slug, about, batch_size, precision, compiled, step_ms, samples_per_second,
                              peak_memory_mb, first_step_seconds, loss, host_waits, passed, note}; the first step
                              holds the compilation; host_waits names what makes the host wait for the device in a step
    claims                    {slug: record}, the records as in book/results; empty without --claims
"""

import argparse
import contextlib
import copy
import datetime
import importlib
import math
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sslref import claims as ledger
from sslref import digest, registry, train
from sslref.gpu_cases import CASES, Case, Draw

Progress = Callable[[str], Any]


@dataclass
class Check:
    """One function in one precision against the CPU in float64."""

    name: str
    precision: str
    error: float | None
    tolerance: float
    passed: bool
    note: str = ""


@dataclass
class Training:
    """One paper's miniature in one precision, eager or compiled."""

    slug: str
    precision: str
    compiled: bool
    about: str = ""
    batch_size: int | None = None
    step_ms: float | None = None
    samples_per_second: float | None = None
    peak_memory_mb: float | None = None
    first_step_seconds: float | None = None
    loss: float | None = None
    host_waits: list[str] = field(default_factory=list)
    passed: bool = False
    note: str = ""


@dataclass
class Report:
    """What a run found; `asdict` of it is what the file holds."""

    device: str
    kind: str
    memory_mb: int | None
    date: str
    seconds: float
    code_digest: str
    versions: dict[str, str]
    passed: bool
    checks: list[Check]
    training: list[Training]
    claims: dict[str, dict]


# ------------------------------------------------------------------------------------------------------ comparing


def _resolve(name: str) -> Any:
    """ "simclr.nt_xent" -> the function."""
    module, _, attribute = name.rpartition(".")
    try:
        found = importlib.import_module(f"sslref.{module}")
    except ModuleNotFoundError as error:
        if error.name != f"sslref.{module}":
            raise
        found = importlib.import_module(f"sslref.papers.{module}")
    return getattr(found, attribute)


def _place(x: Any, device: str, dtype: torch.dtype) -> Any:
    """A copy of an argument on the device, in the precision where it is floating point, ready for gradients there."""
    if isinstance(x, nn.Module):
        return copy.deepcopy(x).to(device, dtype)
    if not isinstance(x, Tensor):
        return x
    return x.to(device, dtype).requires_grad_() if x.is_floating_point() else x.to(device)


def _tensors(x: Any) -> list[Tensor]:
    """Every tensor and number of a nested output."""
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, bool | int | float):
        return [torch.tensor(x, dtype=torch.float64 if isinstance(x, float) else torch.int64)]
    return [t for part in (x.values() if isinstance(x, dict) else x) for t in _tensors(part)]


def _outputs(case: Case, device: str, dtype: torch.dtype, *, autocast: bool = False) -> tuple[list, list]:
    """Outputs of a case, and the gradients of a weighted sum of them, on the CPU in float64."""
    target, args = _resolve(case.name), [_place(a, device, dtype) for a in case.make(Draw())]
    if case.build is not None:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            target = target(**case.build)
        target = _place(target, device, dtype)
    with torch.random.fork_rng([]), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
        torch.manual_seed(0)  # for the modules that a call makes
        called = (case.call or (lambda f, *a, **k: f(*a, **k)))(target, *args, **case.options)
    outputs = _tensors(called)
    leaves = [p for x in (target, *args) if isinstance(x, nn.Module) for p in x.parameters() if p.requires_grad]
    leaves += [a for a in args if isinstance(a, Tensor) and a.requires_grad]
    # weights of all signs: the plain sum, or that of squares, of what was normalised hardly depends on anything
    score = sum(
        (o.flatten() * torch.arange(o.numel(), device=o.device).cos()).sum() for o in outputs if o.requires_grad
    )
    gradients = []
    if isinstance(score, Tensor):
        found = torch.autograd.grad(score, leaves, allow_unused=True)
        gradients = [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]
    return tuple(
        [t.detach().cpu().double() if t.is_floating_point() else t.detach().cpu() for t in group]
        for group in (outputs, gradients)
    )


def _deviation(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference as a share of the largest value of a tensor; 1 or more where shapes or integers differ."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return math.inf
    numbers = [t for t in expected if t.is_floating_point() and t.numel()]
    largest = {id(t): t.nan_to_num(0, 0, 0).abs().max().item() for t in numbers}
    # beside large tensors, one that should vanish is measured on their scale: it holds rounding errors alone
    floor = max(largest.values(), default=0.0) / 100
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if not b.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(a, b) else 1.0)
        elif b.numel():
            difference = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).max().item()
            error = difference / (max(largest[id(b)], floor) or 1.0)
            worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


def _law(case: Case, device: str, dtype: torch.dtype, *, autocast: bool) -> float:
    """0 if a random function obeys its law and gives the same numbers twice, else 1."""
    args = [_place(a, device, dtype) for a in case.make(Draw())]
    runs = []
    for _ in range(2):
        generator = torch.Generator(device).manual_seed(0)
        with torch.no_grad(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
            runs.append(_resolve(case.name)(*args, **case.options, generator=generator))
    same = all(torch.equal(a, b) for a, b in zip(*map(_tensors, runs), strict=True))
    here = all(t.device.type == torch.device(device).type for t in _tensors(runs[0]) if t.ndim)
    return float(not (same and here and case.law(runs[0], *args)))


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Without TF32, which PyTorch allows in convolutions by default and which keeps three digits."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [b.fp32_precision for b in backends]
    try:
        for b in backends:
            b.fp32_precision = "ieee"
        yield
    finally:
        for b, value in zip(backends, before, strict=True):
            b.fp32_precision = value


def _compare(case: Case, device: str) -> Iterator[Check]:
    expected = None
    for precision, tolerance in (("float32", case.float32), ("bf16", case.bf16)):
        if tolerance is None:
            continue
        error, note = None, ""
        try:
            if case.law is not None:
                error = _law(case, device, torch.float32, autocast=precision == "bf16")
            else:
                expected = expected or _outputs(case, "cpu", torch.float64)
                found = _outputs(case, device, torch.float32, autocast=precision == "bf16")
                error = _deviation(found[0], expected[0])
                if precision == "float32":
                    error = max(error, _deviation(found[1], expected[1]))
                elif not all(g.isfinite().all() for g in found[1]):
                    error, note = math.inf, "a gradient is not finite"
        except Exception as problem:  # one broken function must not hide the others
            note = f"{type(problem).__name__}: {problem}".splitlines()[0]
        finite = error is not None and math.isfinite(error)
        passed = finite and error <= tolerance
        yield Check(case.name, precision, error if finite else None, tolerance, passed, note)


# ------------------------------------------------------------------------------------------------------ training

# What needs a value on the host, and so makes it wait for a GPU. A mask as an index counts as `nonzero`.
_WAITING = {
    "_local_scalar_dense",  # .item(), float(x), if x:
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "equal",
}


class _Waits(TorchDispatchMode):
    """Notes operations that make the host wait, and the line of the package that asks for them."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        # in CPU tensors an optimiser counts its steps: nobody waits for those
        if name in _WAITING or by_mask:
            self.found.append(f"{name} at {_line()}")
        return func(*args, **(kwargs or {}))


def _line() -> str:
    """The innermost line of the package that is being run."""
    frames = [f for f in traceback.extract_stack() if "sslref" in Path(f.filename).parts and f.filename != __file__]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "autograd"


class _AsInTraining(nn.Module):
    """A model as `train.fit` calls it: the forward pass under autocast, what comes out in float32."""

    def __init__(self, model: nn.Module, device: str, precision: str):
        super().__init__()
        self.model = model
        self.autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")

    def forward(self, *args, **kwargs):
        with self.autocast:
            out = self.model(*args, **kwargs)
        return train._map(lambda t: t.float() if t.dtype == torch.bfloat16 else t, out)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def _synchronize(device: str) -> None:
    if device != "cpu":
        getattr(torch, torch.device(device).type).synchronize()


def _measure(row: Training, device: str, seconds: float) -> None:
    """Fill in a row by training for about `seconds`."""
    recipe = registry.load(row.slug).recipe(None, device=device, size="miniature")
    with train.sound_convolutions(recipe.task.model, device, bf16=row.precision == "bf16"):
        _measure_steps(row, recipe, device, seconds)


def _measure_steps(row: Training, recipe: train.Recipe, device: str, seconds: float) -> None:
    task, row.about, row.batch_size = recipe.task, recipe.about, recipe.batch_size
    model = task.model.to(device).train()
    optimizer = task.optimizer(model)
    forward = _AsInTraining(torch.compile(model) if row.compiled else model, device, row.precision)

    def step(t: int, watch: contextlib.AbstractContextManager | None = None) -> Tensor:
        watch = watch or contextlib.nullcontext()
        with watch:
            batch = task.batch(train.step_generator(0, t, device))
            values = task.loss(forward, batch)
            loss = values["loss"] if isinstance(values, dict) else values
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        optimizer.step()
        with watch:
            if task.after_step is not None:
                task.after_step(model, t, recipe.steps)
        return loss.detach()

    start = time.perf_counter()
    step(0).item()
    row.first_step_seconds = round(time.perf_counter() - start, 3)
    for t in range(1, 4):
        loss = step(t)
    if not row.compiled:
        row.host_waits = _host_waits(lambda watch: step(4, watch), device)
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    _synchronize(device)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(10 if seconds else 1):
            loss = step(5 + done)
            done += 1
        _synchronize(device)
    taken = (time.perf_counter() - start) / max(done, 1)
    if done:
        row.step_ms, row.samples_per_second = round(1000 * taken, 3), round(row.batch_size / taken, 1)
    if cuda:
        row.peak_memory_mb = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    row.loss = loss.item() if math.isfinite(loss.item()) else None
    row.passed = row.loss is not None and not row.host_waits


def _host_waits(step: Callable[[contextlib.AbstractContextManager | None], Any], device: str) -> list[str]:
    """What makes the host wait in a step: seen in the operations on any device, reported by the driver on CUDA."""
    watch = _Waits()
    step(watch)
    found = watch.found
    if torch.device(device).type == "cuda":
        _synchronize(device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(None)
        except RuntimeError as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "sslref" in Path(f.filename).parts]
            found = [*found, f"{str(error).splitlines()[0]} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sorted(set(found))


def _train(slug: str, device: str, seconds: float) -> Iterator[Training]:
    # compiling for a CPU needs a C++ compiler and says nothing about a GPU
    for compiled in (False,) if device == "cpu" else (False, True):
        for precision in ("float32", "bf16"):
            row = Training(slug, precision, compiled)
            try:
                _measure(row, device, seconds)
            except Exception as problem:
                row.passed, row.note = False, f"{type(problem).__name__}: {problem}".splitlines()[0]
            if compiled:
                torch.compiler.reset()
            yield row


# ------------------------------------------------------------------------------------------------------ the whole


def _name(device: str) -> tuple[str, int | None]:
    if torch.device(device).type != "cuda":
        return f"{device} ({platform.machine()}, {os.cpu_count()} cores)", None
    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.total_memory // 2**20


def file_of(device: str) -> Path:
    """Where the report of a device belongs: benchmarks/gpu for a GPU; that of a CPU is a trial, and goes to _build."""
    name = re.sub(r"[^a-z0-9]+", "-", _name(device)[0].lower()).strip("-")
    root = registry.root()
    return root / "_build" / "gpu" / "cpu.json" if device == "cpu" else root / "benchmarks" / "gpu" / f"{name}.json"


def check(
    device: str = "cuda",
    *,
    claims: bool = False,
    out: Path | None = None,
    seconds: float = 1.0,
    jobs: int = 4,
    progress: Progress | None = None,
) -> Report:
    """Compare, measure, and write the report.

    Args:
        device: "cuda", "cuda:1", "mps"; "cpu" is its own device.
        claims: also run the profile `gpu` of every claim, which takes long.
        out: the file to write; that of `file_of` where None.
        seconds: for which each training is measured; 0: only that it runs.
        jobs: processes for the claims.
        progress: called with a line of text now and then.

    Raises:
        ValueError: no such device here.
    """
    device, say, start = train.local_device(device), progress or (lambda line: None), time.perf_counter()
    checks, training, records = [], [], {}
    with _full_float32():
        for case in CASES:
            for result in _compare(case, device):
                checks.append(result)
                if not result.passed:
                    say(f"FAILED {_told(result)}")
    say(f"{sum(c.passed for c in checks)} of {len(checks)} comparisons passed")
    slugs = list(registry.papers())
    for slug in slugs:
        for row in _train(slug, device, seconds):
            training.append(row)
            say(_told_training(row))
    if claims:
        for slug in slugs:
            record = ledger.run(
                slug, "gpu", jobs=jobs, device=device, progress=lambda i, n, what: say(f"{i}/{n} {what}")
            )
            ledger.write(record)
            records[slug] = ledger.to_json(record)
            say(f"{slug}: " + ", ".join(f"{e.id} {e.verdict}" for e in record.claims))
    name, memory = _name(device)
    report = Report(
        device=name,
        kind=torch.device(device).type,
        memory_mb=memory,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        seconds=round(time.perf_counter() - start, 1),
        code_digest=digest.code(digest.definitions(*(f"sslref.papers.{slug}" for slug in slugs))),
        versions=ledger._versions(),
        passed=all(r.passed for r in (*checks, *training)),
        checks=checks,
        training=training,
        claims=records,
    )
    path = out or file_of(device)
    ledger.write_json(path, asdict(report))
    say(f"{path}: {'passed' if report.passed else 'FAILED'} on {name} in {report.seconds:.0f} s")
    return report


def _told(c: Check) -> str:
    return f"{c.name} in {c.precision}: {c.note or f'deviation {c.error}, allowed {c.tolerance:g}'}"


def _told_training(row: Training) -> str:
    kind = f"{row.slug}, {row.precision}, {'compiled' if row.compiled else 'eager'}"
    if not row.passed:
        return f"FAILED {kind}: {row.note or '; '.join(row.host_waits) or 'the loss is not finite'}"
    speed = f"{row.step_ms:.2f} ms a step" if row.step_ms else "runs"
    memory = f", {row.peak_memory_mb:.0f} MB" if row.peak_memory_mb else ""
    return f"{kind}: {speed}{memory}"


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns 0, 1 where something failed, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m sslref.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, mps or cpu")
    parser.add_argument("--claims", action="store_true", help="also the profile gpu of every claim, which takes long")
    parser.add_argument("--out", type=Path, help="JSON file for the figures; default: below benchmarks/gpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="for which each training is measured")
    parser.add_argument("--jobs", type=int, default=4, help="processes for the claims")
    options = vars(parser.parse_args(arguments))
    try:
        return int(not check(**options, progress=lambda line: print(line, flush=True)).passed)
    except ValueError as error:
        print(f"sslref: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

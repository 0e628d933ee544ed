import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import ddp_worker
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sslref import train

HERE = Path(__file__).parent


def task(optimizer=None, schedule=train.constant, dtype=torch.float32):
    """Dropout, BatchNorm, a random batch: everything that a careless resume would change."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    )

    def batch(generator):
        x = torch.randn(8, 3, 6, 6, generator=generator, device=generator.device, dtype=dtype)
        return x, torch.randint(5, (8,), generator=generator, device=generator.device)

    def loss(model, batch):
        logits = model(batch[0])
        return {
            "loss": F.cross_entropy(logits, batch[1]),
            "accuracy": (logits.argmax(1) == batch[1]).float().mean(),
        }

    return train.Task(
        model.to(dtype), batch, loss, optimizer or (lambda m: torch.optim.AdamW(m.parameters(), 1e-2)), schedule
    )


def equal(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------------------------------------------- the loop


@pytest.mark.parity("train.fit", against="a plain loop in float64", tolerance=1e-12)
def test_equals_a_plain_loop():
    def linear(dtype=torch.float64):
        return nn.Linear(3, 1, dtype=dtype, bias=False)

    torch.manual_seed(1)
    model = linear()
    reference = linear()
    reference.load_state_dict(model.state_dict())
    calls = []

    def batch(generator):
        return torch.randn(4, 3, generator=generator, dtype=torch.float64)

    history = train.fit(
        train.Task(
            model,
            batch,
            lambda m, x: m(x).square().mean(),
            lambda m: torch.optim.SGD(m.parameters(), 0.1),
            schedule=lambda step, steps: 1 - step / steps,
            after_step=lambda m, step, steps: calls.append((m is model, step, steps)),
        ),
        steps=7,
        seed=4,
        log_every=3,
    )
    losses = []
    for step in range(7):
        loss = reference(batch(train.step_generator(4, step))).square().mean()
        (grad,) = torch.autograd.grad(loss, reference.weight)
        with torch.no_grad():
            reference.weight -= 0.1 * (1 - step / 7) * grad
        losses.append(loss.item())
    torch.testing.assert_close(model.weight, reference.weight, rtol=0, atol=1e-12)
    assert history.steps == [3, 6, 7]
    assert history.values["loss"] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]], abs=1e-12)
    assert history.last() == history.values["loss"][-1]
    assert history.seconds > 0
    assert calls == [(True, step, 7) for step in range(7)]


def test_same_seed_same_run_and_another_seed_another():
    a, b, c = task(), task(), task()
    ha, hb, hc = (train.fit(t, steps=5, seed=s) for t, s in ((a, 0), (b, 0), (c, 1)))
    assert equal(a.model, b.model)
    assert ha.values == hb.values
    assert ha.values != hc.values


def test_the_history_does_not_depend_on_how_often_it_is_written():
    every = train.fit(task(), steps=6, log_every=1).values["loss"]
    pairs = train.fit(task(), steps=6, log_every=2).values["loss"]
    assert pairs == pytest.approx([(a + b) / 2 for a, b in zip(every[::2], every[1::2], strict=True)], abs=1e-7)


def test_the_global_generator_is_put_back():
    job = task()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    train.fit(job, steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_step_generator():
    draws = {torch.rand(1, generator=train.step_generator(s, t)).item() for s in range(20) for t in range(20)}
    assert len(draws) == 400
    # neighbouring seeds and steps give unrelated uniform numbers: mean and lag-1 correlation of 400
    u = torch.tensor([torch.rand(1, generator=train.step_generator(0, t)).item() for t in range(400)])
    assert abs(u.mean() - 0.5) < 0.06
    assert abs(torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1]) < 0.15
    with pytest.raises(ValueError, match=r"seed: expected integers >= 0, got \(-1, 0\)"):
        train.step_generator(-1, 0)


def test_warmup_cosine():
    schedule = train.warmup_cosine(0.2, 0.25)
    assert [schedule(t, 100) for t in (0, 10, 20, 60, 100)] == pytest.approx([0, 0.5, 1, 0.625, 0.25])
    assert train.warmup_cosine(0)(0, 1) == 1
    assert all(math.isfinite(train.warmup_cosine(0.1)(0, steps)) for steps in range(1, 30))
    for fraction in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"fraction: expected a number in \[0, 1\)"):
            train.warmup_cosine(fraction)


class Pair(NamedTuple):
    image: torch.Tensor
    names: list
    label: int


def test_distinct_draws_no_sample_twice():
    rows = torch.arange(7)[:, None]
    draw = train.distinct(rows.__getitem__, 7, 7)
    assert draw(torch.Generator().manual_seed(0)).flatten().sort().values.tolist() == list(range(7))
    draw = train.distinct(rows.__getitem__, 7, 3)
    first, again, other = (draw(torch.Generator().manual_seed(seed)).flatten().tolist() for seed in (0, 0, 1))
    assert first == again != other
    for size, least in ((8, 2), (1, 2), (0, 1)):
        with pytest.raises(ValueError, match=f"batch_size: expected {least} to 7, the number of samples, got {size}"):
            train.distinct(rows.__getitem__, 7, size, least=least)


def test_optimizers_take_what_is_trained():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1).requires_grad_(False))
    (group,) = train.adamw(model, 0.1, betas=(0.9, 0.95)).param_groups
    assert [tuple(p.shape) for p in group["params"]] == [(3, 2), (3,)]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 1e-4, (0.9, 0.95))
    (group,) = train.sgd(model, 0.1, weight_decay=1e-5).param_groups
    assert [tuple(p.shape) for p in group["params"]] == [(3, 2), (3,)]
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.1, 1e-5, 0.9)


def test_batches_keep_their_structure():
    seen = []
    job = task()
    job.batch = lambda g: Pair(torch.ones(4, 3, 6, 6), [torch.zeros(4), "a"], 3)
    job.loss = lambda m, b: seen.append(b) or m(b.image).square().mean()
    train.fit(job, steps=1, channels_last=True)
    (got,) = seen
    assert isinstance(got, Pair)
    assert got.label == 3
    assert got.names[1] == "a"
    assert got.image.is_contiguous(memory_format=torch.channels_last)
    assert job.model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_bf16_computes_the_model_in_bf16_and_the_loss_in_float32():
    seen = {}
    job = task()
    job.model[0].register_forward_hook(lambda m, x, y: seen.update(conv=y.dtype))
    job.loss = lambda m, b: seen.update(out=(y := m(b[0])).dtype) or F.cross_entropy(y, b[1])
    low = train.fit(job, steps=5, precision="bf16-mixed").last()
    assert seen == {"conv": torch.bfloat16, "out": torch.float32}
    assert job.model[0].weight.dtype == torch.float32
    assert low == pytest.approx(train.fit(task(), steps=5).last(), abs=0.1)


def test_bf16_convolutions_over_two_frames_are_the_same_every_time():
    def once():
        torch.manual_seed(0)
        video, model = torch.randn(16, 48, 2, 4, 4), nn.Conv3d(48, 48, (3, 1, 1), padding=(1, 0, 0), bias=False)
        left = [torch.full((n,), math.nan) for n in (103, 5003, 70003, 1000003)]  # what the memory held before
        del left
        job = train.Task(
            model, lambda g: video, lambda m, x: m(x).square().mean(), lambda m: torch.optim.SGD(m.parameters(), 1.0)
        )
        train.fit(job, steps=2, precision="bf16-mixed")
        return model.weight.detach()

    first = once()
    assert first.isfinite().all()
    for _ in range(5):
        assert torch.equal(once(), first)
    assert torch.backends.mkldnn.enabled


def test_float64_reaches_the_loss():
    job = task()
    seen = {}
    job.loss = lambda m, b: seen.update(out=(y := m(b[0])).dtype, labels=b[1].dtype) or F.cross_entropy(y, b[1])
    fine = train.fit(job, steps=3, precision="64-true").last()
    assert seen == {"out": torch.float64, "labels": torch.int64}
    assert fine == pytest.approx(train.fit(task(), steps=3).last(), abs=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_host_waits_only_for_rows_of_the_history(precision):
    job = task()
    job.after_step = lambda m, step, steps: torch.cuda.set_sync_debug_mode("error" if 1 <= step < 6 else "default")
    try:
        train.fit(job, steps=8, device="cuda", precision=precision, log_every=8)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_gives_the_same_numbers(monkeypatch):
    compiled = []
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m, **_: compiled.append(m) or compile(m, backend="aot_eager"))
    a, b = task(), task()
    plain, fast = train.fit(a, steps=3), train.fit(b, steps=3, compile=True)
    assert compiled
    assert all(model is b.model for model in compiled)
    assert fast.last() == pytest.approx(plain.last(), rel=1e-5)
    assert a.model.state_dict().keys() == b.model.state_dict().keys()


def test_progress_is_told_every_row():
    said = []
    train.fit(task(), steps=5, log_every=2, progress=lambda *row: said.append(row))
    assert [(done, steps) for done, steps, _ in said] == [(2, 5), (4, 5), (5, 5)]
    assert said[0][2].keys() == {"loss", "accuracy"}


def test_the_bar_is_silent_without_a_terminal(capfd):
    train.fit(task(), steps=2, progress=True)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"log_every": 0}, "log_every: expected at least 1"),
        ({"save_every": 0}, "save_every: expected at least 1"),
        ({"seed": -1}, "seed: expected integers >= 0"),
        ({"precision": "16"}, "precision: expected one of 32-true, bf16-mixed, 64-true, got '16'"),
        ({"device": "gpu"}, "device: expected .* got 'gpu'"),
        ({"device": "cuda:99"}, "device: PyTorch finds no 'cuda:99' for this process"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        train.fit(task(), **{"steps": 1} | options)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, b: m(b[0]), r"loss: expected a scalar tensor, got shape \(8, 5\)"),
        (lambda m, b: {"near": m(b[0]).mean()}, "expected a dict with the key 'loss', got near"),
        (lambda m, b: {"loss": 3.0}, "expected a scalar tensor, got float"),
    ],
)
def test_bad_losses(loss, message):
    job = task()
    job.loss = loss
    with pytest.raises(ValueError, match=message):
        train.fit(job, steps=1)


def test_names_must_not_change():
    job = task()
    names = iter("ab")
    job.loss = lambda m, b: {"loss": m(b[0]).mean(), next(names): 0.0}
    with pytest.raises(ValueError, match="expected the names loss, a at every step, got loss, b"):
        train.fit(job, steps=2)


def test_unknown_name_of_the_history():
    with pytest.raises(KeyError, match="no 'accurracy'; it has loss, accuracy"):
        train.fit(task(), steps=1).last("accurracy")


# ---------------------------------------------------------------------------------------------------- checkpoints


class Stop(Exception):
    pass


def interrupted(path: Path, at: int, **options) -> None:
    """A run that dies after step `at`, without a word."""

    def die(step, steps):
        if step == at:
            raise Stop

    job = task(schedule=lambda step, steps: die(step, steps) or train.warmup_cosine()(step, steps))
    with pytest.raises(Stop):
        train.fit(job, steps=12, checkpoint=path, **options)


@pytest.mark.parametrize("at", [4, 7])
def test_resume_is_exact(tmp_path, at):
    """Also where a row of the history was half full when the checkpoint was written."""
    path = tmp_path / "new" / "run.pt"
    whole = task(schedule=train.warmup_cosine())
    expected = train.fit(whole, steps=12, log_every=5)
    interrupted(path, at, log_every=5, save_every=3)
    part = task(schedule=train.warmup_cosine())
    got = train.fit(part, steps=12, log_every=5, checkpoint=path, save_every=3)
    assert equal(whole.model, part.model)
    assert (got.steps, got.values) == (expected.steps, expected.values)
    assert list(path.parent.iterdir()) == [path]


def test_a_finished_run_is_only_loaded(tmp_path):
    path = tmp_path / "run.pt"
    first, second = task(), task()
    expected = train.fit(first, steps=3, checkpoint=path)
    second.loss = lambda m, b: pytest.fail("no step is left")
    got = train.fit(second, steps=3, checkpoint=path)
    assert (got.steps, got.values) == (expected.steps, expected.values)
    assert equal(first.model, second.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(steps=4), "with steps 3, this one 4"),
        (dict(seed=1), "with seed 0, this one 1"),
        (dict(model=nn.Sequential(nn.Flatten(), nn.Linear(108, 5))), "with another model"),
        (dict(optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.01)), "with another optimizer"),
        (dict(optimizer=lambda m: torch.optim.AdamW(m.parameters(), 0.1)), "with another optimizer"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, change, message):
    path = tmp_path / "run.pt"
    train.fit(task(), steps=3, checkpoint=path)
    before = path.read_bytes()
    options = {"steps": 3, "seed": 0} | {k: change.pop(k) for k in ("steps", "seed") if k in change}
    job = task()
    for name, value in change.items():
        setattr(job, name, value)
    with pytest.raises(ValueError, match=message) as error:
        train.fit(job, checkpoint=path, **options)
    assert str(path) in str(error.value)
    assert path.read_bytes() == before


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "cut":
        content = content[: len(content) // 2]
    elif kind == "bit":  # in the middle of a weight, where PyTorch's own reader sees nothing
        weight = task().model[5].bias.detach().numpy().tobytes()
        where = content.find(weight)
        assert where > 0
        content[where + 5] ^= 4
    elif kind == "text":
        content = b"loss 3.2\n"
    elif kind == "empty":
        content = b""
    path.write_bytes(bytes(content))
    if kind == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    elif kind == "code":
        torch.save({"run": os.system}, path)


@pytest.mark.parametrize("kind", ["cut", "bit", "text", "empty", "other", "code"])
def test_a_damaged_checkpoint_is_named(tmp_path, kind):
    path = tmp_path / "run.pt"
    frozen = lambda m: torch.optim.SGD(m.parameters(), 0.0)  # noqa: E731
    train.fit(task(frozen), steps=1, checkpoint=path)
    damage(path, kind)
    with pytest.raises(ValueError, match="not a readable checkpoint") as error:
        train.fit(task(frozen), steps=1, checkpoint=path)
    assert str(path) in str(error.value)


def test_a_failing_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    train.fit(task(), steps=1, checkpoint=path)
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        train._save(path, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# a run long enough to be shot down; it prints a line after every checkpoint
RUN = """
import sys, time, torch
sys.path.insert(0, {here!r})
from sslref import train
from test_train import task
torch.set_num_threads(1)
job = task(schedule=train.warmup_cosine())
def after(model, step, steps):
    time.sleep(0.02)
    print(step, flush=True)
job.after_step = after
history = train.fit(job, steps=60, log_every=7, checkpoint={path!r}, save_every=2)
torch.save({{"values": history.values, "model": job.model.state_dict()}}, {path!r} + ".result")
"""


def started(path: Path) -> subprocess.Popen:
    code = RUN.format(here=str(HERE), path=str(path))
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE.parent
    )


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    for line in process.stdout:
        if int(line) >= step:
            return
    pytest.fail(f"the run ended early: {process.stderr.read()}")


def expected_run() -> tuple[dict, nn.Module]:
    job = task(schedule=train.warmup_cosine())
    return train.fit(job, steps=60, log_every=7).values, job.model


@pytest.mark.slow
def test_resume_after_kill_is_exact(tmp_path):
    path = tmp_path / "run.pt"
    process = started(path)
    wait_for_step(process, 15)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 10 <= torch.load(path, weights_only=True)["step"] < 60
    values, model = expected_run()
    job = task(schedule=train.warmup_cosine())
    assert train.fit(job, steps=60, log_every=7, checkpoint=path, save_every=2).values == values
    assert equal(job.model, model)


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_and_writes_the_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    process = started(path)
    wait_for_step(process, 10)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert 11 <= torch.load(path, weights_only=True)["step"] < 60
    values, model = expected_run()
    job = task(schedule=train.warmup_cosine())
    assert train.fit(job, steps=60, log_every=7, checkpoint=path, save_every=2).values == values
    assert equal(job.model, model)


def test_the_second_ctrl_c_interrupts_at_once():
    job = task()

    def stuck(model, step, steps):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    job.after_step = stuck
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        train.fit(job, steps=2)
    assert time.perf_counter() - start < 30
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---------------------------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes computed."""
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(HERE / "ddp_worker.py"), str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parity("train.fit", against="two gloo processes, one joined batch", tolerance=1e-11)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-11)])
def test_two_processes_equal_one(two, dtype, tolerance):
    """Loss, logged values and weights after six steps of a loss that gathers and one that does not."""
    one = ddp_worker.trained(getattr(torch, dtype))
    for found in two:
        assert found[dtype]["steps"] == one["steps"]
        for name, values in one["values"].items():
            assert found[dtype]["values"][name] == pytest.approx(values, abs=tolerance)
        for name, weight in one["model"].items():
            torch.testing.assert_close(found[dtype]["model"][name], weight, rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parity("nn.sync_batchnorm", against="torch.nn.BatchNorm on the joined batch", tolerance=1e-11)
def test_batchnorm_counts_the_rows_of_all_processes(two):
    for case, expected in ddp_worker.batchnorm(torch.float64, 0, 1).items():
        parts = [found["batchnorm"][case] for found in two]
        for name, value in expected.items():
            split = name in ("y", "x.grad", "eval")
            found = torch.cat([p[name] for p in parts]) if split else parts[0][name]
            torch.testing.assert_close(found, value, rtol=0, atol=1e-11, msg=lambda m, at=(case, name): f"{at}: {m}")
            if not split:
                assert torch.equal(parts[0][name], parts[1][name])


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided(two):
    for found in two:
        assert "a multiple of the 2 processes, got 7, 7" in found["indivisible"]


@pytest.mark.slow
def test_ctrl_c_in_one_process_stops_all_and_they_continue(two):
    job = ddp_worker.task()
    history = train.fit(job, steps=6, seed=5, log_every=2)
    for found in two:
        assert found["stopped"] in (2, 4)
        assert found["resumed"]["values"]["loss"] == pytest.approx(history.values["loss"], abs=1e-5)
        for name, weight in job.model.state_dict().items():
            torch.testing.assert_close(found["resumed"]["model"][name], weight, rtol=0, atol=1e-5)

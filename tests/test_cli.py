"""The command line as a user runs it: in processes of their own, in a checkout with one small paper."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PAPER = '''
"""Toy: a line through points."""

import os
import time

import torch
from torch import nn

from sslref.claims import Claim, Experiment
from sslref.registry import Paper
from sslref.train import Recipe, Task

PAPER = Paper(
    slug="toyline", title="A Line [bold]", authors=("Ada Lovelace",), venue="Notes", year=1843, arxiv="", code="",
    part="masked", data=(), idea="Fit a line.", minutes=1,
)


def recipe(source=None, *, batch_size=None, device="cpu", size="paper"):
    if size not in ("paper", "miniature"):
        raise ValueError(f"size: expected 'paper' or 'miniature', got {size!r}")
    torch.manual_seed(0)
    rows = batch_size or 8

    def batch(generator):
        time.sleep(float(os.environ.get("TOY_PAUSE", 0)))
        x = torch.rand(rows, 1, generator=generator, device=generator.device)
        return x, 2 * x + 1

    def loss(model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    return Recipe(
        task=Task(nn.Linear(1, 1), batch, loss, lambda m: torch.optim.SGD(m.parameters(), 0.1)),
        steps=20,
        batch_size=rows,
        about=f"a line [1] of size {size} from {source}",
    )


def run(arm, *, seed, device, shift):
    if shift == "fail":
        raise ValueError("shift: expected a number, got 'fail'")
    time.sleep(float(os.environ.get("TOY_PAUSE", 0)))
    return {"score": seed % 7 + shift * (arm == "method") * (1 + 0.1 * (seed % 3))}


EXPERIMENTS = {
    "e": Experiment(
        run,
        ("plain", "method"),
        {
            "smoke": {"seeds": 2, "shift": 1.0},
            "ci": {"seeds": 1, "shift": 1.0},
            "ledger": {"seeds": 10, "shift": 1.0},
            "gpu": {"seeds": 2, "shift": "fail"},
        },
    )
}
CLAIMS = (
    Claim(
        id="up", statement="The method shifts [the score].", experiment="e", metric="score", higher_is_better=True,
        baseline="plain", method="method", unit="points",
    ),
)
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "sslref", root / "sslref", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "sslref" / "papers" / "toyline.py").write_text(PAPER.lstrip(), encoding="utf-8")
    (root / "data").symlink_to(ROOT / "data")
    return root


@pytest.fixture
def start(checkout):
    """Starts `sslref …` in the checkout."""
    running = []

    def start(*arguments, launcher=(), **environment):
        command = [sys.executable, *launcher, "-m", "sslref", *map(str, arguments)]
        variables = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "COLUMNS": "120"} | environment
        process = subprocess.Popen(
            command, cwd=checkout, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def sslref(start):
    """Runs `sslref …` in the checkout: exit status, what it printed, what it said on stderr."""

    def run(*arguments, **options):
        process = start(*arguments, **options)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err

    return run


# Many commands in one process, where starting one for each would import PyTorch each time.
DRIVER = """
import contextlib, io, json, sys
from sslref.cli import main
for sys.argv in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            print(json.dumps([end.code, err.getvalue()]), file=sys.__stdout__)
"""


def statuses(checkout: Path, *commands: str) -> list:
    """Exit status and stderr of each command."""
    arguments = json.dumps([["sslref", *command.split()] for command in commands])
    variables = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", DRIVER, arguments]
    done = subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def one_line(err: str) -> str:
    """The error, which must be one line without a traceback."""
    assert re.fullmatch(r"sslref: [^\n]+\n", err), err
    return err


# ---------------------------------------------------------------------------------------------------- looking


def test_list(sslref):
    status, out, err = sslref("list")
    assert (status, err) == (0, "")
    assert re.search(r"Masked modelling\n.*toyline +1843 +Fit a line\.", out, re.DOTALL)
    status, out, err = sslref("list", "--json")
    assert (status, err) == (0, "")
    papers = {p["slug"]: p for p in json.loads(out)}
    assert papers["toyline"]["title"] == "A Line [bold]"
    assert papers["toyline"]["authors"] == ["Ada Lovelace"]
    assert "simclr" in papers


def test_list_takes_half_a_second_and_no_pytorch():
    """The installed command, as a user has it."""
    program = Path(sys.executable).with_name("sslref")
    seconds = []
    for _ in range(3):  # of computation, which does not depend on what else the machine does
        before = os.times()
        subprocess.run([program, "list", "--json"], check=True, capture_output=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.5
    code = "import sys; sys.argv = ['sslref', 'list']\nfrom sslref.cli import main\ntry: main()\n"
    code += "except SystemExit as end: assert not end.code\nassert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    "command", ["", "list", "run", "train", "claims", "claims run", "claims status", "claims show", "book", "gpu-check"]
)
def test_help(sslref, command):
    status, out, err = sslref(*command.split(), "--help")
    assert (status, err) == (0, "")
    assert f"Usage: sslref {command}".rstrip() in out
    assert "--help" in out


def test_without_arguments_the_help_is_shown(sslref):
    for command in ([], ["claims"]):
        status, out, err = sslref(*command)
        assert status == 2
        assert "Usage: sslref" in out + err


def test_version(sslref):
    assert sslref("--version") == (0, "sslref 0.1.0\n", "")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("trian toyline", 2, "No such command 'trian'. Did you mean 'train'?"),
        ("train", 2, "SLUG|slug"),
        ("train toyline --stepz 3", 2, "No such option: --stepz"),
        ("train toyline --steps three", 2, "--steps.*integer"),
        ("train toylin", 1, "no paper has the slug 'toylin'; did you mean toyline"),
        ("run toylines", 1, "did you mean toyline"),
        ("claims run toyline simclrr", 1, "no paper has the slug 'simclrr'; did you mean simclr"),
        ("claims show toylin", 1, "did you mean toyline"),
        ("claims status toylin", 1, "did you mean toyline"),
        ("claims show toyline --profile ci", 1, "profile: expected ledger or gpu, got 'ci'"),
        ("book --papers toylin", 1, "did you mean toyline"),
    ],
)
def test_wrong_usage_is_one_line(sslref, arguments, status, message):
    got, _, err = sslref(*arguments.split())
    assert got == status
    assert re.search(message.replace("?", r"\?"), one_line(err))


# ---------------------------------------------------------------------------------------------------- training


def test_train(sslref, tmp_path):
    out = tmp_path / "deep" / "history.json"
    status, said, err = sslref("train", "toyline", "--steps", 12, "--log-every", 4, "--batch-size", 6, "--out", out)
    assert status == 0, err
    assert "a line [1] of size miniature from None\n12 steps of 6 samples on cpu, 32-true\n" in said
    assert err.splitlines()[-1].startswith("toyline: 12 of 12, loss ")
    content = json.loads(out.read_text())
    assert (content["slug"], content["steps"], content["batch_size"], content["seed"]) == ("toyline", 12, 6, 0)
    assert content["history"]["steps"] == [4, 8, 12]
    assert f"loss {content['history']['values']['loss'][-1]:.4f}" in said


def test_train_on_the_users_data_takes_the_papers_size(sslref, tmp_path):
    status, said, _ = sslref("train", "toyline", "--steps", 1, "--data", tmp_path)
    assert status == 0
    assert f"a line [1] of size paper from {tmp_path}" in said


@pytest.mark.slow
def test_mistakes_are_one_line(checkout, tmp_path):
    damaged = tmp_path / "damaged.pt"
    damaged.write_text("not a checkpoint")
    cases = {
        "train toyline --data /no/such/folder": "--data: /no/such/folder does not exist",
        "train toyline --device cuda:99": "device: PyTorch finds no 'cuda:99'",
        "train toyline --device fast": "device: expected .* got 'fast'",
        "train toyline --steps 0": "steps: expected at least 1, got 0",
        "train toyline --seed -1": "seed: expected integers >= 0",
        "train toyline --precision 8": "precision: expected one of 32-true, bf16-mixed, 64-true, got '8'",
        "train toyline --size huge": "size: expected 'paper' or 'miniature', got 'huge'",
        f"train toyline --out {tmp_path}": "expected a file, this is a folder",
        f"train toyline --checkpoint {damaged}": r"damaged\.pt: not a readable checkpoint",
        "run toyline --profile fast": "profile: expected one of smoke, ci, ledger, gpu, got 'fast'",
        "claims run toyline --profile fast": "profile: expected one of smoke, ci, ledger, gpu, got 'fast'",
        "claims run toyline --seeds 0": "seeds: expected at least 1, got 0",
        "claims run toyline --jobs 0": "jobs: expected at least 1, got 0",
        "claims run toyline --device fast": "device: expected .* got 'fast'",
    }
    for (status, err), message in zip(statuses(checkout, *cases), cases.values(), strict=True):
        assert status == 1
        assert re.search(message, one_line(err))


def test_debug_shows_the_traceback(sslref):
    status, _, err = sslref("train", "toyline", "--device", "fast", "--debug")
    assert status == 1
    assert err.startswith("Traceback")
    assert "ValueError: device:" in err


@pytest.mark.slow
def test_ctrl_c_keeps_the_run_and_the_same_command_continues_it(start, sslref, tmp_path):
    checkpoint, out, whole = tmp_path / "run.pt", tmp_path / "part.json", tmp_path / "whole.json"
    command = ["train", "toyline", "--steps", 30, "--log-every", 1, "--checkpoint", checkpoint]
    process = start(*command, TOY_PAUSE="0.1")
    said = [process.stderr.readline() for _ in range(3)]
    assert said[-1].startswith("toyline: "), said
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == f"sslref: interrupted; {checkpoint} holds the run, the same command continues it"
    assert "Traceback" not in err
    assert sslref(*command, "--out", out)[0] == 0
    assert sslref(*command[:-2], "--out", whole)[0] == 0
    assert json.loads(out.read_text())["history"] == json.loads(whole.read_text())["history"]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "steps", "tolerance"), [("32-true", 3, 1e-5), ("64-true", 12, 1e-10)])
def test_torchrun_gives_the_numbers_of_one_process(sslref, tmp_path, precision, steps, tolerance):
    """In float32 for the first steps only: later one ReLU falls on the other side of zero."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = ["train", "simclr", "--steps", steps, "--log-every", 1, "--batch-size", 16, "--precision", precision]
    status, _, err = sslref(*command, "--out", tmp_path / "one.json")
    assert status == 0, err
    status, said, err = sslref(*command, "--out", tmp_path / "two.json", launcher=launcher)
    assert status == 0, err
    assert said.count("cpu × 2") == 1  # one process speaks
    one, two = (json.loads((tmp_path / f"{n}.json").read_text())["history"] for n in ("one", "two"))
    assert one["steps"] == two["steps"]
    for name, values in one["values"].items():
        assert two["values"][name] == pytest.approx(values, abs=tolerance)


# ---------------------------------------------------------------------------------------------------- claims


def test_run_prints_the_verdicts_and_writes_no_ledger(sslref, checkout):
    status, out, err = sslref("run", "toyline", "--profile", "smoke", "--seed", 3)
    assert status == 0, err
    assert re.search(r"toyline, profile smoke, 2 seeds", out)
    assert re.search(r"The method shifts \[the score\]\. +\+1\.05 points", out)
    assert "toyline: 4 of 4" in err
    assert not (checkout / "book").exists()


@pytest.mark.slow
def test_claims_from_run_to_stale(sslref, checkout):
    status, out, _ = sslref("claims", "status", "toyline", "--json")
    assert status == 0
    assert {row["state"] for row in json.loads(out)} == {"missing"}
    status, out, _ = sslref("claims", "show", "toyline")
    assert status == 0
    assert "toyline: no entry of the profile ledger" in out

    status, out, err = sslref("claims", "run", "toyline", "--jobs", 2)
    assert status == 0, err
    assert "supported" in out
    assert "written to book/results/toyline.json" in out
    ledger = json.loads((checkout / "book" / "results" / "toyline.json").read_text())
    assert ledger["claims"][0]["arms"]["method"]["seeds"] == list(range(1000, 1010))
    status, out, _ = sslref("claims", "show", "toyline", "--json")
    assert json.loads(out)["toyline"]["claims"] == ledger["claims"]
    assert "supported" in sslref("claims", "show", "toyline")[1]
    assert re.search("toyline +ledger +current", sslref("claims", "status", "toyline")[1])

    paper = checkout / "sslref" / "papers" / "toyline.py"
    paper.write_text(paper.read_text() + "\nCLAIMS = (*CLAIMS,)\n")
    try:
        assert re.search("toyline +ledger +stale", sslref("claims", "status", "toyline")[1])
    finally:
        paper.write_text(paper.read_text().replace("\nSOMETHING = 1\n", ""))


def test_a_job_that_fails_is_named(sslref):
    status, _, err = sslref("claims", "run", "toyline", "--profile", "gpu")
    assert status == 1
    last = err.splitlines()[-1]
    assert last.startswith(
        "sslref: shift: expected a number, got 'fail' (in toyline, experiment 'e', arm 'plain', seed"
    )
    assert "Traceback" not in err


def test_ctrl_c_ends_a_sweep_in_one_line(start):
    process = start("claims", "run", "toyline", "--profile", "ledger", "--seeds", "40", TOY_PAUSE="0.3")
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "sslref: interrupted"
    assert "Traceback" not in err

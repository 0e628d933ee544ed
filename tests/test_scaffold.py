"""`sslref new`: what it writes is whole but for its blanks, and what it cannot write it leaves alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from publish.toy import ROOT, Checkout

from sslref import registry, scaffold

TITLE = "Toys: Learning a Line"
# What an author would write, where the scaffold asks for code. Every other blank asks for words.
CODE = {
    "sslref/papers/line.py": {
        "from torch import Tensor, nn": "import torch\nfrom torch import Tensor, nn",
        "import History, Recipe, fit, recipe_size": "import History, Recipe, Task, adamw, fit, recipe_size",
        'raise NotImplementedError("FILL: Eq. 1")': """\
if prediction.shape != target.shape:
        raise ValueError(f"target: expected {tuple(prediction.shape)}, got {tuple(target.shape)}")
    return (prediction - target).square().sum()""",
        'raise NotImplementedError("FILL: Recipe(Task(…), steps, batch_size, about) of both sizes")': """\
    rows, model = batch_size or 16, nn.Linear(2, 2).to(device)
    return Recipe(
        Task(
            model,
            lambda generator: torch.rand(rows, 2, generator=generator, device=generator.device),
            lambda model, x: loss(model(x), x),
            adamw,
        ),
        300,
        rows,
        f"a line, {size}",
    )""".lstrip(),
        'raise NotImplementedError("FILL: the metrics that the claims name")': """\
with torch.no_grad():
        error = loss(model(torch.eye(2)), torch.eye(2)).item()
    return {"error": -error, "gain": error}""",
        "FILL: metric of the mechanism": "error",
        "FILL: metric of the gain": "gain",
        "FILL: name of the embedded data set": "emoji",
        "FILL: address of the official code, or nothing": "",
        "  # FILL: reading time": "",
    },
    "sslref/papers/cases/line.py": {
        '  # FILL: public functions that compute on the host alone, "line.name"': "",
        "# FILL: a row for every other public function and class\n": "",
    },
    "tests/papers/test_line.py": {
        'raise NotImplementedError("FILL: Eq. 1 in loops")': """\
pairs = zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True)
    return math.fsum((a - b) ** 2 for a, b in pairs)""",
        "FILL: argument: expected what, got what": "target: expected",
        "# FILL: gradients, autocast, generators; a test marked `differs` for every difference between paper and "
        "official code\n\n\n": "",
    },
    "notebooks/language/line.ipynb": {
        r"raise NotImplementedError(\"FILL: the solution\")": "return x + 1",
        r"first(1) == \"FILL: what it should give\"": "first(1) == 2",
        r"second(1) == \"FILL: what it should give\"": "second(1) == 2",
        r"second(2) == \"FILL: what it should give\"": "second(2) == 3",
    },
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout without chapters, in which one was begun."""
    checkout = Checkout(tmp_path_factory.mktemp("scaffold"), {})
    root = checkout.root
    (root / "notebooks").mkdir()
    (root / "tests" / "papers").mkdir(parents=True)
    (root / "tests" / "notebooks").mkdir()
    for name in ("pyproject.toml", "tests/conftest.py", "tests/notebooks/test_structure.py"):
        shutil.copy(ROOT / name, root / name)
    done = sslref(checkout, "new", "line", "--part", "language", "--title", TITLE, "--year", "2024")
    assert done.returncode == 0, done.stderr
    checkout.said = done.stdout
    return checkout


def sslref(checkout, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(checkout.root)}
    command = [sys.executable, "-m", "sslref", *arguments]
    return subprocess.run(command, cwd=checkout.root, env=environment, capture_output=True, text=True, check=False)


def pytest_in(checkout, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(checkout.root)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=checkout.root, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def snapshot(root: Path) -> dict[str, bytes | None]:
    """Every file and folder of a checkout but the data and what Python compiles."""
    paths = (p for top in ("sslref", "tests", "notebooks", "book") for p in (root / top).rglob("*"))
    return {str(p): p.read_bytes() if p.is_file() else None for p in paths if "__pycache__" not in p.parts}


def ruff(checkout) -> None:
    for arguments in (["check"], ["format", "--check"]):
        command = [Path(sys.executable).with_name("ruff"), *arguments, "--no-cache", "."]
        done = subprocess.run(command, cwd=checkout.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_new_chapter_is_whole_as_soon_as_its_blanks_are_filled(checkout):
    """Untouched it fails for its blanks alone, which are named; filled it passes its tests, and lint throughout."""
    ruff(checkout)
    said = pytest_in(checkout, "tests/notebooks", "-m", "not slow")
    assert re.search(r"\n1 failed, \d+ passed", said), said
    assert "test_no_blank_is_left" in said
    assert re.search(r"sslref/papers/line\.py:\d+: authors=\(\"FILL: first author\"", said)
    assert re.search(r"book/references\.bib:\d+: author = \{FILL: ", said)

    for name in (*CODE, "book/references.bib"):
        path = checkout.root / name
        text = path.read_text(encoding="utf-8")
        for old, new in CODE.get(name, {}).items():
            assert old in text, old
            text = text.replace(old, new)
        path.write_text(re.sub(r"FILL(: )?", "Words", text), encoding="utf-8")
    ruff(checkout)
    said = pytest_in(checkout, "tests")
    assert re.search(r"\n\d\d passed", said), said
    assert "failed" not in said
    checkout.python(
        "import json; from sslref import registry; from sslref.publish import execute\n"
        "path = registry.notebook('line')\n"
        "path.write_text(path.read_text().replace(r'\\\"ci\\\"', r'\\\"smoke\\\"'))\n"
        "(_, outcome), = execute.execute(['line'])\n"
        "assert outcome.good, outcome.error\n"
        "from sslref.gpu_cases import CASES\n"
        "assert 'line.loss' in {case.name for case in CASES}"
    )


def test_what_is_known_stands_in_the_files_and_the_rest_is_counted(checkout):
    files = re.findall(r"(?m)^(\S+): (\d+) blanks$", checkout.said)
    assert [name for name, _ in files] == [
        "sslref/papers/line.py",
        "sslref/papers/cases/line.py",
        "tests/papers/test_line.py",
        "notebooks/language/line.ipynb",
        "book/references.bib",
    ]
    assert all(int(count) for _, count in files)
    out = checkout.python("from sslref import registry; print(registry.get('line'))").stdout
    assert f"title={TITLE!r}" in out
    assert "year=2024" in out
    assert "part='language'" in out
    notebook = json.loads((checkout.root / "notebooks/language/line.ipynb").read_text(encoding="utf-8"))
    assert "".join(notebook["cells"][0]["source"]).startswith(f"# {TITLE}\n")
    entry = (checkout.root / "book/references.bib").read_text(encoding="utf-8").rpartition("\n\n")[2]
    assert entry.startswith(f"@inproceedings{{line,\n  title = {{{TITLE}}},\n")
    assert "  year = {2024},\n" in entry


def test_mistakes_are_one_line_and_write_nothing(checkout):
    before = snapshot(checkout.root)
    (checkout.root / "tests" / "test_taken.py").touch()
    before[str(checkout.root / "tests" / "test_taken.py")] = b""
    cases = {
        ("line", "--part", "masked"): "'line' is there already: sslref/papers/line.py",
        ("taken", "--part", "masked"): "'taken' is there already: tests/test_taken.py",
        ("Line", "--part", "masked"): "SLUG: expected a Python name of small letters, digits and _, got 'Line'",
        ("../up", "--part", "masked"): "got '../up'",
        ("class", "--part", "masked"): "got 'class'",
        ("index", "--part", "masked"): "got 'index'",
        ("other", "--part", "maskd"): "--part: expected one of joint_embedding, dense, .* got 'maskd'",
        ("other", "--part", "masked", "--title", 'a "b"'): "--title: expected one line of plain text",
        ("other", "--part", "masked", "--arxiv", "x"): "--arxiv: expected a number like 2002.05709, got 'x'",
        ("other", "--part", "masked", "--year", "24"): "--year: expected one from 1900 to 2100, got 24",
        ("other",): "Missing option '--part'",
    }
    for arguments, message in cases.items():
        done = sslref(checkout, "new", *arguments)
        assert done.returncode in (1, 2)
        assert re.fullmatch(r"sslref: [^\n]+\n", done.stderr), done.stderr
        assert re.search(message, done.stderr), done.stderr
        assert done.stdout == ""
    assert snapshot(checkout.root) == before


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder that `scaffold` takes for the checkout."""
    for name in ("sslref/papers/cases", "tests/papers", "notebooks", "book"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "book" / "references.bib").write_text("@misc{known,\n}\n")
    monkeypatch.setattr(registry, "root", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("count", range(5))
def test_all_or_nothing(here, monkeypatch, count):
    """Whichever of the five files cannot be put into its place, none is left."""
    before, replace, calls = snapshot(here), os.replace, []

    def failing(source, target):
        if len(calls) == count:
            raise PermissionError(13, "Permission denied", str(target))
        calls.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(PermissionError):
        scaffold.new("fresh", part="motion")
    assert snapshot(here) == before


def test_a_folder_that_cannot_be_written(here):
    (here / "notebooks" / "motion").write_text("a file where a folder should be")
    before = snapshot(here)
    with pytest.raises(OSError, match="motion"):
        scaffold.new("fresh", part="motion")
    assert snapshot(here) == before


def test_a_reference_that_is_there_stays_as_it_is(here):
    assert [path.name for path in scaffold.new("known", part="motion")][-1] == "known.ipynb"
    assert (here / "book" / "references.bib").read_text() == "@misc{known,\n}\n"
    assert scaffold.new("know", part="motion")[-1].name == "references.bib"


def test_outside_of_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "root", lambda: tmp_path)
    with pytest.raises(ValueError, match="written into a checkout, and .* has no book"):
        scaffold.new("fresh", part="motion")

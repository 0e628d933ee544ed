"""A checkout with a toy paper or two, in which the whole way from notebook to site can be walked in seconds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PAPER = '''"""Toy: {slug}.

The idea is a sum.

    paper        here
    Eq. (1)      add
"""

from sslref.claims import Claim, Experiment
from sslref.registry import Paper

PAPER = Paper(
    slug="{slug}", title="Toy {slug}", authors=("Ada Lovelace", "Alan Turing"), venue="Notes", year=1950,
    arxiv="", code="", part="{part}", data=(), idea="A sum of *two* numbers.", minutes=1,
)


def add(a: float, b: float = 1.0) -> float:
    """The sum `a + b`, |a| and b_ of any size.

    Args:
        a: a number, or *a.
        b: another.

    Returns:
        The sum.
    """
    return a + b


EXPERIMENTS: dict = {{}}
CLAIMS: tuple = ()
'''

FIGURE = (
    '<figure><svg role="img" aria-label="A black square on a clear ground." viewBox="0 0 9 9">'
    '<path d="M2 2h5v5h-5z"/></svg></figure>'
)


def markdown(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source: str, **metadata) -> dict:
    return {"cell_type": "code", "metadata": metadata, "source": source, "outputs": [], "execution_count": None}


def notebook(slug: str, *cells: dict) -> dict:
    """A small chapter: parameters, a formula, a citation, a figure, a slider, and `cells`."""
    head = [
        markdown(f"# Toy {slug}\n\nAfter {{cite}}`simclr`."),
        code('profile = "ci"\nseed = 0\ndevice = "cpu"', tags=["parameters"]),
        markdown(f"## The method\n\n$$ s = a + b $$ ({slug}-sum)\n\nEquation {{eq}}`{slug}-sum`, with $a$ real."),
        code(f"from sslref.papers.{slug} import add\nprint(add(1))"),
        code(f"from IPython.display import HTML, display\ndisplay(HTML('''{FIGURE}'''))"),
        code(
            "import ipywidgets as w\npick = w.IntSlider(min=0, max=2, value=1, description='which')\n"
            "stack = w.Stack([w.HTML(f'<p>frame {i}</p>') for i in range(3)], selected_index=1)\n"
            "w.jslink((pick, 'value'), (stack, 'selected_index'))\ndisplay(w.VBox([pick, stack]))"
        ),
    ]
    found = [c | {"id": f"c{i}"} for i, c in enumerate([*head, *cells])]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": found, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


class Checkout:
    """The package, the prose and the configuration of this checkout, with toy papers in place of the real ones."""

    def __init__(self, root: Path, papers: dict[str, str]):
        self.root = root
        leave = shutil.ignore_patterns("__pycache__", "papers", "studies")
        shutil.copytree(ROOT / "sslref", root / "sslref", ignore=leave)
        shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("results"))
        shutil.copy(ROOT / "_config.yml", root)
        (root / "data").symlink_to(ROOT / "data")
        for package in ("papers", "papers/cases"):
            (root / "sslref" / package).mkdir()
            (root / "sslref" / package / "__init__.py").write_text('"""Papers."""\n')
        for part in (root / "book" / "parts").iterdir():  # what they say leads to real chapters
            part.write_text("About this part.\n")
        steps = "".join(f"    - {slug}: one of the toys\n" for slug in papers)
        (root / "book" / "paths.yml").write_text(f"toys:\n  title: All toys\n  for: Testers.\n  chapters:\n{steps}")
        if (ROOT / "_build" / "vendor").is_dir():
            shutil.copytree(ROOT / "_build" / "vendor", root / "_build" / "vendor")
        for slug, part in papers.items():
            (root / "sslref" / "papers" / f"{slug}.py").write_text(PAPER.format(slug=slug, part=part))
            self.write(slug, part)

    def notebook(self, slug: str) -> Path:
        return next((self.root / "notebooks").rglob(f"{slug}.ipynb"))

    def write(self, slug: str, part: str, *cells: dict) -> None:
        path = self.root / "notebooks" / part / f"{slug}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(notebook(slug, *cells), indent=1))

    def python(self, command: str, *, good: bool = True) -> subprocess.CompletedProcess:
        """Python in a process of its own, on this checkout's package."""
        environment = os.environ | {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", command], cwd=self.root, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not good, done.stdout + done.stderr
        return done

    def book(self, **options) -> subprocess.CompletedProcess:
        """`sslref.publish.book` on this checkout."""
        return self.python(f"from sslref.publish import book; raise SystemExit(book(**{options!r}))", good=False)

    def report(self) -> dict:
        return json.loads((self.root / "_build" / "book.json").read_text())

    def page(self, name: str) -> str:
        return (self.root / "_build" / "html" / name).read_text(encoding="utf-8")

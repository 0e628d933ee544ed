"""Lay out the book under `_build/book`: prose, executed chapters and generated pages, as Jupyter Book reads it."""

import hashlib
import json
import shutil
from pathlib import Path

from sslref import registry
from sslref.publish import ends, landing, pages, vendor, widgets


def chapters() -> list[str]:
    """Papers that have a notebook, in the order of the book."""
    return [slug for slug in registry.papers() if registry.notebook(slug).exists()]


def executed() -> list[str]:
    """All that is executed: chapters, and the pages that look at several papers."""
    return [*chapters(), *registry.pages()]


def _chapter(slug: str, target: Path) -> None:
    """The executed copy if there is one, else the notebook as it is, with its widgets as plain HTML."""
    notebook = ends.executed(slug)
    for cell in notebook["cells"]:
        if cell["metadata"].get("nbgrader", {}).get("solution"):
            cell["metadata"]["mystnb"] = {
                "code_prompt_show": "Show a solution",
                "code_prompt_hide": "Hide the solution",
            }
    try:
        widgets.flatten(notebook, slug.replace("_", "-"))
    except widgets.UnsupportedWidget as error:
        raise widgets.UnsupportedWidget(f"{slug}, {error}") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(notebook, ensure_ascii=False, indent=1), encoding="utf-8")


def stage(target: Path) -> str:
    """Write the book's sources to `target`, which is emptied first.

    Returns:
        SHA-256 of all that was written: the same sources give the same site.
    """
    root = registry.root()
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(root / "book", target, ignore=shutil.ignore_patterns("results", "teaching", ".*"))
    shutil.copy(root / "_config.yml", target)
    shutil.copy(Path(__file__).parents[1] / "show" / "style.css", target / "_static" / "sslref.css")
    packages = vendor.fetch(root / "_build" / "vendor")
    vendor.katex_css(packages["katex"], target / "_vendor" / "katex")
    slugs = chapters()
    for name in executed():
        _chapter(name, target / registry.part(name) / f"{name}.ipynb")
    written = pages.generate(slugs, target) | landing.generate(slugs, executed()) | ends.generate(executed())
    for name, text in written.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return digest(target)


def digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files below a folder."""
    h = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        h.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return h.hexdigest()

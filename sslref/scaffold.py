"""`sslref new`: the files of a chapter that nobody has written yet, with every blank marked FILL."""

import contextlib
import json
import keyword
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from sslref import registry

TEMPLATES = Path(__file__).with_name("templates")
FILL = re.compile(r"\bFILL\b")
_CELL = re.compile(r"^```python *(\{[^\n]*\})?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def files(slug: str, part: str) -> dict[str, Path]:
    """Template -> file of a chapter; none of them need exist."""
    root = registry.root()
    return {
        "paper.py.txt": root / "sslref" / "papers" / f"{slug}.py",
        "cases.py.txt": root / "sslref" / "papers" / "cases" / f"{slug}.py",
        "test.py.txt": root / "tests" / "papers" / f"test_{slug}.py",
        "chapter.md": root / "notebooks" / part / f"{slug}.ipynb",
    }


def references() -> Path:
    return registry.root() / "book" / "references.bib"


def blanks(slug: str) -> list[str]:
    """What is still to be filled in, as "file:line: text": in the files of a paper, and in the references."""
    found = []
    for path in (*files(slug, registry.part(slug)).values(), references()):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        name = path.relative_to(registry.root())
        found += [f"{name}:{i}: {line.strip()}" for i, line in enumerate(lines, 1) if FILL.search(line)]
    return found


def new(slug: str, *, part: str, title: str = "", arxiv: str = "", year: int | None = None) -> list[Path]:
    """Write the files of a new chapter: all of them, or after any error none.

    Args:
        slug: name of module, test and notebook, e.g. "simclr".
        part: folder of notebooks/, a key of `registry.PARTS`.
        title, arxiv, year: of the paper; a blank stays where one is not given.

    Returns:
        The files, the references last unless they know the slug already.

    Raises:
        ValueError: an argument that is not what is expected, or a file that is there already. OSError: a folder that
            cannot be written.
    """
    _check(slug, part, title, arxiv, year)
    targets = files(slug, part)
    values = {
        "slug": slug,
        "part": part,
        "title": title or "FILL: title of the paper",
        "arxiv": arxiv or "FILL: number on arXiv",
        "year": str(year or "FILL: year"),
        "year_line": f"{year}," if year else "0,  # FILL: year",
    }
    texts = {path: _filled(template, values) for template, path in targets.items()}
    notebook = targets["chapter.md"]
    texts[notebook] = _notebook(slug, texts[notebook])
    known = references().read_text(encoding="utf-8")
    if not re.search(rf"(?m)^@\w+\{{{slug},", known):
        texts[references()] = f"{known.rstrip()}\n\n{_filled('reference.bib.txt', values)}"
    _write(texts)
    return list(texts)


def _check(slug: str, part: str, title: str, arxiv: str, year: int | None) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", slug) or keyword.iskeyword(slug) or slug == "index":
        raise ValueError(f"SLUG: expected a Python name of small letters, digits and _, got {slug!r}")
    parts = [name for name in registry.PARTS if name != "primer"]  # which has no papers
    if part not in parts:
        raise ValueError(f"--part: expected one of {', '.join(parts)}, got {part!r}")
    if re.search(r'[\\{}"\n]', title):
        raise ValueError(f"--title: expected one line of plain text without quotes, braces and \\, got {title!r}")
    if arxiv and not re.fullmatch(r"\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7}", arxiv):
        raise ValueError(f"--arxiv: expected a number like 2002.05709, got {arxiv!r}")
    if year is not None and not 1900 <= year <= 2100:
        raise ValueError(f"--year: expected one from 1900 to 2100, got {year}")
    root = registry.root()
    missing = [name for name in ("book", "notebooks", "tests/papers") if not (root / name).is_dir()]
    if missing or not references().exists():
        raise ValueError(f"a chapter is written into a checkout, and {root} has no {(missing or [references()])[0]}")
    same = [path for name in (f"{slug}.ipynb", f"test_{slug}.py") for path in _anywhere(root, name)]
    taken = [path for path in (*files(slug, part).values(), *same) if path.exists()]
    if slug in (*registry.papers(), *registry.pages(), *registry.studies()) or taken:
        where = f": {taken[0].relative_to(root)}" if taken else ""
        raise ValueError(f"SLUG: expected one that is free, and {slug!r} is there already{where}")


def _anywhere(root: Path, name: str) -> Iterator[Path]:
    """Notebooks and tests of that name in any folder: pytest and the book's pages want each name once."""
    for folder in ("notebooks", "tests"):
        yield from (root / folder).rglob(name)


def _filled(template: str, values: Mapping[str, str]) -> str:
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], text)


def _notebook(slug: str, text: str) -> str:
    """Markdown with its cells between ```python fences, as a notebook; a fence may carry the cell's metadata."""
    rest = _CELL.split(text)  # prose, metadata, code, prose, ...
    cells = []
    for i in range(0, len(rest), 3):
        for prose in filter(None, re.split(r"(?m)^(?=#{1,2} )", rest[i].strip())):
            cells.append({"cell_type": "markdown", "metadata": {}, "source": prose.strip()})
        if i + 2 < len(rest):
            metadata, source = json.loads(rest[i + 1] or "{}"), rest[i + 2].rstrip()
            cells.append({"cell_type": "code", "execution_count": None, "metadata": metadata, "outputs": []})
            cells[-1]["source"] = source
    for i, cell in enumerate(cells):
        cell |= {"id": f"{slug.replace('_', '-')}-{i:03d}", "source": cell["source"].splitlines(keepends=True)}
        cells[i] = dict(sorted(cell.items()))
    metadata = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _write(texts: Mapping[Path, str]) -> None:
    """All files or none: each is written beside its place, then all are renamed."""
    fresh = [path for path in texts if not path.exists()]
    folders = [path.parent for path in fresh if not path.parent.exists()]
    parts = {path: path.with_name(f".{path.name}.part") for path in texts}
    try:
        for path, text in texts.items():
            path.parent.mkdir(exist_ok=True)
            parts[path].write_text(text, encoding="utf-8")
        for path, part in parts.items():
            os.replace(part, path)
    except BaseException:
        for path in (*parts.values(), *fresh):
            with contextlib.suppress(OSError):
                path.unlink()
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise

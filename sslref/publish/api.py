"""Pages of the API reference: one a module, one a paper, from the docstrings (Sphinx autodoc and napoleon)."""

import ast
from pathlib import Path

from sslref import digest

_INSIDE = ("publish", "course", "cli", "scaffold")  # what makes the book is not what a reader imports


def modules() -> dict[str, Path]:
    """Public modules of the package by dotted name."""
    found = {}
    for path in sorted(digest.PACKAGE.rglob("*.py")):
        parts = path.relative_to(digest.PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts[:1] and parts[0] not in _INSIDE and not any(part.startswith("_") for part in parts):
            found[".".join((digest.PACKAGE.name, *parts))] = path
    return found


def _exported(path: Path) -> list[str]:
    """Names that a package takes from its private modules, and so has no other page for."""
    return [
        alias.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[2].startswith("_")
        for alias in node.names
    ]


def _first_line(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0]


def _page(name: str, path: Path) -> str:
    exported = _exported(path)
    if exported:
        members = f"   :members: {', '.join(exported)}\n"
    elif path.name == "__init__.py":  # its names stand on the pages of their modules
        members = ""
    else:
        members = "   :members:\n   :ignore-module-all:\n"
    return (
        f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n{members}   :undoc-members:\n"
        "   :member-order: bysource\n```\n"
    )


def pages() -> dict[str, str]:
    """Name of the page below the book -> text; `api/index.md` lists the others."""
    found = modules()
    out = {f"api/{name}.md": _page(name, path) for name, path in found.items()}
    rows = [f"| [`{name}`]({name}.md) | {_first_line(path)} |" for name, path in found.items()]
    out["api/index.md"] = (
        "# API reference\n\nOne page a module, written from the docstrings of the package. Shapes are given as "
        "`(B, C, H, W)`; what every name means stands in the [glossary](../glossary.md).\n\n"
        "| module | what it holds |\n|---|---|\n" + "\n".join(rows) + "\n"
    )
    return out

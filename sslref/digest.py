"""Which files a piece of code reaches, and a digest of what they say.

Ledger entries and executed chapters rest on code; they are stale once that code says something else. Comments,
docstrings and blank lines do not count.
"""

import ast
import functools
import hashlib
import io
import tokenize
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _module_file(name: str) -> Path | None:
    parts = name.split(".")
    if parts[0] != PACKAGE.name:
        return None
    base = PACKAGE.joinpath(*parts[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def _imports(tree: ast.AST, package: tuple[str, ...] = ()) -> set[str]:
    """Every module name that an import anywhere in the tree may mean (`from a.b import c`: a, a.b and a.b.c).

    `package` is that of the file itself, from which relative imports start.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*start, *([node.module] if node.module else [])))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return _with_parents(names)


def _with_parents(names: Iterable[str]) -> set[str]:
    """Importing a.b.c runs a and a.b first."""
    return {".".join(n.split(".")[: i + 1]) for n in names for i in range(n.count(".") + 1)}


def _said(text: str, tree: ast.Module) -> str:
    """The text without comments, docstrings and blank lines.

    Not `ast.dump` or `ast.unparse`: their output changes with the version of Python, and a digest must not.
    """
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node):
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno
            lines[first:last] = [""] * (last - first)
    return "\n".join(line.rstrip() for line in lines if line.strip())


@functools.lru_cache(maxsize=512)
def _parsed(path: Path, mtime_ns: int) -> tuple[frozenset[str], str]:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, filename=str(path))
    package = (PACKAGE.name, *path.relative_to(PACKAGE).parent.parts)
    return frozenset(_imports(tree, package)), _said(text, tree)


def _parse(path: Path) -> tuple[frozenset[str], str]:
    return _parsed(path, path.stat().st_mtime_ns)


def reach(*modules: str, source: str = "", without: Iterable[str] = ()) -> list[Path]:
    """Files of the package that the named modules (and `source`, Python text) import, directly or through others.

    Args:
        modules: dotted names such as "sslref.papers.simclr".
        source: further Python text whose imports count, e.g. the code cells of a notebook.
        without: dotted names whose files, and what only they import, are left out.
    """
    left_out = {_module_file(name) for name in without}
    todo = [_module_file(name) for name in _with_parents(modules) | _imports(ast.parse(source))]
    missing = [name for name in modules if _module_file(name) is None]
    if missing:
        raise ValueError(f"modules: expected modules of {PACKAGE.name}, got {', '.join(missing)}")
    seen: set[Path] = set()
    while todo:
        path = todo.pop()
        if path is None or path in seen or path in left_out:
            continue
        seen.add(path)
        todo += [_module_file(name) for name in _parse(path)[0]]
    return sorted(seen)


def code(files: Iterable[Path]) -> str:
    """A short SHA-256 of Python files: their names in the package, their code without comments and docstrings."""
    h = hashlib.sha256()
    for path in sorted(files):
        h.update(f"{path.relative_to(PACKAGE)}\n{_parse(path)[1]}\n".encode())
    return h.hexdigest()[:16]

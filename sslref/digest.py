"""Which files a piece of code reaches, and a digest of what they say.

Ledger entries and executed chapters rest on code; they are stale once that code says something else. Comments,
docstrings and blank lines do not count.
"""

import ast
import functools
import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _module_file(name: str) -> Path | None:
    parts = name.split(".")
    if parts[0] != PACKAGE.name:
        return None
    base = PACKAGE.joinpath(*parts[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def _imports(tree: ast.AST, package: tuple[str, ...] = ()) -> set[tuple[str, str]]:
    """What the imports anywhere in the tree name: (module, "") or, for `from module import name`, (module, name).

    `package` is that of the file itself, from which relative imports start.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*start, *([node.module] if node.module else [])))
            found |= {(base, alias.name) for alias in node.names}
    return found


def _files(module: str, name: str = "") -> Iterator[Path]:
    """Files that importing a module, or a name from it, makes the importer rest on.

    A package whose `__init__` only passes names on stands for the module that defines the name: a new block in
    `sslref.nn` changes nothing for those who do not use it. Other parents of a module run first and count.
    """
    path = _module_file(module)
    if path is None:
        return
    passed_on = _parse(path).passed_on if name else None
    if passed_on is not None and name in passed_on:
        yield from _files(*passed_on[name])
    elif name and _module_file(f"{module}.{name}"):
        yield from _files(f"{module}.{name}")
    else:
        yield path
        parts = module.split(".")
        parents = (_module_file(".".join(parts[:end])) for end in range(1, len(parts)))
        yield from (parent for parent in parents if _parse(parent).passed_on is None)


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


class _File(NamedTuple):
    imports: frozenset[tuple[str, str]]  # as `_imports` gives them
    said: str
    passed_on: dict[str, tuple[str, str]] | None  # name -> where it comes from, if the file does nothing but that


@functools.lru_cache(maxsize=512)
def _parsed(path: Path, mtime_ns: int) -> _File:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, filename=str(path))
    package = (PACKAGE.name, *path.relative_to(PACKAGE).parent.parts)
    imports = _imports(tree, package)
    passes_on = path.name == "__init__.py" and all(map(_passes_on, tree.body))
    return _File(frozenset(imports), _said(text, tree), {n: (m, n) for m, n in imports} if passes_on else None)


def _passes_on(node: ast.stmt) -> bool:
    """Whether it is a docstring, an import of names as they are, or sets `__all__` or `__version__`."""
    if isinstance(node, ast.Assign):
        return all(isinstance(t, ast.Name) and t.id.startswith("__") for t in node.targets)
    if isinstance(node, ast.ImportFrom):
        return all(alias.asname in (None, alias.name) for alias in node.names)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _parse(path: Path) -> _File:
    return _parsed(path, path.stat().st_mtime_ns)


def reach(*modules: str, source: str = "", without: Iterable[str] = ()) -> list[Path]:
    """Files of the package that the named modules (and `source`, Python text) import, directly or through others.

    Args:
        modules: dotted names such as "sslref.papers.simclr".
        source: further Python text whose imports count, e.g. the code cells of a notebook.
        without: dotted names whose files, and what only they import, are left out.
    """
    missing = [name for name in modules if _module_file(name) is None]
    if missing:
        raise ValueError(f"modules: expected modules of {PACKAGE.name}, got {', '.join(missing)}")
    left_out = {_module_file(name) for name in without}
    wanted = {(name, "") for name in modules} | _imports(ast.parse(source))
    todo = [path for pair in wanted for path in _files(*pair)]
    seen: set[Path] = set()
    while todo:
        path = todo.pop()
        if path in seen or path in left_out:
            continue
        seen.add(path)
        todo += [file for pair in _parse(path).imports for file in _files(*pair)]
    return sorted(seen)


def code(files: Iterable[Path]) -> str:
    """A short SHA-256 of Python files: their names in the package, their code without comments and docstrings."""
    h = hashlib.sha256()
    for path in sorted(files):
        h.update(f"{path.relative_to(PACKAGE)}\n{_parse(path).said}\n".encode())
    return h.hexdigest()[:16]

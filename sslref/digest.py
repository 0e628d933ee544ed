"""Which definitions a piece of code reaches, and a digest of what they say.

Ledger entries and executed chapters rest on code; they are stale once that code says something else. Counted are
functions, classes and assignments at the top of a module, each for itself: a new function next to one that is used
changes nothing. Comments, docstrings and blank lines do not count.

Names are followed as they are written (`losses.info_nce`, `from sslref.nn import ViT`), through packages that pass them
on. What cannot be followed (a module handed on as a value, a name that no statement of the module binds) counts as the
whole module; statements that bind no name count with every module that is imported, since importing runs them.
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
Name = tuple[str, tuple[str, ...]]  # a module and the dotted rest: ("sslref.nn", ("ViT", "forward"))


class Definition(NamedTuple):
    """What a module says of one name; "" stands for its statements that bind none."""

    path: Path
    name: str


class _File(NamedTuple):
    imports: dict[str, Name]  # local name -> what it stands for
    said: dict[str, str]  # name -> the statements that bind it
    uses: dict[str, set[Name]]  # name -> what these statements read


def _module_file(name: str) -> Path | None:
    parts = name.split(".")
    if parts[0] != PACKAGE.name:
        return None
    base = PACKAGE.joinpath(*parts[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def _imported(node: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, Name]]:
    """Local names that an import statement binds. `package` is where relative imports start."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or alias.name, (alias.name, ())
            if not alias.asname:
                yield alias.name.split(".")[0], (alias.name.split(".")[0], ())
    elif isinstance(node, ast.ImportFrom):
        start = package[: len(package) - node.level + 1] if node.level else ()
        module = ".".join((*start, *([node.module] if node.module else [])))
        for alias in node.names:
            yield alias.asname or alias.name, (module, () if alias.name == "*" else (alias.name,))


def _dotted(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Names that a statement reads, with the attributes that follow: `a.b(c)` gives (a, b) and (c,)."""
    chain, root = [], node
    while isinstance(root, ast.Attribute):
        chain.append(root.attr)
        root = root.value
    if isinstance(root, ast.Name):
        if isinstance(root.ctx, ast.Load):
            yield (root.id, *reversed(chain))
    else:
        for child in ast.iter_child_nodes(node):
            yield from _dotted(child)


def _bound(node: ast.stmt) -> list[str]:
    """Names that a statement at the top of a module binds and does nothing else; [""] where it may do more."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    names = [n for t in targets for n in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [n.id for n in names] if names and all(isinstance(n, ast.Name) for n in names) else [""]


def _parse(text: str, module: str, package: tuple[str, ...]) -> _File:
    # not `ast.dump` or `ast.unparse`: their output changes with the version of Python, and a digest must not
    tree, lines = ast.parse(text), text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node):
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno
            lines[first:last] = [""] * (last - first)
    imports = {k: v for node in tree.body for k, v in _imported(node, package)}
    said: dict[str, str] = {}
    uses: dict[str, set[Name]] = {}
    for node in tree.body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        words = "".join(f"{line.rstrip()}\n" for line in lines[first : node.end_lineno] if line.strip())
        if isinstance(node, ast.Import | ast.ImportFrom) or not words:
            continue
        known = imports | {k: v for inner in ast.walk(node) for k, v in _imported(inner, package)}
        read = set()
        for root, *rest in _dotted(node):
            base, path = known.get(root, (module, (root,)))
            read.add((base, (*path, *rest)))
        for name in _bound(node):
            said[name] = said.get(name, "") + words
            uses.setdefault(name, set()).update(read)
    for name, read in uses.items():  # variables of functions and builtins are no names of the module
        uses[name] = {(m, chain) for m, chain in read if m != module or chain[:1] == () or chain[0] in said}
    return _File(imports, said, uses)


@functools.lru_cache(maxsize=512)
def _read(path: Path, mtime_ns: int) -> _File:
    package = (PACKAGE.name, *path.relative_to(PACKAGE).parent.parts)
    module = ".".join(package if path.stem == "__init__" else (*package, path.stem))
    return _parse(path.read_text(encoding="utf-8"), module, package)


def _file(path: Path) -> _File:
    return _read(path, path.stat().st_mtime_ns)


def _find(module: str, chain: tuple[str, ...]) -> Iterator[Definition]:
    """Definitions that a dotted name stands for, and what importing its module runs."""
    path = _module_file(module)
    if path is None:
        return
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        yield Definition(_module_file(".".join(parts[:end])), "")
    file = _file(path)
    if not chain:
        yield from (Definition(path, name) for name in file.said)
        if path.stem == "__init__":
            for name in file.imports.values():
                yield from _find(*name)
    elif file.imports.get(chain[0], (module, chain[:1])) != (module, chain[:1]):  # `from . import part` names a file
        base, rest = file.imports[chain[0]]
        yield from _find(base, rest + chain[1:])
    elif chain[0] in file.said:
        yield Definition(path, chain[0])
    else:
        inner = f"{module}.{chain[0]}"
        yield from _find(*((inner, chain[1:]) if _module_file(inner) else (module, ())))


def definitions(*names: str, source: str = "", without: Iterable[str] = ()) -> list[Definition]:
    """Definitions that the named things (and `source`, Python text) rest on, directly or through others.

    Args:
        names: dotted names such as "sslref.papers.simclr" or "sslref.papers.simclr.CLAIMS".
        source: further Python text that counts as a whole, e.g. the code cells of a notebook.
        without: dotted names of modules that are left out, with what only they reach.

    Raises:
        ValueError: a name of no module of the package.
    """
    missing = [name for name in names if not any(_module_file(n) for n in (name, name.rpartition(".")[0]))]
    if missing:
        raise ValueError(f"names: expected names of {PACKAGE.name}, got {', '.join(missing)}")
    left_out = {_module_file(name) for name in without}
    text = _parse(source, "", ())
    wanted = [(PACKAGE.name, tuple(name.split(".")[1:])) for name in names]
    wanted += [*text.imports.values(), *(name for read in text.uses.values() for name in read)]
    todo = [found for name in wanted for found in _find(*name)]
    seen: set[Definition] = set()
    while todo:
        found = todo.pop()
        file = _file(found.path)
        if found in seen or found.path in left_out or found.name not in file.said:
            continue
        seen.add(found)
        todo += [other for name in file.uses[found.name] for other in _find(*name)]
    return sorted(seen)


def reach(*names: str, source: str = "", without: Iterable[str] = ()) -> list[Path]:
    """The files in which the `definitions` stand."""
    return sorted({found.path for found in definitions(*names, source=source, without=without)})


def code(found: Iterable[Definition]) -> str:
    """A short SHA-256 of definitions: where they stand, what they are called, what they say."""
    h = hashlib.sha256()
    for path, name in sorted(found):
        h.update(f"{path.relative_to(PACKAGE)}\n{name}\n{_file(path).said[name]}\n".encode())
    return h.hexdigest()[:16]

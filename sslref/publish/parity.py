"""The parity table: which functions are tested against what, read from the tests' source.

A test that compares with an outside truth carries `@pytest.mark.parity(...)`; one that pins a known difference between
paper and official code carries `@pytest.mark.differs(...)`. Arguments are literals, so that no test need be imported.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Parity:
    """`function` agrees with `against` within `tolerance`."""

    function: str
    against: str
    tolerance: float
    test: str


@dataclass(frozen=True)
class Differs:
    """Paper and official code disagree; `here` says which is followed."""

    slug: str
    paper: str
    official: str
    here: str
    test: str


_KINDS = {"parity": Parity, "differs": Differs}


def _marks(node: ast.AST) -> Iterator[ast.Call]:
    for call in getattr(node, "decorator_list", ()):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in _KINDS:
            yield call


def read(path: Path, root: Path) -> list[Parity | Differs]:
    """Marked comparisons of one test file. Raises ValueError, naming the line, where a mark is not made of literals."""
    rows = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        for call in _marks(node):
            kind = _KINDS[call.func.attr]
            where = f"{path.relative_to(root).as_posix()}::{node.name}"
            try:
                (subject,) = (ast.literal_eval(a) for a in call.args)
                rows.append(kind(subject, **{k.arg: ast.literal_eval(k.value) for k in call.keywords}, test=where))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{where} (line {call.lineno}): {call.func.attr} needs literal arguments: {error}"
                ) from None
    return rows


def table(root: Path) -> list[Parity | Differs]:
    """Every marked comparison below `tests/`, in the order of the files."""
    return [row for path in sorted((root / "tests").rglob("test_*.py")) for row in read(path, root)]

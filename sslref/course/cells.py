"""Which cells of a chapter its exercises need, so that a grader gets by with those."""

import ast
import re
import symtable
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass
class Names:
    """What a cell does with names of the notebook."""

    binds: set[str] = field(default_factory=set)
    now: set[str] = field(default_factory=set)  # names that it reads as it runs
    later: set[str] = field(default_factory=set)  # names that its functions read when they are called


def _walk(table: symtable.SymbolTable, found: Names, *, deferred: bool) -> None:
    for child in table.get_children():
        called_later = deferred or (
            child.get_type() == "function" and child.get_name() not in ("listcomp", "setcomp", "dictcomp", "genexpr")
        )
        read = {s.get_name() for s in child.get_symbols() if s.is_referenced() and s.is_global()}
        (found.later if called_later else found.now).update(read)
        _walk(child, found, deferred=called_later)


def names(source: str) -> Names:
    """The names of a cell; of code that cannot be parsed, every word counts as read."""
    plain = re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", source)
    try:
        statements = ast.parse(plain).body
    except (SyntaxError, ValueError, RecursionError):
        return Names(now=set(re.findall(r"[^\W\d]\w*", plain)))
    cell = Names()
    for statement in statements:
        one = Names()
        table = symtable.symtable(ast.unparse(statement), "cell", "exec")
        symbols = table.get_symbols()
        one.binds = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported() or s.is_namespace()}
        one.now = {s.get_name() for s in symbols if s.is_referenced()}
        _walk(table, one, deferred=False)
        if isinstance(statement, ast.For | ast.With):  # their targets are bound before they are read
            targets = (
                [statement.target] if isinstance(statement, ast.For) else [w.optional_vars for w in statement.items]
            )
            one.now -= {n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name)}
        cell.now |= one.now - cell.binds
        cell.later |= one.later
        cell.binds |= one.binds
    return cell


def needed(sources: Sequence[str], wanted: Iterable[int]) -> set[int]:
    """Indices of the cells that must run for the wanted ones to run.

    A name that is read as a cell runs needs the last cell before that binds it; one that a function reads needs all
    cells that bind it, as nobody knows when the function is called.

    Args:
        sources: the code cells of a notebook, in order.
        wanted: indices of the cells that are to run.
    """
    known = [names(source) for source in sources]
    chosen: set[int] = set()
    todo = sorted(wanted)
    while todo:
        i = todo.pop()
        if i in chosen:
            continue
        chosen.add(i)
        for name in known[i].now:
            todo += [next((j for j in range(i - 1, -1, -1) if name in known[j].binds), i)]
        todo += [j for j, other in enumerate(known) if other.binds & known[i].later]
    return chosen

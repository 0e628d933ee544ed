"""A chapter's Markdown for tools that know no MyST: JupyterLab, nbgrader, nbconvert.

Roles become words, and equations become `$$` with their numbers.
"""

import functools
import re

from sslref import registry

_FENCE = re.compile(r"(?ms)^```\{(math|margin)\}\s*\n(?::label: *(\S+)\s*\n)?(.*?)^```[ \t]*$")
_DOLLARS = re.compile(r"(?ms)(\$\$.+?\$\$)[ \t]*\(([\w-]+)\)")


def equation_numbers(cells: list[dict]) -> dict[str, int]:
    """Number of each labelled equation of a chapter, by its label, in the order of the page."""
    text = "\n\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    labels = re.findall(r"(?m)^:label: *(\S+)|\$\$[ \t]*\(([\w-]+)\)", text)
    return {a or b: n for n, (a, b) in enumerate(labels, 1)}


@functools.cache
def _references() -> dict[str, tuple[str, str]]:
    """Key of the bibliography -> who, when."""
    from pybtex.database import parse_file

    found = {}
    for key, entry in parse_file(registry.root() / "book" / "references.bib").entries.items():
        names = [" ".join((*p.prelast_names, *p.last_names)) for p in entry.persons.get("author", ())]
        names = [re.sub(r"[{}]", "", name) for name in names]
        who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        found[key] = (who, entry.fields.get("year", ""))
    return found


def _cite(kind: str, keys: str) -> str:
    known = _references()
    works = [known.get(key.strip(), (key.strip(), "")) for key in keys.split(",")]
    if kind == "cite:t":
        return "; ".join(f"{who} ({year})" for who, year in works)
    return f"({'; '.join(f'{who}, {year}' for who, year in works)})"


def markdown(text: str, numbers: dict[str, int]) -> str:
    """The text of one cell without MyST.

    Args:
        text: source of a Markdown cell.
        numbers: of the equations, as `equation_numbers` gives them.
    """

    def fence(match: re.Match) -> str:
        kind, label, body = match.groups()
        if kind == "margin":
            return "\n".join(f"> {line}".rstrip() for line in body.strip().splitlines())
        tag = f"\n\\tag{{{numbers[label]}}}" if label in numbers else ""
        return f"$$\n{body.strip()}{tag}\n$$"

    def role(match: re.Match) -> str:
        kind, body = match.groups()
        if kind.startswith("cite"):
            return _cite(kind, body)
        if kind == "eq":
            return f"({numbers.get(body, body)})"
        return re.sub(r"\s*<[^>]*>$", "", body)  # {doc}, {ref}, {term}: the words that stand for the link

    text = _FENCE.sub(fence, text)
    text = _DOLLARS.sub(lambda m: f"{m[1][:-2].rstrip()}\n\\tag{{{numbers[m[2]]}}}\n$$", text)
    return re.sub(r"\{([a-z:]+)\}`([^`]+)`", role, text)

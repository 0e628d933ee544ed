"""Links that no author writes: to the glossary from a term's first use, and words by which the search finds a page.

Loaded by `_config.yml` as a Sphinx extension.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

from sslref import registry

# what is no prose, though it stands in a paragraph; titles of works are emphasised
_APART = (
    nodes.reference,
    nodes.emphasis,
    nodes.literal,
    nodes.math,
    nodes.raw,
    nodes.target,
    nodes.footnote_reference,
    nodes.table,
)
# terms that are everyday words too: a wrong card is worse than none, so these are linked by their authors only
EVERYDAY = {"alignment", "claim", "graph", "interval", "margin", "negative", "parity", "profile", "window"}
_GREEK = {
    unicodedata.name(c).split()[-1].lower(): c
    for c in "αβγδεζηθικλμνξπρστυφχψω"  # LaTeX's names are Unicode's
} | {"lambda": "λ"}


def pattern(terms: Iterable[str]) -> re.Pattern:
    """Matches each term as a word of its own, also in the plural; the match has the term as its group `t`.

    Terms in capitals match as they are, others also at the start of a sentence.
    """

    def one(term: str) -> str:
        words = r"\s+".join(map(re.escape, term.split()))
        return f"(?i:{words[0]}){words[1:]}" if term[1:].islower() and term[0].islower() else words

    found = "|".join(map(one, sorted(terms, key=len, reverse=True)))
    return re.compile(rf"(?<![\w-])(?P<t>{found})(?:e?s)?(?![\w-])")


def _prose(tree: nodes.Element) -> Iterator[nodes.Text]:
    """Text of the paragraphs, without headings, emphasis, links, code, tables and mathematics."""
    for paragraph in tree.findall(nodes.paragraph):
        for text in list(paragraph.findall(nodes.Text)):
            node = text.parent
            while not isinstance(node, (*_APART, nodes.document, nodes.title)) and node is not None:
                node = node.parent
            if isinstance(node, nodes.document):
                yield text


def link_terms(tree: nodes.document, targets: dict[str, str]) -> None:
    """Link the first use of each term, in place.

    Args:
        tree: the page; a term that it links already is left alone.
        targets: term -> address of its entry, as seen from the page.
    """
    linked = {r.get("refuri", "") for r in tree.findall(nodes.reference)}
    left = {term: uri for term, uri in targets.items() if uri not in linked}
    for text in _prose(tree):
        pieces, rest = [], str(text)
        while left and (found := pattern(left).search(rest)):
            term = " ".join(found["t"].split())
            term = term if term in left else term[0].lower() + term[1:]
            link = nodes.reference("", found[0], internal=True, refuri=left.pop(term), classes=["book-term"])
            pieces += [nodes.Text(rest[: found.start()]), link]
            rest = rest[found.end() :]
        if pieces:
            text.parent.replace(text, [p for p in (*pieces, nodes.Text(rest)) if p.astext()])


def _terms(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Only chapters: a page of the reference or a table is looked up, not read."""
    if not app.env.doc2path(page).endswith(".ipynb") or app.builder.format != "html":
        return
    entries = app.env.domaindata["std"]["objects"]
    targets = {
        name: f"{app.builder.get_relative_uri(page, where)}#{label}"
        for (kind, name), (where, label) in entries.items()
        if kind == "term" and name not in EVERYDAY
    }
    link_terms(tree, targets)


def _elsewhere(app: Sphinx, tree: nodes.document, page: str) -> None:
    """An equation of another page is named with its page: "(3) in SimCLR"."""
    equations = app.env.domaindata["math"]["objects"]
    pages = {nodes.make_id(f"equation-{label}"): where for label, (where, _) in equations.items()}
    for link in tree.findall(nodes.reference):
        label = link.get("refuri", "").partition("#")[2]
        if label in pages:
            link += nodes.Text(f" in {app.env.titles[pages[label]].astext().partition(':')[0]}")


def _keywords(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Words for the search that the page shows otherwise, or not at all: all authors, Greek letters."""
    formulas = (m for kind in (nodes.math, nodes.math_block) for m in tree.findall(kind))
    words = {word for formula in formulas for word in greek(formula.astext())}
    paper = registry.papers().get(page.rpartition("/")[2])
    if paper:
        said = " ".join((paper.slug, paper.title, *paper.authors))
        words |= set(re.findall(r"\w+", said.lower()))
    if words:
        tree.insert(0, nodes.meta(name="keywords", content=", ".join(sorted(words))))


def greek(latex: str) -> set[str]:
    r"""Greek letters of a formula and their names, without what LaTeX hangs on them: `\tau_{ij}` -> {"τ", "tau"}."""
    names = {name for name in re.findall(r"\\(?:var)?([a-z]+)", latex) if name in _GREEK}
    return names | {_GREEK[name] for name in names}


def _ranking(app: Sphinx, config: Config) -> None:
    config.html_search_scorer = str(Path(__file__).with_name("search.js"))


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", _ranking)
    for handler in (_terms, _elsewhere, _keywords):
        app.connect("doctree-resolved", handler)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

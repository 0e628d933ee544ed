"""Hover cards: what a link leads to, kept in the page that links there, so that a page from a USB stick has it too.

Every page gets one `<template>` with a card for each term, work and equation of another page that it links to;
`book/_static/cards.js` shows them.
"""

import functools
import html
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LINK = re.compile(
    r'<a class="(?:book-term )?reference internal" href="([^"#]+#(?:term-|equation-|id\d)[^"]*)"( title="[^"]*")?'
)
_TERMS = re.compile(r'((?:<dt id="term-[^"]+">.*?</dt>\s*)+)<dd>(.*?)</dd>', re.S)  # several may share an entry
_TERM = re.compile(r'<dt id="([^"]+)">(.*?)<a class="headerlink"', re.S)
_ENTRIES = (  # of a bibliography, of a chapter
    re.compile(r'<div class="citation" id="(?P<id>[^"]+)"[^>]*>(?P<head>).*?(?P<body><p>.*?</p>)\s*</div>', re.S),
    re.compile(
        r'<div class="math[^"]*" id="(?P<id>equation-[^"]+)">\s*'
        r'(?:<span class="eqno">(?P<head>\(\d+\)).*?</span>)?(?P<body>.*?)</div>',
        re.S,
    ),
)


def entries(text: str) -> dict[str, str]:
    """Cards that a page can give: id of the place -> HTML without links and ids."""
    found = {}

    def keep(name: str, head: str | None, body: str) -> None:
        head = f"<b>{head.strip()}</b>" if head else ""
        found[name] = re.sub(r"</?a\b[^>]*>|(?<=<)(\w+)( id=\"[^\"]*\")", lambda m: m[1] or "", head + body)

    for terms, body in _TERMS.findall(text):
        for name, head in _TERM.findall(terms):
            keep(name, head, body)
    for kind in _ENTRIES:
        for m in kind.finditer(text):
            keep(m["id"], m["head"], m["body"])
    return found


def add(site: Path) -> None:
    """Put the cards into every page of a freshly built site."""

    @functools.cache
    def of(path: Path) -> dict[str, str]:
        return entries(path.read_text(encoding="utf-8")) if path.is_file() else {}

    site = site.resolve()
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        cards: dict[str, str] = {}

        def link(match: re.Match, page: Path = page, cards: dict = cards) -> str:
            parts = urlsplit(html.unescape(match[1]))
            card = of((page.parent / unquote(parts.path)).resolve()).get(unquote(parts.fragment))
            if card is None:
                return match[0]
            cards[match[1]] = card
            return match[0].removesuffix(match[2] or "")  # the browser's own tip would lie over the card

        text = _LINK.sub(link, text)
        if cards:
            inner = "".join(f'<div data-for="{href}">{card}</div>' for href, card in cards.items())
            text = text.replace("</body>", f'<template id="book-cards">{inner}</template>\n  </body>')
            page.write_text(text, encoding="utf-8")

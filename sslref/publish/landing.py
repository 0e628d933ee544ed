"""What the landing page shows of all chapters at once: the ledger in one picture, and buttons over the gallery."""

import html
import math
from collections import Counter
from collections.abc import Iterable

from sslref import claims, registry
from sslref.publish import pages, paths

VERDICTS = ("supported", "exact", "inconclusive", "contradicted")
_STEP, _HEIGHT = 8, 26  # of a mark, and of a row of them, in pixels


def generate(slugs: list[str], known: list[str]) -> dict[str, str]:
    """Generated parts of the landing page and the page of the reading paths, by name.

    Args:
        slugs: chapters of the book, in order.
        known: all that a reading path may name.
    """
    found = paths.read(known)
    return {
        "_generated/filters.md": filters(slugs),
        "_generated/ledger_picture.md": ledger(slugs),
        "_generated/paths.md": paths.page(found, pages._heading),
        "_generated/path_cards.md": paths.cards(found),
    }


def filters(slugs: Iterable[str]) -> str:
    """Buttons that narrow the gallery down; hidden until the script that serves them has come."""
    papers = [registry.get(slug) for slug in slugs]
    held = {word for slug in slugs for word in pages.facets(slug)["verdict"]}
    groups = {
        "part": ("Part", {p: registry.PARTS[p] for p in registry.PARTS if any(p == paper.part for paper in papers)}),
        "data": ("Data", {pages.word(name): name for paper in papers for name in paper.data}),
        "verdict": ("Verdict", {v: v for v in VERDICTS if v in held}),
    }
    sets = "".join(
        f'<div role="group" aria-label="{legend}"><b aria-hidden="true">{legend}</b><div>'
        + "".join(
            f'<button type="button" aria-pressed="false" data-facet="{facet}" value="{value}">{html.escape(label)}'
            "</button>"
            for value, label in choices.items()
        )
        + "</div></div>"
        for facet, (legend, choices) in groups.items()
        if choices
    )
    return (
        f'<div class="book-filters" role="group" aria-label="Filters of the gallery" hidden>{sets}'
        '<p><span role="status"></span> <button type="button" data-all>Show all</button></p></div>\n'
    )


def ledger(slugs: Iterable[str]) -> str:
    """Every claim as a mark with its interval, a row a chapter, each a link to the chapter's evidence."""
    records = {slug: record for slug in slugs if (record := claims.ledger(slug))}
    if not records:
        return "No claim has been run with the profile `ledger` yet.\n"
    counts = Counter(e.verdict for record in records.values() for e in record.claims)
    rows = []
    for slug, record in records.items():
        width = _STEP * len(record.claims)
        marks = "".join(_mark(e, _STEP * i + _STEP / 2) for i, e in enumerate(record.claims))
        name = html.escape(pages._heading(slug).partition(":")[0])
        rows.append(
            f'<li><a href="{registry.part(slug)}/{slug}.html#does-the-claim-hold"><span>{name}</span>'
            f'<span class="visually-hidden">, {_tally(Counter(e.verdict for e in record.claims))}</span>'
            f'<svg aria-hidden="true" width="{width}" height="{_HEIGHT}" viewBox="0 0 {width} {_HEIGHT}">'
            f'<path class="zero" d="M0 {_HEIGHT / 2:g}h{width}"/>{marks}</svg></a></li>'
        )
    total = counts.total()
    said = f"{total} {'claim' if total == 1 else 'claims'} in {len(rows)} {'chapter' if len(rows) == 1 else 'chapters'}"
    return f'<p><b>{said}:</b> {_tally(counts)}.</p>\n\n<ul class="book-ledger">{"".join(rows)}</ul>\n'


def _tally(counts: Counter) -> str:
    return ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])


def _mark(e, x: float) -> str:
    """A claim: up is in favour. As on the page of the ledger, an interval is divided by its end farthest from zero."""
    low, high = e.difference.ci95
    ends = [abs(v) for v in (e.difference.mean, low, high) if math.isfinite(v)]
    unit = (_HEIGHT / 2 - 3) / (max(ends, default=0.0) or 1.0) * (1 if e.higher_is_better else -1)

    def y(value: float) -> str:
        return f"{_HEIGHT / 2 - unit * value:.1f}"

    if e.verdict == "exact":
        drawn = f'<rect x="{x - 2.5:g}" y="1" width="5" height="5"/>'
    else:
        drawn = f'<path d="M{x:g} {y(low)}V{y(high)}"/>' if math.isfinite(low) and math.isfinite(high) else ""
        drawn += f'<circle cx="{x:g}" cy="{y(e.difference.mean)}" r="2.2"/>' if math.isfinite(e.difference.mean) else ""
    return f'<g class="{e.verdict}"><title>{html.escape(e.statement)} {e.verdict.capitalize()}.</title>{drawn}</g>'

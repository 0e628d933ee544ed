"""Pages that write themselves: parts, gallery, ledger, parity, GPU, data, table of contents.

A hand-written page of `book/` takes its generated part in by `{include}` from `_generated/`.
"""

import hashlib
import html
import json
import re
from collections.abc import Iterable
from pathlib import Path

from sslref import claims, digest, registry, show
from sslref.course import guide
from sslref.publish import api, execute, parity, pictures


def _cell(text: object) -> str:
    """Text for a cell of a Markdown table."""
    return re.sub(r"([\\`*_\[\]<>$|{}])", r"\\\1", " ".join(str(text).split()))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# ------------------------------------------------------------------------------------------------- parts and gallery


def _parts(slugs: list[str]) -> dict[str, list[str]]:
    """Parts that have chapters or pages, with the slugs of their chapters, in the order of the book."""
    found = {part: [s for s in slugs if registry.get(s).part == part] for part in registry.PARTS}
    paged = set(registry.pages().values())
    return {part: chapters for part, chapters in found.items() if chapters or part in paged}


def _heading(slug: str) -> str:
    """Title of a chapter, as its notebook has it."""
    cells = json.loads(registry.notebook(slug).read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    found = re.search(r"(?m)^# +(.+)$", text)
    return found[1].strip() if found else registry.get(slug).title


def _picture(slug: str) -> str | None:
    """The first drawing of the executed chapter, as `<svg>`."""
    if not execute.kept(slug).exists():
        return None
    cells = json.loads(execute.kept(slug).read_text(encoding="utf-8"))["cells"]
    shown = ("".join(o.get("data", {}).get("text/html", "")) for c in cells for o in c.get("outputs", ()))
    return next((m[0] for text in shown if (m := re.search(r'<svg\b[^>]*role="img".*?</svg>', text, re.DOTALL))), None)


def _draw_cards(slugs: Iterable[str], folder: Path) -> None:
    """Write each chapter's picture as a file for light and one for dark pages: pages load only those that are seen."""
    sheet = (Path(show.__file__).parent / "style.css").read_text(encoding="utf-8")
    dark = re.search(r'\[data-theme="dark"\][^{]*\{([^}]*)\}', sheet)[1]
    styles = {"light": "color: #222832", "dark": f"color: #ced6dd; {' '.join(dark.split())}"}
    folder.mkdir(parents=True, exist_ok=True)
    for slug in slugs:
        drawing = _picture(slug)
        for mode, style in styles.items() if drawing else ():
            inner = f"<style>:root {{ font-family: system-ui, sans-serif; {style} }}</style>"
            text = re.sub(r"(<svg\b[^>]*>)", lambda m, inner=inner: m[1] + inner, drawing, count=1)
            (folder / f"{slug}-{mode}.svg").write_text(text, encoding="utf-8")


def _cards(slugs: list[str], up: str) -> str:
    """Links to chapters as cards; `up` leads from the page to the root of the book."""
    cards = []
    for slug in slugs:
        paper = registry.get(slug)
        who = f"{paper.authors[0]} et al." if len(paper.authors) > 2 else " and ".join(paper.authors)
        drawing = _picture(slug)
        alt = re.search(r'aria-label="([^"]*)"', drawing)[1] if drawing else ""
        images = "".join(
            f'<img class="only-{mode}" loading="lazy" src="{up}_static/cards/{slug}-{mode}.svg" alt="{alt}">'
            for mode in (("light", "dark") if drawing else ())
        )
        cards.append(
            f'<a class="book-card"{_attributes(slug)} href="{up}{paper.part}/{slug}.html">{images}'
            f"<small>{html.escape(registry.PARTS[paper.part])}</small><b>{html.escape(_heading(slug))}</b>"
            f"<span>{html.escape(paper.idea)}</span>"
            f"<small>{html.escape(f'{who}, {paper.year} · {paper.minutes} minutes')}{_mark(slug)}</small></a>"
        )
    return f'<div class="book-cards">\n{"".join(cards)}\n</div>\n'


def word(text: str) -> str:
    """A name as one word, for addresses and attributes."""
    return re.sub(r"\W+", "-", text)


def facets(slug: str) -> dict[str, list[str]]:
    """By what the gallery can be narrowed down: part, data, and the verdicts that the chapter's claims got."""
    paper, record = registry.get(slug), claims.ledger(slug)
    found = dict.fromkeys(e.verdict for e in record.claims) if record else {}
    return {"part": [paper.part], "data": list(map(word, paper.data)), "verdict": list(found)}


def _attributes(slug: str) -> str:
    return "".join(f' data-{name}="{" ".join(words)}"' for name, words in facets(slug).items())


def _mark(slug: str) -> str:
    record = claims.ledger(slug)
    if record is None:
        return ""
    counts = {
        v: sum(e.verdict == v for e in record.claims) for v in ("supported", "exact", "inconclusive", "contradicted")
    }
    return " · " + ", ".join(f"{n} {v}" for v, n in counts.items() if n)


def _part_page(part: str, slugs: list[str], book: Path) -> str:
    intro = book / "parts" / f"{part}.md"
    said = intro.read_text(encoding="utf-8") if intro.exists() else ""
    chapters = f"## Chapters\n\n{_cards(slugs, '../')}" if slugs else ""
    return f"# {registry.PARTS[part]}\n\n{said}\n\n{chapters}"


def _toc(slugs: list[str], api_pages: Iterable[str]) -> str:
    def entry(name: str, sections: Iterable[str] = ()) -> list[str]:
        under = [f"          - file: {s}" for s in sections]
        return [f"      - file: {name}", *(["        sections:", *under] if under else [])]

    def part(caption: str, *entries: list[str]) -> list[str]:
        return [f"  - caption: {caption}", "    chapters:", *(line for e in entries for line in e)]

    lines = ["format: jb-book", "root: index", "parts:"]
    lines += part("Start", entry("read"), entry("paths"), entry("run"), entry("teach", ["guide"]))
    found = _parts(slugs)
    if found:
        also = {p: [name for name, where in registry.pages().items() if where == p] for p in found}
        under = {p: [f"{p}/{name}" for name in (*ss, *also[p])] for p, ss in found.items()}
        lines += part("Chapters", *(entry(f"{p}/index", names) for p, names in under.items()))
    lines += part("Evidence", entry("ledger"), entry("parity"), entry("gpu"))
    names = sorted(n.removesuffix(".md") for n in api_pages if n != "api/index.md")
    lines += part("Reference", entry("data"), entry("api/index", names), entry("glossary"), entry("bibliography"))
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------- ledger


def _ledger(slugs: list[str]) -> str:
    records = {slug: record for slug in slugs if (record := claims.ledger(slug))}
    if not records:
        return "No claim has been run with the profile `ledger` yet.\n"
    entries, tables = [], []
    for slug, record in records.items():
        chapter = f"{registry.get(slug).part}/{slug}"
        rows = []
        for e in record.claims:
            d = e.difference
            link = f"{chapter}.html#does-the-claim-hold"
            entries.append((e.statement, e.unit, d.mean, *d.ci95, e.verdict, link, e.higher_is_better))
            arms = [
                f"{_cell(name)}: {sum(arm.values) / len(arm.values):.4g}"
                for role in ("baseline", "method")
                for name, arm in e.arms.items()
                if arm.role == role
            ]
            rows.append([_cell(e.statement), e.kind, _cell(e.metric), *arms, e.verdict, str(len(e.method.values))])
        stale = ", **older than the code**" if claims.code_digest(slug) != record.code_digest else ""
        head = ("claim", "kind", "metric", "baseline", "method", "verdict", "seeds")
        tables.append(
            f"### [{_heading(slug)}]({chapter}.ipynb)\n\n{record.date}, {max(1, round(record.seconds / 60))} CPU "
            f'minutes{stale}.\n\n<div class="book-wide">\n\n{_table(head, rows)}\n</div>\n'
        )
    return f"{show.forest(entries)}\n\n## The numbers\n\nMeans over the seeds.\n\n" + "\n".join(tables)


_PROBE = {
    "miou": "what lies where",
    "figure_ground": "thing or ground",
    "presence": "things named",
    "match": "place found",
}


def _one_probe(slugs: list[str]) -> str:
    """The study `one_probe`: what a linear probe gains on random weights, then all measures."""
    record = claims.ledger("one_probe") if "one_probe" in registry.studies() else None
    if record is None:
        return "Not run yet.\n"
    chapters = {name: slug for slug, name in (e.id.split("/") for e in record.claims)}
    link = {name: f"../{registry.get(slug).part}/{slug}" for name, slug in chapters.items() if slug in slugs}
    entries, rows = [], []
    for e, name in zip(record.claims, chapters, strict=True):
        d, to = e.difference, f"{link[name]}.html" if name in link else ""
        entries.append((name, e.unit, d.mean, *d.ci95, e.verdict, to, True))
    arms = record.metrics["probe"]
    random = arms["random weights"]
    for name, metrics in arms.items():
        cells = []
        for metric in _PROBE:
            d = claims.paired_interval(m - r for m, r in zip(metrics[metric], random[metric], strict=True))
            gain = f"{d.mean:+.1f}".replace("-", "−")
            said = f" ({gain} ± {d.ci95[1] - d.mean:.1f})" if name in chapters else ""
            cells.append(f"{sum(metrics[metric]) / len(metrics[metric]):.1f}{said}")
        rows.append([f"[{name}]({link[name]}.ipynb)" if name in link else name, *cells])
    seeds = len(record.claims[0].method.values)
    said = f"Means over {seeds} seeds in %, and what was gained on random weights with its 95 % interval."
    table = _table(("", *_PROBE.values()), rows)
    return f'{show.forest(entries, one_unit=True)}\n\n{said}\n\n<div class="book-wide">\n\n{table}\n</div>\n'


# ------------------------------------------------------------------------------------------------- parity


def _parity(root: Path) -> str:
    rows = parity.table(root)
    same = [r for r in rows if isinstance(r, parity.Parity)]
    differ = [r for r in rows if isinstance(r, parity.Differs)]
    agree = _table(
        ("function", "compared with", "tolerance", "test"),
        (
            [f"`{r.function}`", _cell(r.against), f"{r.tolerance:g}", f"`{r.test}`"]
            for r in sorted(same, key=lambda r: r.function)
        ),
    )
    apart = _table(
        ("paper", "the text says", "the official code does", "here", "test"),
        (
            [r.slug, _cell(r.paper), _cell(r.official), _cell(r.here), f"`{r.test}`"]
            for r in sorted(differ, key=lambda r: r.slug)
        ),
    )
    return (
        f'## What agrees with what\n\n{len(same)} comparisons.\n\n<div class="book-wide">\n\n{agree}\n</div>\n\n'
        f"## Where paper and official code differ\n\n{len(differ)} known differences, each pinned by a test.\n\n"
        f'<div class="book-wide">\n\n{apart}\n</div>\n'
    )


# ------------------------------------------------------------------------------------------------- GPU and data


def _gpu(root: Path) -> str:
    files = sorted((root / "benchmarks" / "gpu").glob("*.json"))
    if not files:
        return "**Not measured yet.** No machine with a GPU has run `make gpu` on this version.\n"
    return "\n".join(_gpu_report(json.loads(f.read_text(encoding="utf-8"))) for f in files)


def _gpu_report(report: dict) -> str:
    """One device: what was compared, how far it was off at most, and what a training step costs."""
    checks = [c for c in report["checks"] if c["error"] is not None]
    rows = []
    for precision in dict.fromkeys(c["precision"] for c in checks):
        found = [c for c in checks if c["precision"] == precision]
        worst = max(found, key=lambda c: c["error"])
        passed = f"{sum(c['passed'] for c in found)} of {len(found)}"
        rows.append([precision, passed, f"{worst['error']:.1e}", f"`{worst['name']}`", f"{worst['tolerance']:g}"])
    agree = _table(("precision", "within tolerance", "largest deviation", "of", "its tolerance"), rows)
    steps = [
        (
            t["slug"],
            t["precision"],
            "compiled" if t["compiled"] else "eager",
            *(f"{t[k]:,.{places}f}" if t[k] else "–" for k, places in _GPU_COLUMNS.items()),
        )
        for t in report["training"]
    ]
    speed = _table(("paper", "precision", "", "ms a step", "samples a second", "peak memory, MB"), steps)
    return (
        f"## {_cell(report['device'])}\n\n{report['date']}, PyTorch {report['versions']['torch']}.\n\n{agree}\n"
        f'The miniature of each paper, one training step:\n\n<div class="book-wide">\n\n{speed}\n</div>\n'
    )


def _masked_step(root: Path) -> str:
    """The masked autoencoder against Hugging Face's: milliseconds a step, and the ratio with its interval."""
    path = root / "benchmarks" / "masked_step.json"
    if not path.exists():
        return "**Not measured yet.** `make benchmark` does it.\n"
    report = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        (
            _cell(s["model"]),
            str(s["batch_size"]),
            f"{s['sslref_ms']:.1f}",
            f"{s['vitmae_ms']:.1f}",
            "{:.2f} [{:.2f}, {:.2f}]".format(s["ratio"], *s["ratio_ci95"]),
        )
        for s in report["steps"]
    ]
    head = ("model", "batch", "here, ms", "ViTMAE, ms", "ViTMAE's time / ours, 95 % interval")
    said = f"PyTorch {report['versions']['torch']}, transformers {report['versions']['transformers']}, one CPU thread."
    return f'<div class="book-wide">\n\n{_table(head, rows)}\n</div>\n\n{said}\n'


_GPU_COLUMNS = {"step_ms": 2, "samples_per_second": 0, "peak_memory_mb": 0}


def _drawn() -> dict:
    """The book's own pictures. They take seconds to draw, so they are kept until the data or the code changes."""
    root = registry.root()
    files = [root / "data" / "checksums.json", *digest.reach("sslref.publish.pictures")]
    key = hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
    kept = root / "_build" / "cache" / "pictures.json"
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if known.get("key") != key:
        known = {"key": key, "landing": pictures.landing(), "samples": pictures.samples()}
        claims.write_json(kept, known)
    return known


def _data(samples: dict[str, str]) -> str:
    from sslref.data import catalogue

    blocks = []
    for e in catalogue():
        facts = {"What": e.sizes, "Source": e.source, "Licence": e.licence, "Datasheet": f"{e.folder}/README.md"}
        lines = "".join(f"<div><dt>{k}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items())
        blocks.append(f'## {e.title}\n\n{samples.get(e.name, "")}\n\n<dl class="book-facts">{lines}</dl>\n')
    return "\n".join(blocks)


def generate(slugs: list[str], target: Path) -> dict[str, str]:
    """Every generated page below `target`, by its name.

    Args:
        slugs: chapters of the book, in order.
        target: the staged book, which holds the hand-written pages.
    """
    root = registry.root()
    out = api.pages()
    out["_toc.yml"] = _toc(slugs, list(out))
    out |= {f"{part}/index.md": _part_page(part, found, target) for part, found in _parts(slugs).items()}
    drawn = _drawn()
    _draw_cards(slugs, target / "_static" / "cards")
    out["_generated/figure.md"] = drawn["landing"]
    out["_generated/gallery.md"] = _cards(slugs, "")
    out["_generated/guide.md"] = guide.page(slugs)
    out["_generated/ledger.md"] = _ledger(slugs)
    out["_generated/one_probe.md"] = _one_probe(slugs)
    out["_generated/parity.md"] = _parity(root)
    out["_generated/gpu.md"] = _gpu(root)
    out["_generated/masked_step.md"] = _masked_step(root)
    out["_generated/data.md"] = _data(drawn["samples"])
    return out

"""Slides from a chapter: reveal.js with local files, the chapter's text as the speaker's notes."""

import html
import re
import shutil
from pathlib import Path
from typing import Any

from sslref import registry
from sslref.course import plain, tex
from sslref.course.teaching import Exercise, exercises, sections
from sslref.publish import vendor, widgets

_REVEAL = "reveal.js"
# nbconvert's template with what it loads from other hosts replaced: formulas are set, no widget is left
_TEMPLATE = """
{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock html_head_js -%}
{%- block jupyter_widgets -%}{%- endblock jupyter_widgets -%}
{%- block html_head_js_mathjax -%}<link rel="stylesheet" href="files/katex/katex.min.css">{%- endblock -%}
{%- block html_head_css -%}
<link rel="stylesheet" href="files/sslref.css"><link rel="stylesheet" href="files/slides.css">
{%- endblock html_head_css -%}
{%- block footer_js -%}
<script src="files/reveal.js/dist/reveal.js"></script>
<script src="files/reveal.js/plugin/notes/notes.js"></script>
<script src="files/book.js"></script>
<script>Reveal.initialize({hash: true, width: 1120, height: 700, margin: 0.04, slideNumber: "c/t",
  plugins: [RevealNotes], keyboardCondition: event => event?.target?.tagName !== "INPUT"});</script>
{%- endblock footer_js -%}
"""
_STYLE = """
.reveal { --r-heading-text-transform: none; --r-main-font: system-ui, sans-serif;
  --r-heading-font: system-ui, sans-serif;
  --r-main-font-size: 28px; --r-heading1-size: 1.9em; --r-heading2-size: 1.4em; --r-heading3-size: 1.2em; }
.reveal .slides { text-align: left; }
.reveal section :is(.jp-Cell, .jp-OutputArea-child, .jp-OutputArea-output) { display: block; padding: 0; margin: 0; }
.reveal .jp-InputPrompt, .reveal .jp-OutputPrompt { display: none; }
.reveal .jp-OutputArea-output, .reveal .jp-RenderedHTMLCommon { width: 100%; font-size: 1em; overflow: visible; }
.reveal pre, .reveal pre code { font-size: 15px; line-height: 1.35; max-height: 520px; overflow: auto; }
.reveal pre { width: 100%; padding: .6em; background: #f6f7f8; box-shadow: none; }
.reveal .sslref-figure > svg, .reveal .sslref-figure > img, .reveal .sslref-frame > svg, .reveal .sslref-frame > img {
  width: auto; max-width: 100%; height: 400px; max-height: 400px; margin: 0 auto; }
.reveal .sslref-figure figcaption, .reveal .sslref-slider .sslref-caption { font-size: 18px; max-width: none; }
.reveal .sslref-table, .reveal .sslref-verdict, .reveal .sslref-frame > p { font-size: 20px; }
.reveal pre + p, .reveal p:has(+ .highlight) { font-size: 18px; }
.reveal .sslref-verdict:has(figure) { display: grid; grid-template-columns: 1fr 1fr; column-gap: 1em; }
.reveal .sslref-verdict > * { grid-column: 1 / -1; }
.reveal .sslref-verdict > .sslref-figure:not(:only-of-type) { grid-column: auto; }
.reveal .sslref-verdict > .sslref-figure > svg { width: 100%; height: auto; max-height: 300px; }
.reveal .sslref-verdict p { margin: .3em 0; }
.reveal .sslref-range { font-size: 20px; }
.reveal .sslref-range input { width: 60%; margin-left: 1em; }
.reveal .sslref-frame > svg, .reveal .sslref-frame > img { height: 360px !important; }
"""


class _Deck:
    """Cells of the slides, with the formulas taken out until the pages are made."""

    def __init__(self, numbers: dict[str, int]):
        self.cells: list[dict] = []
        self.formulas: list[tuple[str, bool]] = []
        self.numbers = numbers

    def text(self, source: str) -> str:
        def hold(formula: str, display: bool) -> str:
            self.formulas.append((formula.strip(), display))
            mark = f"katexformula{len(self.formulas) - 1}x"
            return f"\n\n{mark}\n\n" if display else mark

        return tex.each(plain.markdown(source, self.numbers), hold)

    def slide(self, kind: str, source: str = "", outputs: list[dict] = (), notes: str = "") -> None:
        show = {"slideshow": {"slide_type": kind}}
        self.cells.append({"cell_type": "markdown", "metadata": show, "source": self.text(source)})
        if outputs:
            outputs = [self._output(o) for o in outputs]
            self.cells.append(
                {"cell_type": "code", "metadata": {}, "source": "", "outputs": outputs, "execution_count": None}
            )
        if notes.strip():
            show = {"slideshow": {"slide_type": "notes"}}
            self.cells.append({"cell_type": "markdown", "metadata": show, "source": self.text(notes)})

    def _output(self, output: dict) -> dict:
        data = {k: "".join(v) for k, v in output["data"].items() if k in ("text/html", "text/markdown")}
        if "text/markdown" in data:
            data["text/markdown"] = self.text(data["text/markdown"])
        return {"output_type": "display_data", "metadata": {}, "data": data}

    def page(self, text: str) -> str:
        made = tex.render(self.formulas)
        return re.sub(r"katexformula(\d+)x", lambda m: made[int(m[1])], text)


def _figures(cells: list[dict], *kinds: str) -> list[dict]:
    """Outputs that hold a figure of `sslref.show`, or what else is asked for."""
    marks = [f'class="sslref-{kind}' for kind in kinds or ("figure",)]
    outputs = [o for c in cells for o in c.get("outputs", ())]
    return [o for o in outputs if any(m in "".join(o.get("data", {}).get("text/html", "")) for m in marks)]


def _listings(cell: dict) -> list[dict]:
    """What `show.source` showed, a function each."""
    texts = ("".join(o.get("data", {}).get("text/markdown", "")) for o in cell.get("outputs", ()))
    blocks = (b for text in texts if "```python" in text for b in re.split(r"(?m)^(?=`[^`\n]+`, line \d+$)", text))
    return [{"data": {"text/markdown": block}} for block in blocks if block.strip()]


def _verdicts(cells: list[dict]) -> list[dict]:
    """What `show.evidence` showed, a claim each, and the figures beside it."""
    texts = ("".join(o["data"]["text/html"]) for o in _figures(cells, "figure", "verdict"))
    blocks = (block for text in texts for block in re.split(r'(?=<div class="sslref-verdict")', text))
    return [{"data": {"text/html": block}} for block in blocks if block.strip()]


def _prose(cells: list[dict]) -> str:
    return "\n\n".join(c["source"] for c in cells if c["cell_type"] == "markdown")


def _method(deck: _Deck, cells: list[dict]) -> None:
    """Equations under the heading or the bold words before them; the functions that compute them on the next slides."""
    title, first = "The method", True
    for cell in cells:
        if cell["cell_type"] == "markdown":
            for part in re.split(r"(?m)^(?=### |\*\*)", cell["source"]):
                heading = re.match(r"### (.+)|\*\*([^*]+)\*\*", part.strip())
                title = " ".join(next(filter(None, heading.groups())).split()).rstrip(".") if heading else title
                equations = re.findall(r"(?ms)^```\{math\}.*?^```|^\$\$.*?\$\$", part)
                if equations:
                    deck.slide("slide" if first else "subslide", "\n\n".join((f"## {title}", *equations)), notes=part)
                    first = False
        for listing in _listings(cell):
            deck.slide("slide" if first else "subslide", "", [listing])
            first = False


def _pitfalls(deck: _Deck, cells: list[dict]) -> None:
    """A slide each: its first sentence and what its cell printed; the rest is for the speaker."""
    leads = [" ".join(lead.split()) for lead in re.findall(r"(?ms)^\*\*(.+?)\*\*", _prose(cells))]
    deck.slide("slide", "\n".join(("## Pitfalls\n", *(f"- {lead}" for lead in leads))))
    notes, lead, outputs = "", "", []

    def end() -> None:
        if lead:
            deck.slide("subslide", f"### {lead}", outputs, notes)

    for cell in cells:
        if cell["cell_type"] != "markdown":
            said = [o for o in cell.get("outputs", ()) if {"text/html", "text/markdown"} & set(o.get("data", {}))]
            outputs = [*outputs, *said]
            continue
        for part in re.split(r"(?m)^(?=\*\*)", cell["source"]):
            if found := re.match(r"\*\*(.+?)\*\*", part, re.DOTALL):
                end()
                lead, notes, outputs = " ".join(found[1].split()), part, []
            else:
                notes += f"\n\n{part}"
    end()


def deck(cells: list[dict], prefix: str, *, executed: bool) -> _Deck:
    """The slides of a chapter.

    Args:
        cells: of the chapter, sources as text and widgets as HTML.
        prefix: the chapter's slug, which `sslref book --papers` takes.
        executed: whether the cells have outputs; without, a slide says how to get them.
    """
    made, parts = _Deck(plain.equation_numbers(cells)), sections(cells)
    opening = parts[""]
    title, _, rest = _prose(opening).partition("\n")
    people, _, rest = rest.strip().partition("\n\n")
    made.slide("slide", f"{title}\n\n{people}", notes=rest)
    if not executed:
        note = f"Figures, listings and results are missing. `sslref book --papers {prefix}` executes the chapter; then "
        made.slide("subslide", f"{note}build the course again.")
    for figure in _figures(opening):
        made.slide("subslide", "", [figure])
    for name, most in (("The idea", 1), ("The problem", 9)):
        here = parts.get(name, [])
        found = _figures(here)[:most]
        made.slide("slide", f"## {name}", found[:1], _prose(here))
        for figure in found[1:]:
            made.slide("subslide", "", [figure])
    _method(made, parts.get("The method", []))
    here = parts.get("Look inside", [])
    for i, slider in enumerate(_figures(here, "slider")):
        made.slide("subslide" if i else "slide", "## Look inside", [slider], "" if i else _prose(here))
    here = parts.get("Does the claim hold?", [])
    evidence = _verdicts(here)
    made.slide("slide", "## Does the claim hold?", evidence[:1], _prose(here))
    for output in evidence[1:]:
        made.slide("subslide", "", [output])
    _pitfalls(made, parts.get("Pitfalls", []))
    work = "\n".join(_line(e) for e in exercises(cells).values())
    made.slide("slide", f"## Exercises\n\n{work}")
    return made


def _line(e: Exercise) -> str:
    return f"{e.number}. {e.title} ({e.time}, {e.worth})"


def write(slug: str, notebook: dict[str, Any], target: Path, *, executed: bool) -> None:
    """Write `target`, a page that needs `files/` next to it, as `bring` makes it.

    Args:
        slug: the chapter.
        notebook: its executed copy, or the notebook as it is.
        target: the page.
        executed: whether it was executed.
    """
    import nbformat
    from nbconvert.exporters import SlidesExporter

    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    widgets.flatten(notebook, slug.replace("_", "-"))
    made = deck(notebook["cells"], slug, executed=executed)
    cells = [nbformat.from_dict(cell | {"id": f"slide-{i}"}) for i, cell in enumerate(made.cells)]
    about = {"title": html.escape(registry.get(slug).title), "language_info": {"name": "python"}}
    source = nbformat.v4.new_notebook(cells=cells, metadata=about)
    exporter = SlidesExporter(
        raw_template=_TEMPLATE,
        reveal_url_prefix=f"files/{_REVEAL}",
        reveal_theme="white",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    text, _ = exporter.from_notebook_node(source)
    target.write_text(made.page(text), encoding="utf-8")


def bring(folder: Path) -> None:
    """Write what the slides load into `folder`. Raises VendorError where a package is not to be had."""
    root = registry.root()
    kept = root / "_build" / "vendor"
    packages = vendor.fetch(kept) | vendor.fetch(kept, "slides")
    shutil.copytree(packages[_REVEAL], folder / _REVEAL)
    theme = folder / _REVEAL / "dist" / "theme" / "white.css"
    theme.write_text(re.sub(r"@import [^;]*;", "", theme.read_text(encoding="utf-8")), encoding="utf-8")
    vendor.katex_css(packages["katex"], folder / "katex")
    shutil.copy(Path(__file__).parents[1] / "show" / "style.css", folder / "sslref.css")
    shutil.copy(root / "book" / "_static" / "book.js", folder)
    (folder / "slides.css").write_text(_STYLE.lstrip(), encoding="utf-8")

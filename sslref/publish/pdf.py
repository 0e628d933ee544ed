"""The whole book as one PDF: every page of the built site in one document, printed by Chromium.

Bookmarks and links inside the book work in it, formulas and drawings are vectors. Folded code is left out, for its
result is shown; every other fold is open, and a slider shows the frame it stands on. The API reference stays on the
web.
"""

import html
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import yaml

_LEFT_OUT = ("api/",)  # a reference to be searched, not read
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Runs in each page: its article as it stands alone on paper, and its title.
_ARTICLE = """([page, pages]) => {
  const article = document.querySelector("article.bd-article");
  const here = location.href.split(/[?#]/)[0], root = here.slice(0, -page.length);
  const name = (file, id) => `${file.replace(/[^\\w]/g, "-")}--${id}`;
  const drop = "[hidden], .headerlink, .sslref-range, .only-dark, script, style, button, template, .d-print-none";
  article.querySelectorAll(drop).forEach((e) => e.remove());
  for (const fold of article.querySelectorAll("details")) {
    if (/^\\s*Show the code/.test(fold.querySelector("summary")?.textContent ?? "")) fold.remove();
    else fold.open = true;
  }
  for (const image of article.querySelectorAll("img")) {
    image.src = image.src;
    image.loading = "eager";
  }
  for (const link of article.querySelectorAll("a[href]")) {
    const [file, id] = link.href.split("#"), target = file.split("?")[0].replace(root, "");
    if (pages.includes(target)) link.setAttribute("href", "#" + name(target, decodeURIComponent(id ?? "")));
    else if (link.href.startsWith("file:")) link.removeAttribute("href");
  }
  const renamed = (text) => text.replace(/(url\\(['"]?#)([^'")]+)/g, (_, start, id) => start + name(page, id));
  for (const e of article.querySelectorAll("*")) {
    if (e.id) e.id = name(page, e.id);
    const inside = e.closest("svg");
    for (const { name: key, value } of inside ? [...e.attributes] : []) {
      if (/href$/.test(key) && value.startsWith("#")) e.setAttribute(key, "#" + name(page, value.slice(1)));
      else if (value.includes("url(")) e.setAttribute(key, renamed(value));
    }
  }
  const title = article.querySelector("h1")?.cloneNode(true);
  const section = `<section class="print-page" id="${name(page, "")}">${article.innerHTML}</section>`;
  const sheets = [...document.querySelectorAll('link[rel="stylesheet"]')].map((link) => link.href);
  return [title?.textContent.trim() ?? page, section, sheets];
}"""


class PrintError(RuntimeError):
    """The book could not be printed: no browser, or no built site."""


def chromium() -> str:
    """Path of Chromium. Raises PrintError without one."""
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        raise PrintError(f"pdf: expected Chromium on PATH as {', '.join(_BROWSERS)}, found none")
    return found


def ready() -> None:
    """Raises PrintError where something that printing needs is missing."""
    missing = [name for name in ("playwright", "pypdf") if find_spec(name) is None]
    if missing:
        raise PrintError(
            f"pdf: needs the Python packages playwright and pypdf, found no {missing[0]}: pip install 'sslref[pdf]'"
        )
    chromium()


def order(toc: Path) -> list[tuple[str, int]]:
    """Pages of the book in order, from its table of contents: name below the site, and how deep it stands."""

    def walk(entry: dict, depth: int) -> Iterator[tuple[str, int]]:
        if "file" in entry and not entry["file"].startswith(_LEFT_OUT):
            yield f"{entry['file']}.html", depth
        for below in entry.get("sections", ()):
            yield from walk(below, depth + 1)

    contents = yaml.safe_load(toc.read_text(encoding="utf-8"))
    return [page for part in contents["parts"] for entry in part["chapters"] for page in walk(entry, 0)]


@contextmanager
def _browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


def _front(titles: list[tuple[str, int, str]], numbers: dict[str, int]) -> str:
    """Title page and contents; without numbers a place is kept for each."""
    rows = "".join(
        f'<li class="depth-{depth}"><a href="#{page}"><span>{html.escape(title)}</span></a>'
        f"<b>{numbers.get(page, 0):d}</b></li>"
        for page, depth, title in titles
    )
    return (
        '<section class="print-title"><h1>Self-supervised learning, paper by paper</h1>'
        "<p>Each chapter takes one paper, shows the idea, builds it in a few lines of PyTorch, and tests its claim. "
        "The sliders of the web edition stand still here, each at one frame.</p></section>"
        f'<nav class="print-contents"><h2>Contents</h2><ol>{rows}</ol></nav>'
    )


def _print(browser, sheets: Iterable[str], kind: str, body: str, folder: Path) -> Path:
    """One document as PDF."""
    source, target = folder / f"{kind}.html", folder / f"{kind}.pdf"
    links = "".join(f'<link rel="stylesheet" href="{sheet}">' for sheet in sheets)
    if kind == "numbers":  # the book has its own at the foot of the page
        links += "<style>@page { @bottom-center { content: none } }</style>"
    source.write_text(
        f'<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        f"<title>Self-supervised learning, paper by paper</title>{links}</head>"
        f'<body class="book-print print-{kind}"><article class="bd-article">{body}</article></body></html>',
        encoding="utf-8",
    )
    page = browser.new_page()
    page.set_default_timeout(0)
    page.goto(source.as_uri(), wait_until="load")
    page.evaluate("document.fonts.ready.then(() => true)")
    page.pdf(path=target, prefer_css_page_size=True, print_background=True, outline=kind == "book", tagged=True)
    page.close()
    return target


def pdf(
    site: Path, toc: Path, target: Path, *, only: Iterable[str] = (), progress: Callable[[str], None] = print
) -> int:
    """Print the built site.

    Args:
        site: folder of the built book.
        toc: its `_toc.yml`.
        target: the file to write; a last good one stays until the new one is whole.
        only: pages to print, "glossary.html"; default: all but the API reference.
        progress: receives a line for each step.

    Returns:
        Pages of paper.

    Raises:
        PrintError: no Chromium, or no such page in the site.
    """
    ready()
    from pypdf import PdfReader, PdfWriter

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it counts Chromium's objects otherwise than Chromium
    wanted = [(page, depth) for page, depth in order(toc) if not only or page in set(only)]
    missing = [page for page, _ in wanted if not (site / page).is_file()] + sorted(set(only) - {p for p, _ in wanted})
    if missing or not wanted:
        raise PrintError(
            f"pdf: expected {', '.join(missing) or 'pages'} in {site.name}, found none; build the book first"
        )
    names = [page for page, _ in wanted]
    with _browser() as browser, tempfile.TemporaryDirectory() as temporary:
        titles, articles, sheets, folder = [], [], {}, Path(temporary)
        reader = browser.new_page()
        for page, depth in wanted:
            reader.goto((site.resolve() / page).as_uri(), wait_until="domcontentloaded")
            title, article, used = reader.evaluate(_ARTICLE, [page, names])
            titles.append((f"{_slug(page)}--", depth, title))
            articles.append(article)
            sheets |= dict.fromkeys(used)
        reader.close()
        progress(f"pdf: printing {len(wanted)} pages of the site")
        body = _print(browser, sheets, "book", _front(titles, {}) + "".join(articles), folder)
        book = PdfReader(body)
        ends = book.named_destinations.items()
        places = {name.removeprefix("/"): book.get_destination_page_number(end) + 1 for name, end in ends}
        numbers = {page: places[page] for page, _, _ in titles if page in places}
        numbered = PdfReader(_print(browser, sheets, "numbers", _front(titles, numbers), folder))
        writer = PdfWriter(clone_from=book)
        for paper, over in zip(writer.pages, numbered.pages, strict=False):
            paper.merge_page(over)
        writer.add_metadata({"/Title": "Self-supervised learning, paper by paper"})
        part = target.with_name(f"{target.name}.part")
        writer.write(part)
        part.replace(target)
        return len(book.pages)


def _slug(page: str) -> str:
    return "".join(c if c.isalnum() or c == "_" else "-" for c in page)

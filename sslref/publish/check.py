"""What every built page must keep: written alternative text, live links, no other host, a bounded weight."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LIMIT = 2_000_000  # bytes of a page with its images
_LOADS = {("link", "href"), ("script", "src"), ("img", "src"), ("source", "src"), ("video", "src"), ("audio", "src"),
          ("iframe", "src"), ("object", "data"), ("embed", "src"), ("image", "href"), ("use", "href")}  # fmt: skip
_FILE_NAME = re.compile(r"[\w./%-]+\.(png|jpe?g|svg|webp|gif|pdf)", re.IGNORECASE)
_ELSEWHERE = re.compile(r"(?:[a-z]+:)?//", re.IGNORECASE)


@dataclass
class Page(HTMLParser):
    """What a page says of itself, to a parser."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()
        self._drawing: dict | None = None  # the open <svg role="img"> that has no label yet
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list) -> None:
        a = {k: v or "" for k, v in attributes}
        self.ids |= {a[k] for k in ("id", "name") if k in a}
        if tag == "a" and "href" in a:
            self.links.append(a["href"])
        preload = tag == "link" and a.get("rel") in (
            "next",
            "prev",
            "canonical",
            "search",
            "index",
            "author",
            "license",
        )
        self.loads += [v for k, v in a.items() if (tag, k.removeprefix("xlink:")) in _LOADS and not preload]
        self.loads += re.findall(r"url\(['\"]?([^'\")]+)", a.get("style", ""))
        if tag == "img":
            self.images.append(a.get("src", ""))
            self._check(a.get("alt"), a.get("src", ""))
        elif tag == "svg" and a.get("role") == "img":
            if not (a.get("aria-label") or a.get("aria-labelledby")):
                self._drawing = a
        elif tag == "title" and self._drawing is not None:
            self._drawing = None
        elif "katex-error" in a.get("class", ""):
            self.problems.append(f"formula that KaTeX cannot set: {a.get('title', '')}")

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag: str) -> None:
        if tag == "svg" and self._drawing is not None:
            self.problems.append(f"drawing without alternative text: svg {self._drawing.get('id', '')}".rstrip())
            self._drawing = None

    def _check(self, alt: str | None, source: str) -> None:
        alt = " ".join((alt or "").split())
        shown = source if len(source) < 80 else source[:40] + "…"
        if not alt:
            self.problems.append(f"image without alternative text: {shown}")
        elif _FILE_NAME.fullmatch(alt):
            self.problems.append(f"image with a file name as alternative text: {alt!r}")


def _target(page: Page, link: str) -> tuple[Path, str]:
    parts = urlsplit(link)
    path = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path.resolve()
    return path, unquote(parts.fragment)


def weight(page: Page) -> int:
    """Bytes of the page and of the images it shows."""
    shown = {_target(page, s)[0] for s in page.images if not urlsplit(s).scheme}
    return page.path.stat().st_size + sum(p.stat().st_size for p in shown if p.is_file())


def check(site: Path) -> tuple[dict[str, int], list[str]]:
    """Read every page of a built site.

    Returns:
        page (path below the site) -> bytes with its images, and the problems found, each with its page.
    """
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    weights, problems = {}, []
    for page in pages.values():
        name = page.path.relative_to(site).as_posix()
        weights[name] = weight(page)
        found = [*page.problems, *_dead(page, pages)]
        if weights[name] > LIMIT:
            found.append(
                f"the page weighs {weights[name] / 1e6:.2f} MB with its images, the limit is {LIMIT / 1e6:.0f} MB"
            )
        problems += [f"{name}: {problem}" for problem in dict.fromkeys(found)]
    for sheet in sorted(site.rglob("*.css")):
        for url in re.findall(r"""(?:url\(|@import)\s*['"]?([^'")\s;]+)""", sheet.read_text(encoding="utf-8")):
            if _ELSEWHERE.match(url):
                problems.append(f"{sheet.relative_to(site)}: loads from another host: {url}")
            elif not url.startswith(("data:", "#")) and not (sheet.parent / urlsplit(url).path).is_file():
                problems.append(f"{sheet.relative_to(site)}: loads a missing file: {url}")
    return weights, problems


def _dead(page: Page, pages: dict[Path, Page]) -> Iterator[str]:
    for link in page.loads:
        if _ELSEWHERE.match(link):
            yield f"loads from another host: {link}"
        elif not link.startswith(("data:", "#")) and not _target(page, link)[0].is_file():
            yield f"loads a missing file: {link}"
    for link in page.links:
        if urlsplit(link).scheme or link.startswith("//"):
            continue
        path, fragment = _target(page, link)
        if path.is_dir():
            path /= "index.html"
        if not path.is_file():
            yield f"dead link: {link}"
        elif fragment and path in pages and fragment not in pages[path].ids:
            yield f"dead link: {link} (no such place on that page)"

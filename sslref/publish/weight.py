"""What a page costs a reader to load: gzip of the page and of every file that it names."""

import functools
import gzip
import statistics
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sslref.publish import check

LIMIT = 1_000_000  # bytes of a median chapter


@functools.cache
def _packed(path: Path, _changed: int) -> int:
    """Bytes as a server sends them: pictures and fonts are packed already."""
    raw = path.read_bytes()
    return len(raw) if path.suffix in (".woff2", ".webp", ".png", ".jpg") else len(gzip.compress(raw, mtime=0))


def _size(path: Path) -> int:
    return _packed(path, path.stat().st_mtime_ns)


def transfer(site: Path, page: str) -> int:
    """Bytes that a first visit to a page transfers, with pictures further down and without fonts.

    Args:
        site: folder of the built book.
        page: name of the page below it.
    """
    found = check.Page(site / page)
    files = {(found.path.parent / unquote(urlsplit(link).path)).resolve() for link in found.loads if ":" not in link}
    return sum(map(_size, {found.path.resolve(), *(f for f in files if f.is_file())}))


def report(site: Path, chapters: Iterable[str]) -> dict:
    """Weights of all pages, for `_build/site.json`.

    Args:
        site: folder of the built book.
        chapters: pages whose median is held under `LIMIT`.

    Returns:
        `pages` (name -> bytes), `chapters_median`, `heaviest` (name), `total` (bytes of all files, unpacked).
    """
    names = sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html") if "_static" not in p.parts)
    pages = {name: transfer(site, name) for name in names}
    return {
        "pages": pages,
        "chapters_median": round(statistics.median([pages[c] for c in chapters] or [0])),
        "heaviest": max(pages, key=pages.get),
        "total": sum(p.stat().st_size for p in site.rglob("*") if p.is_file()),
    }


def line(found: dict) -> str:
    """The report in one line."""
    heaviest = found["heaviest"]
    return (
        f"book: {len(found['pages'])} pages, {found['total'] / 1e6:.0f} MB on disk; a median chapter transfers "
        f"{found['chapters_median'] / 1e3:.0f} kB, the heaviest page "
        f"{found['pages'][heaviest] / 1e3:.0f} kB ({heaviest})"
    )

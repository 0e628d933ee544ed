"""Reading paths: chapters in an order for one purpose, from `book/paths.yml`."""

import html
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from sslref import registry


@dataclass(frozen=True)
class ReadingPath:
    """An order of chapters."""

    name: str  # short, stands in addresses: ?path=seminar
    title: str
    whom: str  # for whom it is, a sentence
    steps: tuple[tuple[str, str], ...]  # (chapter or page, why it stands there)

    @property
    def slugs(self) -> list[str]:
        return [slug for slug, _ in self.steps]

    @property
    def minutes(self) -> int:
        """Reading time of the chapters; pages about several papers have none on record."""
        return sum(registry.papers()[slug].minutes for slug in self.slugs if slug in registry.papers())


def file() -> Path:
    """Where the paths are written down."""
    return registry.root() / "book" / "paths.yml"


def read(known: Collection[str]) -> list[ReadingPath]:
    """The reading paths in the order of their file.

    Args:
        known: chapters and pages that exist.

    Raises:
        ValueError: the file is not of its form, names what does not exist or names it twice, or places a chapter
            before one that it needs. The message names the path.
    """
    import yaml

    if not file().exists():
        return []
    try:
        found = yaml.safe_load(file().read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"paths.yml: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"paths.yml: expected paths by their names, got {type(found).__name__}")
    return [_path(str(name), entry, known) for name, entry in found.items()]


def _path(name: str, entry: object, known: Collection[str]) -> ReadingPath:
    def wrong(said: str) -> ValueError:
        return ValueError(f"paths.yml: {name}: {said}")

    if not name.isidentifier():
        raise wrong("expected letters, digits and underscores for a name")
    if not isinstance(entry, dict) or set(entry) != {"title", "for", "chapters"}:
        got = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        raise wrong(f"expected title, for and chapters, got {got}")
    if not (isinstance(entry["title"], str) and isinstance(entry["for"], str)):
        raise wrong("expected text for title and for")
    if not entry["chapters"] or not isinstance(entry["chapters"], list):
        raise wrong("chapters: expected a list")
    steps: list[tuple[str, str]] = []
    for step in entry["chapters"]:
        if not (isinstance(step, dict) and len(step) == 1 and all(isinstance(v, str) and v for v in step.values())):
            raise wrong(f"expected lines of the form `- slug: why`, got {step!r}")
        ((slug, why),) = step.items()
        if slug not in known:
            raise wrong(f"there is no chapter {slug!r}; there are {', '.join(known)}")
        before = [s for s, _ in steps]
        if slug in before:
            raise wrong(f"{slug} stands there twice")
        needs = registry.papers()[slug].needs if slug in registry.papers() else ()
        late = [n for n in needs if n in registry.papers() and n not in before]
        if late:
            raise wrong(f"{slug} needs {' and '.join(late)}, which must come before it")
        steps.append((slug, why))
    return ReadingPath(name, entry["title"], entry["for"], tuple(steps))


def hours(minutes: int) -> str:
    """A reading time in words, to the half hour."""
    halves = max(1, round(minutes / 30))
    said = {1: "half an hour", 2: "an hour"}.get(halves, f"{halves // 2}{'½' if halves % 2 else ''} hours")
    return f"about {said}"


def link(path: ReadingPath, slug: str, up: str = "") -> str:
    """Address of a chapter on a path; `up` leads from the page to the root of the book."""
    return f"{up}{registry.part(slug)}/{slug}.html?path={path.name}"


def _extent(path: ReadingPath) -> str:
    return f"{len(path.steps)} {'chapter' if len(path.steps) == 1 else 'chapters'}, {hours(path.minutes)}"


def page(paths: list[ReadingPath], title: Callable[[str], str]) -> str:
    """The body of the page about the paths, as Markdown. `title` gives the title of a chapter."""
    blocks = []
    for path in paths:
        steps = "".join(
            f'<li><a href="{link(path, slug)}">{html.escape(title(slug))}</a><span>{html.escape(why)}</span></li>'
            for slug, why in path.steps
        )
        blocks.append(
            f"(path-{path.name})=\n## {path.title}\n\n{path.whom} {_extent(path)} to read.\n\n"
            f'<ol class="book-steps">{steps}</ol>\n'
        )
    return "\n".join(blocks) or "There are no paths yet.\n"


def cards(paths: list[ReadingPath]) -> str:
    """The paths as links for the landing page, as HTML."""
    links = (
        f'<a href="paths.html#path-{path.name.replace("_", "-")}"><b>{html.escape(path.title)}</b>'
        f"<span>{html.escape(path.whom)}</span><small>{_extent(path)}</small></a>"
        for path in paths
    )
    return f'<div class="book-doors book-paths">{"".join(links)}</div>\n'

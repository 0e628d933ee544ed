"""Few and light files: the style sheets of a page become one, its scripts become one, and what none needs is dropped.

A page of the theme asks for 25 files; after this it asks for three, and for nothing that it does not use.
"""

import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

_SHEET = re.compile(r'[ \t]*<link\b[^>]*\brel="stylesheet"[^>]*>\n?')
_SCRIPT = re.compile(r'[ \t]*<script\b[^>]*\bsrc="([^"]*_static/[^"]*)"[^>]*></script>\n?')
_WAITS_FOR_NONE = re.compile(r"<script((?![^>]*\b(?:defer|async)\b)[^>]*\bsrc=)")
_INLINED = re.compile(r'<script\b[^>]*\bsrc="[^"]*_static/documentation_options\.js[^"]*"[^>]*></script>')
_URL = re.compile(r"""url\((['"]?)(?!data:|#|https?:|//)([^'")]+)\1\)""")


def _path(page: Path, link: str) -> Path:
    return (page.parent / urlsplit(link).path).resolve()


def _sheet(static: Path, paths: list[Path]) -> str:
    """Style sheets joined in order, with what they import, without comments, their links seen from `_static`."""

    def read(path: Path) -> str:
        def moved(match: re.Match) -> str:
            parts = urlsplit(match[2])
            target = (path.parent / parts.path).resolve().relative_to(static).as_posix()
            return f'url("{target}{"#" + parts.fragment if parts.fragment else ""}")'

        text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.S).removeprefix('@charset "UTF-8";')
        text = re.sub(r'@import\s+"([^":]+)";', lambda m: read((path.parent / m[1]).resolve()), _URL.sub(moved, text))
        return re.sub(r"\n\s*", "\n", text).strip()

    return "\n".join(map(read, paths))


def _script(static: Path, paths: list[Path]) -> str:
    # Sphinx's scripts wait until the page is read. Deferred ones run when it just has been and would start at once,
    # each before those that follow it here.
    early, late = 'document.readyState !== "loading"', 'document.readyState === "complete"'
    texts = (path.read_text(encoding="utf-8").replace(early, late) for path in paths)
    return "\n;\n".join(re.sub(r"(?m)^//# sourceMappingURL=.*$", "", text).strip() for text in texts)


def bundle(site: Path) -> None:
    """Rewrite every page of a freshly built site, then drop the files under `_static` that nothing refers to."""
    site = site.resolve()
    static = site / "_static"
    options = (static / "documentation_options.js").read_text(encoding="utf-8")
    made: dict[tuple, str] = {}

    def join(paths: list[Path], kind: str) -> str:
        key = tuple(paths)
        if key not in made:
            text = (_sheet if kind == "css" else _script)(static, paths)
            made[key] = f"book-{hashlib.sha256(text.encode()).hexdigest()[:10]}.{kind}"
            (static / made[key]).write_text(text, encoding="utf-8")
        return made[key]

    kept = set()
    for page in site.rglob("*.html"):
        if static in page.parents:
            continue
        text = _INLINED.sub(lambda _: f"<script>{options}</script>", page.read_text(encoding="utf-8"))
        top = "../" * (len(page.relative_to(site).parts) - 1) + "_static/"
        sheets = [re.search(r'href="([^"]*)"', tag)[1] for tag in _SHEET.findall(text)]
        scripts = _SCRIPT.findall(text)
        css = join(list(dict.fromkeys(_path(page, s) for s in sheets)), "css")
        js = join(list(dict.fromkeys(_path(page, s) for s in scripts)), "js")
        links = f'    <link rel="stylesheet" href="{top}{css}" />\n    <script defer src="{top}{js}"></script>\n'
        head, rest = _SCRIPT.sub("", _SHEET.sub("", text)).split("</title>", 1)
        rest = _WAITS_FOR_NONE.sub(r"<script defer\1", rest)  # the search index calls what the bundle defines
        page.write_text(f"{head}</title>\n{links}{rest}", encoding="utf-8")
        kept |= {css, js} | set(re.findall(r"_static/([^\"'?#\s]+)", rest))
    for name in [name for name in kept if name.endswith(".css")]:
        kept |= {url for _, url in _URL.findall((static / name).read_text(encoding="utf-8"))}
    for path in sorted(static.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif urlsplit(path.relative_to(static).as_posix()).path not in {urlsplit(name).path for name in kept}:
            path.unlink()

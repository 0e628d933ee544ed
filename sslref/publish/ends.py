"""The head and the foot of a chapter's page: what it costs and needs; how to run, download and cite it.

They are made when the book is staged, and `extension.py` puts them into the pages, so that no chapter is executed
again for them.
"""

import html
import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from sslref import registry
from sslref.publish import execute, pages, paths

FILE = "_generated/ends.json"
COLAB = "colab"  # branch that holds the chapters as Colab opens them


# ------------------------------------------------------------------------------------------------- the repository


@dataclass(frozen=True)
class Repository:
    """Where the book's sources are published."""

    url: str  # without a slash or .git at the end
    branch: str

    @property
    def _named(self) -> str:
        return urlsplit(self.url).path.strip("/")

    @property
    def on_github(self) -> bool:
        return urlsplit(self.url).netloc == "github.com"

    def binder(self, path: str) -> str:
        """Address that starts JupyterLab on Binder with a file of the repository open."""
        known = {"github.com": f"gh/{self._named}", "gitlab.com": f"gl/{quote(self._named, safe='')}"}
        where = known.get(urlsplit(self.url).netloc, f"git/{quote(self.url, safe='')}")
        return f"https://mybinder.org/v2/{where}/{quote(self.branch, safe='')}?urlpath=lab/tree/{quote(path)}"

    def colab(self, path: str) -> str:
        """Address that opens a notebook of the branch `colab` in Colab, which reads GitHub only."""
        return f"https://colab.research.google.com/github/{self._named}/blob/{COLAB}/{quote(path)}"


def repository() -> Repository | None:
    """The repository that `_config.yml` names, or None. Raises ValueError for what is no address of one."""
    named = _config().get("repository") or {}
    url, branch = str(named.get("url") or "").rstrip("/").removesuffix(".git"), str(named.get("branch") or "main")
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme != "https" or not re.fullmatch(r"/[\w.-]+(/[\w.-]+)+", parts.path) or parts.query or parts.fragment:
        raise ValueError(f"_config.yml: repository.url: expected https://host/owner/name, got {named['url']!r}")
    return Repository(url, branch)


def _config() -> dict:
    import yaml

    return yaml.safe_load((registry.root() / "_config.yml").read_text(encoding="utf-8"))


def _revision(branch: str) -> str:
    """The commit of this checkout, or the branch where it has none."""
    done = subprocess.run(
        ["git", "-C", registry.root(), "rev-parse", "--verify", "--quiet", "HEAD"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or branch


# ------------------------------------------------------------------------------------------ notebooks to take away


def executed(name: str) -> dict:
    """The executed copy of a chapter if there is one, else the notebook as it is, without papermill's notes."""
    copy = execute.kept(name)
    notebook = json.loads((copy if copy.exists() else registry.notebook(name)).read_text(encoding="utf-8"))
    notebook["metadata"].pop("papermill", None)
    for cell in notebook["cells"]:
        cell["metadata"].pop("papermill", None)
        cell["metadata"].pop("execution", None)  # times of this run would change the page
    return notebook


_SETUP = """\
# Colab has no sslref. This cell brings it, as it was when the page was made; where it is there, nothing happens.
import importlib.util
import pathlib
import subprocess
import sys

if importlib.util.find_spec("sslref") is None:
    checkout = pathlib.Path("sslref").resolve()
    if not checkout.exists():
        subprocess.run(["git", "clone", "--quiet", {url!r}, checkout], check=True)
    subprocess.run(["git", "-C", checkout, "checkout", "--quiet", {revision!r}], check=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--editable", f"{{checkout}}[notebooks]"]
    subprocess.run(install, check=True)
    sys.path.insert(0, str(checkout))
"""


def for_colab(notebook: dict, url: str, revision: str) -> dict:
    """The notebook with a first cell that brings the package at a revision, where it is missing."""
    source = _SETUP.format(url=f"{url}.git", revision=revision)
    cell = {"cell_type": "code", "id": "sslref-setup", "metadata": {}, "source": source, "outputs": []}
    return notebook | {"cells": [cell | {"execution_count": None}, *notebook["cells"]]}


def downloads(site: Path, names: Iterable[str]) -> None:
    """Put what readers take away under `_downloads`: chapters with results, modules, and chapters for Colab."""
    where = repository()
    revision = _revision(where.branch) if where and where.on_github else ""
    for name in names:
        folder = site / "_downloads" / registry.part(name)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{name}.ipynb", executed(name))
        if name in registry.papers():
            shutil.copy(_module(name), folder)
        if revision:
            plain = json.loads(registry.notebook(name).read_text(encoding="utf-8"))
            target = site / "_downloads" / COLAB / registry.part(name)
            target.mkdir(parents=True, exist_ok=True)
            _write(target / f"{name}.ipynb", for_colab(plain, where.url, revision))


def _write(path: Path, notebook: dict) -> None:
    path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _module(slug: str) -> Path:
    return Path(registry.__file__).parent / "papers" / f"{slug}.py"


# ------------------------------------------------------------------------------------------------- head


def _terms() -> dict[str, str]:
    """Terms of the glossary -> their places on its page."""
    path = registry.root() / "book" / "glossary.md"
    block = re.search(r"(?s)```\{glossary\}\n(.*?)```", path.read_text(encoding="utf-8") if path.exists() else "")
    names = re.findall(r"(?m)^(\S.*)$", block[1]) if block else ()
    return {name: "term-" + re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") for name in names}


def _data() -> dict[str, str]:
    """First words of the names of embedded data sets -> their places on the page about data."""
    from docutils.nodes import make_id

    from sslref.data import catalogue

    return {entry.name: make_id(entry.title) for entry in catalogue()}


def _link(to: str, text: str) -> str:
    return f'<a href="{html.escape(to)}">{html.escape(text)}</a>'


def need(name: str) -> str:
    """What should be read first, as a link: a chapter, or a term of the glossary (plain where it has none)."""
    if name in registry.papers():
        return _link(f"../{registry.part(name)}/{name}.html", pages._heading(name))
    if name not in _terms():
        return html.escape(name)
    return (
        f'<a class="reference internal" href="../glossary.html#{_terms()[name]}">{html.escape(name)}</a>'  # has a card
    )


def _set(name: str) -> str:
    place = _data().get(name.split()[0])
    return _link(f"../data.html#{place}", name) if place else html.escape(name)


def duration(seconds: float) -> str:
    """A measured time in words: to five seconds below 100 s, else to half a minute."""
    if seconds < 100:
        return f"about {max(5, 5 * round(seconds / 5))} seconds"
    halves = round(seconds / 30)
    return f"about {halves // 2}{'½' if halves % 2 else ''} minutes"


def _cost(name: str) -> str:
    """Time to read, measured time to run, and peak of memory, as far as they are known."""
    said = [f"{registry.get(name).minutes} minutes to read"] if name in registry.papers() else []
    record = execute._record(name)
    if record:
        gigabytes = math.ceil(record["peak_mb"] / 100) / 10
        said += [f"{duration(record['seconds'])} to run on one CPU thread", f"up to {gigabytes:.1f} GB of memory"]
    return ", ".join(said)


def _rows(name: str) -> dict[str, str]:
    """What the head says, by the name of the row."""
    paper = registry.papers().get(name)
    rows = {
        "Read first": ", ".join(map(need, paper.needs)) if paper else "",
        "Data": ", ".join(map(_set, paper.data)) if paper else "",
        "Time": _cost(name),
        "Use it": _link("#use-this-chapter", "run, download, cite"),
    }
    return {row: said for row, said in rows.items() if said}


_STRIP = re.compile(r'(?s)<div class="sslref-chapter"><dl>(.*?)</dl></div>')
_ROW = re.compile(r"(?s)<div><dt>(.*?)</dt>.*?</dd></div>")


def insert(body: str, rows: dict[str, str], above: str = "") -> str:
    """A chapter's HTML with rows in the strip of facts under its title.

    Rows of the same name that the notebook wrote give way. A page without the strip gets one below its title.

    Args:
        body: the page's article.
        rows: name -> HTML.
        above: HTML directly below the title.
    """
    made = [f"<div><dt>{name}</dt><dd>{said}</dd></div>" for name, said in rows.items()]
    strip = _STRIP.search(body)
    if strip:
        kept = [row[0] for row in _ROW.finditer(strip[1]) if row[1] not in rows]
        body = body[: strip.start(1)] + "".join([*kept[:1], *made, *kept[1:]]) + body[strip.end(1) :]
    else:
        above += f'<div class="sslref-chapter"><dl>{"".join(made)}</dl></div>'
    return body.replace("</h1>", f"</h1>{above}", 1)


# ------------------------------------------------------------------------------------------------- foot


def bibtex(key: str) -> str | None:
    """The entry of `references.bib` with this key, as it stands there."""
    text = (registry.root() / "book" / "references.bib").read_text(encoding="utf-8")
    found = re.search(rf"(?ms)^@\w+\{{{re.escape(key)},.*?^\}}", text)
    return found and found[0]


def _own_bibtex(name: str, where: Repository | None) -> str:
    """A chapter of this book, as BibTeX."""
    config = _config()
    year = re.match(r"\d{4}", str(config["copyright"]))
    entry = {
        "author": f"{{{config['author']}}}",
        "title": f"{{{_latex(pages._heading(name))}}}",
        "booktitle": _latex(config["title"]),
        "year": year[0] if year else "",
        "url": where.url if where else "",
    }
    lines = "".join(f"  {field} = {{{value}}},\n" for field, value in entry.items() if value)
    return f"@incollection{{sslref-{name.replace('_', '-')},\n{lines}}}"


def _latex(text: str) -> str:
    return re.sub(r"([&%$#_])", r"\\\1", text)


def _copyable(text: str, label: str) -> str:
    """Text that the book's copy button (of sphinx-copybutton) takes up."""
    return f'<div class="highlight" role="group" aria-label="{label}"><pre>{html.escape(text)}</pre></div>'


def _buttons(links: Iterable[str]) -> str:
    return f'<ul class="book-buttons">{"".join(f"<li>{link}</li>" for link in links)}</ul>'


def _foot(name: str, where: Repository | None) -> str:
    part = registry.part(name)
    path = f"notebooks/{part}/{name}.ipynb"
    starts = [_link(where.binder(path), "Open in Binder")] if where else []
    if where and where.on_github:
        starts.insert(0, _link(where.colab(f"{part}/{name}.ipynb"), "Open in Colab"))
    clone = f"git clone {where.url}.git sslref\ncd sslref\n" if where else ""
    checkout = "" if where else f", in a checkout of {_link('../run.html', 'the sources')}"
    takes = [(f"../_sources/{part}/{name}.ipynb", f"{name}.ipynb", "Notebook")]
    takes.append((f"../_downloads/{part}/{name}.ipynb", f"{name}-with-results.ipynb", "Notebook with results"))
    if name in registry.papers():
        takes.append((f"../_downloads/{part}/{name}.py", f"{name}.py", "Source of the module"))
    saved = (f'<a href="{to}" download="{as_}">{text}</a>' for to, as_, text in takes)
    cited = [("This chapter", _own_bibtex(name, where))]
    if name in registry.papers() and (entry := bibtex(name)):
        cited.append(("The paper", entry))
    return (
        '<section class="book-foot" id="use-this-chapter" aria-labelledby="use-title">'
        '<h2 id="use-title">Use this chapter</h2>'
        f"<h3>Run</h3>{_buttons(starts) if starts else ''}<p>On your own machine{checkout}:</p>"
        + _copyable(f"{clone}make lab LAB={path}", "Command that opens the chapter")
        + f"<h3>Download</h3>{_buttons(saved)}<h3>Cite</h3>"
        + "".join(f"<p>{what}:</p>{_copyable(text, f'BibTeX: {what.lower()}')}" for what, text in cited)
        + "</section>"
    )


def _stations(name: str, path: paths.ReadingPath) -> tuple[str, str]:
    """A line for the head and links for the foot of a chapter on a path; a script shows those of the path taken."""
    slugs = path.slugs
    i = slugs.index(name)
    overview = f"../paths.html#path-{path.name.replace('_', '-')}"
    title = html.escape(path.title)
    line = (
        f'<p class="book-path" data-path="{path.name}" hidden>On the path <a href="{overview}">{title}</a>, '
        f'{i + 1} of {len(slugs)}. <a href="{name}.html">Leave it</a>.</p>'
    )

    def step(j: int, way: str, side: str) -> str:
        inside = 0 <= j < len(slugs)
        to = paths.link(path, slugs[j], "../") if inside else overview
        what = html.escape(pages._heading(slugs[j])) if inside else "The whole path"
        said = (
            f'<div class="prev-next-info"><p class="prev-next-subtitle">{way}</p>'
            f'<p class="prev-next-title">{what}</p></div>'
        )
        icons = {"left": '<i class="fa-solid fa-angle-left"></i>', "right": '<i class="fa-solid fa-angle-right"></i>'}
        inner = icons["left"] + said if side == "left-prev" else said + icons["right"]
        return f'<a class="{side}" href="{to}">{inner}</a>'

    foot = (
        f'<nav class="book-path prev-next-area" data-path="{path.name}" aria-label="Along the path {title}" hidden>'
        f"{step(i - 1, 'Previous on the path', 'left-prev')}{step(i + 1, 'Next on the path', 'right-next')}</nav>"
    )
    return line, foot


def generate(names: list[str]) -> dict[str, str]:
    """The file from which `extension.py` takes heads and feet, by its name.

    Args:
        names: chapters and pages of the book.

    Raises:
        ValueError: `paths.yml` or the repository of `_config.yml` is not of its form.
    """
    where, found = repository(), paths.read(names)
    ends = {}
    for name in names:
        stations = [_stations(name, path) for path in found if name in path.slugs]
        ends[f"{registry.part(name)}/{name}"] = {
            "rows": _rows(name),
            "above": "".join(line for line, _ in stations),
            "foot": _foot(name, where) + "".join(foot for _, foot in stations),
        }
    return {FILE: json.dumps(ends, ensure_ascii=False, indent=1)}

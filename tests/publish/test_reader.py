"""What leads readers, without a browser: paths, head and foot of a chapter, and the ways to run it elsewhere."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from publish.toy import Checkout

from sslref import registry
from sslref.publish import ends, execute, landing, paths, stage

ROOT = registry.root()

# ------------------------------------------------------------------------------------------------- paths


def test_prerequisites_come_before_what_needs_them():
    found = {path.name: path for path in paths.read(stage.executed())}
    assert {"seminar", "semester", "dense", "graphs", "masked"} <= set(found)
    for path in found.values():
        for i, slug in enumerate(path.slugs):
            assert registry.notebook(slug).exists()
            needs = registry.papers()[slug].needs if slug in registry.papers() else ()
            assert {n for n in needs if n in registry.papers()} <= set(path.slugs[:i]), (path.name, slug)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: {title: A, for: B, chapters: [{simclrr: x}]}", "a: there is no chapter 'simclrr'; there are simclr, "),
        ("a: {title: A, for: B, chapters: [{densecl: x}, {simclr: x}]}", "a: densecl needs simclr, which must come"),
        ("a: {title: A, for: B, chapters: [{simclr: x}, {simclr: x}]}", "a: simclr stands there twice"),
        ("a: {title: A, for: B, chapters: [simclr]}", "expected lines of the form `- slug: why`, got 'simclr'"),
        ("a: {title: A, for: B, chapters: [{simclr: }]}", "expected lines of the form"),
        ("a: {title: A, for: B, chapters: []}", "a: chapters: expected a list"),
        ("a: {title: A, chapters: [{simclr: x}]}", "a: expected title, for and chapters, got title, chapters"),
        ("a: {title: 3, for: B, chapters: [{simclr: x}]}", "a: expected text for title and for"),
        ("a b: {title: A, for: B, chapters: [{simclr: x}]}", "a b: expected letters, digits and underscores"),
        ("- a", "expected paths by their names, got list"),
        ("a: [", "paths.yml: while parsing"),
    ],
)
def test_a_wrong_path_is_told_in_one_line(tmp_path, monkeypatch, text, said):
    (tmp_path / "paths.yml").write_text(text)
    monkeypatch.setattr(paths, "file", lambda: tmp_path / "paths.yml")
    with pytest.raises(ValueError, match=r"^paths\.yml: .*") as error:
        paths.read(["simclr", "densecl"])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("minutes", "said"), [(0, "half an hour"), (65, "an hour"), (85, "1½ hours")])
def test_reading_times_in_words(minutes, said):
    assert paths.hours(minutes) == f"about {said}"


# ------------------------------------------------------------------------------------------------- head


def test_every_prerequisite_is_a_link():
    for slug, paper in registry.papers().items():
        for name in paper.needs:
            link = re.match('<a [^>]*href="../', ends.need(name))
            assert link, f"{slug} needs {name}: no chapter, not in the glossary"


def test_the_head_keeps_what_it_does_not_know_better():
    strip = (
        '<h1>T</h1><p>x</p><div class="sslref-chapter"><dl><div><dt>Paper</dt><dd>P</dd></div><div><dt>Data</dt><dd>old'
        "</dd></div><div><dt>Ledger</dt><dd><ul><li>L</li></ul></dd></div></dl></div><p>Data</p>"
    )
    made = ends.insert(strip, {"Read first": "R", "Data": "new"}, "<p>path</p>")
    assert made == (
        '<h1>T</h1><p>path</p><p>x</p><div class="sslref-chapter"><dl><div><dt>Paper</dt><dd>P</dd></div><div><dt>Read '
        "first</dt><dd>R</dd></div><div><dt>Data</dt><dd>new</dd></div><div><dt>Ledger</dt><dd><ul><li>L</li></ul></dd>"
        "</div></dl></div><p>Data</p>"
    )
    alone = ends.insert("<h1>T</h1><p>x</p>", {"Time": "now"})
    assert alone == '<h1>T</h1><div class="sslref-chapter"><dl><div><dt>Time</dt><dd>now</dd></div></dl></div><p>x</p>'


def test_cost_in_words(monkeypatch):
    monkeypatch.setattr(execute, "_record", lambda name: {"seconds": 44.4, "peak_mb": 654})
    said = ends._cost("mec")
    assert said == "35 minutes to read, about 45 seconds to run on one CPU thread, up to 0.7 GB of memory"
    monkeypatch.setattr(execute, "_record", lambda name: {})
    assert ends._cost("mec") == "35 minutes to read"
    assert [ends.duration(s) for s in (0.2, 97, 106, 136)] == [
        "about 5 seconds", "about 95 seconds", "about 2 minutes", "about 2½ minutes",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------- ledger picture


def test_a_mark_points_up_when_it_speaks_for_the_claim():
    def middle(mean: float, higher: bool) -> float:
        d = SimpleNamespace(mean=mean, ci95=(mean - 1, mean + 1))
        e = SimpleNamespace(difference=d, higher_is_better=higher, verdict="supported", statement="a < b.")
        drawn = landing._mark(e, 4)
        assert "a &lt; b. Supported." in drawn
        return float(re.search(r'cy="([\d.]+)"', drawn)[1])

    half = landing._HEIGHT / 2
    assert middle(5, True) < half < middle(-5, True)
    assert middle(-5, False) < half < middle(5, False)
    assert 0 <= middle(1e9, True) < half


# ------------------------------------------------------------------------------------------------- elsewhere


@pytest.mark.parametrize(
    ("url", "binder", "colab"),
    [
        (
            "https://github.com/ada/ssl-ref.git",
            "https://mybinder.org/v2/gh/ada/ssl-ref/v1%2Fx?urlpath=lab/tree/notebooks/a/b.ipynb",
            "https://colab.research.google.com/github/ada/ssl-ref/blob/colab/a/b.ipynb",
        ),
        (
            "https://gitlab.com/ada/x/",
            "https://mybinder.org/v2/gl/ada%2Fx/v1%2Fx?urlpath=lab/tree/notebooks/a/b.ipynb",
            None,
        ),
        (
            "https://git.example.org/ada/x",
            "https://mybinder.org/v2/git/https%3A%2F%2Fgit.example.org%2Fada%2Fx/v1%2Fx?urlpath=lab/tree/notebooks/a/b.ipynb",
            None,
        ),
    ],
)
def test_addresses_of_the_services(monkeypatch, url, binder, colab):
    monkeypatch.setattr(ends, "_config", lambda: {"repository": {"url": url, "branch": "v1/x"}})
    where = ends.repository()
    assert where.binder("notebooks/a/b.ipynb") == binder
    assert (where.colab("a/b.ipynb") if where.on_github else None) == colab


@pytest.mark.parametrize("url", ["github.com/ada/x", "http://github.com/ada/x", "https://github.com/ada", "git@x:a/b"])
def test_what_is_no_address_is_told(monkeypatch, url):
    monkeypatch.setattr(ends, "_config", lambda: {"repository": {"url": url}})
    with pytest.raises(ValueError, match=rf"repository\.url: expected https://host/owner/name, got '{url}'"):
        ends.repository()


def test_without_an_address_there_is_no_service(monkeypatch):
    monkeypatch.setattr(ends, "_config", lambda: {"repository": {"url": "", "branch": "main"}})
    assert ends.repository() is None
    monkeypatch.setattr(ends, "_config", lambda: {})
    assert ends.repository() is None


def extra(name: str) -> set[str]:
    """Distributions that an extra of the package names, with those of the package itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = set()
    for line in [*project["dependencies"], *project["optional-dependencies"][name]]:
        need = Requirement(line)
        found |= set().union(*map(extra, need.extras)) if need.name == "sslref" else {need.name.replace("_", "-")}
    return found


def imported(source: str, *, everywhere: bool) -> set[str]:
    tree = ast.parse(source)
    nodes = list(ast.walk(tree) if everywhere else tree.body)
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"sslref"}


def environment(folder: Path) -> list[str]:
    """What conda is asked for."""
    found = yaml.safe_load((folder / "environment.yml").read_text())
    assert found["channels"] == ["conda-forge"]
    return found["dependencies"]


def test_binder_installs_what_the_chapters_import():
    folder = ROOT / "binder"
    conda = [Requirement(re.sub(r"(?<![=<>])=(?!=)", "==", line)) for line in environment(folder)]
    versions = {need.name: need.specifier for need in conda}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = next(iter(versions["python"])).version
    assert python in SpecifierSet(project["requires-python"])
    wanted = next(Requirement(line) for line in project["dependencies"] if line.startswith("torch"))
    assert versions["pytorch-cpu"] == wanted.specifier
    assert os.access(folder / "postBuild", os.X_OK)
    installed = re.search(r"--editable '\.\[(\w+)\]'", (folder / "postBuild").read_text())[1]
    there = extra(installed) | set(versions)
    assert "jupyterlab" in there

    come_with = {"IPython": "ipywidgets", "cycler": "matplotlib"}  # not named, since these bring them
    known = packages_distributions()
    found = set()
    for name in stage.executed():
        found |= imported(execute.code_of(json.loads(registry.notebook(name).read_text())), everywhere=True)
    for path in {path for name in stage.executed() for path in execute.rests_on(name) if path.suffix == ".py"}:
        found |= imported(path.read_text(), everywhere=False)
    assert {"torch", "matplotlib", "torch_geometric"} <= found
    for module in found:
        named = {d.replace("_", "-") for d in known[module]} | {come_with.get(module)}
        assert named & there, f"a chapter imports {module}"


@pytest.mark.parametrize("name", stage.executed()[:3])
def test_a_notebook_for_colab_is_the_notebook_with_one_cell_more(name):
    plain = json.loads(registry.notebook(name).read_text())
    made = ends.for_colab(plain, "https://github.com/ada/x", "abc")
    nbformat.validate(nbformat.from_dict(made))
    assert made["cells"][1:] == plain["cells"]
    assert made["metadata"] == plain["metadata"]
    assert "git" in made["cells"][0]["source"]


def git(folder: Path, *command: str) -> str:
    identity = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", *command], cwd=folder, env=os.environ | identity, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_setup_cell_brings_the_package_once_and_at_its_revision(tmp_path):
    """On a machine without the package, with a local repository for GitHub and a note-taker for pip."""
    origin = tmp_path / "origin.git"
    (origin / "sslref").mkdir(parents=True)
    git(origin, "init", "--quiet")
    for version in ("then", "now"):
        (origin / "sslref" / "__init__.py").write_text(f"VERSION = {version!r}\n")
        git(origin, "add", ".")
        git(origin, "commit", "--quiet", "-m", version)
    revision = git(origin, "rev-parse", "HEAD~1")
    stub, work = tmp_path / "stub", tmp_path / "work"
    stub.mkdir()
    work.mkdir()
    (stub / "pip.py").write_text("import sys; open('pip.txt', 'a').write(' '.join(sys.argv[1:]) + '\\n')")
    setup = ends.for_colab({"cells": []}, str(origin).removesuffix(".git"), revision)["cells"][0]["source"]
    (work / "cell.py").write_text(f"{setup}\n{setup}\nimport sslref; print(sslref.VERSION, sslref.__file__)")
    environment = os.environ | {"PYTHONPATH": str(stub)}
    command = [sys.executable, "-S", "cell.py"]  # -S: without the packages of this environment
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["then", str(work / "sslref" / "sslref" / "__init__.py")]
    assert (work / "pip.txt").read_text() == f"install --quiet --editable {work / 'sslref'}[notebooks]\n"
    extra("notebooks")  # it exists


def test_bibtex_of_every_paper():
    for slug, paper in registry.papers().items():
        entry = ends.bibtex(slug)
        assert entry, slug
        assert entry.count("{") == entry.count("}")
        assert f"{paper.year}" in entry or paper.arxiv in entry


# ------------------------------------------------------------------------------------------------- with a repository


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A built checkout whose configuration names a repository on GitHub, with a bare repository for origin."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "made").mkdir()
    made = Checkout(folder / "made", {"alpha": "masked", "beta": "masked"})
    config = made.root / "_config.yml"
    config.write_text(re.sub('url: ".*"', 'url: "https://github.com/ada/ssl"', config.read_text()))
    shutil.copytree(ROOT / ".ci", made.root / ".ci")
    (made.root / ".gitignore").write_text("_build/\n__pycache__/\n")
    git(folder, "init", "--quiet", "--bare", "origin.git")
    git(made.root, "init", "--quiet", "--initial-branch", "main")
    git(made.root, "remote", "add", "origin", str(folder / "origin.git"))
    git(made.root, "add", ".")
    git(made.root, "commit", "--quiet", "-m", "all")
    done = made.book()
    assert done.returncode == 0, done.stdout + done.stderr + (made.root / "_build" / "book.log").read_text()[-2000:]
    return made


@pytest.mark.slow
def test_run_buttons_lead_to_the_chapter(published):
    page = published.page("masked/alpha.html")
    links = dict(re.findall(r'<a href="([^"]*)">Open in (\w+)</a>', page))
    assert {name: to for to, name in links.items()} == {
        "Colab": "https://colab.research.google.com/github/ada/ssl/blob/colab/masked/alpha.ipynb",
        "Binder": "https://mybinder.org/v2/gh/ada/ssl/main?urlpath=lab/tree/notebooks/masked/alpha.ipynb",
    }
    assert (
        "git clone https://github.com/ada/ssl.git sslref\ncd sslref\nmake lab LAB=notebooks/masked/alpha.ipynb" in page
    )
    assert "url = {https://github.com/ada/ssl}" in page


@pytest.mark.slow
def test_along_a_path(published):
    page = published.page("masked/alpha.html")
    assert 'On the path <a href="../paths.html#path-toys">All toys</a>, 1 of 2.' in page
    assert 'class="right-next" href="../masked/beta.html?path=toys"' in page
    assert 'class="left-prev" href="../paths.html#path-toys"' in page
    assert "All toys" in published.page("index.html")


@pytest.mark.slow
def test_the_branch_for_colab(published):
    subprocess.run([published.root / ".ci" / "colab"], check=True)
    assert git(published.root, "status", "--porcelain") == ""
    git(published.root, "fetch", "--quiet", "origin", "colab")
    files = git(published.root, "ls-tree", "-r", "--name-only", "FETCH_HEAD").split()
    assert files == ["masked/alpha.ipynb", "masked/beta.ipynb"]
    opened = json.loads(git(published.root, "show", "FETCH_HEAD:masked/alpha.ipynb"))
    assert git(published.root, "rev-parse", "HEAD") in opened["cells"][0]["source"]
    assert "'https://github.com/ada/ssl.git'" in opened["cells"][0]["source"]
    assert opened["cells"][1:] == json.loads(published.notebook("alpha").read_text())["cells"]


@pytest.mark.slow
def test_a_wrong_path_leaves_the_last_good_site(published):
    good = published.page("index.html")
    file = published.root / "book" / "paths.yml"
    file.write_text(file.read_text().replace("beta", "gamma"))
    done = published.book()
    assert done.returncode == 1
    assert "paths.yml: toys: there is no chapter 'gamma'; there are alpha, beta" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert published.page("index.html") == good

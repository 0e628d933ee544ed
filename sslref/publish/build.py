"""`book`: the one command that makes the site, and reports on it in `_build/book.json`."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from sslref import claims, digest, registry
from sslref.publish import access, assets, cards, check, ends, execute, stage, vendor, weight

_TOOLS = ("jupyter-book", "sphinx", "sphinx-book-theme", "pydata-sphinx-theme", "myst-nb", "sphinxcontrib-katex")


def _sphinx(source: Path, site: Path, jobs: int) -> list[str]:
    """Build in a process of its own; returns its warnings and errors, which all fail the book."""
    log, warnings = site.parent / "book.log", site.parent / "book.warnings"
    warnings.unlink(missing_ok=True)
    command = [sys.executable, "-m", "sslref.publish.sphinx", *map(str, (source, site, warnings, jobs))]
    path = os.pathsep.join(filter(None, [str(registry.root()), os.environ.get("PYTHONPATH")]))
    with log.open("w", encoding="utf-8") as out:  # files, not pipes, which a process that is left over would keep open
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment).returncode
    found = warnings.read_text(encoding="utf-8").splitlines() if warnings.exists() else []
    if status and not found:
        found = [*log.read_text(encoding="utf-8").splitlines()[-12:], f"Sphinx ended with exit status {status}: {log}"]
    return [line.replace(f"{source}{os.sep}", "") for line in found if line.strip()]


def _swap(new: Path, site: Path) -> None:
    """Put the new site in the place of the old one."""
    old = site.with_name(f"{site.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if site.exists():
        os.replace(site, old)
    os.replace(new, site)
    shutil.rmtree(old, ignore_errors=True)


def _identity(staged: str) -> str:
    """What the site rests on: the staged sources, the package (its docstrings are the API reference), the tools."""
    package = stage.digest(digest.PACKAGE)
    return " ".join([staged, package, *(f"{tool}={version(tool)}" for tool in _TOOLS)])


def book(
    papers: Iterable[str] | None = None,
    *,
    jobs: int = 2,
    force: bool = False,
    limit: float = execute.LIMIT,
    progress: Callable[[str], None] = print,
) -> int:
    """Execute what changed, build the book, and put it into `_build/html`.

    A chapter that fails is reported with its cell and traceback, and the others go on. After any failure (a chapter, a
    warning of the build, a dead link, an image without written alternative text) the last good site stays in place.

    Args:
        papers: chapters and pages to execute; the others keep their last executed copy. Default: all.
        jobs: processes at a time.
        force: execute and build even what has not changed.
        limit: seconds after which a chapter is stopped.
        progress: receives each line of the report.

    Returns:
        Exit status: 0, or 1 after any failure. `_build/book.json` holds the details.

    Raises:
        UnknownPaper: a name in `papers` that no paper has.
    """
    from filelock import FileLock

    wanted = stage.executed() if papers is None else list(papers)
    missing = [slug for slug in wanted if not registry.notebook(slug).exists()]
    if missing:
        raise ValueError(f"papers: no notebook yet for {', '.join(missing)}")
    build = registry.root() / "_build"
    build.mkdir(exist_ok=True)
    speaking = threading.Lock()

    def say(line: str) -> None:  # chapters start in threads of their own: one line at a time
        with speaking:
            progress(line)

    with FileLock(build / ".book.lock"):
        return _book(build, wanted, jobs, force, limit, say)


def _book(build: Path, wanted: list[str], jobs: int, force: bool, limit: float, say: Callable[[str], None]) -> int:
    start = time.perf_counter()
    report: dict = {"status": "failed", "chapters": {}, "problems": [], "seconds": {}}

    def lap(name: str) -> None:
        report["seconds"][name] = round(time.perf_counter() - start - sum(report["seconds"].values()), 1)

    def end(problems: list[str]) -> int:
        report["problems"] += problems
        report["status"] = "failed" if report["problems"] else "good"
        report["seconds"]["total"] = round(time.perf_counter() - start, 1)
        claims.write_json(build / "book.json", report)
        for problem in problems:
            say(problem)
        if report["problems"]:
            stays = "; the last good site stays in _build/html" if (build / "html").exists() else ""
            say(f"book: failed, {len(report['problems'])} problems{stays}")
        return int(bool(report["problems"]))

    failed = []
    for slug, outcome in execute.execute(wanted, jobs=jobs, force=force, limit=limit, progress=say):
        report["chapters"][slug] = asdict(outcome)
        cost = f"{outcome.seconds:.1f} s, {outcome.peak_mb} MB"
        say(f"{slug}: {outcome.status} ({cost})" if outcome.good else f"{slug}: {outcome.status} {outcome.error}")
        if not outcome.good:
            failed.append(f"{slug}: {outcome.status} {outcome.error.partition(chr(10))[0]}")
    lap("execute")
    if failed:
        return end(failed)

    site, new, mark = build / "html", build / "html.new", build / "site.json"
    try:
        staged = _identity(stage.stage(build / "book"))
    except (vendor.VendorError, ValueError) as error:
        return end([str(error)])
    lap("stage")
    built = json.loads(mark.read_text()) if mark.exists() and site.exists() else {}
    if force or built.get("identity") != staged or "transfer" not in built:
        say("book: building")
        shutil.rmtree(new, ignore_errors=True)
        problems = _sphinx(build / "book", new, jobs)
        if not problems:
            access.mend(new)
            cards.add(new)
            assets.bundle(new)
            ends.downloads(new, stage.executed())
        weights, found = check.check(new) if new.exists() else ({}, [])
        lap("build")
        if problems or found:
            return end([*problems, *found])
        for name in stage.executed():  # readers download the notebook itself, not the executed copy
            shutil.copy(registry.notebook(name), new / "_sources" / registry.part(name))
        mark.unlink(missing_ok=True)
        _swap(new, site)
        chapters = [f"{registry.part(slug)}/{slug}.html" for slug in stage.chapters()]
        built = {"identity": staged, "weights": weights, "transfer": weight.report(site, chapters)}
        claims.write_json(mark, built)
    weights = built["weights"]
    for slug, entry in report["chapters"].items():
        entry["page_bytes"] = weights[f"{registry.part(slug)}/{slug}.html"]
    report["site"] = {"pages": len(weights), "heaviest_page_bytes": max(weights.values())}
    say(weight.line(built["transfer"]))
    say(f"book: _build/html/index.html, {len(weights)} pages")
    return end([])

"""`build`: a course folder that nbgrader knows, with slides, quizzes, a syllabus and what the teacher keeps."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import sslref
from sslref import claims, registry
from sslref.course import grade, guide, plain, quiz, slides, teaching
from sslref.publish import execute

CELL_SECONDS = 60  # that a cell may take when it is graded
_CONFIG = '''"""How nbgrader grades this course. `sslref course grade` and nbgrader's own commands read it."""

from pathlib import Path

from nbgrader.preprocessors import (
    CheckCellMetadata,
    ClearOutput,
    DeduplicateIds,
    Execute,
    IgnorePattern,
    LimitOutput,
    OverwriteCells,
    OverwriteKernelspec,
    SaveAutoGrades,
)

from sslref.course.preprocessors import Lighten, Restore

c = get_config()  # noqa: F821
release = str(Path(__file__).resolve().parent / "release")
c.Restore.release = c.Lighten.release = release

# deleted cells are put back; cells that no exercise needs are not run
c.Autograde.sanitize_preprocessors = [
    ClearOutput, DeduplicateIds, Restore, OverwriteKernelspec, OverwriteCells, CheckCellMetadata,
]
c.Autograde.autograde_preprocessors = [Lighten, Execute, IgnorePattern, LimitOutput, SaveAutoGrades, CheckCellMetadata]

# Seconds that a cell may take. One that takes longer is interrupted and gets no points.
c.Execute.timeout = {seconds}
c.Execute.interrupt_on_timeout = True
'''
_README = """# The course: {titles}

1. **Prepare**: `sslref course check .` grades the reference solutions (all points), blanks and wrong
   solutions (none).
2. **Hand out** `release/`, `slides/`, `quizzes/`, `syllabus.md`, `requirements.txt` and `constraints.txt`.
   Keep `source/` and `teacher/`: they hold solutions, hidden tests and the keys of the quizzes.
3. **Students** put a copy of sslref into a folder `sslref` next to `requirements.txt`, run
   `pip install -r requirements.txt`, and open the notebooks in JupyterLab.
4. **Collect** what they hand in as `submitted/NAME/CHAPTER/CHAPTER.ipynb`.
5. **Grade**: `sslref course grade .` runs nbgrader and prints one table with a reason for each lost point.
   It runs students' code with your rights: use a container or an account of its own.
6. **Give back**: `nbgrader generate_feedback CHAPTER`; `nbgrader export` writes the grades as a table.

`nbgrader_config.py` has the time limits. You may edit `source/`; `nbgrader generate_assignment CHAPTER` then renews
`release/`. `sslref course build --force` makes everything again: it keeps your own files, and moves what you changed of
its files to `kept/`.
"""


def build(
    papers: Iterable[str], out: Path, *, force: bool = False, progress: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Write a course of these chapters into a folder.

    It is made beside the folder and renamed at the end, so that a build that fails leaves what was there.

    Args:
        papers: slugs of chapters.
        out: the folder; it may exist if it is empty.
        force: replace a course that an earlier build made. Files that it did not make stay; those of its files
            that were changed since are moved to `kept/`.
        progress: receives a line for each chapter.

    Returns:
        The files that were moved to `kept/`.

    Raises:
        UnknownPaper: no paper has this slug. TeachingError: a chapter cannot be taught yet.
        FileExistsError: the folder holds something, and `force` is not given or it is no course.
        CourseError: nbgrader could not make the student version. ImportError: nbgrader is missing.
    """
    slugs = ordered(papers)
    grade.need_nbgrader()
    for slug in slugs:
        teaching.load(slug)
    out = Path(os.path.abspath(out))
    old = out.with_name(f".{out.name}.old")
    if old.exists() and not out.exists():  # a build was stopped between its last two steps
        os.replace(old, out)
    made = _made_before(out, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        changed = _keep(out, new, made) if out.exists() else []
        written = _write(slugs, new, progress)
        _clash(out, new, made, written)
        record = {"made_by": f"sslref {sslref.__version__}", "papers": slugs}
        record["files"] = {name: _digest(new / name) for name in sorted(written)}
        claims.write_json(new / grade.MANIFEST, record)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(out, old)
        os.replace(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return changed


def ordered(papers: Iterable[str]) -> list[str]:
    """The slugs without repetitions, each after those of them that it needs, else in the order of the book."""
    wanted = list(dict.fromkeys(papers))
    if not wanted:
        raise ValueError("papers: expected at least one chapter, got none")
    for slug in wanted:
        registry.get(slug)
    book = [slug for slug in registry.papers() if slug in wanted]
    found: list[str] = []
    seen: set[str] = set()

    def add(slug: str) -> None:
        if slug not in seen:
            seen.add(slug)
            for need in registry.get(slug).needs:
                if need in book:
                    add(need)
            found.append(slug)

    for slug in book:
        add(slug)
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _made_before(out: Path, force: bool) -> dict[str, str]:
    """Files of an earlier build with their digests. Raises FileExistsError where the folder is not to be touched."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: expected a folder, this is a file")
    if not out.exists() or not any(out.iterdir()):
        return {}
    if not force:
        raise FileExistsError(
            f"{out}: the folder is not empty; with --force, a course that was built there is replaced"
        )
    try:
        return grade.manifest(out)["files"]
    except grade.CourseError:
        raise FileExistsError(f"{out}: not made by `sslref course build`; choose another folder") from None


def _keep(out: Path, new: Path, made: dict[str, str]) -> list[str]:
    """Copy what is the teacher's into the new folder; returns what was changed of the files that a build made."""
    changed = []
    for path in sorted(p for p in out.rglob("*") if p.is_file() or p.is_symlink()):
        name = path.relative_to(out).as_posix()
        if name == grade.MANIFEST:
            continue
        target = new / name
        if name in made:
            if _digest(path) == made[name]:
                continue
            number, target = 1, new / "kept" / name
            while target.exists() or (out / "kept" / target.relative_to(new / "kept")).exists():
                number += 1
                target = new / "kept" / f"{name}.{number}"
            changed.append(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target, follow_symlinks=False)
    return changed


def _clash(out: Path, new: Path, made: dict[str, str], written: list[str]) -> None:
    """Refuse to write over a file that no build made."""
    own = [name for name in written if name not in made and (out / name).exists()]
    if own:
        raise FileExistsError(
            f"{out / own[0]}: not made by a build, and the new course has a file of this name; move it"
        )


def _write(slugs: list[str], course: Path, progress: Callable[[str], None]) -> list[str]:
    """Write the course; returns the names of its files."""
    before = {p: p.stat().st_mtime_ns for p in course.rglob("*") if p.is_file()}
    for name in ("source", "slides", "quizzes", "teacher/quizzes", "teacher/wrong"):
        (course / name).mkdir(parents=True, exist_ok=True)
    (course / "nbgrader_config.py").write_text(_CONFIG.format(seconds=CELL_SECONDS), encoding="utf-8")
    slides.bring(course / "slides" / "files")
    for slug in slugs:
        progress(slug)
        _chapter(slug, course)
        answer = grade.alone("generate", course, slug)
        if not answer["success"]:
            raise grade.CourseError(
                f"{slug}: nbgrader made no student version\n{answer.get('error') or ''}{answer.get('log') or ''}"
            )
    titles = ", ".join(_title(slug) for slug in slugs)
    (course / "README.md").write_text(_README.format(titles=titles), encoding="utf-8")
    (course / "syllabus.md").write_text(syllabus(slugs), encoding="utf-8")
    lock = registry.root() / "requirements.lock"
    shutil.copy(lock, course / "constraints.txt")
    (course / "requirements.txt").write_text(
        "# Python 3.11 or later, and a copy of sslref in the folder `sslref` next to this file\n"
        "-c constraints.txt\n-e ./sslref[book]\njupyterquiz\n",
        encoding="utf-8",
    )
    files = [p for p in course.rglob("*") if p.is_file() and before.get(p) != p.stat().st_mtime_ns]
    return [name for p in files if (name := p.relative_to(course).as_posix()) != "gradebook.db"]


def _title(slug: str) -> str:
    cells = teaching.notebook(slug)["cells"]
    return next(c["source"].partition("\n")[0].removeprefix("# ") for c in cells if c["cell_type"] == "markdown")


def _chapter(slug: str, course: Path) -> None:
    about, chapter = teaching.load(slug), teaching.notebook(slug)
    work = teaching.exercises(chapter["cells"])
    numbers = plain.equation_numbers(chapter["cells"])
    for cell in chapter["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = plain.markdown(cell["source"], numbers)
    claims.write_json(course / "source" / slug / f"{slug}.ipynb", chapter)
    wrong = {work[n].solution: teaching.replaced(work[n].solution, bodies) for n, bodies in about.wrong.items()}
    cells = [cell | {"source": wrong.get(cell["source"], cell["source"])} for cell in chapter["cells"]]
    claims.write_json(course / "teacher" / "wrong" / f"{slug}.ipynb", chapter | {"cells": cells})
    for key, folder in ((False, course / "quizzes"), (True, course / "teacher" / "quizzes")):
        claims.write_json(folder / f"{slug}.json", quiz.questions(about.quiz, key=key))
        claims.write_json(folder / f"{slug}.ipynb", quiz.notebook(_title(slug), f"{slug}.json", key=key))
    (course / "teacher" / f"{slug}.md").write_text(_for_the_teacher(slug), encoding="utf-8")
    kept = execute.kept(slug)
    page = kept if kept.exists() else registry.notebook(slug)
    shown = json.loads(page.read_text(encoding="utf-8"))
    slides.write(slug, shown, course / "slides" / f"{slug}.html", executed=kept.exists())


def _for_the_teacher(slug: str) -> str:
    """The guide of a chapter with what the book does not publish: the key of the quiz, and the solutions."""
    about, work = teaching.load(slug), teaching.exercises(teaching.notebook(slug)["cells"])
    lines = [guide.chapter(slug, link=False), "## Key of the quiz\n"]
    for q in about.quiz:
        right = next((c for c in q.choices if c.right), None)
        answer = right.text if right else f"{q.number:g} ± {q.tolerance:g}"
        lines += [
            f"- {' '.join(q.question.split())}\n  **{answer}** {' '.join((right.why if right else q.why).split())}"
        ]
    lines += ["\n## Solutions\n"]
    for e in work.values():
        lines += [f"### {e.number}. {e.title} ({e.worth})\n\n```python\n{e.solution}\n```\n"]
    return "\n".join(lines)


def syllabus(slugs: list[str]) -> str:
    """The syllabus of these chapters: order, minutes, prerequisites, goals, exercises."""
    lines = ["# Syllabus\n", "| | chapter | read, minutes | run, seconds | exercises, points | read before |"]
    lines += ["|---|---|---|---|---|---|"]
    for i, slug in enumerate(slugs, 1):
        paper, work = registry.get(slug), teaching.exercises(teaching.notebook(slug)["cells"])
        record = execute.kept(slug).with_suffix(".json")
        seconds = json.loads(record.read_text(encoding="utf-8"))["seconds"] if record.exists() else None
        points = sum(e.points for e in work.values())
        run = f"{seconds:.0f}" if seconds else "not measured"
        before = ", ".join(paper.needs) or "nothing"
        lines += [f"| {i} | {_title(slug)} | {paper.minutes} | {run} | {points:g} | {before} |"]
    lines += ["\nThe seconds are those of the book's own run, on one CPU thread.\n"]
    for slug in slugs:
        about, work = teaching.load(slug), teaching.exercises(teaching.notebook(slug)["cells"])
        paper = registry.get(slug)
        lines += [f"## {_title(slug)}\n", f"{', '.join(paper.authors)}: *{paper.title}*, {paper.venue} {paper.year}.\n"]
        lines += ["After this chapter you can\n", *guide.goals(about), ""]
        lines += [f"- Exercise {e.number}, {e.title}: {e.time}, {e.worth}" for e in work.values()]
        lines += [""]
    return "\n".join(lines)

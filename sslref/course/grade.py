"""Grading what students handed in, and the proof that a course grades as it should: both with nbgrader."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

from sslref import registry

LIMIT = 600.0  # seconds that the grading of one notebook may take
MANIFEST = "course.json"


class CourseError(RuntimeError):
    """A folder that is not a course, or something that nbgrader could not do."""


@dataclass(frozen=True)
class Result:
    """What a student's notebook got."""

    student: str
    slug: str
    points: float
    most: float
    why: tuple[str, ...] = ()  # one reason a lost test, or why there is nothing to grade

    @property
    def full(self) -> bool:
        return self.points == self.most > 0


def need_nbgrader() -> None:
    """Raises ImportError with a word on how to get it where nbgrader is missing."""
    from importlib.util import find_spec

    missing = [name for name in ("nbgrader", "jupyterquiz") if find_spec(name) is None]
    if missing:
        raise ImportError(f"courses need {' and '.join(missing)}: pip install 'sslref[teach]'")


def alone(function: str, *arguments: Any, limit: float = LIMIT) -> Any:
    """What a function of `sslref.course._nbgrader` returns, in a process of its own.

    Raises:
        TimeoutError: it took longer than `limit` seconds. CourseError: it failed; the message is its last line.
    """
    import psutil

    from sslref.course import _nbgrader

    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":  # imports nbgrader once for all processes
        context.set_forkserver_preload(["sslref.course._nbgrader"])
    receiver, sender = context.Pipe(duplex=False)
    call = (sender, getattr(_nbgrader, function), str(registry.root()), *arguments)
    process = context.Process(target=_nbgrader.work, args=call)
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            raise TimeoutError(f"took longer than {limit:.0f} s")
        answer = receiver.recv()
    except EOFError:
        raise CourseError("the process that graded it died") from None
    finally:
        process.join()
        receiver.close()
    if "error" in answer:
        raise CourseError(answer["error"].strip().splitlines()[-1])
    return answer["value"]


def manifest(course: Path) -> dict[str, Any]:
    """What `sslref course build` wrote into the folder. Raises CourseError where it wrote nothing."""
    try:
        found = json.loads((course / MANIFEST).read_text(encoding="utf-8"))
        return {"papers": list(found["papers"]), "files": dict(found["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise CourseError(f"{course}: expected a folder that `sslref course build` made, found no {MANIFEST}") from None


def grade(
    course: Path, *, force: bool = False, limit: float = LIMIT, progress: Callable[[str], None] = lambda _: None
) -> list[Result]:
    """Grade what lies in `submitted/STUDENT/SLUG/`.

    A notebook that cannot be read, deleted cells, code that never ends: each costs points, is given a reason, and holds
    up nobody else.

    Args:
        course: a folder that `sslref course build` made.
        force: grade again what is graded already.
        limit: seconds that one notebook may take; the limit of one cell stands in `nbgrader_config.py`.
        progress: receives a line for each notebook.

    Returns:
        One result a student and chapter, in the order of the course.

    Raises:
        CourseError: the folder is no course, or nothing was handed in.
    """
    need_nbgrader()
    course = course.resolve()
    slugs = manifest(course)["papers"]
    students = sorted(p.name for p in (course / "submitted").glob("*") if p.is_dir())
    handed_in = [
        (student, slug) for student in students for slug in slugs if (course / "submitted" / student / slug).is_dir()
    ]
    if not handed_in:
        raise CourseError(f"{course}: nothing handed in; expected submitted/STUDENT/CHAPTER/CHAPTER.ipynb")
    results = []
    for student, slug in handed_in:
        results.append(_one(course, slug, student, force, limit))
        progress(f"{student}, {slug}: {results[-1].points:g} of {results[-1].most:g}")
    return results


def _one(course: Path, slug: str, student: str, force: bool, limit: float) -> Result:
    name = f"{slug}.ipynb"
    why = ""
    if not (course / "submitted" / student / slug / name).is_file():
        why = f"no {name} was handed in"
    else:
        try:
            answer = alone("autograde", course, slug, student, force, limit=limit)
            if not answer["success"]:
                why = _said(answer)
        except (TimeoutError, CourseError) as error:
            why = str(error)
    if why:
        shutil.rmtree(course / "autograded" / student / slug, ignore_errors=True)
        alone("zero", course, slug, student)
    scores = alone("scores", course, slug, student)
    points, most = (sum(pair[k] for pair in scores.values()) for k in (0, 1))
    lost = {test for test, (got, full) in scores.items() if got < full}
    whys = (why,) if why else tuple(_reasons(course / "autograded" / student / slug / name, lost))
    return Result(student, slug, points, most, whys)


def _said(answer: dict[str, Any]) -> str:
    """Why nbgrader gave up, in a line."""
    text = f"{answer.get('error') or ''}\n{answer.get('log') or ''}"
    if "NotJSONError" in text or "ValidationError" in text or "does not appear to be JSON" in text:
        return "the file is no notebook"
    lines = re.findall(r"(?m)^(?:\w+\.)*\w+(?:Error|Exception)\b.*$", text)
    return lines[-1].strip() if lines else "nbgrader could not grade it"


def _reasons(path: Path, lost: set[str]) -> Iterator[str]:
    """What the tests that were not passed say."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else []
    for cell in cells:
        name = cell["metadata"].get("nbgrader", {}).get("grade_id")
        if name not in lost:
            continue
        errors = [o for o in cell.get("outputs", ()) if o["output_type"] == "error"]
        said = " ".join(f"{errors[0]['ename']}: {errors[0]['evalue']}".split()) if errors else "not passed"
        if any(error["ename"] == "CellTimeoutError" for error in errors):
            said = "it did not end within the time limit"
        yield f"{name.removesuffix('-test')}: {said.removesuffix(':').rstrip()[:160]}"


def check(course: Path, *, progress: Callable[[str], None] = lambda _: None) -> list[Result]:
    """Grade the reference solutions, the blanks and the wrong solutions of a course, in a copy of it.

    Returns:
        Three results a chapter; `good` tells whether they are as they should be.

    Raises:
        CourseError: the folder is no course.
    """
    course = course.resolve()
    slugs = manifest(course)["papers"]
    where = {"reference": "source/{0}/{0}.ipynb", "blank": "release/{0}/{0}.ipynb", "wrong": "teacher/wrong/{0}.ipynb"}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "course"
        shutil.copytree(course, copy, ignore=shutil.ignore_patterns("submitted", "autograded", "feedback", "slides"))
        for student, slug in ((student, slug) for student in where for slug in slugs):
            target = copy / "submitted" / student / slug
            target.mkdir(parents=True)
            shutil.copy(course / where[student].format(slug), target / f"{slug}.ipynb")
        return grade(copy, progress=progress)


def good(result: Result) -> bool:
    """Whether a result of `check` is as it should be: all points for the reference, none for blank and wrong."""
    return result.full if result.student == "reference" else result.points == 0 < result.most

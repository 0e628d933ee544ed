"""What runs nbgrader: in a process of its own, with the course's own configuration.

nbgrader sets loggers, opens databases and starts kernels that run students' code; none of this is to stay behind.
"""

import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nbgrader.api import Gradebook, MissingEntry
from nbgrader.apps import NbGraderAPI
from traitlets.config import PyFileConfigLoader


def _api(course: Path) -> NbGraderAPI:
    config = PyFileConfigLoader("nbgrader_config.py", path=str(course)).load_config()
    config.CourseDirectory.root = str(course)
    return NbGraderAPI(config=config)


def generate(course: Path, slug: str) -> dict[str, Any]:
    """Make the release of an assignment, and enter it into the gradebook."""
    return _api(course).generate_assignment(slug)


def autograde(course: Path, slug: str, student: str, force: bool) -> dict[str, Any]:
    """Grade what a student handed in for an assignment."""
    return _api(course).autograde(slug, student, force=force)


def zero(course: Path, slug: str, student: str) -> None:
    """Enter no points for what could not be graded."""
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        book.update_or_create_student(student)
        submission = book.update_or_create_submission(slug, student)
        for grade in (grade for notebook in submission.notebooks for grade in notebook.grades):
            grade.auto_score, grade.manual_score, grade.needs_manual_grade = 0, None, False
        book.db.commit()


def scores(course: Path, slug: str, student: str) -> dict[str, tuple[float, float]]:
    """Points and full points of every graded cell; empty where nothing was graded."""
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        try:
            submission = book.find_submission(slug, student)
        except MissingEntry:
            return {}
        grades = [grade for notebook in submission.notebooks for grade in notebook.grades]
        return {grade.name: (float(grade.score or 0), float(grade.max_score)) for grade in grades}


def work(sender: Connection, function: Callable[..., Any], root: str, *arguments: Any) -> None:
    """Call a function of this module and send what it returned, or its error; kernels find the package at `root`."""
    silence = os.open(os.devnull, os.O_WRONLY)  # kernels and databases talk; what counts is in nbgrader's log
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    tools = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))  # nbgrader calls alembic
    os.environ.update(dict.fromkeys(threads, "1") | {"PYTHONPATH": path, "PATH": tools, "JUPYTER_PREFER_ENV_PATH": "1"})
    try:
        sender.send({"value": function(*arguments)})
    except BaseException:  # also what nbgrader exits with: the process ends here in any case
        sender.send({"error": traceback.format_exc()})

"""nbgrader itself grades a built course."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sslref import registry
from sslref.course import grade, preprocessors, teaching

pytestmark = pytest.mark.slow


def notebook(course, kind, slug):
    return json.loads((course / kind / slug / f"{slug}.ipynb").read_text(encoding="utf-8"))


def hand_in(course, student, slug, cells):
    path = course / "submitted" / student / slug / f"{slug}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(cells) if isinstance(cells, dict) else cells, encoding="utf-8")


@pytest.fixture
def own(course, tmp_path):
    """A copy of the course to hand in to."""
    return Path(shutil.copytree(course, tmp_path / "own"))


def test_reference_gets_all_points_blanks_and_wrong_solutions_none(course):
    results = grade.check(course)
    assert [(r.student, r.slug) for r in results] == [
        (student, slug) for student in ("blank", "reference", "wrong") for slug in ("mec", "nutime")
    ]
    for r in results:
        points = sum(e.points for e in teaching.exercises(teaching.notebook(r.slug)["cells"]).values())
        assert r.most == points
        assert r.points == (points if r.student == "reference" else 0), r
        assert grade.good(r)
        assert len(r.why) == (0 if r.student == "reference" else 3), r
    assert all("NotImplementedError" in why for r in results if r.student == "blank" for why in r.why)


def test_nbgraders_own_command_reads_the_course(own):
    hand_in(own, "ann", "nutime", notebook(own, "source", "nutime"))
    tools = str(Path(sys.executable).parent)
    environment = os.environ | {"PYTHONPATH": str(registry.root()), "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "nbgrader", "autograde", "nutime"]
    done = subprocess.run(command, cwd=own, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = grade.alone("scores", own, "nutime", "ann")
    assert sum(got for got, _ in scores.values()) == sum(full for _, full in scores.values()) > 0
    graded = notebook(own / "autograded", "ann", "nutime")
    run = [c for c in graded["cells"] if c["cell_type"] == "code" and c["execution_count"]]
    assert len(run) < len([c for c in graded["cells"] if c["cell_type"] == "code"]) / 2, (
        "what no exercise needs is skipped"
    )


def test_bad_notebooks_get_a_zero_with_a_reason_and_hold_up_nobody(own):
    config = own / "nbgrader_config.py"
    config.write_text(config.read_text().replace("c.Execute.timeout = 60", "c.Execute.timeout = 8"))
    good = notebook(own, "source", "nutime")

    deleted = json.loads(json.dumps(good))
    gone = {"nutime-ex1", "nutime-ex1-test", "nutime-ex3-test"}
    deleted["cells"] = [
        c
        for c in deleted["cells"]
        if c["metadata"].get("nbgrader", {}).get("grade_id") not in gone and "import torch" not in "".join(c["source"])
    ]
    loops = json.loads(json.dumps(good))
    for cell in loops["cells"]:
        if cell["metadata"].get("nbgrader", {}).get("grade_id") == "nutime-ex1":
            cell["source"] = "def signed_log(x):\n    while True:\n        pass"
    hand_in(own, "ann", "nutime", deleted)
    hand_in(own, "bob", "nutime", loops)
    hand_in(own, "cem", "nutime", "this is no notebook")
    (own / "submitted" / "dee" / "nutime").mkdir(parents=True)

    results = {r.student: r for r in grade.grade(own)}
    assert list(results) == ["ann", "bob", "cem", "dee"]
    work = teaching.exercises(teaching.notebook("nutime")["cells"])
    rest = work[2].points + work[3].points
    assert results["ann"].points == rest, "imports and the test of exercise 3 were put back"
    assert results["ann"].why == ("nutime-ex1: NotImplementedError",)
    assert results["bob"].points == rest
    assert results["bob"].why == ("nutime-ex1: it did not end within the time limit",)
    for student, why in (("cem", "the file is no notebook"), ("dee", "no nutime.ipynb was handed in")):
        assert (results[student].points, results[student].most) == (0, rest + work[1].points)
        assert results[student].why == (why,)

    command = [sys.executable, "-m", "sslref", "course", "grade", str(own)]
    environment = os.environ | {"PYTHONPATH": str(registry.root())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "it did not end within the time limit" in done.stdout, "graded already, told again"
    assert f"{rest:g} of {results['ann'].most:g}" in done.stdout


def test_notebook_that_takes_too_long_as_a_whole_is_stopped(own):
    hand_in(own, "ann", "nutime", notebook(own, "source", "nutime"))
    (result,) = grade.grade(own, limit=0.2)
    assert (result.points, result.why) == (0, ("took longer than 0 s",))
    assert result.most > 0


def test_nothing_handed_in(own):
    with pytest.raises(grade.CourseError, match="nothing handed in; expected submitted/STUDENT/CHAPTER"):
        grade.grade(own)


def test_restored_cells_stand_where_they_stood(own):
    import nbformat

    source = nbformat.read(own / "release" / "nutime" / "nutime.ipynb", as_version=4)
    whole = [cell.source for cell in source.cells if cell.cell_type == "code"]
    about = {"nbgrader": {"assignment": "nutime", "notebook": "nutime"}}
    step = preprocessors.Restore(release=str(own / "release"))
    left = nbformat.from_dict(source)
    left.cells = [cell for i, cell in enumerate(left.cells) if i % 3]
    again, _ = step.preprocess(left, about)
    assert [c.source.removeprefix(preprocessors.NOTE) for c in again.cells if c.cell_type == "code"] == whole
    untouched, _ = step.preprocess(nbformat.from_dict(source), about)
    assert [c.source for c in untouched.cells if c.cell_type == "code"] == whole

"""Teaching files: they say what is so, and a wrong one is refused."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from sslref import registry
from sslref.course import cells, guide, teaching
from sslref.publish import execute, stage

WITH = [slug for slug in stage.chapters() if teaching.path(slug).exists()]
every = pytest.mark.parametrize("slug", WITH)


def test_every_chapter_has_a_teaching_file():
    assert set(WITH) == set(stage.chapters())
    assert {p.stem for p in teaching.path("simclr").parent.iterdir()} <= set(registry.papers()), "a file of no paper"


@every
def test_teaching_file_is_as_the_chapter_is(slug):
    found = teaching.load(slug)
    assert {bool(q.choices) for q in found.quiz} == {True, False}, "a quiz has both kinds of questions"
    assert any(m.where.startswith("exercise") for m in found.misconceptions)


@every
def test_numbers_of_the_quiz_are_computed(slug):
    space = {"torch": torch, "np": np, "F": F, "math": math, slug: registry.load(slug)}
    for question in teaching.load(slug).quiz:
        if question.number is not None:
            value = float(eval(question.code, dict(space)))
            assert abs(value - question.number) <= max(question.tolerance, 1e-9), (question.question, value)


@pytest.mark.slow
@every
def test_wrong_solutions_run_and_are_refused(slug):
    """As nbgrader would see them, without its kernel: the test cells of each exercise after the wrong solution."""
    found = teaching.notebook(slug)["cells"]
    code = [c for c in found if c["cell_type"] == "code"]
    graded = [i for i, c in enumerate(code) if "nbgrader" in c["metadata"]]
    work = teaching.exercises(found)
    space = {"__name__": "__main__", "display": print}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in sorted(cells.needed([c["source"] for c in code], graded) - set(graded)):
            source = code[i]["source"].replace('profile = "ci"', 'profile = "smoke"')
            exec(compile(execute.code_of({"cells": [code[i] | {"source": source}]}), slug, "exec"), space)
    for number, bodies in teaching.load(slug).wrong.items():
        exercise = work[number]
        student = dict(space)
        exec(compile(teaching.replaced(exercise.solution, bodies), f"wrong {number}", "exec"), student)
        with pytest.raises(Exception) as refused:  # noqa: PT011  whatever the mistake makes of the test
            exec(compile("\n".join(exercise.tests), f"test {number}", "exec"), student)
        assert not isinstance(refused.value, NameError), refused.value
        exec(compile("\n".join((exercise.solution, *exercise.tests)), f"right {number}", "exec"), space)


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """`changed(lambda data: …)` loads SimCLR's file after a change of its content."""
    good = yaml.safe_load(teaching.path("simclr").read_text(encoding="utf-8"))
    book = tmp_path / "book" / "teaching"
    book.mkdir(parents=True)
    (tmp_path / "notebooks").symlink_to(registry.root() / "notebooks")
    monkeypatch.setattr(registry, "root", lambda: tmp_path)

    def load(change):
        change(good)
        (book / "simclr.yml").write_text(yaml.safe_dump(good), encoding="utf-8")
        return teaching.load.__wrapped__("simclr")

    return load


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("goals"), "'goals' is a required property"),
        (lambda d: d["goals"].pop(), "goals"),
        (lambda d: d["misconceptions"][0].update(exercise=9), r"misconceptions\[0\]: expected exercise to be one of"),
        (lambda d: d["misconceptions"][0].update(pitfall=1), "expected one of exercise, pitfall, slider, section"),
        (lambda d: d["misconceptions"][0].update(hint="x"), r"misconceptions\[0\].*hint"),
        (
            lambda d: d["quiz"][2]["choices"][1].update(right=True),
            r"quiz\[2\]: expected exactly one right choice, got 2",
        ),
        (lambda d: d["quiz"][0].pop("tolerance"), r"quiz\[0\].*tolerance"),
        (lambda d: d["wrong"].pop(2), "wrong: expected exercises 1, 2, 3, got 1, 3"),
        (lambda d: d["wrong"].update({1: "return ("}), "wrong.1"),
        (lambda d: d["wrong"].update({1: ["pass", "pass"]}), "wrong.1: expected 1 texts, one a solution region, got 2"),
    ],
)
def test_wrong_files_are_refused_with_the_place(changed, change, said):
    with pytest.raises(teaching.TeachingError, match=f"book/teaching/simclr.yml: .*{said}"):
        changed(change)


def test_missing_file_and_broken_yaml(changed):
    with pytest.raises(teaching.TeachingError, match="mec.yml: not there"):
        teaching.load.__wrapped__("mec")
    teaching.path("mec").write_text("goals: [", encoding="utf-8")
    with pytest.raises(teaching.TeachingError, match="mec.yml: expected YAML"):
        teaching.load.__wrapped__("mec")


def test_replaced_keeps_the_indentation_and_the_rest():
    source = "def f(x):\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION\n\ny = 2"
    assert teaching.replaced(source, ("if x:\n    return 3\n\nreturn 4",)) == (
        "def f(x):\n    if x:\n        return 3\n\n    return 4\n\ny = 2"
    )


def test_needed_cells_are_found_through_each_other():
    sources = ["import os", "def f():\n    return os.name", "z = 1", "%matplotlib inline\nw = z", "print(f())", "g = ("]
    assert cells.needed(sources, [4]) == {0, 1, 4}
    assert cells.needed([*sources, "use (w"], [6]) == {2, 3, 6}, "of broken code every word counts"


def test_guide_tells_what_a_teacher_needs_and_no_answers():
    text = guide.page(["simclr", "mec"])
    found = teaching.load("mec")
    assert found.goals[0] in text
    assert found.misconceptions[0].truth in text
    assert "joint_embedding/mec" in text
    for question in found.quiz:
        assert question.question not in text
        assert not question.why or question.why not in text

"""What a course holds, what students do not get, and what a build never does to a teacher's files."""

import json
import os
import re
import subprocess
import sys

import pytest

from sslref import registry
from sslref.course import build, grade, plain, quiz, teaching, tex

SLUGS = ["mec", "nutime"]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def sources(path):
    return ["".join(cell["source"]) for cell in read(path)["cells"]]


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_students_get_neither_solutions_nor_hidden_tests(course):
    for slug in SLUGS:
        release, source = (sources(course / kind / slug / f"{slug}.ipynb") for kind in ("release", "source"))
        assert not any(re.search(r"### (BEGIN|END) (SOLUTION|HIDDEN)", text) for text in release)
        blanks = sum("raise NotImplementedError()" in text for text in release)
        assert blanks == sum("### BEGIN SOLUTION" in text for text in source) >= 2
        for exercise in teaching.exercises(teaching.notebook(slug)["cells"]).values():
            hidden = re.search(r"### BEGIN HIDDEN TESTS\n(.*?)### END", exercise.tests[-1], re.DOTALL)[1]
            assert hidden not in "\n".join(release)
        assert len(release) == len(source), "everything else is there"


def test_student_notebooks_read_in_jupyter(course):
    texts = "\n".join(sources(course / "release" / "mec" / "mec.ipynb"))
    assert not re.search(r"\{(cite|eq|doc|math|margin)[:t]*\}", texts)
    assert "\\tag{1}" in texts
    assert "NeurIPS 2022\n(Liu et al., 2022)" in texts


def test_key_of_the_quiz_is_with_the_teacher_only(course):
    for slug in SLUGS:
        asked, key = read(course / "quizzes" / f"{slug}.json"), read(course / "teacher" / "quizzes" / f"{slug}.json")
        assert [q["question"] for q in asked] == [q["question"] for q in key]
        said = json.dumps(asked)
        assert '"correct": true' not in said
        assert '"range"' not in said
        assert {a["feedback"] for q in asked for a in q["answers"]} == {"Noted."}
        for question, known in zip(teaching.load(slug).quiz, key, strict=True):
            right = [a for a in known["answers"] if a.get("correct")]
            assert len(right) == 1
            if question.number is not None:
                low, high = right[0]["range"]
                assert low <= question.number - question.tolerance <= question.number + question.tolerance < high
        kept = "\n".join(p.read_text(encoding="utf-8") for p in (course / "teacher").glob("*.md"))
        assert "Key of the quiz" in kept
    for path in course.rglob("*"):
        public = not {"teacher", "source", "slides"} & set(path.relative_to(course).parts)
        if public and path.suffix in (".md", ".ipynb", ".json", ".txt"):
            assert teaching.load("mec").quiz[1].why not in path.read_text(encoding="utf-8"), path


def test_syllabus_has_order_minutes_and_points(course):
    text = (course / "syllabus.md").read_text(encoding="utf-8")
    for slug in SLUGS:
        points = sum(e.points for e in teaching.exercises(teaching.notebook(slug)["cells"]).values())
        row = next(line for line in text.splitlines() if line.startswith("|") and build._title(slug) in line)
        assert f"| {registry.get(slug).minutes} |" in row
        assert f"| {points:g} |" in row
        assert teaching.load(slug).goals[0] in text


def test_chapters_come_after_what_they_need(monkeypatch):
    from dataclasses import replace

    known = registry.papers()
    first, second = list(known)[:2]
    needy = {first: replace(known[first], needs=("graphs", second)), second: replace(known[second], needs=())}
    monkeypatch.setattr(registry, "papers", lambda: needy)
    assert build.ordered([first, second, first]) == [second, first]
    needy[second] = replace(known[second], needs=(first,))
    assert set(build.ordered([first, second])) == {first, second}, "each needs the other: no reason to hang"


def test_manifest_names_every_file_of_the_build(course):
    record = grade.manifest(course)
    assert record["papers"] == SLUGS
    assert set(record["files"]) == set(files(course)) - {"course.json", "gradebook.db"}
    assert not list(course.parent.glob(".*")), "nothing is left beside the course"


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """`quick(papers)` builds into a folder without nbgrader, slides and quizzes; files are treated alike."""

    def write(slugs, new, progress):
        (new / "source").mkdir(exist_ok=True)
        for slug in slugs:
            progress(slug)
            (new / "source" / f"{slug}.ipynb").write_text(f"{slug} made")
        return [f"source/{slug}.ipynb" for slug in slugs]

    monkeypatch.setattr(build, "_write", write)
    out = tmp_path / "course"
    return lambda *papers, **options: (build.build(papers, out, **options), out)[::-1]


def test_folder_that_is_not_empty_is_left_alone(quick):
    out, _ = quick("mec")
    before = files(out)
    with pytest.raises(FileExistsError, match="not empty; with --force"):
        quick("nutime")
    assert files(out) == before


def test_folder_that_no_build_made_is_left_alone_even_with_force(tmp_path, quick):
    (tmp_path / "course").mkdir()
    (tmp_path / "course" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="not made by `sslref course build`"):
        quick("mec", force=True)
    assert files(tmp_path / "course") == {"thesis.tex": b"years of work"}


def test_force_keeps_what_is_the_teachers(quick):
    out, _ = quick("mec", "nutime")
    (out / "submitted" / "ann").mkdir(parents=True)
    (out / "submitted" / "ann" / "mec.ipynb").write_text("ann's")
    (out / "gradebook.db").write_text("grades")
    (out / "source" / "nutime.ipynb").write_text("changed by the teacher")
    for attempt, name in enumerate(("nutime.ipynb", "nutime.ipynb.2")):
        _, changed = quick("simclr", "nutime", force=True)
        assert changed == ["source/nutime.ipynb"]
        now = files(out)
        assert now[f"kept/source/{name}"] == b"changed by the teacher"
        assert now["source/nutime.ipynb"] == b"nutime made"
        assert now["submitted/ann/mec.ipynb"] == b"ann's"
        assert now["gradebook.db"] == b"grades"
        assert "source/mec.ipynb" not in now, "what a build made and does not make any more goes"
        assert not attempt or now["kept/source/nutime.ipynb"] == b"changed by the teacher"
        (out / "source" / "nutime.ipynb").write_text("changed by the teacher")


def test_force_does_not_write_over_a_file_of_the_same_name(quick):
    out, _ = quick("mec")
    (out / "source" / "nutime.ipynb").write_text("the teacher's own")
    before = files(out)
    with pytest.raises(FileExistsError, match="source/nutime.ipynb: not made by a build"):
        quick("nutime", force=True)
    assert files(out) == before


def test_build_that_fails_leaves_what_was_there(quick, monkeypatch):
    out, _ = quick("mec")
    before = files(out)

    def fail(slugs, new, progress):
        (new / "half").write_text("written")
        raise grade.CourseError("nbgrader said no")

    monkeypatch.setattr(build, "_write", fail)
    with pytest.raises(grade.CourseError, match="said no"):
        quick("nutime", force=True)
    assert files(out) == before
    assert [p.name for p in out.parent.iterdir()] == ["course"]


def test_build_that_was_stopped_between_its_last_steps_goes_on(quick):
    out, _ = quick("mec")
    os.replace(out, out.with_name(".course.old"))  # as after a power cut between the two renames
    with pytest.raises(FileExistsError, match="not empty"):
        quick("mec")
    assert "source/mec.ipynb" in files(out)


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (("build", "--papers", "simclrr", "--out", "c"), "no paper has the slug 'simclrr'; did you mean simclr", 1),
        (("build", "--papers", ",", "--out", "c"), "papers: expected at least one chapter, got none", 1),
        (("build", "--papers", "mec", "--out", "full"), "the folder is not empty; with --force", 1),
        (("build", "--papers", "mec", "--out", "full/file"), "expected a folder, this is a file", 1),
        (("build", "--papers", "mec"), "--out", 2),
        (("grade", "full"), "expected a folder that `sslref course build` made, found no course.json", 1),
        (("check", "nowhere"), "expected a folder that `sslref course build` made, found no course.json", 1),
    ],
)
def test_command_says_in_one_line_what_is_wrong(tmp_path, arguments, said, status):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    environment = os.environ | {"PYTHONPATH": str(registry.root())}
    command = [sys.executable, "-m", "sslref", "course", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == status
    assert done.stderr.startswith("sslref: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert files(tmp_path) == {"full/file": b"mine"}


def test_without_nbgrader_the_extra_is_named(monkeypatch, tmp_path):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "nbgrader" else find(name, *a))
    with pytest.raises(ImportError, match=r"courses need nbgrader: pip install 'sslref\[teach\]'"):
        build.build(["mec"], tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_myst_becomes_plain_markdown():
    cells = [{"cell_type": "markdown", "source": "```{math}\n:label: a-b\nx = 1\n```\n\n$$ y $$ (c-d)"}]
    numbers = plain.equation_numbers(cells)
    assert numbers == {"a-b": 1, "c-d": 2}
    made = plain.markdown(cells[0]["source"], numbers)
    assert "$$\nx = 1\n\\tag{1}\n$$" in made
    assert "\\tag{2}" in made
    assert "(c-d)" not in made
    text = "By {eq}`c-d` and {cite:t}`simclr`, see {doc}`the page <../x>`, {cite}`simclr`.\n```{margin}\nA note.\n```"
    made = plain.markdown(text, numbers)
    assert made == "By (2) and Chen et al. (2020), see the page, (Chen et al., 2020).\n> A note."


def test_formulas_are_set_and_code_is_not():
    text = "Let $x^2$ be.\n\n$$ y $$\n\n`$a$` and\n```\n$b$\n```\n costs \\$5 and $6."
    seen = []
    assert tex.each(text, lambda f, display: seen.append((f.strip(), display)) or "!").count("!") == 2
    assert seen == [("x^2", False), ("y", True)]
    assert "<msup>" in tex.mathml(["$x^2$"])[0]
    with pytest.raises(tex.TexError, match="KaTeX parse error"):
        tex.render([("\\frac{", False)])


def test_quiz_notebook_has_no_key_in_it():
    asked = quiz.questions(teaching.load("mec").quiz, key=False)
    assert not any(answer.get("correct") for question in asked for answer in question["answers"])
    places = [
        [answer.get("correct") for answer in question["answers"]].index(True)
        for slug in ("simclr", "mec", "densecl", "pixpro", "nutime")
        for question in quiz.questions(teaching.load(slug).quiz, key=True)
        if question["type"] == "multiple_choice"
    ]
    assert set(places) > {0}, "the right answer does not always stand at the same place"
    made = quiz.notebook("A & B", "mec.json", key=False)
    assert "preserve_responses=True" in made["cells"][1]["source"]
    assert made["cells"][-1]["source"] == "Replace Me", "as jupyterquiz says where the answers go"
    compile(made["cells"][1]["source"], "quiz", "exec")

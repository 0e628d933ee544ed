"""Every chapter keeps the form that readers, graders and the book rely on."""

import ast
import re

import nbformat
import pytest

from sslref import registry, scaffold
from sslref.publish import execute, stage

HEADINGS = [
    "The idea", "The problem", "The method", "Look inside", "Train it", "Does the claim hold?",
    "Paper and miniature, side by side", "Pitfalls", "Exercises", "Further reading",
]  # fmt: skip
PARAMETERS = {"profile": "ci", "seed": 0, "device": "cpu"}
SLUGS, PAGES = stage.chapters(), list(registry.pages())
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


@pytest.fixture(params=SLUGS)
def slug(request):
    return request.param


@pytest.fixture
def notebook(slug):
    return nbformat.read(registry.notebook(slug), as_version=4)


every_notebook = pytest.mark.parametrize("slug", [*SLUGS, *PAGES])  # the pages about several papers too


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tree(source: str) -> ast.Module:
    return ast.parse(execute.code_of({"cells": [{"cell_type": "code", "source": source}]}))


def test_every_paper_has_a_chapter():
    assert set(SLUGS) == set(registry.papers())


def test_no_blank_is_left(slug):
    """What `sslref new` marks FILL is written."""
    left = scaffold.blanks(slug)
    assert not left, "\n".join(left)


def test_headings(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.findall(r"(?m)^(#{1,2}) +(.+?)\s*$", re.sub(r"(?s)```.*?```", "", text))
    assert [level for level, _ in found] == ["#"] + ["##"] * len(HEADINGS)
    assert [name for _, name in found[1:]] == HEADINGS


@every_notebook
def test_it_is_valid_and_has_no_outputs(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in code(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
    assert "widgets" not in notebook.metadata


@every_notebook
def test_parameters(notebook):
    first = code(notebook)[0]
    assert "parameters" in first.metadata.get("tags", [])
    assert {n.targets[0].id: ast.literal_eval(n.value) for n in ast.parse(first.source).body} == PARAMETERS
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code(notebook)) == 1


def calls(notebook, name: str) -> list[ast.Call]:
    nodes = (node for cell in code(notebook) for node in ast.walk(tree(cell.source)) if isinstance(node, ast.Call))
    return [node for node in nodes if ast.unparse(node.func) == f"show.{name}"]


@every_notebook
def test_figures_have_alternative_text(notebook):
    for name in ("figure", "slider"):
        for call in calls(notebook, name):
            given = {k.arg: k.value for k in call.keywords}
            assert "alt" in given, ast.unparse(call)[:200]
    assert calls(notebook, "slider")
    assert calls(notebook, "figure")
    assert not any("plt.show" in cell.source for cell in code(notebook))


def test_chapters_begin_with_their_facts_and_show_the_code(notebook):
    assert calls(notebook, "chapter")
    assert calls(notebook, "source")


def bodies(module: ast.Module) -> set[str]:
    """What the functions and classes of two statements or more say, without their docstrings."""
    said = set()
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            rest = node.body[1:] if ast.get_docstring(node) else node.body
            if len(rest) > 1:
                said.add(ast.dump(ast.Module(rest, [])))
    return said


@every_notebook
def test_no_function_is_copied_from_the_package(slug, notebook):
    files = [path for path in execute.rests_on(slug) if path.suffix == ".py"]
    package = set().union(*(bodies(ast.parse(path.read_text(encoding="utf-8"))) for path in files))
    for cell in code(notebook):
        assert not bodies(tree(cell.source)) & package, cell.source


@every_notebook
def test_cells_are_short(notebook):
    """More than ten lines that are no call belong into the package; what draws or solves is folded."""
    for cell in code(notebook):
        folded = {"hide-input", "hide-cell", "remove-input", "remove-cell"} & set(cell.metadata.get("tags", []))
        if not folded and "nbgrader" not in cell.metadata:
            assert len(cell.source.splitlines()) <= 25, cell.source


def exercises(notebook) -> list[tuple]:
    """Solutions with the test cells that grade them."""
    found, solution = [], None
    for cell in code(notebook):
        marks = cell.metadata.get("nbgrader", {})
        if marks.get("solution"):
            solution = cell
        elif marks.get("grade"):
            found.append((solution, cell))
    return found


def test_exercises_are_marked_for_the_grader(slug, notebook):
    from nbgrader.nbgraderformat import MetadataValidator

    MetadataValidator().validate_nb(notebook)
    found = exercises(notebook)
    assert len(found) >= 2
    for solution, test in found:
        marks, grade = solution.metadata.nbgrader, test.metadata.nbgrader
        assert marks.grade_id.startswith(f"{slug}-ex")
        assert (marks.grade, marks.locked, marks.schema_version) == (False, False, 3)
        assert grade.grade_id == f"{marks.grade_id}-test"
        assert (grade.locked, grade.solution, grade.schema_version) == (True, False, 3)
        assert grade.points > 0
        assert "hide-input" in solution.metadata.tags
        assert solution.source.count(BEGIN) == solution.source.count(END) >= 1
        assert "assert" in test.source
        assert test.source.count("### BEGIN HIDDEN TESTS") == test.source.count("### END HIDDEN TESTS")


def blank(source: str) -> str:
    """What the student gets: nbgrader puts the exception where the solution was."""
    return re.sub(rf"(?ms)^([ \t]*){BEGIN}.*?{END}[^\n]*", r"\1raise NotImplementedError()", source)


@pytest.mark.slow
def test_solutions_pass_and_blanks_fail(slug, notebook, tmp_path):
    """The chapter's own solution satisfies its tests; without it, each of them fails.

    Runs the cells that define or import what the exercises use, found by name, on the smallest profile.
    """
    import warnings

    import matplotlib

    matplotlib.use("agg")
    space = {"__name__": "__main__"}
    found = exercises(notebook)
    wanted = _needed(notebook, [c for pair in found for c in pair])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cell in wanted:
            source = cell.source.replace('profile = "ci"', 'profile = "smoke"')
            exec(compile(execute.code_of({"cells": [{"cell_type": "code", "source": source}]}), cell.id, "exec"), space)
        for solution, test in found:
            student = compile(f"{blank(solution.source)}\n{test.source}", test.id, "exec")
            with pytest.raises(Exception):  # noqa: B017, PT011  whatever the blank makes of the test
                exec(student, dict(space))
            exec(compile(solution.source, solution.id, "exec"), space)
            exec(compile(test.source, test.id, "exec"), space)


def _needed(notebook, exercise_cells: list) -> list:
    """Cells before the exercises that bind a name which those use, directly or through each other."""
    cells = [c for c in code(notebook) if "nbgrader" not in c.metadata]
    binds, uses = {}, {}
    for cell in [*cells, *exercise_cells]:
        nodes = list(ast.walk(tree(cell.source)))
        names = [n for n in nodes if isinstance(n, ast.Name)]
        uses[cell.id] = {n.id for n in names if isinstance(n.ctx, ast.Load)}
        binds[cell.id] = {n.id for n in names if isinstance(n.ctx, ast.Store)}
        binds[cell.id] |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        binds[cell.id] |= {(n.asname or n.name).partition(".")[0] for n in nodes if isinstance(n, ast.alias)}
    names, chosen = set().union(*(uses[c.id] for c in exercise_cells)), set()
    while True:
        more = {c.id for c in cells if c.id not in chosen and binds[c.id] & names}
        if not more:
            return [c for c in cells if c.id in chosen]
        chosen |= more
        names |= set().union(*(uses[i] for i in more))

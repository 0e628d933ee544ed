"""The primers: pages without a paper that come first, in one order, and keep one form."""

import json
import re

import nbformat
import pytest
import test_structure as form

from sslref import registry
from sslref.publish import execute, pages, stage

ORDER = ["representations", "three_ways", "collapse", "reading_a_claim"]
every_primer = pytest.mark.parametrize("name", ORDER)


def read(name: str):
    return nbformat.read(registry.notebook(name), as_version=4)


def prose(notebook) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_they_come_first_and_in_their_order():
    assert [name for name, part in registry.pages().items() if part == "primer"] == ORDER
    assert list(registry.pages())[: len(ORDER)] == ORDER
    assert set(ORDER) <= set(stage.executed())
    toc = pages._toc(stage.chapters(), [])
    places = [toc.index(f"- file: {page}\n") for page in ("primer/index", *(f"primer/{name}" for name in ORDER))]
    assert places == sorted(places)
    assert places[-1] < toc.index("- file: joint_embedding/index\n")


def test_their_part_has_a_page_that_leads_to_each_of_them():
    page = pages._part_page("primer", [], registry.root() / "book")
    assert page.startswith(f"# {registry.PARTS['primer']}\n")
    assert re.findall(r"\((\w+)\.ipynb\)", page)[: len(ORDER)] == ORDER
    assert "## Chapters" not in page  # they are no papers, so there are no cards of papers


def test_no_paper_belongs_to_their_part():
    given = {k: getattr(registry.get("simclr"), k) for k in registry.Paper.__dataclass_fields__}
    with pytest.raises(ValueError, match=r"part of 'simclr': expected one of joint_embedding, .*, got 'primer'"):
        registry.Paper(**(given | {"part": "primer"}))


def test_a_page_that_reads_the_ledger_is_run_again_when_the_ledger_changes():
    found = {name: {path.name for path in execute.rests_on(name)} for name in ("reading_a_claim", "mask_strategies")}
    assert {"simclr.json", "one_probe.json"} <= found["reading_a_claim"]
    assert "simclr.json" not in found["mask_strategies"]


@every_primer
def test_headings(name):
    found = re.findall(r"(?m)^(#{1,2}) +(.+?)\s*$", re.sub(r"(?s)```.*?```", "", prose(read(name))))
    assert [level for level, _ in found].count("#") == 1
    assert found[0][0] == "#"
    *_, exercise, questions, last = [title for _, title in found]
    assert exercise.startswith("Try it: ")
    assert (questions, last) == ("Think about it", "Where next")


@every_primer
def test_where_next_leads_to_chapters(name):
    links = re.findall(r"\]\(([^)#]+)", prose(read(name)).partition("## Where next")[2])
    names = [link.rpartition("/")[2].removesuffix(".ipynb") for link in links if link.endswith(".ipynb")]
    assert any(n in registry.papers() for n in names)
    for n, link in zip(names, (link for link in links if link.endswith(".ipynb")), strict=True):
        assert (registry.notebook(name).parent / link).resolve() == registry.notebook(n)


@every_primer
def test_questions_have_folded_answers(name):
    text = prose(read(name)).partition("## Think about it")[2].partition("## Where next")[0]
    answers = re.findall(r"<details><summary>An answer</summary>\n\n(.+?)\n\n</details>", text, re.DOTALL)
    assert len(answers) in (2, 3)
    assert text.count("<details>") == text.count("</details>") == len(answers)
    asked = re.sub(r"(?s)<details>.*?</details>", "", text)
    assert asked.count("?") >= len(answers)
    assert min(len(answer.split()) for answer in answers) > 15


@every_primer
def test_figures_come_before_equations(name):
    cells = read(name).cells
    figure = next(i for i, c in enumerate(cells) if c.cell_type == "code" and "show.figure(" in c.source)
    equations = [i for i, c in enumerate(cells) if c.cell_type == "markdown" and "```{math}" in c.source]
    assert all(figure < i for i in equations)


@every_primer
def test_measured_numbers_come_from_the_run(name):
    """Decimals in prose would be results that no cell computed; thought-up ones stand under "Think about it" only."""
    text = re.sub(r"(?s)```.*?```|\$[^$]*\$|`[^`]*`", "", prose(read(name)).partition("## Think about it")[0])
    text = re.sub(r"spread .{0,25}is below 0\.1\b", "", text)  # the exercise's own limit
    assert re.findall(r"\d\.\d+", text) == []


@every_primer
def test_words_of_the_field_lead_to_the_glossary(name):
    glossary = (registry.root() / "book" / "glossary.md").read_text(encoding="utf-8")
    cells = read(name).cells
    used = re.findall(r"\{term\}+`([^`]+)`", "\n".join(c.source for c in cells))
    assert len(set(used)) >= 3
    for term in used:
        target = re.sub(r".*<(.+)>", r"\1", term)
        assert re.search(rf"(?m)^{re.escape(target)}$", glossary), target


@every_primer
def test_the_exercise_is_marked_for_the_grader(name):
    from nbgrader.nbgraderformat import MetadataValidator

    notebook = read(name)
    MetadataValidator().validate_nb(notebook)
    ((solution, test),) = form.exercises(notebook)
    assert solution.metadata.nbgrader.grade_id == f"{name}-ex1"
    assert test.metadata.nbgrader.grade_id == f"{name}-ex1-test"
    assert test.metadata.nbgrader.points > 0
    assert "hide-input" in solution.metadata.tags
    assert solution.source.count(form.BEGIN) == solution.source.count(form.END) >= 1
    assert test.source.count("### BEGIN HIDDEN TESTS") == test.source.count("### END HIDDEN TESTS") == 1


@every_primer
def test_the_solution_passes_and_the_blank_fails(name, tmp_path):
    form.test_solutions_pass_and_blanks_fail(name, read(name), tmp_path)


def test_an_executed_primer_is_light():
    for name in ORDER:
        kept = execute.kept(name)
        if kept.exists():  # after `make book`
            cells = json.loads(kept.read_text(encoding="utf-8"))["cells"]
            assert sum(len(json.dumps(c["outputs"])) for c in cells if c["cell_type"] == "code") < 1_000_000

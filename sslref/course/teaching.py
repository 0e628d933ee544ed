"""What a teacher needs to know of a chapter: `book/teaching/SLUG.yml`, read and checked.

A file has the fields of `Teaching`. Its exercises, pitfalls and sections are those of the chapter; a file that
names one which is not there is refused.
"""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslref import registry

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
_REGION = re.compile(rf"(?ms)^([ \t]*){BEGIN}[^\n]*\n.*?^[ \t]*{END}[^\n]*$")


class TeachingError(ValueError):
    """A teaching file that cannot be used; the message names the file and the place."""


@dataclass(frozen=True)
class Exercise:
    """An exercise of a chapter, as its notebook has it."""

    number: int
    title: str
    time: str  # in words, "half an hour"
    points: float
    solution: str  # source of the cell with the solution regions
    tests: tuple[str, ...]  # sources of the cells that grade it

    @property
    def worth(self) -> str:
        return f"{self.points:g} {'point' if self.points == 1 else 'points'}"


@dataclass(frozen=True)
class Misconception:
    belief: str
    truth: str
    where: str  # what of the chapter uncovers it: "exercise 2", "pitfall 1", "the slider", "Train it"


@dataclass(frozen=True)
class Choice:
    text: str
    why: str
    right: bool


@dataclass(frozen=True)
class Question:
    """Of a quiz: either with choices, of which one is right, or with a number and its tolerance."""

    question: str
    choices: tuple[Choice, ...] = ()
    number: float | None = None
    tolerance: float = 0.0
    code: str = ""  # Python that computes the number, with torch and the paper's module
    why: str = ""


@dataclass(frozen=True)
class Teaching:
    goals: tuple[str, ...]  # each completes "After this chapter a student can …"
    misconceptions: tuple[Misconception, ...]
    grading: tuple[str, ...]
    short: str  # what to cut when there are 45 minutes
    quiz: tuple[Question, ...]
    wrong: Mapping[int, tuple[str, ...]]  # exercise -> a typical wrong solution, one text a solution region


def _text(**more: Any) -> dict:
    return {"type": "string", "minLength": 3, **more}


def _record(required: Mapping[str, dict], optional: Mapping[str, dict] | None = None, **more: Any) -> dict:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
        **more,
    }


def _list(items: dict, least: int, most: int) -> dict:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


_PLACES = {
    "exercise": {"type": "integer"},
    "pitfall": {"type": "integer"},
    "slider": {"const": True},
    "section": _text(),
}
_CHOICE = _record({"text": _text(), "why": _text()}, {"right": {"const": True}})
_QUESTION = {
    "type": "object",
    "if": {"required": ["choices"]},
    "then": _record({"question": _text(), "choices": _list(_CHOICE, 3, 5)}),
    "else": _record(
        {
            "question": _text(),
            "number": {"type": "number"},
            "tolerance": {"type": "number", "minimum": 0},
            "code": _text(),
            "why": _text(),
        }
    ),
}
SCHEMA = _record(
    {
        "goals": _list(_text(pattern=r"[^.]$"), 3, 3),
        "misconceptions": _list(_record({"belief": _text(), "truth": _text()}, _PLACES), 2, 4),
        "grading": _list(_text(), 1, 8),
        "short": _text(),
        "quiz": _list(_QUESTION, 4, 6),
        "wrong": {"type": "object", "additionalProperties": {"anyOf": [_text(), _list(_text(), 1, 9)]}},
    }
)


def path(slug: str) -> Path:
    """Where the teaching file of a chapter stands (it may not exist yet)."""
    return registry.root() / "book" / "teaching" / f"{slug}.yml"


def notebook(slug: str) -> dict:
    """The chapter's notebook, its sources as text. Raises UnknownPaper, or TeachingError where it has none yet."""
    file = registry.notebook(registry.get(slug).slug)
    if not file.exists():
        raise TeachingError(f"{slug}: expected a chapter, its notebook is not written yet")
    found = json.loads(file.read_text(encoding="utf-8"))
    for cell in found["cells"]:
        cell["source"] = "".join(cell["source"])
    return found


def sections(cells: list[dict]) -> dict[str, list[dict]]:
    """Cells by the heading of the second level above them; a cell that holds headings is cut at them."""
    found: dict[str, list[dict]] = {"": []}
    title = ""
    for cell in cells:
        if cell["cell_type"] != "markdown":
            found[title].append(cell)
            continue
        for part in re.split(r"(?m)^(?=## )", cell["source"]):
            if part.startswith("## "):
                line, _, part = part.partition("\n")
                title = line[3:].strip()
                found[title] = []
            if part.strip():
                found[title].append(cell | {"source": part.strip()})
    return found


def exercises(cells: list[dict]) -> dict[int, Exercise]:
    """The graded exercises of a chapter by number."""
    found: dict[int, list] = {}
    heads = {}
    for cell in cells:
        marks = cell["metadata"].get("nbgrader", {})
        if cell["cell_type"] == "markdown":
            for number, title, time in re.findall(r"(?m)^### (\d+)\. (.+?) *\(([^()]+)\)\s*$", cell["source"]):
                heads[int(number)] = (title, time)
        elif number := re.search(r"-ex(\d+)(-test.*)?$", marks.get("grade_id", "")):
            found.setdefault(int(number[1]), []).append(cell)
    made = {}
    for number, group in found.items():
        graded = [c for c in group if c["metadata"]["nbgrader"]["grade"]]
        solution = next(c["source"] for c in group if c["metadata"]["nbgrader"]["solution"])
        points = sum(c["metadata"]["nbgrader"]["points"] for c in graded)
        made[number] = Exercise(number, *heads[number], points, solution, tuple(c["source"] for c in graded))
    return made


def replaced(source: str, bodies: tuple[str, ...]) -> str:
    """The source with other code in its solution regions, one body a region.

    Raises:
        TeachingError: as many bodies as regions were expected.
    """
    count = len(_REGION.findall(source))
    if count != len(bodies):
        raise TeachingError(f"expected {count} texts, one a solution region, got {len(bodies)}")
    rest = iter(bodies)

    def body(match: re.Match) -> str:
        return "\n".join(match[1] + line if line else "" for line in next(rest).rstrip().splitlines())

    return _REGION.sub(body, source)


@functools.cache
def load(slug: str) -> Teaching:
    """The teaching file of a chapter.

    Raises:
        UnknownPaper: no paper has this slug.
        TeachingError: the file is missing or is not as `Teaching` and the chapter want it.
    """
    import yaml
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    cells = notebook(slug)["cells"]
    file = path(slug)
    name = file.relative_to(registry.root()).as_posix()
    if not file.exists():
        raise TeachingError(f"{name}: not there; CONTRIBUTING.md says what it holds")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise TeachingError(f"{name}: expected YAML, got {' '.join(str(error).split())}") from None
    if isinstance(data, dict) and isinstance(data.get("wrong"), dict):  # JSON, which the schema is about, has text keys
        data["wrong"] = {str(k): v for k, v in data["wrong"].items()}
    error = best_match(Draft202012Validator(SCHEMA).iter_errors(data))
    if error:
        raise TeachingError(f"{name}: {error.json_path.removeprefix('$.')}: {error.message}")
    try:
        return _checked(data, cells)
    except TeachingError as error:
        raise TeachingError(f"{name}: {error}") from None


def _checked(data: dict, cells: list[dict]) -> Teaching:
    """What the schema cannot know: places are in the chapter, one choice is right, wrong solutions fit their cells."""
    parts, work = sections(cells), exercises(cells)
    pitfalls = len(re.findall(r"(?m)^\*\*", "\n".join(_said(parts.get("Pitfalls", ())))))
    misconceptions = []
    for i, m in enumerate(data["misconceptions"]):
        kinds = [k for k in _PLACES if k in m]
        if len(kinds) != 1:
            raise TeachingError(f"misconceptions[{i}]: expected one of {', '.join(_PLACES)}, got {kinds or 'none'}")
        kind, value = kinds[0], m[kinds[0]]
        there = {
            "exercise": list(work),
            "pitfall": list(range(1, pitfalls + 1)),
            "slider": [True],
            "section": list(parts),
        }[kind]
        if value not in there:
            raise TeachingError(f"misconceptions[{i}]: expected {kind} to be one of {there}, got {value!r}")
        where = {"slider": "the slider", "section": value}.get(kind, f"{kind} {value}")
        misconceptions.append(Misconception(m["belief"], m["truth"], where))
    quiz = []
    for i, q in enumerate(data["quiz"]):
        choices = tuple(Choice(c["text"], c["why"], c.get("right", False)) for c in q.get("choices", ()))
        if choices and (right := sum(c.right for c in choices)) != 1:
            raise TeachingError(f"quiz[{i}]: expected exactly one right choice, got {right}")
        quiz.append(Question(**(q | {"choices": choices})))
    if set(data["wrong"]) != set(map(str, work)):
        raise TeachingError(f"wrong: expected exercises {', '.join(map(str, work))}, got {', '.join(data['wrong'])}")
    wrong = {int(n): (w,) if isinstance(w, str) else tuple(w) for n, w in data["wrong"].items()}
    for number, bodies in wrong.items():
        try:
            compile(replaced(work[number].solution, bodies), f"wrong.{number}", "exec")
        except (TeachingError, SyntaxError) as error:
            raise TeachingError(f"wrong.{number}: {error}") from None
    return Teaching(
        tuple(data["goals"]), tuple(misconceptions), tuple(data["grading"]), data["short"].strip(), tuple(quiz), wrong
    )


def _said(cells: Any) -> list[str]:
    return [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]

"""Quizzes with jupyterquiz: the students' questions without the key, the teacher's with it."""

import re
from collections.abc import Callable
from typing import Any

from sslref.course import tex
from sslref.course.teaching import Question

_NEUTRAL = {"--jq-incorrect-color": "#345995", "--jq-correct-color": "#345995"}


def questions(quiz: tuple[Question, ...], *, key: bool) -> list[dict[str, Any]]:
    """Questions as jupyterquiz reads them, with mathematics as MathML.

    Args:
        quiz: of a teaching file.
        key: with the answers and their reasons; without, every answer is only noted.
    """
    texts: list[str] = []

    def note(text: str) -> str:
        texts.append(re.sub(r"`([^`]+)`", r"<code>\1</code>", " ".join(text.split())))
        return ""

    for q in quiz:
        _question(q, key, note)
    made = iter(tex.mathml(texts))  # all formulas at once
    return [_question(q, key, lambda _: next(made)) for q in quiz]


def _question(q: Question, key: bool, say: Callable[[str], str]) -> dict[str, Any]:
    found: dict[str, Any] = {"question": say(q.question), "type": "multiple_choice" if q.choices else "numeric"}
    choices = sorted(q.choices, key=lambda c: c.text)  # the order of the file must not tell which is right
    if q.choices and key:
        found["answers"] = [{"answer": say(c.text), "correct": c.right, "feedback": say(c.why)} for c in choices]
    elif q.choices:
        found["answers"] = [{"answer": say(c.text), "correct": False, "feedback": "Noted."} for c in choices]
    elif key:  # jupyterquiz takes the upper end of a range out
        low, high = q.number - q.tolerance - 1e-9, q.number + q.tolerance + 1e-9
        right = {"type": "range", "range": [low, high], "correct": True, "feedback": say(q.why)}
        found["answers"] = [right, {"type": "default", "feedback": "No. Try again."}]
    else:
        found["answers"] = [{"type": "default", "feedback": "Noted."}]
    return found


def notebook(title: str, file: str, *, key: bool) -> dict:
    """The notebook that shows the questions of a file next to it."""
    said = (
        "With the key: each answer is judged at once, with its reason."
        if key
        else "Run the cell below. Choose an answer; in a field, type a number and press Enter. What you chose "
        "is listed at the end: copy it into the last cell before you hand this in."
    )
    show = "display_quiz(questions)" if key else f"display_quiz(questions, preserve_responses=True, colors={_NEUTRAL})"
    code = (
        "import json\nfrom pathlib import Path\n\nfrom jupyterquiz import display_quiz\n\n"
        f'questions = json.loads(Path("{file}").read_text(encoding="utf-8"))\n{show}'
    )
    cells: list[dict] = [
        {"cell_type": "markdown", "id": "quiz-title", "metadata": {}, "source": f"# Quiz: {title}\n\n{said}"},
        {
            "cell_type": "code",
            "id": "quiz",
            "metadata": {},
            "source": code,
            "outputs": [],
            "execution_count": None,
        },
    ]
    if not key:
        cells.append({"cell_type": "markdown", "id": "answers", "metadata": {}, "source": "Replace Me"})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}

"""The teaching guide of the book: what the teaching files say, without the answers of the quizzes."""

from collections.abc import Iterable

from sslref import registry
from sslref.course import teaching


def page(slugs: Iterable[str]) -> str:
    """Markdown of the guide's generated part: one section a chapter that has a teaching file.

    Args:
        slugs: chapters of the book, in order.

    Raises:
        TeachingError: a teaching file cannot be used.
    """
    return "\n".join(chapter(slug) for slug in slugs if teaching.path(slug).exists()) or "Not written yet.\n"


def goals(about: teaching.Teaching) -> list[str]:
    """The goals as lines of a list that completes a sentence."""
    return [f"- {goal}{'.' if i == len(about.goals) else ','}" for i, goal in enumerate(about.goals, 1)]


def chapter(slug: str, *, link: bool = True) -> str:
    """The section of one chapter; with a link to it where it stands in the book."""
    about, cells = teaching.load(slug), teaching.notebook(slug)["cells"]
    work = teaching.exercises(cells)
    title = next(line[2:] for c in cells if c["cell_type"] == "markdown" for line in c["source"].splitlines() if line)
    head = f"[{title}]({registry.get(slug).part}/{slug}.ipynb)" if link else title
    lines = [f"## {head}\n", "After this chapter a student can\n", *goals(about)]
    lines += ["\n**What students believe, and what uncovers it.**\n"]
    for m in about.misconceptions:
        where = m.where
        if where.startswith("exercise "):
            where += f", *{work[int(where.split()[1])].title}*"
        elif not where.startswith(("pitfall ", "the slider")):
            where = f"the section *{where}*"
        stop = "" if where.endswith("?*") else "."
        lines += [f"- *{m.belief}* {' '.join(m.truth.split())} Uncovered by {where}{stop}"]
    exercises = "; ".join(f"{e.title} ({e.time}), {e.worth}" for e in work.values())
    lines += [f"\n**Grading.** {exercises}.\n", *(f"- {' '.join(note.split())}" for note in about.grading)]
    lines += [f"\n**With 45 minutes.** {' '.join(about.short.split())}\n"]
    return "\n".join(lines) + "\n"

"""Sentences, tables and progress with numbers from the run."""

import re
import shutil
import string
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sslref.show import _html


class _Sentence(string.Formatter):
    """str.format with a reader's numbers: a true minus sign, three digits where no format is given."""

    def format_field(self, value: Any, spec: str) -> str:
        value = _html.scalar(value)
        if isinstance(value, str):
            return re.sub(r"([\\`*_\[\]<>$|])", r"\\\1", format(value, spec))
        if not spec:
            return _html.number(value)
        if isinstance(value, float) and value != value:
            return "not a number"
        return (
            format(value, spec).replace("-", "\N{MINUS SIGN}")
            if isinstance(value, int | float)
            else format(value, spec)
        )

    def get_value(self, key: int | str, args: Sequence, kwargs: Mapping) -> Any:
        if key not in kwargs:
            raise ValueError(f"text: names {key!r}, but the values are {', '.join(kwargs) or 'none'}")
        return kwargs[key]

    def check_unused_args(self, used: set, args: Sequence, kwargs: Mapping) -> None:
        unused = set(kwargs) - used
        if unused:
            raise ValueError(f"values: the text does not use {', '.join(sorted(unused))}")


def say(text: str, /, **values: Any) -> _html.Html:
    """Show a sentence (Markdown) with numbers from the run: `say("The gap is {gap:.1f} points.", gap=gap)`.

    Values that are text are escaped. Braces of mathematics are doubled.

    Raises:
        ValueError: the text names a value that is not given, or leaves one out.
    """
    content = _Sentence().format(text, **values)
    return _html.emit(content, re.sub(r"\\([^\w\s])", r"\1", content), mime="text/markdown")


def _is_number(value: Any) -> bool:
    value = _html.scalar(value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def table(rows: Sequence, *, columns: Sequence[str] | None = None, caption: str = "") -> _html.Html:
    """Show a table; the first column names the rows.

    Args:
        rows: dicts (their keys are the columns) or lists. Floats are set with three digits, numbers to the right.
        columns: heads of the columns; for dicts: which keys, in which order.
        caption: what the table shows.

    Raises:
        ValueError: no rows, or rows of unequal length.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("rows: expected at least one, got none")
    if isinstance(rows[0], Mapping):
        columns = list(columns or rows[0])
        missing = [c for r in rows for c in columns if c not in r]
        if missing:
            raise ValueError(f"rows: every row needs {', '.join(columns)}, one lacks {missing[0]!r}")
        rows = [[r[c] for c in columns] for r in rows]
    width = len(columns) if columns else len(rows[0])
    wrong = [r for r in rows if len(r) != width]
    if wrong:
        raise ValueError(f"rows: expected {width} values in each, got {len(wrong[0])}")

    numeric = [all(_is_number(r[i]) for r in rows) for i in range(width)]

    def cell(value: Any, i: int, tag: str) -> str:
        scope = {"td": "", "th": ' scope="row"', "head": ' scope="col"'}[tag]
        tag = "td" if tag == "td" else "th"
        kind = ' class="num"' if i and numeric[i] else ""
        return f"<{tag}{scope}{kind}>{_html.text(_html.number(value))}</{tag}>"

    head = "".join(cell(c, i, "head") for i, c in enumerate(columns or ()))
    content = (
        '<div class="sslref-scroll"><table class="sslref-table">'
        + (f"<caption>{_html.text(caption)}</caption>" if caption else "")
        + (f"<thead><tr>{head}</tr></thead>" if head else "")
        + "<tbody>"
        + "".join(f"<tr>{''.join(cell(v, i, 'td' if i else 'th') for i, v in enumerate(r))}</tr>" for r in rows)
        + "</tbody></table></div>"
    )
    plain = "\n".join("  ".join(_html.number(v) for v in r) for r in ([columns] if columns else []) + rows)
    return _html.emit(content, plain)


class progress:
    """One line that tells how far a run is, updated in place; its last state stays on the page.

    Called with (step, steps, values), as `train.fit` and `claims.run` do; values are a dict of numbers or a text.
    In a terminal the line is rewritten, in a file only the last state is written.
    """

    def __init__(self, label: str, *, every: float = 0.2):
        self.label, self.every = label, every
        self._start = self._shown = None
        self._handle, self._line = None, ""

    def __call__(self, step: int, steps: int, values: Mapping[str, float] | str | None = None) -> None:
        now = time.perf_counter()
        if self._start is None:
            self._start = now
        done = step >= steps
        if not done and self._shown is not None and now - self._shown < self.every:
            return
        self._shown = now
        seconds = f"{now - self._start:.1f} s"
        if isinstance(values, str):
            what, rest = "runs", [values] if values and not done else []
        else:
            what, rest = "steps", [f"{name} {_html.number(float(v))}" for name, v in (values or {}).items()]
        if done:
            self._write(f"{self.label}: {', '.join([f'{steps} {what}', seconds, *rest])}", last=True)
            self._start = self._shown = None
        else:
            full = round(20 * step / steps)
            bar = "█" * full + "░" * (20 - full)
            self._write(f"{self.label} {bar} {', '.join([f'{step} of {steps}', seconds, *rest])}")

    def _write(self, line: str, *, last: bool = False) -> None:
        if _html.in_notebook():
            from IPython.display import display

            bundle = {"text/plain": line}
            if self._handle is None:
                self._handle = display(bundle, raw=True, display_id=True)
            else:
                self._handle.update(bundle, raw=True)
        elif sys.stdout.isatty():
            # the cursor waits below the line, so that whatever comes next, an error for instance, begins there
            again = "\x1b[A\x1b[2K" if self._line else ""
            print(again + line[: shutil.get_terminal_size().columns - 1], flush=True)
        elif last:
            print(line, flush=True)
        self._line = "" if last else line
        if last:
            self._handle = None

    def __enter__(self) -> "progress":
        return self

    def __exit__(self, *error) -> None:
        self._handle, self._start, self._shown, self._line = None, None, None, ""

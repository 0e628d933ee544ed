"""Putting HTML and text on the page, and writing numbers for readers."""

import html
import math
import re
import sys


class Html(str):
    """HTML that is on the page already: as the last value of a cell it is not shown a second time."""

    __slots__ = ()

    def _ipython_display_(self) -> None:
        pass


def in_notebook() -> bool:
    """Whether IPython runs this code."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def emit(content: str, plain: str, mime: str = "text/html") -> Html:
    """Display content where IPython runs (consoles get the plain text), and return it."""
    if in_notebook():
        from IPython.display import display

        display({mime: content, "text/plain": plain}, raw=True)
    return Html(content)


def text(value: object) -> str:
    """Escaped text in which `code` between backticks is set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(str(value)))


def attribute(value: object) -> str:
    """Escaped text for a double-quoted attribute, on one line."""
    return html.escape(" ".join(str(value).split()))


def checked_alt(alt: str) -> str:
    """The alternative text on one line. Raises ValueError unless it is a sentence that says what is to be seen."""
    if not isinstance(alt, str):
        raise TypeError(f"alt: expected text, got {type(alt).__name__}")
    alt = " ".join(alt.split())
    is_file = re.search(r"\.(png|jpe?g|svg|webp|gif|pdf)$", alt, re.IGNORECASE)
    if len(alt) < 20 or len(alt.split()) < 4 or is_file:
        raise ValueError(
            f"alt: expected a sentence of 20 characters or more that says what the figure shows, got {alt!r}"
        )
    return alt


def fixed(value: float, decimals: int, *, sign: bool = False) -> str:
    """A number with a true minus sign; "not a number" and infinities in words."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinity" if value > 0 else "minus infinity"
    shown = f"{abs(value):.{decimals}f}"
    negative = value < 0 and float(shown) != 0
    return ("\N{MINUS SIGN}" if negative else "+" if sign else "") + shown


def scalar(value: object) -> object:
    """A tensor or array without axes as the Python number in it, everything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def number(value: object) -> str:
    """A value as a reader wants it: floats with three digits, everything else as it is."""
    value = scalar(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace("-", "\N{MINUS SIGN}")
    if not math.isfinite(value) or value == 0:
        return fixed(value, 0)
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent < 6:
        return fixed(value, max(0, 2 - exponent))
    return f"{value:.2e}".replace("-", "\N{MINUS SIGN}")


def decimals_for(half_width: float) -> int:
    """Decimals that show two digits of the half-width of an interval."""
    if not math.isfinite(half_width) or half_width <= 0:
        return 2
    return min(max(1 - math.floor(math.log10(half_width)), 0), 8)

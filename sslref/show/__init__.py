"""What a notebook displays: figures, sliders, live source, claims, text with numbers, progress.

One look for the whole book. All of it reads on light and dark pages, in grey, on a phone and in print, carries written
alternative text, and needs nothing from another host. Outside a notebook the functions return the same HTML as text.
"""

from sslref.show._chapter import chapter
from sslref.show._claims import evidence, forest, strip, verdict
from sslref.show._figures import curves, figure, matrix, pictures
from sslref.show._look import INK, MARKERS, PALETTE, PAPER, style
from sslref.show._slider import slider
from sslref.show._source import source
from sslref.show._text import progress, say, table

__all__ = [
    "INK",
    "MARKERS",
    "PALETTE",
    "PAPER",
    "chapter",
    "curves",
    "evidence",
    "figure",
    "forest",
    "matrix",
    "pictures",
    "progress",
    "say",
    "slider",
    "source",
    "strip",
    "style",
    "table",
    "verdict",
]

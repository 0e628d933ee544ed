"""Colours and the matplotlib style of the book."""

import functools
from pathlib import Path

# One colour a role, the same everywhere, as text too: 4.5:1 or more on white; style.css gives each its partner for
# dark pages, as far from #14181e. Any two stay apart (CIE76 distance of 9 or more) for normal, red-, green- and
# blue-blind sight. Lightness alone cannot tell seven such colours apart: in grey, markers and labels do.
PALETTE = {
    "baseline": "#707070",
    "method": "#1976b4",
    "ablation": "#096586",
    "ablation2": "#2e48ab",
    "positive": "#1a5d38",
    "negative": "#b0540d",
    "highlight": "#9b1773",
}
PALETTE["hidden"] = PALETTE["baseline"]  # drawn hatched
MARKERS = {"baseline": "o", "method": "D", "ablation": "s", "ablation2": "^", "positive": "P", "negative": "X"}

# Stand-ins that `figure` replaces by the page's own text and background colours.
INK = "#010203"
PAPER = "#fdfeff"


def style() -> None:
    """Set matplotlib (and with it seaborn) to the book's look: transparent, in the page's text colour, no frame."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.figsize": (5.6, 3.0),  # at this width 10 pt text is still 9 px high on a phone
            "figure.facecolor": "none",
            "figure.edgecolor": "none",
            "axes.facecolor": "none",
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlesize": 10,
            "axes.titlecolor": INK,
            "axes.labelsize": 10,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(
                color=[PALETTE[k] for k in ("method", "negative", "positive", "highlight", "ablation2", "baseline")]
            ),
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "grid.color": INK,
            "grid.alpha": 0.15,
            "grid.linewidth": 0.6,
            "patch.edgecolor": INK,
            "hatch.color": INK,
            "hatch.linewidth": 0.6,
            "boxplot.boxprops.color": INK,
            "boxplot.whiskerprops.color": INK,
            "boxplot.capprops.color": INK,
            "boxplot.flierprops.color": INK,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            "font.size": 10,
            "mathtext.fontset": "dejavusans",
            "image.interpolation": "none",  # pictures are embedded with their own pixels
            "image.cmap": "viridis",
            "svg.fonttype": "none",
        }
    )


@functools.cache
def css() -> str:
    """The style sheet of the HTML blocks."""
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")

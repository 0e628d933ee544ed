"""A slider that needs no kernel: every frame is drawn beforehand, and the browser picks one."""

from collections.abc import Callable, Sequence
from typing import Any

from sslref.show import _figures, _html

LIMIT = 1_000_000  # bytes of all frames


def slider(
    make: Callable[[Any], Any],
    values: Sequence[Any],
    *,
    label: str,
    alt: str | Callable[[Any], str],
    caption: str = "",
    start: int = 0,
    kind: str = "svg",
):
    """Show `make(value)` for the value that the reader picks; works in the published page and in JupyterLab.

    An IntSlider is linked in the browser to a Stack of pre-rendered figures; on paper, the frame that is shown stands
    alone. All frames are cut to one size, so keep the axes' limits fixed in `make`.

    Args:
        make: draws a new figure for one value.
        values: two values or more, in order; floats are labelled with three digits.
        label: what the values are, with the unit, e.g. "temperature".
        alt: alternative text, or a function of the value.
        caption: what to look for, shown above the slider.
        start: index of the first value to show.
        kind: "svg" or "webp", as for `figure`.

    Returns:
        None in a notebook, where it is shown; elsewhere the widget.

    Raises:
        ValueError: fewer than two values, start outside, frames of more than 1 MB in all.
    """
    import ipywidgets as widgets
    from matplotlib.transforms import Bbox

    values = list(values)
    if len(values) < 2:
        raise ValueError(f"values: expected two or more, got {len(values)}")
    if not 0 <= start < len(values):
        raise ValueError(f"start: expected an index from 0 to {len(values) - 1}, got {start}")
    names = [f"{v:.3g}".replace("-", "\N{MINUS SIGN}") if isinstance(v, float) else str(v) for v in values]
    alts = [
        _html.checked_alt(alt(v) if callable(alt) else f"{alt} {label} = {n}.")
        for v, n in zip(values, names, strict=True)
    ]

    figures = []
    for value in values:
        figures.append(_figures.laid_out(make(value)))
        _figures.close(figures[-1])
    if len({id(f) for f in figures}) < len(figures):
        raise ValueError("make: expected a new figure for every value, got the same one again")
    boxes = [f.get_tightbbox() for f in figures]
    box = Bbox.union(boxes).padded(0.03)
    drawn = [_figures.render(f, alt=a, kind=kind, bbox=box) for f, a in zip(figures, alts, strict=True)]
    frames = [
        f'<div class="sslref-frame"><p><span>{_html.text(label)}</span> = <b>{_html.text(n)}</b></p>{d}</div>'
        for n, d in zip(names, drawn, strict=True)
    ]
    size = sum(len(f.encode()) for f in frames)
    if size > LIMIT:
        raise ValueError(
            f"values: {len(frames)} frames take {size / 1e6:.1f} MB, the limit is {LIMIT / 1e6:.0f} MB; take fewer "
            'values, draw fewer marks, or kind="webp"'
        )

    pick = widgets.IntSlider(
        value=start,
        min=0,
        max=len(frames) - 1,
        description=label,
        readout=False,
        style={"description_width": "initial"},
        layout={"width": "100%", "max_width": "540px"},
    )
    stack = widgets.Stack([widgets.HTML(f) for f in frames], selected_index=start)
    widgets.jslink((pick, "value"), (stack, "selected_index"))
    note = [widgets.HTML(f'<p class="sslref-caption">{_html.text(caption)}</p>')] if caption else []
    box = widgets.VBox([*note, pick, stack])
    box.add_class("sslref-slider")
    if not _html.in_notebook():
        return box
    from IPython.display import display

    display(box)
    return None

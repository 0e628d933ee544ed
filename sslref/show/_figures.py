"""Figures on the page, and the three drawings that many chapters share."""

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sslref.show import _html, _svg
from sslref.show._look import INK, PALETTE

_GREY = "#777777"  # the one ink that can be read on white and on the dark page, where text is part of a bitmap


def figure(fig, *, alt: str, caption: str = "", kind: Literal["svg", "webp"] = "svg") -> _html.Html:
    """Show a figure and close it.

    Args:
        fig: matplotlib Figure, Axes, or a seaborn grid.
        alt: a sentence that says what the figure shows, for readers who do not see it.
        caption: text under the figure; `code` between backticks.
        kind: "svg" takes text and lines in the page's own font and colour, and pictures with their own pixels;
            "webp" is one bitmap, for drawings with thousands of marks. Its text is grey: keep it short.

    Raises:
        ValueError: alt is too short or a file's name, kind is unknown.
    """
    alt = _html.checked_alt(alt)
    body = render(fig, alt=alt, kind=kind)
    legend = f"<figcaption>{_html.text(caption)}</figcaption>" if caption else ""
    close(fig)
    return _html.emit(f'<figure class="sslref-figure">{body}{legend}</figure>', f"[figure] {alt} {caption}".strip())


def render(fig, *, alt: str, kind: str = "svg", bbox="tight") -> str:
    """The figure as `<svg>` or `<img>`, without caption."""
    if kind not in ("svg", "webp"):
        raise ValueError(f'kind: expected "svg" or "webp", got {kind!r}')
    fig = _figure_of(fig)
    laid_out(fig)
    _transparent(fig)
    if kind == "svg":
        return _svg.to_svg(fig, alt=alt, bbox=bbox)
    from PIL import Image

    _recolour(fig)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=_svg.DENSITY, bbox_inches=bbox, pad_inches=0.03)
    picture = Image.open(buffer)
    data = base64.b64encode(_svg.webp(picture)).decode()
    width, height = (math.ceil(s / 2) for s in picture.size)
    return f'<img alt="{_html.attribute(alt)}" width="{width}" height="{height}" src="data:image/webp;base64,{data}">'


def close(fig) -> None:
    """Forget a figure, so that the notebook does not show it again."""
    import matplotlib.pyplot as plt

    plt.close(_figure_of(fig))


def laid_out(fig):
    """The figure with room for all its labels, unless it has a layout of its own (as seaborn's grids have)."""
    fig = _figure_of(fig)
    if fig.get_layout_engine() is None:
        fig.set_layout_engine("constrained")
    fig.draw_without_rendering()
    return fig


def _figure_of(fig):
    from matplotlib.figure import Figure

    found = getattr(fig, "figure", fig)  # Axes and seaborn's grids know their figure
    if not isinstance(found, Figure):
        raise TypeError(f"fig: expected a matplotlib Figure or Axes, got {type(fig).__name__}")
    return found


def _transparent(fig) -> None:
    """White grounds, which matplotlib gives a figure that was made before `style` was called, let the page through."""
    for patch in (fig.patch, *(ax.patch for ax in fig.axes)):
        if patch.get_facecolor()[:3] == (1, 1, 1):
            patch.set_facecolor("none")


def _recolour(fig) -> None:
    """Ink becomes the grey that can be read on both grounds."""
    from matplotlib.colors import to_rgb, to_rgba_array

    for artist in fig.findobj():
        for name in ("color", "facecolor", "edgecolor", "hatchcolor", "markerfacecolor", "markeredgecolor"):
            get, put = getattr(artist, f"get_{name}", None), getattr(artist, f"set_{name}", None)
            if get is None or put is None:
                continue
            colours = to_rgba_array(get()).copy()
            ink = [tuple(c[:3]) in (to_rgb(INK), (0.0, 0.0, 0.0)) for c in colours]
            if any(ink):
                colours[ink, :3] = to_rgb(_GREY)
                put(colours if len(colours) > 1 else tuple(colours[0]))


def _array(values: Any, name: str):
    import numpy as np

    values = values.detach().cpu() if hasattr(values, "detach") else values
    values = values.float() if str(getattr(values, "dtype", "")) == "torch.bfloat16" else values
    array = np.asarray(values)
    if array.size == 0:
        raise ValueError(f"{name}: expected at least one value, got shape {array.shape}")
    return array


def pictures(
    images,
    *,
    titles: Sequence[str] | None = None,
    row_titles: Sequence[str] | None = None,
    columns: int | None = None,
    ax=None,
    scale: float = 1.0,
):
    """A grid of pictures, each with its own pixels.

    Args:
        images: (N, C, H, W) or (C, H, W), C = 1, 3 or 4; floats in [0, 1] (clipped) or uint8; nan is left transparent.
        titles: N short texts, above the pictures, broken into lines. row_titles: one text a row, to the left.
        columns: pictures a row; default: one row up to eight, then about square.
        ax: Axes to draw into; default: a new figure, 0.66 inches a picture.
        scale: factor on that size; the whole is kept within the page's width.

    Returns:
        Figure.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    tiles = _tiles(images)
    count, height, width, _ = tiles.shape
    columns = columns or (count if count <= 8 else math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    for name, given, wanted in (("titles", titles, count), ("row_titles", row_titles, rows)):
        if given is not None and len(given) != wanted:
            raise ValueError(f"{name}: expected {wanted} texts, got {len(given)}")

    gap = max(1, round(width / 16))
    step_x = width + gap
    wide = (
        min(0.66 * scale * columns * step_x / width, 5.8)
        if ax is None
        else ax.get_window_extent().width / ax.figure.dpi
    )
    cell = wide / columns * 72  # points
    titles = [textwrap.fill(t, max(4, int(cell / 4.6))) for t in titles or ()]
    head = 12 * max((t.count("\n") + 1 for t in titles), default=0) + 4  # points
    step_y = height + (max(gap, math.ceil(head * step_x / cell)) if titles else gap)

    # one mosaic with transparent gaps: one picture in the page instead of many
    mosaic = np.zeros((rows * step_y - (step_y - height), columns * step_x - gap, 4), np.uint8)
    for i, tile in enumerate(tiles):
        y, x = i // columns * step_y, i % columns * step_x
        mosaic[y : y + height, x : x + width] = tile

    if ax is None:
        high = wide * mosaic.shape[0] / mosaic.shape[1] + (head / 72 if titles else 0)
        _, ax = plt.subplots(figsize=(wide, high))
    ax.imshow(mosaic, interpolation="none")
    ax.set_axis_off()
    text = {"textcoords": "offset points", "fontsize": 9, "color": INK, "linespacing": 1.0}
    for i, title in enumerate(titles):
        at = i % columns * step_x + width / 2 - 0.5, i // columns * step_y - 0.5
        ax.annotate(title, at, (0, 3), ha="center", va="bottom", **text)
    for i, title in enumerate(row_titles or ()):
        ax.annotate(title, (-0.5, i * step_y + height / 2 - 0.5), (-5, 0), ha="right", va="center", **text)
    return ax.figure


def _tiles(images):
    """Pictures as bytes, (N, H, W, 4)."""
    import numpy as np

    array = _array(images, "images")
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[1] not in (1, 3, 4):
        raise ValueError(f"images: expected (N, 1 or 3 or 4, H, W), got shape {array.shape}")
    if array.dtype != np.uint8:
        array = array.astype(np.float64)
        holes = np.isnan(array).any(axis=1, keepdims=True)
        array = np.where(holes, np.nan, array.clip(0, 1) * 255)
    else:
        holes = np.zeros((len(array), 1, *array.shape[2:]), bool)
    colour = np.repeat(array, 3, axis=1) if array.shape[1] == 1 else array[:, :3]
    alpha = array[:, 3:] if array.shape[1] == 4 else np.full_like(array[:, :1], 255)
    rgba = np.where(holes, 0, np.concatenate([colour, alpha], axis=1))
    return rgba.round().astype(np.uint8).transpose(0, 2, 3, 1)


def _colour(label: str, index: int) -> str:
    cycle = [PALETTE[k] for k in ("method", "negative", "positive", "highlight", "ablation2", "baseline")]
    return PALETTE.get(label, cycle[index % len(cycle)])


def curves(histories, names: Sequence[str] = ("loss",)):
    """Training curves: one panel a name, one labelled line a history.

    Args:
        histories: a History (`.steps`, `.values`), or a dict label -> History; labels that are roles of PALETTE
            ("baseline", "method" ...) take their colours.
        names: logged values to draw.

    Returns:
        Figure.
    """
    import matplotlib.pyplot as plt

    many = histories if isinstance(histories, Mapping) else {"": histories}
    names = (names,) if isinstance(names, str) else tuple(names)
    for label, history in many.items():
        missing = [n for n in names if n not in history.values]
        if missing:
            raise ValueError(
                f"names: {label or 'the history'} has {', '.join(history.values)}, not {', '.join(missing)}"
            )
    columns, rows = min(2, len(names)), math.ceil(len(names) / 2)
    fig, axes = plt.subplots(rows, columns, figsize=(3.4 if columns == 1 else 5.4, 2.3 * rows), squeeze=False)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax, name in zip(axes.flat, names, strict=False):
        for i, (label, history) in enumerate(many.items()):
            ax.plot(history.steps, history.values[name], color=_colour(label, i))
        ends = [h.values[name][-1] for h in many.values()]
        _label_ends(
            ax, [h.steps[-1] for h in many.values()], ends, list(many), [_colour(k, i) for i, k in enumerate(many)]
        )
        ax.set(xlabel="step", ylabel=name)
    return fig


def _label_ends(ax, xs, ys, labels, colours) -> None:
    """Names of the lines at their right ends, pushed apart where they would overlap."""
    laid_out(ax)
    line = 12 * ax.figure.dpi / 72
    heights = [
        float(ax.transData.transform((x, y))[1]) if math.isfinite(y) else 0.0 for x, y in zip(xs, ys, strict=True)
    ]
    placed = -math.inf
    for i in sorted(range(len(ys)), key=heights.__getitem__):
        placed = max(heights[i], placed + line)
        if labels[i] and math.isfinite(ys[i]):
            offset = (6, (placed - heights[i]) * 72 / ax.figure.dpi)
            at = {"textcoords": "offset points", "va": "center", "fontsize": 9, "annotation_clip": False}
            ax.annotate(labels[i], (xs[i], ys[i]), offset, color=colours[i], **at)


def matrix(m, *, ax=None, label: str = ""):
    """A matrix as a picture with a colour scale; values of both signs get a scale that is centred at zero.

    Args:
        m: (R, C). ax: Axes to draw into. label: what the colour means, with its unit.

    Returns:
        Figure.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    values = _array(m, "m").astype(float)
    if values.ndim != 2:
        raise ValueError(f"m: expected (rows, columns), got shape {values.shape}")
    if ax is None:
        _, ax = plt.subplots(figsize=(3.6, 3.0))
    low, high = np.nanmin(values), np.nanmax(values)
    signed = low < 0 < high
    limits = {"vmin": -max(-low, high), "vmax": max(-low, high)} if signed else {}
    image = ax.imshow(values, interpolation="none", cmap="RdBu_r" if signed else "viridis", **limits)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.figure.colorbar(image, ax=ax, shrink=0.9, label=label).outline.set_visible(False)
    return ax.figure

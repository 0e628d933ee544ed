"""Pictures that the book draws for itself: the moving figure of the landing page, samples for the data page."""

import base64
import html
import io
import math

# Two drawings of each thing start apart on the circle, at these angles in degrees, and end side by side.
_THINGS = ("octopus", "motorcycle", "brain", "owl", "cactus", "strawberry")
_STARTS = ((10, 215), (75, 300), (140, 345), (38, 180), (105, 250), (160, 325))


def _webp(picture) -> str:
    """A (C, H, W) uint8 tensor as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, format="webp", lossless=True, quality=100, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def landing() -> str:
    """Drawings of emoji by two artists drift along a circle until the two drawings of each thing are neighbours."""
    from sslref.data import emoji

    drawings = {vendor: emoji("all", vendor=vendor) for vendor in ("google", "twitter")}
    marks = []
    for i, (thing, starts) in enumerate(zip(_THINGS, _STARTS, strict=True)):
        for j, (vendor, start) in enumerate(zip(drawings, starts, strict=True)):
            drawn = drawings[vendor]
            end = 60 * i + 26 * j - 13
            picture = drawn.rgba[[name.casefold() for name in drawn.names].index(thing)]
            marks.append(
                f'<g style="--from:{start}deg;--to:{end}deg"><image width="38" height="38" x="-19" y="-19" '
                f'href="{_webp(picture)}"/></g>'
            )
    alt = (
        f"Twelve drawings on a circle, two each of {', '.join(_THINGS[:-1])} and {_THINGS[-1]}, by different artists. "
        "Out of disorder they drift along the circle until the two drawings of each thing stand side by side."
    )
    return (
        f'<figure class="book-figure"><svg role="img" viewBox="-150 -150 300 300" aria-label="{html.escape(alt)}">'
        f'<circle r="120"/>{"".join(marks)}</svg>'
        "<figcaption>Two artists drew each thing. A network that was never told what the drawings show can still learn "
        "which two belong together.</figcaption></figure>\n"
    )


def _square(photograph):
    """The middle of a (3, H, W) photograph, at 80 by 80."""
    from torch.nn.functional import interpolate

    side = min(photograph.shape[1:])
    top, left = ((s - side) // 2 for s in photograph.shape[1:])
    crop = photograph[None, :, top : top + side, left : left + side]
    return interpolate(crop, size=(80, 80), mode="bilinear", antialias=True)[0]


def _series():
    """The first training series of each set, first channel."""
    import matplotlib.pyplot as plt

    from sslref import data

    names = data.series_names()
    fig, axes = plt.subplots(2, math.ceil(len(names) / 2), figsize=(5.8, 2.0))
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, name in zip(axes.flat, names, strict=False):
        ax.plot(data.series(name, "train").x[0, 0], linewidth=1)
        ax.set_title(name, fontsize=8)
    return fig


def _adjacency():
    """Arcs of the connectome as a matrix, neurons sorted by cell type."""
    import torch

    from sslref import data, show

    graph = data.connectome()
    order = graph.y.argsort(stable=True)
    arcs = torch.zeros(graph.num_nodes, graph.num_nodes)
    arcs[tuple(graph.edge_index)] = 1
    return show.pictures(1 - arcs[order][:, order][None, None], scale=4)


def samples() -> dict[str, str]:
    """Folder of a data set -> a figure that shows what is in it."""
    import torch

    from sslref import data, show

    show.style()
    chosen = torch.linspace(0, 1910, 12).long()
    emoji = [data.emoji("all", vendor=v).rgba[chosen] for v in ("google", "twitter")]
    photographs = data.photographs()
    clips = data.clips()
    drawn = {
        "emoji": (
            show.pictures(torch.cat(emoji), columns=12),
            "Two rows of twelve emoji: the same things as one artist draws them above and as another does below.",
        ),
        "animations": (
            show.pictures(data.animations("train").rgba[3][::2]),
            "Eight frames of one animated emoji on a clear ground.",
        ),
        "mnist": (
            show.pictures(data.mnist("train").images[:12], columns=12),
            "Twelve handwritten digits, white on black.",
        ),
        "digits": (
            show.pictures(
                data.digits_graph(generator=torch.Generator().manual_seed(0)).x[:12].view(-1, 1, 8, 8), columns=12
            ),
            "Twelve handwritten digits of eight by eight pixels under strong noise.",
        ),
        "photographs": (
            show.pictures(torch.stack([_square(p) for p in photographs.values()]), columns=6),
            f"Squares from the middle of {len(photographs)} photographs: {', '.join(photographs)}.",
        ),
        "clips": (
            show.pictures(
                torch.cat([clip.video[::15] for clip in clips]), columns=4, row_titles=[c.name for c in clips], scale=2
            ),
            f"Rows of four frames from the clips {', '.join(clip.name for clip in clips)}.",
        ),
        "series": (_series(), f"One line for the first series of each set: {', '.join(data.series_names())}."),
        "connectome": (
            _adjacency(),
            "Matrix of the arcs between neurons sorted by cell type; the blocks show which types are wired to which.",
        ),
        "medical": (
            show.pictures(data.brain().t1[15:71:11, None], columns=6, scale=2),
            "Six horizontal slices through a brain, from the cerebellum to the top of the cortex.",
        ),
    }
    return {name: str(show.figure(fig, alt=alt)) for name, (fig, alt) in drawn.items()}

import base64
import io
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sslref import show
from sslref.show import _look, _svg

ALT = "A line that rises from zero to three."


def line(plt):
    fig, ax = plt.subplots()
    ax.plot([0, 1, 3], marker="o", color=show.PALETTE["method"])
    ax.set(xlabel="time (s)", ylabel="$\\tau$ (rad)")
    ax.bar([0.5], [1.0], hatch="///", facecolor="none")
    return fig


def svg(content: str) -> ET.Element:
    return ET.fromstring(re.search(r"<svg.*</svg>", content, re.DOTALL)[0])


def embedded(content: str) -> list[Image.Image]:
    found = re.findall(r"data:image/webp;base64,([^\"]+)", content)
    return [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA") for data in found]


def test_figure_is_a_named_svg_with_an_escaped_caption(plt, page):
    shown = page(show.figure(line(plt), alt='Below "2" & above <1> it rises.', caption="a < b & `c`"))
    assert shown.all("svg")[0]["role"] == "img"
    assert shown.all("svg")[0]["aria-label"] == 'Below "2" & above <1> it rises.'
    assert shown.all("figure") == [{"class": "sslref-figure"}]
    assert "a < b & c" in shown.text
    assert len(shown.all("code")) == 1
    assert shown.loads() == []


def test_figure_is_closed_and_grids_and_axes_are_taken(plt):
    fig = line(plt)
    show.figure(fig.axes[0], alt=ALT)
    assert plt.get_fignums() == []
    with pytest.raises(TypeError, match="fig: expected a matplotlib Figure"):
        show.figure("line.png", alt=ALT)


def test_text_takes_colour_and_font_of_the_page(plt):
    root = svg(show.figure(line(plt), alt=ALT))
    texts = [e for e in root.iter() if e.tag.endswith("text")]
    assert "time (s)" in [t.text for t in texts]
    for element in root.iter():
        assert not {"font-family", "style", "font"} & set(element.attrib)
        values = " ".join(element.attrib.values())
        assert _look.INK not in values
        assert "#000000" not in values
    fills = {t.get("fill", "currentColor") for t in texts}
    assert fills == {"currentColor"}
    assert root.get("fill") == "currentColor"
    assert not [e for e in root.iter() if e.tag.endswith("style")]  # a rule for * would reach the page


def test_plain_black_and_white_figures_are_adapted(plt):
    with plt.rc_context({**__import__("matplotlib").rcParamsDefault, "svg.fonttype": "none"}):
        fig, ax = plt.subplots()
        ax.plot([1, 2], color="black")
        content = show.figure(fig, alt=ALT)
    assert "#000000" not in content
    assert "#ffffff" not in content
    assert "currentColor" in content


def test_role_colours_are_variables_that_the_style_sheet_answers(plt):
    content = show.figure(line(plt), alt=ALT)
    assert f"var(--sslref-method,{show.PALETTE['method']})" in content
    for role, colour in show.PALETTE.items():
        if role != "hidden":
            assert f"--sslref-{role}: #" in show._look.css()
            assert f'"var(--sslref-{role},{colour})"' in repr(list(_svg._PAGE_COLOURS.values())).replace("'", '"')


def luminance(colour: str) -> float:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_role_colours_can_be_read_as_text():
    dark = dict(re.findall(r"--sslref-(\w+): (#\w+)", show._look.css()))
    for role, colour in show.PALETTE.items():
        assert contrast(colour, "#ffffff") >= 4.5
        if role != "hidden":
            assert contrast(dark[role], "#14181e") >= 4.5


# what red-, green- and blue-blind eyes see of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1)
SIGHT = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("sight", SIGHT)
def test_role_colours_stay_apart_for_every_sight(sight):
    color = pytest.importorskip("skimage.color")
    light = {role: colour for role, colour in show.PALETTE.items() if role != "hidden"}
    for colours in (light, dict(re.findall(r"--sslref-(\w+): (#\w+)", show._look.css()))):
        assert colours.keys() == light.keys()
        rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours.values()])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen = np.clip(linear @ np.transpose(SIGHT[sight]), 0, 1)
        lab = color.rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
        distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 100 * np.eye(len(lab))
        assert distance.min() >= 9


def test_ids_differ_between_figures_and_every_reference_has_its_target(plt, page):
    first, second = (page(show.figure(line(plt), alt=ALT)) for _ in range(2))
    assert first.ids
    assert not set(first.ids) & set(second.ids)
    for shown in (first, second):
        assert len(set(shown.ids)) == len(shown.ids)
        values = [v for _, a in shown.tags for v in a.values()]
        wanted = {m for v in values for m in re.findall(r"url\(#([^)]+)\)", v)}
        wanted |= {a["href"][1:] for _, a in shown.tags if a.get("href", "").startswith("#")}
        assert wanted
        assert wanted == set(shown.ids)


@pytest.mark.parametrize(
    "alt", ["", "short", "figure_of_the_loss_curve.png", "a b c d.webp", "twentycharactersinoneword"]
)
@pytest.mark.parametrize("kind", ["svg", "webp"])
def test_alternative_text_is_demanded(plt, alt, kind):
    with pytest.raises(ValueError, match="alt: expected a sentence"):
        show.figure(line(plt), alt=alt, kind=kind)
    with pytest.raises(TypeError, match="alt: expected text"):
        show.figure(line(plt), alt=None, kind=kind)


def test_kind_is_checked(plt):
    with pytest.raises(ValueError, match="kind: expected"):
        show.figure(line(plt), alt=ALT, kind="pdf")


def test_webp_is_one_transparent_bitmap_at_two_pixels_a_dot(plt, page):
    content = show.figure(line(plt), alt='A "line" that rises from zero.', kind="webp")
    (image,) = page(content).all("img")
    assert image["alt"] == 'A "line" that rises from zero.'
    (bitmap,) = embedded(content)
    assert abs(bitmap.width - 2 * int(image["width"])) <= 1
    assert 480 < int(image["width"]) < 560  # 5.6 inches of 96 pixels, tightly cut
    assert bitmap.getpixel((0, 0))[3] == 0
    ink = [p[:3] for _, p in bitmap.getcolors(bitmap.width * bitmap.height) if p[3] == 255]
    assert min(max(p) for p in ink) > 80  # no black, which a dark page would swallow


def test_pictures_keep_their_pixels():
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[2, :, 3:5, 3:5] = float("nan")
    (mosaic,) = embedded(show.figure(show.pictures(images, columns=3), alt="Five small noise pictures in two rows."))
    assert mosaic.size == (3 * 8 + 2, 2 * 8 + 1)
    array = np.asarray(mosaic)
    got = array[9:17, 9:17].astype(float) / 255  # the fifth
    np.testing.assert_allclose(got[..., :3], images[4].permute(1, 2, 0).numpy(), atol=0.5 / 255 + 1e-6)
    assert (got[..., 3] == 1).all()
    assert (array[3:5, 18 + 3 : 18 + 5, 3] == 0).all()  # the hole
    assert (array[:, 8, 3] == 0).all()  # the gap
    assert (array[9:, 18:, 3] == 0).all()  # no sixth


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8])
def test_pictures_take_bytes_floats_grey_and_alpha(dtype):
    bytes_ = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    images = bytes_ if dtype == torch.uint8 else (bytes_.to(dtype) / 255)
    (mosaic,) = embedded(show.figure(show.pictures(images), alt="Three flat squares, black to white."))
    assert [mosaic.getpixel((5 * i, 0))[:3] for i in range(3)] == [(v, v, v) for v in (0, 51, 255)]
    rgba = torch.cat([torch.ones(1, 3, 4, 4), torch.full((1, 1, 4, 4), 0.2)], 1)
    (mosaic,) = embedded(show.figure(show.pictures(rgba), alt="One white square, four fifths transparent."))
    assert mosaic.getpixel((0, 0)) == (255, 255, 255, 51)


def test_long_titles_are_broken_and_rows_make_room_for_them(plt):
    images = torch.rand(4, 3, 8, 8)
    fig = show.pictures(
        images, columns=2, titles=["short", "grinning face with big eyes", "c", "d"], row_titles=["x", "y"]
    )
    texts = fig.axes[0].texts
    assert texts[1].get_text().count("\n") >= 2
    assert [t.xy[0] for t in texts[:2]] == [3.5, 12.5]
    mosaic = fig.axes[0].images[0].get_array()
    assert mosaic.shape[1] == 17
    rows = np.flatnonzero(mosaic[:, 0, 3])
    lines = (rows[8] - rows[7] - 1) * fig.get_size_inches()[0] * 72 / 17 / 12  # what the gap between the rows holds
    assert lines > texts[1].get_text().count("\n") + 1
    assert [t.xy[1] for t in texts[4:]] == [3.5, rows[8] + 3.5]


def test_pictures_check_their_input():
    for shape in [(2, 2, 4, 4), (4, 4), (0, 3, 4, 4)]:
        with pytest.raises(ValueError, match="images: expected"):
            show.pictures(torch.zeros(shape))
    with pytest.raises(ValueError, match="titles: expected 2 texts, got 1"):
        show.pictures(torch.zeros(2, 3, 4, 4), titles=["a"])
    with pytest.raises(ValueError, match="row_titles: expected 1 texts, got 2"):
        show.pictures(torch.zeros(2, 3, 4, 4), row_titles=["a", "b"])


def test_photographs_are_packed_small(plt):
    smooth = np.linspace(0, 1, 600 * 600 * 3).reshape(600, 600, 3) ** 0.5
    fig, ax = plt.subplots(figsize=(2, 2))
    ax.imshow(smooth)
    (packed,) = embedded(show.figure(fig, alt="A smooth ramp of colour, much reduced."))
    assert max(packed.size) < 600  # 2 inches at 192 pixels an inch need no more than 384


def test_pixels_stay_sharp_when_enlarged(plt):
    content = show.figure(show.pictures(torch.rand(2, 3, 8, 8)), alt="Two noise pictures of 8 by 8 pixels.")
    assert 'image-rendering="pixelated"' in content


def history(values):
    return SimpleNamespace(steps=[0, 10, 20], values={"loss": values, "other": [0.0, 0.0, 0.0]})


def test_curves_label_every_line_apart(plt):
    fig = show.curves(
        {"baseline": history([3.0, 2.0, 1.0]), "method": history([3.0, 2.0, 1.0])}, names=("loss", "other")
    )
    assert [ax.get_ylabel() for ax in fig.axes] == ["loss", "other"]
    labels = fig.axes[0].texts
    assert [t.get_text() for t in labels] == ["baseline", "method"]
    assert [t.get_color() for t in labels] == [show.PALETTE["baseline"], show.PALETTE["method"]]
    assert abs(labels[0].xyann[1] - labels[1].xyann[1]) >= 11
    np.testing.assert_array_equal(fig.axes[0].lines[0].get_ydata(), [3.0, 2.0, 1.0])
    assert not show.curves(history([1.0, float("nan"), 2.0])).axes[0].texts
    with pytest.raises(ValueError, match="names: the history has loss, other, not accuracy"):
        show.curves(history([1.0, 1.0, 1.0]), names=("accuracy",))


def test_matrix_with_both_signs_is_centred_at_zero(plt):
    signed = show.matrix(torch.tensor([[-1.0, 0.0], [0.5, 3.0]]), label="cosine")
    assert signed.axes[0].images[0].get_clim() == (-3.0, 3.0)
    assert show.matrix(np.array([[1.0, 2.0]])).axes[0].images[0].get_clim() == (1.0, 2.0)
    with pytest.raises(ValueError, match=r"m: expected \(rows, columns\)"):
        show.matrix(torch.zeros(3))


def test_style_colours_and_importing_costs_little():
    import subprocess
    import sys

    code = (
        "import sys, sslref.show; "
        "print([m for m in ('matplotlib', 'seaborn', 'ipywidgets', 'IPython', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

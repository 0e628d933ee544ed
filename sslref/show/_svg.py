"""From a matplotlib figure to an SVG that belongs to the page it stands on.

matplotlib writes SVG for files: fonts and black ink are fixed, ids repeat from figure to figure, and a style rule for
`*` would reach the whole page. Here the text takes the page's font and colour, ids are unique, everything that can be
a presentation attribute is one (a strict content-security policy forbids style attributes), and pictures are packed.
"""

import base64
import hashlib
import io
import itertools
import re
import xml.etree.ElementTree as ET

from sslref.show._look import INK, PALETTE, PAPER

CSS_PIXELS = 4 / 3  # CSS pixels in a point
DENSITY = 2 * 72 * CSS_PIXELS  # dots an inch of what is drawn as bitmap: two a CSS pixel
_PAGE_COLOURS = {colour: f"var(--sslref-{role},{colour})" for role, colour in PALETTE.items() if role != "hidden"} | {
    INK: "currentColor",
    "#000000": "currentColor",
    PAPER: "var(--pst-color-background, var(--jp-layout-color0, Canvas))",
}
_DEFAULTS = {  # what the root sets, or SVG itself
    ("stroke-linejoin", "round"),
    ("stroke-linecap", "butt"),
    ("stroke-miterlimit", "10"),
    ("text-anchor", "start"),
    ("opacity", "1"),
    ("fill", "currentColor"),
}
_NUMBER = re.compile(r"-?\d+\.\d+")
_FONT = re.compile(r"(?P<style>italic |oblique )?(?P<weight>bold |\d+ )?(?P<size>[\d.]+)px")
_WITHIN = re.compile(r"(?<=url\(#)[^)]+(?=\))")
_WHOLE = re.compile(r"(?<=^#).+")
_count = itertools.count(1)


def to_svg(fig, *, alt: str, bbox="tight") -> str:
    """The figure as inline SVG with role img and the alternative text as its name.

    Args:
        fig: matplotlib Figure.
        alt: alternative text, checked by the caller.
        bbox: "tight", or the part of the figure to show, a Bbox in inches.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sslref"}):
        fig.savefig(buffer, format="svg", dpi=DENSITY, bbox_inches=bbox, pad_inches=0.03, metadata=no_metadata)
    source = buffer.getvalue()
    root = _cleaned(ET.fromstring(source))
    _unique_ids(root, f"s{next(_count)}{hashlib.sha1(source.encode()).hexdigest()[:5]}")
    box = root.get("viewBox")
    width, height = (round(float(v) * CSS_PIXELS) for v in box.split()[2:])
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "role": "img",
        "aria-label": alt,
        "viewBox": box,
        "width": str(width),
        "height": str(height),
        "fill": "currentColor",
        "stroke-linejoin": "round",
    }
    return ET.tostring(root, encoding="unicode")


def _cleaned(element: ET.Element) -> ET.Element:
    """The element without namespaces, comments, invisible shapes, style attributes and idle groups."""
    new = ET.Element(element.tag.split("}")[1])
    new.text, new.tail = (t if t and t.strip() else None for t in (element.text, element.tail))
    for name, value in element.attrib.items():
        if name == "style":
            new.attrib.update(_attributes(value))
        else:
            new.set(name.split("}")[-1], value)
    for name, value in new.attrib.items():
        if name in (
            "d",
            "x",
            "y",
            "width",
            "height",
            "points",
            "transform",
            "viewBox",
            "stroke-width",
            "stroke-dasharray",
        ):
            places = 5 if name == "transform" else 2
            short = _NUMBER.sub(lambda m, p=places: f"{float(m[0]):.{p}f}".rstrip("0").rstrip("."), value)
            new.set(name, " ".join(short.split()))
    if new.get("transform", "").startswith("rotate(-0 "):
        del new.attrib["transform"]
    if new.tag == "image":
        _pack(new)
    for child in element:
        if not isinstance(child.tag, str) or child.tag.split("}")[1] in ("metadata", "style"):
            continue
        made = _cleaned(child)
        if made.tag in ("g", "defs") and not len(made):
            continue
        if made.tag == "path" and (
            made.get("opacity") == "0" or (made.get("fill") == "none" and not made.get("stroke"))
        ):
            continue
        if made.tag == "g" and set(made.attrib) <= {"id"}:  # matplotlib refers to no group
            new.extend(made)
        else:
            new.append(made)
    return new


def _attributes(css: str) -> dict[str, str]:
    """Declarations of a style attribute as presentation attributes; the font's family is left to the page."""
    found = {}
    for declaration in filter(None, (d.strip() for d in css.split(";"))):
        name, value = (part.strip() for part in declaration.split(":", 1))
        if name == "font":
            font = _FONT.match(value)
            found |= {f"font-{k}": v.strip() for k, v in font.groupdict().items() if v}
        elif name in ("font-size", "font-style", "font-weight") or not name.startswith("font"):
            found[name] = _PAGE_COLOURS.get(value, value)
    return {name: value for name, value in found.items() if (name, value) not in _DEFAULTS}


def _unique_ids(root: ET.Element, prefix: str) -> None:
    """Drop ids that nothing refers to, and give the others names that no other figure has."""
    pattern = {"href": _WHOLE}
    used = {r for e in root.iter() for n, v in e.attrib.items() for r in pattern.get(n, _WITHIN).findall(v)}
    names = {old: f"{prefix}-{i}" for i, old in enumerate(sorted(used))}
    for element in root.iter():
        old = element.attrib.pop("id", None)
        for name, value in element.attrib.items():
            element.set(name, pattern.get(name, _WITHIN).sub(lambda m: names[m[0]], value))
        if old in names:
            element.set("id", names[old])


def _pack(image: ET.Element) -> None:
    """Re-encode an embedded PNG: small pictures and maps without loss, photographs no finer than the page shows."""
    from PIL import Image

    data = base64.b64decode(image.get("href").partition(",")[2])
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    scale = re.findall(r"-?[\d.]+", image.get("transform", "")) if "matrix" in image.get("transform", "") else ["1"]
    dots = abs(float(scale[0])) * CSS_PIXELS  # CSS pixels that one pixel of the picture takes at full width
    enlarged = dots >= 1.5
    if not enlarged:
        image.attrib.pop("image-rendering", None)
    if dots < 0.4:
        size = tuple(max(1, round(s * dots * 2)) for s in picture.size)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        image.set("preserveAspectRatio", "none")
    image.set("href", f"data:image/webp;base64,{base64.b64encode(webp(picture, exact=enlarged)).decode()}")


def webp(picture, *, exact: bool = False) -> bytes:
    """A PIL image as WebP: exact, or the smaller of exact and (for photographs) quality 85."""
    kinds = [{"lossless": True, "quality": 100}, {"quality": 85}][: 1 if exact else 2]
    packed = []
    for kind in kinds:
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", method=4, **kind)  # method 6 takes seconds and saves little
        packed.append(buffer.getvalue())
    return min(packed, key=len)

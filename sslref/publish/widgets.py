"""Sliders without a kernel: the widgets of an executed notebook as plain HTML.

A page needs no widget library to move a slider that picks one of several drawn frames: an `<input type="range">`, the
frames, and ten lines of script (`book/_static/book.js`) do. Without script, and in print, the first frame stands.
"""

import html
from collections.abc import Mapping

STATE = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"


class UnsupportedWidget(ValueError):
    """A widget that would be dead on a page without a kernel."""


def _reference(value: str) -> str:
    return value.removeprefix("IPY_MODEL_")


class _Page:
    """Widgets of one notebook."""

    def __init__(self, state: Mapping[str, dict], prefix: str):
        self.models = {key: (model["model_name"], model["state"]) for key, model in state.items()}
        self.names = {key: f"{prefix}-{i}" for i, key in enumerate(self.models)}  # models have random keys
        links = [s for name, s in self.models.values() if name in ("LinkModel", "DirectionalLinkModel")]
        ends = [sorted((_reference(key), trait) for key, trait in (s["source"], s["target"])) for s in links]
        self.shows = {
            slider: stack
            for pair in ends
            for (stack, first), (slider, second) in (pair, pair[::-1])
            if (first, second) == ("selected_index", "value")
        }

    def render(self, key: str) -> str:
        name, state = self.models[key]
        children = [_reference(child) for child in state.get("children", ())]
        classes = " ".join(state.get("_dom_classes", ()))
        if name in ("HTMLModel", "HTMLMathModel"):
            return f'<div class="{classes}">{state["value"]}</div>' if classes else state["value"]
        if name in ("VBoxModel", "HBoxModel", "BoxModel"):
            return f'<div class="{classes}">{"".join(map(self.render, children))}</div>'
        if name == "StackModel":
            shown = state.get("selected_index")
            frames = (f"<div{'' if i == shown else ' hidden'}>{self.render(c)}</div>" for i, c in enumerate(children))
            return f'<div class="sslref-stack" id="{self.names[key]}">{"".join(frames)}</div>'
        if name == "IntSliderModel" and key in self.shows:
            values = " ".join(
                f'{k}="{state.get(k, default)}"' for k, default in (("min", 0), ("max", 100), ("step", 1), ("value", 0))
            )
            return (
                f'<label class="sslref-range"><span>{html.escape(state.get("description", ""))}</span>'
                f'<input type="range" {values} data-stack="{self.names[self.shows[key]]}" autocomplete="off"></label>'
            )
        raise UnsupportedWidget(
            f"a page without a kernel cannot move {name.removesuffix('Model')}; expected an IntSlider linked to "
            "a Stack, as sslref.show.slider makes it"
        )


def flatten(notebook: dict, prefix: str) -> None:
    """Replace the widgets that a notebook shows by HTML, in place.

    Args:
        notebook: an executed notebook (nbformat 4).
        prefix: start of the identifiers in the page.

    Raises:
        UnsupportedWidget: a widget that the page cannot show, named with its cell.
    """
    page = _Page(notebook["metadata"].pop("widgets", {}).get(STATE, {}).get("state", {}), prefix)
    for number, cell in enumerate(notebook["cells"], 1):
        outputs = cell.get("outputs", [])
        views = [o for o in outputs if VIEW in o.get("data", {})]
        for output in views:
            key = output["data"][VIEW]["model_id"]
            try:
                output["data"] = {"text/html": page.render(key)}
            except UnsupportedWidget as error:
                raise UnsupportedWidget(f"cell {number}: {error}") from None
            except KeyError:
                raise UnsupportedWidget(f"cell {number}: the notebook holds no state of widget {key}") from None
        if views:  # the frame for readers without script is in the page already
            cell["outputs"] = [
                o for o in outputs if not "".join(o.get("data", {}).get("text/html", "")).startswith("<noscript>")
            ]

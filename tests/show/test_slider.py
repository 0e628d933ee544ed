import pytest

from sslref import show
from sslref.show import _slider

ALT = "A straight line whose slope is the value."


@pytest.fixture
def make(plt):
    def make(value):
        fig, ax = plt.subplots(figsize=(3, 2))
        ax.plot([0, 1], [0, value])
        ax.set(ylim=(0, 4))
        if value > 1:
            ax.set_ylabel("higher")
        return fig

    return make


@pytest.fixture(autouse=True)
def closed():
    """Widgets live in a registry of the process."""
    import ipywidgets

    yield
    ipywidgets.Widget.close_all()


def test_slider_is_linked_in_the_browser_to_one_frame_a_value(make, page, plt, monkeypatch):
    import ipywidgets as widgets

    linked = []
    monkeypatch.setattr(widgets, "jslink", lambda *ends: linked.append(ends))
    box = show.slider(make, [0.5, 1.0, 2.0], label="slope <m>", alt=ALT, caption="Look at `y`.", start=1)
    note, pick, stack = box.children
    assert isinstance(pick, widgets.IntSlider)
    assert (pick.min, pick.max, pick.step, pick.value, pick.description) == (0, 2, 1, 1, "slope <m>")
    assert isinstance(stack, widgets.Stack)
    assert len(stack.children) == 3
    assert stack.selected_index == 1
    assert linked == [((pick, "value"), (stack, "selected_index"))]
    assert page(note.value).text == "Look at y."
    frames = [page(frame.value) for frame in stack.children]
    assert [f.all("svg")[0]["aria-label"] for f in frames] == [f"{ALT} slope <m> = {v}." for v in ("0.5", "1", "2")]
    assert "slope <m> = 0.5" in frames[0].text
    assert len({(f.all("svg")[0]["width"], f.all("svg")[0]["height"]) for f in frames}) == 1
    ids = [i for f in frames for i in f.ids]
    assert len(set(ids)) == len(ids)
    assert [f.loads() for f in frames] == [[], [], []]
    assert plt.get_fignums() == []


def test_frames_show_all_that_is_drawn(make, page):
    box = show.slider(make, [1.0, 2.0], label="slope", alt=ALT)
    frame = page(box.children[-1].children[1].value)
    width, height = (float(v) for v in frame.all("svg")[0]["viewbox"].split()[2:])
    assert width > 180  # 3 inches are 216 points
    assert height > 120
    for text in frame.all("text"):
        assert 0 <= float(text["x"]) <= width
        assert 0 <= float(text["y"]) <= height


def test_bitmap_frames_and_an_alternative_text_for_each_value(make, page):
    box = show.slider(make, [1, 2], label="slope", alt=lambda v: f"A line that rises to {v} at the right.", kind="webp")
    frames = [page(f.value) for f in box.children[-1].children]
    assert [f.all("img")[0]["alt"] for f in frames] == [f"A line that rises to {v} at the right." for v in (1, 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": [1.0]}, "values: expected two or more, got 1"),
        ({"start": 2}, "start: expected an index from 0 to 1, got 2"),
        ({"start": -1}, "start: expected an index"),
        ({"alt": lambda v: "x"}, "alt: expected a sentence"),
    ],
)
def test_slider_checks_its_arguments(make, options, message):
    with pytest.raises(ValueError, match=message):
        show.slider(make, **{"values": [1.0, 2.0], "label": "slope", "alt": ALT} | options)


def test_one_figure_again_and_again_is_refused(make):
    fig = make(1.0)
    with pytest.raises(ValueError, match="make: expected a new figure"):
        show.slider(lambda v: fig, [1.0, 2.0], label="slope", alt=ALT)


def test_heavy_frames_are_refused_with_a_way_out(make, monkeypatch):
    monkeypatch.setattr(_slider, "LIMIT", 5000)
    with pytest.raises(ValueError, match=r"2 frames take 0.0 MB, .* take fewer"):
        show.slider(make, [1.0, 2.0], label="slope", alt=ALT)

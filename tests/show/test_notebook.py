"""What a kernel receives: every output once, progress in one place, widgets with their link."""

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

CELLS = """
import matplotlib.pyplot as plt
import sslref.show as show
show.style()
def make(v):
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, v])
    return fig
---
show.figure(make(1), alt="A line that rises to one.")
---
for v in (1, 2):
    show.say("value {v}", v=v)
---
report = show.progress("Run", every=0)
for step in range(1, 6):
    report(step, 5, {"loss": 1.0})
---
show.slider(make, [1, 2], label="v", alt="A line that rises to v.")
"""


@pytest.fixture(scope="module")
def outputs():
    from nbclient import NotebookClient

    cells = [nbformat.v4.new_code_cell(c.strip()) for c in CELLS.split("---")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    state = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    return [c["outputs"] for c in notebook.cells], list(state.values())


def test_every_output_appears_once(outputs):
    cells, _ = outputs
    assert cells[0] == []
    (figure,) = cells[1]
    assert figure["data"]["text/html"].startswith('<figure class="sslref-figure"><svg')
    assert figure["data"]["text/plain"] == "[figure] A line that rises to one."
    assert [o["data"]["text/markdown"] for o in cells[2]] == ["value 1", "value 2"]


def test_progress_leaves_its_last_line(outputs):
    (line,) = outputs[0][3]
    assert line["data"]["text/plain"].startswith("Run: 5 steps, ")


def test_slider_reaches_the_notebook_with_its_link(outputs):
    cells, state = outputs
    (view,) = cells[4]
    assert "application/vnd.jupyter.widget-view+json" in view["data"]
    models = [m["model_name"] for m in state]
    assert models.count("IntSliderModel") == models.count("StackModel") == models.count("LinkModel") == 1
    link = next(m["state"] for m in state if m["model_name"] == "LinkModel")
    assert [link["source"][1], link["target"][1]] == ["value", "selected_index"]

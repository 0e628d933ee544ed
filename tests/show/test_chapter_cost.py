"""The head of a chapter tells what a run takes and whether there is a GPU, from what was measured and what is there."""

import json

import pytest
import torch

from sslref import registry, show

PAPER = registry.Paper(
    slug="demo", title="A demo", authors=("Ann Ax",), venue="ICML", year=2020, arxiv="", code="", part="dense",
    data=("emoji",), idea="It looks.", minutes=25,
)  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout in which nothing was measured."""
    monkeypatch.setattr(registry, "papers", lambda: {"demo": PAPER})
    monkeypatch.setattr(registry, "root", lambda: tmp_path)
    (tmp_path / "book" / "results").mkdir(parents=True)
    (tmp_path / "_build" / "cache").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def text(page):
    return lambda device="cpu": page(show.chapter("demo", profile="ci", seed=0, device=device)).text


def write(path, **content):
    path.write_text(json.dumps(content))


def test_nothing_measured_is_said(root, text):
    assert "25 minutes to read; what a run takes is not measured yet" in text()


@pytest.mark.parametrize(
    ("seconds", "peak_mb", "said"),
    [
        (43.1, 654, "about 45 seconds and 0.6 GB of memory to run"),
        (1.2, 20, "about 5 seconds and 0.1 GB of memory"),
        (89.9, 1536, "about 90 seconds and 1.5 GB of memory"),
        (101.0, 900, "about 2 minutes and 0.9 GB of memory"),
    ],
)
def test_a_fresh_clone_quotes_the_release(root, text, seconds, peak_mb, said):
    write(root / "book/results/costs.json", demo={"seconds": seconds, "peak_mb": peak_mb})
    assert f"{said}" in text()
    assert "with the profile ci on one CPU thread" in text()


def test_this_machines_own_run_comes_first(root, text):
    write(root / "book/results/costs.json", demo={"seconds": 60.0, "peak_mb": 900})
    write(root / "_build/cache/demo.json", key="0", status="run", seconds=20.0, peak_mb=500, error="")
    assert "about 20 seconds and 0.5 GB" in text()
    (root / "_build/cache/demo.json").write_text("half writ")
    assert "about 60 seconds" in text()


def test_the_gpu_that_is_found(root, text, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "1 thread; no GPU found" in text()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert 'an Apple GPU: set device = "mps"' in text()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    assert 'there is a GPU, A card: set device = "cuda" in the first cell to use it' in text()
    assert "seed 0, on A card" in text("cuda")
    assert "in the first cell" not in text("cuda")


def test_a_driver_that_is_too_old_is_no_gpu(root, text, monkeypatch):
    def warning():
        import warnings

        warnings.warn("The NVIDIA driver on your system is too old", UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", warning)
    assert "no GPU found" in text()


def test_costs_are_kept_from_the_last_build(root, monkeypatch):
    from sslref.publish import costs, stage

    monkeypatch.setattr(stage, "executed", lambda: ["b", "a"])
    write(root / "_build/cache/b.json", key="0", status="run", seconds=20.0, peak_mb=500, error="")
    with pytest.raises(ValueError, match="no run is kept of a; `make book`"):
        costs.keep()
    assert not (root / "book/results/costs.json").exists()
    write(root / "_build/cache/a.json", key="1", status="run", seconds=9.5, peak_mb=300, error="")
    path = costs.keep()
    assert path == root / "book/results/costs.json"
    assert json.loads(path.read_text()) == {
        "a": {"seconds": 9.5, "peak_mb": 300},
        "b": {"seconds": 20.0, "peak_mb": 500},
    }

import pytest
import torch

from sslref import claims, registry, show

PAPER = registry.Paper(
    slug="demo", title="A demo", authors=("Ann Ax", "Bo By", "Cy Cz"), venue="ICML", year=2020, arxiv="2002.05709",
    code="https://example.org/a?b&c", part="dense", data=("emoji", "digits"), idea="It looks.", minutes=25,
)  # fmt: skip


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.setattr(registry, "papers", lambda: {"demo": PAPER})
    kept = {}
    monkeypatch.setattr(claims, "ledger", lambda slug, profile="ledger": kept.get(slug))
    return kept


def test_chapter_says_what_it_rests_on(demo, page, plt):
    shown = page(show.chapter("demo", profile="ci", seed=3, device="cpu"))
    assert "Ann Ax et al., ICML 2020" in shown.text
    assert "emoji, digits" in shown.text
    assert "25 minutes to read" in shown.text
    assert "profile ci, seed 3, on CPU" in shown.text
    assert "not run yet" in shown.text
    assert [a["href"] for a in shown.all("a")] == ["https://arxiv.org/abs/2002.05709", "https://example.org/a?b&c"]
    assert shown.loads() == []
    assert plt.rcParams["text.color"] == show.INK


def test_chapter_quotes_the_ledger(demo, evidence, record, page):
    demo["demo"] = record(
        evidence({"a": [1.0, 2.0, 3.0], "b": [3.0, 4.5, 5.1]}, statement="b is better."),
        evidence({"a": [1.0], "b": [2.0]}, id="other", statement="b is < a."),
        profile="ledger",
    )
    text = page(show.chapter("demo", profile="ci", seed=0, device="cpu")).text
    assert "b is better. ✓ supported: +2.20 points" in text
    assert "b is < a. ○ inconclusive: +1.00 points, one seed" in text
    assert "2026-01-02, 2 CPU minutes, x86_64, 2 cores" in text


def test_chapter_folds_a_long_list_of_claims(demo, evidence, record, page):
    good, open_ = {"a": [1.0, 2.0, 3.0], "b": [3.0, 4.5, 5.1]}, {"a": [1.0], "b": [2.0]}
    claimed = [evidence(arms, id=str(i), statement=f"Claim {i}.") for i, arms in enumerate((open_, good, good, good))]
    demo["demo"] = record(*claimed, profile="ledger")
    shown = page(show.chapter("demo", profile="ci", seed=0, device="cpu"))
    assert len(shown.all("details")) == 1
    assert "4 claims: 3 supported, 1 inconclusive" in shown.text
    assert "Claim 3. ✓ supported" in shown.text


def test_chapter_leaves_the_generators_alone(demo):
    before = torch.get_rng_state()
    show.chapter("demo", profile="ci", seed=5, device="cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_chapter_refuses_what_is_not_there(demo, monkeypatch):
    with pytest.raises(registry.UnknownPaper, match="demo"):
        show.chapter("dmo", profile="ci", seed=0, device="cpu")
    with pytest.raises(ValueError, match="profile: expected one of smoke, ci"):
        show.chapter("demo", profile="fast", seed=0, device="cpu")
    with pytest.raises(ValueError, match="device: expected"):
        show.chapter("demo", profile="ci", seed=0, device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match='finds no CUDA device here; set device = "cpu"'):
        show.chapter("demo", profile="ci", seed=0, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="finds 1 CUDA device here"):
        show.chapter("demo", profile="ci", seed=0, device="cuda:1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    assert "on A card" in show.chapter("demo", profile="ci", seed=0, device="cuda:0")

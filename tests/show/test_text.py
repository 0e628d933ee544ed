import numpy as np
import pytest
import torch

from sslref import show
from sslref.show import _html


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.123456, "0.123"),
        (1234.5, "1234"),
        (-2.5, "−2.50"),
        (0.0, "0"),
        (12345, "12,345"),
        (-3, "−3"),
        (True, "True"),
        (1e-9, "1.00e−09"),
        (float("nan"), "not a number"),
        (float("-inf"), "minus infinity"),
        (torch.tensor(0.5), "0.500"),
        (np.float32(2.0), "2.00"),
        (np.int64(7), "7"),
        ("text", "text"),
    ],
)
def test_numbers_for_readers(value, shown):
    assert _html.number(value) == shown


def test_fixed_has_no_negative_zero():
    assert _html.fixed(-0.001, 2) == "0.00"
    assert _html.fixed(-0.001, 2, sign=True) == "+0.00"
    assert _html.fixed(4.94, 1, sign=True) == "+4.9"


def test_say_puts_numbers_into_markdown():
    said = show.say(
        "Gap **{gap:.1f}**, {n} of {name}, {loss}, {bad:.2f}.",
        gap=-3.25,
        n=1911,
        name="a*b_<c>",
        loss=torch.tensor(0.25),
        bad=float("nan"),
    )
    assert said == "Gap **−3.2**, 1,911 of a\\*b\\_\\<c\\>, 0.250, not a number."
    assert show.say("$x_{{1}}$ is {x}", x=1) == "$x_{1}$ is 1"
    assert show.say("{t:%Y}", t=__import__("datetime").date(2026, 1, 2)) == "2026"
    assert show.say("{x:.1e}", x=1e-6) == "1.0e−06"


def test_say_takes_exactly_the_values_it_names():
    with pytest.raises(ValueError, match="text: names 'gap', but the values are loss"):
        show.say("{gap}", loss=1)
    with pytest.raises(ValueError, match="text: names 0"):
        show.say("{}", loss=1)
    with pytest.raises(ValueError, match="values: the text does not use a, b"):
        show.say("{c}", a=1, b=2, c=3)


def test_table_has_scopes_caption_and_escaped_text(page):
    rows = [{"arm": "a<b", "accuracy": 0.61234, "note": "x & y"}, {"arm": "method", "accuracy": 0.7, "note": 3}]
    shown = page(show.table(rows, caption="Accuracy & more."))
    scopes = [a.get("scope") for a in shown.all("th")]
    assert scopes == ["col", "col", "col", "row", "row"]
    assert "a<b 0.612 x & y" in shown.text.replace("a<b0.612x & y", "a<b 0.612 x & y")
    assert shown.text.startswith("Accuracy & more.")
    assert [a.get("class") for a in shown.all("td")] == ["num", None, "num", None]
    assert [a.get("class") for a in shown.all("th")][:3] == [None, "num", None]


def test_table_takes_lists_and_chosen_columns(page):
    shown = page(show.table([["a", 1], ["b", 2]]))
    assert shown.all("thead") == []
    assert len(shown.all("td")) == 2
    assert "0.5" not in show.table([{"a": "x", "b": 0.5, "c": 1}], columns=["a", "c"])
    for rows, message in [
        ([], "expected at least one"),
        ([[1, 2], [1]], "expected 2 values"),
        ([{"a": 1}, {"b": 2}], "lacks 'a'"),
    ]:
        with pytest.raises(ValueError, match=f"rows: .*{message}"):
            show.table(rows)


def test_progress_ends_with_one_line(capsys, monkeypatch):
    times = iter([0.0, 0.01, 0.02, 4.2])
    monkeypatch.setattr("sslref.show._text.time.perf_counter", lambda: next(times))
    report = show.progress("SimCLR")
    for step in (1, 50, 100, 150):
        report(step, 150, {"loss": 3.21})
    assert capsys.readouterr().out == "SimCLR: 150 steps, 4.2 s, loss 3.21\n"


def test_progress_of_a_sweep_and_a_second_run_with_the_same_line(capsys):
    with show.progress("Runs") as report:
        report(1, 2, "method, seed 0")
        report(2, 2, "method, seed 1")
        report(2, 2, {"loss": torch.tensor(1.0)})
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Runs: 2 runs, 0.0 s", "Runs: 2 steps, 0.0 s, loss 1.00"]


def test_progress_rewrites_its_line_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with show.progress("SimCLR", every=0) as report:
        report(1, 4, {"loss": 2.0})
        report(4, 4, {"loss": 1.0})
    out = capsys.readouterr().out
    assert out.startswith("SimCLR █████")
    assert out.rsplit("\x1b[A\x1b[2K", 1)[1] == "SimCLR: 4 steps, 0.0 s, loss 1.00\n"

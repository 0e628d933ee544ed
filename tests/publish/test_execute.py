"""Chapters run once and again when, and only when, what they rest on changes; a bad one is named and stops no other."""

import json

import pytest
from publish.toy import Checkout, code, markdown


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Checkout(tmp_path_factory.mktemp("execute"), {"alpha": "masked", "beta": "structure"})


def statuses(checkout, **options) -> dict:
    command = (
        "import json, sys; from sslref.publish.execute import execute; "
        f"json.dump({{k: v.__dict__ for k, v in execute(['alpha', 'beta'], progress=print, **{options!r})}}, "
        "open('statuses.json', 'w'))"
    )
    checkout.python(command)
    return json.loads((checkout.root / "statuses.json").read_text())


@pytest.mark.slow
def test_only_what_changed_runs_again(checkout):
    def ran() -> set:
        return {slug for slug, outcome in statuses(checkout).items() if outcome["status"] == "run"}

    first = statuses(checkout)
    assert {o["status"] for o in first.values()} == {"run"}
    assert all(0 < o["seconds"] < 60 and 30 < o["peak_mb"] < 4000 for o in first.values())
    again = statuses(checkout)
    assert {o["status"] for o in again.values()} == {"cached"}
    assert again["alpha"]["seconds"] == first["alpha"]["seconds"]

    checkout.write("alpha", "masked", markdown("One more sentence."))
    assert ran() == {"alpha"}
    module = checkout.root / "sslref" / "papers" / "beta.py"
    module.write_text(module.read_text() + "# a comment, which the chapter may show\n")
    assert ran() == {"beta"}
    (checkout.root / "book" / "results").mkdir()
    (checkout.root / "book" / "results" / "alpha.json").write_text("{}")
    assert ran() == {"alpha"}
    (checkout.root / "book" / "read.md").write_text("# Other prose\n")
    assert ran() == set()
    (checkout.root / "requirements.lock").write_text("torch==0\n")
    assert ran() == {"alpha", "beta"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "limit", "said"),
    [
        (code("1 / 0"), 180, ["failed in cell 8 of 9 under “Trouble”: 1 / 0", "ZeroDivisionError"]),
        (code("import warnings\nwarnings.warn('odd')"), 180, ["failed in cell 8", "UserWarning: odd"]),
        (code("import os\nos._exit(3)"), 180, ["failed in cell 8 of 9", "died"]),
        (code("import time\ntime.sleep(90)"), 20, ["stopped after 20 s", "cell 8 of 9 under “Trouble”: import time"]),
    ],
)
def test_a_bad_chapter_is_named_and_the_others_go_on(checkout, cell, limit, said):
    checkout.write("alpha", "masked", markdown("## Trouble"), cell, code("1 + 1"))
    outcomes = statuses(checkout, limit=limit)
    found = f"{outcomes['alpha']['status']} {outcomes['alpha']['error']}"
    assert all(text in found for text in said), found
    assert "\x1b" not in found
    assert outcomes["beta"]["status"] in ("run", "cached")
    kept = json.loads((checkout.root / "_build" / "cache" / "alpha.ipynb").read_text())
    assert "Trouble" not in json.dumps(kept)  # the last good copy stays


def test_kernels_see_one_thread_and_this_checkout(checkout):
    cell = code("import os, sslref\nprint(os.environ['OMP_NUM_THREADS'], sslref.__file__)")
    checkout.write("alpha", "masked", cell)
    statuses(checkout)
    text = (checkout.root / "_build" / "cache" / "alpha.ipynb").read_text()
    assert f"1 {checkout.root}/sslref/__init__.py" in text

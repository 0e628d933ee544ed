"""An entry made on another processor is confirmed against the code that made it, run on this one."""

import json

import pytest
from publish.toy import Checkout

from sslref import claims

EXPERIMENT = """
import os
from sslref.claims import Experiment


def measure(arm: str, *, seed: int, device: str) -> dict:
    rounding = 1e-3 * float(os.environ.get("PROCESSOR", 0))
    return {"score": seed % 7 + (arm == "sum") * (1 + seed % 3 / 10) + rounding}


EXPERIMENTS = {"e": Experiment(measure, ("none", "sum"), {p: {"seeds": 3} for p in ("smoke", "ci", "ledger", "gpu")})}
CLAIMS = (
    Claim(id="adds", statement="The sum adds.", experiment="e", metric="score", higher_is_better=True, baseline="none",
          method="sum"),
)
"""


@pytest.mark.slow
def test_confirm_against_the_code_that_made_the_entry(tmp_path, monkeypatch):
    made, edited = (Checkout(tmp_path / name, {"alpha": "masked"}) for name in ("made", "edited"))
    for checkout in (made, edited):
        paper = checkout.root / "sslref" / "papers" / "alpha.py"
        text = paper.read_text().replace("EXPERIMENTS: dict = {}\nCLAIMS: tuple = ()\n", "")
        paper.write_text(text + EXPERIMENT.replace("rounding", "noise" if checkout is edited else "rounding"))
    made.python("from sslref import claims; claims.write(claims.run('alpha', 'ledger'))")
    entry = edited.root / "book" / "results" / "alpha.json"
    entry.parent.mkdir()
    entry.write_bytes((made.root / "book" / "results" / "alpha.json").read_bytes())
    before = entry.read_bytes()

    monkeypatch.setenv("PROCESSOR", "1")
    confirm = "from pathlib import Path; from sslref import claims; claims.confirm('alpha', against={})"
    assert "score was" in edited.python(confirm.format(None), good=False).stderr
    wrong = edited.python(confirm.format(f"Path({str(edited.root)!r})"), good=False).stderr
    assert "against: expected the code that made the entry" in wrong
    nowhere = edited.python(confirm.format(f"Path({str(tmp_path)!r})"), good=False).stderr
    assert "against: alpha does not run in" in nowhere
    paper = edited.root / "sslref" / "papers" / "alpha.py"
    text = paper.read_text()
    paper.write_text(text.replace("seed % 7", "seed % 5"))
    assert "score was" in edited.python(confirm.format(f"Path({str(made.root)!r})"), good=False).stderr
    paper.write_text(text)
    assert entry.read_bytes() == before
    edited.python(confirm.format(f"Path({str(made.root)!r})"))
    old, new = (claims.from_json(json.loads(text)) for text in (before, entry.read_bytes()))
    assert new.code_digest != old.code_digest
    assert new.metrics == old.metrics

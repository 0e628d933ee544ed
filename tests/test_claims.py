"""Claims: intervals, the rule, sweeps that are interrupted, the ledger's files."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from sslref import claims, registry
from sslref.claims import Claim, Difference, Experiment


def _run(arm, *, seed, device, shift):
    base = np.random.default_rng(seed).normal()
    score = base + (shift if arm == "method" else 0.0)
    return {"score": score, "seed": seed, "broken": 0.0 if arm == "method" else 3.0}


def _toy(run=_run, budgets=None):
    budgets = budgets or {p: {"seeds": 4, "shift": 1.0} for p in claims.FIRST_SEED}
    names = {"statement": "s", "experiment": "e", "baseline": "plain", "method": "method"}
    return types.SimpleNamespace(
        EXPERIMENTS={"e": Experiment(run, ("plain", "method"), budgets)},
        CLAIMS=(
            Claim(id="gain", metric="score", higher_is_better=True, **names),
            Claim(id="zero", metric="broken", higher_is_better=False, exact=True, **names),
        ),
    )


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A paper "toy" that exists in this process only, with its own checkout folder."""
    module = _toy()
    paper = registry.Paper(
        slug="toy",
        title="T",
        authors=("A",),
        venue="V",
        year=2020,
        arxiv="0",
        code="",
        part="masked",
        data=(),
        idea="i",
        minutes=1,
    )
    monkeypatch.setattr(registry, "load", lambda slug: module)
    monkeypatch.setattr(registry, "get", lambda slug: paper)
    monkeypatch.setattr(registry, "papers", lambda: {"toy": paper})
    monkeypatch.setattr(registry, "studies", lambda: ())
    monkeypatch.setattr(registry, "root", lambda: tmp_path)
    monkeypatch.setattr(claims, "code_digest", lambda slug, *names: "0" * 16)
    return module


@pytest.mark.parity("claims.paired_interval", against="SciPy's paired t-test", tolerance=1e-12)
def test_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=10), rng.normal(0.4, 1, size=10)
    ours = claims.paired_interval(b - a)
    low, high = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert ours.mean == pytest.approx((b - a).mean(), abs=1e-12)
    assert ours.ci95 == pytest.approx((low, high), abs=1e-12)


def test_interval_by_hand():
    # d = 1, 2, 3: mean 2, standard error 1/sqrt(3), t(2) at 97.5 % = 4.302653
    low, high = claims.paired_interval([1, 2, 3]).ci95
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-5)


def test_interval_covers_the_truth_19_times_in_20():
    d = np.random.default_rng(1).normal(0.3, 1.0, size=(2000, 6))
    hits = [low <= 0.3 <= high for low, high in (claims.paired_interval(row).ci95 for row in d)]
    assert 0.93 < np.mean(hits) < 0.97


def test_one_seed_has_no_interval_and_equal_ones_have_no_width():
    assert all(math.isnan(v) for v in claims.paired_interval([0.5]).ci95)
    assert claims.paired_interval([0.5, 0.5, 0.5]).ci95 == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least one"):
        claims.paired_interval([])


@pytest.mark.parametrize(
    ("ci", "higher", "margin", "expected"),
    [
        ((0.1, 0.5), True, 0.0, "supported"),
        ((0.1, 0.5), True, 0.1, "inconclusive"),
        ((0.1, 0.5), True, 0.09, "supported"),
        ((-0.1, 0.5), True, 0.0, "inconclusive"),
        ((-0.5, -0.1), True, 0.0, "contradicted"),
        ((-0.5, -0.1), True, 0.2, "inconclusive"),
        ((-0.5, -0.1), False, 0.0, "supported"),
        ((0.1, 0.5), False, 0.0, "contradicted"),
        ((math.nan, math.nan), True, 0.0, "inconclusive"),
    ],
)
def test_the_rule(ci, higher, margin, expected):
    assert claims.verdict(Difference(0.0, ci), higher_is_better=higher, margin=margin) == expected


def test_bad_claims_are_refused():
    names = {"id": "c", "statement": "s", "experiment": "e", "metric": "m", "higher_is_better": True}
    with pytest.raises(ValueError, match="arms must differ"):
        Claim(**names, baseline="a", method="a")
    with pytest.raises(ValueError, match="negative"):
        Claim(**names, baseline="a", method="b", margin=-1.0)


def test_run_pairs_seeds_and_judges(toy):
    record = claims.run("toy", "ledger")
    gain = record["gain"]
    assert gain.method.seeds == gain.baseline.seeds == [1000, 1001, 1002, 1003]
    assert record.metrics["e"]["plain"]["seed"] == [1000, 1001, 1002, 1003]
    assert gain.difference.mean == pytest.approx(1.0)
    assert gain.verdict == "supported"
    assert record["zero"].verdict == "exact"
    with pytest.raises(KeyError, match="gain, zero"):
        record["nothing"]


def test_exact_claim_fails_on_one_wrong_value(toy):
    toy.EXPERIMENTS["e"] = Experiment(
        lambda arm, *, seed, device, shift: {"score": 0.0, "broken": 1e-9 if seed == 2 else 0.0},
        ("plain", "method"),
        toy.EXPERIMENTS["e"].budgets,
    )
    assert claims.run("toy", "smoke")["zero"].verdict == "contradicted"


def test_bad_arguments(toy):
    with pytest.raises(ValueError, match="profile.*'big'"):
        claims.run("toy", "big")
    with pytest.raises(ValueError, match="jobs: expected at least 1, got 0"):
        claims.run("toy", "smoke", jobs=0)
    with pytest.raises(ValueError, match="dask"):
        claims.run("toy", "smoke", dask="tcp://127.0.0.1:1")
    arms = {"baseline": "plain", "method": "method"}
    toy.CLAIMS = (Claim(id="x", statement="s", experiment="e", metric="no", higher_is_better=True, **arms),)
    with pytest.raises(ValueError, match="claim 'x'.*'no'"):
        claims.run("toy", "smoke")


def test_repeating_costs_nothing_and_a_new_digest_runs_again(toy, monkeypatch):
    ran = []

    def counting(arm, *, seed, device, shift):
        ran.append((arm, seed))
        return _run(arm, seed=seed, device=device, shift=shift)

    toy.EXPERIMENTS["e"] = Experiment(counting, ("plain", "method"), toy.EXPERIMENTS["e"].budgets)
    first = claims.run("toy", "smoke")
    assert len(ran) == 8
    assert claims.run("toy", "smoke") == first
    assert len(ran) == 8
    monkeypatch.setattr(claims, "code_digest", lambda slug, *names: "1" * 16)
    claims.run("toy", "smoke")
    assert len(ran) == 16


def test_an_error_names_arm_and_seed_and_loses_nothing(toy):
    def fails(arm, *, seed, device, shift):
        if seed == 2:
            raise RuntimeError("no")
        return _run(arm, seed=seed, device=device, shift=shift)

    toy.EXPERIMENTS["e"] = Experiment(fails, ("plain", "method"), toy.EXPERIMENTS["e"].budgets)
    with pytest.raises(RuntimeError, match="no") as info:
        claims.run("toy", "smoke")
    assert "arm 'plain', seed 2" in info.value.__notes__[0]
    toy.EXPERIMENTS["e"] = Experiment(_run, ("plain", "method"), toy.EXPERIMENTS["e"].budgets)
    kept = []
    claims.run("toy", "smoke", progress=lambda done, total, label: kept.append(done))
    assert kept[0] == 4


def test_nan_is_inconclusive_and_survives_the_file(toy):
    toy.EXPERIMENTS["e"] = Experiment(
        lambda arm, *, seed, device, shift: {"score": math.nan if seed == 1001 else 1.0, "broken": 0.0},
        ("plain", "method"),
        toy.EXPERIMENTS["e"].budgets,
    )
    record = claims.run("toy", "ledger")
    assert record["gain"].verdict == "inconclusive"
    claims.write(record)
    assert math.isnan(claims.ledger("toy")["gain"].method.values[1])


def test_ledger_round_trip_and_gpu_beside_it(toy):
    record = claims.run("toy", "ledger")
    path = claims.write(record)
    content = json.loads(path.read_text())
    assert list(content)[:7] == ["slug", "profile", "seconds", "machine", "versions", "date", "code_digest"]
    wanted = {"id", "statement", "metric", "higher_is_better", "margin", "arms", "difference", "verdict"}
    assert all(wanted <= set(c) for c in content["claims"])
    assert sorted(a["role"] for a in content["claims"][0]["arms"].values()) == ["baseline", "method"]
    assert claims.ledger("toy") == record
    assert claims.ledger("toy", "gpu") is None
    gpu = claims.run("toy", "gpu")
    claims.write(gpu)
    assert claims.ledger("toy", "gpu") == gpu
    assert claims.ledger("toy") == record
    claims.write(record)
    assert claims.ledger("toy", "gpu") == gpu
    with pytest.raises(ValueError, match="ledger and gpu"):
        claims.write(claims.run("toy", "ci"))


def test_status(toy, monkeypatch):
    def states():
        return [row["state"] for row in claims.status()]

    assert states() == ["missing", "missing"]
    claims.write(claims.run("toy", "ledger"))
    assert states() == ["current", "missing"]
    monkeypatch.setattr(claims, "code_digest", lambda slug, *names: "2" * 16)
    assert states() == ["stale", "missing"]


def test_confirm_renews_an_entry_that_still_holds(toy, monkeypatch):
    with pytest.raises(ValueError, match="no entry"):
        claims.confirm("toy")
    first = claims.run("toy", "ledger")
    claims.write(first)
    monkeypatch.setattr(claims, "code_digest", lambda slug, *names: "3" * 16)
    renewed = claims.confirm("toy")
    assert renewed == claims.ledger("toy")
    assert renewed.code_digest == "3" * 16
    assert renewed.claims == first.claims
    assert renewed.metrics == first.metrics
    assert claims.status()[0]["state"] == "current"


def test_confirm_refuses_other_numbers_but_not_another_rounding(toy, monkeypatch):
    claims.write(claims.run("toy", "ledger"))
    before = claims.ledger_file("toy").read_bytes()

    def drifted(factor):
        def run(arm, **rest):
            values = _run(arm, **rest)
            return values | {"score": values["score"] * factor}

        return Experiment(run, ("plain", "method"), toy.EXPERIMENTS["e"].budgets)

    monkeypatch.setattr(claims, "code_digest", lambda slug, *names: "4" * 16)
    toy.EXPERIMENTS["e"] = drifted(1 + 1e-5)
    with pytest.raises(ValueError, match=r"toy, e, arm 'plain': score was .* and is"):
        claims.confirm("toy")
    assert claims.ledger_file("toy").read_bytes() == before
    monkeypatch.setattr(claims, "code_digest", lambda slug, *names: "5" * 16)
    toy.EXPERIMENTS["e"] = drifted(math.nextafter(1, 2))
    assert claims.confirm("toy").code_digest == "5" * 16
    monkeypatch.setattr(claims, "code_digest", lambda slug, *names: "6" * 16)
    toy.EXPERIMENTS["e"] = replace(drifted(2.0), timed=("score",))
    assert claims.confirm("toy").metrics == claims.ledger("toy").metrics  # a time may differ, and stays as it was


def test_confirm_refuses_a_new_claim(toy, monkeypatch):
    claims.write(claims.run("toy", "ledger"))
    toy.CLAIMS += (replace(toy.CLAIMS[0], id="other"),)
    with pytest.raises(ValueError, match="'other'"):
        claims.confirm("toy")


def test_a_broken_ledger_file_is_named(toy):
    path = claims.ledger_file("toy")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"toy\.json.*sslref claims run toy"):
        claims.ledger("toy")
    path.write_text('{"claims": []}')
    with pytest.raises(ValueError, match="profile"):
        claims.ledger("toy")


def test_a_sweep_killed_midway_continues(tmp_path):
    script = tmp_path / "sweep.py"
    script.write_text(
        textwrap.dedent(
            """
            import pathlib, sys, time, types
            from sslref import claims, registry
            here = pathlib.Path(sys.argv[1])
            def run(arm, *, seed, device):
                with open(here / "log", "a") as f: f.write(f"{arm} {seed}\\n")
                time.sleep(0.15)
                return {"m": float(seed)}
            claim = dict(id="c", statement="s", experiment="e", metric="m", higher_is_better=True)
            module = types.SimpleNamespace(
                EXPERIMENTS={"e": claims.Experiment(run, ("a", "b"), {"smoke": {"seeds": 6}})},
                CLAIMS=(claims.Claim(**claim, baseline="a", method="b"),))
            registry.load = lambda slug, *names: module
            claims.code_digest = lambda slug, *names: "0"
            claims.run("toy", "smoke", cache=here / "cache")
            """
        )
    )
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, script, tmp_path], env=env)
    log = tmp_path / "log"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not log.exists() or len(log.read_text().splitlines()) < 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    started = log.read_text().splitlines()
    assert 4 <= len(started) < 12
    subprocess.run([sys.executable, script, tmp_path], env=env, check=True)
    everything = log.read_text().splitlines()
    assert len(set(everything)) == 12
    assert len(everything) <= 13  # only the job that was cut is done twice

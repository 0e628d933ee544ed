"""The registry reads papers without importing them; digests change with code and with nothing else."""

import subprocess
import sys

import pytest

from sslref import digest, registry


def test_listing_imports_no_torch():
    code = "import sys; from sslref import registry; assert registry.papers(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_paper_is_complete():
    for slug, paper in registry.papers().items():
        assert paper.slug == slug
        module = registry.load(slug)
        assert paper == module.PAPER
        assert len({c.id for c in module.CLAIMS}) == len(module.CLAIMS) >= 2
        assert {"mechanism", "gain"} <= {c.kind for c in module.CLAIMS}
        for claim in module.CLAIMS:
            experiment = module.EXPERIMENTS[claim.experiment]
            assert {claim.baseline, claim.method, *claim.ablations} <= set(experiment.arms)
        for experiment in module.EXPERIMENTS.values():
            assert set(experiment.budgets) == {"smoke", "ci", "ledger", "gpu"}
            assert experiment.budgets["ledger"]["seeds"] >= 10
            assert experiment.budgets["gpu"]["seeds"] >= 32


def test_unknown_slug_names_the_nearest():
    with pytest.raises(registry.UnknownPaper, match="did you mean simclr"):
        registry.get("simcrl")
    with pytest.raises(registry.UnknownPaper, match="known papers"):
        registry.get("???")


def test_metadata_must_be_literal(tmp_path):
    file = tmp_path / "p.py"
    file.write_text("PAPER = Paper(slug=name)\n")
    with pytest.raises(ValueError, match=r"p\.py.*literal"):
        registry._read(file)
    file.write_text("x = 1\n")
    assert registry._read(file) is None


def _digest(tmp_path, monkeypatch, text):
    monkeypatch.setattr(digest, "PACKAGE", tmp_path)
    file = tmp_path / "m.py"
    file.write_text(text)
    digest._parsed.cache_clear()
    return digest.code([file])


def test_digest_follows_code_only(tmp_path, monkeypatch):
    commented = '"""Other."""\n# a comment\nx = 1  # why\n\ndef f():\n    """Longer\n    doc."""\n    return "#x"\n'
    base = _digest(tmp_path, monkeypatch, '"""Doc."""\nx = 1\ndef f():\n    """Doc."""\n    return "#x"\n')
    same = _digest(tmp_path, monkeypatch, commented)
    other = _digest(tmp_path, monkeypatch, 'x = 1\ndef f():\n    return "#y"\n')
    assert base == same != other


def test_reach_follows_imports():
    names = {p.relative_to(digest.PACKAGE).as_posix() for p in digest.reach("sslref.claims")}
    assert {"claims.py", "digest.py", "registry.py", "__init__.py"} == names
    assert digest.reach(source="from sslref import registry") == digest.reach("sslref.registry")
    left = digest.reach("sslref.claims", without=("sslref.digest",))
    assert "digest.py" not in {p.name for p in left}
    blocks = {p.relative_to(digest.PACKAGE).as_posix() for p in digest.reach("sslref.nn")}
    assert "nn/ema.py" in blocks  # the package imports its parts relatively
    with pytest.raises(ValueError, match=r"sslref\.nothing"):
        digest.reach("sslref.nothing")

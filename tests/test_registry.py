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
        for name, experiment in module.EXPERIMENTS.items():
            assert set(experiment.budgets) == {"smoke", "ci", "ledger", "gpu"}
            if name in {claim.experiment for claim in module.CLAIMS}:
                assert 10 <= experiment.budgets["ledger"]["seeds"] < experiment.budgets["gpu"]["seeds"]


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
    assert {"claims.py", "digest.py", "registry.py"} == names
    assert digest.reach(source="from sslref import registry") == digest.reach("sslref.registry")
    left = digest.reach("sslref.claims", without=("sslref.digest",))
    assert "digest.py" not in {p.name for p in left}
    blocks = {p.relative_to(digest.PACKAGE).as_posix() for p in digest.reach("sslref.nn")}
    assert "nn/ema.py" in blocks  # the package imports its parts relatively
    with pytest.raises(ValueError, match=r"sslref\.nothing"):
        digest.reach("sslref.nothing")


def test_reach_sees_through_packages_that_pass_names_on(tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "PACKAGE", tmp_path / "sslref")
    texts = {
        "__init__.py": '"""Doc."""\n__version__ = "1"\n',
        "nn/__init__.py": '"""Doc."""\nfrom .a import A\nfrom sslref.nn.b import B\n__all__ = ["A", "B"]\n',
        "nn/a.py": "A = 1\n",
        "nn/b.py": "from sslref.nn import A\nB = A\n",
        "nn/c.py": "C = 1\n",
        "busy/__init__.py": "from sslref.nn.c import C as D\nstate = []\n",
        "busy/d.py": "",
    }
    for name, text in texts.items():
        path = tmp_path / "sslref" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def reach(source):
        return {p.relative_to(digest.PACKAGE).as_posix() for p in digest.reach(source=source)}

    assert reach("from sslref.nn import A") == {"nn/a.py"}
    assert reach("from sslref.nn import B") == {"nn/a.py", "nn/b.py"}
    assert reach("from sslref.nn import c") == reach("from sslref.nn.c import C") == {"nn/c.py"}
    everything = {"nn/__init__.py", "nn/a.py", "nn/b.py"}
    assert reach("import sslref.nn") == reach("from sslref import nn") == reach("from sslref.nn import *") == everything
    assert reach("import sslref.busy.d") == {"busy/__init__.py", "busy/d.py", "nn/c.py"}  # it does more, so it counts

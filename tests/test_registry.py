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


def _package(tmp_path, monkeypatch, **files):
    """A package of the name `sslref`; `nn__a="A = 1"` is `nn/a.py`, `nn__` its `__init__`."""
    folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "sslref"
    monkeypatch.setattr(digest, "PACKAGE", folder)
    for name, text in {"": "", **files}.items():
        inner, _, stem = name.rpartition("__")
        path = folder / inner / f"{stem or '__init__'}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _names(*names, source="", without=()):
    return {
        f"{d.path.relative_to(digest.PACKAGE).with_suffix('').as_posix()}:{d.name}"
        for d in digest.definitions(*names, source=source, without=without)
    }


def test_digest_follows_code_only(tmp_path, monkeypatch):
    def say(text):
        _package(tmp_path, monkeypatch, m=text)
        return digest.code(digest.definitions("sslref.m"))

    commented = '"""Other."""\n# a comment\nx = 1  # why\n\ndef f():\n    """Longer\n    doc."""\n    return "#x"\n'
    base = say('"""Doc."""\nx = 1\ndef f():\n    """Doc."""\n    return "#x"\n')
    assert base == say(commented)
    assert base != say('x = 1\ndef f():\n    return "#y"\n')
    assert base != say('x = 1\n@twice\ndef f():\n    return "#x"\n')


def test_a_definition_counts_for_itself_with_what_it_reads(tmp_path, monkeypatch):
    text = """
import math
from sslref import n
from sslref.n import other as another
SIDE, STEP = 3, 4
KEEP: int = 5
def used(x=SIDE):
    return n.deep.inner(x) + math.pi
def unused():
    return KEEP
class Model:
    size: KEEP
    def late(self, STEP):
        from sslref.n import late
        return late(another, STEP)
for i in range(3):
    print(i)
"""
    n = "from . import deep\ndef other(): ...\ndef late(): ...\ndef more(): ...\n"
    deep = "def inner(x): ...\ndef side(x): ...\n"
    _package(tmp_path, monkeypatch, m=text, n__=n, n__deep=deep)
    assert _names("sslref.m.used") == {"m:", "m:SIDE", "m:used", "n/deep:inner"}
    assert _names("sslref.m.unused") == {"m:", "m:KEEP", "m:unused"}
    # `STEP` is an argument there; that it shares its name with a constant of the module errs on the safe side
    assert _names("sslref.m.Model") == {"m:", "m:Model", "m:KEEP", "m:STEP", "n/__init__:late", "n/__init__:other"}
    assert _names("sslref.m") >= {"m:unused", "m:used", "m:Model"}
    assert _names(source="from sslref.n import deep\ndeep.side(1)") == {"n/deep:inner", "n/deep:side"}  # imported whole
    handed_on = "from sslref import n\ndef f(): return g(n.deep)\n"
    _package(tmp_path, monkeypatch, m=handed_on, n__=n, n__deep=deep)
    assert _names("sslref.m.f") == {"m:f", "n/deep:inner", "n/deep:side"}  # a module as a value counts as a whole
    _package(tmp_path, monkeypatch, m="from sslref.n import gone\ndef f(): return gone()\n", n="x = 1\n")
    assert _names("sslref.m.f") == {"m:f", "n:x"}  # nothing binds that name


def test_reach_follows_imports():
    names = {p.relative_to(digest.PACKAGE).as_posix() for p in digest.reach("sslref.claims")}
    assert {"claims.py", "digest.py", "registry.py"} == names
    assert digest.reach(source="from sslref import registry") == digest.reach("sslref.registry")
    left = digest.reach("sslref.claims", without=("sslref.digest",))
    assert "digest.py" not in {p.name for p in left}
    blocks = {p.relative_to(digest.PACKAGE).as_posix() for p in digest.reach("sslref.nn")}
    assert "nn/ema.py" in blocks  # the package imports its parts relatively
    with pytest.raises(ValueError, match=r"sslref\.nothing\.here"):
        digest.reach("sslref.nothing.here")


def test_packages_pass_names_on(tmp_path, monkeypatch):
    _package(
        tmp_path,
        monkeypatch,
        nn__='"""Doc."""\nfrom .a import A\nfrom sslref.nn.b import B\nfrom .same import same\n__all__ = ["A", "B"]\n',
        nn__a="A = 1\n",
        nn__b="from sslref.nn import A\nB = A\n",
        nn__c="C = 1\n",
        nn__same="def same(): ...\n",
        busy__="from sslref.nn.c import C as D\nprint(D)\n",
        busy__d="",
    )
    assert _names(source="from sslref.nn import A") == {"nn/a:A"}
    assert _names(source="from sslref.nn import B") == {"nn/a:A", "nn/b:B"}
    assert _names(source="from sslref.nn import same") == {"nn/same:same"}  # a function with the name of its module
    assert _names(source="from sslref.nn import c") == _names(source="from sslref.nn.c import C") == {"nn/c:C"}
    everything = {"nn/__init__:__all__", "nn/a:A", "nn/b:B", "nn/same:same"}
    for source in ("import sslref.nn", "from sslref import nn", "from sslref.nn import *"):
        assert _names(source=source) == everything
    assert _names(source="import sslref.busy.d") == {"busy/__init__:", "nn/c:C"}  # importing it runs its package

"""What may import what, and what importing costs."""

import importlib.util
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sslref

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# where the name of a distribution is not that of its package
PACKAGE_OF = {"pillow": "PIL", "scikit-learn": "sklearn", "scikit-image": "skimage"}


def packages(extra: str) -> set[str]:
    """Import names of what an extra of pyproject.toml brings, nested ones included."""
    found = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        if nested := re.fullmatch(r"sslref\[(.*)\]", requirement):
            for name in nested[1].split(","):
                found |= packages(name.strip())
        else:
            name = re.match(r"[A-Za-z0-9_.-]+", requirement)[0]
            found.add(PACKAGE_OF.get(name, name.replace("-", "_")))
    return found


def allowed(module: str) -> str:
    """The extra without which a module need not import."""
    extras = {"sslref.cli": "run", "sslref.__main__": "run", "sslref.publish": "book", "sslref.course": "teach"}
    for prefix, extra in extras.items():
        if module.startswith(prefix):
            return extra
    return ""


MODULES = sorted(m.name for m in pkgutil.walk_packages(sslref.__path__, "sslref.") if m.name != "sslref.__main__")


def test_layers_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_itself_imports_nothing():
    code = (
        "import sys; before = set(sys.modules); import sslref, json; print(json.dumps(list(set(sys.modules) - before)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {name.split(".")[0] for name in json.loads(out)} & {"torch", "numpy", "scipy", "sklearn", "rich", "typer"}
    assert not heavy


# In a process in which the packages of the extras cannot be found, import one module after the other. What is found
# missing is printed for each.
PROBE = """
import importlib, json, sys
hidden = set(json.loads(sys.argv[1]))
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
failed = {}
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""


@pytest.mark.parametrize("extra", ["", "run"])
def test_modules_import_without_extras_they_must_not_need(extra):
    """With PyTorch, NumPy, SciPy and scikit-learn alone all but the command line and the publisher import."""
    hidden = packages("dev") - (packages(extra) if extra else set())
    chosen = [m for m in MODULES if allowed(m) in ("", extra)]
    assert len(chosen) > 20
    command = [sys.executable, "-c", PROBE, json.dumps(sorted(hidden)), *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


def test_every_module_imports():
    """Also those that need every extra, with warnings as errors."""
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code, *MODULES], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_lock_file_is_exact_and_covers_what_the_project_names():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").split()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    locked = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower(): line.split("==")[1] for line in lines}
    assert locked["torch"] == "2.13.0"
    assert not {name for name in locked if name.startswith(("nvidia", "cuda", "triton"))}
    wanted = PROJECT["dependencies"] + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    names = {re.match(r"[A-Za-z0-9_.-]+", r)[0] for r in wanted} - {"sslref"}
    assert {re.sub(r"[-_.]+", "-", n).lower() for n in names} <= locked.keys()
    assert importlib.util.find_spec("torch") is not None

"""Mathematics set when a course is built, so that no page of it needs a script or the network for its formulas."""

import json
import re
import subprocess
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

from sslref.publish import vendor

_CODE = re.compile(r"(?ms)(^(`{3,}).*?^\2[ \t]*$|`[^`\n]+`)")
_MATH = re.compile(r"(?s)\$\$(.+?)\$\$|(?<![\\$])\$(?!\s)([^$]+?)(?<!\s)\$")
_SCRIPT = """
const katex = require(process.argv[1]);
const jobs = JSON.parse(require("fs").readFileSync(0, "utf8"));
const set = ([tex, displayMode, output]) => katex.renderToString(tex, {displayMode, output, strict: false});
try { console.log(JSON.stringify(jobs.map(set))); } catch (error) { console.error(error.message); process.exit(1); }
"""


class TexError(ValueError):
    """A formula that KaTeX cannot set."""


def render(formulas: Iterable[tuple[str, bool]], output: str = "htmlAndMathml") -> list[str]:
    """HTML of formulas (TeX, whether displayed), by the KaTeX that the book uses.

    Raises:
        TexError: a formula is wrong. VendorError: no Node.js.
    """
    jobs = [(tex, display, output) for tex, display in formulas]
    if not jobs:
        return []
    library = Path(find_spec("sphinxcontrib.katex").origin).with_name("katex.min.js")
    command = [vendor.node(), "-e", _SCRIPT, str(library)]
    done = subprocess.run(
        command, input=json.dumps(jobs), capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    if done.returncode:
        raise TexError(done.stderr.strip()[-400:])
    return json.loads(done.stdout)


def each(text: str, change: Callable[[str, bool], str]) -> str:
    """The text with `change(tex, displayed)` in the place of each formula; code stays as it is."""
    parts = _CODE.split(text)
    # split gives text, code, fence, text, …: every third piece is plain text
    for i in range(0, len(parts), 3):
        parts[i] = _MATH.sub(lambda m: change(m[1] or m[2], m[1] is not None), parts[i])
        if i + 2 < len(parts):
            parts[i + 2] = ""
    return "".join(parts)


def mathml(texts: list[str]) -> list[str]:
    """The texts with their formulas as MathML, which browsers set by themselves."""
    found: list[tuple[str, bool]] = []
    for text in texts:
        each(text, lambda tex, display: found.append((tex, display)) or "")
    made = iter(render(found, "mathml"))
    return [each(text, lambda *_: next(made)) for text in texts]

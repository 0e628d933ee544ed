"""The book's own part of the Sphinx build, loaded by `_config.yml`."""

import json
import re
import socket
import subprocess
import time
from multiprocessing import util
from pathlib import Path

from sphinx.application import Sphinx


def _formulas(app: Sphinx) -> None:
    """Formulas are set at build time by KaTeX on Node.js; one that cannot be set is an error."""
    from sphinxcontrib import katex

    from sslref.publish import vendor

    katex.NODEJS_BINARY = vendor.node()
    katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = 60.0  # seconds; the machine may be busy
    katex.KATEX_DEFAULT_OPTIONS = {"throwOnError": True, "strict": False, "trust": False}
    katex.KaTeXServer.start_server_process = classmethod(_started)
    util.register_after_fork(katex.KaTeXServer, _own_server)


def _parallel(app: Sphinx) -> None:
    """This extension of Jupyter Book numbers chapters after reading, hence is safe, but does not say so."""
    app.extensions["sphinx_multitoc_numbering"].parallel_read_safe = True


def _started(server, folder: Path, timeout: float) -> tuple[subprocess.Popen, socket.socket]:
    """KaTeX's process and a connection to it.

    The socket is in the folder a moment before anybody listens there. The original takes its being there for an
    answer, and on a busy machine is refused.
    """
    address = str(folder / "katex.sock")
    process = subprocess.Popen(
        server.build_command(socket=address), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder
    )
    start = time.monotonic()
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(address)
            return process, connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if process.poll() is not None or time.monotonic() - start > timeout:
                raise server.timeout_error(timeout) from None
            time.sleep(0.01)


def _own_server(server) -> None:
    """A forked writer talks to a KaTeX of its own, not into its parent's, and ends it when it is done."""
    server.katex_server = None
    util.Finalize(None, lambda: server.katex_server and server.katex_server.terminate(), exitpriority=1)


def _assets(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Pages without formulas load no style sheet for them."""
    if 'class="katex' not in context.get("body", ""):
        context["css_files"] = [c for c in context["css_files"] if "katex" not in str(getattr(c, "filename", c))]


def _read_ends(app: Sphinx) -> None:
    from sslref.publish import ends

    file = Path(app.srcdir) / ends.FILE
    app.book_ends = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _ends(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Chapters get their head and foot."""
    from sslref.publish import ends

    found = app.book_ends.get(pagename)
    if found:
        context["body"] = ends.insert(context["body"], found["rows"], found["above"])
        context["book_foot"] = found["foot"]
        context["theme_article_footer_items"] = ["chapter-foot.html"]


_SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes|Note|Notes|Example|Examples|References):\s*$")


def _plain(line: str) -> str:
    """The line with backticks as code and every other mark of reStructuredText escaped."""
    parts = re.split(r"`+([^`]+)`+", re.sub(r"^(\s*)\* ", r"\1- ", line))
    escaped = (re.sub(r"([*|])|(?<=\w)_(?!\w)", lambda m: "\\" + m[0], part) for part in parts[::2])
    return "".join(text + code for text, code in zip(escaped, [*(f"``{c}``" for c in parts[1::2]), ""], strict=True))


def plain_docstring(lines: list[str]) -> list[str]:
    """Docstrings are plain text in which backticks mean code: as reStructuredText that shows just that.

    Indented lines after a blank one (tables, formulas) keep their layout; sections are left to napoleon.
    """
    out: list[str] = []
    section = literal = bullet = False
    for line in lines:
        after_blank = not "".join(out[-1:]).strip()
        if line[:1].strip():  # starts at the margin
            was, bullet = bullet, bool(re.match(r"([-*]|\d+\.) ", line))
            section, literal = bool(_SECTION.match(line)), False
            if bullet != was and not after_blank:
                out.append("")
        elif line.strip() and after_blank and not (section or literal or bullet):
            literal = True
            out += [".. code-block:: none", ""]
        out.append(line if literal else _plain(line if section or bullet else line.strip()))
    return out


def _docstring(app: Sphinx, what: str, name: str, obj, options, lines: list[str]) -> None:
    lines[:] = plain_docstring(lines)


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", _parallel)
    app.connect("builder-inited", _formulas)
    app.connect("builder-inited", _read_ends)
    app.connect("html-page-context", _ends, priority=400)  # before the theme looks for its templates
    app.connect("html-page-context", _assets, priority=900)
    app.connect("autodoc-process-docstring", _docstring, priority=400)  # before napoleon reads the sections
    return {"parallel_read_safe": True, "parallel_write_safe": True}

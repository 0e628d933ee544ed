"""What a reader sees in a terminal: bars that end on a line of their own, however the run ends, and no debris."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import psutil
import pytest
from publish.toy import Checkout, code

SLOW = code("import time\ntime.sleep(100)")


def terminal(folder, *command: str, until: bytes | None = None, columns: int = 100) -> tuple[int, str]:
    """Run a command in a terminal of its own; once `until` is on the screen, interrupt it as Ctrl-C does.

    Returns:
        Exit status, and all that was written. Fails where a process outlives the command.
    """
    screen, inside = pty.openpty()
    variables = {"PYTHONPATH": str(folder), "TERM": "xterm", "COLUMNS": str(columns), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | variables,
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    written, started, end = b"", set(), time.monotonic() + 120
    while time.monotonic() < end:
        if select.select([screen], [], [], 0.2)[0]:
            try:
                written += os.read(screen, 65536)
            except OSError:  # Linux's way to say that nobody is on the other side
                break
        if until and until in written:
            time.sleep(3)  # workers and kernels are up
            started = set(psutil.Process(process.pid).children(recursive=True))
            os.killpg(process.pid, signal.SIGINT)
            until = None
    status = process.wait(timeout=60)
    os.close(screen)
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
    return status, written.decode()


def last_screen(written: str) -> list[str]:
    """The lines as they stand at the end: after what was erased, moved up to, and coloured."""
    lines, column = [""], 0
    for move, text in re.findall(r"(\x1b\[\d*A|\x1b\[\d?K|\r\n|\n|\r|\x1b\[[?\d;]*[a-zA-Z])|([^\x1b\r\n]+)", written):
        if text:
            lines[-1] = lines[-1][:column] + text + lines[-1][column + len(text) :]
            column += len(text)
        elif move.endswith("A"):
            lines = lines[:-1]
        elif move.endswith("K"):
            lines[-1] = ""
        elif move == "\r":
            column = 0
        elif "\n" in move:
            lines.append("")
            column = 0
    return lines


REPORT = """
from sslref import show
report = show.progress("a run", every=0)
for step in range(1, 6):
    report(step, 5, {"loss": 1.0 / step})
    END
"""


@pytest.mark.parametrize(
    ("ending", "columns", "said"),
    [
        ("pass", 100, r"a run: 5 steps, \d\.\d s, loss 0\.200"),
        ("pass", 24, r"a run: 5 steps, .{7}"),  # cut, not wrapped: a wrapped line would not go away
        ("if step == 2: raise SystemExit('it is over')", 100, r"a run ████████░+ 2 of 5, \d\.\d s, loss 0\.500"),
    ],
)
def test_a_progress_line_stands_alone(tmp_path, ending, columns, said):
    from sslref import registry

    (tmp_path / "sslref").symlink_to(registry.root() / "sslref")
    _, written = terminal(tmp_path, "-c", REPORT.replace("END", ending), columns=columns)
    lines = last_screen(written)
    assert re.fullmatch(said, lines[0]), lines
    assert lines[1:] == (["it is over", ""] if "over" in ending else [""])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("terminal"), {"alpha": "masked", "beta": "structure"})
    for slug, part in {"alpha": "masked", "beta": "structure"}.items():
        checkout.write(slug, part, SLOW)
    return checkout


@pytest.mark.slow
def test_ctrl_c_ends_the_book_with_one_line(checkout):
    """Chapters that run in parallel, each with its kernel, go without a word of their own, and nothing runs on."""
    start = time.monotonic()
    status, written = terminal(checkout.root, "-m", "sslref", "book", until=b"beta: running")
    *begun, last, nothing = last_screen(written)
    assert sorted(begun) == ["alpha: running", "beta: running"]
    assert (last, nothing) == ("sslref: interrupted", "")
    assert status == 130
    assert time.monotonic() - start < 90  # not the hundred seconds of the chapters
    assert not list((checkout.root / "_build" / "cache").glob("*.json"))

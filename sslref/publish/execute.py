"""Run chapters through papermill, in parallel processes, and keep what they gave until what they rest on changes."""

import ast
import contextlib
import hashlib
import json
import os
import platform
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import active_children, get_context, resource_tracker
from multiprocessing.pool import ThreadPool
from pathlib import Path

from sslref import claims, digest, registry

LIMIT = 180.0  # seconds a chapter may take before it is stopped
STARTUP = Path(__file__).with_name("kernel_startup.py")
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the run of one chapter ended. `seconds` and `peak_mb` are those of the run that made the kept copy."""

    status: str  # "run", "cached", "failed", "stopped"
    seconds: float
    peak_mb: int
    error: str = ""

    @property
    def good(self) -> bool:
        return self.status in ("run", "cached")


def code_of(notebook: dict) -> str:
    """The Python of a notebook's code cells, without lines that only IPython reads."""
    cells = ("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    return "\n".join(re.sub(r"(?m)^[ \t]*[%!].*$", "pass", source) for source in cells)


def rests_on(slug: str) -> list[Path]:
    """Files on which the executed chapter rests: notebook, package, data, ledger, locked versions."""
    root, notebook = registry.root(), registry.notebook(slug)
    source = code_of(json.loads(notebook.read_text(encoding="utf-8")))
    try:
        ast.parse(source)
    except SyntaxError:  # the run will name the cell
        source = ""
    files = [notebook, STARTUP, root / "requirements.lock", root / "data" / "checksums.json"]
    modules = () if slug in registry.pages() else (f"sslref.papers.{slug}",)
    files += [claims.ledger_file(slug) for _ in modules]
    if not modules and "claims.ledger(" in source:  # a page may ask for any entry
        files += sorted((root / "book" / "results").glob("*.json"))
    return [f for f in files if f.exists()] + digest.reach(*modules, source=source)


def key(slug: str) -> str:
    """SHA-256 of all that the executed chapter rests on. Comments count: chapters show the source."""
    h = hashlib.sha256(platform.python_version().encode())
    for path in rests_on(slug):
        h.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    return h.hexdigest()


def kept(slug: str) -> Path:
    """Where the executed copy of a chapter is kept; the `.json` next to it holds its key and cost."""
    return registry.root() / "_build" / "cache" / f"{slug}.ipynb"


def _record(slug: str) -> dict:
    try:
        return json.loads(kept(slug).with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _stop_children() -> None:
    import psutil

    _kill(psutil.Process().children(recursive=True))


def _stop_workers() -> None:
    """End the processes of `_alone` with all that they have started."""
    import psutil

    for worker in active_children():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(worker.pid)
            _kill([process, *process.children(recursive=True)])


def _kill(processes: list) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _environment(root: Path, folder: Path) -> dict[str, str]:
    """Environment of a kernel: one thread, this checkout, warnings as errors, no profile of the user."""
    profile = folder / "profile_default"
    (profile / "startup").mkdir(parents=True, exist_ok=True)
    (profile / "startup" / "00-warnings.py").write_bytes(STARTUP.read_bytes())
    (profile / "ipython_kernel_config.py").write_text(
        "c.IPKernelApp.log_level = 'ERROR'\n"
    )  # no notice of TCP at each start
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return dict.fromkeys(_THREADS, "1") | {
        "IPYTHONDIR": str(folder),
        "PYTHONPATH": path,
        "PYTHONHASHSEED": "0",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_PLATFORM_DIRS": "1",
    }


def _where(cells: list, index: int) -> str:
    """A cell as an author finds it: its number, the heading above it, its first line."""
    above = [c["source"] for c in cells[:index] if c["cell_type"] == "markdown"]
    headings = re.findall(r"(?m)^#+ +(.+)$", "\n".join("".join(s) for s in above))
    first = "".join(cells[index]["source"]).strip().partition("\n")[0]
    under = f" under “{headings[-1]}”" if headings else ""
    return f"cell {index + 1} of {len(cells)}{under}: {first}"


def _unfinished(path: Path) -> str:
    """Where a run ended that papermill does not know to have failed: the last code cell that it began."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError):
        return "before its first cell"
    begun = [
        i
        for i, cell in enumerate(cells)  # not by their status: papermill ends by calling all cells completed
        if cell["cell_type"] == "code" and cell["metadata"].get("papermill", {}).get("start_time")
    ]
    return f"in {_where(cells, begun[-1])}" if begun else "before its first cell"


def _run(source: Path, target: Path, root: Path, limit: float) -> Outcome:
    """Execute one notebook. Runs in a process of its own."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    os.environ.update(_environment(root, target.parent / ".ipython" / source.stem))
    stopped = threading.Event()
    timer = threading.Timer(limit, lambda: (stopped.set(), _stop_children()))
    timer.daemon = True
    start = time.perf_counter()
    timer.start()
    status, error = "run", ""
    try:
        papermill.execute_notebook(source, target, kernel_name="python3", progress_bar=False, cwd=str(source.parent))
    except PapermillExecutionError as failure:
        cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(failure.traceback))
        status, error = "failed", f"in {_where(cells, failure.cell_index)}\n{trace}"
    except Exception as failure:  # whatever it is, the other chapters go on
        status, error = "failed", f"{_unfinished(target)}\n{type(failure).__name__}: {failure}"
    finally:
        timer.cancel()
        _stop_children()
    if stopped.is_set():
        status, error = "stopped", f"after {limit:.0f} s, the limit of a chapter, {_unfinished(target)}"
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return Outcome(status=status, seconds=round(time.perf_counter() - start, 1), peak_mb=peak, error=error)


def _alone(*arguments) -> Outcome:
    """`_run` in a fresh process: its peak memory is the chapter's own, and its death is no other chapter's.

    Ctrl-C in a terminal reaches every process there. The fresh one and its kernel, which inherit what this thread
    blocks, leave the answer to `execute`.
    """
    resource_tracker.ensure_running()  # it would unblock the signal when it is started
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_run, *arguments).result()
        except BrokenProcessPool as failure:
            return Outcome(status="failed", seconds=0.0, peak_mb=0, error=f"the process that ran it died: {failure}")


def execute(
    slugs: Iterable[str],
    *,
    jobs: int = 2,
    force: bool = False,
    limit: float = LIMIT,
    progress: Callable[[str], None] = print,
) -> Iterator[tuple[str, Outcome]]:
    """Run the chapters that changed; yields (slug, outcome) as they end.

    Args:
        slugs: papers whose chapters are wanted, and pages.
        jobs: processes at a time, one thread each.
        force: run also what has not changed.
        limit: seconds after which a chapter is stopped.
        progress: receives one line when a chapter starts.
    """
    keys = {slug: key(slug) for slug in slugs}
    records = {slug: _record(slug) for slug in keys}
    todo = []
    for slug, wanted in keys.items():
        if not force and records[slug].get("key") == wanted and kept(slug).exists():
            yield slug, Outcome(status="cached", seconds=records[slug]["seconds"], peak_mb=records[slug]["peak_mb"])
        else:
            todo.append(slug)
    if not todo:
        return
    todo.sort(key=lambda slug: -records[slug].get("seconds", 1e9))  # the longest first

    def one(slug: str) -> tuple[str, Path, Outcome]:
        part = kept(slug).with_name(f"{slug}.part.ipynb")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        progress(f"{slug}: running")
        return slug, part, _alone(registry.notebook(slug), part, registry.root(), limit)

    try:
        with ThreadPool(jobs) as pool:
            for slug, part, outcome in pool.imap_unordered(one, todo):
                if outcome.good:
                    kept(slug).with_suffix(".json").unlink(missing_ok=True)
                    os.replace(part, kept(slug))
                    claims.write_json(kept(slug).with_suffix(".json"), {"key": keys[slug]} | asdict(outcome))
                yield slug, outcome
    except BaseException:  # Ctrl-C, or nobody asks any more
        _stop_workers()
        raise

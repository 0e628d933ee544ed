"""`make lab`: JupyterLab opens on the chapters with this environment's kernel, and gives the book's own numbers."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = Path("notebooks/masked/mask_strategies.ipynb")  # the cheapest one
TOKEN = "secret"
DECOY = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Another Python", "language": "python"}
WHERE = (
    "import os, sys\nimport sslref\nprint(sys.prefix, sslref.__file__, os.getcwd(), torch.get_num_threads(), hash('a'))"
)


def source(cell) -> str:
    return "".join(cell["source"])


def code(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout with one chapter on its smallest profile, which ends with where it runs."""
    root = tmp_path_factory.mktemp("lab")
    for name in ("sslref", "book/results"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, root)
    (root / "data").symlink_to(ROOT / "data")
    notebook = json.loads((ROOT / CHAPTER).read_text(encoding="utf-8"))
    first = code(notebook)[0]
    assert '"ci"' in source(first)
    first["source"] = source(first).replace('"ci"', '"smoke"')
    notebook["cells"].append(
        {"cell_type": "code", "execution_count": None, "id": "where", "metadata": {}, "outputs": [], "source": WHERE}
    )
    (root / CHAPTER).parent.mkdir(parents=True)
    (root / CHAPTER).write_text(json.dumps(notebook), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def book_outputs(checkout):
    """What the chapter shows when the book executes it."""
    command = (
        "from sslref.publish import execute\n"
        f"(_, outcome), = execute.execute([{CHAPTER.stem!r}])\n"
        "assert outcome.good, outcome.error"
    )
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run([sys.executable, "-c", command], cwd=checkout, env=environment, check=True)
    return outputs(json.loads((checkout / "_build" / "cache" / CHAPTER.name).read_text(encoding="utf-8")))


def outputs(notebook: dict) -> list[list[str]]:
    """Text and numbers that every code cell shows, but for times, and names that differ from run to run."""
    found = []
    for cell in code(notebook):
        texts = []
        for out in cell["outputs"]:
            assert out["output_type"] != "error", out
            kinds = {"stream": out.get("text", "")} | out.get("data", {})
            texts += ["".join(text) for kind, text in sorted(kinds.items()) if kind.startswith(("text", "stream"))]
        shown = re.sub(r"\d+\.\d s\b", "… s", "\n".join(filter(None, texts)))
        shown = re.sub(r"about \d+ (seconds|minutes) and [\d.]+ GB", "about … and …", shown)
        shown = re.sub(r"\bs[0-9a-f]{6}-\d+\b", "id", shown)
        found.append(shown.strip().splitlines())
    return found


@pytest.fixture(scope="module")
def lab(checkout, tmp_path_factory):
    """Address of the server that `make lab` starts, for a user who has other kernels of the same name."""
    home = tmp_path_factory.mktemp("home")
    for folder in (home / ".local/share/jupyter/kernels/python3", home / "elsewhere/kernels/python3"):
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(json.dumps(DECOY))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--no-browser --allow-root --ip 127.0.0.1 --port {port} --IdentityProvider.token={TOKEN}"
    options += " --LabApp.news_url=None"  # asks the reader, and nobody else, with a notice in the corner
    command = ["make", "-o", f"{sys.prefix}/.ready", "lab", f"VENV={sys.prefix}", f"LAB={options}"]
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": str(checkout)}
    environment |= {"JUPYTER_PATH": str(home / "elsewhere"), "JUPYTER_PREFER_ENV_PATH": "0"}
    environment = {k: v for k, v in environment.items() if not k.startswith(("JUPYTER_CONFIG", "OMP_", "MAKE"))}
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(120):
            with contextlib.suppress(OSError):
                ask(address, "api/status")
                break
            assert server.poll() is None, (home / "log").read_text()
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def ask(address: str, path: str) -> dict:
    with urllib.request.urlopen(f"{address}{path}?token={TOKEN}", timeout=10) as answer:
        return json.load(answer)


def test_it_opens_on_the_chapters(lab):
    found = ask(lab, "api/contents/notebooks")
    assert [entry["name"] for entry in found["content"]] == ["masked"]
    with urllib.request.urlopen(f"{lab}?token={TOKEN}", timeout=60) as answer:
        assert answer.url.partition("?")[0] == f"{lab}lab/tree/notebooks"


def test_the_kernel_is_this_environments(lab):
    found = ask(lab, "api/kernelspecs")
    assert found["default"] == "python3"
    assert found["kernelspecs"]["python3"]["spec"]["display_name"] != DECOY["display_name"]
    wanted = json.loads((ROOT / CHAPTER).read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"]
    assert wanted in found["kernelspecs"]


@pytest.mark.slow
def test_restart_and_run_all_gives_the_numbers_of_the_book(lab, browser, checkout, book_outputs):
    """Opened without a question, run from top to bottom, with a slider that moves, and the book's text and numbers."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(90_000)
    page.goto(f"{lab}lab/tree/{CHAPTER}?token={TOKEN}")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Restart Kernel and Run All Cells").click()
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    end = time.monotonic() + 240
    while True:
        page.keyboard.press("Control+s")
        notebook = json.loads((checkout / CHAPTER).read_text(encoding="utf-8"))
        if all(cell["execution_count"] for cell in code(notebook)):
            break
        assert time.monotonic() < end, page.get_by_role("contentinfo").inner_text()
        page.wait_for_timeout(500)
    assert page.locator(".jp-Dialog").count() == 0
    ran = outputs(notebook)
    assert ran == book_outputs
    where = [sys.prefix, f"{checkout}/sslref/__init__.py", f"{checkout / CHAPTER.parent}", "1"]
    assert ran[-1][0].split()[:4] == where

    handle = page.locator(".sslref-slider .noUi-handle").first
    handle.scroll_into_view_if_needed()
    frame = page.locator(".sslref-slider").first.locator(".sslref-frame:visible p")
    before = frame.inner_text()
    handle.press("ArrowRight")
    page.wait_for_function(
        "before => [...document.querySelectorAll('.sslref-frame p')]"
        ".some(p => p.offsetParent && p.innerText && p.innerText != before)",
        arg=before,
    )
    page.context.close()

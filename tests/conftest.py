"""One thread, no network, and the markers from which the book's parity table is made."""

import contextlib
import ipaddress
import os
import socket
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("sslref", deadline=None, derandomize=True)  # a busy machine is no failure
settings.load_profile("sslref")

MARKERS = (
    'parity(name, *, against, tolerance): compares "module.function" with an outside truth; literal arguments only',
    "differs(slug, *, paper, official, here): pins down a known difference between paper and official code",
    "slow: takes ten seconds or more",
)


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(items):
    """The tests of the site come first: to build it takes longest, and both processors."""
    site = Path(__file__).with_name("site")
    items.sort(key=lambda item: site not in item.path.parents)


@pytest.fixture(scope="session", autouse=True)
def _no_network():
    """Tests reach this machine only."""
    connect = socket.socket.connect

    def local(self, address):
        host = address[0] if isinstance(address, tuple) else "localhost"
        with contextlib.suppress(ValueError):  # a name
            host = "localhost" if ipaddress.ip_address(host).is_loopback else host
        if host != "localhost":
            raise OSError(f"a test wanted to reach {host}")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local)
        yield


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, one for all tests of a process."""
    from sslref.publish import pdf

    try:
        path = pdf.chromium()
    except pdf.PrintError as missing:
        pytest.fail(str(missing)) if os.environ.get("CI") else pytest.skip(str(missing))
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def picture_folder(tmp_path):
    """A folder of pictures: three of each of two classes."""
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40, 50), (80 * i, 100, 30)).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"

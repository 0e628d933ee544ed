"""The built book, served on this machine, in headless Chromium."""

import functools
import http.server
import threading

import pytest

from sslref import registry

SITE = registry.root() / "_build" / "html"


@pytest.fixture(scope="session")
def site():
    """Folder of the book; it is brought up to date first, which takes seconds when nothing changed."""
    from sslref import publish

    lines = []
    assert publish.book(progress=lines.append) == 0, "\n".join(lines)
    return SITE


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def address(site):
    """Address of a server of the book, with a slash at its end."""
    handler = functools.partial(_Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def visit(browser, address):
    """`visit("read.html", width=390, dark=True)` -> the loaded page; what went wrong is in `page.wrong`."""
    contexts = []

    def visit(name: str, *, width: int = 1280, dark: bool = False, base: str = address):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        contexts.append(context)
        page = context.new_page()
        page.wrong = []
        page.requests = []

        def asked(request):
            page.requests.append(request.url)
            if not request.url.startswith((base, "data:", "blob:")):
                page.wrong.append(f"request to another host: {request.url}")

        page.on("request", asked)
        page.on("requestfailed", lambda r: page.wrong.append(f"request failed: {r.url} {r.failure}"))
        page.on(
            "console", lambda m: page.wrong.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.goto(base + name, wait_until="load")
        return page

    yield visit
    for context in contexts:
        context.close()

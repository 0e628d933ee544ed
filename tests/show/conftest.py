"""Parsers with which the tests look at what `sslref.show` hands out."""

import html.parser

import pytest

VOID = {"img", "br", "meta", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Tags with their attributes, all text, and an error where a tag is not closed in order."""

    def __init__(self, content: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(content)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def loads(self) -> list[str]:
        """Addresses of what a browser would fetch to show this."""
        found = [a["src"] for _, a in self.tags if "src" in a]
        found += [a["href"] for t, a in self.tags if "href" in a and t != "a"]
        return [address for address in found if not address.startswith(("#", "data:"))]


@pytest.fixture
def page():
    """A function that parses HTML."""
    return Page


@pytest.fixture
def plt():
    """pyplot in the book's look, on a canvas without a screen; every figure is closed afterwards."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    from sslref import show

    show.style()
    yield matplotlib.pyplot
    matplotlib.pyplot.close("all")


@pytest.fixture
def evidence():
    """A function that makes Evidence from the values of its arms."""
    from sslref import claims

    def make(arms: dict, *, metric="accuracy", unit="points", profile="ci", **claim):
        baseline, method, *ablations = arms
        about = {"id": "gain", "statement": "It is better.", "higher_is_better": True} | claim
        made = claims.Claim(
            experiment="e",
            metric=metric,
            unit=unit,
            baseline=baseline,
            method=method,
            ablations=tuple(ablations),
            **about,
        )
        seeds = list(range(len(arms[baseline])))
        return claims.judge(made, arms, seeds, profile)

    return make


@pytest.fixture
def record():
    """A function that makes a Record from Evidence."""
    from sslref import claims

    def make(*found, slug="simclr", profile="ci"):
        return claims.Record(
            slug=slug, profile=profile, seconds=90.0, machine="x86_64, 2 cores", versions={}, date="2026-01-02",
            code_digest="0", claims=tuple(found),
        )  # fmt: skip

    return make

"""What leads a reader through the book: gallery, reading paths, and the foot of a chapter, in a real browser."""

import json
import re

import pytest

from sslref import claims, registry
from sslref.publish import ends, execute, landing, paths, stage

pytestmark = pytest.mark.slow

CHAPTERS = stage.chapters()
PATHS = {path.name: path for path in paths.read(stage.executed())}


def page_of(name: str) -> str:
    return f"{registry.part(name)}/{name}.html"


def shown(page) -> list[str]:
    """Slugs of the cards that are to be seen."""
    links = page.locator(".book-card:visible").evaluate_all("cards => cards.map(c => c.getAttribute('href'))")
    return [link.rpartition("/")[2].removesuffix(".html") for link in links]


def having(verdict: str) -> set[str]:
    return {s for s in CHAPTERS if (r := claims.ledger(s)) and any(e.verdict == verdict for e in r.claims)}


@pytest.fixture
def still(browser, address):
    """`still("index.html")` -> the page in a browser that runs no scripts."""
    context = browser.new_context(java_script_enabled=False)

    def still(name: str):
        page = context.new_page()
        page.goto(address + name)
        return page

    yield still
    context.close()


# ------------------------------------------------------------------------------------------------- gallery


@pytest.mark.parametrize("base", ["server", "disk"])
def test_the_gallery_is_narrowed_by_mouse(visit, site, base):
    page = visit("index.html", **({"base": site.as_uri() + "/"} if base == "disk" else {}))
    assert shown(page) == CHAPTERS
    said = page.locator(".book-filters [role=status]")
    masked = [s for s in CHAPTERS if registry.get(s).part == "masked"]
    button = page.get_by_role("button", name="Masked modelling", exact=True)
    button.click()
    assert shown(page) == masked
    assert button.get_attribute("aria-pressed") == "true"
    assert said.text_content() == f"{len(masked)} of {len(CHAPTERS)} chapters"
    assert page.url.endswith("#part=masked")
    page.get_by_role("button", name="contradicted", exact=True).click()  # of another kind: both must hold
    assert set(shown(page)) == set(masked) & having("contradicted")
    page.get_by_role("button", name="inconclusive", exact=True).click()  # of the same kind: one is enough
    assert set(shown(page)) == set(masked) & (having("contradicted") | having("inconclusive"))
    assert page.url.endswith("#part=masked&verdict=inconclusive&verdict=contradicted")
    page.get_by_role("button", name="Show all").click()
    assert shown(page) == CHAPTERS
    assert page.locator(".book-filters [aria-pressed=true]").count() == 0
    assert page.wrong == []


def test_the_gallery_is_narrowed_by_keyboard(visit):
    page = visit("index.html")
    first = page.locator(".book-filters button").first
    first.focus()
    page.keyboard.press("Tab")
    parts = list(dict.fromkeys(registry.get(s).part for s in CHAPTERS))
    assert page.evaluate("document.activeElement.value") == parts[1]
    page.keyboard.press("Space")
    assert {registry.get(s).part for s in shown(page)} == {parts[1]}
    page.keyboard.press("Enter")  # the same button again
    assert shown(page) == CHAPTERS


def test_a_narrowed_gallery_can_be_linked(visit):
    page = visit("index.html#data=series&verdict=supported")
    wanted = {s for s in CHAPTERS if "series" in registry.get(s).data} & having("supported")
    assert set(shown(page)) == wanted
    assert page.locator(".book-filters [aria-pressed=true]").all_text_contents() == ["series", "supported"]
    page.evaluate("location.hash = 'part=dense'")
    page.wait_for_function("document.querySelectorAll('.book-filters [aria-pressed=true]').length === 1")
    assert {registry.get(s).part for s in shown(page)} == {"dense"}
    page = visit("index.html#part=nowhere")
    assert shown(page) == CHAPTERS


def test_without_scripts_everything_is_there(still):
    page = still("index.html")
    assert not page.locator(".book-filters").is_visible()
    assert shown(page) == CHAPTERS
    assert page.locator(".book-ledger a:visible").count() > 0
    assert page.locator(".book-paths a:visible").count() == len(PATHS)
    page = still(f"{page_of(PATHS['dense'].slugs[1])}?path=dense")
    assert page.locator(".prev-next-footer a:visible").count() == 2
    assert page.locator(".book-path:visible").count() == 0
    assert page.locator("#use-this-chapter").is_visible()


def test_every_card_has_its_picture(visit):
    page = visit("index.html")
    pictures = page.locator(".book-card img.only-light").evaluate_all("found => found.map(i => i.getAttribute('src'))")
    assert pictures == [f"_static/cards/{slug}-light.svg" for slug in CHAPTERS]


def test_the_ledger_in_one_picture(visit):
    page = visit("index.html", width=390)
    records = {s: r for s in CHAPTERS if (r := claims.ledger(s))}
    rows = page.locator(".book-ledger a")
    links = rows.evaluate_all("links => links.map(a => a.getAttribute('href'))")
    assert links == [f"{page_of(s)}#does-the-claim-hold" for s in records]
    for verdict in landing.VERDICTS:
        count = sum(e.verdict == verdict for r in records.values() for e in r.claims)
        assert page.locator(f".book-ledger g.{verdict}").count() == count
        assert f"{count} {verdict}" in page.locator("p:has(+ .book-ledger)").text_content()
    assert rows.first.text_content().startswith("SimCLR, 8 supported, 1 inconclusive")
    outside = page.locator(".book-ledger svg").evaluate_all(
        "found => found.filter(s => s.getBoundingClientRect().right > innerWidth).length"
    )
    assert outside == 0


# ------------------------------------------------------------------------------------------------- paths


def test_the_page_of_the_paths(visit):
    page = visit("paths.html", width=390)
    assert page.locator("article h2").evaluate_all("hs => hs.map(h => h.firstChild.textContent.trim())") == [
        path.title for path in PATHS.values()
    ]
    for path in PATHS.values():
        links = page.locator(f"section:has(> #path-{path.name}), section#path-{path.name}").locator("ol a")
        assert links.evaluate_all("ls => ls.map(a => a.getAttribute('href'))") == [
            f"{page_of(slug)}?path={path.name}" for slug in path.slugs
        ]
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.wrong == []


@pytest.mark.parametrize("base", ["server", "disk"])
def test_along_a_path_and_back(visit, site, base):
    path = PATHS["graphs"]
    page = visit("paths.html", **({"base": site.as_uri() + "/"} if base == "disk" else {}))
    page.locator(f"ol a[href$='?path={path.name}']").first.click()
    for i, slug in enumerate(path.slugs):
        assert page.url.endswith(f"{page_of(slug)}?path={path.name}")
        assert f"{i + 1} of {len(path.slugs)}" in page.locator("p.book-path:visible").text_content()
        assert not page.locator(".prev-next-footer").is_visible()
        page.locator("nav.book-path:visible a.right-next").click()
    assert page.url.endswith(f"paths.html#path-{path.name}")
    page.go_back()
    page.locator("nav.book-path:visible a.left-prev").click()
    assert page.url.endswith(f"{page_of(path.slugs[-2])}?path={path.name}")
    page.locator("p.book-path:visible").get_by_text("Leave it").click()
    assert page.url.endswith(page_of(path.slugs[-2]))
    page.locator(".prev-next-footer").wait_for()
    assert page.locator(".book-path:visible").count() == 0
    assert [w for w in page.wrong if "ERR_ABORTED" not in w] == []  # this reader does not wait for pages to load


def test_a_path_that_is_none_changes_nothing(visit):
    page = visit(f"{page_of(CHAPTERS[0])}?path=nowhere")
    assert page.locator(".prev-next-footer").is_visible()
    assert page.locator(".book-path:visible").count() == 0


# ------------------------------------------------------------------------------------------------- head and foot


@pytest.mark.parametrize("name", ["densecl", *registry.pages()])
def test_the_head_says_what_a_chapter_costs_and_needs(visit, name):
    page = visit(page_of(name))
    heads = page.locator(".sslref-chapter dt").all_text_contents()
    assert len(heads) == len(set(heads))
    facts = dict(zip(heads, page.locator(".sslref-chapter dd").all_text_contents(), strict=True))
    record = json.loads(execute.kept(name).with_suffix(".json").read_text())
    assert f"{ends.duration(record['seconds'])} to run on one CPU thread" in facts["Time"]
    measured = float(re.search(r"up to ([\d.]+) GB", facts["Time"])[1])
    assert 0 <= measured - record["peak_mb"] / 1000 <= 0.1
    if name in registry.papers():
        assert facts["Time"].startswith(f"{registry.get(name).minutes} minutes to read")
        page.locator(".sslref-chapter dd a[href$='simclr.html']").click()
        assert page.url.endswith("joint_embedding/simclr.html")
    else:
        assert page.locator(".sslref-chapter").count() == 1


@pytest.mark.parametrize("base", ["server", "disk"])
def test_citations_are_copied_by_keyboard(visit, site, base):
    page = visit(page_of("mec"), **({"base": site.as_uri() + "/"} if base == "disk" else {}))
    blocks = page.locator(".book-foot .highlight")
    wanted = {"This": ends._own_bibtex("mec", ends.repository()), "The paper": ends.bibtex("mec")}
    page.evaluate("document.querySelector('article').append(document.createElement('textarea'))")
    for block, text in zip((1, 2), wanted.values(), strict=True):
        button = blocks.nth(block).locator("button.copybtn")
        button.focus()
        page.wait_for_function("getComputedStyle(document.activeElement).opacity === '1'")
        page.keyboard.press("Enter")
        page.locator("article > textarea").fill("")
        page.locator("article > textarea").focus()
        page.keyboard.press("Control+V")
        assert page.locator("article > textarea").input_value().strip() == text
    assert page.wrong == []


def test_run_buttons_are_those_that_can_work(visit):
    page = visit(page_of("mec"))
    foot = page.locator("#use-this-chapter")
    assert foot.locator("a[href*='mybinder.org']").count() == (ends.repository() is not None)
    assert foot.locator("a[href*='colab']").count() == bool(ends.repository() and ends.repository().on_github)
    said = foot.locator("pre").first.text_content()
    assert "make lab LAB=notebooks/joint_embedding/mec.ipynb" in said
    page.locator(".sslref-chapter a[href='#use-this-chapter']").click()
    assert page.evaluate("document.querySelector('#use-this-chapter').getBoundingClientRect().top < innerHeight")


def test_downloads_are_what_they_say(visit, site):
    page = visit(page_of("mec"))
    with page.expect_download() as started:
        page.get_by_role("link", name="Notebook with results").click()
    assert started.value.suggested_filename == "mec-with-results.ipynb"
    for name in stage.executed():
        source = json.loads(registry.notebook(name).read_text())
        text = (site / page_of(name)).read_text(encoding="utf-8")
        links = re.findall(r'<a href="\.\./([^"]*)" download="([^"]*)">', text)
        files = {as_: (site / to).read_text(encoding="utf-8") for to, as_ in links}
        assert json.loads(files.pop(f"{name}.ipynb")) == source
        results = files.pop(f"{name}-with-results.ipynb")
        assert "papermill" not in json.loads(results)["metadata"]
        assert str(registry.root()) not in results
        ran = [cell for cell in json.loads(results)["cells"] if cell["cell_type"] == "code"]
        assert [cell["source"] for cell in ran] == [c["source"] for c in source["cells"] if c["cell_type"] == "code"]
        assert sum(bool(cell["outputs"]) for cell in ran) >= 3
        if name in registry.papers():
            assert files.pop(f"{name}.py") == (registry.root() / f"sslref/papers/{name}.py").read_text()
        assert files == {}

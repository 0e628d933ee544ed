"""What works across the pages of the book: cards, search, assistive technology, paper, weight. With no network."""

import gzip
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sslref import registry
from sslref.publish import pdf, stage, weight

pytestmark = pytest.mark.slow

EXECUTED = [f"{registry.part(name)}/{name}.html" for name in stage.executed()]
CHAPTERS = EXECUTED[: len(stage.chapters())]
SIMCLR = "joint_embedding/simclr.html"


@pytest.fixture
def disk(visit, site):
    """`disk("read.html")` -> the page as a USB stick shows it, without a network."""

    def visit_disk(name: str, **options):
        page = visit(name, base=site.as_uri() + "/", **options)
        page.context.set_offline(True)
        return page

    return visit_disk


# ------------------------------------------------------------------------------------------------- cards


def card(page):
    return page.locator("#book-card")


def away(page) -> None:
    page.mouse.move(2, 2)


def test_a_card_shows_by_mouse_stays_under_it_and_goes(disk):
    page = disk(SIMCLR)
    link = page.locator("article a.book-term").first
    link.scroll_into_view_if_needed()
    link.hover()
    card(page).wait_for(state="visible")
    term = link.get_attribute("href").partition("#term-")[2]
    assert card(page).locator("b").inner_text().replace(" ", "-") == term
    assert link.get_attribute("aria-describedby") == card(page).get_attribute("id")
    box = card(page).bounding_box()
    page.mouse.move(box["x"] + 8, box["y"] + 8, steps=4)
    page.wait_for_timeout(600)
    assert card(page).is_visible()  # hoverable and persistent
    away(page)
    card(page).wait_for(state="hidden")
    assert link.get_attribute("aria-describedby") is None
    assert page.wrong == []


def test_a_card_shows_by_keyboard_and_escape_closes_it(disk):
    page = disk(SIMCLR)
    link = page.locator("article a[href*='bibliography.html#id']").first
    link.scroll_into_view_if_needed()
    page.keyboard.press("Tab")  # from now on focus is visible
    link.focus()
    card(page).wait_for(state="visible")
    assert "Chen" in card(page).inner_text()
    page.keyboard.press("Escape")
    assert card(page).is_hidden()
    assert link.evaluate("e => e === document.activeElement")
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert card(page).is_visible()
    page.keyboard.press("Tab")
    assert "Chen" not in (card(page).inner_text() if card(page).is_visible() else "")


def test_a_first_tap_shows_a_card_and_a_second_follows_the_link(browser, site):
    context = browser.new_context(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800}, offline=True)
    page = context.new_page()
    page.goto((site / SIMCLR).as_uri())
    link = page.locator("article a.book-term").first
    link.scroll_into_view_if_needed()
    link.tap()
    card(page).wait_for(state="visible")
    box = card(page).bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.touchscreen.tap(195, 5)
    card(page).wait_for(state="hidden")
    assert page.url.endswith(SIMCLR)
    link.tap()
    card(page).wait_for(state="visible")
    link.tap()
    page.wait_for_url("**/glossary.html#term-*")
    context.close()


def test_an_equation_of_another_chapter_is_named_with_it_and_shown(disk):
    page = disk("joint_embedding/scatsimclr.html")
    link = page.locator("article a[href='simclr.html#equation-simclr-ntxent']").first
    assert re.fullmatch(r"\(\d+\) in SimCLR", link.inner_text())
    link.scroll_into_view_if_needed()
    link.hover()
    card(page).wait_for(state="visible")
    assert r"\tau" in card(page).locator("annotation").first.text_content()
    assert card(page).locator(".katex-html").first.bounding_box()["width"] > 50
    page = disk(SIMCLR)
    link = page.locator("article a.reference[href='#equation-simclr-ntxent']").first
    link.scroll_into_view_if_needed()
    link.hover()
    card(page).wait_for(state="visible")
    assert page.locator("#equation-simclr-ntxent").count() == 1  # the card's copy has no id
    assert link.inner_text() == page.locator("#equation-simclr-ntxent .eqno").inner_text().removesuffix("#")


@pytest.mark.parametrize("name", EXECUTED)
def test_every_term_and_work_has_its_card(site, name):
    text = (site / name).read_text(encoding="utf-8")
    article, _, store = text.partition("</article>")
    wanted = set(re.findall(r'href="([^"]*(?:glossary\.html#term-|bibliography\.html#id\d)[^"]*)"', article))
    kept = re.findall(r'data-for="([^"]*)"', store)
    assert wanted <= set(kept)
    assert len(kept) == len(set(kept))
    linked = re.findall(r'class="book-term[^"]*" href="([^"]*)"', article)
    assert len(linked) == len(set(linked))  # the first use only
    assert len({href for href in wanted if "#term-" in href}) >= 5
    headings = "".join(re.findall(r"<h[1-6]>.*?</h[1-6]>|<pre>.*?</pre>", article, re.S))
    assert "book-term" not in headings


# ------------------------------------------------------------------------------------------------- search

SEARCHES = {
    "A Simple Framework for Contrastive Learning of Visual Representations": SIMCLR,  # a title
    "Kornblith": SIMCLR,  # an author whom the chapter's head does not name
    "nt_xent": SIMCLR,  # a function
    "NT-Xent": SIMCLR,  # a loss
    "InfoNCE": SIMCLR,  # the same by another name
    "temperature": "glossary.html#term-temperature",
    "optical flow": "glossary.html#term-optical-flow",
    "entropy coding": "joint_embedding/mec.html",
}


@pytest.fixture
def search(browser, site):
    """`search("τ")` -> the pages that the search lists, from disk."""
    context = browser.new_context(offline=True)

    def search(said: str) -> list[str]:
        page = context.new_page()
        page.goto((site / "search.html").as_uri())
        page.evaluate("said => { location.search = new URLSearchParams({ q: said }); }", said)
        page.wait_for_function("/found|did not match/.test(document.querySelector('#search-results p')?.textContent)")
        page.wait_for_selector("#search-results li a")
        page.wait_for_timeout(500)
        links = page.locator("#search-results li a").evaluate_all("a => a.map(a => a.getAttribute('href'))")
        return [re.sub(r"\?[^#]*", "", link) for link in links]

    yield search
    context.close()


@pytest.mark.parametrize(("said", "wanted"), SEARCHES.items(), ids=list(SEARCHES))
def test_search_finds_papers_losses_and_terms(search, said, wanted):
    assert wanted in search(said)[:8]


@pytest.mark.parametrize("said", ["τ", r"\tau"])
def test_search_finds_every_chapter_with_a_symbol(search, said):
    """As a letter and as LaTeX; the chapters first, the pages that list them after."""
    sources = {p: registry.notebook(Path(p).stem).read_text(encoding="utf-8") for p in EXECUTED}
    having = {p for p, text in sources.items() if r"\\tau" in text}
    assert SIMCLR in having < set(EXECUTED)
    assert set(search(said)[: len(having)]) == having


# ------------------------------------------------------------------------------------------------- everybody reads it

# What is drawn or aria-hidden has no inside for anybody, long tables repeat their rows, and code its colours.
LIGHTER = """() => {
  document.querySelectorAll("svg[role=img] > *, .katex > *, [hidden]").forEach((e) => e.remove());
  document.querySelectorAll("tr:nth-child(n + 12), .genindextable li:nth-child(n + 12)").forEach((e) => e.remove());
  const seen = new Set();
  for (const e of document.querySelectorAll(".highlight pre span")) {
    if (seen.has(e.className)) e.replaceWith(e.textContent);
    else seen.add(e.className);
  }
}"""
# Everything but the contrast on the whole page; the contrast, light and dark, on one text of each kind.
AXE = """async () => {
  const kinds = new Map(), said = [];
  const look = (e) => e ? `${e.tagName}.${e.className}` : "";
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    kinds.set([e, e.parentElement, e.parentElement.parentElement].map(look).join(" "), e);
  }
  const told = ({ violations }) => violations.forEach((v) => v.nodes.forEach((n) =>
    said.push(`${document.documentElement.dataset.theme} ${v.id}: ${n.html.slice(0, 120)}`)));
  const options = { resultTypes: ["violations"] };
  told(await axe.run(document, { ...options, rules: { "color-contrast": { enabled: false } } }));
  for (const theme of ["light", "dark"]) {
    document.documentElement.dataset.theme = theme;
    told(await axe.run({ include: [...kinds.values()] }, { ...options, runOnly: ["color-contrast"] }));
  }
  return said;
}"""
SCROLLERS = """async () => (await axe.run(document, { runOnly: ["scrollable-region-focusable"] })).violations
  .flatMap((v) => v.nodes.map((n) => `phone ${v.id}: ${n.html.slice(0, 120)}`))"""


def test_axe_finds_nothing(browser, site):
    axe = Path(pytest.importorskip("axe_playwright_python").__file__).with_name("axe.min.js").read_text()
    names = sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html") if "_static" not in p.parts)
    page = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce").new_page()
    found = []
    for name in names:
        page.goto((site / name).as_uri())
        page.evaluate(LIGHTER)
        page.evaluate(axe)
        said = page.evaluate(AXE)
        if name == SIMCLR:  # what overflows on a phone must be reached there
            page.set_viewport_size({"width": 390, "height": 800})
            page.wait_for_timeout(200)
            said += page.evaluate(SCROLLERS)
            page.set_viewport_size({"width": 1280, "height": 900})
        found += [f"{name}: {problem}" for problem in said]
    page.context.close()
    assert found == []


@pytest.mark.parametrize("name", EXECUTED)
def test_alternative_texts_say_what_is_shown(site, name):
    article = re.search(r"<article.*?</article>", (site / name).read_text(encoding="utf-8"), re.S)[0]
    alts = re.findall(r'<svg\b[^>]*role="img"[^>]*aria-label="([^"]*)"', article)
    alts += re.findall(r'<img\b[^>]*alt="([^"]*)"', article)
    assert alts
    assert [a for a in alts if len(a) < 40] == []
    assert sorted(a for a in set(alts) if alts.count(a) > 1) == []


def test_the_keyboard_reaches_every_slider(browser, site):
    page = browser.new_context(offline=True).new_page()
    for name in EXECUTED:
        page.goto((site / name).as_uri())
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        knobs = page.locator("input[type=range]")
        assert knobs.count() >= 1, name
        for knob in knobs.all():
            before = int(knob.input_value())
            knob.focus()
            assert knob.evaluate("e => e === document.activeElement && e.tabIndex === 0"), name
            page.keyboard.press("ArrowLeft" if before else "ArrowRight")
            shown = page.locator(f"#{knob.get_attribute('data-stack')} > div").evaluate_all(
                "frames => frames.findIndex((f) => f.offsetHeight)"
            )
            assert shown == int(knob.input_value()) != before, name
    page.context.close()


# ------------------------------------------------------------------------------------------------- paper


@pytest.fixture(scope="module")
def paper(site, tmp_path_factory):
    """Two chapters and the glossary, printed."""
    pypdf = pytest.importorskip("pypdf")
    target = tmp_path_factory.mktemp("paper") / "some.pdf"
    chosen = ["glossary.html", SIMCLR, "joint_embedding/scatsimclr.html"]
    with ThreadPoolExecutor(1) as own:  # the other tests' Playwright holds this thread
        toc = site.parent / "book" / "_toc.yml"
        pages = own.submit(pdf.pdf, site, toc, target, only=chosen, progress=lambda _: None).result()
    made = pypdf.PdfReader(target)
    assert len(made.pages) == pages
    return made


def test_the_paper_has_all_pages_bookmarks_and_a_table_of_contents(paper):
    assert 25 <= len(paper.pages) <= 120
    tops = [o for o in paper.outline if not isinstance(o, list)]
    starts = {o.title: paper.get_destination_page_number(o) for o in tops}
    chapters = [t for t in starts if t.startswith(("SimCLR", "ScatSimCLR", "Glossary"))]
    assert len(chapters) == 3
    contents = " ".join(paper.pages[1].extract_text().split())
    for title in chapters:
        assert title in " ".join(paper.pages[starts[title]].extract_text().split())
        assert title in contents
        assert re.search(rf"\b{starts[title] + 1}\b", contents.partition("Contents")[2])
        last = paper.pages[starts[title]].extract_text().split()
        assert str(starts[title] + 1) in (last[0], last[-1])  # the page carries its own number
    assert "0.0" not in contents


def test_the_paper_shows_equations_drawings_and_one_frame(paper):
    texts = [page.extract_text() for page in paper.pages]
    (equation,) = [t for t in texts if "normalised, temperature-scaled cross-entropy" in " ".join(t.split())]
    for glyph in ("ℓ", "log", "τ", "∑", "(1)"):
        assert glyph in equation
    whole = "".join(texts)
    assert "Show the code" not in whole
    assert "BEGIN SOLUTION" in whole  # folded solutions are open
    frames = re.findall(r"temperature\s*=\s*[\d.]+", whole)
    assert len(frames) < 8  # not the frames that the slider hides


def test_links_of_the_paper_stay_inside_or_leave_for_the_web(paper):
    inside, outside = set(), set()
    for page in paper.pages:
        for link in page.get("/Annots") or ():
            link = link.get_object()
            if "/Dest" in link:
                inside.add(link["/Dest"])
            else:
                outside.add(link["/A"]["/URI"])
    assert inside
    assert all(uri.startswith(("https://", "http://", "mailto:")) for uri in outside), outside
    assert {d.removeprefix("/") for d in inside} <= {d.removeprefix("/") for d in paper.named_destinations}


def test_an_unknown_page_is_not_printed(site, tmp_path):
    with pytest.raises(pdf.PrintError, match=r"pdf: expected nowhere\.html in html"):
        pdf.pdf(site, site.parent / "book" / "_toc.yml", tmp_path / "x.pdf", only=["nowhere.html"])
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- weight


def test_weights_are_reported_and_hold(site):
    found = json.loads((site.parent / "site.json").read_text())["transfer"]
    assert set(CHAPTERS) <= set(found["pages"])
    assert 0 < found["chapters_median"] < weight.LIMIT
    assert max(found["pages"].values()) < 2 * weight.LIMIT
    assert found["pages"][SIMCLR] == weight.transfer(site, SIMCLR)


def test_a_chapter_transfers_what_is_reported(visit, site, address):
    page = visit(SIMCLR)
    page.wait_for_load_state("networkidle")
    files = {site / u.removeprefix(address).partition("?")[0] for u in page.requests if u.startswith(address)}
    fonts = sum(f.stat().st_size for f in files if f.suffix == ".woff2")
    sent = sum(len(gzip.compress(f.read_bytes())) for f in files if f.suffix != ".woff2")
    assert sent == pytest.approx(weight.transfer(site, SIMCLR), rel=0.02)
    assert sent + fonts < weight.LIMIT


def test_text_stands_before_any_script_has_come(browser, site, address):
    context = browser.new_context()
    page = context.new_page()
    page.route(re.compile(r"\.js(\?|$)"), lambda route: None)  # scripts never arrive
    page.goto(address + SIMCLR, wait_until="commit")
    page.locator("article h1").wait_for(state="visible")
    page.locator("article p:visible").first.wait_for()
    context.close()
    for path in site.rglob("*.html"):
        for tag in re.findall(r"<script\b[^>]*\bsrc=[^>]*>", path.read_text(encoding="utf-8")):
            assert re.search(r"\b(defer|async)\b", tag), path

"""Slides and quizzes in a real browser, from disk and without network."""

import json

import pytest

from sslref.course import quiz, slides, teaching

CLAIMS = ("One claim.", "Another claim.")


@pytest.fixture
def open_page(browser):
    """`open_page(path)` -> the page, loaded from disk with networking off; `page.wrong` says what went wrong."""
    contexts = []

    def open_page(file):
        contexts.append(browser.new_context(viewport={"width": 1120, "height": 700}, offline=True))
        page = contexts[-1].new_page()
        page.wrong = []
        page.on("request", lambda r: page.wrong.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.on("requestfailed", lambda r: page.wrong.append(f"failed: {r.url}"))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("console", lambda m: page.wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.goto(file.as_uri(), wait_until="load")
        return page

    yield open_page
    for context in contexts:
        context.close()


def executed(slug):
    """The chapter with outputs such as an executed copy has: a figure, a listing, a slider, a verdict, a line."""
    found = teaching.notebook(slug)
    figure = '<figure class="sslref-figure"><svg role="img" aria-label="A line." viewBox="0 0 9 9"></svg></figure>'
    table = (
        '<div class="sslref-scroll"><table class="sslref-table"><caption>A caption that has a line or two.</caption>'
        "<tr><td>the first column</td><td>and the second</td></tr></table></div>"
    )
    frames = "".join(f"<div{' hidden' if i else ''}><p>frame {i}</p></div>" for i in range(3))
    slider = (
        f'<div class="sslref-slider"><label class="sslref-range"><input type="range" min="0" max="2" value="0" '
        f'data-stack="stack"></label><div class="sslref-stack" id="stack">{frames}</div></div>'
    )
    code = "`sslref/papers/x.py`, line 3\n\n```python\ndef f(x):\n    return '$x$'\n```"
    kinds = {
        "show.figure(": {"text/html": figure},
        "show.source(": {"text/markdown": f"{code}\n\n{code}"},
        "show.slider(": {"text/html": slider},
        "show.evidence(": {
            "text/html": "".join(f'<div class="sslref-verdict"><p>{c}</p>{figure}</div>' for c in CLAIMS)
        },
        "say(": {"text/html": table},
        "show.say(": {"text/markdown": "A number, $\\ln 3$."},
    }
    for cell in found["cells"]:
        outputs = [data for call, data in kinds.items() if call in cell["source"]]
        if cell["cell_type"] == "code":
            cell["outputs"] = [{"output_type": "display_data", "metadata": {}, "data": data} for data in outputs]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    slides.bring(folder / "files")
    slides.write("mec", executed("mec"), folder / "mec.html", executed=True)
    slides.write("nutime", teaching.notebook("nutime"), folder / "nutime.html", executed=False)
    return folder


def test_slides_show_equations_code_and_slider_without_network(folder, open_page):
    page = open_page(folder / "mec.html")
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    assert page.evaluate("Reveal.getTotalSlides()") > 15
    titles = page.eval_on_selector_all(".slides > section h2, .slides h1", "found => found.map(e => e.textContent)")
    assert titles[0].startswith("MEC: agree")
    for wanted in ("The idea", "The problem", "Look inside", "Does the claim hold?", "Pitfalls", "Exercises"):
        assert wanted in titles
    page.evaluate(
        "Reveal.slide(...Object.values(Reveal.getIndices("
        "document.querySelector('.slides section .katex-display').closest('section'))))"
    )
    shown = page.locator("section.present .katex-display .mfrac").first
    assert shown.is_visible()
    assert shown.bounding_box()["height"] > 20
    assert page.evaluate("document.fonts.check('20px KaTeX_Math')")
    text = page.inner_text("body") + page.content()
    assert "katexformula" not in text
    assert page.evaluate(
        "[...document.querySelectorAll('.slides section pre')].every(e => e.textContent.includes('$x$'))"
    )
    assert page.locator("aside.notes .katex").count() > 20, "the chapter's text is the speaker's"
    page.evaluate(
        "Reveal.slide(...Object.values(Reveal.getIndices(document.querySelector('.sslref-slider').closest('section'))))"
    )
    page.locator("section.present input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("section.present #stack").inner_text().strip() == "frame 1"
    assert page.locator("section.present .sslref-slider").count() == 1, "the key moved the slider, not the slides"
    assert page.wrong == []


def test_every_claim_has_a_slide_and_every_slide_and_table_its_room(folder, open_page):
    page = open_page(folder / "mec.html")
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    page.evaluate("Reveal.configure({transition: 'none'})")
    claims, tables = [], []
    for _ in range(page.evaluate("Reveal.getTotalSlides()")):
        high, text = page.evaluate("(slide => [slide.scrollHeight, slide.innerText])(Reveal.getCurrentSlide())")
        assert high <= 700, text
        claims += [claim for claim in CLAIMS if claim in text]
        assert sum(claim in text for claim in CLAIMS) <= 1
        for table in page.locator("section.present:not(.stack) .sslref-scroll").all():
            caption = table.locator("caption").bounding_box()
            assert caption["width"] > 60
            assert caption["height"] < 150
            tables.append(table)
        page.evaluate("Reveal.next()")
    assert claims
    assert claims == list(CLAIMS) * (len(claims) // 2)
    assert tables


def test_a_slide_of_equations_is_named_by_the_words_before_them():
    source = (
        "**First part** is this.\n\n$$ a $$\n\nWhy? Because.\n\n**The loss.** It is\n\n```{math}\n:label: x-y\nb\n```"
    )
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "# Title\n\nPeople"},
        {"cell_type": "markdown", "metadata": {}, "source": f"## The method\n\n{source}"},
    ]
    made = slides.deck(cells, "x", executed=True)
    titles = [
        c["source"].partition("\n")[0] for c in made.cells if "katexformula" in c["source"] and "##" in c["source"]
    ]
    assert titles == ["## First part", "## The loss"]


def test_slides_of_a_chapter_that_was_not_executed_say_so(folder, open_page):
    page = open_page(folder / "nutime.html")
    assert "sslref book --papers nutime" in page.content()
    assert page.locator(".slides section .katex-display").count() > 2
    assert page.wrong == []
    assert "sslref book --papers" not in (folder / "mec.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", [False, True])
def test_quiz_answers_in_the_browser(tmp_path, open_page, monkeypatch, key):
    """The cell of the quiz, with its outputs on a page: with the key it judges, without it takes note."""
    import IPython.display

    questions = quiz.questions(teaching.load("mec").quiz, key=key)
    (tmp_path / "mec.json").write_text(json.dumps(questions), encoding="utf-8")
    shown = []
    monkeypatch.setattr("jupyterquiz.dynamic.display.display", shown.append)
    monkeypatch.chdir(tmp_path)
    assert IPython.display
    exec(quiz.notebook("MEC", "mec.json", key=key)["cells"][1]["source"], {})
    parts = [part.data if hasattr(part, "data") else "" for part in shown]
    (tmp_path / "quiz.html").write_text(f"<!doctype html>{parts[0]}</div><script>{parts[1]}</script>", encoding="utf-8")
    page = open_page(tmp_path / "quiz.html")
    assert page.locator(".Quiz").count() == len(questions)
    assert page.locator("math").count() > 3
    field = page.locator("input.Input-text").first
    field.fill("4.1589")
    field.press("Enter")
    assert ("4.1589" in page.inner_text("body")) is not key
    assert (page.locator(".Feedback.correct").count() == 1) is key
    assert [w for w in page.wrong if not w.startswith("MathJax")] == []

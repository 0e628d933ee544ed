"""Links to the glossary, cards and mends, on pieces of pages, without Sphinx."""

import pytest
from docutils import nodes

from sslref import registry
from sslref.publish import access, cards, links, pdf, weight


def document(*children: nodes.Node) -> nodes.document:
    made = nodes.document(None, None)
    made.extend(children)
    return made


def paragraph(*parts) -> nodes.paragraph:
    made = nodes.paragraph()
    made.extend(nodes.Text(p) if isinstance(p, str) else p for p in parts)
    return made


def linked(tree: nodes.document) -> list[tuple[str, str]]:
    return [(r.astext(), r["refuri"]) for r in tree.findall(nodes.reference)]


TERMS = {"view": "g#view", "positive pair": "g#pair", "EMA": "g#ema", "NT-Xent": "g#nt", "patch": "g#patch"}


def test_the_first_use_of_a_term_is_linked_and_the_text_stays():
    tree = document(
        paragraph("Two views make a positive\npair; each view is cut."), paragraph("Views, EMA and Patches.")
    )
    before = tree.astext()
    links.link_terms(tree, TERMS)
    assert linked(tree) == [("views", "g#view"), ("positive\npair", "g#pair"), ("EMA", "g#ema"), ("Patches", "g#patch")]
    assert tree.astext() == before


@pytest.mark.parametrize("text", ["Review the interview.", "ema and nt-xent", "multi-view, view-wise", "viewed"])
def test_what_only_looks_like_a_term_is_no_term(text):
    tree = document(paragraph(text))
    links.link_terms(tree, TERMS)
    assert linked(tree) == []


@pytest.mark.parametrize(
    "within",
    [
        lambda t: nodes.section("", nodes.title("", t)),
        lambda t: paragraph(nodes.literal("", t)),
        lambda t: paragraph(nodes.math("", t)),
        lambda t: paragraph(nodes.emphasis("", t)),
        lambda t: paragraph(nodes.reference("", t, refuri="elsewhere")),
        lambda t: nodes.literal_block("", t),
        lambda t: nodes.raw("", t, format="html"),
        lambda t: nodes.table("", paragraph(t)),
    ],
)
def test_headings_links_code_formulas_and_tables_stay_as_they_are(within):
    tree = document(within("a view"), paragraph("The second view."))
    links.link_terms(tree, TERMS)
    assert [uri for _, uri in linked(tree) if uri != "elsewhere"] == ["g#view"]
    assert tree.children[1].children[1].astext() == "view"


def test_a_term_that_the_author_linked_is_left_alone():
    tree = document(paragraph("A view, and ", nodes.reference("", "another view", refuri="g#view")))
    links.link_terms(tree, TERMS)
    assert linked(tree) == [("another view", "g#view")]


def test_greek_letters_are_found_as_letters_and_by_name():
    names = {"tau", "sigma", "theta", "epsilon", "lambda"}
    assert links.greek(r"\frac{\tau}{\sigma_\theta} + \varepsilon \lambda") == set("τσθελ") | names
    assert links.greek(r"\text{tau} + \taut") == set()


def test_cards_hold_what_a_link_leads_to(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "glossary.html").write_text(
        '<dl><dt id="term-EMA">EMA<a class="headerlink" href="#term-EMA">#</a></dt><dd><p>Slow '
        '<a class="reference internal" href="#term-seed"><span id="s">copy</span></a>.</p>\n</dd>'
        '<dt id="term-seed">seed<a class="headerlink" href="#x">#</a></dt><dd><p>A number.</p></dd></dl></body>'
    )
    (tmp_path / "bibliography.html").write_text(
        '<div class="citation" id="id7" role="doc-biblioentry">\n<span class="label"><span>[</span>1</span>\n'
        "<p>Ada, <em>Notes</em>.</p>\n</div></body>"
    )
    (tmp_path / "a" / "b.html").write_text(
        '<div class="math notranslate" id="equation-b-sum">\n<span class="eqno">(2)<a href="#x">#</a></span>'
        '<span class="katex-display">s = a + b</span></div></body>'
    )
    (tmp_path / "a" / "c.html").write_text(
        '<a class="book-term reference internal" href="../glossary.html#term-EMA">EMA</a>'
        '<a class="reference internal" href="../bibliography.html#id7" title="Ada, Notes.">Ada</a>'
        '<a class="reference internal" href="b.html#equation-b-sum">(2) in B</a>'
        '<a class="reference internal" href="b.html#equation-gone">gone</a></body>'
    )
    cards.add(tmp_path)
    page = (tmp_path / "a" / "c.html").read_text()
    assert (
        '<template id="book-cards"><div data-for="../glossary.html#term-EMA"><b>EMA</b><p>Slow <span>copy</span>.</p>\n'
        '</div><div data-for="../bibliography.html#id7"><p>Ada, <em>Notes</em>.</p></div>'
        '<div data-for="b.html#equation-b-sum"><b>(2)</b><span class="katex-display">s = a + b</span></div></template>'
    ) in page
    assert 'title="' not in page
    assert "A number." not in page  # only what this page needs
    assert "<template" not in (tmp_path / "a" / "b.html").read_text()


def test_terms_that_share_an_entry_have_a_card_each():
    head = '<dt id="term-{0}">{0}<a class="headerlink" href="#">#</a></dt>'
    terms = "".join(head.format(term) + "\n" for term in ("GCN", "graph")) + "<dd><p>Averages.</p></dd>"
    text = f"<dl>{head.format('first')}<dd><p>One.</p></dd>{terms}</dl>"
    assert cards.entries(text) == {
        "term-first": "<b>first</b><p>One.</p>",
        "term-GCN": "<b>GCN</b><p>Averages.</p>",
        "term-graph": "<b>graph</b><p>Averages.</p>",
    }


def test_mends_leave_the_rest_of_a_page(tmp_path):
    good = "<table><tr><th>a</th></tr></table><details><summary>Fold</summary></details>"
    page = tmp_path / "p.html"
    page.write_text(
        f'<div class="bd-sidebar-primary bd-sidebar">{good}<th class="head"><p></p></th><th scope="col"></th>'
        '<li><a class="reference internal" href="x">Dense</a><details><summary><i></i></summary></details></li>'
    )
    access.mend(tmp_path)
    assert page.read_text() == (
        '<div role="complementary" aria-label="Contents of the book" class="bd-sidebar-primary bd-sidebar">'
        f"{good}<td></td><td></td>"
        '<li><a class="reference internal" href="x">Dense</a><details><summary aria-label="Under Dense"><i></i>'
        "</summary></details></li>"
    )


def test_the_weight_of_a_page_counts_each_file_once(tmp_path):
    (tmp_path / "a.css").write_text("a {}" * 1000)
    (tmp_path / "b.png").write_bytes(bytes(500))
    (tmp_path / "p.html").write_text(
        '<link rel="stylesheet" href="a.css"><img src="b.png"><img src="b.png"><img src="data:x">'
    )
    found = weight.report(tmp_path, ["p.html"])
    assert 500 < found["pages"]["p.html"] < 800  # the picture as it is, the sheet packed
    assert found["chapters_median"] == found["pages"][found["heaviest"]]
    assert "1 pages" in weight.line(found)


def test_without_a_browser_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pdf.PrintError, match="^pdf: expected Chromium on PATH as chromium, .*, found none$"):
        pdf.chromium()


def test_the_order_of_the_paper_is_that_of_the_contents(tmp_path):
    toc = tmp_path / "_toc.yml"
    toc.write_text(
        "parts:\n  - chapters:\n      - file: read\n      - file: a/index\n        sections:\n          - file: a/b\n"
        "  - chapters:\n      - file: api/index\n        sections:\n          - file: api/x\n"
    )
    assert pdf.order(toc) == [("read.html", 0), ("a/index.html", 0), ("a/b.html", 1)]


def test_everyday_words_are_terms_of_the_glossary():
    glossary = (registry.root() / "book" / "glossary.md").read_text(encoding="utf-8")
    assert [word for word in links.EVERYDAY if f"\n{word}\n" not in glossary] == []

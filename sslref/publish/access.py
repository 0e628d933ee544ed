"""What the theme's HTML lacks for readers with assistive technology, mended in every finished page."""

import re
from pathlib import Path

_MENDS = (
    # what stands outside of the main part needs a landmark
    (
        re.compile(r'<div class="bd-sidebar-primary\b'),
        '<div role="complementary" aria-label="Contents of the book" class="bd-sidebar-primary',
    ),
    # the arrow beside a part says what it opens
    (
        re.compile(
            r"(<a class=\"(?:current )?reference internal\" href=\"[^\"]*\">([^<]*)</a><details\b[^>]*>)<summary>"
        ),
        r'\1<summary aria-label="Under \2">',
    ),
    # a corner without a text heads nothing
    (re.compile(r"<th\b[^>]*>(?:\s|<p>\s*</p>)*</th>"), "<td></td>"),
    # roles of a bibliography that browsers no longer read
    (re.compile(r'(<div class="citation" id="[^"]*") role="doc-biblioentry"'), r'\1 role="listitem"'),
)


def mend(site: Path) -> None:
    """Rewrite the pages of a freshly built site, where one of the rules has something to mend."""
    for page in site.rglob("*.html"):
        text = before = page.read_text(encoding="utf-8")
        for wrong, right in _MENDS:
            text = wrong.sub(right, text)
        if text != before:
            page.write_text(text, encoding="utf-8")

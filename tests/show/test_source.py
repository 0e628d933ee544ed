import functools
import inspect
import textwrap

import pytest

from sslref import show
from sslref.show import _source, _svg


def code(content: str) -> str:
    return content.split("python\n", 1)[1].rsplit("\n", 1)[0]


def test_source_is_what_the_file_says():
    content = show.source(_svg.to_svg)
    lines, first = inspect.getsourcelines(_svg.to_svg)
    assert code(content) == "".join(lines).rstrip()
    assert content.startswith(f"`sslref/show/_svg.py`, line {first}\n\n```python\n")
    assert content.endswith("\n```")


def test_methods_lose_their_indent_and_wrappers_show_what_they_wrap():
    assert (
        code(show.source(show.progress.__call__)) == textwrap.dedent(inspect.getsource(show.progress.__call__)).rstrip()
    )

    @functools.lru_cache
    def inner():
        return 1

    assert "def inner" in show.source(inner)
    assert show.source(_source.source, _svg.webp).count("```python") == 2


def fenced():
    return """
```python
"""


def test_fences_in_the_code_do_not_end_the_block():
    content = show.source(fenced)
    assert "\n````python\n" in content
    assert content.endswith("\n````")


def test_things_without_source_are_refused():
    with pytest.raises(ValueError, match="objects: expected at least one"):
        show.source()
    for thing in (3, len, "text"):
        with pytest.raises(TypeError, match="objects: expected functions, classes or methods"):
            show.source(thing)

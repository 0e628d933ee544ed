"""A course of two chapters, built once."""

import pytest

from sslref.course import build

PAPERS = ["nutime", "mec"]


@pytest.fixture(scope="session")
def course(tmp_path_factory):
    """A course that is only read."""
    out = tmp_path_factory.mktemp("course") / "built"
    assert build.build(PAPERS, out) == []
    return out

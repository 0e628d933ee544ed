"""`python -m sslref.publish.sphinx SOURCE SITE WARNINGS JOBS`: configuration through Jupyter Book, build by Sphinx.

As `jupyter-book build` does it, with what that has no option for: reading in parallel, and no extensions for remote
kernels and comments, which would put other hosts' addresses into every page.
"""

import sys
from pathlib import Path

_LEFT_OUT = ("sphinx_thebe", "sphinx_comments", "sphinx.ext.intersphinx")


def main(source: str, site: str, warnings: str, jobs: str) -> int:
    from jupyter_book.config import get_final_config
    from sphinx.application import Sphinx
    from sphinx.util.console import nocolor
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    nocolor()
    folder = Path(source)
    config, _ = get_final_config(
        user_yaml=folder / "_config.yml", cli_config={"latex_individualpages": False}, sourcedir=folder
    )
    config.pop("comments_config")
    config["extensions"] = [name for name in config["extensions"] if name not in _LEFT_OUT]
    with open(warnings, "w", encoding="utf-8") as said, patch_docutils(), docutils_namespace():
        app = Sphinx(
            srcdir=folder,
            confdir=None,
            outdir=site,
            doctreedir=f"{site}.doctrees",
            buildername="html",
            confoverrides=config,
            warning=said,
            freshenv=True,
            warningiserror=True,
            keep_going=True,
            parallel=int(jobs),
        )
        app.build()
    return app.statuscode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

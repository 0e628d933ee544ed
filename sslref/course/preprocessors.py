"""Steps that `nbgrader autograde` takes in a course of ours, in addition to its own.

`Restore` puts deleted cells back, so that they cost the points of their exercise and no more. `Lighten` leaves out what
no exercise needs, so that grading takes seconds and not the whole chapter's minute.
"""

import re
from pathlib import Path

import nbformat
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Unicode

from sslref.course import cells

NOTE = "# This cell was missing in what was handed in. It was put back as it was handed out.\n"


def _grade_id(cell: nbformat.NotebookNode) -> str | None:
    return cell.metadata.get("nbgrader", {}).get("grade_id")


class _WithRelease(NbGraderPreprocessor):
    release = Unicode(help="Folder of what was handed out.").tag(config=True)

    def handed_out(self, resources: dict) -> list[nbformat.NotebookNode]:
        """Code cells of the student version."""
        about = resources["nbgrader"]
        path = Path(self.release, about["assignment"], f"{about['notebook']}.ipynb")
        found = nbformat.read(path, as_version=4).cells
        return [cell for cell in found if cell.cell_type == "code"]


class Restore(_WithRelease):
    """Puts code cells back that were handed out and are not there any more."""

    def preprocess(self, nb: nbformat.NotebookNode, resources: dict) -> tuple[nbformat.NotebookNode, dict]:
        at = -1  # index of the last cell that was handed out and is there
        for cell in self.handed_out(resources):
            found = next((i for i, own in enumerate(nb.cells) if self._same(own, cell)), None)
            if found is not None:
                at = found
                continue
            at += 1
            cell.source = NOTE + cell.source
            nb.cells.insert(at, cell)
        return nb, resources

    @staticmethod
    def _same(own: nbformat.NotebookNode, cell: nbformat.NotebookNode) -> bool:
        if _grade_id(cell):
            return _grade_id(own) == _grade_id(cell)
        return own.cell_type == "code" and (own.get("id") == cell.id or own.source == cell.source)


class Lighten(_WithRelease):
    """Skips cells that are as they were handed out and bind nothing that the others use; takes the smallest profile."""

    def preprocess(self, nb: nbformat.NotebookNode, resources: dict) -> tuple[nbformat.NotebookNode, dict]:
        plain = {cell.source for cell in self.handed_out(resources) if not _grade_id(cell)}
        code = [cell for cell in nb.cells if cell.cell_type == "code"]
        own = [i for i, cell in enumerate(code) if cell.source.removeprefix(NOTE) not in plain]
        needed = cells.needed([cell.source for cell in code], own)
        for i, cell in enumerate(code):
            tags = cell.metadata.setdefault("tags", [])
            if i not in needed and "skip-execution" not in tags:
                tags.append("skip-execution")
            if "parameters" in tags:
                cell.source = re.sub(r"(?m)^profile = .*$", 'profile = "smoke"', cell.source)
        return nb, resources

"""The list of papers, read as text from the modules of `sslref.papers`, so that listing them needs no PyTorch."""

import ast
import difflib
import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

# folder of notebooks/ -> title of the part, in the order of the book
PARTS = {
    "primer": "First steps",
    "joint_embedding": "Joint embedding",
    "dense": "Dense learning",
    "masked": "Masked modelling",
    "motion": "Motion",
    "multimodal": "Several modalities",
    "language": "Language",
    "structure": "Graphs, series, volumes, paths",
    "architecture": "Architecture",
    "robustness": "Robustness",
    "imaging": "Imaging",
}


# the primers come before all papers and have none; they are read in this order
PRIMERS = ("representations", "three_ways", "collapse", "reading_a_claim")


class UnknownPaper(ValueError):
    """A slug that no paper has; the message names the nearest ones."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What the book says of a paper before it says anything about its method.

    A paper module writes it with literals only, because `papers` reads the call as text.
    """

    slug: str
    title: str
    authors: tuple[str, ...]
    venue: str
    year: int
    arxiv: str  # identifier, "2002.05709"
    code: str  # address of the official code, or ""
    part: str  # a key of PARTS, not "primer"
    data: tuple[str, ...]  # names of the data sets that the chapter uses
    idea: str  # one plain sentence
    minutes: int  # reading time
    needs: tuple[str, ...] = ()  # slugs or topics to read first

    def __post_init__(self):
        known = [part for part in PARTS if part != "primer"]
        if self.part not in known:
            raise ValueError(f"part of {self.slug!r}: expected one of {', '.join(known)}, got {self.part!r}")


def root() -> Path:
    """The checkout that holds the package, the notebooks and the data."""
    return Path(__file__).resolve().parents[1]


def notebook(name: str) -> Path:
    """Where the chapter of a paper stands (the file may not exist yet), or a page. Raises UnknownPaper."""
    return root() / "notebooks" / part(name) / f"{name}.ipynb"


def part(name: str) -> str:
    """The part in which a paper or a page stands. Raises UnknownPaper."""
    return pages().get(name) or get(name).part


def _read(path: Path) -> Paper | None:
    for node in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "PAPER" for t in node.targets):
            try:
                return Paper(**{k.arg: ast.literal_eval(k.value) for k in node.value.keywords})
            except (AttributeError, ValueError, TypeError) as error:
                raise ValueError(f"{path.name}: PAPER must be Paper(...) with literal keywords: {error}") from None
    return None


@functools.cache
def papers() -> dict[str, Paper]:
    """Every paper by its slug, in the order of the book: by part, then by year and slug."""
    found = [_read(p) for p in (Path(__file__).parent / "papers").glob("*.py") if not p.stem.startswith("_")]
    order = list(PARTS)
    found = sorted((p for p in found if p), key=lambda p: (order.index(p.part), p.year, p.slug))
    return {p.slug: p for p in found}


def get(slug: str) -> Paper:
    """The paper of a slug. Raises UnknownPaper, naming the nearest slugs."""
    known = papers()
    if slug not in known:
        near = difflib.get_close_matches(slug, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known papers: {', '.join(known)}"
        raise UnknownPaper(f"no paper has the slug {slug!r}; {hint}")
    return known[slug]


@functools.cache
def pages() -> dict[str, str]:
    """Notebooks that are no paper's chapter, the primers among them: name -> part, in the order of the book."""
    found = [(p.stem, part) for part in PARTS for p in sorted((root() / "notebooks" / part).glob("*.ipynb"))]
    order = {name: place for place, name in enumerate(PRIMERS)}
    found.sort(key=lambda page: order.get(page[0], len(order)))
    return {name: part for name, part in found if name not in papers()}


@functools.cache
def studies() -> tuple[str, ...]:
    """Experiments over several papers: the modules of `sslref.studies`."""
    return tuple(sorted(p.stem for p in (Path(__file__).parent / "studies").glob("[!_]*.py")))


def module(slug: str) -> str:
    """Dotted name of the module of a paper or a study. Raises UnknownPaper."""
    return f"sslref.studies.{slug}" if slug in studies() else f"sslref.papers.{get(slug).slug}"


def load(slug: str) -> ModuleType:
    """The module of a paper or a study. Raises UnknownPaper."""
    return importlib.import_module(module(slug))

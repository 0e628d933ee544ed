"""The strip under a chapter's title."""

import json
import warnings
from collections import Counter
from pathlib import Path

from sslref.show import _claims, _html, _look


def chapter(slug: str, *, profile: str, seed: int, device: str) -> _html.Html:
    """Set the book's look, and show what the chapter rests on: paper, data, cost, machine, and the ledger's verdicts.

    Args:
        slug: the paper.
        profile: "smoke", "ci", "ledger" or "gpu".
        seed: first seed of the chapter's own runs; it is shown, nothing is seeded.
        device: where the chapter runs, e.g. "cpu" or "cuda".

    Raises:
        UnknownPaper: no paper has this slug. ValueError: unknown profile, or a device that this machine has not.
    """
    from sslref import claims, registry

    paper = registry.get(slug)
    if profile not in claims.FIRST_SEED:
        raise ValueError(f"profile: expected one of {', '.join(claims.FIRST_SEED)}, got {profile!r}")
    machine = _device_name(device)
    _look.style()

    people = f"{paper.authors[0]} et al." if len(paper.authors) > 2 else " and ".join(paper.authors)
    links = (
        [f'<a href="https://arxiv.org/abs/{_html.attribute(paper.arxiv)}">arXiv {_html.text(paper.arxiv)}</a>']
        if paper.arxiv
        else []
    )
    links += [f'<a href="{_html.attribute(paper.code)}">official code</a>'] if paper.code else []
    said = [_html.text(f"{people}, {paper.venue} {paper.year}"), *links]
    ledger = claims.ledger(slug)
    items = {
        "Paper": " · ".join(said),
        "Data": _html.text(", ".join(paper.data)),
        "Time": _html.text(f"{paper.minutes} minutes to read; {_cost(slug)}"),
        "This run": _html.text(f"profile {profile}, seed {seed}, on {machine}"),
        "Ledger": _verdicts(ledger),
    }
    body = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in items.items() if value)
    content = f'<style>{_look.css()}</style><div class="sslref-chapter"><dl>{body}</dl></div>'
    verdicts = "; ".join(f"{e.verdict}: {_claims.outcome(e)}" for e in ledger.claims) if ledger else "not run yet"
    return _html.emit(
        content, f"{paper.title} ({people}, {paper.year}). Profile {profile} on {machine}. Ledger: {verdicts}"
    )


def _cost(slug: str) -> str:
    """What a run of the chapter takes: as it was the last time on this machine, else when the book was last released.

    The checkout says the latter, because a fresh clone has not run anything yet.
    """
    from sslref import registry

    measured = _read(registry.root() / "_build" / "cache" / f"{slug}.json")
    measured = measured or _read(registry.root() / "book" / "results" / "costs.json").get(slug)
    if not measured:
        return "what a run takes is not measured yet"
    seconds, gigabytes = measured["seconds"], max(0.1, measured["peak_mb"] / 1024)
    time = f"{max(5, 5 * round(seconds / 5))} seconds" if seconds < 90 else f"{round(seconds / 60)} minutes"
    return f"about {time} and {gigabytes:.1f} GB of memory to run with the profile ci on one CPU thread"


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _verdicts(ledger) -> str:
    if ledger is None:
        return "not run yet"
    lines = "".join(
        f"<li>{_html.text(e.statement)} {_claims._line(e).replace('<p', '<span').replace('</p>', '</span>')}</li>"
        for e in ledger.claims
    )
    listed = f"<ul>{lines}</ul>"
    if len(ledger.claims) > 3:  # a long list would stand between the title and the first picture
        counts = Counter(e.verdict for e in ledger.claims)
        said = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        listed = f"<details><summary>{len(ledger.claims)} claims: {said}</summary>{listed}</details>"
    when = f"{ledger.date}, {_html.number(max(1, round(ledger.seconds / 60)))} CPU minutes, {ledger.machine}"
    return f'{listed}<span class="sslref-small">{_html.text(when)}</span>'


def _device_name(device: str) -> str:
    """The device in words. Raises ValueError where this machine has none such."""
    import torch

    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        raise ValueError(f'device: expected "cpu", "cuda", "cuda:1" or "mps", got {device!r}') from None
    hint = 'set device = "cpu" in the first cell, or run the notebook on a machine that has one'
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (torch.device(device).index or 0) >= count:
            raise ValueError(f"device: got {device!r}, but PyTorch finds {count or 'no'} CUDA device here; {hint}")
        return torch.cuda.get_device_name(device)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device: got {device!r}, but PyTorch finds no Apple GPU here; {hint}")
    if kind == "cpu":
        threads = torch.get_num_threads()
        return f"CPU, {threads} {'thread' if threads == 1 else 'threads'}; {_unused_gpu()}"
    return "Apple GPU" if kind == "mps" else device


def _unused_gpu() -> str:
    """Whether a chapter that runs on the CPU could run on a GPU."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that is too old: then there is none
        if torch.cuda.is_available():
            return f'there is a GPU, {torch.cuda.get_device_name(0)}: set device = "cuda" in the first cell to use it'
    if torch.backends.mps.is_available():
        return 'there is an Apple GPU: set device = "mps" in the first cell to use it'
    return "no GPU found"

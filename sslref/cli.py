"""The command line. It imports PyTorch only in the commands that compute, and knows papers through the registry."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
except ModuleNotFoundError:
    raise SystemExit("sslref: the command line needs typer and rich: pip install 'sslref[run]'") from None

from sslref import __version__, registry

app = typer.Typer(
    name="sslref",
    help="Self-supervised learning, paper by paper: run, train and test the reference implementations.",
    epilog="Slugs are those of `sslref list`. With --debug, errors come with their traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
claims_app = typer.Typer(no_args_is_help=True, help="Run the claims of papers, and see what the ledger holds.")
app.add_typer(claims_app, name="claims")
course_app = typer.Typer(no_args_is_help=True, help="Make a course from chapters, grade it, and prove that it grades.")
app.add_typer(course_app, name="course")

Slug = Annotated[str, typer.Argument(help="Which paper, e.g. simclr.", metavar="SLUG", show_default=False)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")]
Jobs = Annotated[int, typer.Option(help="Processes at a time.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _Interrupted(Exception):
    """Ctrl-C, with a word on how to go on."""


def main() -> None:
    """Entry point: status 0; 1 after an error, told in one line; 2 for wrong usage; 130 after Ctrl-C."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    usage_error = typer.BadParameter.__base__  # click's, or that of Typer's own copy of click
    try:
        status = app(arguments, prog_name="sslref", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except _Interrupted as interrupt:
        sys.exit(_fail(interrupt, 130))
    except usage_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), end="")  # empty where the help is printed already
            sys.exit(2)
        sys.exit(_fail(f"{_parameter(error)}{error.format_message()} (see sslref --help)", 2))
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        # PyTorch's RuntimeError is a mistake of ours, except that the device has no memory left
        foreign = isinstance(error, RuntimeError) and not type(error).__module__.startswith("sslref.")
        if debug or (foreign and type(error).__name__ != "OutOfMemoryError"):
            raise
        sys.exit(_fail(_said(error), 1))
    if status == 130:
        _fail("interrupted", 130)
    sys.exit(status)


def _fail(message: object, status: int) -> int:
    print("sslref:", " ".join(str(message).split()), file=sys.stderr)
    return status


def _parameter(error: Any) -> str:
    """The option that a usage error is about, where its message does not name it."""
    parameter = getattr(error, "param", None)
    name = max(parameter.opts, key=len) if parameter else getattr(error, "param_hint", None)
    return f"{name}: " if name and name not in error.format_message() else ""


def _said(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"this needs the Python package {error.name!r}; `make setup` installs all that the project uses"
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory on the device, try a smaller --batch-size: {error}"
    notes = ", ".join(getattr(error, "__notes__", ()))
    return f"{error or type(error).__name__}{f' ({notes})' if notes else ''}"


def _print(*things: Any) -> None:
    from rich.console import Console

    # no line is wrapped where a program reads it
    Console(**{} if sys.stdout.isatty() else {"width": 200}).print(*things, highlight=False)


def _table(*columns: str, rows: list[list[str]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for i, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    return table


@contextlib.contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int, Any], None]]:
    """Called with (done, all, numbers or a word): a bar on a terminal, else at most twenty lines; all on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console, told = Console(stderr=True), -1
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task(label, total=None, said="")

        def show(done: int, total: int, said: Any) -> None:
            nonlocal told
            words = said if isinstance(said, str) else ", ".join(f"{k} {v:.4g}" for k, v in said.items())
            if console.is_terminal:
                bar.update(line, completed=done, total=total, said=words)
            elif (twentieth := 20 * done // total) > told:
                told = twentieth
                print(f"{label}: {done} of {total}{f', {words}' if words else ''}", file=sys.stderr, flush=True)

        yield show


# ---------------------------------------------------------------------------------------------------- commands


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sslref {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    pass


@app.command("list")
def list_papers(as_json: Json = False) -> None:
    """List the papers of the book."""
    papers = registry.papers()
    if as_json:
        print(json.dumps([asdict(p) for p in papers.values()], indent=1, ensure_ascii=False))
        return
    for part, title in registry.PARTS.items():
        rows = [[p.slug, str(p.year), p.idea] for p in papers.values() if p.part == part]
        if rows:
            _print(f"[bold]{title}[/bold]")
            _print(_table("", "", "", rows=rows), "")


@app.command()
def run(
    slug: Slug,
    profile: Annotated[str, typer.Option(help="smoke, ci, ledger or gpu: how much is run.")] = "ci",
    seed: Annotated[int, typer.Option(help="The first of the paired seeds.")] = 0,
    device: Device = "cpu",
    jobs: Jobs = 1,
) -> None:
    """Run a paper's miniature: every arm of its claims, then the verdicts. Nothing is written to the ledger."""
    from sslref import claims, train

    registry.module(slug)
    with _progress(slug) as progress:
        options = {"jobs": jobs, "device": train.local_device(device), "first_seed": seed}
        record = claims.run(slug, profile, progress=progress, **options)
    _verdicts(record)


@app.command("train")
def train_paper(
    slug: Slug,
    data: Annotated[
        Path | None, typer.Option(help="Your data; the chapter says in which form. Default: the embedded miniature.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="paper or miniature. Default: paper with --data, else miniature.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Length of the run. Default: the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples a step, over all processes.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the batches.")] = 0,
    device: Device = "cpu",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 64-true.")] = "32-true",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the model.")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Channels-last memory for images.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to continue from, if it is there, and to write.")
    ] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps a checkpoint. Default: ten of them.")] = None,
    log_every: Annotated[int, typer.Option(help="Steps a row of the history.")] = 10,
    out: Annotated[Path | None, typer.Option(help="JSON file for the history.")] = None,
) -> None:
    """Train with a paper's recipe.

    On several devices: torchrun --nproc_per_node 2 -m sslref train SLUG … --device cuda
    """
    registry.get(slug)
    from sslref import claims, train

    device = train.local_device(device)
    if data is not None and not data.exists():
        raise FileNotFoundError(f"--data: {data} does not exist")
    for file in (checkpoint, out):
        if file is not None:  # rather now than after hours
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.is_dir():
                raise ValueError(f"{file}: expected a file, this is a folder")
    module = registry.load(slug)
    if not hasattr(module, "recipe"):
        raise ValueError(f"{slug} has no recipe to train")
    size = size or ("miniature" if data is None else "paper")
    recipe = module.recipe(data, batch_size=batch_size, device=device, size=size)
    steps = recipe.steps if steps is None else steps
    first = int(os.environ.get("RANK", 0)) == 0
    if first:
        processes = int(os.environ.get("WORLD_SIZE", 1))
        where = f"{device.split(':')[0]} × {processes}" if processes > 1 else device
        print(f"{recipe.about}\n{steps} steps of {recipe.batch_size} samples on {where}, {precision}")
    with _progress(slug) if first else contextlib.nullcontext(False) as progress:
        try:
            history = train.fit(
                recipe.task,
                steps=steps,
                seed=seed,
                device=device,
                precision=precision,
                compile=compile,
                channels_last=channels_last,
                log_every=log_every,
                checkpoint=checkpoint,
                save_every=save_every,
                progress=progress,
            )
        except KeyboardInterrupt:
            told = f"{checkpoint} holds the run, the same command continues it" if checkpoint else "no --checkpoint"
            raise _Interrupted(f"interrupted; {told}") from None
    if first:
        _print(", ".join(f"{name} {history.last(name):.4f}" for name in history.values), f"in {history.seconds:.1f} s")
        if out is not None:
            values = {k: [v if abs(v) < float("inf") else None for v in row] for k, row in history.values.items()}
            run = {"slug": slug, "steps": steps, "batch_size": recipe.batch_size, "seed": seed, "device": device}
            rows = {"steps": history.steps, "values": values}
            claims.write_json(out, run | {"precision": precision, "seconds": history.seconds, "history": rows})


@claims_app.command("run")
def claims_run(
    slugs: Annotated[list[str], typer.Argument(help="Which papers.", metavar="SLUG...", show_default=False)],
    profile: Annotated[str, typer.Option(help="smoke, ci, ledger or gpu.")] = "ledger",
    jobs: Jobs = 1,
    device: Device = "cpu",
    dask: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to use: tcp://…")] = None,
    seeds: Annotated[int | None, typer.Option(help="Paired seeds. Default: the profile's.")] = None,
) -> None:
    """Run the claims of papers and print the verdicts; ledger and gpu write book/results/SLUG.json.

    Finished jobs are kept: what was interrupted goes on where it stopped.
    """
    for slug in slugs:
        registry.module(slug)
    from sslref import claims, train

    for slug in slugs:
        with _progress(slug) as progress:
            options = {"jobs": jobs, "device": train.local_device(device), "dask": dask, "seeds": seeds}
            record = claims.run(slug, profile, progress=progress, **options)
        _verdicts(record)
        if profile in ("ledger", "gpu"):
            _print(f"written to {claims.write(record).relative_to(registry.root())}")


@claims_app.command()
def confirm(
    slugs: Annotated[list[str], typer.Argument(help="Which papers.", metavar="SLUG...", show_default=False)],
    profile: Annotated[str, typer.Option(help="ledger or gpu.")] = "ledger",
    jobs: Jobs = 1,
    device: Device = "cpu",
    seeds: Annotated[int, typer.Option(help="Paired seeds to run again.")] = 1,
    against: Annotated[
        Path | None,
        typer.Option(help="A checkout of the code that made the entry: its numbers on this machine are to be met."),
    ] = None,
) -> None:
    """Renew a stale ledger entry whose code still gives the same numbers, to six digits.

    Fails, and changes nothing, where a number differs.
    """
    for slug in slugs:
        registry.module(slug)
    from sslref import claims, train

    for slug in slugs:
        with _progress(slug) as progress:
            options = {"jobs": jobs, "device": train.local_device(device), "seeds": seeds}
            claims.confirm(slug, profile, against=against, progress=progress, **options)
        _print(f"{slug}: the same numbers, the entry is current again")


@claims_app.command()
def status(
    slugs: Annotated[list[str] | None, typer.Argument(help="Default: all papers.", metavar="[SLUG...]")] = None,
    as_json: Json = False,
) -> None:
    """Show which ledger entries are older than the code they rest on."""
    from sslref import claims

    for slug in slugs or ():
        registry.module(slug)
    rows = claims.status(slugs or None)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    colour = {"current": "green", "stale": "red", "missing": "dim"}
    cells = [[r["slug"], r["profile"], f"[{colour[r['state']]}]{r['state']}[/]", r["date"]] for r in rows]
    _print(_table("paper", "profile", "state", "date", rows=cells))


@claims_app.command()
def show(
    slugs: Annotated[list[str] | None, typer.Argument(help="Default: all papers.", metavar="[SLUG...]")] = None,
    profile: Annotated[str, typer.Option(help="ledger or gpu.")] = "ledger",
    as_json: Json = False,
) -> None:
    """Print what the ledger holds."""
    from sslref import claims

    if profile not in ("ledger", "gpu"):
        raise ValueError(f"profile: expected ledger or gpu, got {profile!r}")
    records = {slug: claims.ledger(slug, profile) for slug in slugs or (*registry.papers(), *registry.studies())}
    if as_json:
        print(json.dumps({s: r and claims.to_json(r) for s, r in records.items()}, indent=1, ensure_ascii=False))
        return
    for slug, record in records.items():
        if record is None:
            _print(
                f"{slug}: no entry of the profile {profile}; `sslref claims run {slug} --profile {profile}` makes one"
            )
        else:
            _verdicts(record)


def _verdicts(record: Any) -> None:
    """The claims of a record as a table."""
    from rich.markup import escape

    colour = {"supported": "green", "exact": "green", "contradicted": "red", "inconclusive": "yellow"}
    rows = []
    for e in record.claims:
        low, high = e.difference.ci95
        interval = f"{low:+.3g} … {high:+.3g}" if low == low else "one seed"
        verdict = f"[{colour[e.verdict]}]{e.verdict}[/]"
        rows.append([verdict, escape(e.statement), f"{e.difference.mean:+.3g} {e.unit}".strip(), interval])
    seeds = len(record.claims[0].baseline.seeds) if record.claims else 0
    _print(
        f"[bold]{record.slug}[/bold], profile {record.profile}, {seeds} seeds, {record.seconds:.0f} s, {record.date}"
    )
    _print(_table("verdict", "claim", "method - baseline", "95 % interval", rows=rows), "")


@app.command()
def book(
    papers: Annotated[
        list[str] | None, typer.Option(help='Chapters to execute, "simclr nutime"; the others keep their last copy.')
    ] = None,
    jobs: Jobs = 2,
    force: Annotated[bool, typer.Option("--force", help="Execute and build also what has not changed.")] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="Then print it with Chromium: _build/sslref.pdf.")] = False,
) -> None:
    """Execute the chapters that changed and build the book into _build/html."""
    slugs = [slug for group in papers or () for slug in group.replace(",", " ").split()]
    for slug in slugs:
        registry.part(slug)
    from sslref import publish

    if pdf:
        from sslref.publish import pdf as paper

        paper.ready()  # rather now than after the chapters
    status = publish.book(slugs or None, jobs=jobs, force=force)
    if pdf and not status:
        build = registry.root() / "_build"
        pages = paper.pdf(build / "html", build / "book" / "_toc.yml", build / "sslref.pdf")
        print(f"book: _build/sslref.pdf, {pages} pages")
    raise typer.Exit(status)


@app.command()
def new(
    slug: Annotated[str, typer.Argument(help="Name of its files, e.g. simclr.", metavar="SLUG", show_default=False)],
    part: Annotated[str, typer.Option(help="Part of the book: a folder of notebooks/, e.g. masked.")],
    title: Annotated[str, typer.Option(help="Title of the paper.")] = "",
    arxiv: Annotated[str, typer.Option(help="Its number on arXiv, e.g. 2002.05709.")] = "",
    year: Annotated[int | None, typer.Option(help="Year in which it appeared.")] = None,
) -> None:
    """Begin a chapter: module, GPU check, test, notebook and reference, with every blank marked FILL."""
    from sslref import scaffold

    for path in scaffold.new(slug, part=part, title=title, arxiv=arxiv, year=year):
        count = len(scaffold.FILL.findall(path.read_text(encoding="utf-8")))
        print(f"{path.relative_to(registry.root())}: {count} blanks")
    print(f"Fill every FILL, then: make lint test, and make book PAPERS={slug}")


Course = Annotated[Path, typer.Argument(help="A folder that `sslref course build` made.", metavar="DIR")]


@course_app.command("build")
def course_build(
    papers: Annotated[list[str], typer.Option(help="Chapters, simclr,mec,densecl.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the course.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace a course there; your own files stay.")] = False,
) -> None:
    """Write student notebooks, an nbgrader course, slides, quizzes and a syllabus."""
    from sslref.course import build

    slugs = [slug for group in papers for slug in group.replace(",", " ").split()]
    kept = build.build(slugs, out, force=force, progress=lambda slug: print(f"{slug}: building", file=sys.stderr))
    for name in kept:
        print(f"{name}: you had changed it; your version is in {out / 'kept'}", file=sys.stderr)
    print(f"{out / 'README.md'} says how to hand out, collect and grade")


@course_app.command("grade")
def course_grade(
    folder: Course,
    force: Annotated[bool, typer.Option("--force", help="Grade again what is graded already.")] = False,
    as_json: Json = False,
) -> None:
    """Grade what lies in DIR/submitted/NAME/CHAPTER with nbgrader, and print one table."""
    from sslref.course import grade

    results = grade.grade(folder, force=force, progress=lambda line: print(line, file=sys.stderr))
    if as_json:
        print(json.dumps([asdict(r) for r in results], indent=1, ensure_ascii=False))
        return
    rows = [[r.student, r.slug, f"{r.points:g} of {r.most:g}", "; ".join(r.why)] for r in results]
    _print(_table("student", "chapter", "points", "why not all", rows=_escaped(rows)))


@course_app.command("check")
def course_check(folder: Course) -> None:
    """Prove that a course grades: all points for its solutions, none for blanks and wrong solutions."""
    from sslref.course import grade

    results = grade.check(folder, progress=lambda line: print(line, file=sys.stderr))
    rows = [
        [r.slug, r.student, f"{r.points:g} of {r.most:g}", "" if grade.good(r) else "NOT AS IT SHOULD BE"]
        for r in results
    ]
    _print(_table("chapter", "handed in", "points", "", rows=rows))
    raise typer.Exit(int(not all(map(grade.good, results))))


def _escaped(rows: list[list[str]]) -> list[list[str]]:
    from rich.markup import escape

    return [[escape(cell) for cell in row] for row in rows]


@app.command("gpu-check")
def gpu_check(
    device: Device = "cuda",
    claims: Annotated[bool, typer.Option("--claims", help="Also the profile gpu of every claim; takes long.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures. Default: under benchmarks/gpu.")] = None,
    seconds: Annotated[float, typer.Option(help="For which each training is measured.")] = 1.0,
    jobs: Annotated[int, typer.Option(help="Processes for the claims.")] = 4,
) -> None:
    """Check every implementation on a device against the CPU in float64, and measure training there."""
    from sslref import gpu

    report = gpu.check(device, claims=claims, out=out, seconds=seconds, jobs=jobs, progress=print)
    raise typer.Exit(int(not report.passed))


if __name__ == "__main__":
    main()

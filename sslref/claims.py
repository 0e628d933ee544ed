"""Claims: a paper's central statement as a controlled experiment with paired seeds, an interval and a verdict.

A paper module lists `EXPERIMENTS` (what is run) and `CLAIMS` (what is concluded). One job is one arm with one seed;
it returns all its metrics at once, so several claims can rest on the same runs. Arms of one seed share data,
initialisation and batches, hence the differences are paired.

The rule, fixed before any run: d = method - baseline per seed, Student's 95 % interval of its mean. In the direction
that is called better, the claim is *supported* if the whole interval lies beyond the margin, *contradicted* if the
whole interval lies beyond the margin on the other side, and otherwise *inconclusive*. A claim that must hold to the
last digit is *exact* if every value of the method's arm is the ideal one, and otherwise contradicted.
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sslref import digest, registry

Profile = Literal["smoke", "ci", "ledger", "gpu"]
SECONDS = "seconds"  # the metric of what a run cost, which `run` adds to those of the experiment
# Seeds of the ledger are fresh: designs are chosen on the small ones.
FIRST_SEED = {"smoke": 0, "ci": 0, "ledger": 1000, "gpu": 2000}


@dataclass(frozen=True)
class Experiment:
    """Arms that differ in one cause, and what each profile spends on them.

    Args:
        run: `run(arm, *, seed, device, **budget)` -> metrics by name; all randomness comes from `seed`.
        arms: names of the arms.
        budgets: profile -> {"seeds": number of paired seeds, further keywords of `run`}.
        timed: metrics that are times, which no second run repeats; `confirm` leaves them out.
    """

    run: Callable[..., Mapping[str, float]]
    arms: tuple[str, ...]
    budgets: Mapping[str, Mapping[str, Any]]
    timed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is said of an experiment: in `metric`, the arm `method` beats the arm `baseline` by more than `margin`.

    With `exact`, every value of `method` must be 1 (0 where lower is better).
    """

    id: str
    statement: str
    experiment: str
    metric: str
    higher_is_better: bool
    baseline: str
    method: str
    ablations: tuple[str, ...] = ()
    margin: float = 0.0
    exact: bool = False
    kind: Literal["mechanism", "gain"] = "mechanism"
    unit: str = ""

    def __post_init__(self):
        names = _arms(self)
        if len(set(names)) != len(names):
            raise ValueError(f"claim {self.id!r}: arms must differ, got {names}")
        if self.margin < 0:
            raise ValueError(f"claim {self.id!r}: margin must not be negative, got {self.margin}")


@dataclass(frozen=True)
class Arm:
    role: Literal["baseline", "method", "ablation"]
    seeds: list[int]
    values: list[float]


@dataclass(frozen=True)
class Difference:
    """Mean of method - baseline over paired seeds, with its 95 % interval (nan where one seed gives none)."""

    mean: float
    ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A claim with every value that speaks for or against it."""

    id: str
    statement: str
    metric: str
    unit: str
    kind: str
    higher_is_better: bool
    margin: float
    arms: dict[str, Arm]
    difference: Difference
    verdict: Literal["supported", "inconclusive", "contradicted", "exact"]
    profile: str

    def _arm(self, role: str) -> Arm:
        return next(arm for arm in self.arms.values() if arm.role == role)

    @property
    def baseline(self) -> Arm:
        return self._arm("baseline")

    @property
    def method(self) -> Arm:
        return self._arm("method")


@dataclass(frozen=True, kw_only=True)
class Record:
    """All evidence of one paper from one profile, and what it was made with."""

    slug: str
    profile: str
    seconds: float  # of computation (on the CPU: CPU time of one thread), summed over jobs
    machine: str
    versions: dict[str, str]
    date: str
    code_digest: str
    claims: tuple[Evidence, ...]
    metrics: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)

    def __getitem__(self, claim_id: str) -> Evidence:
        for evidence in self.claims:
            if evidence.id == claim_id:
                return evidence
        raise KeyError(f"{self.slug} has no claim {claim_id!r}; it has {', '.join(e.id for e in self.claims)}")


def paired_interval(differences: Iterable[float]) -> Difference:
    """Mean and Student's 95 % interval of paired differences; one difference has no interval (nan, nan)."""
    from scipy import stats

    d = [float(v) for v in differences]
    if not d:
        raise ValueError("differences: expected at least one, got none")
    mean = math.fsum(d) / len(d)
    if len(d) < 2 or not all(map(math.isfinite, d)):
        return Difference(mean, (math.nan, math.nan))
    if len(set(d)) == 1:  # SciPy divides by the zero deviation
        return Difference(mean, (mean, mean))
    low, high = stats.t.interval(0.95, len(d) - 1, loc=mean, scale=stats.sem(d))
    return Difference(mean, (float(low), float(high)))


def verdict(difference: Difference, *, higher_is_better: bool, margin: float = 0.0) -> str:
    """The rule: "supported", "contradicted" or "inconclusive"."""
    low, high = difference.ci95 if higher_is_better else (-difference.ci95[1], -difference.ci95[0])
    return "supported" if low > margin else "contradicted" if high < -margin else "inconclusive"


def _arms(claim: Claim) -> tuple[str, ...]:
    return (claim.baseline, claim.method, *claim.ablations)


def judge(claim: Claim, values: Mapping[str, list[float]], seeds: list[int], profile: str) -> Evidence:
    """Evidence for one claim from the values of its metric, arm by arm, in the order of `seeds`."""
    roles = {claim.baseline: "baseline", claim.method: "method"} | dict.fromkeys(claim.ablations, "ablation")
    arms = {name: Arm(role, list(seeds), list(values[name])) for name, role in roles.items()}
    method, baseline = values[claim.method], values[claim.baseline]
    difference = paired_interval(m - b for m, b in zip(method, baseline, strict=True))
    if claim.exact:
        outcome = "exact" if all(v == float(claim.higher_is_better) for v in method) else "contradicted"
    else:
        outcome = verdict(difference, higher_is_better=claim.higher_is_better, margin=claim.margin)
    shared = {k: getattr(claim, k) for k in ("id", "statement", "metric", "unit", "kind", "higher_is_better", "margin")}
    return Evidence(**shared, arms=arms, difference=difference, verdict=outcome, profile=profile)


# ---------------------------------------------------------------------------------------------------- running


def _job(slug: str, experiment: str, arm: str, seed: int, device: str, budget: dict) -> dict:
    """One arm with one seed, on one thread; runs in a worker process, so it takes names only."""
    import torch

    # on the CPU its own time counts, not that of others on a busy machine
    clock = time.process_time if device == "cpu" else time.perf_counter
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = clock()
    try:
        metrics = registry.load(slug).EXPERIMENTS[experiment].run(arm, seed=seed, device=device, **budget)
    except Exception as error:
        error.add_note(f"in {slug}, experiment {experiment!r}, arm {arm!r}, seed {seed}")
        raise
    finally:
        torch.set_num_threads(threads)
    return {"metrics": {k: float(v) for k, v in metrics.items()}, "seconds": clock() - start}


def _keyed_job(job: tuple) -> tuple[tuple, dict]:
    return job, _job(*job)


@contextlib.contextmanager
def _parallel(jobs: int, dask: str | None):
    """A joblib executor that hands results back as they come."""
    import joblib

    options = {"return_as": "generator_unordered", "batch_size": 1}
    if dask is None:
        yield joblib.Parallel(n_jobs=jobs, **options)
        return
    from distributed import Client

    try:
        client = Client(dask, timeout="5s")
    except (OSError, TimeoutError, ValueError) as error:
        raise ValueError(f"dask: expected the address of a running scheduler, got {dask!r} ({error})") from None
    with client, joblib.parallel_config(backend="dask", wait_for_workers_timeout=30):
        yield joblib.Parallel(n_jobs=-1, **options)


def code_digest(slug: str, *names: str) -> str:
    """Digest of the code on which a paper's entry rests: its experiments, its claims and what they reach.

    `names` are those of the paper's module that count. This module does not.
    """
    wanted = [f"{registry.module(slug)}.{name}" for name in names or ("EXPERIMENTS", "CLAIMS")]
    return digest.code(digest.definitions(*wanted, without=("sslref.claims", "sslref.registry")))


def _machine(device: str) -> str:
    import torch

    name = f"{platform.machine()}, {os.cpu_count()} cores"
    return f"{torch.cuda.get_device_name(device)}, {name}" if device.startswith("cuda") else name


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "scipy", "scikit-learn")
    return {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages}


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one step: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def run(
    slug: str,
    profile: Profile = "ci",
    *,
    jobs: int = 1,
    device: str = "cpu",
    seeds: int | None = None,
    first_seed: int | None = None,
    dask: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    cache: Path | None = None,
) -> Record:
    """Run every experiment of a paper and judge its claims.

    Finished jobs are kept under `_build/claims`, keyed by the digest of the code and the budget: a sweep that was
    interrupted continues where it stopped, and repeating it costs nothing.

    Args:
        slug: the paper.
        profile: "smoke", "ci", "ledger" or "gpu".
        jobs: local processes, each on one thread. dask: address of a scheduler to use instead.
        device: where each job runs.
        seeds, first_seed: in place of the profile's number of paired seeds and its first one.
        progress: called with (finished jobs, jobs in all, what finished last).
        cache: folder in place of `_build/claims`.

    Raises:
        UnknownPaper, ValueError: unknown slug or profile, a claim that names an unknown metric, jobs or seeds < 1.
    """
    module = registry.load(slug)
    if profile not in FIRST_SEED:
        raise ValueError(f"profile: expected one of {', '.join(FIRST_SEED)}, got {profile!r}")
    for name, value in (("jobs", jobs), ("seeds", seeds)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    start = FIRST_SEED[profile] if first_seed is None else first_seed
    code = code_digest(slug, "EXPERIMENTS")
    cache = (cache or registry.root() / "_build" / "claims") / slug / profile

    todo, seeds_of = [], {}
    for name, experiment in module.EXPERIMENTS.items():
        budget = dict(experiment.budgets[profile])
        count = budget.pop("seeds")
        seeds_of[name] = list(range(start, start + (seeds or count)))
        todo += [(slug, name, arm, seed, device, budget) for seed in seeds_of[name] for arm in experiment.arms]

    def file(job) -> Path:
        _, name, arm, seed, where, budget = job
        key = hashlib.sha256(json.dumps([code, where, budget], sort_keys=True, default=str).encode()).hexdigest()[:12]
        return cache / key / f"{name}-{re.sub(r'[^A-Za-z0-9_.]+', '_', arm)}-{seed}.json"

    results = {job[1:4]: json.loads(file(job).read_text()) for job in todo if file(job).exists()}
    waiting = [job for job in todo if job[1:4] not in results]
    say = progress or (lambda done, total, label: None)
    say(len(results), len(todo), "kept from before" if results else "")
    if waiting:
        with _parallel(jobs, dask) as parallel:
            import joblib

            for job, result in parallel(joblib.delayed(_keyed_job)(job) for job in waiting):
                write_json(file(job), _finite(result))
                results[job[1:4]] = result
                say(len(results), len(todo), f"{job[2]}, seed {job[3]}")

    metrics: dict = {}
    for name, experiment in module.EXPERIMENTS.items():
        for arm in experiment.arms:
            found = [results[name, arm, seed]["metrics"] for seed in seeds_of[name]]
            metrics.setdefault(name, {})[arm] = {
                m: [math.nan if row[m] is None else row[m] for row in found] for m in found[0]
            } | {SECONDS: [round(results[name, arm, seed]["seconds"], 3) for seed in seeds_of[name]]}
    evidence = []
    for claim in module.CLAIMS:
        try:
            values = {arm: metrics[claim.experiment][arm][claim.metric] for arm in _arms(claim)}
        except KeyError as error:
            raise ValueError(f"claim {claim.id!r} of {slug} names {error}, which no run returned") from None
        evidence.append(judge(claim, values, seeds_of[claim.experiment], profile))
    return Record(
        slug=slug,
        profile=profile,
        seconds=round(math.fsum(r["seconds"] for r in results.values()), 1),
        machine=_machine(device),
        versions=_versions(),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        code_digest=code_digest(slug),
        claims=tuple(evidence),
        metrics=metrics,
    )


# ---------------------------------------------------------------------------------------------------- the ledger


def _finite(content):
    """JSON has no nan: null stands for it."""
    if isinstance(content, dict):
        return {k: _finite(v) for k, v in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(v) for v in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _nan(values):
    return [math.nan if v is None else v for v in values]


def to_json(record: Record) -> dict:
    """The record as plain JSON values."""
    content = _finite(asdict(record))
    for claim in content["claims"]:
        del claim["profile"]
    return content


def from_json(content: Mapping) -> Record:
    """Inverse of `to_json`. Raises ValueError where a part is missing."""
    try:
        claims = []
        for c in content["claims"]:
            arms = {k: Arm(a["role"], a["seeds"], _nan(a["values"])) for k, a in c["arms"].items()}
            mean, *ci95 = _nan([c["difference"]["mean"], *c["difference"]["ci95"]])
            rest = {k: v for k, v in c.items() if k not in ("arms", "difference")}
            difference = Difference(mean, tuple(ci95))
            claims.append(Evidence(**rest, arms=arms, difference=difference, profile=content["profile"]))
        keys = ("slug", "profile", "seconds", "machine", "versions", "date", "code_digest")
        metrics = {
            e: {a: {m: _nan(v) for m, v in ms.items()} for a, ms in arms.items()}
            for e, arms in content.get("metrics", {}).items()
        }
        return Record(**{k: content[k] for k in keys}, claims=tuple(claims), metrics=metrics)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a record of claims: {error!r} is missing or of the wrong kind") from None


def ledger_file(slug: str) -> Path:
    registry.module(slug)  # raises where there is none
    return registry.root() / "book" / "results" / f"{slug}.json"


def ledger(slug: str, profile: Literal["ledger", "gpu"] = "ledger") -> Record | None:
    """The committed record of a paper, or None. Raises ValueError, naming the file, where it cannot be read."""
    path = ledger_file(slug)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        part = content.get("gpu") if profile == "gpu" else content if "claims" in content else None
        return None if part is None else from_json({"slug": slug} | part)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}; restore it with `sslref claims run {slug} --profile {profile}`") from None


def write(record: Record) -> Path:
    """Put a record of the profile "ledger" or "gpu" into the paper's file; the other one in it is kept."""
    if record.profile not in ("ledger", "gpu"):
        raise ValueError(f"record: only profiles ledger and gpu are kept, got {record.profile!r}")
    path = ledger_file(record.slug)
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content = to_json(record)
    if record.profile == "ledger":
        new = content | ({"gpu": old["gpu"]} if "gpu" in old else {})
    else:
        new = (old or {"slug": record.slug}) | {"gpu": content}
    write_json(path, new)
    return path


_ELSEWHERE = """
import json, pathlib, sys
from sslref import claims
slug, profile, device, jobs, seeds, kept = sys.argv[1:]
record = claims.run(slug, profile, device=device, jobs=int(jobs), seeds=int(seeds), cache=pathlib.Path(kept))
print(json.dumps([claims.code_digest(slug), record.metrics]))
"""


def _elsewhere(checkout: Path, digest: str, slug: str, *options: str) -> dict:
    """Metrics by the code of another checkout, on this machine. Raises ValueError unless it has that digest."""
    with tempfile.TemporaryDirectory() as kept:  # nothing that another machine has left there
        done = subprocess.run(
            [sys.executable, "-c", _ELSEWHERE, slug, *options, kept],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise ValueError(f"against: {slug} does not run in {checkout}: {done.stderr.strip().splitlines()[-1]}")
    found, metrics = json.loads(done.stdout.splitlines()[-1])
    if found != digest:
        raise ValueError(f"against: expected the code that made the entry, digest {digest}, got {found} in {checkout}")
    return metrics


def confirm(
    slug: str,
    profile: Literal["ledger", "gpu"] = "ledger",
    *,
    against: Path | None = None,
    seeds: int = 1,
    jobs: int = 1,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> Record:
    """Renew the digest of an entry whose code was edited, if the code still gives the same numbers.

    The first paired seeds of every arm are run again. Only if every metric equals the entry's to six digits (another
    processor rounds differently) does the entry count as current again; date and values stay as they are,
    claims are judged anew from the values, and the cost is estimated anew from the seeds that were run.

    Args:
        against: a checkout of the code that made the entry. Its numbers on this machine are then what must be met:
            in a long training the rounding of another processor grows beyond six digits.

    Raises:
        ValueError: no entry, a number that differs (named), after which only a new run can say what holds, or
            another code in `against`.
    """
    old = ledger(slug, profile)
    if old is None:
        raise ValueError(f"{slug} has no entry of the profile {profile} to confirm")
    options = (profile, device, str(jobs), str(seeds))
    before = old.metrics if against is None else _elsewhere(against.resolve(), old.code_digest, slug, *options)
    new = run(slug, profile, jobs=jobs, device=device, seeds=seeds, progress=progress)
    experiments = registry.load(slug).EXPERIMENTS
    for name, arms in new.metrics.items():
        for arm, metrics in arms.items():
            for metric, values in metrics.items():
                if metric in (SECONDS, *experiments[name].timed):
                    continue
                kept = before.get(name, {}).get(arm, {}).get(metric, [])[:seeds]
                if len(values) != len(kept) or not np.allclose(values, kept, rtol=1e-6, atol=1e-9, equal_nan=True):
                    raise ValueError(
                        f"{slug}, {name}, arm {arm!r}: {metric} was {kept} and is {values} now; "
                        f"run `sslref claims run {slug} --profile {profile}`"
                    )
    seeds_of = {c.id: next(iter(c.arms.values())).seeds for c in old.claims}
    judged = []
    for claim in registry.load(slug).CLAIMS:
        if claim.id not in seeds_of:
            raise ValueError(f"{slug} claims {claim.id!r} by now, which the entry does not know; run its claims anew")
        values = {arm: old.metrics[claim.experiment][arm][claim.metric] for arm in _arms(claim)}
        judged.append(judge(claim, values, seeds_of[claim.id], profile))
    seconds = 0.0
    for name, arms in old.metrics.items():
        for arm, metrics in arms.items():
            count = len(next(iter(metrics.values())))
            seconds += count * math.fsum(new.metrics[name][arm][SECONDS]) / seeds
    record = replace(old, claims=tuple(judged), code_digest=new.code_digest, seconds=round(seconds, 1))
    write(record)
    return record


def status(slugs: Iterable[str] | None = None) -> list[dict]:
    """Papers and studies: "current", "stale" (the code says something else by now) or "missing", with the date."""
    rows = []
    for slug in slugs or (*registry.papers(), *registry.studies()):
        for profile in ("ledger", "gpu"):
            record = ledger(slug, profile)
            state = "missing" if record is None else "current" if record.code_digest == code_digest(slug) else "stale"
            rows.append({"slug": slug, "profile": profile, "state": state, "date": record.date if record else ""})
    return rows

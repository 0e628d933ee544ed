"""What the chapters cost to run, kept in the checkout for readers who have not run any of them yet."""

from pathlib import Path

from sslref import claims, registry
from sslref.publish import execute, stage


def keep() -> Path:
    """Write what the last run of every chapter took, as the cache has it, to book/results/costs.json.

    Raises:
        ValueError: a chapter that has not run.
    """
    runs = {name: execute._record(name) for name in stage.executed()}
    if missing := [name for name, run in runs.items() if not run]:
        raise ValueError(f"costs: no run is kept of {', '.join(missing)}; `make book` runs what is missing")
    path = registry.root() / "book" / "results" / "costs.json"
    claims.write_json(path, {n: {"seconds": r["seconds"], "peak_mb": r["peak_mb"]} for n, r in sorted(runs.items())})
    return path


if __name__ == "__main__":
    print(keep())

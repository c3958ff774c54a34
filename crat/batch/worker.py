"""The worker: a process that trains one run and judges it by the standard battery."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from crat.batch import children
from crat.config import RunConfig
from crat.store import Store


def make(config: RunConfig, place: Store | None = None) -> None:
    """Computes the missing epochs and outcomes of a run."""
    from crat.outcomes.batteries import usual_battery
    from crat.outcomes.evaluation import evaluate
    from crat.training.trainer import train

    run = train(config, progress="none", store=place)
    if not run.published:  # else only the network is needed
        evaluate(run, usual_battery(config.data.name), tell=None)


def main(job: dict[str, Any]) -> int:
    """Does a job (config; root and published of its store); returns the exit code.

    An error of crat is printed as the last line; any other is a bug and shows its traceback.
    """
    children.end_with_starter(grace=children.GRACE / 2)  # so that the lease is given back
    published = Path(job["published"]) if job["published"] else None
    try:
        make(RunConfig.from_dict(job["config"]), Store(Path(job["root"]), published))
    except Exception as error:
        if not type(error).__module__.startswith("crat."):
            raise
        print(" ".join(str(error).split()), file=sys.stderr)
        return children.EXPLAINED
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))

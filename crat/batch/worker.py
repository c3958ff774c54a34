"""One run in a process of its own: trained, then judged by the standard battery."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crat.batch import children
from crat.config import RunConfig
from crat.store import Store

if TYPE_CHECKING:
    from crat.attacks import Attack


def make(config: RunConfig, place: Store | None = None) -> None:
    """Makes whatever is missing of a run, its epochs and its outcomes; the rest stays as it is."""
    from crat.outcomes.evaluation import evaluate
    from crat.training.trainer import train

    run = train(config, progress="none", store=place)
    if not run.published:  # else only the network was asked for
        evaluate(run, usual_battery(config.data.name), tell=None)


def usual_battery(dataset: str) -> dict[str, Attack]:
    """The attacks of every notebook: PGD and CW at the data set's test protocol."""
    from crat.outcomes.batteries import standard_battery

    return {name: a for name, a in standard_battery(dataset).items() if name != "FGSM"}


def main(job: dict[str, Any]) -> int:
    """The exit code of a job (config, root and published of its store).

    An error of crat's own is the last line said, any other is a bug and keeps its traceback.
    """
    children.end_with_starter(grace=children.GRACE / 2)  # so that the lease is given back
    published = Path(job["published"]) if job["published"] else None
    try:
        make(RunConfig.from_dict(job["config"]), Store(Path(job["root"]), published))
    except Exception as error:
        if not type(error).__module__.startswith("crat."):
            raise
        print(" ".join(str(error).split()), file=sys.stderr)
        return children.TOLD
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))

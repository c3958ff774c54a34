"""One run in a process of its own: trained, then judged by the standard battery. Executors start
it.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from crat import children
from crat.config import RunConfig

if TYPE_CHECKING:
    from crat.attacks import Attack


def make(config: RunConfig) -> None:
    """Whatever is missing of a run: its epochs, its outcomes. What is there, or published, is
    left as it is.
    """
    from crat.outcomes.evaluation import evaluate
    from crat.training.trainer import train

    run = train(config, progress="none")
    if not run.published:  # else only the network was asked for
        evaluate(run, usual_battery(config.data.name), tell=None)


def usual_battery(dataset: str) -> dict[str, Attack]:
    """What every notebook judges by: PGD and CW at the data set's test protocol."""
    from crat.outcomes.batteries import standard_battery

    return {name: attack for name, attack in standard_battery(dataset).items() if name != "FGSM"}


def main(config: dict[str, Any]) -> int:
    """The exit code; an error of crat's own is the last line said, any other is a bug and keeps
    its traceback.
    """
    children.end_with_starter(grace=children.GRACE / 2)  # so that the lease is given back
    try:
        make(RunConfig.from_dict(config))
    except Exception as error:
        if not type(error).__module__.startswith("crat."):
            raise
        print(" ".join(str(error).split()), file=sys.stderr)
        return children.TOLD
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))

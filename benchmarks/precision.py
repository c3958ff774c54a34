"""How often an attack that searches in bfloat16 changes a verdict, beside two float32 searches.

    python benchmarks/precision.py --images 500 --slow-images 100

The network is a small_cnn after three epochs of adversarial training on the shipped Fashion-MNIST;
its own answers are the labels. attacks.md has recorded results.
"""

from __future__ import annotations

import torch
from measuring import at_least_one, measured, parser
from subjects import grey_subject

from crat.device import describe, pick_device
from crat.outcomes.precision import SLOW, precision_table

NOTE = (
    "The same network. differ: the share of images on which a bfloat16 and a float32 search "
    "disagree; seed: on which two float32 searches with other random numbers do."
)


def main(images: int, slow_images: int) -> None:
    """Prints the table below its machine and versions."""
    at_least_one(images=images, slow_images=slow_images)
    device = pick_device()
    print(f"{describe(device)}, torch {torch.__version__}")
    model, x, y, eps = grey_subject(device, width=None, updates=165)
    table = precision_table(model, x[:images], y[:images], eps, slow_images=slow_images)
    print(f"{NOTE}\n{table.to_string(index=False)}")


if __name__ == "__main__":
    command = parser(__doc__)
    command.add_argument("--images", type=int, default=500, help="of the quick attacks")
    command.add_argument("--slow-images", type=int, default=100, help=f"of {', '.join(SLOW)}")
    asked = command.parse_args()
    measured(command, lambda: main(asked.images, asked.slow_images))

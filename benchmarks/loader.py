"""Images in files: how many a second crat's loader decodes, and how many a training step can use.

    python benchmarks/loader.py --size 64 224 --model resnet50 --batch 16

The textbook is torchvision's ImageFolder with random resized crops and flips in a DataLoader; both
have as many workers and read the same made JPEGs of 500 x 375 pixels. The step is PGD-AT's. The
loader must be the faster of the two: else a training waits for its images. loader.md has recorded
results.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measuring import at_least_one, markdown, measured, parser, seconds
from PIL import Image
from step import compared
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from training import our_step

from crat.config import MODELS
from crat.data import Batches, Streamed
from crat.data.folder import listed
from crat.data.streamed import usual_workers
from crat.device import describe, pick_device

CLASSES = 10


def made(top: Path, n: int) -> Path:
    """n JPEGs of noise that was scaled up (about 40 KB each) in class folders, of one part."""
    rng = np.random.default_rng(0)
    for i in range(n):
        folder = top / "train" / f"class{i % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (94, 125, 3), dtype=np.uint8)
        Image.fromarray(small).resize((500, 375)).save(folder / f"{i}.jpg", quality=90)
    return top


def loader_sides(
    top: Path, size: int, batch: int, workers: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    """An epoch of the textbook's loader and of crat's, each to the device."""
    steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    folder = datasets.ImageFolder(
        str(top / "train"), transforms.Compose([*steps, transforms.ToTensor()])
    )
    plain = DataLoader(folder, batch, shuffle=True, num_workers=workers)
    files = listed(top, ("train",))
    x = Streamed(top, files["x_train"], size, device, workers)
    y = torch.from_numpy(files["y_train"]).long().to(device)
    generator = torch.Generator(device).manual_seed(0)

    def textbook() -> None:
        for images, labels in plain:
            images.to(device), labels.to(device)

    def crat() -> None:
        for _ in Batches(x, y, batch, generator, augment="resized_crop"):
            pass

    return {"textbook": textbook, "crat": crat}


def run(
    sizes: Sequence[int], model: str, images: int, batch: int, steps: int, turns: int
) -> pd.DataFrame:
    """Columns size, work, textbook, crat (images a second) and ratio; a row for each work."""
    at_least_one(images=images, batch=batch, steps=steps, turns=turns)
    device = pick_device()
    workers = usual_workers()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        top = made(Path(scratch), images)
        for size in sizes:
            sides = loader_sides(top, size, batch, workers, device)
            rate = compared(sides, images, turns, device)
            rows.append([size, f"loader, {workers} workers", *rate])
            step = our_step("pgd_at", model, batch, steps, device, image_shape=(3, size, size))
            seconds(step, device)
            took = min(seconds(step, device) for _ in range(turns))
            rows.append([size, f"{model}, PGD-{steps} AT step", None, round(batch / took, 1), None])
    return pd.DataFrame(rows, columns=["size", "work", "textbook", "crat", "ratio"])


if __name__ == "__main__":
    command = parser(__doc__)
    command.add_argument("--size", type=int, nargs="+", default=[64, 224], help="of the sides")
    command.add_argument("--model", default="resnet50", help=", ".join(MODELS))
    command.add_argument("--images", type=int, default=300, help="made JPEGs")
    command.add_argument("--batch", type=int, default=16, help="images in the batch")
    command.add_argument("--steps", type=int, default=10, help="steps of PGD")
    command.add_argument("--turns", type=int, default=3, help="measurements, of which the median")
    a = command.parse_args()
    print(f"{describe(pick_device())}, torch {torch.__version__}")
    measured(
        command,
        lambda: print(markdown(run(a.size, a.model, a.images, a.batch, a.steps, a.turns))),
    )

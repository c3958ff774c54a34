"""The authors' corruptions beside ours, on the same images and random numbers.

    # FOLDER is a clone of hendrycks/robustness at CODE's commit
    python benchmarks/corruptions_parity.py --theirs FOLDER

It needs scikit-image and OpenCV beside crat, and wand with ImageMagick's libraries for motion blur
and snow (without them the two are left out, by name). Their functions run as they stand; replaced
are only a keyword that scikit-image renamed, names that numpy took back, and numpy's random numbers
by those that ours draws. The result, written to corruptions_parity.json, holds for each corruption
and severity the share of values that are equal at 8 bits, the largest difference in 255ths, and
values of theirs at PROBES places, to which tests/data/test_corruptions.py holds ours.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from crat.attacks import PerImage
from crat.corruptions import KINDS, SEVERITIES, Corruption

SCRIPT = "ImageNet-C/create_c/make_cifar_c.py"
CODE = f"hendrycks/robustness@8190fe329f5f072a06e3a2aea02bb5dda69aed9f ({SCRIPT})"
RESULT = Path(__file__).with_suffix(".json")
SEED = 11
IMAGES = 12
PROBES = 60
MAGICK = ("motion_blur", "snow")  # what needs wand


def images() -> Tensor:
    """(IMAGES, 3, 32, 32) uint8: coloured waves with an edge, one image of noise, one grey."""
    g = torch.Generator().manual_seed(3)
    down, right = torch.meshgrid(*2 * (torch.arange(32) / 32,), indexing="ij")
    wave = torch.rand(IMAGES, 3, 4, 3, generator=g) * torch.tensor([4.0, 4.0, 6.3])
    phase = (
        wave[..., 0, None, None] * down
        + wave[..., 1, None, None] * right
        + wave[..., 2, None, None]
    )
    x = 0.5 + 0.15 * torch.sin(6.3 * phase).sum(2)
    x[:, :, 8:20, 18:28] = torch.rand(IMAGES, 3, 1, 1, generator=g)
    x = x + 0.04 * torch.randn(x.shape, generator=g)
    x[-2], x[-1] = torch.rand(3, 32, 32, generator=g), x[-1, :1]
    return (x.clamp(0, 1) * 255).byte()


def ours(name: str, severity: int, frost: str | None = None) -> Tensor:
    """(IMAGES, 3, 32, 32) uint8 by crat."""
    x = images().float() / 255
    found = Corruption(name, severity, frost if name == "frost" else None)(
        None, x, generator=PerImage(SEED, torch.arange(IMAGES))
    )
    return (found * 255).round().byte()


class Numbers:
    """numpy.random for one image: crat's stream, in the order in which the authors' code draws."""

    def __init__(self, image: int) -> None:
        self.stream = PerImage(SEED, torch.tensor([image]))
        self.shifts: Iterator[tuple[int, int]] = iter(())

    def _draw(self, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        planes = (shape[2], *shape[:2]) if len(shape) == 3 else shape  # theirs have channels last
        drawn = getattr(self.stream, kind)(*planes)[0].double().numpy()
        return drawn.transpose(1, 2, 0) if len(shape) == 3 else drawn

    def normal(self, loc=0.0, scale=1.0, size=()) -> np.ndarray:
        return loc + scale * self._draw("normal", tuple(size))

    def uniform(self, low, high, size=()) -> np.ndarray:
        return low + (high - low) * self._draw("uniform", tuple(size))

    def poisson(self, mean) -> np.ndarray:
        from scipy.stats import poisson

        return np.maximum(poisson.ppf(self._draw("uniform", mean.shape), mean), 0)

    def random(self, shape) -> np.ndarray:
        return self._draw("uniform", tuple(shape))

    def randint(self, low, high=None, size=None):
        if size is None:
            low, high = (0, low) if high is None else (low, high)
            return low + int(self._draw("uniform", ()) * (high - low))
        shift = next(
            self.shifts, None
        )  # glass blur: (dx, dy) of each pixel from the last to the first
        if shift is None:
            dx, dy = ((self._draw("uniform", (32, 32)) * 2).astype(int) - 1 for _ in range(2))
            self.shifts = iter(
                [(dx[h, w], dy[h, w]) for h in range(31, 1, -1) for w in range(31, 1, -1)]
            )
            shift = next(self.shifts)
        return shift


def their_module(folder: Path) -> ModuleType:
    """Their script up to where it opens the data set, as a module."""
    from skimage import filters

    def gaussian(image, sigma, multichannel=False, **settings):
        return filters.gaussian(image, sigma, channel_axis=-1 if multichannel else None, **settings)

    text = (folder / SCRIPT).read_text()
    module = ModuleType("make_cifar_c")
    numpy = SimpleNamespace(**vars(np) | {"float_": np.float64, "fromstring": np.frombuffer})
    try:
        import wand.api  # noqa: F401
    except ImportError:
        empty = {
            name: mock.MagicMock() for name in ("wand", "wand.image", "wand.api", "wand.color")
        }
        empty["wand.image"].Image = object
        sys.modules.update(empty)
    exec(compile(text.partition("import collections")[0], "make_cifar_c.py", "exec"), vars(module))
    vars(module).update(gaussian=gaussian, np=numpy)
    return module


def theirs(module: ModuleType, name: str, severity: int) -> Tensor:
    """(IMAGES, 3, 32, 32) uint8 by the authors' function."""
    from PIL import Image

    done = []
    for i, pixels in enumerate(images().permute(0, 2, 3, 1).numpy()):
        module.np.random = numbers = Numbers(i)
        with mock.patch.object(np.random, "default_rng", lambda *_, n=numbers: n):
            done.append(np.uint8(getattr(module, name)(Image.fromarray(pixels), severity)))
    return torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2)


@contextmanager
def panes(folder: Path) -> Iterator[str]:
    """Within, their folder of frost images; gives one with the five images that their code uses."""
    source = folder / "ImageNet-C/create_c"
    with tempfile.TemporaryDirectory() as five, chdir(source):
        for image in sorted(Path.cwd().glob("frost*"))[:5]:
            os.symlink(image, Path(five, image.name))
        yield five


def probes(found: Tensor) -> list[int]:
    flat = found.flatten()
    return flat[torch.linspace(0, len(flat) - 1, PROBES).long()].tolist()


def record(folder: Path) -> dict[str, dict]:
    """Their values and the differences, by "name-severity"."""
    module, found = their_module(folder), {}
    runs_magick = not isinstance(sys.modules["wand.api"], mock.MagicMock)
    with panes(folder) as frost:
        for name in KINDS:
            for severity in SEVERITIES if runs_magick or name not in MAGICK else ():
                a, b = theirs(module, name, severity).int(), ours(name, severity, frost).int()
                off = (a - b).abs()
                equal = round((off == 0).double().mean().item(), 6)
                largest = int(off.max())
                found[f"{name}-{severity}"] = {
                    "equal": equal,
                    "largest": largest,
                    "probes": probes(a),
                }
                print(f"{name}-{severity}: {equal:.4f} equal, at most {largest} off")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--theirs", type=Path, required=True, metavar="FOLDER")
    found = record(parser.parse_args().theirs.resolve())
    import cv2
    import PIL
    import scipy
    import skimage

    versions: dict[str, Callable | str] = {
        m.__name__: m.__version__ for m in (np, scipy, skimage, cv2, PIL)
    }
    told = {
        "code": CODE,
        "versions": versions,
        "left_out": [n for n in KINDS if f"{n}-1" not in found],
    }
    lines = ",\n".join(f'"{name}": {json.dumps(values)}' for name, values in found.items())
    RESULT.write_text(f'{json.dumps(told)[:-1]},\n"found": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()

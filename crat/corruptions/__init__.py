"""The common corruptions of Hendrycks and Dietterich 2019, with the constants of CIFAR-10-C.

arXiv:1903.12261. `Corruption("fog", 3)` is called like an attack and stands in a battery like one:
`evaluate(run, corruption_battery())`. Code followed:
hendrycks/robustness@8190fe329f5f072a06e3a2aea02bb5dda69aed9f (ImageNet-C/create_c/make_cifar_c.py).
benchmarks/corruptions_parity.py runs it beside ours, with the same random numbers. On its images
the noises, motion and defocus and glass and Gaussian blur, frost, fog, contrast, pixelate and JPEG
are equal in every value; the others differ by one 255th here and there (float32, or their way
through hue, falls on the other side of a whole number): zoom blur and elastic transform in at most
0.3 % of the values (elastic: a few by two), snow in 0.4 %, brightness in 0.5 %, saturate in 3 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crat.analysis.mce import CORRUPTIONS
from crat.corruptions import blur, digital, noise, weather
from crat.corruptions.tools import Draws
from crat.corruptions.weather import CorruptionError
from crat.device import finest
from crat.names import unknown
from crat.store import fingerprint

__all__ = ["CORRUPTIONS", "EXTRAS", "Corruption", "CorruptionError", "corruption_battery"]

SEVERITIES = range(1, 6)

# name: the function and its constants at severity 1 to 5, CIFAR-10-C's
KINDS: dict[str, tuple[Callable[..., Tensor], tuple[tuple, ...]]] = {
    "gaussian_noise": (noise.gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))),
    "shot_noise": (noise.shot_noise, ((500,), (250,), (100,), (75,), (50,))),
    "impulse_noise": (noise.impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "defocus_blur": (blur.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (blur.glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion_blur": (blur.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (blur.zoom_blur, ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,))),
    "snow": (
        weather.snow,
        (
            ((0.1, 0.2), 1, 0.6, (8, 3), 0.95),
            ((0.1, 0.2), 1, 0.5, (10, 4), 0.9),
            ((0.15, 0.3), 1.75, 0.55, (10, 4), 0.9),
            ((0.25, 0.3), 2.25, 0.6, (12, 6), 0.85),
            ((0.3, 0.3), 1.25, 0.65, (14, 12), 0.8),
        ),
    ),
    "frost": (weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (weather.brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "contrast": (digital.contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "elastic_transform": (
        digital.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (digital.pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
    "jpeg_compression": (digital.jpeg_compression, ((80,), (65,), (58,), (50,), (40,))),
    "speckle_noise": (noise.speckle_noise, ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,))),
    "gaussian_blur": (blur.gaussian_blur, ((0.4,), (0.6,), (0.7,), (0.8,), (1,))),
    "saturate": (digital.saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}
EXTRAS = tuple(name for name in KINDS if name not in CORRUPTIONS)


@dataclass(frozen=True)
class Corruption:
    """One corruption at one severity, called like an attack.

    `Corruption("fog", 3)(model, x, y) -> x_corrupted`. name: one of CORRUPTIONS (the benchmark's
    fifteen) or EXTRAS (of its four validation corruptions, all but spatter, which is made of
    OpenCV's edges and distance transform). severity: 1 to 5. frost: the folder of images that
    "frost" needs; the repr names what is in it, not where it is. Raises CorruptionError where one
    of them is wrong.

    Constants in pixels (blur radii, the motion blur's length) are CIFAR-10-C's for images of any
    size; on 28-pixel images they are those very numbers of pixels. Other sizes than 32, and grey
    images, are our extension of it.
    """

    name: str
    severity: int
    frost: str | None = None

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise CorruptionError(unknown("corruption", self.name, KINDS))
        if isinstance(self.severity, bool) or self.severity not in SEVERITIES:
            raise CorruptionError(f"severity is 1 to 5, not {self.severity!r}")
        if self.name == "frost" and self.frost is None:
            raise CorruptionError(
                "frost needs images of frosted glass: Corruption('frost', severity, frost='FOLDER')"
            )
        if self.frost is not None:
            weather.frost_panes(self.frost)

    def __repr__(self) -> str:
        images = ""
        if self.frost is not None:
            panes = weather.frost_panes(self.frost)
            named = {str(i): pane for i, pane in enumerate(panes)}
            images = f", frost={fingerprint(named)!r}"
        return f"Corruption(name={self.name!r}, severity={self.severity}{images})"

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        x: Tensor,
        y: Tensor | None = None,
        *,
        eps: Any = None,
        generator: Any = None,
    ) -> Tensor:
        """x (N, C, H, W) float in [0, 1] -> the corrupted images, 8 bits deep, in x's dtype.

        x is rounded to 8 bits first, and the result cut off to 8 bits (255 v rounded down), as the
        published images are. model, y and eps are not read. generator: per-image streams
        (crat.attacks.PerImage), a torch.Generator or None for seed 0: see tools.Draws. Computed in
        float64, on the CPU where x's device has none.
        """
        inside = not x.numel() or -1e-5 <= x.min() <= x.max() <= 1 + 1e-5
        if not x.is_floating_point() or x.ndim != 4 or not inside:
            raise CorruptionError(
                f"images are floats (N, C, H, W) in [0, 1], not {x.dtype} of shape {tuple(x.shape)}"
            )
        function, constants = KINDS[self.name]
        place = x.device if finest(x.device) == torch.float64 else torch.device("cpu")
        whole = (x.to(place).double() * 255).round().contiguous() / 255
        extra = {"folder": self.frost} if self.name == "frost" else {}
        found = function(whole, Draws(whole, generator), *constants[self.severity - 1], **extra)
        levels = (found.clamp(0, 1) * 255).floor()
        return (levels.to(torch.promote_types(x.dtype, torch.float32)) / 255).to(x)


def corruption_battery(
    names: Iterable[str] | None = None,
    severities: Iterable[int] = SEVERITIES,
    frost: str | None = None,
) -> dict[str, Corruption]:
    """The corruptions by name and severity, as `crat.analysis.mce` reads them: "fog-3".

    names: None is all fifteen, or fourteen where there is no folder of images for frost (`frost`);
    `mce` names the corruptions that are left out. Raises CorruptionError for frost by name without
    a folder.
    """
    severities = tuple(severities)
    if names is None:
        names = [n for n in CORRUPTIONS if n != "frost" or frost is not None]
    return {
        f"{n}-{s}": Corruption(n, s, frost if n == "frost" else None)
        for n in names
        for s in severities
    }

"""Progress for people: a bar in a terminal, one line an epoch in a notebook."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from crat.names import one_of
from crat.text import dated

__all__ = ["STYLES", "Progress", "dated", "tell"]

STYLES = ("bar", "line", "none")


def tell(style: str | None, *lines: str) -> None:
    """Lines for people, at once, unless the style is "none"."""
    if Progress(style).style != "none":
        for line in lines:
            print(line, flush=True)


class Progress:
    """Counts images over all epochs. `step` says whether a second has passed, the time for anything that costs."""

    def __init__(self, style: str | None = None, title: str = ""):
        self.style = one_of("progress", style or ("bar" if sys.stderr.isatty() else "line"), STYLES)
        self.title, self.bar, self.epochs, self.last = title, None, 0, time.monotonic()

    def start(self, epochs: int, done: int, images_per_epoch: int) -> None:
        """The whole length, and how much of it an earlier session did."""
        self.epochs = epochs
        if self.style == "bar":
            self.bar = tqdm(
                total=epochs * images_per_epoch, initial=done * images_per_epoch, desc=self.title, unit="img",
                unit_scale=True, dynamic_ncols=True, smoothing=0.05,
            )  # fmt: skip

    def step(self, images: int) -> bool:
        """One batch is done."""
        if self.bar is not None:
            self.bar.update(images)
        now = time.monotonic()
        if now - self.last < 1:
            return False
        self.last = now
        return True

    def epoch(self, done: int, line: str) -> None:
        """One epoch is done."""
        text = f"epoch {done}/{self.epochs}  {line}"
        if self.bar is not None:
            self.bar.write(text)
        elif self.style == "line":
            print(text, flush=True)

    def close(self) -> None:
        """Leaves the bar standing."""
        if self.bar is not None:
            self.bar.close()

"""Progress of a training: a bar in a terminal, a line for each epoch in a notebook."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from crat.names import one_of

STYLES = ("bar", "line", "none")


def tell(style: str | None, *lines: str) -> None:
    """Prints lines at once, unless the style is "none"."""
    if Progress(style).style != "none":
        for line in lines:
            print(line, flush=True)


class Progress:
    """A count of images over all epochs: a bar, a line for each epoch, or silence.

    style: one of STYLES; None: a bar in a terminal, else lines.
    title: the text before the bar.
    Raises ConfigError on an unknown style.
    """

    def __init__(self, style: str | None = None, title: str = ""):
        usual = "bar" if sys.stderr.isatty() else "line"
        self.style = one_of("progress", style or usual, STYLES)
        self.title = title
        self.bar: tqdm | None = None
        self.epochs = 0
        self.last = time.monotonic()

    def start(self, epochs: int, done: int, images_per_epoch: int) -> None:
        """Starts the count.

        epochs: of the whole training. done: epochs of earlier sessions.
        """
        self.epochs = epochs
        if self.style == "bar":
            self.bar = tqdm(
                total=epochs * images_per_epoch,
                initial=done * images_per_epoch,
                desc=self.title,
                unit="img",
                unit_scale=True,
                dynamic_ncols=True,
                smoothing=0.05,
            )

    def step(self, images: int) -> bool:
        """Adds a batch to the count; returns True about once a second, for costly checks."""
        if self.bar is not None:
            self.bar.update(images)
        now = time.monotonic()
        if now - self.last < 1:
            return False
        self.last = now
        return True

    def epoch(self, done: int, line: str) -> None:
        """Shows the line of a finished epoch; done: the epochs so far."""
        text = f"epoch {done}/{self.epochs}  {line}"
        if self.bar is not None:
            self.bar.write(text)
        elif self.style == "line":
            print(text, flush=True)

    def close(self) -> None:
        """Ends the bar and leaves it on the screen."""
        if self.bar is not None:
            self.bar.close()

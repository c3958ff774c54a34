"""The pictures of a committed notebook, at a third of their size.

A figure has few colours; with a palette of 256 it looks the same. `make notebooks` runs this after
the cells.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from io import BytesIO
from typing import Any

from PIL import Image

COLOURS = 256


def small_pictures(notebook: Any, resources: Any) -> tuple[Any, Any]:
    """nbconvert's step that gives each PNG of the outputs a palette, where it is smaller then."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            pictures = output.get("data", {})
            if "image/png" in pictures:
                pictures["image/png"] = smaller(pictures["image/png"])
    return notebook, resources


def smaller(png: str) -> str:
    """A PNG in base64 with a palette on white ground; as it was where it has one or would grow."""
    image = Image.open(BytesIO(b64decode(png)))
    if image.mode == "P":
        return png
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    content = BytesIO()
    flat.quantize(COLOURS).save(content, "PNG", optimize=True)
    packed = b64encode(content.getvalue()).decode()
    return min(packed, png, key=len)

"""The pictures of a committed notebook: smaller, and the same to the eye."""

from base64 import b64decode, b64encode
from io import BytesIO

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from PIL import Image

from crat import plots
from crat.batch.pictures import small_pictures, smaller


@pytest.fixture
def figure():
    """A figure with a scale of colours, as base64 of its PNG."""
    plots.use_style()
    drawn, ax = plt.subplots(figsize=(4, 3))
    ax.imshow(np.random.default_rng(0).random((20, 20)), cmap="PuOr")
    content = BytesIO()
    drawn.savefig(content, format="png", dpi=110)
    plt.close(drawn)
    return b64encode(content.getvalue()).decode()


def pixels(png):
    return np.asarray(Image.open(BytesIO(b64decode(png))).convert("RGB"), int)


def test_a_figure_is_smaller_and_looks_the_same(figure):
    packed = smaller(figure)
    assert len(packed) < len(figure) / 2
    difference = np.abs(pixels(packed) - pixels(figure))
    assert difference.mean() < 1
    assert difference.max() <= 32


def test_what_has_a_palette_stays(figure):
    packed = smaller(figure)
    assert smaller(packed) == packed


def test_only_pictures_of_a_notebook_are_changed(figure):
    output = nbformat.v4.new_output
    shown = output("display_data", data={"image/png": figure, "text/plain": "<Figure>"})
    told = output("stream", text="words")
    code = nbformat.v4.new_code_cell("1", outputs=[shown, told], metadata={"tags": ["some"]})
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# words"), code])
    before = nbformat.writes(book)
    after, _ = small_pictures(book, {})
    assert nbformat.writes(after) == before.replace(figure, smaller(figure))

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from crat.config import ConfigError
from crat.data.augment import random_crop, random_flip

DTYPES = (torch.uint8, torch.float32)


def images(dtype, n=7, channels=3, height=9, width=12):
    values = torch.randint(
        0, 256, (n, channels, height, width), generator=torch.Generator().manual_seed(1)
    )
    return values.to(dtype)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_crop(x, padding, mode, generator):
    """Image by image: pad, then cut a window."""
    down, right = (
        torch.randint(-padding, padding + 1, (2, len(x), 1), generator=generator)[..., 0] + padding
    )
    out = []
    for image, i, j in zip(x.float(), down.tolist(), right.tolist(), strict=True):
        padded = F.pad(
            image[None], (padding,) * 4, mode="reflect" if mode == "reflect" else "constant"
        )[0]
        out.append(padded[:, i : i + x.shape[2], j : j + x.shape[3]])
    return torch.stack(out).to(x.dtype)


def plain_flip(x, generator):
    flags = torch.randint(2, (len(x), 1, 1, 1), generator=generator).flatten().tolist()
    return torch.stack(
        [image.flip(-1) if flag else image for image, flag in zip(x, flags, strict=True)]
    )


@pytest.mark.parametrize("mode", ["reflect", "zero"])
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(
    padding=st.integers(0, 8),
    seed=st.integers(0, 99),
    channels=st.sampled_from([1, 3]),
    height=st.integers(9, 13),
)
def test_crop_is_the_plain_crop(dtype, mode, padding, seed, channels, height):
    x = images(dtype, channels=channels, height=height)
    out = random_crop(x, padding, mode, seeded(seed))
    assert out.dtype == dtype
    assert torch.equal(out, plain_crop(x, padding, mode, seeded(seed)))


def test_zero_padding_may_be_wider_than_the_image():
    x = images(torch.uint8, n=50, height=4, width=5)
    assert torch.equal(random_crop(x, 8, "zero", seeded()), plain_crop(x, 8, "zero", seeded()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_flip_is_the_plain_flip(dtype):
    x = images(dtype, n=40)
    out = random_flip(x, seeded())
    assert torch.equal(out, plain_flip(x, seeded()))
    flipped = (out != x).flatten(1).any(1).sum().item()
    assert 10 < flipped < 30


def test_every_shift_occurs_and_the_input_is_left_alone():
    x = torch.arange(49, dtype=torch.float32).view(1, 1, 7, 7).repeat(2000, 1, 1, 1)
    before = x.clone()
    centres = random_crop(x, 2, "reflect", seeded())[:, 0, 3, 3]
    shifts = {(int(c) // 7 - 3, int(c) % 7 - 3) for c in centres}
    assert shifts == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}
    assert torch.equal(x, before)


@pytest.mark.parametrize("augment", [lambda x, g: random_crop(x, 4, "reflect", g), random_flip])
def test_the_seed_decides_and_the_global_generator_is_untouched(augment):
    x, state = images(torch.uint8, n=30), torch.random.get_rng_state()
    assert torch.equal(augment(x, seeded(3)), augment(x, seeded(3)))
    assert not torch.equal(augment(x, seeded(3)), augment(x, seeded(4)))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("padding", "mode", "message"),
    [(4, "edge", "known: reflect, zero"), (9, "reflect", "9 x 12 cannot be padded")],
)
def test_what_cannot_be_cropped_is_said(padding, mode, message):
    with pytest.raises(ConfigError, match=message):
        random_crop(images(torch.uint8), padding, mode, seeded())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cpu_generator_augments_alike_on_the_gpu():
    x = images(torch.uint8, n=50)
    crop = random_crop(x.cuda(), 4, "zero", seeded())
    assert torch.equal(crop.cpu(), random_crop(x, 4, "zero", seeded()))
    assert torch.equal(random_flip(x.cuda(), seeded()).cpu(), random_flip(x, seeded()))

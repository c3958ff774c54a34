"""The network that a training starts from, or learns from: of another run, or of a file.

That run is trained in the same store, or published with its network under results/, which is then
read first, as all published files are. The config names it, so that it decides the key; the name of
a file ends with a hash of its weights (`keep_file`). The card has the fingerprint of the weights
that were loaded, as the same run may have other weights on another machine. They are those of its
best epoch, averaged where it averages, with BatchNorm's statistics and the normalisation of the
images. The optimizer, the method's state and the epochs begin anew. A moving average begins with
the loaded weights.

A distillation learns from a teacher, which the config names in the same way (`teacher_of`). Its
fingerprint is in the card, too, and a training that is resumed must find the same. The teacher
answers in eval mode, with float32 weights under the training's autocast. It is not trained, and no
part of the checkpoint.

An augmented head (K + M outputs) may start from a linear one: its first K rows, the classes, are
that head's, and its M other rows are drawn by the seed. Any other head must be of the same kind,
and so must the rest of the network. From a file only, the head may be left out where it has other
classes: the whole head is then drawn by the seed.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from crat import store
from crat.attacks import Decision
from crat.config import DATASETS, ConfigError, ModelConfig, RunConfig
from crat.defenses import method_named
from crat.names import did_you_mean
from crat.nets import models
from crat.nets.models import HEAD_SCALES
from crat.training.run import Run, build_model, card_config


class MissingStart(store.StoreError):
    """The weights to start or to learn from are neither in the store nor published.

    start: the name of their run. problem: the line without its remedy.
    """

    def __init__(self, start: str, problem: str):
        super().__init__(f"{problem}; train it first, `crat train` or train(config)")
        self.start = start
        self.problem = problem


def keep_file(path: str | Path, key: str | None = None, where: store.Store | None = None) -> str:
    """Keeps a file's weights in the store, and returns the name by which `start_from` means them.

        RunConfig().but(model="resnet50", start_from=keep_file("resnet50-11ad3fa6.pth"))

    path: safetensors or .pt, of crat's or torchvision's names (crat.nets.models.load_checkpoint).
    key: which weights, where the file has several.
    Raises models.CheckpointError where the file cannot be read.
    """
    path = Path(path).expanduser()
    weights, _ = models.weights_in(path, key)
    stem = re.sub(r"[^\w.-]+", "-", path.stem)
    name = f"{stem}-{store.fingerprint(weights)}"
    kept = _kept((where or store.Store.usual()).root, name)
    if not kept.exists():
        store.write_tensors(kept, weights)
    return name


def _kept(runs: Path, name: str) -> Path:
    """The path of a file's weights that `keep_file` named."""
    return runs / "starts" / f"{name}.safetensors"


def begin(run: Run, network: nn.Module, published: Path | None = None) -> dict[str, str]:
    """Gives a new network the weights that its run starts from; returns the card's entry on them.

    published: the folder of published runs (None: they are left aside).

    The entry has the start run's name, the epoch ("best") and the fingerprint of its weights; of a
    file its name, the fingerprint, and "head": "drawn" where the file's was left out. It is {}, and
    the network stays as it was drawn, where the config names no start.
    Raises MissingStart; ConfigError where that run's network or images are of another kind;
    models.CheckpointError where a file's network is; and StoreError where files contradict each
    other, or a published one was altered.
    """
    name = run.config.train.start_from
    if not name:
        return {}
    if file := _kept_file(run, name):
        return _begin_with_file(file, network)
    start = _finished_run(run, name, published, "starts from")
    _must_fit(run.config, start)
    trained, fingerprint = _best_network(start, next(network.parameters()).device)
    network.load_state_dict(_fitted(trained.state_dict(), network.state_dict(), start))
    return {"run": start.name, "which": "best", "weights": fingerprint}


def teacher_of(
    run: Run, device: torch.device, published: Path | None = None
) -> tuple[nn.Module | None, dict[str, str]]:
    """A run's teacher on the device, frozen and in eval mode, and the card's entry on it.

    published: the folder of published runs (None: they are left aside).

    A run's teacher may be of another network than the student. The weights of a file are of the
    student's own, for a file does not say its network. The entry has the name and the fingerprint
    of the weights; (None, {}) where the method needs no teacher.
    Raises ConfigError where the method needs one and the config names none, or where it does not
    fit; MissingStart where it is not trained; and as `begin`.
    """
    name = run.config.train.teacher
    method = run.config.train.defense
    if not name:
        if method_named(method).taught:
            raise ConfigError(
                f"{method} learns from a teacher and none is named: train one, such as pgd_at, "
                "and give its name, --teacher RUN or teacher=Run.of(config).name"
            )
        return None, {}
    if run.config.model.head == "augmented":
        raise ConfigError(
            "a teacher answers with one output a class, and the augmented head has more: "
            "choose another head"
        )
    if file := _kept_file(run, name):
        network: nn.Module = build_model(run.config)
        if not models.load_start(network, file):
            raise ConfigError(f"the head of {name} has other classes than the run that it teaches")
        network = network.to(device).to(memory_format=torch.channels_last)
        entry = {"file": name, "weights": store.fingerprint(store.read_tensors(file)[0])}
    else:
        found = _finished_run(run, name, published, "learns from")
        _must_know(run.config, found)
        network, weights = _best_network(found, device)
        entry = {"run": name, "which": "best", "weights": weights}
        if found.config.model.head == "augmented":
            network = Decision(network, slice(len(found.config.data.kept_classes())))
    return network.requires_grad_(False).eval(), entry


def _kept_file(run: Run, name: str) -> Path | None:
    """The file that `keep_file` named so, in the store of a run; None where there is none.

    Raises StoreError where it has other weights than its name says.
    """
    file = _kept(run.folder.parent, name)
    if not file.exists():
        return None
    if not name.endswith(store.fingerprint(store.read_tensors(file)[0])):
        raise store.StoreError(f"{file} has other weights than its name says; remove it")
    return file


def _finished_run(run: Run, name: str, published: Path | None, use: str) -> Run:
    """The run of a name, whose best weights another run uses: published, or in the same store.

    published: the folder of published runs (None: they are left aside).
    use: what the other does, such as "starts from", for the error.
    Raises MissingStart, and StoreError where a file was altered or misnamed.
    """
    return _published_run(run, name, published) or _stored_run(run, name, use)


def _best_network(run: Run, device: torch.device) -> tuple[nn.Module, str]:
    """The network of a run's best epoch in eval mode, and the fingerprint of its weights.

    Raises StoreError where they are not those of the run's card.
    """
    network = run.model("best", device)
    fingerprint = store.fingerprint(network.state_dict())
    if fingerprint != run.card()["best"]["weights"]:
        raise store.StoreError(
            f"the weights of {run.name} are not those of its card; remove {run.folder} to "
            f"train it anew"
        )
    return network, fingerprint


def _begin_with_file(file: Path, network: nn.Module) -> dict[str, str]:
    """Gives a network the weights of a kept file; returns the card's entry."""
    fingerprint = store.fingerprint(store.read_tensors(file)[0])
    with_head = models.load_start(network, file)
    head = {} if with_head else {"head": "drawn"}
    return {"file": file.stem, "weights": fingerprint, **head}


def _published_run(run: Run, name: str, published: Path | None) -> Run | None:
    """The run of a name, where it is published with its network; else None.

    Raises StoreError where a file of it was altered.
    """
    for folder in sorted(published.iterdir()) if published and published.is_dir() else ():
        card = folder / name / "card.json"
        if card.exists():
            config = card_config(store.read_json(card), card.parent)
            start = Run(config, run.folder.parent / name, card.parent)
            return start if start.published_weights() else None
    return None


def _stored_run(run: Run, name: str, use: str) -> Run:
    """The run of a name in the store of another; raises MissingStart, StoreError."""
    runs = run.folder.parent
    path = runs / name / "card.json"
    if not path.exists():
        near = did_you_mean(name, [card.parent.name for card in runs.glob("*/card.json")])
        raise MissingStart(name, f"the weights of {name} are not in {runs}{near.rstrip('?')}")
    card = store.read_json(path)
    start = Run(card_config(card, path.parent), path.parent)
    if card["name"] != name:
        raise store.StoreError(f"{path.parent} holds {card['name']}; give it that name")
    if not start.finished:
        done = f"epoch {card['epochs_done']} of {start.config.train.epochs}"
        raise MissingStart(name, f"{name} is not finished ({done}), so no run {use} it")
    if not (path.parent / "best.safetensors").exists():
        raise MissingStart(name, f"the weights of {name} are missing, so no run {use} it")
    return start


def _must_fit(config: RunConfig, start: Run) -> None:
    """Raises ConfigError where a start run's network or images are of another kind."""
    there, here = _kind(start.config), _kind(config)
    widened = (start.config.model.head, config.model.head) == ("linear", "augmented")
    for what in there:
        if there[what] != here[what] and not (what == "head" and widened):
            raise ConfigError(
                f"{start.name} has another {what} than the run that is to start from it: "
                f"{there[what]}, not {here[what]}"
            )


def _must_know(config: RunConfig, teacher: Run) -> None:
    """Raises ConfigError where a teacher knows other classes or images of another shape."""
    there, here = teacher.config.data, config.data
    classes = (there.kept_classes(), here.kept_classes())
    shapes = (DATASETS[there.name].image_shape, DATASETS[here.name].image_shape)
    problem = ""
    if len(classes[0]) != len(classes[1]):
        problem = f"{len(classes[0])} classes, not {len(classes[1])}"
    elif there.name == here.name and classes[0] != classes[1]:
        problem = f"the classes {classes[0]}, not {classes[1]}"
    elif shapes[0] != shapes[1]:
        problem = f"images of shape {shapes[0]}, not {shapes[1]}"
    if problem:
        raise ConfigError(f"{teacher.name} cannot teach this run: it has {problem}")


def _kind(config: RunConfig) -> dict[str, str]:
    """What a run and its start must share, in words; width and depth show in the weights."""
    return {
        "network": config.model.name,
        "head": _head(config.model),
        "number of classes": str(len(config.data.kept_classes())),
        "shape of the images": str(DATASETS[config.data.name].image_shape),
    }


def _head(model: ModelConfig) -> str:
    """A head with its scale or the number of its outputs besides the classes, in words."""
    if model.head in HEAD_SCALES:
        scale = HEAD_SCALES[model.head] if model.scale is None else model.scale
        return f"{model.head} with scale {scale:g}"
    more = f" with {model.extra_outputs} more outputs" if model.extra_outputs else ""
    return model.head + more


def _fitted(weights: dict[str, Tensor], drawn: dict[str, Tensor], start: Run) -> dict[str, Tensor]:
    """The weights of a start run, in the places of those that a network has drawn.

    Rows of the head beyond the start run's stay as they were drawn.
    Raises ConfigError where the network has another width or depth.
    """
    there, here = _shapes(weights), _shapes(drawn)
    for name in here | there:
        if there.get(name) != here.get(name):
            raise ConfigError(
                f"{start.name} has another width or depth than the run that is to start from it: "
                f"{name} is {there.get(name, 'absent')}, not {here.get(name, 'absent')}"
            )
    fitted = dict(weights)
    for name, rows in weights.items():
        if name.startswith("head.") and rows.ndim:
            fitted[name] = torch.cat([rows, drawn[name][len(rows) :]])
    return fitted


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, without the number of rows in the head."""
    return {
        name: tuple(value.shape)[1 if name.startswith("head.") else 0 :]
        for name, value in tensors.items()
    }

"""Universal perturbations: one delta for all images or one per class, fitted on training images.

Shafahi et al. 2020 also cut each image's loss off from above, lest a few images rule the mean. Here
the gradient of the log-odds is bounded, and the cut is left out; an objective that ends in
`.clamp_max(9)` brings it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from crat import store
from crat.attacks.door import (
    Attack,
    admitted,
    as_images,
    check_images,
    check_labels,
    check_model,
    check_radius,
)
from crat.attacks.frozen import frozen
from crat.attacks.logits import finite_logits, forward_backward
from crat.attacks.noise import Source, source
from crat.attacks.objectives import CrossEntropy, Objective
from crat.attacks.threat import (
    Budget,
    as_budget,
    ascent_direction,
    length,
    one_of,
    per_sample,
)
from crat.attacks.watched import Watched
from crat.data.images import load
from crat.data.streamed import Streamed

COUNTED = ("all", "correct")


def fit_universal(
    model: nn.Module,
    x_train: Tensor | Streamed,
    y_train: Tensor,
    *,
    eps: Budget,
    n_classes: int,
    class_wise: bool,
    step_size: Budget | None = None,
    norm: str = "Linf",
    epochs: int = 5,
    batch_size: int = 128,
    objective: Objective = CrossEntropy(),  # noqa: B008 (frozen, so it can be shared)
    generator: Source = None,
) -> Tensor:
    """The delta that raises the training images' objective: (n_classes or 1, C, H, W).

    x_train: (N, C, H, W) uint8 or float in [0, 1]; or files.
    y_train: (N,) int64.
    eps, step_size: a number, or one per delta (n_classes,); step_size None: eps / 10.
    class_wise: one delta for each class, else one for all.
    generator: draws the order of the images.

    From 0, in every batch, each delta takes one step along the ascent direction ("Linf": the sign,
    "L2": normalised) of the mean objective of its own images, and goes back into its ball; a class
    that is not in the batch leaves its delta as it is.

    Raises ValueError on an unknown norm, labels outside the classes and another number of eps than
    of deltas, and AttackError as every attack does (crat.attacks.door).
    Source: the stochastic ascent of Shafahi et al. 2020 (Universal adversarial training), which
    takes all training images with their labels, those that the model gets wrong included;
    class-wise deltas: Benz et al. 2021 (2104.03000).
    """
    one_of("norm", norm, ("Linf", "L2"))
    check_model(model)
    if x_train.dtype != torch.uint8:
        x_train = check_images(x_train)
    y_train = check_labels(y_train, x_train)
    dtype = torch.promote_types(x_train.dtype, torch.float32)
    shape = (n_classes if class_wise else 1, *x_train.shape[1:])
    delta = torch.zeros(shape, device=x_train.device, dtype=dtype)
    for what, value in (("eps", eps), ("step_size", step_size)):
        if value is not None:
            check_radius(value, norm, delta, what)
    if y_train.numel() and not 0 <= y_train.min() <= y_train.max() < n_classes:
        raise ValueError(
            f"labels are 0 to {n_classes - 1}, not {int(y_train.min())} to {int(y_train.max())}"
        )
    radius = per_sample(eps, delta)
    step = radius / 10 if step_size is None else per_sample(step_size, delta)
    streams, watched = source(generator, y_train), Watched(model, y_train)
    with frozen(model):
        for _ in range(epochs):
            for chosen in streams.uniform().argsort(stable=True).split(batch_size):
                images, labels = as_images(x_train[chosen]), y_train[chosen]
                gradient = delta_gradient(watched, images, labels, delta, objective)
                delta = into_ball(delta + step * ascent_direction(gradient, norm), radius, norm)
            watched.report()
    return delta


@dataclass(frozen=True)
class Universal(Attack):
    """Universal perturbations as an attack: fitted on training images, then added to any images.

    images: the data set, by its name, whose training images the delta is fitted on
        (`fit_universal`, with `epochs`, and `seed` for their order), with the model that is
        attacked: its repr names all that decides its outcomes. A transfer (`crafted_on`) fits on
        the other model. One fit serves all batches, until the model's tensors change.
    x: (N, C, H, W) in [0, 1].
    y: (N,), the true labels, which choose among the deltas with class_wise.

    Raises ValueError where another eps is asked for than the one that it was made for.
    """

    eps: float
    images: str
    class_wise: bool = False
    epochs: int = 5
    seed: int = 0
    _fitted: WeakKeyDictionary[nn.Module, tuple[str, Tensor]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_radius(self.eps, "Linf")

    def delta(self, model: nn.Module, device: torch.device | str = "cpu") -> Tensor:
        """A model's perturbations, (1, C, H, W) or class-wise (K, C, H, W), fitted at first use."""
        state = store.fingerprint(dict(model.named_parameters()) | dict(model.named_buffers()))
        if model not in self._fitted or self._fitted[model][0] != state:
            of = load(self.images).to(device)
            delta = fit_universal(
                model,
                of.x_train,
                of.y_train,
                eps=self.eps,
                n_classes=of.n_classes,
                class_wise=self.class_wise,
                epochs=self.epochs,
                generator=torch.Generator(device).manual_seed(self.seed),
            )
            self._fitted[model] = state, delta
        return self._fitted[model][1]

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: Budget | None = None,
        generator: Source = None,
    ) -> Tensor:
        """The images with their perturbations, (N, C, H, W) within [0, 1].

        generator: unread, as nothing is drawn.
        """
        if eps is not None:
            raise ValueError(
                "a universal perturbation is fitted at one eps: make a Universal of the other"
            )
        x, y, _ = admitted(self, model, x, y, {})
        return apply_universal(x, y, self.delta(model, x.device))


def delta_gradient(
    model: nn.Module, images: Tensor, y: Tensor, delta: Tensor, objective: Objective
) -> Tensor:
    """The gradient of the summed objective in each delta."""
    moved = images + _of(delta, y)
    gradient, _, _ = forward_backward(model, moved.clamp(0, 1).to(images.dtype), y, objective)
    free = (moved >= 0) & (moved <= 1)  # where the box cuts an image, its delta moves nothing
    member = members(y, len(delta)) if len(delta) > 1 else torch.ones_like(y)[None]
    # by a product: adding up by index is not repeatable on a GPU
    with torch.autocast(delta.device.type, enabled=False):
        return (member.to(delta.dtype) @ (gradient * free).to(delta.dtype).flatten(1)).view_as(
            delta
        )


def into_ball(delta: Tensor, eps: Tensor | float, norm: str) -> Tensor:
    """The delta inside its ball: `threat.project` without the box, which bounds images only."""
    if norm == "L2":
        return delta * (eps / length(delta).clamp_min(1e-12)).clamp_max(1.0)
    eps = as_budget(eps, delta)
    return delta.maximum(-eps).minimum(eps)


def _of(delta: Tensor, y: Tensor) -> Tensor:
    """The delta of each image: of its class, or the one for all."""
    return delta if len(delta) == 1 else delta[y]


def members(y: Tensor, n_classes: int) -> Tensor:
    """(n_classes, N) bool: the images of each class."""
    return torch.arange(n_classes, device=y.device)[:, None] == y


def apply_universal(x: Tensor, y: Tensor, delta: Tensor) -> Tensor:
    """The images plus the delta of their class, or the only delta, cut to [0, 1].

    x: (N, C, H, W), uint8 or in [0, 1].
    y: (N,).
    Nothing is checked: training against universal perturbations calls it in every step.
    """
    images = as_images(x)
    return (images + _of(delta, y)).clamp(0, 1).to(images.dtype)


def fooling_rates(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    delta: Tensor,
    n_classes: int,
    *,
    counted: str = "all",
    batch_size: int = 500,
) -> Tensor:
    """The share of each class's images whose float32 prediction delta changes, (n_classes,).

    nan for an absent class.

    x: (N, C, H, W) uint8 or in [0, 1].
    y: (N,).
    delta: (n_classes or 1, C, H, W).
    counted: "all" images of the class, right or wrong, is the fooling rate of Moosavi-Dezfooli et
        al. 2017 (Universal adversarial perturbations, equation 1) and of Benz et al.; "correct":
        only those that the model gets right when clean, so that it is the share of the class's
        accuracy that is lost.

    Raises ValueError on NaN logits, an unknown choice, or deltas for another number of classes.
    """
    one_of("counted", counted, COUNTED)
    check_model(model)
    y = check_labels(y, x)
    if len(delta) not in (1, n_classes):
        raise ValueError(f"delta holds 1 or {n_classes} perturbations, not {len(delta)}")
    clean, moved = [], []
    with frozen(model):
        for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            clean.append(finite_logits(model, check_images(as_images(images))).argmax(1))
            moved.append(finite_logits(model, apply_universal(images, labels, delta)).argmax(1))
    before, after = torch.cat(clean), torch.cat(moved)
    among = before == (before if counted == "all" else y)
    member = members(y, n_classes) & among
    return (member & (before != after)).sum(1) / member.sum(1)

"""Fair-ARD (Yue et al. 2023, NeurIPS): distillation with more weight on classes soon broken."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.noise import Source
from crat.attacks.objectives import KLFrom, Objective, full
from crat.attacks.threat import Budget
from crat.defenses.base import Distilled, Row, Task, Words, checked
from crat.defenses.losses import by_class, soft_divergence
from crat.defenses.stats import ClassStats
from crat.distributed import whole

BASES = ("ard", "rslad")
LEAST, MOST = 5 / 6, 5 / 2  # of a class's weight
ROOM = 1e-5  # Fair-ARD's code: 1 / (kappa + ROOM)


@dataclass
class FairARD(Distilled):
    """min E[w_y D], D a distillation and w_k = clamp(K (1 / kappa_k)^power / sum, 5/6, 5/2).

    kappa_k: the mean number of the attack's iterates, its start among them and its end not, at
        which the images of class k are still right; of the last epoch. In the first w is 1, and a
        class without images keeps its own.
    base "ard" (Goldblum et al. 2020): D = alpha T^2 KL(q_T || p_T(x')) + (1 - alpha) CE(p(x), y)
    with q_T = softmax(z_T(x) / T) of the teacher's logits and p_T likewise; x' ascends the
    cross-entropy. base "rslad" (Zi et al. 2021): D = 5/6 KL(q || p(x')) + 1/6 KL(q || p(x)); x'
    ascends KL(q || p(x')).
    The weights are clamped behind their normalisation, so their mean need not be 1. The paper's
    abstract and the code were read; its formulas were not seen by us.
    """

    base: str = "ard"
    power: float = 2.0  # "beta" in the code
    temperature: float = 30.0  # T of ard
    alpha: float = 1.0  # of ard
    adversarial_share: float = 5 / 6  # of rslad
    per_output: bool = False  # the divergence over K, as in the code: a tenth of the gradient

    paper = "Yue et al. 2023 (NeurIPS); its formulas were not seen by us"
    code = (
        "NISP-official/Fair-ARD@910c8cd17b16457615ac507f36e31bc44e8fb6fa "
        "(Fair-ARD.py, Fair-RSLAD.py)"
    )
    variants = ({"base": "ard"}, {"base": "rslad"})
    rows = (
        Row("power", None, 2.0),
        Row(
            "per_output",
            None,
            True,
            False,
            "KLDivLoss takes the mean over the classes, too; a KL does not depend on their number, "
            "and one learning rate serves all methods",
        ),
        Row(
            "kappa_k divides by",
            None,
            "N / K",
            "its own count",
            "the same for balanced classes",
        ),
        Row("teacher", None, Words("WRN-34-10"), None, "of the run; none is shipped"),
        Row("eps", None, "8/255"),
        Row("step_size", None, "2/255"),
        Row("steps", None, 10),
        Row("model", "resnet18", "resnet18"),
        Row("lr", None, 0.1),
        Row("weight_decay", None, 2e-4, why="one value for all methods that are compared: CFA's"),
        Row("Nesterov's momentum", None, "yes", "no", "one optimizer for all methods"),
        Row("padding", None, "zero", why="CFA's crop, for all methods"),
        Row(
            "best epoch chosen on",
            None,
            "none; every epoch is kept",
            "validation",
            "the test set is for reporting",
        ),
    )

    def prepare(self, task: Task) -> None:
        """Begins with the weights 1. Raises ConfigError where a setting is out of range."""
        super().prepare(task)
        known = ", ".join(BASES)
        checked("base of fair_ard", self.base, lambda b: b in BASES, f"one of {known}")
        checked("power of fair_ard", self.power, lambda p: 0 <= p < inf, "at least 0 and finite")
        checked(
            "temperature of fair_ard", self.temperature, lambda t: 0 < t < inf, "above 0 and finite"
        )
        for name in ("alpha", "adversarial_share"):
            checked(f"{name} of fair_ard", getattr(self, name), lambda a: 0 <= a <= 1, "in [0, 1]")
        self.state["weight"] = torch.ones(task.n_classes)
        # sums of the epoch's iterates that were right; in a row, for it is no value of a class
        self.state["right_iterates"] = torch.zeros(1, task.n_classes)

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """The base's attack; adds the iterates that were right to the state."""
        objective = self.ascended() if self.base == "ard" else KLFrom(self.taught_logits(x))
        counting = Counting(objective, torch.zeros_like(y))
        x_adv = self.ascend(model, x, y, counting, scale, generator)
        sums = self.state["right_iterates"]
        right = by_class(whole(counting.right).to(sums), whole(y), sums.shape[1])
        self.state["right_iterates"] = sums + right
        return x_adv

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """The base's distillation times w_y; the adversarial pass comes first, as in the code.

        Under "ard" with alpha = 1 the clean pass moves BatchNorm's running statistics only.
        """
        taught = self.taught_logits(x)
        adversarial = full(model(x_adv))
        if self.base == "ard":
            clean, losses = self._ard(model, x, y, taught, adversarial)
        else:
            clean = full(model(x))
            share = self.adversarial_share
            losses = share * soft_divergence(taught, adversarial, self.per_output)
            losses = losses + (1 - share) * soft_divergence(taught, clean, self.per_output)
        losses = self.state["weight"].to(losses)[y] * losses
        return losses.mean(), ClassStats.of(y, losses, adversarial, clean)

    def _ard(
        self, model: nn.Module, x: Tensor, y: Tensor, taught: Tensor, adversarial: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The clean logits, and ARD's losses (B,)."""
        t = self.temperature
        divergence = soft_divergence(taught / t, adversarial / t)
        if self.per_output:
            divergence = divergence / taught.shape[1]
        losses = self.alpha * t * t * divergence
        if self.alpha == 1:
            with torch.no_grad():
                return full(model(x)), losses
        clean = full(model(x))
        return clean, losses + (1 - self.alpha) * F.cross_entropy(clean, y, reduction="none")

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """Moves the weights by the epoch's iterates."""
        sums = self.state["right_iterates"]
        present = train.n > 0
        kappa = sums[0] / train.n.clamp_min(1)
        roomy = kappa + ROOM if self.base == "ard" else kappa.clamp_min(ROOM)
        inverse = torch.where(present, roomy**-self.power, 0.0)
        share = inverse / inverse.sum().clamp_min(torch.finfo(inverse.dtype).tiny)
        weight = (present.sum() * share).clamp(LEAST, MOST)
        self.state["weight"] = torch.where(present, weight, self.state["weight"])
        self.state["right_iterates"] = torch.zeros_like(sums)

    @classmethod
    def crafting(cls, **chosen: Any) -> tuple[str, str]:
        """Start and BatchNorm's mode of the base; ARD crafts in train mode, as AT does here."""
        if chosen.get("base", cls.base) == "ard":
            return "uniform", "train"
        return "gaussian", "eval"

    @classmethod
    def table(cls, **chosen: Any) -> tuple[Row, ...]:
        """The rows of the base."""
        if chosen.get("base", cls.base) == "ard":
            return (*ARD_ROWS, *cls.rows)
        return (*RSLAD_ROWS, *cls.rows)


ARD_ROWS = (
    Row("temperature", None, 30.0),
    Row("alpha", None, 1.0),
    Row(
        "batch_norm",
        None,
        "moving",
        why="in the code each attack step moves the running statistics",
    ),
    Row("random start", None, "not cut to [0, 1]", "cut", "an image has no values outside"),
    Row("epochs", None, 200),
    Row(
        "schedule",
        None,
        Words("0.1, 0.01 from epoch 100 of 200"),
        why="the code means a second drop at 150, and sets 0.01 once more there; one for all",
    ),
)
RSLAD_ROWS = (
    Row("adversarial_share", None, 5 / 6),
    Row("epochs", None, 300),
    Row(
        "least kappa_k",
        None,
        "none",
        ROOM,
        "a class that no iterate had right would have an infinite weight",
    ),
)


@dataclass(frozen=True, eq=False)
class Counting:
    """An objective that counts, of each sample, the iterates that are right.

    right: (N,) int64, to which each call adds.
    """

    objective: Objective
    right: Tensor

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """(N, K), (N,) -> (N,)."""
        self.right.add_((logits.detach().argmax(1) == y).long())
        return self.objective(logits, y)

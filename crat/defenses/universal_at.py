"""Universal adversarial training: one delta for all images, or per class (Benz et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat import distributed
from crat.attacks.frozen import frozen
from crat.attacks.noise import Source
from crat.attacks.objectives import full
from crat.attacks.threat import Budget
from crat.attacks.universal import apply_universal, delta_gradient, into_ball
from crat.defenses.base import Defense, Row, Task
from crat.defenses.stats import ClassStats


@dataclass
class UniversalAT(Defense):
    """min E[CE(f(x + delta_y), y)], each delta_k climbing its images' summed loss in every batch.

    delta lasts over the whole training: state["delta"] (K, C, H, W), or (1, C, H, W) with
    class_wise=False, which is the universal adversarial training of Shafahi et al. 2020. Judge it
    by `crat.attacks.universal`: fit_universal, of either kind, and fooling_rates; PGD, an attack on
    each image, is not what it defends against.
    Of Benz et al. the abstract was read, and there is no code: a delta per class is theirs. Ours
    are the start at 0, the sign step of step_size and the clipping to eps (crat.attacks.universal,
    from Shafahi et al.), eval mode while crafting, and that the step comes before the training
    pass.
    """

    class_wise: bool = True

    paper = "Benz et al. 2021 (2104.03000); with one delta for all, Shafahi et al. 2020 (AAAI)"
    start = "none"
    batch_norm = "eval"
    selects_on = "clean"  # PGD on validation, which decides else, is another threat
    rows = (
        Row("class_wise", True, None),
        Row(
            "steps",
            None,
            None,
            1,
            "one step of delta a batch; it gathers them over the whole training",
        ),
        Row(
            "cross-entropy that is ascended",
            None,
            None,
            "its log-odds",
            "as in fit_universal: bounded gradients, so that no few images rule the sum",
        ),
        Row("best epoch chosen on", None, None, "clean validation", "PGD is not the threat"),
    )

    def prepare(self, task: Task) -> None:
        """Begins state["delta"] with zeros."""
        deltas = task.n_classes if self.class_wise else 1
        self.state["delta"] = torch.zeros(deltas, *task.image_shape)

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """Moves the deltas by `steps` ascent steps on this batch and adds them.

        The delta of an absent class stays. Nothing is drawn. With several processes all of them
        take the step of the whole batch.
        """
        eps, step = self.budget(None, scale)
        objective = self.ascended()
        delta = self.state["delta"]
        with frozen(model, self.attack.batch_norm):
            for _ in range(self.attack.steps):
                gradient = delta_gradient(model, x, y, delta, objective)
                (gradient,) = distributed.sum_over_ranks([gradient])
                delta.copy_(into_ball(delta + step * gradient.sign(), eps, "Linf"))
        return apply_universal(x, y, delta)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Mean cross-entropy of the perturbed images."""
        logits = full(model(x_adv))
        losses = F.cross_entropy(logits, y, reduction="none")
        return losses.mean(), ClassStats.of(y, losses, logits)

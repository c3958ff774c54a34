"""FAIR-TAT (Medi, Jung and Keuper 2025, WACV): targeted adversarial training.

Targets are drawn by how often a class is the wrong answer under attack.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.noise import Drawing, Source, drawing, uniform
from crat.attacks.objectives import Toward, full
from crat.attacks.threat import Budget
from crat.defenses.base import Defense, Row, Task, Words, checked
from crat.defenses.stats import ClassStats


@dataclass
class FairTAT(Defense):
    """CE(f(x'), y), x' within eps_y of x descending CE(f(x'), t), t drawn among the classes but y.

    P(t) is proportional to exp(sharpness c_t), c (K,) the class false positive scores of the last
    epoch: of all its training adversarial examples that were wrong, the share that was taken for
    class t. In the first epoch all targets are alike.
    eps_k = (lambda_r + r_k) eps from the second epoch on, r_k the share of class k's training
    adversarial examples that were right: CFA's margin, without a share for adaptive_eps=False.
    A class that no batch showed keeps its margin; an epoch without errors keeps the scores.
    c sums to 1, so that with the code's sharpness of 2 no target is more than e^2 = 7.4 times as
    probable as another, and where the scores lie between 0.05 and 0.2, 1.35 times.
    """

    sharpness: float = 2.0  # 0: uniform targets, the code's --random_target
    adaptive_eps: bool = True
    lambda_r: float = 0.5
    # the code's clean passes before and behind each step, which move the running statistics
    released_passes: bool = False

    paper = "Medi et al. 2025 (WACV, arXiv 2410.23142): its abstract and two figures' captions"
    code = (
        "TejaswiniMedi/FAIR-TAT@0154dc3b4a719482d09eaa163fece2cc9ee00d03 (target_train_new.py; "
        "Targeted_attack.py at 01888696b93b494f9dcd86616562fb13255a9299), read in single files"
    )
    rows = (
        Row("sharpness", None, 2.0, why="targets by --random_target are sharpness 0"),
        Row(
            "adaptive_eps",
            None,
            True,
            why="--adaptive_eps G-rob, the README's; without the option the code's targets stay "
            "uniform, too. Its other five scales are not here",
        ),
        Row("lambda_r", None, 0.5),
        Row(
            "r_k divides by",
            None,
            "N / K",
            "its own count",
            "the same for balanced classes",
        ),
        Row(
            "target that is the label",
            None,
            "drawn again",
            "never drawn",
            "the same distribution, without a wait for the device",
        ),
        Row(
            "base",
            "AT, TRADES, FAT",
            "AT",
            "AT",
            "the README names all three; the losses of TRADES and FAT are commented out, and their "
            "call fails",
        ),
        Row(
            "batch_norm",
            None,
            "moving",
            why="in the code each attack step moves the running statistics",
        ),
        Row(
            "released_passes",
            None,
            True,
            why="running statistics there are mostly clean; nothing else changes",
        ),
        Row(
            "average",
            None,
            Words("none, EMA and FAWA are all kept, decay 0.85, threshold 0.2"),
            Words("none"),
            "which of the three the paper tells was not seen; average=fawa is CFA's",
        ),
        Row("eps", None, "8/255"),
        Row("step_size", None, "2/255", why="the same for every class"),
        Row("steps", None, 10, why="written into the loop, whatever --attack-iters says"),
        Row("model", None, "preact_resnet18", why="a WRN and a CaiT are the code's other choices"),
        Row("split", None, "first"),
        Row("valid_per_class", None, 100),
        Row("epochs", None, 200),
        Row("lr", None, 0.1),
        Row("schedule", None, "piecewise"),
        Row("weight_decay", None, 5e-4),
        Row("batch_size", None, 128),
        Row(
            "best epoch chosen on",
            None,
            "test",
            "validation",
            "the test set is for reporting",
        ),
    )

    def prepare(self, task: Task) -> None:
        """Begins with the common eps and equal scores.

        Raises ConfigError on a setting out of range, or where there is one class only.
        """
        checked("sharpness of fair_tat", self.sharpness, lambda s: 0 <= s < 1e3, "in [0, 1000)")
        checked("lambda_r of fair_tat", self.lambda_r, lambda v: v >= 0, "at least 0")
        checked("classes of fair_tat", task.n_classes, lambda k: k > 1, "more than one")
        k = task.n_classes
        self.state["false_positive_score"] = torch.full((k,), 1 / k)
        self.state["eps"] = torch.full((k,), self.attack.eps)

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """PGD towards drawn targets, from a uniform start within eps_y."""
        draws = drawing(generator, x)
        eps, step = self.budget(y, scale)
        towards = Toward(self.targets(x, y, draws), self.ascended())
        return self.attack.perturb(
            model, x, y, eps=eps, step_size=step, objective=towards, generator=draws
        )

    def targets(self, x: Tensor, y: Tensor, draws: Drawing) -> Tensor:
        """A class (B,) for each image that is not its own, by the scores (Gumbel's maximum)."""
        score = self.sharpness * self.state["false_positive_score"].to(x)
        u = uniform((len(y), len(score)), x, draws).clamp_min(torch.finfo(x.dtype).tiny)
        drawn = score - (-u.log()).log()
        return drawn.scatter(1, y[:, None], float("-inf")).argmax(1)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """Mean cross-entropy of the adversarial images, by their own labels."""
        logits = full(model(x_adv))
        self._clean_pass(model, x)
        losses = F.cross_entropy(logits, y, reduction="none")
        return losses.mean(), ClassStats.of(y, losses, logits)

    def after_step(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """The code counts its clean accuracy by one more pass in train mode."""
        self._clean_pass(model, x)

    def _clean_pass(self, model: nn.Module, x: Tensor) -> None:
        if self.released_passes:
            with torch.no_grad():
                model(x)

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """The scores and margins of the next epoch."""
        errors = train.confusion - train.confusion.diagonal().diag()
        taken_for, wrong = errors.sum(0), errors.sum()
        score = self.state["false_positive_score"]
        found = (taken_for / wrong.clamp_min(1)).to(score)
        self.state["false_positive_score"] = torch.where(wrong > 0, found, score)
        if self.adaptive_eps:
            eps = (self.lambda_r + train.accuracy("robust")) * self.attack.eps
            self.state["eps"] = torch.where(train.n > 0, eps, self.state["eps"])

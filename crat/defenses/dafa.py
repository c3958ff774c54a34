"""DAFA (Lee et al. 2024, ICLR): weights and margins by which similar classes trade robustness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.frozen import frozen
from crat.attacks.logits import forward_backward
from crat.attacks.noise import Source, drawing
from crat.attacks.objectives import full, kl_divergence
from crat.attacks.threat import Budget, gaussian_start, per_sample
from crat.defenses.base import Policy, Row, Task, Words, checked
from crat.defenses.stats import ClassStats

WARMUP, EPOCHS = 70, 110  # the released code: class-wise behind epoch 70 of 110


@dataclass
class DAFA(Policy):
    """After a warm-up on the base, class k trains within W_k eps (step W_k a), its CE times W_k.

    W comes once, from the training adversarial examples of the warm-up's last epoch
    (`class_weights`). On TRADES the clean cross-entropy is weighted, the KL is not: mean[W_y
    CE(f(x), y)] + beta mean[KL]. As in the authors' code the adversarial pass comes before the
    clean one, which BatchNorm's running statistics see.
    """

    base: str = "trades"
    lam: float = 1.0  # lambda; the code advises 1.5 for CIFAR-100 and STL-10
    beta: float = 6.0
    warmup: int | None = None  # epochs; None: the code's 70 of 110, in proportion
    # of two equals both lose weight, as in the code; else neither (Algorithm 2)
    ties_lose: bool = False
    # on pgd_at, the code's madry_loss: a second, common step and margin an iteration
    unweighted_step: bool = False

    bases = ("trades", "pgd_at")
    paper = "Lee et al. 2024 (ICLR), Algorithms 1 and 2"
    code = "rucy74/DAFA@c60ba8352d712c6108480a2ce7e7fa7abf30b48a (losses.py, train.py, utils.py)"
    start = "gaussian"
    batch_norm = "eval"

    def prepare(self, task: Task) -> None:
        """Begins with W = 1. Raises ConfigError on an unknown base or a setting out of range."""
        super().prepare(task)
        checked("lam of dafa", self.lam, lambda v: v >= 0, "at least 0")
        checked(
            "warmup of dafa",
            self.warmup,
            lambda w: w is None or w >= 1,
            "at least 1, for W needs an epoch",
        )
        self.last = self.warmup or max(1, round(WARMUP * task.epochs / EPOCHS))
        self.state["epoch"] = torch.zeros((), dtype=torch.long)
        self.take(torch.ones(task.n_classes))

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """The base's attack, its margin and its step times W_y, from x + 0.001 N(0, 1)."""
        if self.base == "pgd_at" and self.unweighted_step:
            return self._twice(model, x, y, scale, generator)
        return super().craft(model, x, y, scale=scale, generator=generator)

    def _twice(
        self, model: nn.Module, x: Tensor, y: Tensor, scale: Budget, generator: Source
    ) -> Tensor:
        """madry_loss: two steps along each gradient, the second into the ball of the common eps."""
        a = self.attack
        eps, step = (per_sample(value, x) for value in self.budget(y, scale))
        common_eps, common_step = self.budget(None, scale)
        x_adv = gaussian_start(x, 0.001, drawing(generator, x))
        with frozen(model, a.batch_norm):
            for _ in range(a.steps):
                sign = forward_backward(model, x_adv, y, self.ascended())[0].sign()
                x_adv = (x_adv + step * sign).maximum(x - eps).minimum(x + eps) + common_step * sign
                x_adv = x_adv.maximum(x - common_eps).minimum(x + common_eps).clamp(0, 1)
        return x_adv

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """The base's loss, its cross-entropy weighted by W_y."""
        adversarial = full(model(x_adv))
        weight = self.state["weight"][y]
        if self.base == "pgd_at":
            losses = weight * F.cross_entropy(adversarial, y, reduction="none")
            return losses.mean(), ClassStats.of(y, losses, adversarial)
        clean = full(model(x))
        losses = weight * F.cross_entropy(clean, y, reduction="none")
        losses = losses + self.beta * kl_divergence(clean, adversarial)
        return losses.mean(), ClassStats.of(y, losses, adversarial, clean)

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """W at the end of the warm-up, and never again.

        A class that no batch showed stays at 1 and moves no other.
        """
        self.state["epoch"] += 1
        if self.state["epoch"] == self.last:
            similarity = train.soft_confusion / train.n.clamp_min(1)[:, None]
            self.take(class_weights(similarity, train.n > 0, self.lam, self.ties_lose))

    def take(self, weight: Tensor) -> None:
        """Sets W (K,), and with it the margins and steps."""
        self.state["weight"] = weight
        self.state["eps"] = weight * self.attack.eps
        self.state["step_size"] = weight * self.attack.step_size

    @classmethod
    def table(cls, **chosen: Any) -> tuple[Row, ...]:
        """The second step exists on the base pgd_at only."""
        at = chosen.get("base", cls.base) == "pgd_at"
        return (
            Row(
                "base",
                None,
                "trades",
                why="the released scripts'; paper: only its two algorithms were seen",
            ),
            Row("lam", None, 1.0, why="CIFAR-10's; 1.5 for CIFAR-100 and STL-10"),
            Row("beta", None, 6.0),
            Row(
                "warmup",
                None,
                WARMUP,
                Words("70 of 110, in proportion"),
                "a proportion serves short schedules, too",
            ),
            Row(
                "ties_lose",
                False,
                True,
                False,
                "Algorithm 2: only the more robust class of two gives",
            ),
            Row(
                "unweighted_step",
                False,
                at,
                False,
                "in the code a common step and the common margin follow each class-wise one, so no "
                "class trains beyond eps, and every step is followed by another",
            ),
            Row("eps", None, "0.031"),
            Row("step_size", None, "0.007"),
            Row("steps", None, 10),
            Row(
                "model", None, "resnet18", why="the released scripts'; the code also has WRN-28-10"
            ),
            Row("epochs", None, EPOCHS),
            Row(
                "rate falls to a tenth",
                None,
                "behind epoch 99, again behind 104 of 110",
                "the run's schedule",
                "one schedule for all methods",
            ),
            Row("lr", None, 0.1),
            Row("weight_decay", None, 5e-4),
            Row("Nesterov's momentum", None, "on", "off", "one optimizer for all methods"),
            Row("padding", None, "zero", why="CFA's crop, for all methods"),
            Row(
                "W below 0",
                None,
                "is used",
                "0",
                "a negative margin is none; it takes lambda far above 1.5",
            ),
        )


def class_weights(similarity: Tensor, seen: Tensor, lam: float, ties_lose: bool = False) -> Tensor:
    """W (K,), at least 0, from S (K, K), S_ij the mean of p_j over class i's adversarial examples.

    W_i = 1 + lam sum_{j != i} (S_ij S_jj where S_ii < S_jj, -S_ji S_ii where S_ii > S_jj).

    seen: (K,), the classes that had examples; the others stay at 1 and count for none.
    ties_lose: the second case covers equality, as in the code.

    Source: Lee et al. 2024, Algorithm 2.
    """
    own = similarity.diagonal()
    weaker = own[:, None] < own[None, :]
    stronger = ~weaker if ties_lose else weaker.T
    pairs = weaker * similarity * own[None, :] - stronger * similarity.T * own[:, None]
    both = seen[:, None] & seen[None, :] & ~torch.eye(len(own), dtype=torch.bool, device=own.device)
    return (1 + lam * (pairs * both).sum(1)).clamp_min(0)

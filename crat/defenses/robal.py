"""RoBal (Wu et al. 2021): cosine logits, class-aware margins in training, calibrated answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.decision import LogitBias
from crat.attacks.frozen import frozen
from crat.attacks.gradient import ascend
from crat.attacks.noise import Source, drawing, uniform
from crat.attacks.objectives import Objective, full, kl_divergence, true_logit
from crat.attacks.threat import Budget
from crat.config import ConfigError
from crat.defenses.base import Defense, Row, Task, Words, checked
from crat.defenses.stats import ClassStats
from crat.nets.models import CosineHead, plain


@dataclass
class RoBal(Defense):
    """min E[CE(u, y)] + beta KL, u_k = s cos_k(x') - [k = y] margin_k + tau_b log pi_k.

    margin_k = s m + tau_m log(n_k / n_min).
    pi = n / N are the class frequencies; a class without images counts as one. s is the head's
    scale (10 in the configurations). In the code the classifier gives cos, and only this loss
    multiplies by s: its KL(p(x) || p(x')) is of the softmax of cos, nearly flat, hence about 1 /
    s^2 of what `kl_scaled` takes, the softmax of s cos that answers; and its attack ascends the
    loss of cos, a temperature of s, from x + eps U(0, 1), half of the ball, not cut to [0, 1]
    (`released_attack`). Here the attack sees s cos, from a uniform start.
    gamma: the code divides the weights by ||w_k|| + gamma, so that cos_k is what it was times
        ||w_k|| / (||w_k|| + gamma) in loss and attack. The network itself gives s cos; judge a run
        with gamma by `calibrated`.
    The defaults are "N" for CIFAR-10 of the configurations; "R" has tau_m 0.3, tau_b 1.5.
    CIFAR-100: tau_b and tau_m 0 and, for N, m 0.2, beta 3; for R, m 0.3, beta 6, gamma 1/16.
    """

    m: float = 0.1
    tau_m: float = 0.0
    tau_b: float = 1.2
    beta: float = 6.0
    gamma: float = 0.0
    kl_scaled: bool = False
    released_attack: bool = False
    # two forward passes more, which move BatchNorm's running statistics
    released_passes: bool = False

    paper = "Wu et al. 2021 (CVPR); its formulas were not seen by us, the configurations were"
    code = (
        "wutong16/Adversarial_Long-Tail@ab2f3a792aede2bd2a3e57657c787ec542165be1 "
        "(methods/train_modes.py: add_reg_train, methods/losses_inclass.py: MultiMarginLoss, "
        "models/classifiers/basic_classifiers.py, configs)"
    )
    head = "hypersphere"
    batch_norm = "eval"
    rows = (
        Row("m", None, 0.1),
        Row("tau_m", None, 0.0),
        Row("tau_b", None, 1.2),
        Row("beta", None, 6.0),
        Row("scale", None, 10.0, 10.0),
        Row(
            "gamma",
            None,
            1 / 32,
            why="with it the logits are no cosines and depend on the weights' lengths",
        ),
        Row(
            "tau_p", None, "0.1 (N), 0 (R); on CIFAR-100 1.5 and 1.7", "an argument of `calibrated`"
        ),
        Row("kl_scaled", None, False, why="beta was chosen with it"),
        Row(
            "released_attack",
            None,
            True,
            why="an attack must see the logits that are trained and answer",
        ),
        Row(
            "released_passes",
            None,
            True,
            why="one pass of each kind gives the same loss and gradient",
        ),
        Row(
            "scale of the logits that are judged",
            "as in training",
            "10, but 1 in CIFAR-10's configuration R",
            "as in training",
            "PGD on unscaled cosines flatters, as the authors' README warns",
        ),
        Row("eps", None, "0.031"),
        Row("step_size", None, "0.0078"),
        Row("steps", None, 5),
        Row("model", None, "wrn_34_10"),
        Row("epochs", None, 80),
        Row("batch_size", None, 64),
        Row("lr", None, 0.1),
        Row("weight_decay", None, 2e-4),
        Row(
            "schedule",
            None,
            Words("tenfold down in every epoch from 60, hundredfold from 75 of 80"),
            why="the code "
            "multiplies the rate it has by the drop in each epoch: training ends near epoch 63",
        ),
        Row("imbalance_ratio", None, 50.0),
        Row("padding", None, "zero"),
    )

    def prepare(self, task: Task) -> None:
        """Notes the margins and the prior: state["margin"], state["bias"], (K,) each."""
        for name in ("m", "tau_m", "tau_b", "gamma"):
            checked(
                f"{name} of robal",
                getattr(self, name),
                lambda v: 0 <= v < float("inf"),
                "at least 0 and finite",
            )
        n = task.class_counts.double().clamp_min(1)
        self.state["margin"] = self.tau_m * (n / n.min()).log()
        self.state["bias"] = self.tau_b * (n / n.sum()).log()

    def objective(self, model: nn.Module, x: Tensor) -> Objective:
        """The cross-entropy of the logits without margins and prior."""
        head = cosine_head(model)
        shrink = shrinkage(head, self.gamma).detach() / (head.scale if self.released_attack else 1)
        plainly = self.ascended()

        def shrunk(logits: Tensor, y: Tensor) -> Tensor:
            return plainly(logits * shrink, y)

        return shrunk

    def craft(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        scale: Budget = 1.0,
        generator: Source = None,
    ) -> Tensor:
        """PGD; the released attack starts in half of the ball."""
        if not self.released_attack:
            return super().craft(model, x, y, scale=scale, generator=generator)
        a, objective = self.attack, self.objective(model, x)
        eps, step = self.budget(None, scale)
        start = x + eps * uniform(tuple(x.shape), x, drawing(generator, x))
        with frozen(model, a.batch_norm):
            return ascend(model, x, start, y, eps, step, a.steps, a.norm, objective)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """The margin loss of the adversarial images plus beta KL, both averaged over the batch."""
        head = cosine_head(model)
        shrink = shrinkage(head, self.gamma)
        adversarial = full(model(x_adv)) * shrink
        self._pass(model, x)
        clean = full(model(x)) * shrink
        self._pass(model, x_adv)
        margin = head.scale * self.m + self.state["margin"].to(adversarial)[y]
        flat = 1 if self.kl_scaled else head.scale
        losses = margin_loss(adversarial, y, margin, self.state["bias"])
        losses = losses + self.beta * kl_divergence(clean / flat, adversarial / flat)
        return losses.mean(), ClassStats.of(y, losses, adversarial, clean)

    def _pass(self, model: nn.Module, x: Tensor) -> None:
        if self.released_passes:
            with torch.no_grad():
                model(x)


def margin_loss(logits: Tensor, y: Tensor, margin: Tensor, bias: Tensor) -> Tensor:
    """CE of z - [k = y] margin + bias, per sample (N,).

    logits: z, (N, K).
    margin: (N,).
    bias: (K,), tau_b log pi.
    """
    lowered = logits.scatter(1, y[:, None], (true_logit(logits, y) - margin)[:, None])
    return F.cross_entropy(lowered + bias.to(logits.dtype), y, reduction="none")


def shrinkage(head: CosineHead, gamma: float) -> Tensor:
    """||w_k|| / (||w_k|| + gamma), (K,): what gamma takes from each cosine."""
    if not gamma:
        return torch.ones_like(head.scale)
    length = head.weight.norm(dim=1)
    return length / (length + gamma)


def cosine_head(model: nn.Module) -> CosineHead:
    """The head of a network of ours; raises ConfigError where it is no cosine head."""
    head = plain(model).head
    if not isinstance(head, CosineHead):
        raise ConfigError('robal needs a cosine head: head="hypersphere"')
    return head


def calibrated(
    model: nn.Module, class_counts: Tensor, tau_p: float = 0.1, gamma: float = 0.0
) -> LogitBias:
    """RoBal's decision at inference, z - tau_p log pi: a model, for white-box attacks.

    model: a trained network of ours with its cosine head.
    class_counts: (K,), its training images.
    gamma: that of the training.
    Nothing is trained or copied.
    """
    n = class_counts.cpu().double().clamp_min(1)  # a GPU may have no float64
    head = cosine_head(model)
    bias = (-tau_p * (n / n.sum()).log()).to(head.weight)
    shrink = shrinkage(head, gamma).detach()
    return LogitBias(model, bias, None if not gamma else 1 / shrink)

"""CSR, confusional spectral regularization (Jin et al. 2025, ICLR).

Errors weigh by their part in the spectral norm of the robust confusion matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.objectives import Objective, full, kl_divergence, true_logit
from crat.defenses.base import Defense, Row, Task, Words, checked, kl_from_clean
from crat.defenses.stats import ClassStats
from crat.distributed import whole

# the released code: weights are 2 (G - min G) / (max G - min G) + 0.01
WIDTH, LEAST = 2.0, 0.01
SQUARINGS = 16  # the power iteration's exponent is 2^16


@dataclass
class CSR(Defense):
    """(1 - a) CE(f(x), y) + beta KL(p(x) || p(x')) + a g log(g / p_y(x')), g = W[y, argmax f(x')].

    W = 2 (G - min G) / (max G - min G) + 0.01, G = u v^T of the first singular pair of the errors
    C_ij, i != j: the share of class i that is taken for j under attack, once the true logit has
    lost `margin` of itself. G is the gradient of the spectral norm of C. The third term is KL of
    the one-hot label times g against p(x'): cross-entropy under attack, weighted by g.

    C is counted on the training adversarial examples of an epoch, and W moves at its end; in the
    first epoch W is that of the batches so far. a is `share`. A class that no batch showed has no
    errors, and without any error all weights are 0.01.
    From scratch or for a few epochs from a robust network's weights:
    `RunConfig().but(**preset("csr", "released"), start_from=NAME)`, or on the command line
    `crat train --defense csr --preset released --start-from NAME`.
    """

    beta: float = 6.0
    share: float = 0.3  # a; the paper's alpha
    margin: float = 0.1  # share of the true logit that is taken off where errors are counted
    # the code passes clean and adversarial images twice, which moves the running statistics
    released_passes: bool = False

    paper = (
        "Jin et al. 2025 (ICLR, arXiv 2501.13273): its abstract, and reviews that name equations 9 "
        "to 11, alpha and gamma"
    )
    code = (
        "Alexkael/CONFUSIONAL-SPECTRAL-REGULARIZATION@92856c794ff1c799d8648e6a604d6070ffc55072 "
        "(CIFAR10_TRADES_fairness: trades_fair.py, train_fair.py)"
    )
    start = "gaussian"
    batch_norm = "eval"
    rows = (
        Row("beta", None, 6.0),
        Row("share", 0.3, 0.3),
        Row(
            "margin",
            Words("gamma, 0 or 0.1"),
            0.1,
            why="the code takes a tenth of the true logit off, which lifts a negative one; how the "
            "paper takes gamma off was not seen",
        ),
        Row(
            "entries that are regularised",
            "mean KL of class i's images that are taken for j, for the counts have no gradient "
            "(equation 10); the sign of theirs stands for it (equation 9)",
            "each image's KL of (label times g) against p(x')",
            "the code's",
            "G scaled to 0.01 ... 2.01 is the code's; right images have a weight, too, that of the "
            "diagonal of G",
        ),
        Row(
            "errors are counted on",
            "the training set, under attack",
            "the training set anew before each epoch, PGD-10 on the cross-entropy, in eval mode",
            "the adversarial examples that the epoch trained on, in train mode",
            "a second attack on the whole training set nearly doubles the price of an epoch; ours "
            "are a network's of the epoch before, and on TRADES' objective",
        ),
        Row(
            "first epoch",
            None,
            "as all",
            "the errors of the batches so far",
            "nothing was counted before, and of two epochs one may not be lost",
        ),
        Row(
            "C is of",
            "shares of a class",
            "counts",
            "shares of a class",
            "the same where classes are equally large",
        ),
        Row(
            "released_passes",
            None,
            True,
            why="each of the two passes is made twice there; only running statistics change",
        ),
        Row(
            "start_from",
            Words("a robust checkpoint, or none"),
            Words("WRN-34-10 of TRADES"),
            Words("none, or another run"),
            "fine-tuning is the preset released with start_from; the code has no script that "
            "trains from scratch",
        ),
        Row("epochs", Words("2 of fine-tuning, or from scratch"), 2),
        Row(
            "lr",
            None,
            0.001,
            why="with AWP 0.01; the rate falls from epoch 100 on only",
        ),
        Row("schedule", None, "constant"),
        Row("eps_warmup", None, 0, why="two epochs leave none for smaller margins"),
        Row(
            "awp",
            None,
            None,
            None,
            "its second script, gamma 0.005: the run's awp=0.005, which moves weights by this "
            "loss, the code by that of TRADES",
        ),
        Row("eps", None, "8/255"),
        Row("step_size", None, "2/255"),
        Row("steps", None, 10),
        Row("model", None, "wrn_34_10"),
        Row("weight_decay", None, 5e-4),
        Row("batch_size", None, 128),
        Row(
            "one-hot labels",
            None,
            "as many columns as the batch's largest label",
            "K columns",
            "the code fails on a batch without the last class",
        ),
    )

    def prepare(self, task: Task) -> None:
        """Begins with nothing counted. Raises ConfigError on a share or margin out of [0, 1)."""
        for name in ("share", "margin"):
            checked(f"{name} of csr", getattr(self, name), lambda v: 0 <= v < 1, "in [0, 1)")
        k = task.n_classes
        self.state["epoch"] = torch.zeros((), dtype=torch.long)
        self.state["counts"] = torch.zeros(k, k)  # true class x prediction, of this epoch
        self.state["pair_weight"] = torch.ones(k, k)

    def objective(self, model: nn.Module, x: Tensor) -> Objective:
        """KL(p(x) || p(x')), as in TRADES."""
        return kl_from_clean(model, x, self.attack.batch_norm)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """The three terms, each averaged over the batch."""
        clean, adversarial = full(model(x)), full(model(x_adv))
        if self.released_passes:
            with torch.no_grad():
                model(x)
                model(x_adv)
        self.batch_counts = self.counted(adversarial.detach(), y)
        g = self.pair_weights()[y, adversarial.argmax(1)].to(adversarial)
        errors = g * (g.log() + F.cross_entropy(adversarial, y, reduction="none"))
        losses = (1 - self.share) * F.cross_entropy(clean, y, reduction="none")
        losses = losses + self.beta * kl_divergence(clean, adversarial) + self.share * errors
        return losses.mean(), ClassStats.of(y, losses, adversarial, clean)

    def counted(self, logits: Tensor, y: Tensor) -> Tensor:
        """Counts (K, K) of the whole batch, true class x prediction, from logits under attack."""
        lowered = (1 - self.margin) * true_logit(logits, y)
        predicted = logits.scatter(1, y[:, None], lowered[:, None]).argmax(1)
        counts = self.state["counts"]
        places = whole(y) * len(counts) + whole(predicted)
        nothing = torch.zeros_like(counts).flatten()
        return nothing.index_add(0, places, torch.ones_like(places).to(counts)).view_as(counts)

    def pair_weights(self) -> Tensor:
        """W (K, K) of this batch: in the first epoch of what was counted so far, with the batch."""
        so_far = spectral_weights(self.state["counts"] + self.batch_counts)
        return torch.where(self.state["epoch"] == 0, so_far, self.state["pair_weight"])

    def after_step(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """Adds the batch to the epoch's counts; `loss` may be asked twice in a step (AWP)."""
        self.state["counts"] = self.state["counts"] + self.batch_counts

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """Weighs by the errors of the epoch, and counts anew."""
        self.state["epoch"] += 1
        self.state["pair_weight"] = spectral_weights(self.state["counts"])
        self.state["counts"] = torch.zeros_like(self.state["counts"])


def spectral_weights(counts: Tensor) -> Tensor:
    """W (K, K) from counts (K, K), true class x prediction: 0.01 ... 2.01, 0.01 without errors."""
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    errors = shares * (1 - torch.eye(len(counts), dtype=counts.dtype, device=counts.device))
    u, v = first_singular_pair(errors)
    gradient = u[:, None] * v[None, :]
    low, high = gradient.amin(), gradient.amax()
    return WIDTH * (gradient - low) / (high - low).clamp_min(torch.finfo(counts.dtype).tiny) + LEAST


def first_singular_pair(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """u, v (K,) of the largest singular value of a matrix (K, K) that has no negative entry.

    Both have no negative entry either (Perron and Frobenius). By squaring M^T M, so that nothing
    waits for the device, as the library's decomposition does. Of equal largest values the pair is
    that nearest to the vector of ones; both are 0 where the matrix is.
    """
    tiny = torch.finfo(matrix.dtype).tiny
    with torch.autocast(matrix.device.type, enabled=False):
        power = matrix.T @ matrix
        for _ in range(SQUARINGS):
            power = power / power.diagonal().sum().clamp_min(tiny)
            power = power @ power
        v = power.sum(1)
        v = v / v.norm().clamp_min(tiny)
        u = matrix @ v
        return u / u.norm().clamp_min(tiny), v

"""FRL, fair robust learning (Xu et al. 2021, ICML): unfairly wrong classes gain weight or margin.

A class's error is its clean error plus its boundary error, the loss of accuracy that the attack
brings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.objectives import Objective, full, kl_divergence
from crat.attacks.threat import Budget
from crat.defenses.base import Defense, Row, Task, Words, checked, kl_from_clean
from crat.defenses.stats import ClassStats
from crat.distributed import whole

# the released code's, without and with remargin, as are the two rates
BOUND = {False: 0.1, True: 0.07}
RATE_1 = 0.05
RATE_2 = 0.2
EPOCHS = 40
# how much larger the rates of a short training may be: beyond, one epoch would widen eps_k to the
# limit
FASTEST = 10
NARROWEST, WIDEST = 0.98, 3.0  # eps_k / eps


@dataclass
class FRL(Defense):
    """wmean(CE; u_y) + beta wmean(KL; v_y), weighted means over the batch; remargin: eps_y for eps.

    After each epoch behind the warm-up, on validation, with e_k the clean error of class k less
    that of all images, b_k the same of the boundary error, and the bounds d:
    lambda_k = lambda_k + rate_1 (e_k - d), mu_k = mu_k + 2 rate_1 (b_k - d), both >= 0 and their
    sums <= limit; u_k = (1 - sum_j lambda_j) / K + lambda_k, v_k the same of mu; phi_k = phi_k +
    rate_2 (b_k - d), eps_k = eps clamp(exp(2 phi_k), 0.98, 3), and the step grows with the widest
    eps_k of the batch.
    A class that validation lacks has its multipliers unchanged.
    """

    remargin: bool = True  # False: the weights only
    beta: float = 1.5
    bound: float | None = None  # None: 0.1, with remargin 0.07
    # None: 0.05 over 40 epochs behind the warm-up; faster, up to 10 times, over fewer
    rate_1: float | None = None
    rate_2: float | None = None  # None: 0.2 with remargin, scaled alike
    limit: float = 0.5
    warmup: int | None = None  # epochs of plain TRADES before; None: three quarters of all
    # the code passes the clean images once more, which moves the running statistics
    released_passes: bool = False

    paper = "Xu et al. 2021 (ICML)"
    code = (
        "hannxu123/fair_robust@a80547def881cb4ca99b50e7544f997f9a0210a7 (frlrw.py, frlrmrw.py, "
        "utils_frl*.py)"
    )
    start = "gaussian"
    batch_norm = "eval"
    rows = (
        Row(
            "halving of rate_1",
            None,
            "from each 40th epoch on",
            "none",
            "the last of 40 epochs; the rest scales",
        ),
        Row("limit", None, 0.5),
        Row("beta", None, 1.5, 1.5),
        Row(
            "where it starts",
            None,
            "hot_start.pt, a robust network given for download, how it was trained not said",
            "no checkpoint: `warmup` epochs of TRADES with this beta come first, in the same run",
            "the whole training is one run, of as many epochs as what it is compared with",
        ),
        Row(
            "warmup",
            None,
            Words("none, the checkpoint comes first"),
            Words("three quarters of the epochs"),
            "with 200 epochs, piecewise, the policy moves in the last 50, at the code's rate 0.001",
        ),
        Row(
            "lr",
            None,
            Words("0.001, constant over 40 epochs"),
            Words("the profile's, warm-up included"),
        ),
        Row("eps", None, "8/255"),
        Row(
            "step_size",
            None,
            "2/255",
            why="with remargin max eps_k / 4 of the batch, the same at this eps",
        ),
        Row("steps", None, 10),
        Row("model", None, "preact_resnet18", why="a WRN-28 is the code's other choice"),
        Row("weight_decay", None, 5e-4),
        Row(
            "valid_per_class",
            None,
            300,
            why="the code's are the last of each class; here as `split` says",
        ),
        Row("widest eps_k / eps", None, WIDEST, WIDEST, "frlrw.py has 2.5, but never moves it"),
        Row(
            "attack on validation",
            None,
            "PGD-20 on the cross-entropy",
            "the protocol's: PGD-10 on CIFAR",
        ),
        Row(
            "weights that validation judges",
            None,
            "the present ones",
            "the average, where one is kept",
            "one validation serves the policy and the choice of the best epoch",
        ),
        Row(
            "robust on validation",
            None,
            "right under attack",
            "right on the clean image and under attack",
            "the house's R_k; they differ where an attack turns a wrong prediction right",
        ),
        Row(
            "released_passes",
            None,
            True,
            why="p(x) is computed twice there; only running statistics change",
        ),
    )

    def prepare(self, task: Task) -> None:
        """Begins with equal weights and the common eps."""
        checked(
            "warmup of frl",
            self.warmup,
            lambda w: w is None or w >= 1,
            "at least 1, for the errors need an epoch",
        )
        checked(
            "limit of frl",
            self.limit,
            lambda v: 0 <= v < 1,
            "in [0, 1), so that weights stay positive",
        )
        early = max(1, min(round(0.75 * task.epochs), task.epochs - 1))
        self.first = early if self.warmup is None else self.warmup
        scale = min(FASTEST, EPOCHS / max(1, task.epochs - self.first))
        self.rates = [RATE_1 * scale if self.rate_1 is None else self.rate_1]
        self.rates += [RATE_2 * scale if self.rate_2 is None else self.rate_2]
        k = task.n_classes
        self.state["epoch"] = torch.zeros((), dtype=torch.long)
        self.state |= {name: torch.zeros(k) for name in ("clean_multiplier", "boundary_multiplier")}
        self.state |= {
            name: torch.full((k,), 1 / k) for name in ("clean_weight", "boundary_weight")
        }
        if self.remargin:
            self.state |= {
                "margin_exponent": torch.zeros(k),
                "eps": torch.full((k,), self.attack.eps),
            }

    def objective(self, model: nn.Module, x: Tensor) -> Objective:
        """KL(p(x) || p(x')), as in TRADES."""
        return kl_from_clean(model, x, self.attack.batch_norm)

    def budget(self, y: Tensor | None, scale: Budget) -> tuple[Budget, Budget]:
        """eps_k of each image, and the step.

        With remargin one step size for the batch, that of its widest eps_k.
        """
        eps, step = super().budget(y, scale)
        if self.remargin and y is not None:
            step = step * self.widths()[whole(y)].max()
        return eps, step

    def widths(self) -> Tensor:
        """eps_k / eps (K,)."""
        return (2 * self.state["margin_exponent"]).exp().clamp(NARROWEST, WIDEST)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """The two weighted means; the statistics hold CE + beta KL as it is without weights."""
        clean, adversarial = full(model(x)), full(model(x_adv))
        if self.released_passes:
            with torch.no_grad():
                model(x)
        errors = F.cross_entropy(clean, y, reduction="none")
        divergences = kl_divergence(clean, adversarial)
        u = self.state["clean_weight"][y]
        v = self.state["boundary_weight"][y]
        loss = weighted_mean(errors, u) + self.beta * weighted_mean(divergences, v)
        return loss, ClassStats.of(y, errors + self.beta * divergences, adversarial, clean)

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """Moves the multipliers by the errors on validation, once the warm-up is over."""
        self.state["epoch"] += 1
        if self.state["epoch"] < self.first or valid is None or not valid.n.any():
            return
        clean, robust = valid.accuracy("clean"), valid.accuracy("robust")
        all_clean = valid.clean.sum() / valid.n.sum()
        all_robust = valid.robust.sum() / valid.n.sum()
        bound = BOUND[self.remargin] if self.bound is None else self.bound
        unfair_clean = (all_clean - clean - bound).nan_to_num(0.0)
        unfair_boundary = ((clean - robust) - (all_clean - all_robust) - bound).nan_to_num(0.0)
        self._weigh("clean", self.rates[0] * unfair_clean)
        self._weigh("boundary", 2 * self.rates[0] * unfair_boundary)
        if self.remargin:
            change = self.rates[1] * unfair_boundary
            self.state["margin_exponent"] = self.state["margin_exponent"] + change
            self.state["eps"] = self.attack.eps * self.widths()

    def _weigh(self, which: str, change: Tensor) -> None:
        multiplier = (self.state[f"{which}_multiplier"] + change).clamp_min(0)
        multiplier = multiplier * (self.limit / multiplier.sum().clamp_min(1e-12)).clamp_max(1)
        self.state[f"{which}_multiplier"] = multiplier
        self.state[f"{which}_weight"] = (1 - multiplier.sum()) / len(change) + multiplier

    @classmethod
    def table(cls, **chosen: Any) -> tuple[Row, ...]:
        """The code's bound and second rate depend on remargin."""
        remargin = bool(chosen.get("remargin", cls.remargin))
        return (
            Row("remargin", None, remargin, why="frlrw.py is False, frlrmrw.py is True"),
            Row("bound", None, BOUND[remargin], Words("the code's for the choice of remargin")),
            Row(
                "rate_1",
                None,
                RATE_1,
                Words("0.05, times 40 over the epochs behind the warm-up, at most times 10"),
                "the multipliers go as far as in the code's 40 epochs",
            ),
            Row(
                "rate_2",
                None,
                RATE_2 if remargin else 0.1,
                Words("0.2, scaled as rate_1"),
                "unread without remargin",
            ),
            *cls.rows,
        )


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """sum w l / sum w over the batch, of (B,) each.

    Of several processes each returns its part, so that the average over processes is this mean.
    """
    every = whole(weights)
    return len(every) / len(weights) * (weights * values).sum() / every.sum()

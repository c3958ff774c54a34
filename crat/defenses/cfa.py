"""CFA (Wei et al. 2023, CVPR): each class trains with its own margin and regulariser's weight.

The third part, FAWA, is a weight average behind a gate: `average="fawa"`, crat.training.averaging.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crat.defenses.base import Policy, Row, Task, Words, checked
from crat.defenses.stats import ClassStats

LAMBDA_1 = {"pgd_at": 0.5, "trades": 0.3, "fat": 0.7}  # the paper's, section 5.1
BEGIN, EPOCHS = 10, 200  # the released code: class-wise from epoch 10 of 200


@dataclass
class CFA(Policy):
    """eps_k = (lambda_1 + t_k) eps and, on TRADES, beta_k = (lambda_2 + t_k) beta (eq. 6 and 7).

    t_k: the share of class k's training adversarial examples, those of the last epoch, that are
        still right.
    The loss of the base is taken within eps_k; that of TRADES is [CE + beta_k KL] / (1 + beta_k)
    (eq. 8). A class that no batch showed has its values unchanged.
    """

    base: str = "pgd_at"
    lambda_1: float | None = None  # None: the paper's for the base
    lambda_2: float = 0.5
    beta: float = 6.0
    tau: int = 3  # of FAT
    ccm: bool = True  # class-wise margin
    ccr: bool = True  # class-wise regularisation, on TRADES
    # epochs before the first class-wise one; None: the code's 10 of 200, in proportion
    begin: int | None = None
    # the code's additional clean passes, which move BatchNorm's running statistics
    released_passes: bool = False

    paper = "Wei et al. 2023 (CVPR), Algorithm 1, section 5.1"
    bases = ("pgd_at", "trades", "fat")
    variants = ({"base": "pgd_at"}, {"base": "trades"}, {"base": "fat"})
    code = "PKU-ML/CFA@071f3334a59d144cedbe65b18019c9757bece6f2 (attack.py, train.py)"
    rows = (
        Row("lambda_2", 0.5, 0.5),
        Row("beta", 6.0, 6.0),
        Row("tau", None, 3),
        Row(
            "begin",
            1,
            BEGIN,
            Words("10 of 200, in proportion"),
            "a proportion serves short schedules, too",
        ),
        Row("average", "fawa", "fawa", "fawa"),
        Row(
            "average_decay",
            0.85,
            0.88,
            Words("0.85^(200 / epochs)"),
            "0.85 an epoch is too slow for 12 epochs",
        ),
        Row("average_start", 50, 0, Words("a quarter of the epochs"), "the paper's 50 of 200"),
        Row(
            "fawa_threshold",
            0.2,
            0.24,
            Words("the median so far"),
            "a fixed one may never be reached: then the code returns a random initialisation, we "
            "the plain weights",
        ),
        Row("eps", "8/255", "8/255"),
        Row("step_size", None, "2/255", why="the same for every class"),
        Row("steps", None, 10),
        Row("model", "preact_resnet18", "preact_resnet18"),
        Row("split", "first", "first"),
        Row("epochs", 200, 200),
        Row("schedule", "piecewise", "piecewise"),
        Row(
            "released_passes",
            None,
            True,
            why="running statistics there are mostly clean; nothing else changes",
        ),
        Row(
            "t_k divides by",
            "its own count",
            "N / 10",
            "its own count",
            "the same for balanced classes",
        ),
        Row(
            "best epoch chosen on",
            "validation",
            "test",
            "validation",
            "the test set is for reporting",
        ),
    )

    def prepare(self, task: Task) -> None:
        """Begins with the common eps and beta."""
        super().prepare(task)
        checked(
            "begin of cfa",
            self.begin,
            lambda b: b is None or b >= 1,
            "at least 1, for t_k needs an epoch",
        )
        self.first = self.begin or max(1, round(BEGIN * task.epochs / EPOCHS))
        self.state["epoch"] = torch.zeros((), dtype=torch.long)
        self.state["eps"] = torch.full((task.n_classes,), self.attack.eps)
        if self.base == "trades":
            self.state["beta"] = torch.full((task.n_classes,), self.beta)

    def settings_of_base(self) -> dict[str, Any]:
        """TRADES divided by 1 + beta, and FAT without noise, as in CFA's code."""
        if self.base == "trades":
            return {"beta": self.beta, "normalised": True}
        return {"tau": self.tau, "omega": 0.0, "resumes": False} if self.base == "fat" else {}

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """The base's loss, with beta_k."""
        loss, stats = self.inner.loss(model, x, x_adv, y)
        if self.base == "trades":
            self.after_step(model, x, y)  # p(x) is computed twice
        return loss, stats

    def after_step(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """The code counts its clean accuracy by one more pass in train mode."""
        if self.released_passes:
            with torch.no_grad():
                model(x)

    def epoch_end(self, train: ClassStats, valid: ClassStats | None) -> None:
        """Moves eps_k and beta_k by t_k, once `begin` epochs are done."""
        self.state["epoch"] += 1
        if self.state["epoch"] < self.first:
            return
        t, present = train.accuracy("robust"), train.n > 0
        lambda_1 = LAMBDA_1[self.base] if self.lambda_1 is None else self.lambda_1
        if self.ccm:
            eps = (lambda_1 + t) * self.attack.eps
            self.state["eps"] = torch.where(present, eps, self.state["eps"])
        if self.ccr and "beta" in self.state:
            beta = (self.lambda_2 + t) * self.beta
            self.state["beta"] = torch.where(present, beta, self.state["beta"])

    @classmethod
    def crafting(cls, **chosen: Any) -> tuple[str, str]:
        """Start and BatchNorm's mode of the base; FAT crafts in train mode, as AT does here."""
        on_trades = chosen.get("base", cls.base) == "trades"
        return ("gaussian", "eval") if on_trades else ("uniform", "train")

    @classmethod
    def table(cls, **chosen: Any) -> tuple[Row, ...]:
        """The paper's lambda_1 depends on the base; so does what BatchNorm does in the code."""
        base = chosen.get("base", cls.base)
        crafting = "eval" if base == "trades" else "moving"
        return (
            Row(
                "lambda_1",
                LAMBDA_1.get(base),
                0.5,
                Words("the paper's"),
                "the paper's text over the code's defaults",
            ),
            Row(
                "batch_norm",
                None,
                crafting,
                why="in the code each attack step of AT and FAT moves the statistics",
            ),
            *cls.rows,
        )

"""SPAT (Hou, Han and Li 2023): hard pairs of classes weigh more, in both terms of the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crat.attacks.frozen import frozen
from crat.attacks.objectives import Objective, full
from crat.config import ConfigError
from crat.defenses.base import Defense, Row, Task, Words, checked
from crat.defenses.stats import ClassStats
from crat.nets.models import CosineHead, plain

FORMS = ("released", "detached", "clamped", "circle", "plain")


@dataclass
class SPAT(Defense):
    """min E[L_sp(f(x), y) + beta max_{|x' - x| <= eps} L_hcp(f(x), f(x'))], logits s z, z cosines.

    L_sp is the cross-entropy of `self_paced` logits of the clean image, L_hcp is
    `hard_pair_divergence`. As in the authors' code: eval mode while crafting, start x + 0.001 N(0,
    1), gradients through both outputs of L_hcp, and the clean pass before the adversarial one.
    Deviations: inside the attack f(x) is computed once, the same number in eval mode;
    log-probabilities are exact where the code takes the logarithm of a probability that may be 0.
    """

    beta: float = 6.0
    m: float = 0.2  # margin of the self-paced weights
    n: float = 0.2  # weight of the plain divergence in L_hcp
    # of the self-paced weights: released | detached | clamped | circle | plain (none)
    form: str = "released"
    squares: bool = True  # L_hcp; False: its plain divergence only, the KL of TRADES, with weight 1
    # the head's weights are made unit vectors at every step, as in the code
    overwrites: bool = False

    paper = "Hou, Han and Li 2023 (AAAI), arXiv 2210.15068"
    code = (
        "puerrrr/Self-Paced-Adversarial-Training@e72bf4b321439ef8894b995f52e46b4f86dfe9d0 "
        "(spat.py, wrn.py)"
    )
    head = "cosine"
    start = "gaussian"
    batch_norm = "eval"
    rows = (
        Row("beta", None, 6.0),
        Row("m", None, 0.2),
        Row("n", None, 0.2),
        Row("scale", None, 8.0, Words("8, the cosine head's")),
        Row(
            "form",
            None,
            "released",
            Words("released"),
            "the paper's printed equations were not seen; the code differentiates the weights and "
            "does not cut them at 0, so that L_sp is least near z_y = (1 + m) / 2, not at 1: the "
            "others are variants of circle loss, to be compared, and plain, for the ablation, "
            "leaves it out",
        ),
        Row("squares", None, True, Words("True"), "False is for the ablation"),
        Row(
            "overwrites",
            None,
            True,
            Words("False"),
            "with it the gradient keeps its part along w_k and each step turns unit vectors; the "
            "function that is learnt is of the same kind",
        ),
        Row("eps", None, "0.031"),
        Row("step_size", None, "0.007"),
        Row("steps", None, 10),
        Row("model", None, "wrn_34_10"),
        Row("epochs", None, 100),
        Row(
            "schedule",
            None,
            Words("0.1 of the rate from epoch 75 on, 0.01 from epoch 90 on"),
            why="as the profile",
        ),
        Row("lr", None, 0.1),
        Row("batch_size", None, 128),
        Row("weight_decay", None, 2e-4, why="one value for all methods that are compared: CFA's"),
        Row("padding", None, "zero", why="CFA's crop, for all methods"),
        Row("normalisation of the images", None, "none", "the data set's", "as for all methods"),
        Row(
            "logits that are attacked in a test",
            None,
            "the cosines z, not s z",
            "s z",
            "cross-entropy of numbers in [-1, 1] is Temperature-PGD at T = s, a weak attack: p_y "
            "stays below 0.451 for ten classes without a bias",
        ),
        Row(
            "clean accuracy of a test",
            None,
            "of the head without its normalisation",
            "of s z",
            "the bias makes them two decision functions: clean and robust accuracy must be one "
            "function's",
        ),
        Row(
            "best epoch chosen on", None, "none: all are kept, test accuracy printed", "validation"
        ),
        Row(
            "clean logits inside the attack",
            None,
            "once a step",
            "once",
            "the same number in eval mode",
        ),
    )

    def prepare(self, task: Task) -> None:
        """Raises ConfigError on an unknown form."""
        checked("form of spat", self.form, lambda form: form in FORMS, f"one of {', '.join(FORMS)}")

    def objective(self, model: nn.Module, x: Tensor) -> Objective:
        """L_hcp from the clean logits, with BatchNorm in the attack's mode."""
        with frozen(model, self.attack.batch_norm), torch.no_grad():
            return HardPairsFrom(full(model(x)), self.n, self.squares)

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, ClassStats]:
        """L_sp + beta L_hcp, both averaged over the batch; beta per class where state has one."""
        head = cosine_head(model)
        if self.overwrites:
            head.onto_sphere()
        clean, adversarial = full(model(x)), full(model(x_adv))
        paced = head.scale * self_paced(clean / head.scale, y, self.m, self.form)
        losses = F.cross_entropy(paced, y, reduction="none")
        beta = self.of("beta", y, self.beta)
        hard_pairs = hard_pair_divergence(clean, adversarial, self.n, self.squares)
        losses = losses + beta * hard_pairs
        return losses.mean(), ClassStats.of(y, losses, adversarial, clean)


@dataclass(frozen=True, eq=False)
class HardPairsFrom:
    """L_hcp from fixed clean logits (N, K): the inner maximisation of SPAT."""

    clean_logits: Tensor
    n: float
    squares: bool = True

    def __repr__(self) -> str:
        return f"HardPairsFrom(clean, n={self.n}, squares={self.squares})"

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """(N, K), (N,) -> (N,); y is not read."""
        return hard_pair_divergence(self.clean_logits, logits, self.n, self.squares)


def cosine_head(model: nn.Module) -> CosineHead:
    """The model's cosine head. Raises ConfigError where it has another."""
    head = plain(model).head
    if not isinstance(head, CosineHead):
        raise ConfigError('spat needs a cosine head: ModelConfig(head="cosine")')
    return head


def self_paced(z: Tensor, y: Tensor, m: float, form: str = "released") -> Tensor:
    """a z, a_y = 1 + m - z_y, a_j = z_j + m: a cosine weighs more the further it is from its aim.

    z: (N, K) cosines plus bias.
    form: "released", as in the code, a is differentiated, too; "detached", it is a number;
        "clamped", a is cut at 0 from below; "circle", both, as in circle loss (Sun et al. 2020);
        "plain", z as it is.
    """
    if form == "plain":
        return z
    true = y[:, None] == torch.arange(z.shape[1], device=z.device)
    weight = torch.where(true, 1 + m - z, z + m)
    weight = weight.detach() if form in ("detached", "circle") else weight
    return (weight.clamp_min(0) if form in ("clamped", "circle") else weight) * z


def hard_pair_divergence(
    clean_logits: Tensor, logits: Tensor, n: float, squares: bool = True
) -> Tensor:
    """sum_j k_j (k_j + n) per sample, (N,), k_j the terms of KL(p(x) || p(x')): >= 0, 0 if equal.

    It is n KL plus the squares, by which classes whose probability an attack moves far count most.
    Without the squares it is KL alone: with form "plain" SPAT is then TRADES on the cosine head.
    """
    log_p = clean_logits.log_softmax(1)
    terms = log_p.exp() * (log_p - logits.log_softmax(1))
    return (terms * (terms + n)).sum(1) if squares else terms.sum(1)

"""Switches that keep a model from leaning on too little: R-Drop and adversarial training, for pretraining and fine-tuning alike.

Dropout and stochastic depth are the model's (`model.*`), label smoothing and z-loss the objective's, weight decay and its
schedule the optimizer's. docs/regularisation.md says what each costs and when it pays. No torch here until something is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from seedbed.config import Config, one_of

if TYPE_CHECKING:
    from seedbed.objectives.base import Objective
    from seedbed.training.step import Perturbation

__all__ = ["ADVERSARIAL", "AdversarialConfig", "RegularisationConfig"]


class AdversarialConfig(Config):
    """Base of the kinds of adversarial training."""

    name: str = Field("none", description="Which; see ADVERSARIAL.")

    def perturbation(self) -> Perturbation | None:
        """Return the passes of a step, or None where it has one."""
        return None

    def wrap(self, objective: Objective) -> Objective:
        """Return the objective with what is added to its losses."""
        return objective


class NoneConfig(AdversarialConfig):
    """No adversarial training."""

    name: Literal["none"] = Field("none", description="No adversarial training.")


class FGMConfig(AdversarialConfig):
    """Fast gradient method (1605.07725): also at the embeddings moved along the gradient. Two passes a step."""

    name: Literal["fgm"] = Field("fgm", description="Fast gradient method; two passes a step.")
    epsilon: float = Field(1.0, gt=0.0, description="L2 norm of the disturbance of a text.")
    adversarial_weight: float = Field(
        1.0, gt=0.0, description="Of the loss there, beside 1 of the plain one."
    )

    def perturbation(self) -> Perturbation:
        """Return the two passes."""
        from seedbed.training.perturbations import FGM

        return FGM(self.epsilon, self.adversarial_weight)


class PGDConfig(AdversarialConfig):
    """Projected gradient descent (1706.06083): several steps of ascent within a ball, trained at their end."""

    name: Literal["pgd"] = Field(
        "pgd", description="Projected gradient descent; 1 + num_steps passes a step."
    )
    epsilon: float = Field(1.0, gt=0.0, description="L2 radius of the ball a text's disturbance stays in.")
    step_size: float = Field(0.3, gt=0.0, description="L2 norm of a step of ascent.")
    num_steps: int = Field(3, ge=1, description="Steps of ascent.")
    adversarial_weight: float = Field(
        1.0, gt=0.0, description="Of the loss at their end, beside 1 of the plain one."
    )

    def perturbation(self) -> Perturbation:
        """Return the passes."""
        from seedbed.training.perturbations import PGD

        return PGD(self.epsilon, self.step_size, self.num_steps, self.adversarial_weight)


class FreeLBConfig(AdversarialConfig):
    """Free large-batch training (1909.11764): the mean of the gradients along the way up."""

    name: Literal["free_lb"] = Field("free_lb", description="FreeLB; num_steps passes a step.")
    epsilon: float = Field(
        0.5, ge=0.0, description="L2 radius of the ball; 0: no bound. Paper: 0 to 0.7 by task."
    )
    step_size: float = Field(0.1, gt=0.0, description="L2 norm of a step of ascent. Paper: 0.03 to 0.1.")
    num_steps: int = Field(3, ge=1, description="Steps of ascent, all of which train. Paper: 2 to 3.")
    start: float = Field(
        0.1,
        ge=0.0,
        description="Bound of the uniform random start times sqrt(tokens * width). Paper: 0.05 to 0.4.",
    )

    def perturbation(self) -> Perturbation:
        """Return the passes."""
        from seedbed.training.perturbations import FreeLB

        return FreeLB(self.epsilon, self.step_size, self.num_steps, self.start)


class SmartConfig(AdversarialConfig):
    """Smoothness of SMART (1911.03437): the answer shall not change under the worst small disturbance."""

    name: Literal["smart"] = Field("smart", description="Smoothness; 2 + num_steps passes a step.")
    weight: float = Field(1.0, gt=0.0, description="Of the divergence (lambda; paper 1 to 5).")
    epsilon: float = Field(1e-3, gt=0.0, description="Bound of every coordinate of the disturbance.")
    step_size: float = Field(
        1e-3, gt=0.0, description="How far a step moves the largest coordinate of a token."
    )
    num_steps: int = Field(1, ge=1, description="Steps of ascent.")
    start_std: float = Field(1e-5, gt=0.0, description="Standard deviation of the random start.")

    def wrap(self, objective: Objective) -> Objective:
        """Return the objective with its smoothness."""
        from seedbed.objectives.smoothness import Smoothness

        return Smoothness(
            objective,
            weight=self.weight,
            start_std=self.start_std,
            step_size=self.step_size,
            epsilon=self.epsilon,
            num_steps=self.num_steps,
        )


ADVERSARIAL: dict[str, type[AdversarialConfig]] = {
    "none": NoneConfig,
    "fgm": FGMConfig,
    "pgd": PGDConfig,
    "free_lb": FreeLBConfig,
    "smart": SmartConfig,
}

if TYPE_CHECKING:
    AdversarialSection = AdversarialConfig
else:
    AdversarialSection = one_of(ADVERSARIAL, default="none")


class RegularisationConfig(Config):
    """What else holds a model back from learning its training text by heart; all off by default."""

    r_drop: float = Field(
        0.0,
        ge=0.0,
        description="Weight of the divergence between two passes with different dropout (R-Drop; paper 0.1 to 5). 0: one pass.",
    )
    adversarial: AdversarialSection = Field(
        default_factory=NoneConfig, description="Train at disturbed embeddings too: fgm, pgd, free_lb, smart."
    )

    @model_validator(mode="after")
    def _one_comparison(self) -> Self:
        if self.r_drop and self.adversarial.name == "smart":
            raise ValueError(
                "r_drop and adversarial smart both compare passes of a step; switch one of them off"
            )
        return self

    @property
    def is_off(self) -> bool:
        """Say that nothing is switched on."""
        return not self.r_drop and self.adversarial.name == "none"

    def perturbation(self) -> Perturbation | None:
        """Return the passes of a step over disturbed embeddings, or None."""
        return self.adversarial.perturbation()

    def wrap(self, objective: Objective, model: Any = None) -> Objective:
        """Return the objective as it is trained.

        Args:
            objective: the plain one, already checked.
            model: the description of the model as it trains (`TransformerConfig`): R-Drop needs dropout. None: unchecked.

        Raises:
            ConfigError: a model without dropout.
            IncompatibleError: an objective whose passes cannot be compared.
        """
        objective = self.adversarial.wrap(objective)
        if self.r_drop:
            from seedbed.objectives.r_drop import RDrop

            objective = RDrop(objective, weight=self.r_drop)
            if model is not None:
                objective.check(model)
        return objective

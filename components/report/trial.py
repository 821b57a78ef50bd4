"""One adapter's evaluation, with the settings that made the adapter."""

from typing import NamedTuple

from components.core.describe import with_interval
from components.core.records import ArmResult, Evaluation, TrainingRecord

DEFAULTS = {"target": "reasoning", "keep_oracle": 1.0, "max_distractors": -1}
"""Of settings that an earlier version's adapters were trained without."""


class Trial(NamedTuple):
    """One adapter's scores, the settings that made it, and the folder of its evaluation."""

    evaluation: Evaluation
    training: TrainingRecord | None
    place: str = ""

    @property
    def arms(self) -> dict[str, ArmResult]:
        """By name."""
        return {arm.name: arm for arm in self.evaluation.arms}

    @property
    def tuned(self) -> ArmResult | None:
        """The arm that shows what the adapter is worth: RAFT's prompt, in 16 bits, else in 4."""
        tuned = [arm for arm in self.evaluation.arms if arm.tuned]
        return max(tuned, key=lambda arm: (arm.bits, arm.prompt == "raft"), default=None)

    @property
    def validation_loss(self) -> float | None:
        """Of the adapter, if it is known."""
        return self.training.validation_loss if self.training else None

    def setting(self, name: str) -> str:
        """A setting of the training as text; a dash where it is not known."""
        settings = DEFAULTS | self.training.settings if self.training else {}
        value = settings.get(name, "–")
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    def number(self, name: str) -> float:
        """A setting of the training that is a number; not a number where it is not known."""
        text = self.setting(name)
        return float("nan") if text == "–" else float(text)


def score_of(arm: ArmResult | None) -> str:
    """F1 with its interval, or a dash where the arm was not asked."""
    return "–" if arm is None else with_interval(arm.f1, arm.f1_ci, arm.n)

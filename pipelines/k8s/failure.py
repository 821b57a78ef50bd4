"""A Job's podFailurePolicy: which failures of a pod end the Job, and which do not count."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.k8s.located import StrictModel, fault
from pipelines.k8s.values import Name


class PodCondition(StrictModel):
    type: str
    status: Literal["True", "False", "Unknown"] = "True"


class ExitCodes(StrictModel):
    container_name: Name | None = None
    operator: Literal["In", "NotIn"]
    values: Annotated[list[int], Field(min_length=1)]


class FailureRule(StrictModel):
    action: Literal["Count", "FailJob", "Ignore"]
    on_pod_conditions: list[PodCondition] = Field(default_factory=list)
    on_exit_codes: ExitCodes | None = None

    @model_validator(mode="after")
    def _has_one_reason(self) -> "FailureRule":
        if bool(self.on_pod_conditions) == bool(self.on_exit_codes):
            raise ValueError("a rule has either onPodConditions or onExitCodes")
        if self.on_exit_codes and self.on_exit_codes.operator == "In":
            for index, code in enumerate(self.on_exit_codes.values):
                if code == 0:
                    raise fault("0 is success", "onExitCodes", "values", index)
        return self


class FailurePolicy(StrictModel):
    rules: list[FailureRule]

"""Users and privileges of a Job's pod, as a namespace of the level `restricted` wants them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.k8s.located import StrictModel, fault, job_only


class Capabilities(StrictModel):
    drop: list[str] = Field(default_factory=list)


class ContainerSecurity(StrictModel):
    allow_privilege_escalation: bool = job_only("the KFP backend forbids it for every step")
    capabilities: Capabilities = job_only("the KFP backend drops all for every step")
    read_only_root_filesystem: bool = job_only("KFP's launcher writes outside our volumes")


class Seccomp(StrictModel):
    type: Literal["RuntimeDefault", "Unconfined"]


UserId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class PodSecurity(StrictModel):
    run_as_user: UserId | None = None
    run_as_group: UserId | None = None
    run_as_non_root: bool | None = None
    fs_group: UserId = job_only("KFP cannot set it; an emptyDir is writable without")
    seccomp_profile: Seccomp = job_only("the KFP backend sets the runtime's default")

    @model_validator(mode="after")
    def _agrees(self) -> "PodSecurity":
        if self.run_as_non_root and self.run_as_user == 0:
            raise fault("0 is root, which runAsNonRoot forbids", "runAsUser")
        return self


RESTRICTED = {
    ("securityContext", "runAsNonRoot"): True,
    ("securityContext", "seccompProfile", "type"): "RuntimeDefault",
    ("containers", 0, "securityContext", "allowPrivilegeEscalation"): False,
    ("containers", 0, "securityContext", "capabilities", "drop"): ["ALL"],
}
"""What a namespace with the level `restricted` asks of every pod, by the place in its spec."""

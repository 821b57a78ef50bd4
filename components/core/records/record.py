"""The base of all records, and what is wrong with a record that is none."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Record(BaseModel):
    """A record on disk: unknown fields and non-finite numbers are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


def explain(error: ValidationError) -> str:
    """A validation error in one line: the first faults by field name, without pydantic's links."""
    faults = [
        ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))
        for fault in error.errors(include_url=False)
    ]
    rest = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + rest

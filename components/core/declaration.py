"""What a Kubeflow component needs beyond its config class, as data; knows no kfp.

Parameters, their types, defaults and descriptions come from the config class; which inputs are
artifacts and what the step outputs is declared here. `pipelines/component.py` makes the component
from both.
"""

from collections.abc import Mapping
from typing import NamedTuple

from components.core.config import Settings


class Output(NamedTuple):
    """An artifact, or with the kind `text` an output parameter, that a step leaves."""

    kind: str
    description: str


class Declaration(NamedTuple):
    """A stage as a component.

    config: settings; each field is a parameter unless its option has `in_pipeline=False`.
    description: one sentence for the dashboard.
    inputs: fields that arrive as artifacts, by name, and their KFP type.
    outputs: by name; the first is the folder that `--output` names.
    """

    config: type[Settings]
    description: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, Output]

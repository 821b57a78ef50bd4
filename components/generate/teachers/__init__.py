"""Teachers write questions and chain-of-thought answers about chunks, behind one protocol."""

from components.generate.config import GenerateConfig
from components.generate.teachers.teacher import Teacher


def make_teacher(config: GenerateConfig) -> Teacher:
    """The teacher that the config names.

    Raises:
        ConfigError: a setting that it needs is missing, or a prompt cannot be used.
    """
    if config.teacher == "openai":
        from components.generate.teachers.endpoint import EndpointTeacher

        return EndpointTeacher(config)
    from components.generate.teachers.extractive import ExtractiveTeacher

    return ExtractiveTeacher(config.questions_per_chunk, config.seed)

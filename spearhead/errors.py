"""Exceptions by which a stage tells its loop what to do."""


class ConfigurationError(ValueError):
    """What the stage was told to do can't be done: the process ends with status 2. The message says what to change."""


class RestartError(RuntimeError):
    """The worker's state in memory can't be trusted any more: the process ends and a fresh one takes up."""

"""Errors that a user can mend. The command line prints the sentence and exits with status 2."""


class InputError(ValueError):
    """Bad input: a file, key or option that is wrong. The message says what, where, and what would be right."""


class ParamsError(InputError):
    """Bad experiment description in ``params/``; the message starts with ``file: key:``."""


class CheckpointError(InputError):
    """A checkpoint that cannot be trusted or does not fit."""


class WorkError(RuntimeError):
    """Work that failed although the input is right (a server, a disk). The command line prints it and exits with 1."""


class DivergedError(RuntimeError):
    """A loss or a weight became NaN or infinite; no checkpoint is written after it."""


def sentence(error: BaseException) -> str:
    """What a user reads of an error; of one that a data loading process wrapped in its traceback, the last line."""
    text = str(error)
    if "Original Traceback" not in text:
        return text
    return text.strip().splitlines()[-1].partition(": ")[2]  # after the class

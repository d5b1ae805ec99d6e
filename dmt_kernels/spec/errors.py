"""The error that bad input of the user's raises."""


class InputError(ValueError):
    """Something the user gave is wrong; the message is one sentence that names the culprit."""

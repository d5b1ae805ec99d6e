"""Errors that end in a message for the user, not in a traceback of ours."""


class InputError(ValueError):
    """Something the user gave is wrong; the message is one sentence that names the culprit."""


class RankFailed(RuntimeError):
    """A rank ended with an error; the message is that rank's traceback."""


class NotBuilt(ImportError):
    """The compiled library is not there; the message says how to get it."""


class ExchangeError(RuntimeError):
    """An exchange between ranks failed; the message names this rank, the stage, the group and the backend's words."""

"""The exceptions that mean something to whoever catches them; every other one is a bug."""


class UsageError(Exception):
    """Something a user gave is wrong. The message is one line: what was expected, what came, and the fix.

    The entry scripts print it and exit with code 2; every other exception is a bug and keeps its traceback.
    """


class UnreadableFilm(ValueError):
    """The file is no image that can be read as a film; the message says why, without the file's name."""

"""The one exception that means: the person at the keyboard can mend this."""


class UsageError(Exception):
    """Something a user gave is wrong. The message is one line: what was expected, what came, and the fix.

    The entry scripts print it and exit with code 2; every other exception is a bug and keeps its traceback.
    """

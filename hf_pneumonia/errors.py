"""The exceptions that mean something to whoever catches them, and how a script ends on them."""

import errno
import os
import sys
from collections.abc import Callable

# Faults of the disk and of rights to it, which a user can mend; any other OSError is a bug.
_MENDABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
)


class UsageError(Exception):
    """Something a user gave is wrong. The message is one line: what was expected, what came, and the fix.

    The entry scripts print it and exit with code 2; every other exception is a bug and keeps its traceback.
    """


class UnreadableFilm(ValueError):
    """The file is no image that can be read as a film; the message says why, without the file's name."""


def run_script(program: str, main: Callable[[list[str]], None], argv: list[str]) -> int:
    """Exit code of a script's `main`; a mistake that the user can mend is one line on stderr, and 2."""
    try:
        main(argv)
        return 0
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130  # as the shell counts Ctrl-C
    except UsageError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        message = f"{error.filename or 'a file'}: {error.strerror}; free some space, or choose another folder"
    if os.environ.get("RANK", "0") == "0":
        print(f"{program}: {message}", file=sys.stderr)
    return 2

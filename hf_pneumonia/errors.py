"""The project's exceptions, and the exit codes of its scripts."""

import errno
import os
import sys
from collections.abc import Callable

# A disk, or a user's share of it.
FULL = (errno.ENOSPC, errno.EDQUOT)

# Faults of the disk, of rights to it and of names, which a user can fix; any other OSError is a bug.
_FIXABLE = {
    *FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
    errno.ENAMETOOLONG, errno.EIO, errno.ESTALE,
}  # fmt: skip


class UsageError(Exception):
    """A mistake of the user. The entry scripts print it in one line and exit with code 2; every other exception
    is a bug and keeps its traceback.

    Args:
        code: short name of the mistake, such as "no-class-folders", the same in every version.
        message: one line: the flag or file, what was expected, what came, and how to fix it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Stopped(Exception):
    """A signal told the program to stop, and it did so in good order. The message says how to go on.

    Attributes:
        code: exit code of the program, 128 + the signal's number: 143 for SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.code = 128 + signal_number


class UnreadableImage(ValueError):
    """The file can't be read as an image; the message says why, without the file's name."""


def run_script(program: str, main: Callable[[list[str]], None], argv: list[str]) -> int:
    """Run a script's `main` and return the exit code: 2 for a mistake of the user, with one line on stderr.

    Of several processes one per machine prints it.
    """
    code = 2
    try:
        main(argv)
        return 0
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130  # as the shell counts Ctrl-C
    except Stopped as stop:
        message, code = str(stop), stop.code
    except UsageError as error:
        message = f"{error} [{error.code}]"
    except OSError as error:
        if error.errno not in _FIXABLE:
            raise
        message = f"{error.filename or 'a file'}: {error.strerror}; free some space, or choose another folder"
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{program}: {message}", file=sys.stderr)
    return code

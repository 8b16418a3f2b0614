"""The exceptions that mean something to whoever catches them, and how a script ends on them."""

import errno
import os
import sys
import traceback
from collections.abc import Callable

# A disk, or a user's share of it.
FULL = (errno.ENOSPC, errno.EDQUOT)

# Faults of the disk, of rights to it and of names, which a user can mend; any other OSError is a bug.
_MENDABLE = (
    *FULL,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EIO,
    errno.ESTALE,
)


class UsageError(Exception):
    """Something a user gave is wrong. The message is one line: what was expected, what came, and the fix.

    The entry scripts print it and exit with code 2; every other exception is a bug and keeps its traceback.
    """


class Stopped(Exception):
    """The program was told to stop by a signal, and did so in good order. The message says how to go on.

    Attributes:
        code: of the program's exit, 128 + the signal's number, as the shell counts: 143 for SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.code = 128 + signal_number


class UnreadableFilm(ValueError):
    """The file is no image that can be read as a film; the message says why, without the file's name."""


def run_script(program: str, main: Callable[[list[str]], None], argv: list[str]) -> int:
    """Exit code of a script's `main`; a mistake that the user can mend is one line on stderr, and 2.

    Of several processes one per machine says it.
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
        message = str(error)
    except OSError as error:
        if error.errno not in _MENDABLE and not _made_a_folder(error):
            raise
        message = f"{error.filename or 'a file'}: {error.strerror}; free some space, or choose another folder"
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{program}: {message}", file=sys.stderr)
    return code


def _made_a_folder(error: OSError) -> bool:
    """Whether it was about a folder that was to be made: /proc answers that there is no such one."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].name in ("mkdir", "makedirs", "mkdtemp")

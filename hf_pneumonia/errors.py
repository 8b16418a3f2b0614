"""Exceptions of the project, and exit codes of its scripts."""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

# A full disk, or a user's full quota.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

# Errors of the disk, of permissions and of names, which the user can fix. Any other OSError is a bug.
_FIXABLE = {
    *DISK_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
    errno.ENAMETOOLONG, errno.EIO, errno.ESTALE,
}  # fmt: skip


class UsageError(Exception):
    """A mistake of the user. The entry scripts print it in one line and exit with code 2. All other
    exceptions are bugs and keep their traceback.

    Args:
        code: short name of the mistake, such as "no-class-folders"; does not change between versions.
        message: one line: the flag or file, what was expected, what came, and how to fix it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Stopped(Exception):
    """A signal stopped the program, which saved its state. The message says how to resume.

    Attributes:
        code: exit code of the program, 128 + the signal number: 143 for SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.code = 128 + signal_number


class UnreadableImage(ValueError):
    """A file that can't be read as an image. The message gives the reason, without the file's name."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, with an unknown or missing flag as a UsageError of one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError("invalid-flag", f"{message}. See {self.prog} --help")


def run_script(program: str, main: Callable[[list[str]], None], argv: list[str]) -> int:
    """Run a script's `main` and return the exit code: 2 for a mistake of the user, with one line on stderr.

    With several processes, one per machine prints the line.
    """
    code = 2
    try:
        main(argv)
        return 0
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130  # the shell's exit code for Ctrl-C
    except Stopped as stop:
        message, code = str(stop), stop.code
    except UsageError as error:
        message = f"{error} [{error.code}]"
    except OSError as error:
        if error.errno not in _FIXABLE:
            raise
        message = f"{error.filename or 'a file'}: {error.strerror}. Free some space, or choose another folder"
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{program}: {message}", file=sys.stderr)
    return code

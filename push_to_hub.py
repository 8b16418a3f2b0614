"""Publish a finished run: `python push_to_hub.py RUN --repo USER/NAME [--private]`. Wiring only."""

import argparse
import sys
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from hf_pneumonia.errors import UsageError, run_script
from hf_pneumonia.publishing.hub import publish_run


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="push_to_hub.py", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder of train.py")
    parser.add_argument("--repo", required=True, help="repository of the Hub, user/name; made where missing")
    parser.add_argument(
        "--private", action="store_true", help="only you can see a repository that is made now"
    )
    args = parser.parse_args(argv)
    try:
        print(publish_run(args.run, args.repo, args.private, HfApi()))
    # No connection, no login, no right to write: for the user it is one thing.
    except (HTTPError, OSError, HFValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"can't publish to {args.repo} ({reason}); `hf auth login`, or set HF_TOKEN"
        ) from error


if __name__ == "__main__":
    sys.exit(run_script("push_to_hub.py", main, sys.argv[1:]))

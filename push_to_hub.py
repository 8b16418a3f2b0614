"""Publish a finished run on the Hub: `python push_to_hub.py RUN --repo USER/NAME [--space USER/SPACE]`."""

import logging
import sys
from pathlib import Path

from hf_pneumonia.errors import ArgumentParser, UsageError, run_script


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    if args.space and args.revision != "main":
        raise UsageError(
            "space-needs-main",
            f"--revision: expected main with --space, got {args.revision}. Leave out --revision or --space",
        )
    # Slow imports, after the flags are parsed.
    from hf_pneumonia.hub import check_repo_name

    for repo in filter(None, (args.repo, args.space)):
        check_repo_name(repo)

    import transformers
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    from hf_pneumonia.publishing.publish import (
        listing,
        prepare_run,
        publish_model,
        publish_space,
        space_files,
    )

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # hide its ten lines on retries
    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        disable_progress_bars()

    files = prepare_run(args.run, args.repo)
    print(f"{args.run} -> {args.repo}", *listing(files), sep="\n", flush=True)
    if args.space:
        print(f"app -> {args.space}", *listing(space_files(args.repo)), sep="\n", flush=True)
    if args.dry_run:
        print("dry run: nothing was sent")
        return
    api, private = HfApi(), args.private
    model = publish_model(api, args.run, files, args.repo, private=private, revision=args.revision)
    print(result(model.changed, model.url), flush=True)
    if args.space:
        space = publish_space(api, args.repo, args.space, private=private)
        print(result(space.changed, space.url))
        if model.private:
            print(f"{args.repo} is private: set the secret HF_TOKEN in the settings of {args.space}")
        if model.private and not space.private:
            print(f"{args.space} is public: everybody can use the private model {args.repo} there")


def result(changed: bool, url: str) -> str:
    return f"{'published' if changed else 'unchanged'}: {url}"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="push_to_hub.py", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run of train.py")
    parser.add_argument(
        "--repo", required=True, metavar="USER/NAME", help="model repository; created if missing"
    )
    parser.add_argument("--private", action="store_true", help="create repositories as private")
    parser.add_argument(
        "--space", metavar="USER/SPACE", help="also create or update a Gradio Space that serves the model"
    )
    parser.add_argument(
        "--revision", default="main", metavar="BRANCH", help="branch, created if missing; default: main"
    )
    parser.add_argument("--dry_run", action="store_true", help="list files and sizes, upload nothing")
    return parser


if __name__ == "__main__":
    sys.exit(run_script("push_to_hub.py", main, sys.argv[1:]))

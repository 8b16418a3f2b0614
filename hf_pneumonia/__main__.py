"""`python -m hf_pneumonia audit | explore SOURCE [SOURCE ...] --output DIR`: see films before training."""

import argparse
import logging
import os
import sys
from pathlib import Path

import datasets

from hf_pneumonia.data.audit_page import summary, write_audit
from hf_pneumonia.data.cache import default_cache
from hf_pneumonia.data.filmset import FilmSet, prepare_films
from hf_pneumonia.data.sources import COVID
from hf_pneumonia.errors import UsageError, run_script

RECIPE = Path(__file__).parents[1] / "recipes" / "resnet18.yaml"


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("hf_pneumonia").setLevel(logging.INFO)
    datasets.disable_progress_bars()
    # Before the films are decoded, which takes its time.
    existing = next(path for path in (args.output, *args.output.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        problem = "can't be written to" if existing.is_dir() else "is a file"
        raise UsageError(f"--output {args.output}: {existing} {problem}; choose another folder")
    if args.split_seed < 0:
        raise UsageError(f"--split_seed expects a number from 0, got {args.split_seed}")
    films = prepare_films(
        args.source,
        224,
        (args.cache_dir or default_cache()).expanduser(),
        max_unreadable=1,
        split=args.split,
        split_seed=args.split_seed,
        covid=args.covid,
        must_split=False,
    )
    args.run(films, args.output)


def audit(films: FilmSet, folder: Path) -> None:
    for line in summary(write_audit(films, folder)):
        print(line)
    print(f"audit: {folder / 'audit.md'}, {folder / 'audit.json'}, {folder / 'manifest.csv'}")


def explore(films: FilmSet, folder: Path) -> None:
    # Imported late: these take their time.
    from hf_pneumonia.evaluation.exploration import explore_films
    from hf_pneumonia.training.arguments import parse_recipe

    recipe, _ = parse_recipe([], default=RECIPE)  # whose augmentation is drawn
    explore_films(films, folder, recipe.augmentation)
    print(f"pictures: {folder / 'index.html'}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UsageError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m hf_pneumonia", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="audit | explore", required=True)
    for run, text in (
        (audit, "find unreadable films, copies, leaks and shortcuts, and write a manifest"),
        (explore, "draw the films, their sizes, brightness and balance, and the augmentations"),
    ):
        command = commands.add_parser(run.__name__, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument(
            "source",
            nargs="+",
            help="phantom, a folder, a .zip or .csv file, kaggle:owner/name, or a Hub id (user/name)",
        )
        command.add_argument("--output", type=Path, required=True, help="folder for what is found")
        command.add_argument(
            "--split", default="official", help="official, or shares such as 70/20/10, as train.py takes them"
        )
        command.add_argument("--split_seed", type=int, default=0, help="of the splits that are cut")
        command.add_argument("--covid", choices=COVID, default="drop", help="what becomes of COVID-19 films")
        command.add_argument("--cache_dir", type=Path, help="where decoded films are kept")
    return parser


if __name__ == "__main__":
    sys.exit(run_script("hf_pneumonia", main, sys.argv[1:]))

"""`python -m hf_pneumonia COMMAND`: audit data, evaluate and compare models, predict, export.

audit SOURCE [SOURCE ...] --output DIR
evaluate --model DIR_OR_REPO --dataset SOURCE [SOURCE ...]
compare RUN RUN [RUN ...]
predict --model DIR_OR_REPO PATH [PATH ...] [--output scores.csv|.parquet] [--heatmaps DIR] [--force]
export --model DIR_OR_REPO --output FILE.onnx
"""

import argparse
import logging
import os
import re
import sys
from pathlib import Path

from hf_pneumonia.data.labels import COVID, PHANTOMS, UNCERTAIN
from hf_pneumonia.errors import UsageError, run_script

RECIPE = Path(__file__).parents[1] / "recipes" / "resnet18.yaml"
SOURCE = (
    "phantom, phantom:shortcut, a folder, a .zip, .tar or .csv file, kaggle:owner/name, or a Hub id "
    "(user/name); train=, validation= or test= in front says what it is"
)


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    main_process = os.environ.get("RANK", "0") == "0"
    logging.getLogger("hf_pneumonia").setLevel(logging.INFO if main_process else logging.ERROR)
    args.run(args)


def audit(args: argparse.Namespace) -> None:
    """find unreadable images, copies, leaks and shortcuts; draw the images; write a page and a manifest"""
    _quiet_libraries()
    cohort = _images(args, 224)
    # Imported late: these take their time.
    from hf_pneumonia.evaluation.audit import PAGE, summary, write_audit
    from hf_pneumonia.training.arguments import parse_recipe

    recipe, _ = parse_recipe([], default=RECIPE)  # whose augmentation is drawn
    for line in summary(write_audit(cohort, args.output, recipe.augmentation)):
        print(line)
    print(f"audit: {args.output / PAGE}, {args.output / 'audit.json'}, {args.output / 'manifest.csv'}")


def evaluate(args: argparse.Namespace) -> None:
    """score a saved model on labelled images, and write the report, plots and tables of a training"""
    from hf_pneumonia.data.sources import short_names
    from hf_pneumonia.evaluation.evaluate import choose_images, evaluate_model, images_taught, summary
    from hf_pneumonia.modeling.saved import load_model
    from hf_pneumonia.training.launch import check_same_images, join_processes, local_main_first, use_machine

    _quiet_libraries()
    state = join_processes()
    use_machine(state.device)
    saved = load_model(args.model)
    source = short_names(args.source)
    name = re.sub(r"[^\w.+-]+", "-", f"evaluate-{saved.name}-{'+'.join(source)}")
    args.output = args.output or Path("runs") / name
    if any(next(args.output.glob(kind), None) for kind in ("model.safetensors", "checkpoint-*", "seed*")):
        raise UsageError("evaluate", f"--output {args.output} holds a training run; choose another folder")
    with local_main_first(state):  # the others find the images decoded
        cohort = _images(args, saved.image_size, one_class=True)
    check_same_images(cohort)
    cohort, which = choose_images(cohort, args.images or ("test" if args.split != "official" else None))
    data = {"source": ", ".join(source), "simulated": set(args.source) <= set(PHANTOMS), "films": which}
    report = evaluate_model(saved, cohort, args.output, seen=images_taught(args.model), data=data)
    if state.is_main_process:
        print("\n".join(summary(report)))
        print(f"report: {args.output / 'report.json'}")
    state.destroy_process_group()


def compare(args: argparse.Namespace) -> None:
    """put runs side by side: table, ROC curves, and paired tests where the test images are the same"""
    _check_output(args.output)
    from hf_pneumonia.evaluation.compare import compare_runs, table_lines, write_comparison

    comparison, predictions = compare_runs(args.runs)
    write_comparison(comparison, predictions, args.output)
    print("\n".join(table_lines(comparison)))
    files = ("compare.md", "compare.json", "roc.png")
    print("comparison: " + ", ".join(str(args.output / name) for name in files))


def predict(args: argparse.Namespace) -> None:
    """score images with a saved model: a row each, as CSV to the screen or a file"""
    if args.output is not None:
        if args.output.suffix.lower() not in (".csv", ".parquet") or args.output.is_dir():
            raise UsageError("predict", f"--output expects a .csv or .parquet file, got {str(args.output)!r}")
        _check_output(args.output.parent)
    if args.heatmaps is not None:
        _check_output(args.heatmaps, "--heatmaps")
    from hf_pneumonia.inference.batch import predict_paths
    from hf_pneumonia.training.launch import join_processes, use_machine

    _quiet_libraries()
    state = join_processes()
    use_machine(state.device)
    predict_paths(args.model, args.paths, args.output, args.heatmaps, args.batch_size, args.dtype, args.force)
    state.destroy_process_group()


def export(args: argparse.Namespace) -> None:
    """write a saved model as ONNX, checked against it, and its preprocessing as JSON beside it"""
    from hf_pneumonia.inference.export import OPSET, check_export, export_onnx
    from hf_pneumonia.modeling.saved import load_model

    check_export(args.output)
    _check_output(args.output.parent)
    _quiet_libraries()
    saved = load_model(args.model)
    for note in saved.notes:
        print(f"note: {note}")
    difference = export_onnx(saved, args.output)
    print(f"onnxruntime answers as torch does, but for {difference:.1g} (opset {OPSET})")
    print(f"export: {args.output}, {args.output}.json")


def _quiet_libraries() -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries, ten lines before the reason


def _images(args: argparse.Namespace, size: int, one_class: bool = False):
    """Return the images that a command names. Its output folder is checked before they are decoded."""
    import datasets

    from hf_pneumonia.data.cache import default_cache
    from hf_pneumonia.data.cohort import prepare_cohort

    datasets.disable_progress_bars()
    _check_output(args.output)
    if args.split_seed < 0:
        raise UsageError("images", f"--split_seed expects a number from 0, got {args.split_seed}")
    return prepare_cohort(
        args.source,
        size,
        (args.cache_dir or default_cache()).expanduser(),
        max_unreadable=1,
        split=args.split,
        split_seed=args.split_seed,
        covid=args.covid,
        uncertain=args.uncertain,
        must_split=False,
        one_class=one_class,
    )


def _check_output(folder: Path, flag: str = "--output") -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        problem = "can't be written to" if existing.is_dir() else "is a file"
        raise UsageError("output", f"{flag} {folder}: {existing} {problem}; choose another folder")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UsageError("error", f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m hf_pneumonia",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(run) -> argparse.ArgumentParser:
        command = commands.add_parser(
            run.__name__, help=run.__doc__, description=run.__doc__, allow_abbrev=False
        )
        command.set_defaults(run=run)
        return command

    command = add(audit)
    command.add_argument("source", nargs="+", help=SOURCE)
    command.add_argument("--output", type=Path, required=True, help="folder for what is found")
    _add_source_flags(command)

    command = add(evaluate)
    command.add_argument("--model", required=True, help="run folder, or repository of the Hub (user/name)")
    command.add_argument("--dataset", dest="source", nargs="+", required=True, metavar="SOURCE", help=SOURCE)
    command.add_argument(
        "--images",
        choices=("test", "validation", "all"),
        help="which are scored; by default the source's test split where it has one, else all",
    )
    command.add_argument("--output", type=Path, help="by default runs/evaluate-MODEL-SOURCE")
    _add_source_flags(command)

    command = add(compare)
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of train.py or evaluate")
    command.add_argument("--output", type=Path, default=Path("runs/compare"), help="by default runs/compare")

    command = add(predict)
    command.add_argument(
        "paths", nargs="+", metavar="PATH", help="image, folder, .zip, or - for a list on stdin"
    )
    command.add_argument("--model", required=True, help="run folder, or repository of the Hub (user/name)")
    command.add_argument("--output", type=Path, help=".csv or .parquet; without it the CSV goes to stdout")
    command.add_argument("--heatmaps", type=Path, metavar="DIR", help="pictures of where the network looked")
    command.add_argument("--batch_size", type=int, default=16, help="images per forward pass; 16")
    command.add_argument(
        "--force", action="store_true", help="answer also for images that are refused, with the reason"
    )
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16: some 1.5 times the images a second where the processor has it, probabilities to 0.01",
    )

    command = add(export)
    command.add_argument("--model", required=True, help="run folder, or repository of the Hub (user/name)")
    command.add_argument("--output", type=Path, required=True, metavar="FILE", help="ends in .onnx")
    return parser


def _add_source_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--split",
        default="official",
        help="official, shifted, or shares such as 70/20/10, as train.py takes them",
    )
    command.add_argument("--split_seed", type=int, default=0, help="of the splits that are cut")
    command.add_argument("--covid", choices=COVID, default="drop", help="what becomes of COVID-19 images")
    command.add_argument("--uncertain", choices=UNCERTAIN, default="drop", help="of findings in tables")
    command.add_argument("--cache_dir", type=Path, help="where decoded images are kept")


def cli() -> int:
    """Run the command line, here and as the installed command `hf-pneumonia`; return the exit code."""
    return run_script("hf_pneumonia", main, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(cli())

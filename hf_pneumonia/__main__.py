"""Command line: audit data, evaluate and compare models, predict, export.

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

from hf_pneumonia.data.labels import COVID_VALUES, PHANTOMS, UNCERTAIN_VALUES
from hf_pneumonia.errors import ArgumentParser, UsageError, run_script

# Of the audit's examples. Those of recipes/resnet18.yaml, which an installed package lacks.
AUDIT_STRENGTHS = {
    "rotation": 7, "zoom": 0.05, "proportions": 0.35, "shift": 0.03, "resolution": 0.4, "blur": 1.2,
    "exposure": 0.5, "noise": 0.05,
}  # fmt: skip
SOURCE = (
    "phantom, phantom:shortcut, a folder, a .zip, .tar or .csv file, kaggle:owner/name, or a Hub id "
    "(user/name); prefix train=, validation= or test= to use it as this split"
)


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    main_process = os.environ.get("RANK", "0") == "0"
    logging.getLogger("hf_pneumonia").setLevel(logging.INFO if main_process else logging.ERROR)
    args.run(args)


def audit(args: argparse.Namespace) -> None:
    """find unreadable images, duplicates, leakage and shortcuts; write an HTML page and a manifest"""
    _quiet_libraries()
    cohort = _images(args, 224)
    # Imported late, in all commands: these imports are slow.
    from hf_pneumonia.evaluation.audit import PAGE, summary, write_audit

    for line in summary(write_audit(cohort, args.output, AUDIT_STRENGTHS)):
        print(line)
    print(f"audit: {args.output / PAGE}, {args.output / 'audit.json'}, {args.output / 'manifest.csv'}")


def evaluate(args: argparse.Namespace) -> None:
    """score a saved model on labelled images; write a report, plots and tables"""
    from hf_pneumonia.data.manifest import read_seen
    from hf_pneumonia.data.sources import short_names
    from hf_pneumonia.evaluation.evaluate import choose_images, evaluate_model, summary
    from hf_pneumonia.modeling.saved import load_model
    from hf_pneumonia.training.launch import check_same_images, join_processes, local_main_first, setup_torch

    _quiet_libraries()
    state = join_processes()
    setup_torch(state.device)
    saved = load_model(args.model)
    source = short_names(args.source)
    name = re.sub(r"[^\w.+-]+", "-", f"evaluate-{saved.name}-{'+'.join(source)}")
    args.output = args.output or Path("runs") / name
    if any(next(args.output.glob(kind), None) for kind in ("model.safetensors", "checkpoint-*", "seed*")):
        raise UsageError(
            "existing-run",
            f"--output: expected no training run in {args.output}, got one. Choose another folder",
        )
    with local_main_first(state):  # the other processes then find the images decoded
        cohort = _images(args, saved.image_size, one_class=True)
    check_same_images(cohort)
    cohort, which = choose_images(cohort, args.images or ("test" if args.split != "official" else None))
    data = {"source": ", ".join(source), "simulated": set(args.source) <= set(PHANTOMS), "films": which}
    seen = read_seen(Path(args.model).expanduser()) or None
    report = evaluate_model(saved, cohort, args.output, seen=seen, data=data)
    if state.is_main_process:
        print("\n".join(summary(report)))
        print(f"report: {args.output / 'report.json'}")
    state.destroy_process_group()


def compare(args: argparse.Namespace) -> None:
    """compare runs: table, ROC curves, and paired tests if the test images are the same"""
    _check_output(args.output)
    from hf_pneumonia.evaluation.compare import compare_runs, table_lines, write_comparison

    comparison, predictions = compare_runs(args.runs)
    write_comparison(comparison, predictions, args.output)
    print("\n".join(table_lines(comparison)))
    files = ("compare.md", "compare.json", "roc.png")
    print("comparison: " + ", ".join(str(args.output / name) for name in files))


def predict(args: argparse.Namespace) -> None:
    """score images with a saved model: one CSV row per image, on stdout or in a file"""
    if args.output is not None:
        if args.output.suffix.lower() not in (".csv", ".parquet") or args.output.is_dir():
            raise UsageError(
                "not-a-table-path", f"--output: expected a .csv or .parquet file, got {str(args.output)!r}"
            )
        _check_output(args.output.parent)
    if args.heatmaps is not None:
        _check_output(args.heatmaps, "--heatmaps")
    from hf_pneumonia.inference.batch import predict_paths
    from hf_pneumonia.training.launch import join_processes, setup_torch

    _quiet_libraries()
    state = join_processes()
    setup_torch(state.device)
    predict_paths(args.model, args.paths, args.output, args.heatmaps, args.batch_size, args.dtype, args.force)
    state.destroy_process_group()


def export(args: argparse.Namespace) -> None:
    """export a saved model to ONNX, with its preprocessing as JSON, and compare the outputs of both"""
    from hf_pneumonia.inference.export import OPSET, check_export, export_onnx
    from hf_pneumonia.modeling.saved import load_model

    check_export(args.output)
    _check_output(args.output.parent)
    _quiet_libraries()
    saved = load_model(args.model)
    for note in saved.notes:
        print(f"note: {note}")
    difference = export_onnx(saved, args.output)
    print(f"largest difference between onnxruntime and torch: {difference:.1g} (opset {OPSET})")
    print(f"export: {args.output}, {args.output}.json")


def _quiet_libraries() -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # huggingface_hub logs ten lines of retries before an error.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _images(args: argparse.Namespace, size: int, one_class: bool = False):
    """Return the cohort of a command's sources. Checks the output folder before decoding the images."""
    import datasets

    from hf_pneumonia.data.cache import default_cache
    from hf_pneumonia.data.cohort import prepare_cohort

    datasets.disable_progress_bars()
    _check_output(args.output)
    if args.split_seed < 0:
        raise UsageError("out-of-range", f"--split_seed: expected 0 or more, got {args.split_seed}")
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
        raise UsageError(
            "unusable-output-dir",
            f"{flag}: expected a writable folder, got {folder} ({existing} {problem}). Choose another",
        )


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m hf_pneumonia" if sys.argv[0] == __file__ else None,
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
    command.add_argument("--output", type=Path, required=True, help="folder for the results")
    _add_source_flags(command)

    command = add(evaluate)
    command.add_argument("--model", required=True, help="run folder, or repository on the Hub (user/name)")
    command.add_argument("--dataset", dest="source", nargs="+", required=True, metavar="SOURCE", help=SOURCE)
    command.add_argument(
        "--images",
        choices=("test", "validation", "all"),
        help="images to score; default: the test split of the source if it has one, else all",
    )
    command.add_argument(
        "--output", type=Path, help="folder for the results; default: runs/evaluate-MODEL-SOURCE"
    )
    _add_source_flags(command)

    command = add(compare)
    command.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="output folder of train.py or evaluate"
    )
    command.add_argument(
        "--output",
        type=Path,
        default=Path("runs/compare"),
        help="folder for the results; default: runs/compare",
    )

    command = add(predict)
    command.add_argument(
        "paths", nargs="+", metavar="PATH", help="image, folder, .zip, or - for a list on stdin"
    )
    command.add_argument("--model", required=True, help="run folder, or repository on the Hub (user/name)")
    command.add_argument("--output", type=Path, help=".csv or .parquet file; default: CSV on stdout")
    command.add_argument("--heatmaps", type=Path, metavar="DIR", help="folder for heat maps of the images")
    command.add_argument("--batch_size", type=int, default=16, help="images per forward pass; default: 16")
    command.add_argument(
        "--force", action="store_true", help="classify images that fail the out-of-distribution check too"
    )
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16: about 1.5 times as fast on processors with it; probabilities differ by up to 0.01",
    )

    command = add(export)
    command.add_argument("--model", required=True, help="run folder, or repository on the Hub (user/name)")
    command.add_argument("--output", type=Path, required=True, metavar="FILE", help=".onnx file")
    return parser


def _add_source_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--split",
        default="official",
        help="official, shifted, or shares such as 70/20/10, as in train.py",
    )
    command.add_argument("--split_seed", type=int, default=0, help="seed of the random splits")
    command.add_argument("--covid", choices=COVID_VALUES, default="drop", help="treatment of COVID-19 images")
    command.add_argument(
        "--uncertain", choices=UNCERTAIN_VALUES, default="drop", help="treatment of uncertain findings"
    )
    command.add_argument("--cache_dir", type=Path, help="folder of the image cache")


def cli() -> int:
    """Run the command line, also as the installed command `hf-pneumonia`; return the exit code."""
    return run_script("hf-pneumonia", main, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(cli())

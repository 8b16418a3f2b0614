"""Fine-tune a network on chest X-rays: `accelerate launch train.py [RECIPE.yaml] [--flags]`.

Without arguments, train on simulated images (recipes/quickstart.yaml). Every key of a recipe is also a flag.
"""

import json
import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import transformers
from accelerate import PartialState
from accelerate.utils import set_seed
from datasets import disable_progress_bars

from hf_pneumonia.data.cohort import Cohort, prepare_cohort
from hf_pneumonia.data.labels import PHANTOMS, SPLITS
from hf_pneumonia.data.manifest import SEEN, read_seen, write_seen
from hf_pneumonia.data.sources import short_names
from hf_pneumonia.errors import UsageError, run_script
from hf_pneumonia.evaluation.appearance import appearance_lines, audit_lines
from hf_pneumonia.evaluation.audit import PAGE, check_leakage, write_audit
from hf_pneumonia.evaluation.calibration import calibrate
from hf_pneumonia.evaluation.checks import run_checks, write_checks
from hf_pneumonia.evaluation.metrics import metrics_line
from hf_pneumonia.evaluation.plots import plot_run
from hf_pneumonia.evaluation.report import build_report, seed_summary_line, summarise_seeds
from hf_pneumonia.evaluation.scoring import predict_split
from hf_pneumonia.inference.ood import fit_ood_check, measure_refusals
from hf_pneumonia.modeling.augment import Augment
from hf_pneumonia.modeling.build import build_model, check_input_size
from hf_pneumonia.modeling.saved import save_model
from hf_pneumonia.publishing.publish import write_card
from hf_pneumonia.training.arguments import Recipe, parse_recipe
from hf_pneumonia.training.image_dataset import ImageDataset
from hf_pneumonia.training.launch import check_same_images, local_main_first, setup_torch
from hf_pneumonia.training.run_folder import (
    check_run_folder,
    check_same_recipe,
    clear_run_folder,
    finish_run_folder,
    is_finished,
    lock_run_folder,
    read_report,
)
from hf_pneumonia.training.stopping import explain_failures
from hf_pneumonia.training.trainer import PneumoniaTrainer

TRAIN_SCORED = 500  # images: enough to see overfitting, and independent of the size of the data set
QUICKSTART = Path(__file__).parent / "recipes" / "quickstart.yaml"

logger = logging.getLogger("hf_pneumonia")


def main(argv: list[str]) -> None:
    args, recipe = parse_recipe(argv, default=QUICKSTART)
    if args.seeds:
        train_seeds(argv, args, recipe)
    else:
        check_run_folder(Path(args.output_dir), args.overwrite_output_dir, args.resume_from_checkpoint)
        train(args, recipe)


def train_seeds(argv: list[str], args: Recipe, recipe: dict) -> None:
    """Train once per seed, each in its own folder, and summarise the metrics. Skip the finished seeds."""
    folder = Path(args.output_dir)
    runs = {seed: folder / f"seed-{seed}" for seed in args.seeds}
    resume = "auto" if args.resume_from_checkpoint else False
    finished = {seed for seed, run in runs.items() if resume and is_finished(run)}
    unfinished = [seed for seed in runs if seed not in finished]
    # Check all folders before the first training starts.
    for seed in unfinished:
        check_run_folder(runs[seed], args.overwrite_output_dir, resume)
    for seed in finished:
        check_same_recipe(runs[seed], recipe)
    for seed in unfinished:
        flags = ["--seed", seed, "--output_dir", runs[seed], "--resume_from_checkpoint", resume]
        train(*parse_recipe([*argv, *map(str, flags)], default=QUICKSTART))
    if args.process_index == 0:
        summary = summarise_seeds({seed: read_report(run) for seed, run in runs.items()})
        (folder / "seeds.json").write_text(json.dumps(summary, indent=2) + "\n")
        print(f"\n{seed_summary_line(summary)}\nseeds: {folder / 'seeds.json'}")


def train(args: Recipe, recipe: dict) -> None:
    """Prepare the images, train a network on them, evaluate it and fill the run folder."""
    folder = Path(args.output_dir)
    set_up(args)
    state = PartialState()
    model = build_model(args.model, args.image_size, args.drop_rate, args.pretrained)
    if args.small_epochs:
        check_input_size(model, args.model, args.small_size, "--small_size")
    cohort = prepare_images(args, state)
    seen = [] if args.pretrained in ("true", "false") else read_seen(Path(args.pretrained).expanduser())
    leakage = check_leakage(cohort, seen, args.allow_leakage)
    trainer = build_trainer(args, model, cohort)
    # From here on each process draws its own augmentation and dropout.
    set_seed(args.seed, device_specific=True)

    audit = None
    with lock_run_folder(folder) if state.is_main_process else nullcontext(), explain_failures(args):
        if state.is_main_process:
            # Again: another training may have finished here while the images were read.
            check_run_folder(folder, args.overwrite_output_dir, args.resume_from_checkpoint)
            if args.overwrite_output_dir:
                clear_run_folder(folder)
            audit = write_audit(cohort, folder / "audit")
            write_seen(seen, folder / "audit" / SEEN)
            for line in audit_lines(audit["appearance"]):
                logger.info("%s; see %s", line, folder / "audit" / PAGE)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        evaluate(
            trainer,
            args,
            cohort,
            leakage,
            recipe=recipe,
            seed=args.seed,
            data={
                "source": source_names(args),
                "simulated": is_simulated(args),
                **cohort.counts(),
                "leakage": leakage,
            },
            audit=audit,
            history=trainer.history(),
            kept_epoch=trainer.kept_epoch,
            model={"parameters": sum(parameter.numel() for parameter in model.parameters())},
            training_seconds=round(trainer.seconds, 1),
        )


def prepare_images(args: Recipe, state: PartialState) -> Cohort:
    """Read, clean and split the images of all sources; log the size of each split."""
    if is_simulated(args):
        logger.info(
            "Training on SIMULATED images. For real ones: train.py recipes/resnet18.yaml --dataset FOLDER"
        )
    with local_main_first(state):  # the other processes find the images decoded
        cohort = prepare_cohort(
            args.dataset,
            args.image_size,
            args.cache,
            args.max_unreadable,
            split=args.split,
            split_seed=args.split_seed,
            covid=args.covid,
            uncertain=args.uncertain,
        )
    check_same_images(cohort)
    for name, count in cohort.counts()["splits"].items():
        logger.info(
            "%-10s %6d images of %d patients %s", name, count["films"], count["patients"], count["classes"]
        )
    return cohort


def build_trainer(args: Recipe, model: transformers.PreTrainedModel, cohort: Cohort) -> PneumoniaTrainer:
    training, validation = (ImageDataset(cohort, split, args.device) for split in ("train", "validation"))
    try:
        trainer = PneumoniaTrainer(model, args, training, validation, Augment(**args.augmentation))
        trainer.create_optimizer()
    # transformers refuses flags that exclude each other, or that need a package that is not installed.
    except (ValueError, RuntimeError, ImportError) as error:
        raise UsageError("invalid-recipe", " ".join(str(error).split())) from error
    return trainer


def evaluate(trainer: PneumoniaTrainer, args: Recipe, cohort: Cohort, leakage: dict, **facts: Any) -> None:
    """Calibrate the trained network, score the splits, run the checks and write the run folder.

    Args:
        facts: further entries of report.json.
    """
    folder, batch_size = Path(args.output_dir), args.per_device_eval_batch_size
    # Without the Trainer's mixed precision: in float32, as all other loaders compute.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    operating_point = calibrate(model, cohort, batch_size)
    model.config.pneumonia = {
        **operating_point,
        "dataset": source_names(args),
        "split_sha256": cohort.fingerprint(),
        "leakage": leakage,
        "leakage_allowed": args.allow_leakage,
    }
    splits = [*SPLITS, "covid"] if len(cohort.rows("covid")) else SPLITS
    predictions = {
        split: predict_split(model, cohort, split, batch_size, TRAIN_SCORED if split == "train" else None)
        for split in splits
    }
    held_out = {split: predictions[split] for split in ("test", "validation")}
    if args.checks:
        facts["checks"] = run_checks(model, cohort, held_out, operating_point["threshold"], batch_size)
    if not trainer.is_world_process_zero():
        return
    save_model(model, folder)
    if ood_check := args.ood and fit_ood_check(model, cohort, batch_size):
        ood_check.save(folder)
        facts["gate"] = measure_refusals(ood_check, model, cohort, batch_size)
    report = build_report(predictions, operating_point, **facts)
    for split, scores in held_out.items():
        scores.write_csv(folder / f"predictions_{split}.csv")
    plot_run(folder / "plots", report, predictions, cohort.cache, cohort.rows("test"))
    if args.checks:
        write_checks(folder, facts["checks"], model, cohort, held_out)
    finish_run_folder(folder, facts["recipe"], report)
    if args.checks:  # the card states their results
        try:
            write_card(folder)
        except UsageError as error:
            logger.warning("README.md (model card) was not written: %s", error)
    print_summary(folder, report)


def is_simulated(args: Recipe) -> bool:
    return set(args.dataset) <= set(PHANTOMS)


def source_names(args: Recipe) -> str:
    """Return the names of the sources without their paths, which are private."""
    return ", ".join(short_names(args.dataset))


def set_up(args: Recipe) -> None:
    """Configure logging, progress bars, the device and the seed."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO if args.process_index == 0 else logging.ERROR)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # logs ten retries before the error
    disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    setup_torch(args.device)
    set_seed(args.seed)


def print_summary(folder: Path, report: dict) -> None:
    """Print the test metrics, the run folder and the commands to try next."""
    test, point = report["splits"]["test"], report["operating_point"]
    kind = "simulated test images" if report["data"]["simulated"] else "test images"
    print(f"\n{test['films']} {kind}: {metrics_line(test)} (threshold 0.5)")
    print(
        f"threshold {point['threshold']:.3f} ({point['target_sensitivity']:.0%} sensitivity on validation): "
        f"{metrics_line(point['test'], ('sensitivity', 'specificity'))}"
    )
    for line in appearance_lines(report.get("checks", {}).get("appearance")):
        print(line)
    # As it can be typed here, with a virtual environment that is not activated.
    python = Path(sys.executable)
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else "python"
    print(f"run folder: {folder}")
    print(f"next:  {python} app.py --model {folder}")
    if "checks" in report:  # push_to_hub.py needs their results
        print(f"       {python} push_to_hub.py {folder} --repo USER/NAME")


if __name__ == "__main__":
    sys.exit(run_script("train.py", main, sys.argv[1:]))

"""Parsing of recipes and flags, and the errors of invalid ones."""

from pathlib import Path

import pytest
import yaml

from hf_pneumonia.errors import UsageError
from hf_pneumonia.training.arguments import parse_recipe

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe and return its path."""

    def write(text: str) -> Path:
        (tmp_path / "mine.yaml").write_text(text)
        return tmp_path / "mine.yaml"

    return write


def _parse(*argv):
    return parse_recipe([*map(str, argv)], default=RECIPES / "quickstart.yaml")


def test_a_flag_overrides_the_recipe(recipe):
    text = "learning_rate: 5e-4\nimage_size: 64\nadam_l2: true\npretrained: false\nwarmup_steps: 0.1\n"
    text += "lr_scheduler_kwargs: {num_cycles: 2}\nlr_scheduler_type: cosine_with_restarts\n"
    args, resolved = _parse(recipe(text), "--image_size", "48", "--seed=7")
    assert (args.learning_rate, args.image_size, args.seed) == (5e-4, 48, 7)
    assert (resolved["image_size"], resolved["seed"], args.output_dir) == (48, 7, "runs/mine")
    assert (args.adam_l2, args.pretrained, args.get_warmup_steps(50)) == (True, "false", 5)
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}


def test_the_resolved_recipe_reads_back_to_the_same_run(recipe):
    lines = "model: resnet50\nrotation: [20, 5]   # NORMAL, PNEUMONIA\nzoom: 0.1\nshift: [0.2]\n"
    args, resolved = _parse(recipe(lines), "--blur", "1.5", "0", "--noise", "0.02", "--weight_decay", "0.1")
    assert args.augmentation == {
        "rotation": [20, 5], "zoom": 0.1, "proportions": 0, "shift": 0.2, "resolution": 0, "blur": [1.5, 0],
        "exposure": 0, "noise": 0.02, "horizontal_flip": 0,
    }  # fmt: skip
    _, again = _parse(recipe(yaml.safe_dump(resolved)))
    assert again == resolved and resolved["seed"] == 42


def test_data_seed_defaults_to_seed():
    assert _parse("--seed", "7")[0].data_seed == 7
    assert _parse("--seed", "7", "--data_seed", "3")[0].data_seed == 3


def test_the_resolved_recipe_has_neither_paths_nor_tokens():
    _, resolved = _parse("--hub_token", "hf_x", "--cache_dir", "/x", "--output_dir", "/y")
    assert not {"hub_token", "cache_dir", "output_dir"} & resolved.keys()


def test_a_hub_name_of_an_architecture_becomes_its_timm_name():
    args, recipe = _parse("--model", "hf-hub:timm/resnet18.a1_in1k")
    assert args.model == recipe["model"] == "resnet18.a1_in1k"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_of_the_project_is_valid(path):
    assert _parse(str(path))[0].output_dir == f"runs/{path.stem}"


@pytest.mark.parametrize(
    "text, code, named",
    [
        ("a: [", "unreadable-recipe", "YAML"),
        ("- a\n- b", "unreadable-recipe", "list"),
        ("# nothing", "unreadable-recipe", "NoneType"),
        ("learning_rat: 1", "unknown-recipe-key", "Did you mean 'learning_rate'?"),
    ],
)
def test_an_invalid_recipe_is_an_error(recipe, text, code, named):
    with pytest.raises(UsageError) as error:
        _parse(recipe(text))
    assert error.value.code == code
    assert "mine.yaml: " in str(error.value) and named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "flags, code, named",
    [
        ("none.yaml", "recipe-not-found", "none.yaml"),
        ("--learning_rate fast", "invalid-flag", "'fast'"),
        ("--no_such_flag 1", "invalid-flag", "--no_such_flag"),
        ("--uncertain maybe", "unknown-choice", "'maybe'"),
        ("--covid all", "unknown-choice", "'all'"),
        ("--metric_for_best_model foo", "unknown-choice", "'foo'"),
        ("--imbalance both", "unknown-choice", "'both'"),
        ("--rotation nan", "out-of-range", "nan"),
        ("--rotation 20 200", "out-of-range", "200"),
        ("--num_train_epochs nan", "out-of-range", "nan"),
        ("--rotation 1 2 3", "strength-count", "got 3"),
        ("--push_to_hub true", "unsupported-flag", "push_to_hub.py"),
        ("--neftune_noise_alpha 5", "unsupported-flag", "--noise"),
        ("--label_names x", "unsupported-flag", "NORMAL"),
        ("--fp16 true --use_cpu true", "fp16-without-gpu", "--bf16"),
        ("--overwrite_output_dir --resume_from_checkpoint true", "overwrite-and-resume", "--resume"),
        ("--seeds 1 1", "repeated-seed", "got 1 1"),
        ("--seeds 1 2 --resume_from_checkpoint x", "resume-seeds", "'x'"),
        ("--small_epochs 1 --small_size 96", "small-size", "--image_size 96"),
        ("--frozen_epochs 2 --num_train_epochs 2", "phase-too-long", "--num_train_epochs 2"),
        ("--frozen_epochs 1 --learning_rate 0", "frozen-without-learning-rate", "--learning_rate"),
        ("--frozen_epochs 1 --lr_scheduler_type reduce_lr_on_plateau", "frozen-with-plateau", "cosine"),
        ("--early_stopping_epochs 1 --eval_strategy no", "early-stopping-unevaluated", "--eval_strategy"),
        ("--lr_scheduler_kwargs {factor", "scheduler-settings", "{factor"),
        ("--lr_scheduler_kwargs 3", "scheduler-settings", "got '3'"),
    ],
)
def test_an_invalid_flag_is_an_error_of_one_line(flags, code, named):
    with pytest.raises(UsageError) as error:
        _parse(*flags.split())
    assert error.value.code == code
    assert named in str(error.value) and "\n" not in str(error.value)

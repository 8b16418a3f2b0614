"""Recipes and flags: what they mean, and the error of one line for what they do not."""

from pathlib import Path

import pytest
import yaml

from hf_pneumonia.errors import UsageError
from hf_pneumonia.training.arguments import parse_recipe

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe, and return its path."""

    def write(text: str) -> Path:
        (tmp_path / "mine.yaml").write_text(text)
        return tmp_path / "mine.yaml"

    return write


def _parse(*argv):
    return parse_recipe([*map(str, argv)], default=RECIPES / "quickstart.yaml")


def test_a_flag_overrides_its_line_of_the_recipe_where_numbers_are_as_people_write_them(recipe):
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


def test_images_are_ordered_by_the_seed_unless_told_otherwise():
    assert _parse("--seed", "7")[0].data_seed == 7
    assert _parse("--seed", "7", "--data_seed", "3")[0].data_seed == 3


def test_neither_place_nor_token_stands_in_the_resolved_recipe():
    _, resolved = _parse("--hub_token", "hf_x", "--cache_dir", "/x", "--output_dir", "/y")
    assert not {"hub_token", "cache_dir", "output_dir"} & resolved.keys()


def test_an_architecture_by_its_name_on_the_hub_is_timms_own():
    args, recipe = _parse("--model", "hf-hub:timm/resnet18.a1_in1k")
    assert args.model == recipe["model"] == "resnet18.a1_in1k"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_of_the_project_is_valid(path):
    assert _parse(str(path))[0].output_dir == f"runs/{path.stem}"


def test_a_file_that_is_no_recipe_is_an_error_of_one_line(recipe):
    for text, message in {
        "a: [": "can't be read as a recipe",
        "- a\n- b": "got list",
        "# nothing": "got NoneType",
        "learning_rat: 1": "mine.yaml: unknown key 'learning_rat'; did you mean 'learning_rate'",
    }.items():
        with pytest.raises(UsageError, match=message):
            _parse(recipe(text))


@pytest.mark.parametrize(
    "flags, message",
    [
        ("none.yaml", "none.yaml: no such recipe"),
        ("--learning_rate fast", "invalid float value: 'fast'"),
        ("--no_such_flag 1", "unrecognized arguments: --no_such_flag"),
        ("--uncertain maybe", "--uncertain .* drop, positive, negative, got 'maybe'"),
        ("--covid all", "--covid .* drop, pneumonia, keep, got 'all'"),
        ("--rotation nan", "--rotation .* 0 to 180, got nan"),
        ("--rotation 20 200", "--rotation .* 0 to 180, got 200"),
        ("--rotation 1 2 3", "--rotation .* NORMAL, PNEUMONIA; got 3"),
        ("--num_train_epochs nan", "--num_train_epochs .* above 0, got nan"),
        ("--metric_for_best_model foo", "--metric_for_best_model .* loss, .*auroc_swapped"),
        ("--push_to_hub true", "by push_to_hub.py"),
        ("--neftune_noise_alpha 5", "--neftune_noise_alpha: .* language models"),
        ("--label_names x", "--label_names: .* class folders"),
        ("--fp16 true --use_cpu true", "--fp16 expects a GPU"),
        ("--imbalance both", "--imbalance .* none, weights, sampler, got 'both'"),
        ("--overwrite_output_dir --resume_from_checkpoint true", "exclude each other"),
        ("--seeds 1 1", "--seeds .* once"),
        ("--seeds 1 2 --resume_from_checkpoint x", "--seeds .* --resume_from_checkpoint auto"),
        ("--small_epochs 1 --small_size 96", "--small_size .* --image_size 96"),
        ("--frozen_epochs 2 --num_train_epochs 2", "--frozen_epochs .* --num_train_epochs 2, got 2"),
        ("--frozen_epochs 1 --learning_rate 0", "--frozen_epochs .* --learning_rate above 0"),
        ("--frozen_epochs 1 --lr_scheduler_type reduce_lr_on_plateau", "--frozen_epochs .* plateau"),
        ("--early_stopping_epochs 1 --eval_strategy no", "--early_stopping_epochs"),
        *((f"--lr_scheduler_kwargs {text}", "--lr_scheduler_kwargs") for text in ("{factor", "3")),
    ],
)
def test_a_wrong_flag_is_an_error_of_one_line(flags, message):
    with pytest.raises(UsageError, match=message) as error:
        _parse(*flags.split())
    assert "\n" not in str(error.value)

"""Recipes and flags: what they mean, and the error of one line for what they do not."""

from pathlib import Path

import pytest
import yaml

from hf_pneumonia.errors import UsageError
from hf_pneumonia.training.arguments import parse_recipe

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe: its text, or its lines by name. Returns the path."""

    def write(text: str = "", **lines) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text or yaml.safe_dump(lines))
        return str(path)

    return write


def _parse(*argv):
    return parse_recipe([*argv], default=RECIPES / "quickstart.yaml")


def test_without_arguments_the_default_recipe_is_read():
    args, resolved = _parse()
    written = yaml.safe_load((RECIPES / "quickstart.yaml").read_text())
    assert args.dataset == ["phantom"] and args.pretrained == "false" and args.output_dir == "runs/quickstart"
    assert resolved["image_size"] == args.image_size == written["image_size"]


def test_a_flag_overrides_its_line_of_the_recipe(recipe):
    args, resolved = _parse(recipe(learning_rate=1e-3, image_size=64), "--learning_rate", "0.5", "--seed=7")
    assert (args.learning_rate, args.image_size, args.seed) == (0.5, 64, 7)
    assert (resolved["learning_rate"], resolved["seed"]) == (0.5, 7)
    assert args.output_dir == "runs/mine"


def test_numbers_and_switches_are_read_as_people_write_them_in_yaml(recipe):
    args, _ = _parse(
        recipe(
            "learning_rate: 5e-4\nadam_l2: true\npretrained: false\nlr_scheduler_kwargs: {num_cycles: 2}\n"
            "lr_scheduler_type: cosine_with_restarts\nwarmup_steps: 0.1\n"
        )
    )
    assert (args.learning_rate, args.adam_l2, args.pretrained) == (5e-4, True, "false")
    assert args.lr_scheduler_kwargs == {"num_cycles": 2} and args.get_warmup_steps(50) == 5


def test_the_resolved_recipe_reads_back_to_the_same_run(recipe):
    lines = "model: resnet50\nrotation: [20, 5]   # NORMAL, PNEUMONIA\nzoom: 0.1\nshift: [0.2]\n"
    args, resolved = _parse(recipe(lines), "--blur", "1.5", "0", "--noise", "0.02", "--weight_decay", "0.1")
    assert args.augmentation == {
        "rotation": [20, 5], "zoom": 0.1, "proportions": 0, "shift": 0.2, "resolution": 0, "blur": [1.5, 0],
        "exposure": 0, "noise": 0.02, "horizontal_flip": 0,
    }  # fmt: skip
    assert resolved["seed"] == 42 and resolved["learning_rate"] == args.learning_rate
    assert resolved["bf16"] is args.bf16 and resolved["lr_scheduler_type"] == "linear"
    again, resolved_again = _parse(recipe(yaml.safe_dump(resolved)))
    assert resolved_again == resolved and again.augmentation == args.augmentation
    assert (again.model, again.weight_decay) == ("resnet50", 0.1)


def test_films_are_ordered_by_the_seed_unless_told_otherwise():
    assert _parse("--seed", "7")[0].data_seed == 7
    assert _parse("--seed", "7", "--data_seed", "3")[0].data_seed == 3


def test_neither_place_nor_token_stands_in_the_resolved_recipe(recipe):
    _, resolved = _parse(recipe(seed=1), "--hub_token", "hf_x", "--cache_dir", "/x", "--output_dir", "/y")
    assert not {"hub_token", "cache_dir", "output_dir"} & resolved.keys()


def test_an_architecture_by_its_name_on_the_hub_is_timms_own():
    args, recipe = _parse("--model", "hf-hub:timm/resnet18.a1_in1k")
    assert args.model == recipe["model"] == "resnet18.a1_in1k"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_of_the_project_is_valid(path):
    assert _parse(str(path))[0].output_dir == f"runs/{path.stem}"


def test_the_classic_recipe_is_what_it_says():
    args, _ = _parse(str(RECIPES / "classic.yaml"))
    assert (args.model.split(".")[0], args.pretrained, args.drop_rate) == ("resnet18", "true", 0.5)
    assert (args.adam_l2, args.learning_rate, args.weight_decay, args.lr_step_epochs) == (True, 1e-3, 1e-4, 7)
    assert (args.num_train_epochs, args.per_device_train_batch_size) == (20, 32)
    on = {name for name, value in args.augmentation.items() if value}
    assert on == {"rotation", "blur", "horizontal_flip"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [", "can't be read as a recipe"),
        ("- a\n- b", "got list"),
        ("# nothing", "got NoneType"),
        ("learning_rat: 1", "mine.yaml: unknown key 'learning_rat'; did you mean 'learning_rate'"),
    ],
)
def test_a_file_that_is_no_recipe_is_an_error_of_one_line(recipe, text, message):
    with pytest.raises(UsageError, match=message) as error:
        _parse(recipe(text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("none.yaml", "none.yaml: no such recipe"),
        ("--learning_rate fast", "invalid float value: 'fast'"),
        ("--no_such_flag 1", "unrecognized arguments: --no_such_flag"),
        ("--warmup_ratio 0.1", "--warmup_ratio 0.1; --warmup_steps below 1"),
        ("--adam_beta1 2", "--adam_beta1 .* got 2"),
        ("--dataloader_num_workers -1", "--dataloader_num_workers .* got -1"),
        ("--uncertain maybe", "--uncertain .* drop, positive, negative, got 'maybe'"),
        ("--covid all", "--covid .* drop, pneumonia, keep, got 'all'"),
        ("--drop_rate 1.5", "--drop_rate .* 0 to 0.99, got 1.5"),
        ("--rotation nan", "--rotation .* 0 to 180, got nan"),
        ("--rotation 20 200", "--rotation .* 0 to 180, got 200"),
        ("--rotation 1 2 3", "--rotation .* NORMAL, PNEUMONIA; got 3"),
        ("--rotation", "--rotation: expected at least one argument"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size .* from 1"),
        ("--seed -1", "--seed .* from 0"),
        ("--num_train_epochs nan", "--num_train_epochs .* above 0, got nan"),
        ("--num_train_epochs 0", "--num_train_epochs .* above 0"),
        ("--metric_for_best_model foo", "--metric_for_best_model .* loss, accuracy"),
        ("--push_to_hub true", "by push_to_hub.py"),
        ("--seed 1 recipe.yaml", "the recipe comes first"),
        ("--imbalance both", "--imbalance .* none, weights, sampler, got 'both'"),
        ("--image_size 8", "--image_size .* 32 to 2048"),
        ("--lr_scheduler_type zigzag", "zigzag"),
        ("--overwrite_output_dir --resume_from_checkpoint true", "exclude each other"),
        ("--eval_strategy steps --save_strategy epoch", "save and eval strategy"),
        ("--seeds 1 1", "--seeds .* once"),
        ("--seeds 1 2 --resume_from_checkpoint x", "--seeds .* --resume_from_checkpoint auto"),
        ("--small_epochs 1 --small_size 96", "--small_size .* --image_size 96"),
        ("--small_epochs 2 --num_train_epochs 2", "--small_epochs .* --num_train_epochs 2, got 2"),
        ("--frozen_epochs 2 --num_train_epochs 2", "--frozen_epochs .* --num_train_epochs 2, got 2"),
        ("--frozen_epochs 1 --learning_rate 0", "--frozen_epochs .* --learning_rate above 0"),
        ("--frozen_epochs 1 --lr_scheduler_type reduce_lr_on_plateau", "--frozen_epochs .* plateau"),
        ("--layer_decay 1.5", "--layer_decay .* 0.01 to 1"),
        ("--ema_decay 1", "--ema_decay .* from 0"),
        ("--early_stopping_epochs 1 --eval_strategy no", "--early_stopping_epochs"),
        *((f"--lr_scheduler_kwargs {text}", "--lr_scheduler_kwargs") for text in ("{factor", "3", '"mode"')),
    ],
)
def test_a_wrong_flag_is_an_error_of_one_line(flags, message):
    with pytest.raises(UsageError, match=message) as error:
        _parse(*flags.split())
    assert "\n" not in str(error.value)


def test_the_help_shows_every_flag_of_the_project(capsys):
    with pytest.raises(SystemExit) as stop:
        _parse("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and len(text.splitlines()) < 200
    assert all(f"--{name} " in text for name in ("dataset", "pretrained", "rotation", "seed"))

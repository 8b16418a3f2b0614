from pathlib import Path

import pytest
import yaml

from hf_pneumonia.errors import UsageError
from hf_pneumonia.training.arguments import parse_recipe

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def recipe(tmp_path):
    def write(**lines) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(lines))
        return str(path)

    return write


def _parse(*argv):
    return parse_recipe([*argv], default=RECIPES / "quickstart.yaml")


def test_without_arguments_the_default_recipe_is_read():
    args, resolved = _parse()
    assert args.dataset == ["phantom"] and args.pretrained == "false" and args.output_dir == "runs/quickstart"
    assert (
        resolved["image_size"]
        == args.image_size
        == yaml.safe_load(open(RECIPES / "quickstart.yaml"))["image_size"]
    )


def test_a_flag_overrides_its_line_of_the_recipe(recipe):
    args, resolved = _parse(recipe(learning_rate=1e-3, image_size=64), "--learning_rate", "0.5", "--seed=7")
    assert (args.learning_rate, args.image_size, args.seed) == (0.5, 64, 7)
    assert (resolved["learning_rate"], resolved["seed"]) == (0.5, 7)
    assert args.output_dir == "runs/mine"


def test_numbers_and_switches_are_read_as_people_write_them_in_yaml(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "learning_rate: 5e-4\nadam_l2: true\npretrained: false\nlr_scheduler_kwargs: {num_cycles: 2}\n"
        "lr_scheduler_type: cosine_with_restarts\nwarmup_steps: 0.1\n"
    )
    args, _ = _parse(str(tmp_path / "r.yaml"))
    assert (args.learning_rate, args.adam_l2, args.pretrained) == (5e-4, True, "false")
    assert args.lr_scheduler_kwargs == {"num_cycles": 2} and args.get_warmup_steps(50) == 5


def test_the_resolved_recipe_reads_back_to_the_same_run(recipe, tmp_path):
    args, resolved = _parse(recipe(model="resnet50", rotation=5), "--blur", "1", "--weight_decay", "0.1")
    (tmp_path / "resolved.yaml").write_text(yaml.safe_dump(resolved))
    again, resolved_again = _parse(str(tmp_path / "resolved.yaml"))
    assert resolved_again == resolved
    assert resolved["seed"] == 42 and resolved["learning_rate"] == args.learning_rate
    assert resolved["bf16"] is args.bf16 and resolved["lr_scheduler_type"] == "linear"
    assert (again.model, again.rotation, again.blur, again.weight_decay) == ("resnet50", 5, 1, 0.1)


def test_a_strength_of_the_augmentation_is_one_number_or_one_for_each_class(tmp_path):
    (tmp_path / "r.yaml").write_text("rotation: [20, 5]   # NORMAL, PNEUMONIA\nzoom: 0.1\nshift: [0.2]\n")
    args, resolved = _parse(str(tmp_path / "r.yaml"), "--blur", "1.5", "0", "--noise", "0.02")
    assert args.augmentation == {
        "rotation": [20, 5], "zoom": 0.1, "proportions": 0, "shift": 0.2, "resolution": 0, "blur": [1.5, 0],
        "exposure": 0, "noise": 0.02, "horizontal_flip": 0,
    }  # fmt: skip
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(resolved))
    assert _parse(str(tmp_path / "again.yaml"))[0].augmentation == args.augmentation


def test_films_are_ordered_by_the_seed_unless_told_otherwise():
    assert _parse("--seed", "7")[0].data_seed == 7
    assert _parse("--seed", "7", "--data_seed", "3")[0].data_seed == 3


def test_neither_place_nor_token_stands_in_the_resolved_recipe(recipe):
    _, resolved = _parse(recipe(seed=1), "--hub_token", "hf_x", "--cache_dir", "/x", "--output_dir", "/y")
    assert not {"hub_token", "cache_dir", "output_dir"} & resolved.keys()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_of_the_project_is_valid(path):
    args, _ = _parse(str(path))
    assert args.output_dir == f"runs/{path.stem}"


def test_the_classic_recipe_is_what_it_says():
    args, _ = _parse(str(RECIPES / "classic.yaml"))
    assert (args.model.split(".")[0], args.pretrained, args.drop_rate) == ("resnet18", "true", 0.5)
    assert (args.adam_l2, args.learning_rate, args.weight_decay, args.lr_step_epochs) == (True, 1e-3, 1e-4, 7)
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.label_smoothing_factor) == (
        20,
        32,
        0,
    )
    on = {name for name, value in args.augmentation.items() if value}
    assert on == {"rotation", "blur", "horizontal_flip"}


def test_an_unknown_key_is_an_error_that_guesses_the_intent(recipe):
    with pytest.raises(
        UsageError, match="mine.yaml: unknown key 'learning_rat'; did you mean 'learning_rate'"
    ):
        _parse(recipe(learning_rat=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "can't be read as a recipe"), ("- a\n- b", "expected lines"), ("", "expected lines")],
    ids=["broken", "list", "empty"],
)
def test_a_file_that_is_no_recipe_is_an_error_of_one_line(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        _parse(str(tmp_path / "r.yaml"))
    assert "\n" not in str(error.value)


def test_a_recipe_that_does_not_exist_is_an_error():
    with pytest.raises(UsageError, match="none.yaml: no such recipe"):
        _parse("none.yaml")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--learning_rate", "fast"), "invalid float value: 'fast'"),
        (("--no_such_flag", "1"), "unrecognized arguments: --no_such_flag"),
        (("--drop_rate", "1.5"), "--drop_rate expects a number from 0 to 0.99, got 1.5"),
        (("--rotation", "nan"), "--rotation expects a number from 0 to 180, got nan"),
        (("--per_device_train_batch_size", "0"), "--per_device_train_batch_size expects a number from 1"),
        (("--seed", "-1"), "--seed expects a number from 0"),
        (("--num_train_epochs", "nan"), "--num_train_epochs expects a number above 0, got nan"),
        (("--metric_for_best_model", "foo"), "--metric_for_best_model expects one of loss, accuracy"),
        (("--push_to_hub", "true"), "by push_to_hub.py"),
        (("--seed", "1", "recipe.yaml"), "the recipe comes first"),
        (("--rotation", "20", "200"), "--rotation expects a number from 0 to 180, got 200"),
        (("--rotation", "1", "2", "3"), "--rotation expects one number, or two: NORMAL, PNEUMONIA; got 3"),
        (("--rotation",), "--rotation: expected at least one argument"),
        (("--imbalance", "both"), "--imbalance expects one of none, weights, sampler, got 'both'"),
        (("--image_size", "8"), "--image_size expects a number from 32 to 2048"),
        (("--num_train_epochs", "0"), "--num_train_epochs expects a number above 0"),
        (("--lr_scheduler_type", "zigzag"), "zigzag"),
        (("--overwrite_output_dir", "--resume_from_checkpoint", "true"), "exclude each other"),
        (("--eval_strategy", "steps", "--save_strategy", "epoch"), "save and eval strategy"),
        (("--seeds", "1", "1"), "--seeds expects each seed once"),
        (("--seeds", "1", "2", "--resume_from_checkpoint", "x"), "--seeds goes on with"),
        (("--small_epochs", "1", "--small_size", "96"), "--small_size expects less than --image_size 96"),
        (("--frozen_epochs", "1", "--learning_rate", "0"), "--frozen_epochs needs a --learning_rate above 0"),
        (("--layer_decay", "1.5"), "--layer_decay expects a number from 0.01 to 1"),
        (("--ema_decay", "1"), "--ema_decay expects a number from 0"),
        (("--early_stopping_epochs", "1", "--eval_strategy", "no"), "--early_stopping_epochs needs"),
        *((("--lr_scheduler_kwargs", text), "expects settings") for text in ("{factor", "3", '"mode"')),
    ],
)
def test_a_wrong_flag_is_an_error_of_one_line(flags, message):
    with pytest.raises(UsageError, match=message) as error:
        _parse(*flags)
    assert "\n" not in str(error.value)


def test_the_help_shows_every_flag_of_the_project(capsys):
    with pytest.raises(SystemExit) as stop:
        _parse("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and len(text.splitlines()) < 200
    assert all(
        f"--{name} " in text for name in ("dataset", "pretrained", "rotation", "lr_step_epochs", "seed")
    )

import json

import pytest
import yaml

from hf_pneumonia.data.files import LARGEST_YAML, read_json, read_yaml

LAUGHS = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n"


def test_settings_survive_a_round_trip_through_yaml_and_json(tmp_path):
    settings = {"a": [1, 2.5, True, None, "ä"], "b": {"c": {"d": [[]]}}}
    (tmp_path / "x").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    assert read_yaml(tmp_path / "x") == settings
    (tmp_path / "x").write_text(json.dumps(settings))
    assert read_json(tmp_path / "x") == settings


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_yaml, LAUGHS, r"alias \*a is not supported"),
        (read_yaml, "a: !!python/name:os.system", "could not determine a constructor"),
        (read_yaml, "a: " + "[" * 5_000, "recursion"),
        (read_yaml, "a: " + "x" * LARGEST_YAML, "at most 100,000 bytes"),
        (read_yaml, "a: 2001-99-99", "month must be in 1..12"),
        (read_yaml, "a: " + "9" * 5000, "Exceeds the limit"),
        (read_yaml, "a: [", "expected"),
        (read_yaml, "a: \xff", "utf-8"),
        (read_json, "{", "Expecting"),
        (read_json, "[" * 100_000, "recursion"),
        (read_json, "9" * 5000, "limit"),
    ],
)
def test_unsafe_huge_or_invalid_settings_raise_one_line(tmp_path, read, text, message):
    (tmp_path / "x").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / "x")
    assert "\n" not in str(error.value) and len(str(error.value)) <= 300

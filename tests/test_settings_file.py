import json

import pytest
import yaml

from hf_pneumonia.data.settings_file import LARGEST_YAML, read_json, read_yaml

LAUGHS = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n"


def test_settings_are_read_as_yaml_and_json_do(tmp_path):
    settings = {"a": [1, 2.5, True, None, "ä"], "b": {"c": {"d": [[]]}}}
    (tmp_path / "x").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    assert read_yaml(tmp_path / "x") == settings
    (tmp_path / "x").write_text(json.dumps(settings))
    assert read_json(tmp_path / "x") == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "alias *a: aliases are not read"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: " + "[" * 5_000, "recursion"),
        ("a: " + "x" * LARGEST_YAML, "more than 100,000 bytes"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: [", "expected"),
        ("a: \xff\xfe".encode("latin-1"), "utf-8"),
    ],
)
def test_yaml_that_would_run_grow_or_never_end_is_refused_in_one_line(tmp_path, text, said):
    (tmp_path / "x").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=said.replace("*", r"\*").replace("[", r"\[")) as error:
        read_yaml(tmp_path / "x")
    assert "\n" not in str(error.value) and len(str(error.value)) <= 300


@pytest.mark.parametrize(
    ("text", "said"), [("{", "Expecting"), ("[" * 100_000, "recursion"), ("9" * 5000, "limit")]
)
def test_json_that_is_none_or_deep_is_refused_in_one_line(tmp_path, text, said):
    (tmp_path / "x").write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        read_json(tmp_path / "x")
    assert "\n" not in str(error.value)

import io
import json
import struct
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from test_manifest_summary import IMAGES, write_run
from written import written_report

from hf_pneumonia.errors import UsageError
from hf_pneumonia.publishing.private import check_private, check_source_code

NAMED = [
    ("/data/x/person1000_bacteria_2931.jpeg", *IMAGES[0][1:3], "person1000_bacteria", *IMAGES[0][4:]),
    ("/data/x/Müller, Anna 3.jpeg", *IMAGES[0][1:3], "films:Schmidt-Hans", *IMAGES[0][4:]),
    ("C:\\images\\scan 0042.dcm", *IMAGES[0][1:3], "1.2.840.11", *IMAGES[0][4:]),
    ("/data/x/image.png", *IMAGES[0][1:3], "12", *IMAGES[0][4:]),
    ("/data/x/NORMAL-131.png", *IMAGES[0][1:3], "0.844", *IMAGES[0][4:]),
    ("/data/x/7.png", *IMAGES[0][1:3], "20190314", *IMAGES[0][4:]),
]

PATHS = r"/home/somebody/images /tmp/pytest/x ~/images/train C:\images\x file:///data \\server\patients\x"
NAMES = "person1000_bacteria_2931.jpeg PERSON1000_BACTERIA_2931 person1000 Schmidt-Hans 1.2.840.11 20190314"
# The umlaut of the first name is decomposed, as in file names on macOS.
MORE_NAMES = ["Mu\u0308ller, Anna 3", "Müller, Anna 3", "scan 0042", "x_person1000_virus"]
SECRETS = {
    "local-path-in-file": [*PATHS.split(), "/mnt/Röntgen/ä"],
    "token-in-file": ["hf_" + "aB3" * 11, "hf_secretofmine"],
    "private-name": [*NAMES.split(), *MORE_NAMES],
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder whose manifest has these names, on a machine with a token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secretofmine")
    write_run(tmp_path, NAMED)
    (tmp_path / "report.json").write_text(json.dumps(written_report()))
    return tmp_path


def as_text(secret: str) -> bytes:
    return f"the model of {secret}, and more\n".encode()


def as_json(secret: str) -> bytes:
    inner = json.dumps([{secret: 1}])  # escapes umlauts and backslashes
    return f'{{"a": {inner}, "a": 0}}'.encode()  # a repeated key


def as_png(secret: str) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("Comment", secret, zip=True)
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "png", pnginfo=text)
    return file.getvalue()


def as_safetensors(secret: str) -> bytes:
    header = json.dumps({"__metadata__": {"from": secret}}, ensure_ascii=False).encode()
    return struct.pack("<Q", len(header)) + header


KINDS = {
    "README.md": as_text,
    "recipe.yaml": as_text,
    "report.json": as_json,
    "plots/roc.png": as_png,
    "model.safetensors": as_safetensors,
}


@pytest.mark.parametrize("place", KINDS)
def test_secrets_are_found_in_every_type_of_file(run, place):
    for code, secrets in SECRETS.items():
        for secret in secrets:
            with pytest.raises(UsageError, match=f"^{place}: ") as error:
                check_private({"fine.md": b"fine", place: KINDS[place](secret)}, run)
            assert error.value.code == code, secret
            assert code != "token-in-file" or secret not in str(error.value)


def test_the_paths_of_the_run_and_its_sources_are_local_paths(run):
    report = written_report()
    report["recipe"]["dataset"] = ["ward/7/images"]
    (run / "report.json").write_text(json.dumps(report))
    for path in (str(run), "ward/7/images"):
        with pytest.raises(UsageError) as error:
            check_private({"README.md": f"x{path}".encode()}, run)
        assert error.value.code == "local-path-in-file"


def test_metrics_words_and_urls_are_allowed(run):
    for text in (
        "an image is 12 px wide; | NORMAL | 131 | 3 |; 0.844 [0.12, 7.00]",
        "https://huggingface.co/user/name/tree/main and plots/roc.png, width / height, and/or",
        "sensitivity/specificity of hf_pneumonia; torch/2.15, `a/b/c`, </a> <b/>",
        "persons1000 person10000 person100",
    ):
        check_private({"README.md": text.encode(), "config.json": json.dumps(text).encode()}, run, "an image")


def test_source_code_may_name_images_and_paths_but_no_token_and_no_home(run):
    check_source_code({"a.py": b"person1000_bacteria_2931 lies in /data/images/train and ~/.cache/images"})
    home = f"{Path.home()}/images"
    for code, text in (("token-in-file", "hf_secretofmine"), ("local-path-in-file", home)):
        with pytest.raises(UsageError, match="^a.py: ") as error:
            check_source_code({"a.py": f"x = '{text}'".encode()})
        assert error.value.code == code


def test_a_name_is_found_unless_it_is_an_allowed_word(run):
    write_run(run, [("/data/x/Petersen.png", *IMAGES[0][1:])])
    with pytest.raises(UsageError, match="petersen"):
        check_private({"README.md": b"drawn by Petersen"}, run)
    check_private({"README.md": b"drawn by Petersen"}, run, "Petersen et al.")


def test_images_that_the_pretrained_weights_have_seen_are_searched_for_too(run):
    (run / "audit" / "manifest.csv").rename(run / "audit" / "seen_before.csv")
    write_run(run)
    with pytest.raises(UsageError, match="person1000"):
        check_private({"README.md": b"person1000"}, run)


def test_files_that_can_not_be_searched_are_refused(run):
    for place, content in (
        ("report.json", b"{"),
        ("README.md", b"\xff\xfe"),
        ("plots/roc.png", b"\x89PNG and no more"),
        ("model.safetensors", b"\0\0"),
        ("model.safetensors", struct.pack("<Q", 2**60) + b"{}"),
        ("training_args.bin", b"a pickle"),
    ):
        with pytest.raises(UsageError, match=place) as error:
            check_private({place: content}, run)
        assert error.value.code == "unsearchable-file"

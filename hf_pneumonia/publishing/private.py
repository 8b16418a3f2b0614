"""Final privacy check of files to publish: local paths, tokens, and names of images and patients.

public_report.py selects what is published by allow-lists; this module catches what they miss.
"""

import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import huggingface_hub
from PIL import Image

from hf_pneumonia.data.labels import coarse_patient
from hf_pneumonia.data.manifest import MANIFEST, SEEN, read_manifest
from hf_pneumonia.errors import UsageError
from hf_pneumonia.publishing.public_report import source_names

# Absolute or home paths at least two levels deep, but not parts of words, URLs or tags.
_PATH = re.compile(
    r"(?<![\w./:<~-])~?/[^\s/\"'`|,;()<>]+/[^\s\"'`|,;()<>]+|(?<!\w)[A-Za-z]:\\+\w"
    r"|(?<!\w)\\+\w[\w.$-]*\\+\w|file:/+\w"
)
_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}|\bgh[a-z]_[A-Za-z0-9]{30,}|\bAKIA[0-9A-Z]{16}\b")
_TOKEN_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "WANDB_API_KEY", "KAGGLE_KEY")

# 0.984375 is one word: its digits must not match the id of a patient.
_WORD = re.compile(r"\d+(?:\.\d+)+|[^\W_]+")
_LONGEST = 12  # words of a name that are compared

# Suffixes of plain text files.
_TEXTUAL = {".md", ".yaml", ".yml", ".txt", ".py", ".toml", ".csv", ".html", ".css", ".js", ""}


def check_private(files: Mapping[str, Path | bytes], run: Path, innocent: str = "") -> None:
    """Refuse to publish files that contain local paths, tokens, or names of images or patients.

    Text files, the text chunks of PNG files and the headers of safetensors files are searched. The names are
    those in the run's manifest and `seen_before.csv`: patients, and files with and without suffix, ignoring
    case. Names of less than four letters and numbers of less than six digits are skipped.

    Args:
        files: path in the repository -> file, or its content.
        run: folder of the run that the files belong to.
        innocent: text whose words are allowed even if an image has that name ("image.png").

    Raises:
        UsageError: names the file and what it contains; a token is not printed.
    """
    paths, tokens = _paths(run), _tokens()
    names = _Names(_private_names(run), innocent)
    for place, content in files.items():
        for text in _texts(place, content):
            _refuse_token(place, text, tokens)
            _refuse_path(place, text, [*paths, *(path.group() for path in _PATH.finditer(text))])
            if name := names.found_in(text):
                raise UsageError(
                    "private-name",
                    f"{place}: expected no image or patient name, got {name}; nothing was sent. Remove it",
                )


def check_source_code(files: Mapping[str, Path | bytes]) -> None:
    """Refuse to publish source code that contains a token or the path of the home folder.

    Other paths, and image names in examples, are allowed.

    Args:
        files: path in the repository -> file, or its content.

    Raises:
        UsageError: names the file and what it contains; a token is not printed.
    """
    home, tokens = str(Path.home()), _tokens()
    for place, content in files.items():
        for text in _texts(place, content):
            _refuse_token(place, text, tokens)
            _refuse_path(place, text, [f"{home}/"] if len(home) > 4 else [])


def _refuse_token(place: str, text: str, tokens: Iterable[str]) -> None:
    if _TOKEN.search(text) or any(token in text for token in tokens):
        raise UsageError(
            "token-in-file", f"{place}: expected no token, got one; nothing was sent. Remove and revoke it"
        )


def _refuse_path(place: str, text: str, paths: Iterable[str]) -> None:
    if path := next((path for path in paths if path in text), None):
        raise UsageError(
            "local-path-in-file", f"{place}: expected no local path, got {path}; nothing was sent. Remove it"
        )


class _Names:
    """Index of private names, fast to search for with 300,000 names."""

    def __init__(self, names: Iterable[str], innocent: str) -> None:
        known = set(_WORD.findall(_alike(innocent)))
        self._by_words: dict[tuple[str, ...], set[str]] = {}
        for name in names:
            words = tuple(_WORD.findall(name)[:_LONGEST])
            if _is_distinctive(words, known):
                self._by_words.setdefault(words, set()).add(name)
        self._lengths = sorted({len(words) for words in self._by_words})

    def found_in(self, text: str) -> str | None:
        """Return a name that the text contains, or None."""
        text = _alike(text)
        words = _WORD.findall(text)
        for length in self._lengths:
            runs = set(zip(*(words[start:] for start in range(length)), strict=False))
            for found in runs & self._by_words.keys():
                for name in self._by_words[found]:
                    # "NORMAL | 131" in a table is not the image NORMAL-131.
                    if re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", text):
                        return name
        return None


def _alike(text: str) -> str:
    """Normalise case and Unicode composition."""
    return unicodedata.normalize("NFC", text.casefold())


def _is_distinctive(words: tuple[str, ...], innocent: set[str]) -> bool:
    """Return whether these words, found in a text, must be a name."""
    if all(word.replace(".", "").isdigit() for word in words):
        return any(map(_is_id, words))
    return sum(map(len, words)) >= 4 and not (len(words) == 1 and words[0] in innocent)


def _is_id(word: str) -> bool:
    """Return whether digits are an id, such as 123456, 0115 or 1.2.840; 0.844 is a metric."""
    parts = word.split(".")
    return len(parts) > 2 or len(parts[0]) >= 6 or (len(parts) == 1 and len(word) >= 4 and word[0] == "0")


def _private_names(run: Path) -> set[str]:
    """Return the names of all images and patients in a run's manifests, in lower case."""
    manifest, seen = run / MANIFEST, (run / MANIFEST).parent / SEEN
    rows = read_manifest(manifest) + (read_manifest(seen) if seen.exists() else [])
    names = set()
    for row in rows:
        # A manifest may come from Windows.
        file = _alike(re.split(r"[/\\]", row["path"])[-1])
        patient = _alike(row["patient_id"])
        own = patient.rpartition(":")[2]
        names |= {file, os.path.splitext(file)[0], patient, own, coarse_patient(own)}
    return names - {""}


def _paths(run: Path) -> set[str]:
    """Return the known local paths: home, the run, its sources and its pretrained weights."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    public = set(source_names(report))
    given = [*report["recipe"]["dataset"], report["recipe"]["pretrained"]]
    local = [name for name in given if name not in public and "/" in name and ":" not in name]
    folders = [Path.home(), run.resolve(), *(Path(name).expanduser().resolve() for name in local)]
    paths = {str(folder) for folder in folders} | {name for name in local if name.count("/") > 1}
    # The home folder is "/" in some containers.
    return {path for path in paths if len(path) > 4}


def _tokens() -> set[str]:
    tokens = {os.environ.get(name, "") for name in _TOKEN_NAMES} | {huggingface_hub.get_token() or ""}
    return {token for token in tokens if len(token) >= 8}


def _texts(place: str, content: Path | bytes) -> Iterable[str]:
    """Yield the texts in one file: of JSON its strings, as "null" may be a name."""
    ending = Path(place).suffix.lower()
    if ending == ".png":
        yield from _png_texts(place, content)
    elif ending in (".json", ".safetensors"):
        data = _header(place, content) if ending == ".safetensors" else _bytes(content)
        yield "\n".join(_strings(place, data))
    elif ending in _TEXTUAL or Path(place).name.startswith("."):
        try:
            yield _bytes(content).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                "unsearchable-file", f"{place}: expected UTF-8, got {error}. Convert it"
            ) from error
    else:
        raise UsageError(
            "unsearchable-file",
            f"{place}: expected a text, PNG or safetensors file, got another type. Leave it out",
        )


def _bytes(content: Path | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _strings(place: str, data: bytes) -> Iterable[str]:
    """Yield every string in a JSON file, with escapes such as \\u00e4 decoded."""
    try:
        # Each object as a list of its keys and values, since a dict would drop repeated keys.
        waiting = [json.loads(data, object_pairs_hook=lambda pairs: list(chain(*pairs)))]
    except ValueError as error:
        raise UsageError("unsearchable-file", f"{place}: expected JSON, got {error}. Correct it") from error
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            yield value


def _header(place: str, content: Path | bytes) -> bytes:
    """Return the JSON header of a safetensors file, which follows 8 bytes with its length."""
    with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, 10**8))  # the format allows no more than 100 MB
    if len(header) != length:
        raise UsageError(
            "unsearchable-file", f"{place}: expected safetensors, got a truncated header. Copy it again"
        )
    return header


def _png_texts(place: str, content: Path | bytes) -> Iterable[str]:
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.load()  # text chunks may follow the pixels
            for key, value in image.info.items():
                yield str(key)
                yield value.decode("latin-1") if isinstance(value, bytes) else str(value)
    # Pillow raises nearly any exception on damaged data.
    except Exception as error:
        raise UsageError("unsearchable-file", f"{place}: expected PNG, got {error}. Save it again") from error

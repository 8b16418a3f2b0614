"""The last check of what is published: paths of this machine, tokens, names of images and patients.

Allow-lists made the files (public_report.py), and this finds their holes.
"""

import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

import huggingface_hub
from PIL import Image

from hf_pneumonia.data.labels import coarse_patient
from hf_pneumonia.data.manifest import MANIFEST, SEEN, read_manifest
from hf_pneumonia.errors import UsageError
from hf_pneumonia.publishing.public_report import source_names

# Two folders deep, from the root of a disk or from a home folder, and not a part of a word, a URL or a tag.
_PATH = re.compile(
    r"(?<![\w./:<~-])~?/[^\s/\"'`|,;()<>]+/[^\s\"'`|,;()<>]+|(?<!\w)[A-Za-z]:\\+\w"
    r"|(?<!\w)\\+\w[\w.$-]*\\+\w|file:/+\w"
)
_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}|\bgh[a-z]_[A-Za-z0-9]{30,}|\bAKIA[0-9A-Z]{16}\b")
_TOKEN_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "WANDB_API_KEY", "KAGGLE_KEY")

# A word of a name or of a text. 0.984375 is one word: half of it would be somebody's number.
_WORD = re.compile(r"\d+(?:\.\d+)+|[^\W_]+")
_LONGEST = 12  # words that are looked at of a name

# Endings of what is text from its first byte to its last.
_TEXTUAL = {".md", ".yaml", ".yml", ".txt", ".py", ".toml", ".csv", ".html", ".css", ".js", ""}


def check_private(files: Mapping[str, Path | bytes], run: Path, innocent: str = "") -> None:
    """Refuse to publish what names this machine, its keys, its images or its patients.

    Search text files, the text in PNG files, and the header of safetensors files. The names are those of the
    run's manifest and of `seen_before.csv`: files, with and without ending, and patients, in any case. Names
    shorter than four letters, or numbers shorter than six digits, are skipped ("12" is a metric too).

    Args:
        files: path in the repository -> file, or its content.
        run: folder of the run that they are of.
        innocent: text with words that are not names, even if an image is called so ("image.png").

    Raises:
        UsageError: naming the file and what kind of thing is in it; a token is not shown.
    """
    paths, tokens = _paths(run), _tokens()
    names = _Names(_named(run), innocent)
    for place, content in files.items():
        for text, said in _texts(place, content):
            _refuse_token(place, text, tokens)
            _refuse_path(place, text, [*paths, *(path.group() for path in _PATH.finditer(text))])
            if said and (name := names.found_in(text)):
                raise UsageError(
                    "private",
                    f"{place} holds the name of an image or patient ({name}): nothing is sent; take it out",
                )


def check_source_code(files: Mapping[str, Path | bytes]) -> None:
    """Refuse to publish code with a token, or the path of the home folder, in it. Other paths, and names of
    images as examples, are allowed.

    Args:
        files: path in the repository -> file, or its content.

    Raises:
        UsageError: naming the file and what kind of thing is in it; a token is not shown.
    """
    home, tokens = str(Path.home()), _tokens()
    for place, content in files.items():
        for text, _ in _texts(place, content):
            _refuse_token(place, text, tokens)
            _refuse_path(place, text, [f"{home}/"] if len(home) > 4 else [])


def _refuse_token(place: str, text: str, tokens: Iterable[str]) -> None:
    if _TOKEN.search(text) or any(token in text for token in tokens):
        raise UsageError(
            "refuse-token", f"{place} holds a token: nothing is sent; take it out, and revoke it"
        )


def _refuse_path(place: str, text: str, paths: Iterable[str]) -> None:
    if path := next((path for path in paths if path in text), None):
        raise UsageError(
            "refuse-path", f"{place} holds a path of this machine ({path}): nothing is sent; take it out"
        )


class _Names:
    """Names that must not stand in a text; 300,000 of them take a second or two, each text a moment."""

    def __init__(self, names: Iterable[str], innocent: str) -> None:
        known = set(_WORD.findall(_alike(innocent)))
        self._by_words: dict[tuple[str, ...], set[str]] = {}
        for name in names:
            words = tuple(_WORD.findall(name)[:_LONGEST])
            if _means_something(words, known):
                self._by_words.setdefault(words, set()).add(name)
        self._lengths = sorted({len(words) for words in self._by_words})

    def found_in(self, text: str) -> str | None:
        """One of the names, if the text has any."""
        text = _alike(text)
        words = _WORD.findall(text)
        for length in self._lengths:
            runs = set(zip(*(words[start:] for start in range(length)), strict=False))
            for found in runs & self._by_words.keys():
                for name in self._by_words[found]:
                    # NORMAL | 131 in a table is not the image NORMAL-131.
                    if re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", text):
                        return name
        return None


def _alike(text: str) -> str:
    """The same for the same letters, large or small, of one code point or of two."""
    return unicodedata.normalize("NFC", text.casefold())


def _means_something(words: tuple[str, ...], innocent: set[str]) -> bool:
    """Whether words can be taken for a name where they are found."""
    if all(word.replace(".", "").isdigit() for word in words):
        return any(map(_is_id, words))
    return sum(map(len, words)) >= 4 and not (len(words) == 1 and words[0] in innocent)


def _is_id(word: str) -> bool:
    """Whether digits are an id: 123456, 0115, 1.2.840; but 0.844 is a metric."""
    parts = word.split(".")
    return len(parts) > 2 or len(parts[0]) >= 6 or (len(parts) == 1 and len(word) >= 4 and word[0] == "0")


def _named(run: Path) -> set[str]:
    """Names of every image and patient that the run knows, in lower case."""
    manifest, seen = run / MANIFEST, (run / MANIFEST).parent / SEEN
    rows = read_manifest(manifest) + (read_manifest(seen) if seen.exists() else [])
    names = set()
    for row in rows:
        # Written on Windows, too.
        file = _alike(re.split(r"[/\\]", row["path"])[-1])
        patient = _alike(row["patient_id"])
        own = patient.rpartition(":")[2]
        names |= {file, os.path.splitext(file)[0], patient, own, coarse_patient(own)}
    return names - {""}


def _paths(run: Path) -> set[str]:
    """Paths of this machine that are known: home, the run, its sources and its starting weights."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    public = set(source_names(report))
    given = [*report["recipe"]["dataset"], report["recipe"]["pretrained"]]
    local = [name for name in given if name not in public and "/" in name and ":" not in name]
    places = [Path.home(), run.resolve(), *(Path(name).expanduser().resolve() for name in local)]
    paths = {str(place) for place in places} | {name for name in local if name.count("/") > 1}
    # "/" is a home folder in some containers.
    return {path for path in paths if len(path) > 4}


def _tokens() -> set[str]:
    said = {os.environ.get(name, "") for name in _TOKEN_NAMES} | {huggingface_hub.get_token() or ""}
    return {token for token in said if len(token) >= 8}


def _texts(place: str, content: Path | bytes) -> Iterable[tuple[str, bool]]:
    """The texts in one file, and whether to search each for names: raw JSON also has its own words, and
    "null" may be a name."""
    ending = Path(place).suffix.lower()
    if ending == ".png":
        yield from ((text, True) for text in _png_texts(place, content))
    elif ending in (".json", ".safetensors"):
        data = _header(place, content) if ending == ".safetensors" else _bytes(content)
        yield _decoded(place, data).replace("\\/", "/").replace("\\\\", "\\"), False
        yield "\n".join(_strings(place, data)), True
    elif ending in _TEXTUAL or Path(place).name.startswith("."):
        yield _decoded(place, _bytes(content)), True
    else:
        raise UsageError("texts", f"{place}: a file of this kind can't be looked through; publish it without")


def _bytes(content: Path | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _decoded(place: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            "decoded", f"{place} is no text file, and nobody can say what is in it: {error}"
        ) from error


def _strings(place: str, data: bytes) -> Iterable[str]:
    """Every string in a JSON file, as it reads: in the file \\u00e4 stands for an umlaut."""
    try:
        waiting = [json.loads(data)]
    except ValueError as error:
        raise UsageError("strings", f"{place} is damaged: {error}") from error
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, str):
            yield one


def _header(place: str, content: Path | bytes) -> bytes:
    """The JSON at the beginning of a safetensors file: its length in 8 bytes, then itself."""
    with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, 10**8))  # the format allows no more than 100 MB
    if len(header) != length:
        raise UsageError("header", f"{place} is no safetensors file: its header is cut off")
    return header


def _png_texts(place: str, content: Path | bytes) -> Iterable[str]:
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.load()  # text may stand behind the pixels
            for key, value in image.info.items():
                yield str(key)
                yield value.decode("latin-1") if isinstance(value, bytes) else str(value)
    # Pillow raises nearly anything on damaged bytes.
    except Exception as error:
        raise UsageError("png-texts", f"{place} can't be read as a picture: {error}") from error

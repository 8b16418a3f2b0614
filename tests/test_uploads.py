import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from test_inputs import PNG

from hf_pneumonia.data.film import read_film
from hf_pneumonia.errors import UnreadableFilm, UsageError
from hf_pneumonia.inference.inputs import FilmReader
from hf_pneumonia.page import uploads as module
from hf_pneumonia.page.uploads import Upload, films_of, shown_name, uploaded


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Gradio's folder of uploads."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads" / "hash").mkdir(parents=True)
    return tmp_path / "uploads" / "hash"


def _upload(folder: Path, name: str, data: bytes = PNG) -> Upload:
    (folder / name).write_bytes(data)
    return Upload(name, str(folder / name))


def _zip(members: list[tuple[str, bytes]], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def _problems(*uploads: Upload) -> dict[str, str]:
    return {film.name: film.problem for film in films_of(uploads)}


def test_an_upload_is_a_file_in_the_folder_of_uploads_by_the_name_that_it_had(folder):
    path = _upload(folder, "clean.png").path
    assert uploaded({"path": path, "orig_name": "C D/<b>.png"}) == Upload("<b>.png", os.path.realpath(path))
    assert uploaded({"path": path, "orig_name": 5}).name == "clean.png"


def test_films_come_in_order_and_those_of_zip_files_with_their_paths_as_text(folder):
    members = ["b/2.png", "../../evil.png", "/abs.png", ".hidden.png", "__MACOSX/b/2.png", "read.me", "a.png"]
    ward = _upload(folder, "ward.zip", _zip([(name, PNG) for name in members]))
    films = films_of([_upload(folder, "one.png"), ward, _upload(folder, "two.png")])
    inside = ["ward.zip/../../evil.png", "ward.zip//abs.png", "ward.zip/a.png", "ward.zip/b/2.png"]
    assert sorted(film.name for film in films[1:-1]) == sorted(inside)
    assert [films[0].name, films[-1].name] == ["one.png", "two.png"]
    before = {path for path in folder.parents[1].rglob("*")}
    with FilmReader() as reader:
        assert [read_film(reader.read(film)).size for film in films] == [(4, 3)] * 6
    assert {path for path in folder.parents[1].rglob("*")} == before  # nothing is unpacked


def test_what_can_not_be_opened_has_its_reason(folder):
    encrypted = bytearray(_zip([("x.png", PNG)]))
    encrypted[encrypted.rindex(b"PK\1\2") + 8] |= 1
    cases = {
        "empty.zip": (_zip([]), "no film in this zip file"),
        "text.zip": (_zip([("a.txt", b"a")]), "no film in this zip file"),
        "rare.zip": (_zip([("x.png", PNG)], zipfile.ZIP_LZMA), "a zip file of a rare kind; pack it as usual"),
        "cut.zip": (_zip([("x.png", PNG)])[:-30], "damaged, or no zip file"),
    }
    for name, (data, reason) in cases.items():
        assert _problems(_upload(folder, name, data))[name].startswith(reason)
    nested = _zip([("a.png", PNG), ("in/more.zip", _zip([("b.png", PNG)])), ("__MACOSX/._more.zip", b"")])
    assert _problems(_upload(folder, "nested.zip", nested)) == {
        "nested.zip/a.png": "",
        "nested.zip/in/more.zip": "a zip file in a zip file is not opened",
    }
    (film,) = films_of([_upload(folder, "locked.zip", bytes(encrypted))])
    with FilmReader() as reader, pytest.raises(UnreadableFilm, match="encrypted"):
        reader.read(film)


def test_a_bomb_is_refused_by_the_directory_before_anything_is_unpacked(folder, monkeypatch):
    bomb = _upload(folder, "bomb.zip", _zip([("x.png", bytes(64 * 2**20)), ("y.png", PNG)]))
    many = _upload(folder, "many.zip", _zip([(f"{n}.png", bytes(15 * 2**20)) for n in range(3)]))
    assert os.path.getsize(bomb.path) < 100_000
    assert _problems(bomb) == {"bomb.zip/x.png": "more than 20 MB", "bomb.zip/y.png": ""}
    monkeypatch.setattr(module, "MAX_UNPACKED_BYTES", 40 * 2**20)
    with pytest.raises(UsageError, match="45 MB unpacked, more than 40 MB"):
        films_of([many])


def test_a_bomb_that_lies_about_its_size_is_unpacked_no_further_than_it_says(folder):
    honest = _zip([("x.png", bytes(64 * 2**20))])
    size = struct.pack("<I", 64 * 2**20)
    assert honest.count(size) == 2  # in the entry's head and in the directory
    (film,) = films_of([_upload(folder, "liar.zip", honest.replace(size, struct.pack("<I", 1000)))])
    tracemalloc.start()
    with FilmReader() as reader, pytest.raises(UnreadableFilm, match="damaged in the zip file"):
        reader.read(film)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_a_directory_of_too_many_entries_is_refused(folder):
    data = _zip([(f"{number}.txt", b"") for number in range(5_001)])
    assert _problems(_upload(folder, "a.zip", data)) == {"a.zip": "a zip file of more than 5,000 entries"}


def test_no_more_than_500_films_and_no_film_of_more_than_20_mb(folder, monkeypatch):
    full = _upload(folder, "a.zip", _zip([(f"{number}.png", PNG) for number in range(500)]))
    assert len(films_of([full])) == 500
    with pytest.raises(UsageError, match="more than 500 films"):
        films_of([full, _upload(folder, "x.png")])
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 2**20)
    assert _problems(_upload(folder, "x.png", bytes(2**20 + 1))) == {"x.png": "more than 1 MB"}
    assert _problems(_upload(folder, "b.zip", bytes(2**20 + 1))) == {"b.zip": "more than 1 MB"}


def test_a_shown_name_hides_and_turns_round_nothing():
    assert shown_name("a\u202egnp.exe\n\x00b\ud800") == "a\ufffdgnp.exe\ufffd\ufffdb\ufffd"
    assert shown_name("胸部 Thorax é.png") == "胸部 Thorax é.png"
    assert len(shown_name("x" * 5_000)) == 200

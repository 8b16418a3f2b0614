import zipfile

import pytest
from test_inputs import PNG

from hf_pneumonia.data.archive import open_zip, read_member
from hf_pneumonia.data.download import unpack
from hf_pneumonia.errors import UnreadableFilm, UsageError


def _zip(path, members, kind=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for member, data in members:
            archive.writestr(member, data)
    return path


def _refusal(path, cache) -> str:
    with pytest.raises(UsageError) as error:
        unpack(path, cache)
    assert "\n" not in str(error.value) and list((cache / "zips").iterdir()) == []
    return str(error.value)


def test_nothing_is_unpacked_outside_of_its_folder_and_links_become_files(tmp_path):
    link = zipfile.ZipInfo("NORMAL/link.png")
    link.external_attr = 0o120777 << 16
    names = ["../x.png", "/etc/y.png", "a/../../z.png", "NORMAL/a.png", "a b/ü (1).png", "..x/y..png"]
    _zip(tmp_path / "x.zip", [(link, "/etc/passwd"), *((name, PNG) for name in names)])
    folder = unpack(tmp_path / "x.zip", tmp_path / "cache")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"x.png", "etc/y.png", "a/z.png", "NORMAL/link.png", *names[3:]}
    assert (folder / "NORMAL/link.png").read_text() == "/etc/passwd"
    assert not (folder / "NORMAL/link.png").is_symlink()
    assert {one.name for one in tmp_path.iterdir()} == {"x.zip", "cache"}


def test_a_bomb_is_refused_before_anything_is_unpacked(tmp_path):
    _zip(tmp_path / "x.zip", [("a.png", bytes(100_000_000))])
    assert "unfold to 100,000,000" in _refusal(tmp_path / "x.zip", tmp_path / "cache")


@pytest.mark.parametrize(
    "members", [[("NORMAL", b"x"), ("NORMAL/a.png", PNG)], [("n" * 300 + ".png", PNG)]], ids=len
)
def test_names_that_no_disk_takes_are_an_error_of_one_line(tmp_path, members):
    assert "can't be unpacked" in _refusal(_zip(tmp_path / "x.zip", members), tmp_path / "cache")


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_is_inflated_at_once_however_large_it_grows_is_not_opened(tmp_path, kind):
    with pytest.raises(UnreadableFilm, match="deflate"):
        open_zip(_zip(tmp_path / "x.zip", [("a.png", PNG)], kind))


def test_a_name_in_letters_that_are_none_is_a_damaged_archive(tmp_path):
    path = _zip(tmp_path / "x.zip", [("ü.png", PNG)])
    path.write_bytes(path.read_bytes().replace("ü".encode(), b"\xff\xfe"))
    with pytest.raises(UnreadableFilm, match="damaged"):
        open_zip(path)


def test_a_member_is_read_up_to_the_size_that_the_directory_says(tmp_path):
    path = _zip(tmp_path / "x.zip", [("bomb.png", bytes(10_000_000)), ("a.png", PNG)])
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\1\2")
    data[place + 24 : place + 28] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    with open_zip(path) as archive:
        bomb, whole = archive.infolist()
        with pytest.raises(UnreadableFilm, match="damaged"):
            read_member(archive, bomb)
        assert read_member(archive, whole) == PNG

import io
import zipfile

import pytest
from test_inputs import PNG

from hf_pneumonia.data import zip_rules
from hf_pneumonia.data.download import unpack
from hf_pneumonia.data.zip_rules import directory_problem, is_safe_name
from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.inputs import FilmReader, find_films


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


def _unpacked(path, cache) -> set[str]:
    folder = unpack(path, cache)
    return {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}


def test_names_that_lead_out_of_a_folder_are_no_names_of_films(tmp_path, caplog):
    bad = ["../x.png", "/etc/x.png", "a/../../x.png", "C:/x.png", "..\\x.png", "n" * 256, "d/" * 1100 + "x"]
    good = ["NORMAL/a.png", "a b/ü (1).png", "./c.png", "..x/y..png", "a:b.png", "a\\b.png"]
    assert not any(map(is_safe_name, [*bad, "", "/", "."])) and all(map(is_safe_name, good))
    _zip(tmp_path / "x.zip", [(name, PNG) for name in (*bad, *good)])
    assert _unpacked(tmp_path / "x.zip", tmp_path / "cache") == {name.removeprefix("./") for name in good}
    assert f"{len(bad)} members are links, or have names" in caplog.text
    assert {one.name for one in tmp_path.iterdir()} == {"x.zip", "cache"}


@pytest.mark.parametrize("kind", [0o120777, 0o020666, 0o060666, 0o010666, 0o140777])
def test_links_devices_pipes_and_sockets_are_passed_over(tmp_path, caplog, kind):
    member = zipfile.ZipInfo("NORMAL/link.png")
    member.external_attr = kind << 16
    _zip(tmp_path / "x.zip", [(member, "/etc/passwd"), ("NORMAL/a.png", PNG)])
    assert _unpacked(tmp_path / "x.zip", tmp_path / "cache") == {"NORMAL/a.png"}
    assert "'NORMAL/link.png'" in caplog.text


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_stands_there_twice_is_refused(tmp_path):
    _zip(tmp_path / "x.zip", [("a.png", PNG), ("a.png", PNG + b"x")])
    assert "it holds 'a.png' twice" in _refusal(tmp_path / "x.zip", tmp_path / "cache")
    _zip(tmp_path / "y.zip", [("a.png", PNG), ("./a.png", PNG + b"x")])
    assert "it holds 'a.png' twice" in _refusal(tmp_path / "y.zip", tmp_path / "cache")


def test_a_bomb_is_refused_before_anything_is_unpacked(tmp_path):
    _zip(tmp_path / "x.zip", [("a.png", bytes(100_000_000))])
    assert "bytes that unfold to 100,000,000: no films do" in _refusal(tmp_path / "x.zip", tmp_path / "cache")


def test_members_that_share_their_bytes_are_refused(tmp_path):
    """As in zip bombs without nesting: every entry of the directory points at one member."""
    _zip(tmp_path / "x.zip", [(f"{number}.png", PNG) for number in range(3)])
    content = bytearray((tmp_path / "x.zip").read_bytes())
    place = content.find(b"PK\1\2")
    while place >= 0:
        content[place + 42 : place + 46] = bytes(4)
        place = content.find(b"PK\1\2", place + 1)
    (tmp_path / "x.zip").write_bytes(content)
    assert "lies on another member" in _refusal(tmp_path / "x.zip", tmp_path / "cache")


def test_a_directory_of_too_many_members_is_not_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_rules, "MOST_MEMBERS", 200)
    path = _zip(tmp_path / "x.zip", [(f"{number}.png", b"") for number in range(201)])
    monkeypatch.setattr(zipfile, "ZipInfo", lambda *_: pytest.fail("listed"))
    assert "more than 200 members" in _refusal(path, tmp_path / "cache")
    (source,) = find_films([str(path)])
    assert source.problem == "more than 200 members"


@pytest.mark.parametrize("members", [0, 1, 200])
@pytest.mark.parametrize("comment", [b"", b"PK\5\6" + bytes(40)])
def test_nothing_speaks_against_other_directories(tmp_path, monkeypatch, members, comment):
    monkeypatch.setattr(zip_rules, "MOST_MEMBERS", 200)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.comment = comment
        for number in range(members):
            archive.writestr(f"{number}.png", b"")
    assert directory_problem(tmp_path / "x.zip") == ""
    (tmp_path / "x.zip").write_bytes(b"no zip file")
    assert directory_problem(tmp_path / "x.zip") == ""  # which zipfile says itself


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_kinds_are_read_by_small_pieces_and_give_the_same_film(tmp_path, kind):
    data = PNG + bytes(range(256)) * 100
    path = _zip(tmp_path / "x.zip", [("a.png", data)], kind)
    (source,) = find_films([str(path)])
    with FilmReader() as reader:
        assert reader.read(source) == data
    assert (unpack(path, tmp_path / "cache") / "a.png").read_bytes() == data


def test_a_name_in_letters_that_are_none_is_a_damaged_archive(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("ü.png", PNG)
    (tmp_path / "x.zip").write_bytes(file.getvalue().replace("ü".encode(), b"\xff\xfe"))
    assert "can't be unpacked" in _refusal(tmp_path / "x.zip", tmp_path / "cache")

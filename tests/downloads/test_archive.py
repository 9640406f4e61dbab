"""Archives that unpack anywhere: with `unzip`, Python and 7z, and by their names on Windows and macOS, too."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import subprocess
import time
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.downloads.archive import Archive, archive_names
from tests.conftest import StartGateway
from tests.support.clients import ask, file, form

DEVICES = ["CON", "prn", "Aux", "NUL", "COM0", "com9", "LPT1", "lpt¹", "CONIN$", "conout$"]
_FORBIDDEN = re.compile(r'[<>:"|?*/\\\x00-\x1f\x7f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]')
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])[ \t]*(\..*)?")


def as_one_file(name: str) -> str:
    """Equal for names that some file system takes for one: case, composition, and what Windows cuts off."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).rstrip(". ")


def unpacks_anywhere(name: str) -> bool:
    fits = 0 < len(name.encode()) <= 255 and not _FORBIDDEN.search(name) and not _DEVICE.fullmatch(name)
    return fits and not name.startswith(".") and not name.endswith((".", " "))


# -- names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.bin", "a.bin", "a.bin"], ["a.bin", "a (2).bin", "a (3).bin"]),
        (["a (2).bin", "a.bin", "a.bin"], ["a (2).bin", "a.bin", "a (3).bin"]),
        (["a.bin", "a.bin", "a (2).bin"], ["a.bin", "a (2).bin", "a (2) (2).bin"]),
        ([None, "file", "x/"], ["file", "file (2)", "file (3)"]),
        (["a.tar.gz", "a.tar.gz"], ["a.tar.gz", "a (2).tar.gz"]),
        (["A.txt", "a.TXT", "a.txt"], ["A.txt", "a (2).TXT", "a (3).txt"]),
        (["\u00e4.txt", "a\u0308.txt", "A\u0308.txt"], ["\u00e4.txt", "a\u0308 (2).txt", "A\u0308 (3).txt"]),
        (["straße", "STRASSE"], ["straße", "STRASSE (2)"]),
        (["\u0131", "I", "i"], ["\u0131", "I (2)", "i (3)"]),
        (["a\u200bb", "ab"], ["a\u200bb", "ab (2)"]),
        (["a.txt", "a.txt.", "a.txt ."], ["a.txt", "a (2).txt", "a (3).txt"]),
        (["x:y", "x_y", "x?y"], ["x_y", "x_y (2)", "x_y (3)"]),
    ],
)
def test_names_in_an_archive_are_distinct_on_every_system(names: list[str | None], expected: list[str]) -> None:
    assert archive_names(names) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("what?.txt", "what_.txt"),
        ('a<b>:"|*.txt', "a_b_____.txt"),
        ("CON", "_CON"),
        ("nul.tar.gz", "_nul.tar.gz"),
        ("AUX .txt", "_AUX .txt"),
        ("con.", "_con"),
        ("con\u00a0.", "_con"),
        ("nul.\u3000", "_nul"),
        ("console.txt", "console.txt"),
        ("COM10", "COM10"),
        (".bashrc", "_bashrc"),
        ("..x", "__x"),
        (". .", "___"),
        ("a.txt..", "a.txt"),
        ("a.txt\u00a0. ", "a.txt"),
        ("gpj.\u202eexe", "gpj.exe"),
        ("a\u0378b", "a_b"),
        ("a\u2028b", "a_b"),
        ("con." + "x" * 300, "_con." + "x" * 195),
        ("nä 漢字 👩\u200d👩.txt", "nä 漢字 👩\u200d👩.txt"),
    ],
)
def test_what_windows_and_macos_cannot_have_is_replaced(name: str, expected: str) -> None:
    assert archive_names([name]) == [expected]


ALPHABET = st.sampled_from(list('aA\u0131ißẞäÄ\u0308.. :?*<>"|/\\\t\u202e\u200d\u200b漢😀\u0378conCON1²()2'))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(st.none(), st.text(ALPHABET, max_size=8), st.sampled_from(DEVICES)), max_size=40))
def test_whatever_the_names_are_they_unpack_to_as_many_files(names: list[str | None]) -> None:
    made = archive_names(names)
    assert len({as_one_file(name) for name in made}) == len(names)
    assert all(map(unpacks_anywhere, made)), made


@pytest.mark.parametrize("stem", ["x" * 250, "漢" * 80, "e\u0301" * 90, "👩\u200d👩" * 20])
def test_long_names_that_are_equal_when_they_are_cut_stay_distinct_and_keep_their_extension(stem: str) -> None:
    names = archive_names([f"{stem}{number}.tar.gz" for number in range(120)] + [f"{stem}.tar.gz"] * 3)
    assert len(set(names)) == 123
    assert all(name.endswith(".tar.gz") and len(name.encode()) <= 200 for name in names)


def test_thirty_thousand_names_that_collide_take_seconds_not_hours() -> None:
    began = time.process_time()
    for names in (["x" * 194 + f"{number:05}" for number in range(15_000)] * 2, [f"a ({n})" for n in range(15_000)]):
        archive_names([*names, *["a"] * 15_000])
    assert time.process_time() - began < 30


# -- archives


SEVERAL = """
what?.txt x:y x_y <a> | * a.txt. .env ..env ... ~ -rf $(reboot) `id` a;b a&b ' %PATH% Icon __MACOSX desktop.ini
ä.txt Ä.TXT straße STRASSE ﬁ fi İ Σ ς K k a\u0308.txt i\u0307 \u0131 \u03c3 \U0010ffff \ue000 a\u202eb a\u200bb
"""
LONG = ["漢" * 90 + ".pdf", "漢" * 91 + ".pdf", "x" * 300 + ".tar.gz", "😀" * 70 + ".jpeg", "👩\u200d👩\u200d👧.png"]
PIECES = ["a", "A", "ä", "a\u0308", ".", " ", ":", "?", "con", "é", "日本", "\u200b", ".txt", " (2)", "ß", "SS"]


def odd_names() -> list[str]:
    """300 names, nearly every one of them a nuisance to some file system or program."""
    odd = [*SEVERAL.split(), *LONG, "a.txt ", " a.txt", "a\tb", "a\u2028b", "a\u0085b"]
    odd += [device + suffix for device in DEVICES for suffix in ("", ".txt", " .tar.gz")]
    seeded = random.Random(10)
    while len(odd) < 300:
        name = "".join(seeded.choices(PIECES, k=seeded.randint(1, 4)))
        odd.append(name if name.strip() else "b")
    return odd


def unpack(program: str, archive: Path, into: Path) -> None:
    if program == "python":
        zipfile.ZipFile(archive).extractall(into)
        return
    found = shutil.which(program) or (shutil.which("7zz") if program == "7z" else None)
    if found is None:
        pytest.skip(f"{program} is not here: make system-packages")
    arguments = ["-q", str(archive), "-d", str(into)] if program == "unzip" else ["x", f"-o{into}", str(archive)]
    subprocess.run([found, *arguments], env={**os.environ, "LC_ALL": "C.UTF-8"}, check=True, capture_output=True)


@pytest.mark.parametrize("program", ["python", "unzip", "7z"])
async def test_an_archive_of_300_odd_names_unpacks(start_gateway: StartGateway, tmp_path: Path, program: str) -> None:
    gateway = await start_gateway()
    names = odd_names()
    parts = [file(b"%d" % number, name.replace('"', "%22")) for number, name in enumerate(names)]
    manifest = (await ask(gateway.port, "/upload", "POST", form(*parts))).json()
    assert [part["filename"] for part in manifest["parts"]] == names  # as they were sent, whatever they are
    body = (await ask(gateway.port, f"/uploads/{manifest['upload']}/archive.zip")).body
    inside = zipfile.ZipFile(io.BytesIO(body)).namelist()
    assert len({as_one_file(name) for name in inside}) == len(names) == 300
    assert [name for name in inside if not unpacks_anywhere(name)] == []
    (tmp_path / "a.zip").write_bytes(body)
    unpack(program, tmp_path / "a.zip", tmp_path / "there")
    unpacked = {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    assert unpacked == {name: b"%d" % number for number, name in enumerate(inside)}


def test_an_archive_says_its_length_before_it_is_read_and_keeps_to_it(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(b"abc")
    archive = Archive([(tmp_path / "0", "a:b.txt")])
    promised, read = archive.left, b""
    while archive.left:
        read += archive.read()
    archive.close()
    assert len(read) == promised
    assert zipfile.ZipFile(io.BytesIO(read)).read("a_b.txt") == b"abc"

"""Images in whatever form they are at hand: all of them arrive, or it is told what does not."""

from __future__ import annotations

import io
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fewshot_client import AddedExamples, Client, InvalidRequest, NotSent, sources
from service.archives import ArchiveLimits, read_folder
from service.problems import ArchiveTooLarge, Problem
from tests.service.asking import encoded, noise, zipped

ROOT = Path(__file__).parents[2]
CAT, DOG = (encoded(noise(seed)) for seed in (1, 2))


def test_every_form_of_images_answers_alike(client: Client, tmp_path: Path) -> None:
    folder = filled(tmp_path / "set", {"cat/1.png": CAT, "dog/1.png": DOG})
    archive = tmp_path / "set.zip"
    archive.write_bytes(zipped({"cat/1.png": CAT, "dog/1.png": DOG}))
    picture = Image.open(io.BytesIO(DOG))
    supports = [
        {"cat": CAT, "dog": [DOG]},
        {"cat": str(folder / "cat" / "1.png"), "dog": picture},
        {"cat": folder / "cat", "dog": io.BytesIO(DOG)},
        {"cat": bytearray(CAT), "dog": [memoryview(DOG)]},
        folder,
        archive,
        archive.read_bytes(),
        io.BytesIO(archive.read_bytes()),
    ]
    queries = [[DOG, CAT], [picture, io.BytesIO(CAT)], [folder / "dog" / "1.png", bytearray(CAT)]]
    answers = [client.classify("mean", s, [DOG, CAT]) for s in supports]
    answers += [client.classify("mean", supports[0], q) for q in queries]
    for answer in answers:
        assert answer.classes == ["cat", "dog"]
        assert answer.labels == ["dog", "cat"]
        assert answer.predictions[0].probabilities == answers[0].predictions[0].probabilities


def filled(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def probabilities(client: Client, query: Any) -> list[float]:
    [answer] = client.classify("mean", {"cat": CAT, "dog": DOG}, query).predictions
    return [one.probability for one in sorted(answer.probabilities, key=lambda p: p.label)]


#: EXIF of a photo that is to be turned: as cameras write it, and with a broken tag beside.
WHOLE = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
BROKEN = (
    b"Exif\0\0MM\0*\0\0\0\x08\0\2\x01\x0f\0\x09\0\0\0\1\xff\xff\xff\xff"
    b"\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"exif": BROKEN}),
        ("L", "PNG", {}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGB", "TIFF", {}),
        ("CMYK", "JPEG", {}),
        ("CMYK", "TIFF", {"compression": "tiff_lzw"}),
        ("CMYK", "TIFF", {"compression": "jpeg"}),
        ("F", "TIFF", {}),
        ("I", "TIFF", {}),
    ],
)
def test_a_picture_says_the_same_as_its_file(
    client: Client, tmp_path: Path, mode: str, kind: str, options: dict[str, object]
) -> None:
    """However it lies in its file, and whatever its pixels are made of."""
    pixels = Image.fromarray(noise(3, (16, 16, 3))).convert(mode)
    path = tmp_path / "photo"
    pixels.save(path, kind, **{"exif": WHOLE, **options})
    by_path = probabilities(client, path)
    with Image.open(path) as picture:
        assert probabilities(client, picture) == by_path
        assert probabilities(client, picture) == by_path  # loaded now
        assert probabilities(client, picture.copy()) == by_path
    lying = tmp_path / "lying"
    pixels.save(lying, kind, **(options | {"exif": b""}))
    assert probabilities(client, lying) != by_path


def test_broken_exif_spoils_no_picture(client: Client) -> None:
    for exif in (b"Exif\0\0none", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        photo = encoded(noise(3), "JPEG", exif=exif)
        assert probabilities(client, Image.open(io.BytesIO(photo))) == probabilities(client, photo)


def test_a_picture_that_cannot_be_sent_says_why() -> None:
    cut = Image.open(io.BytesIO(encoded(noise(3, (99, 99)))[:5000]))
    closed = Image.new("L", (9, 9))
    closed.close()
    with Client("http://127.0.0.1:1") as client:
        for picture, words in (
            (Image.new("HSV", (9, 9)), "of mode HSV cannot be sent.*convert it to RGB"),
            (Image.new("RGB", (0, 9)), "cannot be sent: cannot write empty image"),
            (cut, "cannot be read: image file is truncated"),
            (closed, "cannot be read: .*closed"),
        ):
            with pytest.raises(NotSent, match=words):
                client.ask("set_x", "mean", picture)


def told(added: AddedExamples) -> tuple[list[tuple[str, str]], list[tuple[str, int]]]:
    classes = [(one.label, one.examples) for one in added.support_set.classes or []]
    return [(one.filename, one.status) for one in added.results], classes


@pytest.mark.parametrize("below", ["", "all/", "all/together/"])
def test_a_folder_is_what_its_zip_is(client: Client, tmp_path: Path, below: str) -> None:
    """No file is left out for its name, and the rest are told of under the same names."""
    files = {
        "cat/1.jfif": CAT,
        "cat/notes.txt": b"text",
        "dog/2": DOG,
        "dog/pups/3.PNG": encoded(noise(3)),
        "dog/Thumbs.db": b"junk",
        "dog/.cache/4.png": encoded(noise(4)),
        "__MACOSX/cat/5.png": encoded(noise(5)),
    }
    folder = filled(tmp_path / "set", {below + name: data for name, data in files.items()})
    zipped = shutil.make_archive(str(tmp_path / "zip"), "zip", folder)
    added = told(client.create_set(folder))
    assert added == told(client.create_set(zipped))
    assert added == (
        [
            (f"{below}cat/1.jfif", "created"),
            (f"{below}cat/notes.txt", "rejected"),
            (f"{below}dog/2", "created"),
            (f"{below}dog/pups/3.PNG", "created"),
        ],
        [("cat", 1), ("dog", 1), ("dog/pups", 1)],
    )


def test_a_class_may_be_a_link_to_its_folder(client: Client, tmp_path: Path) -> None:
    filled(tmp_path / "set", {"cat/1.png": CAT})
    (tmp_path / "set" / "dog").symlink_to(filled(tmp_path / "dogs", {"2.png": DOG}))
    assert client.classify("mean", tmp_path / "set", DOG).labels == ["dog"]
    members = read_folder(tmp_path / "set", ArchiveLimits(99, 10**6))  # as the command line does
    assert [member.label for member in members] == ["cat", "dog"]


def test_folders_that_link_to_one_another_are_too_many_files(tmp_path: Path) -> None:
    """Every way through them is a folder: five have some hundreds, nine a million."""
    for one in "abcdefghi":
        filled(tmp_path / one, {"1.png": CAT})
        for other in "abcdefghi".replace(one, ""):
            (tmp_path / one / other).symlink_to(f"../{other}")
    with pytest.raises(ArchiveTooLarge, match="more than 99 files"):
        read_folder(tmp_path, ArchiveLimits(99, 10**6))


@pytest.mark.parametrize(
    ("files", "labels"),
    [
        (["cat/1", "cat/2", "cat/more/3"], ["cat", "cat", "cat/more"]),
        (["set/cat/1", "set/dog/2"], ["cat", "dog"]),
        (["all/of/cat/1"], ["cat"]),
        (["all/set/cat/1", "all/set/dog/2", "all/set/dog/old/3"], ["cat", "dog", "dog/old"]),
    ],
)
def test_which_folders_are_the_classes(tmp_path: Path, files: list[str], labels: list[str]) -> None:
    folder = filled(tmp_path / "it", {f"{name}.png": CAT for name in files})
    members = read_folder(folder, ArchiveLimits(99, 10**6))
    assert [member.label for member in members] == labels
    assert list(sources._labels(folder).values()) == labels


@pytest.mark.parametrize("up", ["..", "../..", "/"])
def test_a_link_back_up_has_an_end(client: Client, tmp_path: Path, up: str) -> None:
    folder = filled(tmp_path / "set", {"cat/1.png": CAT, "dog/2.png": DOG})
    filled(tmp_path / "elsewhere", {"3.png": CAT})
    for name in ("cat", "dog"):
        (folder / name / "up").symlink_to(up)
    assert client.classify("mean", folder, DOG).labels == ["dog"]
    members = read_folder(folder, ArchiveLimits(99, 10**6))
    assert [member.label for member in members] == ["cat", "dog"]


@pytest.mark.parametrize(
    "files",
    [
        {"cat/1.png": CAT, "hook/.keep": b""},
        {"cat/1.png": CAT, "2.png": DOG},
        # Else the classes were data/cat, data/dog and data.
        {"data/cat/1.png": CAT, "data/dog/2.png": DOG, "data/README": b"of pets"},
    ],
)
def test_a_folder_is_refused_in_the_words_of_the_command_line(
    client: Client, tmp_path: Path, files: dict[str, bytes]
) -> None:
    """A class that is not there would leave an answer as sure as it is wrong."""
    folder = filled(tmp_path / "set", files)
    with pytest.raises(Problem) as theirs:
        read_folder(folder, ArchiveLimits(99, 9999))
    with pytest.raises(NotSent) as mine:
        client.classify("mean", folder, CAT)
    assert str(mine.value) == theirs.value.detail
    zipped = shutil.make_archive(str(tmp_path / "zip"), "zip", folder)
    with pytest.raises(InvalidRequest):
        client.classify("mean", zipped, CAT)


def test_what_is_wrong_in_a_folder_does_not_sink_a_set(client: Client, tmp_path: Path) -> None:
    """Nor is it left out without a word."""
    files = {"cat/1.png": CAT, "dog/2.png": DOG, "hook/.keep": b"", "notes.txt": b"text"}
    folder = filled(tmp_path / "set", files)
    zipped = shutil.make_archive(str(tmp_path / "zip"), "zip", folder)
    made = client.create_set(folder)
    assert told(made) == told(client.create_set(zipped))
    assert told(made) == told(client.add(client.create_set().support_set.id, folder))
    assert [(one.filename, one.problem and one.problem.kind) for one in made.results] == [
        ("cat/1.png", None),
        ("dog/2.png", None),
        ("hook", "empty-class"),
        ("notes.txt", "bad-archive"),
    ]


@pytest.mark.parametrize("wrong", [[("cat", CAT)], None, 7, Image.new("L", (9, 9))])
def test_what_is_no_support_set_is_told_what_is_one(client: Client, wrong: Any) -> None:
    words = "is no support set: send a mapping of labels to images, or a folder or zip"
    with pytest.raises(TypeError, match=words):
        client.classify("mean", wrong, CAT)


def test_images_that_are_not_there_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    support, long = ROOT / "samples" / "support", "data:image/png;base64," + "aGVsbG8=" * 999
    shut, odd = io.BytesIO(CAT), filled(tmp_path / "odd", {"a\udc80/1.png": CAT})
    shut.close()
    empty = tmp_path / "empty"
    empty.mkdir()
    with Client("http://127.0.0.1:1") as client:
        ask = partial(client.ask, "set_x", "mean")
        for call, words in (
            (lambda: ask(support), f"{support} holds no images"),
            (lambda: ask([]), "no images to ask about"),
            (lambda: ask(""), "an empty path"),
            (lambda: ask(long), "cannot be read: File name too long"),
            (lambda: ask("a\0b"), "cannot be read: embedded null byte"),
            (lambda: ask(shut), "0.bin cannot be read: I/O operation on closed file"),
            (lambda: client.classify("mean", support, "nope.png"), "no such file: nope.png"),
            (lambda: client.create_set("nope"), "no such folder or zip: nope"),
            (lambda: client.create_set({"cat": empty}), f"{empty} holds no images"),
            (lambda: client.create_set(""), "an empty path"),
            (lambda: client.create_set({}), "there are no classes"),
            (lambda: client.create_set({"cat": CAT, "dog": []}), "the class dog has no images"),
            (lambda: client.create_set(long), "cannot be read: File name too long"),
            (lambda: client.add("set_x", empty), "has no folders of images"),
            (lambda: client.add("set_x", {}), "there are no classes"),
            (lambda: client.add("set_x", {"a\udc80": CAT}), r"'a\udc80' cannot be sent"),
            (lambda: client.add("set_x", odd), r"'a\udc80/' cannot be sent"),
        ):
            with pytest.raises(NotSent, match=re.escape(words)) as refused:
                call()
            assert refused.value.__cause__ is None
            assert len(str(refused.value)) < 300


def test_a_set_without_images_is_still_made(client: Client) -> None:
    assert told(client.create_set()) == ([], [])

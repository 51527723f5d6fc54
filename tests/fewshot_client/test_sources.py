"""Images in whatever form they are at hand: all of them arrive, or it is told what does not."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from fewshot_client import Client, NotSent
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
        folder,
        archive,
    ]
    queries = [[DOG, CAT], [picture, io.BytesIO(CAT)], [folder / "dog" / "1.png", CAT]]
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


def probabilities(client: Client, query: object) -> list[float]:
    [answer] = client.classify("mean", {"cat": CAT, "dog": DOG}, query).predictions  # type: ignore[arg-type]
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


def test_images_that_are_not_there_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    support = ROOT / "samples" / "support"
    with Client("http://127.0.0.1:1") as client:
        for call, words in (
            (lambda: client.ask("set_x", "mean", support), f"{support} holds no images"),
            (lambda: client.ask("set_x", "mean", []), "no images to ask about"),
            (lambda: client.classify("mean", support, "nope.png"), "no such file: nope.png"),
            (lambda: client.create_set("nope"), "no such folder or zip: nope"),
            (lambda: client.create_set({"cat": tmp_path}), f"{tmp_path} holds no images"),
            (lambda: client.add("set_x", tmp_path), "has no folders of images"),
        ):
            with pytest.raises(NotSent, match=re.escape(words)) as refused:
                call()
            assert refused.value.__cause__ is None

"""Cards: the facts about one trained zoo entry. Reading them needs no PyTorch."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from models_zoo.names import unknown

ENTRIES = Path(__file__).parent / "entries"
CARD_NAME = "card.json"
MAX_CARD_BYTES = 1 << 20
#: A graph cannot be larger, by its format; what claims to be is not read into memory.
MAX_FILE_BYTES = 1 << 31

ENTRY_ID = r"[a-z0-9][a-z0-9._-]{0,63}"
EntryId = Annotated[str, StringConstraints(pattern=rf"^{ENTRY_ID}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ZooError(Exception):
    """An entry that is missing, malformed or not what its card says. The message is for users."""


class Fact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Row = TypeVar("Row", bound=Fact)


class Paper(Fact):
    title: str
    authors: str
    year: int
    url: str | None = None


class InputSpec(Fact):
    """How an uploaded image becomes the model's pixels (see `models_zoo.preprocess`)."""

    channels: Literal[1, 3]
    height: int = Field(ge=8, le=1024)
    width: int = Field(ge=8, le=1024)
    fit: Literal["stretch", "crop", "pad"] = Field(
        description="What happens to an image of another aspect ratio."
    )
    invert: bool = Field(False, description="Dark strokes on light paper become light on dark.")
    resize: int | None = Field(
        None,
        le=2048,
        description="With `crop`: the shorter side is brought to this length first, and the middle "
        "is cut out of that. Else the middle is made as large as it can be.",
    )
    resample: Literal["bilinear", "bicubic"] = "bilinear"

    @model_validator(mode="after")
    def _has_room(self) -> InputSpec:
        if self.resize is not None and (
            self.fit != "crop" or self.resize < max(self.height, self.width)
        ):
            raise ValueError("resize goes with crop, and is no shorter than height and width")
        return self


class Limits(Fact):
    """What one episode may hold."""

    max_way: int = Field(ge=2)
    max_shot: int = Field(ge=1)
    max_support: int = Field(ge=2)
    max_query: int = Field(ge=1)


class Adaptation(Fact):
    """Hyperparameters of gradient-based adaptation and their bounds."""

    steps: int = Field(ge=0)
    max_steps: int = Field(ge=0)
    inner_lr: float = Field(gt=0)
    max_inner_lr: float = Field(gt=0)

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.steps > self.max_steps or self.inner_lr > self.max_inner_lr:
            raise ValueError("steps and inner_lr must not exceed max_steps and max_inner_lr")
        return self

    @property
    def rates(self) -> tuple[float, ...]:
        """The default learning rates, one per step; a single 0 for no steps."""
        return (self.inner_lr,) * self.steps or (0.0,)


class AttentionSpec(Fact):
    """Which attention maps the entry returns."""

    layers: int = Field(ge=0)
    task: bool
    query: tuple[int, int] | None = Field(None, description="Height and width of the spatial map.")
    support: tuple[int, int] | None = None


class Training(Fact):
    dataset: str
    split: str
    classes: Literal["train", "train+val"] = Field(
        "train", description='"train+val": no classes were held out to choose the checkpoint by.'
    )
    classes_sha256: str | None = Field(
        None,
        description="Of the names of the classes trained on and validated with, sorted, one a "
        "line: the others are new to it.",
    )
    recipe: str
    steps: int = Field(description="The step whose weights were kept.")
    run_steps: int = Field(description="The steps of the whole run, which took `minutes`.")
    seed: int
    minutes: float
    hardware: str


class Pretraining(Fact):
    """Weights that were trained elsewhere and are used as they are."""

    weights: str = Field(description="Their name where they come from.")
    source: str = Field(description="Where they were read: an address, or a file's name.")


class Accuracy(Fact):
    """One measured accuracy with its whole protocol."""

    dataset: str
    split: str
    classes: Literal["test"] = "test"
    way: int
    shot: int
    queries_per_class: int
    rotations: Literal["none", "classes"] = Field(
        "none", description='"classes": turned test classes count as classes of their own.'
    )
    presentation: int | None = Field(
        None,
        description="Of a sequence of `shot` images a class, shown one by one without queries: "
        "the answers to this image of each class, counted from 1.",
    )
    tasks: int
    seed: int
    mean: float = Field(ge=0, le=1)
    ci95: float = Field(ge=0)
    confidence_p5: float | None = Field(
        None,
        ge=0,
        le=1,
        description="5% of the answers were less confident than this: whoever asks about one of "
        "the classes that were taught will seldom see less.",
    )
    transductive: bool
    command: str

    @property
    def standard(self) -> bool:
        """Measured by the usual protocol: queries one by one; on Omniglot, turned classes too."""
        turned = self.dataset != "omniglot" or self.rotations == "classes"
        return not self.transductive and turned


class Speed(Fact):
    """How long one task takes, no other beside it: median milliseconds of each stage in ONNX
    Runtime on one thread of a CPU, without attention.

    Encoded are all its images, support and queries; where an entry has no encoder of its own, the
    other stages do that work.
    """

    way: int
    shot: int
    queries_per_class: int
    runs: int = Field(ge=1, description="The medians are of so many.")
    encode_ms: float = Field(ge=0)
    adapt_ms: float = Field(ge=0)
    predict_ms: float = Field(ge=0)
    hardware: str
    command: str

    @property
    def total_ms(self) -> float:
        return self.encode_ms + self.adapt_ms + self.predict_ms


class FileFact(Fact):
    sha256: Sha256
    bytes: int = Field(ge=0, le=MAX_FILE_BYTES)


class Card(Fact):
    """The facts about one trained entry: `models_zoo/entries/<id>/card.json`."""

    id: EntryId
    version: str = Field(pattern=r"^[0-9a-z][0-9a-z.]{0,31}$")
    title: str
    summary: str
    learner: str
    family: Literal["metric", "model_based", "optimization", "closed_form"]
    paper: Paper
    backbone: str
    parameters: int
    config: dict[str, object]
    input: InputSpec
    limits: Limits
    attention: AttentionSpec
    uncertainty: bool = Field(False, description="Whether predictions carry an uncertainty.")
    adaptation: Adaptation | None = None
    transductive: bool
    order_dependent: bool = Field(
        False, description="Whether the order of the support examples matters to the answer."
    )
    training: Training | None = Field(None, description="Null where nothing was trained here.")
    pretrained: Pretraining | None = None
    accuracy: tuple[Accuracy, ...] = ()
    speed: tuple[Speed, ...] = ()
    license: str
    files: dict[FileName, FileFact]

    @property
    def ref(self) -> str:
        """Which entry exactly, as answers name it."""
        return f"{self.id}@{self.version}"

    @property
    def encodes(self) -> bool:
        """Whether the encoder is a graph of its own, shared by support and query images."""
        return "encode.onnx" in self.files


def load_card(folder: Path) -> Card:
    """Read and validate one entry's card. Raises `ZooError`.

    Links and devices are refused: a card is a file of its folder, and has an end.
    """
    path = folder / CARD_NAME
    try:
        if not _is_plain(path) and (path.is_symlink() or path.exists()):
            raise ZooError(f"{path}: not a plain file")
        with path.open("rb") as file:
            data = file.read(MAX_CARD_BYTES + 1)
        if len(data) > MAX_CARD_BYTES:
            raise ZooError(f"{path}: larger than {MAX_CARD_BYTES} bytes")
        card = Card.model_validate_json(data)
    except FileNotFoundError:
        raise ZooError(f"{folder}: no {CARD_NAME}") from None
    except OSError as error:
        raise ZooError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ZooError(f"{path}: {where}: {first['msg']}") from None
    if card.id != folder.name:
        raise ZooError(f"{path}: id is {card.id!r} but the folder is {folder.name!r}")
    return card


def list_cards(root: Path = ENTRIES) -> dict[str, Card]:
    """All entries under `root` by id, sorted. Raises `ZooError` on a malformed one."""
    folders = sorted(path.parent for path in root.glob(f"*/{CARD_NAME}"))
    return {card.id: card for card in map(load_card, folders)}


def find_card(entry: str, root: Path = ENTRIES) -> Card:
    """One entry by id. Raises `ZooError` naming what comes closest."""
    known = [path.parent.name for path in root.glob(f"*/{CARD_NAME}")]
    if entry not in known:
        where = "" if root == ENTRIES else f" --zoo {root}"
        raise ZooError(unknown("model", entry, known, f"`fewshot models list{where}`"))
    return load_card(root / entry)


def read_file(card: Card, name: str, root: Path = ENTRIES) -> bytes:
    """The bytes of one of the entry's files, checked against the card. Raises `ZooError`.

    Links and files of another size are refused before a byte is read, and what is returned is
    what was hashed, so that nothing can change in between.
    """
    if name not in card.files:
        raise ZooError(f"{card.id}: the card lists no {name}")
    path, fact = root / card.id / name, card.files[name]
    try:
        if not _is_plain(path):
            raise ZooError(f"{path}: not a plain file")
        if path.stat().st_size != fact.bytes:
            raise ZooError(f"{path}: {path.stat().st_size} bytes, the card says {fact.bytes}")
        with path.open("rb") as file:
            data = file.read(fact.bytes + 1)  # whatever it has grown to since
    except OSError as error:
        raise ZooError(f"{path}: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != fact.sha256:
        raise ZooError(f"{path}: sha256 differs from the card's")
    return data


def _is_plain(path: Path) -> bool:
    """Whether it is a file, and neither it nor its folder is a link."""
    return not path.is_symlink() and not path.parent.is_symlink() and path.is_file()


def verify(card: Card, root: Path = ENTRIES) -> None:
    """Check every file of an entry. Raises `ZooError` on the first that differs."""
    for name in card.files:
        read_file(card, name, root)


def describe(data: bytes) -> FileFact:
    """The fact that a file of these bytes has on a card."""
    return FileFact(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def replaced(rows: Iterable[Row], row: Row, measured: set[str]) -> list[Row]:
    """`rows` with `row` in place of one that differs from it only in what was `measured`."""
    protocol = row.model_dump(exclude=measured)
    return [*(old for old in rows if old.model_dump(exclude=measured) != protocol), row]


def write_card(card: Card, root: Path = ENTRIES) -> Path:
    """Write `card.json` into the entry's folder, atomically."""
    path = root / card.id / CARD_NAME
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{CARD_NAME}-")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(card.model_dump(mode="json"), indent=2) + "\n")
        Path(draft).chmod(0o644)
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)
    return path

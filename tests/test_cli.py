"""The command line without a server: tables, JSON, pictures, and one line for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from PIL import Image
from typer.testing import CliRunner

from fewshot import app
from models_zoo.cards import find_card, list_cards, write_card
from service.version import version
from tests.service.asking import encoded, noise
from tests.service.zoo import build_zoo

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
run = CliRunner().invoke


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason="the test zoo is written with the onnx package")
    return build_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def support(tmp_path: Path) -> Path:
    folder = tmp_path / "support"
    for i, label in enumerate(("cat", "cat", "dog")):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{i}.png").write_bytes(encoded(noise(i)))
    return folder


def classify(zoo: Path, support: Path, *rest: object, model: str = "mean") -> object:
    start = ["classify", "--zoo", zoo, "--model", model, "--support", support]
    return run(app, [str(part) for part in (*start, *rest)])


def test_the_table_names_each_image_and_its_class(zoo: Path, support: Path) -> None:
    cat, dog = support / "cat" / "1.png", support / "dog" / "2.png"
    result = classify(zoo, support, "--query", dog, cat)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert any("2.png" in line and "dog" in line.split("│")[2] for line in lines)
    assert any("1.png" in line and "cat" in line.split("│")[2] for line in lines)


def test_names_in_brackets_or_colons_are_shown_as_they_are(zoo: Path, tmp_path: Path) -> None:
    """Rich would read them as styles and emoji."""
    labels = ("[bold]", "plain", ":cat:")
    names = [f"[red]{i}.png" for i in range(3)]
    asked = [tmp_path / label / name for label, name in zip(labels, names, strict=True)]
    for i, file in enumerate(asked):
        file.parent.mkdir()
        file.write_bytes(encoded(noise(i)))
    result = classify(zoo, tmp_path, "--query", *asked)
    assert result.exit_code == 0, result.output
    rows = [cells_of(line, "│") for line in result.output.splitlines() if ".png" in line]
    assert [(row[0], row[1]) for row in rows] == list(zip(names, labels, strict=True))
    assert all(row[3].startswith(row[1]) for row in rows)


def test_every_command_takes_the_zoo_from_the_environment(
    zoo: Path, support: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSHOT_ZOO", str(zoo))
    asked = ["--support", support, "--query", support / "dog" / "2.png"]
    for command in (
        ["models", "show", "mean"],
        ["models", "verify", "mean"],
        ["classify", "--model", "mean", *asked],
    ):
        result = CliRunner().invoke(app, list(map(str, command)))
        assert result.exit_code == 0, result.output


def test_every_query_has_a_picture_of_its_own(zoo: Path, support: Path, tmp_path: Path) -> None:
    asked = [tmp_path / name for name in ("x/a.png", "y/a.png", "z/1-a.png")]
    for i, file in enumerate(asked):
        file.parent.mkdir()
        file.write_bytes(encoded(noise(i)))
    out = tmp_path / "sheets"
    result = classify(zoo, support, "--query", *asked, "--attention", out, model="attentive")
    assert result.exit_code == 0, result.output
    assert [path.name for path in sorted(out.iterdir())] == ["0-a.png", "1-a.png", "2-1-a.png"]


def test_the_table_has_the_uncertainty_of_models_that_tell_one(zoo: Path, support: Path) -> None:
    image = support / "dog" / "2.png"
    result = classify(zoo, support, "--query", image, model="attentive")
    assert "Uncertainty" in result.output
    assert "0 │" in result.output.splitlines()[4]  # it is the example itself
    assert "Uncertainty" not in classify(zoo, support, "--query", image).output


@pytest.mark.parametrize("model", ["mean", "descent"])
def test_the_saved_classifier_answers_alike(
    zoo: Path, support: Path, tmp_path: Path, model: str
) -> None:
    file, image = tmp_path / "classifier.onnx", support / "dog" / "2.png"
    steps = ("--steps", 2) if model == "descent" else ()
    query = ("--query", image, "--json", "--save", file, *steps)
    result = classify(zoo, support, *query, model=model)
    assert result.exit_code == 0, result.output
    (prediction,) = json.loads(result.stdout)["predictions"]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    pixels = noise(2) if model == "descent" else 255 - noise(2)
    (row,) = session.run(None, {"images": pixels[None, None]})[0]
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    found = dict(zip(labels, map(float, row), strict=True))
    wanted = {each["label"]: each["probability"] for each in prediction["probabilities"]}
    assert found == pytest.approx(wanted, abs=1e-6)


def test_a_classifier_is_saved_without_a_query(zoo: Path, support: Path, tmp_path: Path) -> None:
    alone, beside = tmp_path / "alone.onnx", tmp_path / "beside.onnx"
    result = classify(zoo, support, "--save", alone)
    assert (result.exit_code, result.stdout) == (0, ""), result.output
    assert f"classifier written to {alone}" in result.stderr
    classify(zoo, support, "--save", beside, "--query", support / "dog" / "2.png")
    assert alone.read_bytes() == beside.read_bytes()
    shown = classify(zoo, support, "--save", alone, "--json")
    assert shown.exit_code == 2
    assert "--query IMAGE" in shown.stderr


def test_the_version_is_told() -> None:
    assert run(app, ["--version"]).stdout == f"fewshot {version()}\n"


def test_a_place_that_cannot_be_written_is_one_line(zoo: Path, support: Path) -> None:
    image, file = support / "dog" / "2.png", support / "nowhere" / "classifier.onnx"
    result = classify(zoo, support, "--query", image, "--save", file)
    assert result.exit_code == 2
    assert str(file) in result.stderr and result.stderr.count("\n") == 1


def test_json_is_the_service_s_answer(zoo: Path, support: Path) -> None:
    result = classify(zoo, support, "--json", "--top-k", 1, "--query", support / "dog" / "2.png")
    answer = json.loads(result.stdout)
    assert answer["classes"] == ["cat", "dog"]
    (prediction,) = answer["predictions"]
    assert prediction["label"] == "dog"
    assert prediction["filename"] == "2.png"
    assert len(prediction["probabilities"]) == 1


def test_a_zip_answers_like_the_folder(zoo: Path) -> None:
    answers = [
        json.loads(classify(zoo, source, "--json", "--query", SAMPLES / "queries").stdout)[
            "predictions"
        ]
        for source in (SAMPLES / "support", SAMPLES / "support.zip")
    ]
    assert answers[0] == answers[1]
    assert [p["label"] for p in answers[0]] == ["cross", "hook", "loop"]


def test_gradient_steps_can_be_chosen(zoo: Path, support: Path) -> None:
    def confidence(*options: object) -> float:
        query = ["--query", support / "dog" / "2.png", "--json"]
        result = classify(zoo, support, *query, *options, model="descent")
        return float(json.loads(result.stdout)["predictions"][0]["confidence"])

    assert confidence("--steps", 0) == pytest.approx(0.5)
    assert confidence("--steps", 1, "--inner-lr", 0.01) < confidence("--steps", 30)


@pytest.mark.parametrize(("model", "layers"), [("attentive", 2), ("mean", 1)])
def test_attention_pictures_are_written(
    zoo: Path, support: Path, tmp_path: Path, model: str, layers: int
) -> None:
    wide = tmp_path / "wide.png"
    wide.write_bytes(encoded(noise(5, (40, 90, 3))))
    out = tmp_path / "out" / "deep"
    queries = ["--query", wide, support / "cat" / "0.png", support / "cat" / "1.png"]
    assert classify(zoo, support, "--attention", out, *queries, model=model).exit_code == 0
    pictures = {path.name: Image.open(path) for path in out.iterdir()}
    assert set(pictures) == {"wide.png", "0.png", "1.png"}
    for picture in pictures.values():
        assert picture.width > 208 + 3 * 92  # the query and three examples beside it
        assert picture.height > layers * 208
        assert len(picture.getcolors(1 << 24) or []) > 100


def test_queries_of_the_same_name_do_not_overwrite_each_other(
    zoo: Path, support: Path, tmp_path: Path
) -> None:
    other = tmp_path / "0.png"
    other.write_bytes(encoded(noise(9)))
    out = tmp_path / "out"
    classify(zoo, support, "--attention", out, "--query", support / "cat" / "0.png", other)
    assert {path.name for path in out.iterdir()} == {"0-0.png", "1-0.png"}


def test_queries_of_the_same_name_are_told_by_their_paths(
    zoo: Path, support: Path, tmp_path: Path
) -> None:
    other = tmp_path / "0.png"
    other.write_bytes(encoded(noise(9)))
    result = classify(zoo, support, "--json", "--query", support / "cat", other)
    names = [each["filename"] for each in json.loads(result.stdout)["predictions"]]
    assert names == [str(support / "cat" / "0.png"), "1.png", str(other)]


def mistakes(tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    image = tmp_path / "image.png"
    image.write_bytes(encoded(noise(1)))
    text = tmp_path / "text.png"
    text.write_text("text")
    alone, empty = tmp_path / "alone", tmp_path / "empty"
    (alone / "cat").mkdir(parents=True)
    (alone / "cat" / "1.png").write_bytes(encoded(noise(1)))
    (empty / "cat").mkdir(parents=True)
    (empty / "dog").mkdir()
    (empty / "dog" / "1.png").write_bytes(encoded(noise(1)))
    support = SAMPLES / "support"
    return {
        "unknown model": (
            ["--model", "nope", "--support", support, "--query", image],
            "unknown model 'nope'; `fewshot models list --zoo ",
        ),
        "no such folder": (
            ["--support", tmp_path / "no", "--query", image],
            "no such folder or zip",
        ),
        "no query": (["--support", support], "--query IMAGE"),
        "no such query": (
            ["--support", support, "--query", tmp_path / "no.png"],
            f"--query {tmp_path / 'no.png'}: no such file",
        ),
        "not an image": (["--support", support, "--query", text], "text.png"),
        "one class": (["--support", alone, "--query", image], "'cat'"),
        "empty class": (["--support", empty, "--query", image], "cat has no images"),
        "no zip": (["--support", text, "--query", image], "text.png: not a zip; name"),
        "steps": (["--support", support, "--query", image, "--steps", "3"], "omit --steps and --"),
        "orders": (["--support", support, "--query", image, "--orders", "2"], "omit --orders"),
        "no folder to save in": (
            ["--support", support, "--query", image, "--save", tmp_path / "no" / "x.onnx"],
            f"--save {tmp_path / 'no' / 'x.onnx'}: there is no folder {tmp_path / 'no'}",
        ),
        "a folder as file": (
            ["--support", support, "--query", image, "--save", tmp_path],
            f"--save {tmp_path}: a folder; name a file",
        ),
        "a file as folder": (
            ["--support", support, "--query", image, "--attention", image],
            f"--attention {image}: there is a file in the way",
        ),
        "no zoo": (
            ["--zoo", tmp_path / "no", "--support", support, "--query", image],
            "not a folder; --zoo wants",
        ),
    }


@pytest.mark.parametrize(
    "name",
    [
        "unknown model",
        "no such folder",
        "no query",
        "no such query",
        "not an image",
        "one class",
        "empty class",
        "no zip",
        "steps",
        "orders",
        "no folder to save in",
        "a folder as file",
        "a file as folder",
        "no zoo",
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    zoo: Path, tmp_path: Path, name: str
) -> None:
    arguments, expected = mistakes(tmp_path)[name]
    defaults = ["--zoo", zoo, "--model", "mean"]
    result = run(app, ["classify", *map(str, (*defaults, *arguments))])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("fewshot: ")
    assert result.stderr.count("\n") == 1
    assert expected in result.stderr


def test_paths_of_the_training_commands_are_named(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file, none = tmp_path / "file", tmp_path / "none"
    file.touch()
    add = ["models", "add", "--backbone", "torchvision/resnet18", "--id", "x", "--weights"]
    for arguments, expected in (
        (["export", file], f"RUN {file}: a file; name a folder"),
        (["export", none], f"RUN {none}: no such folder"),
        (["train", tmp_path], f"RECIPE {tmp_path}: a folder; name a YAML file"),
        ([*add, none], f"--weights {none}: no such file"),
        ([*add, tmp_path], f"--weights {tmp_path}: a folder; name a file"),
    ):
        result = run(app, list(map(str, arguments)))
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith(f"fewshot: {expected}")
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command", [["models", "list"], ["models", "show", "mean"], ["models", "time", "mean"]]
)
def test_a_zoo_that_is_not_there_is_no_unknown_model(tmp_path: Path, command: list[str]) -> None:
    result = run(app, [*command, "--zoo", str(tmp_path / "no")])
    assert result.exit_code == 2
    assert "is not a folder; --zoo wants a folder of zoo entries" in result.stderr


def test_a_damaged_entry_is_told_with_its_reason(zoo: Path, support: Path, tmp_path: Path) -> None:
    folder = tmp_path / "zoo" / "mean"
    folder.mkdir(parents=True)
    for path in (zoo / "mean").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for name, expected in (("adapt.onnx", "sha256 differs"), ("card.json", "card.json")):
        file = folder / name
        file.write_bytes(b"x" + file.read_bytes()[1:])
        result = classify(folder.parent, support, "--query", support / "dog" / "2.png")
        assert result.exit_code == 2
        assert expected in result.stderr
        assert result.stderr.count("\n") == 1


def test_cuda_is_not_promised_where_there_is_none(
    zoo: Path, support: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.providers.cuda_devices", lambda: 0)
    query = support / "dog" / "2.png"
    for result in (
        classify(zoo, support, "--device", "cuda", "--query", query),
        run(app, ["serve", "--zoo", str(zoo), "--port", "0", "--device", "cuda"]),
    ):
        assert result.exit_code == 2
        assert "CUDA" in result.stderr
        assert result.stderr.count("\n") == 1


def test_models_are_listed_shown_and_verified(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ["--zoo", str(zoo)]
    monkeypatch.setenv("COLUMNS", "60")
    for name in ("attentive", "descent", "mean"):
        assert name in run(app, ["models", "list", *where]).stdout
        assert run(app, ["models", "show", name, *where]).exit_code == 0
    listed = json.loads(run(app, ["models", "list", "--json", *where]).stdout)
    assert [card["id"] for card in listed] == ["attentive", "descent", "mean"]
    card = json.loads(run(app, ["models", "show", "mean", "--json", *where]).stdout)
    assert card == listed[2]
    assert json.loads(run(app, ["models", "verify", "--json", *where]).stdout) == {
        "attentive": "ok",
        "descent": "ok",
        "mean": "ok",
    }
    unknown = run(app, ["models", "show", "nope", *where])
    assert (unknown.exit_code, unknown.stderr.count("\n")) == (2, 1)


def test_the_list_has_a_line_for_each_model_and_the_readme_s_accuracies() -> None:
    printed = run(app, ["models", "list"], env={"COLUMNS": "80"}).stdout
    assert "…" not in printed
    table = {cells[0]: cells for line in printed.splitlines() if (cells := cells_of(line, "│"))}
    readme = (ROOT / "README.md").read_text("utf-8")
    for card in list_cards().values():
        model, data, classes, accuracy = table.pop(card.id)
        assert (data, classes) == (model.rpartition("-")[2], f"2-{card.limits.max_way}")
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{model}`"))
        assert cells_of(row, "|")[2] == accuracy
    assert not table


def cells_of(line: str, border: str) -> list[str]:
    return [cell.strip() for cell in line.split(border)[1:-1]]


def test_verify_does_not_take_an_unknown_model_for_a_damaged_one(zoo: Path) -> None:
    for names in (["nope"], ["mean", "nope"]):
        result = run(app, ["models", "verify", *names, "--zoo", str(zoo)])
        assert result.exit_code == 2
        listed = f"`fewshot models list --zoo {zoo}`"
        assert result.stderr == f"fewshot: unknown model 'nope'; {listed} names all\n"


@pytest.mark.parametrize("command", ["show", "time", "verify", "classify", "plot"])
def test_a_model_misspelt_is_answered_with_what_comes_closest(command: str) -> None:
    asks = ["--model", "stanet-omniglo", "--support", str(SAMPLES / "support")]
    asks += ["--query", str(SAMPLES / "queries" / "hook.png")]
    arguments = {
        "classify": ["classify", *asks],
        "plot": ["plot", "attention", *asks],
    }.get(command, ["models", command, "stanet-omniglo"])
    result = run(app, arguments)
    assert result.exit_code == 2
    assert result.stderr == (
        "fewshot: unknown model 'stanet-omniglo'; did you mean stanet-omniglot? "
        "`fewshot models list` names all\n"
    )


def shown(model: str, *where: object) -> str:
    table = run(app, ["models", "show", model, *map(str, where)], env={"COLUMNS": "200"}).stdout
    return " ".join(table.replace("│", " ").split())


def test_show_tells_what_the_card_says_of_attention_and_order() -> None:
    mmnet, stanet = shown("mmnet-omniglot"), shown("stanet-omniglot")
    assert "Order matters yes, of the examples" in mmnet
    assert "Attention which examples count (layers: 1)" in mmnet
    assert "Order matters no" in stanet
    assert "which examples count, where in the query, where in the examples (layers: 3)" in stanet
    assert "Uncertainty no" in stanet
    assert "Uncertainty yes" in shown("alpaca-omniglot")


def test_show_tells_what_the_accuracies_are_of(tmp_path: Path) -> None:
    card = find_card("prototypical-omniglot")
    row = card.accuracy[0].model_copy(update={"rotations": "classes", "transductive": False})
    rows = {
        "omniglot, turned too": row,
        "omniglot": row.model_copy(update={"rotations": "none"}),
        "omniglot, turned too, asked together": row.model_copy(update={"transductive": True}),
    }
    (tmp_path / card.id).mkdir()
    write_card(card.model_copy(update={"accuracy": tuple(rows.values())}), tmp_path)
    table = shown(card.id, "--zoo", tmp_path)
    for words in rows:
        assert f"tasks), {words} fewshot evaluate" in table


def test_a_card_s_words_in_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    card = find_card("prototypical-omniglot").model_copy(update={"title": "[bold]Drawings[/red]"})
    (tmp_path / card.id).mkdir()
    write_card(card, tmp_path)
    assert "Title [bold]Drawings[/red]" in shown(card.id, "--zoo", tmp_path)


def test_verify_tells_a_changed_file(zoo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mean"
    folder.mkdir()
    for path in (zoo / "mean").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    graph = folder / "predict.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    for extra in ([], ["mean"]):
        result = run(app, ["models", "verify", *extra, "--zoo", str(tmp_path)])
        assert result.exit_code == 2
        assert "mean" in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_bare_start_is_quick_and_imports_little() -> None:
    script = "import sys, fewshot; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"torch", "onnxruntime", "numpy", "fastapi", "PIL", "pydantic"}
    assert not heavy & set(done.stdout.split())


def test_the_sample_images_are_what_the_script_draws(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SAMPLES / "draw.py", tmp_path], check=True)
    drawn = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.png")}
    assert drawn == {path.relative_to(SAMPLES) for path in SAMPLES.rglob("*.png")}
    assert len(drawn) == 12
    for name in drawn:
        ours, theirs = Image.open(SAMPLES / name), Image.open(tmp_path / name)
        assert ours.tobytes() == theirs.tobytes(), name

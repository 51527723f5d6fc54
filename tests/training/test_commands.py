"""`fewshot train`, `export` and `evaluate` on one's own folder of images, from end to end."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from fewshot import app
from models_zoo import cards
from models_zoo.cards import Adaptation, ZooError, load_card, read_file, verify
from models_zoo.episode import Support
from models_zoo.learner import Learner
from models_zoo.weights import load_learner
from tests.training.making import LEARNERS, SIDE, recipe, write_recipe
from training import export, trainer
from training.data.load import load_test
from training.data.sampler import EpisodeSampler
from training.evaluate import evaluate as measure
from training.parity import OnnxLearner, ParityError
from training.recipe import RecipeError

ENTRY = "tiny-prototypical"


def fewshot(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(made_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mine.yaml`, a finished `run` of it and the `zoo` it was exported to."""
    place = tmp_path_factory.mktemp("made-entry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_CACHE", str(made_folder.parent / "cache"))
        source = write_recipe(place / "mine.yaml")
        done = fewshot("train", source, "--out", place / "run", "--data", made_folder)
        assert done.exit_code == 0, done.output
        assert "Best validation accuracy" in done.stdout
        done = fewshot("export", place / "run", "--zoo", place / "zoo")
        assert done.exit_code == 0, done.output
        assert "same answer in 100%" in " ".join(done.stdout.split())
    return place


def test_folders_in_brackets_are_told_as_they_are(made_data: Path, tmp_path: Path) -> None:
    """Rich would read them as styles."""
    source = write_recipe(tmp_path / "mine.yaml", steps=1)
    run, zoo = tmp_path / "x[" / "bold]", tmp_path / "x[bold]"
    done = fewshot("train", source, "--out", run, "--data", made_data)
    assert done.exit_code == 0, done.output
    assert f"after step 1, in {run}\n" in done.stdout
    assert f"fewshot export {shlex.quote(str(run))} --zoo zoo\n" in done.stdout
    done = fewshot("export", run, "--zoo", zoo)
    assert f"in {zoo / ENTRY}\n" in done.stdout
    asked = ["evaluate", ENTRY, "--way", 2, "--tasks", 2, "--queries", 2, "--zoo", zoo]
    assert fewshot(*asked, "--data", made_data).exit_code == 0


def test_the_card_tells_the_facts_of_the_run(made: Path) -> None:
    card = load_card(made / "zoo" / ENTRY)
    with safe_open(made / "run" / "best.safetensors", "pt") as file:
        best = file.metadata()
    wanted = recipe()
    assert card.learner == "prototypical"
    assert card.family == "metric"
    assert card.config == LEARNERS["prototypical"]
    assert card.parameters == 9 * 8 * (1 + 3 * 8) + 4 * 2 * 8
    assert card.limits == wanted.entry.limits
    assert card.paper == wanted.entry.paper
    assert card.input == wanted.data.input
    assert (card.attention.layers, card.attention.task, card.attention.query) == (1, True, None)
    assert card.training.steps == json.loads(best["best"])["step"]
    assert (card.training.dataset, card.training.split) == ("folder", "50/25/25")
    assert not card.transductive
    assert card.accuracy == ()
    assert card.encodes


def test_the_card_lists_every_file_as_it_is(made: Path) -> None:
    folder = made / "zoo" / ENTRY
    listed = load_card(folder).files
    assert {path.name for path in folder.iterdir()} == {*listed, "card.json"}
    for name, fact in listed.items():
        data = (folder / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (fact.bytes, fact.sha256)


@torch.no_grad()
def test_the_entry_answers_as_the_run_s_best_weights_in_both_runtimes(made: Path) -> None:
    card = load_card(made / "zoo" / ENTRY)
    verify(card, made / "zoo")
    torch_learner, onnx_learner = (
        load_learner(card, made / "zoo"),
        OnnxLearner.of(card, made / "zoo"),
    )
    best = load_file(made / "run" / "best.safetensors")
    loaded = torch_learner.state_dict()
    assert best.keys() == loaded.keys()
    assert all(torch.equal(best[key], loaded[key]) for key in best)
    assert not torch_learner.training
    support = torch.rand(2, 6, 1, SIDE, SIDE)
    labels = torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
    episode = Support.of(support, labels), torch.rand(2, 3, 1, SIDE, SIDE)
    a, b = torch_learner(*episode), onnx_learner(*episode)
    assert torch.allclose(a.probabilities, b.probabilities, atol=1e-5)


@pytest.mark.parametrize("name", ["model.safetensors", "encode.onnx", "adapt.onnx", "predict.onnx"])
def test_one_changed_byte_and_the_entry_is_refused(made: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(made / "zoo", tmp_path / "zoo")
    path = tmp_path / "zoo" / ENTRY / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    card = load_card(path.parent)
    with pytest.raises(ZooError, match="sha256"):
        read_file(card, name, tmp_path / "zoo")
    use = OnnxLearner.of if name.endswith(".onnx") else load_learner
    with pytest.raises(ZooError, match="sha256"):
        use(card, tmp_path / "zoo")
    assert_one_line(fewshot("models", "verify", ENTRY, "--zoo", tmp_path / "zoo"), ENTRY)


@pytest.mark.parametrize("config", [{"channels": 2}, {"chanels": 1}, {"backbone": "conv4-16"}])
def test_weights_that_do_not_fit_the_card_are_refused(made: Path, config: dict[str, Any]) -> None:
    card = load_card(made / "zoo" / ENTRY)
    other = card.model_copy(update={"config": card.config | config})
    with pytest.raises(ZooError, match="does not fit") as told:
        load_learner(other, made / "zoo")
    assert "\n" not in str(told.value)


def test_an_export_that_disagrees_writes_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs of the run, but weights that have changed since."""
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    graphs = {path.name: path.read_bytes() for path in (made / "zoo" / ENTRY).glob("*.onnx")}
    with safe_open(run / "best.safetensors", "pt") as file:
        facts = file.metadata()
    weights = {k: v * 1.5 for k, v in load_file(run / "best.safetensors").items()}
    save_file(weights, run / "best.safetensors", facts)
    monkeypatch.setattr(export, "to_onnx", lambda *_: graphs)
    with pytest.raises(ParityError):
        export.export(run, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()

    shutil.copytree(made / "zoo", tmp_path / "zoo")
    again = fewshot("export", run, "--zoo", tmp_path / "zoo", "--replace")
    assert_one_line(again, "differ")
    verify(load_card(tmp_path / "zoo" / ENTRY), tmp_path / "zoo")


def test_graphs_are_compared_at_the_card_s_rates(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = recipe("maml", steps=1)
    served = tiny.entry.model_copy(
        update={"adaptation": Adaptation(steps=3, max_steps=5, inner_lr=0.5, max_inner_lr=4.0)}
    )
    tiny = tiny.model_copy(update={"entry": served})
    trainer.train(tiny, tmp_path / "run", root=made_data, quiet=True)
    asked = []

    def note(*_: object, rates: tuple[float, ...] = ()) -> None:
        asked.append(rates)
        raise ParityError

    monkeypatch.setattr(export, "to_onnx", lambda *_: {})
    monkeypatch.setattr(export, "compare", note)
    with pytest.raises(ParityError):
        export.export(tmp_path / "run", tmp_path / "zoo")
    assert asked == [(0.5, 0.5, 0.5)]


def test_a_second_export_replaces_the_first_where_it_is_asked_to(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "zoo", tmp_path / "zoo")
    folder = tmp_path / "zoo" / ENTRY
    before = load_card(folder)
    refused = fewshot("export", made / "run", "--zoo", tmp_path / "zoo")
    assert_one_line(refused, f"{folder} is there already")
    assert load_card(folder) == before
    graphs = {path.name: path.read_bytes() for path in folder.glob("*.onnx")}
    (folder / "stale.onnx").write_bytes(b"of a learner long gone")
    monkeypatch.setattr(export, "to_onnx", lambda *_: graphs)
    card, _ = export.export(made / "run", tmp_path / "zoo", version="2", replace=True)
    assert load_card(folder) == card
    assert card.version == "2"
    assert not (folder / "stale.onnx").exists()
    verify(card, tmp_path / "zoo")


def test_runs_of_one_recipe_stand_side_by_side_under_ids_of_their_own(
    made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "zoo", tmp_path / "zoo")
    command = ["export", made / "run", "--zoo", tmp_path / "zoo", "--id"]
    for odd in ("Second", "../up", "", "a" * 65, "a\n"):
        assert_one_line(fewshot(*command, odd), "cannot be an id")
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]
    (tmp_path / "zoo" / "photos").mkdir()
    (tmp_path / "zoo" / "photos" / "mine.txt").write_text("precious")
    for more in ((), ("--replace",)):
        assert_one_line(fewshot(*command, "photos", *more), "is no entry")
    assert (tmp_path / "zoo" / "photos" / "mine.txt").exists()
    assert fewshot(*command, "second").exit_code == 0
    first, second = (load_card(tmp_path / "zoo" / name) for name in (ENTRY, "second"))
    assert second.training.recipe == first.training.recipe
    verify(second, tmp_path / "zoo")
    assert_one_line(fewshot(*command, "second"), "second is there already")


def test_evaluate_measures_test_classes_and_records_the_row(
    made: Path, made_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "zoo", tmp_path / "zoo")
    protocol = ["--way", 3, "--shot", 2, "--queries", 3, "--tasks", 12, "--seed", 5]
    where = ["--zoo", tmp_path / "zoo", "--data", made_data]
    done = fewshot("evaluate", ENTRY, *protocol, *where, "--json", "--record")
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)

    card = load_card(tmp_path / "zoo" / ENTRY)
    learner = load_learner(card, tmp_path / "zoo")
    data = recipe().data
    store = load_test(data.dataset, data.split, data.input, made_data)
    episode = EpisodeSampler(store, seed=5).sample(12, 3, 2, 3)
    with torch.no_grad():
        answers = learner(episode.support, episode.query).logits.argmax(-1)
    rights = [
        sum(int(a == t) for a, t in zip(x, y, strict=True)) / 9
        for x, y in zip(answers.tolist(), episode.targets.tolist(), strict=True)
    ]
    assert row["mean"] == pytest.approx(statistics.mean(rights), abs=1e-5)
    assert row["ci95"] == pytest.approx(1.96 * statistics.stdev(rights) / 12**0.5, abs=1e-5)
    assert [a.model_dump(mode="json") for a in card.accuracy] == [row]
    assert (row["way"], row["shot"], row["queries_per_class"], row["tasks"]) == (3, 2, 3, 12)
    assert row["transductive"] is False

    again = fewshot(*row["command"].split()[1:], *where, "--json")
    assert json.loads(again.stdout) == row, "the row's command gives the row"
    fewshot("evaluate", ENTRY, *protocol, *where, "--record")
    fewshot("evaluate", ENTRY, "--way", 2, "--tasks", 3, "--queries", 3, *where, "--record")
    rows = load_card(tmp_path / "zoo" / ENTRY).accuracy
    assert [(a.way, a.shot) for a in rows] == [(2, 1), (3, 2)]


def test_evaluate_counts_turned_classes_as_it_is_told(made: Path, made_data: Path) -> None:
    learner, data = load_learner_of(made, ENTRY), recipe().data
    store = load_test(data.dataset, data.split, data.input, made_data)
    given = ["--way", 3, "--tasks", 20, "--queries", 3, "--zoo", made / "zoo", "--data", made_data]
    means = []
    for rotations in ("none", "classes"):
        done = fewshot("evaluate", ENTRY, *given, "--rotations", rotations, "--json")
        row = json.loads(done.stdout)
        sampler = EpisodeSampler(store, rotations=rotations)
        expected = measure(learner, sampler, tasks=20, way=3, shot=1, queries=3)
        assert row["rotations"] == rotations
        assert row["mean"] == pytest.approx(expected.mean, abs=1e-5)
        means.append(row["mean"])
    assert means[0] != means[1]


def test_a_folder_of_other_classes_is_not_tested_on(
    made: Path, made_data: Path, tmp_path: Path
) -> None:
    """Percentages would deal classes that trained to the test."""
    data = tmp_path / "data"
    shutil.copytree(made_data, data)
    asked = ["evaluate", ENTRY, "--way", 2, "--tasks", 2, "--queries", 2, "--zoo", made / "zoo"]
    assert fewshot(*asked, "--data", data).exit_code == 0
    shutil.copytree(data / "class00", data / "another")
    assert_one_line(fewshot(*asked, "--data", data), "other classes than in the training")


def test_a_run_without_a_validation_has_nothing_to_export(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "run" / "best.safetensors").unlink()
    refused = fewshot("export", tmp_path / "run", "--zoo", tmp_path / "zoo")
    assert_one_line(refused, f"{tmp_path / 'run'}: nothing was validated yet")


def test_steps_and_rates_are_chosen_on_validation_classes(made_data: Path, tmp_path: Path) -> None:
    source = write_recipe(tmp_path / "mine.yaml", "maml", steps=2)
    trained = fewshot("train", source, "--out", tmp_path / "run", "--data", made_data)
    assert trained.exit_code == 0, trained.output
    where = ["--zoo", tmp_path / "zoo"]
    assert fewshot("export", tmp_path / "run", *where).exit_code == 0
    entry, where = "tiny-maml", [*where, "--data", made_data]
    card, learner = load_card(tmp_path / "zoo" / entry), load_learner_of(tmp_path, entry)
    protocol = ["--way", 2, "--tasks", 8, "--queries", 3, *where]
    chosen = ["--classes", "val", "--steps", 3, "--inner-lr", 0.25]
    done = fewshot("evaluate", entry, *protocol, *chosen, "--json")
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)

    data = recipe().data
    store = load_test(data.dataset, data.split, data.input, made_data, classes="val")
    assert not set(store.classes) & set(
        load_test(data.dataset, data.split, data.input, made_data).classes
    )
    expected = measure(
        learner,
        EpisodeSampler(store),
        tasks=8,
        way=2,
        shot=1,
        queries=3,
        inner_lr=[0.25] * 3,
    )
    assert row["mean"] == pytest.approx(expected.mean, abs=1e-5)
    assert row["classes"] == "val"
    again = fewshot(*row["command"].split()[1:], *where, "--json")
    assert json.loads(again.stdout) == row, "the row's command gives the row"
    plain = json.loads(fewshot("evaluate", entry, *protocol, "--json").stdout)
    assert plain["classes"] == "test"
    assert card.adaptation is not None
    assert (card.adaptation.steps, card.adaptation.inner_lr) != (3, 0.25)
    for options in (["--classes", "val"], ["--steps", 3], ["--inner-lr", 0.25]):
        refused = fewshot("evaluate", entry, *protocol, *options, "--record")
        assert_one_line(refused, "--record takes the card's own adaptation")
    assert load_card(tmp_path / "zoo" / entry) == card


def test_adaptation_is_asked_only_of_what_adapts(made: Path, made_data: Path) -> None:
    where = ["--zoo", made / "zoo", "--data", made_data]
    assert_one_line(fewshot("evaluate", ENTRY, "--steps", 3, *where), "without gradient steps")


def test_a_seed_of_one_s_own_trains_in_a_folder_of_its_own(
    made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_recipe(tmp_path / "mine.yaml", steps=2)
    monkeypatch.chdir(tmp_path)
    for options in (["--seed", 0], ["--seed", 1], []):
        done = fewshot("train", source, "--data", made_data, *options)
        assert done.exit_code == 0, done.output
    folders = [tmp_path / "runs" / f"{ENTRY}{end}" for end in ("-seed0", "-seed1", "")]
    seeds = [yaml.safe_load((folder / "recipe.yaml").read_text())["seed"] for folder in folders]
    assert seeds == [0, 1, recipe().seed]
    zero, one, plain = (load_file(folder / "best.safetensors") for folder in folders)
    assert all(torch.equal(zero[name], plain[name]) for name in plain)
    assert not all(torch.equal(one[name], plain[name]) for name in plain)


def load_learner_of(place: Path, entry: str) -> Learner:
    zoo = place / "zoo"
    return load_learner(load_card(zoo / entry), zoo)


def test_two_entries_are_compared_task_by_task(made: Path, made_data: Path, tmp_path: Path) -> None:
    zoo, run = tmp_path / "zoo", tmp_path / "run"
    shutil.copytree(made / "zoo", zoo)
    source = write_recipe(tmp_path / "mine.yaml", "maml", steps=2)
    assert fewshot("train", source, "--out", run, "--data", made_data).exit_code == 0
    assert fewshot("export", run, "--zoo", zoo).exit_code == 0
    protocol = ["--way", 3, "--tasks", 12, "--queries", 3, "--zoo", zoo, "--data", made_data]
    done = fewshot("evaluate", "tiny-maml", "--against", ENTRY, *protocol, "--json")
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)
    beside = row.pop("against")
    alone = [
        json.loads(fewshot("evaluate", name, *protocol, "--json").stdout)
        for name in ("tiny-maml", ENTRY)
    ]
    assert row == alone[0]
    assert (beside["model"], beside["mean"]) == (ENTRY, alone[1]["mean"])

    data = recipe().data
    store = load_test(data.dataset, data.split, data.input, made_data)
    cards = [load_card(zoo / name) for name in ("tiny-maml", ENTRY)]
    each = [
        measure(
            load_learner(card, zoo),
            EpisodeSampler(store),
            tasks=12,
            way=3,
            shot=1,
            queries=3,
            inner_lr=card.adaptation.rates if card.adaptation else None,
        ).each
        for card in cards
    ]
    apart = [a - b for a, b in zip(*each, strict=True)]
    assert beside["above"] == pytest.approx(statistics.mean(apart), abs=1e-9)
    assert beside["ci95"] == pytest.approx(1.96 * statistics.stdev(apart) / 12**0.5, abs=1e-9)
    assert beside["ci95"] > 0

    table = fewshot("evaluate", "tiny-maml", "--against", ENTRY, *protocol).output
    assert f"{ENTRY} on the same tasks: {beside['mean']:.2%}" in " ".join(table.split())
    refused = fewshot("evaluate", "tiny-maml", "--against", "no-such", *protocol)
    assert_one_line(refused, "no-such")
    shipped = fewshot("evaluate", "tiny-maml", "--against", "maml-omniglot", *protocol)
    # It is found, and nobody is asked to put its data set into a folder of one's own.
    assert_one_line(shipped, "maml-omniglot is measured on other classes than tiny-maml")


def test_both_runtimes_measure_the_same(made: Path, made_data: Path) -> None:
    options = ["--way", 4, "--tasks", 10, "--queries", 3, "--zoo", made / "zoo", "--json"]
    rows = [
        json.loads(
            fewshot("evaluate", ENTRY, *options, "--data", made_data, "--runtime", runtime).stdout
        )
        for runtime in ("torch", "onnx")
    ]
    assert rows[0]["mean"] == pytest.approx(rows[1]["mean"], abs=0.02)
    assert rows[0]["command"] != rows[1]["command"]


def test_a_learner_of_sequences_is_measured_on_the_way(made_data: Path, tmp_path: Path) -> None:
    source = write_recipe(tmp_path / "mine.yaml", "mann", steps=2)
    where = ["--zoo", tmp_path / "zoo"]
    assert fewshot("train", source, "--out", tmp_path / "run", "--data", made_data).exit_code == 0
    assert fewshot("export", tmp_path / "run", *where).exit_code == 0
    entry, where = "tiny-mann", [*where, "--data", made_data]
    assert load_card(tmp_path / "zoo" / entry).order_dependent
    protocol = ["--way", 3, "--shot", 4, "--tasks", 6, "--json", "--record", *where]
    rows = []
    for presentation in (3, 2):
        done = fewshot("evaluate", entry, *protocol, "--presentation", presentation)
        assert done.exit_code == 0, done.output
        rows.append(json.loads(done.stdout))
        assert (rows[-1]["presentation"], rows[-1]["queries_per_class"]) == (presentation, 0)
    kept = load_card(tmp_path / "zoo" / entry).accuracy
    assert [row.model_dump(mode="json") for row in kept] == rows[::-1]
    again = fewshot(*rows[0]["command"].split()[1:], *where, "--json")
    assert json.loads(again.stdout) == rows[0], "the row's command gives the row"
    for options, message in [
        (["--presentation", 5], "no presentation 5"),
        (["--presentation", 2, "--runtime", "onnx"], "--runtime torch"),
    ]:
        assert_one_line(fewshot("evaluate", entry, *protocol, *options), message)


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("fewshot: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.output
    for part in parts:
        assert part in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1}, "learning_rate"),
        ({"learner": "resnet"}, "known: "),
        ({"config": {"chanels": 1}}, "chanels"),
        ({"config": {"channels": 3}}, "channels"),
        ({"data": {"dataset": "mnist"}}, "mnist"),
        ({"data": {"split": "80/20"}}, "80/20"),
        ({"data": {"split": "100/0/0"}}, "100/0/0"),
        ({"episodes": {"ways": [40]}}, "40"),
        ({"episodes": {"shots": [9]}}, "the smallest class, 'class"),
        ({"validation": {"way": 6}}, "6-way"),
        ({"validation": {"way": 1}}, "validation.way"),
        ({"data": {"input": {"channels": 1, "height": 16, "width": 24, "fit": "pad"}}}, "square"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_exit_code_2(
    changes: dict[str, Any], message: str, made_data: Path, tmp_path: Path
) -> None:
    content = recipe().model_dump(mode="json")
    for section, value in changes.items():
        merge = isinstance(value, dict) and section != "config"
        content[section] = content[section] | value if merge else value
    source = tmp_path / "mine.yaml"
    source.write_text(yaml.safe_dump(content))
    result = fewshot("train", source, "--out", tmp_path / "run", "--data", made_data)
    assert_one_line(result, message)


def test_missing_and_broken_things_are_one_line_and_exit_code_2(
    made: Path, made_data: Path, tmp_path: Path
) -> None:
    source, out = made / "mine.yaml", tmp_path / "run"
    empty = tmp_path / "empty"
    (empty / "cat").mkdir(parents=True)
    text = tmp_path / "text.txt"
    text.write_text("text")
    broken = tmp_path / "broken"
    shutil.copytree(made_data, broken)
    (broken / "class03" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    zoo = ["--zoo", made / "zoo"]
    for arguments, message in [
        (["train", "nothing-of-mine", "--out", out], "shipped: "),
        (["train", tmp_path / "no.yaml", "--out", out], "no.yaml"),
        (["train", source, "--out", out, "--data", tmp_path / "nowhere"], "nowhere"),
        (["train", source, "--out", out, "--data", empty], "no images"),
        (["train", source, "--out", out, "--data", text], "text.txt"),
        (["train", source, "--out", out, "--data", broken], "class03/0.png"),
        (["train", source, "--out", text, "--data", made_data], "text.txt"),
        (["export", tmp_path / "nowhere", *zoo], "nowhere"),
        (["export", empty, *zoo], "recipe.yaml"),
        (["evaluate", "nothing", *zoo, "--data", made_data], "unknown model 'nothing'"),
        (["evaluate", ENTRY, *zoo, "--way", 5, "--data", made_data], "at most 4"),
        (["evaluate", ENTRY, *zoo, "--way", 4, "--shot", 9, "--data", made_data], "8"),
        (["evaluate", ENTRY, *zoo, "--way", 2, "--data", tmp_path / "nowhere"], "nowhere"),
        (
            ["evaluate", ENTRY, *zoo, "--way", 2, "--presentation", 1, "--data", made_data],
            "on the way",
        ),
    ]:
        assert_one_line(fewshot(*arguments), message)
    if not torch.cuda.is_available():
        assert_one_line(fewshot("train", source, "--device", "cuda"), "CUDA")


def test_damaged_run_folders_are_one_line_and_exit_code_2(
    made: Path, made_data: Path, tmp_path: Path
) -> None:
    for name, data in [
        ("last.pt", b"torn"),
        ("recipe.yaml", b"learner: ["),
        ("best.safetensors", b"torn"),
    ]:
        run = tmp_path / name / "run"
        shutil.copytree(made / "run", run)
        (run / name).write_bytes(data)
        assert_one_line(fewshot("export", run, "--zoo", tmp_path / "zoo"), name)
        if name != "best.safetensors":
            again = fewshot("train", made / "mine.yaml", "--out", run, "--data", made_data)
            assert_one_line(again, name)
    with pytest.raises(RecipeError):
        export.export(tmp_path / "recipe.yaml" / "run", tmp_path / "zoo")


def test_ctrl_c_says_how_to_go_on_and_that_command_does(
    made: Path, made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, drawn = trainer.draw_episode, []

    def interrupting(*args: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(trainer, "draw_episode", interrupting)
    out = tmp_path / "my run"
    changed = ["--set", "validation.tasks=7", "--seed", 3]
    stopped = fewshot("train", made / "mine.yaml", "--out", out, "--data", made_data, *changed)
    assert stopped.exit_code == 130
    first, last = stopped.stderr.splitlines()
    assert first == "fewshot: finishing this step; press again to stop at once"
    assert last.startswith("fewshot: stopped; the checkpoint of step 2 is kept; go on with: ")
    command = stopped.stderr.partition("with: ")[2]
    done = fewshot(*shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    assert len(drawn) == 12


@pytest.mark.parametrize(("draws", "kept"), [(2, None), (5, 3)])
def test_a_second_ctrl_c_keeps_the_checkpoint_that_there_is(
    draws: int,
    kept: int | None,
    made: Path,
    made_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every third step is checkpointed; what --fresh has begun, the command goes on with."""
    real, drawn = trainer.draw_episode, []

    def interrupting(*args: Any) -> Any:
        drawn.append(1)
        if len(drawn) == draws:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    shutil.copytree(made / "run", tmp_path / "run")
    monkeypatch.setattr(trainer, "draw_episode", interrupting)
    train = ["train", made / "mine.yaml", "--out", tmp_path / "run", "--data", made_data, "--fresh"]
    stopped = fewshot(*train)
    assert stopped.exit_code == 130
    state, _, command = stopped.stderr.splitlines()[-1].partition(" with: ")
    if kept is None:
        assert state == "fewshot: stopped before it had saved anything; start again"
    else:
        assert state == f"fewshot: stopped; the checkpoint of step {kept} is kept; go on"
    assert ("--fresh" in command) == (kept is None)
    assert fewshot(*shlex.split(command)[1:]).exit_code == 0
    assert len(drawn) == draws + 12 - (kept or 0)


def test_ctrl_c_before_fresh_has_cleared_the_folder_keeps_it_fresh(
    made: Path, made_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    shutil.copytree(made / "run", tmp_path / "run")
    monkeypatch.setattr(trainer, "rehearse", interrupt)
    train = ["train", made / "mine.yaml", "--out", tmp_path / "run", "--data", made_data]
    stopped = fewshot(*train, "--fresh")
    assert stopped.stderr.endswith("--fresh\n")
    assert "is kept" not in stopped.stderr


def test_the_shipped_zoo_is_the_default_place() -> None:
    assert cards.ENTRIES.parts[-2:] == ("models_zoo", "entries")

"""The command line. Thin: each command's body is a lazy import of a function elsewhere."""

from __future__ import annotations

from enum import StrEnum
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

app = typer.Typer(
    name="fewshot",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models = typer.Typer(help="The zoo: list, show, time, verify, add.", no_args_is_help=True)
app.add_typer(models, name="models")
plot = typer.Typer(
    help="Figures of the papers from your own runs and images, as PNG with the numbers beside it "
    "as CSV.",
    no_args_is_help=True,
)
app.add_typer(plot, name="plot")
keys = typer.Typer(
    help="API keys of the service: create, list, rotate, revoke.", no_args_is_help=True
)
app.add_typer(keys, name="keys")


class Device(StrEnum):
    """Where models run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Zoo = Annotated[
    Path | None,
    typer.Option(envvar="FEWSHOT_ZOO", help="Folder of zoo entries. Default: the shipped zoo."),
]
Where = Annotated[Device | None, typer.Option(help="Where models run. Default: auto.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Support = Annotated[
    Path, typer.Option(help="Folder or zip with one sub-folder of images per class.")
]
Queries = Annotated[
    list[Path] | None,
    typer.Option("--query", help="Images to ask about, or folders of them; more may follow."),
]
More = Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="More queries.")]
LARGEST_SEED = 2**32 - 1
#: Of a key's limits: PostgreSQL's integers end there.
LARGEST_LIMIT = 2**31 - 1
Model = Annotated[str, typer.Option(help="Id of a model; see `fewshot models list`.")]


def print_version(wanted: bool) -> None:
    """Raises `typer.Exit` where it is."""
    if wanted:
        from service.version import version

        typer.echo(f"fewshot {version()}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Few-shot image classification: serve, classify, train, and the zoo of models."""


# --- serving ---------------------------------------------------------------------------------


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def serve(context: typer.Context) -> None:
    """Serve the zoo over HTTP; `fewshot serve --help` lists the settings, which are its flags."""
    from service.commands.serve import run

    run(context.args)


@app.command()
def classify(
    model: Model,
    support: Support,
    query: Queries = None,
    more: More = None,
    attention: Annotated[
        Path | None, typer.Option(help="Write a picture of the attention per query here.")
    ] = None,
    as_json: Json = False,
    top_k: Annotated[int | None, typer.Option(min=1, help="Most probable classes shown.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Gradient steps, for models that adapt by them.")
    ] = None,
    inner_lr: Annotated[float | None, typer.Option(help="Their learning rate.")] = None,
    orders: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=16,
            help="Show the examples in so many orders and average, for models to which it matters.",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the classifier here, as an ONNX file that runs by itself; needs no query."
        ),
    ] = None,
    zoo: Zoo = None,
    device: Where = None,
) -> None:
    """Classify images from a few labelled examples, with no server."""
    from service.commands.classify import Options, run

    images = [*(query or []), *(more or [])]
    where = device and device.value
    run(
        Options(
            model,
            support,
            images,
            attention,
            as_json,
            top_k,
            steps,
            inner_lr,
            zoo,
            where,
            save,
            orders,
        )
    )


# --- training --------------------------------------------------------------------------------

Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the data archives; of your own images, their folder or zip. Default: "
        "FEWSHOT_DATA or ./data."
    ),
]


Download = Annotated[
    bool, typer.Option("--download", help="Fetch Omniglot or CIFAR-100 first if it is absent.")
]


class Part(StrEnum):
    """Classes of a split that an entry did not learn from."""

    test = "test"
    val = "val"


class Rotations(StrEnum):
    """Whether turned classes count as classes of their own."""

    none = "none"
    classes = "classes"


class Runtime(StrEnum):
    """What runs an entry under evaluation."""

    torch = "torch"
    onnx = "onnx"


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<id>.")] = None,
    data: Data = None,
    device: Where = None,
    download: Download = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew; forget what is there.")
    ] = False,
    until: Annotated[int | None, typer.Option(min=1, help="Stop after this step.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=LARGEST_SEED, help="In place of the recipe's seed, in runs/<id>-seed<seed>."
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting in place of the recipe's: --set episodes.ways=[20]. Repeatable.",
        ),
    ] = None,
) -> None:
    """Meta-train a recipe. Ctrl-C saves; the same command goes on where it stopped.

    Example: fewshot train prototypical-omniglot
    """
    from service.commands.paths import check_recipe

    body = training()
    check_recipe(recipe)
    body.train(
        recipe, out, data, device and device.value, fresh, until, download, seed, changes or ()
    )


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Id of a zoo entry.")],
    way: Annotated[int, typer.Option(min=2, help="Classes in a task.")] = 5,
    shot: Annotated[int, typer.Option(min=1, help="Labelled images per class.")] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Queries per class.")] = 15,
    presentation: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Instead of queries: show the labelled images one by one, each label after its "
            "image, and count the answers to this image of each class. For MANN.",
        ),
    ] = None,
    tasks: Annotated[int, typer.Option(min=2, help="Number of tasks.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the tasks.")] = 0,
    rotations: Annotated[
        Rotations, typer.Option(help="classes: turned test classes are classes of their own.")
    ] = Rotations.none,
    runtime: Annotated[
        Runtime, typer.Option(help="PyTorch, or the exported graphs.")
    ] = Runtime.torch,
    apart: Annotated[
        bool,
        typer.Option("--apart", help="Every query by itself: no transductive model sees others."),
    ] = False,
    classes: Annotated[
        Part, typer.Option(help="val: validation classes, to choose by; never recorded.")
    ] = Part.test,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Gradient steps in place of the card's.")
    ] = None,
    inner_lr: Annotated[
        float | None, typer.Option(min=0, help="Their learning rate in place of the card's.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Another entry, of --zoo or else shipped, asked the same tasks: how far is this "
            "one above it?"
        ),
    ] = None,
    data: Data = None,
    zoo: Zoo = None,
    device: Where = None,
    download: Download = False,
    record: Annotated[bool, typer.Option("--record", help="Write the result on the card.")] = False,
    as_json: Json = False,
) -> None:
    """Measure an entry's accuracy on the test classes of its split.

    Example: fewshot evaluate prototypical-omniglot --way 20 --shot 1 --rotations classes

    Is it better than another: fewshot evaluate mmnet-omniglot --against stanet-omniglot
    """
    training().evaluate_entry(
        model,
        way=way,
        shot=shot,
        queries=queries,
        presentation=presentation,
        tasks=tasks,
        seed=seed,
        rotations=rotations.value,
        runtime=runtime.value,
        apart=apart,
        classes=classes.value,
        steps=steps,
        inner_lr=inner_lr,
        data=data,
        zoo=zoo,
        device=device and device.value,
        download=download,
        record=record,
        as_json=as_json,
        against=against,
    )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `fewshot train`.")],
    zoo: Zoo = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an entry of this id, accuracies and all.")
    ] = False,
    identity: Annotated[
        str | None,
        typer.Option(
            "--id", help="Id of the entry. Default: the recipe's. Tells runs of one recipe apart."
        ),
    ] = None,
) -> None:
    """Turn a run into a zoo entry: weights, ONNX graphs checked against PyTorch, and a card.

    Example: fewshot export runs/prototypical-omniglot --zoo zoo
    """
    from service.commands.paths import check_folder

    body = training()
    check_folder("RUN", run)
    body.export(run, zoo, replace, identity)


def training(module: str = "training.commands") -> ModuleType:
    """The training commands, or a line saying how to install them."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("training", "models_zoo"):
            raise
        typer.echo(
            f"fewshot: {package} is missing; "
            "install with: pip install -c constraints.txt -e '.[train]'",
            err=True,
        )
        raise typer.Exit(2) from None


# --- figures ---------------------------------------------------------------------------------

Run = Annotated[Path, typer.Argument(help="Folder of a run of `fewshot train`.")]
Runs = Annotated[list[Path], typer.Argument(help="Folders of runs of `fewshot train`.")]
Picture = Annotated[
    Path | None,
    typer.Option(help="The PNG; the CSV gets its name. Default: in RUN/plots, of the first run."),
]


@plot.command("validation")
def plot_validation(runs: Runs, out: Picture = None) -> None:
    """Validation accuracy over iterations, a line for each run (Aimen et al. 2021, Fig. 3).

    Example: fewshot plot validation runs/taml-omniglot runs/ta-maml-omniglot
    """
    training("training.plots.commands").validation(runs, out)


@plot.command("trajectory")
def plot_trajectory(runs: Runs, out: Picture = None) -> None:
    """Paths of runs through the space of weights (Aimen et al. 2021, Fig. 1).

    To compare sequential training with batches, give the same recipe with `episodes: {tasks: 1}`
    and with more, from one seed and at one learning rate: a path's length goes with it.

    Example: fewshot plot trajectory runs/taml-omniglot runs/ta-maml-omniglot
    """
    training("training.plots.commands").trajectory(runs, out)


@plot.command("task-weights")
def plot_task_weights(run: Run, out: Picture = None) -> None:
    """Largest and smallest task attention in every iteration (Aimen et al. 2021, Fig. 4).

    Example: fewshot plot task-weights runs/ta-maml-omniglot
    """
    training("training.plots.commands").task_weights(run, out)


@plot.command("task-correlation")
def plot_task_correlation(run: Run, out: Picture = None) -> None:
    """Correlation of each input of task attention with the attention (Aimen et al. 2021, Fig. 5a).

    Example: fewshot plot task-correlation runs/ta-maml-omniglot
    """
    training("training.plots.commands").task_correlation(run, out)


@plot.command("task-rank")
def plot_task_rank(run: Run, out: Picture = None) -> None:
    """Rank, by attention, of the task with the largest loss (Aimen et al. 2021, Fig. 5b).

    Example: fewshot plot task-rank runs/ta-maml-omniglot
    """
    training("training.plots.commands").task_rank(run, out)


OwnPicture = Annotated[
    Path | None,
    typer.Option(help="The PNG; the CSV gets its name. Default: plots/COMMAND.png."),
]


def entry_figure(name: str, out: Path | None, *asked: object) -> None:
    """Asked by the service's code and drawn by the training's, neither of which imports the other:
    what the one returns has for fields what the other takes."""
    drawing, commands = training(f"training.plots.{name}"), training("training.plots.commands")
    found = getattr(import_module("service.commands.plots"), name)(*asked)
    path = out or Path("plots") / f"{name}.png"
    commands.finish(lambda path: drawing.draw(**vars(found), path=path), path)


@plot.command("attention")
def plot_attention(
    model: Model,
    support: Support,
    query: Queries = None,
    more: More = None,
    out: OwnPicture = None,
    zoo: Zoo = None,
    device: Where = None,
) -> None:
    """Where a model looks in each image, and which examples count (STANet, Fig. 4).

    Models without spatial attention show their task attention alone; those that learn by gradient
    steps show where in the query their answer comes from.

    Example:
    fewshot plot attention --model stanet-omniglot \\
      --support samples/support --query samples/queries/hook.png
    """
    images = [*(query or []), *(more or [])]
    entry_figure("attention", out, model, support, images, zoo, device and device.value)


@plot.command("similarity")
def plot_similarity(
    model: Model,
    support: Support,
    query: Queries = None,
    more: More = None,
    cosine: Annotated[
        bool,
        typer.Option(
            "--cosine",
            help="Cosine of the encoder's features. Default: the model's own task attention, which "
            "sums to 1 over the examples, and this where there is none. Of models that adapt their "
            "whole network, such as MAML's: the features after adaptation.",
        ),
    ] = False,
    out: OwnPicture = None,
    zoo: Zoo = None,
    device: Where = None,
) -> None:
    """How alike each example is to each query (MM-Net, Fig. 4).

    Example:
    fewshot plot similarity --model mmnet-omniglot \\
      --support samples/support --query samples/queries
    """
    images = [*(query or []), *(more or [])]
    entry_figure("similarity", out, model, support, images, cosine, zoo, device and device.value)


@plot.command("embedding")
def plot_embedding(
    model: Model,
    images: Annotated[
        Path, typer.Option(help="Folder or zip with one sub-folder of many images per class.")
    ],
    out: OwnPicture = None,
    zoo: Zoo = None,
    device: Where = None,
) -> None:
    """The images of a folder as a model's encoder places them, by t-SNE (MM-Net, Fig. 3).

    Of models that adapt their whole network: as it places them before its first step.

    Example: fewshot plot embedding --model prototypical-omniglot --images samples/support
    """
    entry_figure("embedding", out, model, images, zoo, device and device.value)


# --- the zoo ---------------------------------------------------------------------------------


class Head(StrEnum):
    """What decides on top of a pretrained network."""

    prototypical = "prototypical"
    cosine = "cosine"
    ridge = "ridge"
    alpaca = "alpaca"


@models.command("list")
def models_list(zoo: Zoo = None, as_json: Json = False) -> None:
    """List the entries."""
    from service.commands.models import list_models

    list_models(zoo, as_json)


@models.command("show")
def models_show(
    model: Annotated[str, typer.Argument(help="Id of a model.")],
    zoo: Zoo = None,
    as_json: Json = False,
) -> None:
    """Show one entry's card."""
    from service.commands.models import show_model

    show_model(model, zoo, as_json)


@models.command("add")
def models_add(
    backbone: Annotated[
        str,
        typer.Option(
            help="A classification network of torchvision: torchvision/resnet50, "
            "torchvision/vit_b_16, torchvision/convnext_tiny ...; for other than its default "
            "weights torchvision/resnet50/IMAGENET1K_V1."
        ),
    ],
    name: Annotated[
        str, typer.Option("--id", help="Id of the new entry: a-z, 0-9, '.', '_' and '-'.")
    ],
    head: Annotated[Head, typer.Option(help="What decides on top of it.")] = Head.prototypical,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A file of weights for this network, .pth or .safetensors. Default: torchvision "
            "downloads them."
        ),
    ] = None,
    zoo: Annotated[
        Path, typer.Option(envvar="FEWSHOT_ZOO", help="Folder of zoo entries to add it to.")
    ] = Path("zoo"),
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an entry of this id.")
    ] = False,
) -> None:
    """Add a pretrained network for photos, with no training: download, export to ONNX, check.

    Example: fewshot models add --backbone torchvision/resnet50 --head prototypical --id my-photos
    """
    from service.commands.paths import check_file

    body = training("training.pretrained")
    if weights is not None:
        check_file("--weights", weights)
    body.add(backbone, head.value, name, weights, zoo, replace)


@models.command("time")
def models_time(
    model: Annotated[str, typer.Argument(help="Id of a model.")],
    way: Annotated[int, typer.Option(min=2, help="Classes in the task.")] = 5,
    shot: Annotated[int, typer.Option(min=1, help="Labelled images per class.")] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Queries per class.")] = 15,
    zoo: Zoo = None,
    record: Annotated[bool, typer.Option("--record", help="Write the result on the card.")] = False,
    as_json: Json = False,
) -> None:
    """Measure how long one task takes here: ONNX Runtime, one CPU thread, medians of each stage.

    Leave the machine to it meanwhile.

    Example: fewshot models time prototypical-omniglot --way 20 --shot 1
    """
    from service.commands.timing import time_model

    time_model(model, way=way, shot=shot, queries=queries, zoo=zoo, record=record, as_json=as_json)


@models.command("verify")
def models_verify(
    model: Annotated[list[str] | None, typer.Argument(help="Ids; default: all.")] = None,
    zoo: Zoo = None,
    as_json: Json = False,
) -> None:
    """Check the entries' files against the sha256 on their cards."""
    from service.commands.models import verify_models

    verify_models(model or [], zoo, as_json)


# --- keys ------------------------------------------------------------------------------------

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the embedded database. Default: as for `fewshot serve`."),
]


@keys.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for the list.")],
    scopes: Annotated[
        str,
        typer.Option(
            help="read, write or admin, separated by commas; each includes those before it. "
            "admin allows no more than write today; it is kept for future administrative routes."
        ),
    ] = "write",
    rate_per_minute: Annotated[
        int | None,
        typer.Option(
            min=1, max=LARGEST_LIMIT, help="Most requests in a minute. Default: no limit."
        ),
    ] = None,
    daily_quota: Annotated[
        int | None,
        typer.Option(min=1, max=LARGEST_LIMIT, help="Most requests in a day. Default: no limit."),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once. From the first key on the service is closed to others.

    Example: fewshot keys create "web shop" --scopes read --rate-per-minute 600
    """
    from service.commands.keys import create_key

    create_key(name, scopes, rate_per_minute, daily_quota, data_dir, as_json)


@keys.command("list")
def keys_list(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the keys, the revoked ones too."""
    from service.commands.keys import list_keys

    list_keys(data_dir, as_json)


KeyId = Annotated[str, typer.Argument(help="Id of a key; see `fewshot keys list`.")]


@keys.command("rotate")
def keys_rotate(key: KeyId, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Print a new text for a key, this once; the old one is refused within a second.

    The key keeps its support sets, scopes and limits. For a key that others may have seen.

    Example: fewshot keys rotate key_0123456789ab
    """
    from service.commands.keys import rotate_key

    rotate_key(key, data_dir, as_json)


@keys.command("revoke")
def keys_revoke(
    key: KeyId,
    delete_sets: Annotated[
        bool,
        typer.Option(
            "--delete-sets",
            help="Delete its support sets too. An upload that was under way may leave one behind: "
            "then do it again.",
        ),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Revoke a key for good.

    Its support sets stay, but nobody can reach them: to keep using them, `rotate` it instead.

    Example: fewshot keys revoke key_0123456789ab --delete-sets
    """
    from service.commands.keys import revoke_key

    revoke_key(key, delete_sets, data_dir)


if __name__ == "__main__":
    app()

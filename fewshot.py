"""The command line. Thin: each command's body is a lazy import of a function elsewhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="fewshot",
    help="Few-shot image classification: serve, classify, train, and the zoo of models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models = typer.Typer(help="The zoo: list, show and verify its entries.", no_args_is_help=True)
app.add_typer(models, name="models")


class Device(StrEnum):
    """Where models run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Zoo = Annotated[Path | None, typer.Option(help="Folder of zoo entries. Default: the shipped zoo.")]
Where = Annotated[Device | None, typer.Option(help="Where models run. Default: auto.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


# --- serving ---------------------------------------------------------------------------------


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 picks a free one. Default: 8000.")
    ] = None,
    zoo: Zoo = None,
    device: Where = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of one model run. Default: all cores.")
    ] = None,
) -> None:
    """Serve the zoo over HTTP. Every setting is also an environment variable FEWSHOT_<NAME>."""
    from service.commands.serve import run

    run(host=host, port=port, zoo=zoo, device=device and device.value, threads=threads)


@app.command()
def classify(
    model: Annotated[str, typer.Option(help="Id of a model; see `fewshot models list`.")],
    support: Annotated[
        Path, typer.Option(help="Folder or zip with one sub-folder of images per class.")
    ],
    query: Annotated[
        list[Path] | None,
        typer.Option(help="Images to classify, or folders of them; more may follow."),
    ] = None,
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="More queries.")
    ] = None,
    attention: Annotated[
        Path | None, typer.Option(help="Write a picture of the attention per query here.")
    ] = None,
    as_json: Json = False,
    top_k: Annotated[int | None, typer.Option(min=1, help="Most probable classes shown.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Gradient steps, for models that adapt by them.")
    ] = None,
    inner_lr: Annotated[float | None, typer.Option(help="Their learning rate.")] = None,
    zoo: Zoo = None,
    device: Where = None,
) -> None:
    """Classify images from a few labelled examples, with no server."""
    from service.commands.classify import Options, run

    images = [*(query or []), *(more or [])]
    where = device and device.value
    run(Options(model, support, images, attention, as_json, top_k, steps, inner_lr, zoo, where))


# --- training: `train`, `evaluate` and `export` go here ----------------------------------------


# --- the zoo ---------------------------------------------------------------------------------


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


@models.command("verify")
def models_verify(
    model: Annotated[list[str] | None, typer.Argument(help="Ids; default: all.")] = None,
    zoo: Zoo = None,
    as_json: Json = False,
) -> None:
    """Check the entries' files against the sha256 on their cards."""
    from service.commands.models import verify_models

    verify_models(model or [], zoo, as_json)


if __name__ == "__main__":
    app()

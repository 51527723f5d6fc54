"""Images as an entry's encoder places them, brought down to a plane by t-SNE (Cai et al., Fig. 3).

t-SNE (van der Maaten and Hinton 2008) is scikit-learn's, started from the principal components and
a fixed seed. It keeps neighbours together; how far groups are from each other, and how large they
are, means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.manifold import TSNE

from training.plots import COLOURS, label, picture, write_table
from training.recipe import RecipeError

#: A class has a colour and a marker of its own.
MARKERS = "o^sDvP"
#: Neighbours that a point is placed by, roughly; a third of the others where there are fewer.
PERPLEXITY = 30
_FEWEST = 8


def draw(
    title: str, images: Sequence[str], classes: Sequence[str], vectors: np.ndarray, path: Path
) -> None:
    """Draw vectors `[M, D]` into `path`, and their places into its CSV. Raises `RecipeError`."""
    names, most = list(dict.fromkeys(classes)), len(COLOURS) * len(MARKERS)
    if len(names) > most:
        raise RecipeError(f"{len(names)} classes; a picture tells {most} apart")
    places = project(vectors)
    owners = np.array(classes)
    with picture(path, 5.4, 3.8) as (_, axes):
        axes.grid(False)
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color("#bbbbbb")
        for number, name in enumerate(names):
            x, y = places[owners == name].T
            axes.scatter(
                x,
                y,
                s=16,
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number // len(COLOURS)],
                linewidths=0,
                alpha=0.8,
                label=label(name),
            )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"t-SNE of {title}", fontsize=10)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    write_table(
        path,
        ("image", "class", "x", "y"),
        (
            (image, name, float(x), float(y))
            for image, name, (x, y) in zip(images, classes, places, strict=True)
        ),
    )


def project(vectors: np.ndarray) -> np.ndarray:
    """`[M, D]` -> `[M, 2]`. Raises `RecipeError` for too few images, or images all alike."""
    count = len(vectors)
    if count < _FEWEST:
        raise RecipeError(f"{count} images; t-SNE needs {_FEWEST} at least")
    if not np.isfinite(vectors).all() or np.ptp(vectors, axis=0).max() == 0:
        raise RecipeError("the encoder tells none of these images apart")
    perplexity = min(PERPLEXITY, (count - 1) / 3)
    found: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(
        vectors
    )
    return found

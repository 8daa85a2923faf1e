"""Train sparse dictionaries, and say how they learned and how good they ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from mechint_core.errors import ConfigurationError
from mechint_core.features.crosscoder import Crosscoder
from mechint_core.features.dictionaries.config import SparseAutoencoderConfig
from mechint_core.features.dictionaries.dictionary import SparseDictionary
from mechint_core.features.dictionaries.training import METRICS, OnProgress
from mechint_core.features.dictionaries.training_pass import EVALUATED, TrainingPass
from mechint_core.features.evaluate_dictionary import EvaluateDictionaryConfig, evaluate_dictionary
from mechint_core.features.recipe import Recipe
from mechint_core.features.sparse_autoencoder import SparseAutoencoder
from mechint_core.features.transcoder import Transcoder
from mechint_core.figure import Curve, Figure, Histogram
from mechint_core.parallel import Rows
from mechint_core.result import Estimate, Result

CURVE_POINTS = 200
"""Points at most along a training curve."""


@dataclass(frozen=True, slots=True)
class DictionaryTraining(Result):
    """How a sparse dictionary learned, and how good it ended."""

    technique: ClassVar[str] = "dictionary_training"
    evidence: ClassVar[str] = (
        "Final numbers on a sample of the training vectors; intervals: bootstrap over samples (dead share: Wilson's "
        "over latents); null: random dictionaries of equal size and L0, at their best scale."
    )
    figures: ClassVar[tuple[Figure, ...]] = (
        Curve(y=("loss", "fvu_curve"), x="step", title="Learning", x_label="step", y_label="loss, FVU", log_y=True),
        Curve(y=("l0_curve",), x="step", title="Active latents per vector", x_label="step", y_label="L0"),
        Curve(y=("dead_curve",), x="step", title="Dead latents", x_label="step", y_label="share"),
        Histogram(
            values="density",
            title="How often the latents fire in the end",
            x_label="share of samples a latent is active in",
            log_x=True,
        ),
    )

    fvu: Estimate
    l0: Estimate
    dead_share: Estimate
    shrinkage: Estimate
    n_steps: int
    n_latents: int
    step: Float[np.ndarray, "pass"]
    loss: Float[np.ndarray, "pass"]
    fvu_curve: Float[np.ndarray, "pass"]
    l0_curve: Float[np.ndarray, "pass"]
    dead_curve: Float[np.ndarray, "pass"]
    density: Float[np.ndarray, "latent"]

    def reading(self) -> str:
        """Say what was learned, and whether it had stopped improving."""
        tail = self.fvu_curve[-max(2, len(self.fvu_curve) // 10) :]
        falling = "was still improving" if tail[-1] < 0.95 * tail[0] else "had settled"
        return (
            f"After {self.n_steps} steps {self.l0.value:.3g} of {self.n_latents} latents per vector explain "
            f"{1 - self.fvu.value:.1%} of the variance (random directions: {1 - self.fvu.null:.1%}), and "
            f"{self.dead_share.value:.1%} of the latents are dead; the error {falling} at the end."
        )


class Trained(NamedTuple):
    """A dictionary and the record of its training."""

    dictionary: SparseDictionary
    """On the CPU, in the units of its sources, with decoder rows of norm 1."""
    training: DictionaryTraining


def train_dictionaries(
    sources: Mapping[str, Float[Rows, "sample *position unit"]],
    recipes: Mapping[str, Recipe],
    *,
    folder: Path | str | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Trained]:
    """Find the sparse features that these activations are made of: several dictionaries in one pass over the data.

    Use it for several sites, sizes, sparsities or seeds of the same data: the vectors are read and shuffled once. It
    assumes that vectors are sums of few directions with non-negative strength. A dictionary always comes out: whether
    its features mean something, `evaluate_dictionary` against its nulls, `match_features` between seeds and
    interventions have to show.

    Parameters
    ----------
    sources
        Activation vectors by name, in memory or stored. Further axes before the last are flattened; all axes but
        the last agree.
    recipes
        What to train, by name. They agree in epochs, batch size, order of the data and buffer.
    folder
        Where the state of training is kept. If it holds a run, that run is finished: the result is the same, bit
        for bit, as if it had never been stopped.
    on_progress
        Called about a hundred times with the number of steps made and the metrics: `loss`, `fvu`, `l0`,
        `dead_share`, parts of the loss; with several dictionaries `name/loss` and so on.

    Returns
    -------
    dict
        Name to dictionary and record of its training.

    Raises
    ------
    ShapeError
        If a source has fewer than two axes, or holds no vector, or the sources do not agree.
    DegenerateInputError
        If the vectors of a source are all the same, or one is not finite.
    ConfigurationError
        If a recipe names no source, `k` is above the number of latents, or the recipes cannot share a pass.
    CheckpointError
        If `folder` holds a run with another config or on other vectors.

    References
    ----------
    [@bricken2023]
    [@bussmann2024]
    [@gao2024]
    """
    training = start_training(sources, recipes)
    if folder is not None:
        training.resume(folder)
    training.run(folder=folder, on_progress=on_progress)
    return {name: Trained(training.finished(name), training_record(training, name)) for name in training.trainers}


def start_training(sources: Mapping[str, Rows], recipes: Mapping[str, Recipe]) -> TrainingPass:
    """Return the training of `recipes`, no step of it made."""
    widths = {name: rows.shape[-1] for name, rows in sources.items()}
    return TrainingPass(sources, {name: recipe.job(widths) for name, recipe in recipes.items()})


def train_sparse_autoencoder(
    source: Float[Rows, "sample *position unit"],
    *,
    config: SparseAutoencoderConfig = SparseAutoencoderConfig(),
    folder: Path | str | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[SparseAutoencoder, DictionaryTraining]:
    """Find the sparse features that the activations of one site are made of: `train_dictionaries` with one recipe."""
    recipe = Recipe(reads=("activations",), config=config)
    made = train_dictionaries({"activations": source}, {"": recipe}, folder=folder, on_progress=on_progress)[""]
    made.dictionary.site = ""
    return cast(SparseAutoencoder, made.dictionary), made.training


def train_transcoder(
    read: Float[Rows, "sample *position unit"],
    written: Float[Rows, "sample *position other_unit"],
    *,
    skip: bool = False,
    config: SparseAutoencoderConfig = SparseAutoencoderConfig(),
    folder: Path | str | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Transcoder, DictionaryTraining]:
    """Find the sparse features that turn one site into another: `train_dictionaries` with one transcoder."""
    recipe = Recipe(reads=("read",), writes="written", skip=skip, config=config)
    sources = {"read": read, "written": written}
    made = train_dictionaries(sources, {"": recipe}, folder=folder, on_progress=on_progress)[""]
    made.dictionary.site = ""
    return cast(Transcoder, made.dictionary), made.training


def train_crosscoder(
    sources: Mapping[str, Float[Rows, "sample *position unit"]],
    *,
    config: SparseAutoencoderConfig = SparseAutoencoderConfig(),
    folder: Path | str | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Crosscoder, DictionaryTraining]:
    """Find the sparse features that several sites share: `train_dictionaries` with one crosscoder of all sources."""
    recipe = Recipe(reads=tuple(sources), config=config)
    made = train_dictionaries(sources, {"": recipe}, folder=folder, on_progress=on_progress)[""]
    return cast(Crosscoder, made.dictionary), made.training


def training_record(training: TrainingPass, name: str) -> DictionaryTraining:
    """Return the curves up to now, and estimates of the dictionary as it is now on a sample of the sources.

    Raises
    ------
    ConfigurationError
        If no step was made.
    """
    trainer, job = training.trainers[name], training.jobs[name]
    if trainer.n_done == 0:
        raise ConfigurationError("a record needs at least one step. Got 0. Call `run` or `step` first.")
    sample = training.sample(EVALUATED, "evaluation")
    written = (sample[job.writes],) if job.writes else ()
    chosen = EvaluateDictionaryConfig(seed=trainer.config.seed)
    final = evaluate_dictionary(training.read_by(name, sample), trainer.finished(), *written, config=chosen)
    curves = _curves(trainer.metrics[: trainer.n_done].double().cpu().numpy())
    return DictionaryTraining(
        fvu=final.fvu,
        l0=final.l0,
        dead_share=final.dead_share,
        shrinkage=final.shrinkage,
        n_steps=trainer.n_done,
        n_latents=trainer.dictionary.hidden_dim,
        step=curves["step"],
        loss=curves["loss"],
        fvu_curve=curves["fvu"],
        l0_curve=curves["l0"],
        dead_curve=curves["dead_share"],
        density=final.density,
    )


def _curves(metrics: Float[np.ndarray, "step metric"]) -> dict[str, Float[np.ndarray, "pass"]]:
    """Average the metrics of each step over a few hundred stretches."""
    runs: Sequence[np.ndarray] = np.array_split(np.arange(len(metrics)), min(CURVE_POINTS, len(metrics)))
    means = np.stack([metrics[run].mean(axis=0) for run in runs], axis=1)
    return {"step": np.array([run[-1] + 1.0 for run in runs]), **dict(zip(METRICS, means, strict=True))}

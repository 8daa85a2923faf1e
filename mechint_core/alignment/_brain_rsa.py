"""A network and every subject of a recording, compared by the dissimilarities of the conditions, at every time.

    score_st     agreement of the network's dissimilarities with those of subject s at time t
    ceiling      several subjects: agreement of each with the mean of the others (low) and of all (high);
                 one subject: sqrt of the Spearman-Brown reliability of two halves of the repetitions

Source: [@nili2014] (ceilings), [@mantel1967] (relabelling).
Cost: n² per subject, time and draw.
Chunked over: nothing.
"""

import numpy as np
from jaxtyping import Float

from mechint_core.alignment._brain_scores import BrainScores, Recorded, halves
from mechint_core.alignment._comparisons import coordinates
from mechint_core.alignment._conditions import Draws
from mechint_core.alignment._distances import PREPARE, condensed_distances, scale_of
from mechint_core.alignment._stacked import ComparedModel, DotComparison, RowMetric, stacked_distances


def rsa_scores(
    x: Float[np.ndarray, "condition unit"],
    recording: Recorded,
    metric: RowMetric,
    comparison: DotComparison,
    *,
    draws: Draws,
) -> BrainScores:
    """Compare dissimilarities; x and the recording have the same conditions."""
    n = len(x)
    model = ComparedModel.of(
        condensed_distances(PREPARE[metric](x.astype(np.float64)), scale_of(metric, x.shape[1])),
        comparison,
        permutations=draws.permutations(n),
        counts=draws.counts(n),
    )
    scores, drawn, null, standard = [], [], [], []
    for subject in range(recording.n_subjects):
        rdms = stacked_distances(np.nanmean(recording.of(subject), axis=1), metric)
        of_subject = coordinates(rdms, comparison)
        standard.append(of_subject)
        scores.append(of_subject @ model.standard)
        drawn.append(model.bootstrap(rdms, of_subject))
        null.append(model.null(of_subject))
    low, high = ceilings(np.stack(standard)) if len(standard) > 1 else _of_halves(recording, metric, comparison, draws)
    return BrainScores(np.stack(scores), np.stack(drawn, axis=1), np.mean(null, axis=0), low, high)


def ceilings(
    standard: Float[np.ndarray, "subject time pair"],
) -> tuple[Float[np.ndarray, "time"], Float[np.ndarray, "time"]]:
    """Return the mean agreement of each subject with the mean of the others, and with that of all.

    With G the inner products of the subjects' unit vectors d_s: <d_s, Σ_o d_o> / |Σ_o d_o| needs G alone.
    """
    gram = np.einsum("stp,otp->tso", standard, standard)
    with_all = gram.sum(axis=2)
    total = with_all.sum(axis=1, keepdims=True)
    own = np.einsum("tss->ts", gram)
    others = np.sqrt(np.maximum(total - 2 * with_all + own, 0))
    with np.errstate(invalid="ignore", divide="ignore"):  # subjects that cancel: no mean to agree with
        return ((with_all - own) / others).mean(axis=1), (with_all / np.sqrt(total)).mean(axis=1)


def _of_halves(
    recording: Recorded, metric: RowMetric, comparison: DotComparison, draws: Draws
) -> tuple[np.ndarray, np.ndarray]:
    """One subject: how far a noiseless copy of it would agree with the mean of its repetitions."""
    agreements = [
        np.einsum("tp,tp->t", *(coordinates(stacked_distances(each, metric), comparison) for each in both))
        for both in halves(recording, draws.seed)
    ]
    if not agreements:
        unknown = np.full(recording.responses.shape[2], np.nan)
        return unknown, unknown
    reliability = np.mean(agreements, axis=0)
    ceiling = np.sqrt(np.maximum(2 * reliability / (1 + np.abs(reliability)), 0))
    return ceiling, ceiling

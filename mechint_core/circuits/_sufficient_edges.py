"""Cut a circuit down to the edges that it takes: of those that count, the strongest until enough of the effect is back.

    smallest n with F(C_n) >= faithfulness         C_n: the n strongest of the significant edges, on whole ways

Many prompts make small effects significant, and a circuit of all of them is nearly the whole graph. F is measured
exactly, on the pairs that the scores are from; other pairs must judge the result.

Cost: at most 24 runs of all pairs on a coarse grid of sizes, and as many as it takes to halve the last step.
"""

from dataclasses import replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import nn

from mechint_core.circuits._scored_edges import EdgeJudgement, EdgeScoringConfig, strongest_from_the_output
from mechint_core.circuits.circuit import on_ways
from mechint_core.models import inference
from mechint_core.patching import EdgeRuns, PromptPairs

GRID: Final = 24
"""Sizes that are tried before the last step is halved."""


def cut_down(
    judged: EdgeJudgement, runs: EdgeRuns, pairs: PromptPairs, model: nn.Module, config: EdgeScoringConfig
) -> EdgeJudgement:
    """Return the judgement with fewer edges kept, if `config.faithfulness` asks for it."""
    if config.faithfulness is None or not judged.kept.any():
        return judged
    sizes = np.unique(np.geomspace(1, judged.significant.sum(), GRID).round().astype(int))
    with inference(model):
        enough = np.flatnonzero(
            _faithfulness(_circuits(judged, runs, sizes), runs, pairs, config) >= config.faithfulness
        )
        if not len(enough):
            return judged
        upper = int(sizes[enough[0]])
        lower = int(sizes[enough[0] - 1]) if enough[0] else 0
        while upper - lower > 1:
            middle = (lower + upper) // 2
            found = _faithfulness(_circuits(judged, runs, np.array([middle])), runs, pairs, config)
            lower, upper = (lower, middle) if found[0] >= config.faithfulness else (middle, upper)
    return replace(judged, kept=_circuits(judged, runs, np.array([upper]))[0])


def _circuits(judged: EdgeJudgement, runs: EdgeRuns, sizes: Int[np.ndarray, "size"]) -> Bool[np.ndarray, "size edge"]:
    """Return the circuits of the strongest significant edges, that many each, less those that lead nowhere."""
    edges = runs.graph.edges
    strength = np.where(judged.significant, np.abs(judged.recovery.value), 0.0)
    chosen = [strongest_from_the_output(edges, strength, int(size)) & judged.significant for size in sizes]
    return np.stack([on_ways(edges, each) for each in chosen])


def _faithfulness(
    kept: Bool[np.ndarray, "size edge"], runs: EdgeRuns, pairs: PromptPairs, config: EdgeScoringConfig
) -> Float[np.ndarray, "size"]:
    """Return the share of the effect that each circuit restores alone."""
    empty = np.zeros_like(kept[:1])
    found = runs.score(pairs, np.concatenate([empty, kept]), ablation=config.ablation)
    without, *alone = found.patched.mean(axis=1)
    return (np.array(alone) - without) / (found.clean.mean() - without)

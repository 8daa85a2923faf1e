"""What experiments on a running model share: prompt pairs, parts of activations, edits, packed passes, statistics."""

from mechint_core.patching.agreement import (
    Agreement as Agreement,
    agreement_of as agreement_of,
    choose_to_verify as choose_to_verify,
    verify as verify,
)
from mechint_core.patching.answers import (
    Answer as Answer,
    Metric as Metric,
    check_metric as check_metric,
    measure as measure,
    needs_target as needs_target,
    read_output as read_output,
    score as score,
)
from mechint_core.patching.component_grid import component_grid as component_grid
from mechint_core.patching.components import (
    Component as Component,
    Components as Components,
    Granularity as Granularity,
    check_components as check_components,
    find_components as find_components,
    find_site as find_site,
    read_place as read_place,
)
from mechint_core.patching.displaced import Displaced as Displaced, random_directions as random_directions
from mechint_core.patching.edge_gradients import edge_gradients as edge_gradients
from mechint_core.patching.edge_runs import ABLATIONS as ABLATIONS, Ablation as Ablation, EdgeRuns as EdgeRuns
from mechint_core.patching.edits import Edit as Edit, Shift as Shift, Write as Write
from mechint_core.patching.heads import (
    AttentionHeads as AttentionHeads,
    attention_heads as attention_heads,
    find_head as find_head,
)
from mechint_core.patching.input_runs import (
    damage as damage,
    intact_blocks as intact_blocks,
    own_pairs as own_pairs,
)
from mechint_core.patching.mean_effects import MeanEffects as MeanEffects, mean_effects as mean_effects
from mechint_core.patching.node_gradients import (
    NodeGradients as NodeGradients,
    derivatives as derivatives,
    gradient_blocks as gradient_blocks,
    gradients_along as gradients_along,
    gradients_on_own_paths as gradients_on_own_paths,
    node_gradients as node_gradients,
    nodes as nodes,
)
from mechint_core.patching.pair_runs import (
    Block as Block,
    PairRuns as PairRuns,
    other_pairs as other_pairs,
    writing as writing,
)
from mechint_core.patching.pairs import PairedConfig as PairedConfig, PromptPairs as PromptPairs
from mechint_core.patching.parts import (
    Codes as Codes,
    Direction as Direction,
    Latents as Latents,
    Part as Part,
    Slice as Slice,
    head_units as head_units,
    where as where,
)
from mechint_core.patching.passes import (
    Piece as Piece,
    Usable as Usable,
    plan_passes as plan_passes,
    run_experiments as run_experiments,
    usable_sites as usable_sites,
)
from mechint_core.patching.path_gradients import linear_path_effects as linear_path_effects
from mechint_core.patching.path_runs import Path as Path, score_paths as score_paths
from mechint_core.patching.prefix import Group as Group, Prefix as Prefix, Reuse as Reuse, find_prefix as find_prefix
from mechint_core.patching.progress import watched as watched
from mechint_core.patching.recovery import (
    ALPHA as ALPHA,
    ROUNDING as ROUNDING,
    PairScores as PairScores,
    Recovery as Recovery,
    recovery_of as recovery_of,
    resampling_weights as resampling_weights,
    sign_flips as sign_flips,
    stand_out as stand_out,
)
from mechint_core.patching.residual_graph import (
    EDGE_GRANULARITIES as EDGE_GRANULARITIES,
    Edge as Edge,
    EdgeGranularity as EdgeGranularity,
    ResidualGraph as ResidualGraph,
    is_input as is_input,
    node_of as node_of,
    residual_graph as residual_graph,
)
from mechint_core.patching.run_cost import RunCost as RunCost, run_cost as run_cost
from mechint_core.patching.watched_runs import (
    OUTPUT as OUTPUT,
    Activations as Activations,
    watched_runs as watched_runs,
)

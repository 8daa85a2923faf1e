"""What experiments on a running model share: prompt pairs, parts of activations, edits, packed passes, statistics."""

from mechint_core.patching.answers import (
    Answer as Answer,
    Metric as Metric,
    check_metric as check_metric,
    measure as measure,
    needs_target as needs_target,
    read_output as read_output,
    score as score,
)
from mechint_core.patching.edits import Edit as Edit, Shift as Shift, Write as Write
from mechint_core.patching.pair_runs import Block as Block, PairRuns as PairRuns, other_pairs as other_pairs
from mechint_core.patching.pairs import PairedConfig as PairedConfig, PromptPairs as PromptPairs
from mechint_core.patching.parts import (
    Codes as Codes,
    Direction as Direction,
    Latents as Latents,
    Part as Part,
    Slice as Slice,
    head_units as head_units,
)
from mechint_core.patching.passes import (
    Piece as Piece,
    Usable as Usable,
    plan_passes as plan_passes,
    run_experiments as run_experiments,
    usable_sites as usable_sites,
)
from mechint_core.patching.recovery import (
    ROUNDING as ROUNDING,
    PairScores as PairScores,
    Recovery as Recovery,
    recovery_of as recovery_of,
)

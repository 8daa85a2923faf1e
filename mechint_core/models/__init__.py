"""Load any PyTorch model, name its sites, read and change what it computes."""

from mechint_core.models.activation import (
    activation_of as activation_of,
    find_activation as find_activation,
    with_activation as with_activation,
)
from mechint_core.models.attention import replaced_forward as replaced_forward
from mechint_core.models.capture import (
    Activations as Activations,
    capture as capture,
    count_calls as count_calls,
    record_activations as record_activations,
    run_model as run_model,
)
from mechint_core.models.checkpoints import (
    CheckpointFile as CheckpointFile,
    checkpoint_digest as checkpoint_digest,
    list_checkpoints as list_checkpoints,
    read_checkpoint as read_checkpoint,
)
from mechint_core.models.hooks import visited as visited
from mechint_core.models.loading import load_factory as load_factory, load_model as load_model
from mechint_core.models.patching import (
    Patch as Patch,
    join_rows as join_rows,
    patched as patched,
    rewritten as rewritten,
    select as select,
)
from mechint_core.models.running import (
    call as call,
    device_of as device_of,
    differentiation as differentiation,
    inference as inference,
    memory_remedy as memory_remedy,
    samples_first as samples_first,
    samples_to as samples_to,
    to_model as to_model,
)
from mechint_core.models.sites import match_sites as match_sites, module_at as module_at, split_site as split_site

"""mechint: how does a network compute? Pure numerics; orchestration lives in `tasks` and `flows`."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mechint_core.features import SparseAutoencoder as SparseAutoencoder

__all__ = ["SparseAutoencoder", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `SparseAutoencoder` on first use: torch costs 2 s, and `mechint --help` must not pay it."""
    if name == "SparseAutoencoder":
        from mechint_core.features import SparseAutoencoder

        return SparseAutoencoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. It has: {', '.join(__all__)}.")

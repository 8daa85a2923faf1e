"""Every setting of a run, in one place: where data lives and which services it uses.

The default needs no service: everything below one folder, threads in this process, a Prefect server that the
command starts and stops. Each field can be set by the environment variable beside it.
"""

import os
from functools import cache
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from mechint_core.parallel import Backend

_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


class Settings(BaseSettings):
    """Settings of the process, read from the environment."""

    model_config = SettingsConfigDict(env_prefix="MECHINT_", frozen=True, extra="ignore")

    home: Path = Path("mechint-data")
    """MECHINT_HOME: the folder under which everything lives."""
    store: str = ""
    """MECHINT_STORE: the activation store, a path or any fsspec URL; by default HOME/store."""
    dask_address: str = ""
    """MECHINT_DASK_ADDRESS: a Dask scheduler for heavy work (`tcp://host:port`)."""
    processes: int = 0
    """MECHINT_PROCESSES: local worker processes for heavy work, in place of threads."""
    threads: int = 0
    """MECHINT_THREADS: worker threads; 0 is one per core."""
    tracking_uri: str = Field(default="", validation_alias="MLFLOW_TRACKING_URI")
    """MLFLOW_TRACKING_URI: by default a sqlite file at HOME/mlflow/mlflow.db."""
    prefect_api_url: str = Field(default="", validation_alias="PREFECT_API_URL")
    """PREFECT_API_URL: a running Prefect server; by default the command starts its own and stops it."""

    @property
    def root(self) -> Path:
        """The data folder, absolute."""
        return self.home.expanduser().resolve()

    @property
    def store_location(self) -> str:
        """Where activations and results lie."""
        return self.store or str(self.root / "store")

    @property
    def mlflow_uri(self) -> str:
        """Where MLflow keeps its runs."""
        return self.tracking_uri or f"sqlite:///{self.root / 'mlflow' / 'mlflow.db'}"

    @property
    def backend(self) -> Backend:
        """Where parallel work inside a task runs."""
        processes = 0 if self.dask_address else self.processes
        return Backend(threads=self.threads, processes=processes, address=self.dask_address)


@cache
def settings() -> Settings:
    """Return the settings of this process, read once."""
    return Settings()


def settle_environment() -> None:
    """Give Prefect and MLflow their environment. A variable the user has set is left as it is."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_HOME", str(settings().root / "prefect"))
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)  # Prefect makes the last part only

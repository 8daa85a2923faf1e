"""Fixtures of the whole suite."""

import os

# Before anything imports prefect or mlflow: no telemetry, and no look-up of any outside host.
os.environ.update(
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    MLFLOW_DISABLE_TELEMETRY="true",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",
)
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import numpy as np
import pytest

from mechint_core.random import generator

hypothesis.settings.register_profile("mechint", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("mechint")


@pytest.fixture
def rng() -> np.random.Generator:
    return generator(0, "test")

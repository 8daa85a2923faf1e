"""Prefect tasks: each lets one technique read from and write to a store.

Importing this package settles the environment first, because Prefect and MLflow read it when they are imported:
no telemetry, no host looked up but the configured ones, and everything they keep below the data folder.
"""

from tasks.settings import settle_environment

settle_environment()

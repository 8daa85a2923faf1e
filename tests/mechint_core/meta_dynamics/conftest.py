"""Fixtures of the meta_dynamics tests."""

from collections.abc import Generator

import jaxtyping
import pytest


@pytest.fixture
def no_shape_checks() -> Generator[None]:
    """Switch off the shape checks of the suite, which refuse bad input before the function does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)

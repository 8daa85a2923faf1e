import numpy as np
import pytest
import zarr

from mechint_core.errors import CorruptStoreError, NotFoundError
from mechint_core.store.arrays_of_others import foreign_arrays


# Known answer
@pytest.mark.parametrize("version", [2, 3])
def test_foreign_arrays__are_found_at_any_depth_and_read_in_part(tmp_path, rng, version):
    values = rng.normal(size=(6, 4))
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)
    group.create_group("brain").create_array("responses", data=values, chunks=(4, 3))
    group.create_array("session", data=np.arange(6))

    found = foreign_arrays(tmp_path / "a.zarr")

    assert sorted(found) == ["brain/responses", "session"]
    assert found["brain/responses"].shape == (6, 4)
    assert found["brain/responses"].dtype == np.float64
    np.testing.assert_array_equal(found["brain/responses"].read((slice(2, 5), slice(1, 2))), values[2:5, 1:2])
    np.testing.assert_array_equal(found["session"].read(), np.arange(6))


def test_foreign_arrays__know_the_names_of_axes_of_either_version(tmp_path):
    three = zarr.open_group(tmp_path / "three.zarr", mode="w")
    three.create_array("x", data=np.zeros((2, 3)), dimension_names=["sample", "channel"])
    two = zarr.open_group(tmp_path / "two.zarr", mode="w", zarr_format=2)
    two.create_array("x", data=np.zeros((2, 3))).attrs["_ARRAY_DIMENSIONS"] = ["sample", "channel"]

    for name in ("two", "three"):
        assert foreign_arrays(tmp_path / f"{name}.zarr")["x"].axes == ("sample", "channel")


def test_foreign_arrays__of_an_array_alone(tmp_path):
    zarr.create_array(tmp_path / "one.zarr", data=np.arange(3))

    assert foreign_arrays(tmp_path / "one.zarr")["responses"].shape == (3,)


# Bad input
def test_foreign_arrays__raise_where_there_is_none_or_it_is_broken(tmp_path):
    with pytest.raises(NotFoundError, match="must be a Zarr group or array"):
        foreign_arrays(tmp_path)
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(CorruptStoreError, match="must be a whole Zarr group"):
        foreign_arrays(tmp_path)


def test_foreign_arrays__raise_on_chunks_that_are_not_whole(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("x", data=np.arange(6))
    (tmp_path / "a.zarr" / "x" / "c" / "0").write_bytes(b"none")

    with pytest.raises(CorruptStoreError, match="x must be readable"):
        foreign_arrays(tmp_path / "a.zarr")["x"].read()

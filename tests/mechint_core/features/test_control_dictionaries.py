import numpy as np
import pytest
import torch

from mechint_core.features import SparseAutoencoder, SparseAutoencoderConfig, Transcoder
from mechint_core.features._control_dictionaries import (
    Directions,
    fit_control,
    random_directions,
    shuffled_directions,
    untrained_directions,
)

CONFIG = SparseAutoencoderConfig(n_latents=24, k=3)


# Known answer
def test_fit_control__keeps_the_largest_codes_at_the_scale_that_serves_best(rng):
    """Along the units, 1.5 largest coefficients per vector: least squares of y on what is written gives 1."""
    x = torch.from_numpy(rng.normal(size=(200, 6)))
    units = torch.cat([torch.eye(6), -torch.eye(6)]).double()

    fitted = fit_control(Directions(units, 3 * units), x, x, 1.5)
    centred = x - x.mean(dim=0)
    largest = centred.abs() >= centred.abs().flatten().topk(300).values[-1]

    assert fitted.control.scale == pytest.approx(1 / 3)
    torch.testing.assert_close(fitted.written - x.mean(dim=0), centred * largest)
    assert int((fitted.control.encode(x) > 0).sum()) == 300
    torch.testing.assert_close(fitted.control.write(x), fitted.written)


def test_fit_control__without_agreement_writes_the_mean():
    """What is read says nothing of what should be written (codes of x never rise above 0): the mean is left."""
    x, y = torch.zeros(5, 2, dtype=torch.float64), torch.arange(10.0, dtype=torch.float64).reshape(5, 2)

    fitted = fit_control(Directions(torch.eye(2).double(), torch.eye(2).double()), x, y, 1.0)

    torch.testing.assert_close(fitted.written, y.mean(dim=0).expand(5, 2))
    assert not fitted.fired.any()


# Law
@pytest.mark.parametrize("made", [SparseAutoencoder(8, 24, config=CONFIG), Transcoder(8, 5, skip=True, config=CONFIG)])
def test_directions__have_the_shape_of_the_dictionary_and_know_nothing_of_it(made):
    for directions in (random_directions(made, 0, 0), untrained_directions(made, 0), shuffled_directions(made, 0)):
        assert directions.reads.shape == made.W_enc.shape
        assert directions.writes.shape == made.W_dec.shape
        assert not torch.allclose(directions.reads, made.W_enc)
    again = random_directions(made, 0, 0)
    assert torch.equal(again.reads, random_directions(made, 0, 0).reads)
    assert not torch.equal(again.reads, random_directions(made, 0, 1).reads)


def test_shuffled_directions__keep_the_angles_between_latents(rng):
    made = SparseAutoencoder(8, 24, config=CONFIG)

    shuffled = shuffled_directions(made, 0)

    torch.testing.assert_close(shuffled.writes @ shuffled.writes.T, made.W_dec @ made.W_dec.T)
    torch.testing.assert_close(shuffled.reads @ shuffled.writes.T, made.W_enc @ made.W_dec.T)
    assert np.array_equal(np.sort(shuffled.reads.numpy()[0]), np.sort(made.W_enc.detach().numpy()[0]))

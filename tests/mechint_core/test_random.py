"""One seed, many independent streams."""

import numpy as np
import torch

from mechint_core.random import derive_seed, generator, torch_generator


def test_generator__same_words_same_draws_other_words_other_draws():
    assert np.array_equal(generator(0, "a").normal(size=5), generator(0, "a").normal(size=5))
    draws = {generator(seed, *words).integers(2**62) for seed in (0, 1) for words in (("a",), ("b",), ("a", 1), ())}

    assert len(draws) == 8


def test_torch_generator__follows_the_same_words():
    one = torch.randn(4, generator=torch_generator(3, "x"))

    assert torch.equal(one, torch.randn(4, generator=torch_generator(3, "x")))
    assert 0 <= derive_seed(3, "x") < 2**63

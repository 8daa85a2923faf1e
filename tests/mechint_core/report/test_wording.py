"""Numbers as a person writes them."""

import math

import pytest
from hypothesis import given, strategies as st

from mechint_core.report.wording import (
    certainty,
    clean,
    decimals_supported,
    duration,
    heading,
    how_sure,
    in_words,
    number,
    probability,
    shorten,
    why_undefined,
)
from mechint_core.result import Estimate

# Known answer


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.93123, "0.931"),
        (-0.5, "−0.500"),
        (12400.0, "12,400"),
        (0.0, "0"),
        (1.234e-7, "1.23 × 10⁻⁷"),
        (2.5e12, "2.50 × 10¹²"),
        (123.456, "123"),
        (math.nan, "undefined"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_number__is_written_with_three_digits_and_a_true_minus(value: float, written: str):
    assert number(value) == written


@pytest.mark.parametrize(
    ("p_value", "written"),
    [
        (0.0, "< 0.0001"),
        (1e-9, "< 0.0001"),
        (0.00042, "= 0.0004"),
        (0.0125, "= 0.013"),
        (0.412, "= 0.41"),
        (math.nan, ""),
    ],
)
def test_probability__is_never_zero(p_value: float, written: str):
    assert probability(p_value) == written


def test_in_words__rounds_to_what_the_interval_supports():
    estimate = Estimate(0.93123, 0.9023, 0.9587, 0.1234, 0.001)  # half width 0.028: two digits, as it starts with 2
    text = in_words(estimate, decimals_supported([estimate]))
    assert (text.value, text.interval, text.null) == ("0.931", "0.902 to 0.959", "0.123")


def test_decimals_supported__is_set_by_the_narrowest_interval_of_a_group():
    wide, narrow = Estimate(1.0, 0.0, 8.0), Estimate(1.0, 0.95, 1.05)
    assert decimals_supported([wide]) == 0
    assert decimals_supported([wide, narrow]) == 2
    assert decimals_supported([Estimate(1.0)]) is None


@pytest.mark.parametrize(
    ("estimate", "kind"),
    [
        (Estimate(math.nan, 0.0, 1.0, 0.0, 0.01), "undefined"),
        (Estimate(1.0, p_value=0.04), "beyond"),
        (Estimate(1.0, 0.5, 1.5, 0.0, 0.3), "within"),
        (Estimate(1.0, 0.5, 1.5, 0.0), "beyond"),
        (Estimate(1.0, -0.5, 1.5, 0.0), "within"),
        (Estimate(1.0, 0.5, 1.5), "interval"),
        (Estimate(1.0), "bare"),
    ],
)
def test_certainty__names_how_sure_an_estimate_is(estimate: Estimate, kind: str):
    assert certainty(estimate) == kind


def test_how_sure__says_value_interval_null_and_verdict():
    said = how_sure(Estimate(0.83, 0.79, 0.86, 0.14, 0.001))
    assert said == "0.83 (95 % interval 0.79 to 0.86); its null gives 0.14; p = 0.001. Distinguishable from the null."


def test_why_undefined__prefers_the_flag_that_names_the_estimate():
    assert why_undefined("slope", {"slope_n_nan": 3.0, "n_flat": 2.0}) == "slope n nan = 3"
    assert why_undefined("slope", {"n_flat": 2.0, "n_zero": 0.0, "converged": 0.0}) == "n flat = 2, converged = 0"
    assert why_undefined("slope", {"converged": 1.0}) == "no flag says why"


def test_why_undefined__names_a_few_flags_and_none_that_is_undefined_itself():
    flags = {"scale": math.nan} | {f"n_{letter}": 1.0 for letter in "abcdef"}

    assert why_undefined("slope", flags) == "n a = 1, n b = 1, n c = 1, n d = 1, 2 more flags below"


def test_names__are_written_as_words():
    assert heading("linear_cka") == "Linear CKA"
    assert duration(254) == "4 min 14 s"
    assert duration(7384) == "2 h 3 min"
    assert shorten("blocks.0.attention.hook_pattern", 15) == "blocks.…pattern"


# Oracle: none; these are words.

# Law


@given(st.floats(), st.integers(1, 6))
def test_number__never_fails_and_never_shows_a_computer_word(value: float, digits: int):
    written = number(value, digits)
    assert written
    assert "nan" not in written
    assert "e" not in written.replace("undefined", "")


@given(st.floats(0, 1))
def test_probability__keeps_order_with_its_bound(p_value: float):
    written = probability(p_value)
    assert written.startswith(("= ", "< "))
    assert float(written[2:]) > 0


@given(*[st.floats()] * 5)
def test_how_sure__always_says_something(value: float, low: float, high: float, null: float, p_value: float):
    assert how_sure(Estimate(value, low, high, null, p_value)).endswith(".")


@given(st.text(), st.integers(3, 40))
def test_shorten__keeps_to_its_length_on_one_line(text: str, length: int):
    short = shorten(text, length)
    assert len(short) <= length
    assert "\n" not in short


# Bad input


@given(st.text(st.characters(codec=None)))
def test_clean__leaves_nothing_that_utf8_or_xml_refuses(text: str):
    kept = clean(text).encode()
    assert not {0, 8, 0x1B} & set(kept)

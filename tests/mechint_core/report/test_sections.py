"""What each section shows."""

import math
from collections.abc import Callable
from typing import Any

from mechint_core.report.sections import anchor, build_sections, landmarks
from mechint_core.result import Estimate
from mechint_core.store.record import StoredResult

Stored = Callable[..., StoredResult]

# Known answer


def test_landmarks__are_the_first_the_most_changing_and_the_last_step(stored: Stored):
    values = {0: 0.1, 1: 0.11, 10: 0.12, 100: 0.5, 500: 0.9, 1000: 0.91}
    of_name = {step: stored(step=step, estimates={"gini": Estimate(value)}) for step, value in values.items()}
    assert landmarks({"mlp": of_name}, sorted(values)) == [0, 100, 1000]


def test_landmarks__take_the_middle_where_nothing_changes(stored: Stored):
    of_name = {step: stored(step=step, estimates={"gini": Estimate(1.0)}) for step in range(5)}
    assert landmarks({"mlp": of_name}, range(5)) == [0, 2, 4]


def test_build_sections__draws_three_checkpoints_of_one_site_and_folds_the_others(stored: Stored):
    figures = stored().figures[:1]
    results = [stored(name=name, step=step, figures=figures) for step in range(6) for name in ("a", "b", "c")]
    (section,) = build_sections(results)
    assert [(g.folded, len(g.drawings)) for g in section.galleries] == [(False, 3), (True, 3), (True, 3)]
    assert len(section.evolution) == 2  # one panel per estimate
    assert section.shown_at == "step 5"


def test_build_sections__shows_results_over_training_whole(stored: Stored, every_figure: tuple[dict[str, Any], ...]):
    (section,) = build_sections([stored(step=None, figures=every_figure)])
    assert len(section.galleries[0].drawings) == len(every_figure)
    assert section.evolution == section.history == ()


def test_build_sections__draws_a_graph_at_the_last_checkpoint_only(
    stored: Stored, every_figure: tuple[dict[str, Any], ...]
):
    (section,) = build_sections([stored(step=step, figures=every_figure[-1:]) for step in range(6)])
    assert [drawing.caption for gallery in section.galleries for drawing in gallery.drawings] == ["step 5"]
    assert len(section.evolution) == 2  # its estimates are followed through training all the same


def test_build_sections__one_checkpoint_has_no_curves(stored: Stored):
    (section,) = build_sections([stored(step=100)])
    assert section.evolution == ()
    assert section.galleries


def test_build_sections__says_once_what_several_sites_mean(stored: Stored):
    (section,) = build_sections([stored(name=name, step=5) for name in ("a", "b")])
    assert [reading.where for reading in section.readings] == ["a, b"]


def test_build_sections__an_undefined_estimate_names_the_flag_that_says_why(stored: Stored):
    (section,) = build_sections([stored(estimates={"slope": Estimate(math.nan)}, flags={"n_flat_windows": 7.0})])
    assert section.lines[0].kind == "undefined"
    assert section.lines[0].why == "n flat windows = 7"


# Oracle: none; a choice of what to show.

# Law


def test_build_sections__a_site_has_one_colour_in_every_section(stored: Stored):
    results = [stored(technique, name, step) for technique in ("x", "y") for name in ("b", "a") for step in (0, 1)]
    first, second = build_sections([stored("z", "a", 0), stored("z", "a", 1), *results])[1:]
    assert {name: colour for name, colour, _ in first.key} == {name: colour for name, colour, _ in second.key}


def test_build_sections__the_order_of_techniques_is_that_of_the_caller(stored: Stored):
    assert [s.title for s in build_sections([stored("b"), stored("a"), stored("b", "other")])] == ["B", "A"]


def test_build_sections__keeps_the_runs_of_two_runs_apart(stored: Stored):
    other = stored()
    object.__setattr__(other, "key", type(other.key)("second", "drift", "blocks.0.mlp"))
    (section,) = build_sections([stored(), other])
    assert {line.where for line in section.lines} == {"run: blocks.0.mlp", "second: blocks.0.mlp"}


# Bad input


def test_build_sections__a_figure_that_cannot_be_drawn_says_why_in_its_place(stored: Stored):
    (section,) = build_sections([stored(arrays={})])
    assert all("is not among the arrays" in drawing.problem for drawing in section.galleries[0].drawings)


def test_anchor__is_an_id_whatever_the_name():
    assert anchor("linear_cka") == "technique-linear-cka"
    assert anchor('"><script>') == "technique-script"
    assert anchor("名前") == "technique-unnamed"

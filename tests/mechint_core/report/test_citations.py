"""Reading BibTeX."""

from hypothesis import given, strategies as st

from mechint_core.report.citations import bibtex, cite, parse, references

BIB = r"""
@comment{nothing, title = {no}}
@article{erdos1960,
  author  = {Erd{\H{o}}s, Paul and R{\'e}nyi, Alfr\'ed},
  title   = {On the {E}volution of Random Graphs},
  journal = "Publ. Math. {\&} Co.",
  volume  = {5}, number = 1, pages = {17--61}, year = 1960,
  doi     = {10.1000/x_y~z}
}
@misc{nanda2023, author={Neel Nanda and others}, title={Progress measures}, eprint={2301.05217}, year={2023}}
@misc{evil, title={x}, url={javascript:alert(1)}}
"""

# Known answer


def test_parse__writes_an_article_as_a_person_cites_it():
    found = parse(BIB)["erdos1960"]
    assert found.text == "Erdős P, Rényi A (1960). On the Evolution of Random Graphs. Publ. Math. & Co. 5(1), 17–61."
    assert found.url == "https://doi.org/10.1000/x_y~z"


def test_parse__writes_a_preprint_with_its_address():
    found = parse(BIB)["nanda2023"]
    assert found.text == "Nanda N, et al. (2023). Progress measures. arXiv:2301.05217."
    assert found.url == "https://arxiv.org/abs/2301.05217"


def test_references__reads_the_project_bibliography():
    assert references()["phipson2010"].text.startswith("Phipson B, Smyth GK (2010). Permutation P-values")


def test_cite__an_unknown_key_stands_for_itself():
    assert cite("nobody1900").text == "nobody1900"


def test_bibtex__gives_entries_back_as_they_stand_in_the_file():
    again = bibtex(["phipson2010", "nobody1900"])
    assert again.startswith("@article{phipson2010,")
    assert again.endswith("}\n% nobody1900: not in the bibliography")
    assert parse(again)["phipson2010"] == references()["phipson2010"]


# Oracle: none; BibTeX styles differ.

# Law


@given(st.text(alphabet="@{}\"=,\\ab1 \n'~", max_size=80))
def test_parse__never_fails(text: str):
    assert isinstance(parse("@article{key, title = {" + text), dict)


def test_references__every_entry_has_no_markup_left():
    assert not [each.key for each in references().values() if set(each.text) & set("{}\\")]


# Bad input


def test_parse__an_address_that_is_not_http_is_dropped():
    assert parse(BIB)["evil"].url == ""

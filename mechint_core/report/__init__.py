from mechint_core.report.citations import bibtex as bibtex, cite as cite
from mechint_core.report.dictionary_page import (
    DictionaryNames as DictionaryNames,
    write_dictionary_page as write_dictionary_page,
)
from mechint_core.report.figures import draw as draw, render_svg as render_svg
from mechint_core.report.markdown import to_markdown as to_markdown
from mechint_core.report.page import Finding as Finding, RunSummary as RunSummary, write_report as write_report

"""Show results in the Prefect UI: the only module that makes Prefect artifacts."""

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.context import get_run_context
from prefect.exceptions import MissingContextError

from mechint_core.report import to_markdown
from mechint_core.store import StoredResult


def publish_artifact(result: StoredResult) -> None:
    """Leave a result's question, reading and estimates on the page of the run that publishes it."""
    if _inside_a_run():
        create_markdown_artifact(to_markdown(result), key=_key(result.key.technique), description=result.about.question)


def publish_link(name: str, url: str, description: str) -> None:
    """Leave a link on the run's page: to the MLflow run, to the report."""
    if _inside_a_run():
        create_link_artifact(link=url, link_text=name, key=_key(name), description=description)


def _inside_a_run() -> bool:
    """Artifacts belong to runs; a task function called directly, in a test or a notebook, has none."""
    try:
        get_run_context()
    except MissingContextError:
        return False
    return True


def _key(words: str) -> str:
    """Artifact keys hold lower-case letters, digits and dashes only."""
    return "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in words.lower()).split())

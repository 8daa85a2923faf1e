"""Writing a file whole or not at all."""

import os
from pathlib import Path
from threading import get_ident


def write_whole(path: Path | str, text: str) -> Path:
    """Write `text` to a file, whose folder is made if it does not exist, in one step; return where it is."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}-{get_ident()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target

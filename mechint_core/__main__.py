"""The `mechint` command: put our own `flows` and `tasks` first on the path, then hand over to `flows.cli`.

`flows` and `tasks` are names that other projects use too: a `tasks.py` in the user's folder would shadow ours.
So the wheel keeps both inside `mechint_core/_workflows`, and this is the one place that makes them importable;
in a checkout they lie beside `mechint_core`. See docs/decisions/0005.
"""

import importlib
import sys
from pathlib import Path


def main() -> None:
    """Run the command line."""
    package = Path(__file__).resolve().parent
    installed = package / "_workflows"
    ours = installed if installed.is_dir() else package.parent
    sys.path[:] = [str(ours), *(entry for entry in sys.path if entry not in ("", str(ours))), ""]
    importlib.import_module("flows.cli").main()


if __name__ == "__main__":
    main()

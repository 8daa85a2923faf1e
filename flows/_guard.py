"""Run a command for as long as the process that asked for it lives: `_guard.py PARENT COMMAND ...`.

A killed parent cannot stop what it started. The guard asks every second whether the parent is still there, and ends
the command, and everything the command started, when it is not. Started by `flows.services`.
"""

import os
import signal
import subprocess
import sys
import time


def main(parent: int, command: list[str]) -> int:
    """Run `command`; return its exit code, or end it when `parent` is gone."""
    child = subprocess.Popen(command)
    while os.getppid() == parent:
        try:
            return child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            continue
    os.killpg(0, signal.SIGTERM)  # the guard leads the group, and is in it
    time.sleep(10)
    os.killpg(0, signal.SIGKILL)
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))

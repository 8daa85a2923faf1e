"""Run a Prefect server on a loopback port, for as long as the parent process lives. Started by `flows.services`."""

import os
import sys
import threading
import time


def main(port: int, parent: int) -> None:
    """Serve until stopped, or until `parent` is gone."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    import uvicorn  # after the watch on the parent has begun
    from prefect.server.api.server import create_app

    uvicorn.run(create_app(final=True), host="127.0.0.1", port=port, log_level="warning", timeout_keep_alive=5)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

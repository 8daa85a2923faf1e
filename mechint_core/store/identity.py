"""What makes a folder a store: `store.json`, with the version of the layout and the store's own identity."""

import json
import uuid
from typing import Any, Final

from mechint_core.errors import ConfigurationError, CorruptStoreError, NotFoundError
from mechint_core.store.names import STORE_FILE
from mechint_core.store.place import Place

FORMAT: Final = 1
"""Version of the layout; a store of a newer one is refused."""


def identify(place: Place, *, create: bool) -> str:
    """Return the uuid of the store at `place`, after making the store if there is none and `create` is True."""
    try:
        said = _read(place)
    except FileNotFoundError:
        if not create:
            raise NotFoundError(f"{place} must be a store. It holds no {STORE_FILE}.") from None
        _make(place)
        said = _read(place)
    if said["format"] > FORMAT:
        raise ConfigurationError(f"{place} must have format {FORMAT} or older. Got {said['format']}. Update mechint.")
    return said["uuid"]


def _read(place: Place) -> dict[str, Any]:
    try:
        said = json.loads(place.read(STORE_FILE))
        return {"format": int(said["format"]), "uuid": str(said["uuid"])}
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptStoreError(f"{place}/{STORE_FILE} must say format and uuid. It has been damaged.") from error
    except NotADirectoryError as error:
        raise ConfigurationError(f"location must be a folder. Got {place}, which lies in a file.") from error


def _make(place: Place) -> None:
    said = {"format": FORMAT, "uuid": str(uuid.uuid4())}
    try:
        place.write(STORE_FILE, json.dumps(said).encode(), only_if_new=True)
    except FileExistsError as error:
        if not place.exists(STORE_FILE):  # else another process made it at this moment, and its uuid counts
            raise ConfigurationError(f"location must be a folder. Got {place}, which is a file.") from error

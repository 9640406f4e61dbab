"""Makes what docker-compose.yml reads as secrets, in a directory: `make secrets`. What is there already stays."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path

from gateway.access import SCOPES, new_key

__all__ = ["main"]


def main(directory: Path) -> None:
    """Random ones. The directory is for its owner only; its files are for whoever has them mounted."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key, line = new_key("demo", SCOPES)
    access, secret = secrets.token_hex(10).upper(), secrets.token_urlsafe(30)
    store = {
        "identities": [
            {
                "name": "gateway",
                "credentials": [{"accessKey": access, "secretKey": secret}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }
    _together(directory, {"gateway_keys": f"{line}\n", "gateway_key": f"{key}\n"})
    _together(
        directory, {"store_access_key": access, "store_secret_key": secret, "store_identities.json": json.dumps(store)}
    )
    _together(directory, {"grafana_password": secrets.token_urlsafe(24)})


def _together(directory: Path, files: dict[str, str]) -> None:
    """All of them, or none: they are halves of one secret."""
    if not all((directory / name).exists() for name in files):
        for name, text in files.items():
            (directory / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""`python -m tests.stack.bucket ENDPOINT SECRETS`: what the service `bucket` does, with another client."""

from __future__ import annotations

import sys
from pathlib import Path

import boto3  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]

from tests.stack.services import BUCKET

__all__ = ["main"]


def main(endpoint: str, secrets: Path) -> None:
    """Make it."""
    access, secret = ((secrets / f"store_{key}_key").read_text() for key in ("access", "secret"))
    boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        config=Config(s3={"addressing_style": "path"}),
    ).create_bucket(Bucket=BUCKET)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

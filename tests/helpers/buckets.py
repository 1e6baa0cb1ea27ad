"""A local S3 server for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "photographs"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """HOST:PORT of a local server; credentials are in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as environment:
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
                environment.delenv(name, raising=False)
            environment.setenv("AWS_ACCESS_KEY_ID", "reader")
            environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
            host, port = server.get_host_and_port()
            boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(
                Bucket=BUCKET
            )
            yield f"{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def upload(endpoint: str) -> Callable[[Path, str], str]:
    """`upload(folder or file, prefix)`: copies it into the bucket and returns its URI."""
    client = boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1")

    def put(path: Path, prefix: str) -> str:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        for file in files:
            key = prefix if path.is_file() else f"{prefix}/{file.relative_to(path).as_posix()}"
            client.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes())
        return bucket_uri(endpoint, prefix)

    return put


def bucket_uri(endpoint: str, key: str, bucket: str = BUCKET) -> str:
    return f"s3://{bucket}/{key}?endpoint_override={endpoint}&scheme=http&region=us-east-1"

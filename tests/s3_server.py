"""A local server that speaks S3, for tests of what lies at a URL."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}
BUCKET = "bucket"


@contextmanager
def running_s3() -> Iterator[str]:
    """Start a server with an empty bucket; yield the options of its addresses."""
    import pyarrow.fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ.update(CREDENTIALS)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"?endpoint_override=http%3A%2F%2F{host}%3A{port}&region=us-east-1"
    address = f"s3://{BUCKET}{options}&allow_bucket_creation=true"
    filesystem, _ = pyarrow.fs.FileSystem.from_uri(address)
    filesystem.create_dir(BUCKET)
    try:
        yield options
    finally:
        server.stop()

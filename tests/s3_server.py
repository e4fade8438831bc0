"""An S3 server with two buckets: `python -m tests.s3_server PORT`. `many` holds 10 000 keys, `work` none."""

import signal
import sys
from typing import Final

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

KEYS: Final = 10_000

if __name__ == "__main__":
    objects = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for bucket in ("many", "work"):
        objects.create_bucket(bucket, "us-east-1")
    for number in range(KEYS):
        objects.put_object("many", f"in/{number % 7}/{number:05}.png", b"")
    ThreadedMotoServer("127.0.0.1", int(sys.argv[1]), verbose=False).start()
    signal.pause()

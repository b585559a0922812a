"""`python -m tests.gcs_emulator PORT`: one bucket, "bucket", held in memory and served over HTTP.

The package gcp-storage-emulator, with what TensorStore needs of the service beside: the generation
of what is read, and reads and writes on condition of a generation.
"""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound

_lock = threading.RLock()  # between looking at a generation and acting on it


def with_generations(handler: Callable) -> Callable:
    def handle(request, response, storage, *args) -> None:
        with _lock:
            query = {name: values[0] for name, values in request.query.items()}
            name = query.get("name") or request.params.get("object_id")
            bucket = request.params.get("bucket_name")
            if name is None:
                return handler(request, response, storage, *args)
            generation = generation_of(storage, bucket, name)
            response["x-goog-generation"] = generation
            if query.get("ifGenerationMatch", generation) != generation:
                response.status = HTTPStatus.PRECONDITION_FAILED
            elif query.get("ifGenerationNotMatch") == generation:
                response.status = HTTPStatus.NOT_MODIFIED
            else:
                handler(request, response, storage, *args)

    return handle


def generation_of(storage, bucket: str, name: str) -> str:
    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
        return "0"


if __name__ == "__main__":
    server.HANDLERS = tuple(
        (path, {method: with_generations(handler) for method, handler in methods.items()})
        for path, methods in server.HANDLERS
    )
    server.server.HTTPServer = http.server.ThreadingHTTPServer
    server.create_server(
        "127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket"
    ).run()

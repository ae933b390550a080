"""A bucket of moto's S3, whose requests may fail."""

import contextlib
import threading

import pytest

from diptych.data import remote


class Bucket:
    """A bucket of moto's S3, whose requests may fail: `fault(method, path)` may be an HTTP status."""

    def __init__(self, application, client):
        self.application, self.client, self.fault = application, client, lambda *_: None

    def put(self, name, path):
        self.client.put_object(Bucket="bucket", Key=name, Body=path.read_bytes())

    def __call__(self, environment, start):
        status = self.fault(environment["REQUEST_METHOD"], environment["PATH_INFO"])
        if status is None:
            return self.application(environment, start)
        start(f"{status} fault", [("Content-Length", "0")])
        return [b""]


@contextlib.contextmanager
def opened_bucket(tmp_path, monkeypatch):
    """s3://bucket, with credentials of the environment."""
    application = pytest.importorskip("moto.server")
    make = pytest.importorskip("werkzeug.serving").make_server
    boto3 = pytest.importorskip("boto3")
    bucket = Bucket(application.DomainDispatcherApplication(application.create_backend_app), None)
    server = make("127.0.0.1", 0, bucket, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    values = {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    remote._store.cache_clear()
    bucket.client = boto3.client("s3", endpoint_url=endpoint)
    bucket.client.create_bucket(Bucket="bucket")
    try:
        yield bucket
    finally:
        for one in bucket.client.list_objects_v2(Bucket="bucket").get("Contents", ()):
            bucket.client.delete_object(Bucket="bucket", Key=one["Key"])
        bucket.client.delete_bucket(Bucket="bucket")
        server.shutdown()
        thread.join()
        server.server_close()
        remote._store.cache_clear()

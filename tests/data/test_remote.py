"""Shards in stores: the same examples in the same order as on a disk, whatever the store does meanwhile."""

import http.server
import json
import pickle
import re
import threading
from collections import Counter
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest

from diptych.core.errors import UserError
from diptych.data import DataConfig, open_dataset, remote
from diptych.data.check import check_dataset
from diptych.data.remote import checked, expanded
from diptych.data.stream import ImageBatches
from tests.data.tiny import foreign_shard, image_dataset

pytest.importorskip("obstore")


class Store(http.server.ThreadingHTTPServer):
    """Files of a folder by ranges of bytes; `fault(path, range, times asked)` may be an HTTP status, or "cut"."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Answers)
        self.folder, self.fault, self.asked, self.requests = folder, lambda *_: None, Counter(), []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        store, file = self.server, self.server.folder / unquote(urlsplit(self.path).path.lstrip("/"))
        span = self.headers.get("Range")
        store.asked[self.path, span] += 1
        store.requests.append((self.command, self.path, span))
        fault = store.fault(self.path, span, store.asked[self.path, span])
        if isinstance(fault, int) or not file.is_file():
            self.send_response(fault or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = whole = file.read_bytes()
        if span:
            first, last = map(int, re.findall(r"\d+", span))
            data = whole[first : last + 1]
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hash(whole)}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        if fault == "cut":
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        image_dataset(folder / f"{number:03d}.tar", 6)
    server = Store(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def opened(store, **options):
    return open_dataset(DataConfig(**{"path": f"{store.address}/{{000..002}}.tar", "size": 8, **options}))


def everything(data):
    batches = ImageBatches(data, 3, "counter")
    batch = batches(range(18))
    return batch["key"], batch["caption"], batch["pixels"].sum().item()


def test_a_store_that_fails_now_and_then_changes_nothing(store):
    """Answers 500, bodies cut off: every example once, in the order of a local folder."""
    local = everything(open_dataset(DataConfig(path=str(store.folder), size=8)))
    assert everything(opened(store)) == local
    again = pickle.loads(pickle.dumps(opened(store)))
    store.asked.clear()
    store.fault = lambda path, span, times: {1: 500, 2: "cut"}.get(times) if span else None
    assert everything(again) == local


def test_an_index_is_made_of_few_requests_and_once(store):
    opened(store)
    first = [one for one in store.requests if one[0] == "GET"]
    assert len(first) == 3  # each shard, smaller than a chunk, at once
    store.requests.clear()
    data = opened(store)
    assert {one[0] for one in store.requests} == {"HEAD"}
    store.requests.clear()
    everything(data)
    assert len(store.requests) == 3  # the examples of a batch that lie near each other


def test_what_is_missing_is_named(store):
    (store.folder / "001.tar").unlink()
    data = opened(store)
    assert len(data) == 12
    assert list(data.quarantine.broken.items()) == [
        ((f"{store.address}/001.tar", "all examples, about 6 as in other shards"), "it is not in the store")
    ]


def test_a_missing_shard_counts_as_the_examples_that_it_had(store, caplog):
    image_dataset(store.folder / "003.tar", 8)
    pattern = f"{store.address}/{{000..003}}.tar"
    assert len(opened(store, path=pattern)) == 26
    (store.folder / "003.tar").unlink()
    for _ in range(2):  # also when it is read again
        with pytest.raises(UserError, match=r"8 of 26 examples are in shards.*limit of 30.0%.*/003\.tar: it is not in"):
            opened(store, path=pattern, max_failure_rate=0.3)
    caplog.clear()
    data = opened(store, path=pattern, max_failure_rate=0.31)
    assert len(data) == 18
    assert f"left out: all examples, 8 in {store.address}/003.tar: it is not in the store" in caplog.messages
    assert "18 examples can be read, 1 are broken, 8 in shards that cannot be read" in check_dataset(data).text()
    image_dataset(store.folder / "003.tar", 8)
    assert len(opened(store, path=pattern)) == 26


def test_what_is_not_there_at_first_is_asked_for_again(store):
    gone, times = store.folder / "001.tar", []

    def fault(path, span, number):
        times.append(number)
        return 404 if path.endswith("001.tar") and number < 3 else None

    store.fault = fault
    assert len(opened(store)) == 18
    assert gone.exists() and max(times) >= 3


def test_a_shard_that_is_cut_keeps_its_complete_examples(store):
    path = store.folder / "001.tar"
    path.write_bytes(path.read_bytes()[: 512 * 8])
    data = opened(store)
    whole = len(data) - 12
    assert 0 < whole < 6
    (((_, what), reason),) = data.quarantine.broken.items()
    assert what == f"all after its first {whole} examples, about {6 - whole} as in other shards" and "cut off" in reason


def test_captions_are_read_without_large_images(store):
    """Images before, between or after captions, long captions, small images: the same as of a local folder."""
    rng, members = np.random.default_rng(0), list[tuple[str, bytes]]()
    for number in range(24):
        image = rng.bytes(1000 if number == 5 else 400_000 + 700 * number)
        caption = f"picture {number} {'of a long street ' * (800 if number == 9 else 1)}".encode()
        meta = json.dumps({"similarity": 0.3, "url": "https://example.org"}).encode()
        order = [("jpg", image), ("json", meta), ("txt", caption)]
        name = f"{number:05d}" if number != 7 else "long " * 60  # in a header of its own
        members += [(f"{name}.{kind}", data) for kind, data in order[number % 3 :] + order[: number % 3]]
    foreign_shard(store.folder / "large.tar", members)
    local = open_dataset(DataConfig(path=str(store.folder / "large.tar"), size=8))
    data = open_dataset(DataConfig(path=f"{store.address}/large.tar", size=8))
    store.requests.clear()
    assert list(data.all_captions()) == list(local.all_captions())
    spans = [tuple(map(int, re.findall(r"\d+", span))) for _, _, span in store.requests]
    assert len(spans) < 36 and sum(last + 1 - first for first, last in spans) < 600_000
    assert [data.source.image_bytes(n) for n in range(24)] == [local.source.image_bytes(n) for n in range(24)]


def test_a_shard_that_changes_or_goes_stops_the_run(store):
    data = opened(store)
    image_dataset(store.folder / "000.tar", 7)
    with pytest.raises(UserError, match=r"000\.tar was replaced while it was read: start again"):
        data[0]
    (store.folder / "001.tar").unlink()
    with pytest.raises(UserError, match=r"001\.tar is not in the store any more: start again"):
        data[7]
    assert not data.quarantine.broken


def test_a_store_that_stays_broken_is_named_in_the_end(store, monkeypatch):
    monkeypatch.setattr(remote, "TRIES", 2)
    data = opened(store)
    store.fault = lambda path, span, times: 403
    with pytest.raises(UserError, match=r"000\.tar cannot be read \(.*a rerun goes on from here"):
        data[0]
    assert not data.quarantine.broken


def test_a_store_that_does_not_answer_is_said_once(store, caplog, monkeypatch):
    """Before the last attempt, for all requests together, without what obstore says of its own attempts."""
    monkeypatch.setattr(remote, "TRIES", 2)
    monkeypatch.setattr(remote, "_said", [-remote.SELDOM])
    store.server_close()
    with pytest.raises(UserError, match=r"cannot be read \((?!.*(max_retries|Debug))"):
        opened(store)
    lines = [record.getMessage() for record in caplog.records if record.name == remote.__name__]
    assert len(lines) == 1 and "did not answer (" in lines[0] and "max_retries" not in lines[0]


@pytest.mark.parametrize("endpoint", ["", "localhost:9000", "http://"])
def test_an_endpoint_that_is_no_address_is_named(endpoint, monkeypatch):
    """obstore's Rust code panics at it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    remote._store.cache_clear()
    with pytest.raises(UserError, match=r"AWS_ENDPOINT_URL is '.*': give an address such as"):
        open_dataset(DataConfig(path="s3://bucket/some", size=8))
    with pytest.raises(UserError, match=r"AWS_ENDPOINT_URL is '.*': give an address such as"):
        open_dataset(DataConfig(path="s3://bucket/{0..3}.tar", size=8))


def test_a_panic_of_the_library_is_an_error_of_one_line():
    class PanicException(BaseException):
        """As pyo3 derives it."""

    def request():
        raise PanicException("called `Result::unwrap()` on an `Err` value")

    with pytest.raises(UserError, match=r"s3://b/0\.tar cannot be read \(PanicException: called"):
        remote.attempt(request, "s3://b/0.tar")
    with pytest.raises(KeyboardInterrupt):
        remote.attempt(lambda: (_ for _ in ()).throw(KeyboardInterrupt()), "s3://b/0.tar")


def test_a_list_of_addresses(store, tmp_path):
    (tmp_path / "list.txt").write_text(f"# some\n{store.address}/002.tar\n\n{store.address}/{{000..001}}.tar\n")
    data = opened(store, path=str(tmp_path / "list.txt"))
    assert [data.key(i)[0][-7:] for i in (0, 6, 12)] == ["002.tar", "000.tar", "001.tar"]
    (tmp_path / "list.txt").write_text("file:///etc/passwd.tar\n")
    with pytest.raises(UserError, match="is no address of a shard: give s3://"):
        opened(store, path=str(tmp_path / "list.txt"))
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + f"{store.address}/002.tar\r\n".encode())
    assert len(opened(store, path=str(tmp_path / "list.txt"))) == 6
    (tmp_path / "list.txt").write_bytes(b"https://\xe4.example/a.tar\n")
    with pytest.raises(UserError, match=r"list\.txt is not UTF-8"):
        opened(store, path=str(tmp_path / "list.txt"))
    with pytest.raises(UserError, match="cannot be listed: give a pattern"):
        opened(store, path=store.address)


def test_a_number_in_a_name_is_no_answer(store, tmp_path):
    """A store that fails for a moment at shard 404 does not lose it."""
    image_dataset(store.folder / "00404.tar", 6)
    store.fault = lambda path, span, times: 500 if times < 6 else None
    assert len(opened(store, path=f"{store.address}/00404.tar")) == 6


def test_signed_addresses(store, tmp_path, capfd):
    """Read by their queries, which nothing prints or keeps; without HEAD, which their signature does not cover."""
    (store.folder / "001.tar").rename(store.folder / "a b.tar")
    secret = "s3cr3t%2Fx%3D"

    def signed(path, span, times):
        return None if parse_qs(urlsplit(path).query).get("sig") == [unquote(secret)] and span else 403

    store.fault, names = signed, ("000.tar", "a%20b.tar", "002.tar")
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{store.address}/{name}?sig={secret}&to=1\n" for name in names))
    data = opened(store, path=str(listed))
    local = [f"{index % 6:09d}" for index in range(18)]
    assert [data[index].key for index in range(18)] == local
    again = pickle.loads(pickle.dumps(data))  # as workers get it
    assert everything(again) == everything(data)
    store.fault = lambda path, span, times: 403
    with pytest.raises(UserError, match=r"a%20b\.tar cannot be read \(Perm.*write new addresses") as error:
        pickle.loads(pickle.dumps(data))[6]
    listed.write_text(listed.read_text().replace(secret, "other"))  # signed anew: the same index
    store.fault = lambda path, span, times: None
    store.requests.clear()
    assert opened(store, path=str(listed))[6].key == local[6] and len(store.requests) == 4
    kept = b"".join(file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file())
    shown = str(error.value) + "".join(map(str, capfd.readouterr())) + str(data.quarantine.broken) + data.key(0)[0]
    assert b"s3cr3t" not in kept and "s3cr3t" not in shown


@pytest.mark.parametrize("line", ["http://h:x/a.tar", "https://me:secret@[::1/a.tar?s=secret", "s3://b/a.tar?s=secret"])
def test_addresses_of_a_list_that_are_not_read(tmp_path, line):
    (tmp_path / "list.txt").write_text(line)
    with pytest.raises(UserError) as error:
        open_dataset(DataConfig(path=str(tmp_path / "list.txt"), size=8))
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_a_shard_is_listed_once(store, tmp_path):
    (tmp_path / "list.txt").write_text(f"{store.address}/{{000..001}}.tar\n{store.address}/001.tar?sig=1\n")
    with pytest.raises(UserError, match=r"001\.tar is there twice: its examples would come twice"):
        opened(store, path=str(tmp_path / "list.txt"))


SECRETS = ("https://me:secret@host/a.tar", "https://host/a.tar?sig=secret", "https://host/a.tar#secret")


@pytest.mark.parametrize("address", [*SECRETS, "file:///a.tar", "memory://a/b.tar", "s3:///a.tar", "s3://b/../a.tar"])
def test_addresses_that_are_not_read(address):
    with pytest.raises(UserError) as error:
        checked(address)
    assert "secret" not in str(error.value)


def test_patterns():
    assert expanded("s3://b/{08..11}.tar") == [f"s3://b/{n}.tar" for n in ("08", "09", "10", "11")]
    assert expanded("s3://b/{x,y}-{0..1}.tar") == [f"s3://b/{n}.tar" for n in ("x-0", "x-1", "y-0", "y-1")]
    for pattern in ("s3://b/{5..1}.tar", "s3://b/{0..9999999}.tar", "s3://b/{0..9999}{0..9999}.tar"):
        with pytest.raises(UserError, match=r"must count upwards|names more than"):
            expanded(pattern)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(UserError, match=r"pip install 'diptych\[cloud\]'"):
        open_dataset(DataConfig(path="s3://bucket/0.tar", size=8))


def test_s3(tmp_path, monkeypatch):
    """A prefix, listed, of a bucket, by credentials of the environment."""
    application = pytest.importorskip("moto.server")
    make = pytest.importorskip("werkzeug.serving").make_server
    server = make(
        "127.0.0.1", 0, application.DomainDispatcherApplication(application.create_backend_app), threaded=True
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        values = {
            "ENDPOINT_URL": endpoint,
            "ACCESS_KEY_ID": "a",
            "SECRET_ACCESS_KEY": "b",
            "DEFAULT_REGION": "us-east-1",
        }
        for name, value in values.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
        remote._store.cache_clear()
        boto3 = pytest.importorskip("boto3")
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="bucket")
        for number in range(2):
            image_dataset(tmp_path / f"{number}.tar", 6)
            data = (tmp_path / f"{number}.tar").read_bytes()
            client.put_object(Bucket="bucket", Key=f"some/{number}.tar", Body=data)
        local = open_dataset(DataConfig(path=str(tmp_path), size=8))
        for path in ("s3://bucket/some", "s3://bucket/some/{0..1}.tar"):
            data = open_dataset(DataConfig(path=path, size=8))
            assert [data[i].key for i in range(12)] == [local[i].key for i in range(12)]
        with pytest.raises(UserError, match=r"holds no \.tar shards"):
            open_dataset(DataConfig(path="s3://bucket/other", size=8))
        with pytest.raises(UserError, match=r"s3://elsewhere is not in the store: no bucket has this name"):
            open_dataset(DataConfig(path="s3://elsewhere/some", size=8))
    finally:
        server.shutdown()
        remote._store.cache_clear()

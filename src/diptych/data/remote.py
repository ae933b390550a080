"""WebDataset shards in object stores and behind HTTP, read by ranges of bytes with obstore.

Addresses are `s3://`, `gs://`, `az://`, `http://` or `https://`; credentials and endpoints come from the environment,
as obstore reads them. No address leads to a local file. The path of data is printed and kept, so it holds no secret; a
list of addresses may have signed ones, whose queries are neither printed nor kept.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from diptych.core.errors import UserError
from diptych.data.caption_text import decode_text, one_line
from diptych.data.quarantine import BrokenExample
from diptych.data.tars import View

log = logging.getLogger(__name__)
T = TypeVar("T")
SCHEMES = ("s3", "gs", "az", "http", "https")
CHUNK = 8 * 2**20
"""Bytes of a request while a shard is scanned. Members are often smaller, and a request costs as long as megabytes."""
REQUESTS = 16
"""Requests at once, of a batch or for what shards there are."""
TRIES = 8
"""Attempts at a request, besides those that obstore makes of its own: a store that is away for a minute ends no run."""
PAUSE = 0.5
"""Seconds before the second attempt; each further one waits twice as long."""
ABSENT_TRIES = 3
"""Attempts at what a store says is not there, which may have been put there a moment ago."""
SELDOM = 10.0
"""Seconds between two lines that say that a store is asked again."""
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
"""Variables of the environment that name the store behind `s3://`."""
MOST_SHARDS = 10**6
SIGNED = 64
"""Connections to signed addresses, each of which needs its own, that are kept."""
NOT_THERE = re.compile(r"status code: 404\b|\b404 Not Found\b")
"""What an answer says of an address without an object. The number alone may be part of a shard's name."""
ABSENT = "absent"
"""Identity of a shard that is listed and is not there."""


def is_remote(path: str) -> bool:
    """Whether a data path is an address, or a pattern of addresses."""
    return "://" in path


def remote_shards(path: str) -> list[RemoteShard]:
    """The shards at an address: one `.tar`, a pattern such as `s3://bucket/{00000..00999}.tar`, or all `.tar` below a
    prefix of a store that lists. Raises a `UserError` for an address that cannot be read."""
    pattern = checked(path)
    if not pattern.casefold().endswith(".tar"):
        return listed(pattern)
    return probed(expanded(pattern))


def shards_of_list(file: Path) -> list[RemoteShard]:
    """The shards whose addresses stand in a text file, one a line; of http and https also signed ones, with a query."""
    try:
        lines = [line.strip() for line in decode_text(file.read_bytes(), file.name).splitlines()]
    except BrokenExample as error:
        raise UserError(str(error)) from None
    addresses = [address for line in lines if line and not line.startswith("#") for address in listed_in(line)]
    if not addresses:
        raise UserError(f"{file} names no shard: write one address a line, such as s3://bucket/00000.tar")
    twice = [name for name, times in Counter(map(unsigned, addresses)).items() if times > 1]
    if twice:
        more = f", and so are {len(twice) - 1:,} more" if len(twice) > 1 else ""
        raise UserError(f"{file}: {one_line(twice[0])} is there twice{more}: its examples would come twice an epoch")
    return probed(addresses)


def listed_in(line: str) -> list[str]:
    """The addresses of a line of a list: one with a query, or those of a pattern."""
    address, _, query = line.partition("?")
    if not query or address.partition("://")[0].lower() not in ("http", "https"):
        return expanded(checked(line))
    return [f"{checked(address)}?{query}"]


def unsigned(address: str) -> str:
    """An address without its query, which may be a secret."""
    return address.partition("?")[0]


def checked(address: str) -> str:
    """An address of a scheme that is read, without secrets. The error does not repeat them."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:  # a port that is none, half of an IPv6 address
        shown = one_line(unsigned(address).rpartition("@")[2])
        raise UserError(f"{shown} is no address of a shard ({error})") from None
    shown = one_line(f"{parts.scheme}://{parts.hostname or ''}{parts.path}")
    if parts.scheme not in SCHEMES:
        raise UserError(f"{shown} is no address of a shard: give {', '.join(f'{name}://' for name in SCHEMES)}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            f"{shown}: an address with a name, password or query is not read here, since it would be kept: "
            "sign in by the environment, or write signed https addresses into a .txt file, one a line"
        )
    if ".." in parts.path.split("/") or not parts.hostname:
        raise UserError(f"{shown} is no address of a shard")
    return address


def expanded(pattern: str) -> list[str]:
    """The addresses of a pattern: `{000..123}` counts, with as many digits, and `{a,b}` names."""
    fixed, *braces = re.split(r"\{([^{}]*)\}", pattern)  # fixed, in braces, fixed, ...
    choices, after = [names_in(pattern, inner) for inner in braces[::2]], braces[1::2]
    if math.prod(map(len, choices)) > MOST_SHARDS:  # before any is made
        raise UserError(f"{pattern} names more than {MOST_SHARDS:,} shards")
    return [fixed + "".join(itertools.chain(*zip(names, after, strict=True))) for names in itertools.product(*choices)]


def names_in(pattern: str, inner: str) -> Sequence[str]:
    """What stands in braces of a pattern, one after the other."""
    if (counted := re.fullmatch(r"(\d+)\.\.(\d+)", inner)) is None:
        return inner.split(",")
    first, last, digits = int(counted[1]), int(counted[2]), len(counted[1])
    if not first <= last < first + MOST_SHARDS:
        raise UserError(f"{pattern}: {{{inner}}} must count upwards, to at most {MOST_SHARDS:,} shards")
    return [f"{number:0{digits}d}" for number in range(first, last + 1)]


def probed(addresses: Sequence[str]) -> list[RemoteShard]:
    """The shards at these addresses, with size and identity; one that is not there, which is asked for again with the
    others that are not, has the identity `ABSENT`."""

    def probe(address: str) -> RemoteShard:
        store, place = store_of(address)

        def ask() -> Any:
            if address == unsigned(address):
                return obstore().head(store, place)
            return obstore().get(store, place, options={"range": (0, 1)}).meta  # a signature is for one method

        try:
            meta = attempt(ask, address)
        except FileNotFoundError:
            return RemoteShard(address, 0, ABSENT)
        return RemoteShard(address, meta["size"], identity_of_meta(meta))

    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="store") as pool:
        found = list(pool.map(probe, addresses))
        for number in range(ABSENT_TRIES - 1):
            if absent := [place for place, shard in enumerate(found) if shard.identity == ABSENT]:
                time.sleep(PAUSE * 2**number)
                again = list(pool.map(probe, [addresses[place] for place in absent]))
                for place, shard in zip(absent, again, strict=True):
                    found[place] = shard
        return found


def listed(prefix: str) -> list[RemoteShard]:
    """All `.tar` below a prefix."""
    if urlsplit(prefix).scheme in ("http", "https"):
        raise UserError(f"{prefix} cannot be listed: give a pattern such as {prefix.rstrip('/')}/{{00000..00099}}.tar")
    store, place = store_of(prefix)
    root = prefix[: len(prefix) - len(place)] if place else prefix.rstrip("/") + "/"

    def every() -> list[Any]:
        return [meta for batch in obstore().list(store, prefix=place.rstrip("/") or None) for meta in batch]

    try:
        metas = [meta for meta in attempt(every, prefix) if meta["path"].casefold().endswith(".tar")]
    except FileNotFoundError:  # a prefix that names nothing is listed as empty: it is the bucket
        raise UserError(f"{root.rstrip('/')} is not in the store: no bucket has this name") from None
    if not metas:
        raise UserError(f"{prefix} holds no .tar shards")
    return [
        RemoteShard(root + meta["path"], meta["size"], identity_of_meta(meta))
        for meta in sorted(metas, key=lambda meta: meta["path"])
    ]


class RemoteShard:
    """A tar file in a store. A `ShardFile`: it names its store and connects in each process anew."""

    def __init__(self, address: str, size: int, identity: str) -> None:
        self.address, self.size = address, size
        self.identity: str | None = identity
        self.name, self.problem = one_line(unsigned(address)), ""

    @contextlib.contextmanager
    def whole(self) -> Iterator[View]:
        if self.identity == ABSENT:
            raise ValueError("it is not in the store")
        if not self.size:
            raise ValueError("the file is empty")
        yield Chunks(self)

    def part(self, start: int, size: int) -> View:
        return self.read(start, min(size, self.size - start))

    def read(self, start: int, size: int) -> bytes:
        """So many bytes. Raises a `UserError` where the store does not give them, or holds another file meanwhile."""
        store, place = store_of(self.address)

        def get() -> bytes:
            result = obstore().get(store, place, options={"range": (start, start + size)})
            if identity_of_meta(result.meta) != self.identity:
                raise UserError(f"{self.name} was replaced while it was read: start again")
            data = bytes(result.bytes())
            if len(data) != size:
                raise ConnectionError(f"{len(data)} of {size} bytes came")
            return data

        try:
            return attempt(get, self.address, ABSENT_TRIES)
        except FileNotFoundError:
            raise UserError(f"{self.name} is not in the store any more: start again") from None


class Chunks:
    """A shard from first to last, a chunk at a time; what lies within large members is passed over. A `View`."""

    def __init__(self, shard: RemoteShard) -> None:
        self.shard, self.start, self.data = shard, 0, b""
        self.before = (0, b"")

    def __len__(self) -> int:
        return self.shard.size

    def __getitem__(self, place: slice) -> bytes:
        first, last, _ = place.indices(self.shard.size)
        if last <= first:
            return b""
        for start, data in ((self.start, self.data), self.before):
            if start <= first and last <= start + len(data):
                return data[first - start : last - start]
        size = min(max(CHUNK, last - first), self.shard.size - first)
        if last - first > CHUNK:  # a large member: not kept
            return self.shard.read(first, last - first)
        self.before = self.start, self.data
        self.start, self.data = first, self.shard.read(first, size)
        return self.data[: last - first]


def attempt(request: Callable[[], T], address: str, absent: int = 1) -> T:
    """The answer to a request, tried again with growing pauses, `absent` times at most where nothing is there. Raises
    `FileNotFoundError`, or a `UserError` that names the shard in the end."""
    for number in range(TRIES):
        try:
            return request()
        except UserError:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # what Rust code raises
                raise
            kind, text = type(error).__name__, " ".join(str(error).split())
            not_there = isinstance(error, FileNotFoundError) or NOT_THERE.search(text[:600]) is not None
            if not_there and number + 1 >= absent:
                raise FileNotFoundError(unsigned(address)) from None
            final = kind in ("PermissionDeniedError", "UnauthenticatedError", "InvalidPathError", "PanicException")
            reason, shown = f"{kind}: {cleaned(text)}", one_line(unsigned(address))
            if final or number == TRIES - 1:
                then = "a rerun goes on from here"
                if final and address != unsigned(address):
                    then = f"if its signature is too old, write new addresses into the list; {then}"
                raise UserError(f"{shown} cannot be read ({reason}); {then}") from None
            asked_again(shown, reason)
            time.sleep(PAUSE * 2**number * random.uniform(0.5, 1.0))
    raise AssertionError("the last attempt returns or raises")


def cleaned(text: str) -> str:
    """What obstore says of a failure, without queries, which may hold a signature, and its own counts of attempts."""
    text = re.sub(r"\?\S*", "?...", text)
    text = re.sub(r" in [\d.]+\S*, after \d+ retries, max_retries: \d+, retry_timeout: \S+", "", text)
    return text.partition("Debug source:")[0].strip()[:200]


_said = [-math.inf]
"""When a line last said that a store is asked again."""


def asked_again(shown: str, reason: str) -> None:
    """A line that says why nothing comes, for all requests together seldom."""
    now = time.monotonic()
    if now - _said[0] >= SELDOM:
        _said[0] = now
        log.warning(f"{shown} did not answer ({reason}): asked again")


def identity_of_meta(meta: Any) -> str:
    """Size, and etag or time of change: another file of the same address has others."""
    return f"{meta['size']} {meta['e_tag'] or meta['last_modified'].isoformat()}"


def obstore() -> Any:
    """The library. Raises a `UserError` where it is not installed."""
    try:
        import obstore
    except ImportError:
        raise UserError("shards in stores are read by obstore: pip install 'diptych[cloud]'") from None
    return obstore


def store_of(address: str) -> tuple[Any, str]:
    """The store of an address, and the place in it. A signed address has a store of its own, with its query."""
    parts = urlsplit(address)
    root, place = f"{parts.scheme}://{parts.netloc}", parts.path.lstrip("/")
    if parts.scheme in ("http", "https"):
        place = unquote(place)  # obstore quotes it
    if parts.query:
        return _signed_store(f"{root}/?{parts.query}", os.getpid()), place
    return _store(root, os.getpid()), place


@functools.cache
def _store(root: str, process: int) -> Any:
    return opened_store(root)


@functools.lru_cache(SIGNED)
def _signed_store(root: str, process: int) -> Any:
    return opened_store(root)


def opened_store(root: str) -> Any:
    from datetime import timedelta

    obstore()
    from obstore.store import from_url

    endpoints = {name: os.environ[name] for name in ENDPOINTS if name in os.environ} if root.startswith("s3:") else {}
    for name, endpoint in endpoints.items():
        if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname:
            raise UserError(f"{name} is {one_line(endpoint)!r}: give an address such as https://host, or unset it")
    plain = any(one.startswith("http://") for one in (root, *endpoints.values()))
    options: Any = {"timeout": "120s", "connect_timeout": "20s", **({"allow_http": True} if plain else {})}
    retry: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}
    try:
        return from_url(root, client_options=options, retry_config=retry)
    except Exception as error:
        said = " ".join(unsigned(str(error)).split())[:200]
        raise UserError(f"{unsigned(root)} cannot be opened ({said})") from None

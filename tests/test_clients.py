"""Real clients against a real gateway and a real destination, each a process of its own.

Every client sends a field and files, one of which is named to be hurt by wrong escaping. The manifest that
/upload answers, the bytes that it stored, and what the destination behind /proxy saw have to agree with what
was sent. Clients do not agree about escaping: what arrives is then what that client's dialect means.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import random
import shutil
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import httpx
import pytest
import requests

from tests.support.processes import gateway_process, receiver_process

pytestmark = pytest.mark.sockets

AWKWARD = 'nä"v;1\\2 %41.txt'
PERCENT_ENCODED = "n%C3%A4%22v%3B1%5C2%20%2541.txt"
"""aiohttp's client and needle encode everything; to decode that would decode paths of others, too."""
FIELD = "välue"
LARGE_BYTES = 3 << 20
"""More than the 1 MiB from which on curl asks before it sends, and than any window or buffer of the gateway."""


ANY_TYPE = "whatever the client says"


class Sent(NamedTuple):
    """A part as it should arrive."""

    name: str
    filename: str | None
    data: bytes
    content_type: str | None = ANY_TYPE
    raw: bool = False
    """A raw body: a file even without a file name."""


class Files(NamedTuple):
    small: Path
    large: Path
    awkward: Path
    empty: Path

    @property
    def paths(self) -> list[Path]:
        return [self.small, self.large, self.awkward, self.empty]

    def sent(self, awkward: str = AWKWARD) -> list[Sent]:
        """What a client sends that gives the field, then every file."""
        names = [awkward if path is self.awkward else path.name for path in self.paths]
        contents = [path.read_bytes() for path in self.paths]
        files = [Sent("files", name, data) for name, data in zip(names, contents, strict=True)]
        return [Sent("field1", None, FIELD.encode()), *files]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    directory = tmp_path_factory.mktemp("files")
    files = Files(*(directory / name for name in ("a.txt", "b.bin", AWKWARD, "empty")))
    files.small.write_text("small\r\n--and with a line that looks like a delimiter--\r\n")
    files.large.write_bytes(random.Random(3).randbytes(LARGE_BYTES))
    files.awkward.write_bytes(b"\r\n--\0\xff\r\n")
    files.empty.touch()
    return files


@pytest.fixture(scope="module")
def gateway_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("gateway")
    fsync = {"GATEWAY_SINKS__DISK__FSYNC": "false"}
    with (
        receiver_process(directory) as receiver,
        gateway_process(directory, GATEWAY_SINKS__API__URL=f"{receiver.url}/upload", **fsync) as gateway,
    ):
        yield gateway.url


@pytest.fixture(params=["/upload", "/proxy"])
def url(request: pytest.FixtureRequest, gateway_url: str) -> str:
    return gateway_url + str(request.param)


def check(url: str, answer: str | bytes, sent: list[Sent]) -> list[dict[str, Any]]:
    """The answer is the manifest of what was sent; at /upload the stored bytes are, too."""
    parts: list[dict[str, Any]] = json.loads(answer)["parts"]
    got = [(part["index"], part["name"], part["filename"], part["size"], part["sha256"]) for part in parts]
    assert got == [
        (index, part.name, part.filename, len(part.data), hashlib.sha256(part.data).hexdigest())
        for index, part in enumerate(sent)
    ]
    for part, meant in zip(parts, sent, strict=True):
        if meant.content_type != ANY_TYPE:
            assert part["content_type"] == meant.content_type
        if meant.filename is None and not meant.raw:
            assert part["value"] == meant.data.decode()
        elif url.endswith("/upload"):
            (receipt,) = part["receipts"]
            assert stored(url, receipt["location"]) == meant.data
    return parts


def stored(url: str, location: str) -> bytes:
    with urllib.request.urlopen(url.removesuffix("/upload") + location, timeout=30) as answer:
        data: bytes = answer.read()
        return data


# -- curl


def curl(*arguments: str | Path, stdin: bytes = b"") -> tuple[int, bytes, str]:
    """(status, body, what -v says)."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    done = subprocess.run(
        ["curl", "-sS", "-v", "--noproxy", "*", "--max-time", "60", "-w", "\n%{http_code}", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=90,
        check=False,
    )
    said = done.stderr.decode(errors="replace")
    assert done.returncode == 0, said
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), body, said


def form_arguments(files: Files) -> list[str]:
    """-F for the field and every file. In curl's own syntax a quoted path escapes quotes and backslashes."""
    arguments = ["-F", f"field1={FIELD}"]
    for path in files.paths:
        escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
        arguments += ["-F", f'files=@"{escaped}"']
    return arguments


def succeeded(url: str) -> int:
    """The gateway's own 201; behind /proxy the destination's 200."""
    return 201 if url.endswith("/upload") else 200


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="plain"),
        pytest.param(["-H", "Transfer-Encoding: chunked"], id="chunked"),
        pytest.param(["--http1.0"], id="http1.0"),
        pytest.param(["-H", "Expect:"], id="without asking"),
        pytest.param(["--form-escape"], id="quoted-string escapes"),
    ],
)
def test_curl_sends_a_form(options: list[str], url: str, files: Files) -> None:
    status, body, _ = curl(*options, *form_arguments(files), url)
    assert status == succeeded(url)
    check(url, body, files.sent())


def test_curl_is_told_to_go_on_when_it_asks(url: str, files: Files) -> None:
    began = time.monotonic()
    asking = ["-H", "Expect: 100-continue", "--expect100-timeout", "30"]
    status, body, said = curl(*asking, *form_arguments(files), url)
    assert status == succeeded(url)
    assert "< HTTP/1.1 100 Continue" in said
    assert time.monotonic() - began < 20  # it did not wait until it gave up waiting
    check(url, body, files.sent())


def test_curl_that_asks_is_refused_before_it_sends(gateway_url: str, files: Files) -> None:
    asking = ["-H", "Expect: 100-continue", "--expect100-timeout", "30"]
    status, body, said = curl(*asking, "-F", f"file=@{files.large}", f"{gateway_url}/nowhere")
    assert (status, json.loads(body)["type"]) == (404, "/problems/not-found")
    assert "100 Continue" not in said


def test_curl_sends_standard_input_as_a_file(url: str) -> None:
    status, body, _ = curl("-F", "files=@-;filename=stdin.bin", url, stdin=b"from a pipe")
    assert status == succeeded(url)
    check(url, body, [Sent("files", "stdin.bin", b"from a pipe")])


def test_curl_sends_types_duplicates_and_order_as_they_were_given(url: str, files: Files) -> None:
    path, data = files.small, files.small.read_bytes()
    typed = ["-F", f"b=@{path};type=application/x-b;filename=one", "-F", "b=plain", "-F", f"a=@{path};type=text/a"]
    status, body, _ = curl(*typed, *typed[:2], url)
    assert status == succeeded(url)
    one = Sent("b", "one", data, "application/x-b")
    check(url, body, [one, Sent("b", None, b"plain", None), Sent("a", "a.txt", data, "text/a"), one])


def test_curl_nests_two_files_in_one_field_which_stays_opaque(url: str, files: Files) -> None:
    status, body, _ = curl("-F", f"files=@{files.small},{files.small}", url)
    assert status == succeeded(url)
    (part,) = json.loads(body)["parts"]
    assert (part["name"], part["filename"]) == ("files", None)
    assert part["content_type"].startswith("multipart/mixed; boundary=")
    if url.endswith("/upload"):
        inside = stored(url, part["receipts"][0]["location"])
        assert hashlib.sha256(inside).hexdigest() == part["sha256"]
        assert inside.count(files.small.read_bytes()) == 2


def test_curl_uploads_a_raw_body_under_the_name_of_the_file(gateway_url: str, files: Files) -> None:
    status, body, said = curl("-T", files.large, f"{gateway_url}/upload/")
    assert status == 201
    assert "> PUT /upload/b.bin HTTP/1.1" in said
    check(f"{gateway_url}/upload", body, [Sent("file", "b.bin", files.large.read_bytes(), None)])


def test_curl_uploads_an_awkward_name_and_an_empty_file(gateway_url: str, files: Files) -> None:
    target = f"{gateway_url}/upload/n%C3%A4%22v%3B1%5C2%20%2541.txt"
    status, body, _ = curl("-T", files.awkward, target)
    assert status == 201
    check(f"{gateway_url}/upload", body, [Sent("file", AWKWARD, files.awkward.read_bytes(), None)])
    status, body, _ = curl("-T", files.empty, f"{gateway_url}/upload/")
    assert status == 201
    check(f"{gateway_url}/upload", body, [Sent("file", "empty", b"", None)])


def test_curl_uploads_standard_input_chunked(gateway_url: str, files: Files) -> None:
    data = files.large.read_bytes()
    status, body, said = curl("-T", "-", f"{gateway_url}/upload/stdin.bin", stdin=data)
    assert status == 201
    assert "> Transfer-Encoding: chunked" in said
    check(f"{gateway_url}/upload", body, [Sent("file", "stdin.bin", data, None)])


def test_curl_posts_a_raw_body_which_a_destination_gets_as_one_file(url: str, files: Files) -> None:
    status, body, _ = curl("--data-binary", f"@{files.large}", "-H", "Content-Type: image/x", url)
    assert status == succeeded(url)
    filename = None if url.endswith("/upload") else "file"  # a form has no file without a file name
    check(url, body, [Sent("file", filename, files.large.read_bytes(), "image/x", raw=True)])


def test_curl_reads_a_refusal_although_it_is_still_sending(gateway_url: str, files: Files) -> None:
    status, body, _ = curl(
        "-H", "Expect:", *form_arguments(files), f"{gateway_url}/proxy?answer_after_bytes=1&status=418"
    )
    assert (status, json.loads(body)) == (418, {"answered_after_bytes": 1})


# -- Python


def test_requests(url: str, files: Files) -> None:
    given = [("files", (path.name, path.read_bytes())) for path in files.paths]
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(url, data={"field1": FIELD}, files=given, timeout=60)
        assert answer.status_code == succeeded(url)
    check(url, answer.content, files.sent())


def test_requests_streams_a_raw_body_from_a_generator(gateway_url: str) -> None:
    pieces = [b"x" * 10_000, b"y", b"z" * 70_000]
    with requests.Session() as session:
        session.trust_env = False
        answer = session.put(f"{gateway_url}/upload/generated", data=iter(pieces), timeout=60)
        assert answer.status_code == 201
    check(f"{gateway_url}/upload", answer.content, [Sent("file", "generated", b"".join(pieces), None)])


def test_httpx(url: str, files: Files) -> None:
    given = [("files", (path.name, path.read_bytes())) for path in files.paths]
    with httpx.Client(trust_env=False, timeout=60) as client:
        answer = client.post(url, data={"field1": FIELD}, files=given)
    assert answer.status_code == succeeded(url)
    check(url, answer.content, files.sent())


@pytest.mark.parametrize(("quote_fields", "arrives"), [(True, PERCENT_ENCODED), (False, AWKWARD)])
async def test_the_aiohttp_client(quote_fields: bool, arrives: str, url: str, files: Files) -> None:
    form = aiohttp.FormData(quote_fields=quote_fields)
    form.add_field("field1", FIELD)
    for path in files.paths:
        content = io.BytesIO(path.read_bytes())
        form.add_field("files", content, filename=path.name, content_type="application/x-some")
    async with aiohttp.ClientSession() as session, session.post(url, data=form) as answer:
        assert answer.status == succeeded(url)
        body = await answer.read()
    parts = check(url, body, files.sent(arrives))
    assert {part["content_type"] for part in parts[1:]} == {"application/x-some"}


async def test_the_aiohttp_client_streams_a_generator_chunked(url: str) -> None:
    pieces = [bytes([number]) * 50_000 for number in range(20)]

    async def generate() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    form = aiohttp.FormData()
    form.add_field("files", generate(), filename="generated.bin")
    async with aiohttp.ClientSession() as session, session.post(url, data=form) as answer:
        assert answer.status == succeeded(url)
        body = await answer.read()
    check(url, body, [Sent("files", "generated.bin", b"".join(pieces))])


def test_http_client_speaks_http_1_0(url: str, files: Files) -> None:
    class Connection(http.client.HTTPConnection):
        _http_vsn = 10
        _http_vsn_str = "HTTP/1.0"

    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="old.bin"\r\n\r\n'
    data = files.large.read_bytes()
    connection = Connection(url.split("/")[2], timeout=60)
    try:
        connection.request(
            "POST",
            "/" + url.rpartition("/")[2],
            body=head + data + b"\r\n--b--\r\n",
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )
        answer = connection.getresponse()
        assert answer.status == succeeded(url)
        check(url, answer.read(), [Sent("files", "old.bin", data, None)])
        assert answer.will_close
    finally:
        connection.close()


# -- other languages

NODE = """
const { openAsBlob, readFileSync } = require('fs');
const { basename } = require('path');
const [url, field, ...paths] = process.argv.slice(2);
(async () => {
  const form = new FormData();
  form.append('field1', field);
  for (const path of paths) form.append('files', new Blob([readFileSync(path)]), basename(path));
  const answer = await fetch(url, { method: 'POST', body: form });
  process.stdout.write(answer.status + '\\n' + await answer.text());
})();
"""

GO = r"""
package main

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func fill(form *multipart.Writer, field string, paths []string) {
	check(form.WriteField("field1", field))
	for _, path := range paths {
		part, err := form.CreateFormFile("files", filepath.Base(path))
		check(err)
		data, err := os.ReadFile(path)
		check(err)
		_, err = part.Write(data)
		check(err)
	}
	check(form.Close())
}

func main() {
	how, url, field, paths := os.Args[1], os.Args[2], os.Args[3], os.Args[4:]
	var body io.Reader
	var form *multipart.Writer
	if how == "pipe" {
		reader, writer := io.Pipe()
		form = multipart.NewWriter(writer)
		go func() {
			fill(form, field, paths)
			writer.Close()
		}()
		body = reader
	} else {
		buffer := &bytes.Buffer{}
		form = multipart.NewWriter(buffer)
		fill(form, field, paths)
		body = buffer
	}
	answer, err := http.Post(url, form.FormDataContentType(), body)
	check(err)
	text, err := io.ReadAll(answer.Body)
	check(err)
	fmt.Printf("%d\n%s", answer.StatusCode, text)
}
"""


def run_client(*command: str | Path) -> tuple[int, bytes]:
    """A client that prints the status and then the body."""
    done = subprocess.run(list(map(str, command)), capture_output=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    status, _, body = done.stdout.partition(b"\n")
    return int(status), body


def test_nodes_fetch(url: str, files: Files, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    if int(version.lstrip("v").partition(".")[0]) < 18:
        pytest.skip(f"node {version.strip()} has no fetch")
    script = tmp_path / "upload.cjs"
    script.write_text(NODE)
    status, body = run_client(node, script, url, FIELD, *files.paths)
    assert status == succeeded(url)
    check(url, body, files.sent())


@pytest.fixture(scope="module")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = shutil.which("go")
    if go is None:
        pytest.skip("there is no go")
    directory = tmp_path_factory.mktemp("go")
    (directory / "main.go").write_text(GO)
    done = subprocess.run(
        [go, "build", "-o", "upload", "main.go"],
        cwd=directory,
        env={**os.environ, "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory / "upload"


@pytest.mark.timeout(300)  # the first build compiles the standard library
@pytest.mark.parametrize("how", ["buffer", "pipe"])
def test_gos_mime_multipart(how: str, url: str, files: Files, go_client: Path) -> None:
    status, body = run_client(go_client, how, url, FIELD, *files.paths)
    assert status == succeeded(url)
    parts = check(url, body, files.sent())
    assert {part["content_type"] for part in parts[1:]} == {"application/octet-stream"}

"""The ceiling of many files: open, write, close, from one thread, behind the plainest of servers.

POST /disk?count=N&size=N, without a body, makes that many files of that size.
"""

from __future__ import annotations

import json
import socket
from urllib.parse import parse_qs

from tests.bench.peers.common import Options, options


def create(where: Options, count: int, size: int) -> None:
    content = bytes(size)
    directory = where.fresh_directory()
    for index in range(count):
        with open(f"{directory}/{index}", "xb", buffering=0) as file:
            file.write(content)


def main() -> None:
    where = options()
    with socket.create_server(("127.0.0.1", where.port)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as stream:
                line = stream.readline().decode()
                if not line:
                    continue
                query = parse_qs(line.split()[1].partition("?")[2])
                count, size = int(query["count"][0]), int(query["size"][0])
                create(where, count, size)
                text = json.dumps({"files": count})
                stream.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())


if __name__ == "__main__":
    main()

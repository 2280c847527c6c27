"""A receiver that costs as little as Python can: reads each request to its end, and confirms it.

    python -m bench.sink DELAY [tls FOLDER]

Says its address, and with TLS the certificate to trust. Ends when its input does.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
import time
from pathlib import Path

_BODY = b'{"code":0,"msg":"OK","requestId":"r","data":{}}'
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
_BLOCK = 1024 * 1024


def serve(connection: socket.socket, delay: float) -> None:
    """Requests of one connection, one after the other."""
    with contextlib.suppress(OSError), connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        room = bytearray(_BLOCK)
        view = memoryview(room)
        have = 0
        while True:
            while (end := room.find(b"\r\n\r\n", 0, have)) < 0:
                if not (got := connection.recv_into(view[have:])):
                    return
                have += got
            head = bytes(view[:end]).lower()
            if b"expect: 100-continue" in head:
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            _, _, length = head.partition(b"content-length:")
            left = int(length.split(b"\r\n", 1)[0]) - (have - end - 4)
            while left > 0:
                if not (got := connection.recv_into(view, min(left, _BLOCK))):
                    return
                left -= got
            have = 0  # nobody here sends the next request before the answer
            if delay:
                time.sleep(delay)
            connection.sendall(_ANSWER)


def main() -> None:
    delay = float(sys.argv[1])
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    context, scheme, trusted = None, "http", ""
    if sys.argv[2:3] == ["tls"]:
        import trustme

        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        ca_file = Path(sys.argv[3]) / "ca.pem"
        authority.cert_pem.write_to_path(str(ca_file))
        scheme, trusted = "https", f" {ca_file}"
    print(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}{trusted}", flush=True)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            if context is not None:
                with contextlib.suppress(OSError):
                    connection = context.wrap_socket(connection, server_side=True)
            threading.Thread(target=serve, args=(connection, delay), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()

"""A gateway (`nakshatra serve`) for the tests, and HTTP by plain sockets, so that the tests see every byte."""
import json
import os
import re
import select
import socket
import ssl
import subprocess
import tempfile
import time

import nk

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
HERMES = os.path.join(DATA, "hermes.jinja")


class Reply:
    def __init__(self, status, headers, body, interim=()):
        self.status, self.headers, self.body, self.interim = status, headers, body, list(interim)

    @property
    def text(self):
        return self.body.decode()

    @property
    def json(self):
        return json.loads(self.body)

    def events(self):
        """The data of server-sent events; the last must be [DONE]."""
        blocks = self.text.split("\n\n")
        assert blocks[-1] == "", self.text
        data = []
        for block in blocks[:-1]:
            for line in block.split("\n"):
                if line.startswith("data: "):
                    data.append(line[6:])
                else:
                    assert line.startswith(":") or line.startswith("event:"), line
        return data

    def chunks(self):
        data = self.events()
        assert data[-1] == "[DONE]", data[-1]
        return [json.loads(d) for d in data[:-1]]

    def lines(self):
        return [json.loads(line) for line in self.text.split("\n") if line.strip()]

    def __repr__(self):
        return f"{self.status} {self.headers} {self.body[:400]!r}"


class Connection:
    """One TCP connection; reads replies by HTTP/1.1's rules (RFC 9112) and nothing else."""

    def __init__(self, port, timeout=60, context=None, receive_buffer=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout * nk.SLOW)
        self.socket.connect(("127.0.0.1", port))
        if context:
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        self.left = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, method, path, body=None, headers=(), type="application/json", length=True):
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
        if body is not None and type:
            lines.append(f"Content-Type: {type}")
        if body is not None and length:
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{k}: {v}" for k, v in dict(headers).items()]
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))

    def more(self):
        data = self.socket.recv(65536)
        self.left += data
        return data

    def until(self, mark):
        while mark not in self.left:
            if not self.more():
                raise EOFError(f"the connection ended before {mark!r}: {self.left!r}")
        head, self.left = self.left.split(mark, 1)
        return head

    def head(self):
        lines = self.until(b"\r\n\r\n").decode().split("\r\n")
        m = re.fullmatch(r"HTTP/1\.1 (\d{3})(?: .*)?", lines[0])
        assert m, lines[0]
        return int(m[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}

    def chunk(self):
        """The next chunk of a chunked body; b"" is the last."""
        size = int(self.until(b"\r\n"), 16)
        while len(self.left) < size + 2:
            if not self.more():
                raise EOFError("the connection ended in a chunk")
        data, end, self.left = self.left[:size], self.left[size:size + 2], self.left[size + 2:]
        assert end == b"\r\n", end
        return data

    def reply(self, head_only=False):
        status, headers = self.head()
        interim = []
        while status < 200:
            interim.append(status)
            status, headers = self.head()
        body = b""
        if head_only or status in (204, 304):
            pass
        elif headers.get("transfer-encoding") == "chunked":
            while True:
                data = self.chunk()
                if not data:
                    break
                body += data
        elif "content-length" in headers:
            n = int(headers["content-length"])
            while len(self.left) < n:
                if not self.more():
                    raise EOFError("the connection ended in a body")
            body, self.left = self.left[:n], self.left[n:]
        else:
            while self.more():
                pass
            body, self.left = self.left, b""
        return Reply(status, headers, body, interim)

    def ended(self, seconds=10):
        """Waits for the other side's end."""
        self.socket.settimeout(seconds * nk.SLOW)
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True


class Gateway:
    """A `nakshatra serve` process on a free port; ends with SIGTERM and exit code 0."""

    def __init__(self, cluster, *options, context=None, env_more=None, key=None):
        self.log_file = tempfile.NamedTemporaryFile(prefix="nk-gateway-", suffix=".log", delete=False)
        self.context, self.key, self.terminated = context, key, False
        read, self.life = os.pipe()
        self.process = subprocess.Popen(
            [nk.NAKSHATRA, "serve", "--cluster", cluster, "--listen", "127.0.0.1:0", "--parent-fd", str(read), *map(str, options)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log_file, pass_fds=[read],
            env=nk.env(**(env_more or {})), start_new_session=True)
        os.close(read)
        line, end = b"", time.monotonic() + nk.READY_S
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError("the gateway does not say where it listens\n" + self.log())
            byte = os.read(self.process.stdout.fileno(), 1)
            if not byte:
                code = self.process.wait()
                log = self.log()
                self._release()
                raise AssertionError(f"the gateway ended with {code}\n{log}")
            line += byte
        m = re.fullmatch(r"listening on (https?://127\.0\.0\.1:(\d+))\n", line.decode())
        assert m, line
        self.url, self.port = m[1], int(m[2])

    def log(self):
        with open(self.log_file.name, errors="replace") as f:
            return f.read()

    def _release(self):
        self.process.stdout.close()
        os.close(self.life)
        self.log_file.close()
        os.unlink(self.log_file.name)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.stop(check=kind is None)

    def terminate(self):
        """SIGTERM, once: a second one would end it at once."""
        if not self.terminated and self.process.poll() is None:
            if os.environ.get("NK_SANITIZE") == "tsan":
                # Its runtime loses a signal that comes while the main thread is about to block for the first time, which it
                # does right after it says where it listens.
                nk.blocks(self.process.pid)
            self.process.terminate()
        self.terminated = True

    def stop(self, check=True, seconds=40):
        self.terminate()
        try:
            code = self.process.wait(seconds * nk.SLOW)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = "none: it did not end"
        log = self.log()
        self._release()
        if check and code:
            raise AssertionError(f"the gateway's exit code is {code}\n{log}")

    def refuses_connections(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 5 * nk.SLOW).close()
        except (ConnectionRefusedError, ConnectionResetError):  # which of them, kernels disagree on
            return True
        return False

    def connect(self, **more):
        return Connection(self.port, context=self.context, **more)

    def ask(self, method, path, body=None, headers=(), **more):
        headers = dict(headers)
        if self.key:
            headers.setdefault("Authorization", "Bearer " + self.key)
        with self.connect() as c:
            c.send(method, path, body, headers, **more)
            return c.reply(head_only=method == "HEAD")

    def get(self, path, **more):
        return self.ask("GET", path, **more)

    def post(self, path, body, **more):
        return self.ask("POST", path, body, **more)

    def metric(self, name, labels=""):
        """The value of one line of /metrics; 0 when it is not there."""
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(name + labels + " "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def wait_ready(self, seconds=20):
        assert nk.wait_for(lambda: self.get("/readyz").status == 200, seconds), self.log()
        return self


def certificate(folder):
    """A self-signed certificate for localhost: its file, its key's file, and a context that trusts it."""
    cert, key = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert],
                   check=True, capture_output=True)
    return cert, key, ssl.create_default_context(cafile=cert)

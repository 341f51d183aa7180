"""Models by https:// and from the hub, from a server here that does ranges, breaks off, redirects and lies."""
import fcntl
import hashlib
import http.server
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
import unittest

import nk

TOOL = os.path.join(nk.BUILD, "tools", "hub")
DATA = b"GGUF" + random.Random(1).randbytes(300000)
OTHER = b"GGUF" + random.Random(2).randbytes(300100)
SHA = hashlib.sha256(DATA).hexdigest()


def setUpModule():
    global FOLDER, CERTIFICATE, KEY
    FOLDER = tempfile.mkdtemp(prefix="nk-hub-")
    CERTIFICATE, KEY = (os.path.join(FOLDER, name) for name in ("certificate.pem", "key.pem"))
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                    "-subj", "/CN=a hub of the tests", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
                    "-keyout", KEY, "-out", CERTIFICATE], check=True, capture_output=True)


def tearDownModule():
    shutil.rmtree(FOLDER)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server.owner
        with server.lock:
            server.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            script = server.scripts.get(self.path)
            answer = script.pop(0) if script else Server.good
        try:
            answer(server, self)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True

    def head(self, status, length, *headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()


class Server:
    """An HTTPS server. files: path to bytes. scripts: path to a list of answers, one for each request; then it is good."""

    def __init__(self, tls=True):
        self.files, self.scripts, self.requests, self.lock = {}, {}, [], threading.Lock()
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.owner = self
        self.http.handle_error = lambda *_: None  # clients that do not trust it
        self.port = self.http.server_port
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE, KEY)
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def good(self, request, send=None, etag=None):
        """As a server should; send: of the body only so many bytes, and then the connection ends."""
        data = self.files.get(request.path)
        if data is None:
            return request.head(404, 0)
        etag = etag or '"%s"' % hashlib.md5(data).hexdigest()
        if request.headers.get("If-None-Match") == etag:
            return request.head(304, None, ("ETag", etag))
        begin, headers = 0, [("ETag", etag)]
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if asked and request.headers.get("If-Range", etag) == etag:
            begin = int(asked[1])
            if begin >= len(data):
                return request.head(416, 0, ("Content-Range", f"bytes */{len(data)}"))
            headers.append(("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}"))
        request.head(206 if begin else 200, len(data) - begin, *headers)
        request.wfile.write(data[begin:][:send])
        request.wfile.flush()
        if send is not None:
            request.close_connection = True

    def asked(self, path=None):
        with self.lock:
            return [headers for p, headers in self.requests if p == path or path is None]


def breaks_off(after, **more):
    return lambda server, request: server.good(request, send=after, **more)


def says(status, body=b"", *headers, length=-1):
    def answer(_, request):
        request.head(status, len(body) if length == -1 else length, *headers)
        request.wfile.write(body)
        request.close_connection = True
    return answer


def redirects(to, *headers):
    return says(302, b"over there", ("Location", to), *headers)


class Hub(unittest.TestCase):
    def setUp(self):
        self.cache = tempfile.mkdtemp(dir=FOLDER)
        self.server = Server()
        self.addCleanup(self.server.close)
        self.url = self.server.url + "/a/model.gguf"
        self.server.files["/a/model.gguf"] = DATA

    def script(self, *answers, path="/a/model.gguf"):
        self.server.scripts[path] = list(answers)

    def env(self, **more):
        e = {"XDG_CACHE_HOME": self.cache, "SSL_CERT_FILE": CERTIFICATE, "no_proxy": "*", "HF_TOKEN": "", "HF_ENDPOINT": "",
             "HUGGING_FACE_HUB_TOKEN": "", "CURL_CA_BUNDLE": "", "SSL_CERT_DIR": ""}
        e.update(more)
        return nk.env(**e)

    def get(self, source=None, tries=3, pause_ms=1, stall_s=30, connect_ms=60000, env=None, **more):
        return nk.run(source or self.url, tries, pause_ms, stall_s, connect_ms, program=TOOL, env=env or self.env(), **more)

    def good(self, source=None, data=DATA, **more):
        done = self.get(source, **more)
        self.assertEqual(done.returncode, 0, done.stderr)
        path = done.stdout.strip()
        with open(path, "rb") as f:
            self.assertTrue(f.read() == data, "another file")
        self.assertEqual([name for name in os.listdir(os.path.dirname(path)) if ".part" in name], [])
        return path, done.stderr

    def bad(self, reason, *words, source=None, **more):
        done = self.get(source, **more)
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        line = done.stderr.splitlines()[-1]
        self.assertTrue(line.startswith(reason + ": "), done.stderr)
        for word in words:
            self.assertIn(word, line)
        return done.stderr

    def left(self):
        """Names and sizes of what lies in the cache, without locks."""
        return {name: os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(self.cache)
                for name in names if not name.endswith(".lock")}

    # ---- once ----

    def test_it_comes_once_and_is_compared_afterwards(self):
        path, said = self.good()
        self.assertIn(f"models/127.0.0.1_{self.server.port}/", path)
        self.assertEqual(os.path.basename(path), "model.gguf")
        self.assertIn("downloading 293.0 KiB", said)
        self.assertEqual(self.good(), (path, ""))
        first, second = self.server.asked()
        self.assertNotIn("if-none-match", first)
        self.assertEqual(second["if-none-match"], '"%s"' % hashlib.md5(DATA).hexdigest())
        self.server.files["/a/model.gguf"] = OTHER
        self.assertEqual(self.good(data=OTHER)[0], path)

    def test_without_the_source_the_copy_is_used_and_that_is_said(self):
        path, _ = self.good()
        self.script(says(503), says(200, b"<html>log in"), says(404))
        for found in "answers 503", "HTML", "is not there":
            again, said = self.good()
            self.assertEqual(again, path)
            self.assertRegex(said, f"{found}.*; the copy from earlier is used, {re.escape(path)}")
        self.server.close()
        self.assertIn("nobody answers there", self.good()[1])
        # Another length than it had: nothing that could be used.
        with open(path, "ab") as f:
            f.write(b"x")
        self.bad("unreachable", "nobody answers there")

    def test_two_processes_load_it_once(self):
        began, go_on = threading.Event(), threading.Event()

        def slow(server, request):
            request.head(200, len(DATA), ("ETag", '"%s"' % hashlib.md5(DATA).hexdigest()))
            request.wfile.write(DATA[:1000])
            began.set()
            go_on.wait()
            request.wfile.write(DATA[1000:])
        self.script(slow)
        args = [TOOL, self.url, "3", "1", "600"]
        first = subprocess.Popen(args, env=self.env(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.assertTrue(began.wait(nk.LONG_S))
        second = subprocess.Popen(args, env=self.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.assertIn("another process is downloading it", second.stderr.readline())
        go_on.set()
        paths = {p.communicate(timeout=nk.LONG_S)[0] for p in (first, second)}
        self.assertEqual((len(paths), first.returncode, second.returncode), (1, 0, 0))
        self.assertIn("if-none-match", self.server.asked()[1])
        self.assertEqual(len(self.server.asked()), 2)

    def test_shards_lie_together(self):
        for i in 1, 2, 3:
            self.server.files["/m-%05d-of-00003.gguf" % i] = DATA + b"%d" % i
        path, _ = self.good(self.server.url + "/m-00002-of-00003.gguf", data=DATA + b"1")
        self.assertEqual(os.path.basename(path), "m-00001-of-00003.gguf")
        self.assertEqual(sorted(n for n in os.listdir(os.path.dirname(path)) if n.endswith(".gguf")),
                         ["m-%05d-of-00003.gguf" % i for i in (1, 2, 3)])

    # ---- broken off ----

    def test_what_breaks_off_goes_on_where_it_was(self):
        self.script(breaks_off(100000), breaks_off(50000), says(503))
        _, said = self.good(tries=4)
        self.assertEqual(said.count("; try "), 3)
        self.assertEqual([h.get("range") for h in self.server.asked()], [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"])
        self.assertEqual(self.server.asked()[1]["if-range"], '"%s"' % hashlib.md5(DATA).hexdigest())

    def test_another_run_goes_on_too(self):
        for number in signal.SIGKILL, signal.SIGTERM:
            with self.subTest(number):
                began, over = threading.Event(), threading.Event()

                def holds(server, request):
                    server.good(request, send=100000)
                    request.close_connection = False
                    began.set()
                    over.wait()
                self.script(holds)
                p = subprocess.Popen([TOOL, self.url, "3", "1", "600"], env=self.env(), stdout=subprocess.DEVNULL,
                                     stderr=subprocess.PIPE, text=True)
                self.assertTrue(began.wait(nk.LONG_S))
                self.assertTrue(nk.wait_for(lambda: self.left().get("model.gguf.part") == 100000))
                p.send_signal(number)
                said = p.communicate(timeout=nk.LONG_S)[1]
                over.set()
                if number == signal.SIGTERM:
                    self.assertEqual(p.returncode, 1)
                    self.assertTrue(said.splitlines()[-1].startswith("interrupted: "), said)
                self.assertIn("rest of 293.0 KiB (97.7 KiB of it are here)", self.good()[1])
                self.assertEqual(self.server.asked()[-1]["range"], "bytes=100000-")
                shutil.rmtree(os.path.join(self.cache, "nakshatra"))

    def test_a_file_that_changed_meanwhile_is_begun_anew(self):
        def another_part(_, request):
            request.head(206, len(OTHER) - 100000, ("ETag", '"other"'),
                         ("Content-Range", f"bytes 100000-{len(OTHER) - 1}/{len(OTHER)}"))
            request.wfile.write(OTHER[100000:])
        for answer in [], [another_part], [says(416)]:
            with self.subTest(answer):
                self.server.files["/a/model.gguf"] = DATA
                self.script(breaks_off(100000))
                self.bad("unreachable", "broke off", tries=1)
                self.server.files["/a/model.gguf"] = OTHER
                self.script(*answer)
                _, said = self.good(data=OTHER)
                self.assertEqual("beginning anew" in said, bool(answer))
                shutil.rmtree(os.path.join(self.cache, "nakshatra"))

    def test_without_a_strong_tag_nothing_is_pieced_together(self):
        def changes(server, request):
            self.server.files["/a/model.gguf"] = OTHER[:len(DATA)]  # of the same length
            server.good(request, send=200000, etag='W/"weak"')
        self.script(breaks_off(100000, etag='W/"weak"'), changes)
        self.bad("unreachable", tries=2)
        self.good(data=OTHER[:len(DATA)])
        self.assertEqual([h for h in self.server.asked() if "range" in h], [])

    def test_a_part_without_a_tag_is_not_taken(self):
        self.script(breaks_off(100000), says(206, OTHER[100000:len(DATA)],
                                             ("Content-Range", f"bytes 100000-{len(DATA) - 1}/{len(DATA)}")))
        self.assertIn("beginning anew", self.good()[1])

    def test_a_process_that_does_not_go_on_is_not_waited_for(self):
        path, _ = self.good()
        with open(path + ".lock") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            self.assertIn("has not gone on for 5 s", self.bad("busy", path + ".lock", stall_s=1))

    def test_what_comes_to_a_stand_is_asked_for_again(self):
        over = threading.Event()
        self.addCleanup(over.set)

        def stops(server, request):
            server.good(request, send=100000)
            over.wait()
        self.script(stops)
        _, said = self.good(stall_s=1)
        self.assertIn("came to a stand", said)
        self.assertEqual(self.server.asked()[1]["range"], "bytes=100000-")

    def test_a_server_that_cannot_now_is_asked_again(self):
        self.script(says(503), says(502, b"busy"), says(429, b"", ("Retry-After", "99999999999999999")))
        _, said = self.good(tries=4)
        self.assertRegex(said, r"answers 503 .*; try 2 of 4 in 0\.001 s")
        self.assertRegex(said, r"answers 429 .*; try 4 of 4 in 0\.008 s")
        self.script(*[says(500)] * 9)
        shutil.rmtree(os.path.join(self.cache, "nakshatra"))
        self.bad("unreachable", "after 3 tries: ", "answers 500")
        self.assertEqual(len(self.server.scripts["/a/model.gguf"]), 6)

    def test_a_redirect_that_breaks_off_is_asked_for_again(self):
        self.script(says(302, b"over", ("Location", "/a/none"), length=100))
        self.assertIn("broke off", self.good()[1])

    def test_a_full_disk_keeps_what_came(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
        # Python ignores SIGXFSZ, and so does what it starts unless it is told otherwise.
        self.bad("no_space", "model.gguf.part: writing: ", "is kept", preexec_fn=limit, restore_signals=False)
        self.assertEqual(self.left()["model.gguf.part"], 100000)
        self.good()
        self.assertEqual(self.server.asked()[1]["range"], "bytes=100000-")

    # ---- refused ----

    def test_no_room_is_said_before(self):
        self.script(says(200, DATA[:1000], length=1 << 49))
        self.assertRegex(self.bad("no_space", "has 512.0 TiB; "), r"; [\d.]+ \w+ are free")
        self.assertEqual(self.left(), {})

    def test_no_model_costs_nothing(self):
        self.script(breaks_off(100000))
        self.bad("unreachable", tries=1)
        for words, *answer in (("a page of HTML (one to log in, perhaps)", says(200, b"<!DOCTYPE html>")),
                               ("a page of HTML", says(200, b"\n<html>", ("Content-Type", "text/html; charset=utf-8"))),
                               ("git's pointer", says(200, b"version https://git-lfs.github.com/spec/v1")),
                               ("begins with 1b 5b 32 4a; a GGUF file begins with 47 47 55 46", says(200, b"\x1b[2J" * 99))):
            with self.subTest(words):
                self.script(*answer)
                self.bad("not_a_model", words)
                self.assertEqual(self.left()["model.gguf.part"], 100000)
        self.good()
        self.assertEqual(self.server.asked()[-1]["range"], "bytes=100000-")
        self.server.files["/o/r/blob/main/m.gguf"] = b"<html>"
        self.bad("not_a_model", "/resolve/ in its address instead of /blob/", source=self.server.url + "/o/r/blob/main/m.gguf")

    def test_answers_that_are_none(self):
        for words, *answers in (
                ("does not say how long", says(200, DATA, length=None)),
                ("3 bytes, which are no model", says(200, b"GGU")),
                ("0 bytes, which are no model", says(200)),
                ("with a part of it (206)", says(206, DATA[5:], ("Content-Range", f"bytes 5-{len(DATA) - 1}/{len(DATA)}"))),
                ("answers 416 (no such range)", says(416)), ("answers 304", says(304, length=None)),
                ("answers 204", says(204, length=None)), ("does not say where", says(302)),
                ("redirects to http://127.0.0.1:1/x; only https://", redirects("http://127.0.0.1:1/x")),
                ("redirects to file:///etc/passwd", redirects("file:///etc/passwd")),
                ("redirects to https://127.0.0.1/x", redirects("https://user:secret@127.0.0.1/x")),
                ("answers 302, which is no answer", says(302, bytes(1 << 20), ("Location", "/a/model.gguf"))),
                ("redirected 8 times", *[redirects("/a/model.gguf")] * 9)):
            with self.subTest(words):
                self.script(*answers)
                self.assertNotIn("secret", self.bad("wrong_answer", words))
                self.assertEqual(self.left(), {})
        self.script(says(200, DATA, ("ETag", '"e"'), length=len(DATA) + 9))
        self.bad("unreachable", "broke off", tries=1)
        self.script(says(206, DATA[5:], ("ETag", '"e"'), ("Content-Range", f"bytes 5-{len(DATA) + 8}/{len(DATA) + 9}")))
        self.bad("wrong_answer", f"asked for the bytes from {len(DATA)} on, the server sends those from 5 to")

    def test_not_there_and_not_allowed(self):
        self.bad("not_there", "/a/none.gguf is not there (the server answers 404)", source=self.server.url + "/a/none.gguf")
        for status in 401, 403:
            self.script(says(status))
            self.bad("refused", f"answers {status}", "download the file by hand")

    def test_who_it_is_must_be_certain(self):
        self.bad("bad_certificate", "SSL_CERT_FILE", env=self.env(SSL_CERT_FILE=""))
        self.bad("bad_certificate", "SSL_CERT_FILE names /none, which cannot be read", env=self.env(SSL_CERT_FILE="/none"))
        self.good(env=self.env(SSL_CERT_FILE="", CURL_CA_BUNDLE=CERTIFICATE))
        self.assertEqual(len(self.server.asked()), 1)  # the others sent nothing
        self.bad("unreachable", "its host's name is not known", source="https://host.invalid/m.gguf")

    def test_sources_that_are_none(self):
        for source in ("https://user:secret@127.0.0.1/m.gguf", "http://example.com/m.gguf", "hf:org/repo", "hf:org/../m.gguf",
                       "https://h/", "https://h/\x1b[2J", "https://user:sec/ret@h/m.gguf", "https://h/m-00004-of-00003.gguf"):
            with self.subTest(source):
                said = self.bad("bad_source", source=source)
                self.assertNotIn("secret", said)
                self.assertNotIn("\x1b", said)
        plain = Server(tls=False)
        self.addCleanup(plain.close)
        plain.files["/m.gguf"] = DATA
        self.good(plain.url + "/m.gguf")

    # ---- the hub ----

    def hub(self, token="hf_abc", sha=SHA, size=len(DATA), n=1):
        """self.server as a hub, which redirects to another host. Returns that and what the program needs."""
        store = Server()
        self.addCleanup(store.close)
        store.files["/store/blob?sig=x"] = DATA
        linked = [("X-Linked-ETag", f'"{sha}"')] + ([("X-Linked-Size", str(size))] if size is not None else [])
        self.script(*[redirects(store.url + "/store/blob?sig=x", *linked)] * n, path="/org/repo/resolve/main/q/m%20x.gguf")
        return store, self.env(HF_ENDPOINT=self.server.url + "/", HF_TOKEN=token)

    def test_the_hubs_token_goes_to_the_hub_alone(self):
        store, env = self.hub(token=" hf_abc\n", n=2)
        path, _ = self.good("hf:org/repo/q/m x.gguf", env=env)
        self.assertEqual(os.path.basename(path), "m_x.gguf")
        self.assertEqual(self.server.asked()[0]["authorization"], "Bearer hf_abc")
        self.assertNotIn("authorization", store.asked()[0])
        # It is the same still: the hub's tag says so, and the store is not asked.
        self.assertEqual(self.good("hf:org/repo/q/m x.gguf", env=env), (path, ""))
        self.assertEqual((len(self.server.asked()), len(store.asked())), (2, 1))
        # Another host than the hub never sees it, though it is the first one.
        store.files["/m.gguf"] = DATA
        self.good(store.url + "/m.gguf", env=env)
        self.assertNotIn("authorization", store.asked()[-1])
        self.bad("bad_token", "HF_TOKEN", source="hf:o/r/m.gguf", env=self.env(HF_TOKEN="a\r\nX: y"))

    def test_shards_are_of_one_commit(self):
        a, b = "a" * 40, "b" * 40

        def of(commit, data):
            return lambda _, request: request.head(200, len(data), ("X-Repo-Commit", commit), ("ETag", f'"{commit}"')) or request.wfile.write(data)

        def at(revision, i, *answers):
            self.script(*answers, path="/org/repo/resolve/%s/m-%05d-of-00003.gguf" % (revision, i))

        def got():
            begin = "/org/repo/resolve/"
            return [path[len(begin):].split("/")[0][:4] for path, _ in self.server.requests]
        env = self.env(HF_ENDPOINT=self.server.url)
        # The branch moves after the first answer: the others are asked for by the commit.
        at("main", 3, of(a, DATA + b"3"))
        for i in 1, 2:
            at("main", i, of(b, OTHER))
            at(a, i, of(a, DATA + b"%d" % i))
        path, _ = self.good("hf:org/repo/m-00001-of-00003.gguf", data=DATA + b"1", env=env)
        self.assertEqual(got(), ["main", "aaaa", "aaaa"])
        # It has moved, and breaks off between two: what is here of the old one is not put beside the new.
        at("main", 3, of(b, OTHER + b"3"))
        at(b, 2, says(404))
        self.bad("mixed_revisions", "shard 2 of 3 is of commit " + a, "shard 3 of commit " + b,
                 source="hf:org/repo/m-00001-of-00003.gguf", env=env)
        # It is there again: all of the new one.
        at("main", 3, of(b, OTHER + b"3"))
        for i in 1, 2:
            at(b, i, of(b, OTHER + b"%d" % i))
        self.assertEqual(self.good("hf:org/repo/m-00001-of-00003.gguf", data=OTHER + b"1", env=env)[0], path)
        # A hub that answers with another commit than the one it is asked for.
        shutil.rmtree(os.path.join(self.cache, "nakshatra"))
        at("main", 3, of(b, OTHER + b"3"))
        at(b, 2, of(a, DATA + b"2"))
        self.bad("mixed_revisions", "shard 2 of 3 is of commit " + a, source="hf:org/repo/m-00001-of-00003.gguf", env=env)

    def test_through_a_proxy_the_token_stays_within_tls(self):
        asked = []

        class Proxy(socketserver.StreamRequestHandler):
            def handle(self):
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += self.rfile.readline()
                asked.append(head)
                host, port = head.split()[1].decode().split(":")
                with socket.create_connection((host, int(port))) as there:
                    self.connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "proxy"\r\nX-Linked-ETag: "proxy"\r\n\r\n')
                    while True:
                        for s in select.select([there, self.connection], [], [])[0]:
                            data = s.recv(65536)
                            if not data:
                                return
                            (self.connection if s is there else there).sendall(data)
        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as proxy:
            proxy.daemon_threads = True
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
            store, env = self.hub()
            env.update(no_proxy="", https_proxy="http://127.0.0.1:%d" % proxy.server_address[1])
            self.good("hf:org/repo/q/m x.gguf", env=env)
            proxy.shutdown()
        self.assertEqual([head.split()[:2] for head in asked],
                         [[b"CONNECT", b"127.0.0.1:%d" % s.port] for s in (self.server, store)])
        self.assertNotIn(b"hf_abc", b"".join(asked))
        self.assertEqual(self.server.asked()[0]["authorization"], "Bearer hf_abc")

    def test_the_hubs_sha256_is_compared(self):
        store, env = self.hub(sha=hashlib.sha256(b"").hexdigest())
        self.bad("wrong_sha256", SHA, "removed", source="hf:org/repo/q/m x.gguf", env=env)
        self.assertEqual(self.left(), {})
        _, env = self.hub(size=len(DATA) - 1)
        self.bad("wrong_answer", "the hub says that it has 300003 bytes, and what is sent 300004",
                 source="hf:org/repo/q/m x.gguf", env=env)

    def test_the_sha256_covers_what_came_earlier(self):
        for damaged in False, True:
            with self.subTest(damaged=damaged):
                store, env = self.hub(n=2)
                store.scripts["/store/blob?sig=x"] = [breaks_off(100000, etag='W/"weak"')]
                self.bad("unreachable", source="hf:org/repo/q/m x.gguf", env=env, tries=1)
                part = next(os.path.join(folder, "m_x.gguf.part") for folder, _, names in os.walk(self.cache)
                            if "m_x.gguf.part" in names)
                if damaged:
                    with open(part, "r+b") as f:
                        f.seek(50000)
                        f.write(b"damaged")
                    self.bad("wrong_sha256", source="hf:org/repo/q/m x.gguf", env=env)
                    self.assertEqual(self.left(), {})
                else:
                    self.good("hf:org/repo/q/m x.gguf", env=env)
                    shutil.rmtree(os.path.join(self.cache, "nakshatra"))
                self.assertEqual(store.asked()[1]["range"], "bytes=100000-")

    def test_the_hub_has_another_file_by_now(self):
        store, env = self.hub()
        store.scripts["/store/blob?sig=x"] = [breaks_off(100000)]
        self.bad("unreachable", source="hf:org/repo/q/m x.gguf", env=env, tries=1)
        store, env = self.hub(sha=hashlib.sha256(OTHER).hexdigest(), size=None)
        store.files["/store/blob?sig=x"] = OTHER
        self.good("hf:org/repo/q/m x.gguf", data=OTHER, env=env)
        self.assertNotIn("range", store.asked()[0])

    def test_the_hub_refuses(self):
        env = self.env(HF_ENDPOINT=self.server.url)
        path = "/o/r/resolve/refs%2Fpr%2F1/m.gguf"
        self.script(says(401), says(403), path=path)
        self.bad("refused", "private or gated: then set HF_TOKEN", source="hf:o/r/m.gguf@refs/pr/1", env=env)
        self.bad("refused", "were the model's terms accepted", source="hf:o/r/m.gguf@refs/pr/1", env=dict(env, HF_TOKEN="hf_x"))
        self.bad("not_there", "look for a slip in its ORG, REPO, FILE or REVISION", source="hf:o/r/m.gguf@refs/pr/1", env=env)

    # ---- the commands ----

    def test_the_commands_take_sources(self):
        with open(nk.STORIES[1], "rb") as f:
            self.server.files["/o/r/resolve/main/stories.gguf"] = f.read()
        env = self.env(HF_ENDPOINT=self.server.url)
        args = ("--prompt", "Once", "-n", "4", "--temp", "0", "--workers", "1", "--threads", "1")
        done = nk.run("up", "hf:o/r/stories.gguf", *args, env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("nakshatra: " + self.server.url + "/o/r/resolve/main/stories.gguf: downloading ", done.stderr)
        self.assertEqual(done.stdout, nk.out("up", nk.STORIES[1], *args))
        self.assertNotIn("range", self.server.asked()[0])
        shown = json.loads(nk.run("inspect", self.server.url + "/o/r/resolve/main/stories.gguf", "--json", env=env).stdout)
        self.assertEqual(shown["n_layer"], 5)
        self.assertEqual(len([1 for h in self.server.asked() if "if-none-match" not in h]), 1)
        done = nk.run("split", "hf:o/r", "--into", "2", "--out", self.cache, env=env)
        self.assertEqual(done.returncode, 2)
        self.assertIn("hf:o/r: hf:ORG/REPO/FILE.gguf or", done.stderr)


if __name__ == "__main__":
    unittest.main()

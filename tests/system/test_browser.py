"""The page at / in a real browser: tests/browser/*.test.mjs under node's own runner, with Debian's Chromium.

This starts the workers and gateways that they need and does what they ask for (kill a worker, start it again, end a gateway)."""
import contextlib
import hashlib
import http.server
import os
import shutil
import subprocess
import threading
import unittest

import nk
from gateway import Gateway, HERMES
from test_clients import install

SOURCE = os.path.join(os.path.dirname(nk.HERE), "browser")
WEB = os.path.join(nk.SOURCE, "web")
KEY = "a-key-for-the-page"


@contextlib.contextmanager
def control(actions):
    """An HTTP server on loopback: POST /NAME runs an action. Yields its address."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            try:
                actions[self.path.strip("/")]()
                status, body = 200, b""
            except Exception as e:  # the test there fails and shows it
                status, body = 500, repr(e).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def install_tests():
    """The tests with their packages, and the page's modules beside them in web/, where a package.json says what they are."""
    folder = install(SOURCE, os.path.join(nk.BUILD, "tests", "browser"))
    copy = os.path.join(folder, "web")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(WEB, copy)
    return folder


def tests_in(folder, end):
    return sorted(name for name in os.listdir(folder) if name.endswith(end))


def run_tests(case, folder, names, env, gateway=None):
    done = subprocess.run(["node", "--test", *names], cwd=folder, capture_output=True, text=True, timeout=2 * nk.LONG_S, env=env)
    case.assertEqual(done.returncode, 0, done.stdout[-20000:] + done.stderr[-4000:] + (gateway.log()[-4000:] if gateway else ""))
    case.assertRegex(done.stdout, r"(?m)^(# |\u2139 )pass [1-9]\d?$")


class Browser(unittest.TestCase):
    def test_vendor(self):
        """The files of others are those that their packages have (web/vendor/README.md)."""
        folder = os.path.join(WEB, "vendor")
        with open(os.path.join(folder, "SHA256SUMS")) as f:
            sums = {name: value for value, name in (line.split() for line in f)}
        found = {}
        for place, _, names in os.walk(folder):
            for name in names:
                if name.endswith((".js", ".mjs")):
                    path = os.path.join(place, name)
                    with open(path, "rb") as f:
                        found[os.path.relpath(path, folder)] = hashlib.sha256(f.read()).hexdigest()
        self.assertEqual(found, sums)

    def test_modules(self):
        """The modules that need no page: tests/browser/*.modules.mjs."""
        folder = install_tests()
        run_tests(self, folder, tests_in(folder, ".modules.mjs"), dict(os.environ))

    def test_page(self):
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        if not chromium:
            nk.missing("chromium is not here; make deps installs it")
        folder = install_tests()
        keys = os.path.join(folder, "keys")
        with open(keys, "w") as f:
            f.write(KEY + "\n")
        os.chmod(keys, 0o600)
        with nk.Chain(nk.KJV, "0-3,3-8", "--ctx", "32768") as chain, \
                Gateway(chain.file, "--chat-template", HERMES, "--waiting-ms", "2000", "--hold-ms", "3000") as chat, \
                Gateway(chain.file) as plain, \
                Gateway(chain.file, "--chat-template", HERMES, "--api-key-file", keys) as keyed, \
                Gateway(chain.file, "--chat-template", HERMES, "--running", "1", "--waiting", "1", "--waiting-ms", "100",
                        "--output-kib", "65536") as small, \
                Gateway(chain.file, "--chat-template", HERMES) as going:
            for gateway in (chat, plain, keyed, small, going):
                gateway.wait_ready()
            port = chain.workers[1].port
            actions = {"kill": chain.workers[1].kill, "start": lambda: chain.start(1, listen=f"127.0.0.1:{port}"), "end": lambda: (going.terminate(), going.process.wait(60 * nk.SLOW))}
            with control(actions) as url:
                env = dict(os.environ, NK_CHAT=chat.url, NK_PLAIN=plain.url, NK_KEYED=keyed.url, NK_SMALL=small.url, NK_GOING=going.url,
                           NK_CONTROL=url, NK_KEY=KEY, NK_CHROMIUM=chromium, NK_SLOW=str(nk.SLOW))
                for name in tests_in(folder, ".test.mjs"):  # one after the other: they end workers, and count who listens
                    with self.subTest(name):
                        run_tests(self, folder, [name], env, chat)
            chain.assert_idle()


if __name__ == "__main__":
    unittest.main()

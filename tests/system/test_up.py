"""nakshatra up: the whole thing in one command; what it starts ends with it, however it ends."""
import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.request

import nk
from gateway import Connection


def refuses(port):
    """Nobody listens there any more."""
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


class Up(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)
        # A cache and a run-time folder of its own: what is left there is seen.
        self.env = dict(nk.env(), XDG_RUNTIME_DIR=self.dir)

    def up(self, *args, **more):
        return nk.run("up", nk.KJV, *args, env=self.env, **more)

    def start(self, *args, **more):
        return nk.Background("up", nk.KJV, *args, env=self.env, **more)

    def serve(self, *args):
        """With one thread each: as many as there are cores would wait for each other by spinning, most of all under a sanitizer."""
        return self.start("--listen", "127.0.0.1:0", "--threads", "1", *args)

    def wait_up(self, process, n):
        """Until it has said where it listens; returns the cluster file and the workers' pids."""
        nk.wait_for(lambda: b"listening on http" in process.stdout or process.process.poll() is not None, 60)
        self.assertIsNone(process.process.poll(), process.stderr)
        file = [line for line in process.stdout.decode().splitlines() if line.startswith("cluster file: ")][0][14:]
        pids = nk.children_of(process.process.pid)
        self.assertEqual(len(pids), n)
        return file, pids

    def assert_gone(self, pids):
        self.assertTrue(nk.wait_for(lambda: not any(map(nk.alive, pids)), 30), pids)

    @nk.sanitized()
    def test_up__prints_the_golden_text_and_nothing_else(self):
        golden = nk.golden("kjv-tiny")
        for k in (1, 2, 3):
            done = self.up("--workers", k, "--prompt", golden["prompt_text"], "-n", "64", "--temp", "0")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(golden["prompt_text"] + done.stdout, golden["text"])
            self.assertEqual(done.stderr, "")
            self.assertEqual(os.listdir(self.dir), [])

    @nk.sanitized()
    def test_up__takes_layers_and_the_prompt_from_standard_input(self):
        golden = nk.golden("kjv-tiny")
        done = self.up("--layers", "0-1,1-7,7-8", "--file", "-", "-n", "64", "--temp", "0", "--json",
                       input=golden["prompt_text"] + "\n")
        got = json.loads(done.stdout)
        self.assertEqual(golden["prompt_text"] + got["text"], golden["text"])
        self.assertEqual([s["worker"] for s in got["stages"]], ["w0", "w1", "w2"])

    @nk.sanitized("tsan")
    def test_up__stays_up_for_others_and_ends_with_ctrl_c(self):
        with self.start("--listen", "127.0.0.1:0", "--workers", "2", "--ctx", "256", "--sequences", "3") as up:
            file, pids = self.wait_up(up, 2)
            report = json.loads(nk.out("check", "--cluster", file, "--json", "--timeout-ms", 5000 * nk.SLOW))
            self.assertTrue(report["ok"])
            self.assertEqual([(w["n_ctx"], w["n_seq_max"]) for w in report["workers"]], [(256, 3)] * 2)
            cores = len(os.sched_getaffinity(0))  # all of them for each: they take turns, and spinning is bounded
            self.assertEqual([w["n_threads"] for w in report["workers"]], [cores] * 2)
            for pid in pids:
                with open(f"/proc/{pid}/cmdline") as f:
                    self.assertIn("--shared-cores", f.read().split("\0"))
                with open(f"/proc/{pid}/environ") as f:
                    environment = f.read().split("\0")
                self.assertIn("GOMP_SPINCOUNT=20000", environment)
                self.assertIn("GGML_NO_BACKTRACE=1", environment)  # a worker that aborts is not debugged
            self.assertGreater(len(nk.out("run", "--cluster", file, "--prompt", "In", "-n", "9")), 0)
            up.process.send_signal(signal.SIGINT)
            self.assertEqual(up.wait(30), 0)
            self.assert_gone(pids)
        self.assertEqual(os.listdir(self.dir), [])

    @nk.sanitized("tsan")
    def test_up__without_a_prompt_it_serves(self):
        golden = nk.golden("kjv-tiny")
        with self.serve("--workers", "2") as up:
            _, pids = self.wait_up(up, 2)
            url = up.stdout.decode().split("listening on ")[1].split()[0]
            request = urllib.request.Request(url + "/v1/completions", method="POST", headers={"Content-Type": "application/json"},
                                             data=json.dumps({"model": "kjv-tiny", "prompt": golden["prompt_text"],
                                                              "max_tokens": 64, "temperature": 0}).encode())
            with urllib.request.urlopen(request, timeout=60 * nk.SLOW) as reply:
                text = json.load(reply)["choices"][0]["text"]
            self.assertEqual(golden["prompt_text"] + text, golden["text"])
            up.process.send_signal(signal.SIGTERM)
            self.assertEqual(up.wait(30), 0, up.stderr)
            self.assert_gone(pids)

    @nk.sanitized("tsan")
    def test_up__ctrl_c_of_a_terminal_lets_streams_end(self):
        """A terminal's Ctrl-C goes to the whole process group; the workers must outlive the streams."""
        for n_signals in (1, 2):
            with self.serve("--workers", "2", "--ctx", "16384", "--drain-ms", "3600000") as up:
                _, pids = self.wait_up(up, 2)
                port = int(up.stdout.decode().split("listening on ")[1].split()[0].rsplit(":", 1)[1])
                gateway = Connection(port)
                gateway.send("POST", "/v1/completions", {"model": "kjv-tiny", "prompt": "In", "ignore_eos": True, "stream": True,
                                                            "max_tokens": 400 if n_signals == 1 else 15000})
                self.assertEqual(gateway.head()[0], 200)
                gateway.chunk()
                for _ in range(n_signals):
                    os.killpg(up.process.pid, signal.SIGINT)
                    self.assertTrue(nk.wait_for(lambda: refuses(port)))  # or the second one would be merged with it
                body = b""
                with contextlib.suppress(EOFError, ConnectionResetError):
                    while data := gateway.chunk():
                        body += data
                gateway.close()
                if n_signals == 1:
                    self.assertTrue(body.endswith(b"data: [DONE]\n\n"), body[-300:] + up.stderr)
                    self.assertGreater(body.count(b"data: "), 300)
                self.assertEqual(up.wait(30), 0 if n_signals == 1 else 130, up.stderr)
                self.assert_gone(pids)

    @nk.sanitized("asan")
    def test_up__what_the_gateway_would_refuse_is_named_before_anything_is_cut(self):
        cache = os.path.join(self.dir, "cache")
        env = dict(self.env, XDG_CACHE_HOME=cache)
        with socket.create_server(("127.0.0.1", 0)) as s:
            address = "127.0.0.1:%d" % s.getsockname()[1]
            for options, code, words in ((("--listen", address), 1, (address, "in use")), (("--listen", "0.0.0.0:0"), 1, ("--insecure",)),
                                         (("--listen", "nowhere"), 2, ("HOST:PORT",)), (("--api-key-file", "/nonexistent"), 2, ("/nonexistent",)),
                                         (("--chat-template", "/nonexistent"), 2, ("/nonexistent",))):
                done = nk.run("up", nk.KJV, *options, env=env)
                self.assertEqual((done.returncode, done.stdout), (code, ""), done.stderr)
                for word in words:
                    self.assertIn(word, done.stderr)
        self.assertEqual(os.listdir(self.dir), [])

    @nk.sanitized("asan")
    def test_up__what_the_memory_has_no_place_for_is_refused_before_anything_is_cut(self):
        cache = os.path.join(self.dir, "cache")
        done = nk.run("up", nk.KJV, "--ctx", str(1 << 30), "--prompt", "In", env=dict(self.env, XDG_CACHE_HOME=cache))
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        self.assertRegex(done.stderr, r"TiB of memory are needed \(weights .*, 1073741824 tokens of context .*\), .* are free on CPU")
        self.assertEqual(os.listdir(self.dir), [])

    @nk.sanitized("tsan")
    def test_up__ctrl_c_in_a_generation_ends_all(self):
        with self.start("--ctx", "8000", "--prompt", "In", "-n", "7000", "--temp", "0") as up:
            self.assertTrue(nk.wait_for(lambda: up.stdout, step=0.001))
            pids = nk.children_of(up.process.pid)
            up.process.send_signal(signal.SIGINT)
            self.assertEqual(up.wait(30), 130)
            self.assert_gone(pids)
        self.assertEqual(os.listdir(self.dir), [])

    @nk.sanitized("tsan")
    def test_up__ctrl_c_while_the_workers_start_ends_all(self):
        for delay in (0.02, 0.1, 0.2):
            with self.start("--workers", "4", "--ctx", "8000", "--prompt", "In", "-n", "7000", "--temp", "0") as up:
                time.sleep(delay)
                pids = nk.children_of(up.process.pid)
                up.process.send_signal(signal.SIGINT)
                self.assertIn(up.wait(30), (130, -signal.SIGINT))
                self.assert_gone(pids)

    @nk.sanitized()
    def test_up__killed_it_takes_its_workers_along_and_the_next_one_removes_its_folder(self):
        with self.serve() as lives:
            file, _ = self.wait_up(lives, 2)
            with self.serve("--workers", "3") as up:
                _, pids = self.wait_up(up, 3)
                up.process.kill()
                up.wait(30)
                self.assert_gone(pids)
            self.assertEqual(len(os.listdir(self.dir)), 2)
            done = self.up("--workers", "1", "--prompt", "In", "-n", "1")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(os.listdir(self.dir), [os.path.basename(os.path.dirname(file))])
            self.assertTrue(os.path.exists(file))

    @nk.sanitized()
    def test_up__a_reader_that_goes_away_ends_all(self):
        read, write = os.pipe()
        with self.start("--ctx", "8000", "--prompt", "In", "-n", "7000", "--temp", "0", stdout=write) as up:
            os.close(write)
            self.assertTrue(os.read(read, 1))
            pids = nk.children_of(up.process.pid)
            os.close(read)
            self.assertEqual(up.wait(30), -signal.SIGPIPE)
            self.assert_gone(pids)
        self.assertEqual(os.listdir(self.dir), [])

    def worker(self, up, i):
        """The pid of worker wI, or None while it is none."""
        for pid in nk.children_of(up.process.pid):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as f:
                if f"w{i}" in f.read().split("\0"):
                    return pid
        return None

    @nk.sanitized("tsan")
    def test_up__a_worker_that_dies_is_started_again_on_its_port(self):
        golden = nk.golden("kjv-tiny")
        self.env["NK_LOG"] = "info"
        with self.serve("--workers", "2") as up:
            file, pids = self.wait_up(up, 2)
            for i in (0, 1):
                with open(file) as f:
                    before = f.read()
                os.kill(self.worker(up, i), signal.SIGKILL)
                self.assertTrue(nk.wait_for(lambda i=i: b"event=worker_ready worker=w%d" % i in up.stderr), up.stderr)
                self.assertRegex(up.stderr, rb'event=worker_ended worker=w%d how="was killed by signal 9' % i)
                with open(file) as f:
                    self.assertEqual(f.read(), before)
            text = nk.out("run", "--cluster", file, "--prompt", golden["prompt_text"], "-n", "64", "--temp", "0")
            self.assertEqual(golden["prompt_text"] + text, golden["text"])
            self.assertEqual(len(nk.children_of(up.process.pid)), 2)
            pids += nk.children_of(up.process.pid)
            up.process.send_signal(signal.SIGTERM)
            self.assertEqual(up.wait(30), 0, up.stderr)
            self.assert_gone(pids)
        self.assertEqual(os.listdir(self.dir), [])

    @nk.sanitized()  # system.recovery has its like
    def test_up__a_worker_that_dies_while_it_drains_is_started_again_and_answers_end_whole(self):
        self.env["NK_LOG"] = "info"
        with self.serve("--workers", "2", "--ctx", "4096", "--drain-ms", "3600000", "--hold-ms", "3600000") as up:
            _, pids = self.wait_up(up, 2)
            port = int(up.stdout.decode().split("listening on ")[1].split()[0].rsplit(":", 1)[1])
            gateway = Connection(port)
            gateway.send("POST", "/v1/completions", {"model": "kjv-tiny", "prompt": "In", "ignore_eos": True, "stream": True,
                                                        "max_tokens": 1500, "temperature": 0})
            self.assertEqual(gateway.head()[0], 200)
            body = gateway.chunk()
            os.kill(pids[0], signal.SIGSTOP)  # the answer cannot end before it dies
            up.process.send_signal(signal.SIGTERM)
            self.assertTrue(nk.wait_for(lambda: refuses(port)))
            os.kill(pids[0], signal.SIGKILL)
            with contextlib.suppress(EOFError, ConnectionResetError):
                while data := gateway.chunk():
                    body += data
            gateway.close()
            self.assertTrue(body.endswith(b"data: [DONE]\n\n"), body[-300:] + up.stderr)
            self.assertNotIn(b'"error"', body[-3000:])
            self.assertGreaterEqual(body.count(b"data: "), 1500)
            self.assertEqual(up.wait(30), 0, up.stderr)
            self.assertIn(b"event=worker_ready", up.stderr)
            self.assertIn(b"event=resumed", up.stderr)
            self.assert_gone(pids)
        self.assertEqual(os.listdir(self.dir), [])

    @nk.sanitized("asan")
    def test_up__a_worker_that_cannot_be_kept_alive_ends_all(self):
        with self.serve("--workers", "2") as up:
            _, pids = self.wait_up(up, 2)
            killed = set()

            def kill_again():
                pid = self.worker(up, 1)
                if pid and pid not in killed and up.process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
                return up.process.poll() is not None

            self.assertTrue(nk.wait_for(kill_again, 120), up.stderr)
            self.assertEqual(up.wait(30), 1)
            self.assertRegex(up.stderr, rb"worker w1 was killed by signal 9.*, the 10th time in a row; it is not started again")
            self.assertEqual(len(killed), 10)
            self.assert_gone(set(pids) | killed)
        self.assertEqual(os.listdir(self.dir), [])

    @nk.sanitized("tsan")
    def test_up__a_signal_while_a_worker_is_started_again_ends_all(self):
        with self.serve("--workers", "2") as up:
            _, pids = self.wait_up(up, 2)
            os.kill(self.worker(up, 1), signal.SIGKILL)
            self.assertTrue(nk.wait_for(lambda: b"event=worker_ended worker=w1" in up.stderr, step=0.001), up.stderr)
            up.process.send_signal(signal.SIGTERM)
            pids += nk.children_of(up.process.pid)
            self.assertEqual(up.wait(30), 0, up.stderr)
            self.assert_gone(pids)
        self.assertEqual(os.listdir(self.dir), [])

    @nk.sanitized()
    def test_up__cuts_once(self):
        env = dict(self.env, XDG_CACHE_HOME=os.path.join(self.dir, "cache"))
        seen = []
        for _ in range(2):
            done = nk.run("up", nk.KJV, "--prompt", "In", "-n", "2", env=env)
            self.assertEqual(done.returncode, 0, done.stderr)
            files = {}
            for folder, _, names in os.walk(os.path.join(self.dir, "cache")):
                for name in names:
                    if name.endswith(".gguf"):
                        st = os.stat(os.path.join(folder, name))
                        files[name] = (st.st_ino, st.st_mtime_ns)
            seen.append(files)
        self.assertGreaterEqual(len(seen[0]), 3)
        self.assertEqual(seen[0], seen[1])

    @nk.sanitized("asan")
    def test_up__cuts_a_damaged_slice_or_vocabulary_again(self):
        cache = os.path.join(self.dir, "cache")
        env = dict(self.env, XDG_CACHE_HOME=cache)
        up = "up", nk.KJV, "--threads", "1", "--prompt", "In the beginning", "-n", "8", "--temp", "0"
        right = nk.out(*up, env=env)
        for ending, sentence in ((".004-008.gguf", "blk."), (".vocab.gguf", "header")):
            path, = (os.path.join(folder, name) for folder, _, names in os.walk(cache) for name in names
                     if name.endswith(ending))
            before = nk.sha256(path)
            with open(path, "r+b") as f:
                f.seek(3000 if "vocab" in ending else os.path.getsize(path) * 2 // 3)
                f.write(b"X")
            done = nk.run(*up, env=env)
            self.assertEqual((done.returncode, done.stdout), (0, right), done.stderr)
            self.assertRegex(done.stderr, f"event=cut_again .*{ending} is damaged.*{sentence}")
            self.assertEqual(nk.sha256(path), before)

    @nk.sanitized("asan")
    def test_up__a_cache_on_a_full_disk_is_said_and_no_half_slice_is_left(self):
        if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
            nk.missing("mounting needs root (unshare -m)")
        cache = os.path.join(self.dir, "cache")
        os.mkdir(cache)
        script = "mount -t tmpfs -o size=1m none '%s' && '%s' up '%s' --prompt In -n 2; r=$?; find '%s' -type f; exit $r"
        done = subprocess.run(["unshare", "-m", "sh", "-c", script % (cache, nk.NAKSHATRA, nk.KJV, cache)],
                              env=dict(self.env, XDG_CACHE_HOME=cache), stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=120 * nk.SLOW)
        self.assertEqual(done.returncode, 1, done)
        self.assertNotRegex(done.stdout, r"\.tmp|\d{3}-\d{3}\.gguf")
        self.assertRegex(done.stderr, r"need \d\.\d MiB, \d+\.\d KiB are free there")  # before the first is cut
        self.assertIn(cache, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    @nk.sanitized("asan")
    def test_up__without_a_home_it_says_what_to_set_and_needs_only_that(self):
        env = {k: v for k, v in self.env.items() if k not in ("HOME", "XDG_CACHE_HOME")}
        done = nk.run("up", nk.KJV, "--prompt", "In", "-n", "2", env=env)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("XDG_CACHE_HOME", done.stderr)
        self.assertEqual((done.stdout, done.stderr.count("\n")), ("", 1), done.stderr)
        done = nk.run("up", nk.KJV, "--prompt", "In", "-n", "2", env=dict(env, XDG_CACHE_HOME=os.path.join(self.dir, "c")))
        self.assertEqual(done.returncode, 0, done.stderr)

    @nk.sanitized("asan")
    def test_up__wrong_arguments_are_sentences_and_exit_code_2(self):
        for args, sentence in [
            ([], "an argument is missing"),
            (["/nonexistent.gguf", "--prompt", "x"], "/nonexistent.gguf"),
            ([__file__, "--prompt", "x"], "test_up.py"),
            ([nk.KJV, "--workers", "0"], "outside 1 to 64"),
            ([nk.KJV, "--workers", "9", "--prompt", "x"], "9|layers"),
            ([nk.KJV, "--layers", "0-4,5-8", "--prompt", "x"], "0-4,5-8|layers 4-5"),
            ([nk.KJV, "--layers", "0-4", "--prompt", "x"], "8"),
            ([nk.KJV, "--dtype", "f64", "--prompt", "x"], "'f64' is not known"),
            ([nk.KJV, "--cache-type-k", "q1", "--prompt", "x"], "--cache-type-k: 'q1' is no type"),
            ([nk.KJV, "--device", "Quantum0", "--prompt", "x"], "Quantum0"),
            ([nk.KJV, "--prompt", "x", "--file", "y"], "both given"),
            ([nk.KJV, "--prompt", "x", "--top-p", "2"], "outside 0 to 1"),
            ([nk.KJV, "--prompt", "x", "--mirostat", "5"], "outside 0 to 2"),
        ]:
            with self.subTest(args=args):
                done = nk.run("up", *args, env=self.env)
                self.assertNotEqual(done.returncode, 0, done.stdout)
                self.assertRegex(done.stderr, sentence)
                self.assertEqual(done.stdout, "")
                if "--device" not in args:
                    self.assertEqual(done.returncode, 2, done.stderr)
                    self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertEqual(os.listdir(self.dir), [])


@nk.sanitized()  # what the demo shows is the plain build
class Demo(unittest.TestCase):
    """make demo: the text over two workers, held against llama.cpp's own program."""

    def demo(self, *args, **environment):
        return subprocess.run([os.path.join(nk.SOURCE, "scripts", "demo"), *args], capture_output=True, text=True,
                              timeout=120 * nk.SLOW, env=dict(nk.env(), NK_BUILD=nk.BUILD, **environment),
                              stdin=subprocess.DEVNULL)

    def test_demo__says_that_nothing_changed(self):
        done = self.demo()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn(nk.golden("kjv-tiny")["text"], done.stdout)
        self.assertRegex(done.stdout, "Equal to the text of the whole model|exact")

    def test_demo__says_so_when_the_text_is_another_one(self):
        fake = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, fake)
        with open(os.path.join(fake, "nakshatra"), "w") as f:
            f.write("#!/bin/sh\n[ \"$1\" = up ] && printf ' something else'\n")
        os.chmod(f.name, 0o755)
        done = subprocess.run([os.path.join(nk.SOURCE, "scripts", "demo")], capture_output=True, text=True,
                              env=dict(nk.env(), NK_BUILD=fake), stdin=subprocess.DEVNULL, timeout=120 * nk.SLOW)
        self.assertNotIn("Equal", done.stdout)
        self.assertIn("DIFFERENT", done.stdout)
        self.assertEqual(done.returncode, 1)


if __name__ == "__main__":
    unittest.main()

"""What the system tests share: real workers on free ports, cluster files, nakshatra's commands, a gRPC client.

    with nk.Chain(nk.KJV, "0-4,4-8") as chain:          # two worker processes and a cluster.yaml
        text = nk.out("run", "--cluster", chain.file, "--prompt", "In the", "-n", "8", "--temp", "0")
        chain.assert_idle()                              # no sessions, streams or jobs are left on any worker

Everything a test starts ends with it: leaving the `with` block stops the workers (SIGTERM, and it is an error if one does
not end with exit code 0), and a worker that outlives the test process by accident sees its --parent-fd close.
A Chain's slices are cached in BUILD/tests/cache, so only the first test pays for cutting.
"""
import contextlib
import hashlib
import importlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.environ.get("NK_SOURCE", os.path.dirname(os.path.dirname(HERE)))
BUILD = os.environ.get("NK_BUILD", os.path.join(SOURCE, "build"))
MODELS = os.environ.get("NK_MODELS", os.path.join(SOURCE, "models"))
NAKSHATRA = os.path.join(BUILD, "nakshatra")
BENCH = os.path.join(BUILD, "nakshatra-bench")
KJV = os.path.join(MODELS, "kjv-tiny.gguf")
# Five layers; F32 and Q8_0.
STORIES = [os.path.join(os.path.dirname(HERE), "data", f"stories260K-{form}.gguf") for form in ("f32", "q8_0")]
GOLDEN = os.path.join(os.path.dirname(HERE), "golden")
SANITIZED = bool(os.environ.get("NK_SANITIZE"))
# Every limit of a test is multiplied by this, so that each is minutes: a machine may be slow, or stand still for seconds, and
# no test fails by that. What hangs is found a little later. How fast something is the benchmark asks.
SLOW = 15
# By how much the times of the product are longer under a sanitizer that a test lets run out.
PATIENCE = 3 if SANITIZED else 1
READY_S = 60 * SLOW
# For what takes as long as it takes.
LONG_S = 60 * SLOW

# In the background of a shell without job control these are ignored, and would be by everything that a test starts.
for number, handler in (signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


def env(**more):
    """The environment of everything the tests start: its own cache, state and log level."""
    e = dict(os.environ)
    e.setdefault("NK_LOG", "warn")
    e["XDG_CACHE_HOME"] = os.path.join(BUILD, "tests", "cache")
    # Whatever loads every backend looks for Vulkan's drivers: a tenth of a second at each start. Who wants one says which.
    if "GGML_VK_VISIBLE_DEVICES" not in more:
        e["VK_DRIVER_FILES"] = e["VK_ICD_FILENAMES"] = os.devnull
    e.update({k: v for k, v in more.items() if v is not None})
    return e


def missing(what):
    """Something that a test needs is not on this machine: it fails where CI=true, and is skipped by name elsewhere."""
    if os.environ.get("CI") == "true":
        raise AssertionError(what)
    raise unittest.SkipTest(what)


def sanitized(*kinds):
    """Decorates a class or a test: under sanitizers it runs under these alone ("asan", "tsan"), or under none. Elsewhere it is not
    there, and no skipped one either. tests/CMakeLists.txt says by what each has its home."""
    kind = os.environ.get("NK_SANITIZE")
    return lambda thing: thing if not kind or kind in kinds else None


def catches(pid, number):
    """Has the process a handler for this signal?"""
    with open(f"/proc/{pid}/status") as f:
        caught = int(re.search(r"SigCgt:\s*(\w+)", f.read()).group(1), 16)
    return caught >> (number - 1) & 1


def threads_that_take(pid, number):
    """Ids of the process's threads that do not block a signal."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may end meanwhile
            with open(f"/proc/{pid}/task/{thread}/status") as f:
                blocked = int(re.search(r"SigBlk:\s*(\w+)", f.read())[1], 16)
            if not blocked >> (number - 1) & 1:
                found.append(int(thread))
    return found


def run(*args, input=None, timeout=120, text=True, program=NAKSHATRA, **more):
    """Runs a nakshatra command to its end: a CompletedProcess with stdout and stderr."""
    if input is None:
        more.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([program, *map(str, args)], input=input, capture_output=True, text=text,
                          timeout=timeout * SLOW, env=more.pop("env", None) or env(), **more)


def out(*args, **more):
    """The standard output of a command that must succeed."""
    done = run(*args, **more)
    if done.returncode:
        raise AssertionError(f"nakshatra {' '.join(map(str, args))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def bench(*args, **more):
    """Runs a nakshatra-bench command to its end."""
    return run(*args, program=BENCH, **more)


def synth(path, *shape):
    """Writes a synthetic model, with random weights. Returns path."""
    done = bench("synth", "--out", path, *shape)
    if done.returncode:
        raise AssertionError(done.stderr)
    return path


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for chunk in iter(lambda: f.read(1 << 20), b""):
            h.update(chunk)
    return h.hexdigest()


def wait_for(what, seconds=20, step=0.02):
    """Waits until what() is true; its last value is returned either way."""
    end = time.monotonic() + seconds * SLOW
    while True:
        value = what()
        if value or time.monotonic() > end:
            return value
        time.sleep(step)


# ---- gRPC, with Debian's python3-grpcio: a client that shares no code with ours ----

_pb = None


def pb():
    """The protocol's messages, made from proto/nakshatra.proto by protoc."""
    global _pb
    if _pb is None:
        folder = tempfile.mkdtemp(prefix="nk-pb-")
        try:
            subprocess.run(["protoc", "-I", os.path.join(SOURCE, "proto"), "--python_out", folder, "nakshatra.proto"],
                           check=True)
            sys.path.insert(0, folder)
            _pb = importlib.import_module("nakshatra_pb2")
        finally:
            if folder in sys.path:
                sys.path.remove(folder)
            shutil.rmtree(folder, ignore_errors=True)
    return _pb


class Client:
    """A gRPC channel to one worker with the service's methods: info, forward, sleep, wake (unary) and inference."""

    def __init__(self, address):
        import grpc  # only where it is needed
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1),
                                                               ("grpc.max_receive_message_length", -1)])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def _unary(self, name):
        request, reply = getattr(pb(), name + "Request"), getattr(pb(), name + "Reply")
        return self.channel.unary_unary("/nakshatra.v1.Nakshatra/" + name, request.SerializeToString, reply.FromString)

    def info(self, timeout=10):
        return self._unary("Info")(pb().InfoRequest(), timeout=timeout * SLOW)

    def forward(self, request, timeout=60):
        return self._unary("Forward")(request, timeout=timeout * SLOW)

    def sleep(self, grace_ms=0, timeout=60):
        return self._unary("Sleep")(pb().SleepRequest(grace_ms=grace_ms), timeout=timeout * SLOW)

    def wake(self, timeout=60):
        return self._unary("Wake")(pb().WakeRequest(), timeout=timeout * SLOW)

    def inference(self, requests, timeout=60):
        """requests: an iterator of InferenceRequest; returns the iterator of replies (with .cancel())."""
        call = self.channel.stream_stream("/nakshatra.v1.Nakshatra/Inference",
                                          pb().InferenceRequest.SerializeToString, pb().InferenceReply.FromString)
        return call(requests, timeout=timeout * SLOW)


def info(address):
    with Client(address) as client:
        return client.info()


def reason(error):
    """The reason word of a grpc.RpcError."""
    return dict(error.trailing_metadata() or ()).get("nk-reason")


# ---- workers ----

class Worker:
    """One `nakshatra worker` process. Give what it loads as options, e.g. "--model", path, "--layers", "0-4"."""

    def __init__(self, *options, id=None, listen="127.0.0.1:0", peers=(), env_more=None, wait=True, prefix=()):
        """prefix: a command that runs what follows it, e.g. ip netns exec NAME."""
        self.life_read, self.life_write = os.pipe()
        self.log_file = tempfile.NamedTemporaryFile(prefix="nk-worker-", suffix=".log", delete=False)
        args = [*prefix, NAKSHATRA, "worker", *map(str, options), "--listen", listen, "--parent-fd", str(self.life_read)]
        if id:
            args += ["--id", id]
        for peer in peers:
            args += ["--allow-peer", peer]
        self.process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log_file,
                                        env=env(**(env_more or {})), pass_fds=[self.life_read], start_new_session=True)
        os.close(self.life_read)
        self.id, self.address, self.ready, self.stopped = id, None, None, False
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.kill()
                raise

    def wait_ready(self, seconds=READY_S):
        """Reads the one line that says where it listens."""
        line, end = b"", time.monotonic() + seconds
        while not line.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise AssertionError(f"worker {self.id}: no ready line within {seconds} s\n{self.log()}")
            byte = os.read(self.process.stdout.fileno(), 1)
            if not byte:
                raise AssertionError(f"worker {self.id}: exit code {self.process.wait()}\n{self.log()}")
            line += byte
        self.ready = line.decode().rstrip("\n")
        m = re.fullmatch(r"ready (\S+:(\d+)) layers (\d+)-(\d+) of (\d+) device (.+)", self.ready)
        if not m:
            raise AssertionError(f"worker {self.id}: the ready line is {self.ready!r}")
        self.address, self.port = m[1], int(m[2])
        self.begin, self.end, self.count = int(m[3]), int(m[4]), int(m[5])
        self.id = self.id or self.address
        return self

    def log(self):
        with open(self.log_file.name, errors="replace") as f:
            return f.read()

    def info(self):
        return info(self.address)

    @property
    def pid(self):
        return self.process.pid

    def signal(self, number):
        self.process.send_signal(number)

    def halt(self):
        """SIGSTOP, and it has taken effect: none of the process's threads runs on. Until SIGCONT."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def assert_idle(self, seconds=20):
        """Nothing of any session is left: what would be a leak of things, not only of bytes."""
        def state():
            i = self.info()
            c = i.counters
            left = {"sessions_open": c.sessions_open, "streams_open": c.streams_open, "jobs_queued": c.jobs_queued}
            left["kv_tokens_in_use"] = i.n_ctx - i.kv_tokens_free
            left["sequences_in_use"] = i.n_seq_max - i.sequences_free
            return {k: v for k, v in left.items() if v}
        left = {}

        def idle():  # looked at once: between two looks a new session may begin
            nonlocal left
            left = state()
            return not left
        if not wait_for(idle, seconds):
            raise AssertionError(f"worker {self.id} still has {left}\n{self.log()}")

    def stop(self, seconds=20):
        """SIGTERM; returns the exit code."""
        if self.stopped:
            return self.process.returncode
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds * SLOW)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"worker {self.id} did not end after SIGTERM\n{self.log()}")
        self._end()
        return self.process.returncode

    def kill(self):
        if not self.stopped:
            self.process.kill()
            self.process.wait()
            self._end()

    def _end(self):
        self.stopped = True
        self.process.stdout.close()
        os.close(self.life_write)
        self.log_file.close()
        self._log = self.log()
        os.unlink(self.log_file.name)
        self.log = lambda: self._log


def cluster_text(model_id, digest, workers, vocab=None, dtype=None):
    """cluster.yaml; workers: (id, address, "0-4") each."""
    text = f"model:\n  id: {model_id}\n  sha256: {digest}\n"
    if vocab:
        text += f"  vocab: {vocab}\n"
    if dtype:
        text += f"dtype: {dtype}\n"
    text += "workers:\n"
    for id, address, layers in workers:
        text += f"  - id: {id}\n    address: \"{address}\"\n    layers: {layers}\n"
    return text


class Chain:
    """Workers for all ranges of a model, the last one first (each may dial the next), and a cluster file."""

    def __init__(self, model, ranges, *options, dtype=None, threads=1, env_more=None, per_worker=None):
        self.model, self.ranges = model, ranges.split(",")
        self.options = [*options, "--threads", threads]
        self.dtype, self.env_more = dtype, env_more
        self.per_worker = per_worker or {}  # index: more options
        self.dir = tempfile.mkdtemp(prefix="nk-chain-")
        self.file = os.path.join(self.dir, "cluster.yaml")
        self.digest = sha256(model)
        self.workers = [None] * len(self.ranges)
        try:
            for i in reversed(range(len(self.ranges))):
                self.start(i)
        except BaseException:
            self.close(check=False)
            raise
        self.write()

    def start(self, i, listen="127.0.0.1:0"):
        """Starts worker i (again); the one after it must be up."""
        peers = self.peers(i)
        self.workers[i] = Worker("--model", self.model, "--layers", self.ranges[i], *self.options,
                                 *self.per_worker.get(i, ()), id=f"w{i}", peers=peers, listen=listen,
                                 env_more=self.env_more)
        return self.workers[i]

    def peers(self, i):
        """Whom worker i may dial."""
        return [w.address for w in self.workers[i + 1:i + 2] if w]

    def write(self, **changes):
        """Writes the cluster file; changes: model_id, digest, workers, vocab, dtype."""
        fields = {"model_id": os.path.basename(self.model), "digest": self.digest, "vocab": self.model,
                  "dtype": self.dtype, "workers": [(w.id, w.address, r) for w, r in zip(self.workers, self.ranges)]}
        fields.update(changes)
        with open(self.file, "w") as f:
            f.write(cluster_text(**fields))
        return self.file

    def assert_idle(self):
        for w in self.workers:
            w.assert_idle()

    def close(self, check=True):
        bad = []
        for w in self.workers:
            if w and not w.stopped:
                if check:
                    code = w.stop()
                    if code:
                        bad.append(f"worker {w.id}: exit code {code}\n{w.log()}")
                else:
                    w.kill()
        shutil.rmtree(self.dir, ignore_errors=True)
        if bad:
            raise AssertionError("\n".join(bad))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.close(check=kind is None)


def golden(name):
    """tests/golden/NAME.txt: lines "key value"; # begins a comment line. Ids come as lists."""
    result = {}
    with open(os.path.join(GOLDEN, name + ".txt")) as f:
        for line in f:
            if line.startswith("#") or not line.strip():
                continue
            key, value = line.rstrip("\n").split(" ", 1)
            ids = re.fullmatch(r"\d+( \d+)*", value)
            result[key] = [int(i) for i in value.split()] if ids else value
    return result


def children_of(pid):
    """The pids of a process's children."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{entry}/stat") as f:
                    fields = f.read().rsplit(")", 1)[1].split()
                if int(fields[1]) == pid and fields[0] != "Z":
                    found.append(int(entry))
    return found


def blocks(pid):
    """Waits until the process's main thread waits for something: it is asleep, and was not awake between two looks."""
    def look():
        with open(f"/proc/{pid}/status") as f:
            text = f.read()
        return re.search(r"State:\s*S", text) and re.search(r"voluntary_ctxt_switches:\s*(\d+)", text)[1]
    before = None

    def still():
        nonlocal before
        last, before = before, look()
        return before and before == last
    return wait_for(still, step=0.1)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Background:
    """A nakshatra command that goes on: its output is collected meanwhile; ended with the `with` block."""

    def __init__(self, *args, stdin=subprocess.DEVNULL, stdout=None, **more):
        self.process = subprocess.Popen([NAKSHATRA, *map(str, args)], stdin=stdin,
                                        stdout=subprocess.PIPE if stdout is None else stdout, stderr=subprocess.PIPE,
                                        env=more.pop("env", None) or env(), start_new_session=True, **more)
        self.stdout, self.stderr = b"", b""
        self._threads = []
        if stdout is None:
            self._collect("stdout")
        self._collect("stderr")

    def _collect(self, name):
        pipe = getattr(self.process, name)

        def work():
            for chunk in iter(lambda: os.read(pipe.fileno(), 65536), b""):
                setattr(self, name, getattr(self, name) + chunk)
        t = threading.Thread(target=work, daemon=True)
        t.start()
        self._threads.append(t)

    def wait(self, seconds=60):
        code = self.process.wait(seconds * SLOW)
        for t in self._threads:
            t.join(LONG_S)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for t in self._threads:
            t.join(10)
        for name in ("stdout", "stderr"):
            pipe = getattr(self.process, name)
            if pipe:
                pipe.close()

"""Workers that are killed, stopped or cut off in the middle of a generation, and chains that do not fit together.

For the first, the middle and the last of three workers: the client gets UNAVAILABLE or DEADLINE_EXCEEDED, and the sentence
names the worker that is at fault; all others free what they held; the next request works once the worker is back. A first
worker that is silent cannot be reported by anybody: the client has to give up by itself. After how long what is given up is
unit.worker's and unit.rpc's to prove, on a clock of their own.

Cutting off is done with packets: the worker lives in a network namespace of its own, behind a veth pair, and iptables
drops what goes in and out. That needs root (CAP_NET_ADMIN); without it these tests fail where CI=true is set, and are
skipped by name elsewhere."""
import contextlib
import glob
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import nk
import talk

GOLDEN = nk.golden("kjv-tiny")
PROMPT = GOLDEN["prompt"]
TEXT = GOLDEN["text"][len(GOLDEN["prompt_text"]):].encode()

RANGES = ["0-3", "3-6", "6-8"]
STALL_MS = 10000  # far more than a machine stands still for; each stage gives up a tenth earlier than the one before
# Who stands still is found by its silence (3 s; unit.rpc.beat has it to the millisecond). While a session opens the connection
# may be a new one, and the stall time comes first.
STANDS_STILL = ["DEADLINE_EXCEEDED", "UNAVAILABLE"]
OPTIONS = ["--ctx", 32768, "--sequences", 4, "--threads", 1, "--stall-ms", STALL_MS]
ENDLESS = 30000  # tokens: a generation that does not end by itself meanwhile


def worker(i, peers, options=(), **more):
    return nk.Worker("--model", nk.KJV, "--layers", RANGES[i], *OPTIONS, *options, id=f"w{i}", peers=peers, **more)


class Trio:
    """Three workers in a chain, and a generation that runs over them."""

    def __init__(self, case, *options):
        self.case, self.workers = case, [None] * 3
        for i in reversed(range(3)):
            self.start(i, options=options)
        self.wire = talk.Wire(self.workers)
        case.addCleanup(self.close)

    def start(self, i, listen="127.0.0.1:0", **more):
        peers = [self.workers[2].address] if i == 1 else [self.workers[1].address] if i == 0 else []
        self.workers[i] = worker(i, peers, listen=listen, **more)

    def run(self):
        self.running = self.wire.start(PROMPT, ENDLESS).until_tokens(20)
        return self.running

    def others_are_idle(self, i):
        for k, w in enumerate(self.workers):
            if k != i:
                w.assert_idle()

    def works(self):
        """A new request does, once a connection has come back."""
        def ok():
            r = self.wire.generate(PROMPT, 32)
            return r.error is None and r
        r = nk.wait_for(ok, step=0.2)
        self.case.assertTrue(r, "the next request fails")
        self.case.assertEqual(r.text, TEXT[:len(r.text)])
        self.case.assertEqual(len(r.ids), 32)
        for w in self.workers:
            w.assert_idle()

    def close(self):
        self.wire.__exit__()
        for w in self.workers:
            with contextlib.suppress(OSError):
                w.signal(signal.SIGCONT)
            w.kill()


def failed(test, trio, i, codes):
    """The generation has ended because of worker i."""
    r = trio.running.wait()
    test.assertIsNotNone(r.error)
    test.assertIn(r.code, codes, r.error.details())
    if i:  # the first one's own silence is gRPC's to report
        test.assertIn(trio.workers[i].address, r.error.details())
        for k, w in enumerate(trio.workers):
            if k != i:
                test.assertNotIn(w.address, r.error.details())
    return r


@nk.sanitized("tsan")
class Processes(unittest.TestCase):
    def test_killed__is_noticed_and_named(self):
        for i in range(3):
            with self.subTest(f"w{i}"):
                trio = Trio(self)
                trio.run()
                address = trio.workers[i].address
                trio.workers[i].kill()
                r = failed(self, trio, i, ["UNAVAILABLE"])
                if i:
                    self.assertEqual(r.reason, "peer_gone")
                trio.others_are_idle(i)
                if i:
                    r = trio.wire.generate(PROMPT, 4)
                    self.assertEqual((r.code, r.reason), ("UNAVAILABLE", "unreachable"), r.error)
                    self.assertIn(address, r.error.details())
                    trio.others_are_idle(i)
                trio.start(i, listen=address)
                trio.works()

    def test_stopped__is_noticed_by_its_silence(self):
        trios = [Trio(self) for _ in range(3)]
        for i, trio in enumerate(trios):  # one after the other, so that nobody computes while the times go by
            trio.run()
            trio.workers[i].halt()
        # The first one's client gives up; the others learn of it by its silence.
        trios[0].running.cancel()
        for i in 1, 2:
            with self.subTest(f"w{i}"):
                r = failed(self, trios[i], i, ["UNAVAILABLE"])
                self.assertEqual(r.reason, "peer_gone")
                self.assertRegex(r.error.details(), "silent for [0-9]+ ms")
        for i, trio in enumerate(trios):
            with self.subTest(f"w{i}"):
                trio.others_are_idle(i)
                trio.workers[i].signal(signal.SIGCONT)
                trio.works()

    def test_paused__a_worker_that_did_not_run_blames_nobody(self):
        """For longer than the stall time, as when its machine slept: what the others sent meanwhile lies unread."""
        trio = Trio(self, "--silence-ms", 600000)  # else the others give it up, rightly
        alone = trio.wire.generate(PROMPT, 200)

        def halted():
            running = trio.wire.start(PROMPT, 200).until_tokens(5)
            trio.workers[0].halt()
            if trio.workers[2].info().counters.sessions_open:
                return running
            trio.workers[0].signal(signal.SIGCONT)  # it has ended meanwhile
            running.wait()
        running = nk.wait_for(halted, step=0)
        self.assertIsNotNone(running, "the test came too late, each time")
        time.sleep(STALL_MS / 1000 + 1)  # there is nothing to wait for but that this time goes by
        trio.workers[0].signal(signal.SIGCONT)
        r = running.wait()
        self.assertEqual((r.code, r.ids), ("OK", alone.ids), r.error)

    def test_stopped__while_a_session_opens(self):
        trio = Trio(self)
        trio.wire.generate(PROMPT, 4)
        trio.workers[2].halt()
        trio.running = trio.wire.start(PROMPT, 10)
        failed(self, trio, 2, STANDS_STILL)
        trio.others_are_idle(2)
        trio.workers[2].signal(signal.SIGCONT)
        trio.works()

    def test_clients__that_vanish_leave_nothing(self):
        """A client process that is killed in the middle of its generations."""
        trio = Trio(self)
        client = subprocess.Popen(["/usr/bin/python3", "-c", f"""
import sys
sys.path.insert(0, {nk.HERE!r})
import nk, talk
class W:
    pass
workers = []
for address, begin, end in {[(w.address, w.begin, w.end) for w in trio.workers]!r}:
    w = W()
    w.address, w.begin, w.end = address, begin, end
    workers.append(w)
wire = talk.Wire(workers)
running = [wire.start([1, 300], 10000) for _ in range(3)]
for r in running:
    r.until_tokens(3)
print("running", flush=True)
input()
"""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=nk.env())
        self.assertEqual(client.stdout.readline(), b"running\n")
        self.assertEqual([w.info().counters.sessions_open for w in trio.workers], [3] * 3)
        client.kill()
        client.wait()
        client.stdin.close()
        client.stdout.close()
        trio.others_are_idle(None)
        trio.works()


def sh(*args):
    return subprocess.run(args, capture_output=True, text=True)


class Network:
    """A namespace with one end of a veth pair; the other end is in this process's network. 198.18.0.0/15 is for tests of
    this kind (RFC 2544)."""

    n = 0

    def __init__(self):
        Network.n += 1
        pid = os.getpid()
        self.name = f"nk{pid}n{Network.n}"
        self.out, self.inside = f"nk{pid % 100000}o{Network.n}", f"nk{pid % 100000}i{Network.n}"
        block = f"198.{18 + (pid >> 8) % 2}.{pid % 256}"
        at = 4 * (Network.n % 60)
        self.near, self.far = f"{block}.{at + 1}", f"{block}.{at + 2}"
        for command in (["ip", "netns", "add", self.name],
                        ["ip", "link", "add", self.out, "type", "veth", "peer", "name", self.inside, "netns", self.name],
                        ["ip", "address", "add", self.near + "/30", "dev", self.out],
                        ["ip", "link", "set", self.out, "up"],
                        ["ip", "-n", self.name, "address", "add", self.far + "/30", "dev", self.inside],
                        ["ip", "-n", self.name, "link", "set", self.inside, "up"],
                        ["ip", "-n", self.name, "link", "set", "lo", "up"]):
            done = sh(*command)
            if done.returncode:
                self.remove()
                raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")

    def cut(self, on=True):
        """Drops every packet, both ways."""
        for chain in "INPUT", "OUTPUT":
            done = sh("ip", "netns", "exec", self.name, "iptables", "-A" if on else "-D", chain, "!", "-i" if chain == "INPUT" else "-o",
                      "lo", "-j", "DROP")
            if done.returncode:
                raise OSError(f"iptables: {done.stderr.strip()}")

    def remove(self):
        sh("ip", "netns", "del", self.name)
        sh("ip", "link", "del", self.out)


def why_no_networks():
    """None, or what is missing."""
    try:
        n = Network()
    except OSError as e:
        return f"network namespaces need root, iproute2 and iptables: {e}"
    try:
        n.cut()
        return None
    except OSError as e:
        return f"network namespaces need root, iproute2 and iptables: {e}"
    finally:
        n.remove()


@nk.sanitized()
class Unreachable(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        missing = why_no_networks()
        if missing:
            nk.missing(missing)

    def trio(self, cut_off):
        """Three workers, one of them in a namespace."""
        net = Network()
        self.addCleanup(net.remove)
        trio = Trio.__new__(Trio)
        trio.case, trio.workers, trio.net = self, [None] * 3, net
        self.addCleanup(trio.close)
        for i in reversed(range(3)):
            inside = i == cut_off
            peers = [trio.workers[i + 1].address] if i < 2 else []
            host = net.far if inside else net.near
            trio.workers[i] = nk.Worker("--model", nk.KJV, "--layers", RANGES[i], *OPTIONS, "--insecure", id=f"w{i}",
                                        peers=peers, listen=f"{host}:0",
                                        prefix=["ip", "netns", "exec", net.name] if inside else [])
        trio.wire = talk.Wire(trio.workers)
        return trio

    def idle_inside(self, trio, i):
        """Asked within its namespace, where it can be reached."""
        w = trio.workers[i]
        done = sh("ip", "netns", "exec", trio.net.name, "/usr/bin/python3", "-c", f"""
import sys
sys.path.insert(0, {nk.HERE!r})
import nk
class Inside(nk.Worker):
    def __init__(self):
        self.id, self.address, self.log = {w.id!r}, {w.address!r}, str
Inside().assert_idle()
""")
        self.assertEqual(done.returncode, 0, done.stderr + w.log())

    def test_packets_dropped__is_noticed_by_both_sides(self):
        trios = [self.trio(i) for i in range(3)]
        for trio in trios:  # one after the other, so that nobody computes while the times go by
            trio.run()
            trio.net.cut()
        trios[0].running.cancel()
        for i in 1, 2:
            with self.subTest(f"w{i}"):
                failed(self, trios[i], i, ["DEADLINE_EXCEEDED", "UNAVAILABLE"])
        for i, trio in enumerate(trios):  # what is cut off is free again by itself, on either side
            with self.subTest(f"w{i}"):
                trio.others_are_idle(i)
                self.idle_inside(trio, i)
                trio.net.cut(False)
                trio.works()

    def test_packets_dropped__for_a_moment_is_nothing(self):
        trio = self.trio(1)
        alone = trio.wire.generate(PROMPT, 400)
        running = trio.wire.start(PROMPT, 400, limits={"stall_ms": 60000}).until_tokens(20)
        trio.net.cut()
        time.sleep(0.4)
        trio.net.cut(False)
        r = running.wait()
        self.assertEqual((r.code, r.ids), ("OK", alone.ids), r.error)
        trio.works()


@nk.sanitized("asan")
class Refused(unittest.TestCase):
    """What does not fit is refused before the first token, and both sides' values are named."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="nk-refused-")
        cls.other = os.path.join(cls.folder, "other.gguf")
        cls.narrow = os.path.join(cls.folder, "narrow.gguf")
        # kjv-tiny with another name has another hash; and a model of the same depth with rows of another width.
        for path, more in (cls.other, {}), (cls.narrow, {"width": 64}):
            synth(path, **more)
        cls.last = nk.Worker("--model", nk.KJV, "--layers", "4-8", "--threads", 1, id="last")
        cls.other_last = nk.Worker("--model", cls.other, "--layers", "4-8", "--threads", 1, id="other")
        cls.narrow_last = nk.Worker("--slice", lying_slice(cls.narrow, cls.folder), "--verify", "never", "--threads", 1,
                                    id="narrow")
        cls.short = nk.Worker("--model", nk.KJV, "--layers", "5-8", "--threads", 1, id="short")
        cls.stranger = nk.Worker("--model", nk.KJV, "--layers", "4-8", "--threads", 1, id="stranger")
        cls.first = nk.Worker("--model", nk.KJV, "--layers", "0-4", "--threads", 1, id="first",
                              peers=[w.address for w in (cls.last, cls.other_last, cls.narrow_last, cls.short)])
        cls.all = [cls.first, cls.last, cls.other_last, cls.narrow_last, cls.short, cls.stranger]
        cls.wire = talk.Wire([cls.first, cls.last])

    @classmethod
    def tearDownClass(cls):
        cls.wire.__exit__()
        for w in cls.all:
            assert w.stop() == 0, w.log()
        shutil.rmtree(cls.folder)

    def tearDown(self):
        for w in self.all:
            w.assert_idle()
        self.assertEqual(self.wire.generate(PROMPT, 4).code, "OK")

    def refused(self, route, code, reason, *words, **fields):
        pb = nk.pb()
        route = [pb.Stage(address=w.address, layer_begin=a, layer_end=b) for w, a, b in route]
        r = self.wire.generate(PROMPT, 4, route=route, **fields)
        talk.complaint(self, lambda: r, code, reason, *words)
        self.assertIsNone(r.opened)
        self.assertEqual(r.tokens, [])

    def test_model__another_one(self):
        mine, other = nk.sha256(nk.KJV)[:12], nk.sha256(self.other)[:12]
        self.refused([(self.first, 0, 4), (self.other_last, 4, 8)], "FAILED_PRECONDITION", "model_mismatch", "first",
                     "other", mine, other)
        # Named by the client: each worker compares with its own.
        self.refused([(self.first, 0, 4), (self.last, 4, 8)], "FAILED_PRECONDITION", "model_mismatch", "first", mine,
                     other, model_sha256=nk.sha256(self.other))
        self.assertEqual(self.wire.generate(PROMPT, 4, model_sha256=nk.sha256(nk.KJV)).code, "OK")

    def test_width__another_one(self):
        """A slice that says it is of this model, and is not."""
        self.refused([(self.first, 0, 4), (self.narrow_last, 4, 8)], "FAILED_PRECONDITION", "width_mismatch", "first",
                     "128", "narrow", "64")

    def test_range__of_another_worker(self):
        self.refused([(self.first, 0, 4), (self.short, 4, 8)], "FAILED_PRECONDITION", "range_mismatch", "short", "4-8",
                     "5-8")
        self.refused([(self.first, 0, 5), (self.short, 5, 8)], "FAILED_PRECONDITION", "range_mismatch", "first", "0-5",
                     "0-4")

    def test_gap__or_overlap(self):
        self.refused([(self.first, 0, 4), (self.short, 5, 8)], "FAILED_PRECONDITION", "bad_route", "0-4,5-8", "gap")
        self.refused([(self.first, 0, 4), (self.last, 3, 8)], "FAILED_PRECONDITION", "bad_route", "0-4,3-8", "overlap")
        self.refused([(self.first, 0, 4)], "FAILED_PRECONDITION", "bad_route", "0-4", "0-8")
        self.refused([(self.first, 0, 4), (self.last, 4, 9)], "FAILED_PRECONDITION", "bad_route", "4-9", "0-8")
        self.refused([(self.first, 0, 4), (self.last, 4, 4), (self.last, 4, 8)], "FAILED_PRECONDITION", "bad_route", "4-4")
        self.refused([], "INVALID_ARGUMENT", "bad_route", "0 stages")
        self.refused([(self.first, 0, 4)] * 65, "INVALID_ARGUMENT", "bad_route", "65", "64")
        self.refused([(self.first, 0, 4), (self.last, 4, 8)], "INVALID_ARGUMENT", "bad_route", "2", stage_idx=2)

    def test_peer__that_the_worker_was_not_told_of(self):
        before = self.stranger.info().counters.sessions_opened
        self.refused([(self.first, 0, 4), (self.stranger, 4, 8)], "PERMISSION_DENIED", "peer_not_allowed", "first",
                     self.stranger.address, "--allow-peer")
        self.assertEqual(self.stranger.info().counters.sessions_opened, before)

        class Elsewhere:
            address = "metadata.example.com:80"
        self.refused([(self.first, 0, 4), (Elsewhere, 4, 8)], "PERMISSION_DENIED", "peer_not_allowed", "metadata")
        self.assertEqual(self.stranger.info().counters.streams_open, 0)

    def test_restarted__with_another_model_on_the_same_port(self):
        """The first worker is connected already and knows nothing of it: each session asks anew."""
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", 32768) as chain, talk.Wire(chain.workers) as wire:
            self.assertEqual(wire.generate(PROMPT, 4, reuse=True).code, "OK")
            address = chain.workers[1].address
            running = wire.start(PROMPT, ENDLESS).until_tokens(5)
            chain.workers[1].kill()
            self.assertEqual(running.wait().code, "UNAVAILABLE")
            other = nk.Worker("--model", self.other, "--layers", "4-8", "--threads", 1, id="other", listen=address)
            try:
                def answer():
                    r = wire.generate(PROMPT, 4, reuse=True)
                    return r if r.reason not in ("unreachable", "peer_gone") else None
                r = nk.wait_for(answer)
                talk.complaint(self, lambda: r, "FAILED_PRECONDITION", "model_mismatch", "w0", "other",
                               nk.sha256(nk.KJV)[:12], nk.sha256(self.other)[:12])
                self.assertEqual(r.tokens, [])
                other.assert_idle()
                chain.workers[0].assert_idle()
            finally:
                other.stop()
            chain.start(1, listen=address)
            r = nk.wait_for(lambda: (lambda g: g if g.code == "OK" else None)(wire.generate(PROMPT, 32)))
            self.assertEqual(r.text, TEXT[:len(r.text)])
            chain.assert_idle()

    def test_cluster_file__tells_of_peers_too(self):
        path = os.path.join(self.folder, "cluster.yaml")
        with open(path, "w") as f:
            f.write(nk.cluster_text("kjv-tiny", nk.sha256(nk.KJV), [("a", "127.0.0.1:1", "0-4"),
                                                                  ("b", self.stranger.address, "4-8")], vocab=nk.KJV))
        w = nk.Worker("--model", nk.KJV, "--layers", "0-4", "--threads", 1, "--cluster", path)
        try:
            with talk.Wire([w, self.stranger]) as wire:
                self.assertEqual(wire.generate(PROMPT, 4).code, "OK")
        finally:
            w.stop()


def synth(path, width=128):
    """A model of kjv-tiny's depth: its metadata, tensors of zeros where the width is another."""
    import ggufio
    g = ggufio.read(nk.KJV)
    kv = dict(g.kv)
    kv["general.name"] = (ggufio.STR, b"other")
    tensors = []
    if width != 128:
        for key in "llama.embedding_length", "llama.rope.dimension_count":
            kv[key] = (kv[key][0], width if key.endswith("length") else width // 4)
    for name, t in g.tensors.items():
        ne = list(t.ne)
        if width != 128:
            ne = [{128: width, 64: width // 2}.get(n, n) for n in ne]
        size = ggufio.Tensor(name, ne, t.type, 0).size
        tensors.append((name, ne, t.type, g.data(t) if width == 128 else bytes(size)))
    return ggufio.write(path, kv, tensors)


def lying_slice(model, folder):
    """Layers 4-8 of model with kjv-tiny's hash in it, which its own digests would tell."""
    nk.out("split", model, "--layers", "0-4,4-8", "--out", folder)
    path, = glob.glob(os.path.join(folder, "*004-008.gguf"))
    with open(path, "rb") as f:
        data = f.read()
    true = nk.sha256(model).encode()
    assert data.count(true) == 1
    with open(path, "wb") as f:
        f.write(data.replace(true, nk.sha256(nk.KJV).encode()))
    return path


if __name__ == "__main__":
    unittest.main()

"""One worker as any gRPC client sees it: Info, Forward, Inference, health, reflection, Sleep and Wake; how it starts and
ends; what it writes."""
import contextlib
import glob
import json
import os
import pty
import re
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import unittest

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

import ggufio
import nk
import talk

GOLDEN = nk.golden("kjv-tiny")
PROMPT = GOLDEN["prompt"]
TEXT = GOLDEN["text"][len(GOLDEN["prompt_text"]):].encode()
LONG = 16384  # a context in which a generation of kjv-tiny takes a minute, or is cut short before


def whole(*options, **more):
    return nk.Worker("--model", nk.KJV, "--layers", "0-8", "--threads", 1, *options, **more)


def need_huge_pages():
    if tuple(int(n) for n in re.findall(r"\d+", os.uname().release)[:2]) < (6, 1):
        nk.missing(f"Linux 6.1 is needed for huge pages on request: this is {os.uname().release}")


@nk.sanitized("asan")
class Served(unittest.TestCase):
    """Three workers that are a chain, and one with the whole model."""

    @classmethod
    def setUpClass(cls):
        cls.chain = nk.Chain(nk.KJV, "0-3,3-6,6-8", "--ctx", LONG)
        try:
            cls.whole = whole(id="whole")
            cls.wire, cls.one = talk.Wire(cls.chain.workers), talk.Wire([cls.whole])
        except BaseException:
            cls.chain.close(check=False)
            raise

    @classmethod
    def tearDownClass(cls):
        cls.wire.__exit__()
        cls.one.__exit__()
        code = cls.whole.stop()
        cls.chain.close()
        assert code == 0, cls.whole.log()

    def test_info__says_what_is_loaded(self):
        g = ggufio.read(nk.KJV)
        version = nk.out("--version").split()[1]
        cached = os.path.join(nk.BUILD, "tests", "cache", "nakshatra", "slices", nk.sha256(nk.KJV) + "*")
        head = g.get("llama.embedding_length") // g.get("llama.attention.head_count")
        kv_of_token_and_layer = 2 * g.get("llama.attention.head_count_kv") * head * 2  # K and V, f16
        with open("/proc/meminfo") as f:
            mem = {k: int(v.split()[0]) * 1024 for k, v in (line.split(":") for line in f)}
        for w in self.chain.workers:
            i = w.info()
            self.assertEqual((i.protocol, i.worker_id, i.version), (1, w.id, version))
            self.assertRegex(i.llama_version, r"^\d+\.\d+")
            self.assertEqual(i.model_id, g.get("general.name").decode())
            self.assertEqual(i.model_sha256, nk.sha256(nk.KJV))
            self.assertEqual(i.architecture, g.get("general.architecture").decode())
            self.assertEqual(i.quantisation, "F16")
            self.assertEqual((i.layer_begin, i.layer_end, i.layer_count), (w.begin, w.end, g.get("llama.block_count")))
            self.assertEqual((i.n_embd, i.n_vocab, i.n_ctx_train),
                             (g.get("llama.embedding_length"), len(g.get("tokenizer.ggml.tokens")),
                              g.get("llama.context_length")))
            self.assertEqual(list(i.dtypes), [nk.pb().DTYPE_F32, nk.pb().DTYPE_F16])
            self.assertEqual((i.backend, i.device), ("CPU", "CPU"))
            self.assertTrue(i.device_description)
            self.assertEqual(i.host_memory_bytes, mem["MemTotal"])
            self.assertTrue(0 < i.host_memory_free_bytes <= i.host_memory_bytes)
            self.assertTrue(0 < i.device_memory_free_bytes <= i.device_memory_bytes <= mem["MemTotal"])
            layers = sum(t.size for name, t in g.tensors.items() if name.startswith("blk.")
                         and w.begin <= int(name.split(".")[1]) < w.end)
            slice_bytes = max(os.path.getsize(f) for f in glob.glob(f"{cached}/kjv-tiny.{w.begin:03}-{w.end:03}.gguf"))
            self.assertTrue(layers <= i.weights_bytes <= slice_bytes, (layers, i.weights_bytes, slice_bytes))
            self.assertEqual(i.kv_bytes, i.n_ctx * (w.end - w.begin) * kv_of_token_and_layer)
            self.assertEqual((i.cache_type_k, i.cache_type_v), ("f16", "f16"))
            self.assertEqual((i.state, i.deterministic), ("serving", False))
            last = w.end == i.layer_count
            self.assertEqual(sorted(i.capabilities), sorted(
                ["rollback", "prefix_reuse", "resume", "sleep"] + (["sampling", "logprobs", "grammar"] if last else [])))

    def test_info__follows_the_options(self):
        a = whole("--ctx", 768, "--sequences", 3, "--batch", 48, "--deterministic", id="a")
        try:
            i = a.info()
            self.assertEqual((i.n_ctx, i.n_seq_max, i.n_batch, i.n_threads, i.deterministic), (768, 3, 48, 1, True))
            self.assertEqual((i.kv_tokens_free, i.sequences_free), (768, 3))
            self.assertNotIn("prefix_reuse", i.capabilities)  # nothing is continued in deterministic mode
        finally:
            a.stop()
        c = whole("--cache-type-k", "q8_0", "--cache-type-v", "f32", "--ctx", 256)
        try:
            i = c.info()
            self.assertEqual((i.cache_type_k, i.cache_type_v), ("q8_0", "f32"))
            g = ggufio.read(nk.KJV)
            n = g.get("llama.attention.head_count_kv") * g.get("llama.embedding_length") // g.get("llama.attention.head_count")
            self.assertEqual(i.kv_bytes, 256 * 8 * (n * 34 // 32 + n * 4))  # q8_0: 32 numbers and a scale of two bytes in a block
        finally:
            c.stop()
        b = nk.Worker("--model", nk.KJV, "--layers", "0-8", "--threads", 2, "--batch", 1)
        try:
            self.assertEqual((b.info().n_threads, b.info().n_batch), (2, 1))
            with talk.Wire([b]) as wire:
                r = wire.generate(PROMPT, 16)
                self.assertEqual((len(r.ids), r.text), (16, TEXT[:len(r.text)]))
        finally:
            b.stop()

    def test_info__counts(self):
        before = [w.info().counters for w in self.chain.workers]
        self.wire.generate(PROMPT, 10)
        self.chain.assert_idle()
        for b, w in zip(before, self.chain.workers):
            a = w.info().counters
            self.assertEqual(a.sessions_opened - b.sessions_opened, 1)
            self.assertEqual(a.sessions_failed, b.sessions_failed)
            self.assertEqual(a.tokens_prefilled - b.tokens_prefilled, len(PROMPT))
            self.assertEqual(a.tokens_decoded - b.tokens_decoded, 9)  # the last one is not computed
            self.assertEqual(a.runs - b.runs, 10)
            self.assertEqual(a.rows_in_runs - b.rows_in_runs, len(PROMPT) + 9)
            self.assertGreater(a.compute_us, b.compute_us)
            self.assertGreater(a.uptime_ms, b.uptime_ms)
        running = self.wire.start(talk.ids(40), LONG - 100).until_tokens(1)
        for w in self.chain.workers:
            i = w.info()
            self.assertEqual((i.counters.sessions_open, i.n_ctx - i.kv_tokens_free, i.n_seq_max - i.sequences_free),
                             (1, LONG - 60, 1))
            self.assertGreaterEqual(i.counters.streams_open, 1)
        running.cancel()
        self.chain.assert_idle()

    def forward(self, wire, worker, ids, rows=None, **fields):
        with nk.Client(worker.address) as c:
            return c.forward(nk.pb().ForwardRequest(ids=ids, rows=rows, **fields)).rows

    def test_forward__chained_by_hand_equals_the_whole_model_bit_for_bit(self):
        for ids in PROMPT, talk.ids(1), talk.ids(77), talk.ids(300, seed=2):
            rows = None
            for w in self.chain.workers:
                rows = self.forward(self.wire, w, ids, rows, all_logits=True)
                if w is not self.chain.workers[-1]:
                    self.assertEqual((rows.n_rows, rows.width), (len(ids), 128))
            one = self.forward(self.one, self.whole, ids, all_logits=True)
            self.assertEqual((one.n_rows, one.width, len(one.data)), (len(ids), 1024, len(ids) * 4096))
            self.assertTrue(rows.data == one.data, f"{len(ids)} rows differ")
            last = self.forward(self.one, self.whole, ids)
            self.assertEqual(last.n_rows, 1)
            self.assertTrue(last.data == one.data[-4096:])
        self.chain.assert_idle()
        self.whole.assert_idle()

    def test_inference__chain_and_whole_model_write_the_golden_text(self):
        for wire in self.one, self.wire:
            r = wire.generate(PROMPT, 64)
            self.assertEqual((r.text, r.finish, len(r.ids)), (TEXT[:len(r.text)], "FINISH_LENGTH", 64))
            self.assertEqual(len(r.text), len(TEXT))
            self.assertEqual([t.index for t in r.tokens], list(range(64)))
            self.assertEqual([t.finish for t in r.tokens], [0] * 63 + [3])
            self.assertEqual((r.opened.n_prompt, r.opened.n_reused), (len(PROMPT), 0))
            self.assertEqual((r.done.n_prompt, r.done.n_reused, r.done.n_generated), (len(PROMPT), 0, 64))
            self.assertEqual([s.worker_id for s in r.opened.stages], [w.id for w in wire.workers])
            self.assertEqual([(s.layer_begin, s.layer_end) for s in r.opened.stages],
                             [(w.begin, w.end) for w in wire.workers])
            self.assertEqual([s.worker_id for s in r.done.stages], [w.id for w in wire.workers])
            for s in r.done.stages:
                self.assertEqual(s.runs, 64)
                self.assertGreater(s.compute_us, 0)
            self.assertGreater(r.done.prefill_us, 0)
            self.assertGreater(r.done.decode_us, 0)
            # The times are of this run: computing is one stage after the other, and only the last has no wire behind it.
            spent = r.done.prefill_us + r.done.decode_us
            self.assertLessEqual(sum(s.compute_us for s in r.done.stages), spent)
            self.assertTrue(all(0 < s.wire_us < spent for s in r.done.stages[:-1]))
            self.assertEqual(r.done.stages[-1].wire_us, 0)
            self.assertTrue(all(s.queue_us < spent for s in r.done.stages))

    def test_health__check_and_watch(self):
        h = talk.proto("health")
        for service in "", "nakshatra.v1.Nakshatra", "grpc.health.v1.Health":
            self.assertEqual(self.one.health(service), "SERVING")
        talk.complaint(self, lambda: self.one.health("no.such.Service"), "NOT_FOUND", "unknown_service")
        watch = self.one.channel.unary_stream("/grpc.health.v1.Health/Watch", h.HealthCheckRequest.SerializeToString,
                                              h.HealthCheckResponse.FromString)(
                                                  h.HealthCheckRequest(), timeout=nk.LONG_S)
        name = h.HealthCheckResponse.ServingStatus.Name
        self.assertEqual(name(next(watch).status), "SERVING")
        self.one.client.sleep()
        self.assertEqual(name(next(watch).status), "NOT_SERVING")
        self.assertEqual(self.one.health(), "NOT_SERVING")
        self.one.client.wake()
        self.assertEqual(name(next(watch).status), "SERVING")
        watch.cancel()

    def test_reflection__is_enough_to_call_info(self):
        """As grpcurl does it: services and messages from the worker itself."""
        r = talk.proto("reflection")

        def ask(**request):
            reply = self.one.channel.stream_stream(
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                r.ServerReflectionRequest.SerializeToString, r.ServerReflectionResponse.FromString)(
                    iter([r.ServerReflectionRequest(**request)]), timeout=nk.LONG_S)
            return next(reply)
        services = {s.name for s in ask(list_services="").list_services_response.service}
        self.assertLessEqual({"nakshatra.v1.Nakshatra", "grpc.health.v1.Health"}, services)
        files = ask(file_containing_symbol="nakshatra.v1.Nakshatra").file_descriptor_response.file_descriptor_proto
        pool = descriptor_pool.DescriptorPool()
        for f in files:
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(f))
        method = pool.FindServiceByName("nakshatra.v1.Nakshatra").FindMethodByName("Info")
        make = message_factory.MessageFactory(pool).GetPrototype
        reply = self.one.unary("/nakshatra.v1.Nakshatra/Info", make(method.input_type)(), make(method.output_type))
        self.assertEqual((reply.worker_id, reply.layer_end), ("whole", 8))
        self.assertEqual(ask(file_containing_symbol="no.Such").error_response.error_code,
                         grpc.StatusCode.NOT_FOUND.value[0])

    def test_method__unknown_is_unimplemented(self):
        talk.complaint(self, lambda: self.one.unary("/nakshatra.v1.Nakshatra/Train", nk.pb().InfoRequest(), nk.pb().InfoReply),
                       "UNIMPLEMENTED", "unknown_method", "Train")


@nk.sanitized()
class Memory(unittest.TestCase):
    def test_weights__on_a_cpu_are_mapped_or_read(self):
        """And a worker that is told to use the CPU loads no driver of anything else."""
        for options, mapped in ([], True), (["--mmap"], True), (["--no-mmap"], False):
            with self.subTest(options):
                w = whole("--device", "CPU", *options)
                try:
                    with open(f"/proc/{w.pid}/maps") as f:
                        maps = f.read()
                    self.assertEqual(".000-008.gguf" in maps, mapped)
                    self.assertIn("libggml-cpu", maps)
                    self.assertNotIn("vulkan", maps)
                    with talk.Wire([w]) as wire:
                        r = wire.generate(PROMPT, 24)
                        self.assertEqual((r.code, r.text), ("OK", TEXT[:len(r.text)]))
                finally:
                    self.assertEqual(w.stop(), 0, w.log())

    @nk.sanitized()  # a sanitizer's own memory would be measured
    def test_memory__of_weights_and_kv_comes_into_huge_pages(self):
        need_huge_pages()
        w = whole("--device", "CPU", "--ctx", 32768)  # 64 MiB of KV

        def huge():
            with open(f"/proc/{w.pid}/smaps_rollup") as f:
                return int(re.search(r"AnonHugePages: +(\d+) kB", f.read()).group(1))
        try:
            self.assertTrue(nk.wait_for(lambda: huge() > 48 << 10), huge())
            with talk.Wire([w]) as wire:
                r = wire.generate(PROMPT, 24)
                self.assertEqual((r.code, r.text), ("OK", TEXT[:len(r.text)]))
        finally:
            self.assertEqual(w.stop(), 0, w.log())


    @nk.sanitized()  # a sanitizer's own memory would be measured
    def test_mapping__is_replaced_by_memory_in_huge_pages_where_there_is_plenty(self):
        """A matrix of 9 MB that ggml computes with as it is in the file. And asleep and awake again, all of it once more."""
        need_huge_pages()
        with tempfile.TemporaryDirectory() as folder:
            model = os.path.join(folder, "model.gguf")
            nk.synth(model, "--layers", "2", "--width", "256", "--ff", "512", "--heads", "4", "--kv-heads", "2",
                     "--vocab", "44000", "--type", "Q4_0", "--embedding-type", "Q6_K")

            def mapped(w):
                with open(f"/proc/{w.pid}/maps") as f:
                    return sum(int(b, 16) - int(a, 16) for a, b in re.findall(r"(?m)^(\w+)-(\w+) .*[.]000-002[.]gguf$", f.read()))
            answers = []
            for options in ["--mmap"], []:
                w = nk.Worker("--model", model, "--layers", "0-2", "--device", "CPU", "--ctx", 256, *options)
                try:
                    with talk.Wire([w]) as wire:
                        for _ in range(2):
                            if options:
                                size = mapped(w)
                                self.assertGreater(size, 9 << 20)
                            else:
                                self.assertTrue(nk.wait_for(lambda: mapped(w) <= size - (6 << 20)), (mapped(w), size))
                            answers.append(wire.generate(PROMPT, 24).ids)
                            wire.client.sleep()
                            self.assertEqual(mapped(w), 0)
                            wire.client.wake()
                finally:
                    self.assertEqual(w.stop(), 0, w.log())
            self.assertEqual(answers, answers[:1] * 4)


@nk.sanitized("tsan")
class Sleeping(unittest.TestCase):
    def test_sleep__gives_the_memory_back_and_wake_takes_it_again(self):
        w = whole("--no-mmap", "--ctx", 32768, "--sequences", 4)  # 64 MiB of KV
        try:
            with talk.Wire([w]) as wire:
                before = wire.generate(PROMPT, 24, reuse=True)
                i, memory = w.info(), talk.rss(w.pid)
                self.assertEqual(i.counters.sessions_kept, 1)
                freed = wire.client.sleep().freed_bytes
                self.assertEqual(freed, i.weights_bytes + i.kv_bytes)
                self.assertGreater(freed, 64 << 20)
                if not os.environ.get("NK_SANITIZE"):  # their allocators keep freed memory back
                    self.assertLess(talk.rss(w.pid), memory - freed * 9 // 10)
                asleep = w.info()
                self.assertEqual((asleep.state, asleep.weights_bytes, asleep.kv_bytes, asleep.counters.sessions_kept),
                                 ("asleep", 0, 0, 0))
                self.assertEqual((asleep.model_sha256, asleep.layer_end), (i.model_sha256, 8))
                talk.complaint(self, lambda: wire.generate(PROMPT, 4), "UNAVAILABLE", "asleep", "Wake")
                talk.complaint(self, lambda: wire.client.forward(nk.pb().ForwardRequest(ids=PROMPT)), "UNAVAILABLE",
                               "asleep")
                talk.complaint(self, wire.client.sleep, "FAILED_PRECONDITION", "not_serving", "asleep")
                wire.client.wake()
                wire.client.wake()  # awake already: nothing to do
                awake = w.info()
                self.assertEqual((awake.state, awake.weights_bytes, awake.kv_bytes),
                                 ("serving", i.weights_bytes, i.kv_bytes))
                after = wire.generate(PROMPT, 24, reuse=True)
                self.assertEqual((after.ids, after.text, after.opened.n_reused), (before.ids, before.text, 0))
            w.assert_idle()
        finally:
            self.assertEqual(w.stop(), 0, w.log())

    def test_sleep__waits_for_sessions_as_long_as_it_is_told(self):
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", LONG) as chain, talk.Wire(chain.workers) as wire:
            last = nk.Client(chain.workers[1].address)
            # within the grace
            def held():  # so that it is still there when it is looked at
                running = wire.start(PROMPT, 300).until_tokens(5)
                chain.workers[0].halt()
                if last.info().counters.sessions_open:
                    return running
                chain.workers[0].signal(signal.SIGCONT)  # it has ended meanwhile
                running.wait()
            running = nk.wait_for(held, step=0)
            self.assertIsNotNone(running, "no generation could be stopped in its midst")
            seen = []

            def look():  # meanwhile it takes no new sessions, and holds its memory still
                def infos():
                    i = chain.workers[1].info()
                    return i if i.state != "serving" else None
                try:
                    i = nk.wait_for(infos)
                    seen.append((i.state, i.weights_bytes > 0, i.kv_bytes > 0))
                finally:
                    chain.workers[0].signal(signal.SIGCONT)
            looking = threading.Thread(target=look)
            looking.start()
            last.sleep(grace_ms=86400000)  # a day: it does not wait until the grace is over
            looking.join()
            self.assertEqual((running.wait().code, len(running.result.ids)), ("OK", 300))
            self.assertEqual(seen, [("asleep", True, True)])
            talk.complaint(self, lambda: wire.generate(PROMPT, 4), "UNAVAILABLE", "asleep", "w1")
            last.wake()
            # no grace
            running = wire.start(PROMPT, LONG - 100).until_tokens(5)
            last.sleep()
            r = running.wait()
            self.assertEqual((r.code, r.reason), ("UNAVAILABLE", "asleep"))
            self.assertIn("w1", r.error.details())
            last.wake()
            self.assertEqual(wire.generate(PROMPT, 64).text, TEXT)
            chain.assert_idle()
            last.__exit__()


@nk.sanitized("asan")
class Starting(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory(prefix="nk-worker-")
        self.addCleanup(self.dir.cleanup)

    @nk.sanitized()  # a sanitizer takes all of the address space
    def test_memory__that_is_not_there_is_a_sentence_before_anything_is_loaded(self):
        # By a limit of the address space, so that the machine's own memory does not matter: the program takes far less.
        limit = 16 << 30
        done = nk.run("worker", "--model", nk.KJV, "--layers", "0-8", "--listen", "127.0.0.1:0", "--ctx", str(1 << 24), "--batch", "8",
                      "--device", "CPU", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        self.assertRegex(done.stderr, r"GiB of memory are needed \(weights .*, 16777216 tokens of context .*\), .* are free on CPU")

    def test_port__0_is_a_free_one_and_a_taken_one_is_refused(self):
        a = whole()
        try:
            self.assertNotEqual(a.port, 0)
            self.assertEqual(a.info().worker_id, a.address)  # without --id
            done = nk.run("worker", "--model", nk.KJV, "--layers", "0-8", "--listen", a.address)
            self.assertEqual(done.returncode, 1)
            self.assertIn(f"cannot listen on {a.address}", done.stderr)
            self.assertIn("in use", done.stderr)
            self.assertEqual(done.stdout, "")
        finally:
            a.stop()
        b = whole(listen=a.address)  # the port is free again at once
        self.assertEqual(b.port, a.port)
        b.stop()

    def test_listen__on_ipv6_and_by_name(self):
        """The address in a route is the one that --allow-peer has, whatever kind it is."""
        for host in "[::1]", "localhost":
            with self.subTest(host):
                if host == "[::1]":
                    try:
                        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
                    except OSError as e:
                        nk.missing(f"an IPv6 loopback: {e}")
                last = nk.Worker("--model", nk.KJV, "--layers", "4-8", "--threads", 1, listen=host + ":0")
                first = nk.Worker("--model", nk.KJV, "--layers", "0-4", "--threads", 1, listen=host + ":0",
                                  peers=[last.address])
                try:
                    self.assertEqual(last.address, f"{host}:{last.port}")
                    self.assertEqual(first.info().worker_id, first.address)
                    with talk.Wire([first, last]) as wire:
                        r = wire.generate(PROMPT, 32)
                        self.assertEqual((r.code, r.text), ("OK", TEXT[:len(r.text)]), r.error)
                    path = os.path.join(self.dir.name, "cluster.yaml")
                    with open(path, "w") as f:
                        f.write(nk.cluster_text("kjv", nk.sha256(nk.KJV), [("a", first.address, "0-4"),
                                                                           ("b", last.address, "4-8")], vocab=nk.KJV))
                    self.assertIn("One token went through all 2 workers", nk.out("check", "--cluster", path))
                finally:
                    self.assertEqual((first.stop(), last.stop()), (0, 0))

    def test_model__is_cut_into_the_cache_once(self):
        more = {"XDG_CACHE_HOME": self.dir.name}
        a = nk.Worker("--model", nk.KJV, "--layers", "2-5", "--threads", 1, env_more=more)
        a.stop()
        path, = glob.glob(os.path.join(self.dir.name, "nakshatra", "slices", nk.sha256(nk.KJV) + "*", "*.gguf"))
        self.assertEqual(os.path.basename(path), "kjv-tiny.002-005.gguf")
        before = os.stat(path)
        b = nk.Worker("--model", nk.KJV, "--layers", "2-5", "--threads", 1, env_more=more)
        c = nk.Worker("--slice", path, "--threads", 1)
        ib, ic = b.info(), c.info()
        for field in "model_sha256", "layer_begin", "layer_end", "layer_count", "weights_bytes", "kv_bytes":
            self.assertEqual(getattr(ib, field), getattr(ic, field), field)
        b.stop()
        c.stop()
        after = os.stat(path)
        self.assertEqual((before.st_mtime_ns, before.st_ino), (after.st_mtime_ns, after.st_ino))

    def test_model__on_a_terminal_shows_how_far_cutting_is(self):
        terminal, theirs = pty.openpty()
        w = subprocess.Popen([nk.NAKSHATRA, "worker", "--model", nk.KJV, "--layers", "2-5", "--threads", "1", "--listen",
                              "127.0.0.1:0"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs,
                             env=nk.env(XDG_CACHE_HOME=self.dir.name, TERM="xterm"))
        os.close(theirs)
        try:
            self.assertTrue(w.stdout.readline().startswith(b"ready "))
            self.assertRegex(os.read(terminal, 65536).decode(), r"\[[#.]{30}\] +\d+ %")
            w.terminate()
            self.assertEqual(w.wait(nk.LONG_S), 0)
        finally:
            w.kill()
            w.wait()
            w.stdout.close()
            os.close(terminal)

    def test_options__wrong_ones_get_a_sentence_and_exit_code_2(self):
        model = ["--model", nk.KJV]
        good = [*model, "--layers", "0-8"]
        not_gguf = os.path.join(self.dir.name, "no.gguf")
        with open(not_gguf, "w") as f:
            f.write("hello\n")
        for args, words in [
            ([], ["--slice", "--model"]),
            (["--slice", "a", "--model", "b"], ["both"]),
            (model, ["--layers"]),
            (["--slice", "a", "--layers", "0-4"], ["--layers", "--model"]),
            ([*model, "--layers", "4-2"], ["4-2"]),
            ([*model, "--layers", "0-9"], ["9", "8"]),
            ([*model, "--layers", "0-4,4-8"], ["0-4,4-8"]),
            ([*model, "--layers", "zero"], ["zero"]),
            (["--model", "/no/such/model.gguf", "--layers", "0-4"], ["/no/such/model.gguf"]),
            (["--model", not_gguf, "--layers", "0-4"], [not_gguf, "GGUF"]),
            (["--slice", "/no/such/slice.gguf"], ["/no/such/slice.gguf"]),
            (["--slice", nk.KJV], [nk.KJV, "slice"]),
            ([*good, "--listen", "5530"], ["5530", "HOST:PORT"]),
            ([*good, "--listen", "127.0.0.1:99999"], ["99999"]),
            ([*good, "--listen", "0.0.0.0:0"], ["0.0.0.0:0", "--insecure", "--tls-ca"]),
            ([*good, "--listen", "127.example.org:0"], ["127.example.org:0", "--insecure"]),
            ([*good, "--tls-ca", "x"], ["--tls-ca", "--tls-cert", "--tls-key"]),
            ([*good, "--tls-ca", "/no/ca", "--tls-cert", "/no/ca", "--tls-key", "/no/ca"], ["/no/ca"]),
            ([*good, "--device", "Abacus0"], ["Abacus0", "CPU"]),
            ([*good, "--ctx", "-1"], ["--ctx"]),
            ([*good, "--ctx", "many"], ["--ctx", "many"]),
            ([*good, "--sequences", "0"], ["--sequences"]),
            ([*good, "--batch", "99999999"], ["--batch"]),
            ([*good, "--threads", "0"], ["--threads"]),
            ([*good, "--cluster", "/no/cluster.yaml"], ["/no/cluster.yaml"]),
            ([*good, "--allow-peer", "nowhere"], ["nowhere", "HOST:PORT"]),
            ([*good, "--parent-fd", "999"], ["--parent-fd", "999"]),
            ([*good, "--trace", "/no/such/folder/t"], ["/no/such/folder/t"]),
            ([*good, "--mmap", "--no-mmap"], ["--mmap", "--no-mmap"]),
            ([*good, "--cache-type-k", "F16"], ["--cache-type-k", "'F16'", "f32, f16"]),
            ([*good, "--cache-type-v", "q4_0", "--no-flash-attn"], ["--cache-type-v", "q4_0", "flash attention"]),
            ([*good, "--frobnicate"], ["--frobnicate"]),
            ([*good, "extra"], ["extra"]),
        ]:
            with self.subTest(" ".join(args)):
                done = nk.run("worker", *args)
                self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)
                self.assertTrue(done.stderr.startswith("nakshatra: ") and done.stderr.count("\n") == 1, done.stderr)
                for word in words:
                    self.assertIn(word, done.stderr)

    def test_signal__before_it_is_ready_ends_it_at_once(self):
        """While it loads there is nothing to drain: a slow load must not have to be waited for."""
        slow = os.path.join(self.dir.name, "slow.gguf")  # whose digest takes for ever: behind the model, a hole of a TiB
        shutil.copy(nk.KJV, slow)
        os.truncate(slow, 1 << 40)

        def reads(pid):
            found = []
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):  # it may be closed meanwhile
                    found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
            return slow in found
        for number in signal.SIGTERM, signal.SIGINT:
            w = nk.Worker("--model", slow, "--layers", "0-8", wait=False)
            try:
                self.assertTrue(nk.wait_for(lambda: reads(w.pid)), w.log())
                w.signal(number)
                self.assertEqual(w.process.wait(nk.LONG_S), -number)
            finally:
                w.kill()


@nk.sanitized("asan")
class Damaged(unittest.TestCase):
    """A slice that is not what was written, or does not stay that."""

    def setUp(self):
        self.dir = tempfile.TemporaryDirectory(prefix="nk-damaged-")
        self.addCleanup(self.dir.cleanup)
        nk.out("split", nk.KJV, "--layers", "0-4,4-8", "--out", self.dir.name)
        self.path = os.path.join(self.dir.name, "kjv-tiny.000-004.gguf")

    def write_over(self, data=b"X" * 64):
        with open(self.path, "r+b") as f:
            f.seek(os.path.getsize(self.path) // 2)
            f.write(data)

    def start(self, *options):
        return nk.Worker("--slice", self.path, "--threads", 1, *options, env_more={"XDG_CACHE_HOME": self.dir.name})

    def ended(self, w, sentence):
        """By itself, with a sentence that names the file."""
        w.process.wait(nk.LONG_S)
        w.kill()
        self.assertEqual(w.process.returncode, 1, w.log())
        self.assertRegex(w.log(), f"nakshatra: {re.escape(self.path)}.*{sentence}")

    def test_damaged__is_not_served(self):
        w = self.start()
        self.assertEqual(w.info().verified, "yes")
        w.stop()
        self.write_over()
        for how in "always", "once":
            done = nk.run("worker", "--slice", self.path, "--listen", "127.0.0.1:0", "--verify", how)
            self.assertEqual((done.returncode, done.stdout), (1, ""), done)
            self.assertRegex(done.stderr, r"kjv-tiny\.000-004\.gguf is damaged: 1 of its \d+ parts .*blk\.\d\.")
        w = self.start("--verify", "never")
        self.assertEqual(w.info().verified, "no")
        w.stop()

    def test_damaged__while_it_is_served_ends_an_idle_worker_too(self):
        w = self.start("--mmap")
        self.write_over()
        self.ended(w, "was written to while it was in use")

    def test_damaged__nothing_is_given_out_after_it_was_written_over(self):
        last = nk.Worker("--slice", self.path.replace("000-004", "004-008"), "--threads", 1, "--ctx", LONG)
        w = self.start("--ctx", LONG, "--mmap", "--allow-peer", last.address)
        with talk.Wire([w, last]) as wire:
            right = wire.generate(PROMPT, 400)
            self.assertEqual(right.code, "OK", right.error)
            running = wire.start(PROMPT, LONG // 2)
            running.until_tokens(10)
            self.write_over(os.urandom(1 << 18))
            r = running.wait()
        # The next step finds it, or the worker's own look.
        self.assertIn((r.code, r.reason), (("DATA_LOSS", "slice_changed"), ("UNAVAILABLE", "draining")))
        common = min(len(r.text), len(right.text))
        self.assertEqual(r.text[:common], right.text[:common])
        self.ended(w, "was written to while it was in use")
        self.assertEqual(last.stop(), 0)

    def test_damaged__while_it_slept_it_does_not_wake(self):
        w = self.start()
        with nk.Client(w.address) as client:
            client.sleep()
            with open(self.path, "rb") as f:
                right = f.read()
            self.write_over()
            talk.complaint(self, client.wake, "DATA_LOSS", "damaged", "kjv-tiny.000-004.gguf")
            self.assertEqual(w.info().state, "asleep")
            with open(self.path, "wb") as f:  # in place, and whole again
                f.write(right)
            client.wake()
            self.assertEqual((w.info().state, w.info().verified), ("serving", "yes"))
        self.assertEqual(w.stop(), 0, w.log())

    def test_damaged__made_shorter_ends_it_with_a_sentence(self):
        w = self.start("--mmap")
        os.truncate(self.path, 4096)
        self.ended(w, "(was written to while it was in use|is not there any more)")


@nk.sanitized("tsan")
class Ending(unittest.TestCase):
    N = 300

    @classmethod
    def setUpClass(cls):
        talk.proto("health")  # not while a generation runs

    def draining(self, wire, w):
        """After SIGTERM: new sessions are refused and health says so."""
        self.assertTrue(nk.wait_for(lambda: w.info().state == "draining"))
        talk.complaint(self, lambda: wire.generate(PROMPT, 4), "UNAVAILABLE", "draining", w.id)
        self.assertEqual(wire.health(), "NOT_SERVING")
        with talk.Wire(wire.workers) as late:  # over a new connection
            talk.complaint(self, lambda: late.generate(PROMPT, 4), "UNAVAILABLE", "draining", w.id)

    def held(self, wire, chain):
        """A generation of N tokens that stands still in its midst until the second worker goes on."""
        def once():
            running = wire.start(PROMPT, self.N).until_tokens(5)
            chain.workers[1].halt()
            if chain.workers[0].info().counters.sessions_open:
                return running
            chain.workers[1].signal(signal.SIGCONT)  # it has ended meanwhile
            running.wait()
        running = nk.wait_for(once, step=0)
        self.assertIsNotNone(running, "no generation could be stopped in its midst")
        return running

    def drains(self, number, sequences):
        """A chain whose first worker gets the signal in a generation, which ends as it would have, and then the worker."""
        options = ["--ctx", LONG, "--sequences", sequences, "--drain-ms", 600000, "--stall-ms", 600000]
        with nk.Chain(nk.KJV, "0-4,4-8", *options) as chain, talk.Wire(chain.workers) as wire:
            w = chain.workers[0]
            alone = wire.generate(PROMPT, self.N)
            running = self.held(wire, chain)
            try:
                yield w, wire
                w.signal(number)
                self.draining(wire, w)
                yield w, wire
                self.assertIsNone(w.process.poll())
            finally:
                chain.workers[1].signal(signal.SIGCONT)
            r = running.wait()
            self.assertEqual((r.code, r.ids, r.text), ("OK", alone.ids, alone.text))
            self.assertEqual(w.process.wait(nk.LONG_S), 0, w.log())

    def test_sigterm__lets_running_sessions_finish_and_refuses_new_ones(self):
        drain = self.drains(signal.SIGTERM, sequences=1)
        w, wire = next(drain)
        waiting = wire.start(PROMPT, 5)  # there is one sequence only
        self.assertTrue(nk.wait_for(lambda: w.info().counters.sessions_open == 2))
        next(drain)
        talk.complaint(self, lambda: waiting.wait(), "UNAVAILABLE", "draining")  # it has not begun
        self.assertIsNone(next(drain, None))

    def test_sigterm__ends_what_is_left_after_the_drain_time(self):
        w = whole("--ctx", LONG, "--drain-ms", 300)
        with talk.Wire([w]) as wire:
            running = wire.start(PROMPT, LONG - 10).until_tokens(5)
            silent = wire.stream()  # a call that never says Open
            silent.send()
            w.signal(signal.SIGTERM)
            talk.complaint(self, running.wait, "UNAVAILABLE", "draining", w.id)
            silent.cancel()
        self.assertEqual(w.process.wait(nk.LONG_S), 0, w.log())
        w.kill()

    def test_sigterm__twice_ends_it_at_once(self):
        w = whole("--ctx", LONG, "--drain-ms", 600000)
        with talk.Wire([w]) as wire:
            running = wire.start(PROMPT, LONG - 10).until_tokens(5)
            w.signal(signal.SIGTERM)
            self.draining(wire, w)
            w.signal(signal.SIGTERM)
            self.assertEqual(w.process.wait(nk.LONG_S), -signal.SIGTERM)
            self.assertEqual(running.wait().code, "UNAVAILABLE")
        w.kill()

    def test_sigint__drains_too_and_a_second_signal_of_either_kind_ends_it(self):
        for _ in self.drains(signal.SIGINT, sequences=2):
            pass
        for first, second in (signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT):
            w = whole("--ctx", LONG, "--drain-ms", 600000)
            with talk.Wire([w]) as wire:
                wire.start(PROMPT, LONG - 10).until_tokens(5)
                w.signal(first)
                self.assertTrue(nk.wait_for(lambda: w.info().state == "draining"))
                w.signal(second)
                self.assertEqual(w.process.wait(nk.LONG_S), -second)
            w.kill()

    def test_parent_fd__ends_it_when_the_other_end_closes(self):
        w = whole("--drain-ms", 200, "--ctx", LONG)
        with talk.Wire([w]) as wire:
            running = wire.start(PROMPT, LONG - 10).until_tokens(5)
            os.close(w.life_write)
            self.assertEqual(w.process.wait(nk.LONG_S), 0, w.log())
            self.assertEqual(running.wait().code, "UNAVAILABLE")
        w.life_write = os.open(os.devnull, os.O_RDONLY)  # for kill() to close
        w.kill()


@nk.sanitized()
class Writing(unittest.TestCase):
    def test_log__is_key_value_lines_without_text(self):
        line = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (error|warn|info|debug|trace) +[a-z]+ +"
                          r"(?:[a-z_0-9]+=(?:\"(?:[^\"\\]|\\.)*\"|[^\s\"]*) ?)+")
        with nk.Chain(nk.KJV, "0-4,4-8", env_more={"NK_LOG": "debug,llama=error"}) as chain, \
                talk.Wire(chain.workers) as wire:
            r = wire.generate(PROMPT, 32, stop=[b"sword"], reuse=True)
            wire.generate(PROMPT, 4, route=[])
            wire.generate(PROMPT + r.ids, 4, reuse=True)
            logs = [w.log() for w in chain.workers]
        for text in logs:
            for one in text.splitlines():
                self.assertRegex(one, line)
                self.assertTrue(line.fullmatch(one), one)
            for word in {*GOLDEN["prompt_text"].split(), *r.text.decode().split(), "sword"} - {"a", "to", "of", "the", "in"}:
                self.assertIsNone(re.search(r"\b%s\b" % re.escape(word), text), word)
            self.assertIn("event=done", text)
        self.assertRegex(logs[0], r"warn +worker .*reason=bad_route")

    def test_trace__has_an_event_for_each_step_and_no_text(self):
        with tempfile.TemporaryDirectory() as folder:
            files = [os.path.join(folder, f"{i}.jsonl") for i in range(2)]
            with nk.Chain(nk.KJV, "0-4,4-8", per_worker={i: ["--trace", f] for i, f in enumerate(files)}) as chain, \
                    talk.Wire(chain.workers) as wire:
                wire.generate(talk.ids(150), 10)  # three chunks and nine single rows
            for i, f in enumerate(files):
                with open(f) as trace:
                    events = [json.loads(one) for one in trace]
                self.assertEqual({tuple(e) for e in events}, {("t", "ev", "worker", "session", "step", "pos", "rows")})
                self.assertEqual({e["worker"] for e in events}, {f"w{i}"})
                self.assertEqual(len({e["session"] for e in events}), 1)
                steps = {}
                for e in events:
                    steps.setdefault(e["step"], []).append(e)
                self.assertEqual(sorted(steps), list(range(1, 13)))
                at = 0
                for n in sorted(steps):
                    e = steps[n]
                    self.assertEqual([x["ev"] for x in e], ["received", "computing", "computed",
                                                            "answered" if i else "sent"])
                    self.assertEqual([x["t"] for x in e], sorted(x["t"] for x in e))
                    self.assertEqual({(x["pos"], x["rows"]) for x in e}, {(at, e[0]["rows"])})
                    at += e[0]["rows"]
                self.assertEqual(at, 159)

    def test_trace__names_the_real_port(self):
        with tempfile.TemporaryDirectory() as folder:
            f = os.path.join(folder, "t.jsonl")
            w = whole("--trace", f)
            with talk.Wire([w]) as wire:
                wire.generate(PROMPT, 2)
            w.stop()
            with open(f) as trace:
                self.assertEqual({json.loads(one)["worker"] for one in trace}, {w.address})


if __name__ == "__main__":
    unittest.main()

"""Peers that mean no good: clients that send nonsense to a worker, and a next stage that answers with it. Each gets a
status with the right reason, memory stays bounded, and the worker goes on serving the right tokens."""
import math
import os
import socket
import struct
import threading
import unittest
from concurrent import futures

import grpc

import nk
import talk

GOLDEN = nk.golden("kjv-tiny")
PROMPT = GOLDEN["prompt"]
TEXT = GOLDEN["text"][len(GOLDEN["prompt_text"]):].encode()
MESSAGE_MAX = 65 << 20  # NK_RPC_MESSAGE_BYTES_MAX
WIDTH, VOCAB = 128, 1024
N_CTX = 32768  # a generation of that many tokens does not end by itself meanwhile


class Served(unittest.TestCase):
    """Workers 0-4 and 4-8. After every test both are idle, as large as before, and right."""

    @classmethod
    def setUpClass(cls):
        cls.chain = nk.Chain(nk.KJV, "0-4,4-8", "--ctx", N_CTX, "--sequences", 4, "--batch", 128)
        cls.first, cls.last = cls.chain.workers
        cls.wire = talk.Wire(cls.chain.workers)
        cls.late = nk.Client(cls.last.address)
        cls.wire.generate(talk.ids(300), 8)
        cls.memory = [talk.rss(w.pid) for w in cls.chain.workers]

    @classmethod
    def tearDownClass(cls):
        cls.wire.__exit__()
        cls.late.__exit__()
        cls.chain.close()

    def setUp(self):
        self.streams = []

    def tearDown(self):
        for s in self.streams:
            s.cancel()
        self.chain.assert_idle()
        r = self.wire.generate(PROMPT, 16)
        self.assertEqual((r.code, r.text), ("OK", TEXT[:len(r.text)]), r.error)
        self.assertEqual(len(r.ids), 16)
        if not os.environ.get("NK_SANITIZE"):  # their allocators keep freed memory back
            for w, before in zip(self.chain.workers, self.memory):
                # What one message may be, unpacked, and what gRPC has in hand of others.
                self.assertLess(talk.rss(w.pid) - before, 4 * MESSAGE_MAX, f"worker {w.id} grew")

    def refused(self, call, code, reason, *words):
        return talk.complaint(self, call, code, reason, *words)

    def last_open(self, **fields):
        """Open for the last stage, as the first one would send it."""
        pb = nk.pb()
        fields.setdefault("n_tokens_max", 200)
        fields.setdefault("session", os.urandom(16))
        return pb.InferenceRequest(open=pb.Open(route=talk.route(self.chain.workers), stage_idx=1, **fields))

    def driven(self, **fields):
        """A stream to the last stage that has been opened."""
        stream = talk.Stream(self.late.channel, 20)
        self.streams.append(stream)
        stream.send(self.last_open(**fields))
        self.assertEqual(stream.recv().WhichOneof("kind"), "opened")
        return stream

    def rows(self, ids, at=0):
        """What the first stage would send for ids[at:]."""
        pb = nk.pb()
        rows = self.wire.client.forward(pb.ForwardRequest(ids=ids)).rows
        return pb.Rows(n_rows=len(ids) - at, width=WIDTH, data=rows.data[at * WIDTH * 4:])

    def step(self, n, pos, ids, rows, sample=True, **fields):
        pb = nk.pb()
        return pb.InferenceRequest(step=pb.Step(step=n, pos=pos, ids=ids, rows=rows, sample=sample, **fields))


class Bytes(Served):
    """What is no message at all."""

    def test_garbage__is_a_bad_message(self):
        for data in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"hello", b"\x0a" + os.urandom(1000), b"\x0a\x03\x0a\x10"):
            with self.subTest(data[:8]):
                stream = self.wire.stream(raw=True)
                stream.send(data)
                self.refused(stream.error, "INVALID_ARGUMENT", "bad_message", len(data))

                def forward():
                    return self.wire.channel.unary_unary("/nakshatra.v1.Nakshatra/Forward")(data, timeout=nk.LONG_S)
                self.refused(forward, "INVALID_ARGUMENT", "bad_message")
        stream = self.wire.stream(raw=True)
        stream.send(b"")  # a message without any field
        self.refused(stream.error, "INVALID_ARGUMENT", "bad_message", "neither")

    def test_nothing__where_one_request_is_due(self):
        call = self.wire.channel.stream_unary("/nakshatra.v1.Nakshatra/Forward")
        self.refused(lambda: call(iter([]), timeout=nk.LONG_S), "INVALID_ARGUMENT", "bad_message", "missing")

    def test_size__over_the_limit(self):
        big = b"\x12" + _varint(MESSAGE_MAX) + bytes(MESSAGE_MAX)
        stream = self.wire.stream(raw=True)
        stream.send(big)
        self.refused(stream.error, "RESOURCE_EXHAUSTED", "message_too_large", MESSAGE_MAX)

    def test_fields__that_would_unpack_into_gigabytes(self):
        """A few bytes on the wire for each struct in memory: 20 million route entries, stop strings and biases."""
        entry = b"\x12\x00"  # an empty Stage
        body = entry * (20 << 20)
        stream = self.wire.stream(raw=True)
        stream.send(b"\x0a" + _varint(len(body)) + body)
        self.refused(stream.error, "INVALID_ARGUMENT", "bad_message")

    def test_compression__is_refused(self):
        with self.assertRaises(grpc.RpcError) as e:
            self.wire.channel.unary_unary("/nakshatra.v1.Nakshatra/Forward")(
                nk.pb().ForwardRequest(ids=[300] * 100).SerializeToString(), timeout=nk.LONG_S,
                compression=grpc.Compression.Gzip)
        self.assertEqual(e.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_tcp__that_is_not_http2(self):
        host, port = self.first.address.split(":")
        for data in b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(3000):
            with socket.create_connection((host, int(port)), timeout=nk.LONG_S) as s:
                s.sendall(data)
                try:
                    while s.recv(4096):
                        pass
                except OSError:
                    pass


def _varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


class Forwarding(Served):
    def test_forward__with_sizes_that_do_not_fit(self):
        pb = nk.pb()
        good = self.rows(PROMPT)

        def last(reason, *words, ids=PROMPT, rows=good):
            self.refused(lambda: self.late.forward(pb.ForwardRequest(ids=ids, rows=rows)), "INVALID_ARGUMENT", reason,
                         "w1", *words)
        self.assertEqual(self.late.forward(pb.ForwardRequest(ids=PROMPT, rows=good)).rows.n_rows, 1)
        last("bad_rows", "missing", rows=None)
        last("bad_rows", 5, 6, rows=pb.Rows(n_rows=5, width=WIDTH, data=good.data))
        last("bad_rows", 64, WIDTH, rows=pb.Rows(n_rows=6, width=64, data=good.data))
        last("bad_rows", 4294967295, rows=pb.Rows(n_rows=2**32 - 1, width=2**32 - 1, data=good.data))
        last("bad_rows", len(good.data) - 1, rows=pb.Rows(n_rows=6, width=WIDTH, data=good.data[:-1]))
        last("bad_rows", rows=pb.Rows(n_rows=6, width=WIDTH, data=b""))
        last("bad_rows", 6 * WIDTH * 2, rows=pb.Rows(n_rows=6, width=WIDTH, dtype=pb.DTYPE_F16, data=good.data))
        last("bad_dtype", 9, rows=pb.Rows(n_rows=6, width=WIDTH, dtype=9, data=good.data))
        for bad in math.nan, math.inf, -math.inf:
            data = bytearray(good.data)
            struct.pack_into("<f", data, (3 * WIDTH + 7) * 4, bad)
            last("not_finite", "row 3", rows=pb.Rows(n_rows=6, width=WIDTH, data=bytes(data)))
        half = bytearray(6 * WIDTH * 2)
        struct.pack_into("<H", half, 2 * WIDTH * 2, 0x7c00)
        last("not_finite", "row 2", rows=pb.Rows(n_rows=6, width=WIDTH, dtype=pb.DTYPE_F16, data=bytes(half)))
        last("bad_token", -1, VOCAB, ids=[*PROMPT[:-1], -1])

        def first(reason, *words, **fields):
            self.refused(lambda: self.wire.client.forward(pb.ForwardRequest(**fields)), "INVALID_ARGUMENT", reason, "w0",
                         *words)
        first("bad_request", 0, 128, ids=[])
        first("bad_request", 129, 128, ids=talk.ids(129))
        first("bad_request", 1000000, ids=[300] * 1000000)
        first("bad_token", 1024, VOCAB, ids=[VOCAB])
        first("bad_token", -2147483648, ids=[300, -2**31])
        first("bad_rows", "rows", ids=PROMPT, rows=good)

    def test_forward__in_a_storm(self):
        """More at once than there are sequences: each is answered, with logits or kv_full."""
        pb = nk.pb()
        call = self.wire.channel.unary_unary("/nakshatra.v1.Nakshatra/Forward", pb.ForwardRequest.SerializeToString,
                                             pb.ForwardReply.FromString)
        expected = self.wire.client.forward(pb.ForwardRequest(ids=PROMPT)).rows.data
        results = [call.future(pb.ForwardRequest(ids=PROMPT), timeout=nk.LONG_S) for _ in range(200)]
        n_good = 0
        for r in results:
            if r.exception():
                self.assertEqual((r.exception().code().name, nk.reason(r.exception())), ("RESOURCE_EXHAUSTED", "kv_full"))
            else:
                n_good += 1
                self.assertEqual(r.result().rows.data, expected)
        self.assertGreaterEqual(n_good, 4)


class Opening(Served):
    def bad(self, code, reason, *words, **fields):
        prompt = fields.pop("prompt", PROMPT)
        r = self.wire.generate(prompt, fields.pop("n", 4), **fields)
        self.refused(lambda: r, code, reason, *words)
        self.assertEqual(r.tokens, [])

    def test_session__ids(self):
        for n in 0, 15, 17, 1000:
            self.bad("INVALID_ARGUMENT", "bad_session", n, 16, session=bytes(n))
        running = self.wire.start(PROMPT, 30000, session=b"0123456789abcdef").until_tokens(1)
        self.bad("ALREADY_EXISTS", "session_exists", session=b"0123456789abcdef")
        running.cancel()

    def test_prompt(self):
        self.bad("INVALID_ARGUMENT", "no_prompt", prompt=[])
        self.bad("INVALID_ARGUMENT", "bad_token", -1, prompt=[1, -1])
        self.bad("INVALID_ARGUMENT", "bad_token", VOCAB, prompt=[1, VOCAB])
        self.bad("OUT_OF_RANGE", "context_length_exceeded", 5000000, prompt=[300] * 5000000)

    def test_counts__that_are_absurd(self):
        r = self.wire.start(PROMPT, 2**32 - 1, limits={"deadline_ms": 2**32 - 1, "stall_ms": 2**32 - 1}).until_tokens(3)
        self.assertEqual(self.wire.client.info().kv_tokens_free, 0)  # all there is, and no more
        r.cancel()
        self.chain.assert_idle()
        self.bad("INVALID_ARGUMENT", "bad_request", -5, n_logprobs=-5)
        self.bad("INVALID_ARGUMENT", "bad_request", 22, 21, n_logprobs=22)
        self.bad("INVALID_ARGUMENT", "bad_request", -5, prompt_logprobs=-5)
        self.bad("INVALID_ARGUMENT", "bad_request", 22, 21, prompt_logprobs=22)
        self.bad("INVALID_ARGUMENT", "bad_dtype", 3, dtype=3)
        self.bad("INVALID_ARGUMENT", "bad_route", 4294967295, stage_idx=2**32 - 1)
        self.refused(lambda: self.opened_late(n_tokens_max=2**32 - 1), "OUT_OF_RANGE", "context_length_exceeded",
                     4294967295, N_CTX)
        self.refused(lambda: self.opened_late(n_tokens_max=0), "OUT_OF_RANGE", "context_length_exceeded")

    def opened_late(self, **fields):
        stream = talk.Stream(self.late.channel)
        stream.send(self.last_open(**fields))
        stream.half_close()
        return stream.error()

    def test_resume__of_what_is_not_there(self):
        """A stage that is asked for KV it does not have, or that is another's, says 0 and begins anew."""
        self.wire.generate(talk.ids(100), 4, reuse=True, session=b"kept-session-abc")
        self.assertEqual(self.last.info().counters.sessions_kept, 1)
        for fields in (dict(resume_session=os.urandom(16), resume_tokens=50),
                       dict(resume_session=b"kept-session-abc", resume_tokens=50, resume_hash=1),
                       dict(resume_session=b"kept-session-abc", resume_tokens=2**32 - 1),
                       dict(resume_session=b"kept-session-abc", resume_tokens=150),
                       dict(resume_session=b"kept", resume_tokens=5)):
            stream = talk.Stream(self.late.channel)
            stream.send(self.last_open(**fields))
            self.assertEqual(stream.recv().opened.resume_tokens, 0)
            stream.cancel()
        self.assertEqual(self.wire.generate(talk.ids(100) + [300], 4, reuse=True).done.n_reused, 100)

    def test_sampling(self):
        pb = nk.pb()
        for field, value in [("temperature", math.nan), ("temperature", -1), ("temperature", 1e30), ("top_k", -1),
                             ("top_p", 2), ("top_p", -0.5), ("min_p", math.nan), ("typical_p", math.inf),
                             ("repeat_penalty", -1), ("presence_penalty", math.inf), ("frequency_penalty", 1e9),
                             ("penalty_last_n", -2), ("dry_multiplier", -1), ("dry_base", 0.5),
                             ("dry_allowed_length", -1), ("dry_penalty_last_n", -7), ("mirostat", 3), ("mirostat", -1),
                             ("mirostat_tau", -1), ("mirostat_eta", 2)]:
            with self.subTest(f"{field} {value}"):
                self.bad("INVALID_ARGUMENT", "bad_sampling", field, sampling={field: value})
        for bias in ([pb.LogitBias(id=VOCAB, bias=1)], [pb.LogitBias(id=-1, bias=1)],
                     [pb.LogitBias(id=1, bias=math.nan)], [pb.LogitBias(id=1, bias=math.inf)],
                     [pb.LogitBias(id=1)] * 1025, [pb.LogitBias(id=1)] * 500000):
            self.bad("INVALID_ARGUMENT", "bad_sampling", "logit_bias", sampling={"logit_bias": bias})
        everything = [pb.LogitBias(id=i, bias=-math.inf) for i in range(VOCAB)]
        self.bad("INTERNAL", "bad_logits", sampling={"logit_bias": everything, "temperature": 1})
        # Large and legal.
        r = self.wire.generate(PROMPT, 3, sampling={"temperature": 100, "penalty_last_n": 2**31 - 1, "top_k": 2**31 - 1,
                                                    "repeat_penalty": 1000, "dry_multiplier": 1, "dry_penalty_last_n": 2**31 - 1})
        self.assertEqual(r.code, "OK", r.error)

    def test_stops(self):
        self.bad("INVALID_ARGUMENT", "bad_stop", 17, 16, stop=[b"x"] * 17)
        self.bad("INVALID_ARGUMENT", "bad_stop", 1000000, stop=[b"x"] * 1000000)
        self.bad("INVALID_ARGUMENT", "bad_stop", 257, 256, stop=[b"x" * 257])
        self.bad("INVALID_ARGUMENT", "bad_stop", stop=[b"x" * 10000000])
        self.bad("INVALID_ARGUMENT", "bad_stop", stop=[b"a", b""])
        self.bad("INVALID_ARGUMENT", "bad_stop", stop=[b"a\0b"])
        self.bad("INVALID_ARGUMENT", "bad_stop", stop=[b"\xff\xfe"])
        r = self.wire.generate(PROMPT, 8, stop=[(b"%c" % (97 + i)) * 256 for i in range(16)])
        self.assertEqual((r.code, len(r.ids)), ("OK", 8))

    def test_open__that_would_wait_with_megabytes_is_refused_by_the_first_stage(self):
        """It is kept while the session waits for room: once a session could hold 65 MiB, and sixty-four wait."""
        pb = nk.pb()
        for what in (dict(stop=[b"x" * 256] * 17), dict(stop=[b"x" * 257]), dict(sampling={"grammar": "x" * 65537}),
                     dict(sampling={"logit_bias": [pb.LogitBias(id=1)] * 1025}),
                     dict(resume_session=bytes(50 << 20)),
                     dict(route=[pb.Stage(address=self.first.address, layer_end=4),
                                 pb.Stage(address="x" * (50 << 20), layer_begin=4, layer_end=8)])):
            r = self.wire.generate(PROMPT, 1000, **what)
            self.assertEqual(r.code, "INVALID_ARGUMENT", list(what))
            self.assertIn("w0", r.error.details())
        message = self.last_open(prompt_ids=[300] * 10000000)  # a later stage wants none
        stream = talk.Stream(self.late.channel)
        stream.send(message)
        self.refused(stream.error, "INVALID_ARGUMENT", "bad_request", "w1", 262144)

    def test_grammars__that_are_none(self):
        for grammar in ["root", "root ::=", 'root ::= "a', 'root ::= other', 'notroot ::= "a"', "root ::= (", "\x01",
                        'root ::= "a"{5', 'root ::= [', 'root ::= "\\x', 'root ::= root "a"', "root ::= root",
                        'root ::= a\na ::= b\nb ::= a "x"', 'root ::= ""*', "((((", 'root ::= "a"{1,0}',
                        'root ::= "a"{99999999999}', 'root ::= "a"{1000000}', "root ::= " + "(" * 30000 + '"a"' + ")" * 30000,
                        "root ::= " + "(" * 60000, "x" * 70000, 'root ::= "a" # ' + "y" * 70000,
                        "".join(f'r{i} ::= r{i + 1} r{i + 1}\n' for i in range(1500)) + 'r1500 ::= "a"\nroot ::= r0']:
            with self.subTest(grammar[:40]):
                r = self.wire.generate(PROMPT, 4, sampling={"grammar": grammar})
                self.assertIn((r.code, r.reason), [("INVALID_ARGUMENT", "bad_grammar"), ("INVALID_ARGUMENT", "bad_sampling"),
                                                   ("OK", None), ("INTERNAL", "bad_logits")])
                self.assertEqual(self.wire.health(), "SERVING")

    def test_grammars__that_cost(self):
        """Legal, and made to be slow: other sessions go on meanwhile."""
        other = self.wire.start(PROMPT, 1500).until_tokens(1)
        for grammar in ['root ::= ("a" | "b"){0,500}', "root ::= " + " ".join(['"a"?'] * 500) + ' "b"',
                        "root ::= (" + " | ".join(f'"{i}"' for i in range(3000)) + ")*",
                        'root ::= (((("a"?)*)?)*)*', "root ::= [^\\x00]*",
                        "".join(f'r{i} ::= r{i + 1} | r{i + 1} "a" | "b"\n' for i in range(12)) + 'r12 ::= "c"\nroot ::= r0*']:
            with self.subTest(grammar[:40]):
                n = len(other.result.tokens)
                r = self.wire.generate(PROMPT, 6, sampling={"grammar": grammar, "temperature": 1, "seed": 1}, timeout=30)
                self.assertIn(r.code, ["OK", "INVALID_ARGUMENT"], r.error)
                self.assertTrue(other.ended or other.until(lambda g: len(g.tokens) > n))
        other.cancel()
        other.wait()


class Stepping(Served):
    """A client in the first stage's place. Rightly done it is a way to drive a stage; wrongly done it is refused."""

    def bad(self, messages, code, reason, *words, stream=None, **fields):
        stream = stream or self.driven(**fields)
        stream.send(*messages)
        self.refused(stream.error, code, reason, "w1", *words)

    def bad_in_flight(self, messages, code, reason, *words, **fields):
        """What is wrong only while steps are unanswered, which they may not be when this program is kept waiting: until they
        were."""
        def once():
            stream = self.driven(**fields)
            stream.send(*messages, nk.pb().InferenceRequest(finish=nk.pb().Finish()))
            error = stream.error()
            return error if error is not None and nk.reason(error) == reason else None
        self.refused(lambda: nk.wait_for(once, step=0), code, reason, "w1", *words)

    def tokens(self, stream, n):
        found = []
        for _ in range(n):
            r = stream.recv()
            found.append((r.token.step, r.token.id) if r.WhichOneof("kind") == "token" else (r.step_done.step, None))
        return found

    def chunks(self, n):
        """Steps that take a while, so that what follows finds them unanswered."""
        ids = talk.ids(128)
        rows = self.rows(ids)
        return [self.step(1 + k, 128 * k, ids, rows, sample=False) for k in range(n)]

    def test_steps__by_hand_give_the_golden_tokens(self):
        expected = self.wire.generate(PROMPT, 5).ids
        stream, ids = self.driven(), list(PROMPT)
        stream.send(self.step(1, 0, ids[:4], self.rows(ids[:4]), sample=False))
        self.assertEqual(self.tokens(stream, 1), [(1, None)])
        stream.send(self.step(2, 4, ids[4:], self.rows(ids, 4)))
        for n in range(5):
            (step, token), = self.tokens(stream, 1)
            self.assertEqual((step, token), (n + 2, expected[n]))
            ids.append(token)
            stream.send(self.step(n + 3, len(ids) - 1, ids[-1:], self.rows(ids, len(ids) - 1)))
        self.tokens(stream, 1)
        # Back to an earlier position: what came after it is forgotten.
        stream.send(self.step(20, 3, ids[3:6], self.rows(ids[:6], 3)))
        self.assertEqual(self.tokens(stream, 1), [(20, expected[0])])
        stream.send(nk.pb().InferenceRequest(finish=nk.pb().Finish()))
        self.assertEqual(stream.recv().WhichOneof("kind"), "done")
        self.assertIsNone(stream.error())

    def test_steps__several_at_once_are_answered_in_order(self):
        ids = PROMPT + self.wire.generate(PROMPT, 3).ids
        stream = self.driven()
        stream.send(self.step(1, 0, ids[:6], self.rows(ids[:6])), *[
            self.step(k + 2, 6 + k, ids[6 + k:7 + k], self.rows(ids[:7 + k], 6 + k), sample=k != 1) for k in range(3)])
        got = self.tokens(stream, 4)
        self.assertEqual([s for s, _ in got], [1, 2, 3, 4])
        self.assertEqual((got[0][1], got[1][1], got[2][1]), (ids[6], ids[7], None))

    def test_order__of_messages(self):
        pb = nk.pb()
        step, finish = self.step(1, 0, PROMPT, self.rows(PROMPT)), pb.InferenceRequest(finish=pb.Finish())
        for message in step, finish:
            self.bad([message], "INVALID_ARGUMENT", "unexpected_message", stream=talk.Stream(self.late.channel))
        self.bad([self.last_open()], "INVALID_ARGUMENT", "unexpected_message", "twice")
        stream = self.wire.stream()
        stream.send(self.wire.open(PROMPT, 30000))
        stream.recv()
        stream.send(step)
        self.refused(stream.error, "INVALID_ARGUMENT", "unexpected_message", "w0", "first stage")
        stream = self.wire.stream()
        stream.send(self.wire.open(PROMPT, 30000))
        stream.recv()
        stream.send(finish)
        self.refused(stream.error, "INVALID_ARGUMENT", "unexpected_message", "w0")
        # Finish at once: an empty session is done.
        stream = self.driven()
        stream.send(finish)
        self.assertEqual(stream.recv().WhichOneof("kind"), "done")
        self.assertIsNone(stream.error())
        # Finish with steps unanswered, and steps after Finish.
        self.bad_in_flight(self.chunks(3), "INVALID_ARGUMENT", "unexpected_message", "idle", n_tokens_max=2000)

    def test_step__numbers(self):
        rows = self.rows(PROMPT)
        self.bad([self.step(0, 0, PROMPT, rows)], "INVALID_ARGUMENT", "bad_step", 0)
        for second in 5, 4, 1:
            self.bad([self.step(5, 0, PROMPT, rows), self.step(second, 6, [300], self.rows([*PROMPT, 300], 6))],
                     "INVALID_ARGUMENT", "bad_step", second, 5)

    def test_step__sizes(self):
        pb, rows = nk.pb(), self.rows(PROMPT)
        self.bad([self.step(1, 0, [], rows)], "INVALID_ARGUMENT", "bad_step", 0)
        self.bad([self.step(1, 0, talk.ids(129), rows)], "INVALID_ARGUMENT", "bad_step", 129, 128)
        self.bad([self.step(1, 0, [300] * 3000000, rows)], "INVALID_ARGUMENT", "bad_step", 3000000)
        self.bad([self.step(1, 0, PROMPT, None)], "INVALID_ARGUMENT", "bad_rows", "missing")
        self.bad([self.step(1, 0, PROMPT[:5], rows)], "INVALID_ARGUMENT", "bad_rows", 6, 5)
        self.bad([self.step(1, 0, PROMPT, pb.Rows(n_rows=6, width=WIDTH, data=rows.data + b"x"))], "INVALID_ARGUMENT",
                 "bad_rows", 3073)
        self.bad([self.step(1, 0, [*PROMPT[:5], VOCAB], rows)], "INVALID_ARGUMENT", "bad_token", VOCAB)
        nan = rows.data[:-4] + struct.pack("<f", math.nan)
        self.bad([self.step(1, 0, PROMPT, pb.Rows(n_rows=6, width=WIDTH, data=nan))], "INVALID_ARGUMENT", "not_finite",
                 "row 5")

    def test_positions__out_of_range(self):
        rows, row = self.rows(PROMPT), self.rows(PROMPT[:1])
        self.bad([self.step(1, 1, PROMPT, rows)], "OUT_OF_RANGE", "gap", 1, 0)
        self.bad([self.step(1, 2**32 - 1, PROMPT, rows)], "OUT_OF_RANGE", "gap", 4294967295)
        self.bad([self.step(1, 0, PROMPT, rows), self.step(2, 8, [300], row)], "OUT_OF_RANGE", "gap", 8, 6)
        self.bad([self.step(1, 0, PROMPT, rows)], "OUT_OF_RANGE", "context_length_exceeded", 6, 5, n_tokens_max=5)
        self.bad_in_flight([*self.chunks(3), self.step(9, 3, [300], row)], "FAILED_PRECONDITION", "steps_in_flight",
                           n_tokens_max=2000)

    def test_window__exceeded(self):
        self.bad_in_flight(self.chunks(12), "RESOURCE_EXHAUSTED", "window_exceeded", 4, n_tokens_max=2000)

    def test_group__that_never_comes_together(self):
        """Rows said to be run together with others that do not exist are run after a moment."""
        stream = self.driven()
        stream.send(self.step(1, 0, PROMPT, self.rows(PROMPT), sample=False))
        self.tokens(stream, 1)
        stream.send(self.step(2, 6, [300], self.rows([*PROMPT, 300], 6), group=2**64 - 1, group_size=2**32 - 1))
        self.tokens(stream, 1)

    def test_rows__that_are_finite_and_absurd(self):
        """Computing with them overflows: a token or an error, and the next session is right."""
        pb = nk.pb()
        for value in 3e38, -1e30, 1e-45:
            rows = struct.pack(f"<{6 * WIDTH}f", *[value] * (6 * WIDTH))
            stream = self.driven()
            stream.send(self.step(1, 0, PROMPT, pb.Rows(n_rows=6, width=WIDTH, data=rows)))
            try:
                self.assertLess(stream.recv().token.id, VOCAB)
            except grpc.RpcError as e:
                self.assertEqual((e.code().name, nk.reason(e)), ("INTERNAL", "bad_logits"))

    def test_idle__sessions_end(self):
        w = nk.Worker("--model", nk.KJV, "--layers", "4-8", "--threads", 1, "--idle-ms", 300, id="w1")
        try:
            with nk.Client(w.address) as c:
                pb = nk.pb()
                stream = talk.Stream(c.channel)
                stream.send(pb.InferenceRequest(open=pb.Open(
                    session=os.urandom(16), n_tokens_max=10, stage_idx=1,
                    route=[pb.Stage(layer_end=4), pb.Stage(layer_begin=4, layer_end=8)])))
                self.refused(stream.error, "DEADLINE_EXCEEDED", "idle", "w1", 300)
            w.assert_idle()
        finally:
            w.stop()


class Crowds(Served):
    def test_watchers__that_stay_take_no_sessions_place(self):
        h = talk.proto("health")
        watch = self.wire.channel.unary_stream("/grpc.health.v1.Health/Watch", h.HealthCheckRequest.SerializeToString,
                                               h.HealthCheckResponse.FromString)
        calls, refused = [], []
        try:
            for _ in range(150):
                call = watch(h.HealthCheckRequest(), timeout=nk.LONG_S)
                calls.append(call)
                try:
                    next(call)
                except grpc.RpcError as e:
                    refused.append((e.code().name, nk.reason(e)))
            self.assertEqual(refused, [("RESOURCE_EXHAUSTED", "too_many_calls")] * 22)
            r = self.wire.generate(PROMPT, 8)
            self.assertEqual((r.code, len(r.ids)), ("OK", 8))
        finally:
            for call in calls:
                call.cancel()
        self.assertTrue(nk.wait_for(self.healthy, 30))

    def healthy(self):
        try:
            return self.wire.health() == "SERVING"
        except grpc.RpcError:
            return False

    def test_thousand__streams_that_never_send(self):
        """Others are served meanwhile, and every one of these ends."""
        ended, lock, hold = [], threading.Lock(), threading.Event()

        def watch(call):
            with lock:
                ended.append((call.code().name, nk.reason(call)))

        def nothing():
            hold.wait()
            return
            yield
        before = self.first.info().counters.sessions_opened
        method = self.wire.channel.stream_stream("/nakshatra.v1.Nakshatra/Inference")
        for _ in range(1000):
            call = method(nothing(), timeout=nk.LONG_S)
            call.add_done_callback(lambda c=call: watch(c))
        try:
            r = self.wire.generate(PROMPT, 8)
            self.assertEqual((r.code, len(r.ids)), ("OK", 8), r.error)
            self.assertTrue(nk.wait_for(lambda: len(ended) == 1000))
            self.assertEqual(set(ended), {("DEADLINE_EXCEEDED", "no_open")})
            # None of them was a session: it has not said what it wants.
            self.assertEqual(self.first.info().counters.sessions_opened, before + 1)
        finally:
            hold.set()

    def test_unary__calls_that_never_send_end_too(self):
        """Each once held one of the calls that a worker takes for as long as its client liked."""
        hold = threading.Event()

        def nothing():
            hold.wait()
            return
            yield
        calls = [self.wire.channel.stream_unary("/nakshatra.v1.Nakshatra/" + name).future(nothing(), timeout=nk.LONG_S)
                 for name in ("Info", "Forward", "Sleep", "Wake") * 10]
        try:
            for c in calls:
                e = c.exception()
                self.assertEqual((e.code().name, nk.reason(e)), ("DEADLINE_EXCEEDED", "no_request"))
        finally:
            hold.set()

    def test_cancel__storm(self):
        """Sessions that are cancelled before, while and after they open."""
        for n in range(10):
            streams = [self.wire.stream() for _ in range(30)]
            for k, s in enumerate(streams):
                s.send(self.wire.open(talk.ids(5 + 3 * k), 100, reuse=k % 2 == 0))
            if n % 3 == 1:
                self.wire.health()
            if n % 3 == 2:
                for s in streams[:4]:
                    s.recv()
            for s in streams:
                s.cancel()
        self.chain.assert_idle()

    def test_client__that_does_not_read(self):
        """Its tokens wait in bounded queues, and cost nothing when it goes."""
        before = self.last.info().counters.sessions_opened
        streams = [self.wire.stream() for _ in range(3)]
        for s in streams:
            s.send(self.wire.open(PROMPT, 600))
        self.assertTrue(nk.wait_for(lambda: self.last.info().counters.sessions_opened == before + 3, 30))
        self.assertTrue(nk.wait_for(lambda: self.last.info().counters.sessions_open == 0, 30))
        for s in streams:
            s.cancel()


class NextStage(unittest.TestCase):
    """A first stage whose next one is a Python server that answers as a test tells it to."""

    @classmethod
    def setUpClass(cls):
        cls.server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.max_send_message_length", -1)])
        cls.raw = None
        pb = nk.pb()

        def inference(requests, context):
            yield from cls.behave(requests, context)
        handler = grpc.method_handlers_generic_handler("nakshatra.v1.Nakshatra", {
            "Inference": grpc.stream_stream_rpc_method_handler(
                inference, pb.InferenceRequest.FromString,
                lambda m: m if isinstance(m, bytes) else m.SerializeToString())})
        cls.server.add_generic_rpc_handlers([handler])
        cls.port = cls.server.add_insecure_port("127.0.0.1:0")
        cls.server.start()
        cls.address = f"127.0.0.1:{cls.port}"
        cls.first = nk.Worker("--model", nk.KJV, "--layers", "0-4", "--threads", 1, "--ctx", 1024,
                              id="first", peers=[cls.address])

        cls.llama_version = cls.first.info().llama_version

        class Peer:
            address, begin, end = cls.address, 4, 8
        cls.wire = talk.Wire([cls.first, Peer])

    @classmethod
    def tearDownClass(cls):
        cls.wire.__exit__()
        code = cls.first.stop()
        cls.server.stop(0)
        assert code == 0, cls.first.log()

    def tearDown(self):
        self.first.assert_idle()
        self.assertEqual(self.wire.health(), "SERVING")

    def opened(self, **changes):
        pb = nk.pb()
        info = dict(worker_id="liar", model_sha256=nk.sha256(nk.KJV), layer_begin=4, layer_end=8, layer_count=8,
                    n_embd=WIDTH, n_ctx=1024, llama_version=self.llama_version)
        info.update({k: v for k, v in changes.items() if k in info})
        rest = {k: v for k, v in changes.items() if k not in info}
        rest.setdefault("stages", [pb.StageInfo(**info)])
        return pb.InferenceReply(opened=pb.Opened(**rest))

    def token(self, step, id=300, **more):
        pb = nk.pb()
        return pb.InferenceReply(token=pb.Token(step=step, id=id, text=b"x", **more))

    def lied_to(self, behave, code, reason, *words, prompt=PROMPT, n=20, **fields):
        type(self).behave = staticmethod(behave)
        r = self.wire.generate(prompt, n, timeout=20, **fields)
        talk.complaint(self, lambda: r, code, reason, *words)
        self.first.assert_idle()
        return r

    def test_opened__that_does_not_fit(self):
        for words, changes in [(("model_mismatch", "liar"), {"model_sha256": "0" * 64}),
                               (("width_mismatch", "64"), {"n_embd": 64}),
                               (("range_mismatch", "3-8"), {"layer_begin": 3}),
                               (("range_mismatch", "7"), {"layer_end": 7}),
                               (("range_mismatch", "9"), {"layer_count": 9}),
                               (("llama_mismatch", "liar", "0.0.1", self.llama_version), {"llama_version": "0.0.1"})]:
            with self.subTest(changes):
                def behave(requests, context):
                    next(requests)
                    yield self.opened(**changes)
                    next(requests, None)
                self.lied_to(behave, "FAILED_PRECONDITION", *words)

        def twice(requests, context):
            next(requests)
            yield self.opened()
            yield self.opened()
            next(requests, None)
            next(requests, None)
        self.lied_to(twice, "INTERNAL", "bad_peer", "twice")

        def nobody(requests, context):
            next(requests)
            yield self.opened(stages=[])
            next(requests, None)
        self.lied_to(nobody, "INTERNAL", "bad_peer", "0 stages", "1")

        def crowd(requests, context):
            next(requests)
            yield self.opened(stages=[nk.pb().StageInfo()] * 100000)
            next(requests, None)
        self.lied_to(crowd, "INTERNAL", "bad_peer", "100000")

    def test_resume__of_more_than_there_is(self):
        """0xffffffff tokens were -1: rows would have been read before the buffer."""
        for n in 2**32 - 1, 2**31, 10**6, 7:
            with self.subTest(n):
                def behave(requests, context):
                    open = next(requests).open
                    yield self.opened(resume_tokens=n)
                    step = next(requests).step
                    self.seen = (open.resume_tokens, step.pos, len(step.ids))
                    yield self.token(step.step, finish=nk.pb().FINISH_EOG)
                    next(requests)
                    yield nk.pb().InferenceReply(done=nk.pb().Done())
                type(self).behave = staticmethod(behave)
                r = self.wire.generate(PROMPT, 4, reuse=True)
                self.assertEqual((r.code, r.done.n_reused), ("OK", self.seen[0]), r.error)
                self.assertEqual(self.seen[1:], (self.seen[0], len(PROMPT) - self.seen[0]))

    def test_answers__to_the_wrong_step(self):
        pb = nk.pb()

        def answer(*replies, chunks=1):
            def behave(requests, context):
                next(requests)
                yield self.opened()
                for _ in range(chunks):
                    next(requests)
                yield from replies
                for _ in requests:
                    pass
            return behave
        done = pb.InferenceReply(step_done=pb.StepDone(step=1))
        self.lied_to(answer(self.token(2)), "INTERNAL", "bad_peer", 2)
        self.lied_to(answer(self.token(2**64 - 1)), "INTERNAL", "bad_peer")
        self.lied_to(answer(self.token(1), self.token(1)), "INTERNAL", "bad_peer", 1)
        self.lied_to(answer(self.token(1, id=VOCAB)), "INTERNAL", "bad_peer", VOCAB)
        self.lied_to(answer(self.token(1, id=-1)), "INTERNAL", "bad_peer", -1)
        self.lied_to(answer(done), "INTERNAL", "bad_peer", "no token")
        self.lied_to(answer(self.token(1), chunks=2), "INTERNAL", "bad_peer", "chunk", prompt=talk.ids(200))
        self.lied_to(answer(pb.InferenceReply(done=pb.Done())), "INTERNAL", "bad_peer")
        self.lied_to(answer(pb.InferenceReply()), "INTERNAL", "bad_peer")
        self.lied_to(answer(b"\xff\xff"), "INTERNAL", "bad_peer", "2 bytes")
        self.lied_to(answer(bytes(MESSAGE_MAX + 1)), "RESOURCE_EXHAUSTED", "message_too_large", self.address)

    def test_tokens__without_end(self):
        """More tokens than were asked for."""
        def behave(requests, context):
            next(requests)
            yield self.opened()
            n = 0
            for r in requests:
                if r.HasField("step"):
                    n = r.step.step
                    yield self.token(n)
        self.lied_to(behave, "INTERNAL", "bad_peer", n=10)

    def test_endings(self):
        def at_once(requests, context):
            next(requests)
            return
            yield
        self.lied_to(at_once, "INTERNAL", "bad_peer", self.address)

        def status(requests, context):
            next(requests)
            context.set_trailing_metadata([("nk-reason", "x" * 500)])
            context.abort(grpc.StatusCode.ABORTED, "y" * 5000)
            yield
        r = self.wire.generate
        type(self).behave = staticmethod(status)
        r = self.wire.generate(PROMPT, 4)
        self.assertEqual(r.code, "ABORTED")
        self.assertIn(self.address, r.error.details())
        self.assertLess(len(r.error.details()), 600)

        def inject(requests, context):
            next(requests)
            context.set_trailing_metadata([("nk-reason", "kv_full")])
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "none\nwarn worker forged=1")
            yield
        self.lied_to(inject, "RESOURCE_EXHAUSTED", "kv_full", self.address)
        self.assertNotRegex(self.first.log(), r"(?m)^warn worker forged")

    def test_stream__that_is_done_and_not_ended_is_ended(self):
        """Of a session that is kept, too: such streams once stayed open for good."""
        hold = threading.Event()
        self.addCleanup(hold.set)

        def behave(requests, context):
            next(requests)
            yield self.opened()
            yield self.token(next(requests).step.step, finish=nk.pb().FINISH_EOG)
            next(requests)
            yield nk.pb().InferenceReply(done=nk.pb().Done())
            hold.wait(nk.LONG_S)
        type(self).behave = staticmethod(behave)
        for reuse in False, True:
            r = self.wire.generate(talk.ids(9, seed=77), 4, reuse=reuse)
            self.assertEqual(r.code, "OK", r.error)
            self.first.assert_idle()

    def test_silence(self):
        def silent(requests, context):
            for _ in requests:
                pass
            return
            yield

        def later(requests, context):
            next(requests)
            yield self.opened()
            for _ in requests:
                pass
        for behave in silent, later:
            self.lied_to(behave, "DEADLINE_EXCEEDED", "stalled", self.address, limits={"stall_ms": 1500})


if __name__ == "__main__":
    unittest.main()

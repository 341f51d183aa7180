"""Sessions that outlive a worker, at the wire: a stage is killed in the middle of a generation and started again with nothing, and the
session is resumed. What comes then must be what comes undisturbed, to the last bit where the workers are deterministic."""
import random
import unittest

import grpc

import nk
import talk

HOLD_MS = 600_000  # longer than a test takes: what is held is there when it is wanted
PROMPT = talk.ids(150, seed=5)  # two whole chunks and a part of one
OPTIONS = ["--ctx", 512 * 8, "--sequences", 8]


class Resumable:
    """A generation that is resumed as often as it is lost: the client that keeps ids and what was said."""

    def __init__(self, chain, prompt, n, hold_ms=HOLD_MS, **fields):
        self.hold_ms = hold_ms
        self.chain, self.prompt, self.n, self.fields = chain, prompt, n, fields
        self.tokens, self.done, self.opened, self.attempt = [], None, [], 0
        self.session = random.randbytes(16)
        self.wire = None
        self.open()

    def open(self, **more):
        fields = {**self.fields, "session": self.session, "hold_ms": self.hold_ms, **more}
        n = self.n
        if self.attempt:
            fields.update(attempt=self.attempt, generated_ids=[t.id for t in self.tokens])
            if self.opened:
                fields["chunk"], n = self.opened[0].chunk, self.opened[0].n_predict
        if self.wire:
            self.wire.__exit__()
        self.wire = talk.Wire(self.chain.workers)
        self.stream = self.wire.stream(600)
        self.stream.send(self.wire.open(self.prompt, n, **fields))

    def read(self, until=None):
        """Up to so many tokens in all, or the end; the error, or None."""
        try:
            for reply in self.stream.call:
                kind = reply.WhichOneof("kind")
                if kind == "opened":
                    self.opened.append(reply.opened)
                elif kind == "token":
                    assert reply.token.index == len(self.tokens), "a token is missing or comes twice"
                    self.tokens.append(reply.token)
                elif kind == "done":
                    self.done = reply.done
                else:
                    assert kind == "replaying", kind
                if until is not None and len(self.tokens) >= until:
                    return None
        except grpc.RpcError as e:
            return e
        finally:
            if until is None:
                self.stream.half_close()
        return None

    def resume(self, **more):
        self.attempt += 1
        self.open(**more)
        return self

    @property
    def finished(self):
        return bool(self.tokens and self.tokens[-1].finish)

    def outcome(self):
        return ([(t.id, t.index, t.text, t.finish, t.prob.logprob, [(p.id, p.logprob) for p in t.top])
                 for t in self.tokens], self.done and (self.done.finish, self.done.n_prompt, self.done.n_generated,
                                                       self.done.stop_string))


def some(*cases):
    """All of them; under a sanitizer, where each worker takes long to start, the first ones: the code is the same."""
    return cases[:2] if nk.SANITIZED else cases


def held(worker):
    return worker.info().counters.sessions_held


class Lost(unittest.TestCase):
    """Workers that are lost, and what is left of a session. No tests."""
    model, ranges, options = nk.KJV, "0-3,3-6,6-8", (*OPTIONS, "--deterministic")

    @classmethod
    def setUpClass(cls):
        cls.chain = nk.Chain(cls.model, cls.ranges, *cls.options)

    @classmethod
    def tearDownClass(cls):
        cls.chain.close()

    def tearDown(self):
        self.chain.assert_idle()
        for w in self.chain.workers:
            c = w.info().counters
            self.assertEqual((c.sessions_held, c.journal_bytes, c.journal_spilled_bytes), (0, 0, 0), w.id)

    def replace(self, *which):
        """kill -9, and a new process with the same layers at the same address."""
        for i in which:
            self.chain.workers[i].kill()
        for i in which:
            self.chain.start(i, listen=self.chain.workers[i].address)

    def goes_on(self, prompt, n, kills, **fields):
        """kills: (tokens that have come, worker or workers) one after the other."""
        fields.setdefault("n_logprobs", 4)
        plain = Resumable(self.chain, prompt, n, **fields)
        self.assertIsNone(plain.read())
        seed = plain.opened[0].seed
        if "sampling" in fields:
            fields["sampling"] = {**fields["sampling"], "seed": seed}
        g = Resumable(self.chain, prompt, n, **fields)
        for at, which in kills:
            self.assertIsNone(g.read(until=at))
            self.replace(*which)
            error = g.read()
            if error is None:
                self.assertTrue(g.finished)
                break
            self.assertIn((error.code().name, nk.reason(error)),
                          [("UNAVAILABLE", "peer_gone"), ("UNAVAILABLE", None)], error.details())
            g.resume()
        error = g.read()
        self.assertIsNone(error, error and error.details())
        self.assertEqual(g.outcome(), plain.outcome())
        return g


class Killed(Lost):
    """Three deterministic workers: bit for bit."""

    def test_any_stage_in_the_middle_of_an_answer(self):
        for i in range(3):
            with self.subTest(worker=i):
                g = self.goes_on(PROMPT, 40, [(12, [i])])
                # Nobody but the stage that is new had anything to compute again.
                lacking = [s.held == 0 for s in g.opened[-1].stages]
                self.assertEqual(lacking, [k == i for k in range(3)])

    def test_in_the_prompt(self):
        """Before a token has come; also of a prompt of one chunk."""
        for i in range(3):
            with self.subTest(worker=i):
                self.goes_on(talk.ids(390, seed=6), 8, [(0, [i])])
        self.goes_on(talk.ids(3, seed=6), 8, [(0, [1])])

    def test_several(self):
        """At once, and one after the other, also in the recovery itself."""
        for which in some([0, 1, 2], [0, 2], [0, 1], [1, 2]):
            with self.subTest(workers=which):
                self.goes_on(PROMPT, 30, [(9, which)])
        self.goes_on(PROMPT, 60, [(5, [1]), (6, [2]), (7, [0]), (30, [1]), (31, [1])])

    def test_whatever_chooses_the_tokens(self):
        """Draws are counted, and what the samplers have seen is seen again: a stage that is new goes on with the same."""
        grammar = 'root ::= [a-z ]+ "." [A-Z ]+'
        for sampling in some({"grammar": grammar, "temperature": 0.9}, {"temperature": 0.8, "mirostat": 2},
                             {"temperature": 1.0, "top_k": 40, "top_p": 0.95}, {"temperature": 0.8, "mirostat": 1},
                             {"repeat_penalty": 1.3, "frequency_penalty": 0.5}, {"dry_multiplier": 0.8, "temperature": 0.7}):
            with self.subTest(sampling=sampling):
                self.goes_on(PROMPT, 40, [(15, [2]), (25, [0, 2])], sampling=sampling)

    def test_the_text(self):
        """What was held back since a stop string may begin there comes once; the string ends it."""
        g = self.goes_on(PROMPT, 60, [])
        text = b"".join(t.text for t in g.tokens)
        self.assertGreater(len(text), 60)
        for at in some(30, 20, 40):
            stop = [text[at + 8:at + 20], b"never said"]
            with self.subTest(stop=stop):
                n = next(i for i in range(len(g.tokens)) if len(b"".join(t.text for t in g.tokens[:i])) > at)
                self.goes_on(PROMPT, 60, [(n, [2])], stop=stop)

    def test_rows_that_no_journal_has(self):
        """They are computed again, from further up and at last from the ids."""
        with nk.Chain(nk.KJV, self.ranges, *self.options, "--journal-mib", 0) as chain:
            for which in ([1], [2], [1, 2], [0]):
                with self.subTest(workers=which):
                    Killed.goes_on(Within(self, chain), PROMPT, 30, [(9, which)])

    def test_forgotten(self):
        """The client says that nothing that is held is of use."""
        g = Resumable(self.chain, PROMPT, 30, n_logprobs=4)
        self.assertIsNone(g.read(until=9))
        self.replace(1)
        self.assertIsNotNone(g.read())
        g.resume(forget_held=True)
        self.assertIsNone(g.read())
        plain = Resumable(self.chain, PROMPT, 30, n_logprobs=4)
        self.assertIsNone(plain.read())
        self.assertEqual(g.outcome(), plain.outcome())
        self.assertEqual([s.held for s in g.opened[-1].stages], [0, 0, 0])

    def test_what_was_said_decides(self):
        """Stages hold a token that is not the client's (another route said another one): what they have of it is of no use, also
        where only the last stage's sampler and detokenizer know of it."""
        for which in 0, 1, 2:
            for back in 1, 2:
                g = Resumable(self.chain, PROMPT, 40, n_logprobs=4, sampling={"repeat_penalty": 2.0})
                self.assertIsNone(g.read(until=12))
                self.replace(which)
                g.read()
                g.tokens[-back].id = 300 if g.tokens[-back].id != 300 else 301
                n = len(g.tokens)
                self.assertIsNone(g.resume().read())
                fresh = Resumable.__new__(Resumable)
                fresh.__dict__.update(g.__dict__, wire=None, tokens=g.tokens[:n], session=random.randbytes(16), done=None)
                self.assertIsNone(fresh.resume().read())
                self.assertEqual([t.held for t in fresh.opened[-1].stages], [0, 0, 0])
                self.assertEqual(g.outcome(), fresh.outcome())

    def test_who_comes_later_has_it(self):
        """A call that lives is put out of the session by one that resumes it; a number that was there is refused."""
        g = Resumable(self.chain, PROMPT, 60, n_logprobs=4)
        self.assertIsNone(g.read(until=5))
        late = Resumable.__new__(Resumable)
        late.__dict__.update(g.__dict__, wire=None, tokens=list(g.tokens), opened=list(g.opened))
        late.resume()
        error = g.read()
        if error is not None:  # else it was through
            self.assertEqual((error.code().name, nk.reason(error)), ("ABORTED", "superseded"))
        self.assertIsNone(late.read())
        plain = Resumable(self.chain, PROMPT, 60, n_logprobs=4)
        self.assertIsNone(plain.read())
        self.assertEqual(late.outcome(), plain.outcome())

    def test_two_that_come_at_once(self):
        """While what runs has not come to rest: the last one has it, and nothing of the others is left (tearDown looks)."""
        prompt = talk.ids(390, seed=6)
        plain = Resumable(self.chain, prompt, 12, n_logprobs=4)
        self.assertIsNone(plain.read())
        for _ in range(5):
            g = Resumable(self.chain, prompt, 12, n_logprobs=4)
            others = []
            for _ in range(3):
                others.append((g.wire, g.stream))
                g.wire = None
                g.resume()
            self.assertIsNone(g.read())
            self.assertEqual(g.outcome(), plain.outcome())
            for wire, stream in others:
                stream.cancel()
                wire.__exit__()

    def test_lost_again_while_it_is_opened(self):
        """What the others hold stays held: it is not computed again."""
        g = Resumable(self.chain, PROMPT, 40, n_logprobs=4)
        self.assertIsNone(g.read(until=12))
        address = self.chain.workers[2].address
        self.chain.workers[2].kill()
        self.assertIsNotNone(g.read())
        for _ in range(3):
            self.assertEqual(g.resume().read().code().name, "UNAVAILABLE")
        self.chain.start(2, listen=address)
        # gRPC lets some time pass before it tries again to connect.
        self.assertTrue(nk.wait_for(lambda: g.resume().read() is None))
        plain = Resumable(self.chain, PROMPT, 40, n_logprobs=4)
        self.assertIsNone(plain.read())
        self.assertEqual(g.outcome(), plain.outcome())
        self.assertEqual([s.held > len(PROMPT) for s in g.opened[-1].stages], [True, True, False])

    def test_a_worker_that_is_shut_down(self):
        """In good order: the others hold what they have as if it had died."""
        with nk.Chain(nk.KJV, self.ranges, *self.options, "--drain-ms", 0) as chain:
            g = Resumable(chain, PROMPT, 90, n_logprobs=4)
            self.assertIsNone(g.read(until=12))
            address = chain.workers[1].address
            self.assertEqual(chain.workers[1].stop(), 0)
            self.assertIsNotNone(g.read())
            chain.start(1, listen=address)
            self.assertIsNone(g.resume().read())
            plain = Resumable(chain, PROMPT, 90, n_logprobs=4)
            self.assertIsNone(plain.read())
            self.assertEqual(g.outcome(), plain.outcome())
            self.assertEqual([s.held > 0 for s in g.opened[-1].stages], [True, False, True])

    def test_a_step_of_nowhere(self):
        """A stage before that is not to be trusted, and a session that was resumed."""
        pb = nk.pb()
        for pos, ids in ((0x7fffffff, [300]), (0xffffffff, [300]), (500, [300]), (0, [300] * 3), (3, [300])):
            with talk.Wire(self.chain.workers) as wire, talk.Stream(nk.Client(self.chain.workers[1].address).channel) as stream:
                stream.send(wire.open([300, 301], 8, stage_idx=1, n_tokens_max=20, attempt=1, hold_ms=1000))
                self.assertEqual(stream.recv().WhichOneof("kind"), "opened")
                stream.send(pb.InferenceRequest(step=pb.Step(step=1, pos=pos, ids=ids)))
                self.assertIn(nk.reason(stream.error()), ("gap", "bad_rows", "bad_step", "context_length_exceeded"))

    def test_cancelled_is_not_lost(self):
        g = Resumable(self.chain, PROMPT, 400)
        self.assertIsNone(g.read(until=3))
        g.stream.send(nk.pb().InferenceRequest(cancel=nk.pb().Cancel()))
        g.stream.half_close()
        error = g.read()
        self.assertEqual((error.code().name, nk.reason(error)), ("CANCELLED", "cancelled"))
        self.chain.assert_idle()
        self.assertEqual([held(w) for w in self.chain.workers], [0, 0, 0])

    def test_nobody_comes(self):
        """What is held is freed when its time is over, on every stage, and room is there for others only then."""
        g = Resumable(self.chain, PROMPT, 400, hold_ms=1500)
        g.stream.cancel()
        g = Resumable(self.chain, PROMPT, 400)
        g.open(hold_ms=2000)
        self.assertIsNone(g.read(until=3))
        g.stream.cancel()  # without a word: as if the client had died
        self.chain.assert_idle()
        g = Resumable(self.chain, PROMPT, 12)
        self.assertIsNone(g.read())

    def test_refused(self):
        wire = talk.Wire(self.chain.workers)
        for fields, reason, word in (
                ({"generated_ids": [300, 301]}, "bad_resume", "new session"),
                ({"attempt": 1, "hold_ms": 1000, "generated_ids": [300] * 8}, "bad_resume", "at most 8"),
                ({"attempt": 1, "hold_ms": 1000, "generated_ids": [-4]}, "bad_token", "-4"),
                ({"attempt": 1, "hold_ms": 1000, "chunk": 100000}, "chunk_mismatch", "100000")):
            with self.subTest(fields=fields):
                g = wire.generate(PROMPT, 8, **fields)
                self.assertEqual(g.reason, reason, g.error)
                self.assertIn(word, g.error.details())
        wire.__exit__()


class Within:
    """The methods of Lost over another chain."""
    replace, goes_on = Lost.replace, Lost.goes_on

    def __init__(self, case, chain):
        self.case, self.chain = case, chain

    def __getattr__(self, name):
        return getattr(self.case, name)


class Alone(Lost):
    """One worker with the whole model: its client is all that is left of the session."""
    ranges = "0-8"

    def test_killed(self):
        self.goes_on(PROMPT, 60, [(5, [0]), (30, [0])], sampling={"temperature": 0.9})
        self.goes_on(PROMPT, 8, [(0, [0])])


class Shared(Lost):
    """Workers whose sessions share KV cells, and rows as halves on the wire. A resumption computes many rows at once, in other shapes than
    before, so that the last bits may differ: what was said stays, and what follows is as probable as before."""
    options = OPTIONS

    def plain(self, prompt, n, **fields):
        g = Resumable(self.chain, prompt, n, n_logprobs=4, **fields)
        self.assertIsNone(g.read())
        return g

    def test_what_was_said_stays(self):
        for dtype in (nk.pb().DTYPE_F32, nk.pb().DTYPE_F16):
            plain = self.plain(PROMPT, 60, dtype=dtype)
            for which in some([1], [2], [0], [1, 2]):
                with self.subTest(dtype=dtype, workers=which):
                    g = Resumable(self.chain, PROMPT, 60, n_logprobs=4, dtype=dtype)
                    self.assertIsNone(g.read(until=20))
                    self.replace(*which)
                    g.read()
                    n = len(g.tokens)
                    self.assertIsNone(g.resume().read())
                    self.assertEqual([t.id for t in g.tokens[:n]], [t.id for t in plain.tokens[:n]])
                    self.assertTrue(g.finished)
                    for x, y in zip(plain.tokens, g.tokens):
                        self.assertAlmostEqual(x.prob.logprob, y.prob.logprob, delta=0.05)
                        if x.id != y.id:
                            break  # two that are as good as equally probable

    def test_all_at_once_is_a_prompt(self):
        """Where nothing is left, prompt and what was said are a prompt: to the bit."""
        g = Resumable(self.chain, PROMPT, 40, n_logprobs=4)
        self.assertIsNone(g.read(until=15))
        self.replace(0, 1, 2)
        n = len(g.tokens)  # what was said since is nobody's: on a slow machine it may be all of the answer
        self.assertIsNone(g.resume().read())
        plain = self.plain(PROMPT + [t.id for t in g.tokens[:n]], 40 - n)
        self.assertEqual([(t.id, t.prob.logprob) for t in g.tokens[n:]],
                         [(t.id, t.prob.logprob) for t in plain.tokens])

    def test_exact_when_it_is_asked_for(self):
        """Each run in its shape again, also here: as long as nobody else's rows were in it."""
        for which in ([0], [1], [2]):
            with self.subTest(workers=which):
                self.goes_on(PROMPT, 40, [(15, which)], exact=True)


if __name__ == "__main__":
    unittest.main()

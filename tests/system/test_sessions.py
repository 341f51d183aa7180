"""Sessions over chains of real workers: many at once, sampling, stop strings, log-probabilities, prefix reuse, limits,
queueing, the half-precision wire. What a run alone gives is what counts."""
import json
import math
import os
import struct
import tempfile
import unittest

import nk
import talk

GOLDEN = nk.golden("kjv-tiny")
PROMPT = GOLDEN["prompt"]
TEXT = GOLDEN["text"][len(GOLDEN["prompt_text"]):].encode()


def together(wire, requests):
    """Starts all of them before waiting for any."""
    return [r.wait() for r in [wire.start(**q) for q in requests]]


def outcome(g):
    """Everything of a generation that depends on the computation, to the bit."""
    return (g.code, g.finish, g.ids, g.text, [(t.prob.logprob, [(p.id, p.logprob) for p in t.top]) for t in g.tokens])


def same_tokens(case, a, b):
    """Two greedy generations (n_logprobs=4) whose computations differ in the last bits, by what ran in one batch: the
    same tokens, unless two are as good as equally probable. From there on they go different ways."""
    case.assertEqual((a.code, b.code), ("OK", "OK"), (a.error, b.error))
    for x, y in zip(a.tokens, b.tokens):
        case.assertAlmostEqual(x.prob.logprob, y.prob.logprob, delta=0.02)
        if x.id != y.id:
            case.assertLessEqual({x.id, y.id}, {p.id for p in x.top} & {p.id for p in y.top})
            return
    case.assertEqual((a.text, a.finish), (b.text, b.finish))


class Workers(unittest.TestCase):
    """Three workers with room for 16 sessions and some, and one with the whole model."""
    options = ()

    @classmethod
    def setUpClass(cls):
        options = ["--ctx", 512 * 20, "--sequences", 20, *cls.options]
        cls.chain = nk.Chain(nk.KJV, "0-3,3-6,6-8", *options)
        cls.wire = talk.Wire(cls.chain.workers)
        cls.one = nk.Worker("--model", nk.KJV, "--layers", "0-8", "--threads", 1, *options, id="one")
        cls.whole = talk.Wire([cls.one])

    @classmethod
    def tearDownClass(cls):
        cls.wire.__exit__()
        cls.whole.__exit__()
        cls.one.stop()
        cls.chain.close()

    def tearDown(self):
        self.chain.assert_idle()
        self.one.assert_idle()

    def requests(self, **more):
        """16 of unequal length; every third one draws with a seed."""
        for i in range(16):
            sampling = {"temperature": 0.9, "top_k": 50, "seed": i} if i % 3 == 0 else {}
            yield dict(prompt=talk.ids(1 + (i * 37) % 190, seed=i), n=8 + (i * 5) % 17, sampling=sampling, n_logprobs=3,
                       **more)

    def cancelled_among(self, requests):
        """All at once, and four more that are cancelled at different moments of their lives."""
        doomed = [self.wire.start(talk.ids(300, seed=90), 200), self.wire.start(talk.ids(200, seed=91), 300)]
        running = [self.wire.start(**q) for q in requests]
        doomed += [self.wire.start(talk.ids(20, seed=92 + i), 480) for i in range(2)]
        doomed[1].until(lambda r: r.opened)
        doomed[1].cancel()
        doomed[2].until_tokens(1).cancel()
        doomed[3].until_tokens(4).cancel()
        doomed[0].until(lambda r: r.opened)  # all 20 were open on every stage
        doomed[0].cancel()
        results = [r.wait() for r in running]
        codes = [d.wait().code for d in doomed]
        self.assertLessEqual(set(codes), {"CANCELLED", "OK"})  # one may have been through already
        self.assertIn("CANCELLED", codes)
        return results


@nk.sanitized()
class Deterministic(Workers):
    """Workers in deterministic mode."""
    options = ("--deterministic",)

    def test_sixteen__at_once_equal_their_runs_alone_and_the_whole_model_to_the_bit(self):
        requests = list(self.requests())
        alone = [self.wire.generate(**q) for q in requests]
        for q, a in zip(requests, alone):
            self.assertEqual((a.code, len(a.ids)), ("OK", q["n"]))
            self.assertEqual(outcome(self.whole.generate(**q)), outcome(a), f"{len(q['prompt'])} prompt tokens")
        results = self.cancelled_among(requests)
        for q, a, r in zip(requests, alone, results):
            self.assertEqual(outcome(r), outcome(a), f"{len(q['prompt'])} prompt tokens")

    def test_deterministic__sessions_among_others_are_never_merged(self):
        before = [w.info().counters for w in self.chain.workers]
        results = together(self.wire, [dict(prompt=PROMPT, n=24, deterministic=True, reuse=True) for _ in range(6)])
        for r in results:
            self.assertEqual(r.text, TEXT[:len(r.text)])
        for b, w in zip(before, self.chain.workers):
            a = w.info().counters
            self.assertEqual((a.runs - b.runs, a.sessions_kept), (6 * 24, 0))

    def test_deterministic__a_long_session_is_the_whole_model_whatever_lies_in_the_other_cells(self):
        """Over 256 tokens, where attention is summed up in parts."""
        q = dict(prompt=talk.ids(330, seed=8), n=12, n_logprobs=3, deterministic=True)
        alone = outcome(self.whole.generate(**q))
        self.assertEqual(outcome(self.wire.generate(**q)), alone)
        others = [self.wire.start(talk.ids(200 + 100 * i, seed=70 + i), 480) for i in range(2)]
        for o in others:
            o.until_tokens(1)
        self.assertEqual(outcome(self.wire.generate(**q)), alone)
        for o in others:
            o.cancel()
            o.wait()
        self.assertEqual(outcome(self.wire.generate(**q)), alone)

    def test_one_session__at_a_time_is_the_whole_model(self):
        for q in list(self.requests())[::5]:
            self.assertEqual(outcome(self.wire.generate(**q)), outcome(self.whole.generate(**q)))

    def test_seed__the_same_gives_the_same_text(self):
        grammar = 'root ::= (" and" | " the" | " of" | " LORD")+'
        for sampling in ({"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
                         {"temperature": 1.5, "repeat_penalty": 1.3, "penalty_last_n": -1, "presence_penalty": 0.5},
                         {"temperature": 1.0, "mirostat": 2}, {"temperature": 1.0, "grammar": grammar}):
            with self.subTest(sampling):
                a = self.wire.generate(PROMPT, 40, sampling={**sampling, "seed": 7})
                self.assertEqual((a.code, a.opened.seed), ("OK", 7))
                self.assertEqual(outcome(self.wire.generate(PROMPT, 40, sampling={**sampling, "seed": 7})), outcome(a))
                self.assertEqual(outcome(self.whole.generate(PROMPT, 40, sampling={**sampling, "seed": 7})), outcome(a))
                self.assertNotEqual(self.wire.generate(PROMPT, 40, sampling={**sampling, "seed": 8}).ids, a.ids)
                drawn = self.wire.generate(PROMPT, 40, sampling=sampling)  # its seed is told
                again = self.wire.generate(PROMPT, 40, sampling={**sampling, "seed": drawn.opened.seed})
                self.assertEqual(again.ids, drawn.ids)
        self.assertLessEqual(set(a.text.decode().split()[:-1]), {"and", "the", "of", "LORD"})

    def test_seed__0_is_a_seed(self):
        a, b = (self.wire.generate(PROMPT, 30, sampling={"temperature": 1.2, "seed": 0}) for _ in range(2))
        self.assertEqual((a.opened.seed, a.ids), (0, b.ids))

    def test_reuse__is_left_out(self):
        a = self.wire.generate(talk.ids(100), 8, reuse=True)
        b = self.wire.generate(talk.ids(100) + a.ids, 8, reuse=True)
        self.assertEqual((b.opened.n_reused, self.wire.client.info().counters.sessions_kept), (0, 0))

    def test_context__is_a_share(self):
        i = self.wire.client.info()
        self.assertEqual((i.deterministic, i.n_ctx_seq, i.n_ctx), (True, 512, 512 * 20))
        talk.complaint(self, lambda: self.wire.generate(talk.ids(512), 1), "OUT_OF_RANGE", "context_length_exceeded", 512)
        self.assertEqual(len(self.wire.generate(talk.ids(500), 100).ids), 12)


@nk.sanitized("tsan")
class Merging(Workers):
    def test_deterministic__is_refused_where_sessions_share_kv_cells(self):
        for wire in self.wire, self.whole:
            talk.complaint(self, lambda: wire.generate(PROMPT, 4, deterministic=True), "INVALID_ARGUMENT", "not_deterministic",
                           "--deterministic")

    def test_merged__a_session_writes_what_it_writes_alone(self):
        requests = [dict(q, sampling={}, n_logprobs=5) for q in self.requests()]
        alone = [self.wire.generate(**q) for q in requests]
        for a, r in zip(alone, together(self.wire, requests)):
            same_tokens(self, a, r)

    def test_merged__all_finish(self):
        requests = list(self.requests())
        before = [w.info().counters for w in self.chain.workers]
        results = self.cancelled_among(requests)
        for q, r in zip(requests, results):
            self.assertEqual((r.code, r.finish, len(r.ids), r.done.n_generated),
                             ("OK", "FINISH_LENGTH", q["n"], q["n"]))
        for b, w in zip(before, self.chain.workers):
            a = w.info().counters
            self.assertEqual(a.sessions_opened - b.sessions_opened, 20)
            self.assertLessEqual(a.runs - b.runs, a.rows_in_runs - b.rows_in_runs)

    def test_merged__rows_of_sessions_are_run_together(self):
        """By the workers' own counters. How many, and in how many groups, is unit.worker.schedule's."""
        for wire in self.wire, self.whole:
            before = [w.info().counters for w in wire.workers]

            def in_company():  # of each worker, the decode rows that shared a run; sessions that never meet are no proof
                together(wire, [dict(prompt=talk.ids(4, seed=i), n=100) for i in range(8)])
                after = [w.info().counters for w in wire.workers]
                return all(a.tokens_decoded - b.tokens_decoded > a.runs - b.runs for a, b in zip(after, before))
            self.assertTrue(nk.wait_for(in_company), f"over {len(wire.workers)} stages no rows were run together")

    def test_logit_bias__forbids_and_forces(self):
        first = self.wire.generate(PROMPT, 1).ids[0]
        pb = nk.pb()
        r = self.wire.generate(PROMPT, 1, sampling={"logit_bias": [pb.LogitBias(id=first, bias=-math.inf)]})
        self.assertNotEqual(r.ids[0], first)
        r = self.wire.generate(PROMPT, 5, sampling={"logit_bias": [pb.LogitBias(id=500, bias=1000)]})
        self.assertEqual(r.ids, [500] * 5)

    # ---- text ----

    def test_stop__is_found_across_token_borders(self):
        full = self.wire.generate(PROMPT, 40)
        text, ends, at = full.text, [], 0
        for t in full.tokens:
            at += len(t.text)
            ends.append(at)
        cases = [text[e - 2:e + 2] for e in ends[2:30:3]] + [text[3:30], text[:1], text[ends[8] - 1:ends[12] + 1]]
        for stop in cases:
            with self.subTest(stop):
                r = self.wire.generate(PROMPT, 40, stop=[b"never this", stop])
                self.assertEqual((r.code, r.finish, r.done.stop_string), ("OK", "FINISH_STOP", stop))
                self.assertEqual(r.text, text[:text.index(stop)])
                # No token more than were needed to complete it.
                needed = next(i for i, e in enumerate(ends) if stop in text[:e]) + 1
                self.assertEqual((len(r.ids), r.done.n_generated), (needed, needed))
        r = self.wire.generate(PROMPT, 40, stop=[text[10:30] + b"!", b"came to pass"])  # nearly, and in the prompt only
        self.assertEqual((r.text, r.finish), (text, "FINISH_LENGTH"))

    def test_text__comes_in_whole_characters(self):
        """Byte tokens: half a character is held back, and what never becomes one is U+FFFD."""
        pb = nk.pb()
        byte = {b: 3 + b for b in range(256)}  # of this vocabulary: <0x00> is id 3
        euro = [byte[b] for b in "€".encode()]
        r = self.whole.generate(PROMPT, 3, sampling={"grammar": 'root ::= "€" "€"?', "logit_bias": [
            pb.LogitBias(id=i, bias=100) for i in euro]})
        self.assertEqual((r.ids, [t.text for t in r.tokens]), (euro, [b"", b"", "€".encode()]))
        r = self.wire.generate(PROMPT, 1, sampling={"logit_bias": [pb.LogitBias(id=euro[0], bias=1000)]})
        self.assertEqual(r.text, "\ufffd".encode())

    def test_logprobs__are_the_log_softmax_of_the_logits(self):
        r = self.wire.generate(PROMPT, 12, n_logprobs=6)
        logits = self.whole.client.forward(nk.pb().ForwardRequest(ids=PROMPT + r.ids[:-1], all_logits=True)).rows
        for k, t in enumerate(r.tokens):
            row = struct.unpack_from("<1024f", logits.data, (len(PROMPT) - 1 + k) * 4096)
            top = max(row)
            norm = top + math.log(sum(math.exp(x - top) for x in row))
            order = sorted(range(1024), key=lambda i: -row[i])
            self.assertEqual((t.prob.id, [p.id for p in t.top]), (t.id, order[:5]))
            for p in [t.prob, *t.top]:
                self.assertAlmostEqual(p.logprob, row[p.id] - norm, delta=0.01)
            self.assertEqual(t.top[0].text, t.text)  # greedy, and no stop string holds anything back
        r = self.wire.generate(PROMPT, 2, n_logprobs=1)
        self.assertTrue(all(t.HasField("prob") and not t.top for t in r.tokens))
        r = self.wire.generate(PROMPT, 2)
        self.assertFalse(any(t.HasField("prob") or t.top for t in r.tokens))

    # ---- the wire ----

    def test_f16__rows_are_rounded_to_half_and_nothing_else(self):
        """By hand through Forward: the rows between the stages, rounded by Python's struct."""
        pb = nk.pb()
        prompt, rows = talk.ids(50, seed=5), None
        for w in self.chain.workers:
            with nk.Client(w.address) as c:
                rows = c.forward(pb.ForwardRequest(ids=prompt, rows=rows)).rows
            if rows.width == 128:
                n = rows.n_rows * rows.width
                half = struct.pack(f"<{n}e", *struct.unpack(f"<{n}f", rows.data))
                rows = pb.Rows(n_rows=rows.n_rows, width=rows.width, dtype=pb.DTYPE_F16, data=half)
        row = struct.unpack("<1024f", rows.data)
        best = max(range(1024), key=lambda i: row[i])
        logprob = row[best] - max(row) - math.log(sum(math.exp(x - max(row)) for x in row))
        f16 = self.wire.generate(prompt, 1, n_logprobs=2, dtype=pb.DTYPE_F16).tokens[0]
        f32 = self.wire.generate(prompt, 1, n_logprobs=2).tokens[0]
        self.assertEqual(f16.id, best)
        self.assertAlmostEqual(f16.prob.logprob, logprob, places=5)
        self.assertNotEqual(f16.prob.logprob, f32.prob.logprob)
        self.assertAlmostEqual(f16.prob.logprob, f32.prob.logprob, places=1)
        long = self.wire.generate(talk.ids(200), 30, dtype=pb.DTYPE_F16)
        self.assertEqual((long.code, len(long.ids)), ("OK", 30))


@nk.sanitized("asan")
class Reuse(unittest.TestCase):
    """Continued sessions. Each test has workers of its own, whose kept sessions it counts."""

    def setUp(self):
        self.chain = nk.Chain(nk.KJV, "0-4,4-8", "--ctx", 1024, "--sequences", 4)
        self.wire = talk.Wire(self.chain.workers)

    def tearDown(self):
        self.wire.__exit__()
        self.chain.assert_idle()
        self.chain.close()

    def anew(self, *options):
        """Other workers, for a generation that does not end by itself meanwhile."""
        self.tearDown()
        self.chain = nk.Chain(nk.KJV, "0-4,4-8", *options)
        self.wire = talk.Wire(self.chain.workers)

    def kept(self):
        return [w.info().counters.sessions_kept for w in self.chain.workers]

    def prefilled(self):
        return [w.info().counters.tokens_prefilled for w in self.chain.workers]

    def go(self, prompt, n=8, reused=None, **fields):
        """With reuse; only what is new is computed."""
        before = self.prefilled()
        r = self.wire.generate(prompt, n, reuse=True, n_logprobs=5, **fields)
        self.assertEqual(r.code, "OK", r.error)
        computed = [b - a for a, b in zip(before, self.prefilled())]
        if len(prompt) - r.done.n_reused > 1:  # a single row counts as decoded
            self.assertEqual(computed, [len(prompt) - r.done.n_reused] * 2)
        self.assertEqual(r.opened.n_reused, r.done.n_reused)
        if reused is not None:
            self.assertEqual(r.done.n_reused, reused)
        return r

    def fresh(self, prompt, n=8, **fields):
        r = self.wire.generate(prompt, n, n_logprobs=5, **fields)
        self.assertEqual(r.opened.n_reused, 0)
        return r

    def assert_as_fresh(self, r, prompt):
        """Its tokens are those of a session that reuses nothing."""
        same_tokens(self, r, self.fresh(prompt, len(r.ids)))

    def test_continuation__computes_only_the_new_ids(self):
        first = self.go(talk.ids(100), 20, reused=0)
        self.assertEqual(self.kept(), [1, 1])
        longer = talk.ids(100) + first.ids + talk.ids(30, seed=3)[1:]
        second = self.go(longer, 20, reused=119)  # the row of the last token was never needed
        self.assertEqual(self.kept(), [1, 1])  # taken over
        third = self.go(longer, 20, reused=len(longer) - 1)  # the very same: its last row is computed again
        self.assertEqual(self.wire.client.info().counters.tokens_reused, 119 + len(longer) - 1)
        self.assert_as_fresh(second, longer)
        self.assert_as_fresh(third, longer)
        self.assertEqual(self.kept(), [1, 1])  # those without reuse are not kept

    def test_continuation__is_only_of_what_has_the_same_salt(self):
        prompt = talk.ids(100)
        self.go(prompt, 2, reused=0)
        salted = lambda salt, reused: self.assertEqual(self.wire.generate(prompt, 2, reuse_salt=salt).done.n_reused, reused)
        salted(b"one", 0)
        salted(b"one", 99)
        salted(b"two", 0)
        salted(b"on", 0)
        salted(b"one", 99)
        self.go(prompt, 2, reused=99)
        salted(b"x" * 64, 0)
        self.assertEqual(self.kept(), [4, 4])
        self.assertIn("65 bytes", str(self.wire.generate(prompt, 2, reuse_salt=b"x" * 65).error))

    def test_continuation__of_prompts_that_differ_early_is_not_worth_it(self):
        prompt = talk.ids(60)
        self.go(prompt, 4, reused=0)
        self.go(prompt[:31] + [300, 301, 302], 4, reused=0)
        self.go(prompt[:32] + [303, 304, 305], 4, reused=32)
        self.go(prompt[:20], 4, reused=19)  # all of it

    def test_continuation__with_penalties_sees_the_whole_text(self):
        """The sampler of a continued session has to know the tokens whose rows were not computed again."""
        never_again = {"presence_penalty": 1000, "penalty_last_n": -1}
        first = self.go(talk.ids(60), 20)
        longer = talk.ids(60) + first.ids + [300, 400]
        r = self.go(longer, 100, sampling=never_again, reused=79)
        self.assertEqual(len(set(longer) | set(r.ids)), len(set(longer)) + 100)

    def test_continuation__after_whole_chunks_is_a_fresh_run_to_the_bit(self):
        """The same runs over the same KV, so the very same numbers; with rows of half precision as well."""
        base = talk.ids(128, seed=6)
        for dtype in nk.pb().DTYPE_F32, nk.pb().DTYPE_F16:
            with self.subTest(dtype), nk.Chain(nk.KJV, "0-4,4-8") as a, talk.Wire(a.workers) as kept, \
                    nk.Chain(nk.KJV, "0-4,4-8") as b, talk.Wire(b.workers) as new:
                first = kept.generate(base, 1, reuse=True, dtype=dtype)
                longer = base + first.ids + talk.ids(21, seed=7)[1:]
                r = kept.generate(longer, 40, reuse=True, n_logprobs=5, dtype=dtype)
                self.assertEqual((r.code, r.done.n_reused), ("OK", 128), r.error)
                self.assertEqual(outcome(r), outcome(new.generate(longer, 40, n_logprobs=5, dtype=dtype)))

    def test_predecessor__that_still_runs_is_not_waited_for_nor_touched(self):
        """The same conversation asked again before its first answer is through."""
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", 32768) as chain, talk.Wire(chain.workers) as wire:
            alone = wire.generate(PROMPT, 300, n_logprobs=5)
            running = wire.start(PROMPT, 30000, reuse=True, n_logprobs=5).until_tokens(10)
            longer = PROMPT + running.result.ids[:10]
            r = wire.generate(longer, 20, reuse=True, n_logprobs=5)
            self.assertEqual((r.code, r.done.n_reused), ("OK", 0), r.error)
            self.assertFalse(running.ended, "the test came too late")
            running.until_tokens(300).cancel()
            got = running.wait()
            got.tokens, got.error, got.done = got.tokens[:300], None, alone.done
            same_tokens(self, got, alone)
            same_tokens(self, r, wire.generate(longer, 20, n_logprobs=5))

    def test_beginning__of_a_longer_session_is_copied_and_most_of_one_taken_over(self):
        base = talk.ids(200)
        self.go(base, 8)
        fork = base[:50] + talk.ids(40, seed=8)[1:]
        r = self.go(fork, 12, reused=50)
        self.assertEqual(self.kept(), [2, 2])
        self.assert_as_fresh(r, fork)
        # The source is still whole.
        self.assert_as_fresh(self.go(base + [300], 8, reused=200), base + [300])
        self.assertEqual(self.kept(), [2, 2])
        most = base[:150] + talk.ids(10, seed=9)[1:]
        self.assert_as_fresh(self.go(most, 8, reused=150), most)
        self.assertEqual(self.kept(), [2, 2])

    def test_eviction__takes_the_least_recently_used(self):
        a, b, c = (talk.ids(200, seed=i) for i in (1, 2, 3))
        for p in a, b, c:
            self.go(p, 8)
        self.assertEqual(self.kept(), [3, 3])
        self.go(a + [300], 8, reused=200)  # now b is the oldest
        self.wire.generate(talk.ids(230, seed=4), 200)  # more than what three of 207 leave of 1024
        self.assertEqual(self.kept(), [2, 2])
        self.go(a + [301], 8, reused=200)
        self.go(c + [301], 8, reused=200)
        self.assertLess(self.go(b + [301], 8).done.n_reused, 5)  # but that they all begin with BOS

    def test_eviction__is_not_for_nothing(self):
        """A session that has to wait for running ones leaves the kept ones alone."""
        self.anew("--ctx", 16384, "--sequences", 4)
        p = talk.ids(100)
        self.go(p, 8)
        running = self.wire.start(talk.ids(100, seed=1), 16000).until_tokens(1)
        waiting = self.wire.start(talk.ids(100, seed=2), 300)
        self.assertTrue(nk.wait_for(lambda: self.wire.client.info().counters.sessions_open == 2))
        self.assertEqual(self.kept(), [1, 1])
        running.cancel()
        self.assertEqual(waiting.wait().code, "OK")
        self.go(p + [300], 4, reused=100)

    def test_sequences__a_kept_session_yields_its_own(self):
        for i in range(9):  # over four sequences
            self.go(talk.ids(20, seed=i), 4)
        self.assertEqual(self.kept(), [4, 4])
        results = together(self.wire, [dict(prompt=talk.ids(20, seed=50 + i), n=4) for i in range(4)])
        self.assertEqual([r.code for r in results], ["OK"] * 4)

    def test_lost__on_a_later_stage_it_is_computed_again(self):
        first = self.go(talk.ids(100), 20)
        longer = talk.ids(100) + first.ids + [300]
        with nk.Client(self.chain.workers[1].address) as last:
            last.sleep()
            last.wake()
        self.assertEqual(self.kept(), [1, 0])
        self.assert_as_fresh(self.go(longer, 20, reused=0), longer)

    def test_lost__with_the_process(self):
        first = self.go(talk.ids(100), 20)
        longer = talk.ids(100) + first.ids + [300]
        self.chain.workers[1].kill()
        listen = self.chain.workers[1].address
        self.chain.start(1, listen=listen)
        before = self.chain.workers[0].info().counters.tokens_prefilled
        r = self.wire.generate(longer, 20, reuse=True, n_logprobs=5)
        self.assertEqual((r.code, r.done.n_reused), ("OK", 0), r.error)
        self.assertEqual(self.chain.workers[0].info().counters.tokens_prefilled - before, len(longer))
        self.assert_as_fresh(r, longer)

    def test_dtype__rows_of_another_precision_are_not_reused(self):
        first = self.go(talk.ids(100), 8)
        longer = talk.ids(100) + first.ids
        self.go(longer, 8, reused=0, dtype=nk.pb().DTYPE_F16)

    def test_cancelled__sessions_are_not_kept(self):
        self.anew("--ctx", 16384, "--sequences", 4)
        r = self.wire.start(talk.ids(100), 16000, reuse=True).until_tokens(5)
        r.cancel()
        r.wait()
        self.chain.assert_idle()
        self.assertEqual(self.kept(), [0, 0])

    def test_stop_string__what_was_generated_beyond_it_is_forgotten_or_right(self):
        """A continuation after a stop string: the client's ids decide, whatever the cache holds."""
        first = self.go(PROMPT, 40, stop=[b"LORD"])
        cut = PROMPT + first.ids[:-3] + [700, 701]
        self.assert_as_fresh(self.go(cut, 16), cut)

    def test_many__sessions_that_continue_at_once(self):
        texts = {i: talk.ids(30, seed=i) for i in range(4)}
        for _ in range(3):
            results = together(self.wire, [dict(prompt=texts[i], n=10, reuse=True) for i in range(4)])
            for i, r in enumerate(results):
                self.assertEqual(r.code, "OK", r.error)
                texts[i] = texts[i] + r.ids + talk.ids(6, seed=10 + i)[1:]
        results = [self.go(texts[i], 10, reused=len(texts[i]) - 6) for i in range(4)]
        for i in range(4):
            self.assert_as_fresh(results[i], texts[i])


@nk.sanitized("asan")
class Limits(unittest.TestCase):
    def test_n_predict__0_is_a_sequences_share_of_the_context(self):
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", 256, "--sequences", 1) as chain, talk.Wire(chain.workers) as wire:
            r = wire.generate(PROMPT, 0)
            self.assertEqual((r.code, r.finish, len(r.ids)), ("OK", "FINISH_LENGTH", 250))
            r = wire.generate(talk.ids(255), 0)
            self.assertEqual((r.code, r.finish, len(r.ids)), ("OK", "FINISH_LENGTH", 1))
            r = wire.generate(talk.ids(200), 100)  # more than there is room for
            self.assertEqual((r.code, r.finish, len(r.ids)), ("OK", "FINISH_LENGTH", 56))
            talk.complaint(self, lambda: wire.generate(talk.ids(256), 1), "OUT_OF_RANGE", "context_length_exceeded",
                           256, "w0")
            chain.assert_idle()
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", 256, "--sequences", 4) as chain, talk.Wire(chain.workers) as wire:
            self.assertEqual([len(r.ids) for r in together(wire, [dict(prompt=PROMPT, n=0)] * 4)], [64 - len(PROMPT)] * 4)
            chain.assert_idle()

    def test_context__smaller_on_a_later_stage_is_told(self):
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", 1024, per_worker={1: ["--ctx", 256]}) as chain, \
                talk.Wire(chain.workers) as wire:
            talk.complaint(self, lambda: wire.generate(talk.ids(200), 100), "OUT_OF_RANGE", "context_length_exceeded",
                           300, 256, "w1")
            self.assertEqual(wire.generate(talk.ids(200), 50).code, "OK")
            chain.assert_idle()

    def test_batch__smaller_on_a_later_stage_is_no_obstacle(self):
        with nk.Chain(nk.KJV, "0-4,4-8", per_worker={1: ["--batch", 16]}) as chain, talk.Wire(chain.workers) as wire, \
                nk.Chain(nk.KJV, "0-4,4-8", "--batch", 16) as same, talk.Wire(same.workers) as even:
            self.assertEqual(outcome(wire.generate(talk.ids(100), 10)), outcome(even.generate(talk.ids(100), 10)))
            results = together(wire, [dict(prompt=talk.ids(40, seed=i), n=10) for i in range(8)])
            self.assertEqual([(r.code, len(r.ids)) for r in results], [("OK", 10)] * 8)
            chain.assert_idle()

    def test_deadline__ends_the_generation(self):
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", 8000) as chain, talk.Wire(chain.workers) as wire:
            r = wire.generate(PROMPT, 7900, limits={"deadline_ms": 700})
            self.assertEqual((r.code, r.reason), ("DEADLINE_EXCEEDED", "deadline"))
            chain.assert_idle()
            r = wire.start(PROMPT, 7900, timeout=0.7 / nk.SLOW)  # the client's own, over gRPC
            self.assertEqual(r.wait().code, "DEADLINE_EXCEEDED")
            chain.assert_idle()


@nk.sanitized("tsan")
class Turns(unittest.TestCase):
    def assert_answered_meanwhile(self, trace):
        """Between a run with a row of the second session and its token, others are answered, more than those of the same run."""
        with open(trace) as f:
            events = [json.loads(line) for line in f]
        name = next(e["session"] for e in events if e["ev"] == "computed")
        open_since, most = {}, 0
        for e in events:
            if e["session"] != name and e["ev"] == "computed":
                open_since[e["step"]] = 0
            elif e["session"] != name and e["ev"] == "answered":
                most = max(most, open_since.pop(e["step"]))
            elif e["ev"] == "answered":
                open_since = {step: n + 1 for step, n in open_since.items()}
        self.assertGreater(most, 1)

    def test_grammar__that_is_slow_does_not_hold_the_rows_of_others(self):
        """From the trace, by order; on one stage, and on two of which the first would wait for the rows of a group."""
        for layers in ("0-8", "0-4,4-8"):
            with self.subTest(layers), tempfile.TemporaryDirectory() as folder:
                traces = [os.path.join(folder, f"{i}") for i in range(2)]
                with nk.Chain(nk.KJV, layers, "--ctx", "32768", "--shared-cores",
                              per_worker={i: ["--trace", f] for i, f in enumerate(traces[:layers.count(",") + 1])}) as chain:
                    with talk.Wire(chain.workers) as wire:
                        other = wire.start(PROMPT, 20000).until_tokens(5)
                        slow = wire.start(PROMPT, 4, sampling={"grammar": "root ::= [qzxjkvw] ([qzxjkvwpgb]?){6000}"})
                        self.assertEqual(slow.wait().code, "OK", slow.result.error)
                        self.assertFalse(other.ended, "the grammar came too late")
                        other.cancel()
                        other.wait()
                    chain.assert_idle()
                self.assert_answered_meanwhile(traces[layers.count(",")])

    def test_prompt__of_many_chunks_beside_a_session_that_decodes(self):
        """From the trace: the prompt is cut into chunks, one after the other, and the session has its rows before and after.
        That it is delayed by one chunk at a time is unit.worker.schedule's."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "trace")
            w = nk.Worker("--model", nk.KJV, "--layers", "0-8", "--threads", 1, "--ctx", 32768, "--trace", path)
            with talk.Wire([w]) as wire:
                decoding = wire.start(PROMPT, 30000).until_tokens(5)
                prompt = wire.start(talk.ids(1900), 1)
                self.assertEqual(prompt.wait().code, "OK", prompt.result.error)
                self.assertFalse(decoding.ended, "the prompt came too late")
                decoding.until_tokens(len(decoding.result.tokens) + 5)  # a row after the last chunk
                decoding.cancel()
                w.assert_idle()
            self.assertEqual(w.stop(), 0, w.log())
            with open(path) as f:
                events = [json.loads(line) for line in f]
        computing = [e for e in events if e["ev"] == "computing"]
        name = next(e["session"] for e in computing if e["rows"] == len(PROMPT))
        chunks = [e for e in computing if e["session"] != name and e["rows"] > 1]
        self.assertEqual([(e["pos"], e["rows"]) for e in chunks], [(at, min(64, 1900 - at)) for at in range(0, 1900, 64)])
        rows = [e for e in computing if e["session"] == name]
        self.assertEqual([e["pos"] for e in rows], [0, *range(len(PROMPT), len(PROMPT) + len(rows) - 1)])
        self.assertLess(rows[0]["t"], chunks[0]["t"])
        self.assertGreater(rows[-1]["t"], chunks[-1]["t"])

    @nk.sanitized()  # ggml's threads
    def test_decode__on_shared_cores_one_stage_at_a_time_computes(self):
        """From the traces: the times of decode on the two stages do not overlap where each has all cores of this machine."""
        cores = len(os.sched_getaffinity(0))
        if cores < 2:
            nk.missing("two cores")
        with tempfile.TemporaryDirectory() as folder:
            files = [os.path.join(folder, f"{i}.jsonl") for i in range(2)]
            with nk.Chain(nk.KJV, "0-4,4-8", "--shared-cores", threads=cores,
                          per_worker={i: ["--trace", f] for i, f in enumerate(files)}) as chain:
                with talk.Wire(chain.workers) as wire:
                    for session in [wire.start(PROMPT, 60) for _ in range(4)]:
                        self.assertEqual(session.wait().code, "OK", session.result.error)
                chain.assert_idle()
            runs = []
            for path in files:
                begin, times = {}, set()
                with open(path) as f:
                    for e in map(json.loads, f):
                        if e["rows"] == 1 and e["ev"] == "computing":
                            begin[e["session"]] = e["t"]
                        elif e["rows"] == 1 and e["ev"] == "computed":
                            times.add((begin[e["session"]], e["t"]))
                runs.append(sorted(times))
        self.assertTrue(all(runs))
        self.assertEqual([(a, b, c, d) for a, b in runs[0] for c, d in runs[1] if a < d and c < b], [])


@nk.sanitized("tsan")
class Soak(unittest.TestCase):
    def test_thousand__short_sessions_leave_nothing_and_no_memory(self):
        """After some hundred every pool and cache is as large as it gets; what a session holds would show then."""
        with nk.Chain(nk.KJV, "0-4,4-8", "--sequences", 4) as chain, talk.Wire(chain.workers) as wire:
            def some(n):
                for i in range(0, n, 10):
                    running = [wire.start(talk.ids(2 + i // 10 % 5, seed=k), 3, reuse=k % 2 == 0, stop=[b"zzz"],
                                          sampling={"temperature": 1, "top_k": 20, "seed": k}) for k in range(10)]
                    running[7].until(lambda r: r.opened)
                    running[7].cancel()
                    self.assertLessEqual({r.wait().code for r in running}, {"OK", "CANCELLED"})
                chain.assert_idle()
            # Sanitizers' allocators keep freed memory back: what sizes tell is not looked at there.
            n = 200 if os.environ.get("NK_SANITIZE") else 1000
            some(n * 2 // 5)
            before = [talk.rss(w.pid) for w in chain.workers]
            some(n)
            for w, b in zip(chain.workers, before):
                c = w.info().counters
                self.assertGreaterEqual(c.sessions_opened, n)
                self.assertLessEqual(c.sessions_kept, 4)
                if not os.environ.get("NK_SANITIZE"):
                    self.assertLess(talk.rss(w.pid) - b, 6 << 20, f"worker {w.id} grew")


@nk.sanitized("tsan")
class Queue(unittest.TestCase):
    def test_full__sessions_wait_in_order_and_the_queue_has_an_end(self):
        options = ["--ctx", 30000, "--sequences", 2, "--queue", 3]
        with nk.Chain(nk.KJV, "0-4,4-8", *options) as chain, talk.Wire(chain.workers) as wire:
            running = [wire.start(PROMPT, 14900).until_tokens(1) for _ in range(2)]
            waiting = []
            for i in range(3):
                waiting.append(wire.start(PROMPT, 10 + i))
                self.assertTrue(nk.wait_for(lambda: wire.client.info().counters.sessions_open == 3 + i))
            talk.complaint(self, lambda: wire.generate(PROMPT, 5), "RESOURCE_EXHAUSTED", "queue_full", 3)
            waiting[1].cancel()  # its place is free again
            self.assertTrue(nk.wait_for(lambda: wire.client.info().counters.sessions_open == 4))
            waiting.append(wire.start(PROMPT, 13))
            self.assertTrue(nk.wait_for(lambda: wire.client.info().counters.sessions_open == 5))
            self.assertFalse(any(w.result.opened for w in waiting))
            running[0].cancel()
            for i, n in (0, 10), (2, 12), (3, 13):  # one after the other: a single sequence is free
                r = waiting[i].wait()
                self.assertEqual((r.code, r.text), ("OK", TEXT[:len(r.text)]))
                self.assertEqual(len(r.ids), n)
            self.assertFalse(running[1].ended)
            running[1].cancel()
            chain.assert_idle()

    def test_kv__is_what_is_waited_for(self):
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", 30200, "--sequences", 8) as chain, talk.Wire(chain.workers) as wire:
            running = wire.start(PROMPT, 30100).until_tokens(1)
            waiting = wire.start(PROMPT, 200)
            self.assertTrue(nk.wait_for(lambda: wire.client.info().counters.sessions_open == 2))
            i = wire.client.info()
            self.assertEqual(i.kv_tokens_free, i.n_ctx - 30106)
            self.assertIsNone(waiting.result.opened)
            running.cancel()
            self.assertEqual((waiting.wait().code, len(waiting.result.ids)), ("OK", 200))
            chain.assert_idle()

    def test_queue_ms__is_how_long(self):
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", 32768, "--sequences", 1, "--queue-ms", 300) as chain, \
                talk.Wire(chain.workers) as wire:
            running = wire.start(PROMPT, 30000).until_tokens(1)
            talk.complaint(self, lambda: wire.generate(PROMPT, 5), "RESOURCE_EXHAUSTED", "queue_timeout", 300)
            self.assertFalse(running.ended)
            running.cancel()
            chain.assert_idle()

    def test_queue__0_is_none(self):
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", 32768, "--sequences", 1, "--queue", 0) as chain, \
                talk.Wire(chain.workers) as wire:
            self.assertEqual(wire.generate(PROMPT, 5).code, "OK")
            running = wire.start(PROMPT, 30000).until_tokens(1)
            talk.complaint(self, lambda: wire.generate(PROMPT, 5), "RESOURCE_EXHAUSTED", "queue_full")
            running.cancel()
            chain.assert_idle()

    def test_later_stage__with_less_room_is_waited_for(self):
        """Two sequences there, eight here: six sessions take turns."""
        with nk.Chain(nk.KJV, "0-4,4-8", per_worker={1: ["--sequences", 2]}) as chain, talk.Wire(chain.workers) as wire:
            results = together(wire, [dict(prompt=PROMPT, n=20)] * 6)
            self.assertEqual([(r.code, len(r.ids)) for r in results], [("OK", 20)] * 6, [r.error for r in results])
            chain.assert_idle()

    def test_cancelled__sessions_make_room_at_once(self):
        """A session follows on the heels of a cancelled one, on every stage."""
        with nk.Chain(nk.KJV, "0-3,3-6,6-8", "--sequences", 1) as chain, talk.Wire(chain.workers) as wire:
            for i in range(25):
                running = wire.start(PROMPT, 400).until_tokens(1 + i % 3)
                follower = wire.start(PROMPT, 3)
                running.cancel()
                self.assertEqual((follower.wait().code, len(follower.result.ids)), ("OK", 3), follower.result.error)
            chain.assert_idle()


if __name__ == "__main__":
    unittest.main()

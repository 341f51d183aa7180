"""Models that keep a state instead of a cache (mamba) or both (jamba, qwen3next), over real workers. A state cannot go back:
what a session reuses, and what runs beside it, must never show in its tokens. llama.cpp's own generator makes the models,
with the same random weights every time."""
import importlib.machinery
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
import types
import unittest

import link
import nk
import talk
import test_resume

VOCAB = 128
NEAR = 1e-3  # of log-probabilities
# What it is made of, how many layers it is stretched to (0: as generated), where it is cut.
MODELS = {"mamba-dense": (0, "0-1,1-2"), "mamba2-dense": (6, "0-2,2-3,3-6"), "jamba-dense": (12, "0-4,4-8,8-12"),
          "qwen3next-moe": (12, "0-6,6-12")}
if nk.SANITIZED:  # one of each kind: what is sanitized is our code, the same for all
    MODELS = {name: MODELS[name] for name in ("mamba-dense", "jamba-dense")}


def conformance():
    """scripts/conformance as a module: it knows how to run llama.cpp's generator."""
    path = os.path.join(nk.SOURCE, "scripts", "conformance")
    loader = importlib.machinery.SourceFileLoader("conformance", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("conformance", loader))
    loader.exec_module(module)
    return module


def prompt(n, seed=0):
    return [1 + i % (VOCAB - 1) for i in talk.ids(n + 1, seed)[1:]]


def names(*wanted):
    return [n for n in wanted if n in MODELS]


def outcome(g):
    """All that depends on the computation, to the bit."""
    return (g.code, g.finish, g.ids, [(t.prob.logprob, [(p.id, p.logprob) for p in t.top]) for t in g.tokens])


def logprobs(g):
    return [p.logprob for t in g.tokens for p in t.top]


class Recurrent(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp(prefix="nk-recurrent-")
        cls.addClassCleanup(shutil.rmtree, cls.dir)
        c = conformance()
        c.generate(c.read_env(), cls.dir, "-s", "1", "-a", "^(mamba|mamba2|jamba|qwen3next)$")
        cls.models = {}
        for name, (layers, cuts) in MODELS.items():
            path = os.path.join(cls.dir, name + ".gguf")
            if layers:
                longer = os.path.join(cls.dir, f"{name}.{layers}.gguf")
                subprocess.run([os.path.join(nk.BUILD, "tests", "stretch"), path, longer, str(layers)], check=True,
                               capture_output=True)
                path = longer
            cls.models[name] = (path, cuts)

    def chains(self, *options, names=tuple(MODELS)):
        """A chain of each model, one after the other; the slices go with the models."""
        for name in names:
            path, cuts = self.models[name]
            with self.subTest(name), nk.Chain(path, cuts, "--ctx", 2048, "--sequences", 12, *options,
                                              env_more={"XDG_CACHE_HOME": self.dir}) as chain, \
                    talk.Wire(chain.workers) as wire:
                self.assertNotIn("rollback", chain.workers[0].info().capabilities)
                yield path, chain, wire
                chain.assert_idle()

    def same(self, path, a, b):
        """To the bit where there are states only. Layers with attention share their cells, and where a session's lie decides
        in which order they are summed up: there the last bits may differ."""
        if os.path.basename(path).startswith("mamba"):
            self.assertEqual(outcome(a), outcome(b))
        self.assertEqual((a.finish, a.ids), (b.finish, b.ids))
        self.assertLess(max(abs(x - y) for x, y in zip(logprobs(a), logprobs(b))), NEAR)

    def differ(self, path, a, b):
        """By what `same` would see."""
        if os.path.basename(path).startswith("mamba"):
            self.assertNotEqual(outcome(a), outcome(b))
        else:
            self.assertTrue(a.ids != b.ids or max(abs(x - y) for x, y in zip(logprobs(a), logprobs(b))) > 2 * NEAR)

    def generate(self, wire, ids, n, **fields):
        fields.setdefault("n_logprobs", 4)
        r = wire.generate(ids, n, **fields)
        self.assertEqual(r.code, "OK", r.error)
        return r

    @nk.sanitized()
    def test_what_a_layer_keeps_is_known_from_the_file(self):
        """Before anything is loaded: a plan needs it. What libllama really takes is what measuring tells."""
        ctx, sequences = 256, 3
        for name in MODELS:
            path = self.models[name][0]
            with self.subTest(name):
                layers = json.loads(nk.out("inspect", path, "--json"))["layers"]
                took = json.loads(nk.out("measure", path, "--json", "--ctx", ctx, "--sequences", sequences, "--budget-ms", 1,
                                         env=nk.env(XDG_CACHE_HOME=self.dir)))["layers"]
                want = [x["kv_bytes_per_token"] * ctx + x["state_bytes"] * sequences for x in layers]
                self.assertGreater(sum(x["state_bytes"] for x in layers), 0)
                # Of layers that are not alike the parts are estimated; their sum is right.
                self.assertEqual(sum(x["kv_bytes"] for x in took), sum(want), [x["kv_bytes"] for x in took])

    @nk.sanitized()
    def test_chain__is_the_whole_model_to_the_bit(self):
        for path, _, wire in self.chains():
            one = nk.Worker("--model", path, "--layers", f"0-{wire.workers[-1].end}", "--threads", 1, "--ctx", 2048,
                            "--sequences", 12, env_more={"XDG_CACHE_HOME": self.dir})
            try:
                with talk.Wire([one]) as whole:
                    for ids in prompt(5), prompt(150, 1):  # one chunk and three
                        self.assertEqual(outcome(self.generate(wire, ids, 12)), outcome(self.generate(whole, ids, 12)))
            finally:
                one.stop()

    @nk.sanitized()
    def test_many__at_once_equal_their_runs_alone(self):
        """Their rows are not run in one batch, whose order llama.cpp would not keep."""
        for path, _, wire in self.chains():
            requests = [dict(ids=prompt(3 + 31 * k, k), n=10 + 3 * k, reuse=k % 2 == 0) for k in range(5)]
            alone = [self.generate(wire, **{**q, "reuse": False}) for q in requests]
            running = [wire.start(q["ids"], q["n"], reuse=q["reuse"], n_logprobs=4) for q in requests]
            doomed = wire.start(prompt(60, 9), 100).until_tokens(1)
            doomed.cancel()
            for a, r in zip(alone, running):
                self.same(path, r.wait(), a)
            doomed.wait()

    @nk.sanitized()
    def test_deterministic__among_others_is_alone_to_the_bit(self):
        """Attention and states: both apart."""
        for path, _, wire in self.chains("--deterministic", names=["jamba-dense"]):
            requests = [dict(ids=prompt(3 + 31 * k, k), n=10 + 3 * k) for k in range(3)]
            alone = [outcome(self.generate(wire, **q)) for q in requests]
            running = [wire.start(q["ids"], q["n"], n_logprobs=4, deterministic=True) for q in requests]
            self.assertEqual([outcome(r.wait()) for r in running], alone)

    @nk.sanitized()
    def test_continuation__goes_on_from_the_state_and_is_a_fresh_run(self):
        """A prompt of whole chunks, and what follows: the same runs as without the kept session."""
        for path, chain, wire in self.chains(names=names("mamba2-dense", "jamba-dense")):
            base = prompt(128, 3)
            longer = base + self.generate(wire, base, 1).ids + prompt(2, 4)
            fresh = self.generate(wire, longer, 12)
            self.differ(path, fresh, self.generate(wire, prompt(128, 5) + longer[128:], 12))
            self.generate(wire, base, 1, reuse=True)
            self.assertEqual([w.info().counters.sessions_kept for w in chain.workers], [1] * len(chain.workers))
            r = self.generate(wire, longer, 12, reuse=True)
            self.assertEqual(r.done.n_reused, 128)
            self.same(path, r, fresh)

    @nk.sanitized()
    def test_killed__is_resumed_from_the_state(self):
        """What is left of it goes on from where it is; what is new computes all that it lacks, from rows that others kept."""
        for _, chain, _ in self.chains("--deterministic", names=["mamba-dense", "jamba-dense"]):
            within = test_resume.Within(self, chain)
            for i in range(len(chain.workers)):
                within.goes_on(prompt(100), 24, [(0 if i == 1 else 9, [i])])
            within.goes_on(prompt(100), 24, [(9, [0, 1])])

    @nk.sanitized("asan")
    def test_ahead__of_the_next_stage_it_goes_back_to_a_checkpoint(self):
        """The link breaks while chunks are on it, and no journal has them: the stage before has computed more than the next one
        got, and cannot cut it off."""
        path, cuts = self.models["mamba-dense"]
        text, more = prompt(390, 3), ["--ctx", 2048, "--sequences", 4, "--deterministic", "--journal-mib", 0,
                                      "--checkpoint-every", 64, "--silence-ms", 1000 * nk.PATIENCE]
        with nk.Chain(path, cuts, *more, env_more={"XDG_CACHE_HOME": self.dir}) as chain:
            plain = test_resume.Resumable(chain, text, 8, n_logprobs=4)
            self.assertIsNone(plain.read())
            between = link.Link(chain.workers[1].address, cut_after=5 * 64 * chain.workers[0].info().n_embd * 4 // 2)
            self.addCleanup(between.close)
            address = chain.workers[0].address
            chain.workers[0].stop()
            chain.workers[0] = nk.Worker("--model", path, "--layers", "0-1", "--threads", 1, *more, id="w0", listen=address,
                                         peers=[chain.workers[1].address, between.address],
                                         env_more={"XDG_CACHE_HOME": self.dir})
            far = types.SimpleNamespace(address=between.address, begin=1, end=2)
            g = test_resume.Resumable(types.SimpleNamespace(workers=[chain.workers[0], far]), text, 8, n_logprobs=4)
            self.assertIsNotNone(g.read())
            self.assertTrue(nk.wait_for(lambda: test_resume.held(chain.workers[1]), 30))
            g.chain = chain
            self.assertIsNone(g.resume().read())
            self.assertEqual(g.outcome(), plain.outcome())
            self.assertEqual([s.held > 128 for s in g.opened[-1].stages], [True, False])
            c = chain.workers[0].info().counters
            self.assertEqual((c.tokens_replayed, c.checkpoints_used), (len(text) - 128, 1))
            chain.assert_idle()

    @nk.sanitized()
    def test_other__continuations_begin_anew(self):
        """A shorter prompt, the same one, one that leaves the kept ids early or at their last: without checkpoints a state has no
        way back."""
        for path, _, wire in self.chains("--checkpoint-mib", 0, names=names("mamba-dense", "jamba-dense")):
            base = prompt(70, 3)
            made = self.generate(wire, base, 8, reuse=True).ids
            kept = base + made[:-1]
            for ids in (base[:40], base, kept, kept[:-1], base[:69] + [2 if base[69] != 2 else 3] + prompt(30, 6),
                        kept[:-1] + [2 if kept[-1] != 2 else 3, 5, 6]):
                r = self.generate(wire, ids, 8, reuse=True)
                self.assertEqual(r.done.n_reused, 0)
                self.same(path, r, self.generate(wire, ids, 8))
            r = self.generate(wire, kept + made[-1:] + [7], 1, reuse=True)  # what was kept first is still there, and whole
            self.assertEqual(r.done.n_reused, len(kept))

    def gone_back(self, chain):
        return [w.info().counters.checkpoints_used for w in chain.workers]

    @nk.sanitized("asan")
    def test_thinking__that_is_stripped_leaves_the_prompt_reused(self):
        """The next turn has neither what was generated nor the last words of the prompt: it goes back to the last end of a chunk
        before. That is computed in the chunks of a fresh run, so it is one; again and again, among others, and from a state that
        two have in common."""
        for path, chain, wire in self.chains(names=names("mamba-dense", "jamba-dense", "qwen3next-moe")):
            base = prompt(275, 3)
            running = [wire.start(prompt(40 + k, 20 + k), 30, reuse=True, n_logprobs=4) for k in range(3)]
            self.generate(wire, base, 30, reuse=True)
            for turn in range(3):
                longer = base[:273] + prompt(40, 30 + turn)
                r = self.generate(wire, longer, 8, reuse=True)
                self.assertEqual(r.done.n_reused, 256)
                self.same(path, r, self.generate(wire, longer, 8))
                if "qwen3next" not in path:  # what is so far back is hardly seen any more
                    self.differ(path, r, self.generate(wire, prompt(256, 9) + longer[256:], 8))
            # One of the first turn that the others went back behind is none of theirs.
            other = longer[:290] + prompt(20, 40)
            r = self.generate(wire, other, 8, reuse=True)
            self.assertEqual(r.done.n_reused, 256)
            self.same(path, r, self.generate(wire, other, 8))
            self.assertEqual(self.gone_back(chain), [4] * len(chain.workers))
            for r in running:
                self.assertEqual(r.wait().code, "OK")
            with nk.Client(chain.workers[-1].address) as last:
                last.sleep()
                c = last.info().counters
                self.assertEqual((c.checkpoints, c.checkpoint_bytes), (0, 0))
                last.wake()

    @nk.sanitized()
    def test_prompt__that_goes_on_in_another_way_goes_back_to_its_end(self):
        """In the middle of a chunk. What is computed is what goes on from there without ever having been anywhere else."""
        for path, chain, wire in self.chains(names=names("mamba2-dense", "jamba-dense")):
            base, tail = prompt(150, 3), prompt(70, 4)
            self.generate(wire, base, 1, reuse=True)  # kept just there
            straight = self.generate(wire, base + tail, 8, reuse=True)
            self.assertEqual(straight.done.n_reused, 150)
            with nk.Client(chain.workers[0].address) as first:
                first.sleep()
                first.wake()
            self.generate(wire, base, 20, reuse=True)
            r = self.generate(wire, base + tail, 8, reuse=True)
            self.assertEqual(r.done.n_reused, 150)
            self.same(path, r, straight)
            self.assertEqual(self.gone_back(chain)[-1], 1)

    @nk.sanitized()
    def test_answer__that_is_taken_up_in_its_middle(self):
        for path, chain, wire in self.chains("--checkpoint-every", 16, names=["mamba-dense"]):
            base = prompt(64, 3)
            ids = self.generate(wire, base, 60, reuse=True).ids
            longer = base + ids[:40] + prompt(30, 5)
            r = self.generate(wire, longer, 8, reuse=True)
            self.assertEqual(r.done.n_reused, 96)  # a multiple, before 104
            with nk.Client(chain.workers[0].address) as first:
                first.sleep()
                first.wake()
            self.generate(wire, base, 60, reuse=True)
            other = self.generate(wire, longer, 8, reuse=True)
            self.same(path, r, other)

    @nk.sanitized("asan")
    def test_beginning__that_two_share_is_copied_and_both_go_on(self):
        """Most of the kept session is of no use to the new one, which leaves it there: it is as it was afterwards."""
        for path, chain, wire in self.chains(names=names("mamba-dense", "jamba-dense")):
            base, other = prompt(130, 3), prompt(130, 3)[:128] + prompt(60, 5)
            longer = base + self.generate(wire, base, 200, reuse=True).ids + [7]
            straight = self.generate(wire, longer, 8, reuse=True)
            self.assertEqual(straight.done.n_reused, 329)
            with nk.Client(chain.workers[0].address) as first:
                first.sleep()
                first.wake()
            self.generate(wire, base, 200, reuse=True)
            r = self.generate(wire, other, 8, reuse=True)
            self.assertEqual(r.done.n_reused, 64)
            self.same(path, r, self.generate(wire, other, 8))
            r = self.generate(wire, longer, 8, reuse=True)
            self.assertEqual(r.done.n_reused, 329)
            self.same(path, r, straight)

    @nk.sanitized()
    def test_stages__that_do_not_have_the_same_begin_anew(self):
        """A worker that has no room for checkpoints: the chain does not go back, and nothing fails."""
        path, cuts = self.models["mamba-dense"]
        for i in range(2):
            with nk.Chain(path, cuts, "--ctx", 2048, "--sequences", 12, per_worker={i: ["--checkpoint-mib", 0]},
                          env_more={"XDG_CACHE_HOME": self.dir}) as chain, talk.Wire(chain.workers) as wire:
                base = prompt(275, 3)
                self.generate(wire, base, 30, reuse=True)
                longer = base[:273] + prompt(40, 30)
                r = self.generate(wire, longer, 8, reuse=True)
                self.assertEqual(r.done.n_reused, 0)
                self.same(path, r, self.generate(wire, longer, 8))
                chain.assert_idle()

    @nk.sanitized()
    def test_lost__on_a_later_stage_it_is_computed_anew_on_all(self):
        for path, chain, wire in self.chains(names=names("mamba-dense", "qwen3next-moe")):
            base = prompt(64, 3)
            longer = base + self.generate(wire, base, 1, reuse=True).ids + prompt(10, 4)
            with nk.Client(chain.workers[-1].address) as last:
                last.sleep()
                last.wake()
            r = self.generate(wire, longer, 8, reuse=True)
            self.assertEqual(r.done.n_reused, 0)
            self.same(path, r, self.generate(wire, longer, 8))


if __name__ == "__main__":
    unittest.main()

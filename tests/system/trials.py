"""Trials of recovery, from a seed: a chain of a model in two to four stages, a few sessions of all kinds at once, and at random
moments a worker that is killed (-9), or stopped and let go on later, while another one that holds the same layers stands by.

    trials.run(seed, n)      # raises Failed, which names the trial's own seed

What must hold. Every session comes to its end, and every token comes once, in order. Of workers that are deterministic, text,
tokens and log-probabilities are those of the undisturbed run, bit for bit. Of others (their sessions share runs and KV cells, so that
the last bits depend on the load) what was said stays said, and each token is about as probable as it was undisturbed, up to the
first one where two are as good as equally probable. Afterwards nothing of any session is left on any worker."""
import os
import random
import shutil
import signal
import tempfile
import threading
import time
import traceback

import nk
import talk
import test_resume

VOCAB = 128  # of the models that llama.cpp's generator makes; their tokens have no text
NEAR = 0.05
# What it is of (None: kjv-tiny), its layers, and how many of them stay together: where there are two kinds of layers, a slice
# needs both.
MODELS = {"dense": (None, 8, 1), "moe": ("qwen3moe-moe", 4, 1), "window": ("gemma3-dense", 12, 6),
          "recurrent": ("mamba2-dense", 6, 1), "hybrid": ("jamba-dense", 12, 4)}
GIVE_UP_S = 120 * nk.SLOW


class Failed(AssertionError):
    pass


def make_models(folder, names):
    """Paths of the models; those of the generator are made in folder."""
    import subprocess

    import test_recurrent
    c = test_recurrent.conformance()
    archs = {MODELS[n][0].split("-")[0] for n in names if MODELS[n][0]}
    if archs:
        c.generate(c.read_env(), folder, "-s", "1", "-a", f"^({'|'.join(sorted(archs))})$")
    paths = {}
    for n in names:
        made, layers, _ = MODELS[n]
        if made:
            paths[n] = os.path.join(folder, f"{made}.{layers}.gguf")
            subprocess.run([os.path.join(nk.BUILD, "tests", "stretch"), os.path.join(folder, made + ".gguf"), paths[n],
                            str(layers)], check=True, capture_output=True)
        else:
            paths[n] = nk.KJV
    return paths


def cut(rng, kind):
    _, n_layer, unit = MODELS[kind]
    inside = range(unit, n_layer, unit)
    at = [0, *sorted(rng.sample(inside, min(rng.choice([1, 2, 3]), len(inside)))), n_layer]
    return [f"{a}-{b}" for a, b in zip(at, at[1:])]


class Pool:
    """Two workers for each stage; `workers` are those of the route. One that was killed is started again by `mend`."""

    def __init__(self, model, ranges, *options, env_more=None):
        self.model, self.ranges, self.options, self.env_more = model, ranges, options, env_more
        self.both, self.stopped = [None] * len(ranges), []
        try:
            for i in reversed(range(len(ranges))):
                self.both[i] = [self.start(i, k) for k in range(2)]
        except BaseException:
            self.close()
            raise
        self.use = [0] * len(ranges)

    def start(self, i, k, listen="127.0.0.1:0"):
        peers = [w.address for w in self.both[i + 1]] if i + 1 < len(self.ranges) else []
        return nk.Worker("--model", self.model, "--layers", self.ranges[i], "--threads", 1, *self.options, id=f"w{i}{'ab'[k]}",
                         peers=peers, listen=listen, env_more=self.env_more)

    @property
    def workers(self):
        return [pair[k] for pair, k in zip(self.both, self.use)]

    def all(self):
        return [w for pair in self.both for w in pair or () if w]

    def lose(self, i, how):
        """The route goes through the other worker of this stage from now on, if that is there."""
        w = self.both[i][self.use[i]]
        other = self.both[i][1 - self.use[i]]
        if w.stopped or w in self.stopped or other.stopped or other in self.stopped:
            return False
        if how == "kill":
            w.kill()
        else:
            w.halt()
            self.stopped.append(w)
        self.use[i] = 1 - self.use[i]
        return True

    def go_on(self):
        for w in self.stopped:
            w.signal(signal.SIGCONT)
        self.stopped = []

    def mend(self):
        self.go_on()
        for i, pair in enumerate(self.both):
            for k, w in enumerate(pair):
                if w.stopped:
                    pair[k] = self.start(i, k, listen=w.address)

    def assert_nothing_left(self):
        for w in self.all():
            w.assert_idle()
            ok = nk.wait_for(lambda: not test_resume.held(w), 30)
            c = w.info().counters
            if not ok or c.sessions_held or c.journal_bytes or c.journal_spilled_bytes:
                raise Failed(f"worker {w.id} has {c.sessions_held} sessions held and {c.journal_bytes} + "
                             f"{c.journal_spilled_bytes} bytes of journals left")

    def close(self):
        for w in self.all():
            if w in self.stopped:
                w.signal(signal.SIGCONT)
            w.kill()


def make_session(rng, kind):
    """(prompt, n, fields) of one."""
    n_prompt = rng.choice([1, 3, 40, 64, 65, 150, 300])
    prompt = talk.ids(n_prompt, rng.randrange(1000))
    if kind != "dense":
        prompt = [1 + i % (VOCAB - 1) for i in prompt]
    sampling = rng.choice([{}, {}, {"temperature": 0.9, "seed": rng.randrange(1 << 31)},
                           {"temperature": 0.7, "mirostat": 2, "seed": rng.randrange(1 << 31)},
                           {"repeat_penalty": 1.2, "temperature": 0.8, "seed": rng.randrange(1 << 31)}])
    fields = {"n_logprobs": 4}
    if kind == "dense" and rng.random() < 0.3:
        sampling = {**sampling, "grammar": "root ::= [a-zA-Z ,.;:\\n]+"}
    if kind == "dense" and rng.random() < 0.3:
        fields["stop"] = [rng.choice([b"LORD", b" and the", b"zz"])]
    if rng.random() < 0.3:
        fields["dtype"] = nk.pb().DTYPE_F16
    return prompt, rng.choice([1, 12, 40, 90]), {**fields, "sampling": sampling}


class Session(threading.Thread):
    """One that is resumed until it is through."""

    def __init__(self, pool, lock, prompt, n, fields, hold_ms):
        super().__init__(daemon=True)
        self.pool, self.lock, self.error = pool, lock, None
        self.args, self.hold_ms = (prompt, n, fields), hold_ms
        self.g = None

    def run(self):
        prompt, n, fields = self.args
        try:
            end = time.monotonic() + GIVE_UP_S
            with self.lock:
                self.g = g = test_resume.Resumable(self.pool, prompt, n, hold_ms=self.hold_ms, **fields)
            error = g.read()
            while error is not None and not g.finished:
                if time.monotonic() > end:
                    raise Failed(f"not through after {GIVE_UP_S} s: {error.details()}")
                forget = nk.reason(error) in ("bad_resume", "gap", "no_rollback", "journal_lost", "bad_rows")
                time.sleep(0.02)
                with self.lock:
                    g.resume(**({"forget_held": True} if forget else {}))
                error = g.read()
        except BaseException:  # shown by whoever waits
            self.error = traceback.format_exc()


def outcome(g):
    """Done's own words may be lost with a worker, after the last token: then that says how it ended."""
    return [(t.id, t.index, t.text, t.finish, t.prob.logprob, [(p.id, p.logprob) for p in t.top]) for t in g.tokens]


def about_as_probable(a, b):
    for x, y in zip(a.tokens, b.tokens):
        if abs(x.prob.logprob - y.prob.logprob) > NEAR and x.id == y.id:
            return False
        if x.id != y.id:
            return True
    return len(a.tokens) == len(b.tokens)


def trial(pool, kind, exact, seed, log=lambda text: None):
    rng = random.Random(seed)
    specs = [make_session(rng, kind) for _ in range(rng.choice([1, 2, 4, 8]))]
    lock = threading.Lock()
    plain = []
    for prompt, n, fields in specs:
        g = test_resume.Resumable(pool, prompt, n, **fields)
        error = g.read()
        if error is not None:
            raise Failed(f"undisturbed: {error}")
        plain.append(g)
    # A worker that was stopped comes back to a session which others have gone on with, and holds it until its time is over. One
    # that is resumed too late is computed again from the ids.
    sessions = [Session(pool, lock, prompt, n, fields, rng.choice([200, 3000])) for prompt, n, fields in specs]
    faults = [(rng.choice(["kill", "stop"]), rng.randrange(len(pool.ranges)), rng.randrange(60))
              for _ in range(rng.choice([1, 1, 2]))]
    log(f"{len(sessions)} sessions, faults {faults}")
    for s in sessions:
        s.start()
    for how, stage, at in faults:
        watched = rng.choice(sessions)
        nk.wait_for(lambda: not watched.is_alive() or (watched.g and len(watched.g.tokens) >= at % (watched.args[1] + 1)),
                    30, 0.002)
        with lock:
            if pool.lose(stage, how) and how == "stop" and stage == 0:
                for session in sessions:  # gRPC's own client does not notice; ours does
                    if session.g:
                        session.g.stream.cancel()
    for s in sessions:
        s.join(GIVE_UP_S * 2)
        if s.is_alive() or s.error:
            raise Failed(s.error or "a session does not end")
    pool.mend()
    for s, p in zip(sessions, plain):
        if not s.g.finished:
            raise Failed(f"ended after {len(s.g.tokens)} tokens of {len(p.tokens)} without its last one")
        if exact and outcome(s.g) != outcome(p):
            raise Failed(f"{s.args}: {[t.id for t in s.g.tokens]} and not {[t.id for t in p.tokens]}, after "
                         f"{s.g.attempt} resumptions")
        if not exact and s.args[2]["sampling"].get("temperature", 0) == 0 and not about_as_probable(p, s.g):
            raise Failed(f"{s.args}: its tokens are not as probable as undisturbed")
    pool.assert_nothing_left()
    return sum(s.g.attempt for s in sessions)


def run(seed, n, kinds=tuple(MODELS), per_pool=8, log=lambda text: None):
    """n trials; a pool of workers serves for per_pool of them. Returns how many resumptions there were."""
    folder = tempfile.mkdtemp(prefix="nk-trials-")
    n_resumed = done = 0
    try:
        paths = make_models(folder, kinds)
        while done < n:
            rng = random.Random(f"{seed}.{done}")
            kind, exact = kinds[(done // per_pool) % len(kinds)], rng.random() < 0.5
            ranges = cut(rng, kind)
            journal = rng.choice([[], [], ["--journal-mib", 0], ["--journal-mib", 1]])
            options = ["--ctx", 512 * 12, "--sequences", 12, "--silence-ms", 1000 * nk.PATIENCE, *journal,
                       *(["--deterministic"] if exact else [])]
            log(f"model {kind}, stages {','.join(ranges)}, {' '.join(map(str, options))}")
            pool = Pool(paths[kind], ranges, *options, env_more={"XDG_CACHE_HOME": folder})
            try:
                for _ in range(min(per_pool, n - done)):
                    own = f"{seed}.{done}"
                    try:
                        n_resumed += trial(pool, kind, exact, own, lambda text: log(f"  trial {own}: {text}"))
                    except Exception as e:
                        logs = "\n".join(f"--- {w.id}\n{w.log()[-3000:]}" for w in pool.all())
                        raise Failed(f"trial {done} of seed {seed} (model {kind}, {ranges}, {options}): {e}\n{logs}") from e
                    done += 1
            finally:
                pool.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return n_resumed

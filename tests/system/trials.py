"""Trials of recovery, from a seed: a chain of a model in two to four stages, a few sessions of all kinds at once, and at random
moments something that happens to a worker, while another one that holds the same layers stands by: it is killed (-9), or stopped and
let go on later, the link to it is cut without a word or breaks, or gets slow, or the worker has no more memory. In some pools the disk
that journals spill to is full.

    trials.run(seed, n)      # raises Failed, which names the trial's own seed

What must hold. Every session comes to its end, and every token comes once, in order. Of workers that are deterministic, text,
tokens and log-probabilities are those of the undisturbed run, bit for bit. Of others what follows a resumption is held against a fresh
run, whose prompt is the prompt and what was said so far. It has its bits where the session was alone and all stages computed it again.
A stage that is not lost keeps what it computed in other shapes, and sessions share runs and KV cells, so that the last bits depend on
the load: then each token is about as probable, up to the first one where two are as good as equally probable. Afterwards nothing of
any session is left on any worker."""
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import traceback
import types

import grpc

import link
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
    """Two workers for each stage, and but for the first one a link to each of them; `workers` are those of the route. One that was
    killed is started again by `mend`."""

    def __init__(self, model, ranges, *options, env_more=None, prefix=()):
        self.model, self.ranges, self.options, self.env_more, self.prefix = model, ranges, options, env_more, prefix
        self.both, self.links, self.stopped, self.starved = [None] * len(ranges), [None] * len(ranges), [], {}
        try:
            for i in reversed(range(len(ranges))):
                self.both[i] = [self.start(i, k) for k in range(2)]
                if i:
                    self.links[i] = [link.Link(w.address) for w in self.both[i]]
        except BaseException:
            self.close()
            raise
        self.use = [0] * len(ranges)

    def start(self, i, k, listen="127.0.0.1:0"):
        peers = [between.address for between in self.links[i + 1]] if i + 1 < len(self.ranges) else []
        return nk.Worker("--model", self.model, "--layers", self.ranges[i], "--threads", 1, *self.options, id=f"w{i}{'ab'[k]}",
                         peers=peers, listen=listen, env_more=self.env_more, prefix=self.prefix)

    @property
    def workers(self):
        """As they are dialled."""
        return [types.SimpleNamespace(address=self.links[i][k].address if i else pair[k].address, begin=pair[k].begin,
                                      end=pair[k].end) for i, (pair, k) in enumerate(zip(self.both, self.use))]

    def all(self):
        return [w for pair in self.both for w in pair or () if w]

    def is_well(self, i, k):
        w = self.both[i][k]
        return not (w.stopped or w in self.stopped or w in self.starved or (i and self.links[i][k].is_spoilt))

    def lose(self, i, how):
        """The route goes through the other worker of this stage from now on, if that is there and something is lost."""
        k = self.use[i]
        w = self.both[i][k]
        if not self.is_well(i, 0) or not self.is_well(i, 1):
            return False
        if how == "slow":
            self.links[i][k].slow(1 << 20, 0.002)
            return False
        if how == "kill":
            w.kill()
        elif how == "stop":
            w.halt()
            self.stopped.append(w)
        elif how == "cut":
            self.links[i][k].cut()
        elif how == "break":
            self.links[i][k].drop()
        else:
            self.starved[w] = starve(w)
        self.use[i] = 1 - k
        return True

    def go_on(self):
        for w in self.stopped:
            w.signal(signal.SIGCONT)
        for w, asked in self.starved.items():
            if asked():
                resource.prlimit(w.pid, resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            else:
                w.kill()
        for pair in self.links:
            for between in pair or ():
                between.mend()
        self.stopped, self.starved = [], {}

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
        for pair in self.links:
            for between in pair or ():
                between.close()


def starve(w):
    """The system gives it no more memory: what its heap has not got by now it does not get. (A limit of its address space would not
    do: the heap has taken much more of that than it uses.) And somebody asks it for more than it had to do so far. Returns what
    waits until that is over and says whether the worker is there still: one that dies of it may take a while."""
    survived = []
    i = w.info()
    rows = nk.pb().Rows(n_rows=i.n_batch, width=i.n_embd, data=bytes(4 * i.n_batch * i.n_embd)) if i.layer_begin else None
    resource.prlimit(w.pid, resource.RLIMIT_DATA, (1 << 20, resource.RLIM_INFINITY))

    def ask():
        try:
            with nk.Client(w.address) as client:
                client.forward(nk.pb().ForwardRequest(ids=[5] * i.n_batch, rows=rows, all_logits=True), timeout=10)
            survived.append(True)
        except grpc.RpcError as e:
            survived.append(e.code() != grpc.StatusCode.UNAVAILABLE)  # else it is gone

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()

    def over():
        asking.join()
        return survived[0] and w.process.poll() is None
    return over


def full_disk(folder):
    """A command before a worker's own and its XDG_CACHE_HOME: files of the cache's own folder lie on a disk of 128 KiB. What it
    keeps in folders there (slices, hashes) is where it was. None where that cannot be made, for want of rights."""
    mounted, real = os.path.join(folder, "full"), os.path.join(folder, "nakshatra")
    subs = ("slices", "hashes", "verified", "verify", "catalogues", "measured")
    for sub in subs:
        os.makedirs(os.path.join(real, sub), exist_ok=True)
    os.makedirs(mounted, exist_ok=True)
    script = f'mount -t tmpfs -o size=128k none "{mounted}" && cd "{mounted}" && mkdir nakshatra && ' + " && ".join(
        f'mkdir nakshatra/{sub} && mount --bind "{real}/{sub}" nakshatra/{sub}' for sub in subs) + ' && cd / && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        return None
    return prefix, {"XDG_CACHE_HOME": mounted}


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
    turns = [(prompt, rng.choice([1, 12, 40, 90]))]
    if rng.random() < 0.25:  # a chat: what was thought, and the prompt's last words, are not in the next turn
        turns.append((prompt[:-2] + [3 + (i + len(prompt)) % (VOCAB - 4) for i in range(20)], 12))
        fields["reuse"] = True
    return turns, {**fields, "sampling": sampling}


class Session(threading.Thread):
    """Turns that are resumed until they are through, one after the other; `g` is the one that runs."""

    def __init__(self, pool, lock, turns, fields, hold_ms, forgets):
        super().__init__(daemon=True)
        self.pool, self.lock, self.error = pool, lock, None
        self.turns, self.fields, self.hold_ms, self.forgets = turns, fields, hold_ms, forgets
        self.g, self.all = None, []

    @staticmethod
    def read(g):
        n = len(g.opened)
        error = g.read()
        g.opened_by.append(g.opened[-1] if len(g.opened) > n else None)
        return error

    def turn(self, prompt, n):
        end = time.monotonic() + GIVE_UP_S
        with self.lock:
            self.g = g = test_resume.Resumable(self.pool, prompt, n, hold_ms=self.hold_ms, **self.fields)
            g.said, g.opened_by = [], []  # how many tokens there were at each resumption, and what each attempt was opened with
            self.all.append(g)
        error = self.read(g)
        while error is not None and not g.finished:
            if time.monotonic() > end:
                raise Failed(f"not through after {GIVE_UP_S} s: {error.details()}")
            forget = nk.reason(error) in ("bad_resume", "gap", "no_rollback", "journal_lost", "bad_rows")
            time.sleep(0.02)
            with self.lock:
                g.said.append(len(g.tokens))
                g.resume(**({"forget_held": True} if forget or self.forgets else {}))
            error = self.read(g)

    def run(self):
        try:
            for prompt, n in self.turns:
                self.turn(prompt, n)
        except BaseException:  # shown by whoever waits
            self.error = traceback.format_exc()


def outcome(g):
    """Done's own words may be lost with a worker, after the last token: then that says how it ended."""
    return [(t.id, t.index, t.text, t.finish, t.prob.logprob, [(p.id, p.logprob) for p in t.top]) for t in g.tokens]


def numbers(tokens):
    return [(t.id, t.finish, t.prob.logprob, [(p.id, p.logprob) for p in t.top]) for t in tokens]


def fresh(pool, g, k):
    """What follows the first k tokens of g where nothing is held of it: a run whose prompt is g's and those k, in the chunks of a
    prompt. Greedy tokens, which depend on nothing else, are asked for in just that way. The others depend on what was drawn, accepted
    and held back for the k, too, and a prompt's ids are not drawn: those are asked for as the resumption of a session that no
    worker knows, of which all is computed and each draw counted anew."""
    said, fields = g.tokens[:k], {**g.fields, "reuse": False}
    for _ in range(UNDISTURBED_TRIES):
        if fields["sampling"] or "stop" in fields:
            f = test_resume.Resumable.__new__(test_resume.Resumable)
            f.__dict__.update(g.__dict__, fields=fields, wire=None, tokens=list(said), done=None, opened=g.opened[:1], attempt=0,
                              session=random.randbytes(16), hold_ms=200)
            f.resume()
        else:
            f = test_resume.Resumable(pool, g.prompt + [t.id for t in said], g.n - k, hold_ms=200, **fields)
        error = f.read()
        if not is_disturbance(error):
            break
    if error is not None:
        raise Failed(f"fresh, after {k} tokens: {error}")
    return f.tokens[k:] if f.attempt else f.tokens


def compare_fresh(pool, g, alone, args):
    """What came after each resumption, up to the next one, is what a fresh run says: bit for bit where the session was alone and
    every stage computed all of it again. Returns how often it was (the same bits, about as probable)."""
    n_same = n_near = 0
    for i, (k, end) in enumerate(zip(g.said, [*g.said[1:], len(g.tokens)])):
        if end == k:
            continue
        got, want = g.tokens[k:end], fresh(pool, g, k)[:end - k]
        what = f"{args}: resumed after {k} of {len(g.tokens)} tokens, and what follows is"
        if alone and not any(stage.held for stage in g.opened_by[i + 1].stages):
            n_same += 1
            if numbers(got) != numbers(want):
                raise Failed(f"{what} {numbers(got)}, and in a fresh run {numbers(want)}")
        else:
            n_near += 1
            if not about_as_probable(got, want):
                raise Failed(f"{what} not as probable as in a fresh run: {numbers(got)} and not {numbers(want)}")
    return n_same, n_near


def about_as_probable(a, b):
    for x, y in zip(a, b):
        if abs(x.prob.logprob - y.prob.logprob) > NEAR and x.id == y.id:
            return False
        if x.id != y.id:
            return True
    return len(a) == len(b)


FAULTS = ("kill", "kill", "stop", "stop", "cut", "cut", "break", "slow", "memory")


UNDISTURBED_TRIES = 20


def is_disturbance(error):
    """A machine that is busy with something else for as long as --silence-ms says: for one worker by its sentence, for those
    beside it by a connection that is gone. Nothing else is."""
    return error is not None and re.search("silent for|is gone", error.details() or "") is not None


def undisturbed(pool, turns, fields):
    """Of each turn, computed from its first token on."""
    plain = []
    for prompt, n in turns:
        for _ in range(UNDISTURBED_TRIES):
            g = test_resume.Resumable(pool, prompt, n, **{**fields, "reuse": False}, hold_ms=200)
            error = g.read()
            if not is_disturbance(error):
                break
        if error is not None:
            raise Failed(f"undisturbed: {error}")
        plain.append(g)
    return plain


def compare(exact, g, plain, args):
    if not g.finished:
        raise Failed(f"ended after {len(g.tokens)} tokens of {len(plain.tokens)} without its last one")
    if exact and outcome(g) != outcome(plain):
        raise Failed(f"{args}: {[t.id for t in g.tokens]} and not {[t.id for t in plain.tokens]}, after "
                     f"{g.attempt} resumptions")
    if not exact and args[-1]["sampling"].get("temperature", 0) == 0 and not about_as_probable(plain.tokens, g.tokens):
        raise Failed(f"{args}: its tokens are not as probable as undisturbed")


def trial(pool, kind, exact, seed, log=lambda text: None):
    rng = random.Random(seed)
    specs = [make_session(rng, kind) for _ in range(rng.choice([1, 2, 4, 8] if exact else [1, 1, 1, 2, 4, 8]))]
    lock = threading.Lock()
    plain = [undisturbed(pool, turns, fields) for turns, fields in specs]
    # A worker that was stopped comes back to a session which others have gone on with, and holds it until its time is over. One
    # that is resumed too late is computed again from the ids.
    # Fast and alone, every second one is computed again by all stages: then it is a fresh run's bits that follow.
    forgets = not exact and len(specs) == 1 and rng.random() < 0.5
    sessions = [Session(pool, lock, turns, fields, rng.choice([200, 3000]), forgets) for turns, fields in specs]
    faults = []
    for _ in range(rng.choice([1, 1, 2])):
        how = rng.choice(FAULTS)
        first = 1 if how in ("cut", "break", "slow") else 0  # there is a link to all but the first one
        faults.append((how, rng.randrange(first, len(pool.ranges)), rng.randrange(60)))
    log(f"{len(sessions)} sessions, faults {faults}")
    for s in sessions:
        s.start()
    for how, stage, at in faults:
        watched = rng.choice(sessions)
        nk.wait_for(lambda: not watched.is_alive() or
                    (watched.g and len(watched.g.tokens) >= at % (watched.turns[0][1] + 1)), 30, 0.002)
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
    for s, turns in zip(sessions, plain):
        for g, p, turn in zip(s.all, turns, s.turns):
            compare(exact, g, p, (*turn, s.fields))
    pool.assert_nothing_left()
    if not exact:
        alone = len(sessions) == 1 and not sessions[0].fields.get("reuse")  # a session that is kept has cells, too
        counts = [compare_fresh(pool, g, alone, (*turn, s.fields)) for s in sessions for g, turn in zip(s.all, s.turns)]
        log("compared with fresh runs: {} bit for bit, {} nearly".format(*map(sum, zip(*counts))))
        pool.assert_nothing_left()
    n = sum(g.attempt for s in sessions for g in s.all)
    log(f"{n} resumptions")
    return n


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
            full = full_disk(folder) if rng.random() < 0.25 else None
            prefix, env_more = full or ((), {"XDG_CACHE_HOME": folder})
            # A session has a quarter of the memory, and then spills.
            journal = ["--journal-mib", 1] if full else rng.choice([[], [], ["--journal-mib", 0], ["--journal-mib", 1]])
            options = ["--ctx", 512 * 12, "--sequences", 12, "--silence-ms", 1000 * nk.PATIENCE, *journal,
                       *(["--deterministic"] if exact else [])]
            log(f"model {kind}, stages {','.join(ranges)}, {' '.join(map(str, options))}{', a full disk' if full else ''}")
            pool = Pool(paths[kind], ranges, *options, env_more=env_more, prefix=prefix)
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

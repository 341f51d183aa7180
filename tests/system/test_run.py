"""nakshatra run: a chain of workers gives the tokens of the whole model, whatever the cut and the sampling; and what a
command at the end of a pipe has to do."""
import json
import os
import pty
import re
import select
import shutil
import signal
import stat
import subprocess
import tempfile
import termios
import time
import unittest

import nk

WHOLE = os.path.join(nk.BUILD, "tools", "whole")
CUTS = ["0-8", "0-4,4-8", "0-1,1-3,3-8", "0-1,1-2,2-4,4-6,6-8"]


def whole(model, prompt, *options):
    """The same generation with the whole model in one process."""
    done = subprocess.run([WHOLE, model, "--prompt", prompt, *map(str, options)], capture_output=True, text=True,
                          timeout=120 * nk.SLOW, env=nk.env())
    if done.returncode:
        raise AssertionError(done.stderr)
    return json.loads(done.stdout)


@nk.sanitized()
class Golden(unittest.TestCase):
    """The tokens of stock llama.cpp through 1, 2, 3 and 5 workers."""

    def through(self, model, cuts, golden, n):
        for cut in cuts:
            with self.subTest(model=os.path.basename(model), cut=cut), nk.Chain(model, cut) as chain:
                got = json.loads(nk.out("run", "--cluster", chain.file, "--prompt", golden["prompt_text"], "-n", n,
                                        "--temp", "0", "--json"))
                self.assertEqual(got["n_prompt"], len(golden["prompt"]))
                self.assertEqual(got["finish"], "length")
                self.assertEqual([s["worker"] for s in got["stages"]], [w.id for w in chain.workers])
                chain.assert_idle()
                yield got

    def test_run__kjv_tiny_through_1_2_3_and_5_workers_is_the_golden_text(self):
        golden = nk.golden("kjv-tiny")
        ids = whole(nk.KJV, golden["prompt_text"], "-n", 64, "--temp", 0)["ids"]
        for got in self.through(nk.KJV, CUTS, golden, 64):
            self.assertEqual(golden["prompt_text"] + got["text"], golden["text"])
            self.assertEqual(got["ids"], ids)

    def test_run__stories_through_1_2_3_and_5_workers_is_the_golden_text(self):
        golden = nk.golden("stories260K")
        for model in nk.STORIES:
            cuts = ["0-5", "0-2,2-5", "0-1,1-3,3-5", "0-1,1-2,2-3,3-4,4-5"]
            for got in self.through(model, cuts, golden, 32):
                self.assertEqual(got["ids"], golden["ids"])
                self.assertEqual(got["text"], golden["text"])

    def test_run__a_prompt_of_many_chunks_over_three_workers_is_the_whole_models_text(self):
        prompt = (nk.golden("kjv-tiny")["text"] + ". ") * 4
        expected = whole(nk.KJV, prompt, "-n", 40, "--temp", 0)
        self.assertGreater(expected["n_prompt"], 200)
        with nk.Chain(nk.KJV, "0-1,1-3,3-8") as chain:
            got = json.loads(nk.out("run", "--cluster", chain.file, "--prompt", prompt, "-n", 40, "--temp", 0, "--json"))
            self.assertEqual(got["ids"], expected["ids"])
            chain.assert_idle()


@nk.sanitized()
class Sampling(unittest.TestCase):
    """Every sampler setting over three workers against the same in one process with the same seed."""

    @classmethod
    def setUpClass(cls):
        cls.chain = nk.Chain(nk.KJV, "0-1,1-3,3-8")
        cls.addClassCleanup(cls.chain.close)

    SETTINGS = {
        "greedy": ["--temp", "0"],
        "defaults": [],
        "hot": ["--temp", "3"],
        "top_k": ["--top-k", "3"],
        "top_k off": ["--top-k", "0", "--top-p", "1", "--min-p", "0"],
        "top_p": ["--top-p", "0.4", "--top-k", "0"],
        "top_p 0": ["--top-p", "0"],
        "min_p": ["--min-p", "0.3", "--top-k", "0", "--top-p", "1", "--temp", "1.5"],
        "typical_p": ["--typical-p", "0.5", "--top-k", "0"],
        "typical_p 0": ["--typical-p", "0"],
        "repeat_penalty": ["--repeat-penalty", "1.4"],
        "repeat_penalty greedy": ["--repeat-penalty", "1.2", "--temp", "0"],
        "repeat_penalty of the whole context": ["--repeat-penalty", "1.3", "--repeat-last-n", "-1"],
        "repeat_penalty of no tokens": ["--repeat-penalty", "1.3", "--repeat-last-n", "0"],
        "repeat_penalty of a few": ["--repeat-penalty", "1.3", "--repeat-last-n", "3"],
        "presence_penalty": ["--presence-penalty", "1.5"],
        "frequency_penalty": ["--frequency-penalty", "0.7", "--temp", "0"],
        "negative penalty": ["--presence-penalty", "-0.5"],
        "dry": ["--dry-multiplier", "0.8", "--temp", "0"],
        "dry in full": ["--dry-multiplier", "2", "--dry-base", "1.3", "--dry-allowed-length", "1",
                        "--dry-penalty-last-n", "30"],
        "dry of no tokens": ["--dry-multiplier", "2", "--dry-penalty-last-n", "0"],
        "mirostat": ["--mirostat", "1"],
        "mirostat 2": ["--mirostat", "2", "--mirostat-lr", "0.3", "--mirostat-ent", "2.5"],
        "logit_bias": ["--logit-bias", "301+5", "--logit-bias", "290-inf", "--temp", "0"],
        "logit_bias to the end": ["--logit-bias", "2+3", "--temp", "1"],
        "ignore_eos": ["--logit-bias", "2+50", "--ignore-eos"],
        "end of generation": ["--logit-bias", "2+50"],
        "end of generation shown": ["--logit-bias", "2+50", "--special"],
        "grammar": ["--grammar", 'root ::= (" and the " [a-z]+ ",")+'],
        "grammar that ends": ["--grammar", 'root ::= " yes" | " no"'],
        "stop": ["--stop", "LORD", "--temp", "0"],
        "stop across tokens": ["--stop", "morning, th", "--temp", "0"],
        "stops, the first one counts": ["--stop", "said", "--stop", "t the", "--temp", "0"],
        "stop that never comes": ["--stop", "zzz", "--temp", "0"],
        "stop at the last character": ["--stop", "a", "--temp", "0", "-n", "3"],
        "all at once": ["--temp", "1.1", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.02", "--typical-p", "0.9",
                        "--repeat-penalty", "1.1", "--presence-penalty", "0.1", "--frequency-penalty", "0.1",
                        "--dry-multiplier", "0.5", "--logit-bias", "301-1", "--stop", "Egypt"],
    }
    # A kept session's KV may come from a prefill of another shape, which ggml's kernels do not compute to the same bits.
    FRESH = ["--json", "--no-reuse"]

    def test_run__every_sampler_setting_gives_what_one_process_gives(self):
        differs = 0
        for name, options in self.SETTINGS.items():
            with self.subTest(setting=name):
                options = ["-n", "48", "--seed", "7", *options]
                expected = whole(nk.KJV, "And it came to pass", *options)
                got = json.loads(nk.out("run", "--cluster", self.chain.file, "--prompt", "And it came to pass",
                                        *self.FRESH, *options))
                for field in ("ids", "text", "finish", "stop", "n_prompt"):
                    self.assertEqual(got[field], expected[field], field)
                self.assertEqual(got["n_generated"], len(got["ids"]))
                differs += got["text"] != whole_default_text()
        self.assertGreater(differs, len(self.SETTINGS) // 2)  # the settings do something
        self.chain.assert_idle()

    def test_run__a_random_seed_is_told_and_gives_the_same_text_again(self):
        args = ["run", "--cluster", self.chain.file, "--prompt", "In the", "-n", "30", "--temp", "2", *self.FRESH]
        first, second = json.loads(nk.out(*args)), json.loads(nk.out(*args))
        self.assertNotEqual(first["seed"], second["seed"])
        self.assertNotEqual(first["ids"], second["ids"])
        again = json.loads(nk.out(*args, "--seed", first["seed"]))
        self.assertEqual((again["ids"], again["seed"]), (first["ids"], first["seed"]))
        self.assertEqual(whole(nk.KJV, "In the", "-n", 30, "--temp", 2, "--seed", first["seed"])["ids"], first["ids"])

    def test_run__log_probabilities_are_those_of_one_process(self):
        options = ["-n", "16", "--seed", "3", "--logprobs", "5"]
        expected = whole(nk.KJV, "And it came to pass", *options)
        got = json.loads(nk.out("run", "--cluster", self.chain.file, "--prompt", "And it came to pass", *self.FRESH,
                                *options))
        self.assertEqual(len(got["logprobs"]), 16)
        for g, e in zip(got["logprobs"], expected["logprobs"]):
            self.assertEqual((g["id"], g["bytes"], g["logprob"]), (e["id"], e["bytes"], e["logprob"]))
            self.assertEqual(len(g["top"]), 5)
            self.assertEqual([(t["id"], t["logprob"]) for t in g["top"]], [(t["id"], t["logprob"]) for t in e["top"]])
            self.assertEqual(sorted(g["top"], key=lambda t: -t["logprob"]), g["top"])

    def test_run__a_grammar_from_a_file_is_the_grammar(self):
        with tempfile.NamedTemporaryFile("w", suffix=".gbnf") as f:
            f.write('root ::= " yes" | " no"\n')
            f.flush()
            got = nk.out("run", "--cluster", self.chain.file, "--prompt", "Is it?", "--grammar-file", f.name, "-n", 9)
        self.assertIn(got, (" yes", " no"))

    def test_run__a_kept_session_is_begun_from_and_changes_nothing(self):
        prompt = nk.golden("kjv-tiny")["text"]
        args = ["run", "--cluster", self.chain.file, "-n", "12", "--temp", "0", "--json", "--prompt"]
        fresh = json.loads(nk.out(*args, prompt + " of the land,", "--no-reuse"))
        self.assertEqual(fresh["n_reused"], 0)
        json.loads(nk.out(*args, prompt))
        reused = json.loads(nk.out(*args, prompt + " of the land,"))
        self.assertGreater(reused["n_reused"], 40)
        self.assertEqual(reused["ids"], fresh["ids"])
        self.chain.assert_idle()


_default = None


def whole_default_text():
    global _default
    if _default is None:
        _default = whole(nk.KJV, "And it came to pass", "-n", "48", "--seed", "7", "--temp", "0")["text"]
    return _default


@nk.sanitized("tsan")
class Command(unittest.TestCase):
    """Prompts, pipes, signals, arguments."""

    @classmethod
    def setUpClass(cls):
        cls.chain = nk.Chain(nk.KJV, "0-4,4-8", "--ctx", 16384)  # generations long enough to be met while they run
        cls.addClassCleanup(cls.chain.close)
        cls.dir = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.dir)

    def run_(self, *args, **more):
        return nk.run("run", "--cluster", self.chain.file, *args, **more)

    def test_run__the_prompt_may_come_from_a_file_or_standard_input(self):
        expected = self.run_("--prompt", "In the", "-n", "8", "--temp", "0").stdout
        path = os.path.join(self.dir, "prompt.txt")
        for text in ("In the", "In the\n", "In the\r\n"):
            with open(path, "w", newline="") as f:
                f.write(text)
            self.assertEqual(self.run_("--file", path, "-n", "8", "--temp", "0").stdout, expected)
            self.assertEqual(self.run_("-n", "8", "--temp", "0", input=text).stdout, expected)
            self.assertEqual(self.run_("--file", "-", "-n", "8", "--temp", "0", input=text).stdout, expected)
        # Only one newline is taken away.
        two = json.loads(self.run_("-n", "1", "--json", input="In the\n\n").stdout)
        one = json.loads(self.run_("-n", "1", "--json", input="In the\n").stdout)
        self.assertGreater(two["n_prompt"], one["n_prompt"])

    def test_run__standard_output_has_the_text_and_nothing_else(self):
        done = self.run_("--prompt", "And it came to pass", "-n", "64", "--temp", "0", "--stats")
        golden = nk.golden("kjv-tiny")
        self.assertEqual(golden["prompt_text"] + done.stdout, golden["text"])
        self.assertRegex(done.stderr, r"generated +64 tokens")
        self.assertRegex(done.stderr, r"w0 +\d+ +[\d.]+ +[\d.]+ +[\d.]+\nw1 ")

    def test_run__ids_prints_the_ids(self):
        got = self.run_("--prompt", "And it came to pass", "-n", "12", "--temp", "0", "--ids").stdout
        expected = whole(nk.KJV, "And it came to pass", "-n", 12, "--temp", 0)["ids"]
        self.assertEqual(got, " ".join(map(str, expected)) + "\n")

    def test_run__text_comes_while_the_generation_goes_on(self):
        # A worker that stands still after the first tokens: what came is out, and the command waits.
        with nk.Background("run", "--cluster", self.chain.file, "--prompt", "In", "-n", "8000", "--temp", "0") as run:
            self.assertTrue(nk.wait_for(lambda: run.stdout or run.process.poll() is not None, step=0.001))
            self.chain.workers[1].halt()
            try:
                self.assertIsNone(run.process.poll())
                early = len(run.stdout)
            finally:
                self.chain.workers[1].signal(signal.SIGCONT)
            self.assertTrue(nk.wait_for(lambda: len(run.stdout) > early))
            run.process.send_signal(signal.SIGINT)
            self.assertEqual(run.wait(), 130)
        self.chain.assert_idle()

    def test_run__ctrl_c_cancels_and_frees_everything(self):
        for sig, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            with nk.Background("run", "--cluster", self.chain.file, "--prompt", "In", "-n", "8000", "--temp", "0") as run:
                self.assertTrue(nk.wait_for(lambda: run.stdout or run.process.poll() is not None, step=0.001))
                run.process.send_signal(sig)
                self.assertEqual(run.wait(20), code, run.stderr)
                self.assertEqual(run.stderr, b"")
        self.chain.assert_idle()

    def test_run__ctrl_c_ends_a_command_that_no_worker_answers(self):
        self.chain.workers[0].signal(signal.SIGSTOP)
        try:
            with nk.Background("run", "--cluster", self.chain.file, "--prompt", "In", "-n", "9") as run:
                self.assertTrue(nk.wait_for(lambda: nk.catches(run.process.pid, signal.SIGINT)))
                run.process.send_signal(signal.SIGINT)
                self.assertEqual(run.wait(20), 130, run.stderr)
        finally:
            self.chain.workers[0].signal(signal.SIGCONT)
        self.chain.assert_idle()

    def test_run__a_reader_that_goes_away_ends_it_like_a_filter(self):
        read, write = os.pipe()
        with nk.Background("run", "--cluster", self.chain.file, "--prompt", "In", "-n", "8000", "--temp", "0",
                           stdout=write) as run:
            os.close(write)
            self.assertTrue(os.read(read, 1))
            os.close(read)
            self.assertEqual(run.wait(20), -signal.SIGPIPE)
            self.assertEqual(run.stderr, b"")
        self.chain.assert_idle()

    def test_run__an_output_that_is_full_is_an_error(self):
        with open("/dev/full", "w") as full, \
                nk.Background("run", "--cluster", self.chain.file, "--prompt", "In", "-n", "9", stdout=full) as run:
            self.assertEqual(run.wait(20), 1)
            self.assertIn(b"cannot be written", run.stderr)
        self.chain.assert_idle()

    def test_run__a_deadline_ends_it_and_says_so(self):
        self.chain.workers[1].signal(signal.SIGSTOP)
        try:
            done = self.run_("--prompt", "In", "-n", "9", "--timeout-ms", "500", "--json")
        finally:
            self.chain.workers[1].signal(signal.SIGCONT)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(json.loads(done.stdout)["error"]["code"], "deadline exceeded")
        self.chain.assert_idle()

    def test_run__a_worker_that_stands_still_is_named(self):
        for i in (0, 1):
            w = self.chain.workers[i]
            w.signal(signal.SIGSTOP)
            try:
                done = self.run_("--prompt", "In", "-n", "9", "--stall-ms", 1500 * nk.PATIENCE, "--json")
            finally:
                w.signal(signal.SIGCONT)
            error = json.loads(done.stdout)["error"]
            # Its silence may be noticed before the stall time is over.
            self.assertIn((done.returncode, error["code"]), [(1, "deadline exceeded"), (1, "unavailable")], error)
            self.assertIn(f"worker {w.id}", error["message"])
            nk.wait_for(lambda: not nk.run("check", "--cluster", self.chain.file).returncode)
        self.chain.assert_idle()

    def test_run__a_worker_that_is_killed_is_named_and_back_it_works_again(self):
        """The last one, which is waited for a minute; system.recovery has the first one, and that run goes on when it is back."""
        with nk.Background("run", "--cluster", self.chain.file, "--prompt", "In", "-n", "8000", "--json") as run:
            nk.wait_for(lambda: self.chain.workers[0].info().counters.sessions_open, step=0.001)
            self.chain.workers[1].kill()
            self.assertEqual(run.wait(60), 1)
        error = json.loads(run.stdout)["error"]
        self.assertEqual(error["code"], "unavailable", error)
        self.assertIn("worker w1", error["message"])
        self.chain.workers[0].assert_idle()
        self.chain.start(1, listen=self.chain.workers[1].address)
        nk.wait_for(lambda: not nk.run("check", "--cluster", self.chain.file).returncode)
        self.assertEqual(self.run_("--prompt", "In", "-n", "9").returncode, 0)
        self.chain.assert_idle()

    def test_run__wrong_arguments_are_sentences_and_exit_code_2(self):
        c = ["--cluster", self.chain.file]
        for args, sentence in [
            ([], "--cluster FILE is missing"),
            (["--cluster", "/nonexistent.yaml", "--prompt", "x"], "/nonexistent.yaml"),
            ([*c], "standard input is empty"),
            ([*c, "--prompt", "x", "--file", "y"], "both given"),
            ([*c, "--file", "/nonexistent"], "/nonexistent"),
            ([*c, "--prompt", "x", "--temp", "hot"], "--temp: 'hot' is not a number"),
            ([*c, "--prompt", "x", "--temp", "-1"], "outside 0 to 100"),
            ([*c, "--prompt", "x", "--top-p", "1.5"], "outside 0 to 1"),
            ([*c, "--prompt", "x", "-n", "-1"], "outside 0"),
            ([*c, "--prompt", "x", "--seed", "4294967296"], "outside"),
            ([*c, "--prompt", "x", "--mirostat", "3"], "outside 0 to 2"),
            ([*c, "--prompt", "x", "--logit-bias", "5"], "'5' is not of the form"),
            ([*c, "--prompt", "x", "--logit-bias", "a+1"], "not of the form"),
            ([*c, "--prompt", "x", "--logit-bias", "5+inf"], "not of the form"),
            ([*c, "--prompt", "x", "--logit-bias", "5+nan"], "not of the form"),
            ([*c, "--prompt", "x", "--logit-bias", "5000+1"], "5000"),
            ([*c, "--prompt", "x", "--grammar", "root ::= ("], "grammar"),
            ([*c, "--prompt", "x", "--grammar", "root ::= foo"], 'the rule "foo" is not defined'),
            ([*c, "--prompt", "x", "--grammar", "a", "--grammar-file", "b"], "both given"),
            ([*c, "--prompt", "x", "--grammar-file", "/nonexistent"], "/nonexistent"),
            ([*c, "--prompt", "x", "--stop", ""], "stop string"),
            ([*c, "--prompt", "x", "--stop", "y" * 300], "stop string"),
            ([*c, "--prompt", "x", "--logprobs", "5"], "goes with --json"),
            ([*c, "--prompt", "x", "--json", "--logprobs", "21"], "outside 0 to 20"),
            ([*c, "--prompt", "x", "--json", "--ids"], "--ids"),
            ([*c, "--chat", "--prompt", "x"], "--chat goes without"),
            ([*c, "--chat"], "chat template"),
            ([*c, "--chat", "--chat-template", "nonsense"], "nonsense"),
            ([*c, "--prompt", "x", "--system", "y"], "go with --chat"),
            ([*c, "--prompt", "x", "extra"], "one argument too many"),
            ([*c, "--prompt", "x", "--colour"], "unknown"),
            ([*c, "--prompt", "x " * 20000, "-n", "4"], "context"),
        ]:
            with self.subTest(args=args[2:] if args[:2] == c else args):
                done = nk.run("run", *args)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertRegex(done.stderr, sentence)
                self.assertEqual(done.stdout, "")
                self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.chain.assert_idle()

    def test_run__an_empty_prompt_is_the_models_beginning(self):
        """A vocabulary with a BOS token has one token for it, as whole llama.cpp has."""
        got = json.loads(self.run_("--prompt", "", "-n", "12", "--temp", "0", "--json").stdout)
        expected = whole(nk.KJV, "", "-n", 12, "--temp", 0)
        self.assertEqual((got["n_prompt"], got["ids"]), (1, expected["ids"]))

    def test_run__a_pipe_that_wants_ten_bytes_gets_them(self):
        script = f"'{nk.NAKSHATRA}' run --cluster '{self.chain.file}' --prompt 'In the' -n 8000 --temp 0 | head -c 10"
        done = subprocess.run(["bash", "-c", script + "; echo \" ${PIPESTATUS[0]}\""], capture_output=True, text=True,
                              timeout=60 * nk.SLOW, env=nk.env(), stdin=subprocess.DEVNULL)
        text, code = done.stdout[:10], done.stdout[10:].strip()
        self.assertEqual((len(text), code, done.stderr), (10, str(128 + signal.SIGPIPE), ""))
        self.chain.assert_idle()

    def test_run__a_prompt_that_is_not_utf8_is_refused(self):
        done = nk.run("run", "--cluster", self.chain.file, input=b"caf\xe9", text=False)
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr, b"UTF-8")

    def test_run__the_vocabulary_of_another_model_is_refused(self):
        other = os.path.join(self.dir, "other.gguf")
        shutil.copyfile(nk.KJV, other)
        with open(other, "ab") as f:
            f.write(b"\0")
        try:
            self.chain.write(vocab=other)
            done = self.run_("--prompt", "x", "-n", "1")
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, f"{other}.*{nk.sha256(other)}.*{nk.sha256(nk.KJV)}")
            self.chain.write(vocab=None)
            done = self.run_("--prompt", "x", "-n", "1")
            self.assertEqual(done.returncode, 2)
            self.assertIn("names no vocabulary file", done.stderr)
        finally:
            self.chain.write()


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *args, env=None):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen([nk.NAKSHATRA, *args], stdin=slave, stdout=slave, stderr=slave, env=env,
                                        start_new_session=True,
                                        preexec_fn=lambda: __import__("fcntl").ioctl(0, 0x540E, 0))  # TIOCSCTTY
        os.close(slave)
        self.seen = ""

    def read_until(self, pattern, seconds=20):
        """Reads on until the pattern comes, and forgets up to its end."""
        end = time.monotonic() + seconds * nk.SLOW
        while not re.search(pattern, self.seen):
            left = end - time.monotonic()
            if left <= 0:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            if select.select([self.master], [], [], left)[0]:
                try:
                    data = os.read(self.master, 65536)
                except OSError:
                    data = b""
                if not data:
                    raise AssertionError(f"ended without {pattern!r}: {self.seen!r}")
                self.seen += data.decode(errors="replace")
        self.seen = self.seen[re.search(pattern, self.seen).end():]

    def editing(self):
        """Waits for libedit to have the terminal: what is typed before is edited by the kernel, byte by byte."""
        assert nk.wait_for(lambda: not termios.tcgetattr(self.master)[3] & termios.ICANON), self.seen

    def end(self):
        """Ctrl-D at the prompt, once that is libedit's: the kernel would make it an end of file that libedit does not see."""
        self.editing()
        self.send("\x04")
        assert self.process.wait(20 * nk.SLOW) == 0, self.seen

    def send(self, text):
        os.write(self.master, text.encode())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


@nk.sanitized("asan")
class Chat(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.chain = nk.Chain(nk.KJV, "0-4,4-8")
        cls.addClassCleanup(cls.chain.close)

    def setUp(self):
        self.home = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.home)
        self.env = nk.env(HOME=self.home, TERM="xterm", XDG_STATE_HOME=os.path.join(self.home, "state"))
        self.args = ["run", "--cluster", self.chain.file, "--chat", "--chat-template", "chatml", "--temp", "0"]

    def test_run__control_characters_are_shown_on_a_terminal_and_raw_in_a_pipe(self):
        text = "a\x1b[2J\r\x07\u009b31m\u202eb"
        args = ["run", "--cluster", self.chain.file, "--prompt", "In", "--grammar", r'root ::= "a\x1b[2J\r\x07" [\u009b] "31m" [\u202e] "b"']
        self.assertEqual(nk.run(*args).stdout, text.replace("\r", "\n"))  # as Python reads pipes
        shown = r"a\^\[\[2J\^M\^G<U\+009B>31m<U\+202E>b"
        with Terminal(*args) as t:
            t.read_until(r"(^|\x1b\[K)" + shown + r"\r\n")  # behind a bar, where the vocabulary's digest takes its time
        with Terminal(*args, "--json") as t:
            t.read_until(r'"text":"a\\u001B\[2J\\r\\u0007\\u009B31m\\u202Eb"')
        with Terminal("check", "--cluster", "x\x1b[2Jy\u009b") as t:
            t.read_until(r"x\^\[\[2Jy<U\+009B>: ")
        with Terminal(*self.args, "--grammar", args[-1], env=self.env) as t:
            t.editing()
            t.send("In\n")
            t.read_until(shown)

    def test_chat__a_conversation_through_a_pipe_is_templated_and_goes_on(self):
        done = nk.run(*self.args, "-n", "8", "--system", "Be brief.", input="Who is the LORD?\n/clear\nAnd then?\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stdout.split("\n")
        first = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho is the LORD?<|im_end|>\n<|im_start|>assistant\n"
        self.assertTrue(done.stdout.startswith(whole(nk.KJV, first, "-n", 8, "--temp", 0)["text"]), done.stdout)
        second = first.replace("Who is the LORD?", "And then?")
        self.assertIn(whole(nk.KJV, second, "-n", 8, "--temp", 0)["text"], done.stdout)
        self.assertGreaterEqual(len(lines), 3)
        self.chain.assert_idle()

    def test_chat__a_template_of_ones_own_is_jinja_in_a_file(self):
        path = os.path.join(self.home, "own.jinja")
        with open(path, "w") as f:
            f.write("{{ bos_token }}{% for m in messages %}{{ m.role|upper }}: {{ m.content }}\n{% endfor %}ANSWER:")
        done = nk.run(*self.args[:4], "--chat-template", path, "--temp", "0", "-n", "8", "--stats", input="Who?\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        expected = whole(nk.KJV, "USER: Who?\nANSWER:", "-n", 8, "--temp", 0)
        self.assertEqual(done.stdout, expected["text"] + "\n")
        self.assertRegex(done.stderr, rf"prompt +{expected['n_prompt']} tokens")  # one BOS, not two
        with open(path, "w") as f:
            f.write("{% for m in messages %}")
        done = nk.run(*self.args[:4], "--chat-template", path, input="Who?\n")
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertIn("the chat template", done.stderr)

    def test_chat__a_template_that_would_end_the_process_is_an_error(self):
        path = os.path.join(self.home, "own.jinja")
        with open(path, "w") as f:
            f.write("{% for m in messages %}{{ 7 % ((loop.index0 + 1) / 2) }}{% endfor %}")  # of a half, as an integer
        done = nk.run(*self.args[:4], "--chat-template", path, input="Who?\n")
        self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)
        self.assertIn("the chat template", done.stderr)

    def test_chat__the_second_question_is_asked_after_the_first_answer(self):
        done = nk.run(*self.args, "-n", "6", input="One\nTwo\n")
        first = whole(nk.KJV, "<|im_start|>user\nOne<|im_end|>\n<|im_start|>assistant\n", "-n", 6, "--temp", 0)["text"]
        both = f"<|im_start|>user\nOne<|im_end|>\n<|im_start|>assistant\n{first}<|im_end|>\n" \
               "<|im_start|>user\nTwo<|im_end|>\n<|im_start|>assistant\n"
        second = whole(nk.KJV, both, "-n", 6, "--temp", 0)["text"]
        self.assertEqual(done.stdout, f"{first}\n{second}\n")

    def test_chat__a_conversation_that_outgrows_the_context_loses_its_oldest_exchanges(self):
        done = nk.run(*self.args, "-n", "100", input="Tell me of the house of the LORD\n" * 6)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, "oldest .* left out")
        done = nk.run(*self.args, "-n", "8", input="x " * 600 + "\nHello\n")
        self.assertIn("context", done.stderr)
        self.assertTrue(done.stdout.strip())

    def test_chat__ctrl_c_stops_the_answer_and_at_the_prompt_the_program(self):
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", 16384) as chain, \
                Terminal("run", "--cluster", chain.file, *self.args[3:], "-n", "16000", env=self.env) as t:
            t.read_until("> ")
            t.send("In the beginning\r")
            self.assertTrue(nk.wait_for(lambda: chain.workers[0].info().counters.sessions_open, step=0.001))
            t.send("\x03")
            t.read_until(r"\[cancelled\]")
            t.read_until("> ")
            t.send("/help\r")
            t.read_until("forget the conversation")
            t.read_until("> ")
            t.send("\x03")
            self.assertEqual(t.process.wait(20 * nk.SLOW), 0)
            chain.assert_idle()

    def test_chat__half_a_character_typed_ahead_does_not_swallow_the_newline(self):
        with Terminal(*self.args, "-n", "2", env=dict(self.env, LC_ALL="C.UTF-8")) as t:
            # Before the prompt it is the kernel that takes back, and that takes back bytes.
            t.send("z\u00fcrich \U0001f600\x7f\r")
            t.read_until("> ")
            t.read_until("\n> ")
            t.end()
        self.chain.assert_idle()

    def test_chat__characters_of_many_bytes_are_characters(self):
        with Terminal(*self.args, "-n", "2", env=dict(self.env, LC_ALL="C.UTF-8")) as t:
            t.read_until("> ")
            t.editing()
            t.send("z\u00fcrich \U0001f600\u00e4\x7f\x7f\x7f\r")  # three characters are taken back
            t.read_until("\n> ")
            t.end()
        with open(os.path.join(self.home, "state", "nakshatra", "chat_history"), encoding="utf-8") as f:
            self.assertIn("z\u00fcrich\n", f.read().replace("\\040", " "))

    def test_chat__the_history_is_kept_for_the_owner_only_and_comes_back(self):
        for first in (True, False):
            with Terminal(*self.args, "-n", "4", env=self.env) as t:
                t.read_until("> ")
                t.editing()
                if first:
                    t.send("a question nobody else may read\r")
                else:
                    t.send("\x1b[A\r")  # arrow up
                    t.read_until("a question nobody else may read")
                t.read_until("\n> ")
                t.end()
        path = os.path.join(self.home, "state", "nakshatra", "chat_history")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode), 0o700)


if __name__ == "__main__":
    unittest.main()

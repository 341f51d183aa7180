"""A worker dies in the middle of a stream: its reader sees a pause, and then the same text goes on, to the last bit where workers are
deterministic. The state machines behind it are unit.worker's, unit.chain's and unit.gateway's."""
import json
import os
import signal
import subprocess
import tempfile
import unittest

import nk
from gateway import Connection, Gateway

MODEL = os.path.basename(nk.KJV)
WORDS = "In the beginning God created the heaven and the earth. "


def completion(**more):
    return {"model": MODEL, "prompt": "And it came to pass", "max_tokens": 400, "stream": True, "temperature": 1, "seed": 11, "logprobs": 2,
            "stream_options": {"include_usage": True}, **more}


def stream(port, body, at=None, then=None):
    """The choices with all that is in their chunks, the usage, and how often it was recovered; `then` is called when `at` bytes have
    come, or before the first."""
    got = b""
    with Connection(port, timeout=nk.LONG_S) as c:
        c.send("POST", "/v1/completions", body)
        if then and not at:
            then()
        status, _ = c.head()
        assert status == 200, status
        while data := c.chunk():
            got += data
            if at and len(got) >= at:
                then()
                at = None
    events = [e[len("data: "):] for e in got.decode().split("\n\n") if e.startswith("data: ")]
    assert events[-1] == "[DONE]", events[-1]
    chunks = [json.loads(e) for e in events[:-1]]
    usage = chunks[-1]["usage"]
    details = usage["completion_tokens_details"]
    recovered = [details.pop(key, 0) for key in ("recovered", "recovery_ms", "replayed_tokens")][0]
    choices = {}
    for choice in (choice for c in chunks[:-1] for choice in c["choices"]):
        choices.setdefault(choice["index"], []).append((choice["text"], choice["logprobs"], choice["finish_reason"]))
    return choices, usage, recovered


class Chain(nk.Chain):
    """Two workers and a spare for the second one."""

    def start(self, i, listen="127.0.0.1:0"):
        if not hasattr(self, "spare"):
            self.spare = nk.Worker("--model", self.model, "--layers", self.ranges[-1], *self.options, id="spare")
        return super().start(i, listen)

    def peers(self, i):
        return [*super().peers(i), self.spare.address] if i == 0 else []

    def write(self, **changes):
        super().write(**changes)
        with open(self.file, "a") as f:
            f.write(f"spares: ['{self.spare.address}']\n")

    def close(self, check=True):
        code = self.spare.stop() if check else self.spare.kill()
        super().close(check)
        if code:
            raise AssertionError(f"the spare's exit code is {code}")


class Recovery(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.chain = Chain(nk.KJV, "0-4,4-8", "--deterministic", "--ctx", "16384", "--sequences", "4")
        try:
            cls.gateway = Gateway(cls.chain.file, "--deterministic").wait_ready()
        except BaseException:
            cls.chain.close(check=False)
            raise

    @classmethod
    def tearDownClass(cls):
        cls.gateway.stop()
        cls.chain.close()

    def resumed(self):
        return self.gateway.metric("nakshatra_recoveries_total", '{cause="gone",outcome="resumed"}') or 0

    def the_same(self, body, then, at=3000, n=1):
        before = self.resumed()
        whole, usage, recovered = stream(self.gateway.port, body)
        self.assertEqual(recovered, 0)
        again = stream(self.gateway.port, body, at, then)
        self.assertEqual(again[0], whole)
        self.assertEqual(again[1], usage)
        self.assertEqual(again[2], n)
        self.assertEqual(self.resumed(), before + n)
        event = self.gateway.get("/cluster").json["recovery"]["events"][0]
        self.assertEqual((event["pending"], event["resumed"], event["given_up"]), (0, n, 0), event)
        return event

    def stages(self):
        return [s["address"] for s in self.gateway.get("/cluster").json["stages"]]

    def worker_at(self, address):
        return next(w for w in [*self.chain.workers, self.chain.spare] if w.address == address)

    def test_a_spare_stands_in_and_the_lost_one_is_the_next_spare(self):
        for _ in range(2):
            lost = self.stages()[1]
            event = self.the_same(completion(n=2), self.worker_at(lost).kill, n=2)
            self.assertEqual(event["address"], lost)
            self.assertNotEqual(self.stages()[1], lost)
            self.again(lost)

    def again(self, address):
        """It is started again, and stays a spare."""
        if address == self.chain.spare.address:
            self.chain.spare = nk.Worker("--model", nk.KJV, "--layers", "4-8", *self.chain.options, id="spare", listen=address)
        else:
            self.chain.start(1, listen=address)

    def test_the_same_worker_goes_on_when_it_is_back(self):
        address = self.chain.workers[0].address

        def restart():
            self.chain.workers[0].kill()
            self.chain.start(0, listen=address)

        event = self.the_same(completion(), restart)
        self.assertEqual((event["lost"], event["address"]), ("w0", address))
        self.assertIn("there again", event["chosen"])

    def run_and_kill(self, worker, then=lambda: None):
        """nakshatra run, whose worker is killed when text has come: what it says, and with which standard error."""
        with nk.Background("run", "--cluster", self.chain.file, "--prompt", "And it came to pass", "-n", "1500", "--temp", "1",
                           "--seed", "5", "--deterministic") as run:
            self.assertTrue(nk.wait_for(lambda: run.stdout or run.process.poll() is not None, step=0.001))
            worker.kill()
            then()
            self.assertEqual(run.wait(nk.LONG_S), 0, run.stderr)
            return run.stdout.decode(), run.stderr.decode()

    def test_run_goes_on_with_a_spare_or_when_the_worker_is_back(self):
        whole = nk.out("run", "--cluster", self.chain.file, "--prompt", "And it came to pass", "-n", "1500", "--temp", "1", "--seed", "5",
                       "--deterministic")
        lost = self.chain.workers[1]
        said, told = self.run_and_kill(lost)
        self.assertEqual(said, whole)
        self.assertIn(f"spare {self.chain.spare.address} takes the place of worker w1 ({lost.address})", told)
        self.again(lost.address)
        first = self.chain.workers[0]
        said, told = self.run_and_kill(first, lambda: self.chain.start(0, listen=first.address))
        self.assertEqual(said, whole)
        self.assertIn(f"worker w0 ({first.address}, layers 0-4) is lost; ", told)

    def test_check_shows_spares_and_for_whom_they_stand_in(self):
        def check(*more):
            return nk.run("check", "--cluster", self.chain.file, "--timeout-ms", 5000 * nk.SLOW, *more)

        address = self.chain.spare.address
        done = check()
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn(f"spare {address}  stands in for worker w1, layers 4-8, device CPU\n", done.stdout)
        spare = json.loads(check("--json").stdout)["spares"]
        self.assertEqual([(s["address"], s["stands_for"], s["layer_begin"]) for s in spare], [(address, "w1", 4)])
        self.chain.spare.kill()
        try:
            done = check()
            self.assertEqual(done.returncode, 0)  # it is in the way of no request
            self.assertIn(f"spare {address}  stands in for nobody\n", done.stdout)
            self.assertRegex(done.stderr, rf"spare {address}.*cannot be reached")
        finally:
            self.again(address)

    def test_in_the_middle_of_a_prompt(self):
        body = completion(prompt=WORDS * 80, max_tokens=8, logprobs=None)

        def kill():
            self.assertTrue(nk.wait_for(lambda: worker.info().counters.tokens_prefilled > begun, step=0.001))
            worker.kill()

        whole, usage, _ = stream(self.gateway.port, body)
        lost = self.stages()[1]
        worker = self.worker_at(lost)
        begun = worker.info().counters.tokens_prefilled  # before the request: it may be through before another look
        again = stream(self.gateway.port, body, 0, kill)
        self.assertEqual(again[:2], (whole, usage))
        self.again(lost)


class Up(unittest.TestCase):
    def test_what_runs_goes_on_when_up_has_started_its_worker_again(self):
        command = [nk.NAKSHATRA, "up", nk.KJV, "--workers", "2", "--threads", "1", "--deterministic", "--ctx", "4096", "--sequences", "4",
                   "--listen", "127.0.0.1:0"]
        with tempfile.TemporaryFile() as log, \
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=nk.env()) as up:
            try:
                line = b"-"
                while line and b"listening on" not in line:
                    line = up.stdout.readline()
                port = int(line.split()[-1].rsplit(b":", 1)[1])
                body = {**completion(), "model": "kjv-tiny"}
                whole = stream(port, body)
                again = stream(port, body, 3000, lambda: os.kill(self.worker(up.pid, "w1"), signal.SIGKILL))
                self.assertEqual(again, (*whole[:2], 1))
            finally:
                up.terminate()

    def worker(self, parent, name):
        for pid in nk.children_of(parent):
            with open(f"/proc/{pid}/cmdline") as f:
                if name in f.read().split("\0"):
                    return pid
        raise AssertionError(f"no worker {name}")


if __name__ == "__main__":
    unittest.main()

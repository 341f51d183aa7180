"""nakshatra measure: what it says of a machine, when it measures again, and that nothing is left of it. How fast anything is
is no test's business."""
import importlib.machinery
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import models
import nk

TIMES = ("fixed_ms", "head_ms", "embd_ms")
# One of each kind: dense, with experts, a state, both, sliding windows and full attention, layers that differ.
ARCHS = ["llama-dense", "qwen3moe-moe", "mamba-dense", "jamba-dense", "gemma2-dense", "gemma3-dense", "deepseek2-moe"]


def conformance():
    """scripts/conformance as a module: it knows how to run llama.cpp's generator."""
    path = os.path.join(nk.SOURCE, "scripts", "conformance")
    loader = importlib.machinery.SourceFileLoader("conformance", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("conformance", loader))
    loader.exec_module(module)
    return module


class Measure(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="nk-measure-")
        self.addCleanup(shutil.rmtree, self.dir)
        self.env = nk.env(XDG_CACHE_HOME=os.path.join(self.dir, "cache"), TMPDIR=self.dir)

    def measure(self, model, *options):
        # The shortest way: every kind of run as often as it must be.
        return nk.run("measure", model, "--device", "CPU", "--budget-ms", "1", *options, env=self.env)

    def measured(self, model, *options):
        done = self.measure(model, "--json", *options)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return json.loads(done.stdout)

    def assert_refused(self, code, sentence, model, *options):
        done = self.measure(model, *options)
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (code, "", 1), done)
        self.assertIn(sentence, done.stderr)

    def assert_positive(self, r):
        for name in TIMES:
            self.assertEqual(len(r[name]), 3)
            self.assertTrue(all(ms >= 0 for ms in r[name]), r[name])
        for layer in r["layers"]:
            self.assertTrue(all(ms > 0 for ms in layer["ms"]), layer)
            self.assertGreater(layer["kv_bytes"], 0)
        self.assertGreater(min(r[k] for k in ("compute_bytes", "process_bytes", "memory_free_bytes", "device_free_bytes")), 0)

    def test_measure__is_kept_until_something_changes(self):
        first = self.measured(nk.KJV)
        self.assert_positive(first)
        self.assertEqual((first["cached"], first["n_layer"], len(first["layers"]), first["rows"]), (False, 8, 8, [1, 8, 64]))
        self.assertEqual({layer["kv_bytes"] for layer in first["layers"]}, {512 * (32 + 32) * 2 * 2})
        second = self.measured(nk.KJV)
        changes = {"cached", "device_free_bytes", "memory_free_bytes", "disk_free_bytes"}
        self.assertTrue(second["cached"])
        self.assertEqual({k: v for k, v in first.items() if k not in changes},
                         {k: v for k, v in second.items() if k not in changes})
        # Of a copy, too: it is the shape that counts.
        copy = shutil.copy(nk.KJV, os.path.join(self.dir, "another.gguf"))
        self.assertTrue(self.measured(copy)["cached"])
        self.assertIn(", as measured before\n", self.measure(nk.KJV).stdout)
        self.assertFalse(self.measured(nk.KJV, "--again")["cached"])
        other = self.measured(nk.KJV, "--threads", "1", "--ctx", "256", "--sequences", "2", "--cache-type-k", "q8_0", "--chunk", "16")
        self.assertEqual((other["cached"], other["n_threads"], other["n_ctx"], other["rows"]), (False, 1, 256, [1, 2, 16]))
        self.assertEqual({layer["kv_bytes"] for layer in other["layers"]}, {256 * (2 * 34 + 2 * 32 * 2)})

    def test_measure__architectures_of_every_kind(self):
        c = conformance()
        c.generate(c.read_env(), self.dir, "-s", "1", "-a", "^(%s)$" % "|".join(a.rsplit("-", 1)[0] for a in ARCHS))
        for name in ARCHS:
            with self.subTest(name):
                self.assert_positive(self.measured(os.path.join(self.dir, name + ".gguf"), "--ctx", "256"))

    def test_measure__what_cannot_be_measured_gets_a_sentence(self):
        path = models.small(os.path.join(self.dir, "m.gguf"), "nonesuch")
        self.assert_refused(1, "nonesuch", path)
        slices = os.path.join(self.dir, "slices")
        nk.out("split", nk.KJV, "--layers", "0-4,4-8", "--out", slices)
        self.assert_refused(2, "is a slice; give the model that it was cut from", os.path.join(slices, "kjv-tiny.000-004.gguf"))
        self.assert_refused(2, "there is no device 'Abacus0'", nk.KJV, "--device", "Abacus0")
        # A model whose tensors are no llama's; llama.cpp says before why.
        done = self.measure(models.small(os.path.join(self.dir, "m.gguf")))
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr.splitlines()[-1], r"m.gguf: layers 0-3 with random weights: llama.cpp \S+ cannot load it")

    def test_measure__nothing_is_left_of_one_that_was_interrupted(self):
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGKILL:
            with self.subTest(number.name):
                p = subprocess.Popen([nk.NAKSHATRA, "measure", nk.KJV, "--again", "--device", "CPU", "--chunk", "512",
                                      "--budget-ms", "600000"], env=self.env, stdout=subprocess.DEVNULL)
                self.addCleanup(p.wait)
                self.addCleanup(p.kill)
                while not self.has_file(p.pid):
                    self.assertIsNone(p.poll(), "it has ended by itself")
                    time.sleep(0.001)
                p.send_signal(number)
                self.assertEqual(p.wait(60 * nk.SLOW), -number)
        left = [os.path.join(d, f) for d, _, names in os.walk(self.dir) for f in names]
        self.assertEqual(left, [])

    @staticmethod
    def has_file(pid):
        try:
            fds = os.listdir(f"/proc/{pid}/fd")
            return any("memfd:nakshatra" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in fds)
        except OSError:  # it has just ended, or closed one
            return False


if __name__ == "__main__":
    unittest.main()

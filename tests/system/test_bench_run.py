"""nakshatra-bench run: every system really answers what it is asked, and each answer is a row.

What the figures are is of no interest here: a slow machine gives other ones, and no other outcome.
"""
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

import nk

SHAPE = ["--layers", "4", "--width", "256", "--ff", "512", "--heads", "4", "--kv-heads", "2",
         "--vocab", "2048", "--ctx", "512"]
MINUTES = 600  # times nk.SLOW: until something hangs


class Run(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.dir)
        cls.model = nk.synth(os.path.join(cls.dir, "small.gguf"), *SHAPE)
        cls.csv = os.path.join(cls.dir, "a.csv")
        cls.done = cls.measure(cls.csv, "--commit", "test", "--figures",
                               "decode-1,decode-8,prefill-512,ttft-128,start,memory,streams")
        cls.rows = cls.read(cls.csv)

    @classmethod
    def measure(cls, table, *options, threads=1, **more):
        """One thread: two of llama.cpp's wait for each other by spinning, which takes minutes where
        others compute."""
        return nk.bench("run", "--model", cls.model, "--quick", "--runs", "1", "--retries", "0",
                        "--threads", threads, "--out", cls.dir, "--csv", table, *options,
                        timeout=MINUTES, **more)

    @staticmethod
    def read(table):
        with open(table, newline="", encoding="utf-8") as f:
            return list(csv.DictReader(f))

    def test_every_system_answers_every_question_that_it_is_asked(self):
        self.assertEqual(self.done.returncode, 0, self.done.stderr)
        self.assertEqual([r for r in self.rows if r["status"] == "failed"], [])
        answered = {(r["figure"], r["system"]) for r in self.rows if float(r["value"]) > 0}
        expected = {(f, s) for f in ("decode-1", "decode-8", "prefill-512")
                    for s in ("ours", "whole", "rpc")}
        expected |= {(f, s) for f in ("ttft-128", "start", "memory", "streams")
                     for s in ("ours", "whole")}
        self.assertEqual(answered, expected)

    def test_every_row_says_what_was_measured_on_what(self):
        for row in self.rows:
            for column in ("unit", "params", "model", "time", "commit", "version", "llama",
                           "machine"):
                self.assertTrue(row[column], row)
        with open("/proc/cpuinfo") as f:  # a cloud's name for its processors is that of several
            kind = re.search(r"(?s)cpu family\s*: (\d+)\nmodel\s*: (\d+)\n.*?\nflags\s*:(.*?)\n",
                             f.read())
        if kind:
            names = (("avx512f", ", AVX-512"), ("avx2", ", AVX2"), ("avx", ", AVX"))
            vector = next((name for flag, name in names if f" {flag} " in kind[3] + " "), "")
            self.assertIn(f" (family {kind[1]}, model {kind[2]}{vector}), ",
                          self.rows[0]["machine"])

    def test_nothing_is_left_running(self):
        left = subprocess.run(["pgrep", "-f", self.model], capture_output=True, text=True).stdout
        self.assertEqual(left, "")

    def test_a_page_with_plots_is_made_from_the_table(self):
        page = os.path.join(self.dir, "docs", "page.md")
        os.makedirs(os.path.dirname(page), exist_ok=True)
        # A busy machine leaves no figures: what the page shows is told by a table in which all runs
        # count.
        quiet = os.path.join(self.dir, "quiet.csv")
        with open(self.csv, encoding="utf-8") as f, open(quiet, "w", encoding="utf-8") as g:
            g.write(f.read().replace(",noisy,", ",ok,"))
        done = nk.bench("report", quiet, "--page", page)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(page, encoding="utf-8") as f:
            text = f.read()
        self.assertRegex(text, r"\| decode, 1 stream, 2 workers, median of 3 in turn \| tok/s "
                               r"\| [\d.]+ \(1 run\) \| whole model: [\d.]+ \(1 run\) \| [\d.]+ "
                               r"\| at least 0.97: one run is too few to tell \|")
        self.assertIn("![decode, 2 workers, by number of streams](benchmarks/streams.svg)", text)
        self.assertNotIn("What gave no figure", text)
        plot = os.path.join(os.path.dirname(page), "benchmarks", "streams.svg")
        with open(plot, encoding="utf-8") as f:
            self.assertIn("</svg>", f.read())

    def test_a_missing_peer_is_named_and_how_to_get_it(self):
        done = nk.bench("run", "--model", self.model, "--out", self.dir, "--csv",
                        os.path.join(self.dir, "b.csv"), env=nk.env(NK_LLAMA_BIN="/nonexistent"))
        self.assertEqual(done.returncode, 2)
        self.assertIn("llama-bench", done.stderr)
        self.assertIn("make deps", done.stderr)

    def test_a_missing_product_is_named_and_how_to_get_it(self):
        alone = os.path.join(self.dir, "alone", "nakshatra-bench")
        os.makedirs(os.path.dirname(alone))
        shutil.copy(nk.BENCH, alone)
        done = nk.run("run", "--model", self.model, "--out", self.dir, program=alone)
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertIn(os.path.join(self.dir, "alone", "nakshatra") + " is not there", done.stderr)
        self.assertIn("make build", done.stderr)

    def test_the_figures_of_our_own_are_measured(self):
        """The protocol, the gateway, the wire and, where we may, the network: each gives rows, and
        a page."""
        may_network = os.geteuid() == 0 and os.path.exists("/dev/net/tun")
        figures = "hop,gateway,wire,gap-2048" + (",network" if may_network else "")
        table = os.path.join(self.dir, "own.csv")
        done = self.measure(table, "--real-model", nk.KJV, "--commit", "test", "--systems",
                            "ours,ping,serve,chain,alone", "--figures", figures)
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = self.read(table)
        answered = {(r["figure"], r["system"]) for r in rows if r["status"] != "failed"}
        expected = {(f, s) for f, systems in {
            "hop": "ours ping", "hop-p99": "ours ping", "hop-there": "ours", "hop-back": "ours",
            "gap-2048": "ours limit", "gap-chunk": "ours", "gap-step": "ours",
            "gateway-token": "serve chain", "gateway-ttft": "serve chain",
            "gateway-listeners": "serve alone", "gateway-64": "serve", "gateway-64-rate": "serve",
            "f16-nmse": "ours", "f16-top1": "ours", "f16-nmse-trained": "ours",
            "f16-top1-trained": "ours", "wire-f32": "ours row", "wire-f16": "ours row",
            "wire-f32-back": "ours", "wire-f16-back": "ours",
        }.items() for s in systems.split()}
        if may_network:
            expected |= {(f, s) for f in ("network-1g", "network-100m", "network-jitter")
                         for s in ("ours", "limit")}
        self.assertEqual(answered, expected, done.stderr)
        value = {(r["figure"], r["system"]): float(r["value"]) for r in rows}
        self.assertEqual(value["gateway-64", "serve"], 64)
        for figure, row in (("wire-f32", 256 * 4), ("wire-f16", 256 * 2)):
            self.assertEqual(value[figure, "row"], row)
            self.assertTrue(row < value[figure, "ours"] < row + 400, value[figure, "ours"])
        nmse = value["f16-nmse-trained", "ours"]
        self.assertTrue(0 < nmse < 1e-3, nmse)
        if may_network:  # nothing is faster than the light in the cable
            self.assertLess(value["network-jitter", "ours"], 1000 / 60)
            with open("/proc/net/dev", encoding="utf-8") as f:
                self.assertNotIn("nkbench", f.read())
        page = os.path.join(self.dir, "own.md")
        done = nk.bench("report", table, "--page", page)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(page, encoding="utf-8") as f:
            text = f.read()
        for heading in ("## The protocol", "## The gateway", "## On the wire"):
            self.assertIn(heading, text)

    def test_caches_and_single_places_of_a_curve(self):
        table = os.path.join(self.dir, "caches.csv")
        done = self.measure(table, "--figures", "cache,stages,streams", "--places", "1")
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = self.read(table)
        caches = {"cache-f16": "f16 flash_attn=on", "cache-f16-plain": "f16 flash_attn=off",
                  "cache-bf16-plain": "bf16 flash_attn=off", "cache-q8": "q8_0 flash_attn=on"}
        answered = {(r["figure"], r["system"], r["x"]) for r in rows
                    if r["status"] != "failed" and float(r["value"]) > 0}
        expected = {(f + part, s, "0") for f in caches for s in ("ours", "whole")
                    for part in ("", "-prompt")}
        expected |= {(f, s, "1") for f in ("stages", "streams") for s in ("ours", "whole")}
        self.assertEqual(answered, expected, done.stderr)
        for r in rows:
            if r["figure"] in caches:
                self.assertTrue(r["params"].endswith(" cache=" + caches[r["figure"]]), r["params"])
        page = os.path.join(self.dir, "single.md")  # one place is no curve to draw
        done = nk.bench("report", table, "--page", page)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        with open(page, encoding="utf-8") as f:
            self.assertNotIn("![", f.read())

    def ask_whole(self, figures, *options, first=""):
        """Rows of the whole model, and the command lines of llama.cpp's tools for them: a loader
        notes each, and may do something first."""
        loader, asked, table = (os.path.join(self.dir, figures + name)
                                for name in (".loader", ".asked", ".csv"))
        real = os.environ.get("NK_LLAMA_LOADER")
        run = f"exec '{real}'" if real else "shift 2; exec"
        with open(loader, "w", encoding="utf-8") as f:
            f.write(f"#!/bin/sh\necho \"$*\" >>'{asked}'\n{first}{run} \"$@\"\n")
        os.chmod(loader, 0o755)
        done = self.measure(table, "--figures", figures, "--systems", "whole", *options,
                            env=nk.env(NK_LLAMA_LOADER=loader))
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(asked, encoding="utf-8") as f:
            return self.read(table), list(f)

    def test_others_at_work_do_not_change_what_memory_is_needed(self):
        table = os.path.join(self.dir, "busy.csv")
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
        try:
            done = self.measure(table, "--figures", "memory", threads=2)
        finally:
            for other in busy:
                other.kill()
                other.wait()
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = self.read(table)
        statuses = [(r["system"], r["status"]) for r in rows]
        self.assertEqual(statuses, [("ours", "ok"), ("whole", "ok")])
        for row in rows:
            self.assertIn(" threads=2 ", row["params"])

    def test_what_llama_batched_bench_lost_is_asked_for_again(self):
        """Its last line may never be printed (see llama.c). Here that happens each time: what would
        compute one place only ends, with exit code 0 and nothing said."""
        rows, asked = self.ask_whole(
            "decode-8", first='case "$*" in *-npl\\ *,*) ;; *) exit 0 ;; esac\n')
        self.assertEqual([(r["figure"], r["system"]) for r in rows], [("decode-8", "whole")])
        self.assertNotEqual(rows[0]["status"], "failed")
        self.assertGreater(float(rows[0]["value"]), 0)
        self.assertEqual([re.search(r"-npl (\S+)", line)[1] for line in asked[:2]], ["8", "8,8"])

    def test_slow_questions_are_warmed_up_for_with_a_short_one(self):
        for figure, place, option, length in (
                ("context", ["--places", "1024"], "--n-depth", "1024"),
                ("cache-q8", [], "-npp", "512")):
            with self.subTest(figure):
                rows, asked = self.ask_whole(figure, *place)
                self.assertEqual({r["status"] for r in rows} - {"ok", "noisy"}, set())
                lengths = [re.search(option + r" (\d+)", line)[1] for line in asked]
                self.assertEqual((lengths[0], lengths[-1], set(lengths)),
                                 ("128", length, {"128", length}))

    def test_ctrl_c_leaves_no_network_and_no_worker(self):
        if os.geteuid() or not os.path.exists("/dev/net/tun"):
            nk.missing("root and /dev/net/tun, for a network of its own")

        def devices():
            with open("/proc/net/dev", encoding="utf-8") as f:
                return "nkbench" in f.read()

        work = os.path.join(self.dir, "interrupted")
        bench = subprocess.Popen([nk.BENCH, "run", "--model", self.model, "--out", work,
                                  "--figures", "network-jitter"], env=nk.env(),
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def processes():
            return subprocess.run(["pgrep", "-f", work], capture_output=True).stdout
        try:
            self.assertTrue(nk.wait_for(devices, MINUTES), "no network was made")
            bench.send_signal(signal.SIGINT)
            self.assertEqual(bench.wait(timeout=MINUTES), -signal.SIGINT)
        finally:
            bench.kill()
            bench.wait()
        self.assertTrue(nk.wait_for(lambda: not devices(), MINUTES), "a device is left")
        self.assertTrue(nk.wait_for(lambda: not processes(), MINUTES), "a process is left")

    def test_unknown_names_are_refused_with_those_there_are(self):
        for option, known in (("--figures", "decode-8"), ("--systems", "whole"),
                              ("--places", "there are none")):
            done = nk.bench("run", "--model", self.model, "--out", self.dir, option, "nonsense")
            self.assertEqual(done.returncode, 2)
            self.assertIn("nonsense", done.stderr)
            self.assertIn(known, done.stderr)


if __name__ == "__main__":
    unittest.main()

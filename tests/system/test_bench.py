"""nakshatra bench: synthetic models load in llama.cpp, and what was measured can be read and compared."""
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

import nk

SMALL = ["--layers", "2", "--width", "256", "--ff", "512", "--heads", "4", "--kv-heads", "2", "--vocab", "2048",
         "--ctx", "512"]


def llama_tool(name, *args, timeout=120):
    """One of llama.cpp's own programs; the private copy finds its backends in the working directory."""
    command = [os.path.join(os.environ.get("NK_LLAMA_BIN", "/usr/bin"), name), *args]
    loader, lib = os.environ.get("NK_LLAMA_LOADER"), os.environ.get("NK_LLAMA_LIB")
    cwd = None
    if loader:
        command = [loader, "--library-path", lib + ":" + lib + "/llama", *command]
        cwd = lib + "/ggml/backends0"
    return subprocess.run(command, capture_output=True, timeout=timeout, cwd=cwd, stdin=subprocess.DEVNULL)


class Synth(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)
        self.model = os.path.join(self.dir, "m.gguf")

    def write(self, *args):
        done = nk.run("bench", "synth", *args, "--out", self.model)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_llama_cpp_generates_with_it(self):
        for options in (["--type", "Q4_K"], ["--type", "Q8_0", "--untied"],
                        ["--type", "Q4_0", "--experts", "4", "--experts-used", "2"]):
            with self.subTest(options):
                self.write(*SMALL, *options, "--force")
                # Not llama-completion: what it prints last is now and then lost when it ends.
                done = llama_tool("llama-bench", "-m", self.model, "-p", "0", "-n", "8", "-d", "2", "-r", "1", "-t", "1",
                                  "-ngl", "0", "-o", "json")
                self.assertEqual(done.returncode, 0, done.stderr[-2000:])
                (result,) = json.loads(done.stdout)
                self.assertEqual((result["n_gen"], result["n_depth"], len(result["samples_ts"])), (8, 2, 1))
                self.assertGreater(result["samples_ts"][0], 0)

    def test_any_text_survives_the_vocabulary(self):
        text = "Grüße, the quick 日本 fox! 12345\n\t{x}"
        prompt = os.path.join(self.dir, "prompt")
        with open(prompt, "w", encoding="utf-8") as f:
            f.write(text)
        self.write(*SMALL)
        done = llama_tool("llama-tokenize", "-m", self.model, "-f", prompt, "--ids", "--no-bos", "--log-disable")
        self.assertEqual(done.returncode, 0, done.stderr)
        ids = json.loads(done.stdout.decode().strip().splitlines()[-1])
        self.assertLess(len(ids), len(text.encode()))
        self.assertTrue(all(0 <= i < 2048 - 256 for i in ids), ids)

    def test_refuses_to_replace_a_file_unless_told_so(self):
        self.write(*SMALL)
        done = nk.run("bench", "synth", *SMALL, "--out", self.model)
        self.assertEqual(done.returncode, 1)
        self.assertIn("--force", done.stderr)

    def test_bad_options_are_exit_code_2_and_leave_nothing(self):
        for options in (["--shape", "huge"], ["--type", "Q9"], ["--width", "100"], ["--layers", "-1"], ["--nonsense"]):
            with self.subTest(options):
                done = nk.run("bench", "synth", *options, "--out", self.model)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertEqual(os.listdir(self.dir), [])


class Run(unittest.TestCase):
    """The benchmark itself, in small: that every system really answers. The figures are of no interest here."""

    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.dir)
        cls.model = os.path.join(cls.dir, "small.gguf")
        cls.csv = os.path.join(cls.dir, "a.csv")
        made = nk.run("bench", "synth", *SMALL, "--layers", "4", "--out", cls.model)
        assert made.returncode == 0, made.stderr
        cls.done = nk.run("bench", "run", "--model", cls.model, "--quick", "--runs", "1", "--retries", "0", "--threads", "2", "--out", cls.dir,
                          "--csv", cls.csv, "--commit", "test", "--figures",
                          "decode-1,decode-8,prefill-512,ttft-128,start,memory,streams", timeout=600)
        with open(cls.csv, newline="", encoding="utf-8") as f:
            cls.rows = list(csv.DictReader(f))

    def test_every_system_answers_every_question_that_it_is_asked(self):
        self.assertEqual(self.done.returncode, 0, self.done.stderr)
        self.assertEqual([r for r in self.rows if r["status"] == "failed"], [])
        answered = {(r["figure"], r["system"]) for r in self.rows if float(r["value"]) > 0}
        expected = {(f, s) for f in ("decode-1", "decode-8", "prefill-512") for s in ("ours", "whole", "rpc")}
        expected |= {(f, s) for f in ("ttft-128", "start", "memory", "streams") for s in ("ours", "whole")}
        self.assertEqual(answered, expected)

    def test_every_row_says_what_was_measured_on_what(self):
        for row in self.rows:
            for column in ("unit", "params", "model", "time", "commit", "version", "llama", "machine"):
                self.assertTrue(row[column], row)
        with open("/proc/cpuinfo") as f:  # a cloud's name for its processors is that of several kinds
            kind = re.search(r"(?s)cpu family\s*: (\d+)\nmodel\s*: (\d+)\n.*?\nflags\s*:(.*?)\n", f.read())
        if kind:
            vector = next((name for flag, name in (("avx512f", ", AVX-512"), ("avx2", ", AVX2"), ("avx", ", AVX")) if f" {flag} " in kind[3] + " "), "")
            self.assertIn(f" (family {kind[1]}, model {kind[2]}{vector}), ", self.rows[0]["machine"])

    def test_nothing_is_left_running(self):
        left = subprocess.run(["pgrep", "-f", self.model], capture_output=True, text=True).stdout
        self.assertEqual(left, "")

    def test_a_page_with_plots_is_made_from_the_table(self):
        page = os.path.join(self.dir, "docs", "page.md")
        os.makedirs(os.path.dirname(page), exist_ok=True)
        # A busy machine leaves no figures: what the page shows is told by a table in which all runs count.
        quiet = os.path.join(self.dir, "quiet.csv")
        with open(self.csv, encoding="utf-8") as f, open(quiet, "w", encoding="utf-8") as g:
            g.write(f.read().replace(",noisy,", ",ok,"))
        done = nk.run("bench", "report", quiet, "--page", page)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(page, encoding="utf-8") as f:
            text = f.read()
        self.assertIn("| decode, 1 stream, 2 workers, median of 3 in turn | tok/s |", text)
        self.assertIn("![decode, 2 workers, by number of streams](benchmarks/streams.svg)", text)
        self.assertNotIn("What gave no figure", text)
        with open(os.path.join(os.path.dirname(page), "benchmarks", "streams.svg"), encoding="utf-8") as f:
            self.assertIn("</svg>", f.read())

    def test_a_missing_peer_is_named_and_how_to_get_it(self):
        done = nk.run("bench", "run", "--model", self.model, "--out", self.dir, "--csv", os.path.join(self.dir, "b.csv"),
                      env=nk.env(NK_LLAMA_BIN="/nonexistent"))
        self.assertEqual(done.returncode, 2)
        self.assertIn("llama-bench", done.stderr)
        self.assertIn("make deps", done.stderr)

    def test_the_figures_of_our_own_are_measured(self):
        """The protocol, the gateway, the wire and, where we may, the network: each gives rows, and a page."""
        figures, may_network = "hop,gateway,wire,gap-2048", os.geteuid() == 0 and os.path.exists("/dev/net/tun")
        table = os.path.join(self.dir, "own.csv")
        done = nk.run("bench", "run", "--model", self.model, "--real-model", os.path.join(nk.MODELS, "kjv-tiny.gguf"), "--quick", "--runs", "1",
                      "--retries", "0", "--threads", "2", "--out", self.dir, "--csv", table, "--commit", "test", "--systems",
                      "ours,ping,serve,chain,alone", "--figures", figures + (",network" if may_network else ""), timeout=600)
        with open(table, newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        self.assertEqual(done.returncode, 0, done.stderr)
        answered = {(r["figure"], r["system"]) for r in rows if r["status"] != "failed"}
        expected = {("hop", "ours"), ("hop", "ping"), ("hop-p99", "ours"), ("hop-p99", "ping"), ("hop-there", "ours"), ("hop-back", "ours"),
                    ("gap-2048", "ours"), ("gap-2048", "limit"), ("gap-chunk", "ours"), ("gap-step", "ours"),
                    ("gateway-token", "serve"), ("gateway-token", "chain"), ("gateway-ttft", "serve"), ("gateway-ttft", "chain"),
                    ("gateway-listeners", "serve"), ("gateway-listeners", "alone"), ("gateway-64", "serve"), ("gateway-64-rate", "serve"),
                    ("f16-nmse", "ours"), ("f16-top1", "ours"), ("f16-nmse-trained", "ours"), ("f16-top1-trained", "ours")}
        expected |= {(f, s) for f in ("wire-f32", "wire-f16") for s in ("ours", "row")} | {("wire-f32-back", "ours"), ("wire-f16-back", "ours")}
        if may_network:
            expected |= {(f, s) for f in ("network-1g", "network-100m", "network-jitter") for s in ("ours", "limit")}
        self.assertEqual(answered, expected, done.stderr)
        value = {(r["figure"], r["system"]): float(r["value"]) for r in rows}
        self.assertEqual(value["gateway-64", "serve"], 64)
        for figure, row in (("wire-f32", 256 * 4), ("wire-f16", 256 * 2)):
            self.assertEqual(value[figure, "row"], row)
            self.assertTrue(row < value[figure, "ours"] < row + 400, value[figure, "ours"])
        self.assertTrue(0 < value["f16-nmse-trained", "ours"] < 1e-3, value["f16-nmse-trained", "ours"])
        if may_network: # nothing is faster than the light in the cable
            self.assertLess(value["network-jitter", "ours"], 1000 / 60)
            with open("/proc/net/dev", encoding="utf-8") as f:
                self.assertNotIn("nkbench", f.read())
        page = os.path.join(self.dir, "own.md")
        done = nk.run("bench", "report", table, "--page", page)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(page, encoding="utf-8") as f:
            text = f.read()
        for heading in ("## The protocol", "## The gateway", "## On the wire"):
            self.assertIn(heading, text)

    def test_caches_and_single_places_of_a_curve(self):
        table = os.path.join(self.dir, "caches.csv")
        done = nk.run("bench", "run", "--model", self.model, "--quick", "--runs", "1", "--retries", "0", "--threads", "2", "--out", self.dir,
                      "--csv", table, "--figures", "cache,stages,streams", "--places", "1", timeout=600)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(table, newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        caches = {"cache-f16": "f16 flash_attn=on", "cache-f16-plain": "f16 flash_attn=off", "cache-bf16-plain": "bf16 flash_attn=off",
                  "cache-q8": "q8_0 flash_attn=on"}
        answered = {(r["figure"], r["system"], r["x"]) for r in rows if r["status"] != "failed" and float(r["value"]) > 0}
        expected = {(f + part, s, "0") for f in caches for s in ("ours", "whole") for part in ("", "-prompt")}
        self.assertEqual(answered, expected | {(f, s, "1") for f in ("stages", "streams") for s in ("ours", "whole")}, done.stderr)
        for r in rows:
            if r["figure"] in caches:
                self.assertTrue(r["params"].endswith(" cache=" + caches[r["figure"]]), r["params"])
        page = os.path.join(self.dir, "single.md")  # one place is no curve to draw
        done = nk.run("bench", "report", table, "--page", page)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        with open(page, encoding="utf-8") as f:
            self.assertNotIn("![", f.read())

    def ask_whole(self, figures, *options, first=""):
        """Rows of the whole model, and the command lines of llama.cpp's tools for them: a loader notes each, and may do something first."""
        loader, asked, table = (os.path.join(self.dir, figures + name) for name in (".loader", ".asked", ".csv"))
        real = os.environ.get("NK_LLAMA_LOADER")
        with open(loader, "w", encoding="utf-8") as f:
            f.write("#!/bin/sh\n" + f"echo \"$*\" >>'{asked}'\n" + first + (f"exec '{real}'" if real else "shift 2; exec") + ' "$@"\n')
        os.chmod(loader, 0o755)
        done = nk.run("bench", "run", "--model", self.model, "--quick", "--runs", "1", "--retries", "0", "--threads", "2", "--out", self.dir,
                      "--csv", table, "--figures", figures, "--systems", "whole", *options, timeout=600, env=nk.env(NK_LLAMA_LOADER=loader))
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(table, newline="", encoding="utf-8") as f, open(asked, encoding="utf-8") as g:
            return list(csv.DictReader(f)), list(g)

    def test_others_at_work_do_not_change_what_memory_is_needed(self):
        table = os.path.join(self.dir, "busy.csv")
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
        try:
            done = nk.run("bench", "run", "--model", self.model, "--quick", "--runs", "1", "--retries", "0", "--threads", "2", "--out", self.dir,
                          "--csv", table, "--figures", "memory", timeout=600)
        finally:
            for other in busy:
                other.kill()
                other.wait()
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(table, newline="", encoding="utf-8") as f:
            self.assertEqual([(r["system"], r["status"]) for r in csv.DictReader(f)], [("ours", "ok"), ("whole", "ok")])

    def test_what_llama_batched_bench_lost_is_asked_for_again(self):
        """Its last line may never be printed (see llama.c). Here that happens each time: what would compute one place only ends, with
        exit code 0 and nothing said."""
        rows, asked = self.ask_whole("decode-8", first='case "$*" in *-npl\\ *,*) ;; *) exit 0 ;; esac\n')
        self.assertEqual([(r["figure"], r["system"], r["status"] != "failed" and float(r["value"]) > 0) for r in rows],
                         [("decode-8", "whole", True)])
        self.assertEqual([re.search(r"-npl (\S+)", line)[1] for line in asked[:2]], ["8", "8,8"])

    def test_slow_questions_are_warmed_up_for_with_a_short_one(self):
        for figure, place, option, length in (("context", ["--places", "1024"], "--n-depth", "1024"), ("cache-q8", [], "-npp", "512")):
            with self.subTest(figure):
                rows, asked = self.ask_whole(figure, *place)
                self.assertEqual({r["status"] for r in rows} - {"ok", "noisy"}, set())
                lengths = [re.search(option + r" (\d+)", line)[1] for line in asked]
                self.assertEqual((lengths[0], lengths[-1], set(lengths)), ("128", length, {"128", length}))

    def test_ctrl_c_leaves_no_network_and_no_worker(self):
        if os.geteuid() or not os.path.exists("/dev/net/tun"):
            nk.missing("root and /dev/net/tun, for a network of its own")

        def devices():
            with open("/proc/net/dev", encoding="utf-8") as f:
                return "nkbench" in f.read()

        work = os.path.join(self.dir, "interrupted")
        bench = subprocess.Popen([nk.NAKSHATRA, "bench", "run", "--model", self.model, "--out", work, "--figures", "network-jitter"],
                                 env=nk.env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.assertTrue(nk.wait_for(devices), "no network was made")
            bench.send_signal(signal.SIGINT)
            self.assertEqual(bench.wait(timeout=20 * nk.SLOW), -signal.SIGINT)
        finally:
            bench.kill()
            bench.wait()
        self.assertTrue(nk.wait_for(lambda: not devices()), "a device is left")
        self.assertTrue(nk.wait_for(lambda: not subprocess.run(["pgrep", "-f", work], capture_output=True).stdout), "a process is left")

    def test_unknown_names_are_refused_with_those_there_are(self):
        for option, known in (("--figures", "decode-8"), ("--systems", "whole"), ("--places", "there are none")):
            done = nk.run("bench", "run", "--model", self.model, "--out", self.dir, option, "nonsense")
            self.assertEqual(done.returncode, 2)
            self.assertIn("nonsense", done.stderr)
            self.assertIn(known, done.stderr)


class Compare(unittest.TestCase):
    HEADER = ("figure,system,x,run,status,value,unit,params,model,foreign,slowdown,note,time,commit,version,llama,machine\n")

    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)

    def table(self, name, *values):
        path = os.path.join(self.dir, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(self.HEADER)
            for run, value in enumerate(values, 1):
                f.write(f"decode-1,ours,0,{run},ok,{value},tok/s,,m,0,1,,2026-01-01T00:00:00.000Z,c,0,l,\"A, 2 cores\"\n")
        return path

    def test_slower_is_exit_code_1_and_faster_or_the_same_is_0(self):
        before = self.table("before.csv", 10, 10.1, 10.2)
        for values, code, word in (((8, 8.1, 8.2), 1, "worse"), ((12, 12.1, 12.2), 0, "better"),
                                   ((9.9, 10.1, 10.3), 0, "within noise")):
            done = nk.run("bench", "compare", before, self.table("after.csv", *values))
            self.assertEqual(done.returncode, code, done.stdout)
            self.assertIn(word, done.stdout)

    def test_what_is_no_table_is_named(self):
        path = os.path.join(self.dir, "x.csv")
        with open(path, "w", encoding="utf-8") as f:
            f.write("a,b\n1,2\n")
        done = nk.run("bench", "compare", path, path)
        self.assertEqual(done.returncode, 2)
        self.assertIn("x.csv:1", done.stderr)
        self.assertEqual(nk.run("bench", "compare", path + ".none", path).returncode, 2)


if __name__ == "__main__":
    unittest.main()

"""nakshatra-bench: synthetic models load in llama.cpp, and what was measured can be read and
compared.

That every system answers is test_bench_run.py's.
"""
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import unittest

import cluster
import nk

SMALL = ["--layers", "2", "--width", "256", "--ff", "512", "--heads", "4", "--kv-heads", "2",
         "--vocab", "2048", "--ctx", "512"]
MINUTES = 600


def llama_tool(name, *args):
    """One of llama.cpp's own programs; the private copy finds backends in its working folder."""
    command = [os.path.join(os.environ.get("NK_LLAMA_BIN", "/usr/bin"), name), *args]
    loader, lib = os.environ.get("NK_LLAMA_LOADER"), os.environ.get("NK_LLAMA_LIB")
    cwd = None
    if loader:
        command = [loader, "--library-path", lib + ":" + lib + "/llama", *command]
        cwd = lib + "/ggml/backends0"
    return subprocess.run(command, capture_output=True, timeout=MINUTES, cwd=cwd,
                          stdin=subprocess.DEVNULL)


class Program(unittest.TestCase):
    def test_it_is_no_part_of_the_product(self):
        done = nk.run("bench")
        self.assertEqual(done.returncode, 2)
        self.assertIn("'bench' is no command", done.stderr)

    def test_it_says_what_there_is(self):
        names = ("run", "report", "compare", "synth", "load", "echo", "link")
        done = nk.bench("--help")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for name in names:
            self.assertRegex(done.stdout, rf"(?m)^  {name} ")
            asked = nk.bench(name, "--help")
            self.assertEqual((asked.returncode, asked.stderr), (0, ""))
            self.assertTrue(asked.stdout.startswith(f"usage: nakshatra-bench {name}"), asked.stdout)
            self.assertEqual(nk.bench("help", name).stdout, asked.stdout)
        self.assertRegex(nk.bench("--version").stdout, r"^nakshatra-bench \d+\.\d+\.\d+\n$")
        for wrong in ((), ("nonsense",), ("help", "nonsense"), ("synth", "--nonsense")):
            done = nk.bench(*wrong)
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            self.assertIn("nakshatra-bench", done.stderr)


class Link(unittest.TestCase):
    def test_a_cable_between_two_machines_has_its_round_trip(self):
        cluster.require()
        with cluster.Network("a", "b") as net:
            net.cable("b", 30, 100)
            listener = net["a"].socket(socket.AF_INET)
            with listener:
                listener.bind((net["a"].v4, 5000))
                listener.listen()
                began = time.monotonic()
                net["b"].connect(net["a"].v4, 5000, nk.LONG_S).close()
                self.assertGreaterEqual(time.monotonic() - began, 0.030)

    def test_wrong_words(self):
        for words, code, what in ((("a", "b"), 2, "NAMESPACE:DEVICE"), (("nkc-none:eth0", "nkc-none:eth1"), 1, "/run/netns/nkc-none")):
            done = nk.bench("link", *words)
            self.assertEqual((done.returncode, done.stdout), (code, ""))
            self.assertIn(what, done.stderr)


class Synth(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)
        self.model = os.path.join(self.dir, "m.gguf")

    def test_llama_cpp_generates_with_it(self):
        for options in (["--type", "Q4_K"], ["--type", "Q8_0", "--untied"],
                        ["--type", "Q4_0", "--experts", "4", "--experts-used", "2"]):
            with self.subTest(options):
                nk.synth(self.model, *SMALL, *options, "--force")
                # Not llama-completion: what it prints last is now and then lost when it ends.
                done = llama_tool("llama-bench", "-m", self.model, "-p", "0", "-n", "8", "-d", "2",
                                  "-r", "1", "-t", "1", "-ngl", "0", "-o", "json")
                self.assertEqual(done.returncode, 0, done.stderr[-2000:])
                (result,) = json.loads(done.stdout)
                asked = (result["n_gen"], result["n_depth"], len(result["samples_ts"]))
                self.assertEqual(asked, (8, 2, 1))
                self.assertGreater(result["samples_ts"][0], 0)

    def test_any_text_survives_the_vocabulary(self):
        text = "Grüße, the quick 日本 fox! 12345\n\t{x}"
        prompt = os.path.join(self.dir, "prompt")
        with open(prompt, "w", encoding="utf-8") as f:
            f.write(text)
        nk.synth(self.model, *SMALL)
        done = llama_tool("llama-tokenize", "-m", self.model, "-f", prompt, "--ids", "--no-bos",
                          "--log-disable")
        self.assertEqual(done.returncode, 0, done.stderr)
        ids = json.loads(done.stdout.decode().strip().splitlines()[-1])
        self.assertLess(len(ids), len(text.encode()))
        self.assertTrue(all(0 <= i < 2048 - 256 for i in ids), ids)

    def test_refuses_to_replace_a_file_unless_told_so(self):
        nk.synth(self.model, *SMALL)
        done = nk.bench("synth", *SMALL, "--out", self.model)
        self.assertEqual(done.returncode, 1)
        self.assertIn("--force", done.stderr)

    def test_bad_options_are_exit_code_2_and_leave_nothing(self):
        for options in (["--shape", "huge"], ["--type", "Q9"], ["--width", "100"],
                        ["--layers", "-1"], ["--nonsense"]):
            with self.subTest(options):
                done = nk.bench("synth", *options, "--out", self.model)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertEqual(os.listdir(self.dir), [])


class Table(unittest.TestCase):
    HEADER = ("figure,system,x,run,status,value,unit,params,model,foreign,slowdown,note,time,"
              "commit,version,llama,machine\n")

    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)

    def table(self, name, *values):
        path = os.path.join(self.dir, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(self.HEADER)
            for run, value in enumerate(values, 1):
                f.write(f"decode-1,ours,0,{run},ok,{value},tok/s,,m,0,1,,2026-01-01T00:00:00.000Z,"
                        "c,0,l,\"A, 2 cores\"\n")
        return path

    def test_slower_is_exit_code_1_and_faster_or_the_same_is_0(self):
        before = self.table("before.csv", 10, 10.1, 10.2)
        for values, code, word in (((8, 8.1, 8.2), 1, "worse"), ((12, 12.1, 12.2), 0, "better"),
                                   ((9.9, 10.1, 10.3), 0, "within noise")):
            done = nk.bench("compare", before, self.table("after.csv", *values))
            self.assertEqual(done.returncode, code, done.stdout)
            self.assertIn(word, done.stdout)

    def test_what_is_no_table_is_named(self):
        path = os.path.join(self.dir, "x.csv")
        with open(path, "w", encoding="utf-8") as f:
            f.write("a,b\n1,2\n")
        done = nk.bench("compare", path, path)
        self.assertEqual(done.returncode, 2)
        self.assertIn("x.csv:1", done.stderr)
        self.assertEqual(nk.bench("compare", path + ".none", path).returncode, 2)

    def test_the_pages_in_the_tree_are_those_of_the_rows_in_it(self):
        for rows, folder in (("avx512.csv", "docs"), ("avx2.csv", "docs/avx2")):
            kept, made = os.path.join(nk.SOURCE, folder), os.path.join(self.dir, rows)
            os.makedirs(made)
            done = nk.bench("report", os.path.join("bench", "rows", rows), "--page",
                            os.path.join(made, "benchmarks.md"), cwd=nk.SOURCE)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            with open(os.path.join(kept, "benchmarks.md"), encoding="utf-8") as f, \
                    open(os.path.join(made, "benchmarks.md"), encoding="utf-8") as g:
                self.assertEqual(f.read(), g.read())
            plots = set(os.listdir(os.path.join(made, "benchmarks")))
            self.assertEqual(set(os.listdir(os.path.join(kept, "benchmarks"))), plots)
            for plot in plots:
                with open(os.path.join(made, "benchmarks", plot), encoding="utf-8") as f:
                    self.assertIn("</svg>", f.read())


if __name__ == "__main__":
    unittest.main()

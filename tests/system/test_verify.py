"""nakshatra verify: that the chain is the model, for real models and every quantisation, and that verify can tell when not.

Real models: kjv-tiny, and stories260K in two forms."""
import json
import os
import random
import shutil
import struct
import subprocess
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor

import ggufio as g
import models
import nk

# Both cores; a sanitizer's deadlines are nk.run's business.
JOBS = os.cpu_count() or 1
SHORT = ("--tokens", "12", "--sequences", "2", "--batch", "16", "--threads", "1")


def tool(name, *args):
    """One of llama.cpp's own programs; the private one needs its loader, and to be told of a backend. A CompletedProcess."""
    command, env = [os.path.join(os.environ["NK_LLAMA_BIN"], name), *map(str, args)], dict(os.environ)
    if os.environ.get("NK_LLAMA_LOADER"):
        lib = os.environ["NK_LLAMA_LIB"]
        libs = ":".join([lib, lib + "/llama", lib + "/ggml"])
        command = [os.environ["NK_LLAMA_LOADER"], "--library-path", libs] + command
        with open(os.path.join(nk.BUILD, "llama.env")) as f:
            backends = dict(line.rstrip("\n").split("=", 1) for line in f)["NK_BACKEND_DIR"]
        cpu = sorted(f for f in os.listdir(backends) if f.startswith("libggml-cpu"))
        plain = [f for f in cpu if "x64" in f or "armv8.0" in f] or cpu
        env["GGML_BACKEND_PATH"] = os.path.join(backends, plain[0])
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", timeout=120 * nk.SLOW, env=env)


def compositions(n):
    """Every way to write [0, n) as ranges one after the other, as verify takes them."""
    for mask in range(1 << (n - 1)):
        cuts = [0] + [i + 1 for i in range(n - 1) if mask >> i & 1] + [n]
        yield ",".join(f"{a}-{b}" for a, b in zip(cuts, cuts[1:]))


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="nk-verify-")
        self.addCleanup(shutil.rmtree, self.dir)

    def path(self, name):
        return os.path.join(self.dir, name)

    def verify(self, model, *args, code=0, **more):
        """The report of a verification that ends with this exit code."""
        done = nk.run("verify", model, *args, "--json", **more)
        self.assertEqual(done.returncode, code, (args, done.stdout, done.stderr))
        return json.loads(done.stdout)

    def exact(self, model, *args, **more):
        report = self.verify(model, *args, **more)
        self.assertTrue(report["ok"])
        self.assertTrue(report["splits"])
        for s in report["splits"]:
            self.assertEqual((s["result"], s["bit_identical"], s["worst_nmse"]), ("exact", True, 0), s)
            self.assertGreater(s["rows"], 0)
            self.assertEqual((s["identical"], s["top1"], s["not_finite"]), (s["rows"], s["rows"], 0))
        return report["splits"]

    def all_exact(self, model, splits):
        with ThreadPoolExecutor(JOBS) as pool:
            for layers, done in zip(splits, pool.map(lambda l: self.exact(model, "--layers", l, *SHORT), splits)):
                self.assertEqual([s["layers"] for s in done], [layers])

    def synth(self, name, *shape):
        return nk.synth(self.path(name), *shape)


@nk.sanitized()
class Exact(Case):
    def test_exact__stories260k_in_every_split_of_its_five_layers(self):
        splits = list(compositions(5))
        self.assertEqual(len(set(splits)), 16)
        for model in nk.STORIES:
            self.all_exact(model, splits)

    def test_exact__kjv_tiny_in_many_splits_of_its_eight_layers(self):
        splits = list(compositions(8))
        self.all_exact(nk.KJV, random.Random(1).sample(splits[:-1], 15) + splits[-1:])

    def test_exact__prompts_past_2000_tokens_with_rope_freqs(self):
        model = self.synth("long.gguf", "--shape", "tiny", "--layers", 3, "--width", 64, "--ff", 64, "--heads", 4, "--kv-heads",
                           2, "--vocab", 1024, "--ctx", 8192, "--type", "F32")
        self.assertIn("rope_freqs.weight", g.read(model).tensors)
        splits = self.exact(model, "--layers", "0-1,1-3", "--tokens", 2200, "--sequences", 1, "--batch", 256, "--threads", 1)
        self.assertGreater(splits[0]["runs"], 2200 / 256)

    def test_exact__three_stages_of_a_model_with_experts_and_four_sequences(self):
        model = self.synth("moe.gguf", "--shape", "moe", "--layers", 4, "--width", 256, "--ff", 256, "--heads", 4, "--kv-heads",
                           2, "--vocab", 1024, "--experts", 8, "--experts-used", 2)
        self.assertEqual(g.read(model).tensors["blk.0.ffn_gate_exps.weight"].ne[2], 8)
        self.exact(model, "--layers", "0-1,1-3,3-4", "--sequences", 4)

    def test_exact__every_legal_cut_by_one_command(self):
        splits = self.exact(nk.KJV, "--every-cut", *SHORT)
        self.assertEqual([s["layers"] for s in splits[:7]], [f"0-{i},{i}-8" for i in range(1, 8)])
        self.assertEqual([s["layers"].count(",") for s in splits[7:]], [3])

    def test_exact__every_type_of_a_kv_cache_with_flash_attention_and_without(self):
        plain = ("f32", "f16", "bf16")
        for k, v in zip((*plain, "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "q8_0", "q4_0"),
                        (*plain, "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "f16", "bf16")):
            types = ("--cache-type-k", k, "--cache-type-v", v)
            self.exact(nk.KJV, "--layers", "0-3,3-8", *types, *SHORT)
            if v in plain:
                self.exact(nk.KJV, "--layers", "0-3,3-8", *types, "--no-flash-attn", *SHORT)

    def test_exact__balanced_pieces(self):
        self.assertEqual([s["layers"].count(",") for s in self.exact(nk.KJV, "--into", 3, *SHORT)], [2])


@nk.sanitized()
class Quantised(Case):
    """Every type that llama-quantize lists. Some want an importance matrix, which llama-imatrix makes of any text: with it
    there is none that cannot be made. (MXFP4_MOE is for the experts of a model that has some.)"""

    @classmethod
    def setUpClass(cls):
        listed = tool("llama-quantize", "--help").stdout
        cls.types = [w.split()[2] for w in listed.splitlines() if len(w.split()) > 3 and w.split()[1] == "or" and "alias" not in w]
        assert len(cls.types) >= 30 and "Q4_K_M" in cls.types and "IQ1_S" in cls.types, listed

    def test_quantised__every_type_is_exact(self):
        shape = ("--layers", 3, "--width", 256, "--heads", 4, "--kv-heads", 2, "--vocab", 1024, "--ctx", 1024, "--type", "F32",
                 "--embedding-type", "F32")
        sources = {"dense": self.synth("dense.gguf", "--shape", "tiny", "--ff", 512, *shape),
                   "moe": self.synth("moe.gguf", "--shape", "moe", "--ff", 256, "--experts", 4, "--experts-used", 2, *shape)}
        with open(self.path("text"), "w") as f:
            words = random.Random(2)
            f.write(" ".join("".join(words.choice("abcdefghijklmnop") for _ in range(words.randint(1, 9))) for _ in range(2000)))
        matrix = self.path("matrix")
        made = tool("llama-imatrix", "-m", sources["dense"], "-f", self.path("text"), "-o", matrix, "-c", 128, "--chunks", 4,
                    "-t", 1)
        self.assertEqual(made.returncode, 0, made.stdout[-2000:])

        def one(name):
            source = sources["moe" if "MOE" in name else "dense"]
            path = self.path(name + ".gguf")
            how = [] if "MOE" in name else ["--imatrix", matrix]
            done = tool("llama-quantize", *how, source, path, name, 1)
            self.assertEqual(done.returncode, 0, (name, done.stdout[-2000:]))
            types = {t.type for t in g.read(path).tensors.values()}
            self.exact(path, "--layers", "0-1,1-3", *SHORT)
            os.unlink(path)
            return types

        with ThreadPoolExecutor(JOBS) as pool:
            types = set().union(*pool.map(one, self.types))
        # Not the same model again and again.
        self.assertGreaterEqual(len(types), 22, types)


@nk.sanitized("asan")
class Wrong(Case):
    """verify must be able to fail: it is given models whose slices are not the model."""

    def wrong(self, *args, model=nk.KJV, **more):
        report = self.verify(model, *args, code=1, **more)
        self.assertFalse(report["ok"])
        (s,) = report["splits"]
        self.assertEqual((s["result"], s["ok"], s["bit_identical"]), ("WRONG", False, False))
        self.assertGreater(s["worst_nmse"], 0)
        self.assertLess(s["identical"], s["rows"])
        return s

    def slices(self, model, layers):
        """A folder of slices, and the paths of those in it."""
        out = self.path("slices")
        shutil.rmtree(out, ignore_errors=True)
        nk.out("split", model, "--layers", layers, "--out", out)
        with open(os.path.join(out, "manifest.json")) as f:
            return out, [os.path.join(out, e["name"]) for e in json.load(f)["files"]]

    def test_wrong__slices_on_disk_are_compared_as_they_are(self):
        out, _ = self.slices(nk.KJV, "0-3,3-8")
        (s,) = self.exact(nk.KJV, "--slices", out, *SHORT)
        self.assertEqual(s["layers"], "0-3,3-8")
        self.assertEqual(len(os.listdir(out)), 4)  # they are not verify's own: they stay

    def test_wrong__one_changed_weight_is_seen(self):
        for which, tensor in ((0, "blk.2.ffn_down.weight"), (1, "blk.0.attn_q.weight"), (1, "output_norm.weight")):
            out, files = self.slices(nk.KJV, "0-3,3-8")
            s = g.read(files[which])
            t = s.tensors[tensor]
            with open(files[which], "r+b") as f:
                f.seek(s.data_offset + t.offset)
                f.write(struct.pack("<e" if t.type == 1 else "<f", 8.0))
            self.wrong("--slices", out, *SHORT)

    def test_wrong__a_slice_without_rope_freqs_is_seen(self):
        model = self.synth("m.gguf", "--shape", "tiny", "--layers", 3, "--width", 64, "--ff", 64, "--heads", 4, "--kv-heads",
                           2, "--vocab", 1024, "--ctx", 8192, "--type", "F32", "--embedding-type", "F32")
        out, files = self.slices(model, "0-1,1-3")
        s = g.read(files[1])
        g.write(files[1], s.kv, [(t.name, t.ne, t.type, s.data(t)) for t in s.tensors.values()])
        self.exact(model, "--slices", out, *SHORT)  # the copy itself is none the worse
        g.write(files[1], s.kv, [(t.name, t.ne, t.type, s.data(t)) for t in s.tensors.values() if t.name != "rope_freqs.weight"])
        self.wrong("--slices", out, *SHORT, model=model)

    def test_wrong__weights_that_are_no_numbers_are_not_a_match(self):
        model = shutil.copy(nk.KJV, self.path("m.gguf"))
        m = g.read(model)
        with open(model, "r+b") as f:
            f.seek(m.data_offset + m.tensors["output_norm.weight"].offset)
            f.write(struct.pack("<f", float("nan")))
        report = self.verify(model, "--layers", "0-3,3-8", *SHORT, code=1)
        self.assertFalse(report["ok"])
        self.assertEqual(report["splits"][0]["result"], "not finite")
        self.assertIsNone(report["splits"][0]["worst_nmse"])

    def test_wrong__slices_of_another_model_are_refused(self):
        other = shutil.copy(nk.KJV, self.path("other.gguf"))
        with open(other, "r+b") as f:
            f.seek(-1, 2)
            f.write(b"!")
        out, files = self.slices(nk.KJV, "0-3,3-8")
        for args, text in ((["verify", other, "--slices", out], "the slices are of another model"),
                           (["verify", nk.KJV, "--slices", self.dir], "manifest.json: opening: No such file")):
            done = nk.run(*args)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1 if "another" in text else 2, "", 1), done)
            self.assertIn(text, done.stderr)
        # One file was put in another's place.
        mine = self.path("mine")
        os.rename(out, mine)
        os.rename(other, self.path("kjv-tiny.gguf"))
        out, theirs = self.slices(self.path("kjv-tiny.gguf"), "0-3,3-8")
        shutil.copy(theirs[1], os.path.join(mine, os.path.basename(files[1])))
        done = nk.run("verify", nk.KJV, "--slices", mine)
        self.assertEqual((done.returncode, done.stdout), (1, ""), done)
        self.assertIn("kjv-tiny.003-008.gguf is of another model", done.stderr)
        os.unlink(os.path.join(mine, os.path.basename(files[1])))
        done = nk.run("verify", nk.KJV, "--slices", mine)
        self.assertEqual((done.returncode, done.stdout), (2, ""), done)
        self.assertIn("kjv-tiny.003-008.gguf", done.stderr)


@nk.sanitized("asan")
class Refused(Case):
    def refused(self, args, text, code):
        cache = self.path("cache")
        done = nk.run("verify", *args, env=nk.env(XDG_CACHE_HOME=cache))
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (code, "", 1), (args, done))
        self.assertIn(text, done.stderr)
        left = [f for _, _, files in os.walk(cache) for f in files]
        self.assertEqual(left, [])

    def test_refused__wrong_ranges(self):
        for layers, text in (("0-4", "do not cover the model's 8 layers"), ("1-8", "do not cover the model's 8 layers"), ("0-3,4-8", "a gap between 0-3 and 4-8"),
                             ("0-5,4-8", "4-8 overlaps 0-5"), ("0-4,4-4,4-8", "4-4 is empty"), ("0-9", "the model has 8 layers"),
                             ("", "ranges like"), ("0-8,", "ranges like"), ("a-b", "ranges like")):
            self.refused([nk.KJV, "--layers", layers], text, 2)
            self.refused([nk.KJV, "--layers", layers], "kjv-tiny.gguf: ", 2)
        models.small(self.path("m.gguf"), "smollm3", 12)
        self.refused([self.path("m.gguf"), "--layers", "0-6,6-12"], "before layer 6, only before multiples of 4", 1)

    def test_refused__command_lines(self):
        for args, text in (([nk.KJV], "give one of --layers"), ([nk.KJV, "--layers", "0-8", "--into", 2], "give one of --layers"),
                           ([nk.KJV, "--into", 2, "--tokens", 0], "--tokens"), ([nk.KJV, "--into", 2, "--sequences", 17], "--sequences"),
                           ([nk.KJV, "--into", 2, "--tokens", 512], "the model was trained for 512"),
                           ([nk.KJV, "--into", 2, "--sequences", 4, "--batch", 3], "--batch 3 is less than --sequences 4"),
                           ([nk.KJV, "--into", 2, "--device", "CPU,CPU,CPU"], "names 3 devices for 2 stages"),
                           ([nk.KJV, "--into", 2, "--device", ","], "no device is named"),
                           ([nk.KJV, "--into", 2, "--device", "Nope0"], "Nope0"),
                           ([nk.KJV, "--into", 2, "--cache-type-k", "q9"], "--cache-type-k: 'q9' is no type of a KV cache; there are f32, f16"),
                           ([nk.KJV, "--into", 2, "--cache-type-v", "q8_0", "--no-flash-attn"], "--cache-type-v: values of type q8_0"),
                           ([nk.STORIES[0], "--into", 2, "--cache-type-k", "q8_0"], "q8_0 with block size 32 does not divide"),
                           ([nk.KJV, "--into", 9], "9"),
                           ([self.path("nope.gguf"), "--into", 2], "nope.gguf")):
            self.refused(args, text, 2)

    def test_refused__a_slice_instead_of_a_model(self):
        out = self.path("slices")
        nk.out("split", nk.KJV, "--into", 2, "--out", out)
        self.refused([os.path.join(out, "kjv-tiny.000-004.gguf"), "--into", 2], "a whole model is wanted", 2)

    def test_refused__json_says_why_and_whose_fault(self):
        for model, where in ((nk.KJV, "split"), (models.small(self.path("m.gguf")), "model")):
            done = nk.run("verify", model, "--layers", "0-3,4-8" if where == "split" else "0-2,2-4", "--json")
            self.assertIn(done.returncode, (1, 2))
            report = json.loads(done.stdout)
            self.assertEqual((report["ok"], report["splits"], report["error"]["where"]), (False, [], where))
            self.assertTrue(report["error"]["reason"] and report["error"]["message"])


@nk.sanitized("asan")
class Report(Case):
    def test_report__json_has_these_fields(self):
        report = self.verify(nk.KJV, "--layers", "0-3,3-8", "--tokens", 20, "--sequences", 3, "--threads", 1)
        self.assertEqual(set(report), {"model", "llama_version", "ok", "bound", "splits", "cache_bytes", "cache_bytes_counted"})
        self.assertEqual(report["model"], nk.KJV)
        self.assertEqual(set(report["splits"][0]), {"layers", "result", "devices", "runs", "rows", "identical", "top1",
                                                    "not_finite", "worst_nmse", "bit_identical", "ok"})
        self.assertEqual(report["splits"][0]["devices"], ["CPU", "CPU"])
        self.assertEqual(report, self.verify(nk.KJV, "--layers", "0-3,3-8", "--tokens", 20, "--sequences", 3, "--threads", 1))

    def test_report__a_line_for_people(self):
        out = nk.out("verify", nk.KJV, "--layers", "0-3,3-8", *SHORT)
        self.assertRegex(out, r"^0-3,3-8 +exact +\d+ runs, (\d+) rows of logits: \1 bit-identical, \1 same top-1, worst nmse 0\n$")


if __name__ == "__main__":
    unittest.main()

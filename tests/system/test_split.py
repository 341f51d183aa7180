"""nakshatra split: what is in the slices, that files appear whole or not at all, and that nothing is done twice."""
import hashlib
import json
import os
import pty
import random
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import ggufio as g
import models
import nk

MIB = 1 << 20


def size_limit(n):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))


def seal(path):
    """A file's seal (docs/integrity.md): where it begins, and its parts (begin, size, digest, name)."""
    with open(path, "rb") as f:
        data = f.read()
    last = data[:-1].rfind(b"\n") + 1
    word, size, digest = data[last:].split()
    begin = last - int(size)
    assert (word, hashlib.sha256(data[begin:last]).hexdigest()) == (b"seal", digest.decode())
    first, *lines = data[begin:last].decode().splitlines()
    assert first == "nakshatra seal 1"
    return begin, [(int(b), int(n), d, name) for b, n, d, name in (line.split(" ", 3) for line in lines)]


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="nk-split-")
        self.addCleanup(shutil.rmtree, self.dir)
        self.out = self.path("out")

    def path(self, name):
        return os.path.join(self.dir, name)

    def split(self, model, *args, **more):
        """Slices in order, the vocabulary last, and the manifest. Most models here are not such that llama.cpp would load them."""
        nk.out("split", model, "--no-trial", "--out", self.out, *args, **more)
        with open(os.path.join(self.out, "manifest.json")) as f:
            manifest = json.load(f)
        return [g.read(os.path.join(self.out, f["name"])) for f in manifest["files"]], manifest

    def files(self):
        return sorted(os.listdir(self.out)) if os.path.exists(self.out) else []


class Slices(Case):
    def test_split__all_slices_together_hold_each_layers_tensors_once(self):
        whole = g.read(nk.KJV)
        slices, manifest = self.split(nk.KJV, "--layers", "0-3,3-5,5-8")
        for f, s in zip(manifest["files"][:3], slices):
            begin, end = f["layers"]
            self.assertEqual(s.get("llama.block_count"), end - begin)
            want = {t.name: t for t in whole.tensors.values() if t.name.startswith("blk.") and begin <= int(t.name.split(".")[1]) < end}
            have = {n: t for n, t in s.tensors.items() if n.startswith("blk.")}
            self.assertEqual(len(have), len(want))
            for t in want.values():
                _, i, rest = t.name.split(".", 2)
                mine = s.tensors["blk.%d.%s" % (int(i) - begin, rest)]
                self.assertEqual((mine.ne, mine.type), (t.ne, t.type))
                self.assertEqual(s.data(mine), whole.data(t))

    def test_split__every_slice_says_what_it_is(self):
        slices, manifest = self.split(nk.KJV, "--layers", "0-3,3-8")
        for s, begin, end in zip(slices, (0, 3), (3, 8)):
            self.assertEqual([s.get("nakshatra." + k) for k in ("layer_range_start", "layer_range_end", "layer_count", "n_vocab",
                                                                "has_token_embd", "has_lm_head", "model_sha256", "model_name")],
                             [begin, end, 8, 1024, begin == 0, end == 8, nk.sha256(nk.KJV).encode(), b"kjv-tiny"])

    def test_split__every_file_ends_with_the_digests_of_its_parts(self):
        models.small(self.path("m.gguf"), tied=False)  # a hole in the last slice
        whole, seen = g.read(self.path("m.gguf")), {}
        slices, _ = self.split(self.path("m.gguf"), "--layers", "0-1,1-3,3-4")
        for s in slices:
            begin, parts = seal(s.path)
            with open(s.path, "rb") as f:
                data = f.read()
            self.assertEqual(sum(n for _, n, _, _ in parts), begin)
            at = 0
            for (part, n, digest, name) in parts:
                self.assertEqual(part, at)
                at += n
                if digest == "-":
                    self.assertEqual((name, data[part:at]), ("token_embd.weight", bytes(n)))
                    continue
                self.assertEqual(hashlib.sha256(data[part:at]).hexdigest(), digest, name)
                if name.startswith("blk."):
                    self.assertEqual(data[part:part + whole.tensors[name].size], whole.data(name))
                    self.assertEqual(seen.setdefault(name, digest), digest)
            self.assertEqual(parts[0][3], "header")
        self.assertEqual(len(seen), len([n for n in whole.tensors if n.startswith("blk.")]))

    def test_split__manifest_has_the_hashes_of_what_is_there(self):
        _, m = self.split(nk.KJV, "--into", "3")
        self.assertEqual((m["model_id"], m["model_sha256"], m["architecture"], m["n_layer"], m["n_embd"]),
                         ("kjv-tiny", nk.sha256(nk.KJV), "llama", 8, 128))
        self.assertEqual(len(m["files"]), 4)
        for f in m["files"]:
            path = os.path.join(self.out, f["name"])
            self.assertEqual((f["size_bytes"], f["sha256"]), (os.path.getsize(path), nk.sha256(path)))
        self.assertEqual([f["layers"] for f in m["files"]], [[0, 3], [3, 6], [6, 8], None])
        self.assertEqual([f["name"] for f in m["files"]], ["kjv-tiny.000-003.gguf", "kjv-tiny.003-006.gguf",
                                                           "kjv-tiny.006-008.gguf", "kjv-tiny.vocab.gguf"])
        self.assertEqual(self.files(), sorted([f["name"] for f in m["files"]] + ["manifest.json"]))

    def test_split__embeddings_and_head_are_where_they_are_needed(self):
        for tied in (False, True):
            with self.subTest(tied=tied):
                shutil.rmtree(self.out, ignore_errors=True)
                whole = g.read(models.small(self.path("m.gguf"), tied=tied))
                (a, b, c, vocab), _ = self.split(self.path("m.gguf"), "--layers", "0-1,1-3,3-4")
                embd, n = whole.tensors["token_embd.weight"], 4 * 32
                for s in (a, b):  # a stub of 32 rows, and no tokenizer
                    self.assertEqual(s.tensors["token_embd.weight"].ne, [32, 32])
                    self.assertEqual("output.weight" in s.tensors, not tied)
                    self.assertEqual(s.get("llama.vocab_size"), 32)
                    self.assertEqual({k: s.get(k) for k in s.kv if k.startswith("tokenizer.")}, {"tokenizer.ggml.model": b"none"})
                # The first slice's file goes on with all the rows, and ends with them (and padding).
                t = a.tensors["token_embd.weight"]
                self.assertEqual(list(a.tensors)[-1], "token_embd.weight")
                self.assertEqual(a.data(t, 64 * n), whole.data(embd))
                self.assertLess(seal(a.path)[0] - (a.data_offset + t.offset + 64 * n), 32)
                self.assertLess(seal(b.path)[0], b.data_offset + b.tensors["token_embd.weight"].offset + 32 * n + 32)
                # The last slice has the vocabulary, and the rows where the head shares them.
                self.assertEqual(c.tensors["token_embd.weight"].ne, [32, 64])
                self.assertEqual(c.data("token_embd.weight"), whole.data(embd) if tied else bytes(64 * n))
                if not tied:
                    self.assertEqual(c.data("output.weight"), whole.data("output.weight"))
                for s in (c, vocab):
                    for key in whole.kv:
                        if key.startswith("tokenizer."):
                            self.assertEqual(s.kv[key], whole.kv[key])
                self.assertEqual(len(vocab.tensors), 0)

    def test_split__the_rest_is_in_every_slice(self):
        whole = g.read(models.small(self.path("m.gguf")))
        slices, _ = self.split(self.path("m.gguf"), "--layers", "0-1,1-3,3-4")
        for s in slices[:3]:
            for name in ("rope_freqs.weight", "output_norm.weight"):
                self.assertEqual(s.data(name), whole.data(name))
            self.assertEqual(s.get("llama.attention.head_count"), 4)
            self.assertEqual(s.get("general.name"), b"A small model")

    def test_split__what_is_per_layer_is_cut(self):
        extra = {"deepseek2.attention.head_count_kv": (g.ARR, (g.U32, [2, 4, 6, 8])),
                 "deepseek2.some.names": (g.ARR, (g.STR, ["a", "b", "c", "d"])),
                 "deepseek2.some.floats": (g.ARR, (g.F64, [0.5, 1.5, 2.5, 3.5])),
                 "deepseek2.some.flags": (g.ARR, (g.BOOL, [True, False, False, True])),
                 "deepseek2.rope.dimension_sections": (g.ARR, (g.I32, [1, 2, 3, 4])),
                 "deepseek2.other": (g.ARR, (g.I32, [1, 2, 3])), "other.numbers": (g.ARR, (g.I32, [1, 2, 3, 4])),
                 "xielu.alpha_n": (g.ARR, (g.F32, [0.0, 1.0, 2.0, 3.0])),
                 "deepseek2.leading_dense_block_count": (g.U32, 2)}
        whole = g.read(models.small(self.path("m.gguf"), "deepseek2", extra=extra))
        (a, b, c, vocab), _ = self.split(self.path("m.gguf"), "--layers", "0-1,1-3,3-4")
        for key, cut in (("deepseek2.attention.head_count_kv", [[2], [4, 6], [8]]), ("deepseek2.some.names", [[b"a"], [b"b", b"c"], [b"d"]]),
                         ("deepseek2.some.floats", [[0.5], [1.5, 2.5], [3.5]]), ("xielu.alpha_n", [[0.0], [1.0, 2.0], [3.0]]),
                         ("deepseek2.some.flags", [[True], [False, False], [True]]),
                         ("deepseek2.rope.dimension_sections", [[1, 2, 3, 4]] * 3), ("deepseek2.other", [[1, 2, 3]] * 3),
                         ("other.numbers", [[1, 2, 3, 4]] * 3), ("deepseek2.leading_dense_block_count", [1, 1, 0])):
            self.assertEqual([s.get(key) for s in (a, b, c)], cut, key)
            self.assertEqual(a.kv[key][0], extra[key][0])  # of the same type
            self.assertEqual(vocab.kv[key], whole.kv[key])

    def test_split__patterns_by_layer_number_become_arrays(self):
        for arch, n, key, extra, want in (
                ("gemma3", 12, "attention.sliding_window_pattern", {}, [[1, 1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 0]]),
                ("gemma3", 12, "attention.sliding_window_pattern", {"gemma3.attention.sliding_window_pattern": (g.U32, 3)},
                 [[1, 1, 0, 1, 1, 0, 1], [1, 0, 1, 1, 0]]),
                ("cohere2moe", 12, "attention.sliding_window_pattern", {}, [[0, 1, 1, 1, 0, 1, 1], [1, 0, 1, 1, 1]]),
                ("qwen3next", 12, "attention.recurrent_layers", {}, [[1, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0]]),
                ("gemma3", 12, "attention.sliding_window_pattern", {"gemma3.attention.sliding_window": (g.U32, 0)}, [None, None])):
            with self.subTest(arch=arch, extra=extra):
                shutil.rmtree(self.out, ignore_errors=True)
                models.small(self.path("m.gguf"), arch, n, extra=extra)
                slices, _ = self.split(self.path("m.gguf"), "--layers", "0-7,7-12")
                self.assertEqual([s.get(arch + "." + key) for s in slices[:2]], want)

    def test_split__what_llama_cpp_computes_from_the_number_of_layers_is_said(self):
        models.small(self.path("m.gguf"), "minicpm")  # an older file without the scale
        (a, b, _), _ = self.split(self.path("m.gguf"), "--layers", "0-1,1-4")
        self.assertEqual([s.kv["minicpm.residual_scale"] for s in (a, b)], [(g.F32, struct.unpack("<f", struct.pack("<f", 1.4 / 2))[0])] * 2)
        shutil.rmtree(self.out)
        models.small(self.path("m.gguf"), "minicpm", extra={"minicpm.residual_scale": (g.F32, 0.25)})
        (a, b, _), _ = self.split(self.path("m.gguf"), "--layers", "0-1,1-4")
        self.assertEqual([s.get("minicpm.residual_scale") for s in (a, b)], [0.25] * 2)
        shutil.rmtree(self.out)
        models.small(self.path("m.gguf"), "deepseek2", 27)  # DeepSeek V2 Lite has no low-rank queries
        (a, b, _), _ = self.split(self.path("m.gguf"), "--layers", "0-10,10-27")
        self.assertEqual([s.get("deepseek2.attention.q_lora_rank") for s in (a, b)], [0, 0])

    def test_split__layers_for_further_tokens_are_left_out(self):
        models.small(self.path("m.gguf"), "glm4moe", 5, extra={"glm4moe.nextn_predict_layers": (g.U32, 1),
                                                               "glm4moe.attention.head_count": (g.ARR, (g.U32, [4, 4, 4, 4, 1]))})
        (a, b, _), _ = self.split(self.path("m.gguf"), "--layers", "0-2,2-4")
        self.assertEqual([s.get("glm4moe.nextn_predict_layers") for s in (a, b)], [0, 0])
        self.assertEqual([s.get("glm4moe.attention.head_count") for s in (a, b)], [[4, 4], [4, 4]])
        self.assertNotIn("blk.2.attn_k.weight", b.tensors)

    def test_split__one_slice_of_everything_is_the_model(self):
        whole = g.read(models.small(self.path("m.gguf")))
        (s, _), _ = self.split(self.path("m.gguf"), "--into", "1")
        self.assertEqual({t: s.data(t) for t in s.tensors}, {t: whole.data(t) for t in whole.tensors})
        self.assertEqual({k: s.kv[k] for k in whole.kv}, whole.kv)

    def test_split__shards_give_the_same_slices(self):
        tool = [os.path.join(os.environ["NK_LLAMA_BIN"], "llama-gguf-split"), "--split", "--split-max-tensors", "11", nk.KJV, self.path("kjv")]
        if os.environ.get("NK_LLAMA_LOADER"):
            tool = [os.environ["NK_LLAMA_LOADER"], "--library-path", os.environ["NK_LLAMA_LIB"]] + tool
        subprocess.run(tool, check=True, capture_output=True)
        shards = sorted(f for f in os.listdir(self.dir) if f.startswith("kjv-"))
        want, _ = self.split(nk.KJV, "--into", "3")
        os.rename(self.out, self.path("want"))
        for s in want:
            s.path = s.path.replace(self.out, self.path("want"))
        have, manifest = self.split(self.path(shards[3]), "--into", "3")
        self.assertEqual(manifest["files"][0]["name"], "kjv.000-003.gguf")
        joined = subprocess.run("cat kjv-*-of-* | sha256sum", shell=True, cwd=self.dir, capture_output=True, text=True)
        self.assertEqual(manifest["model_sha256"], joined.stdout.split()[0])
        for w, h in zip(want, have):
            self.assertEqual(list(w.tensors), list(h.tensors))
            for t in w.tensors:
                self.assertEqual(w.data(t), h.data(t))
            w.kv.pop("nakshatra.model_sha256")
            h.kv.pop("nakshatra.model_sha256")
            self.assertEqual(w.kv, h.kv)

    def test_split__balances_bytes_over_legal_cuts(self):
        # Layer 5 is as large as all the others; the head counts for the last slice.
        models.small(self.path("m.gguf"), n_layer=8, vocab=32, layer=lambda i: [("ffn_up.weight", 70000 if i == 5 else 10000)])
        _, m = self.split(self.path("m.gguf"), "--into", "3")
        self.assertEqual([f["layers"] for f in m["files"][:3]], [[0, 5], [5, 6], [6, 8]])
        models.small(self.path("m.gguf"), n_layer=8, vocab=1024, layer=lambda i: [("ffn_up.weight", 8192)])
        _, m = self.split(self.path("m.gguf"), "--into", "2")
        self.assertEqual([f["layers"] for f in m["files"][:2]], [[0, 6], [6, 8]])
        models.small(self.path("m.gguf"), "smollm3", n_layer=12)
        _, m = self.split(self.path("m.gguf"), "--into", "2")
        self.assertIn([f["layers"] for f in m["files"][:2]], ([[0, 8], [8, 12]], [[0, 4], [4, 12]]))


class Again(Case):
    def test_again__keeps_what_is_there_and_redoes_what_is_not(self):
        self.split(nk.KJV, "--into", "4")
        names = [f for f in self.files() if f.endswith(".gguf")]
        def times():
            return {n: os.stat(os.path.join(self.out, n)).st_mtime_ns for n in names}
        before = times()
        self.split(nk.KJV, "--into", "4")
        self.assertEqual(times(), before)
        hashes = {n: nk.sha256(os.path.join(self.out, n)) for n in names}
        # One missing, one damaged in its last byte, one shorter.
        os.unlink(os.path.join(self.out, names[0]))
        for name, act in ((names[1], lambda f: (f.seek(-1, 2), f.write(b"!"))), (names[2], lambda f: f.truncate(1000))):
            with open(os.path.join(self.out, name), "r+b") as f:
                act(f)
        out = nk.out("split", nk.KJV, "--into", "4", "--out", self.out)
        self.assertEqual([("already" in line) for line in out.splitlines()], [False, False, False, True, True])
        self.assertEqual({n: nk.sha256(os.path.join(self.out, n)) for n in names}, hashes)
        self.assertEqual(times()[names[3]], before[names[3]])

    def test_again__other_ranges_keep_what_is_the_same(self):
        self.split(nk.KJV, "--layers", "0-4,4-8")
        out = nk.out("split", nk.KJV, "--layers", "0-4,4-6,6-8", "--out", self.out)
        self.assertEqual([("already" in line) for line in out.splitlines()], [True, False, False, True])

    def test_again__another_model_of_that_name_is_not_mistaken(self):
        models.small(self.path("m.gguf"), vocab=64)
        self.split(self.path("m.gguf"), "--into", "2")
        models.small(self.path("m.gguf"), vocab=65)
        out = nk.out("split", self.path("m.gguf"), "--into", "2", "--out", self.out)
        self.assertNotIn("already", out)

    def test_again__a_broken_manifest_is_no_obstacle(self):
        self.split(nk.KJV, "--into", "2")
        for text in ("", "{", "[]", '{"files": 3}', json.dumps({"files": [{"name": "../../etc/passwd"}]})):
            with open(os.path.join(self.out, "manifest.json"), "w") as f:
                f.write(text)
            _, m = self.split(nk.KJV, "--into", "2")
            self.assertEqual(len(m["files"]), 3)

    def interrupt(self, sig):
        """Splits a model, and sends the signal when the second slice has begun: the process, ended."""
        model = models.large(self.path("large.gguf"), 400 * MIB, 6)
        for _ in range(1000):
            p = subprocess.Popen([nk.NAKSHATRA, "split", model, "--into", "6", "--out", self.out], env=nk.env(),
                                 stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
            done = nk.wait_for(lambda: p.poll() is not None or any(f.startswith("large.") for f in self.files()), step=0.001)
            self.assertTrue(done)
            p.send_signal(sig)
            err = p.communicate(timeout=60 * nk.SLOW)[1]
            if p.returncode:
                break
            shutil.rmtree(self.out)  # the signal came too late
        return model, p.returncode, err

    def complete(self):
        """Final names hold complete slices only."""
        for name in self.files():
            if name.startswith("large."):
                i = json.loads(nk.out("inspect", os.path.join(self.out, name), "--json"))
                self.assertTrue(i["slice"])
        self.assertNotIn("manifest.json", self.files())

    def test_again__after_ctrl_c(self):
        model, code, err = self.interrupt(signal.SIGINT)
        self.assertEqual((code, err), (130, "nakshatra: interrupted; the same command goes on from here\n"))
        self.complete()
        self.assertEqual([f for f in self.files() if f.endswith(".tmp")], [])
        out = nk.out("split", model, "--into", "6", "--out", self.out)
        self.assertIn("already", out)
        self.assertEqual(len(self.files()), 8)

    def test_again__after_a_kill(self):
        model, code, _ = self.interrupt(signal.SIGKILL)
        self.assertEqual(code, -signal.SIGKILL)
        self.complete()
        out = nk.out("split", model, "--into", "6", "--out", self.out)
        self.assertEqual(len(self.files()), 8, self.files())  # and no temporary files
        with open(os.path.join(self.out, "manifest.json")) as f:
            for entry in json.load(f)["files"]:
                self.assertEqual(entry["sha256"], nk.sha256(os.path.join(self.out, entry["name"])))

    @nk.sanitized()
    def test_again__ended_at_any_moment_it_leaves_whole_files_and_goes_on(self):
        model = models.large(self.path("large.gguf"), 120 * MIB, 6)
        args = [nk.NAKSHATRA, "split", model, "--into", "6", "--out"]
        start = time.monotonic()
        subprocess.run(args + [self.path("want")], env=nk.env(), check=True, stdout=subprocess.DEVNULL)
        lasts = time.monotonic() - start
        want = {n: nk.sha256(os.path.join(self.path("want"), n)) for n in os.listdir(self.path("want"))}
        self.assertEqual(len(want), 8)
        moments = random.Random(3)
        for k in range(10):
            sig = (signal.SIGINT, signal.SIGKILL)[k % 2]
            if k % 5 == 0:
                shutil.rmtree(self.out, ignore_errors=True)
            p = subprocess.Popen(args + [self.out], env=nk.env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(moments.uniform(0, lasts))
            p.send_signal(sig)
            self.assertIn(p.wait(60 * nk.SLOW), (0, 130, -sig))
            have = {n: nk.sha256(os.path.join(self.out, n)) for n in self.files() if not n.startswith(".")}
            self.assertEqual(have, {n: want[n] for n in have})
            if sig == signal.SIGINT:
                self.assertEqual([n for n in self.files() if n.endswith(".tmp") and ".%d." % p.pid in n], [])
        nk.out("split", model, "--into", "6", "--out", self.out)
        self.assertEqual({n: nk.sha256(os.path.join(self.out, n)) for n in self.files()}, want)


class Refused(Case):
    def refused(self, args, *texts, code=(1, 2), **more):
        done = nk.run("split", *args, **more)
        self.assertIn(done.returncode, code, done)
        self.assertEqual((done.stdout, done.stderr.count("\n")), ("", 1), done.stderr)
        for text in texts:
            self.assertIn(text, done.stderr)
        self.assertEqual(self.files(), [])

    def test_refused__ranges(self):
        for ranges, text in (("", "ranges like 0-14,14-28"), ("0-4,4", "ranges like"), ("0-4;4-8", "ranges like"), ("0-4,", "ranges like"),
                             (" 0-4", "ranges like"), ("-1-4", "ranges like"), ("0-99999999999999999999", "ranges like"),
                             ("0-4,4-4,4-8", "4-4 is empty"), ("4-2", "4-2 is empty"), ("0-5,4-8", "4-8 overlaps 0-5"),
                             ("0-3,4-8", "a gap between 0-3 and 4-8"), ("0-4,4-9", "the model has 8 layers")):
            self.refused([nk.KJV, "--layers", ranges, "--out", self.out], "kjv-tiny.gguf", text, code=(2,))

    def test_refused__illegal_cuts(self):
        models.small(self.path("m.gguf"), "llama4", 12)
        self.refused([self.path("m.gguf"), "--layers", "0-6,6-12", "--out", self.out], "m.gguf", "before layer 6, only before multiples of 4", code=(1,))
        self.refused([self.path("m.gguf"), "--into", "4", "--out", self.out], "4 slices are not possible; at most 3 are", code=(2,))
        models.small(self.path("m.gguf"), "t5", 12)
        self.refused([self.path("m.gguf"), "--into", "2", "--out", self.out], "architecture t5 cannot be split: it is an encoder and a decoder", code=(1,))
        for arch, layers, size in (("gemma2", 46, "27B"), ("gemma3", 62, "27B"), ("exaone4", 64, "32B")):
            models.small(self.path("m.gguf"), arch, layers)
            self.refused([self.path("m.gguf"), "--into", "2", "--out", self.out],
                         "%s models of %d layers (%s) cannot be split: llama.cpp knows them by that number" % (arch, layers, size), code=(1,))
        # ... nor may a slice look like one of these.
        models.small(self.path("m.gguf"), "gemma2", 60)
        self.refused([self.path("m.gguf"), "--layers", "0-46,46-60", "--out", self.out], "a slice of exactly 46 layers is not possible", code=(1,))

    def test_refused__command_lines(self):
        for args, text in (([nk.KJV, "--out", self.out], "either --into or --layers"), ([nk.KJV, "--into", "2"], "--out is missing"),
                           ([nk.KJV, "--into", "2", "--layers", "0-8", "--out", self.out], "either --into or --layers"),
                           ([nk.KJV, "--into", "0", "--out", self.out], "--into: 0 is outside 1"), ([nk.KJV, "--into", "9", "--out", self.out], "not 9"),
                           (["--into", "2", "--out", self.out], "an argument is missing"), ([nk.KJV, nk.KJV, "--into", "2", "--out", self.out], "one argument too many")):
            self.refused(args, text, code=(2,))

    def test_refused__a_slice_instead_of_a_model(self):
        nk.out("split", nk.KJV, "--into", "2", "--out", self.path("slices"))
        self.refused([self.path("slices/kjv-tiny.000-004.gguf"), "--into", "2", "--out", self.out],
                     "kjv-tiny.000-004.gguf is a slice (layers 0-4 of 8), not a whole model", code=(2,))
        self.refused([self.path("slices/kjv-tiny.vocab.gguf"), "--into", "2", "--out", self.out], "a vocabulary file, not a model", code=(2,))

    def test_refused__no_space(self):
        for limit in (0, 100, 5000, 1000000):  # in the first write, in the header, in the weights of the first or second slice
            done = nk.run("split", nk.KJV, "--into", "2", "--out", self.out, preexec_fn=size_limit(limit))
            self.assertEqual(done.returncode, 1)
            self.assertIn("File too large", done.stderr)
            self.assertIn(self.out, done.stderr)
            self.assertEqual([f for f in self.files() if f.endswith(".gguf") and f != "kjv-tiny.vocab.gguf" or f.endswith((".tmp", "manifest.json"))], [])

    def test_refused__a_full_disk(self):
        if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
            nk.missing("mounting needs root (unshare -m)")
        os.mkdir(self.out)
        model = models.large(self.path("large.gguf"), 40 * MIB)
        script = "mount -t tmpfs -o size=8m none '%s' && '%s' split '%s' --into 2 --out '%s'; r=$?; ls -A '%s'; exit $r"
        done = subprocess.run(["unshare", "-m", "sh", "-c", script % (self.out, nk.NAKSHATRA, model, self.out, self.out)], env=nk.env(),
                              capture_output=True, text=True, timeout=120 * nk.SLOW)
        self.assertEqual((done.returncode, done.stdout), (1, ""), done)
        self.assertRegex(done.stderr, r"out: the files need 4\d\.\d MiB, 8\.0 MiB are free there")

    def test_refused__output_that_cannot_be_written(self):
        with open(self.out, "w"):
            pass
        done = nk.run("split", nk.KJV, "--into", "2", "--out", self.out)
        self.assertEqual(done.returncode, 1)
        self.assertIn("out: making the folder: Not a directory", done.stderr)
        done = nk.run("split", nk.KJV, "--into", "2", "--out", os.path.join(self.out, "below"))
        self.assertEqual(done.returncode, 1)
        self.assertIn("Not a directory", done.stderr)
        os.unlink(self.out)
        os.makedirs(os.path.join(self.out, "kjv-tiny.000-004.gguf"))  # a folder in the way
        done = nk.run("split", nk.KJV, "--into", "2", "--out", self.out)
        self.assertEqual(done.returncode, 1)
        self.assertIn("kjv-tiny.000-004.gguf: renaming into place: Is a directory", done.stderr)
        self.assertFalse([f for f in self.files() if f.endswith((".tmp", "manifest.json"))])

    def test_refused__a_folder_closed_to_writing(self):
        os.mkdir(self.out, 0o555)
        # Root may write anywhere, unless without that capability.
        prefix = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override"]
        done = subprocess.run(prefix + [nk.NAKSHATRA, "split", nk.KJV, "--into", "2", "--out", self.out], env=nk.env(),
                              capture_output=True, text=True, timeout=60 * nk.SLOW)
        self.assertEqual(done.returncode, 1, done)
        self.assertIn("creating: Permission denied", done.stderr)
        self.assertEqual(self.files(), [])


class Trial(Case):
    """Models of which no comparison says that their slices can be run are loaded once, slice by slice, before anything is written."""

    def odd(self, n_head_kv, layers, numbers=range(8)):
        """kjv-tiny with other numbers of heads in some layers, and layers that are not all the same."""
        m, tensors = g.read(nk.KJV), []
        per_head = m.get("llama.embedding_length") // m.get("llama.attention.head_count")
        m.kv["llama.some.numbers"] = (g.ARR, (g.U32, list(numbers)))
        if len(layers) == 8:
            m.kv["llama.attention.head_count_kv"] = (g.U32, n_head_kv)
        for t in m.tensors.values():
            data, ne = m.data(t), list(t.ne)
            if t.name in ["blk.%d.attn_%s.weight" % (i, kind) for i in layers for kind in "kv"]:
                ne[1] = per_head * n_head_kv
                data = (data * 4)[:t.row_size * ne[1]]
            tensors.append((t.name, ne, t.type, data))
        return g.write(self.path("odd.gguf"), m.kv, tensors)

    def trial(self, model, layers, code=0):
        env = nk.env(XDG_CACHE_HOME=self.path("cache"))
        done = nk.run("split", model, "--layers", layers, "--out", self.out, env=env)
        self.assertEqual(done.returncode, code, done)
        left = self.path("cache/nakshatra/trial")
        self.assertEqual(os.listdir(left) if os.path.exists(left) else [], [])
        if code:
            self.assertEqual((done.stdout, done.stderr.count("\n"), self.files()), ("", 1, []), done.stderr)
        return done.stderr, os.path.exists(left)

    def test_trial__an_abort_of_llama_cpp_is_a_sentence_before_anything_is_written(self):
        said, _ = self.trial(self.odd(3, range(8)), "0-4,4-8", code=1)  # 4 heads that share 3
        for text in ("odd.gguf: layers 0-4 of this llama model cannot be a slice: llama.cpp ", " stops on it, as a trial shows: ", "GGML_ASSERT("):
            self.assertIn(text, said)

    def test_trial__names_the_slice_that_cannot_be_loaded_and_llama_cpps_first_error(self):
        model = self.odd(1, [5])
        said, _ = self.trial(model, "0-4,4-8", code=1)
        self.assertIn("layers 4-8 of this llama model cannot be a slice: in a trial, llama.cpp ", said)
        self.assertIn("tensor 'blk.1.attn_k.weight' has wrong shape", said)
        done = nk.run("worker", "--model", model, "--layers", "5-8", "--listen", "127.0.0.1:0", env=nk.env(XDG_CACHE_HOME=self.path("cache")))
        self.assertEqual(done.returncode, 1, done)
        self.assertIn("layers 5-8 of this llama model cannot be a slice: in a trial, ", done.stderr)
        done = nk.run("up", model, "--layers", "0-5,5-8", "-p", "x", env=nk.env(XDG_CACHE_HOME=self.path("cache")))
        self.assertEqual(done.returncode, 1, done)
        self.assertIn("layers 5-8 of this llama model cannot be a slice: in a trial, ", done.stderr)
        self.assertEqual([f for _, _, files in os.walk(self.path("cache")) for f in files if f.endswith(".gguf")], [])
        nk.out("split", model, "--layers", "0-4,4-8", "--no-trial", "--out", self.out)  # who wants to, may

    def test_trial__what_can_be_loaded_is_cut(self):
        said, tried = self.trial(self.odd(2, []), "0-4,4-8")
        self.assertEqual((said, tried, len(self.files())), ("", True, 4))

    def test_trial__what_was_compared_is_not_tried(self):
        self.assertEqual(self.trial(nk.KJV, "0-4,4-8"), ("", False))


class Streams(Case):
    def peak(self, *args):
        """Peak memory in bytes of a command that must succeed."""
        code = ("import os, sys, subprocess, resource; r = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL);"
                "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(r.returncode)")
        done = subprocess.run([sys.executable, "-c", code, nk.NAKSHATRA] + list(args), env=nk.env(), capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return int(done.stdout) * 1024

    @nk.sanitized()  # a sanitizer's own memory would be measured
    def test_streams__memory_stays_below_64_mib(self):
        for size in (50, 400):
            model = models.large(self.path("large.gguf"), size * MIB)
            self.assertLess(self.peak("split", model, "--into", "2", "--out", self.out), 64 * MIB)

    @nk.sanitized()  # a sanitizer's own memory would be measured
    def test_streams__also_with_the_largest_vocabularies(self):
        n = 262144
        big = {"tokenizer.ggml.tokens": (g.ARR, (g.STR, ["token number %d" % i for i in range(n)])),
               "tokenizer.ggml.scores": (g.ARR, (g.F32, [0.0] * n)), "tokenizer.ggml.token_type": (g.ARR, (g.I32, [1] * n)),
               "tokenizer.ggml.merges": (g.ARR, (g.STR, ["a merge of two %d" % i for i in range(2 * n)]))}
        model = models.small(self.path("m.gguf"), extra=big)
        self.assertLess(self.peak("split", model, "--layers", "0-2,2-4", "--out", self.out), 64 * MIB)
        have = g.read(os.path.join(self.out, "m.002-004.gguf"))
        whole = g.read(model)
        for key in big:
            self.assertEqual(have.kv[key], whole.kv[key])

    @nk.sanitized()
    def test_streams__a_bar_on_a_terminal_and_none_in_a_pipe(self):
        model = models.large(self.path("large.gguf"), 400 * MIB)
        pid, fd = pty.fork()
        if pid == 0:
            os.execve(nk.NAKSHATRA, [nk.NAKSHATRA, "split", model, "--into", "2", "--out", self.out], dict(nk.env(), TERM="xterm"))
        seen = b""
        while select.select([fd], [], [], nk.LONG_S)[0]:
            try:
                data = os.read(fd, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not data:
                break
            seen += data
        os.close(fd)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertRegex(seen.decode(), r"\rhashing \[#*\.*\] +\d+ % \S+ [KMG]?i?B/s \d+ s left")
        self.assertRegex(seen.decode(), r"\rsplitting \[")
        shutil.rmtree(self.out)
        done = nk.run("split", model, "--into", "2", "--out", self.out, env=nk.env(XDG_CACHE_HOME=self.path("cache")))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(len(done.stdout.splitlines()), 3)


class Hashes(Case):
    def test_hashes__are_remembered_until_the_file_changes(self):
        env = nk.env(XDG_CACHE_HOME=self.path("cache"))
        model = shutil.copy(nk.KJV, self.path("m.gguf"))
        def remembered():
            d = self.path("cache/nakshatra/hashes")
            return len(os.listdir(d)) if os.path.exists(d) else 0
        later = time.time() + 3600
        os.utime(model, (later, later))
        nk.out("split", model, "--into", "2", "--out", self.out, env=env)
        self.assertEqual(remembered(), 0)  # written to just now: it could still change unseen
        os.utime(model, (1e9, 1e9))
        nk.out("split", model, "--into", "2", "--out", self.out, env=env)
        self.assertEqual(remembered(), 1)
        folder = self.path("cache/nakshatra/hashes")
        entry = os.path.join(folder, os.listdir(folder)[0])
        with open(entry) as f:
            self.assertEqual(f.read(), nk.sha256(model))
        # What is remembered is believed as long as it looks like a hash.
        with open(entry, "w") as f:
            f.write("f" * 64)
        nk.out("split", model, "--into", "2", "--out", self.path("b"), env=env)
        with open(self.path("b/manifest.json")) as f:
            self.assertEqual(json.load(f)["model_sha256"], "f" * 64)
        for bad in ("", "f" * 63, "F" * 64, "f" * 65, "g" * 64):
            with open(entry, "w") as f:
                f.write(bad)
            nk.out("split", model, "--into", "2", "--out", self.path("b"), env=env)
            with open(self.path("b/manifest.json")) as f:
                self.assertEqual(json.load(f)["model_sha256"], nk.sha256(model))
        with open(entry, "w") as f:
            f.write("f" * 64)
        os.utime(model, (1e9, 1e9 + 1))
        nk.out("split", model, "--into", "2", "--out", self.path("b"), env=env)
        with open(self.path("b/manifest.json")) as f:
            self.assertEqual(json.load(f)["model_sha256"], nk.sha256(model))

    def test_hashes__need_no_home(self):
        e = {k: v for k, v in nk.env().items() if k not in ("HOME", "XDG_CACHE_HOME")}
        nk.out("split", nk.KJV, "--into", "2", "--out", self.out, env=e)


if __name__ == "__main__":
    unittest.main()

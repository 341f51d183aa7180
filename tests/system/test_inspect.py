"""nakshatra inspect: what it says of good files, and of bad ones."""
import json
import os
import shutil
import struct
import subprocess
import tempfile
import unittest

import ggufio
import models
import nk


def inspect(path):
    return json.loads(nk.out("inspect", path, "--json"))


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="nk-inspect-")
        self.addCleanup(shutil.rmtree, self.dir)

    def path(self, name):
        return os.path.join(self.dir, name)


class Good(Case):
    def test_inspect__agrees_with_the_file(self):
        g, i = ggufio.read(nk.KJV), inspect(nk.KJV)
        self.assertEqual((i["name"], i["architecture"], i["quantisation"]), ("kjv-tiny", "llama", "F16"))
        self.assertEqual([i[k] for k in ("n_layer", "n_embd", "n_head", "n_head_kv", "n_vocab", "n_ctx_train")],
                         [8, 128, 4, 2, 1024, 512])
        self.assertEqual(i["file_bytes"], os.path.getsize(nk.KJV))
        self.assertTrue(i["tied_embeddings"])
        for n, layer in enumerate(i["layers"]):
            want = sum(t.size for t in g.tensors.values() if t.name.startswith("blk.%d." % n))
            self.assertEqual(layer, {"bytes": want, "kv_bytes_per_token": (32 + 32) * 2 * 2, "state_bytes": 0})
        self.assertEqual(i["embd_bytes"], g.tensors["token_embd.weight"].size)
        self.assertEqual(sum(t["bytes"] for t in i["types"]), sum(t.size for t in g.tensors.values()))
        self.assertEqual(sum(t["tensors"] for t in i["types"]), len(g.tensors))
        self.assertEqual(i["cuts"], [{"at": n, "legal": True} for n in range(1, 8)])
        self.assertIsNone(i["slice"])

    def test_inspect__table_is_for_people(self):
        out = nk.out("inspect", nk.KJV)
        for text in ("kjv-tiny", "llama", "1024 tokens", "tied", "KV per token", "Legal cuts: before layers 1-7"):
            self.assertIn(text, out)

    def test_inspect__illegal_cuts_come_with_the_reason(self):
        # Sliding-window layers at 0-4, 6-10: a slice needs a full-attention layer (5 and 11) too.
        p = models.small(self.path("m.gguf"), "gemma3", 12, extra={"gemma3.attention.sliding_window": (ggufio.U32, 64)})
        i = inspect(p)
        self.assertEqual([c["at"] for c in i["cuts"] if c["legal"]], [6, 7, 8, 9, 10])
        self.assertIn("sliding-window", i["cuts"][0]["reason"])
        p = models.small(self.path("m.gguf"), "smollm3", 12)
        self.assertEqual([c["at"] for c in inspect(p)["cuts"] if c["legal"]], [4, 8])
        out = nk.out("inspect", p)
        self.assertIn("Legal cuts: before layers 4, 8", out)
        self.assertIn("Not before 1-3, 5-7, 9-11: ", out)

    def test_inspect__models_known_by_their_number_of_layers_cannot_be_cut(self):
        for arch, n in (("gemma2", 46), ("gemma3", 62), ("exaone4", 64), ("baichuan", 32)):
            cuts = inspect(models.small(self.path("m.gguf"), arch, n))["cuts"]
            self.assertFalse(any(c["legal"] for c in cuts), arch)
            self.assertIn("%d layers" % n, cuts[0]["reason"])

    def test_inspect__recurrent_layers_have_no_kv(self):
        p = models.small(self.path("m.gguf"), "jamba", 4, extra={"jamba.attention.head_count_kv": (ggufio.ARR, (ggufio.U32, [0, 2, 0, 2]))},
                         layer=lambda i: [("attn_k.weight", 32)] if i % 2 else [("ssm_a", 64)])
        self.assertEqual([x["kv_bytes_per_token"] for x in inspect(p)["layers"]], [0, 64, 0, 64])

    def test_inspect__layers_for_further_tokens_are_not_counted(self):
        p = models.small(self.path("m.gguf"), "glm4moe", 5, extra={"glm4moe.nextn_predict_layers": (ggufio.U32, 1)})
        i = inspect(p)
        self.assertEqual((i["n_layer"], len(i["layers"])), (4, 4))
        self.assertGreater(i["other_bytes"], 0)

    def test_inspect__shards_are_one_model(self):
        tool = [os.path.join(os.environ["NK_LLAMA_BIN"], "llama-gguf-split"), "--split", "--split-max-tensors", "20", nk.KJV,
                self.path("kjv")]
        if os.environ.get("NK_LLAMA_LOADER"):
            tool = [os.environ["NK_LLAMA_LOADER"], "--library-path", os.environ["NK_LLAMA_LIB"]] + tool
        subprocess.run(tool, check=True, capture_output=True)
        whole, n = inspect(nk.KJV), 4
        for k in range(1, n + 1):
            i = inspect(self.path("kjv-%05d-of-%05d.gguf" % (k, n)))
            self.assertEqual(i["shards"], n)
            for key in ("layers", "embd_bytes", "types", "n_vocab", "name", "cuts"):
                self.assertEqual(i[key], whole[key])
        os.rename(self.path("kjv-00003-of-00004.gguf"), self.path("elsewhere"))
        done = nk.run("inspect", self.path("kjv-00001-of-00004.gguf"))
        self.assertEqual(done.returncode, 2)
        self.assertIn("kjv-00003-of-00004.gguf: shard 3 of 4 is missing", done.stderr)
        # A shard under another's name, and one on its own.
        shutil.copy(self.path("kjv-00002-of-00004.gguf"), self.path("kjv-00003-of-00004.gguf"))
        self.assertIn("by its metadata 2 of 4", nk.run("inspect", self.path("kjv-00001-of-00004.gguf")).stderr)
        shutil.copy(self.path("kjv-00002-of-00004.gguf"), self.path("lone.gguf"))
        self.assertIn("shard 2 of 4", nk.run("inspect", self.path("lone.gguf")).stderr)


class Whole(Case):
    """Slices and vocabulary files are compared with their own digests; the model is not there any more."""

    def setUp(self):
        super().setUp()
        nk.out("split", nk.KJV, "--layers", "0-3,3-8", "--out", self.path("s"))
        self.slice, self.vocab = (os.path.join(self.path("s"), f"kjv-tiny.{x}.gguf") for x in ("003-008", "vocab"))

    def write(self, path, at, data):
        with open(path, "r+b") as f:
            f.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
            f.write(data)

    def refused(self, path, sentence, report):
        done = nk.run("inspect", path)
        self.assertEqual(done.returncode, 1, done)
        self.assertRegex(done.stderr, sentence)
        self.assertEqual(done.stderr.count("\n"), 1)
        self.assertRegex(done.stdout, r"(?m)^  whole +no$")
        done = nk.run("inspect", path, "--json")
        self.assertEqual(done.returncode, 1)
        found = json.loads(done.stdout)
        found = found.get("slice", found)
        self.assertEqual({k: found[k] for k in report}, report)

    def test_whole__a_slice_and_a_vocabulary_say_so(self):
        self.assertRegex(nk.out("inspect", self.slice), r"(?m)^  whole +yes: \d+ parts")
        self.assertEqual({k: inspect(self.slice)["slice"][k] for k in ("whole", "damaged")}, {"whole": True, "damaged": []})
        self.assertRegex(nk.out("inspect", self.vocab), r"(?m)^  whole +yes: 1 parts")
        self.assertEqual(inspect(self.vocab), {"path": self.vocab, "vocabulary": True, "whole": True})

    def test_whole__damage_is_named(self):
        s = ggufio.read(self.slice)
        t = s.tensors["blk.2.attn_v.weight"]  # of the slice; layer 5 of the model
        self.write(self.slice, s.data_offset + t.offset + 100, b"XX")
        self.refused(self.slice, r"kjv-tiny\.003-008\.gguf is damaged: 1 of its \d+ parts .*blk\.5\.attn_v\.weight",
                     {"whole": False, "damaged": ["blk.5.attn_v.weight"]})
        self.write(self.vocab, 3000, b"X")
        self.refused(self.vocab, "is damaged: 1 of its 1 parts .*header", {"whole": False})

    def test_whole__a_seal_that_was_cut_off_is_damage_too(self):
        os.truncate(self.slice, os.path.getsize(self.slice) - 1)
        self.refused(self.slice, "damaged.*cut off", {"whole": False, "damaged": []})

    def test_whole__a_vocabulary_that_is_not_whole_is_not_used(self):
        path = self.path("c.yaml")
        with open(path, "w") as f:
            f.write(nk.cluster_text("kjv", nk.sha256(nk.KJV), [("a", "127.0.0.1:1", "0-8")], vocab=self.vocab))
        self.write(self.vocab, 3000, b"X")
        done = nk.run("run", "--cluster", path, "--prompt", "In", "-n", "2")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, r"kjv-tiny\.vocab\.gguf is damaged")


class Bad(Case):
    def refused(self, path, *texts, code=(1, 2)):
        """Both commands refuse it in one line that names the file and says texts, and leave nothing behind."""
        out = self.path("out")
        for args in (["inspect", path], ["inspect", path, "--json"], ["split", path, "--layers", "0-2,2-4", "--out", out]):
            done = nk.run(*args)
            self.assertIn(done.returncode, code, done)
            self.assertEqual(done.stdout, "")
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            self.assertTrue(done.stderr.startswith("nakshatra: "), done.stderr)
            for text in (os.path.basename(path),) + texts:
                self.assertIn(text, done.stderr)
            self.assertFalse(os.path.exists(out) and os.listdir(out))

    def test_bad__no_file(self):
        self.refused(self.path("nope.gguf"), "No such file", code=(2,))
        self.refused(os.path.join(nk.KJV, "x"), "Not a directory", code=(2,))

    def test_bad__not_a_gguf(self):
        for name, data in (("empty", b""), ("three", b"GGU"), ("text", b"Once upon a time"), ("old", b"ggjt" + bytes(100))):
            with open(self.path(name), "wb") as f:
                f.write(data)
            self.refused(self.path(name), "not a GGUF", code=(2,))
        self.refused(self.dir, "a folder", code=(2,))
        os.mkfifo(self.path("pipe"))
        self.refused(self.path("pipe"), "a device or pipe", code=(2,))

    def test_bad__what_llama_cpp_would_not_survive(self):
        """Each of these ended `verify` by SIGABRT."""
        types = lambda v: {"tokenizer.ggml.token_type": (ggufio.ARR, (ggufio.I32, [v] * 64))}
        for change, *texts in (
                ({"tokenizer.ggml.tokens": (ggufio.ARR, (ggufio.STR, ["a"] * 64))}, "tokens 0 and 1 are the same"),
                ({"tokenizer.ggml.tokens": (ggufio.ARR, (ggufio.STR, ["%d" % (i % 63) for i in range(64)]))}, "tokens 0 and 63 are the same"),
                ({"tokenizer.ggml.model": (ggufio.STR, "bert"), **types(6)}, "token 0 stands for a byte", "bert"),
                ({"llama.attention.layer_norm_rms_epsilon": (ggufio.F32, float("nan"))}, "layer_norm_rms_epsilon is nan", "finite"),
                ({"llama.attention.layer_norm_epsilon": (ggufio.F32, -1.0)}, "layer_norm_epsilon is -1", "not negative"),
                ({"llama.expert_count": (ggufio.U32, 100000)}, "expert_count is 100000", "at most"),
                ({"llama.expert_count": (ggufio.U32, 8)}, "expert_used_count is 0 of 8", "1 to all"),
                ({"llama.expert_used_count": (ggufio.U32, 8)}, "expert_used_count is 8 of 0", "0 of none"),
                ({"llama.rope.scaling.type": (ggufio.STR, "x\x1b[2J")}, 'rope.scaling.type is "x^[[2J"', "yarn"),
                ({"llama.rope.freq_base": (ggufio.F32, float("inf"))}, "freq_base is inf")):
            with self.subTest(texts[0]):
                self.refused(models.small(self.path("m.gguf"), extra=change), *texts, code=(2,))
        # Empty tokens get names from llama.cpp, and a vocabulary that it does not read is nobody's business.
        same = (ggufio.ARR, (ggufio.STR, [""] * 64))
        nk.out("inspect", models.small(self.path("m.gguf"), extra={"tokenizer.ggml.tokens": same}))
        same = (ggufio.ARR, (ggufio.STR, ["a"] * 64))
        nk.out("inspect", models.small(self.path("m.gguf"), extra={"tokenizer.ggml.tokens": same, "tokenizer.ggml.model": (ggufio.STR, "no_vocab")}))

    def test_bad__truncated_anywhere(self):
        whole = models.small(self.path("m.gguf"))
        g, size = ggufio.read(whole), os.path.getsize(whole)
        with open(whole, "rb") as f:
            data = f.read()
        # In the counts, within a key, between keys, in a tensor's entry, in the padding, in each tensor's data.
        places = [4, 7, 8, 15, 23, 24, 30, g.data_offset - 1, g.data_offset, size - 33]
        places += [p for pair in g.places.values() for p in (pair[0], pair[1] - 1)]
        places += [t.place for t in g.tensors.values()] + [t.place + 12 for t in g.tensors.values()]
        places += [g.data_offset + t.offset + t.size // 2 for t in g.tensors.values()]
        for n in sorted(set(places)):
            with open(self.path("short.gguf"), "wb") as f:
                f.write(data[:n])
            done = nk.run("inspect", self.path("short.gguf"))
            self.assertEqual(done.returncode, 1, (n, done.stderr))
            self.assertRegex(done.stderr, r"the file ends|ends at byte|has \d+ bytes", n)
        self.refused(self.path("short.gguf"), "the tensor", "bytes")

    def test_bad__header_that_contradicts_itself(self):
        kv = {"general.architecture": (ggufio.STR, "llama")}
        tensor = ("blk.0.x", [32], 0, bytes(128))
        g = ggufio
        for name, text, kwargs in (
                ("version", "GGUF version 9", dict(version=9)), ("endian", "big-endian", dict(version=3 << 24)),
                ("keys", "18446744073709551615 metadata keys", dict(n_kv=-1)), ("tensors", "1099511627776 tensors", dict(n_tensors=1 << 40)),
                ("nested", "an array of arrays", dict(kv={"a": (g.ARR, (g.ARR, []))})),
                ("value", "value type 77", dict(kv={"a": (g.ARR, (77, []))})),
                ("alignment", "'general.alignment' is 48", dict(kv={"general.alignment": (g.U32, 48)})),
                ("alignment0", "'general.alignment' is 0", dict(kv={"general.alignment": (g.U32, 0)})),
                ("alignment64", "not of type u32", dict(kv={"general.alignment": (g.U64, 32)})),
                ("control", "control character", dict(kv={"a\x1b[2J": (g.U32, 1)})),
                ("twice", "the tensor 'blk.0.x' is there twice", dict(tensors=[tensor, tensor])),
                ("dims", "has 5 dimensions", dict(tensors=[("t", [2] * 5, 0, bytes(128))])),
                ("negative", "-4 elements", dict(tensors=[("t", [32, -4], 0, b"")])),
                ("zero", "0 elements", dict(tensors=[("t", [32, 0], 0, b"")])),
                ("shape", "impossible shape", dict(tensors=[("t", [1 << 40, 1 << 40], 0, b"")])),
                ("type", "data type 99", dict(tensors=[("t", [32], 99, bytes(128))])),
                ("removed", "data type 4", dict(tensors=[("t", [32], 4, bytes(128))])),
                ("block", "comes in blocks of 32", dict(tensors=[("t", [33], 8, bytes(128))])),
                ("name", "64 bytes", dict(tensors=[("t" * 64, [32], 0, bytes(128))]))):
            with self.subTest(name):
                tensors = kwargs.pop("tensors", [tensor])
                pairs = dict(kv, **kwargs.pop("kv", {}))
                if name.startswith("alignment"):  # the writer would follow it
                    path = ggufio.write(self.path(name), {"general.alignmenx": pairs["general.alignment"]}, [tensor])
                    with open(path, "r+b") as f:
                        data = f.read().replace(b"alignmenx", b"alignment")
                        f.seek(0)
                        f.write(data)
                else:
                    path = ggufio.write(self.path(name), pairs, tensors, **kwargs)
                self.refused(path, text)

    def test_bad__lengths_past_the_end_are_not_believed(self):
        # One number of the header after the other is made enormous; a hang or a huge allocation would fail here.
        whole = models.small(self.path("m.gguf"))
        g = ggufio.read(whole)
        with open(whole, "rb") as f:
            data = f.read()
        at = [8, 16, g.places["general.name"][0], g.places["general.name"][0] + 8 + 12 + 4,
              g.places["tokenizer.ggml.tokens"][0] + 8 + 21 + 8, g.places["tokenizer.ggml.tokens"][0] + 8 + 21 + 16]
        for p in at:
            for n in (1 << 24, 1 << 32, (1 << 63) - 1, (1 << 64) - 1):
                with open(self.path("long.gguf"), "wb") as f:
                    f.write(data[:p] + struct.pack("<Q", n) + data[p + 8:])
                done = nk.run("inspect", self.path("long.gguf"), timeout=10)
                self.assertIn(done.returncode, (1, 2), (p, n, done.stderr))

    def test_bad__tensor_outside_the_file(self):
        whole = models.small(self.path("m.gguf"))
        t = ggufio.read(whole).tensors["blk.1.ffn_up.weight"]
        with open(whole, "rb") as f:
            data = f.read()
        for n in (1, t.offset + 32, 1 << 50, (1 << 64) - 32):
            with open(whole, "wb") as f:
                f.write(data[:t.place] + struct.pack("<Q", n) + data[t.place + 8:])
            self.refused(whole, "blk.1.ffn_up.weight", "offset %d" % n)
        with open(whole, "wb") as f:  # the last tensor's shape
            f.write(data.replace(b"blk.3.ffn_up.weight" + struct.pack("<Iq", 1, 64), b"blk.3.ffn_up.weight" + struct.pack("<Iq", 1, 1 << 40)))
        self.refused(whole, "blk.3.ffn_up.weight", "ends at byte")

    def test_bad__not_a_model(self):
        g = ggufio
        for text, path in (
                ("no architecture", models.small(self.path("1.gguf"), remove=["general.architecture"])),
                ("no architecture", models.small(self.path("2.gguf"), extra={"general.architecture": (g.U32, 7)})),
                ("not a name", models.small(self.path("3.gguf"), extra={"general.architecture": (g.STR, "ll ama")})),
                ("llama.block_count", models.small(self.path("4.gguf"), remove=["llama.block_count"])),
                ("llama.block_count", models.small(self.path("5.gguf"), extra={"llama.block_count": (g.F32, 4.0)})),
                ("llama.block_count", models.small(self.path("6.gguf"), extra={"llama.block_count": (g.U32, 1 << 20)})),
                ("no tensor of layer 6", models.small(self.path("7.gguf"), extra={"llama.block_count": (g.U32, 7)})),
                ("past the last of 3 layers", models.small(self.path("8.gguf"), extra={"llama.block_count": (g.U32, 3)})),
                ("rows of 32", models.small(self.path("9.gguf"), extra={"llama.embedding_length": (g.U32, 64)})),
                ("a vocabulary file", ggufio.write(self.path("10.gguf"), {"general.architecture": (g.STR, "llama")}, []))):
            with self.subTest(text):
                self.refused(path, text, code=(2,))

    def test_bad__unknown_architecture(self):
        path = models.small(self.path("m.gguf"), "zephyr9")
        i = inspect(path)  # it is shown all the same
        self.assertEqual(i["architecture"], "zephyr9")
        self.assertFalse(any(c["legal"] for c in i["cuts"]))
        for how in (["--layers", "0-2,2-4"], ["--into", "2"]):
            done = nk.run("split", path, *how, "--out", self.path("out"))
            self.assertEqual(done.returncode, 1)
            self.assertIn("this llama.cpp does not know the architecture 'zephyr9'", done.stderr)
            self.assertFalse(os.path.exists(self.path("out")))


if __name__ == "__main__":
    unittest.main()

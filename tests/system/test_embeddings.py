"""Embeddings and ranks: models that pool, in one stage and in several, bit for bit as libllama gives them for the whole model;
the dialects that ask for them; what is refused."""
import base64
import concurrent.futures
import contextlib
import json
import math
import os
import struct
import subprocess
import tempfile
import unittest

import ggufio
import models
import nk
from gateway import Gateway
from test_llama_server import LlamaServer

POOLED = os.path.join(nk.BUILD, "tools", "pooled")
TEXTS = ["the king said let there be light", "darkness upon the face of the deep.", "god", "it was good " * 9]


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def normalised(v):
    """As llama.cpp does it: products and the factor in single precision, the sum in double."""
    total = 0.0
    for x in v:
        total += f32(x * x)
    scale = f32(1 / math.sqrt(total)) if total else 0.0
    return [f32(x * scale) for x in v]


def whole(model, ids, *pooling):
    done = subprocess.run([POOLED, model, *pooling], input=json.dumps(ids), capture_output=True, text=True, timeout=nk.LONG_S)
    assert done.returncode == 0, done.stderr
    return floats(json.loads(done.stdout))


def floats(vectors):
    return [[f32(x) for x in v] for v in vectors]


def decoder(path, pooling):
    """A decoder whose rows are pooled, as Qwen3-Embedding is one: the small model of the King James Bible."""
    m = ggufio.read(nk.KJV)
    m.kv["llama.pooling_type"] = (ggufio.U32, models.POOLINGS[pooling])
    return ggufio.write(path, m.kv, [(t.name, t.ne, t.type, m.data(t)) for t in m.tensors.values()])


class Served:
    """A model over stages with these layers, and the gateway before them."""

    def __init__(self, model, layers, *options):
        self.model = model
        self.stack = contextlib.ExitStack()
        try:
            self.chain = self.stack.enter_context(nk.Chain(model, layers, *options))
            self.gateway = self.stack.enter_context(Gateway(self.chain.file)).wait_ready()
        except BaseException:
            self.stack.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()

    def post(self, path, body, status=200):
        reply = self.gateway.post(path, body)
        assert reply.status == status, reply
        return reply.json

    def ids(self, text):
        return self.post("/tokenize", {"content": text, "add_special": True})["tokens"]

    def raw(self, texts):
        return floats(one["embedding"][0] for one in self.post("/embedding", {"content": texts, "embd_normalize": -1}))


class Exact(unittest.TestCase):
    """The vector that leaves the last stage is the whole model's, every bit of it."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def check(self, model, *splits, pooling=()):
        expected = None
        for layers in splits:
            with self.subTest(model=os.path.basename(model), layers=layers), Served(model, layers) as s:
                ids = [s.ids(t) for t in TEXTS]
                if expected is None:
                    expected = whole(model, ids, *pooling)
                    self.assertEqual(len({json.dumps(v) for v in expected}), len(TEXTS))
                self.assertEqual(s.raw(TEXTS), expected)
                self.assertEqual(s.raw(ids), expected)  # ids are taken as they are
                self.assertEqual(s.raw(TEXTS[1]), expected[1:2])  # whatever else is asked
                openai = s.post("/v1/embeddings", {"input": TEXTS})
                self.assertEqual(floats(d["embedding"] for d in openai["data"]), [normalised(v) for v in expected])
                self.assertEqual(openai["usage"], {"prompt_tokens": sum(map(len, ids)), "total_tokens": sum(map(len, ids))})

    def test_an_encoder_by_its_poolings(self):
        for pooling in "mean", "cls", "last":
            self.check(models.encoder(os.path.join(self.folder, pooling + ".gguf"), pooling), *(("0-4", "0-1,1-4") if pooling == "mean" else ("0-2,2-4",)))

    def test_an_encoder_with_rotary_positions(self):
        self.check(models.encoder(os.path.join(self.folder, "nomic.gguf"), "mean", arch="nomic-bert"), "0-4", "0-2,2-3,3-4")

    def test_a_decoder_that_pools(self):
        self.check(decoder(os.path.join(self.folder, "last.gguf"), "last"), "0-8", "0-4,4-8")

    def test_the_comparison_sees_another_pooling(self):
        model = models.encoder(os.path.join(self.folder, "mean.gguf"), "mean")
        ids = [[2, 5, 6, 3]]
        self.assertNotEqual(whole(model, ids), whole(model, ids, "cls"))


class Dialects(unittest.TestCase):
    """One embedding model of two stages, for all that is asked of it."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.model = models.encoder(os.path.join(cls.folder.name, "small.gguf"), "mean")
        cls.served = Served(cls.model, "0-2,2-4")
        cls.addClassCleanup(cls.served.__exit__)

    def refused(self, path, body, reason, *words):
        reply = self.served.gateway.post(path, body)
        self.assertEqual(reply.status, 400, reply)
        error = reply.json["error"]
        text = error if isinstance(error, str) else error["message"]
        if not isinstance(error, str):
            self.assertEqual(error["code"], reason, error)
        for word in words:
            self.assertIn(str(word), text)

    def test_openai(self):
        s = self.served
        reply = s.post("/v1/embeddings", {"model": "small.gguf", "input": TEXTS[:2], "encoding_format": "float", "dimensions": 64, "user": "me"})
        self.assertEqual((reply["object"], reply["model"]), ("list", "small.gguf"))
        self.assertEqual([(d["object"], d["index"]) for d in reply["data"]], [("embedding", 0), ("embedding", 1)])
        packed = s.post("/v1/embeddings", {"input": TEXTS[:2], "encoding_format": "base64"})
        for plain, coded in zip(reply["data"], packed["data"]):
            self.assertEqual([f32(x) for x in plain["embedding"]], list(struct.unpack("<64f", base64.b64decode(coded["embedding"], validate=True))))
            self.assertAlmostEqual(sum(x * x for x in plain["embedding"]), 1, places=5)

    def test_llama_server(self):
        raw = self.served.raw(TEXTS[:1])[0]
        with LlamaServer("--embedding", model=self.model) as theirs:
            for path in "/embedding", "/v1/embeddings":
                ours, other = self.served.post(path, {"input": TEXTS}), theirs.post(path, {"input": TEXTS})
                if path == "/v1/embeddings":
                    self.assertEqual(ours["usage"], other["usage"])
                    ours, other = ours["data"], other["data"]
                for a, b in zip(ours, other, strict=True):
                    self.assertEqual(a["index"], b["index"])
                    a, b = (x["embedding"][0] if path == "/embedding" else x["embedding"] for x in (a, b))
                    for x, y in zip(a, b, strict=True):  # llama-server runs the texts of a request together
                        self.assertAlmostEqual(x, y, places=5)
        for how, scale in ((0, 32760 / max(map(abs, raw))), (1, 1 / sum(map(abs, raw))), (3, 1 / sum(abs(x) ** 3 for x in raw) ** (1 / 3))):
            for path in "/embedding", "/embeddings":
                v = self.served.post(path, {"input": TEXTS[0], "embd_normalize": how})[0]["embedding"][0]
                for x, y in zip(v, raw):
                    self.assertAlmostEqual(x, y * scale, delta=1e-5 * abs(x) + 1e-12)

    def test_ollama(self):
        s, raw = self.served, self.served.raw(TEXTS[:1])[0]
        reply = s.post("/api/embed", {"model": "small.gguf", "input": TEXTS[:2], "keep_alive": "5m", "options": {"num_ctx": 64}})
        self.assertEqual([f32(x) for x in reply["embeddings"][0]], normalised(raw))
        self.assertEqual((len(reply["embeddings"]), reply["prompt_eval_count"]), (2, sum(len(s.ids(t)) for t in TEXTS[:2])))
        self.assertGreater(reply["total_duration"], 0)
        self.assertEqual(floats([s.post("/api/embeddings", {"prompt": TEXTS[0]})["embedding"]])[0], raw)
        self.assertEqual(s.post("/api/embed", {"model": "small.gguf"})["embeddings"], [])
        self.assertEqual(s.post("/api/embed", {"input": ""})["embeddings"], [])
        self.assertEqual(s.post("/api/embeddings", {"prompt": ""}), {"embedding": []})
        # Too long a text is cut off, as Ollama does, and its end stays.
        long = "god " * 300
        ids = s.ids(long)
        cut = s.post("/api/embed", {"input": long})
        self.assertEqual(cut["prompt_eval_count"], 128)
        self.assertEqual(floats(cut["embeddings"])[0], normalised(s.raw([ids[:127] + ids[-1:]])[0]))
        self.assertEqual(s.post("/api/embed", {"input": long, "options": {"num_ctx": 10}})["prompt_eval_count"], 10)
        self.refused("/api/embed", {"input": long, "truncate": False}, "context_length_exceeded", len(ids), 128)

    def test_what_it_is_is_told(self):
        s = self.served
        self.assertEqual(s.gateway.ask("GET", "/v1/models").json["data"][0]["capabilities"], ["embedding"])
        self.assertEqual(s.gateway.ask("GET", "/v1/models").json["data"][0]["context_length"], 128)
        shown = s.post("/api/show", {"model": "small.gguf"})
        self.assertEqual((shown["capabilities"], shown["model_info"]["bert.pooling"]), (["embedding"], "mean"))
        self.assertEqual(s.gateway.ask("GET", "/props").json["pooling"], "mean")
        self.assertEqual(s.gateway.ask("GET", "/readyz").status, 200)  # a text went through all stages
        done = nk.run("check", "--json", "--cluster", s.chain.file)
        self.assertEqual(done.returncode, 0, done)
        self.assertRegex(done.stdout, r'"pooling": *\{?[^}]*"?mean')
        for path, body in (("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}), ("/v1/completions", {"prompt": "x"}),
                           ("/completion", {"prompt": "x"}), ("/api/generate", {"prompt": "x"}), ("/v1/responses", {"input": "x"}),
                           ("/api/chat", {"messages": [{"role": "user", "content": "x"}]})):
            self.refused(path, body, "embedding_model", "embedding model", "generates no text", "/v1/embeddings")
        self.refused("/v1/rerank", {"query": "a", "documents": ["b"]}, "not_a_reranker", "an embedding model")

    def test_hostile_inputs(self):
        path = "/v1/embeddings"
        self.refused(path, {}, "missing_field", "input")
        self.refused(path, {"input": ""}, "bad_value", "input", "empty")
        self.refused(path, {"input": []}, "bad_value", "empty list")
        self.refused(path, {"input": ["a", ""]}, "bad_value", "input[1]", "empty")
        self.refused(path, {"input": [[]]}, "bad_value", "empty")
        self.refused(path, {"input": ["a"] * 10000}, "too_many", 10000, 2048)
        self.refused(path, {"input": {"text": "a"}}, "bad_value", "an object")
        self.refused(path, {"input": ["a", 3]}, "bad_value", "input[1]")
        self.refused(path, {"input": [3, "a"]}, "bad_value", "element 1")
        self.refused(path, {"input": "god " * 300}, "context_length_exceeded", 302, 128)
        self.refused(path, {"input": [5, 99999]}, "bad_value", 99999, "0 to")
        self.refused(path, {"input": [-1]}, "bad_value", "token id")
        self.refused(path, {"input": "a", "dimensions": 32}, "bad_value", "dimensions", 32, 64)
        self.refused(path, {"input": "a", "dimensions": 0}, "bad_value", "dimensions")
        self.refused(path, {"input": "a", "encoding_format": "hex"}, "bad_value", "base64")
        self.refused(path, {"input": "a", "truncate_prompt_tokens": 4}, "refused_field", "truncate_prompt_tokens")
        self.refused("/embedding", {"input": "a", "content": "b"}, "bad_value", "twice")
        self.assertEqual(self.served.gateway.post(path, {"input": "a", "input_type": "query"}).headers["x-nakshatra-ignored"], "input_type")
        self.assertEqual(len(self.served.post(path, {"input": ["god"] * 300})["data"]), 300)  # and it still serves

    def test_a_worker_refuses_what_its_model_does_not_compute(self):
        pb = nk.pb()
        with nk.Client(self.served.chain.workers[0].address) as client:
            self.assertIn("embedding", client.info().capabilities)
            for more in ({}, {"pooling": "cls"}, {"pooling": "mean", "model_sha256": "0" * 64}):
                with self.subTest(**more), self.assertRaises(Exception) as raised:
                    client.forward(pb.ForwardRequest(ids=[2, 5, 3], **more))
                self.assertIn("pooling_mismatch" if "model_sha256" not in more else "model_mismatch", nk.reason(raised.exception))
            reply = client.forward(pb.ForwardRequest(ids=[2, 5, 3], pooling="mean"))
            self.assertEqual((reply.rows.n_rows, reply.rows.width, reply.stage.layer_end), (3, 64, 2))

    def test_a_worker_that_comes_back_is_asked_again(self):
        """What was asked while it was away waits, and is computed when it is there."""
        with Served(self.model, "0-2,2-4") as s, concurrent.futures.ThreadPoolExecutor(1) as pool:
            before = s.raw(TEXTS)
            address = s.chain.workers[1].address
            s.chain.workers[1].kill()
            later = pool.submit(s.raw, TEXTS)
            s.chain.start(1, listen=address)
            self.assertEqual(later.result(nk.LONG_S), before)


class Ranks(unittest.TestCase):
    DOCUMENTS = ["god created the heaven", "the king sword", "", "light upon the deep. it was good"]

    def test_a_reranker(self):
        with tempfile.TemporaryDirectory() as folder:
            model = models.encoder(os.path.join(folder, "rank.gguf"), "rank")
            with Served(model, "0-3,3-4") as s:
                pair = {d: [2] + s.post("/tokenize", {"content": "who is god"})["tokens"] + [3] + s.post("/tokenize", {"content": d})["tokens"] for d in self.DOCUMENTS}
                scores = [v[0] for v in whole(model, [pair[d] for d in self.DOCUMENTS])]
                best = sorted(range(len(scores)), key=lambda i: -scores[i])
                body = {"model": "rank.gguf", "query": "who is god", "documents": self.DOCUMENTS}
                for path in "/v1/rerank", "/rerank", "/v1/reranking", "/reranking":
                    reply = s.post(path, body)
                    self.assertEqual([(r["index"], f32(r["relevance_score"])) for r in reply["results"]], [(i, scores[i]) for i in best])
                self.assertEqual((reply["object"], reply["model"], reply["usage"]["total_tokens"]), ("list", "rank.gguf", sum(map(len, pair.values()))))
                reply = s.post("/rerank", dict(body, documents=[{"text": d} for d in self.DOCUMENTS], top_n=2, return_documents=True))
                self.assertEqual([(r["index"], r["document"]["text"]) for r in reply["results"]], [(i, self.DOCUMENTS[i]) for i in best[:2]])
                with LlamaServer("--rerank", model=model) as theirs:
                    for ours, other in zip(s.post("/rerank", body)["results"], theirs.post("/v1/rerank", body)["results"]):
                        self.assertEqual((ours["index"], f32(ours["relevance_score"])), (other["index"], f32(other["relevance_score"])))
                tei = s.post("/rerank", {"query": "who is god", "texts": self.DOCUMENTS, "return_text": True})
                self.assertEqual([(r["index"], r["text"]) for r in tei], [(i, self.DOCUMENTS[i]) for i in best])
                for bad, word in (({"documents": ["a"]}, "query"), ({"query": "a"}, "documents"), ({"query": "a", "documents": []}, "empty"),
                                  ({"query": "a", "documents": "b"}, "a list"), ({"query": "a", "documents": [3]}, "documents[0]"),
                                  ({"query": "a", "documents": ["a"] * 2049}, "2049"), ({"query": "a", "documents": ["god " * 200]}, "128")):
                    self.assertIn(word, s.post("/v1/rerank", bad, status=400)["error"]["message"])
                self.assertIn("reranker", s.post("/v1/embeddings", {"input": "a"}, status=400)["error"]["message"])
                self.assertEqual(s.gateway.ask("GET", "/v1/models").json["data"][0]["capabilities"], ["rerank"])


class Refused(unittest.TestCase):
    def test_a_model_that_generates(self):
        with Served(nk.KJV, "0-4,4-8") as s:
            for path in "/v1/embeddings", "/embedding", "/embeddings":
                error = s.post(path, {"input": "a"}, status=400)["error"]
                self.assertIn("not embeddings", error["message"])
            self.assertIn("not embeddings", s.post("/api/embed", {"input": "a"}, status=400)["error"])
            self.assertIn("not embeddings", s.post("/api/embeddings", {"prompt": "a"}, status=400)["error"])
            error = s.post("/v1/rerank", {"query": "a", "documents": ["b"]}, status=400)["error"]
            self.assertEqual(error["code"], "not_a_reranker")
            self.assertIn("not a reranker", error["message"])

    def test_models_that_cannot_be_served(self):
        with tempfile.TemporaryDirectory() as folder:
            for name, change, words in (
                    ("none", {"bert.pooling_type": (ggufio.U32, 0)}, "does not say how its rows are pooled (bert.pooling_type)"),
                    ("seven", {"bert.pooling_type": (ggufio.U32, 7)}, "bert.pooling_type is 7; 0 (none) to 4 (rank)"),
                    ("headless", {"bert.pooling_type": (ggufio.U32, 4)}, "neither cls.weight nor cls.output.weight")):
                m = ggufio.read(models.encoder(os.path.join(folder, "m.gguf"), "mean"))
                path = ggufio.write(os.path.join(folder, name + ".gguf"), dict(m.kv, **change), [(t.name, t.ne, t.type, m.data(t)) for t in m.tensors.values()])
                done = nk.run("split", path, "--into", "1", "--out", os.path.join(folder, "out"))
                self.assertIn(done.returncode, (1, 2))
                self.assertIn(words, " ".join(done.stderr.split()))
            self.assertEqual(json.loads(nk.out("inspect", "--json", os.path.join(folder, "m.gguf")))["pooling"], "mean")
            for command in ("verify", os.path.join(folder, "m.gguf"), "--into", "2"), ("up", os.path.join(folder, "m.gguf"), "--prompt", "god"):
                done = nk.run(*command)
                self.assertEqual(done.returncode != 0, True)
                self.assertRegex(" ".join(done.stderr.split()), "verify compares logits|makes vectors of texts")
            model = models.encoder(os.path.join(folder, "jina.gguf"), "mean", arch="jina-bert-v2")
            done = nk.run("split", model, "--into", "2", "--out", os.path.join(folder, "out"))
            self.assertIn("only served whole", " ".join(done.stderr.split()))


if __name__ == "__main__":
    unittest.main()

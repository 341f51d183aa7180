"""The gateway beside llama.cpp's own llama-server: the same model, the same requests, the same answers.

What both have must be the same to the byte: greedy text, sampled text by a seed, token ids, rendered templates; log-
probabilities are compared as numbers."""
import contextlib
import glob
import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import unittest

import ggufio
import nk
from gateway import DATA, Gateway

MODEL = os.path.basename(nk.KJV)
PROMPT = "And it came to pass"
TEMPLATES = sorted(glob.glob(os.path.join(DATA, "templates", "*.jinja")))


class LlamaServer:
    def __init__(self, *options, model=nk.KJV):
        with contextlib.closing(socket.socket()) as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        command = [os.path.join(os.environ["NK_LLAMA_BIN"], "llama-server"), "-m", model, "--host", "127.0.0.1", "--port", str(self.port),
                   "--ctx-size", "512", "--parallel", "1", "--threads", "1", "--threads-batch", "1", "--cache-ram", "0", "--no-ui", "--jinja", *options]
        self.folder = tempfile.mkdtemp(prefix="nk-llama-server-")
        if os.environ.get("NK_LLAMA_LOADER"):
            lib = os.environ["NK_LLAMA_LIB"]
            command = [os.environ["NK_LLAMA_LOADER"], "--library-path", f"{lib}:{lib}/llama"] + command
            for backend in glob.glob(f"{lib}/ggml/backends0/libggml-cpu-*.so"):  # ggml looks for them in the working folder
                os.symlink(backend, os.path.join(self.folder, os.path.basename(backend)))
        self.log_file = tempfile.NamedTemporaryFile(prefix="nk-llama-server-")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log_file, stderr=self.log_file, cwd=self.folder, start_new_session=True)
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise

    def _wait(self):
        def ready():
            with contextlib.suppress(OSError):
                return self.process.poll() is not None or self.ask("GET", "/health")[0] == 200
        if nk.wait_for(ready) and self.process.poll() is None:
            return
        with open(self.log_file.name, errors="replace") as f:
            raise AssertionError("llama-server is not ready\n" + f.read()[-4000:])

    def ask(self, method, path, body=None):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=nk.LONG_S)
        try:
            c.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
            reply = c.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            c.close()

    def post(self, path, body):
        status, reply = self.ask("POST", path, body)
        if status != 200:
            raise AssertionError(f"llama-server: {status} {reply}")
        return reply

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log_file.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def setUpModule():
    global chain, gateway, server
    cleanup = contextlib.ExitStack()
    chain = cleanup.enter_context(nk.Chain(nk.KJV, "0-4,4-8"))
    gateway = cleanup.enter_context(Gateway(chain.file)).wait_ready()
    server = cleanup.enter_context(LlamaServer())
    unittest.addModuleCleanup(cleanup.close)


class Cache(unittest.TestCase):
    def test_every_kv_cache_gives_llama_servers_text(self):
        """The types and the attention are the model's own business: what differs from another whole model's is the same as from ours."""
        texts = set()
        for k, v, flash in ("q8_0", "q8_0", True), ("q4_0", "q4_0", True), ("bf16", "bf16", False), ("f16", "f16", False):
            types = ("--cache-type-k", k, "--cache-type-v", v)
            with self.subTest(k=k, v=v, flash=flash), contextlib.ExitStack() as cleanup:
                c = cleanup.enter_context(nk.Chain(nk.KJV, "0-3,3-8", *types, *([] if flash else ["--no-flash-attn"])))
                ours = cleanup.enter_context(Gateway(c.file)).wait_ready()
                theirs = cleanup.enter_context(LlamaServer(*types, "--flash-attn", "on" if flash else "off"))
                for base in ({"temperature": 0}, {"temperature": 1, "seed": 7}):
                    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 120, "cache_prompt": False, **base}
                    text = ours.post("/v1/completions", body).json["choices"][0]["text"]
                    self.assertEqual(text, theirs.post("/v1/completions", body)["choices"][0]["text"])
                    texts.add(text)
        self.assertGreater(len(texts), 2)  # at least the coarsest type says something else


class Fields(unittest.TestCase):
    def both(self, path="/v1/completions", **fields):
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 40, "cache_prompt": False, **fields}
        ours = gateway.post(path, body)
        self.assertEqual(ours.status, 200, (fields, ours))
        return ours.json["choices"][0], server.post(path, body)["choices"][0]

    def test_every_sampling_field_does_what_llama_server_does(self):
        plain = {}
        for base in ({"temperature": 0}, {"temperature": 1, "seed": 7}):
            ours, theirs = self.both(**base)
            self.assertEqual((ours["text"], ours["finish_reason"]), (theirs["text"], theirs["finish_reason"]), base)
            plain[base["temperature"]] = ours["text"]
        self.assertNotEqual(plain[0], plain[1])
        first = self.both(temperature=0, logprobs=1)[1]["logprobs"]["content"][0]["id"]
        for fields in ({"seed": 8}, {"temperature": 1.7}, {"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.4}, {"typical_p": 0.2},
                       {"repeat_penalty": 1.5}, {"repeat_penalty": 1.5, "repeat_last_n": 3}, {"presence_penalty": 1.5}, {"frequency_penalty": 1.5},
                       {"dry_multiplier": 3, "dry_allowed_length": 1, "dry_base": 2, "dry_penalty_last_n": 30},
                       {"top_n_sigma": 0.3}, {"xtc_probability": 0.6, "xtc_threshold": 0.05}, {"dynatemp_range": 0.7, "dynatemp_exponent": 1.5},
                       {"samplers": ["top_k", "min_p"], "top_k": 5, "temperature": 3}, {"samplers": []},
                       {"mirostat": 1, "mirostat_tau": 2, "mirostat_eta": 0.3}, {"mirostat": 2, "mirostat_tau": 2, "mirostat_eta": 0.3},
                       {"logit_bias": {str(first): -100}}, {"logit_bias": {str(first): 3}},
                       {"max_tokens": 7}, {"stop": ["the"]}):
            for base in ({"temperature": 0}, {"temperature": 1, "seed": 7}):
                # Greedy is of all tokens with us; llama-server lets these drop the most probable one first, or draws after all.
                if not base["temperature"] and fields.keys() & {"temperature", "typical_p", "xtc_probability", "dynatemp_range", "samplers"}:
                    continue
                with self.subTest(**{**base, **fields}):
                    ours, theirs = self.both(**{**base, **fields})
                    self.assertEqual((ours["text"], ours["finish_reason"]), (theirs["text"], theirs["finish_reason"]))
                    if base["temperature"]:  # some do nothing to greedy text, but all change sampled text
                        self.assertNotEqual(ours["text"], plain[1])

    def test_ignore_eos(self):
        ours, theirs = self.both(temperature=0, ignore_eos=True, max_tokens=300)
        self.assertEqual((ours["text"], ours["finish_reason"]), (theirs["text"], theirs["finish_reason"]))

    def test_log_probabilities(self):
        for fields in ({"temperature": 0}, {"temperature": 1, "seed": 7, "top_k": 5}):
            ours, theirs = self.both(logprobs=5, **fields)
            ours, theirs = ours["logprobs"], theirs["logprobs"]["content"]
            self.assertEqual(ours["tokens"], [t["token"] for t in theirs])
            for value, top, other in zip(ours["token_logprobs"], ours["top_logprobs"], theirs):
                self.assertAlmostEqual(value, other["logprob"], delta=1e-4)
                self.assertEqual(len(top), 5)
                expected = {t["token"]: t["logprob"] for t in other["top_logprobs"]}
                for token, logprob in top.items():  # the fifth and the sixth may be as good as each other
                    self.assertAlmostEqual(logprob, expected.get(token, min(expected.values())), delta=1e-4)

    def test_a_grammar(self):
        ours, theirs = self.both(temperature=0, grammar='root ::= [a-z]+ " of " [A-Z] [a-z]*')
        self.assertEqual(ours["text"], theirs["text"])

    def test_tokens(self):
        for text in ("And God said", "", " x", "a\n\n\u4e2d\u6587 \U0001f600\u00e9", "<s>And</s> it"):
            for more in ({}, {"add_special": True}, {"parse_special": False}, {"with_pieces": True}):
                body = {"content": text, **more}
                ours = gateway.post("/tokenize", body)
                self.assertEqual(ours.status, 200, ours)
                self.assertEqual(ours.json, server.post("/tokenize", body), body)
            ids = gateway.post("/tokenize", {"content": text}).json["tokens"]
            ours = gateway.post("/detokenize", {"tokens": ids}).json
            self.assertEqual(ours, server.post("/detokenize", {"tokens": ids}))
            self.assertEqual(ours["content"], " " + text if text.startswith("a") or text.startswith("A") or text.startswith(" ") else ours["content"])
        reply = gateway.post("/detokenize", {"tokens": [1 << 20]})
        self.assertEqual((reply.status, reply.json["error"]["param"]), (400, "tokens"))


TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The \"weather\" in a city, \u00b0C", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "add", "description": "a + b", "parameters": {"type": "object", "properties": {}}}}]
SYSTEM = {"role": "system", "content": "Be brief.\nSay \"no\"."}
USER = {"role": "user", "content": "  What is \u4e2d\u6587 \U0001f600 <b> & 'x' \\n?\n"}
ASSISTANT = {"role": "assistant", "content": "It is text."}


def calls(*arguments):
    return {"role": "assistant", "content": None, "tool_calls": [
        {"id": f"abcdefg{i:02}", "type": "function", "function": {"name": "get_weather", "arguments": json.dumps(a, ensure_ascii=False)}} for i, a in enumerate(arguments)]}


RESULT = {"role": "tool", "tool_call_id": "abcdefg00", "content": "{\"degrees\": 9}"}
CHATS = {
    "one": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "turns": {"messages": [SYSTEM, USER, ASSISTANT, {"role": "user", "content": "And then?"}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]},
    "thought": {"messages": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}, {"role": "user", "content": "Why?"}]},
    "tools": {"messages": [SYSTEM, USER], "tools": TOOLS},
    "call": {"messages": [USER, calls({"city": "K\u00f6ln", "days": 2, "more": [1.5, None, {"a": "<&>"}]}), RESULT], "tools": TOOLS},
}


class Completions(unittest.TestCase):
    """llama-server's own routes."""

    def test_completion(self):
        for more in ({"prompt": PROMPT}, {"prompt": [PROMPT, "In the beginning"]}, {"prompt": PROMPT, "n_probs": 3, "return_tokens": True},
                     {"prompt": [1, 2, 3, PROMPT, 7, " and"]}, {"prompt": [[1, 5, 6], "In the beginning", ["And it", 9]]},
                     {"prompt": PROMPT, "logit_bias": [[" the", -100], [" LORD", 3]]}, {"prompt": PROMPT, "logit_bias": {" the": -100}},
                     {"prompt": PROMPT, "n_predict": -1}, {"prompt": PROMPT, "stop": ["LORD"], "n_predict": 60}, {"prompt": PROMPT, "response_fields": ["content", "generation_settings/n_predict", "stop_type"]}):
            with self.subTest(more):
                body = {"n_predict": 12, "temperature": 0, "cache_prompt": False, **more}
                ours = gateway.post("/completion", body)
                self.assertEqual(ours.status, 200, ours)
                theirs, ours = server.post("/completion", body), ours.json
                if "response_fields" in body:
                    self.assertEqual(ours, theirs)
                    continue
                for a, b in zip(ours if isinstance(ours, list) else [ours], theirs if isinstance(theirs, list) else [theirs], strict=True):
                    for key in ("index", "content", "tokens", "stop", "tokens_predicted", "tokens_evaluated", "has_new_line", "truncated", "stop_type", "stopping_word"):
                        self.assertEqual(a[key], b[key], key)
                    self.assertEqual(set(b["timings"]) - set(a["timings"]), set())
                    self.assertEqual((a["timings"]["prompt_n"], a["timings"]["predicted_n"]), (b["timings"]["prompt_n"], b["timings"]["predicted_n"]))
                    for p, q in zip(a.get("completion_probabilities", []), b.get("completion_probabilities", []), strict=True):
                        self.assertEqual((p["id"], p["token"], p["bytes"]), (q["id"], q["token"], q["bytes"]))
                        self.assertEqual([t["id"] for t in p["top_logprobs"]], [t["id"] for t in q["top_logprobs"]])

    def test_what_was_asked_for_is_told_in_full(self):
        """Every member of llama-server's reply and of its generation_settings, with its value where it is no measured one."""
        measured = {"id_slot", "model", "timings", "dry_penalty_last_n"}
        for more in ({"stop": ["x"], "min_p": 0.1}, {"ignore_eos": True, "logit_bias": {" the": -1}}):
            body = {"prompt": PROMPT, "n_predict": 6, "temperature": 0, "seed": 3, "cache_prompt": False, **more}
            ours, theirs = gateway.post("/completion", body).json, server.post("/completion", body)
            self.assertEqual(set(theirs) - set(ours), set())
            self.assertEqual(set(theirs["generation_settings"]) - set(ours["generation_settings"]), set())
            for a, b in ((ours, theirs), (ours["generation_settings"], theirs["generation_settings"])):
                for key in set(b) - measured - {"generation_settings"}:
                    if isinstance(b[key], float):
                        self.assertAlmostEqual(a[key], b[key], 5, key)
                    else:
                        self.assertEqual(a[key], b[key], key)

    def test_a_server_of_ones_own_defaults_is_llama_servers(self):
        """Requests as they come, that say nothing of seed, temperature or length, and name a model that nobody has."""
        defaults = json.dumps({"seed": 42, "temperature": 0.9})
        with Gateway(chain.file, "--defaults", defaults, "--max-tokens", "16", "--any-model") as ours, LlamaServer("--seed", "42", "--temp", "0.9", "--n-predict", "16") as theirs:
            ours.wait_ready()
            for path, body in (("/completion", {"prompt": PROMPT, "cache_prompt": False}), ("/v1/completions", {"prompt": PROMPT, "model": "davinci-002", "max_tokens": 12, "cache_prompt": False})):
                a, (status, b) = ours.post(path, body), theirs.ask("POST", path, body)
                self.assertEqual((a.status, status), (200, 200), (a, b))
                text = lambda r: r.get("content", r.get("choices", [{}])[0].get("text"))
                self.assertEqual(text(a.json), text(b))
            params = ours.get("/props").json["default_generation_settings"]["params"]
            self.assertEqual((params["seed"], params["n_predict"]), (42, 16))
        for wrong, says in (("[]", "JSON object"), ('{"temprature": 1}', "temprature")):
            done = nk.run("serve", "--cluster", chain.file, "--listen", "127.0.0.1:0", "--defaults", wrong)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(says, done.stderr)

    def test_timings_per_token(self):
        for path in ("/completion", "/v1/completions"):
            body = {"prompt": PROMPT, "n_predict": 6, "temperature": 0, "cache_prompt": False, "stream": True, "timings_per_token": True}
            events = [json.loads(e) for e in gateway.post(path, body).events() if e != "[DONE]"]
            counts = [e["timings"]["predicted_n"] for e in events]
            self.assertEqual(counts, [1, 2, 3, 4, 5, 6, 6])
            self.assertEqual({e["timings"]["prompt_n"] for e in events}, {events[-1]["timings"]["prompt_n"]})

    def test_fill_in_the_middle(self):
        whole = ggufio.read(nk.KJV)
        for i, name in enumerate(("pre", "suf", "mid", "rep", "sep")):
            whole.kv[f"tokenizer.ggml.fim_{name}_token_id"] = (ggufio.U32, 300 + i)
        with tempfile.TemporaryDirectory() as folder:
            model = os.path.join(folder, "fim.gguf")
            ggufio.write(model, whole.kv, [(t.name, t.ne, t.type, whole.data(t)) for t in whole.tensors.values()])
            with nk.Chain(model, "0-3,3-8") as c, Gateway(c.file) as ours, LlamaServer("--batch-size", "128", model=model) as theirs:
                ours.wait_ready()
                for more in ({}, {"prompt": "the LORD"}, {"input_extra": [{"filename": "a", "text": "And God said"}, {"text": "Let there be"}]}):
                    body = {"input_prefix": "And it came to pass ", "input_suffix": " of Israel", "n_predict": 16, "temperature": 0, "cache_prompt": False, **more}
                    a, (status, b) = ours.post("/infill", body), theirs.ask("POST", "/infill", body)
                    self.assertEqual((a.status, status), (200, 200), (a, b))
                    self.assertEqual((a.json["content"], a.json["tokens_evaluated"]), (b["content"], b["tokens_evaluated"]), more)
                texts = [ours.post("/v1/completions", {"prompt": PROMPT, "suffix": " of Israel", "max_tokens": 8, "temperature": 0}).json["choices"][0]["text"],
                         ours.post("/api/generate", {"prompt": PROMPT, "suffix": " of Israel", "stream": False, "options": {"num_predict": 8, "temperature": 0, "repeat_penalty": 1}}).json["response"]]
                ids = [1, 300, *ours.post("/tokenize", {"content": PROMPT}).json["tokens"], 301, *ours.post("/tokenize", {"content": " of Israel"}).json["tokens"], 302]
                text = ours.post("/v1/completions", {"prompt": ids, "max_tokens": 8, "temperature": 0}).json["choices"][0]["text"]
                self.assertEqual(texts, [text, text])
        self.assertEqual(gateway.post("/infill", {"input_prefix": "a", "input_suffix": "b"}).json["error"]["code"], "no_fim")


class Stories(unittest.TestCase):
    """The model, the options and the kinds of requests of llama-server's own tests: requests that say neither seed nor temperature."""

    def test_the_same_answers(self):
        model = os.path.join(os.path.dirname(nk.HERE), "data", "stories260K-f32.gguf")
        text, long = "I believe the meaning of life is", "Write a joke about AI from a very long prompt which will not be truncated"
        talk = [{"role": "system", "content": "Book"}, {"role": "user", "content": "What is the best book"}]
        asked = (("/completion", {"prompt": text, "n_predict": 8}), ("/completion", {"prompt": long, "n_predict": 64, "return_tokens": True}),
                 ("/completion", {"prompt": text, "n_predict": 8, "response_fields": ["content", "generation_settings/n_predict", "prompt"]}),
                 ("/v1/completions", {"model": "davinci-002", "prompt": text, "max_tokens": 8}), ("/chat/completions", {"messages": talk, "max_tokens": 8}),
                 ("/chat/completions", {"messages": talk, "max_tokens": 6, "grammar": 'root ::= "a"{5,5}'}),
                 ("/chat/completions", {"messages": talk, "max_tokens": 10, "response_format": {"type": "json_schema", "json_schema": {"schema": {"const": "foooooo"}}}}))
        twice = [talk[1], {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]
        refused = (("/completion", {"prompt": text * 32}), ("/chat/completions", {"messages": twice}), ("/chat/completions", {"messages": talk * 100}), ("/chat/completions", {"messages": "string"}), ("/chat/completions", {"messages": [{}]}),
                   ("/chat/completions", {"messages": talk, "response_format": {"type": "sound"}}))
        options = ("--chat-template", "chatml", "--defaults", '{"seed": 42, "temperature": 0.8}', "--max-tokens", "64", "--any-model", "--verbose")
        with nk.Chain(model, "0-3,3-5", "--ctx", "512") as c, Gateway(c.file, *options) as ours, \
                LlamaServer("--chat-template", "chatml", "--seed", "42", "--temp", "0.8", "--n-predict", "64", "-lv", "10", model=model) as theirs:
            ours.wait_ready()
            for path, body in asked:
                with self.subTest(path, **body):
                    a, (status, b) = ours.post(path, body | {"cache_prompt": False}), theirs.ask("POST", path, body | {"cache_prompt": False})
                    self.assertEqual((a.status, status), (200, 200), (a, b))
                    a = a.json
                    if "response_fields" in body:
                        self.assertEqual(a, b)
                        continue
                    if {"grammar", "response_format"} & body.keys():  # it counts the token that ends a text, and its schemas allow a space
                        self.assertEqual(*(r["choices"][0]["message"]["content"].strip() for r in (a, b)))
                        continue
                    self.assertEqual((a["timings"]["prompt_n"], a["timings"]["predicted_n"]), (b["timings"]["prompt_n"], b["timings"]["predicted_n"]))
                    a, b = a.get("__verbose", a), b.get("__verbose", b)
                    for key in ("content", "tokens", "prompt", "stop_type", "tokens_evaluated", "tokens_predicted", "tokens_cached"):
                        self.assertEqual(a[key], b[key], key)
                    for key in ("seed", "n_predict"):
                        self.assertEqual(a["generation_settings"][key], b["generation_settings"][key], key)
            for path, body in refused:
                with self.subTest(path):
                    a, (status, b) = ours.post(path, body), theirs.ask("POST", path, body)
                    self.assertEqual((a.status, status), (400, 400), a)
                    self.assertIn("error", a.json)
                    if b["error"]["type"] == "exceed_context_size_error":
                        for key in ("type", "n_prompt_tokens", "n_ctx"):
                            self.assertEqual(a.json["error"][key], b["error"][key], key)


class Templates(unittest.TestCase):
    """Templates in the manner of the families in use, rendered by both."""

    def test_templates(self):
        self.assertGreaterEqual(len(TEMPLATES), 6)
        n_same = 0
        for path in TEMPLATES:
            name = os.path.basename(path)
            with Gateway(chain.file, "--chat-template", path) as ours, LlamaServer("--chat-template-file", path) as theirs:
                ours.wait_ready()
                for chat, body in CHATS.items():
                    with self.subTest(template=name, chat=chat):
                        a, b = ours.post("/apply-template", body), theirs.ask("POST", "/apply-template", body)
                        if chat in ("tools", "call") and name in ("gemma.jinja", "phi.jinja"):
                            # These know no tools. We explain them in words of our own, llama-server in other ones or not at all.
                            self.assertEqual((a.status, "get_weather" in a.json["prompt"]), (200, True), a)
                            continue
                        self.assertEqual((a.status, b[0]), (200, 200), (a, b))
                        text = a.json["prompt"]
                        # llama-server leaves out what its tokenizer adds.
                        self.assertEqual(text[3:] if text.startswith("<s>") else text, b[1]["prompt"])
                        n_same += 1
                        if "tools" not in body:
                            reply = ours.post("/v1/chat/completions", {**body, "model": MODEL, "max_tokens": 1})
                            self.assertEqual(reply.status, 200, reply)
                            plain = text[3:] if text.startswith("<s>") else text
                            ids = ours.post("/tokenize", {"content": plain, "add_special": True}).json["tokens"]
                            self.assertEqual(reply.json["usage"]["prompt_tokens"], len(ids))  # one BOS, not two
                            self.assertEqual(ids.count(1), 1)
        self.assertGreaterEqual(n_same, 6 * 5)


if __name__ == "__main__":
    unittest.main()

"""The gateway over real workers: both dialects, the raw wire, limits, cancelling, health, metrics."""
import contextlib
import gzip
import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import unittest

import ggufio
import nk
import talk
from gateway import Gateway, HERMES, certificate

MODEL = os.path.basename(nk.KJV)
HELLO = [{"role": "user", "content": "And God said"}]
# Bytes that this model has no whole tokens for: every character comes in several tokens.
ODD_TEXT = "line one\nline two \u00e9\u4e2d\u6587 \U0001f600\U0001f468\u200d\U0001f469 end"


def gbnf(text):
    """A grammar that only this text fits."""
    return "root ::= " + json.dumps(text, ensure_ascii=False)


def chat(**more):
    return {"model": MODEL, "messages": HELLO, "max_tokens": 8, **more}


def completion(**more):
    return {"model": MODEL, "prompt": "And it came to pass", "max_tokens": 8, **more}


class OverOneCluster(unittest.TestCase):
    """What one cluster of two workers and one gateway are enough for."""
    options = ("--chat-template", HERMES, "--name", "other-name", "--name", "tagged:latest")
    worker_options = ()

    @classmethod
    def setUpClass(cls):
        cls.chain = nk.Chain(nk.KJV, "0-4,4-8", *cls.worker_options)
        try:
            cls.gateway = Gateway(cls.chain.file, *cls.options).wait_ready()
        except BaseException:
            cls.chain.close(check=False)
            raise

    @classmethod
    def tearDownClass(cls):
        try:
            cls.chain.assert_idle()
            cls.gateway.stop()
        finally:
            cls.chain.close()

    def ok(self, reply):
        self.assertEqual(reply.status, 200, reply)
        return reply

    def refused(self, reply, status, code, param=None):
        self.assertEqual(reply.status, status, reply)
        error = reply.json["error"]
        self.assertEqual((error["code"], error["param"]), (code, param), reply)
        self.assertTrue(error["message"])
        self.assertTrue(error["type"])
        return error


@nk.sanitized("asan")
class Openai(OverOneCluster):
    def test_models(self):
        [model] = self.gateway.get("/v1/models").json["data"]
        self.assertEqual((model["id"], model["aliases"]), ("other-name", [MODEL, "other-name", "tagged:latest"]))
        for name in model["aliases"]:
            for spelling in (name, name.removesuffix(":latest"), name.removesuffix(":latest") + ":latest"):
                self.assertEqual(self.ok(self.gateway.get("/v1/models/" + spelling)).json["id"], spelling)
        self.refused(self.gateway.get("/v1/models/nobody"), 404, "model_not_found")
        error = self.refused(self.gateway.post("/v1/completions", completion(model="nobody")), 404, "model_not_found", "model")
        for name in model["aliases"]:
            self.assertIn(f'"{name}"', error["message"])
        body = completion(max_tokens=1)
        del body["model"]
        self.assertEqual(self.ok(self.gateway.post("/v1/completions", body)).json["model"], "other-name")

    def test_an_echo_is_the_prompt_as_it_was_sent(self):
        text = self.ok(self.gateway.post("/v1/completions", completion(temperature=0))).json["choices"][0]["text"]
        reply = self.ok(self.gateway.post("/v1/completions", completion(temperature=0, echo=True))).json
        self.assertEqual(reply["choices"][0]["text"], "And it came to pass" + text)

    def test_a_last_message_of_the_assistant_is_continued(self):
        messages = [*HELLO, {"role": "assistant", "content": "And it came"}]
        prompt = lambda **more: self.ok(self.gateway.post("/apply-template", {"messages": messages, **more})).json["prompt"]
        begun = self.ok(self.gateway.post("/apply-template", {"messages": HELLO})).json["prompt"]
        self.assertEqual(prompt(), begun + "And it came")
        self.assertTrue(prompt(continue_final_message=False).endswith("<|im_start|>assistant\n"))
        self.assertTrue(prompt(add_generation_prompt=False).rstrip().endswith("<|im_end|>"))
        fields = {"max_tokens": 8, "temperature": 0}
        text = self.ok(self.gateway.post("/v1/completions", completion(prompt=prompt(), **fields))).json["choices"][0]["text"]
        reply = self.ok(self.gateway.post("/v1/chat/completions", chat(messages=messages, **fields))).json
        self.assertEqual(reply["choices"][0]["message"]["content"], text)

    def test_paths_and_answers_of_llama_server(self):
        body = chat(max_tokens=4, temperature=0)
        reply = self.ok(self.gateway.post("/chat/completions", body)).json
        self.assertEqual(reply["choices"], self.gateway.post("/v1/chat/completions", body).json["choices"])
        self.assertEqual(self.gateway.get("/models").json, self.gateway.get("/v1/models").json)
        self.assertEqual(self.ok(self.gateway.get("/v1/health")).json, {"status": "ok"})
        self.assertEqual(self.gateway.get("/version").json, self.gateway.get("/api/version").json)
        props = self.ok(self.gateway.get("/props")).json
        self.assertIn("<|im_start|>", props["chat_template"])
        self.assertEqual(props["model_alias"], "other-name")
        settings = props["default_generation_settings"]
        self.assertEqual((settings["n_ctx"], settings["params"]["top_k"], round(settings["params"]["min_p"], 6)), (512, 40, 0.05))
        slots = self.ok(self.gateway.get("/slots")).json
        self.assertEqual(len(slots), props["total_slots"])
        self.assertEqual([(s["id"], s["n_ctx"], s["is_processing"]) for s in slots], [(i, 512, False) for i in range(len(slots))])

    def test_a_stream_tells_how_far_its_prompt_is(self):
        ids = list(range(300, 500))
        routes = (("/completion", {"prompt": ids}), ("/v1/completions", {"prompt": ids}), ("/v1/chat/completions", {"messages": HELLO * 8}))
        for path, body in routes:
            with self.subTest(path):
                body |= {"max_tokens": 2, "stream": True, "temperature": 0, "cache_salt": path}
                plain = self.ok(self.gateway.post(path, body | {"cache_prompt": False})).events()
                events = self.ok(self.gateway.post(path, body | {"return_progress": True})).events()
                told = [json.loads(e) for e in events if "prompt_progress" in e]
                told = [e["prompt_progress"] for e in told]
                n = told[-1]["total"]
                self.assertEqual([(t["total"], t["cache"]) for t in told], [(n, 0)] * len(told))
                done = [t["processed"] for t in told]
                self.assertEqual((done[0], done[-1]), (0, n))
                self.assertGreater(len(done), 2)  # not only its beginning and its end
                self.assertEqual({b - a for a, b in zip(done[:-1], done[1:-1])}, {done[1]})
                self.assertEqual(len(events) - len(told), len(plain))
                self.assertFalse([e for e in plain if "prompt_progress" in e])
                again = self.ok(self.gateway.post(path, body | {"return_progress": True})).events()
                first = json.loads([e for e in again if "prompt_progress" in e][0])["prompt_progress"]
                self.assertEqual(first["processed"], first["cache"])
                self.assertGreater(first["cache"], 0)

    def test_what_has_no_effect_is_named_in_a_header(self):
        body = chat(max_tokens=1, store=True, id_slot=-1, made_up=1)
        for more in ({}, {"stream": True}):
            reply = self.ok(self.gateway.post("/v1/chat/completions", {**body, **more}))
            self.assertEqual(reply.headers["x-nakshatra-ignored"], "store,made_up")
        self.assertNotIn("x-nakshatra-ignored", self.ok(self.gateway.post("/v1/chat/completions", chat(max_tokens=1))).headers)
        ollama = {"model": MODEL, "prompt": "x", "stream": False, "options": {"num_predict": 1, "num_gpu": 9, "num_ctx": 4096}}
        reply = self.ok(self.gateway.post("/api/generate", ollama))
        self.assertEqual(reply.headers["x-nakshatra-ignored"], "options.num_gpu,options.num_ctx")

    def test_completion_is_the_golden_text(self):
        golden = nk.golden("kjv-tiny")
        reply = self.ok(self.gateway.post("/v1/completions", completion(prompt=golden["prompt_text"], max_tokens=64 - 5, temperature=0, repeat_penalty=1)))
        text = golden["prompt_text"] + reply.json["choices"][0]["text"]
        self.assertTrue(golden["text"].startswith(text) or text.startswith(golden["text"]), (text, golden["text"]))
        by_ids = self.ok(self.gateway.post("/v1/completions", completion(prompt=golden["prompt"], max_tokens=64 - 5, temperature=0, repeat_penalty=1)))
        self.assertEqual(by_ids.json["choices"][0]["text"], reply.json["choices"][0]["text"])
        self.assertEqual(by_ids.json["usage"]["prompt_tokens"], len(golden["prompt"]))

    def test_shape_of_a_chat(self):
        reply = self.ok(self.gateway.post("/v1/chat/completions", chat())).json
        self.assertEqual(reply["object"], "chat.completion")
        self.assertTrue(reply["id"].startswith("chatcmpl-"))
        self.assertIn(self.chain.digest[:12], reply["system_fingerprint"])
        choice = reply["choices"][0]
        self.assertEqual((choice["index"], choice["finish_reason"], choice["message"]["role"]), (0, "length", "assistant"))
        self.assertEqual(reply["usage"]["completion_tokens"], 8)
        self.assertEqual(reply["usage"]["total_tokens"], reply["usage"]["prompt_tokens"] + 8)

    def test_streamed_text_is_the_whole_text_byte_for_byte(self):
        for text in (ODD_TEXT, "a", "<think>\nhm \u4e2d </thi\n</think>\n\n" + ODD_TEXT):
            whole = self.ok(self.gateway.post("/v1/chat/completions", chat(max_tokens=200, grammar=gbnf(text)))).json["choices"][0]
            chunks = self.ok(self.gateway.post("/v1/chat/completions", chat(max_tokens=200, grammar=gbnf(text), stream=True))).chunks()
            for field in ("content", "reasoning_content"):
                streamed = "".join(c["choices"][0]["delta"].get(field) or "" for c in chunks)
                self.assertEqual(streamed.encode(), (whole["message"].get(field) or "").encode())
            self.assertEqual(whole["message"]["content"], text.split("</think>\n\n")[-1])
            self.assertEqual(chunks[-1]["choices"][0]["finish_reason"], whole["finish_reason"])
            self.assertEqual(whole["finish_reason"], "stop")
            whole = self.ok(self.gateway.post("/v1/completions", completion(max_tokens=200, grammar=gbnf(text)))).json["choices"][0]["text"]
            chunks = self.ok(self.gateway.post("/v1/completions", completion(max_tokens=200, grammar=gbnf(text), stream=True))).chunks()
            self.assertEqual("".join(c["choices"][0]["text"] for c in chunks), whole)
            self.assertEqual(whole, text)
            for path, get in (("/api/chat", lambda f: f["message"]["content"]), ("/api/generate", lambda f: f["response"])):
                body = {"model": MODEL, "options": {"num_predict": 300, "seed": 5}, "format": {"enum": [text]}}
                body.update({"messages": HELLO} if "chat" in path else {"prompt": "And God said"})
                whole = self.ok(self.gateway.post(path, {**body, "stream": False})).json
                lines = self.ok(self.gateway.post(path, body)).lines()
                self.assertEqual("".join(map(get, lines)).encode(), get(whole).encode())
                self.assertEqual(json.loads(get(whole)), text)
                self.assertGreater(len(lines), 1)

    def test_usage_comes_last_when_asked_for(self):
        chunks = self.gateway.post("/v1/chat/completions", chat(stream=True, stream_options={"include_usage": True})).chunks()
        self.assertEqual(chunks[-1]["choices"], [])
        self.assertEqual(chunks[-1]["usage"]["completion_tokens"], 8)
        self.assertTrue(all(c["usage"] is None for c in chunks[:-1]))
        self.assertTrue(all("usage" not in c for c in self.gateway.post("/v1/chat/completions", chat(stream=True)).chunks()))

    def test_deterministic_is_refused_with_what_would_help(self):
        error = self.refused(self.gateway.post("/v1/completions", completion(deterministic=True)), 400, "not_deterministic")
        self.assertIn("--deterministic", error["message"])

    def test_many_prompts(self):
        reply = self.ok(self.gateway.post("/v1/completions", completion(prompt=["And it", "The LORD"], n=2, temperature=0))).json
        texts = [c["text"] for c in sorted(reply["choices"], key=lambda c: c["index"])]
        self.assertEqual(len(texts), 4)
        self.assertEqual((texts[0], texts[2]), (texts[1], texts[3]))
        self.assertEqual(reply["usage"]["completion_tokens"], 32)
        single = self.gateway.post("/v1/completions", completion(prompt="The LORD", temperature=0)).json
        self.assertEqual(single["choices"][0]["text"], texts[2])

    def test_stop_strings(self):
        text = self.gateway.post("/v1/completions", completion(temperature=0, max_tokens=40)).json["choices"][0]["text"]
        stop = text[11:15]
        reply = self.gateway.post("/v1/completions", completion(temperature=0, max_tokens=40, stop=["never there", stop])).json["choices"][0]
        self.assertEqual((reply["text"], reply["finish_reason"]), (text[:text.index(stop)], "stop"))

    def test_logit_bias_forces_and_bans(self):
        base = completion(temperature=0, max_tokens=3, logprobs=1)
        first = self.ok(self.gateway.post("/v1/completions", base)).json["choices"][0]
        id = self.ok(self.gateway.post("/tokenize", {"content": first["logprobs"]["tokens"][0], "parse_special": False})).json["tokens"][-1]
        banned = self.ok(self.gateway.post("/v1/completions", {**base, "logit_bias": {str(id): -100}})).json["choices"][0]
        self.assertNotIn(first["logprobs"]["tokens"][0], banned["logprobs"]["tokens"])
        other = 300 if id != 300 else 301
        forced = self.ok(self.gateway.post("/v1/completions", {**base, "logit_bias": {str(other): 100}})).json["choices"][0]
        self.assertEqual(forced["text"], self.gateway.post("/detokenize", {"tokens": [other] * 3}).json["content"])

    def test_logprobs(self):
        reply = self.ok(self.gateway.post("/v1/chat/completions", chat(logprobs=True, top_logprobs=3, temperature=0))).json["choices"][0]
        content = reply["logprobs"]["content"]
        self.assertEqual(len(content), 8)
        for entry in content:
            self.assertEqual(len(entry["top_logprobs"]), 3)
            self.assertAlmostEqual(entry["top_logprobs"][0]["logprob"], entry["logprob"], places=4)  # greedy
            self.assertLessEqual(entry["logprob"], 0)
        self.assertEqual(b"".join(bytes(e["bytes"]) for e in content).decode(), reply["message"]["content"])
        chunks = self.gateway.post("/v1/chat/completions", chat(logprobs=True, top_logprobs=3, temperature=0, stream=True)).chunks()
        streamed = [e for c in chunks if c["choices"][0]["logprobs"] for e in c["choices"][0]["logprobs"]["content"]]
        self.assertEqual([e["token"] for e in streamed], [e["token"] for e in content])
        plain = self.gateway.post("/v1/chat/completions", chat(logprobs=True)).json["choices"][0]["logprobs"]["content"]
        self.assertEqual(plain[0]["top_logprobs"], [])

    def test_json_object_and_schema(self):
        text = self.ok(self.gateway.post("/v1/chat/completions", chat(max_tokens=300, seed=1, response_format={"type": "json_object"}, temperature=1.2,
                                                                      logit_bias={}))).json["choices"][0]
        if text["finish_reason"] == "stop":
            self.assertIsInstance(json.loads(text["message"]["content"]), dict)
        schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 6}, "n": {"enum": [1, 2]}}, "required": ["name", "n"], "additionalProperties": False}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
        reply = self.ok(self.gateway.post("/v1/chat/completions", chat(max_tokens=200, response_format=form))).json["choices"][0]
        value = json.loads(reply["message"]["content"])
        self.assertEqual(set(value), {"name", "n"})
        self.assertIn(value["n"], (1, 2))
        ollama = self.ok(self.gateway.post("/api/chat", {"model": MODEL, "messages": HELLO, "format": schema, "stream": False})).json
        self.assertEqual(set(json.loads(ollama["message"]["content"])), {"name", "n"})
        self.refused(self.gateway.post("/v1/chat/completions", chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"contains": {}}}}}})),
                     400, "unsupported_schema", "response_format")
        self.refused(self.gateway.post("/v1/chat/completions", chat(grammar="root ::= (")), 400, "bad_grammar", "grammar")

    TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["C", "F"]}}, "required": ["city", "unit"]}}}]

    def test_tool_call_round_trip(self):
        for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
            reply = self.ok(self.gateway.post("/v1/chat/completions", chat(tools=self.TOOLS, tool_choice=choice, max_tokens=150, seed=3))).json["choices"][0]
            self.assertEqual(reply["finish_reason"], "tool_calls", reply)
            call = reply["message"]["tool_calls"][0]
            self.assertEqual((call["type"], call["function"]["name"]), ("function", "get_weather"))
            self.assertEqual(set(json.loads(call["function"]["arguments"])), {"city", "unit"})
            self.assertIsNone(reply["message"]["content"])
        chunks = self.ok(self.gateway.post("/v1/chat/completions", chat(tools=self.TOOLS, tool_choice="required", max_tokens=150, seed=3, stream=True))).chunks()
        deltas = [d for c in chunks for d in c["choices"][0]["delta"].get("tool_calls", [])]
        self.assertEqual(deltas[0]["function"]["name"], "get_weather")
        self.assertGreater(len(deltas), 3)
        self.assertEqual(set(json.loads("".join(d["function"]["arguments"] for d in deltas))), {"city", "unit"})
        self.assertEqual(chunks[-1]["choices"][0]["finish_reason"], "tool_calls")
        again = chat(tools=self.TOOLS, messages=HELLO + [reply["message"], {"role": "tool", "tool_call_id": call["id"], "content": "9 degrees"}])
        self.ok(self.gateway.post("/v1/chat/completions", again))
        ollama = self.ok(self.gateway.post("/api/chat", {"model": MODEL, "messages": HELLO, "tools": self.TOOLS, "options": {"num_predict": 5}})).lines()
        self.assertTrue(ollama[-1]["done"])

    def test_thinking_can_be_turned_off_where_the_template_can(self):
        on = self.gateway.post("/v1/chat/completions", chat()).json["usage"]["prompt_tokens"]
        off = self.gateway.post("/v1/chat/completions", chat(reasoning_effort="none")).json["usage"]["prompt_tokens"]
        kwargs = self.gateway.post("/v1/chat/completions", chat(chat_template_kwargs={"enable_thinking": False})).json["usage"]["prompt_tokens"]
        ollama = self.gateway.post("/api/chat", {"model": MODEL, "messages": HELLO, "think": False, "stream": False, "options": {"num_predict": 1}}).json
        self.assertGreater(off, on)
        self.assertEqual((off, off), (kwargs, ollama["prompt_eval_count"]))
        lines = self.gateway.post("/api/chat", {"model": MODEL, "messages": HELLO, "think": True, "options": {"num_predict": 3}}).lines()
        self.assertTrue(lines[-1]["done"])

    def test_bos_is_not_doubled(self):
        plain = self.gateway.post("/v1/completions", completion(prompt="And God", temperature=0)).json
        marked = self.gateway.post("/v1/completions", completion(prompt="<s>And God", temperature=0)).json
        self.assertEqual(marked["usage"]["prompt_tokens"], plain["usage"]["prompt_tokens"])

    def test_too_long_prompts_are_named(self):
        error = self.refused(self.gateway.post("/v1/completions", completion(prompt="And God said " * 400)), 400, "context_length_exceeded", "prompt")
        self.assertIn("512", error["message"])
        self.refused(self.gateway.post("/v1/chat/completions", chat(messages=[{"role": "user", "content": "word " * 900}])), 400, "context_length_exceeded", "messages")

    def test_reply_ends_with_the_context(self):
        reply = self.ok(self.gateway.post("/v1/completions", completion(max_tokens=100000, ignore_eos=True))).json
        self.assertEqual(reply["choices"][0]["finish_reason"], "length")
        self.assertEqual(reply["usage"]["total_tokens"], 512)

    def test_user_goes_to_the_log(self):
        with Gateway(self.chain.file, env_more={"NK_LOG": "info"}) as gateway:
            gateway.wait_ready()
            self.ok(gateway.post("/v1/completions", completion(user="somebody \"quoted\"\n", max_tokens=1)))
            self.assertTrue(nk.wait_for(lambda: 'user="somebody \\"quoted\\"' in gateway.log(), 5), gateway.log()[-2000:])

    def test_routes_of_others_are_refused_with_a_sentence(self):
        for method, path in (("POST", "/v1/moderations"), ("POST", "/v1/audio/speech"), ("POST", "/v1/files")):
            reply = self.gateway.ask(method, path, {} if method == "POST" else None)
            error = self.refused(reply, 400, "not_implemented")
            self.assertIn("not served here", error["message"])
        for method, path in (("POST", "/api/embed"), ("POST", "/api/pull"), ("DELETE", "/api/delete")):
            reply = self.gateway.ask(method, path, {})
            self.assertEqual((reply.status, type(reply.json["error"])), (400, str), reply)

    def test_what_the_template_refuses_is_an_error(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jinja") as f:
            f.write("{{ 1 % n if n }}{% for m in messages %}{% if m.role == 'assistant' and loop.first %}{{ raise_exception('the user begins') }}{% endif %}{{ m.content }}{% endfor %}")
            f.flush()
            with Gateway(self.chain.file, "--chat-template", f.name) as gateway:
                gateway.wait_ready()
                self.ok(gateway.post("/v1/chat/completions", chat(max_tokens=1)))
                wrong = [{"role": "assistant", "content": "I begin"}]
                for stream in (False, True):
                    error = self.refused(gateway.post("/v1/chat/completions", chat(messages=wrong, stream=stream)), 400, "template_failed", "messages")
                    self.assertIn("the user begins", error["message"])
                reply = gateway.post("/api/chat", {"model": MODEL, "messages": wrong})
                self.assertEqual(reply.status, 400)
                self.assertIn("the user begins", reply.json["error"])
                # What would end the process that renders, and what would replace what is rendered.
                self.refused(gateway.post("/v1/chat/completions", chat(chat_template_kwargs={"n": 0.5})), 400, "template_failed", "messages")
                for name in ("messages", "tools", "range", "namespace", "add_generation_prompt", "tojson"):
                    error = self.refused(gateway.post("/apply-template", {"messages": HELLO, "chat_template_kwargs": {name: []}}), 400,
                                         "bad_value", "chat_template_kwargs")
                    self.assertIn(name, error["message"])
                self.ok(gateway.post("/v1/chat/completions", chat(max_tokens=1, chat_template_kwargs={"n": 4})))

    def test_a_broken_template_of_the_models_own_fails_chats_only(self):
        with tempfile.TemporaryDirectory() as folder:
            whole = ggufio.read(nk.KJV)
            whole.kv["tokenizer.chat_template"] = (ggufio.STR, "{% for m in messages %}{{ m.content }")
            model = os.path.join(folder, "broken.gguf")
            ggufio.write(model, whole.kv, [(t.name, t.ne, t.type, whole.data(t)) for t in whole.tensors.values()])
            with nk.Chain(model, "0-8") as chain, Gateway(chain.file) as gateway:
                gateway.wait_ready()
                name = {"model": "broken.gguf"}
                self.ok(gateway.post("/v1/completions", {**completion(), **name}))
                error = self.refused(gateway.post("/v1/chat/completions", {**chat(), **name}), 400, "bad_template")
                self.assertIn("--chat-template", error["message"])
                self.assertEqual(gateway.post("/api/chat", {"messages": HELLO, **name}).status, 400)

    def test_a_schema_whose_work_multiplies_is_refused(self):
        """allOf joins a chain of 40 definitions, each of which names the next one twice (2^40 joins for 3 KB): each is looked at once. A
        list of types that is gone through for each value of another list is refused."""
        defs = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
        schema = {"$defs": {**defs, "a40": {"type": "object", "properties": {"a": {"type": "string"}}}}, "$ref": "#/$defs/a0"}
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        self.ok(self.gateway.post("/v1/chat/completions", chat(response_format=wanted, max_tokens=1)))
        wanted["json_schema"]["schema"] = {"type": ["null"] * 8000, "enum": list(range(8000))}
        error = self.refused(self.gateway.post("/v1/chat/completions", chat(response_format=wanted)), 400, "too_much_work", "response_format")
        self.assertIn("JSON schema", error["message"])

    def test_text_that_the_vocabulary_lacks(self):
        """In parts, as in one: the tokens of libllama, whose own work grows with the square of such a text."""
        text = "\u4e2d" * 20000 + " and the LORD said" * 500 + "\u4e2d </s>" * 3000
        reply = self.ok(self.gateway.post("/tokenize", {"content": text, "parse_special": True})).json
        back = self.ok(self.gateway.post("/detokenize", {"tokens": reply["tokens"]})).json["content"]
        self.assertEqual(back.replace(" ", ""), text.replace(" ", ""))
        error = self.refused(self.gateway.post("/v1/completions", completion(prompt="\u4e2d" * 1000000)), 400, "context_length_exceeded", "prompt")
        self.assertIn("3000000 bytes", error["message"])

    def test_bad_requests(self):
        post = lambda body, **more: self.gateway.post("/v1/chat/completions", body, **more)
        self.refused(post(b"{"), 400, "bad_json")
        self.refused(post(b'{"model": "\xff"}'), 400, "bad_json")
        self.refused(post(b""), 400, "bad_json")
        self.refused(post(chat(temprature=1)), 400, "unknown_field", "temprature")
        self.refused(post(chat(messages=[{"role": "user", "content": 5}])), 400, "bad_value", "messages[0].content")
        self.refused(post(chat(logit_bias={"99999": 1})), 400, "bad_value", "logit_bias")
        self.refused(post(chat(), type="text/plain"), 415, "unsupported_media_type")
        for type in (None, "application/x-www-form-urlencoded"):  # curl -d; a page of a browser sends its Origin
            self.ok(post(chat(max_tokens=1), type=type))
            self.refused(post(chat(), type=type, headers={"Origin": "http://localhost"}), 415, "unsupported_media_type")
        self.refused(self.gateway.post("/v1/nothing", chat()), 404, "unknown_route")
        reply = self.gateway.get("/v1/chat/completions")
        self.refused(reply, 405, "method_not_allowed")
        self.assertEqual(reply.headers["allow"], "POST, OPTIONS")
        self.refused(self.gateway.ask("BREW", "/v1/models"), 405, "method_not_allowed")


@nk.sanitized("asan")
class PromptProbabilities(unittest.TestCase):
    """Log-probabilities of a prompt that is given: what evaluation harnesses ask for."""
    TEXT = "And it came to pass, that when the LORD heard the voice of the children, he said unto Moses, Go, speak unto them." * 5

    def of_whole_model(self):
        done = subprocess.run([os.path.join(nk.BUILD, "tools", "whole"), nk.KJV, "--prompt", self.TEXT, "-n", "2", "--temp", "0", "--logprobs", "2",
                               "--prompt-logprobs", "2"], capture_output=True, text=True, timeout=nk.LONG_S, env=nk.env(), check=True)
        return json.loads(done.stdout)

    def same(self, ours, whole):
        """Bit for bit: both were float32."""
        exactly = [struct.unpack("f", struct.pack("f", p["logprob"]))[0] for p in whole]
        self.assertEqual(ours["token_logprobs"], exactly)
        self.assertEqual([t.encode() for t in ours["tokens"]], [bytes(p["bytes"]) for p in whole])
        for top, p in zip(ours["top_logprobs"], whole, strict=True):
            self.assertEqual([t.encode() for t in top], [bytes(q["bytes"]) for q in p["top"]])

    def test_they_are_the_whole_models_to_the_bit(self):
        whole = self.of_whole_model()
        body = {"prompt": self.TEXT, "echo": True, "logprobs": 2, "max_tokens": 0, "temperature": 0}
        self.assertGreater(whole["n_prompt"], 128)  # more than one chunk
        for cut in ("0-8", "0-3,3-8"):
            with self.subTest(cut), nk.Chain(nk.KJV, cut, "--deterministic") as chain, Gateway(chain.file) as gateway:
                gateway.wait_ready()
                for more in ({}, {"max_tokens": 2}, {"max_tokens": 2, "stream": True}):
                    reply = gateway.post("/v1/completions", body | more)
                    self.assertEqual(reply.status, 200, reply)
                    if "stream" in more:
                        choices = [c["choices"][0] for c in reply.chunks()]
                        text = "".join(c["text"] for c in choices)
                        ours = {k: [x for c in choices if c["logprobs"] for x in c["logprobs"][k]] for k in choices[0]["logprobs"]}
                    else:
                        choice = reply.json["choices"][0]
                        text, ours = choice["text"], choice["logprobs"]
                        self.assertEqual(choice["finish_reason"], "length")
                        self.assertEqual(reply.json["usage"]["completion_tokens"], len(whole["ids"]) if more else 0)
                        self.assertEqual(reply.json["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
                    self.assertEqual(text, self.TEXT + (whole["text"] if more else ""))
                    self.assertEqual({k: v.pop(0) for k, v in ours.items()},
                                     {"tokens": "<s>", "token_logprobs": None, "top_logprobs": None, "text_offset": 0})
                    self.same(ours, whole["prompt_logprobs"] + (whole["logprobs"] if more else []))
                    for offset, token in zip(ours["text_offset"][1:], ours["tokens"][1:]):
                        self.assertEqual(text[offset:offset + len(token)], token)
                chain.assert_idle()

    def test_many_prompts_as_ids(self):
        with nk.Chain(nk.KJV, "0-4,4-8") as chain, Gateway(chain.file) as gateway:
            gateway.wait_ready()
            prompts = [[1], [1, 300], list(range(1, 200)), [1, 300, 301]]
            reply = gateway.post("/v1/completions", {"prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1})
            self.assertEqual(reply.status, 200, reply)
            for prompt, choice in zip(prompts, reply.json["choices"], strict=True):
                told = choice["logprobs"]["token_logprobs"]
                self.assertIsNone(told[0])
                self.assertEqual([p is not None and p < 0 for p in told[1:]], [True] * len(prompt))
                self.assertEqual(len(choice["logprobs"]["top_logprobs"]), len(prompt) + 1)
            # The same ids ask for the same, whatever was computed before; and nothing else of a reply changes.
            plain = gateway.post("/v1/completions", {"prompt": prompts[2], "max_tokens": 4, "temperature": 0, "logprobs": 1}).json["choices"][0]
            echoed = gateway.post("/v1/completions", {"prompt": prompts[2], "max_tokens": 4, "temperature": 0, "logprobs": 1, "echo": True}).json["choices"][0]
            self.assertTrue(echoed["text"].endswith(plain["text"]))
            nothing = gateway.post("/v1/completions", {"prompt": prompts[2], "max_tokens": 0}).json
            self.assertEqual((nothing["choices"][0]["text"], nothing["usage"]["completion_tokens"]), ("", 0))
            chain.assert_idle()


@nk.sanitized("asan")
class Ollama(OverOneCluster):
    def test_fields_without_a_value_as_ollamas_own_client_sends_them(self):
        """Its requests are Go structs: what has no value comes as "" or {}."""
        show = {"model": MODEL, "system": "", "template": "", "verbose": False, "options": None, "name": ""}
        self.assertEqual(self.ok(self.gateway.post("/api/show", show)).json["details"]["family"], "llama")
        self.ok(self.gateway.post("/api/show", {**show, "options": {}}))
        generate = {"model": MODEL, "prompt": "And God said", "suffix": "", "system": "", "template": "", "options": {"num_predict": 2}}
        self.assertEqual(self.ok(self.gateway.post("/api/generate", generate)).lines()[-1]["eval_count"], 2)
        self.assertEqual(self.ok(self.gateway.post("/api/generate", {**generate, "prompt": "", "options": None})).json["done_reason"], "load")
        for field in ("suffix", "template"):
            self.assertIn(field, self.gateway.post("/api/generate", {**generate, field: "x"}).json["error"])
        self.assertIn("system", self.gateway.post("/api/show", {**show, "system": "x"}).json["error"])

    def test_what_open_webui_asks(self):
        """The routes that it uses: version, models, what is loaded, a chat with its options, both dialects streamed."""
        for path in ("/api/version", "/api/tags", "/api/ps", "/v1/models"):
            self.ok(self.gateway.get(path))
        name = self.gateway.get("/api/tags").json["models"][0]["model"]
        lines = self.ok(self.gateway.post("/api/chat", {"model": name, "messages": HELLO, "options": {"num_predict": 4, "temperature": 0.7}, "stream": True})).lines()
        self.assertTrue(lines[-1]["done"])
        name = self.gateway.get("/v1/models").json["data"][0]["id"]
        chunks = self.ok(self.gateway.post("/v1/chat/completions", {"model": name, "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 4})).chunks()
        self.assertEqual(chunks[-1]["usage"]["completion_tokens"], 4)

    def test_generate(self):
        body = {"model": MODEL + ":latest", "prompt": "And God said", "options": {"num_predict": 6, "temperature": 0}}
        lines = self.ok(self.gateway.post("/api/generate", body, type="application/x-www-form-urlencoded")).lines()
        last = lines[-1]
        self.assertTrue(last["done"])
        self.assertEqual((last["done_reason"], last["eval_count"]), ("length", 6))
        self.assertGreater(last["prompt_eval_duration"], 0)
        self.assertGreater(last["eval_duration"], 0)
        self.assertGreaterEqual(last["total_duration"], last["prompt_eval_duration"] + last["eval_duration"] - 1000)
        whole = self.ok(self.gateway.post("/api/generate", {**body, "stream": False})).json
        self.assertEqual("".join(x["response"] for x in lines), whole["response"])
        # context: what was said before goes on without a second BOS.
        self.assertEqual(len(whole["context"]), whole["prompt_eval_count"] + 6)
        more = self.ok(self.gateway.post("/api/generate", {**body, "context": whole["context"], "stream": False})).json
        self.assertEqual(more["prompt_eval_count"], 2 * whole["prompt_eval_count"] + 6 - 1)

    def test_raw(self):
        raw = self.ok(self.gateway.post("/api/generate", {"model": MODEL, "prompt": "And it came to pass", "raw": True, "stream": False, "options": {"num_predict": 8, "temperature": 0, "repeat_penalty": 1}})).json
        plain = self.gateway.post("/v1/completions", completion(temperature=0)).json
        self.assertEqual(raw["response"], plain["choices"][0]["text"])
        self.assertNotIn("context", raw)

    def test_load_and_keep_alive(self):
        reply = self.ok(self.gateway.post("/api/generate", {"model": MODEL})).json
        self.assertEqual((reply["done"], reply["done_reason"], reply["response"]), (True, "load", ""))
        self.assertEqual(self.gateway.post("/api/chat", {"model": MODEL, "messages": [], "keep_alive": 0}).json["done_reason"], "unload")
        for keep, reused in ((0, 0), ("5m", 1)):
            body = {"model": MODEL, "prompt": "The children of Israel went out of the land " + str(keep), "raw": True, "stream": False, "keep_alive": keep, "options": {"num_predict": 2}}
            before = self.gateway.metric("nakshatra_prompt_tokens_reused_total")
            self.ok(self.gateway.post("/api/generate", body))
            self.ok(self.gateway.post("/api/generate", body))
            self.assertEqual(self.gateway.metric("nakshatra_prompt_tokens_reused_total") > before, bool(reused))

    def test_list_show_ps_version(self):
        tags = self.ok(self.gateway.get("/api/tags")).json["models"]
        self.assertEqual([t["name"] for t in tags], ["other-name:latest"])
        self.assertEqual(tags[0]["digest"], self.chain.digest)
        show = self.ok(self.gateway.post("/api/show", {"model": MODEL})).json
        self.assertEqual(show["details"]["family"], "llama")
        self.assertEqual(show["model_info"]["llama.context_length"], 512)
        self.assertIn("tools", show["capabilities"])
        self.assertEqual((show["license"], show["parameters"]), ("CC0-1.0", "num_ctx 512"))
        self.assertRegex(show["details"]["parameter_size"], r"^2\.\d\dM$")
        self.assertIn(f"FROM {MODEL}\n", show["modelfile"])
        ps = self.ok(self.gateway.get("/api/ps")).json["models"]
        self.assertEqual(ps[0]["context_length"], 512)
        self.assertTrue(self.ok(self.gateway.get("/api/version")).json["version"])

    def test_a_chat_longer_than_the_context_loses_its_oldest_turns(self):
        turn = lambda i: [{"role": "user", "content": f"{i} And God said"}, {"role": "assistant", "content": "Let there be light " * 4}]
        system, last = {"role": "system", "content": "Be brief"}, {"role": "user", "content": "And the evening"}
        body = lambda messages, **more: {"model": MODEL, "messages": messages, "stream": False, "options": {"num_predict": 1, "num_ctx": 200}, **more}
        count = lambda messages: self.gateway.post("/api/chat", body(messages)).json.get("prompt_eval_count")
        long = [system, *(m for i in range(20) for m in turn(i)), last]
        n = self.ok(self.gateway.post("/api/chat", body(long))).json["prompt_eval_count"]
        fitting = [k for k in range(20) if n == count([system, *(m for i in range(k, 20) for m in turn(i)), last])]
        self.assertTrue(fitting, n)
        k = fitting[-1]
        self.assertGreater(k, 0)
        self.assertEqual(self.gateway.post("/api/chat", body([system, *(m for i in range(k - 1, 20) for m in turn(i)), last], truncate=False)).status, 400)
        self.assertEqual(self.gateway.post("/api/chat", body(long, truncate=False)).status, 400)
        self.assertEqual(self.gateway.post("/api/chat", body([system, {"role": "user", "content": "And God said " * 300}])).status, 400)

    def test_a_response_longer_than_the_context_loses_its_oldest_turns_when_asked(self):
        say = lambda role, text: {"role": role, "content": text}
        turn = lambda i: [say("user", f"{i} And God said"), say("assistant", "Let there be light " * 4)]
        items = [m for i in range(20) for m in turn(i)] + [say("user", "And the evening")]
        body = {"model": MODEL, "instructions": "Be brief", "input": items, "max_output_tokens": 1}
        reply = self.gateway.post("/v1/responses", body)
        self.assertEqual((reply.status, reply.json["error"]["code"]), (400, "context_length_exceeded"))
        cut = self.ok(self.gateway.post("/v1/responses", body | {"truncation": "auto"})).json
        self.assertEqual(cut["truncation"], "auto")
        # Whole turns from the beginning, no more than had to go, and not the instructions.
        sizes = {k: self.gateway.post("/v1/responses", body | {"input": items[2 * k:]}) for k in range(1, 20)}
        first = min(k for k, r in sizes.items() if r.status == 200)
        self.assertEqual(cut["usage"]["input_tokens"], sizes[first].json["usage"]["input_tokens"])

    def test_errors_have_ollamas_shape(self):
        for path, body, status in (("/api/chat", {"model": "nobody", "messages": HELLO}, 404), ("/api/chat", {"model": MODEL, "fromat": "json"}, 400),
                                   ("/api/generate", {"model": MODEL, "prompt": "x", "options": {"tfs_z": 0.5}}, 400),
                                   ("/api/show", {"model": "nobody"}, 404)):
            reply = self.gateway.post(path, body)
            self.assertEqual(reply.status, status, reply)
            self.assertIsInstance(reply.json["error"], str)


@nk.sanitized("asan")
class Wire(OverOneCluster):
    """What is on the wire, byte by byte."""
    options = ("--chat-template", "chatml", "--body-kib", "256")

    def test_head_has_no_body(self):
        with self.gateway.connect() as c:
            c.send("HEAD", "/healthz")
            head = c.reply(head_only=True)
            c.send("GET", "/healthz")
            self.assertEqual(head.headers["content-length"], str(len(c.reply().body)))

    def test_a_header_says_that_tools_are_explained_to_the_model(self):
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
        body = {"model": MODEL, "messages": HELLO, "tools": [tool], "tool_choice": "required", "max_tokens": 60}
        reply = self.ok(self.gateway.post("/v1/chat/completions", body))
        call = reply.json["choices"][0]["message"]["tool_calls"][0]["function"]
        self.assertEqual((call["name"], json.loads(call["arguments"])), ("f", {}))
        stream = self.ok(self.gateway.post("/v1/chat/completions", dict(body, stream=True)))
        self.assertEqual([r.headers.get("x-nakshatra-tools") for r in (reply, stream)], ["generic", "generic"])
        del body["tools"], body["tool_choice"]
        self.assertNotIn("x-nakshatra-tools", self.ok(self.gateway.post("/v1/chat/completions", body)).headers)

    def test_huge_bodies(self):
        for size in (300 << 10, 5 << 20):
            with self.gateway.connect() as c:
                c.send("POST", "/v1/completions", b"x" * size)
                self.refused(c.reply(), 413, "body_too_large")
        with self.gateway.connect() as c:  # nobody says how much there will be
            c.send("POST", "/v1/completions", b"", {"Transfer-Encoding": "chunked"}, length=False)
            for _ in range(20):
                c.socket.sendall(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
            c.socket.sendall(b"0\r\n\r\n")
            self.refused(c.reply(), 413, "body_too_large")
        with self.gateway.connect() as c:  # who asks first is told before the body
            c.send("POST", "/v1/completions", None, {"Content-Type": "application/json", "Content-Length": str(10 << 30), "Expect": "100-continue"})
            self.refused(c.reply(), 413, "body_too_large")

    def test_chunked_body_and_continue(self):
        body = json.dumps(completion()).encode()
        with self.gateway.connect() as c:
            c.send("POST", "/v1/completions", None, {"Content-Type": "application/json", "Transfer-Encoding": "chunked", "Expect": "100-continue"})
            while b"\r\n\r\n" not in c.left:
                c.more()
            self.assertIn(b" 100 ", c.left)
            for i in range(0, len(body), 7):
                c.socket.sendall(b"%x\r\n%s\r\n" % (len(body[i:i + 7]), body[i:i + 7]))
            c.socket.sendall(b"0\r\n\r\n")
            self.ok(c.reply())

    def test_half_closed_connections_are_answered(self):
        """Whenever the end comes: before the request is looked at, or while it waits for its tokens."""
        for i in range(20):
            for body in (completion(max_tokens=20 if i else 300), completion(max_tokens=20 if i else 300, stream=True)):
                with self.gateway.connect() as busy, self.gateway.connect() as c:
                    busy.send("GET", "/metrics")
                    c.send("POST", "/v1/completions", body)
                    c.socket.shutdown(socket.SHUT_WR)
                    reply = self.ok(c.reply())
                    self.assertTrue(reply.chunks() if body.get("stream") else reply.json["choices"][0]["text"])

    def test_pipelined_requests_are_answered_in_order(self):
        one = json.dumps(completion(temperature=0)).encode()
        with self.gateway.connect() as c:
            request = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(one), one)
            c.socket.sendall(request + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + request + b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
            replies = [c.reply() for _ in range(4)]
            self.assertEqual([r.status for r in replies], [200, 200, 200, 404])
            self.assertEqual(replies[0].json["choices"], replies[2].json["choices"])

    def test_garbage(self):
        # Some connections end only when the time for their header is over: it is a short one.
        with Gateway(self.chain.file, "--header-ms", "1500") as gateway, contextlib.ExitStack() as stack:
            waiting = []
            for garbage in (b"\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n", os.urandom(2000)):
                c = stack.enter_context(gateway.connect())
                with contextlib.suppress(OSError):
                    c.socket.sendall(garbage)
                    c.socket.shutdown(socket.SHUT_WR)
                waiting.append(c)
            for c in waiting:  # some only when their time is over
                self.assertTrue(c.ended())
            self.ok(gateway.get("/healthz"))

    def test_huge_headers(self):
        with self.gateway.connect() as c:
            c.send("GET", "/healthz", headers={"X-Much": "a" * 100000})
            self.assertEqual(c.head()[0], 431)

    def test_too_many_messages_and_deep_json(self):
        body = chat(messages=HELLO * 4000 + HELLO * 97)
        self.assertLess(len(json.dumps(body)), 256 << 10)
        self.refused(self.gateway.post("/v1/chat/completions", body), 400, "too_many", "messages")
        self.refused(self.gateway.post("/v1/chat/completions", b"[" * 100000), 400, "bad_json")
        self.refused(self.gateway.post("/v1/chat/completions", b'{"messages":' * 5000), 400, "bad_json")

    def test_http_1_0(self):
        with self.gateway.connect() as c:
            c.socket.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            data = b""
            while c.more():
                pass
            data = c.left
            self.assertIn(b" 200 ", data.split(b"\r\n")[0])
            self.assertTrue(data.endswith(b'{"status":"ok"}\n'))

    def test_curl(self):
        url = self.gateway.url + "/v1/completions"
        done = subprocess.run(["curl", "-sS", "-N", "--fail-with-body", "-H", "Content-Type: application/json", "-d", json.dumps(completion(stream=True)), url], capture_output=True, timeout=60 * nk.SLOW)
        self.assertEqual(done.returncode, 0, done)
        self.assertTrue(done.stdout.endswith(b"data: [DONE]\n\n"))
        with tempfile.NamedTemporaryFile() as big:
            big.write(b"{" + b" " * (2 << 20))
            big.flush()
            done = subprocess.run(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--expect100-timeout", "60", "-H", "Content-Type: application/json", "--data-binary", "@" + big.name, url], capture_output=True, timeout=60 * nk.SLOW)
            self.assertEqual(done.stdout, b"413", done)


    def test_without_a_page_the_root_says_that_it_runs(self):
        """Ollama's programs ask for it first."""
        with Gateway(self.chain.file, "--no-page") as gateway:
            reply = gateway.get("/")
            self.assertEqual((reply.status, reply.headers["content-type"], reply.text), (200, "text/plain; charset=utf-8", "Nakshatra is running\n"))
            self.assertEqual(gateway.ask("HEAD", "/").status, 200)
            self.assertEqual(gateway.get("/index.html").status, 404)
            self.assertEqual(gateway.post("/", {}).status, 405)


@nk.sanitized("asan")
class SlowClients(OverOneCluster):
    """Limits that are short, and waited for."""
    options = ("--body-ms", "1500", "--idle-ms", "3000")

    def test_slow_body_ends_with_408(self):
        with self.gateway.connect() as c:
            c.send("POST", "/v1/completions", None, {"Content-Type": "application/json", "Content-Length": "1000000"})
            while not select.select([c.socket], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    c.socket.sendall(b" ")
            self.refused(c.reply(), 408, "slow_body")

    def test_slow_headers_end(self):
        with Gateway(self.chain.file, "--header-ms", "1500") as gateway, gateway.connect() as c:
            c.socket.sendall(b"GET /healthz HTT")
            self.assertTrue(c.ended())

    def test_idle_connections_end(self):
        with self.gateway.connect() as c:
            c.send("GET", "/healthz")
            self.ok(c.reply())
            self.assertTrue(c.ended())

    def test_half_a_body_and_then_nothing(self):
        with self.gateway.connect() as c:
            c.send("POST", "/v1/completions", None, {"Content-Type": "application/json", "Content-Length": "100"})
            c.socket.sendall(b'{"model"')
            c.socket.shutdown(socket.SHUT_WR)
            self.assertTrue(c.ended())


@nk.sanitized("asan")
class Browser(OverOneCluster):
    """What keeps foreign pages out, and lets allowed ones in."""
    options = ("--cors-origin", "https://page.example")

    def test_origins(self):
        reply = self.gateway.get("/v1/models", headers={"Origin": "https://evil.example"})
        self.refused(reply, 403, "foreign_origin")
        self.assertNotIn("access-control-allow-origin", reply.headers)
        reply = self.ok(self.gateway.get("/v1/models", headers={"Origin": "https://page.example"}))
        self.assertEqual((reply.headers["access-control-allow-origin"], reply.headers["vary"]), ("https://page.example", "Origin"))
        for local in ("http://localhost", "http://localhost:3000", "https://127.0.0.1:8443"):
            reply = self.ok(self.gateway.get("/v1/models", headers={"Origin": local}))
            self.assertEqual(reply.headers["access-control-allow-origin"], local)
        preflight = self.gateway.ask("OPTIONS", "/v1/chat/completions", headers={"Origin": "https://page.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-stainless-os, authorization"})
        self.assertEqual(preflight.status, 200)
        self.assertEqual(preflight.headers["access-control-allow-headers"], "x-stainless-os, authorization")
        self.assertEqual(self.gateway.ask("OPTIONS", "/v1/chat/completions", headers={"Origin": "https://evil.example"}).status, 403)

    def test_foreign_hosts(self):
        with self.gateway.connect() as c:
            c.socket.sendall(b"GET /v1/models HTTP/1.1\r\nHost: rebound.example:8080\r\n\r\n")
            self.refused(c.reply(), 403, "foreign_host")

    def test_chat_needs_a_template(self):
        error = self.refused(self.gateway.post("/v1/chat/completions", chat()), 400, "no_template", "messages")
        self.assertIn("--chat-template", error["message"])
        reply = self.gateway.post("/api/generate", {"model": MODEL, "prompt": "And it came to pass", "stream": False, "options": {"num_predict": 8, "temperature": 0, "repeat_penalty": 1}})
        self.assertEqual(reply.json["response"], self.gateway.post("/v1/completions", completion(temperature=0)).json["choices"][0]["text"])


@nk.sanitized("asan")
class Health(OverOneCluster):
    options = ("--chat-template", "chatml")

    def test_metrics(self):
        before = self.gateway.metric("nakshatra_generated_tokens_total")
        self.ok(self.gateway.post("/v1/completions", completion()))
        self.refused(self.gateway.post("/v1/completions", b"{"), 400, "bad_json")
        text = self.ok(self.gateway.get("/metrics")).text
        self.assertEqual(self.gateway.metric("nakshatra_generated_tokens_total"), before + 8)
        self.assertIn('nakshatra_http_requests_total{route="/v1/completions",code="400"} 1', text)
        self.assertIn('nakshatra_errors_total{reason="bad_json"} 1', text)
        for moved in (r"nakshatra_http_requests_total\{.*\}", r"nakshatra_http_request_duration_seconds_count\{.*\}", r"nakshatra_generations_total\{.*\}",
                      "nakshatra_prompt_tokens_total", "nakshatra_queue_wait_seconds_count", "nakshatra_time_to_first_token_seconds_count",
                      "nakshatra_time_per_token_seconds_count", r'nakshatra_stage_compute_seconds_count\{stage="w0"\}', r'nakshatra_stage_compute_seconds_count\{stage="w1"\}',
                      r'nakshatra_stage_queue_seconds_count\{stage="w1"\}', r'nakshatra_stage_hop_seconds_count\{stage="w1"\}', "nakshatra_ready",
                      r'nakshatra_stage_up\{stage="w1"\}', r'nakshatra_stage_decoded_tokens_total\{stage="w1"\}', r'nakshatra_stage_busy_seconds_total\{stage="w0"\}'):
            line = re.compile(f"(?m)^{moved} (?!0(\\.0*)?$)[0-9.e+-]+$")  # what the workers say may be two seconds old
            self.assertTrue(nk.wait_for(lambda: line.search(self.gateway.get("/metrics").text), 10, 0.3), moved)
        self.assertRegex(text, r"(?m)^nakshatra_queue_length 0$")
        self.assertRegex(text, r'nakshatra_stage_kv_free_tokens\{stage="w0"\} 512\n')
        if shutil.which("promtool"):
            done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True)
            self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""))

    def test_cluster_is_as_documented(self):
        doc = pathlib.Path(nk.SOURCE, "docs", "api.md").read_text().split("## `/cluster`")[1].split("```")[1]
        keys = set(re.findall(r'"(\w+)":', doc))
        cluster = self.ok(self.gateway.get("/cluster")).json

        def names(value):
            if isinstance(value, dict):
                return set(value).union(*map(names, value.values()))
            return set().union(*map(names, value)) if isinstance(value, list) else set()
        # A session is only there while one runs, an error only when there is one, and what was recovered only after a loss.
        recovered = {"lost", "cause", "chosen", "generations", "resumed", "given_up", "ended", "replay_to", "replayed", "replay_total",
                     "chosen_ms", "opened_ms", "pause_ms"}
        self.assertEqual(keys - names(cluster) - {"code", "message", "route", "age_s", "waited_s", "prompt_tokens", "generated_tokens"} - recovered, set())
        self.assertEqual(names(cluster) - keys, set())
        self.assertEqual([s["layer_begin"] for s in cluster["stages"]], [0, 4])
        self.assertEqual(cluster["model"]["context"], 512)
        self.assertTrue(cluster["ready"])

    def test_error_codes_are_as_documented(self):
        """The table has the codes that the sources have, and no others."""
        doc = pathlib.Path(nk.SOURCE, "docs", "api.md").read_text().split("## Errors")[1].split("## `/cluster`")[0]
        shown = {c for row in re.findall(r"(?m)^\| \d{3} \| ([^|]*) \|", doc) for c in re.findall(r"`(\w+)`", row)}
        files = [f for layer in ("base", "gateway", "text", "chain", "worker") for f in pathlib.Path(nk.SOURCE, "src", layer).glob("*.c*")]
        text = "".join(f.read_text() for f in files)
        self.assertEqual({c for c in shown if f'"{c}"' not in text}, set())
        requests = "".join(pathlib.Path(nk.SOURCE, "src", "gateway", f"{name}.c").read_text()
                           for name in ("request", "request_read", "request_openai", "request_ollama", "prompt", "tool_grammar", "text",
                                        "http", "admission"))
        raised = set(re.findall(r'NK_E_[A-Z]+,\s*"([a-z_]+)"', requests)) | set(re.findall(r'\bbad\(\s*e,[^,]*,\s*"([a-z_]+)"', requests))
        # Out of memory is told by its own code everywhere; no client reads what the others say.
        self.assertEqual(raised - shown - {"no_memory", "client_gone", "cannot_listen", "no_thread", "bad_defaults"}, set())

    def test_events(self):
        connections = [self.gateway.connect() for _ in range(100)]
        try:
            for c in connections:
                c.send("GET", "/cluster/events")
                self.assertEqual(c.head()[0], 200)
            for _ in range(3):
                events = [c.chunk() for c in connections]
                for e in events:
                    self.assertTrue(e.startswith(b"event: cluster\ndata: {") and e.endswith(b"\n\n"), e[:50])
            # Those from before the last one connected say fewer.
            self.assertTrue(nk.wait_for(lambda: json.loads(connections[0].chunk().split(b"data: ")[1])["gateway"]["listeners"] == 100))
        finally:
            for c in connections:
                c.close()
        self.assertTrue(nk.wait_for(lambda: self.gateway.get("/cluster").json["gateway"]["listeners"] == 0))

    def test_page(self):
        script = "text/javascript; charset=utf-8"
        types = {"html": "text/html; charset=utf-8", "js": script, "mjs": script, "css": "text/css; charset=utf-8", "svg": "image/svg+xml",
                 "txt": "text/plain; charset=utf-8"}
        web = os.path.join(nk.SOURCE, "web")
        files = sorted(os.path.relpath(os.path.join(place, name), web) for place, _, names in os.walk(web) for name in names)
        files = [name for name in files if name.rsplit(".", 1)[-1] in types]  # the others are for who looks into the folder
        self.assertIn("index.html", files)
        for path, name in [("/", "index.html"), *(("/" + name, name) for name in files)]:
            page = self.ok(self.gateway.get(path))
            with open(os.path.join(nk.SOURCE, "web", name), "rb") as f:
                self.assertEqual(page.body, f.read())
            self.assertEqual(page.headers["content-type"], types[name.rsplit(".", 1)[1]])
            self.assertIn("default-src 'none'", page.headers["content-security-policy"])
            self.assertNotIn("unsafe", page.headers["content-security-policy"])
            self.assertEqual((page.headers["x-content-type-options"], page.headers["referrer-policy"]), ("nosniff", "no-referrer"))
            again = self.gateway.get(path, headers={"If-None-Match": page.headers["etag"]})
            self.assertEqual((again.status, again.body, again.headers["etag"]), (304, b"", page.headers["etag"]))
            head = self.gateway.ask("HEAD", path)
            self.assertEqual((head.status, head.headers["content-length"], head.body), (200, str(len(page.body)), b""))
            for codings in ("gzip", "deflate, gzip;q=0.5, br", "br,gzip"):
                packed = self.ok(self.gateway.get(path, headers={"Accept-Encoding": codings}))
                self.assertEqual((packed.headers["content-encoding"], gzip.decompress(packed.body)), ("gzip", page.body))
                self.assertNotEqual(packed.headers["etag"], page.headers["etag"])
            for codings in ("identity", "br", "gzip;q=0", "deflate, gzip; q=0.0", "xgzip", "gzipx"):
                plain = self.ok(self.gateway.get(path, headers={"Accept-Encoding": codings}))
                self.assertEqual((plain.headers.get("content-encoding"), plain.body), (None, page.body))
        self.refused(self.gateway.post("/", {}), 405, "method_not_allowed")


@nk.sanitized("tsan")
class Going(unittest.TestCase):
    """Clients that go away or do not read; a long context, so that generations last."""

    @classmethod
    def setUpClass(cls):
        cls.chain = nk.Chain(nk.KJV, "0-4,4-8", "--ctx", "40000", "--sequences", "4")
        try:
            # Room for all that a reader gets in the test of slow readers, should it not get to run meanwhile; what is
            # sent to the slow one is more than this and the sockets' buffers together.
            cls.gateway = Gateway(cls.chain.file, "--output-kib", "1024", "--chat-template", HERMES).wait_ready()
            cls.clients = [nk.Client(w.address) for w in cls.chain.workers]
        except BaseException:
            cls.chain.close(check=False)
            raise

    @classmethod
    def tearDownClass(cls):
        for c in cls.clients:
            c.channel.close()
        try:
            cls.gateway.stop()
        finally:
            cls.chain.close()

    # Does not end by itself while something is done to it.
    LONG = dict(ignore_eos=True, max_tokens=30000, cache_prompt=False)

    def sessions(self, worker):
        return self.clients[worker].info().counters.sessions_open

    def cancelled(self):
        return self.gateway.metric("nakshatra_generations_total", '{finish="cancelled"}')

    def begin(self, stream):
        c = self.gateway.connect()
        c.send("POST", "/v1/completions", completion(stream=stream, **self.LONG))
        if stream:
            self.assertEqual(c.head()[0], 200)
            c.chunk()
        else:
            self.assertTrue(nk.wait_for(lambda: self.sessions(1) == 1))
        return c

    def test_client_that_goes_cancels_on_every_stage(self):
        for stream in (True, False):
            with self.subTest(stream=stream):
                before = self.cancelled()
                self.begin(stream).close()
                for worker in (0, 1):
                    self.assertTrue(nk.wait_for(lambda: not self.sessions(worker)))
                self.assertTrue(nk.wait_for(lambda: self.cancelled() == before + 1))  # it did not end by itself
                self.chain.assert_idle()  # KV and sequences are free too

    def test_client_that_goes_while_nothing_flows(self):
        for stream in (True, False):
            with self.subTest(stream=stream):
                before, c = self.cancelled(), self.begin(stream)
                self.chain.workers[1].halt()
                try:
                    nk.wait_for(lambda: self.stands_still(0), step=0.2)
                    c.close()
                    self.assertTrue(nk.wait_for(lambda: not self.sessions(0)))
                    self.assertTrue(nk.wait_for(lambda: self.cancelled() == before + 1))  # nobody was given up
                finally:
                    self.chain.workers[1].signal(signal.SIGCONT)
                self.chain.assert_idle()

    def stands_still(self, worker):
        """It has done nothing since the last look."""
        last, self.looked = getattr(self, "looked", None), self.clients[worker].info().counters.steps
        return last == self.looked

    def test_times_of_the_stages_are_known_while_a_generation_runs(self):
        def live():
            c = self.gateway.get("/cluster").json
            first, second = c["stages"]
            times = [first["compute_ms"], first["queue_ms"], second["compute_ms"], second["queue_ms"], second["wire_ms"], c["links"][1]["wire_ms"]]
            return c["gateway"]["running"] == 1 and (second["tokens_per_second"] or 0) > 0 and None not in times and c
        before = [c.info().counters for c in self.clients]
        with self.begin(stream=True):
            cluster = nk.wait_for(live)
            self.assertTrue(cluster, self.gateway.get("/cluster").text)
            after = [c.info().counters for c in self.clients]
        for a, b in zip(before, after):
            self.assertGreater(b.steps, a.steps)
            self.assertGreaterEqual(b.rows_in_runs - a.rows_in_runs, b.steps - a.steps)
        self.assertGreater(after[0].wire_steps, before[0].wire_steps)
        self.assertLessEqual(after[0].wire_steps, after[0].steps)
        self.assertEqual(after[1].wire_steps, 0)  # the last stage has no way on
        self.assertIsNone(cluster["stages"][0]["wire_ms"])
        self.assertEqual(cluster["stages"][0]["kv_tokens"], self.clients[0].info().n_ctx)
        self.chain.assert_idle()

    @nk.sanitized()  # most of it are the megabytes that the kernel takes; unit.gateway.gateway has a slow reader, too
    def test_slow_reader_is_cut_off_and_slows_nobody(self):
        before = self.cancelled()
        with self.gateway.connect(receive_buffer=4096) as slow, self.gateway.connect() as c:
            # The kernel takes megabytes for it before the gateway has to keep anything: a token is 2 KiB of these.
            slow.send("POST", "/v1/chat/completions", chat(stream=True, logprobs=True, top_logprobs=20, **self.LONG))
            c.send("POST", "/v1/completions", completion(stream=True, **{**self.LONG, "max_tokens": 600}))
            self.assertEqual(len(c.reply().chunks()), 601)
            self.assertTrue(nk.wait_for(lambda: self.cancelled() > before, 60))
            self.assertTrue(slow.ended())
        self.chain.assert_idle()


@nk.sanitized("tsan")
class Queue(unittest.TestCase):
    def test_64_streams_finish(self):
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", "4096", "--sequences", "8") as chain, Gateway(chain.file) as gateway:
            gateway.wait_ready()
            replies, lock = [], threading.Lock()

            def one(i):
                reply = gateway.post("/v1/completions", completion(stream=True, seed=i, max_tokens=24, prompt=f"{i} And it came", ignore_eos=True))
                with lock:
                    replies.append((reply.status, len(reply.chunks())))
            threads = [threading.Thread(target=one, args=(i,)) for i in range(64)]
            for t in threads:
                t.start()
            for t in threads:
                t.join(nk.LONG_S)
            self.assertEqual(replies, [(200, 25)] * 64)
            self.assertEqual(gateway.metric("nakshatra_queue_wait_seconds_count"), 64)
            chain.assert_idle()

    def test_64_streams_over_the_limit_end_or_get_429(self):
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", "40000", "--sequences", "4") as chain, \
                Gateway(chain.file, "--waiting", "20", "--output-kib", "65536") as gateway:
            gateway.wait_ready()
            running = [gateway.connect() for _ in range(4)]  # until the others have been let in or sent away
            for c in running:
                c.send("POST", "/v1/completions", completion(stream=True, **{**Going.LONG, "max_tokens": 9000}))
            for c in running:
                self.assertEqual(c.head()[0], 200)
            replies, lock = [], threading.Lock()

            def one(c):
                with c:
                    reply = c.reply()
                with lock:
                    replies.append(reply)
            connections = [gateway.connect() for _ in range(60)]
            for i, c in enumerate(connections):
                c.send("POST", "/v1/completions", completion(stream=True, seed=i, max_tokens=64, prompt=f"{i} And it came", ignore_eos=True))
            threads = [threading.Thread(target=one, args=(c,)) for c in connections]
            for t in threads:
                t.start()
            self.assertTrue(nk.wait_for(lambda: gateway.get("/cluster").json["gateway"]["waiting"] == 20 and len(replies) == 40))
            for c in running:
                c.close()
            for t in threads:
                t.join(nk.LONG_S)
            self.assertEqual(len(replies), 60)
            refused = [r for r in replies if r.status == 429]
            self.assertEqual(len(refused), 40)
            self.assertTrue(all(r.status == 200 and len(r.chunks()) == 65 for r in replies if r not in refused), replies)
            self.assertTrue(all(int(r.headers["retry-after"]) >= 1 and r.json["error"]["code"] == "queue_full" for r in refused))
            chain.assert_idle()

    def test_over_the_limit_is_429(self):
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", "40000") as chain:
            options = ("--running", "1", "--waiting", "1", "--output-kib", "65536")
            with Gateway(chain.file, *options, "--waiting-ms", "600000") as gateway:
                gateway.wait_ready()
                running = self.long(gateway)
                waiting = self.waiting(gateway)
                states = {s["state"] for s in gateway.get("/cluster").json["sessions"]}
                self.assertEqual(states, {"running", "waiting"})
                reply = gateway.post("/v1/completions", completion())
                self.assertEqual((reply.status, reply.json["error"]["code"]), (429, "queue_full"))
                self.assertGreaterEqual(int(reply.headers["retry-after"]), 1)
                reply = gateway.post("/api/generate", {"model": MODEL, "prompt": "x"})
                self.assertEqual(reply.status, 429)
                waiting.close()  # a waiting client that goes leaves the queue
                self.assertTrue(nk.wait_for(lambda: gateway.get("/cluster").json["gateway"]["waiting"] == 0))
                running.close()
                self.assertEqual(gateway.post("/v1/completions", completion()).status, 200)
            with Gateway(chain.file, *options, "--waiting-ms", "1000") as gateway:
                gateway.wait_ready()
                running = self.long(gateway)
                late = gateway.post("/v1/completions", completion())
                self.assertEqual((late.status, late.json["error"]["code"]), (429, "queue_timeout"))
                running.close()
                self.assertEqual(gateway.post("/v1/completions", completion()).status, 200)
            chain.assert_idle()

    def long(self, gateway):
        c = gateway.connect()
        c.send("POST", "/v1/completions", completion(stream=True, **Going.LONG))
        self.assertEqual(c.head()[0], 200)
        return c

    def waiting(self, gateway):
        c = gateway.connect()
        c.send("POST", "/v1/completions", completion())
        self.assertTrue(nk.wait_for(lambda: gateway.get("/cluster").json["gateway"]["waiting"] == 1))
        return c


@nk.sanitized("tsan")
class Failing(unittest.TestCase):
    def test_worker_that_goes_and_returns(self):
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", "40000") as chain, Gateway(chain.file, "--waiting-ms", "1000", "--hold-ms", "0") as gateway:
            gateway.wait_ready()
            port = chain.workers[1].port
            with gateway.connect() as c:
                c.send("POST", "/v1/completions", completion(stream=True, **Going.LONG))
                self.assertEqual(c.head()[0], 200)
                c.chunk()
                chain.workers[1].kill()
                body = b""
                while True:
                    data = c.chunk()
                    if not data:
                        break
                    body += data
                last = body.decode().rstrip("\n").split("\n\n")[-1]
                self.assertIn("w1", json.loads(last[len("data: "):])["error"]["message"])
            self.assertTrue(nk.wait_for(lambda: gateway.get("/readyz").status == 503))
            ready = gateway.get("/readyz")
            self.assertIn("w1", ready.json["error"]["message"])
            self.assertEqual(gateway.get("/healthz").status, 200)
            for path, body in (("/v1/completions", completion()), ("/v1/completions", completion(stream=True)), ("/api/generate", {"model": MODEL, "prompt": "x"})):
                reply = gateway.post(path, body)
                self.assertEqual(reply.status, 503, reply)
                self.assertIn("w1", reply.text)
            cluster = gateway.get("/cluster").json
            self.assertEqual(([s["ok"] for s in cluster["stages"]], cluster["ready"]), ([True, False], False))
            chain.start(1, listen=f"127.0.0.1:{port}")
            gateway.wait_ready()
            self.assertEqual(gateway.post("/v1/completions", completion()).status, 200)

    def test_restarts_fail_nobody_who_has_no_token_yet(self):
        """Two generations run and 32 wait, half of them streamed, whenever the second worker is killed and started again.
        NK_RESTARTS: how often."""
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", "40000", "--sequences", "2") as chain, \
                Gateway(chain.file, "--waiting-ms", "600000", "--output-kib", "65536", "--hold-ms", "0") as gateway:
            gateway.wait_ready()
            for i in range(int(os.environ.get("NK_RESTARTS", 3))):
                running = [gateway.connect() for _ in range(2)]
                for c in running:
                    c.send("POST", "/v1/completions", completion(stream=True, **{**Going.LONG, "max_tokens": 15000}))
                    self.assertEqual(c.head()[0], 200)
                waiting = [gateway.connect() for _ in range(32)]
                for k, c in enumerate(waiting):
                    c.send("POST", "/v1/completions", completion(stream=k % 2 == 0))
                self.assertTrue(nk.wait_for(lambda: gateway.get("/cluster").json["gateway"]["waiting"] == 32))
                port = chain.workers[1].port
                chain.workers[1].kill()
                for c in running:
                    body = b""
                    while data := c.chunk():
                        body = data
                    self.assertIn(b'"error"', body)
                    c.close()
                late = gateway.connect()  # it comes while the worker is away
                late.send("POST", "/v1/completions", completion())
                chain.start(1, listen=f"127.0.0.1:{port}")
                for k, c in enumerate(waiting + [late]):
                    reply = c.reply()
                    self.assertEqual(reply.status, 200, reply)
                    if k < 32 and k % 2 == 0:
                        self.assertEqual(len(reply.chunks()), 9)
                    c.close()
            chain.assert_idle()

    def test_error_after_a_stream_began_is_counted(self):
        with nk.Chain(nk.KJV, "0-8", "--ctx", "40000") as chain, Gateway(chain.file, "--hold-ms", "0") as gateway:
            gateway.wait_ready()
            with gateway.connect() as c:
                c.send("POST", "/v1/completions", completion(stream=True, **Going.LONG))
                self.assertEqual(c.head()[0], 200)
                c.chunk()
                chain.workers[0].kill()
                last = b""
                while data := c.chunk():
                    last = data
                code = json.loads(last.decode().rstrip("\n").rsplit("data: ", 1)[1])["error"]["code"]
            self.assertEqual(gateway.metric("nakshatra_errors_total", f'{{reason="{code}"}}'), 1)

    def test_gateway_may_start_before_its_workers(self):
        with nk.Chain(nk.KJV, "0-4,4-8") as chain:
            address = chain.workers[0].port
            chain.workers[0].stop()
            with Gateway(chain.file) as gateway:
                self.assertEqual(gateway.get("/readyz").status, 503)
                self.assertEqual(gateway.post("/v1/completions", completion()).status, 503)
                chain.start(0, listen=f"127.0.0.1:{address}")
                gateway.wait_ready()
                self.assertEqual(gateway.post("/v1/completions", completion()).status, 200)

    def test_deterministic_gateway_wants_workers_that_are(self):
        """And over those the same seed gives the same text, whatever else runs: three choices at once."""
        body = completion(temperature=1, seed=7, max_tokens=24, n=3)
        with nk.Chain(nk.KJV, "0-8", "--deterministic", "--ctx", "2048", "--sequences", "4") as chain, \
                Gateway(chain.file, "--deterministic") as gateway:
            gateway.wait_ready()
            one, two = (gateway.post("/v1/completions", body).json["choices"] for _ in range(2))
            self.assertEqual([c["text"] for c in one], [c["text"] for c in two])
            self.assertEqual([c["index"] for c in one], [0, 1, 2])
            self.assertGreater(len({c["text"] for c in one}), 1)
            single = gateway.post("/v1/completions", {**body, "n": 1, "seed": 8}).json["choices"][0]["text"]
            self.assertEqual(single, one[1]["text"])
            address = chain.workers[0].port
            chain.workers[0].stop()
            chain.options.remove("--deterministic")
            chain.start(0, listen=f"127.0.0.1:{address}")
            self.assertTrue(nk.wait_for(lambda: b"--deterministic" in gateway.get("/readyz").body))
            self.assertEqual(gateway.get("/readyz").status, 503)
            reply = gateway.post("/v1/completions", body)
            self.assertEqual((reply.status, reply.json["error"]["code"]), (503, "not_deterministic"))

    def test_sigterm_lets_requests_end(self):
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", "40000") as chain:
            with Gateway(chain.file, "--drain-ms", "600000") as gateway:
                gateway.wait_ready()
                with gateway.connect() as c, gateway.connect() as listener:
                    listener.send("GET", "/cluster/events")
                    self.assertEqual(listener.head()[0], 200)
                    c.send("POST", "/v1/completions", completion(stream=True, max_tokens=1000, ignore_eos=True))
                    self.assertEqual(c.head()[0], 200)
                    gateway.terminate()
                    body = b""
                    while True:
                        data = c.chunk()
                        if not data:
                            break
                        body += data
                    self.assertTrue(body.endswith(b"data: [DONE]\n\n"))
                self.assertEqual(gateway.process.wait(60 * nk.SLOW), 0)
            with Gateway(chain.file, "--drain-ms", "600000") as gateway:  # nobody else is let in meanwhile
                gateway.wait_ready()
                with gateway.connect() as c:
                    c.send("POST", "/v1/completions", completion(stream=True, **Going.LONG))
                    self.assertEqual(c.head()[0], 200)
                    gateway.terminate()
                    self.assertTrue(nk.wait_for(gateway.refuses_connections, 5))
                    self.assertIsNone(gateway.process.poll())
            with Gateway(chain.file, "--drain-ms", "100") as gateway:  # and cuts off those that take too long
                gateway.wait_ready()
                with gateway.connect() as c:
                    c.send("POST", "/v1/completions", completion(stream=True, **Going.LONG))
                    self.assertEqual(c.head()[0], 200)
                    gateway.terminate()
                    while c.more():
                        pass
                    self.assertIn(b'"code":"shutting_down"', c.left)
            chain.assert_idle()

    def test_signals_go_to_the_main_thread(self):
        with nk.Chain(nk.KJV, "0-4,4-8") as chain, Gateway(chain.file) as gateway:
            gateway.wait_ready()
            self.assertEqual(gateway.post("/v1/completions", completion()).status, 200)
            for process in [gateway.process] + [w.process for w in chain.workers]:
                takes = nk.threads_that_take(process.pid, signal.SIGTERM)
                self.assertEqual(takes, [process.pid])


@nk.sanitized()
class Soak(unittest.TestCase):
    def test_memory_stays_flat_over_good_and_hostile_requests(self):
        """NK_REQUESTS: how many; what they leave behind would show after the first third."""
        n = int(os.environ.get("NK_REQUESTS", 300))
        deep = {"$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(12)} | {"d12": {"type": "string"}},
                "$ref": "#/$defs/d0"}
        hostile = (
            b"{" * 2000, b"[" + b"0," * 20000 + b"0]", b"\xff\xfe", json.dumps(completion(temprature=1)).encode(),
            json.dumps(chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": deep}})).encode(),
            json.dumps(completion(grammar="root ::= root root | \"a\"")).encode(),
            json.dumps(completion(prompt="x " * 30000)).encode(),
            json.dumps(chat(messages=[{"role": "user", "content": "a" * 5000}] * 50)).encode())
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", "2048", "--sequences", "4") as chain, Gateway(chain.file, "--chat-template", "chatml") as gateway:
            gateway.wait_ready()

            def some(count):
                for i in range(count):
                    if i % 3 == 0:
                        self.assertEqual(gateway.post("/v1/completions", completion(stream=i % 2 == 0, max_tokens=4, seed=i)).status, 200)
                    elif i % 3 == 1:
                        with gateway.connect() as c:
                            c.send("POST", "/v1/chat/completions" if b"messages" in hostile[i % 8] else "/v1/completions", hostile[i % 8])
                            self.assertIn(c.reply().status, (200, 400, 413))
                    else:
                        with gateway.connect() as c:  # and goes
                            c.send("POST", "/v1/completions", completion(stream=True, max_tokens=400, ignore_eos=True))
                chain.assert_idle()
            some(n // 3)
            sizes = [talk.rss(gateway.process.pid)]
            for _ in range(4):
                some(n // 3)
                sizes.append(talk.rss(gateway.process.pid))
            # The allocator's heaps grow in a few steps of 1.5 MiB, whenever that may be, and then stay. What is left behind
            # by requests is left by those of each stretch: so there is one without a step that shows it.
            self.assertLess(min(b - a for a, b in zip(sizes, sizes[1:])), sizes[0] / 100, sizes)
            self.assertLess(sizes[-1], sizes[0] * 1.25, sizes)


@nk.sanitized("asan")
class Security(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="nk-tls-")
        self.keys = os.path.join(self.dir, "keys")
        with open(self.keys, "w") as f:
            f.write("# who may\nsecret-key-one\n\n  secret-key-two  \n")
        os.chmod(self.keys, 0o600)

    def tearDown(self):
        shutil.rmtree(self.dir)

    def test_keys_and_tls(self):
        cert, key, context = certificate(self.dir)
        with nk.Chain(nk.KJV, "0-4,4-8") as chain, Gateway(chain.file, "--api-key-file", self.keys, "--tls-cert", cert, "--tls-key", key, context=context) as gateway:
            self.assertTrue(gateway.url.startswith("https://"))
            gateway.wait_ready()
            for path in ("/healthz", "/", "/app.js"):  # the page asks for the key itself
                self.assertEqual(gateway.get(path).status, 200)
            self.assertEqual(gateway.get("/cluster/events").status, 401)
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-key-one"}, {"Authorization": "Bearer secret-key-on"}):
                reply = gateway.get("/v1/models", headers=header)
                self.assertEqual((reply.status, reply.json["error"]["code"]), (401, "invalid_api_key"))
                self.assertEqual(reply.headers["www-authenticate"], "Bearer")
                self.assertEqual(gateway.get("/metrics", headers=header).status, 401)
                self.assertEqual(gateway.post("/api/generate", {"model": MODEL}, headers=header).status, 401)
            for secret in ("secret-key-one", "secret-key-two"):
                gateway.key = secret
                self.assertEqual(len(gateway.post("/v1/completions", completion(stream=True)).chunks()), 9)
            end = re.search(r'^nakshatra_certificate_expiry_timestamp_seconds\{certificate="listener"\} ([0-9.e+]+)$', gateway.get("/metrics").text, re.M)
            self.assertGreater(float(end[1]), 1.7e9)
            # What is kept of one key's prompt is continued for that key only, and for the same cache_salt.
            long = {"prompt": "My password for the vault is zebra", "max_tokens": 1}
            for secret, fields, reused in (("one", {}, False), ("two", {}, False), ("one", {}, True), ("two", {}, True), ("one", {"cache_salt": "a"}, False),
                                           ("one", {"cache_salt": "b"}, False), ("one", {"cache_salt": "a"}, True), ("two", {"cache_salt": "a"}, False)):
                gateway.key = "secret-key-" + secret
                usage = gateway.post("/v1/completions", {**completion(), **long, **fields}).json["usage"]
                self.assertEqual(usage["prompt_tokens_details"]["cached_tokens"] > 0, reused, (secret, fields))
            self.assertNotIn("secret-key", gateway.log())
            opened = chain.workers[0].info().counters.sessions_opened
            with gateway.connect() as c:  # goes while its request runs, through TLS
                c.send("POST", "/v1/completions", completion(max_tokens=400, ignore_eos=True), {"Authorization": "Bearer secret-key-one"})
                self.assertTrue(nk.wait_for(lambda: chain.workers[0].info().counters.sessions_opened > opened))
            chain.assert_idle()

    def test_beyond_this_machine_needs_tls_and_a_key_or_insecure(self):
        cert, key, context = certificate(self.dir)
        tls, keys = ("--tls-cert", cert, "--tls-key", key), ("--api-key-file", self.keys)
        with nk.Chain(nk.KJV, "0-8") as chain:
            for options in ((), tls, keys):
                done = nk.run("serve", "--cluster", chain.file, "--listen", "0.0.0.0:0", *options)
                self.assertEqual((done.returncode, done.stdout), (1, ""), options)
                self.assertIn("--insecure", done.stderr)
            for options in (("--insecure",), (*tls, *keys)):
                with nk.Background("serve", "--cluster", chain.file, "--listen", "0.0.0.0:0", *options) as serve:
                    self.assertTrue(nk.wait_for(lambda: b"listening on" in serve.stdout or serve.process.poll() is not None))
                    serve.process.send_signal(signal.SIGINT)
                    self.assertEqual(serve.wait(), 0, serve.stderr)
                    self.assertIn(b"listening on http", serve.stdout)
            other = os.path.join(self.dir, "other")
            os.mkdir(other)
            done = nk.run("serve", "--cluster", chain.file, "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", certificate(other)[1])
            self.assertEqual(done.returncode, 1)
            self.assertIn("belong together", done.stderr)

    def test_bad_starts_say_why(self):
        with nk.Chain(nk.KJV, "0-8") as chain:
            empty = os.path.join(self.dir, "empty")
            open(empty, "w").close()
            os.chmod(empty, 0o600)
            seen, pipe = os.path.join(self.dir, "seen"), os.path.join(self.dir, "pipe")
            shutil.copy(self.keys, seen)
            os.chmod(seen, 0o644)
            os.mkfifo(pipe)
            for options, word in ((("--api-key-file", seen), "everybody on this machine"), (("--tls-cert", self.keys, "--tls-key", seen), "chmod 600"),
                                  (("--api-key-file", pipe), "a pipe"), (("--chat-template", pipe), "a pipe"),
                                  (("--listen", "0.0.0.0:0"), "--insecure"), (("--listen", "nowhere"), "HOST:PORT"), (("--api-key-file", empty), empty),
                                  (("--api-key-file", "/nonexistent"), "/nonexistent"), (("--tls-cert", self.keys), "key"), (("--chat-template", "no-such-template"), "no-such-template")):
                done = nk.run("serve", "--cluster", chain.file, *options)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(word, done.stderr)
                self.assertEqual(done.stdout, "")
            with socket.create_server(("127.0.0.1", 0)) as taken:
                address = "127.0.0.1:%d" % taken.getsockname()[1]
                done = nk.run("serve", "--cluster", chain.file, "--listen", address)
                self.assertEqual((done.returncode, done.stdout), (1, ""))
                self.assertIn(address, done.stderr)
                self.assertIn("in use", done.stderr)
            self.assertEqual(nk.run("serve").returncode, 2)


if __name__ == "__main__":
    unittest.main()

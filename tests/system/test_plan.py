"""nakshatra plan: what it tells of a file of members, and what it says of bad ones."""
import json
import os
import shutil
import tempfile
import unittest

import nk

FACTS = {
    "default_link": {"rtt_ms": 0.3, "bytes_per_s": 117e6},
    "members": [
        {"id": "desk", "memory_bytes": "6 MiB", "overhead_bytes": "1 MiB", "layer_ms_1": 1.2, "layer_ms_8": 2.0,
         "layer_ms_chunk": 6.0, "chunk_rows": 64, "head_ms_1": 0.9, "head_ms_8": 1.4},
        {"id": "laptop", "name": "lap\x1b[31mtop", "memory_bytes": "4 MiB", "overhead_bytes": "1 MiB", "layer_ms_1": 2.1,
         "layer_ms_8": 3.9, "layer_ms_chunk": 14.0, "chunk_rows": 64, "head_ms_1": 1.8, "head_ms_8": 2.9},
        {"id": "attic", "memory_bytes": 8388608, "overhead_bytes": "1 MiB", "layer_ms_1": 6.5, "layer_ms_8": 14.0,
         "layer_ms_chunk": 61.0, "chunk_rows": 64, "head_ms_1": 5.2, "head_ms_8": 9.0},
        {"id": "phone", "memory_bytes": "1 MiB", "overhead_bytes": "1 MiB", "layer_ms_1": 9.0},
    ],
    "links": [{"from": "laptop", "to": "attic", "rtt_ms": 6.0, "bytes_per_s": 4e6}],
}


class Plan(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="nk-plan-")
        self.addCleanup(shutil.rmtree, self.dir)

    def file(self, facts):
        path = os.path.join(self.dir, "members.json")
        with open(path, "w") as f:
            f.write(facts if isinstance(facts, str) else json.dumps(facts))
        return path

    def plan(self, *args, facts=FACTS):
        return nk.run("plan", nk.KJV, "--members", self.file(facts), *args)

    def test_plan__tells_who_gets_what_and_why_the_others_do_not(self):
        told = json.loads(nk.out("plan", nk.KJV, "--members", self.file(FACTS), "--ctx", "512", "--streams", "8", "--json"))
        stages = told["chains"][0]["stages"]
        self.assertEqual(told["kind"], "chain")
        self.assertEqual([(s["id"], s["begin"], s["end"]) for s in stages], [("laptop", 0, 3), ("desk", 3, 8)])
        # What the file says of the model: 3 layers with 512 KV tokens of 256 bytes each.
        layers = json.loads(nk.out("inspect", nk.KJV, "--json"))
        self.assertEqual(stages[0]["kv_bytes"], 3 * 256 * 512)
        self.assertEqual(stages[0]["weight_bytes"],
                         sum(l["bytes"] for l in layers["layers"][:3]) + layers["embd_bytes"] + layers["other_bytes"])
        # 3 and 5 layers, the head, and one hop with a row of 128 floats.
        ms = 3 * 2.1 + 5 * 1.2 + 0.9 + 0.3 + 0.1 + 128 * 4 / 117e6 * 1e3
        self.assertAlmostEqual(told["ms_per_token"], ms)
        self.assertTrue(told["exact"])
        self.assertEqual([s["id"] for s in told["spares"]], ["attic", "phone"])
        self.assertEqual(told["alternatives"][0]["what"], "one machine alone")
        done = self.plan("--ctx", "512", "--streams", "8")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertNotIn("\x1b", done.stdout)
        for text in ("a chain of 2 machines", "lap^[[31mtop", "3-8", "There is no better plan", "attic: one stream would get 54.32 tokens/s, not 73.51",
                     "phone: too little memory", "one machine alone", "first token after"):
            self.assertIn(text, done.stdout)

    def test_plan__that_does_not_fit_says_how_much_is_missing(self):
        done = self.plan("--ctx", "65536")
        self.assertEqual(done.returncode, 1)
        self.assertIn("does not fit", done.stdout)
        self.assertIn("one more with ", done.stderr)
        told = json.loads(self.plan("--ctx", "65536", "--json").stdout)
        self.assertEqual((told["kind"], told["chains"], told["tokens_per_s"]), ("does_not_fit", [], None))
        more = {"id": "more", "memory_bytes": told["short_bytes"], "overhead_bytes": "1 MiB", "layer_ms_1": 1}
        told = json.loads(self.plan("--ctx", "65536", "--json", facts=dict(FACTS, members=FACTS["members"] + [more])).stdout)
        self.assertNotEqual(told["kind"], "does_not_fit")
        done = self.plan("--spread", "5")
        self.assertEqual(done.returncode, 1)
        self.assertIn("5 machines are asked for, and 4 may hold layers", done.stderr)

    def test_plan__of_this_machine_alone_says_that_its_speed_is_not_known(self):
        text = nk.out("plan", nk.KJV)
        self.assertIn("one machine: rates are not known", text)
        self.assertIn("nakshatra measure", text)
        self.assertIsNone(json.loads(nk.out("plan", nk.KJV, "--json"))["tokens_per_s"])

    def test_plan__a_bad_file_gets_a_sentence(self):
        def member(**more):
            return {"members": [dict({"id": "a", "memory_bytes": 1}, **more)]}
        for facts, sentence in [
                ("{", "line 1: not JSON"), ("[]", "found a list"), ({}, "'members' is missing"), ({"members": []}, "is missing or empty"),
                ({"members": [1]}, "members[0]: expected an object, found a number"), ({"member": []}, "'member' is no key here"),
                ({"members": [{"id": "a"}]}, "members[0]: 'memory_bytes' is missing"), (member(id=""), "found an empty one"),
                (member(id="x" * 64), "64 bytes are too long"), (member(memory_bytes="12 gigs"), '"24 GiB"'),
                (member(memory_bytes=-1), "expected bytes"), (member(memory_bytes=1e300), "below 2^56"),
                (member(layer_ms=1), "'layer_ms' is no key of it; did you mean layer_ms_"),
                (member(layer_ms_1="1"), "layer_ms_1: expected a number of at least 0"), (member(chunk_rows=1.5), "whole number"),
                (member(no_layers=1), "expected true or false, found a number"),
                ({"members": [{"id": "a", "memory_bytes": 1}] * 2}, "two members have the id a"),
                (dict(member(), links=[{"from": "a", "to": "b"}]), "links[0]: 'rtt_ms' is missing"),
                (dict(member(), default_link={"rtt_ms": None}), "default_link: rtt_ms"),
                ('{"members": [], "members": []}', "not JSON: duplicate"), ("[" * 100000, "not JSON")]:
            with self.subTest(sentence):
                done = self.plan(facts=facts)
                self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (2, "", 1), done)
                self.assertIn(sentence, done.stderr)
                self.assertIn("members.json", done.stderr)
        for args, sentence in [(["--objective", "speed"], "is not stream or rate"), (["--members", "/dev/zero"], "/dev/zero")]:
            done = nk.run("plan", nk.KJV, *args)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (2, "", 1), done)
            self.assertIn(sentence, done.stderr)


if __name__ == "__main__":
    unittest.main()

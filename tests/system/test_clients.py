"""Clients from npm (openai, @anthropic-ai/sdk, ai and its providers, @openai/agents, LangChain, ollama) as tests: tests/clients/*.test.mjs under
node's own runner.

The packages are installed into the build folder by the lock file (npm ci), without running their scripts."""
import contextlib
import os
import re
import shutil
import subprocess
import textwrap
import unittest

import models
import nk
from gateway import Gateway, HERMES
from test_embeddings import Served

CLIENTS = os.path.join(os.path.dirname(nk.HERE), "clients")
KEY = "a-key-for-clients"


def install(source, target):
    """npm ci of a folder's lock file into target; done once per lock file. Returns target."""
    os.makedirs(target, exist_ok=True)
    with open(os.path.join(source, "package-lock.json"), "rb") as f:
        lock = f.read()
    stamp = os.path.join(target, "node_modules", ".stamp")
    for name in sorted(os.listdir(source)):
        if os.path.isfile(os.path.join(source, name)):
            shutil.copy(os.path.join(source, name), target)
    known = None
    with contextlib.suppress(FileNotFoundError), open(stamp, "rb") as f:
        known = f.read()
    if known != lock:
        done = subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=target, capture_output=True, text=True, timeout=nk.LONG_S)
        if done.returncode:
            raise AssertionError("npm ci failed\n" + done.stdout + done.stderr)
        with open(stamp, "wb") as f:
            f.write(lock)
    return target


class Clients(unittest.TestCase):
    def test_clients(self):
        folder = install(CLIENTS, os.path.join(nk.BUILD, "tests", "clients"))
        keys = os.path.join(folder, "keys")
        with open(keys, "w") as f:
            f.write(KEY + "\n")
        os.chmod(keys, 0o600)
        # Enough context that a generation lasts, and that 32 have room.
        with nk.Chain(nk.KJV, "0-4,4-8", "--ctx", "8192") as chain, \
                Gateway(chain.file, "--chat-template", HERMES, "--api-key-file", keys) as gateway, \
                Served(models.encoder(os.path.join(folder, "small.gguf")), "0-2,2-4") as embedder:
            gateway.wait_ready()
            tests = sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".test.mjs"))
            for test in tests:  # one after the other: each looks whether anything runs
                done = subprocess.run(["node", "--test", test], cwd=folder, capture_output=True, text=True, timeout=2 * nk.LONG_S,
                                      env=dict(os.environ, NK_URL=gateway.url, NK_EMBED_URL=embedder.gateway.url, NK_MODEL=os.path.basename(nk.KJV), NK_KEY=KEY))
                self.assertEqual(done.returncode, 0, done.stdout[-20000:] + done.stderr[-4000:] + gateway.log()[-4000:])
                self.assertRegex(done.stdout, r"(?m)^(# |\u2139 )pass [1-9]\d?$")
            chain.assert_idle()

    def test_document(self):
        """The blocks of docs/clients.md for curl, the SDKs but the one of agents, and Ollama's client, as they stand there."""
        folder = install(CLIENTS, os.path.join(nk.BUILD, "tests", "clients"))
        with open(os.path.join(nk.SOURCE, "docs", "clients.md")) as f:
            blocks = [textwrap.dedent(b) for b in re.findall(r"(?m)(?:^    .*\n)+", f.read())]
        curl = next(b for b in blocks if b.startswith("curl"))
        # The Agents SDK takes an answer that reaches its limit for an error, as this model's does; agents.test.mjs has stop strings.
        scripts = [b for b in blocks if b.startswith("import") and "@openai/agents" not in b]
        self.assertEqual(len(scripts), 10)
        with nk.Chain(nk.KJV, "0-4,4-8") as chain, Gateway(chain.file, "--chat-template", "chatml") as gateway:
            gateway.wait_ready()

            def here(text):
                return text.replace("http://127.0.0.1:8080", gateway.url).replace("NAME", os.path.basename(nk.KJV))
            done = subprocess.run(["sh", "-c", here(curl)], capture_output=True, text=True, timeout=2 * nk.LONG_S)
            self.assertTrue(done.stdout.endswith("data: [DONE]\n\n"), done)
            for text in scripts:
                script = os.path.join(folder, "document.mjs")
                with open(script, "w") as f:
                    f.write(here(text))
                done = subprocess.run(["node", script], capture_output=True, text=True, timeout=2 * nk.LONG_S)
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertTrue(done.stdout.strip())


if __name__ == "__main__":
    unittest.main()

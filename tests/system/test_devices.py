"""A chain of unlike devices: the CPU, and Mesa's lavapipe, which is Vulkan without a GPU.

lavapipe compiles every shader for the CPU when it is first used: half a minute of computing for a worker's first start,
a second later on (mesa_shader_cache in build/tests/cache). So only batches of one and three rows are run, those that
loading has to compile anyway."""
import os
import unittest

import nk
import talk
import test_verify

GOLDEN = nk.golden("kjv-tiny")
PROMPT = GOLDEN["prompt"]
MESA_CACHE = os.path.join(nk.BUILD, "tests", "cache")
VULKAN = {"GGML_VK_VISIBLE_DEVICES": "0", "MESA_SHADER_CACHE_DIR": MESA_CACHE}
TEXT = GOLDEN["text"][len(GOLDEN["prompt_text"]):].encode()


def setUpModule():
    os.makedirs(MESA_CACHE, exist_ok=True)
    have = nk.run("worker", "--model", nk.KJV, "--layers", "0-8", "--device", "none", env=nk.env(**VULKAN)).stderr
    if "Vulkan0" not in have:
        nk.missing(f"a Vulkan device is needed (libggml0-backend-vulkan, mesa-vulkan-drivers): {have}")


class Devices(unittest.TestCase):
    def worker(self, layers, vulkan, **more):
        w = nk.Worker("--model", nk.KJV, "--layers", layers, "--threads", 1, "--batch", 8, "--chunk", 3,
                      "--no-flash-attn", "--device", "Vulkan0" if vulkan else "CPU", wait=False,
                      env_more=VULKAN if vulkan else None, **more)
        self.addCleanup(w.kill)
        return w.wait_ready(500)

    def test_cpu_and_vulkan__write_the_text_of_the_cpu(self):
        for vulkan in 0, 1:
            last = self.worker("4-8", vulkan == 1, id="last")
            first = self.worker("0-4", vulkan == 0, id="first", peers=[last.address])
            workers = [first, last]
            i = workers[vulkan].info()
            self.assertEqual((i.device, i.backend), ("Vulkan0", "Vulkan"))
            self.assertNotEqual(i.device_description, workers[1 - vulkan].info().device_description)
            with talk.Wire(workers) as wire:
                r = wire.generate(PROMPT, 64)
                self.assertEqual((r.code, r.text), ("OK", TEXT))
            for w in workers:
                w.assert_idle()
                self.assertEqual(w.stop(), 0, w.log())


class Verify(test_verify.Case):
    """It computes in another order than ggml's CPU code, so what is stated is a bound."""
    SIZE = ("--tokens", 6, "--sequences", 1, "--batch", 2, "--threads", 1)  # shapes that loading has to compile anyway

    def test_verify__a_stage_of_a_chain_is_within_the_bound(self):
        args = ["--layers", "0-4,4-8", "--device", "Vulkan0,CPU", *self.SIZE]
        report = self.verify(nk.KJV, *args, "--bound", "1e-5", env=nk.env(**VULKAN), timeout=500)
        (s,) = report["splits"]
        self.assertEqual((s["devices"], s["result"], s["bit_identical"], s["ok"]), (["Vulkan0", "CPU"], "within the bound", False, True))
        self.assertEqual((s["top1"], s["not_finite"]), (s["rows"], 0))
        self.assertLess(s["worst_nmse"], 1e-5)
        # ... and it is a bound: one that is missed fails.
        report = self.verify(nk.KJV, *args, "--bound", "0", env=nk.env(**VULKAN), timeout=500, code=1)
        self.assertEqual((report["ok"], report["splits"][0]["result"]), (False, "WRONG"))


if __name__ == "__main__":
    unittest.main()

"""A chain of unlike devices: the CPU, and Mesa's lavapipe, which is Vulkan without a GPU.

lavapipe compiles every shader for the CPU when it is first used: half a minute of computing for a worker's first start,
a second later on (BUILD/tests/cache/mesa_shader_cache). So only batches of one and three rows are run, those that loading
has to compile anyway."""
import os
import unittest

import nk
import talk

GOLDEN = nk.golden("kjv-tiny")
PROMPT = GOLDEN["prompt"]
TEXT = GOLDEN["text"][len(GOLDEN["prompt_text"]):].encode()


class Devices(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if os.environ.get("NK_SANITIZE") == "tsan":
            raise unittest.SkipTest("lavapipe's own threads are not instrumented")
        have = nk.run("worker", "--model", nk.KJV, "--layers", "0-8", "--device", "none",
                      env=nk.env(GGML_VK_VISIBLE_DEVICES="0")).stderr
        if "Vulkan0" not in have:
            what = f"a Vulkan device is needed (libggml0-backend-vulkan, mesa-vulkan-drivers): {have}"
            if os.environ.get("CI") == "true":
                raise AssertionError(what)
            raise unittest.SkipTest(what)

    def worker(self, layers, vulkan, **more):
        w = nk.Worker("--model", nk.KJV, "--layers", layers, "--threads", 1, "--batch", 8, "--chunk", 3,
                      "--no-flash-attn", "--device", "Vulkan0" if vulkan else "CPU", wait=False,
                      env_more={"GGML_VK_VISIBLE_DEVICES": "0"} if vulkan else None, **more)
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


if __name__ == "__main__":
    unittest.main()

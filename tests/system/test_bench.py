"""nakshatra bench: synthetic models load in llama.cpp, and what was measured can be read and compared."""
import os
import shutil
import subprocess
import tempfile
import unittest

BUILD = os.environ.get("NK_BUILD", os.path.join(os.path.dirname(__file__), "../../build"))
NAKSHATRA = os.path.join(BUILD, "nakshatra")
SMALL = ["--layers", "2", "--width", "256", "--ff", "512", "--heads", "4", "--kv-heads", "2", "--vocab", "2048",
         "--ctx", "512"]


def nakshatra(*args, timeout=120):
    return subprocess.run([NAKSHATRA, *args], capture_output=True, text=True, timeout=timeout)


def llama_tool(name, *args, timeout=120):
    """One of llama.cpp's own programs; the private copy finds its backends in the working directory."""
    command = [os.path.join(os.environ.get("NK_LLAMA_BIN", "/usr/bin"), name), *args]
    loader, lib = os.environ.get("NK_LLAMA_LOADER"), os.environ.get("NK_LLAMA_LIB")
    cwd = None
    if loader:
        command = [loader, "--library-path", lib + ":" + lib + "/llama", *command]
        cwd = lib + "/ggml/backends0"
    return subprocess.run(command, capture_output=True, timeout=timeout, cwd=cwd, stdin=subprocess.DEVNULL)


class Synth(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)
        self.model = os.path.join(self.dir, "m.gguf")

    def write(self, *args):
        done = nakshatra("bench", "synth", *args, "--out", self.model)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_llama_cpp_generates_with_it(self):
        for options in (["--type", "Q4_K"], ["--type", "Q8_0", "--untied"],
                        ["--type", "Q4_0", "--experts", "4", "--experts-used", "2"]):
            with self.subTest(options):
                self.write(*SMALL, *options, "--force")
                done = llama_tool("llama-completion", "-m", self.model, "-p", "Hello world", "-n", "8", "-no-cnv",
                                  "--temp", "0", "--ignore-eos", "-t", "1", "-ngl", "0")
                self.assertEqual(done.returncode, 0, done.stderr[-2000:])
                self.assertTrue(done.stdout.strip().startswith(b"Hello world"), done.stdout)
                self.assertGreater(len(done.stdout.strip()), len(b"Hello world"))

    def test_any_text_survives_the_vocabulary(self):
        text = "Grüße, the quick 日本 fox! 12345\n\t{x}"
        prompt = os.path.join(self.dir, "prompt")
        with open(prompt, "w", encoding="utf-8") as f:
            f.write(text)
        self.write(*SMALL)
        done = llama_tool("llama-tokenize", "-m", self.model, "-f", prompt, "--ids", "--no-bos", "--log-disable")
        self.assertEqual(done.returncode, 0, done.stderr)
        ids = eval(done.stdout.decode().strip().splitlines()[-1])
        self.assertLess(len(ids), len(text.encode()))
        self.assertTrue(all(0 <= i < 2048 - 256 for i in ids), ids)

    def test_refuses_to_replace_a_file_unless_told_so(self):
        self.write(*SMALL)
        done = nakshatra("bench", "synth", *SMALL, "--out", self.model)
        self.assertEqual(done.returncode, 1)
        self.assertIn("--force", done.stderr)

    def test_bad_options_are_exit_code_2_and_leave_nothing(self):
        for options in (["--shape", "huge"], ["--type", "Q9"], ["--width", "100"], ["--layers", "-1"], ["--nonsense"]):
            with self.subTest(options):
                done = nakshatra("bench", "synth", *options, "--out", self.model)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertEqual(os.listdir(self.dir), [])


if __name__ == "__main__":
    unittest.main()

"""From a clone to an installed program: what scripts/deps says when it cannot, and what `make install` takes along."""
import os
import shutil
import subprocess
import tempfile
import unittest

import nk


@unittest.skipUnless(shutil.which("apt-get"), "not Debian")
class Deps(unittest.TestCase):
    def setUp(self):
        self.tree = tempfile.mkdtemp(prefix="nk deps ")  # a clone's folder may have spaces
        self.addCleanup(shutil.rmtree, self.tree)
        os.chmod(self.tree, 0o777)
        os.mkdir(os.path.join(self.tree, "scripts"))
        shutil.copy(os.path.join(nk.SOURCE, "scripts", "deps"), os.path.join(self.tree, "scripts"))

    def deps(self, *before, **more):
        env = dict(os.environ, NK_PRIVATE_LLAMA="1", **more)
        done = subprocess.run([*before, os.path.join(self.tree, "scripts", "deps")], env=env, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=120)
        self.assertNotEqual(done.returncode, 0, done.stderr)
        self.assertEqual(os.listdir(self.tree), ["scripts"], "something was left behind")
        return done.stderr

    def test_deps__names_the_mirror_that_does_not_answer(self):
        said = self.deps(DEBIAN_MIRROR="http://127.0.0.1:9/debian")
        self.assertIn("could not be fetched from http://127.0.0.1:9/debian (DEBIAN_MIRROR=URL names another mirror)", said)

    def test_deps__without_root_names_the_missing_packages(self):
        with tempfile.TemporaryDirectory() as nothing:
            os.chmod(nothing, 0o755)
            drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
            said = self.deps(*drop, DPKG_ADMINDIR=nothing)  # where nothing is installed
        self.assertRegex(said, "Ask somebody who may to run: apt-get update && apt-get install .* libgrpc-dev ")


class Install(unittest.TestCase):
    def install(self, dest):
        """Every file that is installed, as a path from the prefix."""
        done = subprocess.run(["cmake", "--install", nk.BUILD], env=dict(os.environ, DESTDIR=dest), capture_output=True,
                              text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        found = {os.path.join(folder, n) for folder, _, names in os.walk(dest) for n in names}
        prefix = next(path for path in found if path.endswith("/bin/nakshatra"))[:-len("bin/nakshatra")]
        return {path[len(prefix):]: path for path in found}

    def test_install__takes_the_man_page_and_completions_along(self):
        with tempfile.TemporaryDirectory(prefix="nk-install-") as dest:
            found = self.install(dest)
            for name, format in (("share/man/man1/nakshatra.1", "man"),
                                 ("share/bash-completion/completions/nakshatra", "bash"),
                                 ("share/zsh/site-functions/_nakshatra", "zsh"),
                                 ("share/fish/vendor_completions.d/nakshatra.fish", "fish")):
                with open(found[name]) as f:
                    self.assertEqual(f.read(), nk.out("help", "--" + format), name)

    def test_install__takes_its_llama_cpp_along(self):
        with tempfile.TemporaryDirectory(prefix="nk-install-") as dest:
            found = self.install(dest)
            command, private = [found["bin/nakshatra"]], os.environ.get("NK_LLAMA_LOADER")
            if private:  # the prefix is linked in and this is not the prefix: the same loader, started by hand
                loader = found["lib/nakshatra/" + os.path.basename(private)]
                command = [loader, "--library-path", os.path.dirname(loader), *command]
            done = subprocess.run([*command, "verify", nk.KJV, "--into", "2", "--tokens", "8", "--sequences", "1"],
                                  env=nk.env(LD_DEBUG="files"), cwd=dest, capture_output=True, text=True, timeout=120 * nk.SLOW)
            self.assertEqual(done.returncode, 0, done.stderr[-2000:])
            self.assertIn("exact", done.stdout)
            loaded = [line for line in done.stderr.splitlines() if "calling init" in line]
            self.assertTrue(any("libggml-cpu" in line for line in loaded), "no CPU backend was loaded")
            self.assertEqual([line for line in loaded if "/.deps/" in line], [])


if __name__ == "__main__":
    unittest.main()

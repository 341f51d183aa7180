"""The tarball that `make dist` makes, unpacked in a system without any library: busybox's static program, /proc and /dev.

What is started is the tarball's program as it is shipped, by a user who is not root where this one may choose, from folders
with a space, read-only and through a link; it starts its workers and its template children itself."""
import glob
import os
import shutil
import subprocess
import tempfile
import unittest

import nk

PRIVATE = os.environ.get("NK_LLAMA_LOADER")
PROMPT = "In the beginning"
# As the root of a name space of its own; where this user is root already, what is run in it need not be.
UNSHARE = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"] + ([] if os.getuid() == 0 else ["--map-root-user"])
USER = ["--userspec=65534:65534"] if os.getuid() == 0 else []


def dist(into, **more):
    return subprocess.run([os.path.join(nk.SOURCE, "scripts", "dist"), "--into", into, "--level", "1"],
                          env=nk.env(NK_BUILD=nk.BUILD, **more), capture_output=True, text=True, timeout=nk.LONG_S)


@unittest.skipUnless(PRIVATE, "the system's llama.cpp: make dist wants a private one (NK_PRIVATE_LLAMA=1 make deps)")
class Dist(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.busybox = shutil.which("busybox")
        if not cls.busybox or b"ld-linux" in subprocess.run(["head", "-c", "4096", cls.busybox], capture_output=True).stdout:
            nk.missing("a static busybox (package busybox-static)")
        if subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
            nk.missing("mounting in a name space of its own (unshare --mount)")
        cls.dir = tempfile.mkdtemp(prefix="nk-dist-")
        cls.addClassCleanup(shutil.rmtree, cls.dir)
        os.chmod(cls.dir, 0o755)
        os.mkdir(os.path.join(cls.dir, "out"))
        done = dist(os.path.join(cls.dir, "out"), SOURCE_DATE_EPOCH="1700000000")
        if done.returncode:
            raise AssertionError(done.stderr)
        (cls.archive,) = glob.glob(os.path.join(cls.dir, "out", "nakshatra-*-linux-*.tar.zst"))
        cls.root = os.path.join(cls.dir, "root")
        for name in "bin", "proc", "dev", "tmp", "empty", "opt/my programs", "srv":
            os.makedirs(os.path.join(cls.root, name))
        shutil.copy(cls.busybox, os.path.join(cls.root, "bin", "busybox"))
        subprocess.run(["tar", "--zstd", "-xf", cls.archive, "-C", os.path.join(cls.root, "opt", "my programs")], check=True)
        (cls.name,) = os.listdir(os.path.join(cls.root, "opt", "my programs"))
        cls.folder = f"/opt/my programs/{cls.name}"
        os.symlink(cls.folder + "/bin/nakshatra", os.path.join(cls.root, "bin", "nakshatra"))
        os.makedirs(os.path.join(cls.root, "srv", "moved"))
        shutil.copy(nk.KJV, os.path.join(cls.root, "srv", "kjv.gguf"))

    def sh(self, script, before=""):
        """Runs a script of busybox's shell in the root, as nobody; before: as root, ahead of that."""
        mounts = f"""set -e
            mount -t tmpfs -o mode=1777 none '{self.root}/tmp'
            mount --rbind /dev '{self.root}/dev'
            mount --bind '{self.root}{self.folder}' '{self.root}{self.folder}'
            mount -o remount,bind,ro '{self.root}{self.folder}'
            mount --bind '{self.root}{self.folder}' '{self.root}/srv/moved'
            ip link set lo up
            {before or f"mount -t proc proc '{self.root}/proc'"}
            exec chroot {' '.join(USER)} '{self.root}' /bin/busybox sh -c "$1" """
        clean = {"PATH": "/bin:/sbin:/usr/bin:/usr/sbin", "HOME": "/tmp", "XDG_CACHE_HOME": "/tmp/cache", "NK_LOG": "warn"}
        return subprocess.run([*UNSHARE, "sh", "-c", mounts, "sh", "cd /tmp; busybox() { /bin/busybox \"$@\"; }\n" + script],
                              env=clean, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=nk.LONG_S)

    def test_runs_where_there_is_no_library_at_all(self):
        """From a read-only folder with a space through a link in PATH, and from another folder; the text is the build's."""
        expected = nk.out("up", nk.KJV, "--prompt", PROMPT, "-n", 8, "--temp", 0)
        done = self.sh(f"""
            ! echo x 2>/dev/null >'{self.folder}/x' || exit 9
            nakshatra --version &&
            nakshatra up /srv/kjv.gguf --prompt '{PROMPT}' -n 8 --temp 0 && echo '|' &&
            LD_DEBUG=files LD_DEBUG_OUTPUT=/tmp/loaded /srv/moved/bin/nakshatra up /srv/kjv.gguf --prompt '{PROMPT}' -n 8 --temp 0 &&
            echo '|' && busybox sed -n 's/.*calling init: //p' /tmp/loaded.* | busybox sort -u""")
        self.assertEqual(done.returncode, 0, done.stderr)
        version, rest = done.stdout.split("\n", 1)
        first, second, loaded = rest.split("|\n")
        self.assertEqual(version, nk.out("--version").strip())
        self.assertEqual((first.rstrip("\n"), second.rstrip("\n")), (expected.rstrip("\n"), expected.rstrip("\n")))
        loaded = loaded.split()
        self.assertTrue(any("libggml-cpu" in line for line in loaded), loaded)
        # The loader goes by the name that is linked into the program; there is no such file.
        self.assertEqual([line for line in loaded if not line.startswith("/srv/moved/")], ["/" + os.path.basename(PRIVATE)])

    def test_its_children_render_templates(self):
        """A child is started as /proc/self/exe, under another name; without it there is no chat."""
        with open(os.path.join(self.root, "srv", "chat.jinja"), "w") as f:
            f.write("{% for m in messages %}{{ m.content }}{% endfor %}")
        done = self.sh("""
            nakshatra up /srv/kjv.gguf --chat-template /srv/chat.jinja --listen 127.0.0.1:8080 >/tmp/said &
            server=$!
            until busybox grep -q 'listening on' /tmp/said; do
                kill -0 $server || exit 9
                busybox sleep 0.05
            done
            busybox readlink /proc/$server/exe
            busybox wget -q -O - --header 'Content-Type: application/json' --post-data \
                '{"model":"kjv","messages":[{"role":"user","content":"In the beginning"}],"max_tokens":4,"temperature":0}' \
                http://127.0.0.1:8080/v1/chat/completions
            kill $server
            wait $server""")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        exe, answer = done.stdout.split("\n", 1)
        self.assertEqual(exe, self.folder + "/bin/nakshatra")
        self.assertIn('"finish_reason":"length"', answer.replace(" ", ""), done.stderr)

    def test_what_is_missing_is_named(self):
        done = self.sh("busybox mkdir -p /tmp/a/bin; busybox cp /bin/nakshatra /tmp/a/bin/; /tmp/a/bin/nakshatra --version")
        self.assertEqual((done.returncode, done.stdout, done.stderr),
                         (127, "", "nakshatra: /tmp/a/lib/nakshatra/nakshatra: is not there: the folder of the tarball has to stay whole\n"))
        done = self.sh("nakshatra --version", before=":")
        self.assertEqual((done.returncode, done.stdout, done.stderr),
                         (127, "", "nakshatra: /proc/self/exe: cannot be read: /proc has to be mounted\n"))
        done = self.sh(f"""busybox cp -r '{self.folder}' /tmp/b && cd /tmp/b/lib/nakshatra && busybox chmod u+w nakshatra &&
            busybox truncate -s 100 nakshatra; ../../bin/nakshatra --version""")
        self.assertEqual((done.returncode, done.stderr),
                         (127, "nakshatra: /tmp/b/lib/nakshatra/nakshatra: is damaged: it ends in its program headers\n"))

    def test_the_same_tree_gives_the_same_bytes(self):
        again = os.path.join(self.dir, "again")
        os.mkdir(again)
        done = dist(again, SOURCE_DATE_EPOCH="1700000000")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(nk.sha256(os.path.join(again, os.path.basename(self.archive))), nk.sha256(self.archive))
        self.assertLess(os.path.getsize(self.archive), 80 << 20)

    def test_what_is_in_it(self):
        folder = self.root + self.folder
        for name, format in (("man/man1/nakshatra.1", "man"), ("bash-completion/completions/nakshatra", "bash"),
                             ("zsh/site-functions/_nakshatra", "zsh"), ("fish/vendor_completions.d/nakshatra.fish", "fish")):
            with open(os.path.join(folder, "share", name)) as f:
                self.assertEqual(f.read(), nk.out("help", "--" + format), name)
        with open(os.path.join(folder, "share", "doc", "nakshatra", "licences", "README")) as f:
            packages = f.read()
        for package in "libc6", "libggml0", "libgrpc", "libvulkan1", "libgomp1":
            self.assertRegex(packages, rf"(?m)^{package}\S* \S+ ")
        for kind in "system", "user":
            for unit in "serve", "join":
                with open(os.path.join(folder, "lib", "systemd", kind, f"nakshatra-{unit}.service")) as f:
                    (start,) = [line for line in f if line.startswith("ExecStart=")]
                self.assertIn(f"/bin/nakshatra {unit}", start)
                self.assertNotIn("TOKEN", start)


# A project with nothing but cmake/llama.cmake: says which libllama it runs with, and where its backends would be.
PROJECT = """
cmake_minimum_required(VERSION 3.25)
project(small LANGUAGES C)
set(CMAKE_SKIP_RPATH ON)
include(${NK_SOURCE}/cmake/llama.cmake)
add_executable(small small.c)
target_link_libraries(small llama)
target_compile_definitions(small PRIVATE _GNU_SOURCE SUBDIR="${NK_BACKEND_SUBDIR}")
"""
MAIN = """
#include <dlfcn.h>
#include <llama.h>
#include <stdio.h>
int main(void)
{
    Dl_info info;
    return !dladdr((void *)llama_backend_init, &info) || printf("%s\\n%s\\n", info.dli_fname, SUBDIR) < 0;
}
"""


@unittest.skipUnless(PRIVATE, "no second copy of llama.cpp to link with (NK_PRIVATE_LLAMA=1 make deps)")
class Prefix(unittest.TestCase):
    """A llama.cpp of one's own (make LLAMA_PREFIX=DIR): here a second copy of the private one, with a .pc file of its own. That
    copy wants a newer C library than the system's, so the file has the options that come with it (cmake/llama.cmake)."""

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="nk-prefix-")
        self.addCleanup(shutil.rmtree, self.dir)
        for name, text in ("CMakeLists.txt", PROJECT), ("small.c", MAIN):
            with open(os.path.join(self.dir, name), "w") as f:
                f.write(text)
        os.symlink(os.path.join(nk.SOURCE, ".deps"), os.path.join(self.dir, ".deps"))  # what is there must not be taken

    def configure(self, prefix):
        return subprocess.run(["cmake", "-S", self.dir, "-B", os.path.join(self.dir, "build"), "-DNK_LLAMA_PREFIX=" + prefix,
                               "-DNK_SOURCE=" + nk.SOURCE], capture_output=True, text=True, timeout=nk.LONG_S)

    def test_a_llama_cpp_of_ones_own(self):
        prefix = os.path.join(self.dir, "prefix")
        own = os.path.join(prefix, "lib", "here")
        shutil.copytree(os.environ["NK_LLAMA_LIB"], own, ignore=shutil.ignore_patterns(
            "pkgconfig", "cmake", "gconv", "engines-*", "libggml-vulkan*", "libllama-common*", "libmtmd*"))
        os.mkdir(os.path.join(own, "pkgconfig"))
        os.symlink(os.path.join(nk.SOURCE, ".deps", "root", "usr", "include"), os.path.join(prefix, "include"))
        libraries = " ".join("-l:" + name for name in ("libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libgomp.so.1"))
        with open(os.path.join(own, "pkgconfig", "llama.pc"), "w") as f:
            f.write(f"Name: llama\nDescription: llama.cpp\nVersion: 0.7.0\nprefix={prefix}\nlibdir={own}\n"
                    f"Cflags: -I{prefix}/include\nLibs: -L{own} -Wl,--no-as-needed {libraries} -lllama -lggml -lggml-base "
                    f"-Wl,--allow-shlib-undefined,--dynamic-linker={own}/{os.path.basename(PRIVATE)}\n")
        done = self.configure(prefix)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"-- llama.cpp 0.7.0 from {own}\n", done.stdout)
        build = os.path.join(self.dir, "build")
        done = subprocess.run(["cmake", "--build", build], capture_output=True, text=True, timeout=nk.LONG_S)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        library, subdir = nk.out(program=os.path.join(build, "small")).splitlines()
        self.assertEqual(os.path.dirname(library), own)
        self.assertTrue(glob.glob(os.path.join(own, subdir, "libggml-cpu*.so")), subdir)

    def test_a_folder_without_one_is_refused(self):
        done = self.configure(os.path.join(self.dir, "nothing"))
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(f"no pkgconfig/llama.pc in the lib, lib64 or share of {self.dir}/nothing", " ".join(done.stderr.split()))


if __name__ == "__main__":
    unittest.main()

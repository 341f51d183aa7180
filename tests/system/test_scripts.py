"""The scripts that judge: scripts/test and scripts/sanitize on a project whose tests fail once, always and never;
scripts/stress-tests and scripts/conformance likewise; scripts/check-style on C that is and is not as it should be.

The project is a folder with copies of the scripts and a CMakeLists.txt without a language: what CMake and CTest do is real."""
import contextlib
import importlib.machinery
import importlib.util
import io
import os
import re
import shutil
import signal
import subprocess
import tempfile
import textwrap
import unittest

import ggufio
import nk

ALL = ["style", "build", "plain", "asan-build", "asan", "tsan-build", "tsan", "conformance"]
CMAKE = """
cmake_minimum_required(VERSION 3.25)
project(small LANGUAGES NONE)
enable_testing()
if(EXISTS ${CMAKE_SOURCE_DIR}/broken)
  message(FATAL_ERROR "this does not build")
endif()
add_custom_target(nk_jinja)
add_custom_target(threads)
file(WRITE ${CMAKE_BINARY_DIR}/jinja.path "none")
file(COPY ${CMAKE_SOURCE_DIR}/nakshatra DESTINATION ${CMAKE_BINARY_DIR})
file(GLOB tests ${CMAKE_SOURCE_DIR}/tests/*.sh)
foreach(path ${tests})
  get_filename_component(name ${path} NAME_WE)
  add_test(NAME ${name} COMMAND sh ${path} ${CMAKE_SOURCE_DIR}/order WORKING_DIRECTORY ${CMAKE_BINARY_DIR})
  set_tests_properties(${name} PROPERTIES LABELS threads)
endforeach()
"""
# Each tells in the file `order` when it begins and ends.
TESTS = {
    "passes": "true",
    "fails": "echo it is always so; exit 1",
    "once": "[ -e been ] || { touch been; echo the first time; exit 1; }",
}
CONFORMANCE = """#!/bin/sh
cat >/dev/null  # until it is told that all else is over
echo "conformance ends" >>"${0%/*}/../order"
echo "model  exact  exact"
"""


class Project(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="nk-scripts-")
        self.addCleanup(shutil.rmtree, self.dir)
        for name in ("test", "sanitize", "stress-tests"):
            self.copy("scripts", name)
        self.copy("tests", "tools", "steal_cores.py")
        self.write("CMakeLists.txt", CMAKE)
        self.write("nakshatra", "#!/bin/sh\n")
        self.write("scripts/check-style", "#!/bin/sh\n")
        self.write("scripts/conformance", CONFORMANCE)
        self.write("order", "")

    def path(self, name):
        return os.path.join(self.dir, name)

    def copy(self, *parts):
        target = self.path(os.path.join(*parts))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy(os.path.join(nk.SOURCE, *parts), target)

    def write(self, name, text):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w") as f:
            f.write(text)
        os.chmod(self.path(name), 0o755)

    def read(self, name):
        with open(self.path(name)) as f:
            return f.read()

    def add_tests(self, *names, **more):
        for name in names:
            more[name] = TESTS[name]
        for name, body in more.items():
            self.write(f"tests/{name}.sh", f'echo "{name} begins" >>"$1"\n{body}\necho "{name} ends" >>"$1"\n')

    def start(self, script, *args):
        # ctest would take its settings from the ctest that runs this.
        env = {k: v for k, v in os.environ.items() if not k.startswith("CTEST_")}
        return subprocess.Popen([self.path("scripts/" + script), *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True)

    def call(self, *args, script="test"):
        """Its exit code and what it wrote."""
        process = self.start(script, *args)
        text = process.communicate(timeout=nk.LONG_S)[0]
        return process.returncode, text

    def closing(self, text):
        """What became of each stage, the lines that say what was flaky, and those of what failed."""
        ends = dict(re.findall(r"(?m)^(\S+) +(passed|FAILED|not run) +\d+ s$", text))
        return ends, re.findall(r"(?m)^flaky: (.*)$", text), re.findall(r"(?m)^(?:FAILED|not run): .*$", text)


class Test(Project):
    def test_all_pass(self):
        self.add_tests("passes")
        code, text = self.call()
        self.assertEqual((code, self.closing(text)), (0, ({name: "passed" for name in ALL}, [], [])), text)
        self.assertTrue(text.endswith("\nall stages passed\n"), text)
        self.assertEqual(self.read("order").count("passes ends"), 3)

    def test_what_fails_once_is_named_and_fails_nothing(self):
        """And it is run again alone, when all else is over."""
        self.add_tests("passes", "once")
        code, text = self.call()
        self.assertEqual((code, self.closing(text)),
                         (0, ({name: "passed" for name in ALL + ["again"]}, [f"{kind} once" for kind in ("plain", "asan", "tsan")], [])), text)
        order = self.read("order").splitlines()
        at = order.index("conformance ends")
        self.assertEqual(order[at + 1:], ["once begins", "once ends"] * 3)
        self.assertEqual((order[:at].count("once begins"), order[:at].count("once ends")), (3, 0))
        for folder in ("build", "build-asan", "build-tsan"):  # the first failure is kept, and shown
            self.assertIn("the first time", self.read(f"{folder}/Testing/first.log"))
            self.assertIn(f"once, from {folder}/Testing/first.log\n", text)

    def test_what_fails_twice_fails_the_run(self):
        self.add_tests("passes", "fails", "once")
        code, text = self.call()
        ends, flaky, failed = self.closing(text)
        self.assertEqual((code, flaky), (1, [f"{kind} once" for kind in ("plain", "asan", "tsan")]), text)
        self.assertEqual(failed, [f"FAILED: {kind} fails" for kind in ("plain", "asan", "tsan")])
        self.assertEqual({name for name, word in ends.items() if word != "passed"}, {"plain", "asan", "tsan", "again"})
        self.assertNotIn("all stages passed", text)

    def test_a_build_that_fails_fails_the_run_and_nothing_runs_on_it(self):
        self.add_tests("passes")
        self.write("broken", "")
        code, text = self.call()
        ends, _, failed = self.closing(text)
        self.assertEqual(code, 1, text)
        self.assertEqual(ends, {"style": "passed", "build": "FAILED", "plain": "not run", "asan-build": "FAILED", "asan": "not run",
                                "tsan-build": "FAILED", "tsan": "not run", "conformance": "not run"})
        self.assertEqual(len(failed), 7)
        self.assertIn("this does not build", text)
        self.assertEqual(self.read("order"), "")

    def test_a_stage_that_cannot_start_fails_the_run(self):
        self.add_tests("passes")
        for name in ("check-style", "conformance"):
            os.unlink(self.path("scripts/" + name))
        code, text = self.call()
        self.assertEqual((code, self.closing(text)[2]), (1, ["FAILED: style", "FAILED: conformance"]), text)
        self.assertIn("scripts/check-style: No such file or directory", text)

    def test_no_tests_at_all_is_no_success(self):
        """And those that failed in an earlier run are not the ones that failed now."""
        self.add_tests("fails")
        self.assertEqual(self.closing(self.call("--stages", "plain")[1])[2], ["FAILED: plain fails"])
        os.unlink(self.path("tests/fails.sh"))
        code, text = self.call("--stages", "plain")
        self.assertEqual((code, self.closing(text)), (1, ({"build": "passed", "plain": "FAILED"}, [], ["FAILED: plain"])), text)

    def test_some(self):
        self.add_tests("passes", "fails")
        code, text = self.call("--stages", "plain,tsan", "-R", "^pass")
        self.assertEqual((code, list(self.closing(text)[0])), (0, ["build", "plain", "tsan-build", "tsan"]), text)
        self.assertEqual(self.read("order"), "passes begins\npasses ends\n" * 2)
        code, text = self.call("--stages", "plain,none")
        self.assertEqual(code, 2)
        self.assertIn("there is no stage 'none'; there are style, build,", text)

    def test_skipped_are_named_and_counted(self):
        self.add_tests(one="""echo 'test_a (test_x.A.test_a) ... skipped "no such device"'
                              printf 'test_c (test_x.A.test_c)\\nWhat it shows. ... skipped "too small"\\n'""",
                       two="echo '[  SKIPPED ] test_b'")
        code, text = self.call("--stages", "plain,asan")
        self.assertEqual(code, 0)
        self.assertRegex(text, r"skipped \(in how many builds\):\n +2 test_a \(test_x.A.test_a\): \"no such device\"\n"
                               r" +2 test_b\n +2 test_c \(test_x.A.test_c\): \"too small\"\n")

    def test_stopped__it_ends_what_it_began(self):
        for number in signal.SIGINT, signal.SIGTERM:
            with self.subTest(number):
                self.add_tests(hangs='echo $$ >"$1.pid"; exec sleep 100000')
                self.write("scripts/conformance", '#!/bin/sh\necho $$ >"${0%/*}/../conformance.pid"\nexec sleep 100000\n')
                process = self.start("test", "--stages", "plain,asan,conformance")
                files = [self.path("order.pid"), self.path("conformance.pid")]
                self.assertTrue(nk.wait_for(lambda: all(os.path.exists(f) and self.read(f).strip() for f in files)))
                process.send_signal(number)
                text = process.communicate(timeout=nk.LONG_S)[0]
                self.assertEqual(process.returncode, 128 + number, text)
                self.assertNotIn("== asan", text)
                for f in files:
                    pid = int(self.read(f))
                    self.assertTrue(nk.wait_for(lambda: not nk.alive(pid)), f)
                    os.unlink(f)


class Stress(Project):
    def test_rounds(self):
        self.add_tests("passes", "once")
        code, text = self.call("--rounds", "2", "--stages", "plain", "--seed", "7", script="stress-tests")
        self.assertEqual(code, 1, text)  # flaky is as bad as failed
        self.assertTrue(text.endswith("\nround 1, seed 7: passed\n  flaky: plain once\nround 2, seed 8: passed\n"), text)
        self.assertEqual(text.count("steals "), 2)
        code, text = self.call("--rounds", "1", "--stages", "plain,asan", "-R", "passes", script="stress-tests")
        self.assertEqual(code, 0, text)
        self.add_tests("fails")
        code, text = self.call("--rounds", "1", "--stages", "plain", script="stress-tests")
        self.assertEqual(code, 1, text)
        self.assertRegex(text, r"\nround 1, seed \d+: FAILED\n  FAILED: plain fails\n$")

    def test_refused(self):
        code, text = self.call("--stages", "plain,plan", script="stress-tests")
        self.assertEqual(code, 2)
        self.assertIn("'plan' is none of plain, asan, tsan, conformance", text)


class OwnPython(unittest.TestCase):
    def test_what_uses_the_system_tests_has_their_python_whatever_is_first_in_path(self):
        """Debian's, which has grpc: tests/CMakeLists.txt looks for no other."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "python3")
            with open(path, "w") as f:
                f.write("#!/bin/sh\necho the first in PATH >&2\nexit 9\n")
            os.chmod(path, 0o755)
            env = dict(os.environ, PATH=folder + ":" + os.environ["PATH"])
            for name in ("bench/recovery", "scripts/clients", "scripts/fetch-rate", "scripts/plan-accuracy", "scripts/trials"):
                done = subprocess.run([os.path.join(nk.SOURCE, name), "--help"], capture_output=True, text=True, env=env)
                said = done.stdout + done.stderr
                self.assertNotIn("the first in PATH", said, name)
                self.assertIn(os.path.basename(name), said)  # its own words


class Simulate(unittest.TestCase):
    def test_no_seeds__is_a_sentence(self):
        done = subprocess.run([os.path.join(nk.SOURCE, "scripts", "simulate"), "--seeds", "0"], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (2, ""), done)
        self.assertRegex(done.stderr, "--seeds 0: at least 1\n$")


class Conformance(unittest.TestCase):
    """A verify that does not answer, once or for good."""

    def setUp(self):
        loader = importlib.machinery.SourceFileLoader("conformance", os.path.join(nk.SOURCE, "scripts", "conformance"))
        self.script = importlib.util.module_from_spec(importlib.util.spec_from_loader("conformance", loader))
        loader.exec_module(self.script)
        self.dir = tempfile.mkdtemp(prefix="nk-scripts-")
        self.addCleanup(shutil.rmtree, self.dir)
        self.script.BUILD = self.dir
        os.mkdir(os.path.join(self.dir, "tests"))
        report = '{"llama_version": "1", "cache_bytes": 1, "cache_bytes_counted": 1, "splits": [{"layers": "0-1,1-2", "result": "exact"}]}'
        for name, body in (("nakshatra", f"""
            case $2 in
            *never*) exec sleep 100000 ;;
            *late*) [ -e {self.dir}/time ] || exec sleep 100000 ;;
            *spins*) while :; do :; done ;;
            *wrong*) echo '{report.replace('"exact"', '"wrong", "worst_nmse": 1')}'; exit 1 ;;
            esac
            echo '{report}'"""), ("tests/stretch", 'cp "$1" "$2"')):
            path = os.path.join(self.dir, name)
            with open(path, "w") as f:
                f.write("#!/bin/sh\n" + textwrap.dedent(body).strip() + "\n")
            os.chmod(path, 0o755)

    def verdicts(self, *names):
        """At first, and when those without an answer were asked again."""
        models = [os.path.join(self.dir, name + ".gguf") for name in names]
        for m in models:
            ggufio.write(m, {"general.architecture": (ggufio.STR, "llama")}, [])
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            self.script.CPU_S = 1 if "spins" in names else nk.LONG_S
            self.script.TIMEOUT_S = 0.5 if {"never", "late"} & set(names) else nk.LONG_S
            rows = self.script.examine_all(models, self.dir)
            first = {r[0]: r[1] for r in rows}
            if "late" in names:
                self.script.TIMEOUT_S = nk.LONG_S
                open(os.path.join(self.dir, "time"), "w").close()
            self.script.ask_again(rows, models, self.dir)
        return first, {r[0]: r[1] for r in rows}, said.getvalue()

    def test_no_time__is_asked_again(self):
        first, last, said = self.verdicts("late")
        self.assertEqual((first, last), ({"late": "no answer"}, {"late": "exact"}), said)
        self.assertIn("asked again: late: exact\n", said)

    def test_no_answer__is_not_called_wrong(self):
        for name in "never", "spins":
            first, last, said = self.verdicts(name)
            self.assertEqual((first, last), ({name: "no answer"}, {name: "no answer"}), said)
            self.assertIn(f"asked again: {name}: no answer\n", said)
            self.assertNotIn("wrong", said)

    def test_wrong__is_wrong_at_once(self):
        first, last, said = self.verdicts("wrong", "right")
        self.assertEqual((first, last), ({"wrong": "wrong", "right": "exact"},) * 2, said)
        self.assertNotIn("asked again", said)


class Style(unittest.TestCase):
    def check(self, *lines):
        with tempfile.TemporaryDirectory(dir=nk.BUILD) as folder:  # .clang-format is above it
            path = os.path.join(folder, "sample.c")
            with open(path, "w") as f:
                f.write("\n".join(lines) + "\n")
            done = subprocess.run([os.path.join(nk.SOURCE, "scripts", "check-style"), path], capture_output=True, text=True)
        return done.returncode, [re.sub(r"^.*sample[.]c:", "", line) for line in done.stdout.splitlines()], done.stderr

    def test_long_lines_are_named(self):
        good = "/* " + "ä" * 94 + " */"
        self.assertEqual(len(good), 100)  # characters, not bytes
        self.assertEqual(self.check(good, "int a;"), (0, [], ""))
        code, lines, _ = self.check("int a;", good.replace(" */", "b */"))
        self.assertEqual((code, lines), (1, ["2: 101 columns, over 100"]))

    def test_code_that_is_not_formatted_is_named(self):
        code, lines, said = self.check("int a;", "int  b;", "int c;", "if_(x){}")
        if "was not looked at" in said:
            nk.missing(said)
        self.assertEqual(code, 1)
        self.assertEqual({line.split(":")[0] for line in lines}, {"2", "4"}, (lines, said))


if __name__ == "__main__":
    unittest.main()

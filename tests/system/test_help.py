"""What the program says of itself: help, man page, and what shells complete by, all from the tables that arguments are
parsed by."""
import functools
import os
import re
import shutil
import subprocess
import tempfile
import unittest

import nk

@functools.cache
def commands():
    return re.findall(r"^  (\w+) +\S", nk.out("help"), re.M)


@functools.cache
def options(command):
    """The long options that its help lists, --help itself among them."""
    found = re.findall(r"^ +(?:-\w, +)?--([\w-]+)", nk.out("help", command).split("\noptions:\n")[1], re.M)
    return frozenset("--" + name for name in found) | {"--help"}


class Help(unittest.TestCase):
    def test_help__of_a_command_is_what_the_command_prints_itself(self):
        for name in commands():
            text = nk.out("help", name)
            self.assertEqual(text, nk.out(name, "--help"))
            self.assertTrue(text.startswith(f"usage: nakshatra {name}"), text)
            self.assertGreater(len(options(name)), 1)
            self.assertEqual([line for line in text.splitlines() if len(line) > 79], [])
        self.assertEqual(nk.out("help"), nk.out("--help"))

    def test_help__tells_the_defaults_that_are_used(self):
        for command, option, default in [
                ("worker", "--listen", "127.0.0.1:5530"), ("worker", "--queue-ms", "60000"), ("worker", "--ctx", "0"),
                ("worker", "--cache-type-k", "f16"), ("run", "--temp", "0.8"), ("run", "--top-p", "0.95"),
                ("run", "--dry-base", "1.75"), ("run", "--seed", "-1"), ("up", "--sequences", "8"),
                ("up", "--listen", "127.0.0.1:8080"), ("serve", "--body-kib", "8192"), ("verify", "--bound", "0.0001")]:
            row = re.search(rf" {option} .*?(?=\n +(?:-\w, |    )--|\Z)", nk.out("help", command).split("\noptions:\n")[1], re.S)[0]
            self.assertTrue(row.rstrip().endswith(f"({default})"), row)
        # Also where the command line says otherwise before it asks for help.
        self.assertEqual(nk.out("worker", "--listen", "[::1]:1", "--queue-ms", "7", "--help"), nk.out("help", "worker"))

    def test_help__an_unknown_name_gets_a_sentence_with_the_nearest(self):
        for args, sentence in [
                (["wroker"], "'wroker' is no command; did you mean worker? nakshatra help lists them"),
                (["help", "wroker"], "'wroker' is no command; did you mean worker? nakshatra help lists them"),
                (["frobnicate"], "'frobnicate' is no command; nakshatra help lists them"),
                (["run", "--promt", "x"], "option --promt is unknown; did you mean --prompt? nakshatra run --help lists"),
                (["run", "--dry", "x"], "option --dry is short for 4; nakshatra run --help lists"),
                (["help", "run", "up"], "'up' is one argument too many"),
                (["help", "run", "--man"], "give one of COMMAND, --man, --bash, --zsh and --fish")]:
            done = nk.run(*args)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (2, "", 1), done)
            self.assertIn("nakshatra: " + sentence, done.stderr)

    def test_help__without_a_command_the_list_goes_to_standard_error(self):
        done = nk.run()
        self.assertEqual((done.returncode, done.stdout, done.stderr), (2, "", nk.out("help")))

    def test_help__an_output_that_is_full_is_an_error(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([nk.NAKSHATRA, "help", "--man"], stdout=full, stderr=subprocess.PIPE, text=True,
                                  timeout=60 * nk.SLOW)
        self.assertEqual((done.returncode, done.stderr), (1, "nakshatra: standard output cannot be written\n"))

    def test_version__is_the_one_of_the_build_file(self):
        with open(os.path.join(nk.SOURCE, "CMakeLists.txt")) as f:
            version = re.search(r"project\(nakshatra VERSION (\S+)", f.read())[1]
        self.assertEqual(nk.out("--version"), f"nakshatra {version}\n")
        with open(os.path.join(nk.SOURCE, "NEWS.md")) as f:
            self.assertEqual(re.search(r"^## (\S+)", f.read(), re.M)[1], version)


class Man(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.source = nk.out("help", "--man")

    def render(self, *flags):
        if not shutil.which("groff"):
            nk.missing("no groff (package groff-base)")
        return subprocess.run(["groff", "-man", "-Tascii", "-P-c", *flags], input=self.source, capture_output=True, text=True,
                              timeout=60 * nk.SLOW)

    def test_man__renders_without_a_warning(self):
        done = self.render("-ww", "-z")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_man__has_every_option_of_every_command(self):
        text = re.sub(r".\x08", "", self.render().stdout)  # bold and underlined
        sections = dict(re.findall(r"^[.]SS (\w+)\n(.*?)(?=^[.]S[SH] )", self.source, re.M | re.S))
        rendered = dict(re.findall(r"^   (\w+)\n(.*?)(?=^   \w|^\w)", text, re.M | re.S))
        self.assertEqual(list(sections), commands())
        for name, section in sections.items():
            listed = re.findall(r"^[.]TP\n(?:\\fB\\-\w\\fR, )?\\fB((?:\w|\\-)+)\\fR", section, re.M)
            listed = [option.replace("\\-", "-") for option in listed]
            self.assertEqual(len(listed), len(set(listed)))
            self.assertEqual(set(listed) | {"--help"}, options(name), name)
            self.assertIn(f"nakshatra {name}", rendered[name])
            for option in listed:
                self.assertRegex(rendered[name], rf"(?m)^ {{7}}(?:-\w, )?{option}\b")
        self.assertIn("(127.0.0.1:5530)", rendered["worker"])
        for title in ("NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES"):
            self.assertRegex(text, rf"(?m)^{title}$")

    def test_man__names_every_variable_that_the_source_reads(self):
        section = self.source.split(".SH ENVIRONMENT\n")[1].split(".SH ")[0]
        names = set()
        for folder, _, files in os.walk(os.path.join(nk.SOURCE, "src")):
            for name in files:
                with open(os.path.join(folder, name)) as f:
                    names |= set(re.findall(r'getenv\("(\w+)"', f.read()))
        self.assertIn("NK_LOG", names)
        self.assertEqual([name for name in sorted(names) if not re.search(rf"\b{name}\b", section)], [])


class Completion(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp(prefix="nk-complete-")
        cls.addClassCleanup(shutil.rmtree, cls.dir)
        cls.script = os.path.join(cls.dir, "completion.bash")
        with open(cls.script, "w") as f:
            f.write(nk.out("help", "--bash"))
        os.mkdir(os.path.join(cls.dir, "a folder"))
        with open(os.path.join(cls.dir, "model one.gguf"), "w"):
            pass

    def complete(self, *words):
        """What bash offers for the last word."""
        done = subprocess.run(["bash", "--norc", "-c", 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
                               '$(complete -p nakshatra | sed "s/.*-F \\([^ ]*\\).*/\\1/") nakshatra; '
                               "printf '%s\\n' \"${COMPREPLY[@]}\"", self.script, "nakshatra", *words],
                              cwd=self.dir, capture_output=True, text=True, timeout=60 * nk.SLOW)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return [line for line in done.stdout.split("\n") if line]

    def test_completion__completes_commands(self):
        self.assertEqual(self.complete("wor"), ["worker"])
        self.assertEqual(self.complete(""), commands() + ["--help", "--version"])
        self.assertEqual(self.complete("help", ""), commands())
        self.assertEqual(self.complete("help", "ins"), ["inspect"])
        self.assertEqual(self.complete("frobnicate", "--"), [])

    def test_completion__completes_every_option_of_every_command(self):
        for name in commands():
            offered = self.complete(name, "--")
            self.assertEqual(len(offered), len(set(offered)))
            self.assertEqual(set(offered), options(name), name)
            self.assertEqual(set(self.complete(name, "x", "--")), options(name), name)
        self.assertEqual(self.complete("worker", "--cache-type-"), ["--cache-type-k", "--cache-type-v"])

    def test_completion__completes_what_an_option_takes(self):
        files = ["a folder", "completion.bash", "model one.gguf"]
        for words, offered in [
                (["up", "--dtype", ""], ["f32", "f16"]), (["up", "--dtype", "=", "f3"], ["f32"]), (["up", "--dtype", "="], ["f32", "f16"]),
                (["run", "--cluster", ""], files), (["run", "-c", "mod"], ["model one.gguf"]), (["run", "--cluster", "=", "c"], ["completion.bash"]),
                (["split", "model one.gguf", "--out", ""], ["a folder"]), (["run", "--temp", ""], []), (["run", "-n", "--"], []),
                (["inspect", "m"], ["model one.gguf"]), (["inspect", "--json", ""], files), (["worker", ""], [])]:
            with self.subTest(words=words):
                self.assertEqual(sorted(self.complete(*words)), sorted(offered))

    def test_completion__zsh_and_fish_have_every_option_too(self):
        zsh, fish = nk.out("help", "--zsh"), nk.out("help", "--fish")
        for name in commands():
            section = re.search(rf"^    {name}\)\n(.*?);;\n", zsh, re.M | re.S)[1]
            self.assertEqual(set(re.findall(r"['{,*](--[\w-]+)(?=[=\[},])", section)), options(name), name)
            listed = re.findall(rf"^complete -c nakshatra -n '__fish_seen_subcommand_from {name}'.* -l ([\w-]+)", fish, re.M)
            self.assertEqual({"--" + option for option in listed} | {"--help"}, options(name), name)
        for shell, text in (("zsh", zsh), ("fish", fish)):  # where there is one
            if shutil.which(shell):
                done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True, timeout=60 * nk.SLOW)
                self.assertEqual((done.returncode, done.stderr), (0, ""))


if __name__ == "__main__":
    unittest.main()

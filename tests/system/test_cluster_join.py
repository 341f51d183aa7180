"""A cluster from one line: nakshatra serve, join, token, members and status on machines of their own."""
import contextlib
import json
import os
import signal
import subprocess
import unittest

import cluster
import nk

GOLDEN = nk.golden("kjv-tiny")
REFUSED = 3  # the exit code: to try again is of no use


def setUpModule():
    cluster.require()


class Case(unittest.TestCase):
    """A network that the class's tests share; they run in the order of their names, and each leaves it as it found it."""

    def refused(self, done, code, *words):
        """A command that says in one sentence why not."""
        self.assertEqual(done.returncode, code, done)
        self.assertEqual(done.stdout, "")
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        for word in words:
            self.assertRegex(done.stderr, word)

    def is_whole_text(self, serve):
        self.assertEqual(GOLDEN["prompt_text"] + serve.complete(GOLDEN["prompt_text"], 64), GOLDEN["text"])


class ThreeMachines(Case):
    """The issue's main job."""

    def test_serve_join_join__the_text_comes_from_all_three_and_is_the_whole_models(self):
        with cluster.Network("a", "b", "c") as net:
            a = net.serve("a", nk.KJV, "--spread", 3, "--deterministic")
            self.assertEqual(a.get("/readyz")[0], 503)
            b = net.join("b", a.token)
            c = net.join("c", net["a"].out("token").strip())
            self.assertEqual((b.lines[0][:15], c.lines[0][-5:]), ("joined cluster ", " as c"))
            epoch = a.wait_serving("abc")
            self.is_whole_text(a)

            # Three machines, three processes, one link line each: who holds what is what each says of itself.
            status = net["b"].out("status")  # a member can ask, too
            for name in "abc":
                self.assertRegex(status, rf"(?m)^[0-9a-f]{{16}}  {name} .*serving .*10\.77\.0\.[123] .*\d-\d ready$")
            self.assertRegex(status, rf"(?m)^plan {epoch}: \w 0-\d -> \w \d-\d -> \w \d-8\n  predicted: \d")
            self.assertEqual([len(p.workers()) for p in (b, c)], [1, 1])
            for p in (a, b, c):  # no secret is where other users of the machine can see it
                for pid in [p.pid, *cluster.tree(p.pid)]:
                    self.assertNotIn(b"nk1-", b" ".join(cluster.command(pid)))
                    with open(f"/proc/{pid}/environ", "rb") as f:
                        self.assertNotIn(b"nk1-", f.read())
            for m in "bc":  # and the folders are the user's own
                for folder in "", "identity":
                    self.assertEqual(os.stat(net[m].state("member", folder)).st_mode & 0o777, 0o700)

            # B leaves; with a spread of three nothing can be served, and it is said for what it waits.
            self.assertEqual(b.stop(), 0)
            a.wait_state("b", "gone")
            self.assertTrue(nk.wait_for(lambda: a.get("/readyz")[0] == 503))
            self.assertRegex(a.get("/readyz")[1], "3 machines are asked for")
            # ... and comes back, without a token.
            b = net.join("b")
            self.assertGreater(a.wait_serving("abc", after=epoch), epoch)
            self.is_whole_text(a)
            self.assertEqual(c.stop(signal.SIGINT), 0)
            self.assertEqual(b.stop(signal.SIGINT), 0)
            self.assertEqual(a.stop(signal.SIGINT), 0)


class Tokens(Case):
    """Who gets in, and what who does not is told."""

    @classmethod
    def setUpClass(cls):
        cls.net = cluster.Network("a", "b", "c", "d")
        cls.addClassCleanup(lambda: cls.net.close())
        cls.a = cls.net.serve("a", nk.KJV, "--not-here")  # nobody has to compute for this

    def token(self, *args):
        """Whose address a test before had taken away sees at its next look only that it has one again."""
        tries = []
        self.assertTrue(nk.wait_for(lambda: tries.append(self.net["a"].run("token", *args)) or tries[-1].returncode == 0, 120, 0.2),
                        tries[-1:])
        return tries[-1].stdout.strip()

    def ids(self):
        """{id: its line} of the tokens."""
        return {line.split()[0]: line for line in self.net["a"].out("token", "list").splitlines()[1:]}

    def test_bad_ones__each_is_one_sentence_and_an_exit_code(self):
        b, good = self.net["b"], self.token("--uses", "9")
        digit = "0" if good[20] != "0" else "1"
        self.refused(b.run("join", good[:20] + digit + good[21:]), 2, "token", "check|character")
        self.refused(b.run("join", good[:-4]), 2, "token")
        self.refused(b.run("join", "hello"), 2, "token")
        self.refused(b.run("join"), 2, "no member of a cluster yet", "nakshatra serve")
        self.refused(b.run("join", good, "--name", "no good"), 2, "--name no good")
        self.refused(b.run("join", good, "--token-file", "x"), 2, "token-file")
        self.assertEqual(os.path.exists(b.state("member", "identity")), False)

    def test_expired(self):
        token = self.token("--ttl", "1s", "--uses", "9")  # who is let in in time uses one
        self.assertTrue(nk.wait_for(lambda: self.said(token, "expired"), step=0.5))

    def said(self, token, word):
        """Tries to join: is that word in the refusal? (Until a moment has passed it may be let in, and is a member then.)"""
        p = self.net["b"].join(token, wait=False)
        self.assertTrue(nk.wait_for(lambda: p.process.poll() is not None or "attends at" in p.out))
        if p.process.poll() is None:
            self.net["a"].out("members", "remove", "b")
            self.assertNotEqual(p.wait(), 0)
            return False
        self.assertNotEqual(p.wait(), 0)
        self.assertRegex(p.err, word)
        self.assertEqual(len(p.err_lines), 1)
        return True

    def test_revoked(self):
        token = self.token("--uses", "7")  # serve may have made one meanwhile, too
        new, = [id for id, line in self.ids().items() if " 7 of 7 " in line]
        self.assertEqual(self.net["a"].out("token", "revoke", new), f"{new} is revoked\n")
        self.assertRegex(self.ids()[new], "revoked")
        self.refused(self.net["b"].run("join", token), REFUSED, "revoked")
        self.refused(self.net["a"].run("token", "revoke", "nonsense"), 2, "nonsense")

    def test_used_twice__and_in_a_race_exactly_one_wins(self):
        token = self.token()
        racers = [self.net[m].join(token, wait=False) for m in "bcd"]
        self.assertTrue(nk.wait_for(lambda: sum(p.process.poll() is not None for p in racers) == 2), self.net.text())
        winner, = [p for p in racers if p.process.poll() is None]
        for p in racers:
            if p is not winner:
                self.assertEqual(p.wait(), REFUSED)
                self.assertRegex(p.err, "used")
        winner.wait_line("attends at ")
        self.assertEqual(winner.stop(), 0)
        # Its own machine may say the same line again: it is a member.
        again = winner.machine.join(token)
        self.assertEqual(again.stop(), 0)
        self.net["a"].out("members", "remove", winner.machine.name)

    def test_where_it_may_stand(self):
        token = self.token("--uses", "3")
        path = os.path.join(self.net.dir, "token")
        with open(path, "w") as f:
            f.write(token + "\n")
        b = self.net["b"]
        os.chmod(path, 0o644)
        self.refused(b.run("join", "--token-file", path), 1, "token", "others|0600|644|mode")
        self.refused(b.run("join", "--token-file", path + "x"), 2, "token", "x")
        os.chmod(path, 0o600)
        for name, args, more in (("b", ["--token-file", path], {}), ("c", [], {"env": {"NAKSHATRA_TOKEN": token}})):
            p = self.net[name].join(*args, **more)
            with open(f"/proc/{p.pid}/environ", "rb") as f:
                self.assertEqual(token.encode() in f.read(), bool(more))  # the shell's own is not ours to wipe
            self.assertEqual(p.stop(), 0)
        done = subprocess.Popen([*self.net["d"].prefix(), nk.NAKSHATRA, "join", "--token-file", "-"], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, env=self.net["d"].env(), text=True)
        done.stdin.write(token + "\n")
        done.stdin.close()
        while "attends at" not in done.stdout.readline():
            self.assertIsNone(done.poll())
        done.terminate()
        self.assertEqual(done.wait(nk.LONG_S), 0)
        done.stdout.close()
        for name in "bcd":
            self.net["a"].out("members", "remove", name)

    def test_of_another_cluster__nothing_is_said_to_it(self):
        """Where the cluster was, another one answers: a machine in the middle, or one that has that address now."""
        net, ids, ports = self.net, [], []
        other = net.serve("d", nk.KJV, "--not-here")
        for name in "ad":
            with open(net[name].state("cluster", "joined.json")) as f:
                joined = json.load(f)
            ids.append(joined["cluster"])
            ports.append(joined["enrolment_port"])
        self.assertEqual(other.stop(), 0)
        with contextlib.closing(cluster.Relay(net["d"], ports[1], net["a"], ports[0])) as relay:
            done = net["b"].run("join", other.token, "--state", net["b"].state("other"))
            self.refused(done, REFUSED, f"cluster {ids[1]} does not answer: 10.77.0.4:{ports[1]}: is of cluster {ids[0]}")
        # It was shown who that is, and has sent what opens and what ends a TLS handshake.
        self.assertEqual(relay.n, 1)
        records, at = [], 0
        while at < len(relay.bytes):
            records.append(relay.bytes[at])
            at += 5 + int.from_bytes(relay.bytes[at + 3:at + 5], "big")
        self.assertEqual(records[0], 22)  # the hello
        self.assertLessEqual(len(records), 3, records)  # and an alert, before which another record may stand

    def test_fifty_at_once(self):
        token, names = self.token("--uses", "50"), [f"m{i}" for i in range(50)]

        def start(i):  # the fifty are not to take the coordinator's share of this one computer
            m = self.net["bcd"[i % 3]]
            return m.join(token, "--name", names[i], "--state", m.state(names[i]), "--threads", "1", wait=False, nice=19)
        agents = [start(i) for i in range(50)]
        for i in range(50):
            while not nk.wait_for(lambda: "attends at" in agents[i].out or agents[i].process.poll() is not None) or not agents[i].out:
                # A computer that is too slow for fifty at once: who was not answered in time asks again, as the same machine.
                self.assertEqual(agents[i].wait(), 1, agents[i])
                self.assertRegex(agents[i].err, "does not answer")
                agents[i] = start(i)
        self.a.wait_status(lambda s: {m["name"] for m in s["members"] if m["state"] != "gone"} >= set(names))
        self.assertEqual(len({m["id"] for m in self.a.status()["members"]}), len(self.a.status()["members"]))
        # The fifty-first finds that it is used up.
        self.refused(self.net["b"].run("join", token, "--state", self.net["b"].state("late")), REFUSED, "used")
        for p in agents:
            p.send(signal.SIGTERM)
        for p in agents:
            self.assertEqual(p.wait(), 0, p)

    def test_of_nobody_that_answers__each_address_is_named(self):
        token, a = self.token(), self.net["a"]
        a.unplug()
        self.addCleanup(a.unplug, False)
        self.refused(self.net["b"].run("join", token, "--state", self.net["b"].state("new")), 1, r"10\.77\.0\.1:\d+")


class Members(Case):
    """Who belongs to it, and who does no more."""

    @classmethod
    def setUpClass(cls):
        cls.net = cluster.Network("a", "b", "c", v6=True)
        cls.addClassCleanup(lambda: cls.net.close())
        cls.a = cls.net.serve("a", nk.KJV, "--not-here")

    def token(self):
        return self.net["a"].out("token").strip()

    def listed(self):
        """{name: id} as nakshatra members has it."""
        lines = self.net["a"].out("members").splitlines()
        return {line.split()[1]: line.split()[0] for line in lines[1:]}

    def is_told(self, done, sentence):
        """It ends, however much it has said before."""
        self.assertEqual(done.returncode, REFUSED, done)
        self.assertRegex(done.stderr, f"^nakshatra: .*{sentence}.*\n$")

    def test_removed__it_is_told_and_ends_and_is_let_in_with_a_new_token_only(self):
        b = self.net.join("b", self.token())
        self.a.wait_serving("b")
        id = self.listed()["b"]
        children = cluster.tree(b.pid)
        self.assertEqual(self.net["a"].out("members", "remove", "b"), "b is removed\n")
        self.assertEqual(b.wait(), REFUSED)
        self.assertRegex(b.err, "^nakshatra: this machine was removed from the cluster; .*join line$")
        self.assertTrue(nk.wait_for(lambda: not any(map(nk.alive, children))), self.net.text())
        self.assertNotIn("b", self.listed())
        self.is_told(self.net["b"].run("join"), "removed from the cluster")
        self.refused(self.net["b"].run("status"), 1, "removed|not a member|refused this one|does not answer")
        self.refused(self.net["a"].run("members", "remove", "b"), 2, "no member b")
        b = self.net.join("b", self.token())
        self.assertNotEqual(self.listed()["b"], id)
        self.a.wait_serving("b")
        self.is_whole_text(self.a)
        self.assertEqual(b.stop(), 0)
        # Installed anew: nothing is left of who it was, and by its name it is the same.
        before = self.listed()
        b = self.net["b"].join(self.token(), "--state", self.net["b"].state("anew"))
        after = self.listed()
        self.assertEqual(set(after), set(before))
        self.assertNotEqual(after["b"], before["b"])
        self.assertEqual(b.stop(), 0)
        self.is_told(self.net["b"].run("join"), "removed from the cluster")  # who it was is none any more

    def test_the_serving_machine_moves__members_were_told_where_it_is_found(self):
        m, new = self.net["a"], "10.77.0.98"
        b = self.net.join("b", self.token())
        line = json.loads(self.a.get("/cluster")[1])["join_line"]
        m.ip("address", "add", new + "/24", "dev", "eth0")
        try:
            self.a.wait_line(r"this machine is reached at .*10\.77\.0\.98")
            path = self.net["b"].state("member", "joined.json")

            def told():
                with open(path) as f:
                    return new in json.load(f)["addresses"]
            self.assertTrue(nk.wait_for(told), self.net.text())
            self.assertNotEqual(json.loads(self.a.get("/cluster")[1])["join_line"], line)
            m.ip("address", "del", m.v4 + "/24", "dev", "eth0")
            m.ip("address", "del", m.v6 + "/64", "dev", "eth0")
            m.ip("address", "replace", new + "/24", "dev", "eth0")  # it goes with the first one of its network
            b.wait_line(r"attends at 10\.77\.0\.98:")
            # The join line of the addresses that are gone is good no more, so that moving fills no list.
            self.assertTrue(nk.wait_for(lambda: m.out("token", "list").count("  revoked") == 1), self.net.text())
            self.a.wait_serving("b")
        finally:
            m.ip("address", "replace", m.v6 + "/64", "dev", "eth0", "nodad")
            m.ip("address", "del", new + "/24", "dev", "eth0")  # first: what is added beside it goes with it
            m.ip("address", "replace", m.v4 + "/24", "dev", "eth0")
        self.assertEqual(b.stop(), 0)

    def test_two_of_one_name(self):
        # Folders of their own: a machine that is a member already keeps the name that it has.
        first, second = (self.net.join(m, self.token(), "--name", "same", "--state", self.net[m].state("same")) for m in "bc")
        self.assertRegex(first.out, " as same\n", self.net.text())
        self.assertRegex(second.out, " as same-2\n", self.net.text())
        self.assertLess({"same", "same-2"}, set(self.listed()) | {""})
        for p in first, second:
            self.assertEqual(p.stop(), 0)
        for name in "same", "same-2":
            self.net["a"].out("members", "remove", name)

    def test_one_state_folder_for_two(self):
        b = self.net.join("b", self.token(), "--state", self.net["b"].state("two"))
        twice = self.net["b"].join("--state", self.net["b"].state("two"), wait=False)
        self.assertNotEqual(twice.wait(), 0)
        self.assertEqual(len(twice.err_lines), 1, twice)
        self.assertRegex(twice.err, "state folder|in use|already")
        self.assertIsNone(b.process.poll())
        self.assertEqual(b.stop(), 0)

    def test_the_serving_machine_itself_cannot_be_removed(self):
        self.refused(self.net["a"].run("members", "remove", "a-gateway"), 1, "serves")


class Alone(Case):
    """One machine, with a network or without, and what people type there."""

    @classmethod
    def setUpClass(cls):
        cls.net = cluster.Network("a", "b", v4=False, v6=True)
        cls.addClassCleanup(lambda: cls.net.close())

    def test_ipv6_only(self):
        a = self.net.serve("a", nk.KJV, "--spread", 2)
        b = self.net.join("b", a.token)
        self.assertRegex(b.out, r"attends at \[fd77::1\]:\d+")
        a.wait_serving("ab")
        self.is_whole_text(a)
        self.assertEqual(b.stop(), 0)
        # Its own member is a member like any other, but it cannot be taken off where it serves.
        self.refused(self.net["a"].run("members", "remove", "a"), 1, "--not-here|serves")
        # A second one on the same state folder.
        self.refused(self.net["a"].run("serve", nk.KJV, "--listen", "127.0.0.1:0"), 1, "in use|serve")
        self.assertEqual(a.stop(signal.SIGINT), 0)
        self.refused(self.net["a"].run("token"), 1, "is nakshatra serve running")
        self.refused(self.net["a"].run("status"), 1, "is nakshatra serve running")

    def test_no_network_at_all(self):
        m = self.net["b"]
        m.unplug()
        m.ip("link", "set", "eth0", "down")
        try:
            a = self.net.serve("b", nk.KJV, "--state", m.state("alone"))
            self.assertRegex(a.err, "other machines cannot join: this machine has no address")
            a.wait_serving("b")
            self.is_whole_text(a)
            self.refused(m.run("token", "--state", m.state("alone")), 1, "no address")
            self.assertEqual(a.stop(), 0)
        finally:
            m.ip("link", "set", "eth0", "up")
            m.unplug(False)
            m.ip("address", "replace", m.v6 + "/64", "dev", "eth0", "nodad")

    def test_nothing_runs(self):
        m = self.net["b"]
        for command in ["status"], ["status", "--json"], ["members"]:
            self.refused(m.run(*command, "--state", m.state("none")), 1, "serves no cluster and is no member")
        for command in ["token"], ["token", "list"], ["members", "remove", "x"]:
            self.refused(m.run(*command, "--state", m.state("none")), 1, "serves no cluster")
        self.assertFalse(os.path.exists(m.state("none", "cluster", "store.db")))

    def test_wrong_words(self):
        m = self.net["b"]
        for words, sentence in ((["serve"], "what to serve is missing"), (["serve", nk.KJV, "--cluster", "x"], "both"),
                                (["serve", m.dir + "/none.gguf"], "none.gguf"), (["serve", nk.KJV, nk.KJV], "usage|argument"),
                                (["serve", nk.KJV, "--objective", "best"], "--objective.*best.* stream or rate"), (["token", "--ttl", "soon"], "--ttl soon"),
                                (["token", "--uses", "0"], "--uses"), (["token", "drop"], "usage"), (["members", "remove"], "usage"),
                                (["join", "a", "b"], "usage|argument"), (["status", "x"], "usage|argument")):
            with self.subTest(words):
                done = m.run(*words)
                self.assertEqual((done.returncode, done.stdout), (2, ""), done)
                self.assertRegex(done.stderr, sentence)
                self.assertEqual(len(done.stderr.splitlines()), 1)


if __name__ == "__main__":
    unittest.main()

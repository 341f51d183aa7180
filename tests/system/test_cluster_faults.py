"""Machines of a cluster die, are away for a while, come back, move, run out of disk: what they had is had by others, and nobody
else notices more of it than that."""
import os
import signal
import threading
import unittest

import cluster
import nk

GOLDEN = nk.golden("kjv-tiny")
PROMPT = GOLDEN["prompt_text"]


def setUpModule():
    cluster.require()


class Cluster(unittest.TestCase):
    """Four machines: a serves and holds nothing itself, two of b, c and d are a chain, the third is a spare. Each test leaves it
    so."""

    OPTIONS = ["--not-here", "--spread", 2, "--deterministic"]
    THREADS = "--threads", "1"  # more would wait for each other by spinning

    @classmethod
    def setUpClass(cls):
        cls.net = cluster.Network("a", "b", "c", "d")
        cls.addClassCleanup(lambda: cls.net.close())
        cls.a = cls.net.serve("a", nk.KJV, *cls.OPTIONS)
        token = cls.net["a"].out("token", "--uses", "3").strip()
        cls.agents = {name: cls.net.join(name, token, *cls.THREADS) for name in "bcd"}
        cls.wait_spare()

    @classmethod
    def wait_spare(cls):
        """Until everybody is here and two serve. Returns the names of those two, and of the third."""
        for name in "bcd":
            cls.a.wait_here(name)
        def settled(s):
            plan = s.get("plan")
            return plan and not s.get("next") and [stage["name"] for stage in plan["stages"][0]]
        used = cls.a.wait_status(settled)
        spare, = set("bcd") - set(used)
        return *used, spare

    def setUp(self):
        self.is_whole_text()

    def is_whole_text(self):
        text = None

        def look():  # a chain that has just lost a machine refuses until there is another
            nonlocal text
            body = {"model": "kjv-tiny", "prompt": PROMPT, "max_tokens": 64, "temperature": 0}
            status, text = self.a.request("POST", "/v1/completions", body)
            return status == 200
        self.assertTrue(nk.wait_for(look, 60, step=0.2), f"{text}\n{self.net.text()}")
        self.assertIn(repr(GOLDEN["text"][len(PROMPT):])[1:-1], text)

    def kill(self, name):
        """kill -9; its workers end with it."""
        p = self.agents[name]
        children = cluster.tree(p.pid)
        p.send(signal.SIGKILL)
        self.assertEqual(p.wait(), -signal.SIGKILL)
        self.assertTrue(nk.wait_for(lambda: not any(map(nk.alive, children))), [cluster.command(c) for c in children])

    def join(self, name):
        self.agents[name] = self.net.join(name, *self.THREADS)  # no token: it is a member

    # ---- machines ----

    def test_killed_while_it_serves__the_others_go_on_and_it_comes_back(self):
        first, second, spare = self.wait_spare()
        replies = []
        body = {"model": "kjv-tiny", "prompt": PROMPT, "max_tokens": 200, "temperature": 0, "ignore_eos": True}
        client = threading.Thread(target=lambda: replies.append(self.a.request("POST", "/v1/completions", body)))
        client.start()
        self.kill(second)
        client.join(nk.LONG_S)
        self.assertEqual(len(replies), 1, "a request that ran there hangs")
        self.assertIn(replies[0][0], (200, 502, 503), replies)
        self.a.wait_state(second, "gone")
        self.a.wait_serving([first, spare])
        self.is_whole_text()
        self.join(second)
        self.assertEqual(self.wait_spare()[2], second)

    def test_killed_while_it_fetches__it_goes_on_with_the_rest_later(self):
        first, second, spare = self.wait_spare()
        net = self.net[spare]
        net.forget_pieces()
        net.slow("256kbit")  # 20 s for a layer
        self.addCleanup(lambda: net.slow(None))
        self.kill(second)

        def fetching(s):
            m = next(m for m in s["members"] if m["name"] == spare)
            return any(h["state"] == "fetching" for h in m["holdings"])
        self.a.wait_status(fetching)
        self.kill(spare)
        self.join(second)
        self.a.wait_serving([first, second])
        self.is_whole_text()
        net.slow(None)
        self.join(spare)
        self.assertEqual(self.wait_spare()[2], spare)

    def test_killed_while_it_loads(self):
        first, second, spare = self.wait_spare()
        self.kill(second)
        self.assertTrue(nk.wait_for(self.agents[spare].workers, step=0.005))
        self.kill(spare)
        self.join(spare)
        self.a.wait_serving([first, spare])
        self.is_whole_text()
        self.join(second)
        self.wait_spare()

    def test_a_worker_that_dies_is_started_again(self):
        first, second, spare = self.wait_spare()
        agent = self.agents[first]
        pid, = agent.workers()
        n = agent.out.count(" are served")
        os.kill(pid, signal.SIGKILL)
        agent.wait_line(r"layers \d-\d: its worker was killed by signal 9.*again in 1 s")
        agent.wait_line(" are served", n + 1)
        self.is_whole_text()
        self.assertIsNone(agent.process.poll())
        self.wait_spare()

    def test_stopped_for_longer_than_its_lease__it_is_fenced_and_is_back(self):
        first, second, spare = self.wait_spare()
        agent = self.agents[second]
        pid, = agent.workers()
        epoch = self.a.status()["plan"]["epoch"]
        for p in pid, agent.pid:
            os.kill(p, signal.SIGSTOP)
        try:
            self.a.wait_state(second, "gone")
            after = self.a.wait_serving([first, spare], after=epoch)
            self.is_whole_text()
        finally:
            for p in agent.pid, pid:
                os.kill(p, signal.SIGCONT)
        self.a.wait_here(second)
        # What it was told before is no more: its worker of then ends, and the others go on.
        self.assertTrue(nk.wait_for(lambda: not nk.alive(pid)), self.net.text())
        self.assertEqual(self.wait_spare()[2], second)
        self.assertEqual(self.a.status()["plan"]["epoch"], after)
        self.is_whole_text()

    def test_its_cable_is_out__for_longer_than_its_lease(self):
        first, second, spare = self.wait_spare()
        agent, n = self.agents[first], self.agents[first].out.count("attends at")
        self.net[first].unplug()
        try:
            self.a.wait_state(first, "gone")
            self.a.wait_serving([second, spare])
            self.is_whole_text()
        finally:
            self.net[first].unplug(False)
        self.a.wait_here(first)
        agent.wait_line("attends at", n + 1)
        self.assertEqual(self.wait_spare()[2], first)

    def test_its_address_changes(self):
        first, second, spare = self.wait_spare()
        m = self.net[second]
        new = "10.77.0.99"
        m.ip("address", "del", m.v4 + "/24", "dev", "eth0")
        m.ip("address", "add", new + "/24", "dev", "eth0")
        try:
            def moved(s):
                member = next(x for x in s["members"] if x["name"] == second)
                return member["state"] in ("serving", "spare") and member["address"] == new
            self.a.wait_status(moved)
            self.wait_spare()
            self.is_whole_text()
        finally:
            m.ip("address", "del", new + "/24", "dev", "eth0")
            m.ip("address", "add", m.v4 + "/24", "dev", "eth0")
        self.a.wait_status(lambda s: next(x for x in s["members"] if x["name"] == second)["address"] == m.v4)
        self.wait_spare()

    def test_its_disk_is_full(self):
        first, second, spare = self.wait_spare()
        agent = self.agents[spare]
        self.assertEqual(agent.stop(), 0)
        disk = self.net.small_disk(os.path.join(self.net[spare].dir, "small"), "256k")
        self.agents[spare] = full = self.net.join(spare, *self.THREADS, env={"XDG_CACHE_HOME": disk})
        self.a.wait_here(spare)
        self.kill(second)  # now it is needed, and cannot
        full.wait_line(r"layers \d-\d: .* are needed there, .*larger file system; again in \d s")
        self.a.wait_status(lambda s: any(m["name"] == spare and "larger file system" in m.get("why", "") for m in s["members"]))
        self.join(second)  # the others are not hindered
        self.a.wait_serving([first, second])
        self.is_whole_text()
        self.assertEqual(full.stop(), 0)
        self.join(spare)
        self.wait_spare()

    # ---- the machine of serve ----

    def serve_again(self):
        type(self).a = self.net.serve("a", nk.KJV, *self.OPTIONS)

    def test_the_coordinator_is_killed__workers_stay_loaded_and_serving_goes_on(self):
        first, second, spare = self.wait_spare()
        before = {name: self.agents[name].workers() for name in (first, second)}
        epoch = self.a.status()["plan"]["epoch"]
        self.a.send(signal.SIGKILL)
        self.assertEqual(self.a.wait(), -signal.SIGKILL)
        for name in "bcd":
            self.agents[name].wait_line("lost the coordinator")
        done = self.net["b"].run("status")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, "^nakshatra: .*10.77.0.1.*is nakshatra serve running.*\n$")
        self.serve_again()
        self.assertEqual(self.a.wait_serving([first, second]), epoch)
        self.assertEqual({name: self.agents[name].workers() for name in (first, second)}, before)
        self.is_whole_text()
        self.wait_spare()

    def test_the_coordinator_is_killed__while_one_joins_and_one_fetches(self):
        first, second, spare = self.wait_spare()
        net = self.net[spare]
        net.forget_pieces()
        net.slow("256kbit")
        self.addCleanup(lambda: net.slow(None))
        self.kill(second)

        def fetching(s):
            m = next(m for m in s["members"] if m["name"] == spare)
            return any(h["state"] == "fetching" for h in m["holdings"])
        self.a.wait_status(fetching)
        e = self.net.add("e")
        joining = e.join(self.net["a"].out("token").strip(), *self.THREADS, wait=False)
        self.assertTrue(nk.wait_for(lambda: joining.out or joining.process.poll() is not None))
        self.a.send(signal.SIGKILL)
        self.assertEqual(self.a.wait(), -signal.SIGKILL)
        net.slow(None)
        self.serve_again()
        joining.wait_line("attends at")
        self.a.wait_here("e")
        self.assertTrue(self.a.wait_status(lambda s: s.get("plan") and not s.get("next")))
        self.is_whole_text()
        self.net["a"].out("members", "remove", "e")
        self.assertNotEqual(joining.wait(), 0)
        self.join(second)
        self.wait_spare()

    def test_the_coordinator_sleeps__nobody_has_died_meanwhile(self):
        first, second, spare = self.wait_spare()
        before = {name: self.agents[name].workers() for name in (first, second)}
        epoch = self.a.status()["plan"]["epoch"]
        self.a.halt()
        # Until the others, whose calls it does not answer, have given it up: that takes more than twice as long as a lease.
        self.agents[spare].wait_line("lost the coordinator")
        self.a.send(signal.SIGCONT)
        self.is_whole_text()
        self.assertEqual(self.a.wait_serving([first, second]), epoch)
        self.assertEqual({name: self.agents[name].workers() for name in (first, second)}, before)
        self.assertNotIn("not heard of", self.a.err)


if __name__ == "__main__":
    unittest.main()

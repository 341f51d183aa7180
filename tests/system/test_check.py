"""nakshatra check: exit code 0 only if a request would run; what does not fit is named with both values, before the first
token."""
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

import models
import nk
import talk


class Check(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.chain = nk.Chain(nk.KJV, "0-1,1-3,3-8")
        cls.addClassCleanup(cls.chain.close)
        cls.dir = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.dir)

    def setUp(self):
        self.addCleanup(self.chain.write)

    def check(self, *args, **changes):
        if changes:
            self.chain.write(**changes)
        if "--timeout-ms" not in args:
            args += ("--timeout-ms", 5000 * nk.SLOW)
        return nk.run("check", "--cluster", self.chain.file, *args)

    def workers(self, **addresses):
        return [(w.id, addresses.get(w.id, w.address), r) for w, r in zip(self.chain.workers, self.chain.ranges)]

    def refused(self, sentence, *args, run=True, **changes):
        """check says so and exits 1, and run does not generate a token either."""
        done = self.check(*args, **changes)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertRegex(done.stderr, sentence)
        self.assertNotIn("One token went", done.stdout)
        if run:
            done = nk.run("run", "--cluster", self.chain.file, "--prompt", "x", "-n", "2")
            self.assertNotEqual(done.returncode, 0)
            self.assertEqual(done.stdout, "")
            self.assertNotEqual(done.stderr, "")
        return done

    def test_check__a_chain_that_fits_is_a_table_and_exit_code_0(self):
        done = self.check()
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for w, r in zip(self.chain.workers, self.chain.ranges):
            self.assertRegex(done.stdout, rf"(?m)^{w.id} +{w.address} +{r} +serving +(yes|earlier) +CPU +512 +512 +0 +\d+$")
        self.assertRegex(done.stdout, r"One token went through all 3 workers and back in [\d.]+ ms")
        self.chain.assert_idle()

    def test_check__json_has_what_the_workers_say(self):
        done = self.check("--json")
        report = json.loads(done.stdout)
        self.assertTrue(report["ok"])
        self.assertIsNone(report["error"])
        self.assertGreater(report["probe_us"], 0)
        self.assertEqual((report["n_ctx"], report["n_vocab"], report["dtype"]), (512, 1024, "f32"))
        self.assertEqual(report["model_sha256"], nk.sha256(nk.KJV))
        for w, entry in zip(self.chain.workers, report["workers"]):
            info = w.info()
            self.assertEqual(entry["id"], w.id)
            self.assertEqual(entry["worker_id"], info.worker_id)
            self.assertEqual((entry["has_layer_begin"], entry["has_layer_end"]), (info.layer_begin, info.layer_end))
            for field in ("llama_version", "n_embd", "n_ctx", "n_seq_max", "device", "backend", "model_sha256", "architecture",
                          "quantisation", "layer_count", "n_threads", "weights_bytes", "state", "cache_type_k", "cache_type_v",
                          "verified"):
                self.assertEqual(entry[field], getattr(info, field), field)
            self.assertGreater(entry["rtt_us"], 0)
            self.assertGreater(entry["counters"]["runs"], 0)

    def test_check__f16_rows_are_checked_and_run(self):
        done = self.check(dtype="f16")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("f16", done.stdout)

    def test_check__caches_of_different_types_run_and_are_told(self):
        self.assertNotIn("differ", self.check().stdout)
        with nk.Chain(nk.KJV, "0-4,4-8", per_worker={1: ("--cache-type-k", "q8_0")}) as chain:
            done = nk.run("check", "--cluster", chain.file, "--timeout-ms", 5000 * nk.SLOW)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertIn("The workers' types of cached keys differ: w0 has f16, w1 has q8_0. That is allowed: ", done.stdout)
            computed = [w["computed"] for w in json.loads(nk.run("check", "--cluster", chain.file, "--json").stdout)["workers"]]
            self.assertEqual([c["cache_type_k"] for c in computed], ["f16", "q8_0"])
            self.assertEqual({k: v for k, v in computed[0].items() if k in ("backend", "threads", "flash_attn", "sessions")},
                             {"backend": "CPU", "threads": "1", "flash_attn": "on", "sessions": "shared"})

    def test_check__workers_of_two_models_in_one_file_or_that_share_what_must_be_apart_are_refused(self):
        """A long-RoPE model is two, by the context of a session."""
        model = models.long_rope(os.path.join(self.dir, "long.gguf"), nk.STORIES[0], 256)

        def check(*options):
            return nk.run("check", "--cluster", chain.file, "--timeout-ms", 5000 * nk.SLOW, *options)

        def run(*options):
            return nk.run("run", "--cluster", chain.file, "--prompt", "Once upon a time", "-n", 2, *options)
        with nk.Chain(model, "0-2,2-5", "--sequences", 2, per_worker={0: ("--ctx", 256), 1: ("--ctx", 2048)}) as chain:
            for done in check(), run():
                self.assertEqual((done.returncode, "One token went" in done.stdout), (1, False))
                self.assertIn("RoPE factors: ", done.stderr)
                self.assertIn("long (a session has 2048 tokens, the original context is 256)", done.stderr)
                self.assertIn("short (a session has 256 tokens, the original context is 256)", done.stderr)
                self.assertIn("--ctx", done.stderr)
            with talk.Wire(chain.workers) as wire:  # the first stage refuses, whoever asks
                talk.complaint(self, lambda: wire.generate([1, 2], 1), "FAILED_PRECONDITION", "rope_mismatch", 2048, 256)
            # 1024 for each of two sessions: another size, the same model. But only one of them keeps sessions apart.
            chain.workers[0].stop()
            chain.per_worker[0] = ("--ctx", 2048, "--deterministic")
            chain.start(0)
            chain.write()
            done = check()
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertIn("The workers' KV cells of sessions differ: w0 has apart, w1 has shared. That is allowed: ", done.stdout)
            self.assertEqual(run().returncode, 0)
            for done, code in (check("--deterministic"), 1), (run("--deterministic"), 2):
                self.assertEqual((done.returncode, "One token went" in done.stdout), (code, False))
                self.assertRegex(done.stderr, "worker w1 .*KV cells.*--deterministic")

    def test_check__another_model_in_the_file_is_refused_with_both_hashes(self):
        other = "0123456789abcdef" * 4
        self.refused(f"worker w0 .*{nk.sha256(nk.KJV)}.*{other}", digest=other)

    def test_check__a_worker_of_another_model_is_refused_with_both_hashes(self):
        path = os.path.join(self.dir, "other.gguf")
        shutil.copyfile(nk.KJV, path)
        with open(path, "ab") as f:
            f.write(b"\0")
        other = nk.Worker("--model", path, "--layers", "3-8", "--threads", "1", id="other")
        try:
            self.refused(f"worker w2 .*{nk.sha256(path)}.*{nk.sha256(nk.KJV)}", workers=self.workers(w2=other.address))
            other.assert_idle()
        finally:
            other.stop()

    def test_check__a_worker_of_another_width_is_refused_with_both_widths(self):
        path = os.path.join(self.dir, "wide.gguf")
        if not os.path.exists(path):
            nk.synth(path, "--layers", "8", "--width", "256", "--ff", "512", "--heads", "4", "--kv-heads", "2",
                     "--vocab", "1024", "--ctx", "512", "--type", "Q8_0")
        other = nk.Worker("--model", path, "--layers", "3-8", "--threads", "1", id="wide")
        try:
            # Its hash is another one too, which is said first; the width is compared where hashes would agree (unit tests).
            self.refused("worker w2 ", workers=self.workers(w2=other.address))
        finally:
            other.stop()

    def test_check__other_ranges_than_the_files_are_refused_with_both(self):
        workers = self.workers()
        workers[0] = ("w0", workers[0][1], "0-2")
        workers[1] = ("w1", workers[1][1], "2-3")
        self.refused("worker w0 .*has layers 0-1, the cluster file says 0-2", workers=workers)
        # All that is wrong is said, not only the first.
        self.assertRegex(self.check().stderr, "worker w1 .*has layers 1-3, the cluster file says 2-3")

    def test_check__workers_in_another_order_are_refused(self):
        a, b, c = self.workers()
        self.refused("worker w0 .*has layers 1-3, the cluster file says 0-1",
                     workers=[(a[0], b[1], "0-1"), (b[0], a[1], "1-3"), c])

    def test_check__a_chain_that_ends_too_soon_is_refused(self):
        self.refused("worker w0 .*has 8 layers, the cluster file's ranges end at 3", workers=self.workers()[:2])

    def test_check__a_gap_in_the_file_is_refused_with_its_line(self):
        done = self.check(workers=[self.workers()[0], self.workers()[2]])
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr, r"cluster.yaml:\d+: nobody has layers 1-3: worker w0 ends at 1 and worker w2 begins at 3")

    def test_check__a_worker_that_is_not_there_is_named(self):
        with socket.socket() as s:  # bound and not listening: nobody else gets the port
            s.bind(("127.0.0.1", 0))
            self.refused("worker w1 .*cannot be reached", workers=self.workers(w1="127.0.0.1:%d" % s.getsockname()[1]))

    def test_check__somebody_who_speaks_no_grpc_is_named(self):
        with socket.create_server(("127.0.0.1", 0)) as s:
            def serve():
                while True:
                    try:
                        c, _ = s.accept()
                        c.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello\r\n")
                        c.close()
                    except OSError:
                        return
            threading.Thread(target=serve, daemon=True).start()
            self.refused("worker w1 ", "--timeout-ms", "2000", run=False,
                         workers=self.workers(w1="127.0.0.1:%d" % s.getsockname()[1]))

    def test_check__somebody_who_says_nothing_is_named_within_the_time(self):
        with socket.create_server(("127.0.0.1", 0)) as s:
            self.refused("worker w1 ", "--timeout-ms", "500", run=False,
                         workers=self.workers(w1="127.0.0.1:%d" % s.getsockname()[1]))

    def test_check__a_worker_that_stands_still_is_named_within_the_time(self):
        w = self.chain.workers[2]
        w.signal(signal.SIGSTOP)
        try:
            self.refused(f"worker w2 ", "--timeout-ms", "500", run=False)
        finally:
            w.signal(signal.SIGCONT)

    def test_check__a_worker_that_sleeps_is_refused_and_awake_it_fits(self):
        with nk.Client(self.chain.workers[1].address) as client:
            client.sleep()
            try:
                self.refused("worker w1 .*asleep, not serving")
            finally:
                client.wake()
        self.assertEqual(self.check().returncode, 0)

    def test_check__a_worker_that_may_not_dial_the_next_is_found_by_the_probe(self):
        stranger = nk.Worker("--model", nk.KJV, "--layers", "0-1", "--threads", "1", id="stranger")
        try:
            done = self.refused("127.0.0.1:%d" % self.chain.workers[1].port, workers=self.workers(w0=stranger.address))
            self.assertIn("127.0.0.1:%d" % self.chain.workers[1].port, done.stderr)
        finally:
            stranger.stop()

    def test_check__a_vocabulary_of_another_model_or_none_is_refused(self):
        path = os.path.join(self.dir, "vocab.gguf")
        shutil.copyfile(nk.KJV, path)
        with open(path, "ab") as f:
            f.write(b"\0\0")
        self.refused(f"{path}.*{nk.sha256(path)}.*{nk.sha256(nk.KJV)}", vocab=path)
        self.refused("/nonexistent.gguf", vocab="/nonexistent.gguf")
        self.assertEqual(self.check(vocab=None).returncode, 0)  # who sends ids needs none

    def test_check__wrong_arguments_are_sentences_and_exit_code_2(self):
        for args, sentence in [([], "--cluster FILE is missing"), (["--cluster", "/nonexistent"], "/nonexistent"),
                               (["--cluster", self.chain.file, "--timeout-ms", "0"], "outside 1 to"),
                               (["--cluster", self.chain.file, "x"], "one argument too many"),
                               (["--cluster", nk.KJV], "kjv-tiny.gguf")]:
            with self.subTest(args=args):
                done = nk.run("check", *args)
                self.assertEqual(done.returncode, 2)
                self.assertIn(sentence, done.stderr)
                self.assertEqual((done.stdout, done.stderr.count("\n")), ("", 1))


class Tls(unittest.TestCase):
    """Workers that take mutual TLS only: the cluster file names the certificates."""

    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.dir)
        for ca in ("ca", "stranger"):
            cls.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                        "-subj", "/CN=" + ca, "-keyout", ca + ".key", "-out", ca + ".pem")
            with open(os.path.join(cls.dir, "ext"), "w") as f:
                f.write("subjectAltName=IP:127.0.0.1\n")
            cls.openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=me",
                        "-keyout", f"{ca}-me.key", "-out", "me.csr")
            cls.openssl("x509", "-req", "-in", "me.csr", "-CA", ca + ".pem", "-CAkey", ca + ".key", "-CAcreateserial",
                        "-days", "2", "-extfile", "ext", "-out", f"{ca}-me.pem")
        cls.chain = nk.Chain(nk.KJV, "0-4,4-8", "--tls-ca", cls.path("ca.pem"), "--tls-cert", cls.path("ca-me.pem"),
                             "--tls-key", cls.path("ca-me.key"))
        cls.addClassCleanup(cls.chain.close)

    @classmethod
    def openssl(cls, *args):
        subprocess.run(["openssl", *args], cwd=cls.dir, check=True, capture_output=True)

    @classmethod
    def path(cls, name):
        return os.path.join(cls.dir, name)

    def check(self, tls):
        path = self.path("cluster.yaml")
        with open(self.chain.file) as original, open(path, "w") as f:
            f.write(tls + original.read())
        return nk.run("check", "--cluster", path, "--timeout-ms", 3000 * nk.SLOW)

    def test_check__certificates_of_the_clusters_ca_are_let_in(self):
        done = self.check("tls: {ca: ca.pem, certificate: ca-me.pem, key: ca-me.key}\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        got = nk.out("run", "--cluster", self.path("cluster.yaml"), "--prompt", "And it came to pass", "-n", "64", "--temp", "0")
        self.assertEqual("And it came to pass" + got, nk.golden("kjv-tiny")["text"])

    def test_check__without_or_with_somebody_elses_nobody_is_let_in(self):
        for tls in ("", "tls: {ca: ca.pem, certificate: stranger-me.pem, key: stranger-me.key}\n",
                    "tls: {ca: stranger.pem, certificate: ca-me.pem, key: ca-me.key}\n"):
            with self.subTest(tls=tls):
                done = self.check(tls)
                self.assertEqual(done.returncode, 1, done.stdout)
                self.assertIn("worker w0", done.stderr)

    def certificate(self, name, days, subject):
        """One more of the cluster's CA: NAME.pem with the key of ca-me; valid from a week ago for so many days."""
        with open(self.path("ext-" + name), "w") as f:
            f.write(f"subjectAltName={subject}\n")
        os.makedirs(self.path("new"), exist_ok=True)
        with open(self.path("index-" + name), "w"):
            pass
        with open(self.path(name + ".cnf"), "w") as f:
            f.write(f"[ca]\ndefault_ca=c\n[c]\ndatabase=index-{name}\nnew_certs_dir=new\nrand_serial=yes\n"
                    "default_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n")
        begin = time.time() - 7 * 86400
        dates = [time.strftime("%Y%m%d%H%M%SZ", time.gmtime(t)) for t in (begin, begin + days * 86400)]
        self.openssl("req", "-new", "-key", "ca-me.key", "-subj", "/CN=me", "-out", name + ".csr")
        self.openssl("ca", "-batch", "-config", name + ".cnf", "-cert", "ca.pem", "-keyfile", "ca.key", "-in", name + ".csr",
                     "-out", name + ".pem", "-notext", "-startdate", dates[0], "-enddate", dates[1], "-extfile", "ext-" + name)
        return name + ".pem"

    def test_check__an_expired_certificate_is_not_let_in(self):
        good = self.certificate("good", 8, "IP:127.0.0.1")  # made in the same way, but for its date: a day is left
        done = self.check(f"tls: {{ca: ca.pem, certificate: {good}, key: ca-me.key}}\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, "event=certificate of=self reason=ends_soon msg=\"this machine's certificate is good until ")
        expired = self.certificate("expired", 5, "IP:127.0.0.1")
        done = self.check(f"tls: {{ca: ca.pem, certificate: {expired}, key: ca-me.key}}\n")
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertRegex(done.stderr, "worker w0 .*TLS: .*may have refused this one.*this machine's certificate was good until")

    def test_check__a_worker_with_an_expired_certificate_or_another_name_is_not_believed(self):
        for name, days, subject, why in (("late", 5, "IP:127.0.0.1", "was good until"),
                                         ("elsewhere", 14, "IP:127.0.0.2,DNS:elsewhere.example", "is not for 127.0.0.1, but for")):
            with self.subTest(name):
                own = self.path(self.certificate(name, days, subject))
                w = nk.Worker("--model", nk.KJV, "--layers", "0-4", "--threads", 1, "--tls-ca", self.path("ca.pem"),
                              "--tls-cert", own, "--tls-key", self.path("ca-me.key"), id="bad",
                              peers=[self.chain.workers[1].address])
                try:
                    file = self.path("bad.yaml")
                    with open(file, "w") as f:
                        f.write("tls: {ca: ca.pem, certificate: ca-me.pem, key: ca-me.key}\n" + nk.cluster_text(
                            "kjv", self.chain.digest, [("bad", w.address, "0-4"),
                                                       ("w1", self.chain.workers[1].address, "4-8")], vocab=nk.KJV))
                    done = nk.run("check", "--cluster", file, "--timeout-ms", "3000")
                    self.assertEqual(done.returncode, 1, done.stdout)
                    self.assertRegex(done.stderr, f"worker bad .*TLS: .*the certificate {why}")
                    self.assertEqual(w.stop(), 0)
                finally:
                    w.kill()

    def test_check__files_that_are_not_there_or_no_certificates_are_named(self):
        done = self.check("tls: {ca: nowhere.pem, certificate: ca-me.pem, key: ca-me.key}\n")
        self.assertEqual(done.returncode, 2)
        self.assertIn("nowhere.pem", done.stderr)
        done = self.check("tls: {ca: ext, certificate: ca-me.pem, key: ca-me.key}\n")
        self.assertEqual(done.returncode, 2)
        self.assertIn("certificate", done.stderr)
        done = self.check("tls: {ca: ca.pem, certificate: ca-me.pem, key: stranger-me.key}\n")
        self.assertEqual(done.returncode, 2)


class Identity(unittest.TestCase):
    """Workers with identity folders, which only members of their cluster talk to."""

    CLUSTER = "0123456789abcdef" * 2
    GATEWAY, STAGE = "00000000000000aa", "00000000000000bb"

    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.dir)
        for ca in ("ca", "stranger"):
            cls.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                        "-subj", "/CN=" + ca, "-keyout", ca + ".key", "-out", ca + ".pem")
        cls.folder("gateway", "ca", cls.GATEWAY)
        cls.folder("stage", "ca", cls.STAGE)
        cls.folder("stranger", "stranger", cls.GATEWAY)
        w1 = nk.Worker("--model", nk.KJV, "--layers", "4-8", "--threads", 1, "--identity", cls.path("stage"), "--epoch", 7,
                       listen="[::]:0", id="w1")
        cls.addClassCleanup(w1.kill)
        w0 = nk.Worker("--model", nk.KJV, "--layers", "0-4", "--threads", 1, "--identity", cls.path("stage"), "--epoch", 7, id="w0")
        cls.addClassCleanup(w0.kill)
        cls.workers, cls.digest = (w0, w1), nk.sha256(nk.KJV)

    @classmethod
    def openssl(cls, *args):
        subprocess.run(["openssl", *args], cwd=cls.dir, check=True, capture_output=True)

    @classmethod
    def path(cls, name):
        return os.path.join(cls.dir, name)

    @classmethod
    def folder(cls, name, ca, member):
        """An identity folder with a certificate of that CA."""
        os.makedirs(cls.path(name + "/0001"))
        os.symlink("0001", cls.path(name + "/current"))
        shutil.copy(cls.path(ca + ".pem"), cls.path(name + "/ca.pem"))
        with open(cls.path("ext"), "w") as f:
            f.write(f"subjectAltName=URI:spiffe://{cls.CLUSTER}/member/{member}\n")
        cls.openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=me",
                    "-keyout", f"{name}/0001/key.pem", "-out", "me.csr")
        cls.openssl("x509", "-req", "-in", "me.csr", "-CA", ca + ".pem", "-CAkey", ca + ".key", "-CAcreateserial", "-days", "2",
                    "-extfile", "ext", "-out", f"{name}/0001/certificate.pem")
        with open(cls.path(name + "/members"), "w") as f:
            f.write(f"nakshatra-members 1 1\n{cls.GATEWAY} gateway attic\n{cls.STAGE} member cellar\n")

    def cluster(self, identity, epoch):
        path = self.path("cluster.yaml")
        with open(path, "w") as f:
            f.write(f"identity: {identity}\nepoch: {epoch}\n" + nk.cluster_text("kjv", self.digest, [
                ("w0", self.workers[0].address, "0-4"), ("w1", f"127.0.0.1:{self.workers[1].port}", "4-8")], vocab=nk.KJV))
        return path

    def refused(self, identity, epoch, *words):
        for command, more in ("check", ("--timeout-ms", 3000 * nk.SLOW)), ("run", ("--prompt", "And", "-n", "1")):
            with self.subTest(command):
                done = nk.run(command, "--cluster", self.cluster(identity, epoch), *more)
                self.assertNotEqual(done.returncode, 0, done.stdout)
                self.assertIn("w0", done.stderr)
                for word in words:
                    self.assertIn(word, done.stderr)

    def test_run__over_members_gives_the_text_of_plain_workers(self):
        file = self.cluster("gateway", 7)
        done = nk.run("check", "--cluster", file)
        self.assertEqual(done.returncode, 0, done.stderr)
        got = nk.out("run", "--cluster", file, "--prompt", "And it came to pass", "-n", "64", "--temp", "0")
        self.assertEqual("And it came to pass" + got, nk.golden("kjv-tiny")["text"])

    def test_run__of_another_epoch_is_refused_with_both(self):
        self.refused("gateway", 8, "epoch 8", "7")

    def test_run__by_a_member_that_is_no_gateway_is_refused(self):
        done = nk.run("run", "--cluster", self.cluster("stage", 7), "--prompt", "And", "-n", "1")
        self.assertNotEqual(done.returncode, 0, done.stdout)
        self.assertIn(f"member {self.STAGE} may not open a first stage", done.stderr)

    def test_run__with_a_strangers_certificate_is_refused(self):
        self.refused("stranger", 7, "not of this cluster's CA")
        self.assertIn("reason=wrong_ca", self.workers[0].log())


if __name__ == "__main__":
    unittest.main()

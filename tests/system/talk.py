"""Talking to workers over rpc Inference and the standard services, with python3-grpcio and nothing of ours in between.

    with talk.Wire(chain.workers) as wire:
        done = wire.generate(ids, 16)                  # a whole generation: .ids, .text, .opened, .done
        stream = wire.stream()                         # or message by message
        stream.send(wire.open(ids, 16)); stream.recv()
"""
import importlib
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading

import grpc

import nk

_modules = {}


def proto(name):
    """The messages of proto/NAME.proto, made by protoc."""
    if name not in _modules:
        folder = tempfile.mkdtemp(prefix="nk-pb-")
        try:
            subprocess.run(["protoc", "-I", os.path.join(nk.SOURCE, "proto"), "--python_out", folder, name + ".proto"],
                           check=True)
            sys.path.insert(0, folder)
            _modules[name] = importlib.import_module(name + "_pb2")
        finally:
            sys.path.remove(folder)
            shutil.rmtree(folder, ignore_errors=True)
    return _modules[name]


def ids(n, seed=0):
    """n token ids of kjv-tiny that are text (its control and byte tokens come before 259)."""
    r = random.Random(seed * 7919 + n)
    return [1] + [r.randrange(259, 1024) for _ in range(n - 1)]


def route(workers):
    return [nk.pb().Stage(address=w.address, layer_begin=w.begin, layer_end=w.end) for w in workers]


class Generation:
    """What came of one: ids, text, tokens (the messages), opened, done; error when it ended with a status."""

    def __init__(self):
        self.tokens, self.opened, self.done, self.error = [], None, None, None

    @property
    def ids(self):
        return [t.id for t in self.tokens]

    @property
    def text(self):
        return b"".join(t.text for t in self.tokens)

    @property
    def finish(self):
        return nk.pb().FinishReason.Name(self.done.finish) if self.done else None

    @property
    def reason(self):
        return nk.reason(self.error) if self.error else None

    @property
    def code(self):
        return self.error.code().name if self.error else "OK"

    def add(self, reply):
        kind = reply.WhichOneof("kind")
        if kind == "opened":
            assert self.opened is None, "Opened came twice"
            self.opened = reply.opened
        elif kind == "token":
            assert self.opened is not None and self.done is None, "a token out of place"
            self.tokens.append(reply.token)
        elif kind == "done":
            assert self.done is None, "Done came twice"
            self.done = reply.done
        else:
            raise AssertionError(f"a client was sent {kind}")


class Stream:
    """One Inference call, message by message. raw: bytes instead of messages."""

    def __init__(self, channel, timeout=60, raw=False):
        def plain(b):
            return b
        self.out = queue.Queue()
        method = channel.stream_stream("/nakshatra.v1.Nakshatra/Inference",
                                       plain if raw else nk.pb().InferenceRequest.SerializeToString,
                                       plain if raw else nk.pb().InferenceReply.FromString)
        self.call = method(iter(self.out.get, None), timeout=timeout * nk.SLOW)

    def send(self, *messages):
        for m in messages:
            self.out.put(m)
        return self

    def half_close(self):
        self.out.put(None)

    def recv(self):
        return next(self.call)

    def error(self):
        """Reads to the end; the status as a grpc.RpcError, or None when it is OK."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as e:
            return e
        return None

    def cancel(self):
        self.call.cancel()
        self.out.put(None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.cancel()


class Running:
    """A generation in the background."""

    def __init__(self, wire, request, timeout):
        self.result, self.stream = Generation(), Stream(wire.channel, timeout)
        self.changed, self.ended = threading.Condition(), False
        self.stream.send(request)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        try:
            for reply in self.stream.call:
                with self.changed:
                    self.result.add(reply)
                    self.changed.notify_all()
        except grpc.RpcError as e:
            self.result.error = e
        finally:
            self.stream.half_close()
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def until(self, what, seconds=60):
        """Waits until what(result) or the end; returns what(result)."""
        with self.changed:
            self.changed.wait_for(lambda: what(self.result) or self.ended, seconds * nk.SLOW)
            return what(self.result)

    def until_tokens(self, n, seconds=60):
        if not self.until(lambda r: len(r.tokens) >= n, seconds):
            raise AssertionError(f"{len(self.result.tokens)} tokens instead of {n}: {self.result.error}")
        return self

    def wait(self, seconds=120):
        """To the end."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.ended, seconds * nk.SLOW):
                raise AssertionError(f"the generation did not end within {seconds * nk.SLOW} s")
        self.thread.join()
        return self.result

    def cancel(self):
        self.stream.cancel()


class Wire:
    """A client of the chain that these workers are, in order; it talks to the first."""

    def __init__(self, workers, address=None):
        self.workers = list(workers)
        self.address = address or self.workers[0].address
        self.client = nk.Client(self.address)
        self.channel = self.client.channel

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.__exit__()

    def open(self, prompt, n=16, session=None, limits=None, **fields):
        """An InferenceRequest with Open; fields as in the message."""
        pb = nk.pb()
        fields.setdefault("route", route(self.workers))
        if "sampling" in fields and isinstance(fields["sampling"], dict):
            fields["sampling"] = pb.Sampling(**fields["sampling"])
        return pb.InferenceRequest(open=pb.Open(
            session=os.urandom(16) if session is None else session, prompt_ids=prompt,
            limits=pb.Limits(n_predict=n, **(limits or {})), **fields))

    def start(self, prompt, n=16, timeout=60, **fields):
        return Running(self, self.open(prompt, n, **fields), timeout)

    def generate(self, prompt, n=16, timeout=60, **fields):
        """To the end; a Generation whose `error` is set when it failed."""
        return self.start(prompt, n, timeout, **fields).wait(timeout * 2)

    def stream(self, timeout=60, raw=False):
        return Stream(self.channel, timeout, raw)

    def unary(self, path, request, reply, timeout=10):
        call = self.channel.unary_unary(path, type(request).SerializeToString, reply.FromString)
        return call(request, timeout=timeout * nk.SLOW)

    def health(self, service="", timeout=10):
        """The standard health check: "SERVING", ..."""
        h = proto("health")
        r = self.unary("/grpc.health.v1.Health/Check", h.HealthCheckRequest(service=service), h.HealthCheckResponse,
                       timeout)
        return h.HealthCheckResponse.ServingStatus.Name(r.status)


def complaint(case, call, code, reason, *words):
    """call() ends with this gRPC code and reason word, and says these words. Returns the error."""
    try:
        got = call()
    except grpc.RpcError as e:
        got = e
    if isinstance(got, Generation):
        got = got.error or got
    if not isinstance(got, grpc.RpcError):
        case.fail(f"{code} {reason} expected, but it went well: {got}")
    found = (got.code().name, nk.reason(got))
    case.assertEqual(found, (code, reason), got.details())
    for word in words:
        case.assertIn(str(word), got.details())
    return got


def rss(pid):
    """Resident bytes."""
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise AssertionError(f"no VmRSS of process {pid}")

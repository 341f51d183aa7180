"""A link between two processes on this machine that a test can spoil: it forwards what comes to one port to another address, until
it is told to do otherwise. Loopback only.

    link = Link(worker.address)      # link.address is what others dial
    link.cut()                       # everything stops on the way, and nobody is told: a cable that was pulled
    link.drop()                      # connections break at once, and so do new ones
    link.slow(bytes_per_s, delay_s)  # what comes is late"""
import selectors
import socket
import threading
import time

BLOCK = 16 << 10


class Link:
    def __init__(self, to, cut_after=None):
        """cut_after: as `cut`, when so many bytes went towards `to`."""
        host, port = to.rsplit(":", 1)
        self.to, self.cut_after = (host, int(port)), cut_after
        self.forwarded = 0  # bytes towards `to`
        self.rate, self.delay = None, 0
        self.is_cut = self.is_dropped = self.closed = False
        self.selector = selectors.DefaultSelector()
        self.lock = threading.Lock()
        self.pairs = {}
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.wake_read, self.wake_write = socket.socketpair()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(self.wake_read, selectors.EVENT_READ)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def cut(self):
        self.is_cut = True

    def mend(self):
        """It is as it was; the connections that there were break."""
        if self.is_spoilt:
            self.is_cut, self.is_dropped, self.cut_after, self.rate, self.delay = False, False, None, None, 0
            self.wake_write.send(b"m")

    def drop(self):
        """Connections break, and new ones do at once, until it is mended."""
        self.is_dropped = True
        self.wake_write.send(b"m")

    @property
    def is_spoilt(self):
        return self.is_cut or self.is_dropped or self.rate is not None or self.delay > 0

    def slow(self, bytes_per_s, delay_s=0):
        self.rate, self.delay = bytes_per_s, delay_s

    def close(self):
        if not self.closed:
            self.closed = True
            self.wake_write.send(b"x")
            self.thread.join()

    def _accept(self):
        a, _ = self.listener.accept()
        if self.is_dropped:
            a.close()
            return
        try:
            b = socket.create_connection(self.to, 5)
        except OSError:
            a.close()
            return
        for s, other in ((a, b), (b, a)):
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.pairs[s] = (other, s is a)
            self.selector.register(s, selectors.EVENT_READ)

    def _drop(self, s):
        other, _ = self.pairs.pop(s, (None, None))
        if other is None:
            return
        self.pairs.pop(other, None)
        for each in (s, other):
            self.selector.unregister(each)
            each.close()

    def _forward(self, s):
        other, is_up = self.pairs[s]
        try:
            data = s.recv(BLOCK)
            if not data:
                self._drop(s)
                return
            if is_up and self.cut_after is not None and self.forwarded + len(data) > self.cut_after:
                self.is_cut = True
            if self.is_cut:
                return  # swallowed: the connection lies there, whole and dead
            if self.delay or self.rate:
                time.sleep(self.delay + (len(data) / self.rate if self.rate else 0))
            other.sendall(data)
            self.forwarded += len(data) if is_up else 0
        except OSError:
            self._drop(s)

    def _run(self):
        while not self.closed:
            for key, _ in self.selector.select():
                if key.fileobj is self.wake_read:
                    if self.wake_read.recv(1) == b"m":
                        for s in list(self.pairs):
                            self._drop(s)
                elif key.fileobj is self.listener:
                    self._accept()
                elif key.fileobj in self.pairs:
                    self._forward(key.fileobj)
        for s in list(self.pairs):
            self._drop(s)
        for s in (self.listener, self.wake_read, self.wake_write):
            s.close()
        self.selector.close()

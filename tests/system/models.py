"""Models for the tests, made on the spot: small ones of any architecture, and large ones that are mostly holes."""
import os
import random
import struct

import ggufio as g


def _f32(n, seed):
    rng = random.Random(seed)
    return struct.pack("<%df" % n, *(rng.uniform(-1, 1) for _ in range(n)))


def small(path, arch="llama", n_layer=4, width=32, vocab=64, tied=False, extra=(), layer=None, tensors=(), remove=()):
    """A model with a few small tensors per layer: enough for everything but running it. layer(i): names and lengths of
    layer i's tensors. Returns the path."""
    layer = layer or (lambda i: [("attn_k.weight", width), ("ffn_up.weight", 2 * width)])
    kv = {
        "general.architecture": (g.STR, arch), "general.name": (g.STR, "A small model"),
        arch + ".block_count": (g.U32, n_layer), arch + ".embedding_length": (g.U32, width),
        arch + ".context_length": (g.U32, 128), arch + ".attention.head_count": (g.U32, 4),
        arch + ".attention.head_count_kv": (g.U32, 2), "tokenizer.ggml.model": (g.STR, "llama"),
        "tokenizer.ggml.tokens": (g.ARR, (g.STR, ["<%d>" % i for i in range(vocab)])),
        "tokenizer.ggml.scores": (g.ARR, (g.F32, [-float(i) for i in range(vocab)])),
        "tokenizer.ggml.bos_token_id": (g.U32, 1), "tokenizer.chat_template": (g.STR, "{{ messages }}"),
    }
    kv.update(extra)
    for key in remove:
        del kv[key]
    out = [("token_embd.weight", [width, vocab], 0, _f32(width * vocab, 1)),
           ("rope_freqs.weight", [width // 8], 0, _f32(width // 8, 2)),
           ("output_norm.weight", [width], 0, _f32(width, 3))]
    if not tied:
        out.append(("output.weight", [width, vocab], 0, _f32(width * vocab, 4)))
    for i in range(n_layer):
        out += [("blk.%d.%s" % (i, name), [n], 0, _f32(n, 100 * i + k)) for k, (name, n) in enumerate(layer(i))]
    return g.write(path, kv, out + list(tensors))


def long_rope(path, source, n_orig):
    """The llama model `source` with two lists of RoPE factors, one for contexts of up to n_orig tokens and one for longer ones,
    as Phi-3 128k has. Returns the path."""
    m = g.read(source)
    n = m.get("llama.embedding_length") // m.get("llama.attention.head_count") // 2
    m.kv["llama.rope.scaling.type"] = (g.STR, "longrope")
    m.kv["llama.rope.scaling.original_context_length"] = (g.U32, n_orig)
    m.kv["llama.rope.scaling.attn_factor"] = (g.F32, 1.0)
    lists = [("rope_factors_%s.weight" % name, [n], 0, struct.pack("<%df" % n, *factors))
             for name, factors in (("long", [2.0, 3.0] + [4.0] * (n - 2)), ("short", [1.0] * n))]
    return g.write(path, m.kv, [(t.name, t.ne, t.type, m.data(t)) for t in m.tensors.values()] + lists)


def large(path, size, n_layer=4, width=256):
    """A model of about that many bytes, which takes no space: its weights are a hole in the file."""
    rows = size // (n_layer + 1) // (4 * width)
    kv = {"general.architecture": (g.STR, "llama"), "llama.block_count": (g.U32, n_layer),
          "llama.embedding_length": (g.U32, width), "llama.context_length": (g.U32, 128),
          "llama.attention.head_count": (g.U32, 4), "tokenizer.ggml.model": (g.STR, "llama"),
          "tokenizer.ggml.tokens": (g.ARR, (g.STR, ["a", "b"]))}
    names = ["token_embd.weight"] + ["blk.%d.ffn_up.weight" % i for i in range(n_layer)]
    out, offset = [b"GGUF", struct.pack("<Iqq", 3, len(names), len(kv))], 0
    for key, (t, v) in kv.items():
        out += [g._string(key), struct.pack("<I", t)]
        out += [struct.pack("<IQ", v[0], len(v[1]))] + [g._value(v[0], x) for x in v[1]] if t == g.ARR else [g._value(t, v)]
    for name in names:
        out += [g._string(name), struct.pack("<IqqIQ", 2, width, rows, 0, offset)]
        offset += 4 * width * rows
    head = b"".join(out)
    head += bytes(-len(head) % 32)
    with open(path, "wb") as f:
        f.write(head)
        f.truncate(len(head) + offset)
    os.utime(path, (1e9, 1e9))
    return path

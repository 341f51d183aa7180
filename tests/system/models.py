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


POOLINGS = {"mean": 1, "cls": 2, "last": 3, "rank": 4}
WORDS = ("the in beginning god created heaven and earth was without form void darkness upon face of deep spirit moved waters "
         "said let there be light it good a lord his who is king sword ##s ##ed ##ing , . ?").split()


def encoder(path, pooling="mean", arch="bert", n_layer=4, width=64, n_head=4, n_ff=96, n_ctx=128, n_out=1):
    """A BERT-like encoder of random weights whose vocabulary is a few words: `pooling` is one of POOLINGS; rank: with a
    classifier head of n_out outputs. Returns the path."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [w[2:] if w.startswith("##") else "\u2581" + w for w in WORDS]
    tokens += [mark + c for mark in ("\u2581", "") for c in "abcdefghijklmnopqrstuvwxyz"]
    tokens = list(dict.fromkeys(tokens))
    n_vocab = len(tokens)
    kv = {
        "general.architecture": (g.STR, arch), "general.name": (g.STR, "A small encoder"),
        arch + ".block_count": (g.U32, n_layer), arch + ".embedding_length": (g.U32, width),
        arch + ".context_length": (g.U32, n_ctx), arch + ".feed_forward_length": (g.U32, n_ff),
        arch + ".attention.head_count": (g.U32, n_head), arch + ".attention.layer_norm_epsilon": (g.F32, 1e-5),
        arch + ".attention.causal": (g.BOOL, False), arch + ".pooling_type": (g.U32, POOLINGS[pooling]),
        "tokenizer.ggml.model": (g.STR, "bert"), "tokenizer.ggml.pre": (g.STR, "default"),
        "tokenizer.ggml.token_type_count": (g.U32, 2),
        "tokenizer.ggml.tokens": (g.ARR, (g.STR, tokens)),
        "tokenizer.ggml.token_type": (g.ARR, (g.I32, [3, 2, 3, 3, 3] + [1] * (n_vocab - 5))),
        "tokenizer.ggml.bos_token_id": (g.U32, 2), "tokenizer.ggml.cls_token_id": (g.U32, 2),
        "tokenizer.ggml.eos_token_id": (g.U32, 3), "tokenizer.ggml.seperator_token_id": (g.U32, 3),
        "tokenizer.ggml.unknown_token_id": (g.U32, 1), "tokenizer.ggml.padding_token_id": (g.U32, 0),
        "tokenizer.ggml.mask_token_id": (g.U32, 4),
    }
    if arch.startswith("nomic"):
        kv[arch + ".rope.freq_base"] = (g.F32, 1000.0)
    out = []

    def add(name, *ne, scale=1.0, middle=0.0):
        rng = random.Random(len(out))
        n = 1
        for d in ne:
            n *= d
        out.append((name, list(ne), 0, struct.pack("<%df" % n, *(middle + scale * rng.uniform(-1, 1) for _ in range(n)))))

    def norm(name):
        add(name + ".weight", width, scale=0.2, middle=1.0)
        add(name + ".bias", width, scale=0.1)

    def linear(name, n_in, n):
        add(name + ".weight", n_in, n, scale=3 / n_in ** 0.5)
        if arch == "bert":
            add(name + ".bias", n, scale=0.1)

    add("token_embd.weight", width, n_vocab)
    add("token_types.weight", width, 2)
    if arch == "bert":
        add("position_embd.weight", width, n_ctx)
    norm("token_embd_norm")
    for i in range(n_layer):
        b = "blk.%d." % i
        if arch == "bert":
            for x in "qkv":
                linear(b + "attn_" + x, width, width)
        else:
            linear(b + "attn_qkv", width, 3 * width)
        linear(b + "attn_output", width, width)
        norm(b + "attn_output_norm")
        linear(b + "ffn_up", width, n_ff)
        if arch != "bert":
            linear(b + "ffn_gate", width, n_ff)
        linear(b + "ffn_down", n_ff, width)
        norm(b + "layer_output_norm")
    if pooling == "rank":
        linear("cls", width, width)
        linear("cls.output", width, n_out)
        kv[arch + ".classifier.output_labels"] = (g.ARR, (g.STR, ["label %d" % i for i in range(n_out)]))
    return g.write(path, kv, out)

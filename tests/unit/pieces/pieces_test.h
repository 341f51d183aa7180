/* Models of a few MiB with several parts to a piece, caches of one's own, and machines that serve
 * them, for the tests of this layer. */
#ifndef NK_TEST_PIECES_H
#define NK_TEST_PIECES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <ggml.h>
#include <gguf.h>

#include "base/file.h"
#include "pieces/fetch.h"
#include "pieces/places.h"
#include "pieces/service.h"
#include "rpc/proto.h"

#define ok(expr)                                                                                   \
    do {                                                                                           \
        struct nk_error ok_err = { 0 };                                                            \
        struct nk_error *err = &ok_err;                                                            \
        (void)err;                                                                                 \
        if (expr)                                                                                  \
            fail_msg("%s: %s (%s)", #expr, ok_err.msg, ok_err.reason);                             \
    } while (0)
#define refused(expr, code_, reason_)                                                              \
    do {                                                                                           \
        struct nk_error refused_err = { 0 };                                                       \
        struct nk_error *err = &refused_err;                                                       \
        int rc_ = (expr);                                                                          \
        if (rc_ != (code_) || strcmp(refused_err.reason, reason_) != 0)                            \
            fail_msg("%s: %d %s (%s), not %d %s", #expr, rc_, refused_err.reason, refused_err.msg, \
                     code_, reason_);                                                              \
    } while (0)

static char test_dir[64]; /* of the program; paths below are in it */

static inline int test_dir_make(void **state)
{
    (void)state;
    snprintf(test_dir, sizeof test_dir, "/tmp/nk-pieces-XXXXXX");
    return mkdtemp(test_dir) ? 0 : -1;
}

static inline int test_dir_remove(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", test_dir);
    return system(command);
}

/* From here on the cache folder is this one. */
static inline void use_cache(const char *name)
{
    char path[128];

    snprintf(path, sizeof path, "%s/%s", test_dir, name);
    setenv("XDG_CACHE_HOME", path, 1);
}

static inline void remove_cache(const char *name)
{
    char command[256];

    snprintf(command, sizeof command, "rm -rf '%s/%s'", test_dir, name);
    assert_int_equal(system(command), 0);
}

/* ---- models ---- */

enum { WIDTH = 1024, ROWS = 1100, VOCAB = 1060, LAYERS = 4 };

static inline void add_tensor(struct gguf_context *g, const char *name, int64_t ne0, int64_t ne1)
{
    struct ggml_tensor t = { .type = GGML_TYPE_F32, .ne = { ne0, ne1, 1, 1 } };

    t.nb[0] = 4;
    t.nb[1] = 4 * (size_t)ne0;
    t.nb[2] = t.nb[3] = t.nb[1] * (size_t)ne1;
    ggml_set_name(&t, name);
    gguf_add_tensor(g, &t);
}

static inline void add_layer(struct gguf_context *g, int i)
{
    char name[64];

    snprintf(name, sizeof name, "blk.%d.attn_norm.weight", i);
    add_tensor(g, name, WIDTH + 1, 1); /* so that there is padding behind it */
    snprintf(name, sizeof name, "blk.%d.ffn_up.weight", i);
    add_tensor(g, name, WIDTH, ROWS);
}

static inline void add_keys(struct gguf_context *g)
{
    static char texts[VOCAB][16];
    static const char *tokens[VOCAB];

    for (int i = 0; i < VOCAB; i++) {
        snprintf(texts[i], sizeof texts[i], "t%d", i);
        tokens[i] = texts[i];
    }
    gguf_set_val_str(g, "general.architecture", "llama");
    gguf_set_val_u32(g, "llama.block_count", LAYERS);
    gguf_set_val_u32(g, "llama.embedding_length", WIDTH);
    gguf_set_val_u32(g, "llama.attention.head_count", 4);
    gguf_set_val_str(g, "tokenizer.ggml.model", "llama");
    gguf_set_arr_str(g, "tokenizer.ggml.tokens", tokens, VOCAB);
}

/* Writes g with weights that go by seed; takes g. */
static inline void write_gguf(struct gguf_context *g, const char *path, uint64_t seed)
{
    FILE *f = fopen(path, "wb");
    size_t meta = gguf_get_meta_size(g), data = 0;
    void *bytes = malloc(meta);
    uint64_t block[512];

    assert_non_null(f);
    gguf_get_meta_data(g, bytes);
    assert_int_equal(fwrite(bytes, 1, meta, f), meta);
    for (int64_t i = 0; i < gguf_get_n_tensors(g); i++)
        data = gguf_get_tensor_offset(g, i) + GGML_PAD(gguf_get_tensor_size(g, i), 32);
    for (size_t at = 0; at < data; at += sizeof block) {
        for (size_t i = 0; i < sizeof block / sizeof *block; i++) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            block[i] = seed;
        }
        fwrite(block, 1, data - at < sizeof block ? data - at : sizeof block, f);
    }
    assert_int_equal(fclose(f), 0);
    free(bytes);
    gguf_free(g);
}

/* test_dir/NAME.gguf, of 4 layers with two parts each. */
static inline char *make_model(const char *name, bool tied, uint64_t seed)
{
    struct gguf_context *g = gguf_init_empty();
    char *path = malloc(256);

    snprintf(path, 256, "%s/%s.gguf", test_dir, name);
    add_keys(g);
    add_tensor(g, "token_embd.weight", WIDTH, VOCAB);
    if (!tied)
        add_tensor(g, "output.weight", WIDTH, VOCAB);
    add_tensor(g, "rope_freqs.weight", 32, 1);
    for (int i = 0; i < LAYERS; i++)
        add_layer(g, i);
    add_tensor(g, "output_norm.weight", WIDTH, 1);
    write_gguf(g, path, seed);
    return path;
}

/* In two shards; the path of the first. */
static inline char *make_shards(const char *name, uint64_t seed)
{
    char *path = malloc(256);

    for (int s = 1; s >= 0; s--) {
        struct gguf_context *g = gguf_init_empty();

        snprintf(path, 256, "%s/%s-%05d-of-00002.gguf", test_dir, name, s + 1);
        if (!s)
            add_keys(g);
        gguf_set_val_u16(g, "split.no", (uint16_t)s);
        gguf_set_val_u16(g, "split.count", 2);
        gguf_set_val_i32(g, "split.tensors.count", 3 + 2 * LAYERS);
        if (!s)
            add_tensor(g, "token_embd.weight", WIDTH, VOCAB);
        for (int i = 2 * s; i < 2 * s + 2; i++)
            add_layer(g, i);
        if (s) {
            add_tensor(g, "output_norm.weight", WIDTH, 1);
            add_tensor(g, "output.weight", WIDTH, VOCAB);
        }
        write_gguf(g, path, seed + (uint64_t)s);
    }
    return path;
}

static inline char *given_model(const char *env, const char *otherwise, const char *name)
{
    const char *folder = getenv(env);
    char *path = malloc(4096);

    snprintf(path, 4096, "%s%s/%s", folder ? folder : otherwise,
             !strcmp(env, "NK_SOURCE") ? "/tests/data" : "", name);
    return path;
}

static inline nk_model *open_model(const char *path)
{
    nk_model *m;

    ok(nk_model_open(&m, path, err));
    return m;
}

static inline nk_catalogue *catalogue_of(const char *path)
{
    nk_model *m = open_model(path);
    nk_catalogue *c;

    ok(nk_catalogue_make(&c, m, err));
    nk_model_close(m);
    return c;
}

/* The slice that nk_slice_cached (nk_vocab_cached) makes, in another cache; owned. */
static inline char *true_slice(const char *model, struct nk_range range)
{
    char *before = strdup(getenv("XDG_CACHE_HOME")), *path = NULL;
    nk_model *m = open_model(model);

    use_cache("true");
    if (range.end)
        ok(nk_slice_cached(m, range, NK_VERIFY_ONCE, &path, err));
    else
        ok(nk_vocab_cached(m, NK_VERIFY_ONCE, &path, err));
    nk_model_close(m);
    setenv("XDG_CACHE_HOME", before, 1);
    free(before);
    return path;
}

static inline void assert_same_file(const char *a, const char *b)
{
    struct nk_buf x, y;

    ok(nk_file_read(a, 1u << 30, &x, err));
    ok(nk_file_read(b, 1u << 30, &y, err));
    assert_int_equal(x.size, y.size);
    if (memcmp(x.data, y.data, x.size) != 0)
        fail_msg("%s and %s differ", a, b);
    nk_buf_release(&x);
    nk_buf_release(&y);
}

/* The fetch's slice is what it must be; ends the fetch. */
static inline void assert_slice(nk_fetch *f, const char *model, struct nk_range range)
{
    char *path, *want = true_slice(model, range), *expected, left[4096];
    nk_model *m = open_model(model);
    char hash[NK_SHA256_HEX];
    const char *name;
    struct stat st;

    ok(nk_fetch_wait(f, &path, err));
    ok(nk_model_hash(m, hash, err));
    ok(nk_slice_cache_path(m, range, &expected, err));
    assert_string_equal(path, expected);
    assert_same_file(path, want);
    nk_model_close(m);
    /* Nothing is left beside it. */
    name = strrchr(expected, '/') + 1;
    snprintf(left, sizeof left, "%.*s.%s.part", (int)(name - expected), expected, name);
    assert_int_equal(stat(left, &st), -1);
    nk_fetch_free(f);
    free(path);
    free(want);
    free(expected);
}

/* ---- a machine that serves ---- */

enum misdeed {
    HONEST,
    SAYS_NOTHING, /* takes a request for a part, and nothing comes */
    TRICKLES,     /* sends a few bytes of a part, no more */
    BREAKS_OFF,   /* ends the call within a part */
    SENDS_MORE,
    CUTS_SHORT, /* a message that says it is longer than it is */
};

struct machine {
    nk_pieces_service *s;
    nk_server *server;
    char address[64];
    enum misdeed misdeed; /* before it starts */
    atomic_int after;     /* so many parts that it is honest for */
    atomic_int n_asked;   /* for parts */
    atomic_int n_open;    /* misdeeds that are under way */
};

static inline void open_catalogue(nk_call *c, void *user)
{
    nk_pieces_service_catalogue(((struct machine *)user)->s, c);
}

static inline void open_have(nk_call *c, void *user)
{
    nk_pieces_service_have(((struct machine *)user)->s, c);
}

static inline void misdeed_message(nk_call *c, void *user, struct nk_bytes msg)
{
    static uint8_t bytes[NK_PART_BYTES];
    Nakshatra__V1__PartReply r = NAKSHATRA__V1__PART_REPLY__INIT;
    struct machine *m = user;

    (void)msg;
    r.data.data = bytes;
    r.data.len = m->misdeed == SENDS_MORE ? NK_PART_BYTES : 16; /* every part has more */
    if (m->misdeed == CUTS_SHORT)
        nk_call_send(c,
                     "\x0a\x7f"
                     "few",
                     5, NULL);
    else if (m->misdeed != SAYS_NOTHING)
        nk_call_send_pb(c, &r.base, NULL);
    if (m->misdeed == SENDS_MORE)
        nk_call_send_pb(c, &r.base, NULL);
    if (m->misdeed == BREAKS_OFF)
        nk_call_cancel(c);
    atomic_fetch_add(&m->n_open, 1);
}

static inline void misdeed_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct machine *m = user;

    (void)c;
    (void)status;
    atomic_fetch_sub(&m->n_open, 1);
}

static inline void open_part(nk_call *c, void *user)
{
    static const struct nk_call_handlers handlers = { misdeed_message, NULL, misdeed_end };
    struct machine *m = user;

    if (atomic_fetch_add(&m->n_asked, 1) < atomic_load(&m->after) || m->misdeed == HONEST)
        nk_pieces_service_part(m->s, c);
    else
        nk_call_accept(c, &handlers, m);
}

static const struct nk_method machine_methods[] = {
    { NK_PIECES_CATALOGUE, open_catalogue, 0 },
    { NK_PIECES_HAVE, open_have, 0 },
    { NK_PIECES_PART, open_part, 0 },
};

/* A machine with the whole model at path (NULL: with nothing yet). */
static inline void machine_start(struct machine *m, nk_net *net, nk_catalogue *c, const char *path,
                                 enum misdeed misdeed, int after)
{
    struct nk_server_opts opts = {
        .listen = "127.0.0.1:0", .methods = machine_methods, .n_methods = 3, .user = m
    };

    memset(m, 0, sizeof *m);
    m->misdeed = misdeed;
    atomic_store(&m->after, after);
    ok(nk_pieces_service_new(&m->s, net, err));
    if (path)
        ok(nk_pieces_service_add_model(m->s, c, path, err));
    else
        ok(nk_pieces_service_add(m->s, c, err));
    ok(nk_server_start(&m->server, net, &opts, err));
    snprintf(m->address, sizeof m->address, "127.0.0.1:%d", nk_server_port(m->server));
}

static inline void machine_stop(struct machine *m)
{
    nk_server_stop(m->server, 0);
    nk_pieces_service_free(m->s);
}

#endif

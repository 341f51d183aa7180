#include "rpc/computed.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* clang-format off */
static const struct nk_fact_row rows[NK_FACTS] = {
    /* Must agree. */
    [NK_FACT_LLAMA] = {
        "llama.cpp", "llama.cpp", "llama_mismatch",
        "a release of llama.cpp may compute a layer in another way than the one before",
        "install the same release of llama.cpp on both" },
    [NK_FACT_ROPE_FACTORS] = {
        "rope_factors", "RoPE factors", "rope_mismatch",
        "a long-RoPE model is two models: llama.cpp takes one list of factors for contexts up to "
        "the model's original one, and another beyond",
        "give both workers a context on the same side of the original one: --ctx, and with "
        "--deterministic --ctx / --sequences" },
    [NK_FACT_POOLING] = {
        "pooling", "pooling", "pooling_mismatch",
        "it says what becomes of a text's rows: another vector, or text",
        "cut both slices from the same file" },
    /* May differ. */
    [NK_FACT_GGML] = {
        "ggml", "releases of ggml", NULL,
        "it is kernels: the last bits differ, as between processors", NULL },
    [NK_FACT_BACKEND] = {
        "backend", "backends", NULL,
        "machines are unequal, and each kind rounds in its own way: the last bits differ", NULL },
    [NK_FACT_THREADS] = {
        "threads", "numbers of threads", NULL,
        "attention over many tokens is summed up by thread: the last bits differ", NULL },
    [NK_FACT_FLASH_ATTN] = {
        "flash_attn", "settings of flash attention", NULL,
        "it is the same sum in another order, and not every device can do it: the last bits differ",
        NULL },
    [NK_FACT_CACHE_K] = {
        "cache_type_k", "types of cached keys", NULL,
        "each layer has a cache of its own, as exact as its machine has memory for", NULL },
    [NK_FACT_CACHE_V] = {
        "cache_type_v", "types of cached values", NULL,
        "each layer has a cache of its own, as exact as its machine has memory for", NULL },
    [NK_FACT_SESSIONS] = {
        "sessions", "KV cells of sessions", NULL,
        "only deterministic requests need them apart on all workers; others refuse those", NULL },
};
/* clang-format on */

const struct nk_fact_row *nk_fact_row(enum nk_fact f)
{
    return &rows[f];
}

void nk_computed_set(struct nk_computed *c, enum nk_fact f, const char *value, const char *note,
                     ...)
{
    va_list args;

    snprintf(c->facts[f].value, sizeof c->facts[f].value, "%s", value);
    va_start(args, note);
    vsnprintf(c->facts[f].note, sizeof c->facts[f].note, note, args);
    va_end(args);
}

size_t nk_computed_pack(const struct nk_computed *c, Nakshatra__V1__Fact *message,
                        Nakshatra__V1__Fact **list)
{
    size_t n = 0;

    for (int i = 0; i < NK_FACTS; i++) {
        Nakshatra__V1__Fact *m = &message[n];

        if (!c->facts[i].value[0])
            continue;
        nakshatra__v1__fact__init(m);
        m->name = (char *)(uintptr_t)rows[i].name;
        m->value = (char *)(uintptr_t)c->facts[i].value;
        m->note = (char *)(uintptr_t)c->facts[i].note;
        list[n++] = m;
    }
    return n;
}

/* ASCII is all that there is in facts of ours. */
static void copy(char *out, size_t size, const char *text)
{
    size_t n = 0;

    for (; text[n] && n + 1 < size; n++)
        out[n] = text[n] >= ' ' && text[n] <= '~' ? text[n] : '?';
    out[n] = '\0';
}

void nk_computed_unpack(struct nk_computed *out, Nakshatra__V1__Fact *const *facts, size_t n,
                        const char *llama_version)
{
    *out = (struct nk_computed){ 0 };
    copy(out->facts[NK_FACT_LLAMA].value, sizeof out->facts[0].value, llama_version);
    for (size_t i = 0; i < n; i++)
        for (int f = 0; f < NK_FACTS; f++)
            if (!strcmp(facts[i]->name, rows[f].name)) {
                copy(out->facts[f].value, sizeof out->facts[f].value, facts[i]->value);
                copy(out->facts[f].note, sizeof out->facts[f].note, facts[i]->note);
            }
}

/* "long (2048 tokens for a session)" */
static const char *describe(char out[256], const struct nk_computed *c, enum nk_fact f)
{
    const char *value = c->facts[f].value, *note = c->facts[f].note;

    snprintf(out, 256, "%s%s%s%s", *value ? value : "not told, as by an older version of Nakshatra",
             *note ? " (" : "", note, *note ? ")" : "");
    return out;
}

int nk_computed_compare(const struct nk_computed *mine, const struct nk_computed *other,
                        const char *other_name, struct nk_error *err)
{
    for (enum nk_fact f = 0; f < NK_FACTS; f++) {
        char a[256], b[256];

        if (!rows[f].reason || !strcmp(mine->facts[f].value, other->facts[f].value))
            continue;
        return nk_fail(err, NK_E_PRECONDITION, rows[f].reason,
                       "its %s: %s; worker %.64s's: %s. One chain is one model: %s", rows[f].title,
                       describe(a, mine, f), other_name, describe(b, other, f), rows[f].mend);
    }
    return 0;
}

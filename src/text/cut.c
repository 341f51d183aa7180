/* What is known of the vocabulary is one set of pairs: characters that are neighbours in a token's
 * text, and single facts about a character under the names below. */
#include "text/cut.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <llama.h>

#include "base/utf8.h"
#include "text/guard.h"

enum {
    SPACE = 0x2581, /* what the tokenizer writes for a space: a low line of one eighth */
    PAIRS_MIN = 1024,
};

/* In a pair's second place, where no character is: facts about the first. */
enum {
    IN_A_TOKEN = 0x7FFFFFF0,
    ENDS_SPECIAL, /* the last one of a special token */
};

struct nk_cuts {
    uint64_t *pairs; /* open-addressing; 0: free */
    size_t n_pairs, capacity;
    bool strips; /* a special token takes white space along */
    char mark[8];
    size_t n_mark_tokens;
};

static uint64_t pair(uint32_t a, uint32_t b)
{
    return (uint64_t)(a == ' ' ? SPACE : a) << 32 | (b == ' ' ? SPACE : b) | 1ull << 63;
}

static size_t slot(const nk_cuts *c, uint64_t p)
{
    uint64_t h = p * 0x9E3779B97F4A7C15ull;
    size_t i = (size_t)(h >> 20) & (c->capacity - 1);

    while (c->pairs[i] && c->pairs[i] != p)
        i = (i + 1) & (c->capacity - 1);
    return i;
}

static bool has(const nk_cuts *c, uint32_t a, uint32_t b)
{
    return c->pairs[slot(c, pair(a, b))] != 0;
}

static bool grow(nk_cuts *c)
{
    uint64_t *old = c->pairs;
    size_t old_capacity = c->capacity;

    c->capacity = old_capacity ? 2 * old_capacity : PAIRS_MIN;
    c->pairs = calloc(c->capacity, sizeof *c->pairs);
    if (!c->pairs) {
        c->pairs = old;
        c->capacity = old_capacity;
        return false;
    }
    for (size_t i = 0; i < old_capacity; i++)
        if (old[i])
            c->pairs[slot(c, old[i])] = old[i];
    free(old);
    return true;
}

static bool add(nk_cuts *c, uint32_t a, uint32_t b)
{
    size_t i;

    if (2 * c->n_pairs >= c->capacity && !grow(c))
        return false;
    i = slot(c, pair(a, b));
    c->n_pairs += !c->pairs[i];
    c->pairs[i] = pair(a, b);
    return true;
}

/* False: it has none that would be understood here, or there is no memory. */
static bool add_token(nk_cuts *c, const char *text, int attr)
{
    /* All but the ordinary ones: more than those that are looked for before the text is split. */
    bool special =
        attr & ~(LLAMA_TOKEN_ATTR_NORMAL | LLAMA_TOKEN_ATTR_BYTE | LLAMA_TOKEN_ATTR_UNUSED);
    size_t size = strlen(text), at = 0;
    uint32_t before = 0, cp = 0;

    c->strips |= (attr & (LLAMA_TOKEN_ATTR_LSTRIP | LLAMA_TOKEN_ATTR_RSTRIP)) != 0;
    if (attr & LLAMA_TOKEN_ATTR_SINGLE_WORD) /* looks at its neighbours; none is known */
        return false;
    while (at < size) {
        int n = nk_utf8_next(text + at, size - at, &cp);

        if (n <= 0)
            return false;
        if (!add(c, cp, IN_A_TOKEN) || (at && !add(c, before, cp)))
            return false;
        before = cp;
        at += (size_t)n;
    }
    return !size || !special || add(c, cp, ENDS_SPECIAL);
}

/* A character that is in no token and can be expressed (by byte tokens). */
static bool find_mark(nk_cuts *c, const struct llama_vocab *vocab)
{
    for (uint32_t cp = 0xE000; cp < 0xE100; cp++) { /* private use: three bytes */
        int32_t ids[16], n = 0;

        if (has(c, cp, IN_A_TOKEN))
            continue;
        snprintf(c->mark, sizeof c->mark, "%c%c%c", (int)(0xE0 | cp >> 12),
                 (int)(0x80 | (cp >> 6 & 0x3F)), (int)(0x80 | (cp & 0x3F)));
        if (nk__guard_tokenize(vocab, c->mark, 3, ids, 16, false, false, &n, NULL) || n <= 0)
            return false;
        c->n_mark_tokens = (size_t)n;
        return true;
    }
    return false;
}

nk_cuts *nk__cuts_new(const struct llama_vocab *vocab)
{
    nk_cuts *c;

    if (llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_SPM)
        return NULL;
    c = calloc(1, sizeof *c);
    if (!c || !grow(c))
        goto none;
    for (int32_t id = 0; id < llama_vocab_n_tokens(vocab); id++)
        if (!add_token(c, llama_vocab_get_text(vocab, id), llama_vocab_get_attr(vocab, id)))
            goto none;
    if (find_mark(c, vocab))
        return c;
none:
    nk__cuts_free(c);
    return NULL;
}

void nk__cuts_free(nk_cuts *c)
{
    if (!c)
        return;
    free(c->pairs);
    free(c);
}

const char *nk__cuts_mark(const nk_cuts *c)
{
    return c->mark;
}

size_t nk__cuts_mark_tokens(const nk_cuts *c)
{
    return c->n_mark_tokens;
}

/* As libllama asks it, of bytes. */
static bool is_space(uint32_t cp)
{
    return cp == ' ' || (cp >= '\t' && cp <= '\r');
}

/* White space may be taken along by a special token before it; what comes after that is the
 * beginning of something. Taken along by one behind it, it is so in the part, too. */
static bool is_safe(const nk_cuts *c, uint32_t a, uint32_t b)
{
    return !has(c, a, b) && !has(c, a, ENDS_SPECIAL) && !(c->strips && is_space(a));
}

size_t nk__cuts_next(const nk_cuts *c, const char *text, size_t size, size_t from)
{
    uint32_t before, cp;
    size_t at = from < size ? from : size;
    int n;

    while (at > 0 && at < size && ((unsigned char)text[at] & 0xC0) == 0x80)
        at--; /* to a character's beginning */
    n = at < size ? nk_utf8_next(text + at, size - at, &before) : 0;
    for (at += n > 0 ? (size_t)n : size; at < size; at += (size_t)n, before = cp) {
        n = nk_utf8_next(text + at, size - at, &cp);
        if (n <= 0)
            break;
        if (is_safe(c, before, cp))
            return at;
    }
    return size;
}

/* What is known of the vocabulary is a set of pairs: characters that are neighbours in a token's
 * text, and single facts about a character under the names below. For all kinds but SPM only
 * special tokens count there, and their texts are kept, sorted, to be found in a text. */
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

struct special {
    const char *text; /* the vocabulary's */
    bool user;        /* is looked for also where control tokens are plain text */
    bool lstrip;      /* takes white space before it along */
};

struct nk_cuts {
    bool spm;
    bool words;               /* WPM: white space parts words */
    struct special *specials; /* but for SPM: sorted by their bytes */
    size_t n_specials;
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

/* False: it is none that would be understood here, or there is no memory. */
static bool add_token(nk_cuts *c, const char *text, int attr)
{
    /* All but the ordinary ones: more than those that are looked for before the text is split. */
    bool special =
        attr & ~(LLAMA_TOKEN_ATTR_NORMAL | LLAMA_TOKEN_ATTR_BYTE | LLAMA_TOKEN_ATTR_UNUSED);
    size_t size = strlen(text), at = 0;
    uint32_t before = 0, cp = 0;

    if (!c->spm && !special)
        return true;
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

static int by_text(const void *a, const void *b)
{
    return strcmp(((const struct special *)a)->text, ((const struct special *)b)->text);
}

/* Those that libllama looks for before it splits a text. */
static bool find_specials(nk_cuts *c, const struct llama_vocab *vocab)
{
    enum { CONTROL = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN };
    int32_t n = llama_vocab_n_tokens(vocab);
    size_t n_specials = 0;

    for (int32_t id = 0; id < n; id++)
        n_specials +=
            (llama_vocab_get_attr(vocab, id) & (CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED)) != 0;
    c->specials = calloc(n_specials + 1, sizeof *c->specials);
    for (int32_t id = 0; c->specials && id < n; id++) {
        int attr = llama_vocab_get_attr(vocab, id);
        const char *text = llama_vocab_get_text(vocab, id);

        if (*text && (attr & (CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED)))
            c->specials[c->n_specials++] = (struct special){
                .text = text,
                .user = !(attr & CONTROL),
                .lstrip = (attr & LLAMA_TOKEN_ATTR_LSTRIP) != 0,
            };
    }
    if (c->n_specials)
        qsort(c->specials, c->n_specials, sizeof *c->specials, by_text);
    return c->specials && (c->n_specials || c->words);
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
    enum llama_vocab_type type = llama_vocab_type(vocab);
    nk_cuts *c;

    if (type == LLAMA_VOCAB_TYPE_NONE)
        return NULL;
    c = calloc(1, sizeof *c);
    if (!c || !grow(c))
        goto none;
    c->spm = type == LLAMA_VOCAB_TYPE_SPM;
    c->words = type == LLAMA_VOCAB_TYPE_WPM;
    for (int32_t id = 0; id < llama_vocab_n_tokens(vocab); id++)
        if (!add_token(c, llama_vocab_get_text(vocab, id), llama_vocab_get_attr(vocab, id)))
            goto none;
    if (c->spm ? find_mark(c, vocab) : find_specials(c, vocab))
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
    free(c->specials);
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

/* The longest special token that text begins with, or NULL. */
static const struct special *special_at(const nk_cuts *c, const char *text, size_t size,
                                        bool parse_special)
{
    const struct special *found = NULL;
    size_t begin = 0, end = c->n_specials;

    /* Those from begin to end share their first `at` bytes with the text. */
    for (size_t at = 0; begin < end; at++) {
        size_t low = begin, high = end;
        unsigned char byte;

        for (; begin < end && !c->specials[begin].text[at]; low = ++begin)
            if (parse_special || c->specials[begin].user)
                found = &c->specials[begin];
        if (at >= size)
            break;
        byte = (unsigned char)text[at];
        while (low < high) { /* the first with this byte or a later one */
            size_t middle = low + (high - low) / 2;

            if ((unsigned char)c->specials[middle].text[at] < byte)
                low = middle + 1;
            else
                high = middle;
        }
        begin = low;
        high = end;
        while (low < high) { /* the first with a later one */
            size_t middle = low + (high - low) / 2;

            if ((unsigned char)c->specials[middle].text[at] <= byte)
                low = middle + 1;
            else
                high = middle;
        }
        end = low;
    }
    return found;
}

/* Whether a special token begins at text, which the character before precedes, that is found
 * whatever else there is: no other one reaches over its ends. */
static bool begins_special(const nk_cuts *c, uint32_t before, const char *text, size_t size,
                           bool parse_special)
{
    const struct special *s;
    uint32_t first, last = 0, next;
    size_t n;

    if (nk_utf8_next(text, size, &first) <= 0 || has(c, before, first))
        return false;
    /* A special token that strips white space may take some of it. */
    if (c->strips && is_space(first))
        return false;
    s = special_at(c, text, size, parse_special);
    if (!s || (s->lstrip && is_space(before)))
        return false;
    n = strlen(s->text);
    for (size_t at = 0; at < n;) {
        int more = nk_utf8_next(s->text + at, n - at, &last);

        at += more > 0 ? (size_t)more : n;
    }
    return n == size || (nk_utf8_next(text + n, size - n, &next) > 0 && !has(c, last, next));
}

/* White space that a special token takes along from the other side would have become none. */
static bool parts_words(const nk_cuts *c, uint32_t a, uint32_t b)
{
    return c->words && (a == ' ' || a == '\n') && !has(c, a, b);
}

size_t nk__cuts_next(const nk_cuts *c, const char *text, size_t size, size_t from,
                     bool parse_special)
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
        if (c->spm ? is_safe(c, before, cp)
                   : parts_words(c, before, cp) ||
                         begins_special(c, before, text + at, size - at, parse_special))
            return at;
    }
    return size;
}

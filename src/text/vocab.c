#include "text/vocab.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gguf.h>
#include <llama.h>

#include "base/array.h"
#include "base/file.h"
#include "base/log.h"
#include "base/utf8.h"
#include "text/cut.h"
#include "text/guard.h"

struct nk_vocab {
    struct llama_model *model; /* owned; NULL when the vocabulary is somebody else's */
    const struct llama_vocab *llama;
    int n_tokens;
    enum llama_vocab_type type;
    /* A BPE vocabulary without a token for every byte: libllama drops the rest in silence. */
    bool may_lose_bytes;
    bool by_regex; /* see RUN_MAX */
    /* No token stands for more bytes of a text; 0: not known. */
    size_t token_bytes_max;
    nk_cuts *cuts; /* NULL: its texts are tokenized whole */
    char model_sha256[65];
};

/* ---- set-up ---- */

static void log_line(enum ggml_log_level level, const char *text, void *user)
{
    enum nk_log_level ours = level == GGML_LOG_LEVEL_ERROR  ? NK_LOG_ERROR
                             : level == GGML_LOG_LEVEL_WARN ? NK_LOG_WARN
                                                            : NK_LOG_DEBUG;
    char quoted[1100];

    (void)user;
    if (level != GGML_LOG_LEVEL_CONT && nk_log_enabled(NK_LOG_LLAMA, ours))
        nk_log(NK_LOG_LLAMA, ours, "msg=%s", nk_log_quote(quoted, sizeof quoted, text));
}

void nk_vocab_global_init(void)
{
    llama_log_set(log_line, NULL);
}

/* ---- opening ---- */

/* A tokenizer key of a GGUF and what libllama takes for granted about it: it reads arrays by their
 * raw bytes, without a look at the element type or the length. */
struct key_rule {
    const char *key;
    enum gguf_type type; /* of the value, or of the elements */
    bool is_array, per_token;
};

static const struct key_rule key_rules[] = {
    { "tokenizer.ggml.tokens", GGUF_TYPE_STRING, true, false },
    { "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, true, true },
    { "tokenizer.ggml.token_type", GGUF_TYPE_INT32, true, true },
    { "tokenizer.ggml.merges", GGUF_TYPE_STRING, true, false },
    { "tokenizer.chat_template", GGUF_TYPE_STRING, false, false },
};

static bool same_type(enum gguf_type found, enum gguf_type wanted)
{
    return found == wanted || (wanted == GGUF_TYPE_INT32 && found == GGUF_TYPE_UINT32);
}

static int check_tokenizer(const struct gguf_context *g, struct nk_error *err)
{
    int64_t model = gguf_find_key(g, "tokenizer.ggml.model");
    int64_t tokens = gguf_find_key(g, "tokenizer.ggml.tokens");
    const char *name;

    if (model < 0 || gguf_get_kv_type(g, model) != GGUF_TYPE_STRING)
        return nk_fail(err, NK_E_INVALID, "no_vocab",
                       "it has no tokenizer (no text under tokenizer.ggml.model)");
    name = gguf_get_val_str(g, model);
    if (!strcmp(name, "none") || !strcmp(name, "no_vocab"))
        return nk_fail(err, NK_E_INVALID, "no_vocab",
                       "its tokenizer is a stub (\"%s\"), as in every slice but the last", name);
    if (tokens < 0)
        return nk_fail(err, NK_E_INVALID, "no_vocab",
                       "it has no tokens (no tokenizer.ggml.tokens)");
    for (size_t i = 0; i < sizeof key_rules / sizeof key_rules[0]; i++) {
        const struct key_rule *r = &key_rules[i];
        int64_t at = gguf_find_key(g, r->key);
        bool is_array;

        if (at < 0)
            continue;
        is_array = gguf_get_kv_type(g, at) == GGUF_TYPE_ARRAY;
        if (is_array != r->is_array ||
            !same_type(is_array ? gguf_get_arr_type(g, at) : gguf_get_kv_type(g, at), r->type))
            return nk_fail(err, NK_E_INVALID, "bad_gguf", "%s is not %s%s", r->key,
                           r->is_array ? "an array of " : "a ", gguf_type_name(r->type));
        if (r->per_token && gguf_get_arr_n(g, at) != gguf_get_arr_n(g, tokens))
            return nk_fail(err, NK_E_INVALID, "bad_gguf", "%s has %zu entries for %zu tokens",
                           r->key, gguf_get_arr_n(g, at), gguf_get_arr_n(g, tokens));
    }
    if (gguf_get_arr_n(g, tokens) == 0)
        return nk_fail(err, NK_E_INVALID, "no_vocab", "its vocabulary has no tokens");
    if (gguf_get_arr_n(g, tokens) > INT32_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_gguf", "it has %zu tokens",
                       gguf_get_arr_n(g, tokens));
    return 0;
}

struct token {
    const char *text;
    size_t idx;
};

static int compare_tokens(const void *a, const void *b)
{
    const struct token *x = a, *y = b;
    int c = strcmp(x->text, y->text);

    return c ? c : x->idx < y->idx ? -1 : 1;
}

/* What libllama does not survive: two tokens that are the same text, and a byte's token where the
 * tokenizer has none. (The layer slice looks at whole models in the same way.) */
static int check_tokens(const struct gguf_context *g, struct nk_error *err)
{
    const char *kind = gguf_get_val_str(g, gguf_find_key(g, "tokenizer.ggml.model"));
    int64_t at = gguf_find_key(g, "tokenizer.ggml.tokens"),
            types_at = gguf_find_key(g, "tokenizer.ggml.token_type");
    const int32_t *types = types_at < 0 ? NULL : gguf_get_arr_data(g, types_at);
    size_t n = gguf_get_arr_n(g, at);
    struct token *tokens = malloc(n * sizeof *tokens);
    int rc = 0;

    if (!tokens)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the tokens");
    for (size_t i = 0; i < n; i++) {
        tokens[i] = (struct token){ gguf_get_arr_str(g, at, i), i };
        if (!rc && types && !strcmp(kind, "bert") && types[i] == LLAMA_TOKEN_TYPE_BYTE)
            rc = nk_fail(err, NK_E_INVALID, "bad_gguf",
                         "token %zu stands for a byte, which the tokenizer \"bert\" does not have",
                         i);
    }
    for (size_t i = 0; i < n && !rc; i++) { /* libllama gives an empty one such a text */
        unsigned long long k;
        int end = 0;

        if (sscanf(tokens[i].text, "[EMPTY_%19llu]%n", &k, &end) == 1 && end &&
            !tokens[i].text[end] && k < n && !tokens[k].text[0])
            rc = nk_fail(err, NK_E_INVALID, "bad_gguf",
                         "token %zu is what llama.cpp calls token %llu, which is empty", i, k);
    }
    qsort(tokens, n, sizeof *tokens, compare_tokens);
    for (size_t i = 1; i < n && !rc; i++)
        if (tokens[i].text[0] && !strcmp(tokens[i].text, tokens[i - 1].text))
            rc = nk_fail(err, NK_E_INVALID, "bad_gguf",
                         "the tokens %zu and %zu are the same text; each must be another one",
                         tokens[i - 1].idx, tokens[i].idx);
    free(tokens);
    return rc;
}

static int check_file(const char *path, struct nk_error *err)
{
    struct gguf_context *g;
    int rc = nk_file_check(path, err);

    if (rc)
        return rc;
    g = gguf_init_from_file(path, (struct gguf_init_params){ .no_alloc = true });
    if (!g)
        return nk_fail(err, NK_E_INVALID, "bad_gguf", "%s is not a GGUF file, or is cut off", path);
    rc = check_tokenizer(g, err);
    if (!rc)
        rc = check_tokens(g, err);
    rc = nk_wrap(rc, err, "%s", path);
    gguf_free(g);
    return rc;
}

/* The byte-level alphabet of GPT-2: each byte's character. Printable ones stand for themselves, the
 * others are moved to U+0100 and on, in order
 * (https://github.com/openai/gpt-2/blob/master/src/encoder.py, bytes_to_unicode). */
static bool has_every_byte(const struct llama_vocab *v)
{
    int byte_of[0x180];
    bool found[256] = { false };
    int n_found = 0, n_moved = 0;

    memset(byte_of, -1, sizeof byte_of);
    for (int b = 0; b < 256; b++) {
        bool itself =
            (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);

        byte_of[itself ? b : 0x100 + n_moved++] = b;
    }
    for (int32_t id = 0; id < llama_vocab_n_tokens(v); id++) {
        const char *text = llama_vocab_get_text(v, id);
        size_t size = strlen(text);
        uint32_t cp;

        if (size == 0 || nk_utf8_next(text, size, &cp) != (int)size || cp >= 0x180 ||
            byte_of[cp] < 0)
            continue;
        n_found += !found[byte_of[cp]];
        found[byte_of[cp]] = true;
    }
    return n_found == 256;
}

/* The longest token's bytes: its text may be longer than what it stands for (a space is written
 * with three bytes), never shorter. 0 where it is not known: a token that takes white space along
 * stands for any number of bytes, and so does one of a vocabulary that normalises a text before. */
static size_t longest_token(const struct llama_vocab *v)
{
    enum llama_vocab_type type = llama_vocab_type(v);
    size_t longest = 1;

    if (type != LLAMA_VOCAB_TYPE_SPM && type != LLAMA_VOCAB_TYPE_BPE)
        return 0;
    for (int32_t id = 0; id < llama_vocab_n_tokens(v); id++) {
        size_t size = strlen(llama_vocab_get_text(v, id));

        if (llama_vocab_get_attr(v, id) & (LLAMA_TOKEN_ATTR_LSTRIP | LLAMA_TOKEN_ATTR_RSTRIP))
            return 0;
        longest = size > longest ? size : longest;
    }
    return longest;
}

static void init(nk_vocab *v, const struct llama_vocab *llama)
{
    v->llama = llama;
    v->type = llama_vocab_type(llama);
    v->n_tokens = llama_vocab_n_tokens(llama);
    v->may_lose_bytes = v->type == LLAMA_VOCAB_TYPE_BPE && !has_every_byte(llama);
    v->by_regex = v->type == LLAMA_VOCAB_TYPE_BPE; /* as long as it is not known better */
}

/* libllama splits a BPE text by std::regex for pre-tokenizers that it has no splitter of its own
 * for, and that recurses for each character of a run that one expression takes: 21,000 letters
 * overflow a stack of 8 MiB. (llama.cpp's issues 27783 and 26965.) */
enum { RUN_MAX = 8000 };

static bool splits_by_regex(const struct llama_model *model)
{
    static const char *const own[] = { "gpt-2", "llama-bpe", "qwen2", "qwen35" }; /* were tried */
    char pre[64];

    if (llama_model_meta_val_str(model, "tokenizer.ggml.pre", pre, sizeof pre) < 0)
        return true;
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
        if (!strcmp(pre, own[i]))
            return false;
    return true;
}

/* Where a file names no token to begin or end a text with, libllama takes the usual id, which a
 * small vocabulary may not have, or none at all. To add either it asserts that there is one. */
static bool has_token(const nk_vocab *v, int32_t id)
{
    return id >= 0 && id < v->n_tokens;
}

static int check_ends(const nk_vocab *v, const char *path, struct nk_error *err)
{
    const struct llama_vocab *l = v->llama;
    bool wpm = v->type == LLAMA_VOCAB_TYPE_WPM; /* which adds them always */
    const struct {
        const char *key, *what;
        int32_t id;
        bool added;
    } ends[] = {
        { "bos", "to begin texts with", llama_vocab_bos(l), wpm || llama_vocab_get_add_bos(l) },
        { "eos", "to end texts with", llama_vocab_eos(l), llama_vocab_get_add_eos(l) },
        { "seperator", "to end texts with", llama_vocab_sep(l), wpm },
    };

    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        if (ends[i].added && !has_token(v, ends[i].id))
            return nk_fail(err, NK_E_INVALID, "bad_gguf",
                           "%s: its tokenizer needs a token %s, and tokenizer.ggml.%s_token_id "
                           "is none of its %d",
                           path, ends[i].what, ends[i].key, v->n_tokens);
    return 0;
}

/* RWKV's tokenizer follows the text through a tree of all tokens. Where it gets into it and meets
 * no token, it does not go on in the text, and takes memory until there is none. So what a token
 * begins with must be a token, too. */
static int check_rwkv(const nk_vocab *v, const char *path, struct nk_error *err)
{
    bool begins[256] = { false }, alone[256] = { false };
    struct nk_buf piece = NK_BUF_INIT(NK_TEXT_BYTES_MAX);
    int rc = 0;

    for (int32_t id = 0; id < v->n_tokens && !rc; id++) {
        nk_buf_reset(&piece);
        rc = nk_vocab_piece(v, id, true, &piece, err);
        if (rc || !piece.size)
            continue;
        begins[(uint8_t)piece.data[0]] = true;
        alone[(uint8_t)piece.data[0]] |= piece.size == 1;
    }
    nk_buf_release(&piece);
    for (int b = 0; b < 256 && !rc; b++)
        if (begins[b] && !alone[b])
            rc = nk_fail(err, NK_E_INVALID, "bad_gguf",
                         "%s: tokens begin with the byte 0x%02x, and none is this byte alone; the "
                         "tokenizer \"rwkv\" needs one",
                         path, (unsigned)b);
    return rc;
}

int nk_vocab_open(nk_vocab **out, const char *path, struct nk_error *err)
{
    struct llama_model_params params = llama_model_default_params();
    nk_vocab *v;
    int rc;

    *out = NULL;
    rc = check_file(path, err);
    if (rc)
        return rc;
    v = calloc(1, sizeof *v);
    if (!v)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "%s: no memory", path);
    params.vocab_only = true;
    v->model = llama_model_load_from_file(path, params);
    if (!v->model) {
        rc = nk_fail(err, NK_E_INVALID, "bad_gguf", "%s: llama.cpp cannot read its vocabulary",
                     path);
        goto out;
    }
    init(v, llama_model_get_vocab(v->model));
    if (v->type == LLAMA_VOCAB_TYPE_NONE || v->n_tokens <= 0) {
        rc = nk_fail(err, NK_E_INVALID, "no_vocab", "%s has no vocabulary", path);
        goto out;
    }
    rc = check_ends(v, path, err);
    if (!rc && v->type == LLAMA_VOCAB_TYPE_RWKV)
        rc = check_rwkv(v, path, err);
    if (rc)
        goto out;
    v->cuts = nk__cuts_new(v->llama);
    v->token_bytes_max = longest_token(v->llama);
    v->by_regex = v->by_regex && splits_by_regex(v->model);
    if (llama_model_meta_val_str(v->model, "nakshatra.model_sha256", v->model_sha256,
                                 sizeof v->model_sha256) != 64)
        v->model_sha256[0] = '\0';
    *out = v;
    v = NULL;
out:
    nk_vocab_close(v);
    return rc;
}

nk_vocab *nk_vocab_borrow(const struct llama_vocab *vocab)
{
    nk_vocab *v = calloc(1, sizeof *v);

    if (v)
        init(v, vocab);
    return v;
}

void nk_vocab_close(nk_vocab *v)
{
    if (!v)
        return;
    nk__cuts_free(v->cuts);
    if (v->model)
        llama_model_free(v->model);
    free(v);
}

/* ---- what it is ---- */

const char *nk_vocab_model_sha256(const nk_vocab *v)
{
    return v->model_sha256;
}

const struct llama_vocab *nk_vocab_llama(const nk_vocab *v)
{
    return v->llama;
}

int nk_vocab_size(const nk_vocab *v)
{
    return v->n_tokens;
}

bool nk_vocab_is_eog(const nk_vocab *v, int32_t id)
{
    return v->type != LLAMA_VOCAB_TYPE_NONE && id >= 0 && id < v->n_tokens &&
           llama_vocab_is_eog(v->llama, id);
}

/* libllama's usual id may be one that this vocabulary does not have. */
static int32_t known(const nk_vocab *v, int32_t id)
{
    return has_token(v, id) ? id : LLAMA_TOKEN_NULL;
}

int32_t nk_vocab_bos(const nk_vocab *v)
{
    return known(v, llama_vocab_bos(v->llama));
}

int32_t nk_vocab_eos(const nk_vocab *v)
{
    return known(v, llama_vocab_eos(v->llama));
}

bool nk_vocab_is_end(const nk_vocab *v, int32_t id)
{
    return id >= 0 && (id == llama_vocab_eos(v->llama) || id == llama_vocab_sep(v->llama));
}

bool nk_vocab_adds_bos(const nk_vocab *v)
{
    return llama_vocab_get_add_bos(v->llama);
}

struct nk_fim_tokens nk_vocab_fim(const nk_vocab *v)
{
    return (struct nk_fim_tokens){
        .prefix = known(v, llama_vocab_fim_pre(v->llama)),
        .suffix = known(v, llama_vocab_fim_suf(v->llama)),
        .middle = known(v, llama_vocab_fim_mid(v->llama)),
        .repository = known(v, llama_vocab_fim_rep(v->llama)),
        .separator = known(v, llama_vocab_fim_sep(v->llama)),
    };
}

/* ---- tokens and text ---- */

enum { BLOCK_BYTES = 1024 };

/* A character or byte that a tokenizer has no token for, nor one for what is unknown, gets the id
 * -1, or the usual id of such a token, in silence. */
static bool all_known(const nk_vocab *v, const int32_t *ids, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        if (!has_token(v, ids[i]))
            return false;
    return true;
}

/* Whether libllama makes tokens of this text that have all its bytes. It throws where a vocabulary
 * without byte tokens lacks a character (SPM), and drops bytes in silence where a byte-level
 * vocabulary (BPE) lacks them. */
static bool can_express(const nk_vocab *v, const char *text, size_t size)
{
    int32_t *ids = malloc((size + 8) * sizeof *ids), n = 0, n_piece = 0;
    size_t n_bytes = 0;
    bool ok = ids &&
              !nk__guard_tokenize(v->llama, text, (int32_t)size, ids, (int32_t)size + 8, false,
                                  false, &n, NULL) &&
              all_known(v, ids, n);

    for (int32_t i = 0; ok && v->may_lose_bytes && i < n; i++) {
        ok = !nk__guard_piece(v->llama, ids[i], NULL, 0, true, &n_piece, NULL);
        n_bytes += (size_t)(n_piece < 0 ? -n_piece : n_piece);
    }
    free(ids);
    return ok && (!v->may_lose_bytes || n_bytes >= size);
}

/* Names the first character that this vocabulary cannot express. Prompt text itself does not belong
 * into messages. */
static int check_expressible(const nk_vocab *v, const char *text, size_t size, struct nk_work *work,
                             struct nk_error *err)
{
    size_t pos = 0, block = 0; /* what is before block can be expressed */

    while (pos < size) {
        uint32_t cp = 0;
        int n, rc;

        if (pos >= block) { /* a block at a time: single characters cost a hundred times as much */
            size_t end = size - pos < BLOCK_BYTES ? size : pos + BLOCK_BYTES;

            while (end < size && ((uint8_t)text[end] & 0xC0) == 0x80)
                end++;
            rc = nk_work_spend(work, BLOCK_BYTES / 4, "the text", err);
            if (rc)
                return rc;
            block = end;
            if (can_express(v, text + pos, end - pos)) {
                pos = end;
                continue;
            }
        }
        n = nk_utf8_next(text + pos, size - pos, &cp);
        if (!can_express(v, text + pos, (size_t)n))
            return nk_fail(err, NK_E_INVALID, "bad_text",
                           "this vocabulary cannot express U+%04X, at byte %zu of the text", cp,
                           pos);
        pos += (size_t)n;
    }
    return 0;
}

static int cannot_express(const nk_vocab *v, const char *text, size_t size, struct nk_work *work,
                          struct nk_error *err)
{
    int rc = check_expressible(v, text, size, work, err);

    return rc ? rc
              : nk_fail(err, NK_E_INVALID, "bad_text", "this vocabulary cannot express the text");
}

static int tokenize(const nk_vocab *v, const char *text, size_t size, bool add_special,
                    bool parse_special, size_t max_tokens, struct nk_work *work,
                    struct nk_tokens *out, struct nk_error *err)
{
    /* A token has a byte or more; a few are added (BOS, EOS, a leading space). Normalising
     * tokenizers may make more of it: then libllama says how many and is asked again. */
    size_t n_max = size + 8 < max_tokens ? size + 8 : max_tokens;
    int32_t *ids = NULL;
    int32_t n = 0;
    int rc;

    for (int attempt = 0; attempt < 2; attempt++) {
        free(ids);
        ids = malloc((n_max ? n_max : 1) * sizeof *ids);
        if (!ids) {
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %zu tokens", n_max);
            goto out;
        }
        rc = nk__guard_tokenize(v->llama, text, (int32_t)size, ids, (int32_t)n_max, add_special,
                                parse_special, &n, err);
        if (rc) {
            if (rc == NK_E_INTERNAL)
                rc = cannot_express(v, text, size, work, err);
            goto out;
        }
        if (n >= 0)
            break;
        if (n == INT32_MIN || (size_t)-n > max_tokens) {
            rc = n == INT32_MIN
                     ? nk_fail(err, NK_E_EXHAUSTED, "too_large", "the text has more than %d tokens",
                               INT32_MAX)
                     : nk_fail(err, NK_E_EXHAUSTED, "too_large",
                               "the text has %d tokens; at most %zu are taken", -n, max_tokens);
            goto out;
        }
        n_max = (size_t)-n;
    }
    if (n < 0) {
        rc = nk_fail(err, NK_E_INTERNAL, "engine_failed",
                     "llama.cpp says %d tokens, then that these do not suffice", -n);
        goto out;
    }
    if (!all_known(v, ids, n)) {
        rc = cannot_express(v, text, size, work, err);
        goto out;
    }
    *out = (struct nk_tokens){ ids, (size_t)n };
    ids = NULL;
out:
    free(ids);
    return rc;
}

/* Steps of work: a byte costs libllama from 20 ns (no token has it) to 200 (BPE). So a body's text
 * is tokenized once or twice, and not with each of 2,048 others. */
static int64_t work_of(size_t size)
{
    return 1 + (int64_t)size;
}

/* The same in parts (text/cut.h); without BOS and EOS. */
static int tokenize_parts(const nk_vocab *v, const char *text, size_t size, bool parse_special,
                          size_t max_tokens, struct nk_work *work, struct nk_tokens *out,
                          struct nk_error *err)
{
    const size_t n_mark = strlen(nk__cuts_mark(v->cuts));
    struct nk_buf part = NK_BUF_INIT(NK_TEXT_BYTES_MAX + 16);
    struct nk_tokens t = { NULL, 0 };
    size_t capacity = 0, at = 0;
    int rc = 0;

    while (at < size && !rc) {
        size_t end = nk__cuts_next(v->cuts, text, size, at + NK_CUT_BYTES, parse_special), drop = 0;

        nk_buf_reset(&part);
        if (at) {
            drop = nk__cuts_mark_tokens(v->cuts);
            rc = nk_buf_add(&part, nk__cuts_mark(v->cuts), n_mark, err);
        }
        if (!rc)
            rc = nk_buf_add(&part, text + at, end - at, err);
        if (!rc)
            rc = nk_work_spend(work, work_of(end - at), "the text", err);
        if (!rc)
            rc = tokenize(v, nk_buf_str(&part), part.size, false, parse_special, INT32_MAX, work,
                          &t, err);
        if (rc)
            break;
        NK_ASSERT(t.n >= drop);
        t.n -= drop;
        if (out->n + t.n > max_tokens)
            rc = nk_fail(err, NK_E_EXHAUSTED, "too_large",
                         "the text has more than %zu tokens; at most %zu are taken", max_tokens,
                         max_tokens);
        else
            rc = nk_array_grow(out->ids, capacity, out->n + t.n, INT32_MAX, err);
        if (!rc && t.n)
            memcpy(out->ids + out->n, t.ids + drop, t.n * sizeof *t.ids);
        out->n += rc ? 0 : t.n;
        free(t.ids);
        t = (struct nk_tokens){ NULL, 0 };
        at = end;
    }
    nk_buf_release(&part);
    return rc;
}

/* What the tokenizer puts around a text (BOS and EOS, or as it calls them): what it makes of an
 * empty one. */
static int add_ends(const nk_vocab *v, size_t max_tokens, struct nk_tokens *t, struct nk_error *err)
{
    int32_t ends[2], *ids, n_ends = 0;
    bool front, back;
    size_t n;
    int rc = nk__guard_tokenize(v->llama, "", 0, ends, 2, true, false, &n_ends, err);

    if (rc)
        return rc;
    if (n_ends < 0 || n_ends > 2)
        return nk_fail(err, NK_E_INTERNAL, "engine_failed",
                       "llama.cpp puts %d tokens around a text; two at most were known", -n_ends);
    front = n_ends == 2 || (n_ends == 1 && llama_vocab_get_add_bos(v->llama));
    back = n_ends - front > 0;
    n = t->n + (size_t)n_ends;
    if (n > max_tokens)
        return nk_fail(err, NK_E_EXHAUSTED, "too_large",
                       "the text has %zu tokens; at most %zu are taken", n, max_tokens);
    ids = malloc((n ? n : 1) * sizeof *ids);
    if (!ids)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %zu tokens", n);
    if (front)
        ids[0] = ends[0];
    if (t->n)
        memcpy(ids + front, t->ids, t->n * sizeof *ids);
    if (back)
        ids[n - 1] = ends[n_ends - 1];
    free(t->ids);
    *t = (struct nk_tokens){ ids, n };
    return 0;
}

enum kind { LETTERS, DIGITS, SPACES, SIGNS };

static enum kind kind_of(unsigned char c)
{
    if (c >= 0x80 || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
        return LETTERS;
    if (c >= '0' && c <= '9')
        return DIGITS;
    return c == ' ' || (c >= '\t' && c <= '\r') ? SPACES : SIGNS;
}

static int check_runs(const char *text, size_t size, struct nk_error *err)
{
    static const char *const names[] = { "letters", "digits", "spaces and line ends", "signs" };
    enum kind kind = LETTERS;
    size_t n = 0;

    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];

        if ((c & 0xc0) == 0x80) /* within a character */
            continue;
        n = kind_of(c) == kind ? n + 1 : 1;
        kind = kind_of(c);
        if (n > RUN_MAX)
            return nk_fail(err, NK_E_INVALID, "bad_text",
                           "the text has more than %d %s in a row, until byte %zu: llama.cpp's "
                           "tokenizer for this vocabulary cannot take so many",
                           RUN_MAX, names[kind], i);
    }
    return 0;
}

int nk_vocab_tokenize(const nk_vocab *v, const char *text, size_t size, bool add_special,
                      bool parse_special, size_t max_tokens, struct nk_work *work,
                      struct nk_tokens *out, struct nk_error *err)
{
    struct nk_error part_err;
    size_t at;
    int rc;

    *out = (struct nk_tokens){ NULL, 0 };
    if (v->type == LLAMA_VOCAB_TYPE_NONE)
        return nk_fail(err, NK_E_INVALID, "no_vocab",
                       "this slice has no vocabulary to tokenize with");
    if (size > NK_TEXT_BYTES_MAX)
        return nk_fail(err, NK_E_EXHAUSTED, "too_large",
                       "the text has %zu bytes; at most %d are taken", size, NK_TEXT_BYTES_MAX);
    if (!nk_utf8_valid(text, size, &at))
        return nk_fail(err, NK_E_INVALID, "bad_text",
                       "the text is not UTF-8: byte 0x%02x at position %zu", (uint8_t)text[at], at);
    if (max_tokens > INT32_MAX)
        max_tokens = INT32_MAX;
    /* Before anything is done with it. */
    if (v->token_bytes_max && size / v->token_bytes_max > max_tokens)
        return nk_fail(err, NK_E_EXHAUSTED, "too_large",
                       "the text has %zu bytes, and a token of this vocabulary at most %zu: %zu "
                       "tokens or more; at most %zu are taken",
                       size, v->token_bytes_max, size / v->token_bytes_max, max_tokens);
    rc = v->by_regex ? check_runs(text, size, err) : 0;
    if (rc)
        return rc;
    rc = v->may_lose_bytes ? check_expressible(v, text, size, work, err) : 0;
    if (rc)
        return rc;
    if (!v->cuts || size <= NK_CUT_BYTES) {
        rc = nk_work_spend(work, work_of(size), "the text", err);
        return rc ? rc
                  : tokenize(v, text, size, add_special, parse_special, max_tokens, work, out, err);
    }
    rc = tokenize_parts(v, text, size, parse_special, max_tokens, work, out, &part_err);
    if (rc && !strcmp(part_err.reason, "bad_text"))
        rc = cannot_express(v, text, size, work, err); /* with its place in the whole */
    else if (rc && err)
        *err = part_err;
    if (!rc && add_special)
        rc = add_ends(v, max_tokens, out, err);
    if (rc) {
        free(out->ids);
        *out = (struct nk_tokens){ NULL, 0 };
    }
    return rc;
}

int nk_vocab_piece(const nk_vocab *v, int32_t id, bool special, struct nk_buf *out,
                   struct nk_error *err)
{
    int32_t size = 64, n = 0; /* most pieces are shorter */
    char *where;
    int rc;

    if (v->type == LLAMA_VOCAB_TYPE_NONE)
        return nk_fail(err, NK_E_INVALID, "no_vocab",
                       "this slice has no vocabulary: token %d has no text", id);
    if (id < 0 || id >= v->n_tokens)
        return nk_fail(err, NK_E_INVALID, "bad_token",
                       "there is no token %d; this vocabulary has 0 to %d", id, v->n_tokens - 1);
    for (;;) {
        rc = nk_buf_reserve(out, (size_t)size, &where, size == 64 ? NULL : err);
        if (rc && size == 64) {
            /* Perhaps only the estimate does not fit. */
            rc = nk__guard_piece(v->llama, id, NULL, 0, special, &n, err);
            if (rc)
                return rc;
            size = n < 0 ? -n : n;
            rc = nk_buf_reserve(out, (size_t)size, &where, err);
        }
        if (rc)
            return rc;
        rc = nk__guard_piece(v->llama, id, where, size, special, &n, err);
        if (rc)
            return rc;
        if (n >= 0)
            break;
        size = -n;
    }
    nk_buf_commit(out, (size_t)n);
    return 0;
}

/* ---- chat templates ---- */

/* {query} and {document} of a reranker's template, the others as they are. */
static int fill_pair(const char *tmpl, struct nk_bytes query, struct nk_bytes document,
                     struct nk_buf *out, struct nk_error *err)
{
    int rc = 0;

    while (*tmpl && !rc) {
        if (!strncmp(tmpl, "{query}", 7)) {
            rc = nk_buf_add(out, query.data, query.size, err);
            tmpl += 7;
        } else if (!strncmp(tmpl, "{document}", 10)) {
            rc = nk_buf_add(out, document.data, document.size, err);
            tmpl += 10;
        } else {
            rc = nk_buf_add(out, tmpl++, 1, err);
        }
    }
    return rc;
}

int nk_vocab_tokenize_pair(const nk_vocab *v, struct nk_bytes query, struct nk_bytes document,
                           size_t max_tokens, struct nk_work *work, struct nk_tokens *out,
                           struct nk_error *err)
{
    const struct llama_vocab *lv = v->llama;
    const char *tmpl = v->model ? llama_model_chat_template(v->model, "rerank") : NULL;
    struct nk_tokens q = { NULL, 0 }, d = { NULL, 0 };
    int32_t end = llama_vocab_eos(lv);
    struct nk_buf text;
    size_t n = 0;
    int rc;

    *out = (struct nk_tokens){ NULL, 0 };
    if (tmpl) {
        nk_buf_init(&text, NK_TEXT_BYTES_MAX);
        rc = fill_pair(tmpl, query, document, &text, err);
        if (!rc)
            rc = nk_vocab_tokenize(v, nk_buf_str(&text), text.size, false, true, max_tokens, work,
                                   out, err);
        nk_buf_release(&text);
        return rc;
    }
    if (end < 0)
        end = llama_vocab_sep(lv);
    rc = nk_vocab_tokenize(v, (const char *)query.data, query.size, false, false, max_tokens, work,
                           &q, err);
    if (!rc)
        rc = nk_vocab_tokenize(v, (const char *)document.data, document.size, false, false,
                               max_tokens, work, &d, err);
    if (!rc && q.n + d.n + 4 > max_tokens)
        rc = nk_fail(err, NK_E_EXHAUSTED, "too_large",
                     "query and document are %zu tokens together; at most %zu are possible",
                     q.n + d.n + 4, max_tokens);
    if (!rc && !(out->ids = malloc((q.n + d.n + 4) * sizeof *out->ids)))
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (!rc) {
        if (llama_vocab_get_add_bos(lv))
            out->ids[n++] = llama_vocab_bos(lv);
        if (q.n)
            memcpy(out->ids + n, q.ids, q.n * sizeof *q.ids);
        n += q.n;
        if (llama_vocab_get_add_eos(lv))
            out->ids[n++] = end;
        if (llama_vocab_get_add_sep(lv) && has_token(v, llama_vocab_sep(lv)))
            out->ids[n++] = llama_vocab_sep(lv);
        if (d.n)
            memcpy(out->ids + n, d.ids, d.n * sizeof *d.ids);
        n += d.n;
        if (llama_vocab_get_add_eos(lv))
            out->ids[n++] = end;
        out->n = n;
    }
    free(q.ids);
    free(d.ids);
    return rc;
}

bool nk_vocab_meta(const nk_vocab *v, const char *key, char *out, size_t size)
{
    int32_t n = v->model ? llama_model_meta_val_str(v->model, key, out, size) : -1;

    if (n < 0)
        out[0] = '\0';
    return n >= 0;
}

const char *nk_vocab_chat_template(const nk_vocab *v)
{
    return v->model ? llama_model_chat_template(v->model, NULL) : NULL;
}

/* The names of libllama's own templates, comma-separated, into out. */
static void builtin_names(char *out, size_t size)
{
    const char *names[128];
    int32_t n = llama_chat_builtin_templates(names, sizeof names / sizeof names[0]);
    size_t used = 0;

    out[0] = '\0';
    for (int32_t i = 0; i < n && i < (int32_t)(sizeof names / sizeof names[0]); i++) {
        int add = snprintf(out + used, size - used, "%s%s", i ? ", " : "", names[i]);

        if (add < 0 || (size_t)add >= size - used) {
            out[used] = '\0';
            return;
        }
        used += (size_t)add;
    }
}

int nk_chat_render_builtin(const char *tmpl, const struct nk_chat_message *messages, size_t n,
                           bool add_assistant, struct nk_buf *out, struct nk_error *err)
{
    const char **texts = NULL;
    size_t size = 256;
    int32_t n_bytes = 0;
    char *where;
    int rc;

    texts = calloc(2 * n + 1, sizeof *texts);
    if (!texts)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %zu messages", n);
    for (size_t i = 0; i < n; i++) {
        texts[i] = messages[i].role;
        texts[n + i] = messages[i].content;
        size += 2 * (strlen(messages[i].role) + strlen(messages[i].content)) + 64;
    }
    for (int attempt = 0; attempt < 2; attempt++) {
        if (size > INT32_MAX) {
            rc = nk_fail(err, NK_E_EXHAUSTED, "too_large",
                         "the messages are too large for a chat template");
            goto out;
        }
        rc = nk_buf_reserve(out, size, &where, err);
        if (rc)
            goto out;
        rc = nk__guard_chat(tmpl, texts, texts + n, n, add_assistant, where, (int32_t)size,
                            &n_bytes, err);
        if (rc)
            goto out;
        if (n_bytes < 0) {
            char names[400];

            builtin_names(names, sizeof names);
            rc = nk_fail(err, NK_E_INVALID, "unknown_template",
                         "llama.cpp does not know the chat template \"%.32s%s\"; it knows %s", tmpl,
                         strlen(tmpl) > 32 ? "..." : "", names);
            goto out;
        }
        if ((size_t)n_bytes <= size)
            break;
        size = (size_t)n_bytes;
    }
    nk_buf_commit(out, (size_t)n_bytes);
out:
    free(texts);
    return rc;
}

/* build/tools/schema: JSON schemas and their grammars, for a judge that is not ours
 * (tests/schemas). A line of standard input is
 *
 *     {"schema": ..., "texts": ["{}", ...], "draws": 3, "seed": 1, "show": true}
 *
 * and its answer a line {"takes": [true, ...], "drawn": ["{\"a\": 1}", ...]}: which of the texts
 * the schema's grammar lets through as a whole, and texts drawn at random from what it lets follow;
 * null for one that had no end yet; the steps of its conversion, its bytes, and with show itself.
 * Or {"error": "..."} where the schema is refused. The vocabulary is of single bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <llama.h>
#include <unistd.h>

#include "text/grammar.h"
#include "text/json_schema.h"
#include "text/vocab.h"
#include "unit/text/vocab_file.h"

enum { DRAWN_MAX = 4000, DRAWN_WANTED = 150 };

static void quiet(enum ggml_log_level level, const char *text, void *user)
{
    (void)level, (void)text, (void)user;
}

static void die(const char *what)
{
    fprintf(stderr, "schema: %s\n", what);
    exit(1);
}

static nk_vocab *byte_vocab(void)
{
    char path[] = "/tmp/nk-schema-XXXXXX";
    struct nk_error err = { 0 };
    nk_vocab *v;
    int fd = mkstemp(path);

    llama_log_set(quiet, NULL);
    if (fd < 0 || !vocab_file_write(path, VOCAB_BPE) || nk_vocab_open(&v, path, &err))
        die(err.msg);
    close(fd);
    unlink(path);
    return v;
}

static nk_grammar *grammar_of(const nk_vocab *v, const char *text)
{
    struct nk_error err = { 0 };
    nk_grammar *g;

    if (nk_grammar_new(&g, nk_vocab_llama(v), text, &err)) {
        fprintf(stderr, "%s\n", text);
        die(err.msg);
    }
    return g;
}

static bool takes(const nk_vocab *v, const char *grammar, const char *text)
{
    nk_grammar *g = grammar_of(v, grammar);
    bool ok = true;

    for (; *text && ok; text++)
        if (nk_grammar_allows(g, (uint8_t)*text, &ok, NULL) ||
            (ok && nk_grammar_accept(g, (uint8_t)*text, NULL)))
            die("a text is too much for its grammar");
    if (ok && nk_grammar_allows(g, nk_vocab_eos(v), &ok, NULL))
        die("a text is too much for its grammar");
    nk_grammar_free(g);
    return ok;
}

static uint32_t next_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (uint32_t)((*state * 0x2545F4914F6CDD1Dull) >> 32);
}

/* Letters and marks more often than what is odd, and once it is long what comes to an end. */
static int weight(int byte, size_t n)
{
    if (n > DRAWN_WANTED)
        return strchr("\"]}", byte) ? 400 : byte >= '0' && byte <= '9' ? 20 : byte < 128 ? 2 : 1;
    return byte <= ' ' || byte == '\\' ? 1 : strchr("\"]}", byte) ? 30 : byte < 127 ? 4 : 1;
}

/* NULL: no end. */
static json_t *draw(const nk_vocab *v, const char *grammar, uint64_t *random)
{
    nk_grammar *g = grammar_of(v, grammar);
    char text[DRAWN_MAX + 1];
    size_t n = 0;
    bool end = false;

    while (!end && n < DRAWN_MAX) {
        const uint8_t *mask;
        long total = 0, at;
        int byte = 0;

        if (nk_grammar_mask(g, &mask, NULL))
            die("a text is too much for its grammar");
        for (int i = 1; i < 256; i++)
            total += mask[i] ? weight(i, n) : 0;
        if (mask[nk_vocab_eos(v)] && (!total || n > DRAWN_WANTED || next_random(random) % 3 == 0)) {
            end = true;
            continue;
        }
        if (!total) {
            fprintf(stderr, "%s\n%.*s\n", grammar, (int)n, text);
            die("nothing can follow");
        }
        at = next_random(random) % total;
        for (byte = 1; !mask[byte] || at >= weight(byte, n); byte++)
            at -= mask[byte] ? weight(byte, n) : 0;
        text[n++] = (char)byte;
        if (nk_grammar_accept(g, byte, NULL))
            die("a token that is allowed is not taken");
    }
    nk_grammar_free(g);
    return end ? json_stringn(text, n) : json_null();
}

static json_t *answer(const nk_vocab *v, const json_t *question)
{
    struct nk_buf grammar = NK_BUF_INIT(4 << 20);
    struct nk_work work = NK_WORK_INIT(NULL);
    struct nk_error err = { 0 };
    json_t *taken = json_array(), *drawn = json_array(), *text;
    uint64_t random = (uint64_t)json_integer_value(json_object_get(question, "seed")) * 2 + 1;
    size_t i;

    if (nk_json_schema_to_grammar(json_object_get(question, "schema"), &work, &grammar, &err)) {
        json_decref(taken);
        json_decref(drawn);
        nk_buf_release(&grammar);
        return json_pack("{s:s, s:s}", "error", err.msg, "reason", err.reason);
    }
    json_array_foreach(json_object_get(question, "texts"), i, text)
    {
        json_array_append_new(taken, json_boolean(takes(v, grammar.data, json_string_value(text))));
    }
    for (json_int_t k = json_integer_value(json_object_get(question, "draws")); k > 0; k--)
        json_array_append_new(drawn, draw(v, grammar.data, &random));
    text = json_pack("{s:o, s:o, s:I, s:I}", "takes", taken, "drawn", drawn, "steps",
                     (json_int_t)work.n_steps, "bytes", (json_int_t)grammar.size);
    if (json_is_true(json_object_get(question, "show")))
        json_object_set_new(text, "grammar", json_string(grammar.data));
    nk_buf_release(&grammar);
    return text;
}

int main(void)
{
    nk_vocab *v = byte_vocab();
    size_t capacity = 0;
    char *line = NULL;
    ssize_t n;

    while ((n = getline(&line, &capacity, stdin)) > 0) {
        json_t *question = json_loadb(line, (size_t)n, 0, NULL), *reply;
        char *text;

        if (!question)
            die("a line is no JSON object");
        reply = answer(v, question);
        text = json_dumps(reply, JSON_COMPACT);
        puts(text);
        free(text);
        json_decref(reply);
        json_decref(question);
    }
    free(line);
    nk_vocab_close(v);
    return 0;
}

#include "cli/generate.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/answer.h"
#include "cli/chat.h"
#include "cli/cli.h"
#include "cli/interrupt.h"
#include "slice/slice.h"

enum { CHECK_MS = 10000, TEMPLATE_BYTES_MAX = 4 << 20 };

/* ---- before ---- */

static int read_stdin(struct nk_buf *out, struct nk_error *err)
{
    for (;;) {
        char chunk[65536];
        ssize_t n = read(0, chunk, sizeof chunk);
        int rc;

        if (n < 0 && errno == EINTR && !nk_interrupt_signal())
            continue;
        if (n < 0)
            return nk_fail(err, errno == EINTR ? NK_E_CANCELLED : NK_E_DATA_LOSS,
                           errno == EINTR ? "interrupted" : "read_failed", "standard input: %s",
                           strerror(errno));
        if (n == 0)
            return 0;
        rc = nk_buf_add(out, chunk, (size_t)n, err);
        if (rc)
            return nk_wrap(rc, err, "standard input");
    }
}

static int read_prompt(struct nk_generate *g, struct nk_error *err)
{
    struct nk_buf *out = &g->text;
    int rc;

    if (g->prompt)
        return nk_buf_adds(out, g->prompt, err);
    if (!g->file && isatty(0))
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "no prompt: give --prompt TEXT, --file FILE or standard input");
    rc = g->file && strcmp(g->file, "-") ? nk_file_read(g->file, NK_TEXT_BYTES_MAX, out, err)
                                         : read_stdin(out, err);
    if (!rc && !g->file && !out->size)
        return nk_fail(
            err, NK_E_INVALID, "bad_argument",
            "no prompt: standard input is empty, and neither --prompt nor --file is given");
    if (!rc && out->size && out->data[out->size - 1] == '\n') {
        out->size--;
        if (out->size && out->data[out->size - 1] == '\r')
            out->size--;
        out->data[out->size] = '\0';
    }
    return rc;
}

int nk_chat_template_read(const char *given, struct nk_buf *b, const char **text,
                          struct nk_error *err)
{
    struct stat st;
    int rc;

    *text = given;
    if (!given || (!strpbrk(given, "/.") && stat(given, &st)))
        return 0;
    rc = nk_file_read(given, TEMPLATE_BYTES_MAX, b, err);
    /* A file is a template, also one without any of Jinja's tags; else its text would be taken for
     * the name of a built-in one. */
    if (!rc && !strstr(nk_buf_str(b), "{%") && !strstr(nk_buf_str(b), "{{"))
        rc = nk_buf_adds(b, "{##}", err);
    *text = rc ? NULL : nk_buf_str(b);
    return rc;
}

int nk_generate_prepare(struct nk_generate *g, bool need_prompt, struct nk_error *err)
{
    int rc = 0;

    nk_buf_init(&g->text, NK_TEXT_BYTES_MAX);
    if (g->prompt && g->file)
        rc = nk_fail(err, NK_E_INVALID, "bad_argument",
                     "--prompt and --file were both given; one is right");
    else if (g->chat && (g->prompt || g->file || g->json || g->ids))
        rc = nk_fail(err, NK_E_INVALID, "bad_argument",
                     "--chat goes without --prompt, --file, --json and --ids");
    else if (!g->chat && (g->system || g->chat_template))
        rc = nk_fail(err, NK_E_INVALID, "bad_argument",
                     "--system and --chat-template go with --chat");
    else if (g->json && g->ids)
        rc = nk_fail(err, NK_E_INVALID, "bad_argument",
                     "--json has the ids already; --ids goes without it");
    else if (g->gen.logprobs >= 0 && !g->json)
        rc = nk_fail(err, NK_E_INVALID, "bad_argument", "--logprobs goes with --json");
    if (!rc)
        rc = nk_gen_args_opts(&g->gen, &g->opts, err);
    if (!rc && !g->chat && (need_prompt || g->prompt || g->file))
        rc = read_prompt(g, err);
    if (!rc && g->chat)
        rc = nk_chat_template_read(g->chat_template, &g->template_text, &g->chat_template, err);
    return rc;
}

void nk_generate_release(struct nk_generate *g)
{
    nk_buf_release(&g->text);
    nk_buf_release(&g->template_text);
    nk_gen_args_release(&g->gen);
}

/* ---- the vocabulary ---- */

/* The hash of the model that the file was cut from, or of the file itself when it is a whole
 * model. */
static int hash_of(const nk_vocab *v, const char *path, char hex[NK_SHA256_HEX],
                   struct nk_error *err)
{
    nk_model *m = NULL;
    int rc;

    if (nk_vocab_model_sha256(v)[0]) {
        memcpy(hex, nk_vocab_model_sha256(v), NK_SHA256_HEX);
        return 0;
    }
    rc = nk_model_open(&m, path, err);
    if (!rc)
        rc = nk_model_hash(m, hex, err);
    nk_model_close(m);
    return rc;
}

int nk_cluster_vocab_open(nk_vocab **out, const struct nk_cluster *c, struct nk_error *err)
{
    char hex[NK_SHA256_HEX];
    nk_vocab *v = NULL;
    int rc;

    *out = NULL;
    if (!c->vocab_path[0])
        return nk_fail(
            err, NK_E_INVALID, "no_vocab",
            "%s: names no vocabulary file; `vocab: NAME.vocab.gguf` under model is right", c->path);
    /* It is small, and gives other text if it is damaged. A whole model has no digests. */
    rc = nk_slice_check_file(c->vocab_path, NK_VERIFY_ALWAYS, NULL, err);
    if (!rc)
        rc = nk_vocab_open(&v, c->vocab_path, err);
    if (!rc)
        rc = hash_of(v, c->vocab_path, hex, err);
    if (!rc && strcmp(hex, c->model_sha256))
        rc = nk_fail(err, NK_E_PRECONDITION, "model_mismatch",
                     "%s: is the vocabulary of model %s, the cluster file wants %s", c->vocab_path,
                     hex, c->model_sha256);
    if (rc) {
        nk_vocab_close(v);
        return rc;
    }
    *out = v;
    return 0;
}

/* ---- the generation ---- */

/* The ids as a line of numbers. */
static int print_ids(const struct nk_answer *a, struct nk_error *err)
{
    struct nk_buf line = NK_BUF_INIT(1 << 28);
    int rc = 0;

    for (int i = 0; !rc && i < a->n_ids; i++)
        rc = nk_buf_addf(&line, err, "%s%d", i ? " " : "", a->ids[i]);
    if (!rc)
        rc = nk_buf_adds(&line, "\n", err);
    if (!rc)
        rc = nk_write_all(1, nk_buf_str(&line), line.size, err);
    nk_buf_release(&line);
    return rc;
}

static int print_json(const struct nk_answer *a, const nk_chain *c, struct nk_error *err)
{
    json_t *o = nk_answer_json(a, c);
    char *text = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(12) | nk_cli_json_flags());
    int rc = text ? nk_write_all(1, text, strlen(text), err)
                  : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");

    if (!rc)
        rc = nk_write_all(1, "\n", 1, err);
    free(text);
    json_decref(o);
    return rc;
}

static int generate(struct nk_generate *g, struct nk_route *r, const nk_vocab *v)
{
    struct nk_tokens tokens = { 0 };
    struct nk_answer a;
    struct nk_error err;
    bool stream = !g->json && !g->ids;
    int code;

    if (nk_vocab_tokenize(v, nk_buf_str(&g->text), g->text.size, true, false, NK_TEXT_BYTES_MAX,
                          NULL, &tokens, &err))
        return nk_cli_report(&err);
    g->opts.ids = tokens.ids;
    g->opts.n_ids = tokens.n;
    nk_answer_run(&a, r, &g->opts, stream ? 1 : -1);
    free(tokens.ids);
    if (stream && isatty(1) && !a.out_closed)
        (void)!write(1, "\n", 1);
    if ((g->json || (g->ids && !a.rc)) &&
        (g->json ? print_json(&a, r->chain, &err) : print_ids(&a, &err)) && !a.rc) {
        a.rc = err.code;
        a.err = err;
        a.out_closed = !strcmp(err.reason, "reader_gone");
    }
    if (g->stats)
        nk_answer_print_stats(&a);
    code = nk_answer_exit(&a);
    nk_answer_release(&a);
    return code;
}

static int converse(struct nk_generate *g, struct nk_route *r, const nk_vocab *v)
{
    struct nk_chat_opts chat = { .system = g->system,
                                 .chat_template = g->chat_template,
                                 .stats = g->stats };
    struct nk_chain_report *report = NULL;
    struct nk_error err;
    int code;

    if (nk_chain_check(r->chain, CHECK_MS, &report, &err))
        return nk_cli_report(&err);
    chat.n_ctx = report->n_ctx;
    code = report->ok ? nk_chat_run(r, v, &g->opts, &chat) : nk_cli_report(&report->err);
    free(report);
    return code;
}

int nk_generate_run(struct nk_generate *g, struct nk_route *r, const nk_vocab *v)
{
    return g->chat ? converse(g, r, v) : generate(g, r, v);
}

int nk_generate_exit(int code)
{
    if (code == NK_EXIT_CLOSED) {
        signal(SIGPIPE, SIG_DFL);
        raise(SIGPIPE);
    }
    return code;
}

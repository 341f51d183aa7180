/* nakshatra run: one generation, or a conversation, through the chain of a cluster file. */
#include "cli/cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/answer.h"
#include "cli/chat.h"
#include "cli/gen_args.h"
#include "cli/interrupt.h"
#include "cli/request.h"

int nk_cmd_run(int argc, char **argv);

enum { CHECK_MS = 10000 };

struct run {
    const char *cluster_path, *prompt, *file, *system, *chat_template;
    bool json, stats, ids, chat;
    struct nk_gen_args gen;
};

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
    char *text = json_dumps(o, JSON_COMPACT);
    int rc = text ? nk_write_all(1, text, strlen(text), err)
                  : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");

    if (!rc)
        rc = nk_write_all(1, "\n", 1, err);
    free(text);
    json_decref(o);
    return rc;
}

static int generate(const struct run *r, nk_chain *c, const nk_vocab *v, struct nk_gen_opts *o)
{
    struct nk_buf prompt;
    struct nk_tokens tokens = { 0 };
    struct nk_answer a;
    struct nk_error err = { 0 };
    bool stream = !r->json && !r->ids;
    int code, rc = nk_prompt_read(r->prompt, r->file, &prompt, &err);

    if (!rc)
        rc = nk_vocab_tokenize(v, nk_buf_str(&prompt), prompt.size, true, false, NK_TEXT_BYTES_MAX,
                               &tokens, &err);
    nk_buf_release(&prompt);
    if (rc)
        return nk_interrupt_signal() ? nk_interrupt_exit_code(nk_interrupt_signal())
                                     : nk_cli_report(&err);
    o->ids = tokens.ids;
    o->n_ids = tokens.n;
    nk_answer_run(&a, c, o, stream ? 1 : -1);
    free(tokens.ids);
    if (stream && isatty(1) && !a.out_closed)
        (void)!write(1, "\n", 1);
    if (r->json || (r->ids && !a.rc)) {
        rc = r->json ? print_json(&a, c, &err) : print_ids(&a, &err);
        if (rc && !a.rc) {
            a.rc = rc;
            a.err = err;
            a.out_closed = !strcmp(err.reason, "reader_gone");
        }
    }
    if (r->stats)
        nk_answer_print_stats(&a);
    code = nk_answer_exit(&a);
    nk_answer_release(&a);
    return code;
}

static int converse(const struct run *r, nk_chain *c, const nk_vocab *v,
                    const struct nk_gen_opts *o)
{
    struct nk_chat_opts chat = { .system = r->system,
                                 .chat_template = r->chat_template,
                                 .stats = r->stats };
    struct nk_chain_report *report = NULL;
    struct nk_error err;
    int code;

    if (nk_chain_check(c, CHECK_MS, &report, &err))
        return nk_cli_report(&err);
    chat.n_ctx = report->n_ctx;
    code = report->ok ? nk_chat_run(c, v, o, &chat) : nk_cli_report(&report->err);
    free(report);
    return code;
}

static int run(struct run *r)
{
    struct nk_cluster *cluster = NULL;
    struct nk_gen_opts o;
    nk_chain *c = NULL;
    nk_vocab *v = NULL;
    struct nk_error err;
    int code, rc = nk_gen_args_opts(&r->gen, &o, &err);

    if (!rc)
        rc = nk_cluster_read(&cluster, r->cluster_path, &err);
    if (!rc)
        rc = nk_cluster_vocab_open(&v, cluster, &err);
    if (!rc)
        rc = nk_chain_open(&c, cluster, &err);
    code = rc ? nk_cli_report(&err) : r->chat ? converse(r, c, v, &o) : generate(r, c, v, &o);
    nk_chain_close(c);
    nk_vocab_close(v);
    free(cluster);
    nk_gen_args_release(&r->gen);
    return code;
}

int nk_cmd_run(int argc, char **argv)
{
    struct run r = { .gen = nk_gen_args_default() };
    /* clang-format off */
    const struct nk_arg args[] = {
        { "cluster", 'c', NK_ARG_STRING, &r.cluster_path, "FILE", "cluster.yaml: the workers and their layers", 0, 0 },
        { "prompt", 'p', NK_ARG_STRING, &r.prompt, "TEXT", "the prompt (seen in the process list: --file is not)", 0, 0 },
        { "file", 'f', NK_ARG_STRING, &r.file, "FILE", "the prompt from a file; -: standard input", 0, 0 },
        { "chat", 0, NK_ARG_FLAG, &r.chat, NULL, "a conversation on the terminal, with the model's chat template", 0, 0 },
        { "system", 0, NK_ARG_STRING, &r.system, "TEXT", "the conversation's system message", 0, 0 },
        { "template", 0, NK_ARG_STRING, &r.chat_template, "NAME", "a built-in chat template instead of the model's own", 0, 0 },
        NK_GEN_ARGS(r.gen),
        { "json", 'j', NK_ARG_FLAG, &r.json, NULL, "one JSON object with text, ids, timings at the end", 0, 0 },
        { "logprobs", 0, NK_ARG_INT, &r.gen.logprobs, "K", "with --json: log-probabilities of each token and K alternatives", 0, NK_LOGPROBS_MAX },
        { "ids", 0, NK_ARG_FLAG, &r.ids, NULL, "print the generated tokens' ids instead of their text", 0, 0 },
        { "stats", 0, NK_ARG_FLAG, &r.stats, NULL, "tokens, rates and each worker's times on standard error", 0, 0 },
        { 0 },
    };
    /* clang-format on */
    const struct nk_command cmd = {
        .usage = "run --cluster FILE [--prompt TEXT | --file FILE | --chat] [-n N] [--temp T] "
                 "[--seed N] ...",
        .summary = "Generates text with the model that the cluster's workers hold together, and "
                   "prints it as it comes.\n"
                   "Without --prompt and --file the prompt is read from standard input.",
        .args = args,
    };
    struct nk_error err;
    int first, exit_code;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    if (!r.cluster_path)
        nk_fail(&err, NK_E_INVALID, "bad_argument",
                "--cluster FILE is missing. usage: nakshatra %s", cmd.usage);
    else if (r.chat && (r.prompt || r.file || r.json || r.ids))
        nk_fail(&err, NK_E_INVALID, "bad_argument",
                "--chat goes without --prompt, --file, --json and --ids");
    else if (!r.chat && (r.system || r.chat_template))
        nk_fail(&err, NK_E_INVALID, "bad_argument", "--system and --template go with --chat");
    else if (r.json && r.ids)
        nk_fail(&err, NK_E_INVALID, "bad_argument",
                "--json has the ids already; --ids goes without it");
    else if (r.gen.logprobs >= 0 && !r.json)
        nk_fail(&err, NK_E_INVALID, "bad_argument", "--logprobs goes with --json");
    else {
        nk_interrupt_init();
        nk_vocab_global_init();
        return run(&r);
    }
    return nk_cli_report(&err);
}

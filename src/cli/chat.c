#include "cli/chat.h"

#include <errno.h>
#include <histedit.h>
#include <jansson.h>
#include <locale.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wchar.h>

#include "base/array.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/process.h"
#include "cli/answer.h"
#include "cli/cli.h"
#include "cli/interrupt.h"
#include "text/template.h"

enum {
    HISTORY_LINES = 1000,
    MESSAGE_BYTES_MAX = 1 << 20,
    MESSAGES_MAX = 1 << 20,
    /* A conversation is cut to leave a quarter of the context, or what -n asks for, to the
     * answer. */
    ANSWER_SHARE = 4,
};

struct chat {
    struct nk_route *route;
    const nk_vocab *v;
    const struct nk_gen_opts *opts;
    const struct nk_chat_opts *chat;
    nk_template *jinja;               /* the chat template, or */
    const char *builtin;              /* the name of one that libllama knows */
    struct nk_chat_message *messages; /* role is static, content owned */
    size_t n_messages, capacity;
    /* the terminal; NULL when standard input is none */
    EditLine *el;
    History *history;
    char *history_path;
    bool continues; /* the last line ended with a backslash */
};

static struct chat *current; /* libedit's prompt callback is told its EditLine only */

static char *prompt_text(EditLine *el)
{
    static char first[] = "> ", more[] = ". ";

    (void)el;
    return current->continues ? more : first;
}

/* libedit's next character. A signal ends the wait also when it comes before the read begins. */
static int read_char(EditLine *el, wchar_t *out)
{
    mbstate_t state = { 0 };

    (void)el;
    for (;;) {
        struct pollfd fds[2] = { { .fd = 0, .events = POLLIN },
                                 { .fd = nk_interrupt_fd(), .events = POLLIN } };
        ssize_t n;
        size_t used;
        char c;

        if (nk_interrupt_signal())
            return -1;
        if (poll(fds, 2, -1) < 0 || !fds[0].revents)
            continue;
        n = read(0, &c, 1);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n <= 0)
            return (int)n;
        used = mbrtowc(out, &c, 1, &state);
        /* No character: forget what there was of it, but not the byte that broke it. */
        if (used == (size_t)-1) {
            memset(&state, 0, sizeof state);
            used = mbrtowc(out, &c, 1, &state);
        }
        if (used == (size_t)-1) {
            memset(&state, 0, sizeof state);
            continue;
        }
        if (used != (size_t)-2)
            return 1;
    }
}

/* $XDG_STATE_HOME/nakshatra/chat_history; NULL when there is no home or it cannot be made: no
 * history then. */
static char *history_path(void)
{
    const char *xdg = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    struct nk_buf b = NK_BUF_INIT(8192);
    mode_t old;
    int rc;

    if (xdg && xdg[0] == '/')
        rc = nk_buf_addf(&b, NULL, "%s/nakshatra", xdg);
    else if (home && home[0] == '/')
        rc = nk_buf_addf(&b, NULL, "%s/.local/state/nakshatra", home);
    else
        return NULL;
    old = umask(077); /* what is asked is nobody else's business */
    if (!rc)
        rc = nk_dir_make(b.data, NULL);
    umask(old);
    if (!rc)
        rc = nk_buf_adds(&b, "/chat_history", NULL);
    if (rc) {
        nk_buf_release(&b);
        return NULL;
    }
    return nk_buf_take(&b, NULL);
}

static void terminal_open(struct chat *k)
{
    HistEvent ev;

    if (!isatty(0))
        return;
    setlocale(LC_CTYPE, "");
    /* Prompts go to standard error, so that standard output has the model's text and nothing
     * else. */
    k->el = el_init("nakshatra", stdin, stderr, stderr);
    if (!k->el)
        return;
    el_set(k->el, EL_PROMPT, prompt_text);
    el_set(k->el, EL_EDITOR, "emacs");
    el_set(k->el, EL_GETCFN, read_char);
    k->history = history_init();
    if (k->history) {
        history(k->history, &ev, H_SETSIZE, HISTORY_LINES);
        history(k->history, &ev, H_SETUNIQUE, 1);
        el_set(k->el, EL_HIST, history, k->history);
        k->history_path = history_path();
        if (k->history_path)
            history(k->history, &ev, H_LOAD, k->history_path);
    }
    el_source(k->el, NULL); /* ~/.editrc */
}

static void terminal_close(struct chat *k)
{
    HistEvent ev;

    if (k->history && k->history_path) {
        mode_t old = umask(077);

        history(k->history, &ev, H_SAVE, k->history_path);
        chmod(k->history_path, 0600); /* one that was there with another mode */
        umask(old);
    }
    if (k->history)
        history_end(k->history);
    if (k->el)
        el_end(k->el);
    free(k->history_path);
}

/* One line into out, without its newline. False: the end. */
static bool read_line(struct chat *k, struct nk_buf *out)
{
    char *line = NULL;
    const char *text;
    size_t capacity = 0;
    int n = 0;
    ssize_t size;
    bool ok;

    current = k;
    if (k->el) {
        text = el_gets(k->el, &n);
        size = text ? n : -1;
    } else {
        size = getline(&line, &capacity, stdin);
        text = line;
    }
    ok = size > 0 && !nk_interrupt_signal();
    if (ok) {
        while (size && (text[size - 1] == '\n' || text[size - 1] == '\r'))
            size--;
        ok = !nk_buf_add(out, text, (size_t)size, NULL);
        if (!ok)
            fprintf(stderr, "nakshatra: a message has at most %d bytes\n", MESSAGE_BYTES_MAX);
    }
    free(line);
    return ok;
}

/* A message: lines as long as they end with a backslash. False: the end of the conversation. */
static bool read_message(struct chat *k, struct nk_buf *out)
{
    HistEvent ev;

    nk_buf_reset(out);
    k->continues = false;
    for (;;) {
        if (!read_line(k, out))
            return false;
        if (!out->size || out->data[out->size - 1] != '\\')
            break;
        out->data[out->size - 1] = '\n';
        k->continues = true;
    }
    if (k->history && out->size)
        history(k->history, &ev, H_ENTER, nk_buf_str(out));
    return true;
}

static int add_message(struct chat *k, const char *role, const char *text)
{
    int rc = nk_array_grow(k->messages, k->capacity, k->n_messages + 1, MESSAGES_MAX, NULL);

    if (rc)
        return rc;
    k->messages[k->n_messages].role = role;
    k->messages[k->n_messages].content = strdup(text);
    return k->messages[k->n_messages].content ? (k->n_messages++, 0) : NK_E_EXHAUSTED;
}

static void drop_messages(struct chat *k, size_t begin, size_t n)
{
    for (size_t i = begin; i < begin + n; i++)
        free((char *)(uintptr_t)k->messages[i].content);
    memmove(k->messages + begin, k->messages + begin + n,
            (k->n_messages - begin - n) * sizeof *k->messages);
    k->n_messages -= n;
}

static size_t n_system(const struct chat *k)
{
    return k->chat->system ? 1 : 0;
}

/* ---- the template ---- */

/* A token's text; "" for none. Owned by the caller. */
static char *piece_of(const nk_vocab *v, int32_t id)
{
    struct nk_buf b = NK_BUF_INIT(4096);

    if (id >= 0 && nk_vocab_piece(v, id, true, &b, NULL))
        nk_buf_reset(&b);
    return nk_buf_take(&b, NULL);
}

static int render(const struct chat *k, const struct nk_chat_message *messages, size_t n,
                  struct nk_buf *out, struct nk_error *err)
{
    json_t *list;
    char *text;
    int rc;

    if (!k->jinja)
        return nk_chat_render_builtin(k->builtin, messages, n, true, out, err);
    list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_pack("{s:s, s:s}", "role", messages[i].role, "content",
                                              messages[i].content));
    text = json_dumps(list, JSON_COMPACT);
    rc = text && json_array_size(list) == n
             ? nk_template_render(
                   k->jinja,
                   &(struct nk_jinja_input){ .messages = text,
                                             .add_generation_prompt = true,
                                             .now = nk_clock_unix_s(nk_clock_system()) },
                   NULL, out, err)
             : nk_fail(err, NK_E_INVALID, "bad_text", "the message is not UTF-8");
    free(text);
    json_decref(list);
    return rc;
}

/* The template that was given, or the model's own; tried out, so that a bad one is told before the
 * first question. */
static int open_template(struct chat *k, struct nk_error *err)
{
    const struct nk_chat_message hello = { "user", "hello" };
    const char *text =
        k->chat->chat_template ? k->chat->chat_template : nk_vocab_chat_template(k->v);
    struct nk_buf trial = NK_BUF_INIT(MESSAGE_BYTES_MAX);
    int rc = 0;

    if (!text)
        return nk_fail(err, NK_E_INVALID, "no_template",
                       "this model has no chat template; --chat-template names a built-in one "
                       "(chatml, llama3, ...) or a file with Jinja");
    if (strstr(text, "{%") || strstr(text, "{{") || strstr(text, "{#")) {
        char *bos = piece_of(k->v, nk_vocab_bos(k->v)), *eos = piece_of(k->v, nk_vocab_eos(k->v));

        char *self;

        /* In a process of its own: what a template does to that one, it does not do to this. */
        rc = nk_process_self(&self, err);
        if (!rc)
            rc = nk_template_open(&k->jinja, self, text, bos, eos, err);
        free(self);
        free(bos);
        free(eos);
    } else {
        k->builtin = text;
    }
    if (!rc)
        rc = render(k, &hello, 1, &trial, err);
    nk_buf_release(&trial);
    return rc ? nk_wrap(rc, err, "the chat template") : 0;
}

static int tokenize(struct chat *k, struct nk_tokens *out, struct nk_error *err)
{
    struct nk_buf text = NK_BUF_INIT(NK_TEXT_BYTES_MAX);
    int32_t bos = nk_vocab_bos(k->v);
    int rc = render(k, k->messages, k->n_messages, &text, err);

    if (!rc)
        rc = nk_vocab_tokenize(k->v, nk_buf_str(&text), text.size, true, true, NK_TEXT_BYTES_MAX,
                               NULL, out, err);
    /* A template that writes the BOS token itself: the tokenizer's is a second one. */
    if (!rc && bos >= 0 && out->n >= 2 && out->ids[0] == bos && out->ids[1] == bos)
        memmove(out->ids, out->ids + 1, --out->n * sizeof *out->ids);
    nk_buf_release(&text);
    return rc;
}

/* The conversation as ids, without its oldest exchanges if it must be. */
static int tokenize_what_fits(struct chat *k, struct nk_tokens *out, struct nk_error *err)
{
    int reserve = k->opts->n_predict ? k->opts->n_predict : k->chat->n_ctx / ANSWER_SHARE;
    int n_dropped = 0, rc;

    if (reserve > k->chat->n_ctx / 2)
        reserve = k->chat->n_ctx / 2;
    for (;;) {
        rc = tokenize(k, out, err);
        if (rc || out->n + (size_t)reserve <= (size_t)k->chat->n_ctx)
            break;
        if (k->n_messages <= n_system(k) + 1) {
            rc = nk_fail(err, NK_E_INVALID, "context_length_exceeded",
                         "the message has %zu tokens; with room for an answer at most %d fit the "
                         "context of %d",
                         out->n, k->chat->n_ctx - reserve, k->chat->n_ctx);
            free(out->ids);
            break;
        }
        free(out->ids);
        drop_messages(k, n_system(k), 2);
        n_dropped++;
    }
    if (!rc && n_dropped)
        fprintf(stderr, "[the oldest %d exchange%s no longer fit%s the context and %s left out]\n",
                n_dropped, n_dropped > 1 ? "s" : "", n_dropped > 1 ? "" : "s",
                n_dropped > 1 ? "are" : "is");
    return rc;
}

/* One exchange. Returns an exit code; *over: the conversation cannot go on. */
static int exchange(struct chat *k, const char *text, bool *over)
{
    struct nk_gen_opts o = *k->opts;
    struct nk_tokens tokens = { 0 };
    struct nk_answer a;
    struct nk_error err = { 0 };
    int code = NK_EXIT_OK, rc;

    rc = add_message(k, "user", text) ? nk_fail(&err, NK_E_EXHAUSTED, "no_memory", "no memory")
                                      : tokenize_what_fits(k, &tokens, &err);
    if (rc) {
        if (k->n_messages > n_system(k))
            drop_messages(k, k->n_messages - 1, 1);
        return nk_cli_report(&err);
    }
    o.ids = tokens.ids;
    o.n_ids = tokens.n;
    nk_answer_run(&a, k->route, &o, 1);
    free(tokens.ids);
    if (!a.out_closed)
        (void)!write(1, "\n", 1);
    if (a.interrupted == 2) { /* SIGINT: this answer only */
        fprintf(stderr, "[cancelled]\n");
        nk_interrupt_clear();
    } else if (a.rc) {
        code = nk_answer_exit(&a);
        *over = a.interrupted || a.out_closed || !isatty(0);
    }
    if (k->chat->stats && !a.rc)
        nk_answer_print_stats(&a);
    /* What was said stays said, also by half; a question without any answer is taken back. */
    if (!a.text.size || add_message(k, "assistant", nk_buf_str(&a.text)))
        drop_messages(k, k->n_messages - 1, 1);
    nk_answer_release(&a);
    return code;
}

/* A line that begins with a slash. True: the conversation ends. */
static bool command(struct chat *k, const char *line)
{
    if (!strcmp(line, "/exit") || !strcmp(line, "/quit") || !strcmp(line, "/bye"))
        return true;
    if (!strcmp(line, "/clear")) {
        drop_messages(k, n_system(k), k->n_messages - n_system(k));
        fprintf(stderr, "[the conversation begins anew]\n");
    } else {
        if (strcmp(line, "/help"))
            fprintf(stderr, "'%s' is no command.\n", line);
        fprintf(stderr,
                "/clear  forget the conversation\n/exit   end (so does Ctrl-D)\n/help   this\n"
                "A backslash at the end of a line continues the message on the next one. Ctrl-C "
                "stops an answer.\n");
    }
    return false;
}

int nk_chat_run(struct nk_route *r, const nk_vocab *v, const struct nk_gen_opts *opts,
                const struct nk_chat_opts *chat)
{
    struct chat k = { .route = r, .v = v, .opts = opts, .chat = chat };
    struct nk_buf message = NK_BUF_INIT(MESSAGE_BYTES_MAX);
    struct nk_error err = { 0 };
    bool over = false;
    int code = NK_EXIT_OK, rc = open_template(&k, &err);

    if (!rc && chat->system && add_message(&k, "system", chat->system))
        rc = nk_fail(&err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (rc) {
        nk_template_close(k.jinja);
        free(k.messages);
        return nk_cli_report(&err);
    }
    terminal_open(&k);
    while (!over && read_message(&k, &message)) {
        if (!message.size)
            continue;
        if (message.data[0] == '/')
            over = command(&k, nk_buf_str(&message));
        else
            code = exchange(&k, nk_buf_str(&message), &over);
    }
    if (k.el && !over)
        fprintf(stderr, "\n");
    terminal_close(&k);
    drop_messages(&k, 0, k.n_messages);
    nk_template_close(k.jinja);
    free(k.messages);
    nk_buf_release(&message);
    return nk_interrupt_signal() && nk_interrupt_signal() != 2
               ? nk_interrupt_exit_code(nk_interrupt_signal())
               : code;
}

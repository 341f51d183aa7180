/* The machine takes what it can from the front of `pend` and waits for more when it cannot decide.
 * `raw` has the bytes of a tool call, mark included, as long as the call is not announced: should
 * it turn out to be none, they are content. */
#include "gateway/output.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "gateway/tool_call.h"

enum state {
    AT_START,  /* white space, then perhaps a mark */
    IN_THINK,  /* reasoning */
    AT_TURN,   /* after reasoning: white space, then perhaps the mark of a new message */
    IN_TEXT,   /* content */
    IN_LIST,   /* MISTRAL: between calls: [ or , or ] */
    IN_NAME,   /* ARGS, DEEPSEEK: the function's name */
    IN_CALL,   /* the call's JSON */
    AFTER_CALL /* white space, the closing mark */
};

enum { PEND_BYTES_MAX = 16 << 20, MARKS_MAX = 4, NAME_HELD_MAX = 256 };

struct nk_output {
    struct nk_output_opts opts;
    enum state state;
    struct nk_buf pend, raw;
    size_t n_used; /* of pend */
    struct nk_tool_call call;
    bool in_call; /* call is initialised */
    bool trim;    /* drop white space that begins what follows */
    bool content_begun;
    bool ended;
    int n_calls;
};

/* DeepSeek's marks have U+FF5C and U+2581 in them. */
#define DS_BAR         "\xef\xbd\x9c"
#define DS_GAP         "\xe2\x96\x81"
#define DS_CALLS_BEGIN "<" DS_BAR "tool" DS_GAP "calls" DS_GAP "begin" DS_BAR ">"
#define DS_CALLS_END   "<" DS_BAR "tool" DS_GAP "calls" DS_GAP "end" DS_BAR ">"
#define DS_CALL_BEGIN  "<" DS_BAR "tool" DS_GAP "call" DS_GAP "begin" DS_BAR ">"
#define DS_CALL_END    "<" DS_BAR "tool" DS_GAP "call" DS_GAP "end" DS_BAR ">"
#define DS_SEP         "<" DS_BAR "tool" DS_GAP "sep" DS_BAR ">"

/* What begins a call in the text, and what may stand between or after calls and is dropped. */
static const struct {
    const char *opens[2];
    const char *closes[3];
} formats[] = {
    [NK_TOOL_FORMAT_NONE] = { { NULL, NULL }, { NULL, NULL, NULL } },
    [NK_TOOL_FORMAT_HERMES] = { { "<tool_call>", NULL }, { "</tool_call>", NULL, NULL } },
    [NK_TOOL_FORMAT_LLAMA] = { { "<|python_tag|>", NULL }, { ";", NULL, NULL } },
    [NK_TOOL_FORMAT_MISTRAL] = { { "[TOOL_CALLS]", NULL }, { NULL, NULL, NULL } },
    [NK_TOOL_FORMAT_ARGS] = { { "[TOOL_CALLS]", NULL }, { NULL, NULL, NULL } },
    [NK_TOOL_FORMAT_DEEPSEEK] = { { DS_CALLS_BEGIN, DS_CALL_BEGIN },
                                  { DS_CALL_END, DS_CALLS_END, "```" } },
};

enum nk_tool_format nk__tool_format_detect(const char *t)
{
    /* Templates that use the mark <tool_call> for something that is not JSON. */
    if (strstr(t, "<function=") || strstr(t, "<arg_key>"))
        return NK_TOOL_FORMAT_NONE;
    if (strstr(t, "<tool_call>"))
        return NK_TOOL_FORMAT_HERMES;
    if (strstr(t, "[TOOL_CALLS]"))
        return strstr(t, "[ARGS]") ? NK_TOOL_FORMAT_ARGS : NK_TOOL_FORMAT_MISTRAL;
    if (strstr(t, DS_CALLS_BEGIN))
        return NK_TOOL_FORMAT_DEEPSEEK;
    if (strstr(t, "<|python_tag|>") ||
        (strstr(t, "<|start_header_id|>") && strstr(t, "\"parameters\"")))
        return NK_TOOL_FORMAT_LLAMA;
    return NK_TOOL_FORMAT_NONE;
}

struct nk_think_marks nk__think_marks_detect(const char *t)
{
    static const struct nk_think_marks known[] = {
        { "<think>", "</think>", NULL, NULL },
        { "[THINK]", "[/THINK]", NULL, NULL },
        { "<seed:think>", "</seed:think>", NULL, NULL },
        { "<|START_THINKING|>", "<|END_THINKING|>", NULL, NULL },
    };

    /* gpt-oss; its closing mark alone is in many templates. */
    if (strstr(t, "<|channel|>analysis<|message|>"))
        return (struct nk_think_marks){ "<|channel|>analysis<|message|>", "<|end|>",
                                        "<|start|>assistant", "<|channel|>final<|message|>" };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strstr(t, known[i].close))
            return known[i];
    return (struct nk_think_marks){ NULL, NULL, NULL, NULL };
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

bool nk__prompt_opens_think(const char *prompt, size_t size, struct nk_think_marks marks)
{
    size_t n = marks.open ? strlen(marks.open) : 0;

    while (size && is_space(prompt[size - 1]))
        size--;
    return n && size >= n && !memcmp(prompt + size - n, marks.open, n);
}

nk_output *nk__output_new(const struct nk_output_opts *opts)
{
    nk_output *o = calloc(1, sizeof *o);

    if (!o)
        return NULL;
    o->opts = *opts;
    o->state = opts->starts_thinking ? IN_THINK : AT_START;
    o->trim = true;
    nk_buf_init(&o->pend, PEND_BYTES_MAX);
    nk_buf_init(&o->raw, PEND_BYTES_MAX);
    return o;
}

void nk__output_free(nk_output *o)
{
    if (!o)
        return;
    if (o->in_call)
        nk__tool_call_release(&o->call);
    nk_buf_release(&o->pend);
    nk_buf_release(&o->raw);
    free(o);
}

bool nk__output_ended(const nk_output *o)
{
    return o->ended;
}

bool nk__output_is_reasoning(const nk_output *o)
{
    return o->state == IN_THINK;
}

/* ---- helpers over what is pending ---- */

static const char *front(const nk_output *o)
{
    return nk_buf_str(&o->pend) + o->n_used;
}

static size_t left(const nk_output *o)
{
    return o->pend.size - o->n_used;
}

static int give(nk_output *o, enum nk_output_kind kind, size_t n, struct nk_error *err)
{
    int rc = n ? o->opts.sink(o->opts.user, kind, front(o), n, err) : 0;

    if (n && kind == NK_OUTPUT_CONTENT)
        o->content_begun = true;
    o->n_used += n;
    return rc;
}

enum match { MATCH_NO, MATCH_PART, MATCH_YES };

static enum match match(const char *s, size_t n, const char *mark)
{
    size_t size = strlen(mark);

    if (memcmp(s, mark, n < size ? n : size))
        return MATCH_NO;
    return n < size ? MATCH_PART : MATCH_YES;
}

/* Where the first of the marks begins in what is pending, with the white space before it: *at;
 * which one: returned. -1: nowhere; then *at is where text begins that may become white space and a
 * mark (left(o): none does). */
static int find(const nk_output *o, const char *const *marks, int n_marks, bool final, size_t *at)
{
    const char *s = front(o);
    size_t n = left(o), spaces = 0; /* where the white space before i begins */

    for (size_t i = 0; i < n; i++) {
        if (i && !is_space(s[i - 1]))
            spaces = i;
        if (is_space(s[i]))
            continue;
        for (int m = 0; m < n_marks; m++) {
            enum match found = match(s + i, n - i, marks[m]);

            if (found == MATCH_NO || (found == MATCH_PART && final))
                continue;
            *at = spaces;
            return found == MATCH_YES ? m : -1;
        }
    }
    if (n && !is_space(s[n - 1]))
        spaces = n;
    *at = final ? n : spaces;
    return -1;
}

static void skip_space(nk_output *o)
{
    while (left(o) && is_space(*front(o)))
        o->n_used++;
}

/* ---- the states; each returns true when it went on, false when it waits for more ---- */

static void begin_call(nk_output *o, enum state state)
{
    if (o->in_call)
        nk__tool_call_release(&o->call);
    nk__tool_call_init(&o->call, o->opts.sink, o->opts.user);
    if (o->opts.tools == NK_TOOL_FORMAT_LLAMA) {
        o->call.names = o->opts.tool_names;
        o->call.n_names = o->opts.n_tool_names;
    }
    o->in_call = true;
    o->state = state;
}

/* It is no call: its bytes, and what follows, are content. */
static int no_call(nk_output *o, struct nk_error *err)
{
    int rc = o->raw.size
                 ? o->opts.sink(o->opts.user, NK_OUTPUT_CONTENT, o->raw.data, o->raw.size, err)
                 : 0;

    nk_buf_reset(&o->raw);
    o->content_begun = true;
    o->state = IN_TEXT;
    o->trim = false;
    return rc;
}

/* Is the mark in front? There is none: MATCH_NO. */
static enum match at_mark(const nk_output *o, const char *mark)
{
    return mark ? match(front(o), left(o), mark) : MATCH_NO;
}

static bool step_start(nk_output *o, bool final)
{
    const struct nk_think_marks *marks = &o->opts.think;
    enum match think, answer;
    size_t used = o->n_used;

    skip_space(o);
    if (!left(o) && !final) {
        o->n_used = used; /* white space before what is no mark stays */
        return false;
    }
    think = at_mark(o, marks->open);
    answer = at_mark(o, marks->answer);
    if ((think == MATCH_PART || answer == MATCH_PART) && !final) {
        o->n_used = used;
        return false;
    }
    if (think == MATCH_YES || answer == MATCH_YES) {
        o->n_used += strlen(think == MATCH_YES ? marks->open : marks->answer);
        o->state = think == MATCH_YES ? IN_THINK : IN_TEXT;
        o->trim = true;
        return true;
    }
    o->n_used = used;
    o->state = IN_TEXT;
    o->trim = false;
    return true;
}

static bool step_think(nk_output *o, bool final, int *rc, struct nk_error *err)
{
    const char *close = o->opts.think.close;
    size_t at;
    int found;

    if (o->trim) {
        skip_space(o);
        if (!left(o))
            return false;
        o->trim = false;
    }
    found = find(o, &close, 1, final, &at);
    *rc = give(o, NK_OUTPUT_REASONING, at, err);
    if (found < 0)
        return false;
    skip_space(o);
    o->n_used += strlen(close);
    o->state = o->opts.think.turn ? AT_TURN : IN_TEXT;
    o->trim = true;
    return true;
}

static bool step_turn(nk_output *o, bool final)
{
    enum match m;

    skip_space(o);
    m = left(o) ? at_mark(o, o->opts.think.turn) : MATCH_PART;
    if (m == MATCH_PART && !final)
        return false;
    if (m == MATCH_YES)
        o->n_used += strlen(o->opts.think.turn);
    o->state = AT_START;
    return true;
}

static int open_call(nk_output *o, const char *mark, size_t at, struct nk_error *err)
{
    int rc = give(o, NK_OUTPUT_CONTENT, at, err);
    const char *s = front(o);
    size_t n = 0;

    while (is_space(s[n]))
        n++;
    n += strlen(mark);
    if (!rc)
        rc = nk_buf_add(&o->raw, s, n, err);
    o->n_used += n;
    switch (o->opts.tools) {
    case NK_TOOL_FORMAT_MISTRAL:
        o->state = IN_LIST;
        return rc;
    case NK_TOOL_FORMAT_DEEPSEEK:
        if (!strcmp(mark, DS_CALLS_BEGIN)) {
            o->state = AFTER_CALL;
            return rc;
        }
        /* fall through */
    case NK_TOOL_FORMAT_ARGS:
        begin_call(o, IN_NAME);
        return rc;
    default:
        begin_call(o, IN_CALL);
        return rc;
    }
}

static bool step_text(nk_output *o, bool final, int *rc, struct nk_error *err)
{
    const char *const *opens = formats[o->opts.tools].opens;
    int n_opens = opens[0] ? opens[1] ? 2 : 1 : 0, found;
    size_t at;

    if (o->trim) {
        skip_space(o);
        if (!left(o))
            return false;
        o->trim = false;
    }
    /* LLAMA: a call needs no mark; it may be what the content begins with. */
    if (o->opts.tools == NK_TOOL_FORMAT_LLAMA && !o->content_begun) {
        size_t n = 0;

        while (n < left(o) && is_space(front(o)[n]))
            n++;
        if (n == left(o) && !final)
            return false;
        if (n < left(o) && front(o)[n] == '{') {
            *rc = nk_buf_add(&o->raw, front(o), n, err);
            o->n_used += n;
            begin_call(o, IN_CALL);
            return true;
        }
    }
    if (!n_opens) {
        *rc = give(o, NK_OUTPUT_CONTENT, left(o), err);
        return false;
    }
    found = find(o, opens, n_opens, final, &at);
    if (found < 0) {
        *rc = give(o, NK_OUTPUT_CONTENT, at, err);
        return false;
    }
    *rc = open_call(o, opens[found], at, err);
    return true;
}

static bool step_list(nk_output *o, bool final, int *rc, struct nk_error *err)
{
    char c;

    while (left(o) && is_space(*front(o))) {
        *rc = nk_buf_add(&o->raw, front(o), 1, err);
        o->n_used++;
        if (*rc)
            return true;
    }
    if (!left(o)) {
        if (final && o->raw.size)
            *rc = no_call(o, err);
        return false;
    }
    c = *front(o);
    if (c == '[' || c == ',') {
        *rc = nk_buf_add(&o->raw, &c, 1, err);
        o->n_used++;
    } else if (c == '{')
        begin_call(o, IN_CALL);
    else if (c == ']' && o->n_calls) {
        nk_buf_reset(&o->raw);
        o->n_used++;
        o->state = IN_TEXT;
        o->trim = true;
    } else
        *rc = no_call(o, err);
    return true;
}

/* ARGS: "N[ARGS]"; DEEPSEEK: "function<sep>N\n```json\n" (R1, V3) or "N<sep>" (V3.1). */
static bool step_name(nk_output *o, bool final, int *rc, struct nk_error *err)
{
    bool args = o->opts.tools == NK_TOOL_FORMAT_ARGS;
    const char *s = front(o), *sep = args ? "[ARGS]" : DS_SEP, *brace = memchr(s, '{', left(o));
    const char *at = brace ? memmem(s, (size_t)(brace - s), sep, strlen(sep)) : NULL, *name = s,
               *end = at;

    if (!brace && left(o) < NAME_HELD_MAX && !final)
        return false;
    if (at && !args) {
        const char *after = at + strlen(sep),
                   *fence = memmem(after, (size_t)(brace - after), "```", 3);

        if (fence) {
            name = after;
            end = fence;
        }
    }
    while (end && name < end && is_space(*name))
        name++;
    while (end && end > name && is_space(end[-1]))
        end--;
    if (!end || nk__tool_call_named(&o->call, name, (size_t)(end - name), NULL)) {
        *rc = no_call(o, err);
        return true;
    }
    *rc = nk_buf_add(&o->raw, s, (size_t)(brace - s), err);
    o->n_used += (size_t)(brace - s);
    o->state = IN_CALL;
    return true;
}

static bool step_call(nk_output *o, bool final, int *rc, struct nk_error *err)
{
    while (left(o)) {
        char c = *front(o);
        bool was_announced = o->call.announced;
        enum nk_tool_call_state s;

        s = nk__tool_call_byte(&o->call, c, rc, err);
        if (*rc)
            return true;
        if (s == NK_TOOL_CALL_BAD && o->call.announced) {
            /* Half a call went out already and cannot be taken back; what follows is content. */
            *rc = nk__tool_call_flush(&o->call, err);
            o->state = IN_TEXT;
            return true;
        }
        if (s == NK_TOOL_CALL_BAD) {
            *rc = no_call(o, err);
            return true;
        }
        o->n_used++;
        if (!o->call.announced) {
            *rc = nk_buf_add(&o->raw, &c, 1, err);
            if (*rc)
                return true;
        } else if (!was_announced) {
            nk_buf_reset(&o->raw);
            o->n_calls++;
        }
        if (s == NK_TOOL_CALL_DONE) {
            o->ended = o->opts.one_call;
            o->state = o->opts.tools == NK_TOOL_FORMAT_MISTRAL ? IN_LIST : AFTER_CALL;
            return true;
        }
    }
    *rc = nk__tool_call_flush(&o->call, err);
    if (final && !*rc && !o->call.announced)
        *rc = no_call(o, err);
    return false;
}

static bool step_after(nk_output *o, bool final, int *rc, struct nk_error *err)
{
    const char *const *closes = formats[o->opts.tools].closes;
    bool part = false;

    (void)rc, (void)err;
    skip_space(o);
    for (int i = 0; i < 3 && closes[i] && left(o); i++) {
        enum match m = match(front(o), left(o), closes[i]);

        if (m == MATCH_YES) {
            o->n_used += strlen(closes[i]);
            return true;
        }
        part = part || m == MATCH_PART;
    }
    if ((!left(o) || part) && !final)
        return false;
    nk_buf_reset(&o->raw);
    o->state = IN_TEXT;
    o->trim = true;
    if (o->opts.tools == NK_TOOL_FORMAT_LLAMA && left(o) && *front(o) == '{')
        begin_call(o, IN_CALL);
    return left(o) > 0;
}

static int run(nk_output *o, bool final, struct nk_error *err)
{
    bool more = true;
    int rc = 0;

    while (more && !rc && !o->ended) {
        switch (o->state) {
        case AT_START:
            more = step_start(o, final);
            break;
        case IN_THINK:
            more = step_think(o, final, &rc, err);
            break;
        case AT_TURN:
            more = step_turn(o, final);
            break;
        case IN_TEXT:
            more = step_text(o, final, &rc, err);
            break;
        case IN_LIST:
            more = step_list(o, final, &rc, err);
            break;
        case IN_NAME:
            more = step_name(o, final, &rc, err);
            break;
        case IN_CALL:
            more = step_call(o, final, &rc, err);
            break;
        case AFTER_CALL:
            more = step_after(o, final, &rc, err);
            break;
        }
    }
    if (o->ended)
        o->n_used = o->pend.size;
    nk_buf_consume(&o->pend, o->n_used);
    o->n_used = 0;
    return rc;
}

int nk__output_feed(nk_output *o, const char *text, size_t size, struct nk_error *err)
{
    int rc = o->ended ? 0 : nk_buf_add(&o->pend, text, size, err);

    return rc ? rc : run(o, false, err);
}

int nk__output_finish(nk_output *o, struct nk_error *err)
{
    return run(o, true, err);
}

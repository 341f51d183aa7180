/* The machine takes what it can from the front of `pend` and waits for more when it cannot decide.
 * `raw` has the bytes of a tool call, mark included, as long as the call is not announced: should
 * it turn out to be none, they are content. */
#include "gateway/output.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "gateway/tool_call.h"
#include "gateway/tool_value.h"

enum state {
    AT_START,    /* white space, then perhaps a mark */
    IN_THINK,    /* reasoning */
    AT_TURN,     /* after reasoning: white space, then perhaps the mark of a new message */
    IN_TEXT,     /* content */
    BEFORE_CALL, /* in a section: a call, or its end */
    IN_NAME,     /* the function's name, where it stands by itself */
    IN_CALL,     /* the call's JSON */
    IN_FIELDS,   /* arguments between marks: a key, or the call's end */
    IN_KEY,
    IN_VALUE,
    AFTER_CALL /* white space, the closing mark */
};

enum {
    PEND_BYTES_MAX = 16 << 20,
    NAME_HELD_MAX = NK_TOOL_NAME_MAX + 256, /* with the mark after it */
    KEY_BYTES_MAX = 256,
    /* White space is held back, as a mark may follow that takes it along, and so is a mark that has
     * begun (some have numbers and ids of any length). It is looked at again with every token: a
     * model that writes nothing else must not cost more with each of them. */
    HELD_MAX = 4096,
    /* A mark that the text ends in the middle of is dropped when so much of it is there. */
    CUT_MARK_BYTES = 3,
};

struct nk_output {
    struct nk_output_opts opts;
    enum state state;
    struct nk_buf pend, raw;
    size_t n_used;  /* of pend */
    size_t n_marks; /* of raw: the marks that it begins with */
    struct nk_tool_call call;
    bool in_call;    /* call is initialised */
    bool in_section; /* calls stand between two marks */
    int n_section;   /* calls in this one */
    bool trim;       /* drop white space that begins what follows */
    bool content_begun;
    bool ended;
    int n_calls;
    /* FIELDS, LITERAL: the argument that is read. */
    struct nk_buf key;
    int n_fields;
    bool is_text;    /* its mark says that it is a string */
    size_t n_looked; /* of the value: no end is in these */
    struct nk_tool_scan scan;
};

struct nk_think_marks nk__think_marks_detect(const char *t)
{
    static const struct nk_think_marks known[] = {
        { "<think>", "</think>", NULL, NULL, NULL },
        { "[THINK]", "[/THINK]", NULL, NULL, NULL },
        { "<seed:think>", "</seed:think>", NULL, NULL, NULL },
        { "<|START_THINKING|>", "<|END_THINKING|>", NULL, NULL, NULL },
        { "<|channel>thought", "<channel|>", NULL, NULL, NULL }, /* gemma 4 */
    };

    /* gpt-oss; its closing mark alone is in many templates. */
    if (strstr(t, "<|channel|>analysis<|message|>"))
        return (struct nk_think_marks){ "<|channel|>analysis<|message|>", "<|end|>",
                                        "<|start|>assistant", "<|channel|>final<|message|>",
                                        "<|channel|>commentary<|message|>" };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strstr(t, known[i].close))
            return known[i];
    return (struct nk_think_marks){ NULL, NULL, NULL, NULL, NULL };
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

/* What a function's name is made of, so that it can be told from marks, where it is none of the
 * request's (name_size). */
static bool is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
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
    nk_buf_init(&o->key, KEY_BYTES_MAX + 1);
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
    nk_buf_release(&o->key);
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
 * which one: returned, and *size of it. -1: nowhere; then *at is where text begins that may become
 * white space and a mark (left(o): none does). */
static int find(const nk_output *o, const char *const *marks, int n_marks, bool final, size_t *at,
                size_t *size)
{
    const char *s = front(o);
    size_t n = left(o), spaces = 0; /* where the white space before i begins */

    for (size_t i = 0; i < n; i++) {
        if (i && !is_space(s[i - 1]))
            spaces = i;
        if (is_space(s[i]))
            continue;
        for (int m = 0; m < n_marks; m++) {
            size_t used = 0;
            enum nk_tool_match found = nk__tool_mark_match(s + i, n - i, marks[m], &used);

            if (found == NK_TOOL_MATCH_NO || (found == NK_TOOL_MATCH_PART &&
                                              (final ? n - i < CUT_MARK_BYTES : n - i > HELD_MAX)))
                continue;
            *at = spaces;
            *size = used;
            return found == NK_TOOL_MATCH_YES ? m : -1;
        }
    }
    if (n && (!is_space(s[n - 1]) || n - spaces > HELD_MAX))
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

static void begin_call(nk_output *o)
{
    const struct nk_tool_form *f = o->opts.tools;

    if (o->in_call)
        nk__tool_call_release(&o->call);
    nk__tool_call_init(&o->call, o->opts.sink, o->opts.user);
    if (nk__tool_form_is_weak(f)) {
        o->call.names = o->opts.tool_names;
        o->call.n_names = o->opts.n_tool_names;
    }
    if (f->body == NK_TOOL_JSON) {
        o->call.name_key = f->name_key;
        o->call.args_key = f->args_key;
    }
    o->in_call = true;
    o->state = f->body == NK_TOOL_JSON ? IN_CALL : IN_NAME;
}

/* It is no call: its bytes, and what follows, are content. */
static int no_call(nk_output *o, struct nk_error *err)
{
    int rc = o->raw.size
                 ? o->opts.sink(o->opts.user, NK_OUTPUT_CONTENT, o->raw.data, o->raw.size, err)
                 : 0;

    nk_buf_reset(&o->raw);
    o->n_marks = 0;
    o->content_begun = true;
    o->in_section = false;
    o->state = IN_TEXT;
    o->trim = false;
    return rc;
}

/* The text ended before it was a call: nobody wants to read its marks. */
static int cut_off(nk_output *o, struct nk_error *err)
{
    nk_buf_consume(&o->raw, o->n_marks);
    return no_call(o, err);
}

/* Takes n bytes off what is pending, for the case that it is no call. */
static int keep(nk_output *o, size_t n, struct nk_error *err)
{
    int rc = nk_buf_add(&o->raw, front(o), n, err);

    o->n_used += n;
    return rc;
}

static int keep_mark(nk_output *o, size_t n, struct nk_error *err)
{
    int rc = keep(o, n, err);

    o->n_marks = o->raw.size;
    return rc;
}

/* NULL: the mark is not there. */
static enum nk_tool_match in_front(const nk_output *o, const char *mark, size_t *used)
{
    enum nk_tool_match m = nk__tool_mark_match(front(o), left(o), mark, used);

    return m == NK_TOOL_MATCH_PART && left(o) > HELD_MAX ? NK_TOOL_MATCH_NO : m;
}

/* Is the mark in front? There is none: MATCH_NO. */
static enum match at_mark(const nk_output *o, const char *mark)
{
    return mark ? match(front(o), left(o), mark) : MATCH_NO;
}

static bool step_start(nk_output *o, bool final)
{
    const struct nk_think_marks *marks = &o->opts.think;
    enum match think, answer, preamble;
    size_t used = o->n_used;

    skip_space(o);
    if (!left(o) && !final) {
        bool waits = o->n_used - used <= HELD_MAX;

        o->n_used = used; /* white space before what is no mark stays */
        if (!waits) {
            o->state = IN_TEXT;
            o->trim = false;
        }
        return !waits;
    }
    think = at_mark(o, marks->open);
    answer = at_mark(o, marks->answer);
    preamble = at_mark(o, marks->preamble);
    if ((think == MATCH_PART || answer == MATCH_PART || preamble == MATCH_PART) && !final) {
        o->n_used = used;
        return false;
    }
    if (think == MATCH_YES || answer == MATCH_YES || preamble == MATCH_YES) {
        o->n_used += strlen(think == MATCH_YES    ? marks->open
                            : answer == MATCH_YES ? marks->answer
                                                  : marks->preamble);
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
    size_t at, size;
    int found;

    if (o->trim) {
        skip_space(o);
        if (!left(o))
            return false;
        o->trim = false;
    }
    found = find(o, &close, 1, final, &at, &size);
    *rc = give(o, NK_OUTPUT_REASONING, at, err);
    if (found < 0)
        return false;
    skip_space(o);
    o->n_used += size;
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

/* May c begin a call that has no mark of its own? */
static bool begins_body(const nk_output *o, char c)
{
    if (o->opts.tools->body == NK_TOOL_JSON)
        return c == '{';
    for (int i = 0; i < o->opts.n_tool_names; i++)
        if (o->opts.tool_names[i][0] == c)
            return true;
    return is_name(c);
}

/* What begins calls in the text; "" where there is no such mark. */
static int openers(const nk_output *o, const char *marks[4])
{
    const struct nk_tool_form *f = o->opts.tools;
    int n = 0;

    if (o->opts.think.turn)
        marks[n++] = o->opts.think.close; /* the message's end, another may follow */
    if (!f)
        return n;
    if (!nk__tool_form_is_weak(f)) {
        if (!nk__tool_mark_is_empty(f->section_open))
            marks[n++] = f->section_open;
        /* Models forget the section. */
        if (!nk__tool_mark_is_empty(f->call_open) &&
            (nk__tool_mark_is_empty(f->section_open) ||
             strchr("<[", f->call_open[strspn(f->call_open, " \n\r\t")])))
            marks[n++] = f->call_open;
    }
    if (!nk__tool_mark_is_empty(f->alt_open))
        marks[n++] = f->alt_open;
    return n;
}

static int open_call(nk_output *o, const char *mark, size_t at, size_t size, struct nk_error *err)
{
    int rc = give(o, NK_OUTPUT_CONTENT, at, err);
    size_t n = 0;

    while (is_space(front(o)[n]))
        n++;
    if (!rc)
        rc = keep_mark(o, n + size, err);
    o->in_section = mark == o->opts.tools->section_open;
    o->n_section = 0;
    if (o->in_section)
        o->state = BEFORE_CALL;
    else
        begin_call(o);
    return rc;
}

/* Calls without a mark may be what the content begins with. *stop: this waits for more. true: a
 * call was begun. */
static bool step_weak(nk_output *o, bool final, bool *stop, int *rc, struct nk_error *err)
{
    const struct nk_tool_form *f = o->opts.tools;
    const char *mark = nk__tool_mark_is_empty(f->section_open) ? f->call_open : f->section_open;
    size_t n = 0, size = 0;
    enum nk_tool_match m = NK_TOOL_MATCH_YES;

    while (n < left(o) && is_space(front(o)[n]))
        n++;
    if (!nk__tool_mark_is_empty(mark))
        m = nk__tool_mark_match(front(o) + n, left(o) - n, mark, &size);
    n += size;
    while (m == NK_TOOL_MATCH_YES && n < left(o) && is_space(front(o)[n]))
        n++;
    *stop = !final && n <= HELD_MAX &&
            (m == NK_TOOL_MATCH_PART || (m == NK_TOOL_MATCH_YES && n == left(o)));
    if (*stop || m != NK_TOOL_MATCH_YES || n == left(o) || !begins_body(o, front(o)[n]))
        return false;
    *rc = keep(o, n, err);
    o->in_section = mark == f->section_open;
    o->n_section = 0;
    begin_call(o);
    return true;
}

static bool step_text(nk_output *o, bool final, int *rc, struct nk_error *err)
{
    const char *marks[4];
    int n_marks = openers(o, marks), found;
    size_t at, size;
    bool stop = false;

    if (o->trim) {
        skip_space(o);
        if (!left(o))
            return false;
        o->trim = false;
    }
    if (o->opts.tools && !o->content_begun && nk__tool_form_is_weak(o->opts.tools)) {
        if (step_weak(o, final, &stop, rc, err))
            return true;
        if (stop)
            return false;
    }
    if (!n_marks) {
        *rc = give(o, NK_OUTPUT_CONTENT, left(o), err);
        return false;
    }
    found = find(o, marks, n_marks, final, &at, &size);
    if (found < 0) {
        *rc = give(o, NK_OUTPUT_CONTENT, at, err);
        if (final)
            o->n_used += left(o); /* half a mark */
        return false;
    }
    if (marks[found] == o->opts.think.close) {
        *rc = give(o, NK_OUTPUT_CONTENT, at, err);
        skip_space(o);
        o->n_used += size;
        o->state = AT_TURN;
        return true;
    }
    *rc = open_call(o, marks[found], at, size, err);
    return true;
}

static void end_section(nk_output *o)
{
    nk_buf_reset(&o->raw);
    o->n_marks = 0;
    o->in_section = false;
    o->state = IN_TEXT;
    o->trim = true;
}

static bool step_before(nk_output *o, bool final, int *rc, struct nk_error *err)
{
    const struct nk_tool_form *f = o->opts.tools;
    size_t used = 0, spaces = 0;
    enum nk_tool_match open, close, sep;

    while (spaces < left(o) && is_space(front(o)[spaces]))
        spaces++;
    *rc = keep(o, spaces, err);
    if (*rc)
        return true;
    if (!left(o)) {
        if (final)
            *rc = cut_off(o, err);
        return false;
    }
    close = o->n_section ? in_front(o, f->section_close, &used) : NK_TOOL_MATCH_NO;
    if (close == NK_TOOL_MATCH_YES) {
        o->n_used += used;
        end_section(o);
        return true;
    }
    sep = o->n_section ? in_front(o, f->call_sep, &used) : NK_TOOL_MATCH_NO;
    if (sep == NK_TOOL_MATCH_YES) {
        *rc = keep_mark(o, used, err);
        return true;
    }
    open = in_front(o, f->call_open, &used);
    if (open == NK_TOOL_MATCH_YES) {
        *rc = keep_mark(o, used, err);
        begin_call(o);
        return true;
    }
    if (close == NK_TOOL_MATCH_PART || sep == NK_TOOL_MATCH_PART || open == NK_TOOL_MATCH_PART) {
        if (!final)
            return false;
        o->n_used += left(o);
        *rc = cut_off(o, err);
        return false;
    }
    if (nk__tool_mark_is_empty(f->call_open) && begins_body(o, *front(o)))
        begin_call(o);
    else if (o->n_section)
        end_section(o);
    else
        *rc = no_call(o, err);
    return true;
}

static bool is_known(const nk_output *o, const char *name, size_t n)
{
    if (!nk__tool_form_is_weak(o->opts.tools))
        return true;
    for (int i = 0; i < o->opts.n_tool_names; i++)
        if (strlen(o->opts.tool_names[i]) == n && !memcmp(o->opts.tool_names[i], name, n))
            return true;
    return false;
}

/* How much of s[0..n) is a function's name: the longest of the request's that stands there whole
 * (they have characters that marks begin with, too, "fs:read"), else what names are made of.
 * *part: all of s may yet become a longer one. */
static size_t name_size(const nk_output *o, const char *s, size_t n, bool *part)
{
    size_t size = 0;

    *part = false;
    while (size < n && is_name(s[size]))
        size++;
    for (int i = 0; i < o->opts.n_tool_names; i++) {
        const char *name = o->opts.tool_names[i];
        size_t k = strlen(name);

        if (memcmp(s, name, n < k ? n : k) != 0)
            continue;
        if (n < k)
            *part = true;
        else if (k > size && (k == n || !is_name(s[k])))
            size = k;
    }
    return size;
}

/* The call is one: it is announced, and its marks are not needed any more. */
static int announce(nk_output *o, const char *name, size_t n, struct nk_error *err)
{
    int rc = nk__tool_call_named(&o->call, name, n, err);

    nk_buf_reset(&o->raw);
    o->n_marks = 0;
    o->n_calls++;
    o->call.announced = true;
    if (!rc)
        rc = o->opts.sink(o->opts.user, NK_OUTPUT_TOOL, o->call.name, n, err);
    return rc;
}

/* The part of the mark after the name that has to be there: models leave an id out, or a word. */
static const char *needed(const char *name_close)
{
    const char *last = name_close, *end = strchr(name_close, '\0');

    while (end > name_close && is_space(end[-1]))
        end--;
    for (const char *p = name_close; p < end; p++)
        if ((*p == '<' || *p == '[') && p + 1 < end)
            last = p;
    return last;
}

/* NAMED: the name, its mark, and the object's brace. */
static bool step_named(nk_output *o, bool final, int *rc, struct nk_error *err)
{
    const char *mark = needed(o->opts.tools->name_close), *s = front(o),
               *brace = memchr(s, '{', left(o)), *name = s, *end, *p;
    size_t used = 0;
    bool ok, part;

    if (!brace && left(o) < NAME_HELD_MAX && !final)
        return false;
    if (!brace && final && left(o) < NAME_HELD_MAX) {
        *rc = keep(o, left(o), err);
        if (!*rc)
            *rc = cut_off(o, err);
        return false;
    }
    while (brace && name < brace && is_space(*name))
        name++;
    end = brace ? name + name_size(o, name, (size_t)(brace - name), &part) : name;
    ok = brace && end > name && end - name <= NK_TOOL_NAME_MAX &&
         is_known(o, name, (size_t)(end - name));
    if (ok && !nk__tool_mark_is_empty(mark)) {
        for (p = end, ok = false; p < brace && !ok; p++)
            ok = nk__tool_mark_match(p, (size_t)(brace + 1 - p), mark, &used) == NK_TOOL_MATCH_YES;
    } else if (ok)
        for (p = end; p < brace && ok; p++)
            ok = is_space(*p);
    if (!ok || nk__tool_call_named(&o->call, name, (size_t)(end - name), NULL)) {
        *rc = no_call(o, err);
        return true;
    }
    *rc = keep(o, (size_t)(brace - s), err);
    o->state = IN_CALL;
    return true;
}

/* FIELDS, LITERAL: the name, up to the mark after it, or to what begins an argument. */
static bool step_name(nk_output *o, bool final, int *rc, struct nk_error *err)
{
    const struct nk_tool_form *f = o->opts.tools;
    const char *s = front(o);
    size_t from = 0, to, at, used = 0;
    bool bare = nk__tool_mark_is_empty(f->name_close), part;
    enum nk_tool_match m, also = NK_TOOL_MATCH_NO;

    if (f->body == NK_TOOL_NAMED)
        return step_named(o, final, rc, err);
    while (from < left(o) && is_space(s[from]))
        from++;
    to = from + name_size(o, s + from, left(o) - from, &part);
    for (at = to; at < left(o) && is_space(s[at]);)
        at++;
    m = nk__tool_mark_match(s + at, left(o) - at, bare ? f->key_open : f->name_close, &used);
    if (bare && m != NK_TOOL_MATCH_YES)
        also = nk__tool_mark_match(s + at, left(o) - at, f->call_close, &used);
    if (part)
        m = NK_TOOL_MATCH_PART;
    if (to - from > NK_TOOL_NAME_MAX || (to == from && at < left(o) && !part))
        m = also = NK_TOOL_MATCH_NO;
    else if (m == NK_TOOL_MATCH_PART || also == NK_TOOL_MATCH_PART) {
        if (!final)
            return false;
        *rc = keep(o, to, err); /* the name without the mark */
        o->n_used += left(o);
        if (!*rc)
            *rc = cut_off(o, err);
        return false;
    }
    if ((m != NK_TOOL_MATCH_YES && also != NK_TOOL_MATCH_YES) ||
        !is_known(o, s + from, to - from)) {
        *rc = no_call(o, err);
        return true;
    }
    *rc = announce(o, s + from, to - from, err);
    o->n_used += bare ? to : at + used;
    o->n_fields = 0;
    o->state = IN_FIELDS;
    return true;
}

static bool end_of_call(nk_output *o)
{
    o->n_section++;
    o->ended = o->opts.one_call;
    o->state = AFTER_CALL;
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
            o->in_section = false;
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
            o->n_marks = 0;
            o->n_calls++;
        }
        if (s == NK_TOOL_CALL_DONE)
            return end_of_call(o);
    }
    *rc = nk__tool_call_flush(&o->call, err);
    if (final && !*rc && !o->call.announced)
        *rc = cut_off(o, err);
    return false;
}

/* ---- arguments between marks ---- */

static int give_arguments(nk_output *o, struct nk_buf *text, struct nk_error *err)
{
    int rc = o->opts.sink(o->opts.user, NK_OUTPUT_ARGUMENTS, nk_buf_str(text), text->size, err);

    nk_buf_release(text);
    return rc;
}

/* The comma and the key before a value. */
static int add_key(nk_output *o, const char *key, size_t n, bool closed, struct nk_buf *out,
                   struct nk_error *err)
{
    int rc = nk_buf_adds(out, o->n_fields ? ", " : "{", err);

    if (!rc)
        rc = nk__tool_value_string(key, n, closed, out, err);
    return rc || !closed ? rc : nk_buf_adds(out, ": ", err);
}

static bool end_fields(nk_output *o, int *rc, struct nk_error *err)
{
    const char *end = o->n_fields ? "}" : "{}";

    *rc = o->opts.sink(o->opts.user, NK_OUTPUT_ARGUMENTS, end, strlen(end), err);
    return end_of_call(o);
}

static bool step_fields(nk_output *o, bool final, int *rc, struct nk_error *err)
{
    const struct nk_tool_form *f = o->opts.tools;
    size_t used = 0;
    enum nk_tool_match key, end;

    skip_space(o);
    if (f->body == NK_TOOL_LITERAL && left(o) && *front(o) == ',') {
        o->n_used++;
        return true;
    }
    if (!left(o))
        return false;
    end = in_front(o, f->call_close, &used);
    if (end == NK_TOOL_MATCH_NO)
        end = in_front(o, f->section_close, &used);
    if (end == NK_TOOL_MATCH_YES)
        return end_fields(o, rc, err);
    key = f->body == NK_TOOL_LITERAL ? NK_TOOL_MATCH_YES : in_front(o, f->key_open, &used);
    if (end == NK_TOOL_MATCH_PART || key == NK_TOOL_MATCH_PART) {
        if (final)
            o->n_used += left(o);
        return false;
    }
    if (f->body == NK_TOOL_LITERAL &&
        (*front(o) == ')' || *front(o) == '}' || *front(o) == ']')) /* not the end it should have */
        return end_fields(o, rc, err);
    if (key == NK_TOOL_MATCH_NO)
        return end_fields(o, rc, err); /* what follows is content */
    o->n_used += f->body == NK_TOOL_LITERAL ? 0 : used;
    o->state = IN_KEY;
    return true;
}

static bool step_key(nk_output *o, bool final, int *rc, struct nk_error *err)
{
    const struct nk_tool_form *f = o->opts.tools;
    const char *s = front(o);
    struct nk_buf out = NK_BUF_INIT(KEY_BYTES_MAX * 8);
    size_t n = left(o), used = 0, from = 0, to;

    for (size_t i = 0; i < n && i < KEY_BYTES_MAX; i++) {
        enum nk_tool_match text = nk__tool_mark_match(s + i, n - i, f->value_open_text, &used),
                           other;

        o->is_text = text == NK_TOOL_MATCH_YES && strcmp(f->value_open_text, f->value_open) != 0;
        other = text == NK_TOOL_MATCH_YES ? NK_TOOL_MATCH_NO
                                          : nk__tool_mark_match(s + i, n - i, f->value_open, &used);
        if (text == NK_TOOL_MATCH_YES || other == NK_TOOL_MATCH_YES) {
            for (to = i; to && is_space(s[to - 1]);)
                to--;
            while (from < to && is_space(s[from]))
                from++;
            /* A literal's key may be quoted. */
            if (f->body == NK_TOOL_LITERAL && to - from > 1 && strchr("\"'", s[from]) &&
                s[to - 1] == s[from])
                from++, to--;
            nk_buf_reset(&o->key);
            *rc = nk_buf_add(&o->key, s + from, to - from, err);
            o->n_used += i + used;
            o->n_looked = 0;
            o->scan = (struct nk_tool_scan){ .at = 0 };
            o->state = IN_VALUE;
            return true;
        }
        if (text == NK_TOOL_MATCH_PART || other == NK_TOOL_MATCH_PART) {
            n = i;
            break;
        }
    }
    if (!final && left(o) < KEY_BYTES_MAX)
        return false;
    if (final) { /* cut off: so much of the key is there */
        *rc = add_key(o, s, n, false, &out, err);
        if (!*rc)
            *rc = give_arguments(o, &out, err);
        o->n_used += left(o);
        nk_buf_release(&out);
        return false;
    }
    return end_fields(o, rc, err); /* it is no key: what follows is content */
}

/* A value whose end is at n bytes; closed: the end was there. */
static int give_value(nk_output *o, size_t n, bool closed, struct nk_error *err)
{
    const struct nk_tool_form *f = o->opts.tools;
    struct nk_buf out = NK_BUF_INIT(PEND_BYTES_MAX);
    const char *s = front(o), *type;
    const char *open = o->is_text ? f->value_open_text : f->value_open;
    int rc = add_key(o, nk_buf_str(&o->key), o->key.size, true, &out, err);

    type = json_string_value(
        json_object_get(json_object_get(o->opts.tool_types, o->call.name), nk_buf_str(&o->key)));
    if (o->is_text)
        type = "string";
    if (f->body == NK_TOOL_FIELDS && !f->quote[0]) {
        /* The layout's own line ends are no part of the text. */
        if (n && *s == '\n' && open[0] && open[strlen(open) - 1] == '\n')
            s++, n--;
        if (closed && n && s[n - 1] == '\n' && f->value_close[0] == '\n')
            n--;
        if (!rc && closed)
            rc = nk__tool_value_bare(s, n, type, &out, err);
        else if (!rc && type)
            rc = nk__tool_value_string(s, n, false, &out, err);
        else if (!rc)
            rc = nk_buf_add(&out, s, n, err);
    } else if (!rc && closed)
        rc = nk__tool_value_literal(s, n, f->quote, &out, err);
    else if (!rc)
        rc = nk_buf_add(&out, s, n, err);
    o->n_fields++;
    if (!rc)
        rc = give_arguments(o, &out, err);
    nk_buf_release(&out);
    return rc;
}

static bool step_value(nk_output *o, bool final, int *rc, struct nk_error *err)
{
    const struct nk_tool_form *f = o->opts.tools;
    const char *s = front(o);
    size_t n = left(o), used = 0, i = o->n_looked;
    bool literal = f->body == NK_TOOL_LITERAL, found = false, part = false;

    if (literal) {
        found = nk__tool_value_scan(&o->scan, s, n, f->quote, final);
        i = o->scan.at;
    }
    for (; !literal && i < n && !found && !part; i += !found && !part) {
        enum nk_tool_match m = is_space(s[i])
                                   ? NK_TOOL_MATCH_NO
                                   : nk__tool_mark_match(s + i, n - i, f->value_close, &used);

        found = m == NK_TOOL_MATCH_YES;
        part = m == NK_TOOL_MATCH_PART;
    }
    o->n_looked = i;
    if (!found && !final)
        return false;
    *rc = give_value(o, found || part ? i : n, found, err);
    o->n_used += found ? i + used : n;
    o->state = IN_FIELDS;
    return found;
}

static bool step_after(nk_output *o, bool final, int *rc, struct nk_error *err)
{
    const struct nk_tool_form *f = o->opts.tools;
    const char *closes[] = { f->call_close, o->in_section ? "" : f->section_close,
                             o->in_section ? "" : f->call_sep,
                             nk__tool_form_is_weak(f) ? ";" : "" };
    bool part = false;

    (void)rc, (void)err;
    skip_space(o);
    for (size_t i = 0; i < sizeof closes / sizeof closes[0] && left(o); i++) {
        size_t used = 0;
        enum nk_tool_match m = in_front(o, closes[i], &used);

        if (m == NK_TOOL_MATCH_YES) {
            o->n_used += used;
            return true;
        }
        part = part || m == NK_TOOL_MATCH_PART;
    }
    if ((!left(o) || part) && !final)
        return false;
    if (part && left(o) >= CUT_MARK_BYTES)
        o->n_used += left(o); /* half a mark */
    nk_buf_reset(&o->raw);
    o->n_marks = 0;
    if (o->in_section) {
        o->state = BEFORE_CALL;
        return left(o) > 0;
    }
    o->state = IN_TEXT;
    o->trim = true;
    if (nk__tool_form_is_weak(f) && left(o) && begins_body(o, *front(o)))
        begin_call(o);
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
        case BEFORE_CALL:
            more = step_before(o, final, &rc, err);
            break;
        case IN_NAME:
            more = step_name(o, final, &rc, err);
            break;
        case IN_CALL:
            more = step_call(o, final, &rc, err);
            break;
        case IN_FIELDS:
            more = step_fields(o, final, &rc, err);
            break;
        case IN_KEY:
            more = step_key(o, final, &rc, err);
            break;
        case IN_VALUE:
            more = step_value(o, final, &rc, err);
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

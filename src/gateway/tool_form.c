/* A template is asked what it writes for two calls of two arguments each:
 *
 *     user  A  call one  B  call two  C  end of turn
 *
 * The end of A that is the end of B too opens every call; what A has more opens the section. The
 * beginning of B that is the beginning of C closes every call; what C has more, less the end of
 * turn that a plain answer has too, closes the section. A common part may only be cut where a mark
 * can begin or end: "_calls>\n<call>" and "</call>\n<call>" have more in common than a mark.
 *
 * In a call, the same is done with what stands around keys and values. */
#include "gateway/tool_form.h"

#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/output.h"

enum { RENDERED_BYTES_MAX = 1 << 20 };

#define NAME1 "nkfalpha"
#define NAME2 "nkfbeta"
#define KEY1  "nkkone"
#define KEY2  "nkktwo"
#define ID1   "nkid00001" /* nine letters and digits: Mistral's templates count them */
#define ID2   "nkid00002"
#define USER  "nkuser"
#define SAID  "nkcontent"
#define NEXT  "nknext"

/* ---- marks ---- */

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

bool nk__tool_mark_is_empty(const char *mark)
{
    while (is_space(*mark))
        mark++;
    return !*mark;
}

enum nk_tool_match nk__tool_mark_match(const char *s, size_t n, const char *mark, size_t *used)
{
    size_t i = 0;
    bool begun = false;

    while (is_space(*mark))
        mark++;
    if (!*mark)
        return NK_TOOL_MATCH_NO;
    for (;;) {
        const char *next = mark;

        while (is_space(*next))
            next++;
        if (!*next) {
            *used = i;
            return NK_TOOL_MATCH_YES;
        }
        if (next != mark || (begun && strchr("[{(<", *mark)))
            while (i < n && is_space(s[i]))
                i++;
        mark = next;
        if (i == n)
            return NK_TOOL_MATCH_PART;
        if (*mark == NK_TOOL_MARK_NUMBER || *mark == NK_TOOL_MARK_ID) {
            size_t from = i;

            while (i < n && (*mark == NK_TOOL_MARK_NUMBER ? isdigit((unsigned char)s[i])
                                                          : isalnum((unsigned char)s[i])))
                i++;
            if (i == n)
                return NK_TOOL_MATCH_PART;
            if (i == from)
                return NK_TOOL_MATCH_NO;
        } else if (s[i] == *mark)
            i++;
        else
            return NK_TOOL_MATCH_NO;
        mark++;
        begun = true;
    }
}

static bool has_word(const char *mark)
{
    for (; *mark; mark++)
        if (isalnum((unsigned char)*mark))
            return true;
    return false;
}

bool nk__tool_form_is_weak(const struct nk_tool_form *f)
{
    return !has_word(nk__tool_mark_is_empty(f->section_open) ? f->call_open : f->section_open);
}

/* ---- the table of what cannot be learned ---- */

static const struct nk_tool_form generic = {
    .body = NK_TOOL_JSON,
    .call_open = "<tool_call>\n",
    .call_close = "\n</tool_call>",
    .call_sep = "\n",
    .object_open = "{\"name\": \"",
    .name_close = "\", \"arguments\": ",
    .object_close = "}",
    .name_key = "name",
    .args_key = "arguments",
};

static const struct {
    const char *words[2]; /* both are in the template's text */
    struct nk_tool_form form;
    bool misleads; /* what the template shows is not what the model writes: not to be learned */
} table[] = {
    /* gpt-oss: the template writes calls of the past as " to=functions.N<|channel|>commentary
     * json<|message|>", the model writes the channel first, and ends a call with a token of its
     * own. */
    { { "<|channel|>commentary", "functions." },
      { .body = NK_TOOL_NAMED,
        .call_open = "<|channel|>commentary to=functions.",
        .alt_open = "to=functions.",
        .name_close = " <|constrain|>json<|message|>",
        .call_close = "<|call|>",
        .single = true },
      true },
    /* Kimi-K2: the function's name is only in the call's id, which the template writes as it came;
     * its first template wrote no calls at all. */
    { { "<|im_middle|>", "<|im_system|>" },
      { .body = NK_TOOL_NAMED,
        .section_open = "<|tool_calls_section_begin|>",
        .section_close = "<|tool_calls_section_end|>",
        .call_open = "<|tool_call_begin|>functions.",
        .call_close = "<|tool_call_end|>",
        .name_close = ":\2<|tool_call_argument_begin|>",
        .named_ids = true },
      false },
    /* Granite 3: the template tells the model to write this, and drops calls of the past. */
    { { "<|start_of_role|>", "<|tool_call|>" },
      { .body = NK_TOOL_JSON,
        .section_open = "<|tool_call|>[",
        .section_close = "]",
        .call_sep = ", ",
        .object_open = "{\"name\": \"",
        .name_close = "\", \"arguments\": ",
        .object_close = "}",
        .name_key = "name",
        .args_key = "arguments" },
      false },
};

const struct nk_tool_form *nk__tool_form_generic(void)
{
    return &generic;
}

static bool look_up(struct nk_tool_form *out, const char *text, bool misleads)
{
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (table[i].misleads == misleads && strstr(text, table[i].words[0]) &&
            strstr(text, table[i].words[1])) {
            *out = table[i].form;
            return true;
        }
    return false;
}

/* ---- pieces of text ---- */

struct span {
    const char *at;
    size_t n;
};

static struct span between(const char *from, const char *to)
{
    return (struct span){ from, (size_t)(to - from) };
}

static const char *find(struct span in, const char *what)
{
    return in.n ? memmem(in.at, in.n, what, strlen(what)) : NULL;
}

static struct span after(struct span whole, const char *at)
{
    return between(at, whole.at + whole.n);
}

/* May a mark begin at s[i], or end before it? */
static bool may_begin(struct span s, size_t i)
{
    return i == 0 || i == s.n || is_space(s.at[i]) || strchr("<[{(", s.at[i]);
}

static bool may_end(struct span s, size_t i)
{
    return i == 0 || i == s.n || is_space(s.at[i - 1]) || strchr(">]})", s.at[i - 1]);
}

/* How many bytes at the end of a are at the end of b too, from where a mark may begin. */
static size_t common_end(struct span a, struct span b)
{
    size_t n = 0;

    while (n < a.n && n < b.n && a.at[a.n - 1 - n] == b.at[b.n - 1 - n])
        n++;
    while (n && n != a.n && n != b.n && !may_begin(a, a.n - n))
        n--;
    return n;
}

static size_t common_start(struct span a, struct span b)
{
    size_t n = 0;

    while (n < a.n && n < b.n && a.at[n] == b.at[n])
        n++;
    while (n && n != a.n && n != b.n && !may_end(a, n))
        n--;
    return n;
}

static struct span cut_end(struct span s, size_t n)
{
    return (struct span){ s.at, s.n - n };
}

static struct span cut_start(struct span s, size_t n)
{
    return (struct span){ s.at + n, s.n - n };
}

/* Marks of ids that vary are replaced. false: too long. */
static bool set_mark(nk_tool_mark out, struct span s)
{
    size_t n = 0;

    for (size_t i = 0; i < s.n; i++) {
        bool id = s.n - i >= strlen(ID1) &&
                  (!memcmp(s.at + i, ID1, strlen(ID1)) || !memcmp(s.at + i, ID2, strlen(ID2)));

        if (n + 1 >= NK_TOOL_MARK_BYTES || (unsigned char)s.at[i] < 4)
            return false;
        out[n++] = id ? NK_TOOL_MARK_ID : s.at[i];
        if (id)
            i += strlen(ID1) - 1;
    }
    out[n] = '\0';
    return true;
}

/* ---- asking the template ---- */

struct learner {
    nk_tool_form_render *render;
    void *user;
    const char *think_close;
    bool followed;       /* by one more message of the user's */
    struct nk_error err; /* of the last render that failed */
    char *texts[8];      /* what was rendered, until the end */
    int n_texts;
};

/* A call with two arguments, or with value alone. */
static json_t *call(const char *name, const char *id, json_t *arguments)
{
    char *text = json_dumps(arguments, JSON_COMPACT);
    json_t *c = json_pack("{s:s, s:s, s:{s:s, s:s}}", "id", id, "type", "function", "function",
                          "name", name, "arguments", text ? text : "{}");

    free(text);
    json_decref(arguments);
    return c;
}

static json_t *pair(const char *one, const char *two)
{
    return json_pack("{s:s, s:s}", KEY1, one, KEY2, two);
}

/* Renders user, and an assistant's message with what is not NULL (takes calls). The text from the
 * user's on; {NULL}: the template refuses it. */
static struct span ask(struct learner *l, const char *content, json_t *calls, bool with_tools,
                       bool add_generation_prompt)
{
    static const char tools[] =
        "[{\"type\":\"function\",\"function\":{\"name\":\"" NAME1 "\",\"description\":\"x\","
        "\"parameters\":{\"type\":\"object\",\"properties\":{\"" KEY1
        "\":{\"type\":\"string\",\"description\":\"x\"},\"" KEY2
        "\":{\"type\":\"string\",\"description\":\"x\"}},\"required\":[\"" KEY1 "\"]}}}]";
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", USER), *m;
    struct nk_buf out = NK_BUF_INIT(RENDERED_BYTES_MAX);
    struct span text = { NULL, 0 };
    char *s;

    if (content || calls) {
        m = json_pack("{s:s, s:s}", "role", "assistant", "content", content ? content : "");
        if (calls)
            json_object_set_new(m, "tool_calls", calls);
        json_array_append_new(messages, m);
        if (l->followed)
            json_array_append_new(messages,
                                  json_pack("{s:s, s:s}", "role", "user", "content", NEXT));
    }
    s = json_dumps(messages, JSON_COMPACT);
    json_decref(messages);
    if (s && l->n_texts < (int)(sizeof l->texts / sizeof l->texts[0]) &&
        !l->render(l->user, s, with_tools ? tools : NULL, add_generation_prompt, &out, &l->err)) {
        char *whole = nk_buf_take(&out, NULL), *from = whole ? strstr(whole, USER) : NULL;

        l->texts[l->n_texts++] = whole;
        if (from)
            text = (struct span){ from, strlen(from) };
    }
    free(s);
    nk_buf_release(&out);
    return text;
}

static void forget(struct learner *l)
{
    while (l->n_texts)
        free(l->texts[--l->n_texts]);
}

/* ---- reading the answer ---- */

/* A call in the text. */
struct seen {
    enum nk_tool_body body;
    struct span whole;      /* JSON: the object; else from the name to the last value */
    struct span name, args; /* args: NAMED and JSON: their object */
    bool args_first, as_text;
    const char *key1, *value1, *key2, *value2;
    char name_key[NK_TOOL_KEY_BYTES], args_key[NK_TOOL_KEY_BYTES];
};

static bool same_arguments(const json_t *v, const json_t *want)
{
    json_t *parsed = json_is_string(v) ? json_loads(json_string_value(v), 0, NULL) : NULL;
    bool same = json_equal(parsed ? parsed : v, want);

    json_decref(parsed);
    return same;
}

/* The JSON object that begins at s, and how long it is. NULL: none. */
static json_t *object_at(struct span s, size_t *n)
{
    json_error_t e;
    json_t *v = json_loadb(s.at, s.n, JSON_DISABLE_EOF_CHECK, &e);

    if (v && !json_is_object(v)) {
        json_decref(v);
        v = NULL;
    }
    *n = v ? (size_t)e.position : 0;
    return v;
}

static bool see_json(struct seen *c, struct span text, const json_t *want)
{
    for (size_t i = 0; i < text.n && text.at + i < c->name.at; i++) {
        size_t n;
        json_t *v = text.at[i] == '{' ? object_at(cut_start(text, i), &n) : NULL, *member;
        const char *key;

        json_object_foreach(v, key, member)
        {
            char *to =
                json_is_string(member) && !strcmp(json_string_value(member), NAME1)   ? c->name_key
                : json_is_string(member) && !strcmp(json_string_value(member), NAME2) ? c->name_key
                : same_arguments(member, want)                                        ? c->args_key
                                                                                      : NULL;

            if (to && strlen(key) < NK_TOOL_KEY_BYTES)
                strcpy(to, key);
            if (to == c->args_key)
                c->as_text = json_is_string(member);
        }
        json_decref(v);
        if (c->name_key[0] && c->args_key[0] && c->name.at < text.at + i + n) {
            const char *at = memmem(text.at + i, n, c->args_key, strlen(c->args_key));
            const char *open = at ? memchr(at, '{', (size_t)(text.at + i + n - at)) : NULL;

            c->body = NK_TOOL_JSON;
            c->whole = (struct span){ text.at + i, n };
            c->args_first = open && open < c->name.at;
            if (open && !c->as_text) {
                json_decref(object_at(after(c->whole, open), &n));
                c->args = (struct span){ open, n };
            }
            return true;
        }
        c->name_key[0] = c->args_key[0] = '\0';
    }
    return false;
}

/* The first call of that name in the text. */
static bool see(struct seen *c, struct span text, const char *name, const char *one,
                const char *two)
{
    json_t *want = pair(one, two);
    struct span rest;
    const char *brace;
    bool ok;
    size_t n = 0;

    *c = (struct seen){ .name = { find(text, name), strlen(name) } };
    ok = want && c->name.at;
    if (ok && !see_json(c, text, want)) {
        rest = after(text, c->name.at + c->name.n);
        brace = find(rest, "{");
        if (brace) {
            json_t *v = object_at(after(rest, brace), &n);

            ok = v && json_equal(v, want);
            json_decref(v);
        } else
            ok = false;
        if (ok) {
            c->body = NK_TOOL_NAMED;
            c->args = (struct span){ brace, n };
            c->whole = between(c->name.at, brace + n);
        } else {
            c->body = NK_TOOL_FIELDS;
            c->key1 = find(rest, KEY1);
            c->value1 = c->key1 ? find(after(rest, c->key1), one) : NULL;
            c->key2 = c->value1 ? find(after(rest, c->value1), KEY2) : NULL;
            c->value2 = c->key2 ? find(after(rest, c->key2), two) : NULL;
            ok = c->value2 != NULL;
            if (ok)
                c->whole = between(c->name.at, c->value2 + strlen(two));
        }
    }
    json_decref(want);
    return ok;
}

/* Where the model's own text begins. */
static struct span own_text(struct learner *l, struct span text, struct span prompt)
{
    const char *said = find(text, SAID), *name = find(text, NAME1), *close;
    size_t n;

    if (said && (!name || said < name))
        return after(text, said + strlen(SAID));
    for (n = 0; n < text.n && n < prompt.n && text.at[n] == prompt.at[n];)
        n++;
    while (n && !(strchr("<[{", text.at[n]) && text.at[n]) && !is_space(text.at[n - 1]) &&
           !strchr(">]", text.at[n - 1]))
        n--;
    text = cut_start(text, n);
    close = l->think_close ? find(text, l->think_close) : NULL;
    if (close && (!name || close < name))
        text = after(text, close + strlen(l->think_close));
    return text;
}

static struct span trim_start(struct span s)
{
    while (s.n && is_space(*s.at))
        s = cut_start(s, 1);
    return s;
}

/* The marks around keys and values. b: what follows the last value, up to the next call's mark. */
static bool learn_fields(struct learner *l, struct nk_tool_form *f, const struct seen *c,
                         struct span *b, bool with_tools)
{
    struct span d0 = between(c->name.at + c->name.n, c->key1),
                d1 = between(c->key1 + strlen(KEY1), c->value1),
                d2 = between(c->value1 + strlen("nkvone"), c->key2), text, other = { NULL, 0 };
    json_t *number = json_pack("[o]", call(NAME1, ID1, json_pack("{s:i}", KEY1, 7351902)));
    const char *key, *value;
    size_t n = common_end(d0, d2), quote;

    text = ask(l, NULL, number, with_tools, false);
    key = find(text, NAME1);
    key = key ? find(after(text, key), KEY1) : NULL;
    value = key ? find(after(text, key), "7351902") : NULL;
    if (value)
        other = between(key + strlen(KEY1), value);
    /* What a string has before its value and a number has not is a quote, if it follows, too. */
    quote = value && d1.n > other.n && !memcmp(d1.at, other.at, other.n) ? d1.n - other.n : 0;
    if (quote && (d2.n < quote || memcmp(d2.at, d1.at + other.n, quote)))
        quote = 0;
    if (quote) {
        if (!set_mark(f->quote, cut_start(d1, other.n)))
            return false;
        d1 = other;
        d2 = cut_start(d2, quote);
        *b = cut_start(*b, quote < b->n ? quote : b->n);
        n = n < d2.n ? n : d2.n;
    }
    if (!set_mark(f->value_open_text, d1) || !set_mark(f->value_open, value ? other : d1))
        return false;
    if (nk__tool_mark_is_empty(f->value_open))
        return false;
    if (!trim_start(cut_start(d0, d0.n - n)).n) { /* nothing stands before a key */
        f->body = NK_TOOL_LITERAL;
        return set_mark(f->name_close, d0) && set_mark(f->field_sep, d2) && b->n > 0;
    }
    if (!set_mark(f->key_open, cut_start(d0, d0.n - n)) || !set_mark(f->name_close, cut_end(d0, n)))
        return false;
    d2 = cut_end(d2, n);
    n = common_start(d2, *b);
    if (!set_mark(f->value_close, cut_end(d2, d2.n - n)) ||
        !set_mark(f->field_sep, cut_start(d2, n)) || nk__tool_mark_is_empty(f->value_close))
        return false;
    *b = cut_start(*b, n);
    return true;
}

/* ---- checking ---- */

struct check {
    struct nk_buf text; /* name(arguments)name(arguments) */
    bool other;         /* content or reasoning came */
};

static int note(void *user, enum nk_output_kind kind, const char *text, size_t size,
                struct nk_error *err)
{
    struct check *c = user;

    if (kind == NK_OUTPUT_TOOL)
        return nk_buf_addf(&c->text, err, "%s%.*s ", c->text.size ? "\n" : "", (int)size, text);
    if (kind == NK_OUTPUT_ARGUMENTS)
        return nk_buf_add(&c->text, text, size, err);
    c->other = true;
    return 0;
}

static bool is_call(char **at, const char *name, json_t *want)
{
    char *end = strchr(*at, '\n');
    size_t n = strlen(name);
    json_t *v;
    bool ok;

    if (end)
        *end = '\0';
    v = strncmp(*at, name, n) ? NULL : json_loads(*at + n, 0, NULL);
    ok = v && json_equal(v, want);
    *at = end ? end + 1 : strchr(*at, '\0');
    json_decref(v);
    json_decref(want);
    return ok;
}

static bool reads_back(const struct nk_tool_form *f, struct span text)
{
    static const char *const names[] = { NAME1, NAME2 };
    struct check c = { .text = NK_BUF_INIT(1 << 16) };
    nk_output *o = nk__output_new(&(struct nk_output_opts){
        .tools = f, .tool_names = names, .n_tool_names = 2, .sink = note, .user = &c });
    bool ok = o && !nk__output_feed(o, text.at, text.n, NULL) && !nk__output_finish(o, NULL);
    char *calls = nk_buf_take(&c.text, NULL), *at = calls;

    ok = ok && calls && !c.other && is_call(&at, NAME1 " ", pair("nkvone", "nkvtwo"));
    if (ok && !f->single)
        ok = is_call(&at, NAME2 " ", pair("nkvthree", "nkvfour"));
    nk__output_free(o);
    free(calls);
    nk_buf_release(&c.text);
    return ok;
}

/* ---- the whole ---- */

static json_t *two_calls(void)
{
    return json_pack("[o, o]", call(NAME1, ID1, pair("nkvone", "nkvtwo")),
                     call(NAME2, ID2, pair("nkvthree", "nkvfour")));
}

static json_t *one_call(void)
{
    return json_pack("[o]", call(NAME1, ID1, pair("nkvone", "nkvtwo")));
}

/* NULL: learned; else what is missing. */
static const char *learn(struct learner *l, struct nk_tool_form *f, bool with_tools)
{
    struct span said = ask(l, SAID, NULL, with_tools, false),
                prompt = ask(l, NULL, NULL, with_tools, true), text, a, b, c, own;
    struct seen one, two = { .name = { NULL, 0 } };
    const char *end = find(said, SAID);
    size_t n;

    text = ask(l, SAID, two_calls(), with_tools, false);
    /* Llama 3 refuses a second call, GigaChat leaves it out. */
    f->single = !find(text, NAME2);
    if (f->single)
        text = ask(l, SAID, one_call(), with_tools, false);
    /* gemma 4: content comes after the calls, and would be taken for a mark. */
    if (find(text, NAME1) && find(text, SAID) > find(text, NAME1))
        text = ask(l, NULL, f->single ? one_call() : two_calls(), with_tools, false);
    if (!text.at)
        return "it does not render an assistant's message with a call";
    own = own_text(l, text, prompt);
    if (!see(&one, own, NAME1, "nkvone", "nkvtwo"))
        return find(text, NAME1) ? "the call's arguments are not in what it renders"
                                 : "the call is not in what it renders";
    if (!f->single &&
        !see(&two, after(own, one.whole.at + one.whole.n), NAME2, "nkvthree", "nkvfour"))
        return "the second call is not in what it renders";
    c = after(own, (f->single ? one : two).whole.at + (f->single ? one : two).whole.n);
    if (end) {
        struct span tail = after(said, end + strlen(SAID));

        n = common_end(c, tail);
        while (n && n != tail.n && !may_begin(tail, tail.n - n))
            n--;
        c = cut_end(c, n);
    }
    a = trim_start(between(own.at, one.whole.at));
    own = between(own.at, c.at + c.n);
    b = f->single ? c : between(one.whole.at + one.whole.n, two.whole.at);
    f->body = one.body;
    n = f->single ? a.n : common_end(a, b);
    if (!set_mark(f->call_open, cut_start(a, a.n - n)) || !set_mark(f->section_open, cut_end(a, n)))
        return "the marks before a call are too long";
    if (!f->single)
        b = cut_end(b, n);
    n = f->single ? 0 : common_start(b, c);
    if (f->single) {
        c = (struct span){ c.at + c.n, 0 };
    } else {
        c = cut_start(c, n);
        if (!set_mark(f->call_sep, cut_start(b, n)))
            return "the marks between calls are too long";
        b = cut_end(b, b.n - n);
    }
    if (one.body == NK_TOOL_FIELDS && !learn_fields(l, f, &one, &b, with_tools))
        return "what stands around keys and values is not to be told apart";
    if (find(c, NEXT) || find(b, NEXT))
        return "what ends a call is not to be told from what ends the turn";
    if (!set_mark(f->call_close, b) || !set_mark(f->section_close, c))
        return "the marks after a call are too long";
    if (one.body == NK_TOOL_JSON) {
        strcpy(f->name_key, one.name_key);
        strcpy(f->args_key, one.args_key);
        if (one.args_first || !one.args.at) {
            snprintf(f->object_open, sizeof f->object_open, "{\"%s\": \"", f->name_key);
            snprintf(f->name_close, sizeof f->name_close, "\", \"%s\": ", f->args_key);
            strcpy(f->object_close, "}");
        } else if (!set_mark(f->object_open, between(one.whole.at, one.name.at)) ||
                   !set_mark(f->name_close, between(one.name.at + one.name.n, one.args.at)) ||
                   !set_mark(f->object_close,
                             between(one.args.at + one.args.n, one.whole.at + one.whole.n)))
            return "the call's object has too much in it";
    }
    if (one.body == NK_TOOL_NAMED &&
        !set_mark(f->name_close, between(one.name.at + one.name.n, one.args.at)))
        return "the mark after the name is too long";
    if (f->body == NK_TOOL_LITERAL && nk__tool_mark_is_empty(f->call_close))
        return "nothing ends a call";
    return reads_back(f, own) ? NULL
                              : "what it renders does not read back as the calls it was given";
}

/* How many bytes the marks around calls have. */
static size_t marks_size(const struct nk_tool_form *f)
{
    return strlen(f->section_open) + strlen(f->section_close) + strlen(f->call_open) +
           strlen(f->call_close);
}

int nk__tool_form_learn(struct nk_tool_form *out, nk_tool_form_render *render, void *user,
                        const char *text, const char *think_close, struct nk_error *err)
{
    struct learner l = { .render = render, .user = user, .think_close = think_close };
    const char *first = NULL;
    bool found = false;

    if (look_up(out, text, true))
        return 0;
    /* Some templates write their last message otherwise (Nemotron Nano v2 begins its turn once
     * more), some show calls only to who has tools. The least that surrounds a call is its form. */
    for (int i = 0; i < 4 && (i < 2 || !found); i++) {
        struct nk_tool_form f = { .body = NK_TOOL_JSON };
        const char *why;

        l.followed = i % 2;
        why = learn(&l, &f, i / 2);
        forget(&l);
        first = first ? first : why;
        if (!why && (!found || marks_size(&f) < marks_size(out))) {
            *out = f;
            found = true;
        }
    }
    if (!found && look_up(out, text, false))
        return 0;
    if (!found)
        return nk_fail(err, NK_E_INVALID, "unknown_form", "%s", first);
    if (strstr(text, "<|python_tag|>"))
        strcpy(out->alt_open, "<|python_tag|>"); /* the model writes it, the template does not */
    return 0;
}

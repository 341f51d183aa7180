#include "base/json_writer.h"

#include "base/json.h"

static void add(struct nk_json_writer *w, const char *text, size_t size)
{
    if (!w->rc)
        w->rc = nk_buf_add(w->b, text, size, w->err);
}

/* What stands before a value; one follows it from now on. */
static void before(struct nk_json_writer *w, const char *key)
{
    if (w->comma)
        add(w, ",", 1);
    if (key && !w->rc)
        w->rc = nk_buf_addf(w->b, w->err, "\"%s\":", key);
    w->comma = true;
}

void nk_json_begin(struct nk_json_writer *w, const char *key, char bracket)
{
    before(w, key);
    add(w, &bracket, 1);
    w->comma = false;
}

void nk_json_end(struct nk_json_writer *w, char bracket)
{
    add(w, &bracket, 1);
    w->comma = true;
}

void nk_json_put_str(struct nk_json_writer *w, const char *key, const char *text)
{
    before(w, key);
    if (!w->rc)
        w->rc = nk_json_str(w->b, text, w->err);
}

void nk_json_put_strn(struct nk_json_writer *w, const char *key, const char *text, size_t size)
{
    before(w, key);
    if (!w->rc)
        w->rc = nk_json_strn(w->b, text, size, w->err);
}

void nk_json_put_int(struct nk_json_writer *w, const char *key, int64_t number)
{
    before(w, key);
    if (!w->rc)
        w->rc = nk_buf_addf(w->b, w->err, "%lld", (long long)number);
}

void nk_json_put_num(struct nk_json_writer *w, const char *key, double number)
{
    before(w, key);
    if (!w->rc)
        w->rc = nk_json_num(w->b, number, w->err);
}

void nk_json_put_bool(struct nk_json_writer *w, const char *key, bool value)
{
    nk_json_put_raw(w, key, value ? "true" : "false");
}

void nk_json_put_null(struct nk_json_writer *w, const char *key)
{
    nk_json_put_raw(w, key, "null");
}

void nk_json_put_raw(struct nk_json_writer *w, const char *key, const char *json)
{
    if (!key && !json[0])
        return;
    before(w, key);
    if (!w->rc)
        w->rc = nk_buf_adds(w->b, json, w->err);
}

/* What the files that answer routes at once share: routes.c, on top, knows the table; these
 * (routes_models.c, routes_llama.c, routes_responses.c, cluster_json.c, metrics_live.c) write the
 * answers. */
#ifndef NK_GATEWAY_ROUTES_INT_H
#define NK_GATEWAY_ROUTES_INT_H

#include "base/json.h"
#include "gateway/routes.h"

/* Is it ready? Else *err says why not; code 0: that is not known yet. */
bool nk__routes_ready(nk_gateway *g, const struct nk_snapshot *s, struct nk_error *err);
/* One whole model: a chain whose workers are there, or any; NULL: there is none. */
const struct nk_chain_report *nk__routes_report(const struct nk_snapshot *s);
/* What is known of the workers and of the gateway at this moment, as Prometheus has it. */
int nk__metrics_live_write(nk_gateway *g, const struct nk_snapshot *s, struct nk_buf *out,
                           struct nk_error *err);

#define NK__ANSWER(name)                                                                           \
    void nk__answer_##name(nk_gateway *g, const char *rest, const struct nk_buf *request,          \
                           const struct nk_snapshot *s, struct nk_route_answer *a)
NK__ANSWER(models);
NK__ANSWER(tags);
NK__ANSWER(ps);
NK__ANSWER(version);
NK__ANSWER(show);
NK__ANSWER(props);
NK__ANSWER(slots);
NK__ANSWER(response);
NK__ANSWER(response_delete);
NK__ANSWER(response_cancel);

/* ---- small pieces of JSON ---- */

/* Out of memory is found once, at the end: the buffer then lacks its last bytes. */
struct out {
    struct nk_buf *b;
    int rc;
};

static inline void raw(struct out *o, const char *text)
{
    if (!o->rc)
        o->rc = nk_buf_adds(o->b, text, NULL);
}

static inline void key(struct out *o, const char *name)
{
    char last = o->b->size ? o->b->data[o->b->size - 1] : '{';

    raw(o, last == '{' || last == '[' ? "\"" : ",\"");
    raw(o, name);
    raw(o, "\":");
}

static inline void str(struct out *o, const char *name, const char *value)
{
    key(o, name);
    if (!o->rc)
        o->rc = nk_json_str(o->b, value, NULL);
}

static inline void num(struct out *o, const char *name, double value)
{
    key(o, name);
    if (!o->rc)
        o->rc = nk_json_num(o->b, value, NULL);
}

static inline void boolean(struct out *o, const char *name, bool value)
{
    key(o, name);
    raw(o, value ? "true" : "false");
}

static inline void null(struct out *o, const char *name)
{
    key(o, name);
    raw(o, "null");
}

static inline void error_member(struct out *o, const struct nk_error *err)
{
    key(o, "error");
    if (!err) {
        raw(o, "null");
        return;
    }
    raw(o, "{");
    str(o, "code", err->reason);
    str(o, "message", err->msg);
    raw(o, "}");
}

#endif

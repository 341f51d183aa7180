#include "cluster/coordinator_int.h"

#include <limits.h>
#include <stdlib.h>

#include "rpc/unary.h"

enum { TOKEN_TTL_S = 3600 };

/* recovery: the gateway's member is added; taken; NULL: there is none. */
static int state_text(nk_coordinator *c, json_t *recovery, struct nk_buf *out, struct nk_error *err)
{
    json_t *j = nk_fleet_json(c->fleet, nk_clock_now_ns(c->o.clock));
    char *text;
    int rc;

    if (j)
        json_object_set_new(j, "id", json_string(c->o.cluster));
    if (j && recovery)
        json_object_set(j, "recovery", recovery);
    json_decref(recovery);
    text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    rc =
        text ? nk_buf_adds(out, text, err) : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    free(text);
    json_decref(j);
    return rc;
}

int nk__coordinator_status_text(nk_coordinator *c, void *out, struct nk_error *err)
{
    return state_text(c, NULL, out, err);
}

static void status_handle(void *user, nk_call *call, struct nk_bytes msg)
{
    nk_coordinator *c = user;
    Nakshatra__V1__StatusReply reply = NAKSHATRA__V1__STATUS_REPLY__INIT;
    struct nk_buf text = NK_BUF_INIT(NK__STATUS_BYTES_MAX);
    struct nk_error err;

    (void)msg;
    if (state_text(c, c->o.recovery ? c->o.recovery(c->o.user) : NULL, &text, &err)) {
        nk_call_finish(call, &err);
    } else {
        reply.json = text.data;
        nk_unary_reply(call, &reply.base);
    }
    nk_buf_release(&text);
}

void nk_coordinator_status(nk_coordinator *c, nk_call *call)
{
    nk_unary_open(call, c->o.net, NK__REQUEST_MS, status_handle, c);
}

static void token_handle(void *user, nk_call *call, struct nk_bytes msg)
{
    nk_coordinator *c = user;
    Nakshatra__V1__TokenRequest *m = nakshatra__v1__token_request__unpack(NULL, msg.size, msg.data);
    Nakshatra__V1__TokenReply reply = NAKSHATRA__V1__TOKEN_REPLY__INIT;
    struct nk_error err;
    char token[256] = "";
    char *text = NULL;
    json_t *list;
    int rc = 0;

    if (!m) {
        rc = nk_fail(&err, NK_E_INVALID, "bad_message", "not a TokenRequest");
    } else if (!c->o.create_token) {
        rc = nk_fail(&err, NK_E_UNIMPLEMENTED, "no_tokens", "nobody can join this cluster");
    } else if (m->uses > INT_MAX) {
        rc = nk_fail(&err, NK_E_INVALID, "bad_argument", "a token for %u uses", m->uses);
    } else if (m->what == NAKSHATRA__V1__TOKEN_REQUEST__WHAT__CREATE) {
        rc = c->o.create_token(c->o.user, m->uses ? (int)m->uses : 1,
                               m->ttl_s ? m->ttl_s : TOKEN_TTL_S, token, &err);
        reply.token = token;
    } else if (m->what == NAKSHATRA__V1__TOKEN_REQUEST__WHAT__LIST) {
        list = c->o.list_tokens(c->o.user);
        text = list ? json_dumps(list, JSON_COMPACT) : NULL;
        json_decref(list);
        if (!text)
            rc = nk_fail(&err, NK_E_EXHAUSTED, "no_memory", "no memory");
        reply.json = text;
    } else if (m->what == NAKSHATRA__V1__TOKEN_REQUEST__WHAT__REVOKE) {
        rc = c->o.revoke_token(c->o.user, m->id, &err);
    } else {
        rc = nk_fail(&err, NK_E_INVALID, "bad_message", "TokenRequest.what is %d", (int)m->what);
    }
    if (rc)
        nk_call_finish(call, &err);
    else
        nk_unary_reply(call, &reply.base);
    free(text);
    if (m)
        nakshatra__v1__token_request__free_unpacked(m, NULL);
}

void nk_coordinator_token(nk_coordinator *c, nk_call *call)
{
    nk_unary_open(call, c->o.net, NK__REQUEST_MS, token_handle, c);
}

static void remove_handle(void *user, nk_call *call, struct nk_bytes msg)
{
    nk_coordinator *c = user;
    Nakshatra__V1__RemoveRequest *m =
        nakshatra__v1__remove_request__unpack(NULL, msg.size, msg.data);
    Nakshatra__V1__RemoveReply reply = NAKSHATRA__V1__REMOVE_REPLY__INIT;
    char id[NK_MEMBER_ID_SIZE];
    struct nk_error err, why;
    struct nk__attendee *a;
    int rc;

    if (!m) {
        nk_fail(&err, NK_E_INVALID, "bad_message", "not a RemoveRequest");
        nk_call_finish(call, &err);
        return;
    }
    rc = nk_fleet_remove(c->fleet, m->member, id, nk_clock_now_ns(c->o.clock), &err);
    if (!rc) {
        a = nk__coordinator_attendee_of(c, id);
        if (a) {
            nk_fail(&why, NK_E_DENIED, "removed", "this machine was removed from the cluster");
            nk_call_finish(a->call, &why);
        }
        rc = nk__coordinator_publish_roster(c, &err);
        if (rc)
            nk_wrap(rc, &err,
                    "%.70s was removed, but this machine lets it in until its roster is "
                    "written, which is tried again",
                    m->member);
        nk__coordinator_step_soon(c);
    }
    if (rc)
        nk_call_finish(call, &err);
    else
        nk_unary_reply(call, &reply.base);
    nakshatra__v1__remove_request__free_unpacked(m, NULL);
}

void nk_coordinator_remove(nk_coordinator *c, nk_call *call)
{
    nk_unary_open(call, c->o.net, NK__REQUEST_MS, remove_handle, c);
}

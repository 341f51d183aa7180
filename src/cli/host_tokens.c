#include "cli/host_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The page's join line is made anew when less is left of it. */
enum { TOKEN_LEFT_S = 600 };

bool nk__host_is_wildcard(const char *address)
{
    return !strcmp(address, "0.0.0.0") || !strcmp(address, "::");
}

size_t nk__host_addresses(nk_host *h, struct nk_reach_address out[NK_TOKEN_ADDRESSES_MAX],
                          const char *list[NK_TOKEN_ADDRESSES_MAX])
{
    size_t n;

    pthread_mutex_lock(&h->mutex);
    n = h->n_addresses;
    memcpy(out, h->addresses, sizeof h->addresses);
    pthread_mutex_unlock(&h->mutex);
    for (size_t i = 0; i < n; i++)
        list[i] = out[i].text;
    return n;
}

static int make_token(nk_host *h, int uses, int64_t ttl_s, struct nk_token *t,
                      char text[NK_TOKEN_TEXT_SIZE], struct nk_error *err)
{
    struct nk_reach_address addresses[NK_TOKEN_ADDRESSES_MAX];
    const char *list[NK_TOKEN_ADDRESSES_MAX];
    struct nk_token_opts opts = { .cluster = nk_ca_cluster(h->ca),
                                  .ttl_s = ttl_s,
                                  .uses = uses,
                                  .port = nk_enrol_server_port(h->enrol),
                                  .n_addresses = (int)nk__host_addresses(h, addresses, list),
                                  .addresses = list };
    int rc;

    if (!opts.n_addresses)
        return nk_fail(err, NK_E_PRECONDITION, "no_addresses",
                       "this machine has no address under which another could reach it");
    rc = nk_token_create(h->store, nk_chance_system(), nk_clock_unix_s(nk_clock_system()), &opts, t,
                         err);
    return rc ? rc : nk_token_encode(t, text, err);
}

int nk__host_create_token(void *user, int uses, uint32_t ttl_s, char out[256], struct nk_error *err)
{
    struct nk_token t;
    char text[NK_TOKEN_TEXT_SIZE];
    int rc = make_token(user, uses, ttl_s, &t, text, err);

    if (!rc)
        snprintf(out, 256, "%s", text);
    return rc;
}

json_t *nk__host_list_tokens(void *user)
{
    nk_host *h = user;
    struct nk_token_record *list;
    struct nk_error err;
    json_t *j = json_array();
    size_t n;

    if (nk_token_list(h->store, &list, &n, &err))
        return j;
    for (size_t i = 0; i < n; i++)
        json_array_append_new(j, json_pack("{s:s,s:I,s:I,s:i,s:i,s:b}", "id", list[i].id,
                                           "created_s", (json_int_t)list[i].created_s, "expires_s",
                                           (json_int_t)list[i].expires_s, "uses", list[i].uses,
                                           "uses_left", list[i].uses_left, "revoked",
                                           (int)list[i].revoked));
    free(list);
    return j;
}

int nk__host_revoke_token(void *user, const char *id, struct nk_error *err)
{
    int rc = nk_token_revoke(((nk_host *)user)->store, id, err);

    return rc ? nk_wrap(rc, err, "%s", id) : 0;
}

int nk_host_token(nk_host *h, char text[NK_TOKEN_TEXT_SIZE], struct nk_error *err)
{
    struct nk_token t;
    int rc = make_token(h, 1, 0, &t, text, err);

    if (rc)
        return rc;
    pthread_mutex_lock(&h->mutex);
    snprintf(h->join_line, sizeof h->join_line, "nakshatra join %s", text);
    strcpy(h->join_id, t.id);
    h->join_expires_s = t.expires_s;
    pthread_mutex_unlock(&h->mutex);
    return 0;
}

void nk__host_refresh_token(nk_host *h)
{
    struct nk_token_record *list;
    char text[NK_TOKEN_TEXT_SIZE];
    struct nk_error err;
    bool good = false;
    size_t n;

    if (!h->n_addresses || nk_token_list(h->store, &list, &n, &err))
        return; /* only this thread changes them */
    for (size_t i = 0; i < n; i++)
        good |= !strcmp(list[i].id, h->join_id) && list[i].uses_left > 0 && !list[i].revoked &&
                list[i].expires_s - TOKEN_LEFT_S > nk_clock_unix_s(nk_clock_system());
    free(list);
    if (!good)
        (void)nk_host_token(h, text, &err);
}

int nk__host_join_line(void *user, struct nk_buf *out)
{
    nk_host *h = user;
    struct nk_error err;
    int rc;

    pthread_mutex_lock(&h->mutex);
    rc = nk_buf_adds(out, h->join_line, &err);
    pthread_mutex_unlock(&h->mutex);
    return rc;
}

/* Machines change their addresses: another network, a lease that ended. Members are told while they
 * are connected, so that they find this one later; and the page's join line has the new ones. */
void nk__host_look_at_addresses(nk_host *h)
{
    struct nk_reach_address now[NK_TOKEN_ADDRESSES_MAX];
    const char *list[NK_TOKEN_ADDRESSES_MAX];
    char sentence[640] = "this machine is reached at", text[NK_TOKEN_TEXT_SIZE];
    struct nk_error err;
    size_t n, length;

    if ((h->o.listen && !nk__host_is_wildcard(h->o.listen)) ||
        nk_reach_list(now, NK_TOKEN_ADDRESSES_MAX, &n, &err) ||
        nk_reach_same(now, n, h->addresses, h->n_addresses))
        return;
    pthread_mutex_lock(&h->mutex);
    memcpy(h->addresses, now, sizeof now);
    h->n_addresses = n;
    pthread_mutex_unlock(&h->mutex);
    n = nk__host_addresses(h, now, list);
    nk_coordinator_set_addresses(h->coordinator, list, (int)n);
    for (size_t i = 0; i < n && (length = strlen(sentence)) < sizeof sentence; i++)
        snprintf(sentence + length, sizeof sentence - length, " %s", list[i]);
    nk__host_event(h,
                   n ? sentence : "this machine has no address by which others could reach it now");
    if (!n || h->o.no_join)
        return;
    /* Those of addresses that come and go would take the places of people's own tokens. What was
     * printed at the start stays good. */
    if (nk_host_token(h, text, &err))
        return;
    if (h->moved_id[0])
        (void)nk_token_revoke(h->store, h->moved_id, &err);
    strcpy(h->moved_id, h->join_id);
}

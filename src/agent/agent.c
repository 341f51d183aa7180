#include "agent/agent_int.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/thread.h"
#include "cluster/enrol.h"

enum {
    UNSURE_PAUSE_S = 60, /* the enrolment endpoint is asked at most so often */
    SERVER_GRACE_MS = 1000,
    LEAVE_POLL_MS = 100,
};

void nk__agent_wake(nk_agent *a)
{
    if (write(a->wake[1], "", 1) < 0)
        return; /* it is full: somebody has woken it already */
}

void nk__agent_say(nk_agent *a, const char *fmt, ...)
{
    char text[512];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    a->o.say(a->o.user, text);
}

void nk__agent_fail(nk_agent *a, const struct nk_error *err)
{
    pthread_mutex_lock(&a->mutex);
    if (!a->rc) {
        a->err = *err;
        a->rc = err->code;
    }
    pthread_mutex_unlock(&a->mutex);
    nk__agent_wake(a);
}

/* ---- pieces for others ---- */

static void open_catalogue(nk_call *c, void *user)
{
    nk_pieces_service_catalogue(((nk_agent *)user)->pieces, c);
}

static void open_have(nk_call *c, void *user)
{
    nk_pieces_service_have(((nk_agent *)user)->pieces, c);
}

static void open_part(nk_call *c, void *user)
{
    nk_pieces_service_part(((nk_agent *)user)->pieces, c);
}

static void open_echo(nk_call *c, void *user)
{
    nk_link_echo(c, ((nk_agent *)user)->net);
}

static void open_flow(nk_call *c, void *user)
{
    nk_link_flow(c, ((nk_agent *)user)->net, &((nk_agent *)user)->flows);
}

static int start_server(nk_agent *a, struct nk_error *err)
{
    enum { ANY = NK_ROLES_MEMBER | NK_ROLES_GATEWAY };
    static const struct nk_method methods[] = {
        { .path = NK_PIECES_CATALOGUE, .open = open_catalogue, .roles = ANY },
        { .path = NK_PIECES_HAVE, .open = open_have, .roles = ANY },
        { .path = NK_PIECES_PART, .open = open_part, .roles = ANY },
        { .path = NK_LINK_ECHO, .open = open_echo, .roles = ANY },
        { .path = NK_LINK_FLOW, .open = open_flow, .roles = ANY },
    };
    struct nk_server_opts so = { .listen = "[::]:0",
                                 .credentials = a->credentials,
                                 .methods = methods,
                                 .n_methods = sizeof methods / sizeof methods[0],
                                 .user = a };
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        so.listen = "0.0.0.0:0"; /* a machine without IPv6 */
    else
        close(fd);
    return nk_server_start(&a->server, a->net, &so, err);
}

/* ---- what is wanted, and what there is ---- */

bool nk__wanted_alike(const struct nk__wanted *a, const struct nk__wanted *b)
{
    return !strcmp(a->catalogue, b->catalogue) && a->n_ctx == b->n_ctx &&
           a->n_seq_max == b->n_seq_max && a->deterministic == b->deterministic &&
           a->no_flash_attn == b->no_flash_attn && !strcmp(a->cache_type_k, b->cache_type_k) &&
           !strcmp(a->cache_type_v, b->cache_type_v);
}

/* A coordinator that was started anew with another context goes on with its plan and its epochs;
 * workers of the old one do not fit. */
static bool is_wanted(const struct nk__wanted *w, const struct nk__hold *h)
{
    if (!nk__wanted_alike(w, &h->how))
        return false;
    for (int i = 0; i < w->n_assignments; i++)
        if (w->assignments[i].epoch == h->assignment.epoch &&
            w->assignments[i].layer_begin == h->assignment.layer_begin &&
            w->assignments[i].layer_end == h->assignment.layer_end)
            return true;
    return false;
}

/* Also one that is ending: there is not the memory for two, and its end is followed by another
 * look. */
static bool has(nk_agent *a, const struct nk__assignment *as)
{
    const struct nk__hold *h;

    LIST_FOREACH(h, &a->holds, link)
    if (h->assignment.epoch == as->epoch && h->assignment.layer_begin == as->layer_begin &&
        h->assignment.layer_end == as->layer_end)
        return true;
    return false;
}

static void reap(nk_agent *a)
{
    struct nk__hold *h, *next;

    for (h = LIST_FIRST(&a->holds); h; h = next) {
        next = LIST_NEXT(h, link);
        if (!atomic_load(&h->ended))
            continue;
        pthread_mutex_lock(&a->mutex);
        LIST_REMOVE(h, link);
        pthread_mutex_unlock(&a->mutex);
        nk__hold_free(h);
    }
}

static void reconcile(nk_agent *a)
{
    struct nk__wanted w;
    nk_catalogue *c;
    struct nk__hold *h;
    struct nk_error err;
    bool changed = false;

    reap(a);
    pthread_mutex_lock(&a->mutex);
    w = a->wanted;
    c = a->catalogue && !strcmp(nk_catalogue_id(a->catalogue), w.catalogue)
            ? nk_catalogue_ref(a->catalogue)
            : NULL;
    pthread_mutex_unlock(&a->mutex);
    if (!w.catalogue[0])
        return; /* nothing was said since the start: what runs goes on */
    LIST_FOREACH(h, &a->holds, link)
    if (!is_wanted(&w, h) && !atomic_load(&h->stopping)) {
        nk__agent_say(a, "layers %d-%d are given up", h->assignment.layer_begin,
                      h->assignment.layer_end);
        nk__hold_stop(h);
        changed = true;
    }
    for (int i = 0; c && i < w.n_assignments; i++) {
        if (has(a, &w.assignments[i]))
            continue;
        if (nk__hold_start(&h, a, &w.assignments[i], &w, c, &err)) {
            nk__agent_say(a, "layers %d-%d cannot be taken: %s", w.assignments[i].layer_begin,
                          w.assignments[i].layer_end, err.msg);
            continue;
        }
        pthread_mutex_lock(&a->mutex);
        LIST_INSERT_HEAD(&a->holds, h, link);
        pthread_mutex_unlock(&a->mutex);
        changed = true;
    }
    nk_catalogue_unref(c);
    if (changed)
        nk__attend_changed(a);
}

/* ---- certificates ---- */

int nk__agent_roster_write(nk_agent *a, const struct nk_roster *r, bool from_renewal,
                           struct nk_error *err)
{
    struct nk_roster now = { 0 };
    struct nk_error ignored;
    int rc = 0;

    pthread_mutex_lock(&a->roster_mutex);
    if (!from_renewal || nk_members_read(&now, a->identity, &ignored) ||
        now.revision <= r->revision)
        rc = nk_members_write(a->identity, r, err);
    nk_roster_release(&now);
    pthread_mutex_unlock(&a->roster_mutex);
    return rc;
}

static int renew(nk_agent *a, struct nk_error *err)
{
    struct nk_identity_files id;
    struct nk_joined joined;
    struct nk_enrolled e;
    int rc = nk_identity_read(&id, a->identity, err);

    if (rc)
        return rc;
    pthread_mutex_lock(&a->mutex);
    joined = a->joined;
    pthread_mutex_unlock(&a->mutex);
    rc = nk_enrol_renew(
        &(struct nk_enrol_renew_opts){
            .identity = &id, .joined = &joined, .version = NK_VERSION, .clock = a->o.clock },
        &e, err);
    if (!rc)
        rc = nk_identity_write(
            a->identity, (struct nk_bytes){ (uint8_t *)e.ca.data, e.ca.size },
            (struct nk_bytes){ (uint8_t *)e.certificate.data, e.certificate.size },
            (struct nk_bytes){ (uint8_t *)e.key.data, e.key.size }, err);
    if (!rc)
        rc = nk__agent_roster_write(a, &e.roster, true, err);
    nk_enrolled_release(&e);
    nk_identity_release(&id);
    return rc;
}

/* When the certificate is to be renewed, by the time of day; 0: it cannot be read. */
static int64_t renew_at(nk_agent *a)
{
    struct nk_identity_files id;
    struct nk_error err;
    int64_t at;

    if (nk_identity_read(&id, a->identity, &err))
        return 0;
    at = nk_certificate_renew_s(&id.about);
    nk_identity_release(&id);
    return at;
}

/* Renews when it is time, and asks when nobody else says why nothing is reached. Returns how many
 * seconds from now it wants to be called again at the latest. */
static int64_t look_after_certificate(nk_agent *a, int64_t *not_before)
{
    int64_t now = nk_clock_unix_s(a->o.clock), at = renew_at(a);
    /* The time of day may be set back, and "not before" is then far away. */
    int64_t up = (int64_t)(nk_clock_now_ns(a->o.clock) / 1000000000);
    struct nk_error err;
    bool unsure;
    int rc;

    pthread_mutex_lock(&a->mutex);
    unsure = a->unsure;
    a->unsure = false;
    pthread_mutex_unlock(&a->mutex);
    if (up < *not_before || (now < at && !unsure))
        return up < *not_before ? *not_before - up : at - now;
    rc = renew(a, &err);
    *not_before = (int64_t)(nk_clock_now_ns(a->o.clock) / 1000000000) + UNSURE_PAUSE_S;
    /* Other refusals (a clock that is off, after a sleep) pass. */
    if (rc == NK_E_DENIED || (rc && !strcmp(err.reason, "expired_certificate")))
        nk__agent_fail(a, &err);
    else if (rc && (now >= at || rc != NK_E_UNAVAILABLE)) /* there is a third of its life for it */
        nk__agent_say(a, "the certificate could not be renewed: %s; trying on", err.msg);
    return UNSURE_PAUSE_S;
}

/* ---- life ---- */

/* Says that it goes, and waits until nothing is wanted of it any more, or for drain_ms. Where there
 * is no coordinator nobody can take over. */
static void leave(nk_agent *a, int stop_fd)
{
    uint64_t end = nk_clock_now_ns(a->o.clock) + (uint64_t)a->o.drain_ms * 1000000;
    struct pollfd fd = { stop_fd, POLLIN, 0 };
    bool attending;
    char c;

    if (read(stop_fd, &c, 1) < 0 || !a->o.drain_ms)
        return;
    pthread_mutex_lock(&a->mutex);
    a->leaving = true;
    attending = a->attending;
    pthread_mutex_unlock(&a->mutex);
    if (attending && !LIST_EMPTY(&a->holds))
        nk__agent_say(a,
                      "leaving, as soon as others have taken over, or in %u s; a second signal "
                      "ends it at once",
                      a->o.drain_ms / 1000);
    nk__attend_changed(a);
    while (attending && nk_clock_now_ns(a->o.clock) < end && poll(&fd, 1, LEAVE_POLL_MS) == 0) {
        reconcile(a);
        if (LIST_EMPTY(&a->holds))
            return;
        pthread_mutex_lock(&a->mutex);
        attending = a->attending;
        pthread_mutex_unlock(&a->mutex);
    }
    if (poll(&fd, 1, 0) > 0) /* a second signal */
        atomic_store(&a->hurry, true);
}

static void stop_holds(nk_agent *a)
{
    struct nk__hold *h;

    atomic_store(&a->ending, true);
    LIST_FOREACH(h, &a->holds, link)
    nk__hold_stop(h);
    if (a->life[1] >= 0)
        close(a->life[1]);
    a->life[1] = -1;
    while ((h = LIST_FIRST(&a->holds))) {
        pthread_mutex_lock(&a->mutex);
        LIST_REMOVE(h, link);
        pthread_mutex_unlock(&a->mutex);
        nk__hold_free(h);
    }
}

static int start(nk_agent *a, struct nk_error *err)
{
    int rc;

    if (pipe2(a->life, O_CLOEXEC) < 0 || pipe2(a->wake, O_CLOEXEC | O_NONBLOCK) < 0)
        return nk_fail(err, NK_E_EXHAUSTED, "no_files", "a pipe could not be made: %s",
                       strerror(errno));
    snprintf(a->identity, sizeof a->identity, "%s/identity", a->o.state);
    snprintf(a->joined_path, sizeof a->joined_path, "%s/joined.json", a->o.state);
    a->credentials.identity = a->identity;
    rc = nk_joined_read(&a->joined, a->joined_path, err);
    if (!rc)
        rc = nk_net_start(&a->net, a->o.clock, err);
    if (!rc)
        rc = nk_pieces_service_new(&a->pieces, a->net, err);
    if (!rc)
        rc = start_server(a, err);
    if (!rc)
        rc = nk__attend_start(a, err);
    return rc;
}

int nk_agent_run(const struct nk_agent_opts *opts, int stop_fd, struct nk_error *err)
{
    nk_agent a = { .o = *opts, .life = { -1, -1 }, .wake = { -1, -1 } };
    pthread_t model, links;
    bool has_model = false, has_links = false;
    int64_t not_before = 0;
    int rc;

    LIST_INIT(&a.holds);
    pthread_mutex_init(&a.mutex, NULL);
    pthread_mutex_init(&a.roster_mutex, NULL);
    nk_cond_init(&a.cond);
    rc = start(&a, err);
    if (!rc) {
        rc = nk_thread_start(&model, nk__model_run, &a);
        has_model = !rc;
        if (!rc)
            rc = nk_thread_start(&links, nk__links_run, &a);
        has_links = has_model && !rc;
        if (rc)
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_thread", "a thread could not be started: %s",
                         strerror(rc));
    }
    while (!rc) {
        struct pollfd fds[2] = { { stop_fd, POLLIN, 0 }, { a.wake[0], POLLIN, 0 } };
        char drain[256];
        int64_t s;

        reconcile(&a);
        s = look_after_certificate(&a, &not_before);
        pthread_mutex_lock(&a.mutex);
        rc = a.rc;
        if (rc)
            *err = a.err;
        pthread_mutex_unlock(&a.mutex);
        if (rc)
            break;
        if (poll(fds, 2, s < 1 ? 1000 : s > 3600 ? 3600000 : (int)s * 1000) < 0 && errno != EINTR)
            break;
        if (fds[1].revents && read(a.wake[0], drain, sizeof drain) < 0)
            continue;
        if (fds[0].revents) {
            leave(&a, stop_fd);
            break;
        }
    }
    pthread_mutex_lock(&a.mutex);
    a.stopping = true;
    pthread_cond_broadcast(&a.cond);
    pthread_mutex_unlock(&a.mutex);
    if (has_model)
        pthread_join(model, NULL);
    if (has_links)
        pthread_join(links, NULL);
    stop_holds(&a);
    nk__attend_stop(&a);
    if (a.server)
        nk_server_stop(a.server, SERVER_GRACE_MS);
    if (a.net) {
        nk_pieces_service_free(a.pieces);
        nk_net_stop(a.net);
    }
    free(a.attend);
    nk_catalogue_unref(a.catalogue);
    free(a.facts);
    for (int i = 0; i < 2; i++) {
        if (a.life[i] >= 0)
            close(a.life[i]);
        if (a.wake[i] >= 0)
            close(a.wake[i]);
    }
    pthread_cond_destroy(&a.cond);
    pthread_mutex_destroy(&a.roster_mutex);
    pthread_mutex_destroy(&a.mutex);
    return rc;
}

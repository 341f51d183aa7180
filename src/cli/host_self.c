#include "cli/host_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SELF_PAUSE_MAX_S = 60 };

static int start_self(nk_host *h, struct nk_error *err)
{
    char numbers[2][16];
    const char *argv[24];
    char *self = NULL;
    int n = 0, rc = nk_process_self(&self, err);

    if (rc)
        return rc;
    argv[n++] = self;
    argv[n++] = "join";
    argv[n++] = "--state";
    argv[n++] = h->self_state;
    argv[n++] = "--models";
    argv[n++] = h->o.model;
    argv[n++] = "--drain-ms";
    argv[n++] = "0";
    argv[n++] = "--quiet";
    argv[n++] = "--parent-fd";
    snprintf(numbers[0], sizeof numbers[0], "%d", h->life[0]);
    argv[n++] = numbers[0];
    if (h->o.device) {
        argv[n++] = "--device";
        argv[n++] = h->o.device;
    }
    if (h->o.n_threads) {
        snprintf(numbers[1], sizeof numbers[1], "%d", h->o.n_threads);
        argv[n++] = "--threads";
        argv[n++] = numbers[1];
    }
    argv[n] = NULL;
    h->self_started_s = (int64_t)(nk_clock_now_ns(nk_clock_system()) / 1000000000);
    rc = nk_process_start(
        &h->self,
        &(struct nk_process_opts){
            .argv = argv, .keep_fds = &h->life[0], .n_keep_fds = 1, .capture_out = true },
        err);
    free(self);
    return rc;
}

void nk__host_look_after_self(nk_host *h)
{
    int64_t now = (int64_t)(nk_clock_now_ns(nk_clock_system()) /
                            1000000000); /* the time of day may be set back */
    struct nk_error err;
    char how[96];

    if (h->o.not_here)
        return;
    if (h->self.pid) {
        if (!nk_process_wait(&h->self, 0))
            return;
        nk_process_status_format(how, sizeof how, h->self.status);
        h->self_failures = now - h->self_started_s > 60 ? 1 : h->self_failures + 1;
        h->self_again_s =
            now + (h->self_failures > 6 ? SELF_PAUSE_MAX_S : (int64_t)1 << (h->self_failures - 1));
        fprintf(stderr, "nakshatra: this machine's own member %s\n", how);
        nk_process_stop(&h->self, 0);
        h->self = (struct nk_process)NK_PROCESS_INIT;
        if (nk_coordinator_is_removed(h->coordinator, h->self_id)) {
            h->o.not_here = true;
            nk__host_event(
                h, "it was removed, and is a member again when this cluster is started anew");
            return;
        }
    }
    if (now < h->self_again_s)
        return;
    if (start_self(h, &err)) {
        h->self_again_s = now + SELF_PAUSE_MAX_S;
        nk__host_event(h, err.msg);
    }
}

static int new_self_id(nk_host *h, struct nk_error *err)
{
    int rc = nk_store_delete(h->store, "self", 0, err);

    return rc ? rc : nk__host_id(h, "self", h->self_id, err);
}

int nk__host_prepare_self(nk_host *h, struct nk_error *err)
{
    struct nk_joined j = { .n_addresses = 1 };
    char identity[4300], path[4300];
    struct nk_roster roster;
    char name[NK_MEMBER_NAME_SIZE];
    int rc;

    strcpy(name, h->name);
    rc = nk_coordinator_admit(h->coordinator, h->self_id, false, name, &roster, err);
    /* It was removed; who starts this machine as a server wants it again. */
    if (rc == NK_E_DENIED) {
        rc = new_self_id(h, err);
        if (!rc)
            rc = nk_coordinator_admit(h->coordinator, h->self_id, false, name, &roster, err);
    }
    if (rc)
        return rc;
    snprintf(identity, sizeof identity, "%s/identity", h->self_dir);
    snprintf(path, sizeof path, "%s/joined.json", h->self_dir);
    rc = nk__host_renew(h, identity, h->self_id, err);
    if (!rc)
        rc = nk_members_write(identity, &roster, err);
    nk_roster_release(&roster);
    strcpy(j.cluster, nk_ca_cluster(h->ca));
    strcpy(j.member, h->self_id);
    strcpy(j.name, name);
    j.port = nk_server_port(h->server);
    j.enrolment_port = nk_enrol_server_port(h->enrol);
    snprintf(j.addresses[0], sizeof j.addresses[0], "%.45s", nk__host_own_address(h));
    return rc ? rc : nk_joined_write(path, &j, err);
}

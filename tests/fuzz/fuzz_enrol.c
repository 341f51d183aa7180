/* layer: cluster. Both sides' messages of enrolment, and what is in them, as a stranger may send
 * them: a request that is accepted reads back the same after being written; an answer is one, or an
 * error with a sentence. */
#include "fuzz/fuzz.h"
#include "cluster/enrol_int.h"

#include <string.h>

#include "cluster/cluster_int.h"

static void request(struct nk_bytes text)
{
    struct nk_buf again = NK_BUF_INIT(2 * NK_ENROL_REQUEST_BYTES_MAX);
    struct nk__enrol_request r, read;
    char key[NK_SHA256_HEX];
    struct nk_certificate about;
    struct nk_error err;

    nk__enrol_request_init(&r);
    nk__enrol_request_init(&read);
    if (nk__enrol_request_parse(&r, text, &err)) {
        NK_ASSERT(!strcmp(err.reason, "bad_frame") && err.msg[0]);
    } else {
        NK_ASSERT(*r.token || r.old.size);
        NK_ASSERT(!nk__enrol_request_format(&r, &again, &err));
        NK_ASSERT(!nk__enrol_request_parse(
            &read, (struct nk_bytes){ (uint8_t *)again.data, again.size }, &err));
        NK_ASSERT(!strcmp(r.token, read.token) && r.time_s == read.time_s &&
                  !strcmp(nk_buf_str(&r.request), nk_buf_str(&read.request)) &&
                  !strcmp(nk_buf_str(&r.old), nk_buf_str(&read.old)));
        /* What the server does with them next. */
        nk__request_key(key, (struct nk_bytes){ (uint8_t *)r.request.data, r.request.size }, &err);
        nk_certificate_parse(&about, (struct nk_bytes){ (uint8_t *)r.old.data, r.old.size }, &err);
    }
    nk__enrol_request_release(&r);
    nk__enrol_request_release(&read);
    nk_buf_release(&again);
}

static void answer(struct nk_bytes text)
{
    struct nk_enrolled e;
    struct nk_error err;

    nk__enrolled_init(&e);
    err.msg[0] = '\0';
    if (!nk__enrol_reply_parse(&e, text, &err))
        NK_ASSERT(e.port > 0 && e.n_addresses >= 0 && nk_member_name_is(e.name));
    else
        NK_ASSERT(err.code < 0 && err.reason[0]);
    nk_enrolled_release(&e);
}

const struct fuzz_ceiling fuzz_ceiling = { .base = 100000, .per_byte = 1000 };

void fuzz_one(const uint8_t *data, size_t size)
{
    request((struct nk_bytes){ data, size });
    answer((struct nk_bytes){ data, size });
}

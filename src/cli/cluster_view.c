#include "cli/cluster_view.h"

#include <stdio.h>
#include <string.h>

#include "base/args.h"
#include "base/visible.h"
#include "cli/ask.h"
#include "rpc/proto.h"

enum { REPLY_BYTES_MAX = 16 << 20, LINKS_SHOWN = 20 };

int nk_cluster_view_get(const char *state, json_t **out, struct nk_error *err)
{
    Nakshatra__V1__StatusRequest request = NAKSHATRA__V1__STATUS_REQUEST__INIT;
    Nakshatra__V1__StatusReply *reply = NULL;
    struct nk_buf bytes = NK_BUF_INIT(REPLY_BYTES_MAX);
    int rc = nk_ask(state, NK_ASK_ANY, "/nakshatra.v1.Cluster/Status", &request.base, &bytes, err);

    *out = NULL;
    if (!rc) {
        reply = nakshatra__v1__status_reply__unpack(NULL, bytes.size,
                                                    (const uint8_t *)nk_buf_str(&bytes));
        *out = reply ? json_loads(reply->json, 0, NULL) : NULL;
        if (!json_is_object(*out))
            rc = nk_fail(err, NK_E_INTERNAL, "bad_message", "the answer is no cluster's state");
    }
    if (reply)
        nakshatra__v1__status_reply__free_unpacked(reply, NULL);
    nk_buf_release(&bytes);
    if (rc) {
        json_decref(*out);
        *out = NULL;
    }
    return rc;
}

static const char *text_of(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "";
}

/* "5.0 MiB/s" */
static const char *rate_format(char out[32], double bytes_per_s)
{
    char size[24];

    snprintf(out, 32, "%s/s", nk_size_format(size, (uint64_t)bytes_per_s));
    return out;
}

/* "0-14 ready, 14-28 fetching 45 % at 5.0 MiB/s, 15 s left" */
static void print_holds(FILE *out, const json_t *member)
{
    const json_t *holds = json_object_get(member, "holdings"), *h;
    size_t i;

    json_array_foreach(holds, i, h)
    {
        const json_t *p = json_object_get(h, "progress");
        double of = (double)json_integer_value(json_object_get(p, "of")),
               bytes = (double)json_integer_value(json_object_get(p, "bytes")),
               rate = (double)json_integer_value(json_object_get(p, "rate"));
        char error[600], text[32];

        fprintf(out, "%s%d-%d %s", i ? ", " : "",
                (int)json_integer_value(json_object_get(h, "begin")),
                (int)json_integer_value(json_object_get(h, "end")), text_of(h, "state"));
        if (of > 0)
            fprintf(out, " %.0f %%", 100 * bytes / of);
        if (of > 0 && rate > 0)
            fprintf(out, " at %s, %.0f s left", rate_format(text, rate), (of - bytes) / rate);
        if (!strcmp(text_of(h, "state"), "failed"))
            fprintf(out, " (%s)", nk_visible_line(error, sizeof error, text_of(h, "error")));
    }
}

void nk_cluster_view_members(FILE *out, const json_t *j)
{
    const json_t *members = json_object_get(j, "members"), *m;
    char why[600], size[24];
    size_t i;

    fprintf(out, "%-16s  %-20s  %-10s  %-22s  %-10s  %s\n", "id", "name", "state", "address",
            "memory", "layers");
    json_array_foreach(members, i, m)
    {
        json_int_t memory = json_integer_value(json_object_get(m, "memory"));

        fprintf(out, "%-16s  %-20s  %-10s  %-22s  %-10s  ", text_of(m, "id"), text_of(m, "name"),
                text_of(m, "state"), text_of(m, "address")[0] ? text_of(m, "address") : "-",
                memory ? nk_size_format(size, (uint64_t)memory) : "-");
        print_holds(out, m);
        if (text_of(m, "why")[0])
            fprintf(out, " (%s)", nk_visible_line(why, sizeof why, text_of(m, "why")));
        fprintf(out, "\n");
    }
}

static void print_plan(FILE *out, const char *what, const json_t *plan)
{
    const json_t *chains = json_object_get(plan, "stages"), *chain, *stage;
    double one = json_number_value(json_object_get(plan, "predicted")),
           all = json_number_value(json_object_get(plan, "predicted_all")),
           ttft = json_number_value(json_object_get(plan, "predicted_ttft_ms")),
           measured = json_number_value(json_object_get(plan, "measured"));
    char text[600];
    size_t i, k;

    fprintf(out, "%s %d:", what, (int)json_integer_value(json_object_get(plan, "epoch")));
    json_array_foreach(chains, i, chain)
    {
        fprintf(out, "%s", i ? " |" : "");
        json_array_foreach(chain, k, stage)
            fprintf(out, "%s %s %d-%d", k ? " ->" : "", text_of(stage, "name"),
                    (int)json_integer_value(json_object_get(stage, "begin")),
                    (int)json_integer_value(json_object_get(stage, "end")));
    }
    fprintf(out, "\n");
    if (one > 0)
        fprintf(out,
                "  predicted: %.1f tokens/s for one stream, %.1f for all, first token of a prompt "
                "of 512 after %.1f s\n",
                one, all, ttft / 1000);
    if (measured > 0)
        fprintf(out, "  measured: %.1f tokens/s for a stream that runs alone\n", measured);
    if (text_of(plan, "warning")[0])
        fprintf(out, "  warning: %s\n",
                nk_visible_line(text, sizeof text, text_of(plan, "warning")));
}

static const char *name_of(const json_t *j, const char *id)
{
    const json_t *members = json_object_get(j, "members"), *m;
    size_t i;

    json_array_foreach(members, i, m) if (!strcmp(text_of(m, "id"), id)) return text_of(m, "name");
    return id;
}

/* What `a` has measured of the way to b; NULL: nothing. */
static const json_t *way_of(const json_t *links, const char *a, const char *b)
{
    const json_t *l;
    size_t i;

    json_array_foreach(links, i,
                       l) if (!strcmp(text_of(l, "a"), a) && !strcmp(text_of(l, "b"), b)) return l;
    return NULL;
}

/* Each pair once: "link attic - desk: 0.42 ms, 112.1 MiB/s to attic, 98.0 MiB/s to desk" */
static void print_links(FILE *out, const json_t *j)
{
    const json_t *links = json_object_get(j, "links"), *l;
    size_t i, n = 0;

    json_array_foreach(links, i, l)
    {
        const char *a = text_of(l, "a"), *b = text_of(l, "b");
        const json_t *back = way_of(links, b, a), *ways[] = { l, back };

        if (json_is_true(json_object_get(l, "no_way"))) {
            if (++n <= LINKS_SHOWN)
                fprintf(out, "link %s - %s: %s cannot connect to %s\n", name_of(j, a),
                        name_of(j, b), name_of(j, a), name_of(j, b));
            continue;
        }
        if (back && json_is_true(json_object_get(back, "no_way")))
            ways[1] = back = NULL; /* told by itself */
        if (back && strcmp(a, b) > 0)
            continue; /* told the other way round */
        if (++n > LINKS_SHOWN)
            continue;
        fprintf(out, "link %s - %s: %.2f ms", name_of(j, a), name_of(j, b),
                json_number_value(json_object_get(l, "rtt_ms")));
        for (int k = 0; k < 2; k++) {
            double rate = json_number_value(json_object_get(ways[k], "rate"));
            char text[32];

            if (rate > 0)
                fprintf(out, ", %s to %s", rate_format(text, rate), name_of(j, k ? b : a));
        }
        fprintf(out, "\n");
    }
    if (n > LINKS_SHOWN)
        fprintf(out, "and %zu links more (status --json)\n", n - LINKS_SHOWN);
}

/* The gateway's: who was lost while requests ran, and what became of these. */
static void print_losses(FILE *out, const json_t *recovery)
{
    const json_t *events = json_object_get(recovery, "events"), *e;
    char text[600];
    size_t i;

    json_array_foreach(events, i, e)
    {
        int pending = (int)json_integer_value(json_object_get(e, "pending")),
            given_up = (int)json_integer_value(json_object_get(e, "given_up"));

        fprintf(out, "lost %s %s layers %d-%d (%s): %d generations, %d resumed", text_of(e, "time"),
                text_of(e, "lost"), (int)json_integer_value(json_object_get(e, "layer_begin")),
                (int)json_integer_value(json_object_get(e, "layer_end")), text_of(e, "cause"),
                (int)json_integer_value(json_object_get(e, "generations")),
                (int)json_integer_value(json_object_get(e, "resumed")));
        if (given_up)
            fprintf(out, ", %d given up", given_up);
        if (pending)
            fprintf(out, ", %d wait (%d of %d positions replayed)", pending,
                    (int)json_integer_value(json_object_get(e, "replayed")),
                    (int)json_integer_value(json_object_get(e, "replay_total")));
        if (json_is_integer(json_object_get(e, "pause_ms")))
            fprintf(out, ", longest pause %.1f s",
                    (double)json_integer_value(json_object_get(e, "pause_ms")) / 1000);
        if (text_of(e, "chosen")[0])
            fprintf(out, "; goes on with %s",
                    nk_visible_line(text, sizeof text, text_of(e, "chosen")));
        fprintf(out, "\n");
    }
}

void nk_cluster_view_print(FILE *out, const json_t *j)
{
    const json_t *spares = json_object_get(j, "spares"), *s;
    char text[1200];
    size_t i;

    nk_cluster_view_members(out, j);
    fprintf(out, "\n");
    if (json_object_get(j, "plan"))
        print_plan(out, "plan", json_object_get(j, "plan"));
    if (json_object_get(j, "next"))
        print_plan(out, "next plan", json_object_get(j, "next"));
    if (text_of(j, "waiting")[0])
        fprintf(out, "waiting: %s\n", nk_visible_line(text, sizeof text, text_of(j, "waiting")));
    json_array_foreach(spares, i, s)
        fprintf(out, "spare %s: %s\n", text_of(s, "name"),
                nk_visible_line(text, sizeof text, text_of(s, "reason")));
    print_links(out, j);
    print_losses(out, json_object_get(j, "recovery"));
}

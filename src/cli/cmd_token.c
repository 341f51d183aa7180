/* nakshatra token: join tokens of the cluster that this machine serves. */
#include "cli/cli.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jansson.h>

#include "cli/ask.h"
#include "cluster/token.h"
#include "rpc/proto.h"

int nk_cmd_token(int argc, char **argv);

enum { REPLY_BYTES_MAX = 16 << 20 };

static int ask(const char *state, const Nakshatra__V1__TokenRequest *request,
               Nakshatra__V1__TokenReply **out, struct nk_error *err)
{
    struct nk_buf reply = NK_BUF_INIT(REPLY_BYTES_MAX);
    int rc = nk_ask(state, NK_ASK_COORDINATOR, "/nakshatra.v1.Cluster/Token", &request->base,
                    &reply, err);

    *out = NULL;
    if (!rc) {
        *out = nakshatra__v1__token_reply__unpack(NULL, reply.size,
                                                  (const uint8_t *)nk_buf_str(&reply));
        if (!*out)
            rc = nk_fail(err, NK_E_INTERNAL, "bad_message", "the answer is not a TokenReply");
    }
    nk_buf_release(&reply);
    return rc;
}

static void print_time(json_int_t s)
{
    time_t t = (time_t)s;
    struct tm tm;
    char text[32];

    if (gmtime_r(&t, &tm) && strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &tm))
        printf("%s", text);
    else
        printf("%" JSON_INTEGER_FORMAT, s);
}

static int print_list(const char *text, struct nk_error *err)
{
    json_t *list = json_loads(text, 0, NULL), *o;
    size_t i;

    if (!json_is_array(list)) {
        json_decref(list);
        return nk_fail(err, NK_E_INTERNAL, "bad_message", "the answer is not a list");
    }
    if (!json_array_size(list))
        printf("no tokens; nakshatra token makes one\n");
    else
        printf("%-12s %-12s %s\n", "id", "uses left", "expires");
    json_array_foreach(list, i, o)
    {
        const char *id = "";
        int uses = 0, left = 0, revoked = 0;
        json_int_t expires = 0;

        if (json_unpack(o, "{s:s,s:i,s:i,s:I,s:b}", "id", &id, "uses", &uses, "uses_left", &left,
                        "expires_s", &expires, "revoked", &revoked))
            continue;
        printf("%-12s %3d of %-5d ", id, left, uses);
        print_time(expires);
        printf("%s\n", revoked ? "  revoked" : "");
    }
    json_decref(list);
    return 0;
}

/* "90", "90s", "15m", "2h", "7d" */
static int parse_ttl(const char *text, uint32_t *out, struct nk_error *err)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);
    unsigned long unit = !*end || !strcmp(end, "s") ? 1
                         : !strcmp(end, "m")        ? 60
                         : !strcmp(end, "h")        ? 3600
                         : !strcmp(end, "d")        ? 86400
                                                    : 0;

    if (text[0] < '0' || text[0] > '9' || !unit || n < 1 || n > NK_TOKEN_TTL_S_MAX / unit)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "--ttl %.40s: seconds, or a number with s, m, h or d, up to a year", text);
    *out = (uint32_t)(n * unit);
    return 0;
}

int nk_cmd_token(int argc, char **argv)
{
    const char *state = NULL, *ttl = "1h";
    int64_t uses = 1;
    const struct nk_arg args[] = {
        NK_OPT_INT("uses", 0, &uses, "N", 1, NK_TOKEN_USES_MAX, "so many machines may join by it"),
        NK_OPT_STRING("ttl", 0, &ttl, "TIME", "it is good for so long: 90s, 15m, 2h, 7d"),
        NK_OPT_STRING("state", 0, &state, "DIR",
                      "where the cluster's state is; else $XDG_STATE_HOME/nakshatra or "
                      "~/.local/state/nakshatra"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "token [list | revoke ID] [--uses N] [--ttl TIME]",
        .summary = "Makes a join token of the cluster that nakshatra serve serves on this machine, "
                   "and prints it. A machine needs it once, to join; after that its certificate is "
                   "its membership, whatever becomes of the token.",
        .args = args,
        .n_max = 2,
    };
    Nakshatra__V1__TokenRequest request = NAKSHATRA__V1__TOKEN_REQUEST__INIT;
    Nakshatra__V1__TokenReply *reply = NULL;
    const char *what;
    struct nk_error err;
    int first, exit_code, rc = 0;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    what = first < argc ? argv[first] : NULL;
    request.uses = (uint32_t)uses;
    if (!what) {
        rc = parse_ttl(ttl, &request.ttl_s, &err);
    } else if (!strcmp(what, "list") && first + 1 == argc) {
        request.what = NAKSHATRA__V1__TOKEN_REQUEST__WHAT__LIST;
    } else if (!strcmp(what, "revoke") && first + 2 == argc) {
        request.what = NAKSHATRA__V1__TOKEN_REQUEST__WHAT__REVOKE;
        request.id = argv[first + 1];
    } else {
        rc = nk_fail(&err, NK_E_INVALID, "bad_argument", "usage: nakshatra %s", cmd.usage);
    }
    if (!rc)
        rc = ask(state, &request, &reply, &err);
    if (!rc && !what)
        printf("%s\n", reply->token);
    else if (!rc && request.what == NAKSHATRA__V1__TOKEN_REQUEST__WHAT__LIST)
        rc = print_list(reply->json, &err);
    else if (!rc)
        printf("%s is revoked\n", request.id);
    if (reply)
        nakshatra__v1__token_reply__free_unpacked(reply, NULL);
    return rc ? nk_cli_report(&err) : nk_cli_flush(NK_EXIT_OK);
}

/* OpenAI's stored responses: read, forgotten, cancelled. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_writer.h"
#include "gateway/job.h"
#include "gateway/routes_int.h"

/* The id, and what follows it: "" or a word. False: neither. */
static bool response_path(const char *rest, char id[64], const char **word)
{
    size_t n = strcspn(rest, "/");

    if (!n || n >= 64)
        return false;
    snprintf(id, 64, "%.*s", (int)n, rest);
    *word = rest[n] ? rest + n + 1 : "";
    return true;
}

static void no_such(const char *rest, struct nk_route_answer *a)
{
    nk_fail(&a->err, NK_E_NOT_FOUND, "unknown_route",
            "there is no /v1/responses/%.100s; there are ID, ID/input_items and, as POST, "
            "ID/cancel",
            rest);
}

/* The newest first, as OpenAI has them. */
static void write_input_items(nk_gateway *g, const char *id, struct nk_route_answer *a)
{
    struct nk_buf list = NK_BUF_INIT(a->body->max);
    struct nk_json_writer w = NK_JSON_WRITER(a->body, NULL);
    json_t *items;

    if (nk__responses_input(g->responses, a->key, id, &list, &a->err)) {
        nk_buf_release(&list);
        return;
    }
    items = json_loads(nk_buf_str(&list), 0, NULL);
    nk_buf_release(&list);
    nk_json_begin(&w, NULL, '{');
    nk_json_put_str(&w, "object", "list");
    nk_json_begin(&w, "data", '[');
    for (size_t i = json_array_size(items); i > 0; i--) {
        char *text = json_dumps(json_array_get(items, i - 1), JSON_COMPACT);

        nk_json_put_raw(&w, NULL, text ? text : "");
        free(text);
    }
    nk_json_end(&w, ']');
    nk_json_put_null(&w, "first_id");
    nk_json_put_null(&w, "last_id");
    nk_json_put_bool(&w, "has_more", false);
    nk_json_end(&w, '}');
    json_decref(items);
}

NK__ANSWER(response)
{
    const char *word;
    char id[64];

    (void)request, (void)s;
    if (!response_path(rest, id, &word) || (word[0] && strcmp(word, "input_items") != 0))
        no_such(rest, a);
    else if (word[0])
        write_input_items(g, id, a);
    else
        nk__responses_get(g->responses, a->key, id, a->body, &a->err);
}

NK__ANSWER(response_delete)
{
    struct nk_json_writer w = NK_JSON_WRITER(a->body, NULL);
    const char *word;
    char id[64];

    (void)request, (void)s;
    if (!response_path(rest, id, &word) || word[0]) {
        no_such(rest, a);
        return;
    }
    if (nk__responses_delete(g->responses, a->key, id, &a->err))
        return;
    nk_json_begin(&w, NULL, '{');
    nk_json_put_str(&w, "id", id);
    nk_json_put_str(&w, "object", "response");
    nk_json_put_bool(&w, "deleted", true);
    nk_json_end(&w, '}');
}

NK__ANSWER(response_cancel)
{
    const char *word;
    char id[64];

    (void)request, (void)s;
    if (!response_path(rest, id, &word) || strcmp(word, "cancel") != 0) {
        no_such(rest, a);
        return;
    }
    if (nk__responses_running(g->responses, a->key, id, &a->err))
        return;
    nk__jobs_cancel_response(g, id, a->key);
    nk__responses_end(g->responses, id, "cancelled");
    nk__responses_get(g->responses, a->key, id, a->body, &a->err);
}

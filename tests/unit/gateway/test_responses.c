/* OpenAI's responses: what is read and refused, the events that come back, and what is kept. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <jansson.h>

#include "gateway/reply.h"
#include "gateway/request.h"
#include "gateway/tool_form.h"
#include "gateway/responses_store.h"
#include "unit/virtual_clock.h"

static struct nk_request r;
static struct nk_request_error e;
static nk_responses *store; /* what requests follow; NULL: nothing is kept */
static struct nk_responses_use use;

static int history(void *user, const char *id, json_t *into, struct nk_error *err)
{
    (void)user;
    return nk__responses_history(store, "", id, &use, into, err);
}

static int item(void *user, const char *id, json_t **out, struct nk_error *err)
{
    (void)user;
    return nk__responses_item(store, "", id, &use, out, err);
}

static int parse(const char *body)
{
    static const struct nk_item_source source = { .history = history, .item = item };
    const struct nk_request_limits limits = { .messages_max = 8,
                                              .n_max = 4,
                                              .items = store ? &source : NULL };

    nk__request_release(&r);
    memset(&e, 0, sizeof e);
    use.bytes = 0;
    return nk__request_parse(&r, NK_API_RESPONSES, body, strlen(body), &limits, &e);
}

static void takes(const char *body)
{
    if (parse(body))
        fail_msg("%s\n  %s: %s", body, e.param, e.err.msg);
}

static void assert_json(const json_t *v, const char *want)
{
    char *text = json_dumps(v, JSON_COMPACT);

    assert_string_equal(text, want);
    free(text);
}

#define HEAD "\"model\":\"m\""

static void test_responses__items_become_a_chat(void **state)
{
    (void)state;
    takes("{" HEAD ",\"input\":\"hi\",\"instructions\":\"s\"}");
    assert_json(r.messages, "[{\"role\":\"system\",\"content\":\"s\"},"
                            "{\"role\":\"user\",\"content\":\"hi\"}]");
    assert_false(r.store); /* nothing is kept here */
    takes("{" HEAD ",\"instructions\":\"s\",\"input\":["
          "{\"role\":\"developer\",\"content\":\"t\"},"
          "{\"type\":\"message\",\"role\":\"user\",\"content\":[{\"type\":\"input_text\","
          "\"text\":\"a\"},{\"type\":\"input_text\",\"text\":\"b\"}]},"
          "{\"type\":\"reasoning\",\"id\":\"rs_1\",\"summary\":[{\"type\":\"summary_text\","
          "\"text\":\"hm\"}]},"
          "{\"type\":\"message\",\"id\":\"x\",\"role\":\"assistant\",\"status\":\"completed\","
          "\"content\":[{\"type\":\"output_text\",\"text\":\"c\",\"annotations\":[]}]},"
          "{\"type\":\"function_call\",\"call_id\":\"call_abc123xyz\",\"name\":\"f\","
          "\"arguments\":\"{}\"},"
          "{\"type\":\"function_call\",\"call_id\":\"other\",\"name\":\"g\",\"arguments\":\"\"},"
          "{\"type\":\"function_call_output\",\"call_id\":\"call_abc123xyz\",\"output\":\"1\"},"
          "{\"type\":\"function_call_output\",\"call_id\":\"other\",\"output\":[{\"type\":"
          "\"input_text\",\"text\":\"2\"}]},"
          "{\"type\":\"reasoning\",\"encrypted_content\":\"nakshatra:ho\",\"summary\":[]},"
          "{\"type\":\"function_call\",\"call_id\":\"z\",\"name\":\"g\",\"arguments\":\"{}\"}]}");
    assert_json(r.messages,
                "[{\"role\":\"system\",\"content\":\"s\\nt\"},"
                "{\"role\":\"user\",\"content\":\"a\\nb\"},"
                "{\"role\":\"assistant\",\"content\":\"c\",\"reasoning_content\":\"hm\","
                "\"tool_calls\":[{\"id\":\"abc123xyz\",\"type\":\"function\",\"function\":"
                "{\"name\":\"f\",\"arguments\":\"{}\"}},{\"id\":\"other\",\"type\":\"function\","
                "\"function\":{\"name\":\"g\",\"arguments\":\"{}\"}}]},"
                "{\"role\":\"tool\",\"content\":\"1\",\"tool_call_id\":\"abc123xyz\"},"
                "{\"role\":\"tool\",\"content\":\"2\",\"tool_call_id\":\"other\"},"
                "{\"role\":\"assistant\",\"content\":\"\",\"reasoning_content\":\"ho\","
                "\"tool_calls\":[{\"id\":\"z\",\"type\":\"function\",\"function\":{\"name\":\"g\","
                "\"arguments\":\"{}\"}}]}]");
    nk__request_release(&r);
}

static void test_responses__fields_are_read(void **state)
{
    (void)state;
    takes("{" HEAD ",\"input\":\"x\",\"max_output_tokens\":9,\"tools\":["
          "{\"type\":\"function\",\"name\":\"f\",\"parameters\":{},\"strict\":true},"
          "{\"type\":\"function\",\"name\":\"g\",\"parameters\":null,\"strict\":null}],"
          "\"tool_choice\":{\"type\":\"allowed_tools\",\"mode\":\"required\",\"tools\":[{\"type\":"
          "\"function\",\"name\":\"g\"},{\"name\":\"g\"}]},"
          "\"reasoning\":{\"effort\":\"high\",\"summary\":\"auto\"},"
          "\"include\":[\"reasoning.encrypted_content\",\"web_search_call.action.sources\"],"
          "\"truncation\":\"disabled\",\"prompt_cache_key\":\"k\",\"store\":false,\"user\":\"u\","
          "\"metadata\":{\"a\":\"b\"},\"top_logprobs\":2}");
    assert_json(r.tools, "[{\"type\":\"function\",\"function\":{\"name\":\"g\"}}]");
    assert_int_equal(r.tool_choice, NK_TOOLS_REQUIRED);
    assert_int_equal(r.n_predict, 9);
    assert_int_equal(r.n_logprobs, 2);
    assert_true(r.summarise && r.encrypted_reasoning && r.think == NK_THINK_ON && r.think_if_able);
    assert_non_null(strstr(r.echo, "\"metadata\":{\"a\":\"b\"}"));
    assert_non_null(strstr(r.echo, "\"store\":false"));
    assert_non_null(strstr(r.echo, "\"instructions\":null"));
    assert_true(r.echo[0] == '"' && r.echo[strlen(r.echo) - 1] != '}');
    takes("{" HEAD ",\"input\":\"x\",\"text\":{\"format\":{\"type\":\"json_schema\",\"name\":\"n\","
          "\"schema\":{\"type\":\"object\"}}}}");
    assert_int_equal(r.format, NK_FORMAT_SCHEMA);
    nk__request_release(&r);
}

static void test_responses__what_is_wrong_is_named(void **state)
{
#define INPUT(item) "{" HEAD ",\"input\":[" item "]}"
    static const struct {
        const char *body, *reason, *param;
    } bads[] = {
        { "{" HEAD "}", "missing_field", "input" },
        { "{" HEAD ",\"input\":[]}", "bad_value", "input" },
        { "{" HEAD ",\"input\":7}", "bad_value", "input" },
        { INPUT("7"), "bad_value", "input[0]." },
        { INPUT("{\"role\":\"robot\",\"content\":\"x\"}"), "bad_value", "input[0].role" },
        { INPUT("{\"role\":\"user\"}"), "missing_field", "input[0].content" },
        { INPUT("{\"role\":\"user\",\"content\":[{\"type\":\"input_image\"}]}"), "refused_field",
          "input[0].content[0].type" },
        { INPUT("{\"role\":\"user\",\"content\":[{\"type\":\"input_text\"}]}"), "missing_field",
          "input[0].content[0].text" },
        { INPUT("{\"type\":\"computer_call\"}"), "refused_field", "input[0].type" },
        { INPUT("{\"type\":\"function_call\",\"call_id\":\"a\",\"name\":\"f\",\"arguments\":7}"),
          "bad_value", "input[0].arguments" },
        { INPUT("{\"type\":\"function_call\",\"name\":\"f\"}"), "missing_field",
          "input[0].call_id" },
        { INPUT("{\"type\":\"function_call_output\",\"call_id\":\"a\",\"output\":7}"), "bad_value",
          "input[0].output" },
        { INPUT("{\"type\":\"item_reference\",\"id\":\"msg_a_0\"}"), "item_not_found",
          "input[0].id" },
        { "{" HEAD ",\"input\":\"x\",\"previous_response_id\":\"resp_a\"}",
          "previous_response_not_found", "previous_response_id" },
        { "{" HEAD ",\"input\":\"x\",\"tools\":[{\"type\":\"web_search\"}]}", "refused_field",
          "tools[0].type" },
        { "{" HEAD ",\"input\":\"x\",\"tools\":[{\"type\":\"function\"}]}", "missing_field",
          "tools[0].name" },
        { "{" HEAD ",\"input\":\"x\",\"tool_choice\":\"required\"}", "bad_value", "tool_choice" },
        { "{" HEAD ",\"input\":\"x\",\"tool_choice\":{\"type\":\"mcp\"}}", "bad_value",
          "tool_choice" },
        { "{" HEAD ",\"input\":\"x\",\"include\":[\"everything\"]}", "bad_value", "include" },
        { "{" HEAD ",\"input\":\"x\",\"truncation\":\"some\"}", "bad_value", "truncation" },
        { "{" HEAD ",\"input\":\"x\",\"background\":true}", "refused_field", "background" },
        { "{" HEAD ",\"input\":\"x\",\"conversation\":\"c\"}", "refused_field", "conversation" },
        { "{" HEAD ",\"input\":\"x\",\"metadata\":{\"a\":1}}", "bad_value", "metadata" },
        { "{" HEAD ",\"input\":\"x\",\"text\":{\"format\":{\"type\":\"xml\"}}}", "bad_value",
          "text.format" },
        { "{" HEAD ",\"input\":\"x\",\"reasoning\":{\"effort\":\"much\"}}", "bad_value",
          "reasoning.effort" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof bads / sizeof bads[0]; i++)
        if (!parse(bads[i].body) || strcmp(e.err.reason, bads[i].reason) ||
            strcmp(e.param, bads[i].param))
            fail_msg("%s\n  gives %s, param '%s' (%s)\n  wanted %s, param '%s'", bads[i].body,
                     e.err.reason, e.param, e.err.msg, bads[i].reason, bads[i].param);
}

/* ---- what is kept ---- */

static struct virtual_clock v;

static void keep(size_t bytes)
{
    const struct nk_responses_opts o = {
        .clock = &v.clock, .ttl_ms = 10000, .bytes_max = bytes, .history_bytes_max = 4096
    };

    virtual_clock_init(&v);
    store = nk__responses_new(&o);
    assert_non_null(store);
}

static void forget(void)
{
    nk__responses_free(store);
    virtual_clock_release(&v);
    store = NULL;
}

static void say(const char *owner, const char *id, const char *previous, const char *input,
                const char *output)
{
    struct nk_error err;

    if (nk__responses_begin(store, owner, id, previous, input, "{\"status\":\"in_progress\"}",
                            &err))
        fail_msg("%s", err.msg);
    if (output)
        nk__responses_finish(store, id, "{\"status\":\"completed\"}", output);
}

static void assert_history(const char *id, const char *want)
{
    json_t *all = json_array();
    struct nk_error err;

    if (nk__responses_history(store, "", id, &use, all, &err))
        fail_msg("%s", err.msg);
    assert_json(all, want);
    json_decref(all);
}

static void test_responses__a_chain_outlives_what_it_followed(void **state)
{
    struct nk_buf out = NK_BUF_INIT(1024);
    struct nk_error err;

    (void)state;
    keep(1 << 20);
    say("", "resp_a", NULL, "[1]", "[2]");
    say("", "resp_b", "resp_a", "[3]", "[4]");
    say("", "resp_c", "resp_a", "[5]", "[6]");
    assert_history("resp_b", "[1,2,3,4]");
    assert_history("resp_c", "[1,2,5,6]");
    assert_int_equal(nk__responses_delete(store, "", "resp_a", &err), 0);
    assert_int_equal(nk__responses_get(store, "", "resp_a", &out, &err), NK_E_NOT_FOUND);
    assert_string_equal(err.reason, "response_not_found");
    assert_history("resp_b", "[1,2,3,4]");
    assert_int_equal(nk__responses_begin(store, "", "resp_d", "resp_a", "[]", "{}", &err),
                     NK_E_NOT_FOUND);
    assert_int_equal(nk__responses_delete(store, "", "resp_b", &err), 0);
    assert_int_equal(nk__responses_delete(store, "", "resp_c", &err), 0);
    assert_int_equal(nk__responses_bytes(store), 0);
    nk_buf_release(&out);
    forget();
}

static void test_responses__others_and_unfinished_ones_are_not_followed(void **state)
{
    struct nk_buf out = NK_BUF_INIT(1024);
    json_t *all = json_array();
    struct nk_error err;

    (void)state;
    keep(1 << 20);
    say("key1", "resp_a", NULL, "[1]", "[2]");
    assert_int_equal(nk__responses_get(store, "key2", "resp_a", &out, &err), NK_E_NOT_FOUND);
    assert_int_equal(nk__responses_history(store, "", "resp_a", &use, all, &err), NK_E_NOT_FOUND);
    assert_int_equal(nk__responses_delete(store, "key2", "resp_a", &err), NK_E_NOT_FOUND);
    assert_int_equal(nk__responses_get(store, "key1", "resp_a", &out, &err), 0);
    say("", "resp_b", NULL, "[1]", NULL);
    assert_int_equal(nk__responses_running(store, "", "resp_b", &err), 0);
    assert_int_equal(nk__responses_history(store, "", "resp_b", &use, all, &err),
                     NK_E_PRECONDITION);
    nk__responses_end(store, "resp_b", "cancelled");
    nk_buf_reset(&out);
    assert_int_equal(nk__responses_get(store, "", "resp_b", &out, &err), 0);
    assert_string_equal(nk_buf_str(&out), "{\"status\":\"cancelled\"}");
    assert_int_equal(nk__responses_running(store, "", "resp_b", &err), NK_E_PRECONDITION);
    /* What comes after that changes nothing. */
    nk__responses_finish(store, "resp_b", "{}", "[]");
    assert_int_equal(nk__responses_history(store, "", "resp_b", &use, all, &err),
                     NK_E_PRECONDITION);
    json_decref(all);
    nk_buf_release(&out);
    forget();
}

static void test_responses__time_and_memory_end_them(void **state)
{
    struct nk_buf out = NK_BUF_INIT(1 << 16);
    struct nk_error err;
    char id[32], previous[32] = "";
    json_t *all = json_array();

    (void)state;
    keep(16 << 10);
    say("", "resp_a", NULL, "[1]", "[2]");
    virtual_clock_advance_ms(&v, 9999);
    assert_int_equal(nk__responses_get(store, "", "resp_a", &out, &err), 0);
    virtual_clock_advance_ms(&v, 1);
    assert_int_equal(nk__responses_get(store, "", "resp_a", &out, &err), NK_E_NOT_FOUND);
    assert_int_equal(nk__responses_bytes(store), 0);
    /* However many come, and however they hang together, they take no more than that. */
    for (int i = 0; i < 500; i++) {
        snprintf(id, sizeof id, "resp_%d", i);
        if (nk__responses_begin(store, "", id, i % 2 ? previous : NULL, "[\"some words\"]",
                                "{\"status\":\"in_progress\"}", &err))
            fail_msg("%d: %s", i, err.msg);
        nk__responses_finish(store, id, "{}", "[\"and more\"]");
        assert_true(nk__responses_bytes(store) <= 16 << 10);
        snprintf(previous, sizeof previous, "%s", id);
    }
    assert_int_equal(nk__responses_get(store, "", id, &out, &err), 0);
    assert_int_equal(nk__responses_get(store, "", "resp_0", &out, &err), NK_E_NOT_FOUND);
    /* Nor does what one request goes on from. */
    assert_int_equal(nk__responses_history(store, "", id, &use, all, &err), 0);
    {
        char *long_text = calloc(1, 5000);

        assert_non_null(long_text);
        memset(long_text, ' ', 4999);
        long_text[0] = '[', long_text[4998] = ']';
        say("", "resp_l", id, long_text, "[]");
        free(long_text);
    }
    assert_int_equal(nk__responses_history(store, "", "resp_l", &use, all, &err), NK_E_EXHAUSTED);
    assert_string_equal(err.reason, "too_large");
    json_decref(all);
    nk_buf_release(&out);
    forget();
}

static void test_responses__requests_follow_what_was_kept(void **state)
{
    (void)state;
    keep(1 << 20);
    say("", "resp_77", NULL, "[{\"role\":\"user\",\"content\":\"a\"}]",
        "[{\"id\":\"msg_77_0\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[{\"type\":"
        "\"output_text\",\"text\":\"b\"}]}]");
    takes("{" HEAD ",\"input\":\"c\",\"previous_response_id\":\"resp_77\"}");
    assert_true(r.store);
    assert_json(r.messages, "[{\"role\":\"user\",\"content\":\"a\"},"
                            "{\"role\":\"assistant\",\"content\":\"b\"},"
                            "{\"role\":\"user\",\"content\":\"c\"}]");
    /* What the store is to have of it: its own items alone. */
    assert_int_equal(json_array_size(r.items), 1);
    takes("{" HEAD ",\"input\":[{\"role\":\"user\",\"content\":\"x\"},"
          "{\"type\":\"item_reference\",\"id\":\"msg_77_0\"}]}");
    assert_json(r.messages, "[{\"role\":\"user\",\"content\":\"x\"},"
                            "{\"role\":\"assistant\",\"content\":\"b\"}]");
    assert_string_equal(json_string_value(json_object_get(json_array_get(r.items, 1), "id")),
                        "msg_77_0");
    assert_null(json_object_get(json_array_get(r.items, 1), "item_reference"));
    assert_int_not_equal(parse("{" HEAD ",\"input\":[{\"type\":\"item_reference\",\"id\":"
                               "\"msg_77_9\"}]}"),
                         0);
    assert_string_equal(e.err.reason, "item_not_found");
    nk__request_release(&r);
    forget();
}

static int hold_some(void *user, const char *json, size_t size, struct nk_error *err)
{
    size_t *left = user;

    (void)json;
    if (size > *left)
        return nk_fail(err, NK_E_EXHAUSTED, "requests_full", "no more is free");
    *left -= size;
    return 0;
}

static void test_responses__what_is_referred_to_is_counted(void **state)
{
    char output[1200], body[1 << 13] = "{" HEAD ",\"input\":[";
    struct nk_work work = NK_WORK_INIT(NULL);
    size_t left = 3000;

    (void)state;
    keep(1 << 20);
    snprintf(output, sizeof output,
             "[{\"id\":\"rs_77_0\",\"type\":\"reasoning\",\"summary\":[{\"type\":"
             "\"summary_text\",\"text\":\"%01000d\"}]}]",
             0);
    say("", "resp_77", NULL, "[]", output);
    for (int i = 0; i < 5; i++) /* the store gives out 4096 bytes */
        strcat(body, "{\"type\":\"item_reference\",\"id\":\"rs_77_0\"},");
    strcat(body, "{\"role\":\"user\",\"content\":\"x\"}]}");
    assert_int_equal(parse(body), NK_E_EXHAUSTED);
    assert_string_equal(e.err.reason, "too_large");
    assert_string_equal(e.param, "input[3].id");
    use = (struct nk_responses_use){ .hold = hold_some, .user = &left };
    assert_int_equal(parse(body), NK_E_EXHAUSTED);
    assert_string_equal(e.err.reason, "requests_full");
    assert_string_equal(e.param, "input[2].id");
    work.n_steps_max = 2500;
    use = (struct nk_responses_use){ .work = &work };
    assert_int_not_equal(parse(body), 0);
    assert_string_equal(e.err.reason, "too_much_work");
    use = (struct nk_responses_use){ .bytes = 0 };
    forget();
    /* Nine, where a request may have eight. */
    strcpy(body, "{" HEAD ",\"input\":[");
    for (int i = 0; i < 9; i++)
        strcat(body, "{\"type\":\"function_call\",\"call_id\":\"c\",\"name\":\"f\","
                     "\"arguments\":\"{}\"},");
    strcat(body, "{\"role\":\"user\",\"content\":\"x\"}]}");
    assert_int_not_equal(parse(body), 0);
    assert_string_equal(e.err.reason, "too_many");
}

static void test_responses__a_call_that_was_cut_off_is_followed(void **state)
{
    (void)state;
    keep(1 << 20);
    say("", "resp_77", NULL, "[{\"role\":\"user\",\"content\":\"a\"}]",
        "[{\"id\":\"fc_77_0\",\"type\":\"function_call\",\"call_id\":\"c1\",\"name\":\"f\","
        "\"arguments\":\"{\\\"a\\\": \\\"b\"}]");
    takes("{" HEAD ",\"input\":\"go on\",\"previous_response_id\":\"resp_77\"}");
    assert_json(json_array_get(json_object_get(json_array_get(r.messages, 1), "tool_calls"), 0),
                "{\"id\":\"c1\",\"type\":\"function\",\"function\":{\"name\":\"f\","
                "\"arguments\":\"{\\\"not_json\\\":\\\"{\\\\\\\"a\\\\\\\": "
                "\\\\\\\"b\\\"}\"}}");
    nk__request_release(&r);
    forget();
}

/* ---- replies ---- */

static const char *const pieces[] = { "<think>",
                                      "hm",
                                      "</think>\n",
                                      "so\n<tool_call>",
                                      "{\"name\":\"f\",\"arguments\":{\"a\":\"b\"}}",
                                      "</tool_call>",
                                      NULL };

static struct nk_reply_opts opts_for(bool stream)
{
    struct nk_reply_opts o = { .api = NK_API_RESPONSES,
                               .stream = stream,
                               .n_choices = 1,
                               .n_logprobs = -1,
                               .text_bytes_max = 1 << 20,
                               .id = "x1",
                               .model = "m",
                               .echo = "\"store\":true",
                               .created = 7,
                               .parse = true };

    o.output.think = (struct nk_think_marks){ .open = "<think>", .close = "</think>" };
    o.output.tools = nk__tool_form_generic();
    return o;
}

static char *reply(const struct nk_reply_opts *o, enum nk_finish finish, const struct nk_error *why)
{
    struct nk_buf out = NK_BUF_INIT(1 << 20);
    nk_reply *rep = nk__reply_new(o);
    struct nk_reply_done d = {
        .finish = finish, .tail = "", .n_prompt = 7, .n_reused = 3, .counts_prompt = true
    };
    bool ended;

    for (int i = 0; pieces[i]; i++) {
        struct nk_gen_token t = { .text = pieces[i], .text_size = strlen(pieces[i]) };

        assert_int_equal(nk__reply_token(rep, 0, &t, &out, &ended, NULL), 0);
        d.n_generated++;
        if (why && i == 3) {
            assert_int_equal(nk__reply_fail(rep, why, "", &out), 0);
            nk__reply_free(rep);
            return nk_buf_take(&out, NULL);
        }
    }
    assert_int_equal(nk__reply_done(rep, 0, &d, &out, NULL), 0);
    assert_int_equal(nk__reply_end(rep, &out, NULL), 0);
    nk__reply_free(rep);
    return nk_buf_take(&out, NULL);
}

/* The events' names without "response.", after each has been looked at; *last: the last one's data,
 * owned by the caller. */
static char *shape(const char *text, json_t **last)
{
    struct nk_buf out = NK_BUF_INIT(1 << 16);
    int n = 0;

    *last = NULL;
    for (; *text; n++) {
        const char *end = strstr(text, "\n\n"), *data = strstr(text, "\ndata: "), *kind;

        assert_true(end && data && data < end);
        json_decref(*last);
        *last = json_loadb(data + 7, (size_t)(end - data - 7), JSON_REJECT_DUPLICATES, NULL);
        assert_non_null(*last);
        kind = json_string_value(json_object_get(*last, "type"));
        assert_memory_equal(text, "event: response.", 16);
        assert_memory_equal(kind, text + 7, strlen(kind));
        assert_int_equal(json_integer_value(json_object_get(*last, "sequence_number")), n);
        nk_buf_addf(&out, NULL, "%s%s", n ? " " : "", kind + 9);
        text = end + 2;
    }
    return nk_buf_take(&out, NULL);
}

static void test_responses__a_streamed_reply_has_all_events(void **state)
{
    struct nk_reply_opts o = opts_for(true);
    char *text = reply(&o, NK_FINISH_EOG, NULL), *s;
    json_t *last, *now;

    (void)state;
    s = shape(text, &last);
    assert_string_equal(
        s, "created in_progress output_item.added content_part.added reasoning_text.delta "
           "reasoning_text.done content_part.done output_item.done "
           "output_item.added content_part.added output_text.delta output_text.done "
           "content_part.done output_item.done "
           "output_item.added function_call_arguments.delta function_call_arguments.done "
           "output_item.done completed");
    now = json_object_get(last, "response");
    assert_string_equal(json_string_value(json_object_get(now, "status")), "completed");
    assert_int_equal(json_array_size(json_object_get(now, "output")), 3);
    assert_json(json_object_get(now, "usage"),
                "{\"input_tokens\":7,\"input_tokens_details\":{\"cached_tokens\":3},"
                "\"output_tokens\":6,\"output_tokens_details\":{\"reasoning_tokens\":3},"
                "\"total_tokens\":13}");
    assert_true(json_is_true(json_object_get(now, "store")));
    free(s);
    free(text);
    o.summarise = true;
    text = reply(&o, NK_FINISH_LENGTH, NULL);
    json_decref(last);
    s = shape(text, &last);
    assert_non_null(strstr(s, "output_item.added reasoning_summary_part.added "
                              "reasoning_summary_text.delta reasoning_summary_text.done "
                              "reasoning_summary_part.done output_item.done"));
    assert_non_null(strstr(s, " incomplete"));
    /* The last item is the one that was cut off. */
    assert_string_equal(
        json_string_value(json_object_get(
            json_array_get(json_object_get(json_object_get(last, "response"), "output"), 2),
            "status")),
        "incomplete");
    json_decref(last);
    free(s);
    free(text);
}

static void test_responses__a_stream_that_fails_says_so(void **state)
{
    static const char *const reasons[] = { "stalled", "response_cancelled" }, *const words[] = {
        "failed", "cancelled"
    };

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct nk_reply_opts o = opts_for(true);
        struct nk_error why;
        char *text, *s;
        json_t *last;

        nk_fail(&why, NK_E_DEADLINE, reasons[i], "so it is");
        text = reply(&o, NK_FINISH_EOG, &why);
        s = shape(text, &last);
        assert_non_null(strstr(s, " failed"));
        assert_string_equal(
            json_string_value(json_object_get(json_object_get(last, "response"), "status")),
            words[i]);
        assert_string_equal(
            json_string_value(json_object_get(
                json_object_get(json_object_get(last, "response"), "error"), "code")),
            reasons[i]);
        json_decref(last);
        free(s);
        free(text);
    }
}

static void test_responses__a_whole_reply_has_items(void **state)
{
    struct nk_reply_opts o = opts_for(false);
    char *text, *id;

    (void)state;
    o.encrypted_reasoning = true;
    text = reply(&o, NK_FINISH_EOG, NULL);
    id = strstr(text, "\"call_id\":\"call_");
    assert_non_null(id);
    memcpy(id + 16, "012345678", 9);
    assert_non_null(strstr(
        text,
        "\"output\":[{\"id\":\"rs_x1_0\",\"type\":\"reasoning\",\"summary\":[],\"content\":[{"
        "\"type\":\"reasoning_text\",\"text\":\"hm\"}],\"encrypted_content\":\"nakshatra:hm\","
        "\"status\":\"completed\"},{\"id\":\"msg_x1_1\",\"type\":\"message\",\"role\":"
        "\"assistant\",\"content\":[{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],"
        "\"text\":\"so\"}],\"status\":\"completed\"},{\"id\":\"fc_x1_2\",\"type\":"
        "\"function_call\",\"call_id\":\"call_012345678\",\"name\":\"f\",\"arguments\":"
        "\"{\\\"a\\\":\\\"b\\\"}\",\"status\":\"completed\"}],\"store\":true,\"usage\":"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_responses__items_become_a_chat),
        cmocka_unit_test(test_responses__fields_are_read),
        cmocka_unit_test(test_responses__what_is_wrong_is_named),
        cmocka_unit_test(test_responses__a_chain_outlives_what_it_followed),
        cmocka_unit_test(test_responses__others_and_unfinished_ones_are_not_followed),
        cmocka_unit_test(test_responses__time_and_memory_end_them),
        cmocka_unit_test(test_responses__requests_follow_what_was_kept),
        cmocka_unit_test(test_responses__what_is_referred_to_is_counted),
        cmocka_unit_test(test_responses__a_call_that_was_cut_off_is_followed),
        cmocka_unit_test(test_responses__a_streamed_reply_has_all_events),
        cmocka_unit_test(test_responses__a_stream_that_fails_says_so),
        cmocka_unit_test(test_responses__a_whole_reply_has_items),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Anthropic's messages: what is read, what is refused, and the events that come back. */
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
#include "gateway/tool_form.h"

static const struct nk_request_limits limits = { .messages_max = 6, .n_max = 4 };
static struct nk_request r;
static struct nk_request_error e;

static int parse(const char *body)
{
    nk__request_release(&r);
    memset(&e, 0, sizeof e);
    return nk__request_parse(&r, NK_API_MESSAGES, body, strlen(body), &limits, &e);
}

static void takes(const char *body)
{
    if (parse(body))
        fail_msg("%s\n  %s: %s", body, e.param, e.err.msg);
}

/* The messages, or the tools, as templates get them. */
static void assert_json(const json_t *v, const char *want)
{
    char *text = json_dumps(v, JSON_COMPACT);

    assert_string_equal(text, want);
    free(text);
}

#define HEAD "\"model\":\"m\",\"max_tokens\":9"
#define USER "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

static void test_anthropic__blocks_become_a_chat(void **state)
{
    (void)state;
    takes("{" HEAD ",\"messages\":["
          "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\",\"cache_control\":{}},"
          "{\"type\":\"text\",\"text\":\"b\"}]},"
          "{\"role\":\"assistant\",\"content\":[{\"type\":\"thinking\",\"thinking\":\"hm\","
          "\"signature\":\"x\"},{\"type\":\"redacted_thinking\",\"data\":\"zz\"},"
          "{\"type\":\"text\",\"text\":\"c\"},{\"type\":\"tool_use\",\"id\":\"toolu_abc123xyz\","
          "\"name\":\"f\",\"input\":{\"k\":[1]},\"caller\":{\"type\":\"direct\"}}]},"
          "{\"role\":\"user\",\"content\":[{\"type\":\"tool_result\",\"tool_use_id\":"
          "\"toolu_abc123xyz\",\"is_error\":true,\"content\":[{\"type\":\"text\",\"text\":\"no\"}]}"
          ",{\"type\":\"text\",\"text\":\"d\"}]}],"
          "\"system\":[{\"type\":\"text\",\"text\":\"s\"},{\"type\":\"text\",\"text\":\"t\"}]}");
    assert_json(r.messages,
                "[{\"role\":\"system\",\"content\":\"s\\nt\"},"
                "{\"role\":\"user\",\"content\":\"a\\nb\"},"
                "{\"role\":\"assistant\",\"content\":\"c\",\"reasoning_content\":\"hm\","
                "\"tool_calls\":[{\"id\":\"abc123xyz\",\"type\":\"function\",\"function\":"
                "{\"name\":\"f\",\"arguments\":\"{\\\"k\\\":[1]}\"}}]},"
                "{\"role\":\"tool\",\"content\":\"Error:\\nno\",\"tool_call_id\":\"abc123xyz\"},"
                "{\"role\":\"user\",\"content\":\"d\"}]");
    /* Turns of one role are one, as the API says; a document's text is text. */
    takes("{" HEAD ",\"messages\":[{\"role\":\"user\",\"content\":\"a\"},"
          "{\"role\":\"user\",\"content\":[{\"type\":\"document\",\"title\":\"T\",\"source\":"
          "{\"type\":\"text\",\"media_type\":\"text/plain\",\"data\":\"b\"}}]}]}");
    assert_json(r.messages, "[{\"role\":\"user\",\"content\":\"a\\nT\\nb\"}]");
    nk__request_release(&r);
}

static void test_anthropic__fields_are_read(void **state)
{
    (void)state;
    takes(
        "{" HEAD "," USER
        ",\"tools\":[{\"name\":\"f\",\"description\":\"d\",\"input_schema\":{\"type\":\"object\"},"
        "\"cache_control\":{\"type\":\"ephemeral\"},\"defer_loading\":false},"
        "{\"type\":\"custom\",\"name\":\"g\",\"strict\":true}],"
        "\"tool_choice\":{\"type\":\"tool\",\"name\":\"g\",\"disable_parallel_tool_use\":true},"
        "\"stop_sequences\":[\"x\"],\"metadata\":{\"user_id\":\"u\"},\"temperature\":0.5,"
        "\"thinking\":{\"type\":\"enabled\",\"budget_tokens\":1024,\"display\":\"omitted\"},"
        "\"cache_control\":{\"type\":\"ephemeral\"},\"service_tier\":\"auto\",\"stream\":true,"
        "\"context_management\":{\"edits\":[{\"type\":\"clear_thinking_20251015\"}]}}");
    assert_json(r.tools,
                "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"description\":\"d\","
                "\"parameters\":{\"type\":\"object\"}}},{\"type\":\"function\","
                "\"function\":{\"name\":\"g\",\"strict\":true}}]");
    assert_int_equal(r.tool_choice, NK_TOOLS_NAMED);
    assert_string_equal(r.tool_name, "g");
    assert_true(!r.parallel_tool_calls && r.tools_strict && r.stream && r.hide_reasoning);
    assert_true(r.think == NK_THINK_ON && r.think_if_able);
    assert_int_equal(r.n_predict, 9);
    assert_string_equal(r.user, "u");
    assert_string_equal(r.stop[0], "x");
    takes("{" HEAD "," USER ",\"tool_choice\":{\"type\":\"any\"},\"tools\":[{\"name\":\"f\"}]}");
    assert_int_equal(r.tool_choice, NK_TOOLS_REQUIRED);
    takes("{" HEAD "," USER ",\"output_config\":{\"effort\":\"max\",\"format\":"
          "{\"type\":\"json_schema\",\"schema\":{\"type\":\"object\"}}}}");
    assert_int_equal(r.format, NK_FORMAT_SCHEMA);
    assert_string_equal(r.reasoning_effort, "xhigh");
    assert_non_null(r.schema);
    nk__request_release(&r);
}

static void test_anthropic__what_is_wrong_is_named(void **state)
{
#define USES(block) "{" HEAD ",\"messages\":[{\"role\":\"user\",\"content\":[" block "]}]}"
    static const struct {
        const char *body, *reason, *param;
    } bads[] = {
        { "{" HEAD "}", "missing_field", "messages" },
        { "{" HEAD ",\"system\":\"s\"}", "missing_field", "messages" },
        { "{" HEAD ",\"messages\":[]}", "bad_value", "messages" },
        { "{" HEAD ",\"messages\":{}}", "bad_value", "messages" },
        { "{" HEAD ",\"messages\":[7]}", "bad_value", "messages[0]." },
        { "{" HEAD ",\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}", "bad_value",
          "messages[0].role" },
        { "{" HEAD ",\"messages\":[{\"role\":\"user\"}]}", "missing_field", "messages[0].content" },
        { "{" HEAD ",\"messages\":[{\"role\":\"user\",\"content\":7}]}", "bad_value",
          "messages[0].content" },
        { USES("{\"type\":\"image\",\"source\":{}}"), "refused_field",
          "messages[0].content[0]."
          "type" },
        { USES("{\"type\":\"text\"}"), "missing_field", "messages[0].content[0].text" },
        { USES("{\"type\":\"text\",\"text\":7}"), "bad_value", "messages[0].content[0].text" },
        { USES("7"), "refused_field", "messages[0].content[0].type" },
        { USES("{\"type\":\"document\",\"source\":{\"type\":\"base64\"}}"), "refused_field",
          "messages[0].content[0].source" },
        { USES("{\"type\":\"tool_result\"}"), "missing_field",
          "messages[0].content[0].tool_use_id" },
        { USES("{\"type\":\"tool_result\",\"tool_use_id\":\"a\",\"content\":[{\"type\":\"image\"}]"
               "}"),
          "refused_field", "messages[0].content[0].content[0].type" },
        { "{" HEAD ",\"messages\":[{\"role\":\"assistant\",\"content\":[{\"type\":"
          "\"server_tool_use\"}]}]}",
          "refused_field", "messages[0].content[0].type" },
        { "{" HEAD ",\"messages\":[{\"role\":\"assistant\",\"content\":[{\"type\":\"tool_use\","
          "\"id\":\"a\",\"name\":\"f\",\"input\":\"x\"}]}]}",
          "bad_value", "messages[0].content[0].input" },
        { "{" HEAD "," USER ",\"max_tokens\":0}", "bad_json", "" },
        { "{\"model\":\"m\",\"max_tokens\":0," USER "}", "bad_value", "max_tokens" },
        { "{" HEAD "," USER ",\"tools\":[{\"type\":\"web_search_20250305\",\"name\":\"w\"}]}",
          "refused_field", "tools[0].type" },
        { "{" HEAD "," USER ",\"tools\":[{\"input_schema\":{}}]}", "missing_field",
          "tools[0].name" },
        { "{" HEAD "," USER ",\"tools\":[{\"name\":\"a b\"}]}", "bad_value", "tools[0].name" },
        { "{" HEAD "," USER ",\"tools\":[{\"name\":\"a\"},{\"name\":\"a\",\"description\":\"b\"}]}",
          "bad_value", "tools[1].name" },
        { "{" HEAD "," USER ",\"tools\":[{\"name\":\"a\",\"input_schema\":7}]}", "bad_value",
          "tools[0].input_schema" },
        { "{" HEAD "," USER ",\"tool_choice\":\"any\"}", "bad_value", "tool_choice" },
        { "{" HEAD "," USER ",\"tool_choice\":{\"type\":\"any\"}}", "bad_value", "tool_choice" },
        { "{" HEAD "," USER ",\"thinking\":true}", "bad_value", "thinking" },
        { "{" HEAD "," USER ",\"mcp_servers\":[{}]}", "refused_field", "mcp_servers" },
        { "{" HEAD "," USER ",\"thread\":{\"type\":\"create\"}}", "thread_unsupported_request",
          "thread" },
        { "{" HEAD "," USER ",\"container\":\"c\"}", "refused_field", "container" },
        { "{" HEAD "," USER ",\"context_management\":{\"edits\":[{\"type\":\"clear_tool_uses\"}]}}",
          "refused_field", "context_management" },
        { "{" HEAD "," USER ",\"output_config\":{\"format\":{\"type\":\"xml\"}}}", "bad_value",
          "output_config.format" },
        { "{" HEAD "," USER ",\"metadata\":{\"user_id\":7}}", "bad_value", "metadata.user_id" },
        { "{" HEAD ",\"messages\":[{\"role\":\"user\",\"content\":\"1\"},"
          "{\"role\":\"assistant\",\"content\":\"2\"},{\"role\":\"user\",\"content\":\"3\"},"
          "{\"role\":\"assistant\",\"content\":\"4\"},{\"role\":\"user\",\"content\":\"5\"},"
          "{\"role\":\"assistant\",\"content\":\"6\"},{\"role\":\"user\",\"content\":\"7\"}]}",
          "too_many", "messages" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof bads / sizeof bads[0]; i++)
        if (!parse(bads[i].body) || strcmp(e.err.reason, bads[i].reason) ||
            strcmp(e.param, bads[i].param))
            fail_msg("%s\n  gives %s, param '%s' (%s)\n  wanted %s, param '%s'", bads[i].body,
                     e.err.reason, e.param, e.err.msg, bads[i].reason, bads[i].param);
}

/* ---- replies ---- */

static struct nk_reply_opts opts_for(bool stream)
{
    struct nk_reply_opts o = { .api = NK_API_MESSAGES,
                               .stream = stream,
                               .n_choices = 1,
                               .n_logprobs = -1,
                               .text_bytes_max = 1 << 20,
                               .id = "x1",
                               .model = "m",
                               .n_prompt = 7,
                               .parse = true };

    o.output.think = (struct nk_think_marks){ .open = "<think>", .close = "</think>" };
    o.output.tools = nk__tool_form_generic();
    return o;
}

static const char *const pieces[] = { "<think>",
                                      "hm",
                                      "</think>\n",
                                      "s",
                                      "o\n<tool_call>",
                                      "{\"name\":\"f\",\"arguments\":{\"a\":",
                                      "\"b\"}}",
                                      "</tool_call>",
                                      NULL };

static char *reply(const struct nk_reply_opts *o, const char *const *texts, enum nk_finish finish,
                   const char *stop, bool keepalive)
{
    struct nk_buf out = NK_BUF_INIT(1 << 20);
    nk_reply *rep = nk__reply_new(o);
    struct nk_reply_done d = {
        .finish = finish, .tail = "", .n_prompt = 7, .n_reused = 3, .counts_prompt = true
    };
    bool ended;

    snprintf(d.stop_string, sizeof d.stop_string, "%s", stop);
    if (keepalive)
        assert_int_equal(nk__reply_keepalive(rep, &out, NULL), 0);
    for (int i = 0; texts[i]; i++) {
        struct nk_gen_token t = { .text = texts[i], .text_size = strlen(texts[i]) };

        assert_int_equal(nk__reply_token(rep, 0, &t, &out, &ended, NULL), 0);
        d.n_generated++;
    }
    assert_int_equal(nk__reply_done(rep, 0, &d, &out, NULL), 0);
    assert_int_equal(nk__reply_end(rep, &out, NULL), 0);
    nk__reply_free(rep);
    return nk_buf_take(&out, NULL);
}

static void test_anthropic__a_whole_reply_has_blocks(void **state)
{
    struct nk_reply_opts o = opts_for(false);
    char *text = reply(&o, pieces, NK_FINISH_EOG, "", false);
    const char *id = strstr(text, "toolu_");

    (void)state;
    assert_non_null(id);
    assert_int_equal(strcspn(id, "\""), 15);
    memcpy((char *)(uintptr_t)id, "toolu_012345678", 15);
    assert_string_equal(
        text, "{\"id\":\"msg_x1\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"m\","
              "\"content\":["
              "{\"type\":\"thinking\",\"thinking\":\"hm\",\"signature\":\"nakshatra\"},"
              "{\"type\":\"text\",\"text\":\"so\"},"
              "{\"type\":\"tool_use\",\"id\":\"toolu_012345678\",\"name\":\"f\",\"input\":{\"a\":"
              "\"b\"}}],"
              "\"stop_reason\":\"tool_use\",\"stop_sequence\":null,\"usage\":{\"input_tokens\":4,"
              "\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":3,\"output_tokens\":8,"
              "\"service_tier\":\"standard\"}}\n");
    free(text);
}

/* The events, one word each: what the API's documentation says may follow what. */
static char *shape(const char *text)
{
    struct nk_buf out = NK_BUF_INIT(1 << 16);

    while (*text) {
        const char *end = strstr(text, "\n\n"), *data = strstr(text, "\ndata: ");
        json_t *v;
        const char *kind;

        assert_true(end && data && data < end);
        assert_memory_equal(text, "event: ", 7);
        v = json_loadb(data + 7, (size_t)(end - data - 7), 0, NULL);
        assert_non_null(v);
        /* The name and the data's type are the same. */
        kind = json_string_value(json_object_get(v, "type"));
        assert_int_equal(strlen(kind), data - text - 7);
        assert_memory_equal(kind, text + 7, strlen(kind));
        nk_buf_addf(&out, NULL, "%s%s", out.size ? " " : "", kind);
        if (json_object_get(v, "index"))
            nk_buf_addf(&out, NULL, ":%d", (int)json_integer_value(json_object_get(v, "index")));
        kind = json_string_value(json_object_get(json_object_get(v, "content_block"), "type"));
        if (!kind)
            kind = json_string_value(json_object_get(json_object_get(v, "delta"), "type"));
        if (kind)
            nk_buf_addf(&out, NULL, ":%s", kind);
        json_decref(v);
        text = end + 2;
    }
    return nk_buf_take(&out, NULL);
}

static void test_anthropic__a_streamed_reply_has_all_events(void **state)
{
    struct nk_reply_opts o = opts_for(true);
    char *text = reply(&o, pieces, NK_FINISH_EOG, "", true), *s = shape(text);

    (void)state;
    assert_string_equal(s, "message_start ping "
                           "content_block_start:0:thinking content_block_delta:0:thinking_delta "
                           "content_block_delta:0:signature_delta content_block_stop:0 "
                           "content_block_start:1:text content_block_delta:1:text_delta "
                           "content_block_delta:1:text_delta content_block_stop:1 "
                           "content_block_start:2:tool_use content_block_delta:2:input_json_delta "
                           "content_block_delta:2:input_json_delta content_block_stop:2 "
                           "message_delta message_stop");
    assert_non_null(strstr(text, "\"usage\":{\"input_tokens\":7,"));
    assert_non_null(strstr(text, "\"delta\":{\"stop_reason\":\"tool_use\",\"stop_sequence\":null},"
                                 "\"usage\":{\"input_tokens\":4,\"cache_creation_input_tokens\":0,"
                                 "\"cache_read_input_tokens\":3,\"output_tokens\":8"));
    free(s);
    free(text);
    o.hide_reasoning = true;
    text = reply(&o, pieces, NK_FINISH_EOG, "", false);
    assert_null(strstr(text, "hm"));
    assert_non_null(strstr(text, "signature_delta"));
    free(text);
}

static void test_anthropic__how_it_ended(void **state)
{
    static const char *const one[] = { "a", NULL }, *const none[] = { NULL },
                             *const cut[] = { "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":",
                                              NULL };
    static const struct {
        const char *const *pieces;
        enum nk_finish finish;
        const char *stop, *want;
    } cases[] = {
        { one, NK_FINISH_EOG, "", "\"stop_reason\":\"end_turn\",\"stop_sequence\":null" },
        { one, NK_FINISH_LENGTH, "", "\"stop_reason\":\"max_tokens\",\"stop_sequence\":null" },
        { one, NK_FINISH_STOP, "x\"",
          "\"stop_reason\":\"stop_sequence\",\"stop_sequence\":\"x\\\"\"" },
        { none, NK_FINISH_EOG, "", "\"content\":[],\"stop_reason\":\"end_turn\"" },
        /* An input that was cut off is an object all the same. */
        { cut, NK_FINISH_LENGTH, "", "\"input\":{}}],\"stop_reason\":\"max_tokens\"" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nk_reply_opts o = opts_for(false);
        char *text = reply(&o, cases[i].pieces, cases[i].finish, cases[i].stop, false);

        if (!strstr(text, cases[i].want))
            fail_msg("%s\n  has no %s", text, cases[i].want);
        free(text);
    }
    {
        struct nk_reply_opts o = opts_for(true);
        char *text = reply(&o, none, NK_FINISH_EOG, "", false), *s = shape(text);

        assert_string_equal(s, "message_start message_delta message_stop");
        free(s);
        free(text);
    }
}

static void test_anthropic__errors_have_its_shape(void **state)
{
    static const struct {
        int code;
        const char *reason, *type;
    } cases[] = {
        { NK_E_INVALID, "bad_value", "invalid_request_error" },
        { NK_E_UNAUTHENTICATED, "invalid_api_key", "authentication_error" },
        { NK_E_NOT_FOUND, "model_not_found", "not_found_error" },
        { NK_E_EXHAUSTED, "body_too_large", "request_too_large" },
        { NK_E_EXHAUSTED, "queue_full", "rate_limit_error" },
        { NK_E_UNAVAILABLE, "not_ready", "overloaded_error" },
        { NK_E_DEADLINE, "stalled", "timeout_error" },
        { NK_E_INTERNAL, "x", "api_error" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nk_buf out = NK_BUF_INIT(4096);
        struct nk_error err;
        char want[200];

        nk_fail(&err, cases[i].code, cases[i].reason, "so \"it\" is");
        nk__error_body(NK_DIALECT_ANTHROPIC, false, &err, "x", &out);
        snprintf(want, sizeof want,
                 "{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":\"so \\\"it\\\" "
                 "is\",\"details\":{\"error_code\":\"%s\"}}}\n",
                 cases[i].type, cases[i].reason);
        assert_string_equal(nk_buf_str(&out), want);
        nk_buf_reset(&out);
        nk__error_body(NK_DIALECT_ANTHROPIC, true, &err, "x", &out);
        assert_memory_equal(nk_buf_str(&out), "event: error\ndata: {\"type\":\"error\"", 34);
        nk_buf_release(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_anthropic__blocks_become_a_chat),
        cmocka_unit_test(test_anthropic__fields_are_read),
        cmocka_unit_test(test_anthropic__what_is_wrong_is_named),
        cmocka_unit_test(test_anthropic__a_whole_reply_has_blocks),
        cmocka_unit_test(test_anthropic__a_streamed_reply_has_all_events),
        cmocka_unit_test(test_anthropic__how_it_ended),
        cmocka_unit_test(test_anthropic__errors_have_its_shape),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

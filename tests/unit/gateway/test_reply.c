#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <math.h>

#include <jansson.h>

#include "gateway/reply.h"

static void fixed_utc(char *out, size_t size)
{
    snprintf(out, size, "2026-03-02T10:15:04.211Z");
}

static struct nk_reply_opts opts_for(enum nk_api api, bool stream)
{
    struct nk_reply_opts o = { .api = api,
                               .stream = stream,
                               .n_choices = 1,
                               .n_logprobs = -1,
                               .text_bytes_max = 1 << 20,
                               .id = "x1",
                               .model = "m\"odel",
                               .fingerprint = "fp",
                               .created = 7,
                               .parse = api == NK_API_CHAT || api == NK_API_OLLAMA_CHAT,
                               .utc = fixed_utc };

    o.output.think = (struct nk_think_marks){ .open = "<think>", .close = "</think>" };
    o.output.tools = nk__tool_form_generic();
    return o;
}

/* The pieces as tokens of choice 0, then its end and the reply's. */
static char *reply(const struct nk_reply_opts *o, const char *const *pieces, enum nk_finish finish)
{
    struct nk_buf out = NK_BUF_INIT(1 << 20);
    nk_reply *r = nk__reply_new(o);
    struct nk_reply_done d = { .finish = finish,
                               .tail = "!",
                               .tail_size = 1,
                               .n_prompt = 5,
                               .n_reused = 2,
                               .prefill_us = 3,
                               .decode_us = 4,
                               .total_us = 9,
                               .waiting_us = 1,
                               .counts_prompt = true };
    bool ended;

    for (int i = 0; pieces[i]; i++) {
        struct nk_gen_token t = { .id = i,
                                  .index = i,
                                  .text = pieces[i],
                                  .text_size = strlen(pieces[i]),
                                  .logprob = -0.5f,
                                  .piece = pieces[i],
                                  .piece_size = strlen(pieces[i]),
                                  .n_top = 1 };

        t.top[0] = (struct nk_gen_top){
            .id = i, .logprob = -INFINITY, .text = "\xf0\x9f", .text_size = 2
        };
        assert_int_equal(nk__reply_token(r, 0, &t, &out, &ended, NULL), 0);
        d.n_generated++;
    }
    assert_int_equal(nk__reply_done(r, 0, &d, &out, NULL), 0);
    assert_int_equal(nk__reply_end(r, &out, NULL), 0);
    nk__reply_free(r);
    return nk_buf_take(&out, NULL);
}

static json_t *json(const char *text, size_t size)
{
    json_error_t e;
    json_t *v = json_loadb(text, size, JSON_REJECT_DUPLICATES, &e);

    if (!v)
        fail_msg("%.*s: %s", (int)size, text, e.text);
    return v;
}

/* The frames of a stream, as a JSON array; SSE must end with [DONE]. */
static json_t *frames(const char *text, bool sse)
{
    json_t *list = json_array();
    const char *sep = sse ? "\n\n" : "\n";

    while (*text) {
        const char *end = strstr(text, sep);

        assert_non_null(end);
        if (sse) {
            assert_memory_equal(text, "data: ", 6);
            text += 6;
        }
        if (end - text == 6 && !memcmp(text, "[DONE]", 6)) {
            assert_string_equal(end, "\n\n");
            return list;
        }
        json_array_append_new(list, json(text, (size_t)(end - text)));
        text = end + strlen(sep);
    }
    assert_false(sse);
    return list;
}

/* All values at path (dot separated, numbers are indices) of the frames, joined. */
static const json_t *get(const json_t *v, const char *path)
{
    char word[64];

    while (v && *path) {
        size_t n = strcspn(path, ".");

        snprintf(word, sizeof word, "%.*s", (int)n, path);
        v = json_is_array(v) ? json_array_get(v, (size_t)atoi(word)) : json_object_get(v, word);
        path += n + (path[n] == '.');
    }
    return v;
}

static const char *joined(const json_t *list, const char *path)
{
    static char text[4096];
    size_t i;
    json_t *f;

    text[0] = '\0';
    json_array_foreach((json_t *)list, i, f)
    {
        const char *s = json_string_value(get(f, path));

        if (s)
            strcat(text, s);
    }
    return text;
}

static const char *const thinking[] = { "<think>",          "hm ", "\xe4\xb8\xad",
                                        "</think>",         "\n",  "yes\n",
                                        "\xf0\x9f\x98\x80", "",    NULL };
static const char *const calling[] = { "so\n<tool", "_call>{\"name\":\"f\",\"arguments\":{\"a\":",
                                       "\"\xc3\xa9\\n\"}}", "</tool_call>", NULL };

static void test_reply__streamed_text_is_the_whole_text(void **state)
{
    (void)state;
    for (int api = NK_API_CHAT; api <= NK_API_OLLAMA_GENERATE; api++) {
        static const char *const whole_paths[] = { "choices.0.message.content", "choices.0.text",
                                                   "message.content", "response" };
        static const char *const delta_paths[] = { "choices.0.delta.content", "choices.0.text",
                                                   "message.content", "response" };
        struct nk_reply_opts o = opts_for((enum nk_api)api, false);
        char *whole = reply(&o, thinking, NK_FINISH_EOG), *stream;
        json_t *w = json(whole, strlen(whole)), *s;

        o.stream = true;
        stream = reply(&o, thinking, NK_FINISH_EOG);
        s = frames(stream, nk__api_is_openai((enum nk_api)api));
        assert_string_equal(joined(s, delta_paths[api]),
                            json_string_value(get(w, whole_paths[api])));
        if (o.parse) {
            assert_string_equal(json_string_value(get(w, whole_paths[api])),
                                "yes\n\xf0\x9f\x98\x80!");
            assert_string_equal(joined(s, api == NK_API_CHAT ? "choices.0.delta.reasoning_content"
                                                             : "message.thinking"),
                                "hm \xe4\xb8\xad");
            assert_string_equal(
                json_string_value(get(w, api == NK_API_CHAT ? "choices.0.message.reasoning_content"
                                                            : "message.thinking")),
                "hm \xe4\xb8\xad");
        } else
            assert_string_equal(json_string_value(get(w, whole_paths[api])),
                                "<think>hm \xe4\xb8\xad</think>\nyes\n\xf0\x9f\x98\x80!");
        json_decref(w);
        json_decref(s);
        free(whole);
        free(stream);
    }
}

static void test_reply__chat_chunks_have_openais_shape(void **state)
{
    struct nk_reply_opts o = opts_for(NK_API_CHAT, true);
    char *text;
    json_t *s;
    const json_t *last, *usage;

    (void)state;
    o.include_usage = true;
    text = reply(&o, thinking, NK_FINISH_LENGTH);
    s = frames(text, true);
    assert_string_equal(json_string_value(get(s, "0.object")), "chat.completion.chunk");
    assert_string_equal(json_string_value(get(s, "0.id")), "chatcmpl-x1");
    assert_string_equal(json_string_value(get(s, "0.model")), "m\"odel");
    assert_string_equal(json_string_value(get(s, "0.choices.0.delta.role")), "assistant");
    assert_null(get(s, "1.choices.0.delta.role"));
    assert_true(json_is_null(get(s, "0.usage")));
    last = json_array_get(s, json_array_size(s) - 2);
    assert_string_equal(json_string_value(get(last, "choices.0.finish_reason")), "length");
    assert_int_equal(json_object_size(get(last, "choices.0.delta")), 0);
    usage = json_array_get(s, json_array_size(s) - 1);
    assert_int_equal(json_array_size(get(usage, "choices")), 0);
    assert_int_equal(json_integer_value(get(usage, "usage.prompt_tokens")), 5);
    assert_int_equal(json_integer_value(get(usage, "usage.completion_tokens")), 8);
    assert_int_equal(json_integer_value(get(usage, "usage.total_tokens")), 13);
    assert_int_equal(json_integer_value(get(usage, "usage.prompt_tokens_details.cached_tokens")),
                     2);
    assert_int_equal(
        json_integer_value(get(usage, "usage.completion_tokens_details.reasoning_tokens")), 4);
    json_decref(s);
    free(text);
}

static void test_reply__tool_calls_come_as_deltas_and_whole(void **state)
{
    struct nk_reply_opts o = opts_for(NK_API_CHAT, true);
    char *text = reply(&o, calling, NK_FINISH_EOG);
    json_t *s = frames(text, true), *args = NULL;
    size_t i, k, n_begin = 0;
    json_t *f, *call;
    char arguments[200] = "";
    const char *id;

    (void)state;
    json_array_foreach(s, i, f)
    {
        json_array_foreach((json_t *)get(f, "choices.0.delta.tool_calls"), k, call)
        {
            if (json_object_get(call, "id")) {
                n_begin++;
                assert_string_equal(json_string_value(get(call, "function.name")), "f");
                assert_string_equal(json_string_value(get(call, "type")), "function");
            }
            assert_int_equal(json_integer_value(json_object_get(call, "index")), 0);
            strcat(arguments, json_string_value(get(call, "function.arguments")));
        }
    }
    assert_int_equal(n_begin, 1);
    assert_string_equal(arguments, "{\"a\":\"\xc3\xa9\\n\"}");
    /* The tail came after the call: content. */
    assert_string_equal(joined(s, "choices.0.delta.content"), "so!");
    assert_string_equal(json_string_value(get(json_array_get(s, json_array_size(s) - 1),
                                              "choices.0.finish_reason")),
                        "tool_calls");
    json_decref(s);
    free(text);

    o.stream = false;
    text = reply(&o, calling, NK_FINISH_EOG);
    s = json(text, strlen(text));
    assert_string_equal(
        json_string_value(get(s, "choices.0.message.tool_calls.0.function.arguments")), arguments);
    id = json_string_value(get(s, "choices.0.message.tool_calls.0.id"));
    assert_int_equal(strlen(id), 9); /* Mistral's templates take no other */
    assert_int_equal(strspn(id, "0123456789abcdefghijklmnopqrstuvwxyz"), 9);
    assert_string_equal(json_string_value(get(s, "choices.0.finish_reason")), "tool_calls");
    json_decref(s);
    free(text);

    o = opts_for(NK_API_OLLAMA_CHAT, true);
    text = reply(&o, calling, NK_FINISH_EOG);
    s = frames(text, false);
    args = (json_t *)get(json_array_get(s, json_array_size(s) - 1),
                         "message.tool_calls.0.function.arguments");
    assert_string_equal(json_string_value(json_object_get(args, "a")), "\xc3\xa9\n");
    json_decref(s);
    free(text);
}

static void test_reply__log_probabilities(void **state)
{
    static const char *const pieces[] = { "a", "\xc3\xa9", NULL };
    struct nk_reply_opts o = opts_for(NK_API_CHAT, false);
    char *text;
    json_t *v;

    (void)state;
    o.n_logprobs = 1;
    text = reply(&o, pieces, NK_FINISH_EOG);
    v = json(text, strlen(text));
    assert_int_equal(json_array_size(get(v, "choices.0.logprobs.content")), 2);
    assert_string_equal(json_string_value(get(v, "choices.0.logprobs.content.1.token")),
                        "\xc3\xa9");
    assert_int_equal(json_integer_value(get(v, "choices.0.logprobs.content.1.bytes.1")), 0xa9);
    assert_true(json_real_value(get(v, "choices.0.logprobs.content.0.logprob")) == -0.5);
    /* Half a character is shown as U+FFFD, its bytes are true; what is impossible has OpenAI's
     * number. */
    assert_string_equal(
        json_string_value(get(v, "choices.0.logprobs.content.0.top_logprobs.0.token")),
        "\xef\xbf\xbd");
    assert_int_equal(json_array_size(get(v, "choices.0.logprobs.content.0.top_logprobs.0.bytes")),
                     2);
    assert_true(json_number_value(get(v, "choices.0.logprobs.content.0.top_logprobs.0.logprob")) ==
                -9999);
    json_decref(v);
    free(text);
    o = opts_for(NK_API_COMPLETION, false);
    o.n_logprobs = 1;
    text = reply(&o, pieces, NK_FINISH_EOG);
    v = json(text, strlen(text));
    assert_string_equal(json_string_value(get(v, "choices.0.logprobs.tokens.1")), "\xc3\xa9");
    assert_int_equal(json_integer_value(get(v, "choices.0.logprobs.text_offset.1")), 1);
    json_decref(v);
    free(text);
}

static void test_reply__ollamas_last_frame_counts_and_times(void **state)
{
    struct nk_reply_opts o = opts_for(NK_API_OLLAMA_GENERATE, true);
    char *text = reply(&o, thinking, NK_FINISH_LENGTH);
    json_t *s = frames(text, false);
    const json_t *last = json_array_get(s, json_array_size(s) - 1);

    (void)state;
    assert_true(json_is_false(get(s, "0.done")));
    assert_true(json_is_true(get(last, "done")));
    assert_string_equal(json_string_value(get(last, "done_reason")), "length");
    assert_int_equal(json_integer_value(get(last, "total_duration")), 9000);
    assert_int_equal(json_integer_value(get(last, "load_duration")), 1000);
    assert_int_equal(json_integer_value(get(last, "prompt_eval_count")), 5);
    assert_int_equal(json_integer_value(get(last, "prompt_eval_duration")), 3000);
    assert_int_equal(json_integer_value(get(last, "eval_count")), 8);
    assert_int_equal(json_integer_value(get(last, "eval_duration")), 4000);
    json_decref(s);
    free(text);
}

/* OpenAI's SDKs build the message from it. */
static void test_reply__a_chats_first_chunk_has_the_role_alone(void **state)
{
    static const char *const pieces[] = { "a", "b", NULL };
    struct nk_reply_opts o = opts_for(NK_API_CHAT, true);
    char *text = reply(&o, pieces, NK_FINISH_LENGTH);
    json_t *s = frames(text, true);
    const json_t *delta;

    (void)state;
    delta = get(s, "0.choices.0.delta");
    assert_string_equal(json_string_value(json_object_get(delta, "role")), "assistant");
    assert_true(json_is_null(json_object_get(delta, "content")));
    assert_int_equal(json_object_size(delta), 2);
    for (size_t i = 1; i < json_array_size(s); i++)
        assert_null(json_object_get(get(json_array_get(s, i), "choices.0.delta"), "role"));
    assert_string_equal(json_string_value(get(s, "1.choices.0.delta.content")), "a");
    assert_int_equal(json_object_size(get(s, "4.choices.0.delta")), 0);
    assert_int_equal(json_integer_value(get(s, "4.timings.predicted_n")), 2);
    json_decref(s);
    free(text);
}

static void test_reply__keepalives_of_ollama_are_lines_that_say_nothing(void **state)
{
    struct nk_reply_opts o = opts_for(NK_API_OLLAMA_CHAT, true);
    struct nk_buf out = NK_BUF_INIT(4096);
    nk_reply *r = nk__reply_new(&o);
    json_t *v;

    (void)state;
    assert_int_equal(nk__reply_keepalive(r, &out, NULL), 0);
    v = json(out.data, out.size);
    assert_string_equal(json_string_value(get(v, "message.content")), "");
    assert_true(json_is_false(get(v, "done")));
    assert_int_equal(out.data[out.size - 1], '\n');
    json_decref(v);
    nk_buf_release(&out);
    nk__reply_free(r);
}

static void test_reply__progress_of_the_prompt_is_a_chunk_with_nothing_else(void **state)
{
    static const struct {
        enum nk_api api;
        const char *content;
    } dialects[] = { { NK_API_LLAMA_COMPLETION, "content" },
                     { NK_API_COMPLETION, "choices.0.text" },
                     { NK_API_CHAT, "choices.0.delta" },
                     { NK_API_OLLAMA_CHAT, NULL },
                     { NK_API_MESSAGES, NULL },
                     { NK_API_RESPONSES, NULL } };
    const struct nk_reply_progress p = { .n_total = 9, .n_reused = 2, .n_done = 5, .time_ms = 70 };

    (void)state;
    for (size_t i = 0; i < sizeof dialects / sizeof dialects[0]; i++) {
        struct nk_reply_opts o = opts_for(dialects[i].api, true);
        struct nk_buf out = NK_BUF_INIT(1 << 20);
        nk_reply *r = nk__reply_new(&o);
        const char *at;
        json_t *v;

        assert_int_equal(nk__reply_progress(r, 0, &p, &out, NULL), 0);
        if (!dialects[i].content) { /* there is no place for it */
            assert_int_equal(out.size, 0);
            nk__reply_free(r);
            continue;
        }
        at = nk_buf_str(&out);
        if (o.api == NK_API_CHAT) /* the role comes first, alone */
            at = strstr(at, "\n\n") + 2;
        assert_memory_equal(at, "data: ", 6);
        v = json(at + 6, strlen(at) - 8);
        assert_int_equal(json_integer_value(get(v, "prompt_progress.total")), 9);
        assert_int_equal(json_integer_value(get(v, "prompt_progress.cache")), 2);
        assert_int_equal(json_integer_value(get(v, "prompt_progress.processed")), 5);
        assert_int_equal(json_integer_value(get(v, "prompt_progress.time_ms")), 70);
        if (o.api == NK_API_CHAT)
            assert_int_equal(json_object_size(get(v, dialects[i].content)), 0);
        else
            assert_string_equal(json_string_value(get(v, dialects[i].content)), "");
        json_decref(v);
        nk_buf_release(&out);
        nk__reply_free(r);
        o.stream = false;
        r = nk__reply_new(&o);
        assert_int_equal(nk__reply_progress(r, 0, &p, &out, NULL), 0);
        assert_int_equal(out.size, 0);
        nk__reply_free(r);
    }
}

/* What stands in one frame of a stream: n-th of those with `data: `. */
static json_t *frame(const struct nk_buf *out, int n)
{
    const char *at = nk_buf_str(out), *end;

    for (int i = 0; i < n; i++)
        at = strstr(at, "\n\n") + 2;
    end = strstr(at, "\n\n");
    assert_memory_equal(at, "data: ", 6);
    return json(at + 6, (size_t)(end - at) - 6);
}

static void test_reply__timings_per_token_are_in_each_chunk_with_text(void **state)
{
    static const enum nk_api apis[] = { NK_API_LLAMA_COMPLETION, NK_API_COMPLETION, NK_API_CHAT };
    const struct nk_reply_timings so_far = {
        .n_prompt = 9, .n_reused = 2, .n_generated = 3, .prefill_us = 14000, .decode_us = 6000
    };
    const struct nk_gen_token t = { .text = "a", .text_size = 1, .logprob = NAN };

    (void)state;
    for (size_t i = 0; i < sizeof apis / sizeof apis[0]; i++)
        for (int asked = 0; asked < 2; asked++) {
            struct nk_reply_opts o = opts_for(apis[i], true);
            struct nk_buf out = NK_BUF_INIT(1 << 20);
            nk_reply *r;
            json_t *v;
            bool ended;

            o.timings_per_token = asked;
            o.include_usage = true; /* changes nothing of it */
            r = nk__reply_new(&o);
            nk__reply_timings(r, 0, &so_far);
            assert_int_equal(nk__reply_token(r, 0, &t, &out, &ended, NULL), 0);
            if (o.api == NK_API_CHAT) { /* the role alone */
                v = frame(&out, 0);
                assert_null(get(v, "timings"));
                json_decref(v);
            }
            v = frame(&out, o.api == NK_API_CHAT);
            assert_int_equal(get(v, "timings") != NULL, asked);
            if (asked) {
                assert_int_equal(json_integer_value(get(v, "timings.cache_n")), 2);
                assert_int_equal(json_integer_value(get(v, "timings.prompt_n")), 7);
                assert_true(json_number_value(get(v, "timings.prompt_per_second")) == 500);
                assert_int_equal(json_integer_value(get(v, "timings.predicted_n")), 3);
                assert_true(json_number_value(get(v, "timings.predicted_per_token_ms")) == 2);
            }
            json_decref(v);
            nk_buf_release(&out);
            nk__reply_free(r);
        }
}

static int write_settings(void *user, int choice, struct nk_buf *out, struct nk_error *err)
{
    (void)user, (void)choice;
    return nk_buf_adds(out, "\"generation_settings\":{\"seed\":7},\"prompt\":\"p\"", err);
}

/* All that the model wrote, as it wrote it, beside what was made of it. */
static void test_reply__verbose_tells_the_raw_text(void **state)
{
    static const char *const pieces[] = { "<think>", "hm", "</think>", "Hi", NULL };
    struct nk_reply_opts o = opts_for(NK_API_CHAT, false);
    json_t *v;
    char *text, *last;

    (void)state;
    o.settings = write_settings;
    o.verbose = true;
    text = reply(&o, pieces, NK_FINISH_STOP);
    v = json(text, strlen(text));
    assert_string_equal(json_string_value(get(v, "choices.0.message.content")), "Hi!");
    assert_string_equal(json_string_value(get(v, "__verbose.content")), "<think>hm</think>Hi!");
    assert_string_equal(json_string_value(get(v, "__verbose.prompt")), "p");
    assert_int_equal(json_integer_value(get(v, "__verbose.generation_settings.seed")), 7);
    assert_string_equal(json_string_value(get(v, "__verbose.stop_type")), "word");
    assert_non_null(get(v, "__verbose.timings"));
    json_decref(v);
    free(text);

    o.stream = true;
    text = reply(&o, pieces, NK_FINISH_STOP);
    last = strstr(text, "\"__verbose\":{");
    assert_non_null(last);
    assert_null(strstr(last + 12, "__verbose"));
    assert_non_null(strstr(last, "\"content\":\"<think>hm</think>Hi!\""));
    free(text);

    o.verbose = false;
    text = reply(&o, pieces, NK_FINISH_STOP);
    assert_null(strstr(text, "__verbose"));
    free(text);
}

static void test_reply__llama_servers_own_shape(void **state)
{
    static const char *const pieces[] = { "a", "\n", "b", NULL };
    struct nk_reply_opts o = opts_for(NK_API_LLAMA_COMPLETION, true);
    json_t *v, *fields;
    char *text, *at;

    (void)state;
    o.settings = write_settings;
    o.n_logprobs = 1;
    o.n_prompt = 5;
    text = reply(&o, pieces, NK_FINISH_STOP);
    at = text;
    for (int i = 0; i < 4; i++) {
        char *end = strstr(at, "\n\n");

        assert_non_null(end);
        assert_memory_equal(at, "data: ", 6);
        v = json(at + 6, (size_t)(end - at) - 6);
        assert_int_equal(json_is_true(get(v, "stop")), i == 3);
        assert_int_equal(json_integer_value(get(v, "tokens_evaluated")), 5);
        assert_string_equal(json_string_value(get(v, "content")), i < 3 ? pieces[i] : "!");
        if (i < 3) {
            assert_int_equal(json_integer_value(get(v, "tokens.0")), i);
            assert_int_equal(json_integer_value(get(v, "completion_probabilities.0.id")), i);
        } else {
            assert_string_equal(json_string_value(get(v, "stop_type")), "word");
            assert_true(json_is_true(get(v, "has_new_line")));
            assert_int_equal(json_integer_value(get(v, "generation_settings.seed")), 7);
            assert_int_equal(json_integer_value(get(v, "timings.prompt_n")), 3);
            assert_int_equal(json_integer_value(get(v, "timings.cache_n")), 2);
            assert_int_equal(json_integer_value(get(v, "timings.predicted_n")), 3);
        }
        json_decref(v);
        at = end + 2;
    }
    assert_string_equal(at, "");
    free(text);

    o.stream = false;
    o.return_tokens = true;
    text = reply(&o, pieces, NK_FINISH_LENGTH);
    v = json(text, strlen(text));
    assert_string_equal(json_string_value(get(v, "content")), "a\nb!");
    assert_string_equal(json_string_value(get(v, "stop_type")), "limit");
    assert_int_equal(json_array_size(get(v, "tokens")), 3);
    assert_int_equal(json_array_size(get(v, "completion_probabilities")), 3);
    json_decref(v);
    free(text);

    fields = json_pack("[s,s,s]", "content", "generation_settings/seed", "nothing");
    o.response_fields = fields;
    text = reply(&o, pieces, NK_FINISH_EOG);
    assert_string_equal(text, "{\"content\":\"a\\nb!\",\"generation_settings/seed\":7}\n");
    json_decref(fields);
    free(text);
}

static int write_echo(void *user, int choice, struct nk_buf *out, struct nk_error *err)
{
    (void)user, (void)choice;
    return nk_buf_adds(out, "prompt ", err);
}

static void test_reply__an_echo_is_before_the_text_once(void **state)
{
    static const char *const pieces[] = { "a", "b", NULL }, *const none[] = { NULL };
    struct nk_reply_opts o = opts_for(NK_API_COMPLETION, false);
    json_t *v;
    char *text;

    (void)state;
    o.before = write_echo;
    text = reply(&o, pieces, NK_FINISH_LENGTH);
    v = json(text, strlen(text));
    assert_string_equal(json_string_value(get(v, "choices.0.text")), "prompt ab!");
    json_decref(v);
    free(text);
    text = reply(&o, none, NK_FINISH_LENGTH);
    v = json(text, strlen(text));
    assert_string_equal(json_string_value(get(v, "choices.0.text")), "prompt !");
    json_decref(v);
    free(text);
}

static void test_reply__errors_have_the_dialects_shape(void **state)
{
    struct nk_error err;
    struct nk_buf out = NK_BUF_INIT(4096);
    json_t *v;

    (void)state;
    nk_fail(&err, NK_E_INVALID, "unknown_field", "\"x\": unknown");
    assert_int_equal(nk__error_status(&err), 400);
    nk__error_body(NK_DIALECT_OPENAI, false, &err, "x", &out);
    v = json(out.data, out.size);
    assert_string_equal(json_string_value(get(v, "error.message")), "\"x\": unknown");
    assert_string_equal(json_string_value(get(v, "error.type")), "invalid_request_error");
    assert_string_equal(json_string_value(get(v, "error.param")), "x");
    assert_string_equal(json_string_value(get(v, "error.code")), "unknown_field");
    json_decref(v);
    nk_buf_reset(&out);
    nk__error_body(NK_DIALECT_OLLAMA, true, &err, "x", &out);
    assert_string_equal(out.data, "{\"error\":\"\\\"x\\\": unknown\"}\n");
    nk_buf_reset(&out);
    nk_fail(&err, NK_E_INVALID, "context_length_exceeded", "too long");
    err.n_found = 300;
    err.n_max = 256;
    nk__error_body(NK_DIALECT_LLAMA, false, &err, "prompt", &out);
    v = json(out.data, out.size);
    assert_string_equal(json_string_value(get(v, "error.type")), "exceed_context_size_error");
    assert_string_equal(json_string_value(get(v, "error.code")), "context_length_exceeded");
    assert_int_equal(json_integer_value(get(v, "error.n_prompt_tokens")), 300);
    assert_int_equal(json_integer_value(get(v, "error.n_ctx")), 256);
    json_decref(v);
    nk_fail(&err, NK_E_EXHAUSTED, "body_too_large", "x");
    assert_int_equal(nk__error_status(&err), 413);
    nk_fail(&err, NK_E_EXHAUSTED, "queue_full", "x");
    assert_int_equal(nk__error_status(&err), 429);
    nk_buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reply__streamed_text_is_the_whole_text),
        cmocka_unit_test(test_reply__chat_chunks_have_openais_shape),
        cmocka_unit_test(test_reply__tool_calls_come_as_deltas_and_whole),
        cmocka_unit_test(test_reply__log_probabilities),
        cmocka_unit_test(test_reply__ollamas_last_frame_counts_and_times),
        cmocka_unit_test(test_reply__a_chats_first_chunk_has_the_role_alone),
        cmocka_unit_test(test_reply__keepalives_of_ollama_are_lines_that_say_nothing),
        cmocka_unit_test(test_reply__progress_of_the_prompt_is_a_chunk_with_nothing_else),
        cmocka_unit_test(test_reply__timings_per_token_are_in_each_chunk_with_text),
        cmocka_unit_test(test_reply__verbose_tells_the_raw_text),
        cmocka_unit_test(test_reply__llama_servers_own_shape),
        cmocka_unit_test(test_reply__an_echo_is_before_the_text_once),
        cmocka_unit_test(test_reply__errors_have_the_dialects_shape),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

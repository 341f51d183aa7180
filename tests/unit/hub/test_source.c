#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "hub/hub.h"
#include "hub/hub_int.h"

static const char hub[] = "https://huggingface.co";

static void test_source__begins_like_one(void **state)
{
    (void)state;
    assert_true(nk_hub_is_source("https://h/m.gguf"));
    assert_true(nk_hub_is_source("HTTPS://h/m.gguf"));
    assert_true(nk_hub_is_source("http://h/m.gguf")); /* to be refused with a sentence */
    assert_true(nk_hub_is_source("hf:"));
    assert_false(nk_hub_is_source("/home/me/m.gguf"));
    assert_false(nk_hub_is_source("hf/m.gguf"));
    assert_false(nk_hub_is_source("https:/m.gguf"));
    assert_false(nk_hub_is_source(""));
}

static void test_source__good_ones_say_where_they_are_and_lie(void **state)
{
    static const struct {
        const char *text, *url, *host, *name;
        bool hub;
        int n_shards;
    } all[] = {
        { "hf:o/r/m.gguf", "https://huggingface.co/o/r/resolve/main/m.gguf", "huggingface.co",
          "m.gguf", true, 1 },
        { "hf:o/r/a b/m#1.gguf@v1.0/x",
          "https://huggingface.co/o/r/resolve/v1.0%2Fx/a%20b/m%231.gguf", "huggingface.co",
          "m_1.gguf", true, 1 },
        { "hf:o/r/m-00003-of-00004.gguf",
          "https://huggingface.co/o/r/resolve/main/m-00001-of-00004.gguf", "huggingface.co",
          "m-00001-of-00004.gguf", true, 4 },
        { "https://Example.com/a/m.gguf?download=true#part",
          "https://Example.com/a/m.gguf?download=true", "example.com", "m.gguf", false, 1 },
        { "https://example.com/m-00002-of-00002.gguf?x=/y",
          "https://example.com/m-00001-of-00002.gguf?x=/y", "example.com", "m-00001-of-00002.gguf",
          false, 2 },
        { "https://huggingface.co/o/r/resolve/main/m.gguf",
          "https://huggingface.co/o/r/resolve/main/m.gguf", "huggingface.co", "m.gguf", true, 1 },
        { "https://huggingface.co:8443/m.gguf", "https://huggingface.co:8443/m.gguf",
          "huggingface.co_8443", "m.gguf", false, 1 },
        { "https://h/%2e%2E%2fx.gguf", "https://h/%2e%2E%2fx.gguf", "h", "_._x.gguf", false, 1 },
        { "http://127.0.0.1:8000/m.gguf", "http://127.0.0.1:8000/m.gguf", "127.0.0.1_8000",
          "m.gguf", false, 1 },
        { "http://[::1]/m.gguf", "http://[::1]/m.gguf", "___1_", "m.gguf", false, 1 },
        { "http://localhost/m.gguf", "http://localhost/m.gguf", "localhost", "m.gguf", false, 1 },
    };

    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        struct nk__hub_source s;
        struct nk_error err = { 0 };

        assert_int_equal(nk__hub_source_parse(&s, all[i].text, hub, &err), 0);
        assert_string_equal(s.url, all[i].url);
        assert_string_equal(s.host, all[i].host);
        assert_string_equal(s.name, all[i].name);
        assert_int_equal(s.hub, all[i].hub);
        assert_int_equal(s.n_shards, all[i].n_shards);
        assert_int_equal(s.shard, 1);
        assert_int_equal(strlen(s.key), 16);
        assert_null(strchr(s.shown, '#'));
        assert_null(strchr(s.shown, '='));
    }
}

static void test_source__bad_ones_get_a_sentence(void **state)
{
    static const struct {
        const char *text, *words;
    } all[] = {
        { "hf:", "hf:ORG/REPO/FILE.gguf" },
        { "hf:o/r", "hf:ORG/REPO/FILE.gguf" },
        { "hf:o//m.gguf", "empty" },
        { "hf:/r/m.gguf", "empty" },
        { "hf:o/r/", "empty" },
        { "hf:o/../m.gguf", "'..'" },
        { "hf:o/r/./m.gguf", "'.'" },
        { "hf:o/r/m.bin", ".gguf" },
        { "hf:o/r/.gguf@", "no revision" },
        { "hf:o/r/m.gguf@", "no revision" },
        { "hf:o/r/m.gguf@..", "no revision" },
        { "hf:o/r/m\x1b.gguf", "control" },
        { "hf:o/r/m-00000-of-00004.gguf", "shard 0 of 4" },
        { "https://", "no address" },
        { "https://h", "folder" },
        { "https://h/", "folder" },
        { "https://h/m.gguf/", "folder" },
        { "https://u:secret@h/m.gguf", "password" },
        { "https://secret@h/m.gguf", "password" },
        { "https:////u:secret@h/m.gguf", "" },
        { "https://u:sec/ret@h:x/m.gguf", "" },
        { "https://h:99999/m.gguf", "no address" },
        { "https://h/\xc3\xa4.gguf", "ASCII" },
        { "https://h/a b.gguf", "spaces" },
        { "https://h/m-00005-of-00004.gguf", "shard 5 of 4" },
        { "https://h/m-00001-of-99999.gguf", "at most" },
        { "http://h/m.gguf", "https:// is needed" },
        { "http://127.0.0.1.evil.com/m.gguf", "https:// is needed" },
        { "http://128.0.0.1/m.gguf", "https:// is needed" },
        { "http://localhost.evil.com/m.gguf", "https:// is needed" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        struct nk__hub_source s;
        struct nk_error err = { 0 };

        assert_int_equal(nk__hub_source_parse(&s, all[i].text, hub, &err), NK_E_INVALID);
        assert_string_equal(err.reason, "bad_source");
        if (!strstr(err.msg, all[i].words))
            fail_msg("%s: %s", all[i].text, err.msg);
        assert_null(strstr(err.msg, "secret"));
        assert_null(strchr(err.msg, '\x1b'));
    }
}

static void test_source__long_ones_are_refused_and_not_cut(void **state)
{
    static const char *const begins[] = { "https://h/", "hf:o/r/", "https://h/m.gguf?",
                                          "https://" };
    char *text = malloc(20000);

    (void)state;
    for (size_t i = 0; i < sizeof begins / sizeof begins[0]; i++)
        for (size_t n = 100; n < 10000; n = n * 5 / 4) {
            struct nk__hub_source s;
            struct nk_error err = { 0 };
            size_t at = (size_t)sprintf(text, "%s", begins[i]);

            memset(text + at, i == 1 ? ' ' : 'a', n); /* a space becomes three characters */
            strcpy(text + at + n, i == 3 ? "/m.gguf" : ".gguf");
            if (nk__hub_source_parse(&s, text, hub, &err))
                assert_string_equal(err.reason, "bad_source");
            else
                assert_true(strlen(s.url) >= strlen(text) - 4);
            assert_true(strlen(s.shown) < sizeof s.shown);
        }
    free(text);
}

static void test_source__shards_have_one_key_and_a_query_tells_sources_apart(void **state)
{
    struct nk__hub_source a, b, c;

    (void)state;
    assert_int_equal(nk__hub_source_parse(&a, "hf:o/r/m-00001-of-00003.gguf", hub, NULL), 0);
    assert_int_equal(nk__hub_source_parse(&b, "hf:o/r/m-00003-of-00003.gguf", hub, NULL), 0);
    assert_memory_equal(&a, &b, sizeof a);
    nk__hub_source_shard(&b, 3);
    assert_string_equal(b.name, "m-00003-of-00003.gguf");
    assert_string_equal(b.url, "https://huggingface.co/o/r/resolve/main/m-00003-of-00003.gguf");
    assert_string_equal(b.key, a.key);
    assert_int_equal(nk__hub_source_parse(&a, "https://h/m.gguf?a", hub, NULL), 0);
    assert_int_equal(nk__hub_source_parse(&b, "https://h/m.gguf?b", hub, NULL), 0);
    assert_int_equal(nk__hub_source_parse(&c, "https://h/m.gguf", hub, NULL), 0);
    assert_string_not_equal(a.key, b.key);
    assert_string_not_equal(a.key, c.key);
}

static void test_source__origins_are_scheme_host_and_port(void **state)
{
    (void)state;
    assert_true(nk__hub_same_origin("https://H/a", "https://h:443/b?c"));
    assert_false(nk__hub_same_origin("https://h/a", "https://h:444/a"));
    assert_false(nk__hub_same_origin("https://h/a", "http://h/a"));
    assert_false(nk__hub_same_origin("https://h/a", "https://h.evil.com/a"));
    assert_false(nk__hub_same_origin("https://h/a", "https://h@evil.com/a"));
    assert_false(nk__hub_same_origin("", ""));
}

static void test_source__redirects_lead_to_https_alone(void **state)
{
    (void)state;
    assert_true(nk__hub_may_redirect("https://h/a", "https://other/b"));
    assert_true(nk__hub_may_redirect("http://127.0.0.1/a", "http://localhost:8000/b"));
    assert_true(nk__hub_may_redirect("http://127.0.0.1/a", "https://h/b"));
    assert_false(nk__hub_may_redirect("https://h/a", "http://h/a"));
    assert_false(nk__hub_may_redirect("https://h/a", "http://127.0.0.1/a"));
    assert_false(nk__hub_may_redirect("https://127.0.0.1/a", "http://127.0.0.1/a"));
    assert_false(nk__hub_may_redirect("http://127.0.0.1/a", "http://h/a"));
    assert_false(nk__hub_may_redirect("https://h/a", "file:///etc/passwd"));
    assert_false(nk__hub_may_redirect("https://h/a", "ftp://h/a"));
    assert_false(nk__hub_may_redirect("https://h/a", "https://user@h/a"));
    assert_false(nk__hub_may_redirect("https://h/a", ""));
}

static void test_source__what_is_shown_has_no_secrets_and_no_controls(void **state)
{
    char out[256], small[40];

    (void)state;
    assert_string_equal(nk__hub_shown(out, sizeof out, "https://u:p@h/m?sig=1"), "https://h/m?...");
    assert_string_equal(nk__hub_shown(out, sizeof out, "https://u@p@h"), "https://h");
    assert_string_equal(nk__hub_shown(out, sizeof out, "https://h/a@b#x"), "https://h/a@b?...");
    assert_string_equal(nk__hub_shown(out, sizeof out, "https:////u:p@h/"), "https:////h/");
    assert_string_equal(nk__hub_shown(out, sizeof out, "https://h/\x1b[2J\n"), "https://h/^[[2J^J");
    assert_string_equal(nk__hub_shown(out, sizeof out, ""), "");
    nk__hub_shown(small, sizeof small,
                  "https://h/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    assert_true(strlen(small) < sizeof small);
}

static void test_source__the_hub_can_be_another_one(void **state)
{
    static const char *const bad[] = { "ftp://h",       "http://h",    "h",
                                       "https://u:p@h", "https://h?x", "https://h\n" };
    char out[512];
    struct nk_error err;

    (void)state;
    unsetenv("HF_ENDPOINT");
    assert_int_equal(nk__hub_endpoint(out, NULL), 0);
    assert_string_equal(out, hub);
    setenv("HF_ENDPOINT", "https://mirror:8443/hf//", 1);
    assert_int_equal(nk__hub_endpoint(out, NULL), 0);
    assert_string_equal(out, "https://mirror:8443/hf");
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        setenv("HF_ENDPOINT", bad[i], 1);
        assert_int_equal(nk__hub_endpoint(out, &err), NK_E_INVALID);
        assert_string_equal(err.reason, "bad_source");
    }
    unsetenv("HF_ENDPOINT");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_source__begins_like_one),
        cmocka_unit_test(test_source__good_ones_say_where_they_are_and_lie),
        cmocka_unit_test(test_source__bad_ones_get_a_sentence),
        cmocka_unit_test(test_source__long_ones_are_refused_and_not_cut),
        cmocka_unit_test(test_source__shards_have_one_key_and_a_query_tells_sources_apart),
        cmocka_unit_test(test_source__origins_are_scheme_host_and_port),
        cmocka_unit_test(test_source__redirects_lead_to_https_alone),
        cmocka_unit_test(test_source__what_is_shown_has_no_secrets_and_no_controls),
        cmocka_unit_test(test_source__the_hub_can_be_another_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

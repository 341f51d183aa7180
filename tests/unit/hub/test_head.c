#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "hub/hub_int.h"

static struct nk__hub_head head_of(const char *text)
{
    struct nk__hub_head h;

    nk__hub_head_init(&h);
    while (*text) {
        size_t n = strcspn(text, "\n");

        n += text[n] == '\n';
        nk__hub_head_add(&h, text, n);
        text += n;
    }
    return h;
}

static void test_head__says_what_the_server_says(void **state)
{
    struct nk__hub_head h = head_of("HTTP/1.1 206 Partial Content\r\n"
                                    "content-LENGTH:  56 \r\n"
                                    "Content-Range: bytes 100-155/4096\r\n"
                                    "ETag: \"a-b\"\r\n"
                                    "X-Linked-ETag: \"0123\"\r\n"
                                    "X-Linked-Size: 4096\r\n"
                                    "X-Repo-Commit: 0123456789abcdef0123456789abcdef01234567\r\n"
                                    "Retry-After: 7\r\n"
                                    "Content-Type: text/html; charset=utf-8\r\n"
                                    "\r\n");

    (void)state;
    assert_int_equal(h.status, 206);
    assert_int_equal(h.length, 56);
    assert_int_equal(h.range_begin, 100);
    assert_int_equal(h.range_end, 155);
    assert_int_equal(h.range_total, 4096);
    assert_string_equal(h.etag, "\"a-b\"");
    assert_string_equal(h.linked_etag, "\"0123\"");
    assert_string_equal(h.commit, "0123456789abcdef0123456789abcdef01234567");
    assert_int_equal(h.linked_size, 4096);
    assert_int_equal(h.retry_after_s, 7);
    assert_true(h.html);
    h = head_of("HTTP/1.1 416 no\r\nContent-Range: bytes */300\r\n");
    assert_int_equal(h.range_begin, -1);
    assert_int_equal(h.range_total, 300);
    /* It becomes a part of an address: nothing else than a commit does. */
    h = head_of("HTTP/1.1 200 OK\r\nX-Repo-Commit: ../../../0123456789abcdef0123456789abcdef0\r\n");
    assert_string_equal(h.commit, "");
}

static void test_head__the_last_one_counts(void **state)
{
    struct nk__hub_head h = head_of("HTTP/1.1 200 Connection established\r\nETag: \"proxy\"\r\n\r\n"
                                    "HTTP/2 100\r\n\r\nHTTP/2 200 \r\nContent-Length: 5\r\n");

    (void)state;
    assert_int_equal(h.status, 200);
    assert_int_equal(h.length, 5);
    assert_string_equal(h.etag, "");
}

static void test_head__what_is_not_of_its_form_is_not_there(void **state)
{
    static const char *const lengths[] = { "",
                                           "-1",
                                           "+5",
                                           "5x",
                                           "0x10",
                                           "5 5",
                                           "5,5",
                                           "1e3",
                                           "99999999999999999999",
                                           "9999999999999999999" };
    static const char *const ranges[] = { "",
                                          "bytes",
                                          "bytes ",
                                          "bytes 0-1",
                                          "bytes 0-1/",
                                          "bytes 0-1/*",
                                          "bytes 0-1/1",
                                          "bytes 5-4/9",
                                          "bytes 5-/9",
                                          "bytes -4/9",
                                          "bytes */",
                                          "bytes 0-99999999999999999999/5",
                                          "lines 0-1/2",
                                          "bytes 0-1/2 3",
                                          "bytes 0 -1/2" };
    static const char *const tags[] = {
        "",        "a",        "\"",      "\"a",      "a\"",          "W/",          "W/\"",
        "w/\"a\"", "\"a\"b\"", "\"a b\"", "\"\x1b\"", "\"\xc3\xa4\"", "\"a\", \"b\""
    };
    static const char *const statuses[] = { "HTTP/",          "HTTP/1.1",        "HTTP/1.1 ",
                                            "HTTP/1.1 x",     "HTTP/1.1 -200",   "HTTP/1.1 20000",
                                            "HTTP/1.1 99 OK", "HTTP/1.1  200 OK" };
    char line[1000];
    struct nk__hub_head h;

    (void)state;
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        snprintf(line, sizeof line, "Content-Length: %s\nX-Linked-Size: %s\nRetry-After: %s\n",
                 lengths[i], lengths[i], lengths[i]);
        h = head_of(line);
        assert_int_equal(h.length, -1);
        assert_int_equal(h.linked_size, -1);
        assert_int_equal(h.retry_after_s, -1);
    }
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        snprintf(line, sizeof line, "Content-Range: %s\n", ranges[i]);
        h = head_of(line);
        assert_int_equal(h.range_begin, -1);
        assert_int_equal(h.range_end, -1);
        assert_int_equal(h.range_total, -1);
    }
    for (size_t i = 0; i < sizeof tags / sizeof tags[0]; i++) {
        snprintf(line, sizeof line, "ETag: %s\nX-Linked-ETag: %s\n", tags[i], tags[i]);
        h = head_of(line);
        assert_string_equal(h.etag, "");
        assert_string_equal(h.linked_etag, "");
    }
    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++)
        assert_int_equal(head_of(statuses[i]).status, 0);
    /* Longer than any tag that is kept. */
    snprintf(line, sizeof line, "ETag: \"%0300d\"\n", 0);
    assert_string_equal(head_of(line).etag, "");
    snprintf(line, sizeof line, "ETag: \"%0253d\"\n", 0);
    assert_int_equal(strlen(head_of(line).etag), 255);
    head_of(":\n: x\n\n \n:::\nETag\n");
}

/* Lines are not C strings: nothing behind them is read (a sanitizer sees it). */
static void test_head__any_bytes_cut_anywhere_are_survived(void **state)
{
    static const char text[] = "HTTP/1.1 206 OK\rContent-Range: bytes 1-2/3\0ETag: W/\"x\"\xff\n";
    static const char *const lines[] = {
        text,         "Content-Range: bytes 1-2/3", "ETag: W/\"abc\"", "Content-Length: 12",
        "HTTP/2 200", "Content-Type: text/html"
    };

    (void)state;
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
        for (size_t n = 0; n <= (i ? strlen(lines[i]) : sizeof text); n++) {
            char *exact = malloc(n ? n : 1);
            struct nk__hub_head h;

            memcpy(exact, lines[i], n);
            nk__hub_head_init(&h);
            nk__hub_head_add(&h, exact, n);
            free(exact);
        }
}

static void test_head__tags_tell_what_they_are_good_for(void **state)
{
    static const char sum[] =
        "\"0123456789ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef\"";
    char hex[NK_SHA256_HEX];

    (void)state;
    assert_true(nk__hub_etag_is_strong("\"a\""));
    assert_false(nk__hub_etag_is_strong("W/\"a\""));
    assert_false(nk__hub_etag_is_strong(""));
    nk__hub_etag_sha256(hex, sum);
    assert_string_equal(hex, "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");
    nk__hub_etag_sha256(hex, sum + 1);
    assert_string_equal(hex, "");
    nk__hub_etag_sha256(hex, "\"0123456789abcdef0123456789abcdef01234567\""); /* git's SHA-1 */
    assert_string_equal(hex, "");
    nk__hub_etag_sha256(hex,
                        "\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdeg\"");
    assert_string_equal(hex, "");
    nk__hub_etag_sha256(hex, "");
    assert_string_equal(hex, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_head__says_what_the_server_says),
        cmocka_unit_test(test_head__the_last_one_counts),
        cmocka_unit_test(test_head__what_is_not_of_its_form_is_not_there),
        cmocka_unit_test(test_head__any_bytes_cut_anywhere_are_survived),
        cmocka_unit_test(test_head__tags_tell_what_they_are_good_for),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* docs/api.md shows the tables that the program reads requests by. To write them anew:
 * NK_DOCS_WRITE=1. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/file.h"
#include "gateway/request.h"
#include "gateway/routes.h"

static void write_tables(struct nk_buf *out)
{
    static const char *const words[] = { "works", "neutral", "ignored", "refused" };
    struct nk_field_table t;

    for (int i = 0; nk__field_table(i, &t); i++) {
        nk_buf_addf(out, NULL, "\n### %s\n\n| field | | |\n|---|---|---|\n", t.title);
        for (int k = 0; k < t.n; k++) {
            struct nk_field f = nk__field(i, k);

            nk_buf_addf(out, NULL, "| `%s` | %s | %s |\n", f.name, words[f.use], f.note);
        }
    }
    nk_buf_adds(out, "\n", NULL);
}

static void write_routes(struct nk_buf *out)
{
    const struct nk_route *r;

    nk_buf_adds(out, "\n| route | | what | key needed |\n|---|---|---|---|\n", NULL);
    for (int i = 0; (r = nk__route_at(i)); i++) {
        bool refused = r->kind == NK_ROUTE_REFUSED,
             prefix = r->path[1] && r->path[strlen(r->path) - 1] == '/';

        nk_buf_addf(out, NULL, "| `%s %s%s` | %s | %s | %s |\n", r->method, r->path,
                    prefix ? "..." : "", refused ? "refused" : "yes", r->what,
                    r->open ? "no" : "yes");
    }
    nk_buf_adds(out, "\n", NULL);
}

static void assert_shown(const char *begin, const char *end, void (*write)(struct nk_buf *out))
{
    struct nk_buf doc = NK_BUF_INIT(1 << 20), want = NK_BUF_INIT(1 << 20);
    struct nk_error err;
    char path[4096];
    char *from, *to;

    if (!getenv("NK_SOURCE"))
        fail_msg("NK_SOURCE is not set: ctest does");
    snprintf(path, sizeof path, "%s/docs/api.md", getenv("NK_SOURCE"));
    if (nk_file_read(path, 1 << 20, &doc, &err))
        fail_msg("%s", err.msg);
    from = strstr(doc.data, begin);
    to = strstr(doc.data, end);
    assert_true(from && to && from < to);
    nk_buf_add(&want, doc.data, (size_t)(from - doc.data) + strlen(begin), NULL);
    write(&want);
    nk_buf_adds(&want, to, NULL);
    if (getenv("NK_DOCS_WRITE"))
        assert_int_equal(nk_file_write(path, want.data, want.size, &err), 0);
    else
        assert_string_equal(doc.data, want.data);
    nk_buf_release(&doc);
    nk_buf_release(&want);
}

static void test_fields__the_documentation_shows_the_programs_own_tables(void **state)
{
    (void)state;
    assert_shown("<!-- fields: begin -->\n", "<!-- fields: end -->", write_tables);
}

static void test_fields__the_documentation_shows_the_programs_own_routes(void **state)
{
    (void)state;
    assert_shown("<!-- routes: begin -->\n", "<!-- routes: end -->", write_routes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields__the_documentation_shows_the_programs_own_tables),
        cmocka_unit_test(test_fields__the_documentation_shows_the_programs_own_routes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

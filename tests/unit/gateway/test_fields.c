/* docs/api.md shows the tables that the program reads requests by. To write them anew: NK_DOCS_WRITE=1. */
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

static void write_tables(struct nk_buf *out)
{
    static const char *const words[] = { "yes", "fixed", "refused" };
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

static void test_fields__the_documentation_shows_the_programs_own_tables(void **state)
{
    static const char begin[] = "<!-- fields: begin -->\n", end[] = "<!-- fields: end -->";
    struct nk_buf doc = NK_BUF_INIT(1 << 20), want = NK_BUF_INIT(1 << 20);
    struct nk_error err;
    char path[4096];
    char *from, *to;

    (void)state;
    if (!getenv("NK_SOURCE"))
        skip();
    snprintf(path, sizeof path, "%s/docs/api.md", getenv("NK_SOURCE"));
    if (nk_file_read(path, 1 << 20, &doc, &err))
        fail_msg("%s", err.msg);
    from = strstr(doc.data, begin);
    to = strstr(doc.data, end);
    assert_true(from && to && from < to);
    nk_buf_add(&want, doc.data, (size_t)(from - doc.data) + strlen(begin), NULL);
    write_tables(&want);
    nk_buf_adds(&want, to, NULL);
    if (getenv("NK_DOCS_WRITE"))
        assert_int_equal(nk_file_write(path, want.data, want.size, &err), 0);
    else
        assert_string_equal(doc.data, want.data);
    nk_buf_release(&doc);
    nk_buf_release(&want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields__the_documentation_shows_the_programs_own_tables),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

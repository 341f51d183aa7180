/* nakshatra-bench compare: two tables, what became better and what worse. */
#include "bench/command.h"

#include <stdio.h>

#include "bench/table.h"

enum { TEXT_BYTES_MAX = 4 << 20 };

int nk_cmd_compare(int argc, char **argv)
{
    const struct nk_arg args[] = { { 0 } };
    const struct nk_command cmd = { "compare BEFORE.csv AFTER.csv",
                                    "Says what became better, what became worse and what is within "
                                    "the noise of the runs. Exit code 1 when something\n"
                                    "became worse.",
                                    args, 2, 2 };
    struct nk_table a = NK_TABLE_INIT, b = NK_TABLE_INIT;
    struct nk_buf text = NK_BUF_INIT(TEXT_BYTES_MAX);
    struct nk_error err;
    int first, exit_code, n_worse = 0, rc = nk_command_parse(argc, argv, &cmd, &first, &exit_code);

    if (rc)
        return exit_code;
    rc = nk_table_read(&a, argv[first], &err);
    if (!rc)
        rc = nk_table_read(&b, argv[first + 1], &err);
    if (!rc)
        rc = nk_table_compare(&a, &b, &text, &n_worse, &err);
    if (!rc)
        fputs(nk_buf_str(&text), stdout);
    nk_table_release(&a);
    nk_table_release(&b);
    nk_buf_release(&text);
    return rc ? nk_command_report(&err) : n_worse ? NK_EXIT_FAILED : NK_EXIT_OK;
}

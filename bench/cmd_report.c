/* nakshatra-bench report: a page and its plots from a table that was kept. */
#include "bench/command.h"

#include "bench/report.h"

int nk_cmd_report(int argc, char **argv)
{
    const char *out = "docs/benchmarks.md";
    const struct nk_arg args[] = {
        NK_OPT_STRING("page", 'p', &out, "FILE", "the page"),
        { 0 },
    };
    const struct nk_command cmd = { "report FILE.csv [--page FILE.md]",
                                    "Makes the page with its plots from a table that was kept.",
                                    args, 1, 1 };
    struct nk_table t = NK_TABLE_INIT;
    struct nk_error err;
    int first, exit_code, rc = nk_command_parse(argc, argv, &cmd, &first, &exit_code);

    if (rc)
        return exit_code;
    rc = nk_table_read(&t, argv[first], &err);
    if (!rc)
        rc = nk_report_write(&t, argv[first], out, &err);
    nk_table_release(&t);
    return rc ? nk_command_report(&err) : NK_EXIT_OK;
}

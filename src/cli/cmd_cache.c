/* nakshatra cache: what the cache folder holds, and its emptying. */
#include "cli/cli.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/visible.h"
#include "pieces/shelf.h"

int nk_cmd_cache(int argc, char **argv);

static void print_age(int64_t seconds)
{
    if (seconds < 3600)
        printf("%4" PRId64 " min", seconds > 0 ? seconds / 60 : 0);
    else if (seconds < 86400)
        printf("%6" PRId64 " h", seconds / 3600);
    else
        printf("%6" PRId64 " d", seconds / 86400);
}

static void print_table(const struct nk_shelf_file *files, int n, const char *folder)
{
    int64_t now = (int64_t)time(NULL);
    uint64_t sum = 0;
    char size[24];

    for (int i = 0; i < n; i++) {
        const struct nk_shelf_file *f = &files[i];
        char name[128], layers[32];

        if (!i)
            printf("%12s  %-11s  %8s  %s\n", "size", "layers", "last use", "model");
        nk_visible_line(name, sizeof name, f->model);
        snprintf(layers, sizeof layers, "%d-%d", f->range.begin, f->range.end);
        printf("%12s  %-11s  ", nk_size_format(size, f->disk_bytes),
               f->range.end ? layers : "vocabulary");
        print_age(now - f->used_s);
        printf("  %s (%.8s)%s%s\n", name, f->model_sha256, f->is_partial ? ", not complete" : "",
               f->in_use ? ", in use" : "");
        sum += f->disk_bytes;
    }
    printf("%12s  in %d files in %s\n", nk_size_format(size, sum), n, folder);
}

static void print_json(const struct nk_shelf_file *files, int n, const char *folder)
{
    json_t *list = json_array(), *o;

    for (int i = 0; i < n; i++) {
        const struct nk_shelf_file *f = &files[i];

        json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:i, s:I, s:I, s:b, s:b}", "model",
                                              f->model, "model_sha256", f->model_sha256,
                                              "layer_begin", f->range.begin, "layer_end",
                                              f->range.end, "disk_bytes", (json_int_t)f->disk_bytes,
                                              "used_unix", (json_int_t)f->used_s, "complete",
                                              !f->is_partial, "in_use", f->in_use));
    }
    o = json_pack("{s:s, s:o}", "folder", folder, "files", list);
    json_dumpf(o, stdout, JSON_INDENT(2) | nk_cli_json_flags());
    putchar('\n');
    json_decref(o);
}

/* By name, or by the first digits (four at least) of its SHA-256. */
static bool is_of_model(const struct nk_shelf_file *f, const char *model)
{
    size_t n = strlen(model);

    return !strcmp(f->model, model) || (n >= 4 && !strncmp(f->model_sha256, model, n));
}

static int clear(const struct nk_shelf_file *files, int n, const char *model, int64_t days)
{
    int64_t now = (int64_t)time(NULL);
    int n_removed = 0, n_kept = 0, n_meant = 0;
    uint64_t sum = 0;
    struct nk_error err;
    char size[24];

    for (int i = 0; i < n; i++) {
        if (model && !is_of_model(&files[i], model))
            continue;
        n_meant++;
        if (days >= 0 && now - files[i].used_s < days * 86400)
            continue;
        if (nk_shelf_remove(&files[i])) {
            n_removed++;
            sum += files[i].disk_bytes;
        } else {
            n_kept++;
        }
    }
    if (model && !n_meant) {
        nk_fail(&err, NK_E_NOT_FOUND, "no_model",
                "the cache has nothing of a model '%s'; `nakshatra cache` lists what there is",
                model);
        return nk_cli_report(&err);
    }
    printf("%d file%s removed, %s", n_removed, n_removed == 1 ? "" : "s",
           nk_size_format(size, sum));
    if (n_kept)
        printf("; in use, and kept: %d", n_kept);
    putchar('\n');
    return nk_cli_flush(NK_EXIT_OK);
}

int nk_cmd_cache(int argc, char **argv)
{
    struct nk_shelf_file *files = NULL;
    int64_t days = -1;
    bool json = false;
    const struct nk_arg args[] = {
        NK_OPT_INT("older-than", 0, &days, "DAYS", 0, 100000,
                   "clear: only what was not used for so many days"),
        NK_OPT_FLAG("json", 'j', &json, "the list as one JSON object"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "cache [--json] | cache clear [MODEL] [--older-than DAYS]",
        .summary = "Lists the slices that worker, up and join keep in $XDG_CACHE_HOME/nakshatra "
                   "(~/.cache/nakshatra): sizes on the disk, layers, when they were last used "
                   "(some file systems are a day off) and of which model. cache clear removes "
                   "them, or those of one model (its name, or the first digits of its SHA-256); "
                   "what is in use stays. Slices of one model take at most about twice its size: "
                   "before new ones are cut, those that were not used for longest are removed.",
        .args = args,
        .n_max = 2,
    };
    int first, exit_code, n = 0, rc;
    char *folder = NULL;
    struct nk_error err;
    bool clears;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    clears = first < argc && !strcmp(argv[first], "clear");
    if ((first < argc && !clears) || (!clears && days >= 0)) {
        nk_fail(&err, NK_E_INVALID, "bad_argument", "'%s' is not understood; usage: nakshatra %s",
                first < argc ? argv[first] : "--older-than", cmd.usage);
        return nk_cli_report(&err);
    }
    rc = nk_shelf_list(&files, &n, &folder, &err);
    if (rc) {
        exit_code = nk_cli_report(&err);
    } else if (clears) {
        exit_code = clear(files, n, first + 1 < argc ? argv[first + 1] : NULL, days);
    } else {
        if (json)
            print_json(files, n, folder);
        else
            print_table(files, n, folder);
        exit_code = nk_cli_flush(NK_EXIT_OK);
    }
    free(files);
    free(folder);
    return exit_code;
}

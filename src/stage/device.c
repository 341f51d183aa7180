/* Process set-up and the devices that ggml knows. */
#include "stage/stage.h"
#include "stage/device_int.h"

#include <dirent.h>
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <ggml-backend.h>
#include <llama.h>

#include "base/log.h"

static _Thread_local char first_error[512];
static _Thread_local bool hushed;

const char *nk__llama_error(void)
{
    return first_error;
}

void nk__llama_error_reset(void)
{
    first_error[0] = '\0';
}

void nk__llama_hush(bool on)
{
    hushed = on;
}

/* "llama_model_load: error loading model: ..." without the function's name. The first one is the
 * cause; those that follow say whom it has stopped. */
static void keep_error(const char *line)
{
    const char *colon = strstr(line, ": ");

    if (first_error[0])
        return;
    snprintf(first_error, sizeof first_error, "%s",
             colon && !memchr(line, ' ', (size_t)(colon - line)) ? colon + 2 : line);
}

/* No function of libllama tells how large its compute buffers are, but it says so (at the level of
 * information): "sched_reserve:      CUDA0 compute buffer size =   304.75 MiB". */
static _Thread_local struct {
    char name[32];
    double mib;
} compute[8];

void nk__llama_compute_reset(void)
{
    memset(compute, 0, sizeof compute);
}

static void keep_compute(const char *line)
{
    const char *at = strstr(line, " compute buffer size ="), *name = at;
    size_t n;

    if (!at)
        return;
    while (name > line && name[-1] != ' ')
        name--;
    n = (size_t)(at - name);
    if (n == 0 || n >= sizeof compute[0].name)
        return;
    for (size_t i = 0; i < sizeof compute / sizeof compute[0]; i++)
        if (!compute[i].name[0] || (!strncmp(compute[i].name, name, n) && !compute[i].name[n])) {
            memcpy(compute[i].name, name, n);
            compute[i].mib = strtod(strchr(at, '=') + 1, NULL);
            return;
        }
}

void nk__llama_compute_bytes(const char *device, uint64_t *on_device, uint64_t *elsewhere)
{
    *on_device = *elsewhere = 0;
    for (size_t i = 0; i < sizeof compute / sizeof compute[0] && compute[i].name[0]; i++)
        if (!strcmp(compute[i].name, device))
            *on_device += (uint64_t)(compute[i].mib * (1 << 20));
        else
            *elsewhere += (uint64_t)(compute[i].mib * (1 << 20));
}

/* libllama's log comes in pieces of lines, from the thread that calls it. */
static void log_piece(enum ggml_log_level level, const char *text, void *user)
{
    static const enum nk_log_level levels[] = {
        [GGML_LOG_LEVEL_NONE] = NK_LOG_DEBUG,  [GGML_LOG_LEVEL_DEBUG] = NK_LOG_TRACE,
        [GGML_LOG_LEVEL_INFO] = NK_LOG_DEBUG,  [GGML_LOG_LEVEL_WARN] = NK_LOG_WARN,
        [GGML_LOG_LEVEL_ERROR] = NK_LOG_ERROR,
    };
    static _Thread_local char line[512];
    static _Thread_local size_t size;
    static _Thread_local enum nk_log_level line_level;
    char quoted[1100];

    (void)user;
    if (level != GGML_LOG_LEVEL_CONT) {
        size = 0;
        line_level = level >= GGML_LOG_LEVEL_NONE && level <= GGML_LOG_LEVEL_ERROR ? levels[level]
                                                                                   : NK_LOG_DEBUG;
    }
    if (line_level != NK_LOG_ERROR && line_level != NK_LOG_DEBUG &&
        !nk_log_enabled(NK_LOG_LLAMA, line_level))
        return;
    for (; *text; text++) {
        if (*text != '\n') {
            if (size < sizeof line - 1)
                line[size++] = *text;
            continue;
        }
        line[size] = '\0';
        if (size) {
            if (line_level == NK_LOG_ERROR)
                keep_error(line);
            if (line_level == NK_LOG_DEBUG)
                keep_compute(line);
            if (!hushed)
                nk_log(NK_LOG_LLAMA, line_level, "msg=%s",
                       nk_log_quote(quoted, sizeof quoted, line));
        }
        size = 0;
    }
}

/* Where the backends of a private llama.cpp are: beside its libggml, wherever that was loaded from,
 * so that an installed program uses the copy that was installed with it. False: ggml knows where
 * its own are. */
static bool private_backends(char *path, size_t size)
{
    void *f = dlsym(RTLD_DEFAULT, "ggml_backend_load_all_from_path");
    char real[PATH_MAX];
    Dl_info info;
    char *slash;

    if (!NK_BACKEND_SUBDIR[0] || !f || !dladdr(f, &info) || !realpath(info.dli_fname, real))
        return false;
    slash = strrchr(real, '/');
    *slash = '\0';
    return (size_t)snprintf(path, size, "%s/%s", real, NK_BACKEND_SUBDIR) < size;
}

void nk_stage_load_backends(void)
{
    char path[PATH_MAX];

    if (private_backends(path, sizeof path))
        ggml_backend_load_all_from_path(path);
    else
        ggml_backend_load_all();
}

/* How well the backend in this file runs here; 0: not at all. That is how ggml itself chooses among
 * its CPU backends: the file's function ggml_backend_score. */
static int backend_score(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    int (*score)(void) = NULL;
    int result = 0;

    if (!library)
        return 0;
    *(void **)&score = dlsym(library, "ggml_backend_score");
    if (score)
        result = score();
    dlclose(library);
    return result;
}

/* Loads the best of the CPU backends and no other; false where that cannot be told apart. */
static bool load_cpu_backend(void)
{
    char folder[PATH_MAX], path[PATH_MAX + 256], best[sizeof path] = "";
    int score_max = 0;
    struct dirent *e;
    DIR *d;

    /* GGML_BACKEND_PATH is ggml's own wish for one more of them. */
    if (getenv("GGML_BACKEND_PATH") || !private_backends(folder, sizeof folder) ||
        !(d = opendir(folder)))
        return false;
    while ((e = readdir(d))) {
        int score;

        if (strncmp(e->d_name, "libggml-cpu-", 12) != 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        score = backend_score(path);
        if (score > score_max) {
            score_max = score;
            memcpy(best, path, sizeof best);
        }
    }
    closedir(d);
    return score_max && ggml_backend_load(best);
}

void nk_stage_global_init(const char *device)
{
    static bool done;

    if (done)
        return;
    done = true;
    llama_log_set(log_piece, NULL);
    /* Drivers of other devices take time and memory, and are code that may fail: not for a device
     * that needs none. */
    if (!device || strcasecmp(device, "CPU") != 0 || !load_cpu_backend())
        nk_stage_load_backends();
    llama_backend_init();
}

static bool is_gpu(ggml_backend_dev_t dev)
{
    enum ggml_backend_dev_type type = ggml_backend_dev_type(dev);

    return type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
}

static bool is_usable(ggml_backend_dev_t dev)
{
    return is_gpu(dev) || ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

static void describe(struct nk_device *out, ggml_backend_dev_t dev)
{
    size_t free_bytes = 0, total_bytes = 0;

    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "%s", ggml_backend_dev_name(dev));
    snprintf(out->description, sizeof out->description, "%s", ggml_backend_dev_description(dev));
    ggml_backend_dev_memory(dev, &free_bytes, &total_bytes);
    out->memory_free_bytes = free_bytes;
    out->memory_total_bytes = total_bytes;
    out->is_gpu = is_gpu(dev);
}

int nk_device_list(struct nk_device *out, int max)
{
    int n = 0;

    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);

        if (!is_usable(dev))
            continue;
        if (n < max)
            describe(&out[n], dev);
        n++;
    }
    return n;
}

int nk__device_find(ggml_backend_dev_t *out, const char *name, struct nk_error *err)
{
    char known[256] = "", where[PATH_MAX];
    size_t size = 0;
    bool is_private;

    *out = NULL;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);

        if (!is_usable(dev))
            continue;
        if (name ? !strcasecmp(name, ggml_backend_dev_name(dev))
                 : !*out || (is_gpu(dev) && !is_gpu(*out)))
            *out = dev;
        if (size < sizeof known)
            size += (size_t)snprintf(known + size, sizeof known - size, "%s%s", size ? ", " : "",
                                     ggml_backend_dev_name(dev));
    }
    if (*out)
        return 0;
    is_private = private_backends(where, sizeof where);
    if (!known[0])
        return nk_fail(err, NK_E_NOT_FOUND, "no_device",
                       "ggml has no computing device: no backend was found%s%s (is llama.cpp "
                       "installed completely?)",
                       is_private ? " in " : "", is_private ? where : "");
    return nk_fail(err, NK_E_NOT_FOUND, "no_device", "there is no device '%s' here; there is: %s",
                   name, known);
}

int nk_device_find(struct nk_device *out, const char *name, struct nk_error *err)
{
    ggml_backend_dev_t dev;
    int rc = nk__device_find(&dev, name, err);

    if (!rc)
        describe(out, dev);
    return rc;
}

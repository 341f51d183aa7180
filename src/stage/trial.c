#include "stage/trial.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <ggml.h>
#include <llama.h>

#include "base/file.h"
#include "base/process.h"
#include "slice/layout.h"
#include "stage/device_int.h"
#include "stage/stage.h"

enum {
    CPU_S = 60,
    POLL_MS = 200, /* how soon an interruption is seen */
    TURNS = 1500,  /* five minutes: the machine may be busy with other things */
    ROWS = 2,
    CONTEXT = 256,
};

/* What the child leaves, however it ends. */
struct note {
    atomic_int at; /* the range that is being tried */
    atomic_bool done;
    int rc;
    struct nk_error err;
    char words[256]; /* llama.cpp's first ones */
};

static struct note *note; /* for the child's handlers */

static void keep_words(const char *words)
{
    size_t n = strcspn(words, "\n");

    if (note->words[0])
        return;
    if (n >= sizeof note->words)
        n = sizeof note->words - 1;
    memcpy(note->words, words, n);
    note->words[n] = '\0';
}

/* An error that was logged before is the cause, the assertion what came of it. */
static void on_abort(const char *message)
{
    keep_words(nk__llama_error()[0] ? nk__llama_error() : message);
}

/* The default action follows: the handler is for one time. */
static void on_death(int sig)
{
    keep_words(nk__llama_error());
    if (sig == SIGABRT) /* abort() sees to it itself */
        return;
    raise(sig);
}

static void prepare_child(int words_fd)
{
    static const int deaths[] = { SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL };
    static const int others[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };
    const struct rlimit cpu = { CPU_S, CPU_S }, no_core = { 0, 0 };
    struct sigaction once = { .sa_handler = on_death, .sa_flags = (int)SA_RESETHAND };
    int null = open("/dev/null", O_RDWR);

#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    for (size_t i = 0; i < sizeof deaths / sizeof deaths[0]; i++)
        sigaction(deaths[i], &once, NULL);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        signal(others[i], SIG_DFL);
    setrlimit(RLIMIT_CPU, &cpu);
    setrlimit(RLIMIT_CORE, &no_core);
    setenv("GGML_NO_BACKTRACE", "1", 1);
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    dup2(words_fd, STDERR_FILENO);
    ggml_set_abort_callback(on_abort);
}

/* A file of holes that is gone when the process is, however that ends. In a file system and not in
 * memory: what was read of holes there can be dropped again. */
static int open_file(const char *folder, char path[4608], int *fd, struct nk_error *err)
{
    snprintf(path, 4608, "%.4096s/trial.XXXXXX", folder);
    *fd = mkstemp(path);
    if (*fd < 0)
        return nk_fail(err, NK_E_EXHAUSTED, "no_files", "%s cannot be made: %s", path,
                       strerror(errno));
#ifdef __linux__
    unlink(path);
    snprintf(path, 4608, "/proc/self/fd/%d", *fd);
#endif
    return 0;
}

/* libllama has all that it maps read ahead (MAP_POPULATE), which for holes is time and page cache
 * for nothing. Reading ahead ends where a file does: so the file is its header while that happens,
 * which is after the log has told of the tensors and before it goes on. Where another llama.cpp
 * words it otherwise, a trial takes longer, and that is all. */
static struct {
    int fd;
    off_t size, header_size;
    bool is_short;
    ggml_log_callback next;
    void *next_user;
} mapped;

static void on_log(enum ggml_log_level level, const char *text, void *user)
{
    bool is_short = strstr(text, "loading model tensors") || strstr(text, "create_tensor: ");

    (void)user;
    if (is_short != mapped.is_short && mapped.header_size > 0 &&
        !ftruncate(mapped.fd, is_short ? mapped.header_size : mapped.size))
        mapped.is_short = is_short;
    mapped.next(level, text, mapped.next_user);
}

static int try_range(const nk_model *m, struct nk_range range, const char *folder,
                     struct nk_error *err)
{
    struct nk_stage_opts opts = nk_stage_opts_default();
    char path[4608];
    nk_stage *s = NULL;
    size_t n;
    int fd, rc = open_file(folder, path, &fd, err);

    if (rc)
        return rc;
    rc = nk_slice_write_hollow(m, range, fd, path, err);
    opts.device = "CPU";
    opts.n_ctx = CONTEXT;
    opts.n_seq_max = opts.n_batch = ROWS;
    opts.n_threads = 1;
    opts.verify = NK_VERIFY_NEVER;
    opts.trial = true;
    mapped.fd = fd;
    mapped.size = lseek(fd, 0, SEEK_END);
    mapped.header_size = lseek(fd, 0, SEEK_HOLE); /* all that was written; the size: unknown */
    mapped.is_short = false;
    llama_log_get(&mapped.next, &mapped.next_user);
    llama_log_set(on_log, NULL);
    if (!rc)
        rc = nk_stage_open(&s, path, &opts, err);
    llama_log_set(mapped.next, mapped.next_user);
    n = strlen(path);
    if (rc && !strncmp(err->msg, path, n) && !strncmp(err->msg + n, ": ", 2))
        memmove(err->msg, err->msg + n + 2, strlen(err->msg + n + 2) + 1);
    nk_stage_close(s);
    close(fd);
#ifndef __linux__
    unlink(path);
#endif
    return rc;
}

static void child(const nk_model *m, const struct nk_range *ranges, int n, const char *folder,
                  int words_fd)
{
    int rc = 0;

    prepare_child(words_fd);
    nk_stage_global_init("CPU");
    for (int i = 0; i < n && !rc; i++) {
        atomic_store(&note->at, i);
        nk__llama_error_reset();
        rc = try_range(m, ranges[i], folder, &note->err);
    }
    keep_words(nk__llama_error());
    note->rc = rc;
    atomic_store(&note->done, true);
    _exit(0);
}

/* What was said on standard error: of an exception that nobody caught, what it was. */
static void read_words(int fd, char out[256])
{
    char text[4096], *what;
    ssize_t n = pread(fd, text, sizeof text - 1, 0);

    out[0] = '\0';
    if (n <= 0)
        return;
    text[n] = '\0';
    what = strstr(text, "what():");
    what = what ? what + strlen("what():") : text;
    what += strspn(what, " \n");
    snprintf(out, 256, "%.*s", (int)strcspn(what, "\n"), what);
}

/* Waits for the child, which may be stuck, and the user may have lost patience. */
static int wait_child(int pid, struct nk_process *p, struct nk_error *err)
{
    *p = (struct nk_process)NK_PROCESS_INIT;
    p->pid = pid;
    for (int i = 0; i < TURNS; i++) {
        if (nk_process_wait(p, POLL_MS))
            return nk_split_interrupted()
                       ? nk_fail(err, NK_E_CANCELLED, "interrupted", "interrupted")
                       : 0;
        if (nk_split_interrupted())
            break;
    }
    nk_process_stop(p, 0);
    return nk_split_interrupted()
               ? nk_fail(err, NK_E_CANCELLED, "interrupted", "interrupted")
               : nk_fail(err, NK_E_DEADLINE, "trial", "a trial load has no end within %d s",
                         TURNS * POLL_MS / 1000);
}

static int judge(const nk_model *m, struct nk_range range, const struct nk_process *p, int words_fd,
                 struct nk_error *err)
{
    const char *arch = nk_model_info(m)->architecture;
    char how[96], words[256];
    const char *why;

    if (atomic_load(&note->done) && !note->rc)
        return 0;
    if (atomic_load(&note->done)) {
        if (note->rc != NK_E_UNIMPLEMENTED && note->rc != NK_E_INVALID) {
            if (err)
                *err = note->err;
            return nk_wrap(note->rc, err, "a trial load of layers %d-%d", range.begin, range.end);
        }
        return nk_fail(err, NK_E_UNIMPLEMENTED, "illegal_cut",
                       "layers %d-%d of this %s model cannot be a slice: in a trial, %.300s",
                       range.begin, range.end, arch, note->err.msg);
    }
    read_words(words_fd, words);
    nk_process_status_format(how, sizeof how, p->status);
    why = note->words[0] ? note->words : words[0] ? words : how;
    return nk_fail(err, NK_E_UNIMPLEMENTED, "illegal_cut",
                   "layers %d-%d of this %s model cannot be a slice: llama.cpp %s stops on it, as "
                   "a trial shows: %.200s",
                   range.begin, range.end, arch, llama_version(), why);
}

int nk_trial_ranges(const nk_model *m, const struct nk_range *ranges, int n, struct nk_error *err)
{
    struct nk_process p;
    char *folder = NULL, words[4608];
    int words_fd = -1, rc, pid;

    if (nk_model_is_compared(m, llama_version()))
        return 0;
    rc = nk_cache_dir(&folder, "trial", err);
    if (rc)
        return rc;
    note = mmap(NULL, sizeof *note, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (note == MAP_FAILED) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        goto out;
    }
    snprintf(words, sizeof words, "%.4096s/words.XXXXXX", folder);
    words_fd = mkstemp(words);
    if (words_fd < 0) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_files", "%s cannot be made: %s", words,
                     strerror(errno));
        goto out;
    }
    unlink(words);
    pid = fork();
    if (pid == 0)
        child(m, ranges, n, folder, words_fd);
    if (pid < 0) {
        rc = nk_fail(err, NK_E_UNAVAILABLE, "cannot_start", "no process for a trial load: %s",
                     strerror(errno));
        goto out;
    }
    rc = wait_child(pid, &p, err);
    if (!rc)
        rc = judge(m, ranges[atomic_load(&note->at)], &p, words_fd, err);
out:
    if (words_fd >= 0)
        close(words_fd);
    if (note != MAP_FAILED)
        munmap(note, sizeof *note);
    note = NULL;
    free(folder);
    return rc;
}

int nk_trial_uncached(nk_model *m, const struct nk_range *ranges, int n, struct nk_error *err)
{
    struct nk_range left[NK_LAYERS_MAX];
    int n_left = 0, rc = 0;

    if (nk_model_is_compared(m, llama_version()))
        return 0;
    for (int i = 0; i < n && !rc; i++) {
        char *path;

        rc = nk_slice_cache_find(m, ranges[i], NK_VERIFY_NEVER, &path, err);
        if (!rc && !path)
            left[n_left++] = ranges[i];
        free(path);
    }
    return rc || !n_left ? rc : nk_trial_ranges(m, left, n_left, err);
}

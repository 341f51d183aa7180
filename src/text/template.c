/* Parent and child are one program, so that a message is a struct followed by its texts:
 *
 *     parent: struct question, its texts     child: struct answer, its text
 *
 * The first question of a child is the template itself, every further one is a render. A child
 * reads a question whole before it answers. */
#include "text/template.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/process.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED
#elif defined(__has_feature) /* clang's way to tell */
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif
#ifdef SANITIZED
enum { SLOWER = 20, LIMITED_MEMORY = false }; /* their shadows are terabytes of address space */
#else
enum { SLOWER = 1, LIMITED_MEMORY = true };
#endif

enum {
    TEXTS = 3,      /* template, bos, eos; or messages, tools, extra */
    WANTED_MS = 50, /* so often it is asked whether a result is still wanted */
    /* The child computes for less; this is for a machine that stands still. */
    ANSWER_MS_MAX = 60000,
    END_MS = 2000,
};

struct question {
    bool has[TEXTS];
    uint64_t size[TEXTS]; /* with the NULs that end them */
    bool add_generation_prompt;
    int64_t now;
    uint64_t out_max;
};

struct answer {
    int code; /* 0, or of the error */
    char reason[32], msg[512];
    struct nk_jinja_caps caps; /* of the first */
    uint64_t size;
};

struct child {
    struct nk_process process;
    int fd; /* the socket's end here */
};

struct nk_template {
    nk_jinja *jinja; /* or: */
    char *program;
    char *texts[TEXTS];
    struct nk_jinja_caps caps;
    pthread_mutex_t mutex; /* what follows */
    struct child *idle[NK_TEMPLATE_CHILDREN_MAX];
    int n_idle;
};

static int ms_max(const struct question *q)
{
    uint64_t size = 0;

    for (int i = 0; i < TEXTS; i++)
        size += q->has[i] ? q->size[i] : 0;
    return NK_TEMPLATE_MS_MAX + (int)(size * NK_TEMPLATE_MS_PER_MIB >> 20);
}

/* ---- the child's side ---- */

static bool read_all(int fd, void *out, size_t size)
{
    for (size_t n = 0; n < size;) {
        ssize_t got = read(fd, (char *)out + n, size - n);

        if (got <= 0 && !(got < 0 && errno == EINTR))
            return false;
        n += got > 0 ? (size_t)got : 0;
    }
    return true;
}

static bool write_all(int fd, const void *data, size_t size)
{
    for (size_t n = 0; n < size;) {
        ssize_t put = write(fd, (const char *)data + n, size - n);

        if (put < 0 && errno != EINTR)
            return false;
        n += put > 0 ? (size_t)put : 0;
    }
    return true;
}

/* Its texts are the caller's, also of a question that did not come whole. */
static bool read_question(int fd, struct question *q, char *texts[TEXTS])
{
    bool ok = read_all(fd, q, sizeof *q);

    for (int i = 0; i < TEXTS; i++) {
        texts[i] = NULL;
        if (!ok || !q->has[i])
            continue;
        texts[i] = malloc(q->size[i]);
        ok = texts[i] && read_all(fd, texts[i], q->size[i]);
    }
    return ok;
}

static bool write_answer(int fd, int rc, const struct nk_error *err, struct nk_jinja_caps caps,
                         const struct nk_buf *text)
{
    struct answer a = { .code = rc, .caps = caps, .size = rc ? 0 : text->size };

    if (rc) {
        memcpy(a.reason, err->reason, sizeof a.reason);
        memcpy(a.msg, err->msg, sizeof a.msg);
    }
    return write_all(fd, &a, sizeof a) && write_all(fd, nk_buf_str(text), a.size);
}

/* Time of computing, of this process: SIGPROF ends it. */
static void limit_time(int ms)
{
    struct itimerval t = { .it_value = { ms / 1000, ms % 1000 * 1000 } };

    setitimer(ITIMER_PROF, &t, NULL);
}

static void limit(int resource, rlim_t to)
{
    struct rlimit r = { to, to };

    setrlimit(resource, &r); /* a lower one that is there already stays */
}

int nk_template_serve(int fd)
{
    struct nk_buf text = NK_BUF_INIT(0);
    struct question q;
    char *texts[TEXTS];
    nk_jinja *jinja = NULL;
    bool ok = true;

    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_FSIZE, 0);
    if (LIMITED_MEMORY)
        limit(RLIMIT_AS, (rlim_t)NK_TEMPLATE_MIB_MAX << 20);
    while (ok && (ok = read_question(fd, &q, texts))) {
        struct nk_error err = { 0 };
        int rc;

        limit_time(ms_max(&q) * SLOWER);
        nk_buf_release(&text);
        nk_buf_init(&text, q.out_max);
        if (!jinja) {
            rc = nk_jinja_new(&jinja, texts[0], texts[1], texts[2], &err);
        } else {
            rc = nk_jinja_render(
                jinja,
                &(struct nk_jinja_input){ .messages = texts[0],
                                          .tools = texts[1],
                                          .extra = texts[2],
                                          .add_generation_prompt = q.add_generation_prompt,
                                          .now = q.now },
                &text, &err);
        }
        limit_time(0);
        ok = write_answer(fd, rc, &err,
                          jinja ? nk_jinja_describe(jinja) : (struct nk_jinja_caps){ 0 }, &text) &&
             jinja;
        for (int i = 0; i < TEXTS; i++)
            free(texts[i]);
    }
    nk_buf_release(&text);
    nk_jinja_free(jinja);
    return 0;
}

/* ---- children ---- */

static void end_child(struct child *c)
{
    if (!c)
        return;
    if (c->fd >= 0)
        close(c->fd); /* it ends by itself */
    nk_process_stop(&c->process, END_MS);
    free(c);
}

/* How it ended, as an error of the request that it had. Frees c. */
static int child_ended(struct child *c, const struct question *q, struct nk_error *err)
{
    char how[96] = "is gone";
    int status;

    shutdown(c->fd, SHUT_RDWR);
    if (nk_process_wait(&c->process, END_MS))
        nk_process_status_format(how, sizeof how, c->process.status);
    status = c->process.status;
    end_child(c);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGPROF)
        return nk_fail(err, NK_E_INVALID, "bad_template",
                       "the chat template: it computes for more than %d ms", ms_max(q));
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGFPE)
        return nk_fail(err, NK_E_INVALID, "bad_template", "the chat template: it divides by zero");
    return nk_fail(
        err, NK_E_INVALID, "bad_template",
        "the chat template: the process that rendered it %s; it is nested too deeply, or "
        "makes too much",
        how);
}

/* Waits until the socket is ready. 0, CANCELLED, or DEADLINE. */
static int wait_for(struct child *c, short events, uint64_t end_ns, struct nk_work *work,
                    struct nk_error *err)
{
    struct pollfd p = { .fd = c->fd, .events = events };

    for (;;) {
        int rc = nk_work_spend(work, 0, "the chat template", err);

        if (rc)
            return rc;
        if (poll(&p, 1, WANTED_MS) > 0)
            return 0;
        if (nk_now_ns() > end_ns)
            return nk_fail(err, NK_E_DEADLINE, "deadline",
                           "the chat template was not rendered in %d s", ANSWER_MS_MAX / 1000);
    }
}

/* 0; 1: the child has ended; an error's code. */
static int send_all(struct child *c, const void *data, size_t size, uint64_t end_ns,
                    struct nk_work *work, struct nk_error *err)
{
    for (size_t n = 0; n < size;) {
        ssize_t put = send(c->fd, (const char *)data + n, size - n, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (put > 0) {
            n += (size_t)put;
        } else if (put < 0 && errno == EAGAIN) {
            int rc = wait_for(c, POLLOUT, end_ns, work, err);

            if (rc)
                return rc;
        } else if (put < 0 && errno != EINTR) {
            return 1;
        }
    }
    return 0;
}

static int receive_all(struct child *c, void *out, size_t size, uint64_t end_ns,
                       struct nk_work *work, struct nk_error *err)
{
    for (size_t n = 0; n < size;) {
        ssize_t got = recv(c->fd, (char *)out + n, size - n, MSG_DONTWAIT);

        if (got > 0) {
            n += (size_t)got;
        } else if (got < 0 && errno == EAGAIN) {
            int rc = wait_for(c, POLLIN, end_ns, work, err);

            if (rc)
                return rc;
        } else if (got == 0 || errno != EINTR) {
            return 1;
        }
    }
    return 0;
}

/* Asks c and appends the answer's text to out. Afterwards *c is NULL when the child is of no more
 * use. */
static int ask(struct child **c, struct question *q, const char *const texts[TEXTS],
               struct nk_work *work, struct nk_jinja_caps *caps, struct nk_buf *out,
               struct nk_error *err)
{
    uint64_t end_ns = nk_now_ns() + ANSWER_MS_MAX * 1000000ull;
    struct answer a;
    char *where;
    int rc;

    for (int i = 0; i < TEXTS; i++) {
        q->has[i] = texts[i] != NULL;
        q->size[i] = texts[i] ? strlen(texts[i]) + 1 : 0;
    }
    rc = send_all(*c, q, sizeof *q, end_ns, work, err);
    for (int i = 0; i < TEXTS && !rc; i++)
        rc = send_all(*c, texts[i], q->size[i], end_ns, work, err);
    if (!rc)
        rc = receive_all(*c, &a, sizeof a, end_ns, work, err);
    if (!rc && a.code) { /* a template may have taken it over: its words are bounded */
        a.reason[sizeof a.reason - 1] = a.msg[sizeof a.msg - 1] = '\0';
        return nk_fail(err, a.code < 0 && a.code >= NK_E_UNAUTHENTICATED ? a.code : NK_E_INVALID,
                       a.reason, "%s", a.msg);
    }
    if (!rc) {
        *caps = a.caps;
        rc = nk_buf_reserve(out, a.size, &where, err);
    }
    if (!rc) {
        rc = receive_all(*c, where, a.size, end_ns, work, err);
        if (!rc)
            nk_buf_commit(out, a.size);
    }
    if (rc == 1) {
        rc = child_ended(*c, q, err);
        *c = NULL;
    } else if (rc) {
        if ((*c)->process.pid > 0)
            kill((*c)->process.pid, SIGKILL); /* it computes for nobody */
        end_child(*c);
        *c = NULL;
    }
    return rc;
}

/* A new one that has parsed the template. */
static int start_child(nk_template *t, struct child **out, struct nk_work *work,
                       struct nk_jinja_caps *caps, struct nk_error *err)
{
    struct nk_buf none = NK_BUF_INIT(0);
    struct question q = { .add_generation_prompt = false };
    struct child *c = calloc(1, sizeof *c);
    int fds[2] = { -1, -1 }, rc;
    char number[16];

    *out = NULL;
    if (!c)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory to render a chat template");
    c->process = (struct nk_process)NK_PROCESS_INIT;
    c->fd = -1;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds)) {
        free(c);
        return nk_fail(err, NK_E_UNAVAILABLE, "cannot_start", "no socket for a chat template: %s",
                       strerror(errno));
    }
    c->fd = fds[0];
    snprintf(number, sizeof number, "%d", fds[1]);
    rc = nk_process_start(
        &c->process,
        &(struct nk_process_opts){
            .argv = (const char *const[]){ "nakshatra", NK_TEMPLATE_ARG, number, NULL },
            .program = t->program,
            .keep_fds = &fds[1],
            .n_keep_fds = 1 },
        err);
    close(fds[1]);
    if (rc && work) /* where the program is is nobody's business who sends requests */
        rc = nk_fail(err, NK_E_UNAVAILABLE, "cannot_start",
                     "no process could be started for the chat template; try again later");
    if (!rc)
        rc = ask(&c, &q, (const char *const *)t->texts, work, caps, &none, err);
    if (rc)
        end_child(c);
    else
        *out = c;
    nk_buf_release(&none);
    return rc;
}

/* NULL: there is none. One that was killed meanwhile (by a person, for want of memory) is no
 * request's fault. */
static struct child *take_idle(nk_template *t)
{
    for (;;) {
        struct child *c = NULL;
        char byte;

        pthread_mutex_lock(&t->mutex);
        if (t->n_idle)
            c = t->idle[--t->n_idle];
        pthread_mutex_unlock(&t->mutex);
        if (!c || (recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN))
            return c;
        end_child(c);
    }
}

static void put_back(nk_template *t, struct child *c)
{
    pthread_mutex_lock(&t->mutex);
    if (t->n_idle < NK_TEMPLATE_CHILDREN_MAX) {
        t->idle[t->n_idle++] = c;
        c = NULL;
    }
    pthread_mutex_unlock(&t->mutex);
    end_child(c);
}

/* ---- templates ---- */

int nk_template_open(nk_template **out, const char *program, const char *text, const char *bos,
                     const char *eos, struct nk_error *err)
{
    nk_template *t = calloc(1, sizeof *t);
    struct child *c;
    int rc = 0;

    *out = NULL;
    if (!t)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the chat template");
    pthread_mutex_init(&t->mutex, NULL);
    if (!program) {
        rc = nk_jinja_new(&t->jinja, text, bos, eos, err);
        if (!rc)
            t->caps = nk_jinja_describe(t->jinja);
    } else {
        t->program = strdup(program);
        t->texts[0] = strdup(text);
        t->texts[1] = strdup(bos ? bos : "");
        t->texts[2] = strdup(eos ? eos : "");
        if (!t->program || !t->texts[0] || !t->texts[1] || !t->texts[2])
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the chat template");
        if (!rc)
            rc = start_child(t, &c, NULL, &t->caps, err);
        if (!rc)
            put_back(t, c);
    }
    if (rc) {
        nk_template_close(t);
        return rc;
    }
    *out = t;
    return 0;
}

void nk_template_close(nk_template *t)
{
    if (!t)
        return;
    while (t->n_idle)
        end_child(t->idle[--t->n_idle]);
    nk_jinja_free(t->jinja);
    free(t->program);
    for (int i = 0; i < TEXTS; i++)
        free(t->texts[i]);
    pthread_mutex_destroy(&t->mutex);
    free(t);
}

struct nk_jinja_caps nk_template_caps(const nk_template *t)
{
    return t->caps;
}

int nk_template_render(nk_template *t, const struct nk_jinja_input *input, struct nk_work *work,
                       struct nk_buf *out, struct nk_error *err)
{
    const char *const texts[TEXTS] = { input->messages, input->tools, input->extra };
    struct question q = { .add_generation_prompt = input->add_generation_prompt,
                          .now = input->now,
                          .out_max = out->max > out->size ? out->max - out->size : 0 };
    struct nk_jinja_caps caps;
    struct child *c = NULL;
    int rc = nk_work_spend(work, 0, "the chat template", err);

    if (rc)
        return rc;
    if (t->jinja)
        return nk_jinja_render(t->jinja, input, out, err);
    c = take_idle(t);
    if (!c)
        rc = start_child(t, &c, work, &caps, err);
    if (!rc)
        rc = ask(&c, &q, texts, work, &caps, out, err);
    if (c)
        put_back(t, c);
    return rc;
}

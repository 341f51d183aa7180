/* A chat template, rendered where it can do no harm: in a child process with limits.
 *
 * The engine (text/jinja.h) counts what it can, but a template that divides by a client's variable
 * ends the process it runs in, and so does one that is nested too deeply, or makes a string larger
 * than the memory. Templates come with models from anywhere. So a server has them parsed and
 * rendered by children of its own program: each has a limit on the time it computes for a request
 * and on its memory, and when one ends, that is an error of the request it had. A conversation at a
 * terminal has one, too.
 *
 * A child renders one request at a time; there are as many as threads render at once, and those
 * that have nothing to do are kept. They end with the object, and when this process is gone. */
#ifndef NK_TEXT_TEMPLATE_H
#define NK_TEXT_TEMPLATE_H

#include "base/buf.h"
#include "base/error.h"
#include "base/work.h"
#include "text/jinja.h"

enum {
    NK_TEMPLATE_MS_MAX = 800,      /* of computing, for one request; and so many more */
    NK_TEMPLATE_MS_PER_MIB = 250,  /* for each MiB of what it is given */
    NK_TEMPLATE_MIB_MAX = 2048,    /* a child's address space */
    NK_TEMPLATE_CHILDREN_MAX = 16, /* that are kept */
};

/* What the program is started with to be such a child: `PROGRAM NK_TEMPLATE_ARG FD`. */
#define NK_TEMPLATE_ARG "template-engine"

typedef struct nk_template nk_template; /* any thread, several at once */

/* Parses, and renders the engine's examples. program: the path of one whose main() calls
 * nk_template_serve; NULL: the template is rendered in this process. On success *out is the
 * caller's.
 *   nk_jinja_new's; INVALID bad_template also when the child ended, with how
 *   NOT_FOUND no_program, UNAVAILABLE cannot_start */
int nk_template_open(nk_template **out, const char *program, const char *text, const char *bos,
                     const char *eos, struct nk_error *err);
void nk_template_close(nk_template *t); /* when nobody renders */
struct nk_jinja_caps nk_template_caps(const nk_template *t);

/* nk_jinja_render. work: when its result is no longer wanted, the child is killed.
 *   nk_jinja_render's; INVALID bad_template also when the child ended, with how
 *   CANCELLED, and what starting a child can fail with */
int nk_template_render(nk_template *t, const struct nk_jinja_input *input, struct nk_work *work,
                       struct nk_buf *out, struct nk_error *err);

/* The child's side: answers until fd reads as ended. Returns the exit code. */
int nk_template_serve(int fd);

#endif

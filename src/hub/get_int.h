/* Within the layer: one file that is being got. hub.c: its lock and tries; part.c: what lies on the
 * disk of it; ask.c: one question to its source. One thread. */
#ifndef NK_HUB_GET_INT_H
#define NK_HUB_GET_INT_H

#include <curl/curl.h>

#include "base/progress.h"
#include "hub/hub.h"
#include "hub/hub_int.h"

enum {
    NK__HUB_MAGIC = 4, /* bytes that a GGUF file begins with */
};
#define NK__HUB_SIZE_MAX ((int64_t)1 << 50)

/* What a file is (NAME.json), or what is to become of a partial one (NAME.part.json). */
struct nk__hub_state {
    char etag[256], linked_etag[256]; /* as in struct nk__hub_head */
    char sha256[NK_SHA256_HEX];       /* "" unknown */
    char commit[41];                  /* of the hub, that was last seen to have it; "" unknown */
    uint64_t size;
};

struct nk__hub_file {
    const struct nk_hub_opts *opts; /* without zeros */
    struct nk__hub_source source;
    const char *token;                                                 /* NULL: none */
    char *path, *state_path, *part_path, *part_state_path, *lock_path; /* owned */
    int lock_fd, fd;                                                   /* fd: of .part, or -1 */
    uint64_t touched_ns;

    struct nk__hub_state have; /* of path; also of one that has just come */
    bool has;
    struct nk__hub_state part; /* of fd, bytes [0, at) of which are there */
    uint64_t at;
    nk_sha256 *sha; /* over [0, at); NULL when the SHA-256 is unknown */

    /* This try. */
    CURL *curl;
    char curl_error[CURL_ERROR_SIZE];
    struct nk__hub_head head;
    char linked_etag[256]; /* what the hub's redirect said */
    int64_t linked_size;
    char commit[41]; /* what it said this is of; "" nothing */
    bool at_source;  /* the question goes to the source's own host */
    bool resume;     /* a range is asked for */
    bool body;       /* the answer is being taken over */
    bool again; /* what is there does not fit the source any more: once more, from the beginning */
    bool kept;  /* the copy is what the source has */
    char magic[NK__HUB_MAGIC];
    size_t n_magic, n_ignored;
    int rc; /* what a callback found */
    struct nk_error err;

    uint64_t began_ns, line_ns, began_at;
    bool told;     /* that it begins */
    bool answered; /* somebody did, once */
    struct nk_progress bar;
    bool bar_on;
};

/* A line for a person. */
void nk__hub_say(struct nk__hub_file *g, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* To be called at least once a second while anything takes time. CANCELLED interrupted. */
int nk__hub_alive(struct nk__hub_file *g, struct nk_error *err);

/* ---- the disk (part.c) ---- */

/* A failed system call (errno): EXHAUSTED no_space, DENIED cannot_create. */
int nk__hub_fail_sys(struct nk_error *err, const char *path, const char *doing);
/* False: there is none, or it is nothing that this program wrote. */
bool nk__hub_state_read(struct nk__hub_state *s, const char *path);
/* Replaces what is there. As nk_file_write fails. */
int nk__hub_state_write(const struct nk__hub_file *g, const struct nk__hub_state *s,
                        const char *path, struct nk_error *err);

/* Can a part of it be gone on with? Its tag, or its SHA-256, must tell whether the source still has
 * the same: two halves of different files are the worst that could come of this. */
bool nk__hub_can_resume(const struct nk__hub_state *s);
/* What an earlier run has left (fd, at, part, sha), if it can be gone on with; else it is
 * removed. */
int nk__hub_part_open(struct nk__hub_file *g, struct nk_error *err);
/* A new one of size bytes, for what the head describes; what there was is removed. */
int nk__hub_part_begin(struct nk__hub_file *g, uint64_t size, struct nk_error *err);
int nk__hub_part_write(struct nk__hub_file *g, const char *data, size_t size, struct nk_error *err);
/* It is all here: compared with its SHA-256 and renamed. DATA_LOSS wrong_sha256: it was removed. */
int nk__hub_part_end(struct nk__hub_file *g, struct nk_error *err);
void nk__hub_part_forget(struct nk__hub_file *g); /* closes it; it stays on the disk */
void nk__hub_part_remove(struct nk__hub_file *g);

void nk__hub_progress_start(struct nk__hub_file *g);
void nk__hub_progress_stop(struct nk__hub_file *g);

/* ---- the source (ask.c) ---- */

/* Asks once, along redirects, for what is missing, or from the beginning. 0: all is here, or
 * g->again, or g->kept. *again: what went wrong may be over soon. */
int nk__hub_ask(struct nk__hub_file *g, bool from_start, bool *again, struct nk_error *err);

#endif

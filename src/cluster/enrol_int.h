/* The two sides of enrolment in what they share: messages, frames, proofs. Messages come from
 * strangers on the server's side, and from whoever has the cluster's CA on the client's. */
#ifndef NK_CLUSTER_ENROL_INT_H
#define NK_CLUSTER_ENROL_INT_H

#include <openssl/ssl.h>

#include "cluster/enrol.h"

enum { NK__VERSION_SIZE = 32 };

/* What a client sends:
 *
 *   { "v": 1, "name": "attic", "version": "0.3.0", "time": 1700000000, "request": PEM,
 *     "token": "0123456789", "proof": HEX,      to join, by nk_token_prove over ("join", ...)
 *     "old": PEM, "old_proof": HEX }            to renew, and optional to join: an old certificate,
 *                                               and nk_key_sign's over ("renew", ...) */
struct nk__enrol_request {
    char name[NK_MEMBER_NAME_SIZE]; /* "" where it was no name */
    char version[NK__VERSION_SIZE];
    int64_t time_s;
    char token[NK_TOKEN_ID_SIZE]; /* "": it renews */
    uint8_t proof[NK_TOKEN_PROOF_BYTES];
    struct nk_buf request;
    struct nk_buf old, old_proof; /* empty: none */
};
void nk__enrol_request_init(struct nk__enrol_request *r);
void nk__enrol_request_release(struct nk__enrol_request *r);
int nk__enrol_request_format(const struct nk__enrol_request *r, struct nk_buf *out,
                             struct nk_error *err);
/* r is initialised. INVALID bad_frame; EXHAUSTED. */
int nk__enrol_request_parse(struct nk__enrol_request *r, struct nk_bytes text,
                            struct nk_error *err);

/* What the server answers: an nk_enrolled without its key; or a refusal. */
void nk__enrolled_init(struct nk_enrolled *e);
int nk__enrol_reply_format(const struct nk_enrolled *e, struct nk_buf *out, struct nk_error *err);
int nk__enrol_refusal_format(const struct nk_error *refusal, int64_t now_s, struct nk_buf *out,
                             struct nk_error *err);
/* e is initialised. A refusal is the error that it says; INVALID bad_reply. */
int nk__enrol_reply_parse(struct nk_enrolled *e, struct nk_bytes text, struct nk_error *err);

/* What a proof is over: kind ("join" or "renew") and its NUL, the connection's exporter, the
 * request. */
int nk__enrol_proof_message(struct nk_buf *out, const char *kind, SSL *ssl, struct nk_bytes request,
                            struct nk_error *err);

/* ---- frames on a connection that does not block ---- */
struct nk__frame {
    struct nk_buf in; /* its ceiling is the largest message and the four bytes before it */
    struct nk_buf out;
    size_t n_sent;
};
void nk__frame_init(struct nk__frame *f, size_t in_max, size_t out_max);
void nk__frame_release(struct nk__frame *f);
/* What is added to f->out in between is the message. */
int nk__frame_begin(struct nk__frame *f, struct nk_error *err);
void nk__frame_end(struct nk__frame *f);
/* 1: done; 0: *events of poll() are to be waited for; negative: broken, or UNAVAILABLE `peer_gone`,
 * INVALID `bad_frame`. */
int nk__frame_send(struct nk__frame *f, SSL *ssl, short *events, struct nk_error *err);
int nk__frame_receive(struct nk__frame *f, SSL *ssl, short *events, struct nk_error *err);
struct nk_bytes nk__frame_message(const struct nk__frame *f); /* after 1 of nk__frame_receive */
/* The same for what SSL_accept and its like answer: 0 or negative. */
int nk__ssl_wait(SSL *ssl, int answer, short *events, struct nk_error *err);

/* ---- waking a thread that polls, when a clock that is moved by hand was moved ---- */
struct nk__waker {
    int fds[2]; /* poll the first; -1 while there is none */
    struct nk_clock *clock;
    struct nk_clock_listener listener;
};
int nk__waker_init(struct nk__waker *w, struct nk_clock *clock, struct nk_error *err);
void nk__waker_release(struct nk__waker *w);
void nk__waker_wake(struct nk__waker *w); /* any thread */
void nk__waker_read(struct nk__waker *w);

#endif

/* A system under measurement: ours, or a peer. Each answers the same questions about the same
 * model.
 *
 * Prompts are random ids of the exact length; end-of-generation tokens are never chosen; sampling
 * is greedy where there is sampling. A question whose run did not really run (an error, fewer
 * tokens than asked, another device) is an error, never a value. Blocking; one owner thread. */
#ifndef NK_BENCH_SYSTEM_H
#define NK_BENCH_SYSTEM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "bench/peer.h"
#include "bench/wan.h"

typedef struct nk_system nk_system;

struct nk_system_opts {
    const char *model;     /* the GGUF */
    const char *slice;     /* what `startup` loads: a slice of it that ends with the last layer */
    const char *device;    /* where ours computes; peers other than the CPU are not told apart */
    const char *work_dir;  /* slices, logs; exists */
    const char *self;      /* this program */
    const char *nakshatra; /* the one that is measured */
    nk_peers *peers;
    const nk_system *beside; /* "chain", "alone": the "serve" whose workers they use */
    int n_workers;           /* stages of ours, servers of RPC; 0: none, for `startup` alone */
    int n_threads;           /* of each; of a whole model: n_threads_whole */
    int n_threads_whole;
    int n_ctx; /* for all streams together */
    int n_streams_max;
    int n_vocab;        /* ids are drawn from [0, n_vocab) without the control tokens at the end */
    int n_embd;         /* the width of a row */
    bool f16;           /* ours: rows in half precision on the wire */
    const char *cache;  /* the KV cache's type; NULL: not told */
    bool no_flash_attn; /* with cache */
    bool trace; /* ours: workers write step traces, and each question has workers of its own */
    const struct nk_wan_shape *wan; /* ours: two workers with this between them; NULL: loopback */
    bool meter;             /* ours: what goes from the first to the second worker is counted */
    const char *real_model; /* `quality` of a model that means something */
    const char *ranges;     /* ours: "0-9,9-16", or NULL: balanced */
};

struct nk_system_ops {
    const char *name; /* "ours", "whole", "rpc" */
    int (*start)(nk_system **out, const struct nk_system_opts *opts, struct nk_error *err);
    void (*stop)(nk_system *s); /* NULL is fine */
    /* Tokens per second of all streams together while n_streams generate n_predict tokens each
     * after n_depth tokens of context (the same for each stream; at least 1), prefill not
     * counted. */
    int (*decode)(nk_system *s, int n_streams, int n_depth, int n_predict, double *tok_s,
                  struct nk_error *err);
    /* One stream's tokens per second after a prompt, and the prompt's own. */
    int (*after_prompt)(nk_system *s, int n_prompt, int n_predict, double tok_s[2],
                        struct nk_error *err);
    /* Prompt tokens per second of one prompt. */
    int (*prefill)(nk_system *s, int n_prompt, double *tok_s, struct nk_error *err);
    /* Milliseconds from asking to the first token, with a connection that is there. */
    int (*ttft)(nk_system *s, int n_prompt, double *ms, struct nk_error *err);
    /* The longest time between two tokens of one session, in ms, while another one's prompt of
     * n_prompt tokens is prefilled (0: nobody else is there). Ours with traces also: the limit, one
     * chunk and one step; the longest chunk, all stages together; a step while nobody else is
     * there. */
    int (*gap)(nk_system *s, int n_prompt, double ms[4], struct nk_error *err);
    /* Memory of all its processes that hold a part of the model, after a prompt: MiB, shared pages
     * counted once. */
    int (*memory)(nk_system *s, double *mib, struct nk_error *err);
    /* Seconds from starting a process to its being ready for requests; the file is in the page
     * cache. */
    int (*startup)(nk_system *s, double *seconds, struct nk_error *err);
    /* Microseconds per token and hop that are not spent computing, there and back: median, 99th
     * percentile, and the medians of the ways there and back (NAN where they are not known). */
    int (*hop)(nk_system *s, int n_predict, double us[4], struct nk_error *err);
    /* Milliseconds per token of one stream, from asking to the last token, divided by their number;
     * n_listeners others read /cluster/events meanwhile. */
    int (*token)(nk_system *s, int n_listeners, int n_predict, double *ms, struct nk_error *err);
    /* How many of n_clients that ask at once are answered whole, and the tokens per second of all
     * of them. */
    int (*crowd)(nk_system *s, int n_clients, int n_predict, double value[2], struct nk_error *err);
    /* Tokens per second of one stream over the network, and 1 / (computing + the round trip). */
    int (*network)(nk_system *s, int n_predict, double tok_s[2], struct nk_error *err);
    /* Bytes per token between two workers: there, back, and the row alone. */
    int (*wire)(nk_system *s, int n_predict, double bytes[3], struct nk_error *err);
    /* Of rows in half precision: the largest nmse of the logits, and the percentage of tokens with
     * the same most probable next one. real: of opts.real_model. */
    int (*quality)(nk_system *s, bool real, int n_tokens, double value[2], struct nk_error *err);
};
extern const struct nk_system_ops nk_system_ours, nk_system_whole, nk_system_rpc, nk_system_ping,
    nk_system_cold, nk_system_serve, nk_system_chain, nk_system_alone;

/* The reason of an answer that says nothing of the system: this program, or its machine, was held
 * up between two sessions, and the first one was over before the second began. Then all are asked
 * again, until an answer counts or minutes have passed since begin_ns. */
#define NK_TOO_LATE "too_late"
bool nk_ask_again(int rc, const struct nk_error *err, uint64_t begin_ns);

#endif

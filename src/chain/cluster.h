/* clang-format off */
/* cluster.yaml: which workers hold which layers of which model. Read and validated with line
 * numbers. Paths are relative to that file.
 *
 *   model:
 *     id: kjv-tiny
 *     sha256: 1f0e...            # of the source model
 *     vocab: kjv-tiny.vocab.gguf # tokenizer, for whoever has text (run, serve)
 *   tls:                         # where the workers take mutual TLS only; PEM files
 *     ca: ca.pem                 # whom to trust
 *     certificate: me.pem        # own
 *     key: me.key.pem
 *   identity: /var/lib/me        # instead of tls: an identity folder (rpc/identity.h)
 *   epoch: 3                     # of the plan; workers that were started for another one refuse
 *   dtype: f32                   # rows on the wire: f32 (exact, default) or f16
 *   workers:
 *     - id: attic
 *       address: 127.0.0.1:5530
 *       layers: 0-4
 *     - id: cellar
 *       address: 127.0.0.1:5531
 *       layers: 4-8
 *   spares:                      # workers that stand by: each takes the place of a lost one of
 *     - 127.0.0.1:5532           # those above that has the same layers (it says which it has) */
/* clang-format on */
#ifndef NK_CHAIN_CLUSTER_H
#define NK_CHAIN_CLUSTER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

enum { NK_CLUSTER_WORKERS_MAX = 64, NK_CLUSTER_SPARES_MAX = 32 };

struct nk_cluster_worker {
    char id[64], address[256];
    int layer_begin, layer_end;
    uint64_t epoch; /* that it was started for; 0: the cluster's. Not in the file. */
    int line;       /* where it begins in the file */
};
struct nk_cluster {
    char path[4096];
    char model_id[128], model_sha256[65];
    char vocab_path[4096]; /* made absolute or relative to the current folder; "" when not given */
    char tls_ca[4096], tls_certificate[4096],
        tls_key[4096];   /* paths as above; "" (all three): plain text */
    char identity[4096]; /* path as above; then there is no tls */
    uint64_t epoch;      /* 0: none */
    bool f16;
    int n_workers;
    struct nk_cluster_worker workers[NK_CLUSTER_WORKERS_MAX]; /* in the order of their layers */
    int n_spares;
    char spares[NK_CLUSTER_SPARES_MAX][256]; /* addresses */
};

/* The epoch that a worker of it was started for. */
static inline uint64_t nk_cluster_epoch(const struct nk_cluster *c, int worker)
{
    return c->workers[worker].epoch ? c->workers[worker].epoch : c->epoch;
}

/* *out is owned by the caller: free(). Messages begin with "FILE:LINE: ".
 *   NOT_FOUND no_file
 *   INVALID   bad_cluster   not YAML, an unknown or missing key, a value of the wrong form, ranges
 * that do not begin at 0, overlap or leave a gap, an id or address given twice, spares included */
int nk_cluster_read(struct nk_cluster **out, const char *path, struct nk_error *err);
/* The same from text; name stands for the file in messages. */
int nk_cluster_parse(struct nk_cluster **out, struct nk_bytes text, const char *name,
                     struct nk_error *err);
/* The file's text for a cluster (what `up` writes). */
int nk_cluster_format(const struct nk_cluster *c, struct nk_buf *out, struct nk_error *err);

#endif

/* Models from the network: downloaded once into the cache folder, and found there afterwards.
 *
 * A source is an address, or a file of the Hugging Face hub:
 *
 *   https://HOST/PATH/model.gguf
 *   http://127.0.0.1:PORT/...            plain text within this machine only
 *   hf:ORG/REPO/FILE.gguf[@REVISION]     FILE may be in folders; REVISION: a branch, tag or
 *                                        commit, else main
 *
 * One shard of several (-00002-of-00003.gguf) stands for all of them. Those of the hub are of one
 * commit: that of the first one that it answers for is asked for by its name (DATA_LOSS
 * mixed_revisions where shards are of several after all).
 *
 * Where: CACHE/models/HOST/KEY/NAME.gguf, KEY being 16 hex digits of the address's hash (that of
 * its first shard, so that shards lie together). Beside it NAME.gguf.json says what it is (the
 * server's ETag, size, SHA-256). What is under way is NAME.gguf.part with NAME.gguf.part.json; it
 * is renamed when it is complete. NAME.gguf.lock is held by the process that is at it.
 *
 * Everything that a server says is distrusted: redirects, lengths, ranges, tags, the bytes. A
 * token for the hub ($HF_TOKEN, $HUGGING_FACE_HUB_TOKEN) goes to the hub and to no other host.
 * $HF_ENDPOINT names another hub than https://huggingface.co; proxies are curl's
 * ($https_proxy, ...); $SSL_CERT_FILE, $CURL_CA_BUNDLE and $SSL_CERT_DIR say whom to trust. */
#ifndef NK_HUB_HUB_H
#define NK_HUB_HUB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/error.h"

struct nk_hub_opts {
    /* A line for a person about what goes on (a try that failed, a copy that could not be compared
     * with its source, how far it is): one line, control characters shown. NULL: none are made. */
    void (*say)(void *arg, const char *line);
    /* Asked at least once a second while something is waited for: true ends it with CANCELLED. What
     * came until then is kept. NULL: never. */
    bool (*interrupted)(void *arg);
    void *arg; /* of both */
    bool bar;  /* a progress bar, where standard error is a terminal, instead of lines */
    /* For the rates that are said, and for how long another process that downloads is silent. NULL:
     * the system's. */
    struct nk_clock *clock;
    int connect_ms;   /* for a connection with TLS; 0: 15 s */
    int stall_s;      /* without a byte for this long a try has failed; 0: 60 s */
    int tries;        /* in a row without anything new; 0: 6 */
    int pause_ms;     /* before the second try, doubled before each further one; 0: 1 s */
    int pause_ms_max; /* no pause is longer, whatever the server asks for; 0: 60 s */
};

/* Is this a source rather than a file? By its beginning alone: "https://", "http://", "hf:". */
bool nk_hub_is_source(const char *text);

/* The file of a source in the cache folder, downloaded first where it is not there or where its
 * source has another one by now. *path (of shards: the first) is owned by the caller. opts may be
 * NULL. Blocks; several threads and processes may ask for the same: one downloads, the others wait.
 *
 * A copy that is complete is used where its source does not answer, or refuses; `say` tells.
 * Otherwise, what may be over soon is tried again, unless nobody has answered at all in this call:
 * then it is rather a slip, or there is no network. What came is kept unless said otherwise, and
 * the next call goes on from there.
 *
 *   INVALID      bad_source      not of one of the forms above, or with a password in it
 *   INVALID      bad_token       $HF_TOKEN is nothing that can be sent
 *   NOT_FOUND    not_there       404 and 410
 *   DENIED       refused         401, 403; says which variable would help
 *   UNAVAILABLE  unreachable     no such host, nobody answers, no TLS, it broke off, 5xx
 *   DEADLINE     too_slow        no connection in connect_ms, or it came to a stand for stall_s
 *   UNAVAILABLE  bad_certificate TLS: not who it should be, or nobody known says so
 *   INVALID      not_a_model     what comes is not GGUF, for example a page to log in; nothing is
 *                                kept
 *   DATA_LOSS    wrong_answer    lengths or ranges that contradict each other, too many redirects,
 *                                a redirect to something that is not https, another status
 *   DATA_LOSS    wrong_sha256    complete, and not what the hub says it is; removed
 *   EXHAUSTED    no_space        with what is needed and what is free
 *   UNAVAILABLE  busy            another process is at it and does not come forward
 *   CANCELLED    interrupted
 *   and nk_cache_dir's, nk_newfile_*'s */
int nk_hub_get(char **path, const char *source, const struct nk_hub_opts *opts,
               struct nk_error *err);

#endif

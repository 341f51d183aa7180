/* What the files of this layer share. The shape:
 *
 *   net.c         the completion queue, its thread, the inbox, timers
 *   call.c        a call: its operations, its send queue, its end; both sides
 *   channel.c     client side: channels, starting calls, what a status means
 *   server.c      server side: listening, accepting, methods, stopping
 *   beat.c        who is silent, and who takes nothing
 *   health.c      grpc.health.v1.Health
 *   reflection.c  grpc.reflection.v1alpha.ServerReflection
 *   args.c        addresses and gRPC's settings
 *   credentials.c TLS
 *   certificate.c X.509: what is let in, and until when it is good
 *   verifier.c    gRPC's questions about certificates, answered
 *   identity.c    identity folders: who this machine is, who else is a member
 *   membership.c  identities in use: who is let in, and who is no member any more
 *
 * Every operation given to gRPC is tagged with a struct nk__op inside the object it belongs to; the
 * net thread takes it from the completion queue and calls op->done. gRPC never calls us by itself,
 * so handlers run on the net thread's own stack and nothing here re-enters. */
#ifndef NK_RPC_RPC_INT_H
#define NK_RPC_RPC_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>

#include "rpc/identity_int.h"
#include "rpc/rpc.h"

struct nk__op {
    void (*done)(struct nk__op *op, bool ok);
};
/* What a thread wrote before it started an operation is there for the thread that gets the
 * completion: gRPC's queue sees to that, and ThreadSanitizer, which does not see into gRPC, is
 * told. */
#if defined(__SANITIZE_THREAD__)
#define NK__TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NK__TSAN 1
#endif
#endif
#ifdef NK__TSAN
#include <sanitizer/tsan_interface.h>
#define nk__op_started(op)   __tsan_release(op)
#define nk__op_completed(op) __tsan_acquire(op)
#else
#define nk__op_started(op)   ((void)(op))
#define nk__op_completed(op) ((void)(op))
#endif
#define nk__container(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

struct nk__posted {
    void (*fn)(void *arg);
    void *arg;
};
struct nk__inbox {
    struct nk__posted *items;
    size_t n, capacity;
};

struct nk_timer {
    nk_net *net;
    uint64_t at_ns, number; /* those of one time run in the order of their numbers */
    size_t heap_idx;
    void (*fn)(void *arg);
    void *arg;
    SLIST_ENTRY(nk_timer) link; /* the net's free ones */
};

struct nk_net {
    struct nk_clock *clock;
    struct nk_clock_listener listener;
    grpc_completion_queue *cq;
    pthread_t thread;

    /* An empty batch on a call that goes nowhere is gRPC core's public way of putting an event into
     * a completion queue. */
    grpc_channel *kick_channel;
    grpc_call *kick_call;
    struct nk__op kick_op;
    pthread_mutex_t kick_mu; /* one batch on kick_call at a time */
    _Atomic int refs;        /* the memory: the owner's and one per nk_call */

    grpc_resource_quota *server_quota, *channel_quota;

    pthread_mutex_t mu; /* all until the line below */
    pthread_cond_t changed;
    struct nk__inbox inbox;
    int64_t warned_ends[2]; /* this machine's certificate and the CA that the log tells of */
    bool kicked;            /* the kick for what is in the inbox is on its way */
    bool stopping;
    LIST_HEAD(, nk_call) calls;
    size_t n_calls; /* whose grpc_call exists */
    LIST_HEAD(, nk_server) servers;
    LIST_HEAD(, nk_channel) channels;
    LIST_HEAD(, nk__membership) memberships;

    /* net thread only */
    struct nk__inbox running;
    nk_timer **heap;
    size_t n_timers, heap_capacity;
    uint64_t next_timer_number;
    SLIST_HEAD(, nk_timer) free_timers;
    bool stop_begun, cq_shut;
};

/* calloc for the small fixed-size things without which nothing goes on; never NULL. */
void *nk__alloc(size_t n, size_t size);
void nk__net_unref(nk_net *net);
/* A call's grpc_call is no more: takes the call off the list. [any] */
void nk__net_call_gone(nk_net *net, nk_call *c);
/* nk_timer_start with the time itself. */
nk_timer *nk__timer_at(nk_net *net, uint64_t at_ns, void (*fn)(void *arg), void *arg);
/* When gRPC shall wake or end something that is due at at_ns of the net's clock. Where that clock
 * does not run by itself: at once or never; the net is woken when it is moved. */
gpr_timespec nk__deadline(const nk_net *net, uint64_t at_ns);

struct nk__call_out { /* messages waiting to be sent: a ring that grows */
    grpc_byte_buffer **items;
    size_t head, n, capacity;
    size_t bytes; /* with what is being sent */
};

struct nk_call {
    nk_net *net;
    LIST_ENTRY(nk_call) link; /* net->calls; net->mu */
    grpc_call *g;
    _Atomic int refs; /* the handle's memory */
    /* g: one until the end, one per thread that is inside gRPC with it; taken under mu. */
    _Atomic int g_refs;
    bool is_client;
    nk_channel *channel;               /* client */
    nk_server *server;                 /* server */
    bool is_internal;                  /* server: health and reflection; does not hold up a stop */
    bool is_counted;                   /* server: counts towards calls_max */
    bool is_beat;                      /* of Link/Beat (beat.c) */
    struct nk__membership *membership; /* of the server or channel; NULL: it has no identity */
    struct nk_call_handlers handlers;
    void *user;
    char *peer;
    uint64_t deadline_ns; /* 0: none */
    uint32_t deadline_ms; /* client: as asked for */

    struct nk__op op_send, op_recv, op_headers, op_status;

    /* The send queue. */
    pthread_mutex_t mu;
    struct nk__call_out out;
    grpc_byte_buffer *sending_message;
    size_t sending_bytes;
    uint64_t sending_since_ns; /* the message that is being sent; 0: none is */
    bool sending;              /* a batch of sends is outstanding */
    bool headers_sent;         /* server */
    bool last_wanted;          /* client: nk_call_send_done; server: nk_call_finish */
    bool last_sent;
    bool closed;    /* takes no more messages: it is ending */
    bool ended;     /* no thread may begin to use g */
    bool cancelled; /* nk_call_cancel */
    bool leaving;   /* nk_call_cancel_with */
    bool lost;      /* given up for silence; status tells */
    int n_ops;      /* outstanding batches */
    /* status is the end's: on the server what is sent; on the client it overrides gRPC's. */
    bool has_status;
    struct nk_error status;

    /* net thread only */
    bool accepted, reading, paused, in_message, eof, held_eof, resume_posted;
    grpc_byte_buffer *incoming, *held;
    bool status_done, end_done;
    bool on_wire;                        /* client: something of it was written */
    bool is_watched;                     /* client: counts in the channel's beat.n_calls */
    enum nk_ending ending;               /* from the end on */
    nk_timer *deadline_timer;            /* client */
    nk_timer *leave_timer;               /* client: nk_call_cancel_with */
    char member[NK_MEMBER_ID_CHARS + 1]; /* the other side's; "": not known, or no identity */
    unsigned roles;                      /* server: of the method */
    bool expelled;                       /* the other side is no member any more */
    grpc_metadata_array headers, trailers;
    grpc_metadata trailer_out;
    grpc_status_code code;
    grpc_slice details;
    int peer_cancelled;
};

nk_call *nk__call_new(nk_net *net, bool is_client);
/* Puts it on the net's list. False: the net is stopping (nothing was changed), unless that does not
 * matter. */
bool nk__call_link(nk_call *c, bool always);
/* One batch; the call must be alive (n_ops counted by it). */
void nk__call_batch(nk_call *c, const grpc_op *ops, size_t n, struct nk__op *tag);
void nk__call_read(nk_call *c);
/* Client: ends the call with this side's own verdict, unless it was cancelled. Net thread. */
void nk__call_give_up(nk_call *c, const struct nk_error *e);
/* Either side: ends it because of the other's silence, unless this side has cancelled it. Net
 * thread. */
void nk__call_lose(nk_call *c, const struct nk_error *e);
void nk__call_unpin(nk_call *c);
void nk__call_maybe_end(nk_call *c);
/* The end's status, by side, and c->ending. False: OK. Net thread. */
bool nk__client_status(nk_call *c, struct nk_error *out);
bool nk__server_status(nk_call *c, struct nk_error *out);
void nk__server_call_gone(nk_server *s, nk_call *c);
void nk__channel_unref(nk_channel *ch);
/* nk_call_start. is_beat: the channel's own call. */
int nk__call_start(nk_call **out, nk_channel *ch, const char *path, uint32_t deadline_ms,
                   const struct nk_call_handlers *handlers, void *user, bool is_beat,
                   struct nk_error *err);
/* From a status' reason trailer; false when it is none of ours. */
bool nk__reason_ok(const char *reason, size_t size);

/* The client's side of beat.c. */
struct nk__beat {
    uint32_t silence_ms; /* 0: the channel is not watched */
    nk_call *call;       /* to Link/Beat, referenced by itself; the channel's mu */
    /* Bytes of messages: that gRPC was given, that it has written, that the server has read the
     * beat behind. */
    _Atomic uint64_t handed, written, heard;
    /* net thread only */
    int n_calls; /* others than `call`; without them there is none */
    int n_heard; /* beats of this connection */
    bool mute;   /* the server has no Link/Beat */
    nk_timer *timer;
    uint64_t heard_ns, next_ns, due_ns; /* due: of the timer */
};

struct nk_channel {
    nk_net *net;
    LIST_ENTRY(nk_channel) link; /* net->channels; net->mu */
    grpc_channel *g;
    char *address;
    _Atomic int refs;                  /* the owner's, and one per call */
    struct nk__membership *membership; /* with an identity, else NULL */
    struct nk__verifier *verifier;     /* with TLS, else NULL; lives as long as the credentials */
    grpc_channel_credentials *credentials;
    /* Of g, which is another one after a member was taken off, or the server was given up. */
    pthread_mutex_t mu;
    struct nk__beat beat;
};
/* The next call gets a connection of its own. [any] */
void nk__channel_renew(nk_channel *ch);

/* ---- beat.c ---- */

#define NK_LINK_BEAT "/nakshatra.v1.Link/Beat"
extern const struct nk_method nk__beat_methods[1];
/* A client's call begins and ends. Net thread. */
void nk__beat_call_begins(nk_call *c);
void nk__beat_call_ends(nk_call *c);
/* A message is to be handed to gRPC; it was written. The call is alive. [any] */
void nk__beat_sends(nk_call *c, size_t size);
void nk__beat_sent(nk_call *c, size_t size);
const char *nk__call_other(const nk_call *c);

/* An identity folder in use on a net: one watcher of its files, one timer. Lives as long as the
 * net. */
struct nk__membership {
    LIST_ENTRY(nk__membership) link; /* net->memberships; net->mu */
    nk_net *net;
    nk_identity *identity;
    grpc_tls_certificate_provider *provider;
    /* net thread only */
    uint64_t generation; /* of the roster that the calls were held against */
    bool cutting;        /* some were expelled then */
};
/* The net's use of the folder, begun if there is none. [any] Errors: nk_identity_open's. */
int nk__membership_get(struct nk__membership **out, nk_net *net, const char *folder,
                       struct nk_error *err);
void nk__membership_free(struct nk__membership *m); /* when the net has stopped */

/* ---- verifier.c ---- */

/* What gRPC asks about the certificate of whoever is at the other end. One per server or channel;
 * gRPC owns it once it was set. target: the server's address, on a client; else NULL. What is wrong
 * with the dates of this machine's certificate or of the CA goes to the log, once on a net. */
struct nk__verifier;
struct nk__verifier *nk__verifier_new(struct nk__membership *m, const char *target);
/* Of PEM texts, which were checked; own: NULL on a client that shows none.
 *   INVALID  bad_credentials  the CA cannot be read */
int nk__verifier_new_pem(struct nk__verifier **out, nk_net *net, const char *ca, const char *own,
                         const char *target, struct nk_error *err);
/* Sets it among the options, which then own it. */
void nk__verifier_set(struct nk__verifier *v, grpc_tls_credentials_options *options);
/* Was the last one that was let in a member who is none now? Then that is forgotten. [any] */
bool nk__verifier_is_stale(struct nk__verifier *v);
/* What may be wrong with what this side shows, for the sentence about a server that hung up;
 * "" where nothing is known to be. [any] */
void nk__verifier_own_fault(struct nk__verifier *v, char *out, size_t size);
void nk__verifier_ends(struct nk__verifier *v, struct nk_certificate_ends *out); /* [any] */

/* ---- membership.c ---- */

/* Finds out who is at the other end; false: the call was ended, because that is no member any more.
 * Net thread. */
bool nk__call_identify(nk_call *c);
/* Server: may the other side call this method (NULL: there is none of that name)? DENIED removed,
 * not_a_member, not_allowed. Net thread. */
int nk__call_check_role(nk_call *c, const struct nk_method *m, const char *path,
                        struct nk_error *err);

enum {
    NK__SERVER_REQUESTS = 16, /* calls that gRPC may hand over before we ask for more */
    /* How long connections get to write out what is on its way when no call should be left; then
     * they are cut. */
    NK__LINGER_MS = 200,
};

struct nk__incoming {
    struct nk__op op;
    nk_server *server;
    grpc_call *g;
    grpc_call_details details;
    grpc_metadata_array headers;
};

struct nk__reflection;
struct nk__health_watch;

/* The server's side of beat.c. */
struct nk__beat_peer { /* a client's connection */
    LIST_ENTRY(nk__beat_peer) link;
    nk_server *server;
    nk_call *call;
    nk_timer *timer;
    uint64_t heard_ns, next_ns, due_ns, patience_ns, written;
    uint32_t interval_ms;
};

struct nk_server {
    nk_net *net;
    LIST_ENTRY(nk_server) link; /* net->servers; net->mu */
    grpc_server *g;
    int port;
    const struct nk_method *methods;
    int n_methods;
    void *user;
    int calls_max;
    struct nk__membership *membership; /* NULL: no identity */
    uint32_t silence_ms;
    _Atomic bool serving;
    struct nk__reflection *reflection;

    /* net thread only */
    struct nk__incoming requests[NK__SERVER_REQUESTS];
    int n_requests;                     /* outstanding */
    int n_calls, n_counted, n_internal; /* counted: of the methods' own calls */
    int n_beats;                        /* likewise */
    LIST_HEAD(, nk__beat_peer) beats;
    bool stopping, shut, all_cancelled;
    uint32_t grace_ms;
    nk_timer *grace_timer, *linger_timer;
    struct nk__op op_shutdown;
    LIST_HEAD(, nk__health_watch) watches;

    bool gone, stop_asked; /* net->mu */
};
/* Net thread: begins to stop; `gone` follows. */
void nk__server_begin_stop(void *server);
void nk__server_free(nk_server *s);

extern const struct nk_method nk__health_methods[];
extern const int nk__n_health_methods;
void nk__health_notify(void *server); /* net thread: tells watchers what is */

extern const struct nk_method nk__reflection_methods[];
extern const int nk__n_reflection_methods;
int nk__reflection_new(struct nk__reflection **out, struct nk_bytes descriptors,
                       struct nk_error *err);
void nk__reflection_free(struct nk__reflection *r);
/* Whether a served method belongs to the service. */
bool nk__server_has_service(const nk_server *s, const char *service);

/* gRPC's settings for a channel or server. */
struct nk__args {
    grpc_channel_args args;
    grpc_arg items[32];
};
void nk__args_int(struct nk__args *a, const char *key, int value);
/* What channels and servers of this net have in common; the quota must live on. */
void nk__args_common(struct nk__args *a, const nk_net *net, grpc_resource_quota *quota);
#define NK__ADDRESS_MAX 272 /* a DNS name (253), brackets, a port */

/* *membership is NULL without an identity, *verifier in plain text. */
int nk__server_credentials(grpc_server_credentials **out, struct nk__membership **membership,
                           nk_net *net, const struct nk_credentials *c, struct nk_error *err);
int nk__channel_credentials(grpc_channel_credentials **out, struct nk__membership **membership,
                            struct nk__verifier **verifier, nk_net *net, const char *address,
                            const struct nk_credentials *c, struct nk_error *err);

#endif

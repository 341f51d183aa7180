/* gRPC over gRPC core's C API: a thread that owns a completion queue, servers, channels and calls.
 *
 * Rules. A `nk_net` is one completion queue and its thread, the net thread. Handlers run on it, one
 * at a time, and never from inside a function called here. Functions marked [any] may be called on
 * any thread, the others on the net thread only (nk_net_post gets you there). A call gets exactly
 * one `end`; until then its handle is valid, after it the handle is gone. Messages are bounded: a
 * larger one ends the call with EXHAUSTED `message_too_large`. Statuses are struct nk_error: code,
 * message and a reason word, which travels in the trailer "nk-reason".
 *
 * Safety: a call's send queue is guarded by a mutex, held for queue operations only. */
#ifndef NK_RPC_RPC_H
#define NK_RPC_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/error.h"
#include "rpc/identity.h"

/* The one ceiling of a message: the rows of a prefill chunk, 2048 rows x 8192 floats x 4 bytes = 64
 * MiB, and 1 MiB for everything else in it. */
#define NK_RPC_MESSAGE_BYTES_MAX ((64u + 1u) << 20)
/* What may wait to be sent on one call before nk_call_send answers EXHAUSTED `send_queue_full`:
 * four such messages. */
#define NK_RPC_SEND_QUEUE_BYTES_MAX (4u * NK_RPC_MESSAGE_BYTES_MAX)

/* What all servers of a net may hold of arriving messages, and all its channels likewise: eight
 * such messages. When that fills, senders are slowed down; beyond, calls are reset (EXHAUSTED
 * `resource_exhausted` at the other side). */
#define NK_RPC_MEMORY_BYTES_MAX (8u * NK_RPC_MESSAGE_BYTES_MAX)

/* After so long a silence a worker's neighbours and clients give it up (nk_channel_watch), unless
 * told otherwise. */
#define NK_RPC_SILENCE_MS 3000

typedef struct nk_net nk_net;
typedef struct nk_server nk_server;
typedef struct nk_channel nk_channel;
typedef struct nk_call nk_call;
typedef struct nk_timer nk_timer;

/* ---- the net thread ---- */
/* Its timers, the deadlines of its calls and the time its servers take to stop go by `clock`, which
 * is borrowed until the net has stopped. gRPC itself goes by the system's clock: keepalive and the
 * limits of connecting, which are there only where `clock` runs by itself.
 *   EXHAUSTED  no_thread */
int nk_net_start(nk_net **out, struct nk_clock *clock, struct nk_error *err);
/* [any but the net thread] Ends the thread after everything on it has ended: the owner stops
 * servers, cancels calls and closes channels first; what is left is cancelled. Frees. */
void nk_net_stop(nk_net *net);
/* [any] fn(arg) runs on the net thread, in the order of posting. Never blocks. */
void nk_net_post(nk_net *net, void (*fn)(void *arg), void *arg);
bool nk_net_is_current(const nk_net *net); /* [any] */
/* fn(arg) once, after ms and never before. Timers run in the order of their times, those of one
 * time in the order in which they were started. The timer is gone after it ran or was cancelled
 * (cancel never runs fn). */
nk_timer *nk_timer_start(nk_net *net, uint32_t ms, void (*fn)(void *arg), void *arg);
void nk_timer_cancel(nk_timer *t);

/* ---- addresses ---- */
/* "host:port" or "[v6]:port", with port_min <= port <= 65535. [any]
 *   INVALID  bad_address */
int nk_address_check(const char *address, int port_min, struct nk_error *err);
/* Whether a (good) address is certain to be of this machine only: 127.0.0.0/8, ::1 or localhost.
 * [any] */
bool nk_address_is_loopback(const char *address);

/* ---- credentials ---- */
/* How a server or a channel proves who it is, and whom it believes. Three kinds; all NULL: plain
 * text. Borrowed for the call that takes them.
 *
 * PEM texts: mutual TLS with what is given, for as long as the server or channel lives; whoever has
 * a certificate of that CA may do everything.
 *
 * An identity folder (identity.h): mutual TLS among the members of one cluster. Both sides must
 * show a certificate of the cluster's CA with the URI of a member that the roster lists; host names
 * are not checked. Certificate, key, CA and roster are read again when they change: the first three
 * about once a second, for the handshakes that follow; the roster at every handshake and call.
 * Within a second (of the net's clock) after a member was taken off the roster its open calls end
 * with DENIED `removed`, on servers and on clients; after that second those that have not ended are
 * cut. While the roster cannot be read nobody is let in and no call is taken; open ones go on.
 *
 * Whom this side refuses with either, and why, is in its log, since the peer reads no more than
 * "Socket closed". Dates that are near or past are in it, too. */
struct nk_credentials {
    const char *ca;          /* PEM texts: whom to trust, */
    const char *certificate; /* own, */
    const char *key;         /* its key */
    const char *identity;    /* path of an identity folder; then the others are NULL */
};

/* ---- calls, on either side ---- */
struct nk_call_handlers {
    /* A message; borrowed for the call. The next one is read after this returns unless paused. None
     * comes after this side's nk_call_finish or nk_call_cancel. */
    void (*message)(nk_call *c, void *user, struct nk_bytes msg);
    /* The other side will send no more (server: the client's half-close). May be NULL. */
    void (*half_closed)(nk_call *c, void *user);
    /* The end, exactly once. status NULL: OK. On the server: the status that was sent, CANCELLED
     * `cancelled` when the client cancelled or its connection broke, UNAVAILABLE `peer_gone` when
     * it was silent, DEADLINE `deadline` when the client's deadline passed first. On the client:
     * the server's status, DEADLINE `deadline`, UNAVAILABLE `unreachable` or `peer_gone`, CANCELLED
     * `cancelled`; a status without a reason of ours gets its code's name (`not_found`).
     * nk_call_ending tells a loss from the rest. The handle is gone after this returns. */
    void (*end)(nk_call *c, void *user, const struct nk_error *status);
};

/* Queues a message; it is sent after those queued before it. [any] In a steady exchange nothing of
 * ours is allocated.
 *   EXHAUSTED    message_too_large  over NK_RPC_MESSAGE_BYTES_MAX
 *   EXHAUSTED    send_queue_full    over NK_RPC_SEND_QUEUE_BYTES_MAX, or over 65,536 messages
 *   UNAVAILABLE  call_ended         it has ended or is ending */
int nk_call_send(nk_call *c, const void *data, size_t size, struct nk_error *err);
/* The same, packing a protobuf-c message straight into what is sent. [any] */
int nk_call_send_pb(nk_call *c, const ProtobufCMessage *msg, struct nk_error *err);
/* Client: no more messages from this side. [any] */
void nk_call_send_done(nk_call *c);
/* Server: ends the call with a status (NULL: OK) after everything queued was sent. Once. [any] */
void nk_call_finish(nk_call *c, const struct nk_error *status);
/* Either side: ends it now; `end` follows. [any] */
void nk_call_cancel(nk_call *c);
/* Client: ends it as nk_call_cancel does, and says so: what is queued is dropped, `last` is the
 * last message (InferenceRequest's Cancel), and the server ends the call when it has read it. One
 * that has not within a second is cancelled. HTTP/2's own way to cancel is no word: it may overtake
 * messages, and at the other side it looks as a broken connection does. After nk_call_send_done it
 * is nk_call_cancel. [any] */
void nk_call_cancel_with(nk_call *c, const ProtobufCMessage *last);
/* How it has ended; inside `end` only. What to do with what belongs to the call: after LOST the
 * other side may still be there, and wants it kept; after the others it does not.
 *
 *   OK      in good order
 *   STATUS  client: the server's program said so, also when it tells of a loss behind it
 *           (`peer_gone` of its own neighbour); server: the status that was sent
 *   HERE    this side ended it: it was cancelled, the deadline has passed (server: the client's),
 *           a message was too large
 *   LOST    the other side is gone, or silent, or takes nothing, or could not be reached, or has
 *           cut the call without a word. On the server a client that cancels looks the same unless
 *           it announces that (nk_call_cancel_with): whoever read that message knows better, and
 *           finishes the call. A client that announces nothing is thus lost, which is the safe
 *           side: what is kept for it is kept for a time. */
enum nk_ending { NK_ENDING_OK, NK_ENDING_STATUS, NK_ENDING_HERE, NK_ENDING_LOST };
enum nk_ending nk_call_ending(const nk_call *c);
/* Client: whether the server's process is heard of while the call waits for it: its channel is
 * watched (nk_channel_watch), and the other side beats. It is then alive, and its line as well;
 * that it gets any further is another question. What waits for an answer may be patient with it, so
 * many times as with one of which nothing is known. */
bool nk_call_is_heard(const nk_call *c);
enum { NK_RPC_PATIENCE_HEARD = 10 };
/* Stops and restarts reading; HTTP/2's flow control carries it to the sender. While a client call
 * is paused, an end in good order waits behind the messages before it. */
void nk_call_pause(nk_call *c);
void nk_call_resume(nk_call *c);
/* [any] More references keep the handle's memory (not the call) alive, so that another thread may
 * still send into a call that has ended and be told so. */
nk_call *nk_call_ref(nk_call *c);
void nk_call_unref(nk_call *c);
const char *nk_call_peer(const nk_call *c); /* "ipv4:127.0.0.1:41234"; borrowed until `end` */
/* The other side's member ID, proven by its certificate; "" without an identity, and on a client
 * until the connection is there (from the first message on it is). Borrowed until `end`. */
const char *nk_call_identity(const nk_call *c);
/* What the roster says now of the other side; NK_ROLE_NONE where nk_call_identity says "". */
enum nk_role nk_call_role(const nk_call *c);

/* ---- server ---- */
/* Who may call a method, where the server has an identity; 0: every member. Elsewhere there are no
 * roles, and everybody may who is let in. */
enum { NK_ROLES_MEMBER = 1 << NK_ROLE_MEMBER, NK_ROLES_GATEWAY = 1 << NK_ROLE_GATEWAY };
struct nk_method {
    const char *path; /* "/nakshatra.v1.Nakshatra/Info" */
    /* A call has begun: sets its handlers (nk_call_accept), or finishes it at once. */
    void (*open)(nk_call *c, void *server_user);
    unsigned roles; /* NK_ROLES_..., or-ed */
};
struct nk_server_opts {
    /* "127.0.0.1:5530", "[::1]:0"; port 0: a free one. "[::]" takes IPv4, too. */
    const char *listen;
    struct nk_credentials credentials;
    const struct nk_method *methods; /* borrowed until the server has stopped */
    int n_methods;
    void *user;
    /* Before the first call can come, on the caller's thread; or NULL. */
    void (*bound)(void *user, int port);
    int calls_max; /* over it: EXHAUSTED `too_many_calls`; 0: 1024 */
    /* As nk_channel_watch, of clients that watch their channels: one that says nothing for so long,
     * or takes no message, is lost, with all its calls here. 0: nobody is. Longer for those whose
     * own limit is longer, and while they send much. */
    uint32_t silence_ms;
    /* For the reflection service (grpc.reflection.v1alpha): a serialised FileDescriptorSet, e.g.
     * nk_proto_descriptors(); borrowed for the call. */
    struct nk_bytes descriptors;
};
/* Also answers grpc.health.v1.Health (Check and Watch) and reflection, 128 such calls at once
 * beside calls_max, and the beats of channels that are watched (1,024). Unknown methods:
 * UNIMPLEMENTED `unknown_method`. With credentials, only clients with a certificate of that CA are
 * let in; with an identity only members, and a method is refused to those who may not call it:
 * DENIED `not_allowed`, or `removed` and `not_a_member` when the roster does not list them any more
 * or cannot be read. [any]
 *   INVALID      bad_address      not HOST:PORT
 *   INVALID      bad_credentials  one is missing, cannot be read, or does not fit; named
 *   ...          nk_identity_open's errors
 *   INVALID      bad_descriptors
 *   UNAVAILABLE  cannot_listen    with the system's reason */
int nk_server_start(nk_server **out, nk_net *net, const struct nk_server_opts *opts,
                    struct nk_error *err);
int nk_server_port(const nk_server *s);                 /* [any] */
void nk_server_set_serving(nk_server *s, bool serving); /* [any] what health says; true at first */
/* [any but the net thread] Takes no more calls and says so to clients (health: NOT_SERVING); ends
 * those that are left after grace_ms with UNAVAILABLE `shutting_down`, cuts what connections are
 * then left, waits for all that, frees. */
void nk_server_stop(nk_server *s, uint32_t grace_ms);

/* ---- client ---- */
/* address "host:port". Connecting happens when a call needs it. With a CA among the credentials,
 * TLS; with a certificate and key too, the client shows them, and the server's certificate must
 * name the host. With an identity the server must be a member; one that is none, or was taken off
 * the roster, is connected to by no call that begins afterwards (UNAVAILABLE `unreachable` with the
 * reason). [any]
 *   INVALID  bad_address, bad_credentials; nk_identity_open's errors */
int nk_channel_open(nk_channel **out, nk_net *net, const char *address,
                    const struct nk_credentials *credentials, struct nk_error *err);
void nk_channel_close(nk_channel *ch); /* [any] calls on it live on */
/* When certificates end, in seconds since 1970; 0: there is none, or none was seen. */
struct nk_certificate_ends {
    int64_t own, ca;   /* of several CAs the first to end */
    int64_t peer;      /* the server's, as it was let in last */
    bool peer_is_near; /* that end: see nk_certificate_warning */
};
void nk_channel_ends(nk_channel *ch, struct nk_certificate_ends *out); /* [any] */
/* The same of a PEM text's first certificate; 0: none can be read. [any] */
int64_t nk_certificate_end_s(const char *pem);
/* Whether whoever runs this machine should be told of these dates: the certificate is not good yet
 * or no more, or ends within 30 days and a sixth of its life. (A cluster's own are for 7 days and
 * renewed when a third is left: renewal is then overdue.) out: the sentence, which `what` begins.
 * [any] */
bool nk_certificate_warning(const char *pem, const char *what, int64_t now_s, char *out,
                            size_t size);
/* Before the first call: while there are calls, the server is heard of several times in silence_ms
 * (at least 40), whatever it computes. One that is not heard of for so long, since it was stopped
 * or its line cut, or that takes no message for so long, is lost: its calls end with UNAVAILABLE
 * `peer_gone`, and the next one gets another connection. A message is given 1 s for 32 KB beyond
 * that. A time in which this process did not run does not count. 0, or a server of before 0.4: as
 * it is otherwise, 15 s by gRPC's pings. */
void nk_channel_watch(nk_channel *ch, uint32_t silence_ms);
/* Starts a call; `end` follows in every case, also when the server cannot be reached. deadline_ms
 * 0: none. [any]
 * On another thread than the net's the call may have ended before this returns. To use the handle
 * there, hold a lock that your `end` takes while calling this and nk_call_ref().
 *   UNAVAILABLE  net_stopped    nk_net_stop has begun */
int nk_call_start(nk_call **out, nk_channel *ch, const char *path, uint32_t deadline_ms,
                  const struct nk_call_handlers *handlers, void *user, struct nk_error *err);
/* Server: gives an opened call its handlers; must be called inside `open`. */
void nk_call_accept(nk_call *c, const struct nk_call_handlers *handlers, void *user);

#endif

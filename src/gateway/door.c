#include "gateway/door.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

TAILQ_HEAD(guests, nk_guest);

struct address {
    LIST_ENTRY(address) link;
    unsigned char key[9];  /* family, then 4 or 8 bytes */
    int n_guests;          /* who point here */
    int n_places;          /* that they hold */
    struct guests waiting; /* of those who hold one; the longest waiting first */
};

struct nk_guest {
    nk_door *d;
    struct address *address;
    TAILQ_ENTRY(nk_guest) link; /* in a list of waiting ones */
    enum nk_door_place place;
    uint64_t since;      /* the turn at which it began to wait */
    bool waits, evicted; /* evicted: it holds no place any more */
    void *connection;
};

struct nk_door {
    struct nk_door_opts opts;
    LIST_HEAD(, address) addresses;
    int n_places, n_spare; /* taken */
    struct guests waiting_spare;
    uint64_t turn;
};

int nk__door_new(nk_door **out, const struct nk_door_opts *opts, struct nk_error *err)
{
    nk_door *d = calloc(1, sizeof *d);

    *out = NULL;
    if (!d)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the gateway");
    d->opts = *opts;
    LIST_INIT(&d->addresses);
    TAILQ_INIT(&d->waiting_spare);
    *out = d;
    return 0;
}

void nk__door_free(nk_door *d)
{
    free(d);
}

static void make_key(unsigned char key[9], const struct sockaddr *a)
{
    memset(key, 0, 9);
    if (a->sa_family == AF_INET) {
        key[0] = 4;
        memcpy(key + 1, &((const struct sockaddr_in *)a)->sin_addr, 4);
    } else if (a->sa_family == AF_INET6) {
        const struct in6_addr *in = &((const struct sockaddr_in6 *)a)->sin6_addr;
        bool mapped = IN6_IS_ADDR_V4MAPPED(in);

        key[0] = mapped ? 4 : 6;
        memcpy(key + 1, in->s6_addr + (mapped ? 12 : 0), mapped ? 4 : 8);
    }
}

static struct address *find_address(nk_door *d, const struct sockaddr *a)
{
    unsigned char key[9];
    struct address *found;

    make_key(key, a);
    LIST_FOREACH(found, &d->addresses, link)
    {
        if (!memcmp(found->key, key, sizeof key))
            return found;
    }
    found = calloc(1, sizeof *found);
    if (!found)
        return NULL;
    memcpy(found->key, key, sizeof key);
    TAILQ_INIT(&found->waiting);
    LIST_INSERT_HEAD(&d->addresses, found, link);
    return found;
}

static struct guests *list_of(nk_guest *g)
{
    return g->place == NK_DOOR_PLACE ? &g->address->waiting : &g->d->waiting_spare;
}

static void wait_in_list(nk_guest *g, bool waits)
{
    if (g->waits == waits)
        return;
    g->waits = waits;
    g->since = g->d->turn++;
    if (waits)
        TAILQ_INSERT_TAIL(list_of(g), g, link);
    else
        TAILQ_REMOVE(list_of(g), g, link);
}

static void give_place_up(nk_guest *g)
{
    wait_in_list(g, false);
    if (g->place == NK_DOOR_PLACE) {
        g->d->n_places--;
        g->address->n_places--;
    } else
        g->d->n_spare--;
}

/* NULL: nobody to evict. */
static bool evict(nk_guest *g)
{
    if (!g)
        return false;
    give_place_up(g);
    g->evicted = true;
    g->d->opts.evict(g->connection);
    return true;
}

/* The longest waiting one of the addresses that have the most places; NULL: all are busy. */
static nk_guest *who_yields(nk_door *d)
{
    nk_guest *found = NULL;
    struct address *a;

    LIST_FOREACH(a, &d->addresses, link)
    {
        nk_guest *g = TAILQ_FIRST(&a->waiting);

        if (g && (!found || a->n_places > found->address->n_places ||
                  (a->n_places == found->address->n_places && g->since < found->since)))
            found = g;
    }
    return found;
}

nk_guest *nk__door_enter(nk_door *d, const struct sockaddr *address, void *connection)
{
    nk_guest *g = calloc(1, sizeof *g);
    struct address *a = g ? find_address(d, address) : NULL;

    if (!a) {
        free(g);
        return NULL;
    }
    *g = (nk_guest){ .d = d, .address = a, .place = NK_DOOR_PLACE, .connection = connection };
    a->n_guests++;
    if (a->n_places >= d->opts.places_per_address && !evict(TAILQ_FIRST(&a->waiting)))
        g->place = NK_DOOR_ADDRESS;
    else if (d->n_places >= d->opts.places && !evict(who_yields(d)))
        g->place = NK_DOOR_FULL;
    if (g->place == NK_DOOR_PLACE) {
        d->n_places++;
        a->n_places++;
    } else if (d->n_spare < d->opts.spare_places || evict(TAILQ_FIRST(&d->waiting_spare)))
        d->n_spare++;
    else {
        g->evicted = true;
        d->opts.evict(connection);
    }
    if (!g->evicted)
        wait_in_list(g, true);
    return g;
}

enum nk_door_place nk__door_place(const nk_guest *g)
{
    return g->place;
}

void nk__door_busy(nk_guest *g)
{
    if (!g->evicted)
        wait_in_list(g, false);
}

void nk__door_idle(nk_guest *g)
{
    if (!g->evicted)
        wait_in_list(g, true);
}

void nk__door_leave(nk_guest *g)
{
    struct address *a = g->address;

    if (!g->evicted)
        give_place_up(g);
    if (!--a->n_guests) {
        LIST_REMOVE(a, link);
        free(a);
    }
    free(g);
}

#include "gateway/budget.h"

void nk__budget_init(struct nk_budget *b, size_t max)
{
    b->max = max;
    atomic_init(&b->used, 0);
}

bool nk__budget_hold(struct nk_budget *b, size_t *held, size_t wanted, size_t ceiling)
{
    size_t used = atomic_load(&b->used);

    if (wanted <= *held)
        atomic_fetch_sub(&b->used, *held - wanted);
    else
        do {
            if (used > ceiling || wanted - *held > ceiling - used)
                return false;
        } while (!atomic_compare_exchange_weak(&b->used, &used, used + (wanted - *held)));
    *held = wanted;
    return true;
}

size_t nk__json_cost(const char *body, size_t size)
{
    /* The allocations of an empty array or object, of a string and a number beside their text, of a
     * member's key and its place in the table, and of an element's place in an array that grows by
     * doubling. */
    enum { ARRAY = 136, OBJECT = 240, STRING = 80, NUMBER = 32, MEMBER = 112, ELEMENT = 24 };
    /* The body in a buffer that grows by doubling, its strings' copies, the text of a template. */
    enum { COPIES = 4 };
    size_t cost = size * COPIES;
    bool in_string = false, in_number = false;

    for (size_t i = 0; i < size; i++) {
        char c = body[i];
        bool digit = (c >= '0' && c <= '9') || c == '-';

        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
            continue;
        }
        cost += c == '['              ? ARRAY
                : c == '{'            ? OBJECT
                : c == '"'            ? STRING
                : c == ':'            ? MEMBER
                : c == ','            ? ELEMENT
                : digit && !in_number ? NUMBER
                                      : 0;
        in_string = c == '"';
        in_number = digit || (in_number && (c == '.' || c == 'e' || c == 'E' || c == '+'));
    }
    return cost;
}

/* What a fuzz target is: fuzz_one(), and how much work an input may be. work.c has libFuzzer's
 * entry, and counts.
 *
 * A step is an edge of our own code's control flow that is run (in a build with libFuzzer), or an
 * allocation, of whatever library, and each 64 bytes of it (under AddressSanitizer, too). So steps
 * are the same on every machine. The plain build's replay counts nothing: it
 * finds what crashes. That under AddressSanitizer counts allocations alone, so loops without them
 * have a ceiling in `make fuzz` only. */
#ifndef NK_TESTS_FUZZ_H
#define NK_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* Of one input: base + size * per_byte steps. More is a finding, as a crash is. The base is what
 * every input costs, or the ceiling of steps that the code itself keeps to; what one byte costs is
 * so bounded, whatever the bytes are. */
struct fuzz_ceiling {
    uint64_t base, per_byte;
};
extern const struct fuzz_ceiling fuzz_ceiling;

/* The input is exactly as large as it is allocated. */
void fuzz_one(const uint8_t *data, size_t size);

/* What was done until now was done once, and not for this input. */
void fuzz_prepared(void);
/* What follows is not counted, up to fuzz_work_on: a check of the answer by the target itself. */
void fuzz_work_off(void);
void fuzz_work_on(void);

#endif

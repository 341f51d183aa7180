/* The machine's memory and this process's, in bytes; 0 where the system does not tell.
 * Thread-safe. */
#ifndef NK_BASE_MEMORY_H
#define NK_BASE_MEMORY_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

uint64_t nk_memory_total(void);
/* What programs can still get without others being pushed out to disk: on Linux also what the page
 * cache would give back, which most of a machine's memory is after a model was read. Where this
 * process is in a control group (version 2) with less, as in a container, what that one can still
 * get. */
uint64_t nk_memory_available(void);

/* Takes the pages of the read-only mappings of the file at path out of this process's memory; those
 * that are used again come back from the page cache or the file by themselves, with the same
 * content. Returns how many bytes of mappings there were; 0 also where the system is not Linux. */
uint64_t nk_memory_release_file(const char *path);

/* Moves this memory, which has to be in use, into huge pages, as far as there are whole ones in it:
 * what reads it from one end to the other then waits less for page tables. Copies everything once;
 * other threads may use the memory meanwhile. Returns early when *stop becomes true. Where the
 * system cannot do it (Linux before 6.1, others), nothing changes: it is a matter of speed. Returns
 * the bytes that are in huge pages now. */
uint64_t nk_memory_use_huge_pages(void *memory, size_t size, const atomic_bool *stop);

/* The same for a part of a read-only mapping of a file, whose pages the kernel leaves as they are:
 * memory of the process with the same content, in huge pages, takes its place, as far as there are
 * whole huge pages in it. Others may read it meanwhile, and whoever mapped it may unmap it as
 * before; a later nk_memory_release_file of that file leaves these pages alone. */
uint64_t nk_memory_replace_mapping(void *mapping, size_t size, const atomic_bool *stop);

#endif

/* A mapped file of which a part is not there any more.
 *
 * Reading such a part raises SIGBUS, which ends a process without a word. Weights are read from
 * mappings, and people write over files. */
#ifndef NK_BASE_FAULT_H
#define NK_BASE_FAULT_H

/* From here on the process then says which file it is, on standard error, and ends with exit_code.
 * Another SIGBUS, or where the system does not tell which file (no /proc), does what it always
 * did. Once, from the main thread. */
void nk_fault_init(int exit_code);

#endif

/* bin/nakshatra of the tarball: starts lib/nakshatra/nakshatra with the loader and the libraries
 * beside it, wherever the folder lies and whatever C library the system has, or none.
 *
 * A program names its loader by an absolute path, which the kernel opens. So nothing that is to run
 * from any folder can name the loader it brings along. Two ways are usual, and both have a price
 * here:
 *   exec of the loader with the program as its argument   /proc/self/exe is the loader then, and
 *                                                         this program starts itself by that name
 *                                                         (workers, children that render templates)
 *   the loader's path written into the program on the spot  the folder cannot be read-only, shared
 *                                                           or moved
 * This does what the kernel does for an ordinary program, one step later: it maps the program and
 * the loader, tells the loader where the program is (the auxiliary vector on the stack) and jumps
 * into the loader. It is still the same process, its /proc/self/exe is bin/nakshatra, and that
 * started again arrives here again. The libraries are found by the program's own run path,
 * $ORIGIN/../lib/nakshatra: glibc reads $ORIGIN from /proc/self/exe, too.
 *
 * No C library: a second one in the process would have registered its own thread area, signals and
 * restartable sequences with the kernel. Static and without relocations, so that nothing has to run
 * before start(). */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

/* LOADER, a macro of the build: the file name of the loader. */
#define PATH_SIZE    4096
#define SEGMENTS_MAX 24

#if defined(__x86_64__)
#define MACHINE EM_X86_64
__asm__(".text\n.globl _start\n_start:\n"
        "  xor %ebp, %ebp\n"
        "  mov %rsp, %rbx\n" /* the stack as the kernel left it, for the loader */
        "  mov %rsp, %rdi\n"
        "  and $-16, %rsp\n"
        "  call start\n"
        "  mov %rbx, %rsp\n"
        "  xor %edx, %edx\n" /* nothing of ours to be called at exit */
        "  jmp *%rax\n");
#elif defined(__aarch64__)
#define MACHINE EM_AARCH64
__asm__(".text\n.globl _start\n_start:\n"
        "  mov x29, #0\n"
        "  mov x30, #0\n"
        "  mov x19, sp\n"
        "  mov x0, sp\n"
        "  bl start\n"
        "  mov sp, x19\n"
        "  mov x16, x0\n"
        "  mov x0, #0\n"
        "  br x16\n");
#else
#error "packaging/start.c: no entry code for this processor"
#endif

static long call(long n, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
#else
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;

    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
#endif
}

static size_t length(const char *text)
{
    size_t n = 0;

    while (text[n])
        n++;
    return n;
}

static void say(const char *text)
{
    call(SYS_write, 2, (long)text, (long)length(text), 0, 0, 0);
}

__attribute__((noreturn)) static void fail(const char *what, const char *why)
{
    say("nakshatra: ");
    say(what);
    say(": ");
    say(why);
    say("\n");
    for (;;)
        call(SYS_exit_group, 127, 0, 0, 0, 0, 0);
}

static bool is_error(long result)
{
    return result < 0 && result > -4096;
}

static const char *reason(long result)
{
    switch (-result) {
    case ENOENT:
        return "is not there: the folder of the tarball has to stay whole";
    case EACCES:
        return "may not be read or executed by this user (or its file system is mounted noexec)";
    case EPERM:
        return "may not be executed: is its file system mounted noexec?";
    case ENOMEM:
        return "no memory for it";
    case EMFILE:
    case ENFILE:
        return "too many open files";
    default:
        return "the system does not open or map it";
    }
}

/* root + "/lib/nakshatra/" + name, in out. */
static void path_of(char *out, const char *root, const char *name)
{
    const char *parts[] = { root, "/lib/nakshatra/", name };
    size_t n = 0;

    for (int i = 0; i < 3; i++)
        for (const char *s = parts[i]; *s; s++) {
            if (n == PATH_SIZE - 1)
                fail(root, "the path of this folder is too long");
            out[n++] = *s;
        }
    out[n] = '\0';
}

struct image {
    uintptr_t bias; /* what is to be added to the file's addresses */
    uintptr_t entry;
    uintptr_t headers; /* its program headers in memory */
    size_t n_headers;
};

static uintptr_t down(uintptr_t address, uintptr_t page)
{
    return address & ~(page - 1);
}

static void map_segment(int fd, const Elf64_Phdr *p, uintptr_t bias, uintptr_t page,
                        const char *path)
{
    const uintptr_t begin = bias + p->p_vaddr, file_end = begin + p->p_filesz,
                    end = begin + p->p_memsz, first = down(begin, page),
                    zeroed = down(file_end + page - 1, page);
    const int prot = (p->p_flags & PF_R ? PROT_READ : 0) | (p->p_flags & PF_W ? PROT_WRITE : 0) |
                     (p->p_flags & PF_X ? PROT_EXEC : 0);
    long at = 0;

    if (p->p_filesz)
        at = call(SYS_mmap, (long)first, (long)(file_end - first), prot, MAP_PRIVATE | MAP_FIXED,
                  fd, (long)down(p->p_offset, page));
    if (is_error(at))
        fail(path, reason(at));
    /* After the last byte from the file its page holds what follows in the file. All of the page is
     * zeroed, as the kernel does it: the loader allocates from what is left after its own end. */
    if (p->p_flags & PF_W && p->p_filesz)
        for (volatile char *z = (char *)file_end; z < (volatile char *)zeroed; z++)
            *z = 0;
    if (end > zeroed) {
        at = call(SYS_mmap, (long)zeroed, (long)(end - zeroed), prot,
                  MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
        if (is_error(at))
            fail(path, reason(at));
    }
}

static struct image map_file(const char *path, uintptr_t page)
{
    Elf64_Ehdr head = { 0 };
    Elf64_Phdr segments[SEGMENTS_MAX];
    struct image image = { 0 };
    uintptr_t low = UINTPTR_MAX, high = 0, align = page;
    long fd = call(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0, 0, 0), got, size;

    if (is_error(fd))
        fail(path, reason(fd));
    got = call(SYS_pread64, fd, (long)&head, sizeof head, 0, 0, 0);
    if (got != (long)sizeof head || head.e_ident[0] != ELFMAG0 || head.e_ident[1] != ELFMAG1 ||
        head.e_ident[2] != ELFMAG2 || head.e_ident[3] != ELFMAG3 ||
        head.e_ident[EI_CLASS] != ELFCLASS64 || head.e_machine != MACHINE ||
        head.e_type != ET_DYN || head.e_phentsize != sizeof *segments || !head.e_phnum ||
        head.e_phnum > SEGMENTS_MAX)
        fail(path, "is damaged, or a program of another kind");
    size = (long)(head.e_phnum * sizeof *segments);
    if (call(SYS_pread64, fd, (long)segments, size, (long)head.e_phoff, 0, 0) != size)
        fail(path, "is damaged: it ends in its program headers");
    for (int i = 0; i < head.e_phnum; i++) {
        const Elf64_Phdr *p = &segments[i];

        if (p->p_type != PT_LOAD)
            continue;
        low = p->p_vaddr < low ? p->p_vaddr : low;
        high = p->p_vaddr + p->p_memsz > high ? p->p_vaddr + p->p_memsz : high;
        align = p->p_align > align ? p->p_align : align;
    }
    if (low >= high)
        fail(path, "is damaged: it has nothing to load");
    low = down(low, align);
    /* Room for all of it first, so that the segments lie as far apart as the file wants them. */
    got = call(SYS_mmap, 0, (long)(high - low + align), PROT_NONE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (is_error(got))
        fail(path, reason(got));
    image.bias = down((uintptr_t)got + align - 1, align) - low;
    image.entry = image.bias + head.e_entry;
    image.n_headers = head.e_phnum;
    for (int i = 0; i < head.e_phnum; i++) {
        const Elf64_Phdr *p = &segments[i];

        if (p->p_type != PT_LOAD)
            continue;
        map_segment((int)fd, p, image.bias, page, path);
        if (head.e_phoff >= p->p_offset && head.e_phoff < p->p_offset + p->p_filesz)
            image.headers = image.bias + p->p_vaddr + (head.e_phoff - p->p_offset);
    }
    call(SYS_close, fd, 0, 0, 0, 0, 0);
    return image;
}

/* stack: argc, argv, NULL, environment, NULL, auxiliary vector. Returns where to go on. */
__attribute__((used)) uintptr_t start(uintptr_t *stack)
{
    char root[PATH_SIZE], path[PATH_SIZE];
    struct image program, loader;
    uintptr_t *word = stack + 1 + stack[0] + 1, page = 4096;
    Elf64_auxv_t *aux;
    int told = 0;
    long n;

    while (*word)
        word++;
    aux = (Elf64_auxv_t *)(word + 1);
    for (const Elf64_auxv_t *a = aux; a->a_type != AT_NULL; a++)
        if (a->a_type == AT_PAGESZ)
            page = a->a_un.a_val;

    n = call(SYS_readlinkat, AT_FDCWD, (long)"/proc/self/exe", (long)root, sizeof root, 0, 0);
    if (is_error(n))
        fail("/proc/self/exe", "cannot be read: /proc has to be mounted");
    if (n == (long)sizeof root)
        fail("/proc/self/exe", "the path of this program is too long");
    for (int parts = 0; parts < 2 && n > 0;) /* without /bin/nakshatra */
        parts += root[--n] == '/';
    root[n] = '\0';

    path_of(path, root, "nakshatra");
    program = map_file(path, page);
    path_of(path, root, LOADER);
    loader = map_file(path, page);
    for (Elf64_auxv_t *a = aux; a->a_type != AT_NULL; a++) {
        told++;
        switch (a->a_type) {
        case AT_PHDR:
            a->a_un.a_val = program.headers;
            break;
        case AT_PHENT:
            a->a_un.a_val = sizeof(Elf64_Phdr);
            break;
        case AT_PHNUM:
            a->a_un.a_val = program.n_headers;
            break;
        case AT_ENTRY:
            a->a_un.a_val = program.entry;
            break;
        case AT_BASE:
            a->a_un.a_val = loader.bias;
            break;
        default:
            told--;
        }
    }
    if (told != 5)
        fail(path, "the kernel does not say what a loader needs (its auxiliary vector)");
    return loader.entry;
}

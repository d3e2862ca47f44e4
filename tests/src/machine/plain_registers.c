/*
 * Preloaded into User Mode Linux. Its kernel of 6.1 has room for the registers of processors with AVX-512 and no more. On one with
 * AMX it reads as many as fit, cannot set those alone again, and its first process dies. So whatever it sets is laid over all
 * that there are; see arch/x86/um/os-Linux/registers.c and arch/x86/um/user-offsets.c of Linux 6.1.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

typedef long (*ptrace_function)(enum __ptrace_request, ...);

/* More than any processor has. */
static char all[65536];

long ptrace(enum __ptrace_request request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    long pid = va_arg(arguments, long);
    long address = va_arg(arguments, long);
    void *data = va_arg(arguments, void *);
    va_end(arguments);
    ptrace_function next = (ptrace_function)dlsym(RTLD_NEXT, "ptrace");
    if (request == PTRACE_SETREGSET && address == NT_X86_XSTATE) {
        struct iovec whole = {all, sizeof all};
        struct iovec *part = data;
        if (next(PTRACE_GETREGSET, pid, address, &whole) == 0 && part->iov_len < whole.iov_len) {
            memcpy(all, part->iov_base, part->iov_len);
            return next(request, pid, address, &whole);
        }
    }
    return next(request, pid, address, data);
}

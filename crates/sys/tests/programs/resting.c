/* A thread that rests in one system call again and again, for others to borrow it meanwhile. Before each call it fills
 * the vector and callee-saved registers, after it all of them must be as they were, and the result one that nobody
 * disturbed. Its first argument says which call:
 *   sleep   nanosleep of 30 ms      poll    poll of nothing, 30 ms       futex   FUTEX_WAIT of 30 ms
 *   read    read from standard input, byte by byte                       pause   pause
 *   spin    none: 30 ms of computing                                     epoll   epoll_wait of 30 ms, which may say EINTR
 *   busy    epoll_wait that does not wait, and computing between
 * Says "@ready WORK" with the address of a function that may be called; ends when the byte 'q' is read, or with SIGTERM,
 * and says "@ready CALLS RESTS", how often that was called and how often it rested. Exit code 1 if anything differed. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long calls, rests;
static volatile sig_atomic_t over;

/* One that comes before pause() begins is lost to it: so it comes again. */
static void end(int signal) { (void)signal, over = 1, alarm(1); }

/* Uses the stack, every vector register, the direction of strings and a system call. */
__attribute__((noinline)) long work(long a, long b)
{
    volatile char stack[4096];
    memset((char *)stack, (int)a, sizeof stack);
    for (size_t i = 0; i < sizeof stack; i++)
        if (stack[i] != (char)a) abort();
    __asm__ volatile("pxor %%xmm0,%%xmm0\n pxor %%xmm1,%%xmm1\n pxor %%xmm7,%%xmm7\n pxor %%xmm15,%%xmm15\n fninit" ::: "xmm0",
                     "xmm1", "xmm7", "xmm15", "memory");
    syscall(SYS_getppid);
    calls++;
    return a + b;
}

struct state { uint64_t xmm[16][2], general[5]; };

static struct state want, got;

/* One system call with all registers filled; what they are afterwards is in `got`. */
static long filled(long number, long a, long b, long c, long d)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = 0;
    long result = number;
    __asm__ volatile(
        "push %%rbp\n push %%rbx\n push %%r12\n push %%r13\n push %%r14\n push %%r15\n"
        "movdqu want+0(%%rip),%%xmm0\n movdqu want+16(%%rip),%%xmm1\n movdqu want+112(%%rip),%%xmm7\n movdqu want+240(%%rip),%%xmm15\n"
        "mov want+256(%%rip),%%rbx\n mov want+264(%%rip),%%r12\n mov want+272(%%rip),%%r13\n mov want+280(%%rip),%%r14\n mov want+288(%%rip),%%r15\n"
        "syscall\n"
        "movdqu %%xmm0,got+0(%%rip)\n movdqu %%xmm1,got+16(%%rip)\n movdqu %%xmm7,got+112(%%rip)\n movdqu %%xmm15,got+240(%%rip)\n"
        "mov %%rbx,got+256(%%rip)\n mov %%r12,got+264(%%rip)\n mov %%r13,got+272(%%rip)\n mov %%r14,got+280(%%rip)\n mov %%r15,got+288(%%rip)\n"
        "pop %%r15\n pop %%r14\n pop %%r13\n pop %%r12\n pop %%rbx\n pop %%rbp\n"
        : "+a"(result), "+r"(r10)
        : "D"(a), "S"(b), "d"(c), "r"(r8)
        : "rcx", "r11", "memory", "cc", "xmm0", "xmm1", "xmm7", "xmm15");
    return result;
}

static void fail(const char *what, long result)
{
    fprintf(stderr, "%s: %ld\n", what, result);
    exit(1);
}

int main(int argc, char **argv)
{
    const char *kind = argc > 1 ? argv[1] : "";
    struct sigaction action = {.sa_handler = end, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGALRM, &action, NULL);
    struct timespec time = {0, 30000000};
    uint32_t word = 7;
    char byte = 0;
    int epoll = epoll_create1(0);
    struct epoll_event event;
    printf("@ready %lu\n", (unsigned long)work), fflush(stdout);
    while (!over) {
        for (int i = 0; i < 16; i++) want.xmm[i][0] = rests * 31 + i, want.xmm[i][1] = ~want.xmm[i][0];
        for (int i = 0; i < 5; i++) want.general[i] = rests * 17 + i;
        struct timespec before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        long result = 0, wanted = 0, least = 30000000;
        if (!strcmp(kind, "sleep")) result = filled(SYS_nanosleep, (long)&time, 0, 0, 0);
        else if (!strcmp(kind, "poll")) result = filled(SYS_poll, 0, 0, 30, 0);
        else if (!strcmp(kind, "futex")) result = filled(SYS_futex, (long)&word, FUTEX_WAIT, 7, (long)&time), wanted = -ETIMEDOUT;
        else if (!strcmp(kind, "read")) result = filled(SYS_read, 0, (long)&byte, 1, 0), wanted = 1, least = 0;
        else if (!strcmp(kind, "pause")) result = filled(SYS_pause, 0, 0, 0, 0), wanted = -EINTR, least = 0;
        else if (!strcmp(kind, "epoll")) {
            result = filled(SYS_epoll_wait, epoll, (long)&event, 1, 30);
            if (result == -EINTR) result = 0, least = 0;
        } else if (!strcmp(kind, "busy")) {
            for (volatile long n = 0; n < 300000; n++) {}
            result = filled(SYS_epoll_wait, epoll, (long)&event, 1, 0), least = 0;
        } else {
            for (volatile long n = 0; n < 3000000; n++) {}
            got = want, least = 0;
        }
        clock_gettime(CLOCK_MONOTONIC, &after);
        long took = (after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec;
        if (over) break;
        rests++;
        if (result != wanted) fail("result", result);
        if (took < least) fail("ended early, ns", took);
        for (int i = 0; i < 16; i++)
            if ((i < 2 || i == 7 || i == 15) && memcmp(want.xmm[i], got.xmm[i], 16)) fail("xmm", i);
        if (memcmp(want.general, got.general, sizeof want.general)) fail("general", 0);
        if (byte == 'q') break;
    }
    getchar();
    printf("@ready %ld %ld\n", calls, rests), fflush(stdout);
    return 0;
}

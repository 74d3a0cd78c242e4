/* A process that keeps 30 MB of freed blocks and must not be touched, or only with care. Its first argument says why:
 *   handler   it rests in a signal handler that came while it was in malloc, as far as anybody can tell
 *   seccomp   it runs under a filter that ends it for process_madvise
 *   fiber     it rests on a stack that is a piece of its heap
 *   busy      it never rests: an event loop that always finds something to do
 *   computes  it never rests, makes no system call and answers nothing
 * With "busy-" before, the first and the third go round as busy as that.
 * Says "@ready" and answers every line until its standard input closes. */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static void *volatile kept;

/* One byte at a time, so that it is in read(2) and in nothing else. */
static void answer(void)
{
    char byte;
    if (write(1, "@ready\n", 7) != 7) _exit(1);
    while (read(0, &byte, 1) == 1)
        if (byte == '\n' && write(1, "@ready\n", 7) != 7) _exit(1);
    _exit(0);
}

/* Asks whether there is something to read, again and again. */
static void answer_busily(void)
{
    struct pollfd input = {0, POLLIN, 0};
    if (write(1, "@ready\n", 7) != 7) _exit(1);
    for (;;) {
        for (volatile int n = 0; n < 20000; n++) {}
        char byte;
        if (poll(&input, 1, 0) != 1) continue;
        if (read(0, &byte, 1) != 1) _exit(0);
        if (byte == '\n' && write(1, "@ready\n", 7) != 7) _exit(1);
    }
}

static void (*rest)(void) = answer;

static void handle(int signal) { (void)signal, rest(); }

int main(int argc, char **argv)
{
    static void *blocks[30000];
    for (int i = 0; i < 30000; i++) blocks[i] = memset(malloc(1000), i, 1000);
    kept = malloc(1000);
    for (int i = 0; i < 30000; i++) free(blocks[i]);
    const char *kind = argc > 1 ? argv[1] : "";
    if (!strncmp(kind, "busy-", 5)) rest = answer_busily, kind += 5;
    if (!strcmp(kind, "handler")) {
        signal(SIGUSR1, handle);
        raise(SIGUSR1);
    } else if (!strcmp(kind, "seccomp")) {
        struct sock_filter rules[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_madvise, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog filter = {sizeof rules / sizeof *rules, rules};
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)) return 2;
    } else if (!strcmp(kind, "fiber")) {
        static ucontext_t fiber, back;
        getcontext(&fiber);
        fiber.uc_stack.ss_size = 64 << 10;
        fiber.uc_stack.ss_sp = malloc(fiber.uc_stack.ss_size);
        fiber.uc_link = &back;
        makecontext(&fiber, rest, 0);
        swapcontext(&back, &fiber);
    } else if (!strcmp(kind, "computes")) {
        if (write(1, "@ready\n", 7) != 7) return 1;
        for (volatile long n = 0;; n++) {}
    } else if (!strcmp(kind, "busy")) {
        rest = answer_busily;
    }
    rest();
}

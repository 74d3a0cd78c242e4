/* Threads that allocate, check and free without end, with a short rest after each turn, so that there is always one that
 * could be borrowed, and always one that is in the allocator. Arguments: how many threads, and whether a timer interrupts
 * them ("signals") with a handler that counts. Every block is full of a byte that says whose it is, and checked as a whole
 * when it is freed. Says "@ready"; answers each line with how many blocks were found damaged and system calls that failed
 * with something else than EINTR; ends when its standard input closes. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define BLOCKS 2000
#define TURN 3000

static atomic_long damaged, failed, turns;
static volatile sig_atomic_t interrupts;

static uint64_t draw(uint64_t *seed, uint64_t below)
{
    *seed ^= *seed << 13, *seed ^= *seed >> 7, *seed ^= *seed << 17;
    return *seed % below;
}

struct block { unsigned char *bytes; size_t size; unsigned char mark; };

static void drop(struct block *block)
{
    for (size_t i = 0; i < block->size; i++)
        if (block->bytes[i] != block->mark) {
            damaged++;
            break;
        }
    free(block->bytes), block->bytes = NULL;
}

static void *work(void *number)
{
    uint64_t seed = 88172645463325252u + (uintptr_t)number;
    struct block *blocks = calloc(BLOCKS, sizeof *blocks);
    for (;;) {
        /* Waxes and wanes, so that there is something to give back. */
        uint64_t wanted = draw(&seed, BLOCKS);
        for (int i = 0; i < TURN; i++) {
            uint64_t index = draw(&seed, BLOCKS);
            struct block *block = &blocks[index];
            if (block->bytes && (index > wanted || draw(&seed, 4) == 0)) {
                drop(block);
            } else if (!block->bytes && index <= wanted) {
                block->size = 16 + draw(&seed, draw(&seed, 20) ? 3000 : 60000);
                block->mark = draw(&seed, 256);
                if (!(block->bytes = malloc(block->size))) abort();
                memset(block->bytes, block->mark, block->size);
            }
        }
        turns++;
        struct timespec rest = {0, 200000};
        if (nanosleep(&rest, NULL) && errno != EINTR) failed++;
    }
    return NULL;
}

static void count(int signal) { (void)signal, interrupts++; }

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    if (argc > 2 && !strcmp(argv[2], "signals")) {
        struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
        sigaction(SIGALRM, &action, NULL);
        struct itimerval timer = {{0, 300}, {0, 300}};
        setitimer(ITIMER_REAL, &timer, NULL);
    }
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, work, (void *)(uintptr_t)i);
    }
    while (turns < threads) usleep(1000);
    char byte;
    if (write(1, "@ready\n", 7) != 7) return 1;
    for (;;) {
        ssize_t got = read(0, &byte, 1);
        if (got == 0) return damaged || failed;
        if (got < 0) failed++;
        if (got == 1 && byte == '\n') {
            char line[64];
            int length = snprintf(line, sizeof line, "@ready %ld %ld\n", (long)damaged, (long)failed);
            if (write(1, line, length) != length) return 1;
        }
    }
}

/* Brings musl's malloc into a shape and answers for it on stdin and stdout: "shape NAME" makes it and tells how many
 * blocks it holds and how many bytes were asked for, "drop START END" drops pages, "check" says whether all blocks still
 * hold what was written, then takes and frees more, cleared ones among them, "churn" does only the latter, "overrun"
 * writes behind a block, "mend" takes that back, "busy" has four threads take and free until the end. Every answer
 * begins with "@ready"; answers allocate nothing, and between them the process stands still. */
#define _GNU_SOURCE
#include "blocks.h"
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void survivors(void)
{
    for (int i = 0; i < 60000; i++) take(16 + draw(2000));
    for (size_t i = 0; i < count; i++)
        if (i % 20) drop(i);
}

static void every_size(void)
{
    for (size_t size = 0; size < 2000000; size += 1 + size / 7)
        for (int i = 0; i < 12; i++) take(size);
    for (size_t i = 0; i < count; i++)
        if (draw(3)) drop(i);
}

static void freed(void)
{
    for (int i = 0; i < 100000; i++) take(16 + draw(1000));
    for (size_t i = 0; i + 1 < count; i++) drop(i);
}

/* In groups in slots of groups. */
static void small(void)
{
    for (int i = 0; i < 100000; i++) take(draw(100));
    for (size_t i = 0; i < count; i++)
        if (draw(100)) drop(i);
}

static void large(void)
{
    for (int i = 0; i < 200; i++) take((20 << 10) + draw(200 << 10));
    for (int i = 0; i < 20; i++) take((200 << 10) + draw(4 << 20));
    for (size_t i = 0; i < count; i += 2) drop(i);
}

static void middling(void)
{
    for (int i = 0; i < 6000; i++) take((4 << 10) + draw(12 << 10));
    for (size_t i = 0; i < count; i++)
        if (draw(8)) drop(i);
}

static void huge(void)
{
    take(100), take(3 << 20), take(30 << 20), take(4 << 20);
    drop(2);
}

static void aligned(void)
{
    for (int turn = 0; turn < 5; turn++)
        for (size_t alignment = 32; alignment <= 64 << 20; alignment *= 2) {
            void *block;
            size_t size = 24 * alignment % (1 << 20) + draw(5000);
            if (posix_memalign(&block, alignment, size)) abort();
            keep(block, size);
        }
    for (size_t i = 0; i < count; i += 3) drop(i);
}

/* Grown, moved and shrunk in place. */
static void reallocated(void)
{
    for (int i = 0; i < 1000; i++) take(1 + draw(draw(10) ? 5000 : 300000));
    for (size_t i = 0; i < count; i++) resize(i, 1 + draw(2) * draw(400000) + blocks[i].size / 2);
    for (size_t i = 0; i < count; i += 3) drop(i);
}

/* So often made and dropped that the last group of a class is kept, all free. */
static void bouncing(void)
{
    for (int i = 0; i < 2000; i++)
        for (size_t size = 9000; size < 60000; size += 7000) {
            void *few[3];
            for (int n = 0; n < 3; n++) few[n] = memset(malloc(size), 1, size);
            for (int n = 0; n < 3; n++) free(few[n]);
        }
    take(1000);
}

static pthread_barrier_t barrier;

static void *others(void *unused)
{
    for (size_t i = 0; i < count; i += 3) drop(i);
    pthread_barrier_wait(&barrier);
    for (;;) pause();
    return unused;
}

static void freed_elsewhere(void)
{
    pthread_t thread;
    for (int i = 0; i < 100000; i++) take(16 + draw(500));
    pthread_barrier_init(&barrier, NULL, 2);
    pthread_create(&thread, NULL, others, NULL);
    pthread_barrier_wait(&barrier);
}

static const struct { const char *name; void (*make)(void); } shapes[] = {
    {"survivors", survivors}, {"every-size", every_size}, {"freed", freed}, {"small", small}, {"large", large},
    {"middling", middling}, {"huge", huge}, {"aligned", aligned}, {"reallocated", reallocated}, {"bouncing", bouncing},
    {"freed-elsewhere", freed_elsewhere},
};

static bool churn(void)
{
    static unsigned char *some[1000];
    bool whole = true;
    for (int i = 0; i < 30000; i++) {
        size_t index = draw(1000), size = 1 + draw(draw(10) ? 3000 : 140000);
        free(some[index]);
        if (!(some[index] = draw(2) ? malloc(size) : calloc(1, size))) abort();
        if (draw(2)) {
            free(some[index]);
            some[index] = calloc(1, size);
            for (size_t at = 0; at < size; at++) whole &= !some[index][at];
        }
        memset(some[index], 0xaa, size);
    }
    for (int i = 0; i < 1000; i++) free(some[i]), some[i] = NULL;
    return whole;
}

static void *busy(void *arg)
{
    uint64_t own = (uintptr_t)arg * 7919 + 1;
    static __thread unsigned char *mine[1000];
    for (;;) {
        own = own * 6364136223846793005u + 1442695040888963407u;
        size_t index = (own >> 54) % 1000, size = 16 + (own >> 40) % ((own >> 20) % 50 ? 3000 : 60000);
        free(mine[index]);
        mine[index] = malloc(size);
        memset(mine[index], 1, size);
    }
    return NULL;
}

static char buffer[1 << 12];

int main(void)
{
    char line[128];
    /* As servers do; a static program that sets no signal's action has no way back from a handler. */
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    printf("@ready\n"), fflush(stdout);
    for (;;) {
        if (hear(line, sizeof line) == 0) return 0;
        if (!strncmp(line, "shape ", 6)) {
            for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
                if (!strcmp(shapes[i].name, line + 6)) shapes[i].make();
            size_t left = 0;
            for (size_t i = 0; i < count; i++) {
                if (!blocks[i].at) continue;
                left++;
                if (malloc_usable_size(blocks[i].at) != blocks[i].size) abort();
            }
            printf("@ready %zu %zu\n", left, (size_t)held);
        } else if (!strncmp(line, "drop ", 5)) {
            char *rest;
            uintptr_t start = strtoul(line + 5, &rest, 16), end = strtoul(rest, NULL, 16);
            printf("@ready %d\n", madvise((void *)start, end - start, MADV_DONTNEED));
        } else if (!strcmp(line, "check")) {
            bool whole = !wrong() && churn() && !wrong();
            printf("@ready %s\n", whole ? "whole" : "damaged");
        } else if (!strcmp(line, "churn")) {
            printf("@ready %s\n", churn() ? "whole" : "damaged");
        } else if (!strcmp(line, "overrun") || !strcmp(line, "mend")) {
            unsigned char *behind = blocks[0].at + blocks[0].size;
            *(volatile unsigned char *)behind = *line == 'o' ? 7 : 0;
            printf("@ready %zu\n", (size_t)(uintptr_t)behind);
        } else if (!strcmp(line, "busy")) {
            pthread_t thread;
            take(1);
            for (uintptr_t i = 0; i < 4; i++) pthread_create(&thread, NULL, busy, (void *)i);
            printf("@ready\n");
        }
        fflush(stdout);
    }
}

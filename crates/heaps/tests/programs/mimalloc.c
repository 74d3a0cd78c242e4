/* Brings mimalloc, which is preloaded, into a shape and answers for it on stdin and stdout: "shape NAME" makes it and
 * tells how many blocks it holds and how many bytes they are (malloc_usable_size), "drop START END" drops pages, "check" says whether all blocks still hold what was written, then takes and frees
 * more, "busy" has four threads take and free until the end. Every answer begins with "@ready"; answers allocate
 * nothing, and between them the process stands still. */
#define _GNU_SOURCE
#include "blocks.h"
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void survivors(void)
{
    for (int i = 0; i < 200000; i++) take(16 + draw(2000));
    for (size_t i = 0; i < count; i++)
        if (i % 20) drop(i);
}

static void every_size(void)
{
    for (size_t size = 1; size < 20000000; size += 1 + size / 7)
        for (int i = 0; i < 12; i++) take(size);
    for (size_t i = 0; i < count; i++)
        if (draw(3)) drop(i);
}

static void freed(void)
{
    for (int i = 0; i < 100000; i++) take(16 + draw(1000));
    for (size_t i = 0; i + 1 < count; i++) drop(i);
}

static void large(void)
{
    for (int i = 0; i < 40; i++) take((200 << 10) + draw(30 << 20));
    for (size_t i = 0; i < count; i += 2) drop(i);
}

/* Blocks that no arena or segment holds beside others, of which one is given back. */
static void huge(void)
{
    take(100), take(34 << 20), take(100 << 20), take(40 << 20);
    drop(2);
}

/* Blocks with a larger alignment than that of mimalloc's pages have memory for themselves. */
static void aligned(void)
{
    for (size_t alignment = 32; alignment <= 64 << 20; alignment *= 2) {
        void *block;
        size_t size = 24 * alignment % (1 << 20) + 5000;
        if (posix_memalign(&block, alignment, size)) abort();
        keep(block, size);
    }
    for (size_t i = 0; i < count; i += 3) drop(i);
}

static pthread_barrier_t barrier;

static void *others(void *unused)
{
    /* Blocks of the first thread, freed by another. */
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
    {"survivors", survivors}, {"every-size", every_size}, {"freed", freed}, {"large", large}, {"huge", huge}, {"aligned", aligned},
    {"freed-elsewhere", freed_elsewhere},
};

static bool check(void)
{
    if (wrong()) return false;
    for (int i = 0; i < 100000; i++) free(memset(malloc(1 + draw(3000)), 1, 1));
    return true;
}

static void *busy(void *arg)
{
    uint64_t own = (uintptr_t)arg * 7919 + 1;
    static __thread unsigned char *mine[1000];
    for (;;) {
        own = own * 6364136223846793005u + 1442695040888963407u;
        size_t index = own >> 54 % 1000, size = 16 + (own >> 40) % 3000;
        index %= 1000;
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
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    printf("@ready\n"), fflush(stdout);
    while (hear(line, sizeof line)) {
        if (!strncmp(line, "shape ", 6)) {
            for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
                if (!strcmp(shapes[i].name, line + 6)) shapes[i].make();
            size_t live = 0;
            for (size_t i = 0; i < count; i++) live += blocks[i].at != NULL;
            printf("@ready %zu %zu\n", live, (size_t)held);
        } else if (!strncmp(line, "drop ", 5)) {
            char *rest;
            uintptr_t start = strtoul(line + 5, &rest, 16), end = strtoul(rest, NULL, 16);
            printf("@ready %d\n", madvise((void *)start, end - start, MADV_DONTNEED));
        } else if (!strcmp(line, "check")) {
            printf("@ready %s\n", check() ? "whole" : "damaged");
        } else if (!strcmp(line, "busy")) {
            pthread_t thread;
            for (uintptr_t i = 0; i < 4; i++) pthread_create(&thread, NULL, busy, (void *)i);
            printf("@ready\n");
        }
        fflush(stdout);
    }
    return 0;
}

/* Brings glibc's heap into a shape with a known truth and answers for it on stdin and stdout: "shape" makes it,
 * "truth" tells mallinfo's totals and writes malloc_info's to the file named on the command line, "trim" calls
 * malloc_trim(0), "drop START END" drops pages, "sum" tells a sum over what the blocks hold, "end" frees them all
 * among other allocations. Every answer is a line that starts with "@ready". Between answers the process stands still.
 *
 * What a shape holds is known exactly: `held` counts the chunk of every block in `blocks`. Answers allocate
 * nothing: streams have static buffers and are opened before the shape. Uses no function younger than
 * glibc 2.17. */
#define _GNU_SOURCE
#include <gnu/libc-version.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The chunk of a block: usable size ends where the next chunk's own size begins. In a mapping of its own it ends
 * with the chunk; from 2.43 the chunk ends 16 bytes before the mapping does, and usable size as with others. */
static size_t chunk(void *block)
{
    size_t mapped = ((size_t *)block)[-1] & 2, old = strcmp(gnu_get_libc_version(), "2.43") < 0;
    return malloc_usable_size(block) + (mapped && old ? 16 : 8);
}
#define COUNTED chunk
#include "blocks.h"

#define THREADS 8

static void fresh(void) {}

static void below_a_pin(void)
{
    for (int i = 0; i < 100000; i++) take(1000);
    take(1000);
    for (int i = 0; i < 100000; i++) drop(i);
}

static void trimmed_already(void) { below_a_pin(), malloc_trim(0); }

static void alternate(void)
{
    for (int i = 0; i < 100000; i++) take(500);
    for (int i = 0; i < 100000; i += 2) drop(i);
}

static void alternate_runs(void)
{
    for (int i = 0; i < 200000; i++) take(200);
    for (int i = 0; i < 200000; i++)
        if (i / 100 % 2) drop(i);
}

static void caches_full(void)
{
    for (int size = 24; size <= 1400; size += 16)
        for (int i = 0; i < 40; i++) take(size);
    for (size_t i = 0; i < count; i++) drop(i);
    take(24);
}

static void quick_lists(void)
{
    for (int i = 0; i < 300000; i++) take(24 + draw(90));
    for (int i = 0; i < 300000; i++)
        if (i % 3000 > 20) drop(i);
}

static void quick_lists_at_random(void)
{
    for (int i = 0; i < 200000; i++) take(24 + draw(90));
    for (int i = 0; i < 150000; i++) drop(draw(200000));
}

static void large_blocks(void)
{
    for (int i = 0; i < 24; i++) take((200 << 10) + draw(3 << 20));
    for (int align = 32; align <= 4 << 20; align *= 4) keep(memalign(align, 300 << 10), 300 << 10);
    for (int i = 0; i < 24; i += 3) drop(i);
    for (int i = 1; i < 24; i += 6) {
        size_t size = (1 << 20) + draw(8 << 20);
        resize(i, size);
    }
}

static void large_bins(void)
{
    for (int i = 0; i < 2000; i++) take(4000 + draw(100000));
    for (int i = 0; i < 2000; i++)
        if (draw(2)) drop(i);
    for (int i = 0; i < 400; i++) take(2000 + draw(9000));
}

static void reallocated(void)
{
    for (int i = 0; i < 20000; i++) take(16 + draw(400));
    for (int i = 0; i < 60000; i++) {
        size_t index = draw(20000), size = 16 + draw(6000);
        resize(index, size);
    }
    for (int i = 0; i < 12000; i++) drop(draw(20000));
}

static void aligned(void)
{
    for (int i = 0; i < 20000; i++) {
        size_t size = 16 + draw(3000);
        keep(memalign(16 << draw(9), size), size);
    }
    for (int i = 0; i < 20000; i++)
        if (draw(4)) drop(i);
}

/* Other code takes brk memory, so that the heap has a gap. */
static void gap_in_brk(void)
{
    for (int i = 0; i < 20000; i++) take(700);
    memset(sbrk(50008), 0xff, 50008);
    for (int i = 0; i < 20000; i++) take(700);
    for (size_t i = 0; i < count; i++)
        if (i % 100) drop(i);
}

/* A mapping right behind brk memory: the main arena goes on elsewhere. */
static void blocked_brk(void)
{
    for (int i = 0; i < 5000; i++) take(700);
    char *end = (char *)(((uintptr_t)sbrk(0) + 4095) & -4096ul);
    if (mmap(end, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) abort();
    for (int i = 0; i < 20000; i++) take(700);
    for (size_t i = 0; i < count; i++)
        if (i % 100) drop(i);
}

/* Threads: each fills its own part of `blocks`, frees what the shape says and stays, or ends. */
static struct burst { int size, number, keep_every, stay, at_once; } burst;
static pthread_barrier_t all;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static size_t held_by[THREADS];

static void *thread(void *arg)
{
    size_t me = (size_t)arg, first = me * (BLOCKS / THREADS);
    if (!burst.at_once) pthread_mutex_lock(&turn);
    for (int i = 0; i < burst.number; i++) {
        size_t size = burst.size / 2 + (i * 7919u) % burst.size;
        blocks[first + i] = (struct block){memset(malloc(size), 3, size), size};
    }
    if (burst.at_once) pthread_barrier_wait(&all);
    for (int i = 0; i < burst.number; i++)
        if (burst.keep_every && i % burst.keep_every == 0) held_by[me] += chunk(blocks[first + i].at);
        else free(blocks[first + i].at), blocks[first + i].at = NULL;
    if (!burst.at_once) pthread_mutex_unlock(&turn);
    pthread_barrier_wait(&all);
    while (burst.stay) pause();
    return NULL;
}

static void threads(struct burst wanted)
{
    pthread_t ids[THREADS];
    burst = wanted;
    pthread_barrier_init(&all, NULL, THREADS + 1);
    for (size_t i = 0; i < THREADS; i++) pthread_create(&ids[i], NULL, thread, (void *)i);
    pthread_barrier_wait(&all);
    if (wanted.at_once) pthread_barrier_wait(&all);
    if (!wanted.stay)
        for (int i = 0; i < THREADS; i++) pthread_join(ids[i], NULL);
    for (int i = 0; i < THREADS; i++) held += held_by[i];
}

static void bursts_at_once(void) { threads((struct burst){600, 10000, 50, 1, 1}); }
static void bursts_in_turn(void) { threads((struct burst){600, 10000, 50, 1, 0}); }
static void ended_threads(void) { threads((struct burst){600, 10000, 50, 0, 1}); }
static void several_heaps(void) { threads((struct burst){4000, 20000, 40, 1, 0}); }

/* Freeing a large block raises the threshold up to which tops are kept. */
static void tops_of_arenas(void)
{
    free(malloc(30 << 20));
    threads((struct burst){600, 20000, 0, 1, 1});
}

static void shared_arenas(void)
{
    mallopt(M_ARENA_MAX, 2);
    threads((struct burst){400, 10000, 30, 1, 1});
}

static const struct { const char *name; void (*make)(void); } shapes[] = {
    {"fresh", fresh}, {"below-a-pin", below_a_pin}, {"trimmed-already", trimmed_already},
    {"alternate", alternate}, {"alternate-runs", alternate_runs}, {"caches-full", caches_full},
    {"quick-lists", quick_lists}, {"quick-lists-at-random", quick_lists_at_random},
    {"large-blocks", large_blocks}, {"large-bins", large_bins}, {"reallocated", reallocated},
    {"aligned", aligned}, {"gap-in-brk", gap_in_brk}, {"blocked-brk", blocked_brk},
    {"bursts-at-once", bursts_at_once}, {"bursts-in-turn", bursts_in_turn}, {"ended-threads", ended_threads},
    {"several-heaps", several_heaps}, {"tops-of-arenas", tops_of_arenas}, {"shared-arenas", shared_arenas},
};

/* FNV-1a over the content of every block. */
static uint64_t sum(void)
{
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < BLOCKS; i++)
        for (size_t at = 0; blocks[i].at && at < malloc_usable_size(blocks[i].at); at++)
            hash = (hash ^ blocks[i].at[at]) * 1099511628211u;
    return hash;
}

/* Takes and frees blocks of all sizes until none is left: malloc follows every link it has. */
static void end(void)
{
    for (size_t i = 0; i < BLOCKS; i++) {
        if (!blocks[i].at) continue;
        void *other = calloc(1, 16 + draw(5000));
        for (size_t at = 0; at < 16; at++)
            if (((char *)other)[at]) abort();
        free(blocks[i].at), blocks[i].at = NULL;
        if (i % 3) free(other);
    }
}

static char out_buffer[1 << 12], info_buffer[1 << 18];

int main(int argc, char **argv)
{
    char line[64];
    size_t shape = 0;
    if (argc != 3) return 2;
    while (shape < sizeof shapes / sizeof *shapes && strcmp(shapes[shape].name, argv[1])) shape++;
    if (shape == sizeof shapes / sizeof *shapes) return 2;
    setvbuf(stdout, out_buffer, _IOFBF, sizeof out_buffer);
    FILE *info = fopen(argv[2], "w");
    if (!info) return 2;
    setvbuf(info, info_buffer, _IOFBF, sizeof info_buffer);
    printf("@ready\n"), fflush(stdout);
    while (hear(line, sizeof line)) {
        if (!strcmp(line, "shape")) {
            shapes[shape].make();
            printf("@ready %zu\n", (size_t)held);
        } else if (!strcmp(line, "truth")) {
            struct mallinfo now = mallinfo();
            rewind(info);
            malloc_info(0, info);
            fflush(info);
            printf("@ready %u %u %u %u %u %u\n", now.arena, now.uordblks, now.fordblks, now.fsmblks, now.hblks,
                   now.hblkhd);
        } else if (!strncmp(line, "drop ", 5)) {
            char *rest;
            uintptr_t start = strtoul(line + 5, &rest, 16), end = strtoul(rest, NULL, 16);
            printf("@ready %d\n", madvise((void *)start, end - start, MADV_DONTNEED));
        } else if (!strcmp(line, "sum")) {
            printf("@ready %lx\n", sum());
        } else if (!strcmp(line, "end")) {
            end();
            printf("@ready\n");
        } else if (!strcmp(line, "trim")) {
            printf("@ready %d\n", malloc_trim(0));
        }
        fflush(stdout);
    }
    return 0;
}

/* Brings jemalloc into a shape with a known truth and answers for it on stdin and stdout: "shape" makes it, "truth"
 * tells what mallctl does, "purge" purges all arenas, "check" tells how many of the blocks hold something else than
 * they should, "drop N" reads N lines with two addresses and gives back the pages between them. Every answer is a line
 * that starts with "@ready". Between answers the process stands still, but for the shape "busy".
 *
 * Without jemalloc (neither preloaded nor linked) "truth" has nothing to tell. Answers allocate nothing: streams have
 * static buffers. */
#define _GNU_SOURCE
#include "blocks.h"
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int mallctl(const char *name, void *old, size_t *old_size, void *new, size_t new_size) __attribute__((weak));
void *mallocx(size_t size, int flags) __attribute__((weak));
void dallocx(void *block, int flags) __attribute__((weak));
void *__libc_malloc(size_t size) __attribute__((weak));
void __libc_free(void *block) __attribute__((weak));

#define ALL 4096 /* MALLCTL_ARENAS_ALL */
#define THREADS 8

static uint64_t value(const char *format, uint64_t first, uint64_t second)
{
    char name[96];
    uint64_t number = 0;
    size_t size = 8;
    snprintf(name, sizeof name, format, (unsigned)first, (unsigned)second);
    if (mallctl(name, &number, &size, NULL, 0)) {
        number = 0, size = 4;
        if (mallctl(name, &number, &size, NULL, 0)) {
            number = 0, size = 1;
            mallctl(name, &number, &size, NULL, 0);
        }
    }
    return number;
}

static void call(const char *format, unsigned arena)
{
    char name[96];
    snprintf(name, sizeof name, format, arena);
    if (mallctl && mallctl(name, NULL, NULL, NULL, 0)) abort();
}

static unsigned made(const char *name)
{
    unsigned number = 0;
    size_t size = sizeof number;
    if (!mallctl || mallctl(name, &number, &size, NULL, 0)) abort();
    return number;
}

static void fresh(void) {}

static size_t some_size(void)
{
    return draw(20) ? 1 + draw(1 << draw(14)) : 1 + draw(1 << 16);
}

static void small(void)
{
    for (int i = 0; i < 100000; i++) take(some_size() % 14337);
    for (int i = 0; i < 100000; i++)
        if (draw(3)) drop(i);
}

static void large(void)
{
    for (int i = 0; i < 500; i++) take((16 << 10) + draw(1 << 20));
    for (int i = 0; i < 500; i += 2) drop(i);
    size_t huge = (size_t)3 << 30;
    keep_untouched(malloc(huge));
}

static void of_one_size(void)
{
    for (int i = 0; i < 300000; i++) take(160);
    for (int i = 0; i < 300000; i++)
        if (i / 100 % 4) drop(i);
}

static void aligned(void)
{
    for (int i = 0; i < 3000; i++) {
        void *block;
        size_t size = 1 + draw(20000);
        if (posix_memalign(&block, (size_t)16 << draw(12), size)) abort();
        keep(block, size);
    }
    for (int i = 0; i < 3000; i += 3) drop(i);
}

static void reallocated(void)
{
    for (int i = 0; i < 2000; i++) {
        size_t size = some_size();
        char *block = malloc(size);
        for (int turn = 0; turn < 6; turn++) block = realloc(block, size = size / 2 + draw(size * 2) + 1);
        keep(block, size);
    }
}

static void burst(void)
{
    size_t from = take(100) + 1;
    for (int i = 0; i < 40000; i++) take(some_size());
    for (int i = 0; i < 100; i++) take(1 << 20);
    for (size_t i = from; i < count; i++)
        if (i % 64) drop(i);
}

static void purged(void) { burst(), call("arena.%u.purge", ALL); }

/* With options that let dirty pages become muzzy after a millisecond, and stay so. */
static void muzzy(void)
{
    burst();
    uint64_t epoch = 1, dirty = 1;
    size_t size = sizeof epoch;
    for (int turn = 0; dirty && turn < 10000000; turn++) {
        call("arena.%u.decay", ALL);
        mallctl("epoch", &epoch, &size, &epoch, size);
        dirty = value("stats.arenas.%u.pdirty", ALL, 0);
    }
}

static void zeroes(void)
{
    for (int i = 0; i < 100; i++) {
        keep_untouched(calloc(1, 1 << 20));
    }
}

static void tiny(void)
{
    for (int i = 0; i < 300; i++) take(some_size());
    for (int i = 0; i < 300; i += 2) drop(i);
}

/* Two allocators at once: the C library's own has a hundred blocks of 5,000 bytes, and holes. */
static void both(void)
{
    void *own[200];
    for (int i = 0; i < 200; i++) {
        own[i] = __libc_malloc(5000);
        take(5000 + i);
    }
    for (int i = 0; i < 200; i += 2) __libc_free(own[i]), drop(i);
}

static pthread_barrier_t at_end;
static pthread_mutex_t for_ever = PTHREAD_MUTEX_INITIALIZER;

static void *churn(void *argument)
{
    seed += (uintptr_t)argument * 7919;
    size_t own[4000];
    for (int i = 0; i < 4000; i++) own[i] = take(some_size());
    for (int i = 0; i < 4000; i++)
        if (draw(4)) drop(own[i]);
    return NULL;
}

static void *churn_and_wait(void *argument)
{
    churn(argument);
    pthread_barrier_wait(&at_end);
    pthread_mutex_lock(&for_ever);
    return NULL;
}

static pthread_t begin(void *(*what)(void *), uintptr_t number)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, what, (void *)number)) abort();
    return thread;
}

static void threads(void)
{
    pthread_barrier_init(&at_end, NULL, THREADS + 1);
    pthread_mutex_lock(&for_ever);
    for (uintptr_t i = 0; i < THREADS; i++) begin(churn_and_wait, i);
    pthread_barrier_wait(&at_end);
}

static void ended_threads(void)
{
    for (uintptr_t i = 0; i < 3 * THREADS; i++) pthread_join(begin(churn, i), NULL);
}

/* Arenas and caches of its own making. */
static void own_arenas(void)
{
    for (int i = 0; i < 5; i++) {
        unsigned arena = made("arenas.create"), cache = made("tcache.create");
        int uncached = (int)(arena + 1) << 20 | 1 << 8, cached = (int)(cache + 2) << 8;
        size_t own[2000];
        for (int j = 0; j < 2000; j++) {
            size_t size = 1 + draw(40000);
            own[j] = keep(mallocx(size, uncached), size);
        }
        for (int j = 0; j < 2000; j += 2) {
            dallocx(let_go(own[j]), draw(2) ? uncached : cached);
        }
    }
}

/* Never stands still. */
static void *storm(void *argument)
{
    seed += (uintptr_t)argument * 104729;
    void *mine[500] = {0};
    for (unsigned turn = 1;; turn++) {
        if (turn == 2000) pthread_barrier_wait(&at_end);
        void **place = &mine[draw(500)];
        free(*place);
        size_t size = draw(200) ? some_size() : draw(4 << 20);
        *place = draw(8) ? malloc(size) : NULL;
        if (*place && size) memset(*place, 1, size < 4096 ? size : 4096);
    }
    return NULL;
}

static void *come_and_go(void *argument)
{
    for (;;) {
        pthread_join(begin(churn, (uintptr_t)argument), NULL);
        while (count) drop(--count);
    }
    return NULL;
}

static void busy(void)
{
    pthread_barrier_init(&at_end, NULL, 4);
    for (uintptr_t i = 0; i < 3; i++) begin(storm, i);
    pthread_barrier_wait(&at_end);
    begin(come_and_go, 99);
}

static const struct {
    const char *name;
    void (*make)(void);
} shapes[] = {
    {"fresh", fresh},           {"small", small},       {"large", large},
    {"of-one-size", of_one_size}, {"aligned", aligned},   {"reallocated", reallocated},
    {"burst", burst},           {"purged", purged},     {"muzzy", muzzy},       {"tiny", tiny},
    {"both", both},
    {"zeroes", zeroes},
    {"threads", threads},       {"ended-threads", ended_threads},
    {"own-arenas", own_arenas}, {"busy", busy},
};

static void tell_truth(void)
{
    uint64_t epoch = 1;
    size_t size = sizeof epoch;
    mallctl("epoch", &epoch, &size, &epoch, size);
    printf("@ready held=%lu", (unsigned long)held);
    static const char *const sums[] = {"allocated", "active", "metadata", "resident", "mapped", "retained"};
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++) {
        char name[32];
        snprintf(name, sizeof name, "stats.%s", sums[i]);
        printf(" %s=%lu", sums[i], value(name, 0, 0));
    }
    uint64_t arenas = value("arenas.narenas", 0, 0), bins = value("arenas.nbins", 0, 0);
    static const char *const parts[] = {"pactive", "pdirty", "pmuzzy", "small.allocated", "large.allocated",
                                        "tcache_bytes", "base", "internal", "retained", "mapped"};
    for (uint64_t arena = 0; arena < arenas; arena++) {
        if (!(value("arena.%u.initialized", arena, 0) & 1)) continue;
        printf(" arena=%lu", arena);
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            char name[64];
            snprintf(name, sizeof name, "stats.arenas.%%u.%s", parts[i]);
            printf(":%lu", value(name, arena, 0));
        }
        uint64_t free_in_slabs = 0;
        for (uint64_t bin = 0; bin < bins; bin++) {
            uint64_t slabs = value("stats.arenas.%u.bins.%u.curslabs", arena, bin);
            uint64_t regions = slabs * value("arenas.bin.%u.nregs", bin, 0);
            uint64_t used = value("stats.arenas.%u.bins.%u.curregs", arena, bin);
            free_in_slabs += (regions - used) * value("arenas.bin.%u.size", bin, 0);
        }
        printf(":%lu", free_in_slabs);
    }
    for (uint64_t bin = 0; bin < bins; bin++) {
        uint64_t regions = value("stats.arenas.%u.bins.%u.curregs", ALL, bin);
        if (regions) printf(" class=%lu:%lu", value("arenas.bin.%u.size", bin, 0), regions);
    }
    for (uint64_t bin = 0, larges = value("arenas.nlextents", 0, 0); bin < larges; bin++) {
        uint64_t extents = value("stats.arenas.%u.lextents.%u.curlextents", ALL, bin);
        if (extents) printf(" class=%lu:%lu", value("arenas.lextent.%u.size", bin, 0), extents);
    }
    printf("\n");
}

static void give_back(size_t ranges)
{
    char line[64];
    size_t sum = 0;
    while (ranges-- && fgets(line, sizeof line, stdin)) {
        char *end;
        uintptr_t from = strtoul(line, &end, 16), to = strtoul(end, NULL, 16);
        if (madvise((void *)from, to - from, MADV_DONTNEED)) abort();
        sum += to - from;
    }
    printf("@ready %zu\n", sum);
}

int main(int argc, char **argv)
{
    static char in[1 << 16], out[1 << 20];
    setvbuf(stdin, in, _IOFBF, sizeof in), setvbuf(stdout, out, _IOFBF, sizeof out);
    size_t shape = 0;
    while (shape < sizeof shapes / sizeof *shapes && (argc < 2 || strcmp(argv[1], shapes[shape].name))) shape++;
    if (shape == sizeof shapes / sizeof *shapes) return 2;
    /* mallctl's own books and stdio's first steps are taken before anything is counted. */
    if (mallctl) tell_truth();
    else puts("@ready");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "shape\n")) {
            shapes[shape].make();
            printf("@ready %lu\n", (unsigned long)held);
        } else if (!strcmp(line, "truth\n")) {
            if (mallctl) tell_truth();
            else puts("@ready");
        } else if (!strcmp(line, "purge\n")) {
            call("arena.%u.purge", ALL);
            puts("@ready");
        } else if (!strcmp(line, "check\n")) {
            printf("@ready %zu\n", wrong());
        } else if (!strncmp(line, "drop ", 5)) {
            give_back(strtoul(line + 5, NULL, 10));
        } else {
            return 2;
        }
        fflush(stdout);
    }
    return 0;
}

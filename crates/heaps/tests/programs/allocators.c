// Makes the heap that its first argument names under whatever malloc is loaded, says "@ready", and then answers the
// lines on its input: "truth" with what malloc says of itself as NAME=NUMBER words, "return" by having it give back
// what it can, "flush" by emptying the calling thread's cache. It takes nothing from malloc while it answers.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WEAK __attribute__((weak))

// jemalloc
WEAK int mallctl(const char *, void *, size_t *, void *, size_t);
// gperftools
WEAK int MallocExtension_GetNumericProperty(const char *, size_t *);
WEAK void MallocExtension_ReleaseFreeMemory(void);
WEAK void MallocExtension_MarkThreadIdle(void);
// mimalloc
struct mi_area { void *blocks; size_t reserved, committed, used, block_size, full_block_size; };
WEAK void *mi_heap_get_default(void);
WEAK int mi_heap_visit_blocks(const void *, int, int (*)(const void *, const struct mi_area *, void *, size_t, void *),
                              void *);
WEAK void mi_collect(int);
WEAK int mi_version(void);

static char said[1 << 16];
static size_t said_len;

static void say(const char *format, ...) {
    va_list args;
    va_start(args, format);
    said_len += vsnprintf(said + said_len, sizeof said - said_len, format, args);
    va_end(args);
}

static void ready(void) {
    say("\n");
    for (size_t at = 0; at < said_len;) {
        ssize_t n = write(1, said + at, said_len - at);
        if (n <= 0) _exit(1);
        at += n;
    }
    said_len = 0;
    say("@ready");
}

static uint64_t seed = 42;

static uint64_t any(uint64_t below) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % below;
}

static void *take(size_t size) {
    char *block = malloc(size);
    if (!block) _exit(1);
    for (size_t at = 0; at < size; at += 4096) block[at] = 1;
    return block;
}

// Takes `count` blocks of `least` to `most` bytes and frees all but every `keep`th (0: all) in a random order.
static void burst(size_t count, size_t least, size_t most, size_t keep) {
    void **blocks = take(count * sizeof *blocks);
    for (size_t i = 0; i < count; i++) blocks[i] = take(least + any(most - least + 1));
    for (size_t i = count - 1; i > 0; i--) {
        size_t j = any(i + 1);
        void *other = blocks[i];
        blocks[i] = blocks[j];
        blocks[j] = other;
    }
    for (size_t i = 0; i < count; i++)
        if (!keep || i % keep) free(blocks[i]);
    free(blocks);
}

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t all_done;

static void *worker(void *arg) {
    pthread_mutex_lock(&one_at_a_time);
    burst(4000 + 500 * (size_t)arg, 1, 3000, 3);
    burst(20, 20000, 300000, 2);
    pthread_mutex_unlock(&one_at_a_time);
    pthread_barrier_wait(&all_done);
    pause();
    return 0;
}

// Threads that keep their caches and wait.
static void threads(size_t count) {
    pthread_barrier_init(&all_done, 0, count + 1);
    for (size_t i = 0; i < count; i++) {
        pthread_t thread;
        if (pthread_create(&thread, 0, worker, (void *)i)) _exit(1);
    }
    pthread_barrier_wait(&all_done);
}

static void *freer(void *arg) {
    void **blocks = arg;
    for (size_t i = 0; blocks[i]; i++)
        if (i % 4) free(blocks[i]);
    pthread_barrier_wait(&all_done);
    pause();
    return 0;
}

// Blocks that another thread frees than took them.
static void crossed(void) {
    void **blocks = take(20001 * sizeof *blocks);
    for (size_t i = 0; i < 20000; i++) blocks[i] = take(1 + any(2000));
    blocks[20000] = 0;
    pthread_barrier_init(&all_done, 0, 2);
    pthread_t thread;
    if (pthread_create(&thread, 0, freer, blocks)) _exit(1);
    pthread_barrier_wait(&all_done);
}

static void make(const char *shape) {
    if (!strcmp(shape, "little")) burst(3, 10, 100, 2);
    else if (!strcmp(shape, "small")) burst(200000, 1, 256, 2);
    else if (!strcmp(shape, "survivors")) burst(100000, 512, 2048, 20);
    else if (!strcmp(shape, "middle")) burst(3000, 2000, 60000, 3);
    else if (!strcmp(shape, "large")) burst(60, 100 << 10, 6 << 20, 2);
    else if (!strcmp(shape, "all-freed")) burst(60000, 1, 5000, 0), burst(30, 1 << 20, 3 << 20, 0);
    else if (!strcmp(shape, "aligned")) {
        for (size_t i = 0; i < 2000; i++) {
            void *block;
            if (posix_memalign(&block, 64 << any(8), 1 + any(20000))) _exit(1);
            if (i % 3) free(block);
        }
    } else if (!strcmp(shape, "threads")) threads(8);
    else if (!strcmp(shape, "crossed")) crossed();
    else if (!strcmp(shape, "all")) {
        burst(50000, 1, 4000, 7), burst(60, 100 << 10, 6 << 20, 2), threads(4);
    } else _exit(2);
}

static size_t ctl(const char *format, ...) {
    char name[100];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    size_t value = 0, size = sizeof value;
    return mallctl(name, &value, &size, 0, 0) ? (size_t)-1 : value;
}

static void jemalloc_truth(void) {
    uint64_t epoch = 1;
    // The first call takes memory for what it tells.
    for (int i = 0; i < 2; i++) mallctl("epoch", 0, 0, &epoch, sizeof epoch);
    static const char *const totals[] = {"allocated", "active", "metadata", "resident", "mapped", "retained"};
    for (size_t i = 0; i < sizeof totals / sizeof *totals; i++)
        say(" %s=%zu", totals[i], ctl("stats.%s", totals[i]));
    static const char *const sums[] = {"pdirty", "pmuzzy", "base", "internal", "tcache_bytes"};
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++)
        say(" %s=%zu", sums[i], ctl("stats.arenas.4096.%s", sums[i]));
    unsigned arenas = 0;
    size_t size = sizeof arenas;
    mallctl("arenas.narenas", &arenas, &size, 0, 0);
    for (unsigned arena = 0; arena < arenas; arena++) {
        size_t small = ctl("stats.arenas.%u.small.allocated", arena);
        size_t mapped = ctl("stats.arenas.%u.mapped", arena);
        if (mapped == (size_t)-1 || !mapped) continue;
        say(" arena%u=%zu arena%umapped=%zu", arena, small + ctl("stats.arenas.%u.large.allocated", arena), arena,
            mapped + ctl("stats.arenas.%u.retained", arena));
    }
}

static void tcmalloc_truth(void) {
    static const char *const names[] = {
        "generic.current_allocated_bytes", "generic.heap_size", "tcmalloc.pageheap_free_bytes",
        "tcmalloc.pageheap_unmapped_bytes", "tcmalloc.pageheap_committed_bytes",
        "tcmalloc.current_total_thread_cache_bytes", "tcmalloc.central_cache_free_bytes",
        "tcmalloc.transfer_cache_free_bytes", "tcmalloc.thread_cache_free_bytes"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t value = 0;
        MallocExtension_GetNumericProperty(names[i], &value);
        say(" %s=%zu", strchr(names[i], '.') + 1, value);
    }
}

static size_t mi_used, mi_blocks, mi_committed, mi_reserved, mi_areas;

static int mi_visit(const void *heap, const struct mi_area *area, void *block, size_t size, void *arg) {
    (void)heap, (void)block, (void)size, (void)arg;
    mi_areas++;
    mi_blocks += area->used;
    mi_used += area->used * area->full_block_size;
    mi_committed += area->committed;
    mi_reserved += area->reserved;
    return 1;
}

static void mimalloc_truth(void) {
    mi_used = mi_blocks = mi_committed = mi_reserved = mi_areas = 0;
    mi_heap_visit_blocks(mi_heap_get_default(), 0, mi_visit, 0);
    say(" used=%zu blocks=%zu committed=%zu reserved=%zu areas=%zu version=%d", mi_used, mi_blocks, mi_committed,
        mi_reserved, mi_areas, mi_version());
}

static void answer(const char *line) {
    if (!strcmp(line, "truth")) {
        if (mallctl) jemalloc_truth();
        else if (MallocExtension_GetNumericProperty) tcmalloc_truth();
        else if (mi_heap_get_default) mimalloc_truth();
    } else if (!strcmp(line, "return")) {
        if (mallctl) mallctl("arena.4096.purge", 0, 0, 0, 0);
        else if (MallocExtension_ReleaseFreeMemory) MallocExtension_ReleaseFreeMemory();
        else if (mi_collect) mi_collect(1);
    } else if (!strcmp(line, "flush")) {
        if (mallctl) mallctl("thread.tcache.flush", 0, 0, 0, 0);
        else if (MallocExtension_MarkThreadIdle) MallocExtension_MarkThreadIdle();
    } else _exit(3);
}

static void *busy(void *arg) {
    uint64_t state = (uintptr_t)arg;
    static void *blocks[8][4096];
    void **mine = blocks[(uintptr_t)arg % 8];
    for (;;) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        size_t slot = state >> 40 & 4095, size = (size_t)1 << (state >> 54 & 15);
        free(mine[slot]);
        char *block = malloc(1 + size + (state >> 20) % size);
        if (!block) _exit(1);
        block[0] = 1;
        // Now and then a block of another thread, which may at this moment take it away again.
        void **whose = state >> 60 ? mine : blocks[(state >> 57) % 8];
        if (whose == mine) mine[slot] = block;
        else free(__atomic_exchange_n(&mine[slot], block, __ATOMIC_RELAXED));
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    if (!strcmp(argv[1], "busy"))
        for (uintptr_t i = 0; i < 4; i++) {
            pthread_t thread;
            if (pthread_create(&thread, 0, busy, (void *)i)) return 1;
        }
    else make(argv[1]);
    say("@ready");
    ready();
    char line[64];
    for (size_t len = 0;;) {
        ssize_t n = read(0, line + len, 1);
        if (n <= 0) _exit(0);
        if (line[len] != '\n') {
            if (++len == sizeof line) return 3;
            continue;
        }
        line[len] = 0;
        len = 0;
        answer(line);
        ready();
    }
}

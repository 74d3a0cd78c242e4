// Return benches for `cargo xtask bench malloc`: a burst of work, then nothing. `return NAME FILE` maps FILE
// (a page) and publishes there how many bytes are live and, at the end, how many bytes the pages span that hold
// them; the harness reads these and the process's PSS. The bench's own arrays are mapped, not allocated.
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct shared { _Atomic uint64_t live, bound, phase; };
static struct shared *shared;
enum { READY = 1, GO = 2, IDLE = 3, END = 4 };

typedef struct { char *at; uint32_t size; } block;
enum { MAX = 1 << 20 };
static block *blocks;

static uint64_t next(uint64_t *s) { *s ^= *s << 13; *s ^= *s >> 7; *s ^= *s << 17; return *s; }
static void nap(int ms) { struct timespec t = {ms / 1000, ms % 1000 * 1000000L}; nanosleep(&t, 0); }

static void take(block *b, size_t size) {
    b->at = malloc(size);
    if (!b->at) { fputs("out of memory\n", stderr); exit(1); }
    b->size = size;
    memset(b->at, 1, size);
    atomic_fetch_add(&shared->live, size);
}
static void give(block *b) {
    if (!b->at) return;
    atomic_fetch_sub(&shared->live, b->size);
    free(b->at);
    b->at = 0;
}

// Sizes from low to high, each doubling as likely as the next.
static size_t spread(uint64_t *s, size_t low, size_t high) {
    unsigned doublings = 0;
    for (size_t n = low; n * 2 <= high; n *= 2) doublings++;
    size_t base = low << next(s) % doublings;
    return base + next(s) % base;
}

// Takes n blocks, then frees all but one in keep, in random order.
static void burst(uint64_t seed, block *w, int n, size_t low, size_t high, int keep) {
    uint64_t s = seed;
    for (int i = 0; i < n; i++) take(&w[i], spread(&s, low, high));
    for (int i = n - 1; i > 0; i--) {
        int j = next(&s) % (i + 1);
        block t = w[i]; w[i] = w[j]; w[j] = t;
    }
    for (int i = n / keep; i < n; i++) give(&w[i]);
}

static void table_a(void) { burst(7, blocks, 300000, 512, 2048, 20); }
static void table_b(void) { burst(7, blocks, 300000, 16, 256, 20); }

// As a Lua program builds and drops tables: a table, its hash part, its array part, a string; every 400th stays.
static void luajit(void) {
    uint64_t s = 7;
    block *kept = blocks + 800000;
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 200000; i++) {
            take(&blocks[4 * i], 64);
            take(&blocks[4 * i + 1], 24 << next(&s) % 4);
            take(&blocks[4 * i + 2], 16 << next(&s) % 3);
            take(&blocks[4 * i + 3], 24 + next(&s) % 40);
        }
        for (int i = 0; i < 800000; i++) {
            if (i / 4 % 400 == 0) *kept++ = blocks[i];
            else give(&blocks[i]);
            if (i / 4 % 400 == 0) blocks[i].at = 0;
        }
        nap(300);
    }
}

static _Atomic int bursts;
static void *thread_burst(void *arg) {
    uintptr_t k = (uintptr_t)arg;
    burst(k + 1, blocks + k * 60000, 60000, 16, 4096, 50);
    bursts++;
    while (atomic_load(&shared->phase) != END) nap(50);
    return 0;
}
static void threads(void) {
    for (uintptr_t k = 0; k < 8; k++) {
        pthread_t t;
        pthread_create(&t, 0, thread_burst, (void *)k);
        nap(400);
    }
    while (bursts < 8) nap(10);
}

// Messages pile up and are worked off.
static void queue(void) {
    uint64_t s = 7;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 100000; i++) take(&blocks[i], 100 + next(&s) % 4000);
        for (int i = 0; i < 100000; i++) if (i % 1000 || round < 2) give(&blocks[i]);
        nap(1000);
    }
}

// The sizes a program uses change.
static void mix(void) {
    block *w = blocks;
    const size_t low[] = {48, 900, 180, 3000}, high[] = {96, 1800, 360, 6000};
    const int n[] = {400000, 60000, 200000, 20000};
    for (int k = 0; k < 4; k++) {
        burst(k + 1, w, n[k], low[k], high[k], 100);
        w += n[k];
        nap(500);
    }
}

// Buffers grow by halves and are cut down to a little.
static void realloc_growth(void) {
    for (int i = 0; i < 1500; i++) take(&blocks[i], 64);
    for (size_t n = 96; n < 96 << 10; n += n / 2)
        for (int i = 0; i < 1500; i++) {
            char *p = realloc(blocks[i].at, n);
            memset(p + blocks[i].size, 2, n - blocks[i].size);
            atomic_fetch_add(&shared->live, n - blocks[i].size);
            blocks[i] = (block){p, n};
        }
    for (int i = 0; i < 1500; i++) {
        blocks[i].at = realloc(blocks[i].at, 64);
        atomic_fetch_sub(&shared->live, blocks[i].size - 64);
        blocks[i].size = 64;
    }
}

static void *short_thread(void *arg) {
    uintptr_t k = (uintptr_t)arg;
    block *w = blocks + k % 16 * 2000;
    burst(k + 1, w, 2000, 16, 8192, 2000);
    give(&w[0]);
    return 0;
}
static void short_threads(void) {
    for (uintptr_t k = 0; k < 800; k += 16) {
        pthread_t t[16];
        for (int i = 0; i < 16; i++) pthread_create(&t[i], 0, short_thread, (void *)(k + i));
        for (int i = 0; i < 16; i++) pthread_join(t[i], 0);
    }
}

static int by_address(const void *a, const void *b) {
    uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;
    return (x > y) - (x < y);
}

// Bytes of the pages that hold live bytes.
static uint64_t bound(void) {
    size_t room = 0, n = 0, distinct = 0;
    for (int i = 0; i < MAX; i++) if (blocks[i].at) room += blocks[i].size / 4096 + 2;
    uintptr_t *pages = mmap(0, (room + 1) * sizeof *pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < MAX; i++)
        if (blocks[i].at)
            for (uintptr_t p = (uintptr_t)blocks[i].at / 4096; p <= ((uintptr_t)blocks[i].at + blocks[i].size - 1) / 4096; p++)
                pages[n++] = p;
    // A heap sort would do; glibc's qsort allocates, which would stir what is measured.
    for (size_t gap = n / 2; gap > 0; gap = gap == 2 ? 1 : gap * 5 / 11)
        for (size_t i = gap; i < n; i++)
            for (size_t j = i; j >= gap && by_address(&pages[j - gap], &pages[j]) > 0; j -= gap) {
                uintptr_t t = pages[j]; pages[j] = pages[j - gap]; pages[j - gap] = t;
            }
    for (size_t i = 0; i < n; i++) distinct += i == 0 || pages[i] != pages[i - 1];
    munmap(pages, (room + 1) * sizeof *pages);
    return distinct * 4096;
}

static const struct { const char *name; void (*run)(void); } all[] = {
    {"table-a", table_a}, {"table-b", table_b}, {"luajit", luajit}, {"threads", threads}, {"queue", queue},
    {"mix", mix}, {"realloc", realloc_growth}, {"short-threads", short_threads},
};

int main(int argc, char **argv) {
    size_t count = sizeof all / sizeof *all, which = 0;
    if (argc < 3) { for (size_t i = 0; i < count; i++) puts(all[i].name); return 0; }
    while (which < count && strcmp(argv[1], all[which].name)) which++;
    int fd = open(argv[2], O_RDWR);
    if (which == count || fd < 0) return 2;
    shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    blocks = mmap(0, MAX * sizeof *blocks, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    atomic_store(&shared->phase, READY);
    while (atomic_load(&shared->phase) != GO) nap(1);
    all[which].run();
    atomic_store(&shared->bound, bound());
    atomic_store(&shared->phase, IDLE);
    while (atomic_load(&shared->phase) != END) nap(10);
    return 0;
}

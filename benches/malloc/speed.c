// Speed benches for `cargo xtask bench malloc`: each is a fixed amount of work, done by `speed NAME`, which
// prints the seconds it took (the best of some repetitions in one process, so that start-up does not count).
// The allocator is whichever is preloaded. Blocks are written to as a program would, first and last byte.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t seed = 88172645463325252u;
static uint64_t next(uint64_t *s) { *s ^= *s << 13; *s ^= *s >> 7; *s ^= *s << 17; return *s; }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void *use(void *p, size_t n) {
    if (!p) { fputs("out of memory\n", stderr); exit(1); }
    ((volatile char *)p)[0] = 1;
    ((volatile char *)p)[n - 1] = 1;
    return p;
}
static void *get(size_t n) { return use(malloc(n), n); }

// One size: pairs, then a window of 1000 blocks in which a random one is replaced each time.
static void churn(size_t size, int ops) {
    for (int i = 0; i < ops; i++) free(get(size));
    static void *w[1000];
    uint64_t s = seed;
    for (int i = 0; i < 1000; i++) w[i] = get(size);
    for (int i = 0; i < ops; i++) {
        unsigned k = next(&s) % 1000;
        free(w[k]);
        w[k] = get(size);
    }
    for (int i = 0; i < 1000; i++) free(w[i]);
}
static void churn16(void) { churn(16, 2000000); }
static void churn64(void) { churn(64, 2000000); }
static void churn256(void) { churn(256, 2000000); }
static void churn1k(void) { churn(1024, 1000000); }
static void churn4k(void) { churn(4000, 500000); }
static void churn16k(void) { churn(16000, 200000); }
static void churn64k(void) { churn(64000, 100000); }

// Sizes as programs have them: mostly small, few large; 20,000 live at a time.
static size_t mixed_size(uint64_t *s) {
    uint64_t r = next(s);
    unsigned bits = (r & 1023) < 900 ? 4 + (r >> 10) % 5 : (r & 1023) < 1015 ? 9 + (r >> 10) % 4 : 13 + (r >> 10) % 3;
    return 1 + (r >> 20) % (1u << bits);
}
static void mixed_run(uint64_t s, int ops) {
    enum { N = 20000 };
    void **w = calloc(N, sizeof *w);
    for (int i = 0; i < ops; i++) {
        unsigned k = next(&s) % N;
        free(w[k]);
        w[k] = get(mixed_size(&s));
    }
    for (int i = 0; i < N; i++) free(w[i]);
    free(w);
}
static void mixed(void) { mixed_run(seed, 2000000); }

// Everything taken, then everything freed in another order: no reuse for the caches to profit from.
static void grow_drop(void) {
    enum { N = 400000 };
    void **w = malloc(N * sizeof *w);
    for (int round = 0; round < 3; round++) {
        uint64_t s = seed + round;
        for (int i = 0; i < N; i++) w[i] = get(16 + next(&s) % 240);
        for (int i = N - 1; i > 0; i--) {
            unsigned k = next(&s) % 64;
            unsigned j = (unsigned)i > k ? i - k : 0;
            void *t = w[i]; w[i] = w[j]; w[j] = t;
        }
        for (int i = 0; i < N; i++) free(w[i]);
    }
    free(w);
}

static void *mixed_thread(void *arg) { mixed_run(seed + (uintptr_t)arg, 500000); return 0; }
static void threads(int n, void *(*f)(void *)) {
    pthread_t t[64];
    for (int i = 0; i < n; i++) pthread_create(&t[i], 0, f, (void *)(uintptr_t)i);
    for (int i = 0; i < n; i++) pthread_join(t[i], 0);
}
static void mixed4(void) { threads(4, mixed_thread); }

// One thread takes, the other frees, through a ring of batches.
enum { RING = 64, BATCH = 256 };
static void *ring[RING][BATCH];
static volatile unsigned head, tail;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static void *producer(void *arg) {
    uint64_t s = seed;
    (void)arg;
    for (int b = 0; b < 8000; b++) {
        void *batch[BATCH];
        for (int i = 0; i < BATCH; i++) batch[i] = get(16 + next(&s) % 240);
        pthread_mutex_lock(&lock);
        while (head - tail == RING) pthread_cond_wait(&cond, &lock);
        memcpy(ring[head++ % RING], batch, sizeof batch);
        pthread_cond_broadcast(&cond);
        pthread_mutex_unlock(&lock);
    }
    return 0;
}
static void *consumer(void *arg) {
    (void)arg;
    for (int b = 0; b < 8000; b++) {
        void *batch[BATCH];
        pthread_mutex_lock(&lock);
        while (head == tail) pthread_cond_wait(&cond, &lock);
        memcpy(batch, ring[tail++ % RING], sizeof batch);
        pthread_cond_broadcast(&cond);
        pthread_mutex_unlock(&lock);
        for (int i = 0; i < BATCH; i++) free(batch[i]);
    }
    return 0;
}
static void *either(void *arg) { return arg ? consumer(arg) : producer(arg); }
static void cross(void) { head = tail = 0; threads(2, either); }

// Threads that live for some hundred allocations.
static void *short_life(void *arg) {
    void *w[200];
    uint64_t s = seed + (uintptr_t)arg;
    for (int i = 0; i < 200; i++) w[i] = get(16 + next(&s) % 500);
    for (int i = 0; i < 200; i++) free(w[i]);
    return 0;
}
static void thread_churn(void) { for (int i = 0; i < 500; i++) threads(4, short_life); }

// Blocks of 100 KiB to 8 MiB, a few live at a time, one page in sixteen used.
static void large(void) {
    void *w[8] = {0};
    uint64_t s = seed;
    for (int i = 0; i < 20000; i++) {
        unsigned k = next(&s) % 8;
        size_t n = (100 << 10) + next(&s) % (i % 10 ? 900 << 10 : 8 << 20);
        free(w[k]);
        w[k] = get(n);
        for (size_t at = 0; at < n; at += 65536) ((volatile char *)w[k])[at] = 1;
    }
    for (int i = 0; i < 8; i++) free(w[i]);
}

static void calloc_some(void) {
    void *w[500] = {0};
    uint64_t s = seed;
    for (int i = 0; i < 1000000; i++) {
        unsigned k = next(&s) % 500;
        size_t n = 1 + next(&s) % (i % 50 ? 1024 : 65536);
        free(w[k]);
        w[k] = use(calloc(1, n), n);
    }
    for (int i = 0; i < 500; i++) free(w[i]);
}

// Buffers that grow as strings and vectors do, by a little and by halves, and are filled as they grow.
static char *grow(char *p, size_t old, size_t n) {
    p = realloc(p, n);
    if (!p) { fputs("out of memory\n", stderr); exit(1); }
    memset(p + old, 1, n - old);
    return p;
}
static void realloc_grow(void) {
    for (int round = 0; round < 20000; round++) {
        char *p = 0;
        for (size_t n = 16, old = 0; n < 4096; old = n, n += 64) p = grow(p, old, n);
        free(p);
    }
    for (int round = 0; round < 50; round++) {
        char *p = 0;
        for (size_t n = 64, old = 0; n < 16 << 20; old = n, n += n / 2) p = grow(p, old, n);
        free(p);
    }
}

static const struct { const char *name; void (*run)(void); } all[] = {
    {"churn-16", churn16}, {"churn-64", churn64}, {"churn-256", churn256}, {"churn-1k", churn1k},
    {"churn-4k", churn4k}, {"churn-16k", churn16k}, {"churn-64k", churn64k}, {"mixed", mixed},
    {"grow-drop", grow_drop}, {"mixed-4-threads", mixed4}, {"cross-thread", cross},
    {"thread-churn", thread_churn}, {"large", large}, {"calloc", calloc_some}, {"realloc", realloc_grow},
};

int main(int argc, char **argv) {
    int repeat = argc > 2 ? atoi(argv[2]) : 5;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (argc < 2) { puts(all[i].name); continue; }
        if (strcmp(argv[1], all[i].name)) continue;
        double best = 1e9;
        for (int r = 0; r < repeat; r++) {
            double t = now();
            all[i].run();
            t = now() - t;
            if (t < best) best = t;
        }
        printf("%.6f\n", best);
        return 0;
    }
    return argc < 2 ? 0 : 2;
}

// Steady loads for `cargo xtask bench malloc steady`: `steady NAME SECONDS` works at a fixed pace, first for a warm-up as
// long as what is measured, and prints the processor seconds it then used, the page faults, and, where the breathing
// malloc is loaded, the pages it faulted in again after it had given them back. No load rests for longer than a second.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

// The library's statistics block as words: word 7 counts pages used again. Absent under other allocators.
extern const volatile uint64_t ebbtide_stats[] __attribute__((weak));

static uint64_t seed = 88172645463325252u;
static uint64_t next(void) { seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17; return seed; }

enum { MANY = 100000 };
static char *w[MANY];

static void fill(int from, int to, size_t least, size_t most) {
    for (int i = from; i < to; i++) {
        size_t n = least + next() % (most - least);
        w[i] = malloc(n);
        if (!w[i]) { fputs("out of memory\n", stderr); exit(1); }
        memset(w[i], 1, n);
    }
}
static void drop(int from, int to) {
    for (int i = from; i < to; i++) { free(w[i]); w[i] = 0; }
}

// A server: some hundred small blocks for each request, and now and then 8 MB.
static void requests(int tick) {
    fill(0, 300, 16, 2000);
    if (tick % 40 == 0) fill(300, 8300, 500, 1500);
    drop(0, 8300);
}
// The heap swings by 60 MB, five times in two seconds.
static void waves(int tick) {
    if (tick % 40 == 0) fill(0, 60000, 500, 1500);
    if (tick % 40 == 20) drop(0, 60000);
}
// The same once a second, which leaves it without work for most of the time.
static void pulses(int tick) {
    if (tick % 100) return;
    fill(0, 60000, 500, 1500);
    drop(0, 60000);
}
// Messages pile up and are worked off, never all of them.
static void queue(int tick) {
    static int head, tail;
    int n = 200 + next() % 300, rate = tick / 100 % 2 ? n + 150 : n - 150;
    for (int i = 0; i < n && head - tail < MANY; i++, head++) fill(head % MANY, head % MANY + 1, 100, 3000);
    for (int i = 0; i < rate && tail < head - 100; i++, tail++) drop(tail % MANY, tail % MANY + 1);
}

static const struct { const char *name; void (*tick)(int); } all[] = {
    {"requests", requests}, {"waves", waves}, {"pulses", pulses}, {"queue", queue},
};

static struct rusage usage(void) { struct rusage u; getrusage(RUSAGE_SELF, &u); return u; }
static double seconds(const struct rusage *u) {
    return u->ru_utime.tv_sec + u->ru_stime.tv_sec + (u->ru_utime.tv_usec + u->ru_stime.tv_usec) * 1e-6;
}
static uint64_t refaulted(void) { return &ebbtide_stats[0] ? ebbtide_stats[7] : 0; }

// A hundred ticks a second.
static void run(void (*tick)(int), int ticks) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    for (int i = 0; i < ticks; i++) {
        tick(i);
        at.tv_nsec += 10000000;
        if (at.tv_nsec >= 1000000000) { at.tv_nsec -= 1000000000; at.tv_sec++; }
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, 0);
    }
}

int main(int argc, char **argv) {
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (argc < 3) { puts(all[i].name); continue; }
        if (strcmp(argv[1], all[i].name)) continue;
        int ticks = atoi(argv[2]) * 100;
        run(all[i].tick, ticks);
        struct rusage before = usage();
        uint64_t again = refaulted();
        run(all[i].tick, ticks);
        struct rusage after = usage();
        printf("%.3f %ld %lu\n", seconds(&after) - seconds(&before), after.ru_minflt - before.ru_minflt,
               (unsigned long)(refaulted() - again));
        return 0;
    }
    return argc < 3 ? 0 : 2;
}

// Makes the heap that its first argument names under whatever malloc is loaded. At the first line on its input it
// writes what malloc says of itself to standard error and stops itself; continued, it has malloc trim and stops
// again. It takes nothing from malloc from its first line on.
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MANY = 200000 };
static char *kept[MANY];

static char *take(size_t size) {
    char *block = malloc(size);
    memset(block, 1, size);
    return block;
}

static void fill(int count, size_t least, size_t span) {
    for (int i = 0; i < count; i++) kept[i] = take(least + (size_t)i * 7919 % span);
}

static void drop(int from, int step) {
    for (int i = from; i < MANY; i += step) {
        free(kept[i]);
        kept[i] = 0;
    }
}

static pthread_barrier_t filled;

// Leaves its magazines full: as much as they hold of many sizes was freed last.
static void *thread(void *unused) {
    char *mine[40];
    for (size_t size = 16; size < 40000; size += size / 4 + 16) {
        for (int i = 0; i < 40; i++) mine[i] = take(size);
        for (int i = 0; i < 40; i++) free(mine[i]);
    }
    pthread_barrier_wait(&filled);
    pause();
    return unused;
}

static void shape(const char *name) {
    if (!strcmp(name, "little")) take(100);
    if (!strcmp(name, "small")) { fill(MANY, 1, 900); drop(0, 2); }
    if (!strcmp(name, "survivors")) { fill(MANY, 16, 400); for (int i = 0; i < MANY; i++) if (i % 500) { free(kept[i]); kept[i] = 0; } }
    if (!strcmp(name, "holes")) { fill(4000, 2100, 60000); drop(0, 3); drop(1, 3); }
    if (!strcmp(name, "runs")) { fill(500, 70000, 900000); drop(0, 2); }
    if (!strcmp(name, "large")) { fill(40, 1100000, 5000000); drop(0, 2); }
    // Blocks that are the front of longer ones, of which the rest waits behind them.
    if (!strcmp(name, "cut")) { fill(4, 6000000, 2000000); drop(0, 2); kept[4] = take(1200000); kept[5] = take(3300000); }
    if (!strcmp(name, "all-freed")) { fill(MANY, 1, 2000); drop(0, 1); }
    if (!strcmp(name, "threads")) {
        pthread_barrier_init(&filled, 0, 9);
        for (int i = 0; i < 8; i++) {
            pthread_t id;
            pthread_create(&id, 0, thread, 0);
        }
        pthread_barrier_wait(&filled);
    }
}

int main(int argc, char **argv) {
    static char out[4096];
    setvbuf(stdout, out, _IOFBF, sizeof out);
    shape(argc > 1 ? argv[1] : "");
    puts("@ready");
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) == 1 && byte != '\n') {}
    struct mallinfo2 info = mallinfo2();
    char line[200];
    int len = snprintf(line, sizeof line, "arena %zu hblkhd %zu uordblks %zu keepcost %zu\n", info.arena, info.hblkhd,
                       info.uordblks, info.keepcost);
    if (write(2, line, len) != len) return 2;
    malloc_stats();
    kill(getpid(), SIGSTOP);
    malloc_trim(0);
    kill(getpid(), SIGSTOP);
    return 0;
}

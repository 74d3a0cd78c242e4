/* A process that never stands still, for walks of its heap meanwhile. What it does is its first argument:
 *   threads   eight threads allocate, grow and free blocks at full speed, each block checked when it is freed,
 *             while the first thread forks children that do the same for a while and exit;
 *   exec      one thread allocates for a moment and then executes this program again, with the same process id;
 *   exit N    one thread allocates and frees N times and exits.
 * Says "@ready" once it is at work; "threads" ends, with 0 if all was well, when its standard input closes. */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCKS 1000

static atomic_bool stop;
static atomic_long broken;

static uint64_t draw(uint64_t *seed, uint64_t below)
{
    *seed ^= *seed << 13, *seed ^= *seed >> 7, *seed ^= *seed << 17;
    return *seed % below;
}

/* Sizes up to 1.5 KiB mostly, then up to 100 KB, and now and then a mapping of its own. */
static size_t size_of(uint64_t *seed)
{
    uint64_t kind = draw(seed, 1000);
    return 16 + draw(seed, kind < 900 ? 1500 : kind < 998 ? 100000 : 3000000);
}

struct block { unsigned char *bytes; size_t size; };

static void check(struct block *block, unsigned char mark)
{
    if (block->bytes[0] != mark || block->bytes[block->size - 1] != mark) broken++;
}

static void fill(struct block *block, unsigned char mark)
{
    if (!block->bytes) abort();
    block->bytes[0] = block->bytes[block->size - 1] = mark;
}

static void work(uint64_t seed, long rounds)
{
    static _Thread_local struct block blocks[BLOCKS];
    unsigned char mark = seed;
    for (long i = 0; i != rounds && !stop; i++) {
        struct block *block = &blocks[draw(&seed, BLOCKS)];
        if (!block->bytes) {
            block->size = size_of(&seed);
            block->bytes = draw(&seed, 8) ? malloc(block->size) : memalign(64 << draw(&seed, 7), block->size);
        } else if (draw(&seed, 4)) {
            check(block, mark);
            free(block->bytes), block->bytes = NULL;
            continue;
        } else {
            check(block, mark);
            block->bytes[block->size - 1] = 0;
            block->size = size_of(&seed);
            block->bytes = realloc(block->bytes, block->size);
            if (block->bytes && block->bytes[0] != mark) broken++;
        }
        fill(block, mark);
    }
    for (int i = 0; i < BLOCKS; i++)
        if (blocks[i].bytes) check(&blocks[i], mark), free(blocks[i].bytes), blocks[i].bytes = NULL;
}

static void *thread(void *seed) { return work((uintptr_t)seed, -1), NULL; }

static void *watch(void *unused)
{
    char byte;
    while (read(0, &byte, 1) > 0) {}
    stop = 1;
    return unused;
}

static void threads(void)
{
    pthread_t ids[9];
    for (int i = 0; i < 8; i++) pthread_create(&ids[i], NULL, thread, (void *)(uintptr_t)(77 + i));
    pthread_create(&ids[8], NULL, watch, NULL);
    printf("@ready\n"), fflush(stdout);
    while (!stop) {
        pid_t child = fork();
        if (child == 0) work(5, 2000), _exit(broken != 0);
        int status = 1;
        if (child > 0 && (waitpid(child, &status, 0) < 0 || status)) broken++;
        work(3, 20000);
    }
    for (int i = 0; i < 9; i++) pthread_join(ids[i], NULL);
}

int main(int argc, char **argv)
{
    if (argc < 2) return 2;
    if (!strcmp(argv[1], "threads")) {
        threads();
        return broken != 0;
    }
    if (argc == 2 || !strcmp(argv[1], "exit")) printf("@ready\n"), fflush(stdout);
    if (!strcmp(argv[1], "exit")) return work(9, argc > 2 ? atol(argv[2]) : 0), broken != 0;
    work(9, 20000);
    char *again[] = {argv[0], argv[1], "again", NULL};
    execv("/proc/self/exe", again);
    return 2;
}

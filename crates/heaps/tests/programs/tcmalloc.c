/* Brings gperftools' tcmalloc, which is preloaded or linked into it, into a shape with a known truth and answers for
 * it on stdin and stdout: "shape NAME" makes it, "truth" tells tcmalloc's own properties, "release" has it give back,
 * "drop N" and N lines "START END" in hex give those pages back behind its back, "check" says whether all blocks
 * still hold what was written and then frees and takes more, "busy" answers and then takes and frees on four
 * threads. Every answer is a line that starts with "@ready". Between answers the process stands still, and answers
 * allocate nothing. */
#define _GNU_SOURCE
#include "blocks.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static int (*property)(const char *, size_t *);
static void (*release)(void);
static pthread_barrier_t barrier;

static void fresh(void) {}

static void survivors(void)
{
    for (int i = 0; i < 200000; i++) take(16 + draw(2000));
    for (size_t i = 0; i < count; i++)
        if (i % 20) drop(i);
}

static void every_class(void)
{
    for (size_t size = 1; size < 300000; size += 1 + size / 9)
        for (int i = 0; i < 40; i++) take(size);
    for (size_t i = 0; i < count; i++)
        if (draw(3)) drop(i);
}

static void large(void)
{
    for (int i = 0; i < 60; i++) take(300000 + draw(4 << 20));
    for (size_t i = 0; i < count; i += 2) drop(i);
}

static void all_freed(void)
{
    for (int i = 0; i < 100000; i++) take(16 + draw(4000));
    for (size_t i = 0; i < count; i++) drop(i);
}

/* The program keeps running with most of its memory returned, and some of that taken again. */
static void released(void)
{
    large();
    release();
    for (int i = 0; i < 20; i++) take(20000 + draw(1 << 20));
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *worker(void *arg)
{
    void *own[4000];
    for (int i = 0; i < 4000; i++) own[i] = malloc(8 + (i * 37 + (size_t)arg * 11) % 3000);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 500; i++) take(16 + draw(9000));
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < 4000; i++) free(own[i]);
    pthread_barrier_wait(&barrier);
    for (;;) pthread_barrier_wait(&barrier);
    return NULL;
}

/* Four threads that wait with their caches full. */
static void threads(void)
{
    pthread_t thread;
    pthread_barrier_init(&barrier, NULL, 5);
    for (size_t i = 0; i < 4; i++) pthread_create(&thread, NULL, worker, (void *)i);
    pthread_barrier_wait(&barrier);
}

static void *spin(void *arg)
{
    void *own[2000] = {0};
    uint64_t state = 88172645463325252u + (uintptr_t)arg;
    for (;;) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        size_t index = state % 2000;
        free(own[index]);
        own[index] = malloc((state >> 20) % (state >> 60 ? 2000 : 600000) + 1);
    }
    return NULL;
}

static const struct { const char *name; void (*make)(void); } shapes[] = {
    {"fresh", fresh}, {"survivors", survivors}, {"every-class", every_class}, {"large", large},
    {"all-freed", all_freed}, {"released", released}, {"threads", threads},
};

static size_t ask(const char *name)
{
    size_t value = 0;
    if (!property(name, &value)) abort();
    return value;
}

static void truth(void)
{
    size_t live = 0;
    for (size_t i = 0; i < count; i++) live += blocks[i].at != NULL;
    printf("@ready %zu %zu %zu %zu %zu %zu %zu %zu\n", ask("generic.current_allocated_bytes"),
           ask("generic.heap_size"), ask("tcmalloc.pageheap_free_bytes"), ask("tcmalloc.pageheap_unmapped_bytes"),
           ask("tcmalloc.current_total_thread_cache_bytes"), ask("tcmalloc.central_cache_free_bytes"),
           ask("tcmalloc.transfer_cache_free_bytes"), live);
}

static void drop_pages(int lines)
{
    char line[100];
    for (int i = 0; i < lines && fgets(line, sizeof line, stdin); i++) {
        unsigned long start, end;
        if (sscanf(line, "%lx %lx", &start, &end) != 2) abort();
        if (madvise((void *)start, end - start, MADV_DONTNEED)) abort();
    }
    printf("@ready\n");
}

static void check(void)
{
    size_t damaged = wrong();
    for (size_t i = 0; i < count; i++)
        if (blocks[i].at) drop(i);
    count = 0;
    for (int i = 0; i < 100000; i++) take(1 + draw(5000));
    printf("@ready %zu\n", damaged);
}

int main(void)
{
    static char in[4096], out[4096], line[100];
    setvbuf(stdin, in, _IOFBF, sizeof in), setvbuf(stdout, out, _IOLBF, sizeof out);
    property = (int (*)(const char *, size_t *))dlsym(RTLD_DEFAULT, "MallocExtension_GetNumericProperty");
    release = (void (*)(void))dlsym(RTLD_DEFAULT, "MallocExtension_ReleaseFreeMemory");
    if (!property || !release) abort();
    printf("@ready\n");
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "shape ", 6)) {
            for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
                if (!strcmp(line + 6, shapes[i].name)) shapes[i].make();
            printf("@ready\n");
        } else if (!strcmp(line, "truth")) {
            truth();
        } else if (!strcmp(line, "release")) {
            release();
            printf("@ready\n");
        } else if (!strncmp(line, "drop ", 5)) {
            drop_pages(atoi(line + 5));
        } else if (!strcmp(line, "check")) {
            check();
        } else if (!strcmp(line, "busy")) {
            pthread_t thread;
            for (size_t i = 0; i < 4; i++) pthread_create(&thread, NULL, spin, (void *)(i + 1));
            printf("@ready\n");
        }
    }
    return 0;
}

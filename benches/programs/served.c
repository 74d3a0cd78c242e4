/* A server that keeps a heap of freed blocks. Argument: its megabytes. Reads one byte at a time from its standard input:
 *   r  a request: some blocks are allocated and freed, then "r" is answered
 *   f  fills the heap with blocks of 1,000 bytes and frees all but every 64th, then "f" is answered
 *   t  has another thread call malloc_trim(0), as a cron job inside would; nothing is answered
 * Ends when its standard input closes. */
#include <malloc.h>
#include <semaphore.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static sem_t due;

static void *cron(void *unused)
{
    for (;;)
        if (!sem_wait(&due)) malloc_trim(0);
    return unused;
}

int main(int argc, char **argv)
{
    size_t count = (argc > 1 ? atol(argv[1]) : 100) * 1024;
    char **blocks = calloc(count, sizeof *blocks), byte;
    /* Tops are never cut by free, so that all of it waits for a trim. */
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    mallopt(M_ARENA_MAX, 1);
    sem_init(&due, 0, 0);
    pthread_t thread;
    pthread_create(&thread, NULL, cron, NULL);
    while (read(0, &byte, 1) == 1) {
        if (byte == 't') {
            sem_post(&due);
            continue;
        } else if (byte == 'f') {
            for (size_t i = 0; i < count; i++) free(blocks[i]), blocks[i] = NULL;
            for (size_t i = 0; i < count; i++) memset(blocks[i] = malloc(1000), 1, 1000);
            for (size_t i = 0; i < count; i++)
                if (i % 64) free(blocks[i]), blocks[i] = NULL;
        } else {
            /* Too large for the thread's cache, so that each takes the arena's lock. */
            char *some[20];
            for (int i = 0; i < 20; i++) some[i] = malloc(2000), some[i][0] = 1;
            for (int i = 0; i < 20; i++) free(some[i]);
        }
        if (write(1, &byte, 1) != 1) break;
    }
    return 0;
}

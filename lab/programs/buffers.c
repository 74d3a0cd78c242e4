/* Takes as many MB of buffers as its argument says, frees all but one in 31, says in one line of JSON how many bytes it
 * freed, and rests until its input ends. Groups of musl's malloc have 32 of these at most, and go when all are free. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUFFER 4000

int main(int argc, char **argv)
{
    size_t count = (argc > 1 ? strtoul(argv[1], NULL, 10) : 1) * 1000000 / BUFFER, freed = 0;
    char **buffers = calloc(count, sizeof *buffers);
    if (!buffers) return 1;
    for (size_t i = 0; i < count; i++) {
        if (!(buffers[i] = malloc(BUFFER))) return 1;
        memset(buffers[i], 1, BUFFER);
    }
    for (size_t i = 0; i < count; i++)
        if (i % 31) free(buffers[i]), freed += BUFFER;
    printf("{\"freed\":%zu}\n", freed);
    fflush(stdout);
    return getchar() != EOF;
}

/* Blocks that the programs of these tests take and free, at random and always in the same way, each filled with a mark
 * of its own. `held` sums what COUNTED, which may be defined before, says of each that is not freed. Any thread may
 * take. */
#ifndef BLOCKS_H
#define BLOCKS_H

#include <malloc.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef COUNTED
#define COUNTED malloc_usable_size
#endif
#define BLOCKS (1 << 20)

struct block {
    unsigned char *at;
    /* So many bytes hold its mark. */
    size_t size;
};
static struct block blocks[BLOCKS];
static atomic_size_t count, held;
static _Thread_local uint64_t seed = 88172645463325252u;

static inline uint64_t draw(uint64_t below)
{
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed % below;
}

static inline unsigned char mark(size_t index) { return (index & 0x7f) + 1; }

static inline size_t keep(void *at, size_t size)
{
    size_t index = count++;
    if (!at || index >= BLOCKS) abort();
    blocks[index] = (struct block){memset(at, mark(index), size), size};
    held += COUNTED(at);
    return index;
}

static inline size_t take(size_t size) { return keep(malloc(size), size); }

/* A block whose memory nobody writes. */
static inline void keep_untouched(void *at) { keep(at, 0); }

static inline void resize(size_t index, size_t size)
{
    held -= COUNTED(blocks[index].at);
    void *at = realloc(blocks[index].at, size);
    if (!at) abort();
    blocks[index] = (struct block){memset(at, mark(index), size), size};
    held += COUNTED(at);
}

/* The caller frees it. */
static inline void *let_go(size_t index)
{
    void *at = blocks[index].at;
    if (at) held -= COUNTED(at);
    blocks[index].at = NULL;
    return at;
}

static inline void drop(size_t index) { free(let_go(index)); }

/* How many blocks do not hold what they should. */
static inline size_t wrong(void)
{
    size_t sum = 0;
    for (size_t index = 0; index < count; index++) {
        struct block *block = &blocks[index];
        size_t at = block->at ? 0 : block->size;
        while (at < block->size && block->at[at] == mark(index)) at++;
        sum += at < block->size;
    }
    return sum;
}

/* Reads a line, one byte at a time: a stream's buffer would be allocated. Nothing at the end, and of an empty line. */
static inline size_t hear(char *line, size_t most)
{
    size_t length = 0;
    while (length < most - 1 && read(0, line + length, 1) == 1 && line[length] != '\n') length++;
    line[length] = 0;
    return length;
}

#endif

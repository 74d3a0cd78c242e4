/* A host of Lua states for the tests of the LuaJIT walker: luahost LIBRARY STATES.
   Each state lives in a thread of its own. Says "@ready" and an answer after each line that it is told:
   "run STATE CODE" runs a chunk of Lua and says what it returns; "count STATE" says what the collector counts, in
   bytes; "new" makes a state in a new thread; "close STATE"
   ends one; "custom" makes a state whose objects come from malloc; "drop N", and N lines "START END" in hex, gives
   those pages back and says how many bytes; "spin STATE CODE" answers at once and runs CODE over and over until
   "stop". The library is opened by path, so that either of Debian's two, which conflict, will do. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef struct lua_State lua_State;
typedef void *(*lua_Alloc)(void *, void *, size_t, size_t);
static lua_State *(*newstate)(void);
static lua_State *(*newstate_with)(lua_Alloc, void *);
static void (*openlibs)(lua_State *);
static int (*loadstring)(lua_State *, const char *);
static int (*pcall)(lua_State *, int, int, int);
static const char *(*tolstring)(lua_State *, int, size_t *);
static void (*settop)(lua_State *, int);
static void (*closestate)(lua_State *);
static int (*gc)(lua_State *, int, int);
enum { GCCOUNT = 3, GCCOUNTB = 4 };

struct host {
    lua_State *L;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t turn;
    char *code;
    char answer[4096];
    int done, ended, spins, custom;
};

static struct host hosts[256];
static int count;

static void *from_malloc(void *ud, void *block, size_t old, size_t size) {
    (void)ud, (void)old;
    if (size == 0) {
        free(block);
        return NULL;
    }
    return realloc(block, size);
}

static void run(lua_State *L, struct host *host, const char *code) {
    const char *said;
    if (loadstring(L, code) == 0)
        pcall(L, 0, 1, 0);
    said = tolstring(L, -1, NULL);
    snprintf(host->answer, sizeof host->answer, "%s", said ? said : "nil");
    settop(L, 0);
}

static void *serve(void *arg) {
    struct host *host = arg;
    lua_State *L = host->custom ? newstate_with(from_malloc, NULL) : newstate();
    openlibs(L);
    host->L = L;
    pthread_mutex_lock(&host->lock);
    host->done = 1;
    pthread_cond_broadcast(&host->turn);
    for (;;) {
        while (!host->code && !host->ended)
            pthread_cond_wait(&host->turn, &host->lock);
        if (host->ended)
            break;
        if (host->spins) {
            char *code = host->code;
            while (host->spins) {
                pthread_mutex_unlock(&host->lock);
                run(L, host, code);
                pthread_mutex_lock(&host->lock);
            }
        } else {
            run(L, host, host->code);
        }
        free(host->code);
        host->code = NULL;
        host->done = 1;
        pthread_cond_broadcast(&host->turn);
    }
    closestate(L);
    pthread_mutex_unlock(&host->lock);
    return NULL;
}

static void await(struct host *host) {
    pthread_mutex_lock(&host->lock);
    while (!host->done)
        pthread_cond_wait(&host->turn, &host->lock);
    pthread_mutex_unlock(&host->lock);
}

static void start(int custom) {
    struct host *host = &hosts[count++];
    pthread_mutex_init(&host->lock, NULL);
    pthread_cond_init(&host->turn, NULL);
    host->custom = custom;
    pthread_create(&host->thread, NULL, serve, host);
    await(host);
}

static void order(struct host *host, const char *code, int spins) {
    pthread_mutex_lock(&host->lock);
    host->code = strdup(code);
    host->done = 0;
    host->spins = spins;
    pthread_cond_broadcast(&host->turn);
    pthread_mutex_unlock(&host->lock);
}

static void end(struct host *host) {
    pthread_mutex_lock(&host->lock);
    host->ended = 1;
    pthread_cond_broadcast(&host->turn);
    pthread_mutex_unlock(&host->lock);
    pthread_join(host->thread, NULL);
}

/* Holds no more memory at its end than at its beginning, so that what is resident tells of the pages alone. */
static uint64_t drop(int ranges) {
    uint64_t sum = 0;
    static char line[64];
    while (ranges-- > 0 && fgets(line, sizeof line, stdin)) {
        uint64_t from, to;
        if (sscanf(line, "%lx %lx", &from, &to) != 2 || madvise((void *)from, to - from, MADV_DONTNEED))
            exit(3);
        sum += to - from;
    }
    return sum;
}

static void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found)
        exit(2);
    return found;
}

int main(int argc, char **argv) {
    static char line[1 << 16];
    static char input[1 << 16];
    void *library = argc == 3 ? dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) : NULL;
    if (!library)
        return 2;
    /* An arena for each thread would show in the address space. */
    mallopt(M_ARENA_MAX, 1);
    setvbuf(stdin, input, _IOFBF, sizeof input);
    setvbuf(stdout, NULL, _IOLBF, 4096);
    newstate = symbol(library, "luaL_newstate");
    newstate_with = symbol(library, "lua_newstate");
    openlibs = symbol(library, "luaL_openlibs");
    loadstring = symbol(library, "luaL_loadstring");
    pcall = symbol(library, "lua_pcall");
    tolstring = symbol(library, "lua_tolstring");
    settop = symbol(library, "lua_settop");
    closestate = symbol(library, "lua_close");
    gc = symbol(library, "lua_gc");
    for (int n = atoi(argv[2]); n > 0; n--)
        start(0);
    printf("@ready\n");
    while (fgets(line, sizeof line, stdin)) {
        int n = 0, at = 0;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "run %d %n", &n, &at) == 1) {
            order(&hosts[n], line + at, 0);
            await(&hosts[n]);
            printf("@ready %s\n", hosts[n].answer);
        } else if (sscanf(line, "count %d", &n) == 1) {
            long kib = gc(hosts[n].L, GCCOUNT, 0);
            printf("@ready %ld\n", kib * 1024 + gc(hosts[n].L, GCCOUNTB, 0));
        } else if (sscanf(line, "spin %d %n", &n, &at) == 1) {
            order(&hosts[n], line + at, 1);
            printf("@ready\n");
        } else if (sscanf(line, "stop %d", &n) == 1) {
            pthread_mutex_lock(&hosts[n].lock);
            hosts[n].spins = 0;
            pthread_mutex_unlock(&hosts[n].lock);
            await(&hosts[n]);
            printf("@ready %s\n", hosts[n].answer);
        } else if (sscanf(line, "close %d", &n) == 1) {
            end(&hosts[n]);
            printf("@ready\n");
        } else if (sscanf(line, "drop %d", &n) == 1) {
            printf("@ready %lu\n", drop(n));
        } else if (!strcmp(line, "new") || !strcmp(line, "custom")) {
            start(line[0] == 'c');
            printf("@ready %d\n", count - 1);
        } else {
            return 4;
        }
    }
    return 0;
}

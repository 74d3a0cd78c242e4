// A program whose Lua was loaded for one library alone (RTLD_LOCAL), while another thread loads and unloads libraries.
//
//   loading LIBRARY OTHER STATES
//
// makes so many states by LIBRARY's make(), and meanwhile loads OTHER and closes it, again and again. Compiled with
// -DLIBRARY this is such a library: it calls luaL_newstate. With -DSTUB it defines it, too, as another Lua than LuaJIT
// would, so that LuaJIT is looked for at each state.
#ifdef LIBRARY
void *luaL_newstate(void);
void *make(void) { return luaL_newstate(); }
#ifdef STUB
void *luaL_newstate(void) { return &make; }
#endif
#else
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static atomic_int rounds, stop;

static void *load(void *path) {
    for (; !stop; rounds++) dlclose(dlopen(path, RTLD_NOW | RTLD_LOCAL));
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    // Threads that wait for each other would do so for ever. No measurement: a busy machine may take a minute.
    alarm(600);
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    void *(*make)(void) = library ? (void *(*)(void))dlsym(library, "make") : 0;
    pthread_t loading;
    if (!make || pthread_create(&loading, 0, load, argv[2])) return 3;
    while (!rounds) usleep(100);
    for (int made = 0; made < atoi(argv[3]); made++)
        if (!make()) return 4;
    stop = 1;
    pthread_join(loading, 0);
    puts("made");
    return 0;
}
#endif

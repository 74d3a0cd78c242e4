// Runs the collector whenever somebody waits for events, whatever is on the stack: what the preload library must not
// do, and its test must notice.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

static void *state;

void *luaL_newstate(void) {
    void *(*next)(void) = (void *(*)(void))dlsym(RTLD_NEXT, "luaL_newstate");
    if (!next) {
        void *luajit = dlopen("libluajit-5.1.so.2", RTLD_NOW);
        next = (void *(*)(void))dlsym(luajit, "luaL_newstate");
    }
    return state = next();
}

int epoll_wait(int epoll, void *events, int most, int timeout) {
    int (*next)(int, void *, int, int) = (int (*)(int, void *, int, int))dlsym(RTLD_NEXT, "epoll_wait");
    int (*gc)(void *, int, int) = (int (*)(void *, int, int))dlsym(RTLD_DEFAULT, "lua_gc");
    enum { COLLECT = 2 };
    if (state && gc) gc(state, COLLECT, 0);
    return next(epoll, events, most, timeout);
}

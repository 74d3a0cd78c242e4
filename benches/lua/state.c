// Preloaded, it puts a program's Lua states on the program's malloc, whichever that is: how one would have LuaJIT run on
// glibc's, jemalloc's or mimalloc's. For `cargo xtask bench lua`.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

typedef struct lua_State lua_State;
typedef void *(*allocator)(void *, void *, size_t, size_t);

// As lua.h says of lua_Alloc.
static void *allocate(void *data, void *block, size_t old_size, size_t size) {
    (void)data, (void)old_size;
    if (size) return realloc(block, size);
    free(block);
    return 0;
}

lua_State *luaL_newstate(void) {
    // Looked up when it is called: nginx opens LuaJIT together with its Lua module.
    lua_State *(*new)(allocator, void *) = (lua_State * (*)(allocator, void *)) dlsym(RTLD_DEFAULT, "lua_newstate");
    return new ? new(allocate, 0) : 0;
}

// A small program with Lua states, as a server embeds them: LuaJIT is the shared library, and luaL_newstate is called
// through the PLT. Used by the tests beside it and by `cargo xtask bench lua`.
//
//   host [OPTION]... FILE [ARG]...
//
// runs FILE in a state and prints the string it returns. It is called with the number of its thread, the number of
// the run, and the arguments; the global note(n) adds up numbers beyond the life of the state, for finalisers.
//
//   -t N    N threads at once, each with states of its own
//   -n N    N states one after the other in each thread
//   -k N    ... of which the N made last stay open
//   -r N    runs of FILE in each state; with -n, results are added up instead of printed
//   -o      states get an allocator of the host's own, over realloc and free
//   -m      each state is made, used and closed by three different threads
//   -s MIB  in every second run the address space may grow by MIB only; then errors must be "not enough memory"
//   -i MS   after each run the thread waits that long in epoll_wait, as an event loop does
//   -p      ... in epoll_pwait, which alone lets SIGTERM in, and is to be ended by it
//   -w      another process sends SIGWINCH, which is ignored, all the time
//   -f      a filter of system calls lets epoll_wait through, and refuses epoll_pwait
//   -c      after the last run each thread prints the processor time of all (seconds) and PSS (KiB) on stderr
//
// No header of LuaJIT is needed: its ABI is that of Lua 5.1 (lua.h, lauxlib.h, lualib.h).
#include <errno.h>
#include <inttypes.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef struct lua_State lua_State;
lua_State *luaL_newstate(void);
lua_State *lua_newstate(void *(*)(void *, void *, size_t, size_t), void *);
void luaL_openlibs(lua_State *);
int luaL_loadfile(lua_State *, const char *);
int lua_pcall(lua_State *, int, int, int);
int lua_type(lua_State *, int);
const char *lua_tolstring(lua_State *, int, size_t *);
double lua_tonumber(lua_State *, int);
void *lua_touserdata(lua_State *, int);
void lua_settop(lua_State *, int);
void lua_pushinteger(lua_State *, ptrdiff_t);
void lua_pushstring(lua_State *, const char *);
void lua_pushlightuserdata(lua_State *, void *);
void lua_pushcclosure(lua_State *, int (*)(lua_State *), int);
void lua_setfield(lua_State *, int, const char *);
void lua_close(lua_State *);
enum { GLOBALS = -10002, UPVALUE = -10003, STRING = 4 };

static struct { int threads, states, kept, runs, own, move, starve, idle, pwait, cost, nargs; char **args; const char *file; } o =
    {.threads = 1, .states = 1, .runs = 1};

struct job { int thread, run; lua_State *state; FILE *out; char *text; size_t length; uint64_t sum, notes; };

static void fail(const char *what, const char *why) { fprintf(stderr, "host: %s: %s\n", what, why); exit(1); }

static int note(lua_State *state) {
    *(uint64_t *)lua_touserdata(state, UPVALUE) += (uint64_t)lua_tonumber(state, 1);
    return 0;
}

static void *own(void *data, void *block, size_t old_size, size_t size) {
    (void)data, (void)old_size;
    if (size) return realloc(block, size);
    free(block);
    return 0;
}

static void make(struct job *j) {
    j->state = o.own ? lua_newstate(own, 0) : luaL_newstate();
    if (!j->state) fail("luaL_newstate", "no state");
    luaL_openlibs(j->state);
    lua_pushlightuserdata(j->state, &j->notes);
    lua_pushcclosure(j->state, note, 1);
    lua_setfield(j->state, GLOBALS, "note");
}

static void shut(struct job *j) { lua_close(j->state); }

static uint64_t address_space(void) {
    char line[128];
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || !fgets(line, sizeof line, f) || sscanf(line, "%llu", &pages) != 1) fail("statm", strerror(errno));
    fclose(f);
    return pages * 4096;
}

static void limit(rlim_t soft) {
    struct rlimit r;
    if (getrlimit(RLIMIT_AS, &r)) fail("getrlimit", strerror(errno));
    r.rlim_cur = soft < r.rlim_max ? soft : r.rlim_max;
    if (setrlimit(RLIMIT_AS, &r)) fail("setrlimit", strerror(errno));
}

static void add(struct job *j, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++) j->sum = j->sum * 31 + (unsigned char)s[i];
}

static void ended(int unused) { (void)unused; }

static void block(void) {
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    if (sigprocmask(SIG_BLOCK, &term, 0)) fail("sigprocmask", strerror(errno));
    signal(SIGTERM, ended);
}

static void disturb(void) {
    pid_t parent = getpid();
    if (fork()) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (getppid() == parent) {
        kill(parent, SIGWINCH);
        nanosleep(&(struct timespec){0, 100000}, 0);
    }
    _exit(0);
}

static void filter(void) {
    struct sock_filter refuse[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_epoll_pwait, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {4, refuse};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        fail("seccomp", strerror(errno));
}

static void wait_idle(void) {
    int fd = epoll_create1(0), got;
    struct epoll_event event;
    sigset_t none;
    sigemptyset(&none);
    if (fd < 0) fail("epoll", strerror(errno));
    if (o.pwait) {
        got = epoll_pwait(fd, &event, 1, o.idle, &none);
        if (got == 0 || errno != EINTR) fail("epoll_pwait", "was not ended by a signal");
    } else {
        struct timespec before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        if (epoll_wait(fd, &event, 1, o.idle) < 0) fail("epoll", strerror(errno));
        clock_gettime(CLOCK_MONOTONIC, &after);
        int64_t ns = (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec;
        if (ns < o.idle * 1000000LL) fail("epoll", "came back early");
    }
    close(fd);
}

// Loads and calls the file. Arguments are pushed before the limit: an error outside lua_pcall would be a panic.
static void run(struct job *j) {
    int starving = o.starve && j->run % 2;
    size_t n = 0;
    if (luaL_loadfile(j->state, o.file)) fail(o.file, lua_tolstring(j->state, -1, 0));
    lua_pushinteger(j->state, j->thread);
    lua_pushinteger(j->state, j->run);
    for (int i = 0; i < o.nargs; i++) lua_pushstring(j->state, o.args[i]);
    if (starving) limit(address_space() + ((rlim_t)o.starve << 20));
    int failed = lua_pcall(j->state, 2 + o.nargs, 1, 0);
    if (starving) limit(RLIM_INFINITY);
    const char *said = lua_type(j->state, -1) == STRING ? lua_tolstring(j->state, -1, &n) : 0;
    if (!said) fail(o.file, "did not return a string");
    if (failed && !(starving && strstr(said, "not enough memory"))) fail(o.file, said);
    if (o.states > 1) add(j, said, n);
    else fprintf(j->out, "%s\n", failed ? "not enough memory" : said);
    lua_settop(j->state, 0);
    if (o.idle) wait_idle();
}

// A thread of C that writes into memory that Lua gave it (scribble.lua, by FFI): a number that counts up, to every word.
static struct { uint64_t *words[4096]; _Atomic int count, stop; pthread_t thread; uint64_t last; } c;

static void *write_on(void *unused) {
    for (; !c.stop; nanosleep(&(struct timespec){0, 200000}, 0)) {
        c.last++;
        for (int i = 0; i < c.count; i++) *(volatile uint64_t *)c.words[i] = c.last;
    }
    return unused;
}

void scribble(uint64_t *word) {
    if (c.count == sizeof c.words / sizeof *c.words) fail("scribble", "too many words");
    c.words[c.count] = word;
    if (!c.count++ && pthread_create(&c.thread, 0, write_on, 0)) fail("pthread_create", strerror(errno));
}

// Ends it; what it wrote last.
uint64_t scribbled(void) {
    c.stop = 1;
    pthread_join(c.thread, 0);
    return c.last;
}

struct step { void (*f)(struct job *); struct job *job; };
static void *step(void *arg) { struct step *s = arg; s->f(s->job); return 0; }

// Here, or in a thread of its own.
static void call(void (*f)(struct job *), struct job *j) {
    struct step s = {f, j};
    pthread_t t;
    if (!o.move) { f(j); return; }
    if (pthread_create(&t, 0, step, &s)) fail("pthread_create", strerror(errno));
    pthread_join(t, 0);
}

static void tell_cost(void) {
    struct timespec t;
    char line[256];
    long pss = -1;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    FILE *f = fopen("/proc/self/smaps_rollup", "r");
    while (f && fgets(line, sizeof line, f) && sscanf(line, "Pss: %ld", &pss) != 1) {}
    if (f) fclose(f);
    fprintf(stderr, "cpu %ld.%06ld pss %ld\n", (long)t.tv_sec, t.tv_nsec / 1000, pss);
}

static void *work(void *arg) {
    struct job *j = arg;
    lua_State **kept = calloc(o.kept + 1, sizeof *kept);
    for (int i = 0; i < o.states; i++) {
        call(make, j);
        for (j->run = 0; j->run < o.runs; j->run++) call(run, j);
        // A ring: the new state takes the place of the oldest.
        lua_State *newest = j->state;
        j->state = o.kept ? kept[i % o.kept] : newest;
        if (o.kept) kept[i % o.kept] = newest;
        if (o.cost && i + 1 == o.states) tell_cost();
        if (j->state) call(shut, j);
    }
    for (int i = 0; i < o.kept; i++)
        if ((j->state = kept[i])) call(shut, j);
    free(kept);
    return 0;
}

int main(int argc, char **argv) {
    for (int c; (c = getopt(argc, argv, "+t:n:k:r:oms:i:pwfc")) != -1;) {
        int n = optarg ? atoi(optarg) : 1;
        switch (c) {
        case 't': o.threads = n; break;
        case 'n': o.states = n; break;
        case 'k': o.kept = n; break;
        case 'r': o.runs = n; break;
        case 'o': o.own = 1; break;
        case 'm': o.move = 1; break;
        case 's': o.starve = n; break;
        case 'i': o.idle = n; break;
        case 'p': o.pwait = 1; block(); break;
        case 'w': disturb(); break;
        case 'f': filter(); break;
        case 'c': o.cost = 1; break;
        default: return 2;
        }
    }
    if (optind >= argc || o.threads < 1) return 2;
    o.file = argv[optind];
    o.args = argv + optind + 1;
    o.nargs = argc - optind - 1;
    struct job *jobs = calloc(o.threads, sizeof *jobs);
    pthread_t *threads = calloc(o.threads, sizeof *threads);
    for (int i = 0; i < o.threads; i++) {
        jobs[i].thread = i;
        jobs[i].out = open_memstream(&jobs[i].text, &jobs[i].length);
    }
    // One thread is the main thread, as in most programs.
    if (o.threads == 1) work(&jobs[0]);
    else {
        for (int i = 0; i < o.threads; i++)
            if (pthread_create(&threads[i], 0, work, &jobs[i])) fail("pthread_create", strerror(errno));
        for (int i = 0; i < o.threads; i++) pthread_join(threads[i], 0);
    }
    for (int i = 0; i < o.threads; i++) {
        fclose(jobs[i].out);
        fputs(jobs[i].text, stdout);
        if (o.states > 1) printf("sum %016" PRIx64 "\n", jobs[i].sum);
        printf("notes %" PRIu64 "\n", jobs[i].notes);
    }
    return 0;
}

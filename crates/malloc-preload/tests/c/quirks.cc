// Programs with unusual habits, by name. Each prints "ok" and ends with status 0 if nothing went wrong.
#include <atomic>
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <malloc.h>
#include <map>
#include <memory>
#include <new>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

extern char **environ;
static void fail(const char *why) { fprintf(stderr, "%s (errno %d)\n", why, errno); _exit(1); }
#define NEED(x) do { if (!(x)) fail(#x); } while (0)

// Before main and after it.
struct early { std::string text; std::map<int, std::string> m; early() : text(1000, 'e') { for (int i = 0; i < 1000; i++) m[i] = text; }
    ~early() { NEED(m.size() == 1000 && m[7] == text); m.clear(); free(malloc(100000)); } };
static early before_main;
static void *at_exit_block;
static void at_exit() { memset(at_exit_block, 1, 5000); free(at_exit_block); free(malloc(10)); }

static void work(unsigned seed, int n) {
    std::vector<std::pair<unsigned char *, size_t>> w(200, {nullptr, 0});
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525 + 1013904223;
        auto &b = w[seed >> 24 & 127];
        for (size_t k = 0; k < b.second; k += 97) NEED(b.first[k] == (unsigned char)b.second);
        free(b.first);
        b.second = (seed >> 8) % (i % 100 ? 2000 : 200000);
        b.first = (unsigned char *)malloc(b.second);
        NEED(b.first);
        memset(b.first, (unsigned char)b.second, b.second);
    }
    for (auto &b : w) free(b.first);
}

// Destructors of thread-local objects and of keys that free and allocate, in every order.
static pthread_key_t keys[8];
static void key_end(void *p) {
    free(p);
    void *q = malloc(333);
    static thread_local int rounds;
    if (rounds++ < 20) pthread_setspecific(keys[rounds % 8], q); else free(q);
}
struct local { std::string s; std::vector<int> v; local() : s(5000, 'x'), v(1000) {} ~local() { NEED(s.size() == 5000); s += s; free(malloc(20)); } };
static thread_local local mine;
static void tls_destructors() {
    for (auto &k : keys) pthread_key_create(&k, key_end);
    for (int round = 0; round < 50; round++) {
        std::vector<std::thread> t;
        for (int i = 0; i < 4; i++) t.emplace_back([] { mine.v.push_back(1); for (auto k : keys) pthread_setspecific(k, malloc(200)); work(1, 300); });
        for (auto &x : t) x.join();
    }
}

static void many_threads() {
    for (int round = 0; round < 150; round++) {
        std::vector<std::thread> t;
        for (int i = 0; i < 16; i++) t.emplace_back(work, round * 16 + i, 50);
        for (auto &x : t) x.join();
    }
}

// Forks from several threads while others allocate; the children allocate, thread and fork on.
static std::atomic<bool> stop;
static void fork_from_threads() {
    std::vector<std::thread> t;
    for (int i = 0; i < 3; i++) t.emplace_back([i] { for (unsigned k = i; !stop; k++) work(k, 200); });
    for (int i = 0; i < 2; i++) t.emplace_back([i] {
        for (int k = 0; k < 20; k++) {
            pid_t pid = fork();
            NEED(pid >= 0);
            if (pid == 0) {
                work(k, 2000);
                std::thread(work, k + 1, 500).join();
                pid_t again = fork();
                if (again == 0) { work(k + 2, 500); _exit(0); }
                int status;
                NEED(waitpid(again, &status, 0) == again && status == 0);
                _exit(0);
            }
            int status;
            NEED(waitpid(pid, &status, 0) == pid && status == 0);
        }
    });
    t[3].join(); t[4].join();
    stop = true;
    for (int i = 0; i < 3; i++) t[i].join();
}

static void vfork_and_spawn() {
    for (int i = 0; i < 30; i++) {
        char *argv[] = {(char *)"true", nullptr};
        pid_t pid;
        int status;
        NEED(posix_spawnp(&pid, "true", nullptr, nullptr, argv, environ) == 0);
        NEED(waitpid(pid, &status, 0) == pid && status == 0);
        pid = vfork();
        if (pid == 0) { free(malloc(300)); free(malloc(3000000)); execvp("true", argv); _exit(1); }
        NEED(waitpid(pid, &status, 0) == pid && status == 0);
        FILE *f = popen("echo hello", "r");
        char line[20];
        NEED(fgets(line, sizeof line, f) && !strcmp(line, "hello\n"));
        pclose(f);
    }
}

static void dlopen_close() {
    for (int i = 0; i < 20; i++)
        for (const char *name : {"libm.so.6", "libz.so.1", "libsqlite3.so.0", "libxml2.so.2", "libssl.so.3"})
            for (int flags : {RTLD_LAZY, RTLD_NOW | RTLD_DEEPBIND}) {
                void *h = dlopen(name, flags);
                work(i, 50);
                if (h) dlclose(h);
            }
}

static void throw_and_jump() {
    for (int i = 0; i < 2000; i++) {
        try { std::string s(1000 + i, 'x'); auto p = std::make_unique<int[]>(i); throw std::runtime_error(s); }
        catch (std::exception &e) { NEED(strlen(e.what()) == (size_t)1000 + i); }
        jmp_buf b;
        void *volatile p = malloc(i);
        if (!setjmp(b)) longjmp(b, 1);
        free(p);
    }
    bool threw = false;
    try { volatile size_t n = (size_t)1 << 60; char *p = new char[n]; p[0] = 1; } catch (std::bad_alloc &) { threw = true; }
    NEED(threw);
    NEED(!new (std::nothrow) char[(size_t)1 << 46]);
    struct alignas(512) wide { char c[600]; };
    auto w = new wide[3];
    NEED((uintptr_t)w % 512 == 0);
    delete[] w;
}

// Memory runs out: null and ENOMEM, again and again, and everything is as before after it.
static void exhaust() {
    std::vector<std::pair<char *, size_t>> w;
    w.reserve(4000000);
    int refused = 0;
    for (size_t n = 1 << 20; refused < 30 && w.size() < 4000000; ) {
        errno = 0;
        char *p = (char *)malloc(n);
        if (!p) { NEED(errno == ENOMEM); refused++; if (n > 16) n /= 2; else break; continue; }
        p[0] = 1; p[n - 1] = 2;
        w.push_back({p, n});
    }
    NEED(refused > 10);
    for (int i = 0; i < 100; i++) { char *p = (char *)realloc(w[i].first, w[i].second * 64); if (p) w[i].first = p; NEED(w[i].first[0] == 1); }
    for (auto &b : w) { NEED(b.first[0] == 1); free(b.first); }
    work(1, 5000);
    void *p = malloc(8 << 20);
    NEED(p);
    free(p);
}
static void limit_address_space() {
    // Set by the program itself, after it has allocated.
    work(1, 1000);
    struct rlimit r = {400 << 20, 400 << 20};
    NEED(setrlimit(RLIMIT_AS, &r) == 0);
    std::thread(work, 1, 1000).join();
    exhaust();
    std::thread(work, 1, 1000).join();
}
static void limit_data() {
    struct rlimit r = {200 << 20, 200 << 20};
    NEED(setrlimit(RLIMIT_DATA, &r) == 0);
    exhaust();
}

// Bytes in memory, as /proc says, read without allocating.
static size_t resident() {
    char line[100];
    int fd = open("/proc/self/statm", O_RDONLY);
    ssize_t n = read(fd, line, sizeof line - 1);
    close(fd);
    NEED(n > 0);
    line[n] = 0;
    return strtoul(strchr(line, ' '), nullptr, 10) * 4096;
}

// The process has as many mappings as it may (vm.max_map_count): nothing can be mapped, and nothing unmapped that would
// have to be cut out of a mapping. Blocks are still handed out or refused, freed, and what they held is given back.
static void mappings() {
    enum { LARGE = 40, MOST = 1 << 21 };
    static char *large[LARGE];
    static void *maps[MOST];
    work(1, 2000);
    for (auto &b : large) { b = (char *)malloc(2 << 20); NEED(b); memset(b, 7, 2 << 20); }
    int n = 0;
    for (; n < MOST; n++) {
        maps[n] = mmap(nullptr, 4096, n % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (maps[n] == MAP_FAILED) break;
    }
    if (n < MOST) {
        NEED(errno == ENOMEM);
        size_t full = resident();
        for (int i = 0; i < LARGE; i += 2) { free(large[i]); large[i] = nullptr; }
        malloc_trim(0);
        NEED(resident() < full - (LARGE / 2 - 4) * (2 << 20));
        static char *w[1000];
        for (int i = 0, k = 0; i < 20000; i++, k = i % 1000) {
            size_t size = 1 + i * 7919u % (i % 1000 ? 3000 : 3000000);
            free(w[k]);
            w[k] = (char *)malloc(size);
            if (!w[k]) { NEED(errno == ENOMEM); continue; }
            w[k][0] = w[k][size - 1] = 1;
            if (char *q = (char *)realloc(w[k], size * 2)) { NEED(q[0] == 1); w[k] = q; }
        }
        for (char *b : w) free(b);
        for (int i = 0; i < n; i++) munmap(maps[i], 4096);
    }
    for (char *b : large) { if (b) NEED(b[0] == 7 && b[(2 << 20) - 1] == 7); free(b); }
    work(1, 5000);
    std::thread(work, 2, 1000).join();
    void *p = malloc(100 << 20);
    NEED(p);
    free(p);
}

static void locked() {
    struct rlimit r = {RLIM_INFINITY, RLIM_INFINITY};
    setrlimit(RLIMIT_MEMLOCK, &r);
    if (mlockall(MCL_CURRENT | MCL_FUTURE)) return;
    work(1, 20000);
    std::thread(work, 1, 1000).join();
}

// Bursts of 16 MB of other sizes each time, of which little survives: 500 MB in all, for a memory limit of 96. What was
// freed must serve again, or be gone before the kernel ends the process.
static void bursts() {
    static char *w[400000];
    for (int round = 0; round < 3; round++)
        for (size_t size : {48, 2000, 300, 9000, 700000, 30000, 120, 3000000, 64, 5000, 1000}) {
            int n = 0;
            for (size_t sum = 0; sum < 16 << 20; sum += size, n++) { w[n] = (char *)malloc(size); NEED(w[n]); memset(w[n], size, size); }
            for (int i = 0; i < n; i++) { NEED(w[i][size / 2] == (char)size); if (i % 2000 || size > 100000) free(w[i]); }
        }
}

// Blocks freed by another thread than the one that took them, all the time.
static void cross_thread() {
    constexpr int N = 1 << 12;
    static std::atomic<char *> box[N];
    std::vector<std::thread> t;
    for (int i = 0; i < 4; i++) t.emplace_back([i] {
        unsigned seed = i;
        for (int k = 0; k < 200000; k++) {
            seed = seed * 1664525 + 1013904223;
            size_t n = 1 + (seed >> 8) % (k % 50 ? 500 : 60000);
            char *p = (char *)malloc(n);
            p[0] = p[n - 1] = 42;
            char *old = box[seed >> 20].exchange(p);
            if (old) { NEED(old[0] == 42); free(old); }
        }
    });
    for (auto &x : t) x.join();
    for (auto &b : box) free(b.load());
}

// The library's statistics block as words; word 15 counts the turns of the purge. Absent without the library.
extern "C" const volatile unsigned long ebbtide_stats[] __attribute__((weak));
static unsigned long turns() { return &ebbtide_stats[0] ? ebbtide_stats[15] : 0; }

// Works on, taking and dropping 3 MB all the time beside 24 MB that it keeps. That little is left alone while a program
// is busy, unless memory is short: waits some turns for it to be given back again and again, and not once or twice, as
// when the program got no processor for a while. Word 6 of the statistics counts the pages given back.
static void pressed() {
    static char *w[800], *live[6000];
    for (auto &b : live) { b = (char *)malloc(4000); NEED(b); memset(b, 1, 4000); }
    unsigned long first = turns(), given = 0;
    while (turns() < first + 60) {
        for (auto &b : w) { b = (char *)malloc(4000); NEED(b); memset(b, 1, 4000); }
        for (auto &b : w) free(b);
        if (turns() < first + 10) given = ebbtide_stats[6];
        else if (ebbtide_stats[6] - given > 6000) return;
        usleep(1000);
    }
    fail("little was given back");
}

// A signal handler that stops the thread wherever it is, also inside malloc, until the others have given back, which
// they cannot where it holds a lock: then for so many yields.
static std::atomic<int> signals;
static void handler(int) {
    unsigned long before = turns();
    signals++;
    for (int k = 0; k < 2000 && turns() == before; k++) sched_yield();
}
static void signals_inside() {
    signal(SIGUSR1, handler);
    std::atomic<bool> end{false};
    std::thread t([&] { for (unsigned k = 0; !end; k++) work(k, 100); });
    for (int i = 0; i < 100; i++) {
        pthread_kill(t.native_handle(), SIGUSR1);
        free(malloc(3000000));
        while (signals <= i) sched_yield();
    }
    end = true;
    t.join();
    NEED(signals == 100);
}

static void closes_everything() {
    for (int fd = 3; fd < 200; fd++) close(fd);
    work(1, 5000);
    std::thread(work, 2, 5000).join();
}

int main(int argc, char **argv) {
    static const std::map<std::string, void (*)()> all = {
        {"tls-destructors", tls_destructors}, {"many-threads", many_threads}, {"fork-from-threads", fork_from_threads},
        {"vfork-and-spawn", vfork_and_spawn}, {"dlopen-close", dlopen_close}, {"throw-and-jump", throw_and_jump},
        {"limit-address-space", limit_address_space}, {"limit-data", limit_data}, {"mappings", mappings}, {"locked", locked},
        {"cross-thread", cross_thread}, {"exhaust", exhaust}, {"bursts", bursts}, {"pressed", pressed}, {"signals-inside", signals_inside}, {"closes-everything", closes_everything}};
    at_exit_block = malloc(5000);
    atexit(at_exit);
    all.at(argv[1])();
    puts("ok");
}

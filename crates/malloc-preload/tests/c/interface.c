// What C, POSIX and glibc say about each function, asked of whatever malloc is loaded. Prints nothing but
// what does not hold; the status is how much that is.
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int wrong;
#define CHECK(x) do { if (!(x)) { printf("line %d: %s\n", __LINE__, #x); wrong++; } } while (0)
#define REFUSED(x, e) do { errno = 0; CHECK((x) == 0); CHECK(errno == (e)); } while (0)
void free_sized(void *, size_t) __attribute__((weak));
void free_aligned_sized(void *, size_t, size_t) __attribute__((weak));
static volatile size_t huge = SIZE_MAX;

static int zeros(const char *p, size_t n) { for (size_t i = 0; i < n; i++) if (p[i]) return 0; return 1; }

static void sizes(void) {
    for (size_t n = 0; n < 200000; n = n < 5000 ? n + 1 : n + n / 7) {
        char *p = malloc(n), *q = malloc(n);
        CHECK(p && q && p != q);
        CHECK((uintptr_t)p % 16 == 0);
        CHECK(malloc_usable_size(p) >= n);
        memset(p, 0xaa, malloc_usable_size(p));
        memset(q, 0xbb, malloc_usable_size(q));
        for (size_t i = 0; i < n; i++) if (p[i] != (char)0xaa) { CHECK(!"own bytes"); break; }
        free(p);
        free(q);
        p = calloc(n, 1);
        CHECK(p && zeros(p, n));
        free(p);
    }
}

static void failures(void) {
    void *keep = malloc(100), *out = &wrong;
    REFUSED(malloc(huge), ENOMEM);
    REFUSED(malloc(huge / 2), ENOMEM);
    REFUSED(malloc((size_t)1 << 50), ENOMEM);
    REFUSED(calloc(huge, 2), ENOMEM);
    REFUSED(calloc(huge / 2 + 2, 2), ENOMEM);
    REFUSED(realloc(keep, huge), ENOMEM);
    REFUSED(reallocarray(keep, huge / 4, 8), ENOMEM);
    REFUSED(aligned_alloc(64, huge - 63), ENOMEM);
    REFUSED(aligned_alloc(48, 10), EINVAL);
    REFUSED(pvalloc(huge), ENOMEM);
    REFUSED(valloc(huge), ENOMEM);
    errno = 7;
    CHECK(posix_memalign(&out, 3, 10) == EINVAL);
    CHECK(posix_memalign(&out, 4, 10) == EINVAL);
    CHECK(posix_memalign(&out, 0, 10) == EINVAL);
    CHECK(posix_memalign(&out, 64, huge) == ENOMEM);
    CHECK(out == &wrong && errno == 7);
    memset(keep, 1, 100);
    free(keep);
    free(NULL);
    CHECK(errno == 7);
}

static void alignments(void) {
    for (size_t a = sizeof(void *); a <= (64u << 20); a *= 2)
        for (size_t n = 1; n < (1 << 22); n = n * 5 + 3) {
            void *p = 0;
            CHECK(posix_memalign(&p, a, n) == 0 && (uintptr_t)p % a == 0);
            CHECK(malloc_usable_size(p) >= n);
            ((char *)p)[0] = ((char *)p)[n - 1] = 1;
            p = realloc(p, n + 1000);
            CHECK(p && ((char *)p)[0] == 1);
            free(p);
            p = aligned_alloc(a, n);
            CHECK(p && (uintptr_t)p % a == 0);
            free(p);
        }
    void *p = memalign(100, 5);
    CHECK(p && (uintptr_t)p % 128 == 0);
    free(p);
    p = valloc(1);
    CHECK((uintptr_t)p % 4096 == 0);
    free(p);
    p = pvalloc(5000);
    CHECK((uintptr_t)p % 4096 == 0 && malloc_usable_size(p) >= 8192);
    if (free_aligned_sized) free_aligned_sized(p, 4096, 8192); else free(p);
    p = malloc(33);
    if (free_sized) free_sized(p, 33); else free(p);
}

static void reallocs(void) {
    char *p = realloc(NULL, 10);
    memset(p, 5, 10);
    size_t had = 10;
    uint64_t s = 1;
    for (int i = 0; i < 20000; i++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        size_t n = (s >> 33) % ((size_t)1 << (4 + i % 20)) + 1;
        p = realloc(p, n);
        CHECK(p);
        for (size_t k = 0; k < had && k < n; k += k < 64 ? 1 : 509)
            if (p[k] != 5) { CHECK(!"kept bytes"); break; }
        memset(p, 5, n);
        had = n;
    }
    CHECK(realloc(p, 0) == NULL);
    p = reallocarray(NULL, 10, 10);
    CHECK(p);
    free(p);
}

static void info(void) {
    void *p[100];
    struct mallinfo2 before = mallinfo2();
    for (int i = 0; i < 100; i++) p[i] = malloc(10000);
    struct mallinfo2 after = mallinfo2();
    CHECK(after.uordblks >= before.uordblks + 1000000);
    CHECK(after.uordblks <= after.arena + after.hblkhd);
    for (int i = 0; i < 100; i++) free(p[i]);
    CHECK(mallopt(M_ARENA_MAX, 2) == 1 && mallopt(12345, 1) == 0);
    malloc_trim(0);
    CHECK(malloc_trim(0) == 0);
    char *text = 0;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    CHECK(malloc_info(0, f) == 0);
    errno = 0;
    CHECK(malloc_info(1, f) == -1 && errno == EINVAL);
    fclose(f);
    CHECK(strstr(text, "<malloc version=\"1\">") && strstr(text, "</malloc>"));
    free(text);
}

int main(void) {
    sizes();
    failures();
    alignments();
    reallocs();
    info();
    malloc_stats();
    return wrong > 100 ? 100 : wrong;
}

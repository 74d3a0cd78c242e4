// Programs that are wrong, by name: each must be stopped with a message.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *other(void *p) { free(p); return 0; }

int main(int argc, char **argv) {
    const char *what = argv[1];
    char *p[300];
    setvbuf(stdout, NULL, _IONBF, 0);
    for (int i = 0; i < 300; i++) p[i] = malloc(96);
    char *victim = p[100];
    if (!strcmp(what, "stack")) { int on_stack; victim = (char *)&on_stack; }
    if (!strcmp(what, "run")) victim = malloc(500000);
    if (!strcmp(what, "large")) victim = malloc(5000000);
    if (!strcmp(what, "inside")) victim += 16;
    if (!strcmp(what, "inside-run")) victim = (char *)malloc(500000) + 4096;
    printf("%p\n", (void *)victim);
    if (!strcmp(what, "twice") || !strcmp(what, "run") || !strcmp(what, "large")) { free(victim); free(victim); }
    else if (!strcmp(what, "later")) {
        free(victim);
        for (int i = 0; i < 50; i++) free(p[i]);
        free(victim);
        for (int i = 101; i < 300; i++) free(p[i]);
    } else if (!strcmp(what, "other-thread")) {
        pthread_t t;
        pthread_create(&t, 0, other, victim);
        pthread_join(t, 0);
        free(victim);
        for (int i = 101; i < 300; i++) free(p[i]);
    } else if (!strcmp(what, "write")) {
        free(victim);
        victim[40] = 7;
        for (int i = 0; i < 1000; i++) malloc(96);
    } else {
        free(victim);
        for (int i = 101; i < 300; i++) free(p[i]);
    }
    puts("not stopped");
    return 0;
}

/* Shifts a server's wall clock: preloaded, it adds the seconds that stand in CLOCK_SHIFT, a file, as text. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void) {
  const char *file = getenv("CLOCK_SHIFT");
  char text[32] = {0};
  int in = file == NULL ? -1 : open(file, O_RDONLY);
  if (in < 0) return 0;
  ssize_t length = read(in, text, sizeof text - 1);
  close(in);
  return length > 0 ? atol(text) : 0;
}

int gettimeofday(struct timeval *now, void *zone) {
  static int (*next)(struct timeval *, void *);
  if (next == NULL) next = dlsym(RTLD_NEXT, "gettimeofday");
  int result = next(now, zone);
  if (result == 0 && now != NULL) now->tv_sec += shift();
  return result;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*next)(clockid_t, struct timespec *);
  if (next == NULL) next = dlsym(RTLD_NEXT, "clock_gettime");
  int result = next(clock, now);
  if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += shift();
  return result;
}

time_t time(time_t *where) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (where != NULL) *where = now.tv_sec;
  return now.tv_sec;
}

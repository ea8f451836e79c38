/* Breadth first over the states of a world. `world.h` is printed from the model (proofs/explorer_source.py); a program that includes
   this file says what it does with a state (`visit`) and with an edge (`edge`).

   All states lie in one array in the order in which they were found; a table of their numbers, openly addressed, finds them again.
   Whence a state came is kept for one in 64 only: since states are found in the order of those they are found from, the others' is the
   first one, from there on, that leads to it. New states are looked up a batch at a time, so that memory answers many at once. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "world.h"

enum { BATCH = 1024, SPARSE = 64, FULL = 2, TOLD_EVERY = 1 << 16 };

static K *states;
static u32 *table, *whence;
static u64 n, slots, bytes_allowed, bytes_taken, edges, depth;
static int talks;
static Way pending[BATCH + ACTIONS];
static int waiting;
static void visit(u64 state, const u64 *w, const Way *out, int number);
static void edge(u32 from, int action, u32 to);

/* Address space; memory is taken as it is touched. */
static void *reserve(u64 bytes) {
  void *found = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) exit(FULL);
  madvise(found, bytes, MADV_HUGEPAGE);
  return found;
}

static void take(u64 bytes) {
  bytes_taken += bytes;
  if (bytes_taken > bytes_allowed) exit(FULL);
}

static u64 hash(K key) {
  u64 x = (u64)key;
  if (sizeof(K) > 8) x ^= (u64)(key >> (sizeof(K) * 4)) * 0x9e3779b97f4a7c15ULL;
  x ^= x >> 31; x *= 0x7fb5d329728ea185ULL; x ^= x >> 27; x *= 0x81dadef4bc2dd44dULL;
  return x ^ x >> 33;
}

#ifdef COLUMNS
static void sort(u64 *f) {
  for (int i = 1; i < COLUMNS; i++)
    for (int j = i; j && f[j - 1] > f[j]; j--) { u64 other = f[j]; f[j] = f[j - 1]; f[j - 1] = other; }
}
static K canonical(K k) { SORTED(k) return k; }
/* How many states are the same up to the order of their columns. */
static u64 orbit(K k) {
  u64 all = 1, run = 1, mask = ((u64)1 << COLUMN) - 1;
  for (int i = 1; i < COLUMNS; i++) {
    run = ((u64)(k >> COLUMN * i) & mask) == ((u64)(k >> COLUMN * (i - 1)) & mask) ? run + 1 : 1;
    all = all * (i + 1) / run;
  }
  return all;
}
#else
static K canonical(K k) { return k; }
static u64 orbit(K k) { (void)k; return 1; }
#endif

static void grow(void) {
  if (table) { munmap(table, slots * 4); bytes_taken -= slots * 4; }
  slots = slots ? slots * 2 : 1 << 16;
  take(slots * 4);
  table = reserve(slots * 4);
  for (u64 i = 0; i < n; i++) {
    if (i + 16 < n) __builtin_prefetch(&table[hash(states[i + 16]) & (slots - 1)], 1);
    u64 h = hash(states[i]) & (slots - 1);
    while (table[h]) h = (h + 1) & (slots - 1);
    table[h] = (u32)i + 1;
  }
}

static u32 place(K key, u32 from, u64 h) {
  for (; table[h]; h = (h + 1) & (slots - 1))
    if (states[table[h] - 1] == key) return table[h] - 1;
  if (n % SPARSE == 0) { take(SPARSE * sizeof(K) + 4); whence[n / SPARSE] = from; }
  states[n] = key;
  table[h] = (u32)n + 1;
  return (u32)n++;
}

/* Looks up what is pending. */
static void settle(void) {
  static u64 at[BATCH + ACTIONS];
  while ((n + (u64)waiting) * 10 > slots * 7) grow();
  for (int i = 0; i < waiting; i++) {
    pending[i].key = canonical(pending[i].key);
    at[i] = hash(pending[i].key) & (slots - 1);
    __builtin_prefetch(&table[at[i]], 1);
  }
  for (int i = 0; i < waiting; i++)
    if (table[at[i]]) __builtin_prefetch(&states[table[at[i]] - 1]);
  for (int i = 0; i < waiting; i++) edge(pending[i].from, pending[i].action, place(pending[i].key, pending[i].from, at[i]));
  waiting = 0;
}

/* Of processor time, which other programs do not change much; or on the wall. */
static double seconds(clockid_t which) {
  struct timespec now;
  clock_gettime(which, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Bytes of memory at the highest, of this program alone (what getrusage says begins with the program that started it). */
static u64 peak(void) {
  char line[256];
  u64 kilobytes = 0;
  FILE *status = fopen("/proc/self/status", "r");
  while (status && fgets(line, sizeof line, status))
    if (sscanf(line, "VmHWM: %llu", &kilobytes) == 1) break;
  if (status) fclose(status);
  return kilobytes << 10;
}

/* One line to whoever watches, once a second at most. */
static void tell(u64 done) {
  static double last;
  if (!talks || seconds(CLOCK_MONOTONIC) - last < 1) return;
  last = seconds(CLOCK_MONOTONIC);
  fprintf(stderr, "%llu %llu %llu %llu\n", done, n, edges, peak());
}

/* All states; `arguments`: how many megabytes may be taken, and whether to tell of progress. */
static void search(int count, char **arguments) {
  static u8 s[VARIABLES]; static K c[VARIABLES]; static u64 w[WORDS];
  bytes_allowed = (u64)atoll(count > 1 ? arguments[1] : "1024") << 20;
  talks = count > 2;
  u64 room = bytes_allowed / sizeof(K) < 4000000000ULL ? bytes_allowed / sizeof(K) : 4000000000ULL, level = 1;
  states = reserve((room + SPARSE) * sizeof(K));
  whence = reserve((room / SPARSE + 1) * 4);
  grow();
  place(canonical(INITIAL), 0, hash(canonical(INITIAL)) & (slots - 1));
  for (u64 i = 0;; i++) {
    if (waiting >= BATCH || i == level || i == n) settle();
    if (i == n) break;
    if (i == level) { depth++; level = n; }
    if (i % TOLD_EVERY == 0) tell(i);
    unpack(states[i], s, c, w);
    int number = ways(states[i], (u32)i, s, c, w, pending + waiting);
    visit(i, w, pending + waiting, number);
    waiting += number;
    edges += (u64)number;
  }
}

/* The state from which state `i` was found, and by which action. */
static u64 before(u64 i, int *action) {
  static u8 s[VARIABLES]; static K c[VARIABLES]; static u64 w[WORDS]; static Way out[ACTIONS];
  for (u64 parent = whence[i / SPARSE];; parent++) {
    unpack(states[parent], s, c, w);
    int number = ways(states[parent], (u32)parent, s, c, w, out);
    for (int j = 0; j < number; j++)
      if (canonical(out[j].key) == states[i]) { *action = out[j].action; return parent; }
  }
}

/* Prints the actions on a shortest way to a state. */
static void story(u64 i) {
  u32 length = 0;
  static int actions[1 << 16];
  while (i) i = before(i, &actions[length++]);
  while (length) printf(" %d", actions[--length]);
}

/* Liveness: a leads-to fails exactly if one can stay for ever, fairly, where its goal is not, having passed its trigger.

   The graph is kept in memory, edges and all. Questions are read from standard input, one to a line: the number of a promise, and for
   each event a letter, n, w or s, for no, weak or strong fairness. Answered is a set of states in which one can stay, as
   proofs/search.py's `unfair_lasso` finds it (Emerson and Lei 1987): strongly connected parts, restricted again and again to where
   their strongly fair events are nowhere enabled that are not taken. */
#include "states.h"

enum { EVENT_WORDS = EVENTS / 64 + 1, NOWHERE = 0 };
typedef struct { u64 bit[EVENT_WORDS]; } Set;
typedef struct { u32 begin, end, colour; int side; } Region;

static u32 *first, *after;
static unsigned short *by;
static u64 *held, num_edges;
static u32 *colour, *number, *low, *stack, *calls, *next_edge, *lists[2], *parts;
static Region *work;
static u32 num_colours, num_work;
static Set weak, strong;

static void visit(u64 state, const u64 *w, const Way *out, int count) {
  (void)out;
  take(4 + 8 + (u64)count * 6);
  first[state] = (u32)edges;
  held[state] = labels(w);
}

static void edge(u32 from, int action, u32 to) {
  (void)from;
  after[num_edges] = to;
  by[num_edges++] = (unsigned short)action;
}

static void include(Set *set, int event) { if (event < EVENTS) set->bit[event >> 6] |= 1ULL << (event & 63); }

/* The fair events that may happen in a state. */
static Set enabled(u32 state) {
  Set found = {{0}};
  for (u32 e = first[state]; e < first[state + 1]; e++) include(&found, event_of[by[e]]);
  return found;
}

/* Whether one can stay in a part for ever. If the part must be left at some states for a fair event's sake, the others are work. */
static int stays(u32 begin, u32 end, int side) {
  Set some = {{0}}, all, taken = {{0}}, unmet = {{0}};
  int is_unmet = 0;
  u32 mine = colour[parts[begin]];
  memset(&all, 255, sizeof all);
  for (u32 i = begin; i < end; i++) {
    Set here = enabled(parts[i]);
    for (int k = 0; k < EVENT_WORDS; k++) { some.bit[k] |= here.bit[k]; all.bit[k] &= here.bit[k]; }
    for (u32 e = first[parts[i]]; e < first[parts[i] + 1]; e++)
      if (colour[after[e]] == mine) include(&taken, event_of[by[e]]);
  }
  for (int k = 0; k < EVENT_WORDS; k++) {
    if (all.bit[k] & weak.bit[k] & ~taken.bit[k]) return 0;
    unmet.bit[k] = some.bit[k] & strong.bit[k] & ~taken.bit[k];
    is_unmet |= unmet.bit[k] != 0;
  }
  if (!is_unmet) return 1;
  u32 kept = begin, fresh = ++num_colours;
  for (u32 i = begin; i < end; i++) {
    u32 state = parts[i];
    Set here = enabled(state);
    int leaves = 0;
    for (int k = 0; k < EVENT_WORDS; k++) leaves |= (here.bit[k] & unmet.bit[k]) != 0;
    if (leaves) continue;
    colour[state] = fresh;
    number[state] = 0;
    parts[kept++] = state;
  }
  if (kept > begin) work[num_work++] = (Region){begin, kept, fresh, side};
  return 0;
}

/* Strongly connected parts of a region (Tarjan 1972), without recursion. A part gets a colour of its own as it is found, and so is out
   of the region. The states of a region are in one of two lists; its parts, and the regions that are left of them, come to be in the
   same places of the other. */
static int search_region(Region region, u32 *begin, u32 *end) {
  u32 count = 0, depth_of_stack = 0, done = region.begin, *roots = lists[region.side];
  parts = lists[!region.side];
  for (u32 r = region.begin; r < region.end; r++) {
    u32 root = roots[r], num_calls = 0;
    if (colour[root] != region.colour || number[root]) continue;
    number[root] = low[root] = ++count;
    stack[depth_of_stack++] = root;
    next_edge[num_calls] = first[root];
    calls[num_calls++] = root;
    while (num_calls) {
      u32 state = calls[num_calls - 1], e = next_edge[num_calls - 1], other = 0;
      int deeper = 0;
      for (; e < first[state + 1] && !deeper; e++) {
        other = after[e];
        if (colour[other] != region.colour) continue;
        if (!number[other]) deeper = 1;
        else if (number[other] < low[state]) low[state] = number[other];
      }
      next_edge[num_calls - 1] = e;
      if (deeper) {
        number[other] = low[other] = ++count;
        stack[depth_of_stack++] = other;
        next_edge[num_calls] = first[other];
        calls[num_calls++] = other;
        continue;
      }
      num_calls--;
      if (num_calls && low[state] < low[calls[num_calls - 1]]) low[calls[num_calls - 1]] = low[state];
      if (low[state] != number[state]) continue;
      *begin = done;
      num_colours++;
      u32 member;
      do {
        member = stack[--depth_of_stack];
        colour[member] = num_colours;
        parts[done++] = member;
      } while (member != state);
      *end = done;
      if (stays(*begin, *end, !region.side)) return 1;
    }
  }
  return 0;
}

/* Looks for `parts` from `begin` to `end` in which one can stay without the goal, having passed the trigger. */
static int unfair(int promise, u32 *begin, u32 *end) {
  u32 size = 0, *roots = lists[0];
  num_colours = 1;
  num_work = 0;
  for (u64 i = 0; i < n; i++) {
    colour[i] = NOWHERE;
    number[i] = 0;
    if (held[i] >> promise & 1 && !(held[i] >> (promise + 32) & 1)) { colour[i] = 1; roots[size++] = (u32)i; }
  }
  for (u32 i = 0; i < size; i++)
    for (u32 e = first[roots[i]]; e < first[roots[i] + 1]; e++)
      if (colour[after[e]] == NOWHERE && !(held[after[e]] >> (promise + 32) & 1)) { colour[after[e]] = 1; roots[size++] = after[e]; }
  if (size) work[num_work++] = (Region){0, size, 1, 0};
  while (num_work)
    if (search_region(work[--num_work], begin, end)) return 1;
  return 0;
}

static void answer(int promise) {
  static char goes_on[ACTIONS];
  u32 begin = 0, end = 0, nearest = 0;
  if (!unfair(promise, &begin, &end)) { printf("holds\n"); return; }
  nearest = parts[begin];
  memset(goes_on, 0, sizeof goes_on);
  for (u32 i = begin; i < end; i++) {
    if (parts[i] < nearest) nearest = parts[i];
    for (u32 e = first[parts[i]]; e < first[parts[i] + 1]; e++)
      if (colour[after[e]] == colour[parts[begin]]) goes_on[by[e]] = 1;
  }
  printf("stays %u", end - begin);
  story(nearest);
  printf(" |");
  for (int a = 0; a < ACTIONS; a++) if (goes_on[a]) printf(" %d", a);
  printf("\n");
}

static u32 *numbers(void) { take(n * 4 + 4); return reserve(n * 4 + 4); }

int main(int count, char **arguments) {
  u64 most = (u64)atoll(arguments[1]) << 20;
  first = reserve(most); held = reserve(most); after = reserve(most); by = reserve(most);
  search(count, arguments);
  first[n] = (u32)edges;
  if (edges >> 32) return FULL;
  munmap(table, slots * 4);
  bytes_taken -= slots * 4;
  colour = numbers(); number = numbers(); low = numbers(); stack = numbers(); calls = numbers(); next_edge = numbers();
  lists[0] = numbers(); lists[1] = numbers();
  work = reserve((n + 1) * sizeof(Region));
  int promise;
  static char kinds[EVENTS + 2];
  while (scanf("%d %s", &promise, kinds) == 2) {
    memset(&weak, 0, sizeof weak);
    memset(&strong, 0, sizeof strong);
    for (int event = 0; event < EVENTS; event++)
      if (kinds[event] != 'n') include(kinds[event] == 's' ? &strong : &weak, event);
    answer(promise);
    fflush(stdout);
    tell(n);
  }
  printf("count %llu %llu\npeak %llu\nseconds %.2f\n", n, edges, peak(), seconds(CLOCK_PROCESS_CPUTIME_ID));
  return 0;
}

/* The model at an engine's own pace (proofs/pace.py), breadth first, and tours over it. `world.h` is printed from the model; it says of
   each action what it is (ROLE, RANK, KIND, CAUSE, INSTANCE, ORDER, NEEDS), which variables are the abstraction, and `held`, conditions as bits.

   A turn is a cause and all boundary work that follows, looked for in the order of the pass until a whole look finds nothing. An edge
   is (abstract state, kind of action, abstract state). Tours begin at the initial state, go to the nearest edge that no tour has yet
   taken, and on to the next nearest, for as long as one is near.

   Told on stdin:  "A abstract cause": no turn that begins with such a cause there.   "E abstract kind abstract": taken already.
   Says: "states edges turns", then each edge as "E abstract kind abstract", then each tour as "T" and its causes, "C action ...". */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "world.h"

enum { SINGLE = 1, LAND, END, PLAN, BOUNDARY };
enum { MOST = 64, CAUSES = 8, NEAR = 1200, LONG = 250 };

typedef struct { K key; u32 from; unsigned short cause[CAUSES]; u8 length; } State;
typedef struct { unsigned short cause[CAUSES]; u8 length; K after; u64 edges[MOST]; int num_edges; } Turn;
typedef struct { u8 s[VARIABLES]; K c[VARIABLES]; u64 w[WORDS]; } Open;

static State *states;
static u32 *table;
static u64 n, room, slots, num_turns;

static u64 hash(u64 x) {
  x ^= x >> 31; x *= 0x7fb5d329728ea185ULL; x ^= x >> 27; x *= 0x81dadef4bc2dd44dULL;
  return x ^ x >> 33;
}
static u64 hash_key(K key) { return hash((u64)key ^ (sizeof(K) > 8 ? (u64)(key >> (sizeof(K) * 4)) * 0x9e3779b97f4a7c15ULL : 0)); }

/* ---- sets of numbers */

typedef struct { u64 *keys; u32 *values; u64 size, count; } Set;

static u32 *find(Set *set, u64 key, int add, int *is_new) {
  if ((set->count + 1) * 10 > set->size * 7) {
    Set old = *set;
    set->size = old.size ? old.size * 2 : 1 << 12;
    set->keys = calloc(set->size, 8);
    set->values = calloc(set->size, 4);
    for (u64 i = 0; i < old.size; i++)
      if (old.keys[i]) {
        u64 h = hash(old.keys[i]) & (set->size - 1);
        while (set->keys[h]) h = (h + 1) & (set->size - 1);
        set->keys[h] = old.keys[i]; set->values[h] = old.values[i];
      }
    free(old.keys); free(old.values);
  }
  u64 h = hash(key) & (set->size - 1);
  for (; set->keys[h]; h = (h + 1) & (set->size - 1))
    if (set->keys[h] == key) { if (is_new) *is_new = 0; return &set->values[h]; }
  if (is_new) *is_new = 1;
  if (!add) return 0;
  set->keys[h] = key; set->count++;
  return &set->values[h];
}

static Set edges, avoided, taken;
static u64 *edge_list; /* in the order in which they were found */
static u32 *edge_state;

/* ---- turns */

static void look(K key, Open *open) { unpack(key, open->s, open->c, open->w); }

static u64 abstraction(const u8 *s) {
  u64 found = 0;
  for (int i = 0; i < PLAIN; i++) found = found * plain_size[i] + s[plain[i]];
  u8 sorted[REQUESTS];
  for (int i = 0; i < REQUESTS; i++) {
    int j = i;
    for (; j && sorted[j - 1] > s[request_state[i]]; j--) sorted[j] = sorted[j - 1];
    sorted[j] = s[request_state[i]];
  }
  for (int i = 0; i < REQUESTS; i++) found = found * request_size + sorted[i];
  return found + 1;
}
static u64 edge_key(u64 before, int action, u64 after) { return before << 40 | (u64)KIND[action] << 32 | after; }

static void (*use)(Turn *);

static void pass(Turn *turn, int action, K key, u64 *before) {
  Open open;
  look(key, &open);
  u64 after = abstraction(open.s);
  if (turn->num_edges < MOST) turn->edges[turn->num_edges++] = edge_key(*before, action, after);
  *before = after;
}

/* Boundary work to its fixpoint, then the turn is whole. */
static void finish(Turn *turn, K key, u64 before) {
  Way out[ACTIONS];
  Open open;
  int num_edges = turn->num_edges, at = -1, moved = 0;
  for (;;) {
    look(key, &open);
    int number = ways(key, 0, open.s, open.c, open.w, out), best = -1;
    for (int i = 0; i < number; i++)
      if (ROLE[out[i].action] == BOUNDARY && RANK[out[i].action] > at && (best < 0 || RANK[out[i].action] < RANK[out[best].action])) best = i;
    if (best < 0) {
      if (!moved) break;
      at = -1; moved = 0;
      continue;
    }
    at = RANK[out[best].action]; moved = 1; key = out[best].key;
    pass(turn, out[best].action, key, &before);
  }
  turn->after = key;
  num_turns++;
  use(turn);
  turn->num_edges = num_edges;
}

static void add(Turn *turn, int action) { turn->cause[turn->length++] = (unsigned short)action; }

/* Ways on by actions of one role, each request once, in rising order. */
static void more(Turn *turn, K key, u64 before, int role, int instance, int request, u64 allowed) {
  Way out[ACTIONS];
  Open open;
  look(key, &open);
  int number = ways(key, 0, open.s, open.c, open.w, out);
  for (int i = 0; i < number; i++) {
    int a = out[i].action;
    if (ROLE[a] != role || (role == PLAN && INSTANCE[a] != instance) || ORDER[a] <= request || !(allowed >> NEEDS[a] & 1)) continue;
    u64 here = before;
    int num_edges = turn->num_edges;
    add(turn, a);
    pass(turn, a, out[i].key, &here);
    finish(turn, out[i].key, here);
    if (turn->length < CAUSES) more(turn, out[i].key, here, role, instance, ORDER[a], allowed);
    turn->length--;
    turn->num_edges = num_edges;
  }
}

static void turns(K key, void (*visit)(Turn *)) {
  Way out[ACTIONS];
  Open open;
  Turn turn = {.length = 0, .num_edges = 0};
  use = visit;
  look(key, &open);
  u64 before = abstraction(open.s), holds = held(open.w);
  int number = ways(key, 0, open.s, open.c, open.w, out);
  for (int i = 0; i < number; i++) {
    int a = out[i].action;
    if (!(holds >> NEEDS[a] & 1) || find(&avoided, before << 32 | CAUSE[a], 0, 0)) continue;
    if (ROLE[a] != SINGLE && ROLE[a] != LAND && !(ROLE[a] == PLAN && is_empty(open.s, INSTANCE[a]))) continue;
    u64 here = before;
    turn.length = 0; turn.num_edges = 0;
    add(&turn, a);
    pass(&turn, a, out[i].key, &here);
    finish(&turn, out[i].key, here);
    if (ROLE[a] == LAND) more(&turn, out[i].key, here, END, 0, -1, holds);
    if (ROLE[a] == PLAN) more(&turn, out[i].key, here, PLAN, INSTANCE[a], ORDER[a], holds);
  }
}

/* ---- the whole world */

static u32 place(K key, u32 from, const Turn *turn) {
  if ((n + 1) * 10 > slots * 7) {
    free(table);
    slots = slots ? slots * 2 : 1 << 16;
    table = calloc(slots, 4);
    for (u64 i = 0; i < n; i++) {
      u64 h = hash_key(states[i].key) & (slots - 1);
      while (table[h]) h = (h + 1) & (slots - 1);
      table[h] = (u32)i + 1;
    }
  }
  u64 h = hash_key(key) & (slots - 1);
  for (; table[h]; h = (h + 1) & (slots - 1))
    if (states[table[h] - 1].key == key) return table[h] - 1;
  if (n == room) states = realloc(states, (room = room ? room * 2 : 1 << 16) * sizeof *states);
  states[n] = (State){.key = key, .from = from, .length = turn ? turn->length : 0};
  if (turn) memcpy(states[n].cause, turn->cause, sizeof turn->cause);
  table[h] = (u32)n + 1;
  return (u32)n++;
}

static u32 present;

static void explore_turn(Turn *turn) {
  for (int i = 0; i < turn->num_edges; i++) {
    int is_new;
    u64 known = edges.count;
    u32 *found = find(&edges, turn->edges[i], 1, &is_new);
    if (is_new) {
      *found = (u32)known;
      if ((known & (known - 1)) == 0) {
        edge_list = realloc(edge_list, (known ? known * 2 : 1) * 8);
        edge_state = realloc(edge_state, (known ? known * 2 : 1) * 4);
      }
      edge_list[known] = turn->edges[i];
      edge_state[known] = present;
    }
  }
  place(turn->after, present, turn);
}

/* ---- tours */

static u64 wanted; /* the edge to be taken next, or 0: any that is new */
static int found_it;
static Turn chosen;

static int is_new_edge(u64 key) { return !find(&taken, key, 0, 0); }
static int spares; /* whether turns that end the engine are left for later */

static int is_end(u64 abstract) {
  u64 rest = abstract - 1;
  for (int i = 0; i < REQUESTS; i++) rest /= request_size;
  for (int i = PLAIN - 1; i; i--) rest /= plain_size[i];
  return ENDED >> rest & 1;
}

static void choose_turn(Turn *turn) {
  if (found_it) return;
  if (spares && !wanted)
    for (int i = 0; i < turn->num_edges; i++)
      if (is_end(turn->edges[i] & 0xffffffffULL)) return;
  for (int i = 0; i < turn->num_edges; i++)
    if (wanted ? turn->edges[i] == wanted : is_new_edge(turn->edges[i])) { chosen = *turn; found_it = 1; return; }
}

static int is_same(const Turn *turn, const unsigned short *cause, int length) {
  return turn->length == length && !memcmp(turn->cause, cause, (size_t)length * sizeof *cause);
}
static const State *sought;
static void follow_turn(Turn *turn) {
  if (!found_it && is_same(turn, sought->cause, sought->length)) { chosen = *turn; found_it = 1; }
}

static void tell(const Turn *turn) {
  int is_new;
  for (int i = 0; i < turn->num_edges; i++) find(&taken, turn->edges[i], 1, &is_new);
  printf("C");
  for (int i = 0; i < turn->length; i++) printf(" %d", turn->cause[i]);
  printf("\n");
}

static u32 *way_back(u32 to, int *length) {
  static u32 path[1 << 16];
  *length = 0;
  for (u32 i = to; i; i = states[i].from) path[(*length)++] = i;
  return path;
}

/* The nearest state with a turn that is new: its number, or -1. Ways to it are left in `near_from`, `near_turn`. */
typedef struct { u32 state; int from; Turn turn; } Near;
static Near *near;
static int num_near;
static u32 *seen_at, stamp;
static int near_now;

static void spread(Turn *turn) {
  u32 after = place(turn->after, 0, 0);
  if (seen_at[after] == stamp || num_near >= NEAR) return;
  seen_at[after] = stamp;
  near[num_near++] = (Near){.state = after, .from = near_now, .turn = *turn};
}

static int nearest(u32 from) {
  stamp++;
  num_near = 0;
  near[num_near++] = (Near){.state = from, .from = -1};
  seen_at[from] = stamp;
  for (int i = 0; i < num_near; i++) {
    found_it = 0; wanted = 0;
    turns(states[near[i].state].key, choose_turn);
    if (found_it) return i;
    near_now = i;
    turns(states[near[i].state].key, spread);
  }
  return -1;
}

static u32 go(u32 at, int target, int *length) {
  int path[NEAR], count = 0;
  Turn last = chosen;
  for (int i = target; near[i].from >= 0; i = near[i].from) path[count++] = i;
  while (count) { Turn turn = near[path[--count]].turn; tell(&turn); at = near[path[count]].state; (*length)++; }
  tell(&last);
  (*length)++;
  return place(last.after, 0, 0);
}

static void tour(u64 edge) {
  int length, turns_made = 0;
  u32 at = 0, *path = way_back(edge_state[edge], &length);
  printf("T\n");
  while (length) {
    sought = &states[path[--length]];
    found_it = 0;
    turns(states[at].key, follow_turn);
    tell(&chosen);
    at = path[length];
    turns_made++;
  }
  found_it = 0; wanted = edge_list[edge];
  turns(states[at].key, choose_turn);
  tell(&chosen);
  at = place(chosen.after, 0, 0);
  while (turns_made < LONG) {
    spares = 1;
    int target = nearest(at);
    if (target < 0) { spares = 0; target = nearest(at); }
    if (target < 0) return;
    at = go(at, target, &turns_made);
  }
}

int main(void) {
  char what;
  u64 a, k, b;
  int is_new;
  while (scanf(" %c", &what) == 1) {
    if (what == 'A' && scanf("%llu %llu", &a, &k) == 2) find(&avoided, a << 32 | k, 1, &is_new);
    if (what == 'E' && scanf("%llu %llu %llu", &a, &k, &b) == 3) find(&taken, a << 40 | k << 32 | b, 1, &is_new);
  }
  place(INITIAL, 0, 0);
  for (present = 0; present < n; present++) turns(states[present].key, explore_turn);
  printf("%llu %llu %llu\n", n, edges.count, num_turns);
  for (u64 i = 0; i < edges.count; i++)
    printf("E %llu %llu %llu\n", edge_list[i] >> 40, edge_list[i] >> 32 & 255, edge_list[i] & 0xffffffffULL);
  near = malloc(NEAR * sizeof *near);
  seen_at = calloc(n, 4);
  for (int ends = 0; ends < 2; ends++) /* what ends the engine comes last: most of it is at the end of some tour by then */
    for (u64 i = 0; i < edges.count; i++)
      if (is_new_edge(edge_list[i]) && (ends || !is_end(edge_list[i] & 0xffffffffULL))) tour(i);
  return 0;
}

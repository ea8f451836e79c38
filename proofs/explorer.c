/* Safety: every state and every move is held against its promises. Printed: counts, how often each action was taken, and for each
   promise that is broken a shortest story. A state that stands for several is counted once, and as often as that. */
#include "states.h"

static u64 told[STATE_WORDS], told_moves[MOVE_WORDS], dead, all_states, all_edges, all_dead, fired[ACTIONS];

static void edge(u32 from, int action, u32 to) { (void)from; (void)action; (void)to; }

/* Tells of what is broken for the first time; `action` is the move that breaks it, or -1. */
static void report(const u64 *found, u64 *before, int words, u64 state, int action) {
  for (int word = 0; word < words; word++)
    for (u64 b = found[word] & ~before[word]; b; b &= b - 1) {
      before[word] |= b & -b;
      printf("%s %d", action < 0 ? "always" : "move", word * 64 + __builtin_ctzll(b));
      story(state);
      if (action >= 0) printf(" %d", action);
      printf("\n");
    }
}

static void visit(u64 state, const u64 *w, const Way *out, int number) {
  u64 weight = orbit(states[state]), found[STATE_WORDS] = {0};
  all_states += weight;
  all_edges += weight * (u64)number;
  if (!number) { dead++; all_dead += weight; }
  if (broken(w, found)) report(found, told, STATE_WORDS, state, -1);
  for (int i = 0; i < number; i++) {
    u64 on_move[MOVE_WORDS] = {0};
    fired[out[i].action] += weight;
    if (broken_by(out[i].action, w, on_move)) report(on_move, told_moves, MOVE_WORDS, state, out[i].action);
  }
}

int main(int count, char **arguments) {
  search(count, arguments);
  printf("count %llu %llu %llu %llu\n", n, edges, depth, dead);
  printf("all %llu %llu %llu\n", all_states, all_edges, all_dead);
  printf("fired");
  for (int a = 0; a < ACTIONS; a++) printf(" %llu", fired[a]);
  printf("\npeak %llu\nseconds %.2f\n", peak(), seconds(CLOCK_PROCESS_CPUTIME_ID));
  return 0;
}

/*
 * The drain of a slot from another CPU (src/raw/rseq.rs: the gate and the barrier), beside restartable sequences and migration.
 *
 * One frame. Two threads take one out of the slot of the CPU that they are on and put it back, for ever. One stays on CPU 0, the other moves to CPU 1 and back, once.
 * Somebody who waits for a frame sweeps slot 0 from elsewhere: says that frames are wanted, shuts the gate, calls the barrier, takes
 * everything out, and opens the gate again. What the kernel does to sequences is as in sequences.pml, where handlers come too.
 *
 * The barrier ends the sequence of whoever runs on CPU 0 at that moment; those that do not run were ended when they stopped. Every access is a
 * step; x86 performs loads in order and stores in order.
 *
 * Safety: no frame has two owners, none is lost; what a push keeps after the sweep was not wanted.
 * Liveness: a gate that was shut is opened again, whatever the threads do meanwhile (INV-3).
 *
 * Weakened variants, each of which must fail:
 *   -DCPU_OUTSIDE           the number of the CPU is read before the sequence is armed           safety
 *   -DWORD_BEFORE_GATE      the word is read before the gate                                     safety
 *   -DNO_BARRIER            the drainer does not end the sequences                               safety
 *   -DBARRIER_FIRST         the barrier comes before the gate is shut                            safety
 *   -DOPEN_FIRST            the gate is opened before the word is stored                         safety
 *   -DWANTED_OUTSIDE        a push asks before it is armed whether the frame is wanted           safety
 *   -DSWEEP_WAITS           the drainer waits until CPU 0 is in the middle of nothing            liveness
 */

#define NOBODY 7
#define DRAINER 3
#define ATTEMPTS 2
#define OTHER(t) (1 - t)

/* The slots: lengths, gates, and an entry each. */
byte word[2];
bool shut[2];
byte entry[2];
bool stock = false;
/* Who has the frame in hand: a thread, the drainer, or nobody. */
byte owner = NOBODY;
bool wanted = false;
/* The sweep is over, and what was wanted still is. */
bool swept = false;

byte cpu[2];
bool armed[2];
bool inside[2];
bool aborted[2];
bool busy[2];
bool draining = false;
/* Who runs on a CPU, and whether it has taken a step since it was last interrupted. */
byte running[2];
bool stepped[2];

#define RUNS(t) (running[cpu[t]] == t)
#define STEPS stepped[cpu[t]] = true

inline interrupt(who) {
    if :: armed[who] && inside[who] -> aborted[who] = true; inside[who] = false :: else fi;
    armed[who] = false
}

/* One step of thread t, or the abort label. */
#define STEP(x) \
    if \
    :: d_step { RUNS(t) && !aborted[t] -> x; STEPS } \
    :: d_step { RUNS(t) && aborted[t] -> aborted[t] = false; n = 0; f = 0; s = 0; w = false; gate = false; STEPS }; goto again \
    fi

proctype Thread(byte t) {
    byte s, n, f, attempts;
    bool mine, w, gate;
endidle:
    do
    :: d_step { RUNS(t) -> busy[t] = true; attempts = 0; STEPS };
again:
        if
        :: attempts == ATTEMPTS -> goto below
        :: attempts < ATTEMPTS -> attempts++
        fi;
#ifdef CPU_OUTSIDE
        STEP(s = cpu[t]);
#endif
#ifdef WANTED_OUTSIDE
        if :: mine -> STEP(w = wanted) :: else fi;
#endif
        STEP(armed[t] = true; inside[t] = true);
#ifndef CPU_OUTSIDE
        STEP(s = cpu[t]);
#endif
#ifndef WANTED_OUTSIDE
        if :: mine -> STEP(w = wanted) :: else fi;
#endif
#ifdef WORD_BEFORE_GATE
        STEP(n = word[s]);
        STEP(gate = shut[s]);
#else
        STEP(gate = shut[s]);
        STEP(n = word[s]);
#endif
        if
        :: gate || w || (!mine -> n == 0 : n == 1) ->
            STEP(inside[t] = false; n = 0; s = 0; w = false; gate = false);
            goto below
        :: else
        fi;
        if
        :: !mine -> STEP(f = entry[s])
        :: else -> STEP(entry[s] = 1)
        fi;
        if
        :: !mine ->
            STEP(word[s] = n - 1; inside[t] = false; assert(f && owner == NOBODY); owner = t; mine = true; n = 0; f = 0; s = 0)
        :: else ->
            STEP(word[s] = n + 1; inside[t] = false; assert(!(swept && s == 0)); owner = NOBODY; mine = false; n = 0; s = 0)
        fi;
        goto done;
below:  skip;
        d_step {
            RUNS(t) ->
            STEPS;
            if
            :: mine -> assert(!stock); stock = true; owner = NOBODY; mine = false
            :: !mine && stock -> stock = false; assert(owner == NOBODY); owner = t; mine = true
            :: else
            fi
        };
done:   skip;
        d_step { RUNS(t) -> busy[t] = false; attempts = 0; STEPS }
    od
}

/* The next time slice on CPU k goes to the other thread, if that is there. */
proctype Preempter(byte k) {
endidle:
    do
    :: d_step {
            stepped[k] && running[k] != NOBODY ->
            stepped[k] = false;
            interrupt(running[k]);
            if :: cpu[OTHER(running[k])] == k -> running[k] = OTHER(running[k]) :: else fi
        }
    od
}

/* Thread 1 goes to the other CPU, and back. */
proctype Mover() {
    byte left = 2;
endidle:
    do
    :: d_step {
            left > 0 && RUNS(1) && stepped[cpu[1]] ->
            left--;
            interrupt(1);
            stepped[cpu[1]] = false;
            running[cpu[1]] = (cpu[0] == cpu[1] -> 0 : NOBODY);
            cpu[1] = OTHER(cpu[1]);
            /* Thread 0 may run there; then thread 1 comes after it. */
            if :: running[cpu[1]] == NOBODY -> running[cpu[1]] = 1; stepped[cpu[1]] = false :: else fi
        }
    od
}

inline call_barrier() {
    d_step { if :: running[0] != NOBODY -> interrupt(running[0]) :: else fi }
}

proctype Drainer() {
    bool n;
    d_step { wanted = true; draining = true };
#ifdef BARRIER_FIRST
    call_barrier();
#endif
    shut[0] = true;
#if !defined(NO_BARRIER) && !defined(BARRIER_FIRST)
    call_barrier();
#endif
#ifdef SWEEP_WAITS
    !busy[0] && !busy[1];
#endif
    n = word[0];
#ifdef OPEN_FIRST
    shut[0] = false;
#endif
    if
    :: n -> d_step { assert(entry[0] && owner == NOBODY); owner = DRAINER }
    :: else
    fi;
    word[0] = 0;
    d_step { shut[0] = false; swept = true };
    d_step {
        if :: n -> assert(!stock); stock = true; owner = NOBODY :: else fi;
        n = false;
        wanted = false;
        swept = false;
        draining = false
    }
}

/* Between operations every frame is somewhere. */
proctype Auditor() {
endwatch:
    d_step {
        (!busy[0] && !busy[1] && !draining && word[0] + word[1] + stock + (owner != NOBODY -> 1 : 0) != 1) -> assert(false)
    }
}

init {
    d_step { word[0] = 1; entry[0] = 1; running[0] = 0; running[1] = NOBODY };
    atomic { run Thread(0); run Thread(1); run Preempter(0); run Preempter(1); run Mover(); run Drainer(); run Auditor() }
}

ltl opens { [] (shut[0] -> <> !shut[0]) }

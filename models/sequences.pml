/*
 * The restartable sequences of one CPU (src/raw/rseq.rs, src/raw/rseq/section.rs), with what the kernel does to them.
 *
 * Two threads take a frame out of the slot of their CPU and put it back, for ever; a signal handler on one of them does the same. A scheduler preempts
 * whoever has taken a step; the handler comes when the thread below it has. The stock below the caches is one step.
 *
 * The kernel's rule: whoever is interrupted with its area naming a sequence goes on at the abort label if it was inside of that, and
 * the area names none afterwards, also if it was outside. Threads share the code of the sequences, and a handler its thread's area.
 *
 * Every access is a step; x86 performs loads in order and stores in order, so the steps are those of the assembly. The other CPU, the gate and
 * the barrier are those of drain.pml.
 *
 * Safety: no frame has two owners, and none is lost.
 * Liveness: every operation of the thread that everything interrupts ends.
 *
 * Weakened variants, each of which must fail:
 *   -DNEVER_ARMED           the area never names the sequence                                safety
 *   -DSTART_LATE            the sequence starts behind the reading of the word                safety
 *   -DCOMMIT_OUTSIDE        the commit is behind the end of the sequence                      safety
 *   -DSIGNALS_UNNOTICED     the kernel aborts for preemptions only                            safety
 *   -DPREEMPTIONS_UNNOTICED the kernel aborts for signals only                                safety
 *   -DATTEMPTS_UNBOUNDED    an aborted sequence is tried again without end                    liveness
 */

#define FRAMES 2
#define NOBODY 7
/* Contexts: two threads, and the handler on thread 0. */
#define HANDLER 2
#define THREAD(c) (c == HANDLER -> 0 : c)
#define ATTEMPTS 2

/* The slot: the length of its magazine, and the entries. */
byte word = FRAMES;
byte entry[FRAMES];
/* The stock below: a bit a frame. */
byte stock = 0;
/* Who has a frame in hand. */
byte owner[FRAMES];

/* Threads: whether their area names the sequence; whether the handler is on top of thread 0; which of them runs. */
bool armed[2];
bool handling = false;
byte running = 0;
/* Whether whoever runs has taken a step since it was last interrupted, so that interrupts alone do not stop the world. */
bool stepped = false;
/* Contexts: whether they are inside the sequence; whether they go on at the abort label; whether they are in the middle of an operation. */
bool inside[3];
bool aborted[3];
bool busy[3];

#define RUNS(c) (running == THREAD(c) && (c == HANDLER -> handling : !(c == 0 && handling)))
#define TOP (running == 0 && handling -> HANDLER : running)

/* What the kernel does to whom an interrupt finds. */
inline interrupt(noticed) {
    if
    :: noticed && armed[running] && inside[TOP] -> aborted[TOP] = true; inside[TOP] = false
    :: else
    fi;
    if :: noticed -> armed[running] = false :: else fi
}

/* One step of context c, or the abort label. */
#define STEP(x) \
    if \
    :: d_step { RUNS(c) && !aborted[c] -> x; stepped = true } \
    :: d_step { RUNS(c) && aborted[c] -> aborted[c] = false; n = 0; f = 0; stepped = true }; goto again \
    fi

proctype Context(byte c) {
    byte n, f, attempts;
    byte mine = NOBODY;
endidle:
    do
    :: d_step { RUNS(c) -> busy[c] = true; attempts = 0; stepped = true };
again:
        if
        :: attempts == ATTEMPTS -> goto below
#ifdef ATTEMPTS_UNBOUNDED
        :: attempts < ATTEMPTS
#else
        :: attempts < ATTEMPTS -> attempts++
#endif
        fi;
        /* Arm it. What comes next is inside. */
#if defined(NEVER_ARMED)
        STEP(inside[c] = true);
#elif defined(START_LATE)
        STEP(armed[THREAD(c)] = true);
#else
        STEP(armed[THREAD(c)] = true; inside[c] = true);
#endif
        STEP(n = word);
#ifdef START_LATE
        STEP(inside[c] = true);
#endif
        if
        :: (mine == NOBODY -> n == 0 : n == FRAMES) -> STEP(inside[c] = false; n = 0); goto below
        :: else
        fi;
        if
        :: mine == NOBODY -> STEP(f = entry[n - 1])
        :: else -> STEP(entry[n] = mine)
        fi;
#ifdef COMMIT_OUTSIDE
        STEP(inside[c] = false);
#endif
        /* The commit. What the caller does with the frame comes later, but who has it is decided. */
        if
        :: mine == NOBODY -> STEP(word = n - 1; inside[c] = false; assert(owner[f] == NOBODY); owner[f] = c; mine = f; n = 0; f = 0)
        :: else -> STEP(word = n + 1; inside[c] = false; owner[mine] = NOBODY; mine = NOBODY; n = 0)
        fi;
        goto done;
below:  skip;
        d_step {
            RUNS(c) ->
            stepped = true;
            if
            :: mine != NOBODY ->
                assert(!(stock & (1 << mine)));
                stock = stock | (1 << mine);
                owner[mine] = NOBODY;
                mine = NOBODY
            :: mine == NOBODY && stock != 0 ->
                f = (stock & 1 -> 0 : 1);
                stock = stock & ~(1 << f);
                assert(owner[f] == NOBODY);
                owner[f] = c;
                mine = f;
                f = 0
            :: else
            fi;
            attempts = 0
        };
done:   skip;
        d_step {
            RUNS(c) ->
            busy[c] = false;
            attempts = 0;
            /* The interrupted code takes a step before the next signal. */
            if :: c == HANDLER -> handling = false; stepped = false :: else -> stepped = true fi
        }
    od
}

/* The next time slice goes to the other thread. */
proctype Preempter() {
endidle:
    do
    :: d_step {
            stepped ->
            stepped = false;
#ifdef PREEMPTIONS_UNNOTICED
            interrupt(false);
#else
            interrupt(true);
#endif
            running = 1 - running
        }
    od
}

/* A signal for thread 0, delivered while it runs. */
proctype Signaller() {
endidle:
    do
    :: d_step {
            stepped && running == 0 && !handling ->
            stepped = false;
#ifdef SIGNALS_UNNOTICED
            interrupt(false);
#else
            interrupt(true);
#endif
            handling = true
        }
    od
}

/* Between operations every frame is somewhere. */
proctype Auditor() {
endwatch:
    d_step {
        (!busy[0] && !busy[1] && !busy[2]
            && word + (stock & 1) + (stock >> 1) + (owner[0] != NOBODY -> 1 : 0) + (owner[1] != NOBODY -> 1 : 0) != FRAMES) -> assert(false)
    }
}

init {
    d_step { entry[0] = 0; entry[1] = 1; owner[0] = NOBODY; owner[1] = NOBODY };
    atomic { run Context(0); run Context(1); run Context(HANDLER); run Preempter(); run Signaller(); run Auditor() }
}

ltl ends { [] (busy[0] -> <> !busy[0]) }

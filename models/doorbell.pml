/*
 * The level word, the bell and the sleeper (src/raw/level.rs, src/raw/doorbell.rs), in the words of their event tables.
 *
 * Two callers take frames, from any context, as often as they like; the worker sleeps, answers and refills. There are no timeouts: a ring that is
 * lost leaves the worker asleep. One early end of the sleep (a signal handler ran in the sleeping thread) may come at any time.
 *
 * Safety: between two answers one caller rings at most (INV-6), and the sleeper sleeps only while its ringer is still to come.
 * Liveness: whenever the level is below the low watermark, it is refilled.
 *
 * Weakened variants, each of which must fail:
 *   -DLEVEL_IN_TWO_STEPS    the level is read and RUNG set by another access             safety
 *   -DANSWER_IN_TWO_STEPS   the worker reads the level, then clears RUNG                  liveness
 *   -DSLEEP_UNCOMPARED      the kernel lets it sleep without comparing the word           safety
 *   -DRING_ASLEEP_ONLY      a ring before LieDown leaves no mark                          liveness
 *   -DLIE_DOWN_BY_STORE     LieDown overwrites a ring                                     liveness
 */

#define CALLERS 2
#define LOW     2
#define HIGH    3

mtype = { QUIET, RUNG, ASLEEP };

byte frames = HIGH;
bool level_rung = false;
mtype bell = QUIET;
bool in_kernel = false;
bool early = true;
/* Callers that were told to ring since the last answer. */
byte rings = 0;
/* Callers between the exchange that found ASLEEP and the wake. */
byte waking = 0;

/* Ring, if the level said so. */
inline ring_bell(must, before) {
    if
    :: must ->
#ifdef RING_ASLEEP_ONLY
        d_step { before = bell; if :: before == ASLEEP -> bell = RUNG; waking++ :: else fi };
#else
        d_step { before = bell; bell = RUNG; if :: before == ASLEEP -> waking++ :: else fi };
#endif
        if
        :: before == ASLEEP -> d_step { in_kernel = false; waking-- }
        :: else
        fi
    :: else
    fi
}

/* `removed`, `missed`: whether this one must ring. */
inline set_rung(wish, must) {
    if
    :: wish && !level_rung -> level_rung = true; must = true; rings++; assert(rings <= 1)
    :: else -> must = false
    fi
}

active [CALLERS] proctype Caller() {
    bool must, wish;
    mtype before;
    do
    ::
#ifdef LEVEL_IN_TWO_STEPS
        bool was_rung;
        d_step { if :: frames > 0 -> frames-- :: else fi; wish = frames < LOW; was_rung = level_rung };
        d_step {
            if
            :: wish && !was_rung -> level_rung = true; must = true; rings++; assert(rings <= 1)
            :: else -> must = false
            fi
        };
#else
        d_step {
            if :: frames > 0 -> frames-- :: else fi;
            wish = frames < LOW;
            set_rung(wish, must)
        };
#endif
        ring_bell(must, before)
    /* Nobody comes any more who could ring again. */
    :: break
    od
}

active proctype Worker() {
    byte seen;
    bool lain_down;
    do
    ::
        /* answered */
#ifdef ANSWER_IN_TWO_STEPS
        seen = frames;
        d_step { level_rung = false; rings = 0 };
#else
        d_step { seen = frames; level_rung = false; rings = 0 };
#endif
        if
        :: seen < LOW -> d_step { frames = frames + HIGH - seen; assert(frames <= HIGH) }
        :: else
        fi;
        /* LieDown */
#ifdef LIE_DOWN_BY_STORE
        d_step { lain_down = true; bell = ASLEEP };
#else
        d_step { lain_down = (bell == QUIET); if :: lain_down -> bell = ASLEEP :: else fi };
#endif
        if
        :: lain_down ->
            /* futex: the kernel compares and sleeps in one step. */
#ifdef SLEEP_UNCOMPARED
            in_kernel = true;
#else
            d_step { in_kernel = (bell == ASLEEP) };
#endif
endasleep:
            if
            :: !in_kernel
            :: d_step { in_kernel && early -> in_kernel = false; early = false }
            fi
        :: else
        fi;
        /* GetUp */
        d_step { bell = QUIET }
    od
}

/* Safety of every state: whoever sleeps has not been rung, or its ringer is about to wake it. */
active proctype Watcher() {
endwatch: d_step { in_kernel && bell != ASLEEP && waking == 0 -> assert(false) }
}

ltl refilled { [] (frames < LOW -> <> (frames >= LOW)) }

/*
 * Callers that wait for frames (src/raw/wanted.rs, src/raw/queue.rs, src/pool/waiters.rs), event by event as the table in the first of
 * these files names them.
 *
 * Two frames. One caller waits for both at once, and may give up with one in hand; one waits for a single one. Somebody frees
 * the two by way of a cache that is in use at times, and who got frames frees them as well. A worker answers the bell. The two lists
 * of the queue belong to the holder of a lock, so what is done to them there is one step.
 *
 * A fence is modelled by the order that it forces: without it, a processor may read the word before what it stored is seen.
 *
 * Safety: no frame is lost or doubled, and the word counts at least what is lacked and on nobody's way.
 * Liveness: whoever waits is served or has given up (INV-7).
 *
 * Weakened variants, each of which must fail:
 *   -DWITHDRAW_KEEPS_FRAMES   who gives up takes along what it had in hand           safety
 *   -DSETTLE_SUBTRACTS        the word is lowered by what was handed over            safety
 *   -DWORD_BEFORE_CLAIM       Keep reads the word before it owns the slot            liveness
 *   -DPUT_DOWN_UNFENCED       PutDown reads the word before its frame is seen        liveness
 *   -DSWEEP_BEFORE_ENROL      who waits looks first and then says so                 liveness
 *   -DANSWER_AFTER_SWEEP      a call during a sweep is taken for answered            liveness
 *   -DLEFT_OUT_FORGOTTEN      a slot that was in use is not looked at again          liveness
 */

#define FRAMES 2
#define NOBODY 2

/* The word's upper half, the flag, the bell. */
byte waited = 0;
bool called = false;
bool bell = false;

/* Where frames are. */
byte chain = 0;
byte depot = 0;
byte slot = 0;
bool slot_taken = false;

/* The queue, for the holder of the lock. */
bool locked = false;
byte first = NOBODY;
byte second = NOBODY;
byte lacking = 0;
byte lacks[2];
byte hand[2];
bool over[2];

/* Tickets taken whose frames have not been handed over. */
byte on_the_way = 0;
/* Processes of the model that have ended, and whether the worker is at work. */
byte ended = 0;
bool working = false;
/* Frames that somebody owns, or has in hand for a moment. */
byte out = FRAMES;

#define WANTED(w) (w == 0 -> 2 : 1)
#define IS_ENOUGH (waited + on_the_way >= lacking)

inline call() {
    d_step { if :: !called -> called = true; bell = true :: else fi }
}

/* PutDown into the depot. */
inline put_down(seen) {
#ifdef PUT_DOWN_UNFENCED
    seen = (waited > 0);
    d_step { depot++; out-- };
#else
    d_step { depot++; out-- };
    seen = (waited > 0);
#endif
    if :: seen -> seen = false; call() :: else fi
}

/* A free of one frame: Keep, or Divert, or PutDown. */
inline give(seen, kept) {
    kept = false;
#ifdef WORD_BEFORE_CLAIM
    seen = (waited > 0);
#endif
    if
    :: d_step { !slot_taken -> slot_taken = true };
#ifndef WORD_BEFORE_CLAIM
        seen = (waited > 0);
#endif
        d_step { if :: !seen -> slot++; out--; kept = true :: else fi; slot_taken = false }
    :: slot_taken
    fi;
    if
    :: kept
    :: else ->
        d_step { seen = (waited > 0); if :: seen -> waited--; on_the_way++ :: else fi };
        if
        :: seen -> d_step { chain++; out--; seen = false }; call()
        :: else -> put_down(seen)
        fi
    fi
}

/* Hands one frame, which the caller has taken out, to the first; or to the surplus. */
inline hand_one() {
    if
    :: first == NOBODY -> surplus++
    :: else ->
        hand[first]++; lacks[first]--; lacking--; handed++;
        if :: lacks[first] == 0 -> over[first] = true; first = second; second = NOBODY :: else fi
    fi
}

/* Says what is still wanted. The surplus goes back behind it, one by one; then the lock is released. */
inline settle(seen, kept) {
    d_step {
#ifdef SETTLE_SUBTRACTS
        waited = (waited > handed -> waited - handed : 0);
#else
        if :: waited > lacking -> waited = lacking :: else fi;
#endif
        handed = 0;
        assert(IS_ENOUGH)
    };
    do
    :: surplus > 0 -> d_step { surplus--; out++ }; give(seen, kept)
    :: surplus == 0 -> locked = false; break
    od;
    skip
}

/* The rest of a Sweep, by the holder of the lock, who has it no longer then. */
inline sweep(seen, kept) {
    d_step {
        do
        :: chain > 0 -> chain--; on_the_way--; hand_one()
        :: else -> break
        od
    };
    d_step {
        do
        :: depot > 0 && lacking > 0 -> depot--; hand_one()
        :: else -> break
        od
    };
    if
    :: lacking > 0 ->
        if
        :: d_step { !slot_taken -> slot_taken = true };
            d_step {
                do
                :: slot > 0 && lacking > 0 -> slot--; hand_one()
                :: else -> break
                od;
                slot_taken = false
            }
        :: slot_taken -> left_out = true
        fi
    :: else
    fi;
#ifdef ANSWER_AFTER_SWEEP
    called = false;
#endif
    settle(seen, kept)
}

inline serve(seen, kept) {
#ifdef ANSWER_AFTER_SWEEP
    d_step { !locked -> locked = true; left_out = false };
#else
    d_step { !locked -> locked = true; left_out = false; called = false };
#endif
    sweep(seen, kept)
}

inline enrol(w) {
    d_step {
        !locked -> locked = true;
        lacks[w] = WANTED(w);
        lacking = lacking + WANTED(w);
        if :: first == NOBODY -> first = w :: else -> second = w fi
    };
    d_step { waited = waited + WANTED(w); locked = false }
}

proctype Waiter(byte w) {
    byte surplus = 0, handed = 0;
    bool seen, kept, left_out, may_leave;
#ifdef SWEEP_BEFORE_ENROL
    serve(seen, kept);
    enrol(w);
#else
    enrol(w);
    serve(seen, kept);
#endif
    if :: left_out -> call() :: else fi;
    if :: w == 0 -> may_leave = true :: may_leave = false fi;
    if
    :: over[w]
    :: may_leave ->
        /* It gives up, unless it is done when it has the lock. */
        if
        :: over[w]
        :: d_step { !locked && !over[w] -> locked = true };
            d_step {
                if :: first == w -> first = second :: else fi;
                second = NOBODY;
                lacking = lacking - lacks[w];
                lacks[w] = 0;
                over[w] = true;
#ifndef WITHDRAW_KEEPS_FRAMES
                do
                :: hand[w] > 0 -> hand[w]--; hand_one()
                :: else -> break
                od
#endif
            };
            settle(seen, kept);
#ifdef WITHDRAW_KEEPS_FRAMES
            hand[w] = 0;
#endif
        fi
    fi;
    do
    :: hand[w] > 0 -> d_step { hand[w]--; out++ }; give(seen, kept)
    :: else -> break
    od;
    ended++
}

proctype Freer() {
    bool seen, kept;
    give(seen, kept);
    give(seen, kept);
    ended++
}

proctype Worker() {
    byte surplus = 0, handed = 0;
    bool seen, kept, left_out;
endidle:
    do
    :: d_step { bell -> bell = false; working = true };
        serve(seen, kept);
        d_step {
#ifndef LEFT_OUT_FORGOTTEN
            if :: left_out -> bell = true :: else fi;
#endif
            working = false
        }
    od
}

/* At rest: every frame lies somewhere, once. */
proctype Auditor() {
    (ended == 3 && !bell && !working);
    assert(out == 0 && chain + depot + slot == FRAMES && waited == 0 && lacking == 0 && on_the_way == 0)
}

init {
    atomic { run Worker(); run Auditor(); run Waiter(0); run Waiter(1); run Freer() }
}

ltl served { <> (over[0] && over[1]) }

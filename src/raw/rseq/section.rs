//! Owns the restartable sequences themselves, for x86-64: five short pieces of assembly with one frame around them.
//!
//! Each piece ends with the one store that commits it. Wherever it is interrupted before that store, by a signal, a preemption,
//! a migration or a `membarrier` from another CPU, the kernel continues it at its abort label, from which it reports that nothing
//! has happened. After that store it is complete. Why that is enough is argued in `raw/rseq.rs`; `tests/breakpoints.rs` does
//! it at every instruction.
//!
//! The kernel's side: `include/uapi/linux/rseq.h`, `kernel/rseq.c`. The C library registers each thread's area (glibc manual,
//! "Restartable Sequences"); the only field of it that is ever written here is `rseq_cs`.

use super::{Setback, kernel::Area};
use crate::raw::{
    arena::Carved,
    magazine::{FrameNumber, Magazines},
    slot::{Slot, Slots},
    wanted::Wanted,
};
use core::{arch::asm, mem::offset_of};
use crossbeam_utils::CachePadded;

/// What the kernel looks for in the four bytes before an abort label, as glibc registered it (`RSEQ_SIG`). With the three
/// bytes before it a `ud1`, an instruction that nothing ever executes.
const SIGNATURE: u32 = 0x5305_3053;

/// Where a thread's area has the number of the CPU on which it runs, all ones without a registration.
const CPU_ID: usize = 4;
/// Where a thread's area has the address of the sequence that it is in.
const RSEQ_CS: usize = 8;
const SLOT_BASE: usize = offset_of!(Slots, slots) + Carved::<CachePadded<Slot>>::START;
const RESTARTABLE: usize = offset_of!(Slots, restartable);
const ENTRY_BASE: usize = offset_of!(Slots, magazines) + Magazines::ENTRY_BASE;
const WORD: usize = offset_of!(Slot, word);
/// The mask of lengths; in the four bytes behind it, the size of a magazine.
const GATE_MASK: usize = offset_of!(Slot, gate);
const POPPED: usize = offset_of!(Slot, popped);
const PUSHED: usize = offset_of!(Slot, pushed);
const POPPED_APART: usize = offset_of!(Slot, popped_apart);
const PUSHED_APART: usize = offset_of!(Slot, pushed_apart);
const SLOT_BITS: u32 = size_of::<CachePadded<Slot>>().ilog2();
const _: () = assert!(size_of::<CachePadded<Slot>>() == 1 << SLOT_BITS);

/// What a sequence leaves in the place of its result if it does not commit.
const SETBACK: isize = -1;

/// What an abort label begins with in a sequence that counts: see `restartable`.
// Ordering: Relaxed would do, a statistic publishes nothing; locked since other CPUs may count there at the same time.
macro_rules! uncount {
    ($apart:literal) => {
        concat!(
            "jnc 8f\n",
            "cmp {armed}, qword ptr [{slots} + {entry_base}]\n",
            "jne 8f\n",
            "lock dec qword ptr [r8 + {",
            $apart,
            "}]"
        )
    };
}

/// The frame around a sequence.
///
/// In: `area`, the offset of the thread's area from the thread pointer; `slots`, the address of the [`Slots`].
/// The body finds the slot of this CPU in `r8`. It leaves with a jump to `8f`, before it has stored anything.
/// `commit` is its last instruction, and the only store that anybody else ever looks at. A sequence that did not commit goes on with
/// `setback`: at a label if nothing comes out of it, or at the end with a mark in the place of the result.
///
/// The slot is in the same register in every sequence, so that a load of the word is written as the store before it was. Processors
/// that mirror memory operands guess by the registers that a load gets what was last stored (A. Fog, "The microarchitecture of Intel,
/// AMD and VIA CPUs"). On a Zen 4, which guesses wrong if a take and a give have their slots in two registers, a pair takes half as
/// long this way.
///
/// A body may count; then `uncount` takes back, beside the counter, what an attempt has counted that is aborted. Behind its last
/// comparison it loads the address of the entries into `armed`, subtracts -1 from the counter, which sets the carry flag, and changes
/// neither from there to the end. So the abort label knows: before, `armed` is the address of the descriptor or the bits of a length, below
/// 4,096, where no entries lie; behind the comparison the flag is clear up to the count. The flag alone would not do, since comparisons set
/// it too.
macro_rules! restartable {
    (
        $($body:literal),+ ;
        commit $commit:literal ;
        $(uncount $uncount:expr ;)?
        setback $($setback:literal),+ ;
        $($operands:tt)+
    ) => {
        asm!(
            // Arm it.
            "lea {armed}, [rip + 5f]",
            "mov qword ptr fs:[{area} + {rseq_cs}], {armed}",
            // The sequence.
            "2:",
            "mov r8d, dword ptr fs:[{area} + {cpu_id}]",
            "cmp qword ptr [{slots} + {restartable}], r8",
            "jbe 8f",
            "shl r8, {slot_bits}",
            "add r8, qword ptr [{slots} + {slot_base}]",
            $($body,)+
            $commit,
            "3:",
            // Where both ways of those with a result meet.
            "6:",
            ".pushsection .text.unlikely.framepool_rseq, \"ax\", @progbits",
            ".byte 0x0f, 0xb9, 0x3d",
            ".long {signature}",
            "7:",
            $($uncount,)?
            "8:",
            $($setback,)+
            ".popsection",
            // What the kernel reads: version, flags, start, length up to behind the commit, abort label.
            ".pushsection __rseq_cs, \"aw\", @progbits",
            ".balign 32",
            "5:",
            ".long 0, 0",
            ".quad 2b, 3b - 2b, 7b",
            ".popsection",
            rseq_cs = const RSEQ_CS,
            cpu_id = const CPU_ID,
            restartable = const RESTARTABLE,
            slot_bits = const SLOT_BITS,
            slot_base = const SLOT_BASE,
            signature = const SIGNATURE,
            armed = out(reg) _,
            $($operands)+
            options(nostack),
        )
    };
}

impl Area {
    /// The number of the CPU that runs this code; all ones on a thread without a registration.
    #[inline(always)]
    pub(crate) fn cpu(self) -> usize {
        let cpu: u32;
        // SAFETY: the area is this thread's, mapped as long as the thread lives.
        unsafe {
            asm!(
                "mov {cpu:e}, dword ptr fs:[{area} + {cpu_id}]",
                area = in(reg) self.offset(),
                cpu = out(reg) cpu,
                cpu_id = const CPU_ID,
                options(nostack, preserves_flags, readonly),
            );
        }
        cpu as usize
    }

    /// Takes a frame out of the loaded magazine of this CPU's slot, if there is one and the gate is open.
    #[inline(always)]
    pub(crate) fn pop(self, slots: &Slots) -> Result<FrameNumber, Setback> {
        let frame: isize;
        // SAFETY: up to the commit, only the counter is stored to, which is the CPU's own; the abort label stores to the one beside it only
        // after an attempt that had counted, hence found its slot. The entry is filled, since the length in the word is not 0,
        // and ours if the commit happens (raw/rseq.rs); otherwise the number is dropped.
        unsafe {
            restartable!(
                // The gate before the word: who finds it open again finds the word that was stored before it was opened.
                "mov {armed:e}, dword ptr [r8 + {gate_mask}]",
                "mov {loaded:e}, dword ptr [r8 + {word}]",
                // No bit of the length is set, or none passes.
                "test {loaded:e}, {armed:e}",
                "jz 8f",
                "mov {armed}, qword ptr [{slots} + {entry_base}]",
                "sub qword ptr [r8 + {popped}], -1",
                "mov {frame:e}, dword ptr [{armed} + {loaded} * 4 - 4]",
                "dec {loaded:e}";
                commit "mov dword ptr [r8 + {word}], {loaded:e}";
                uncount uncount!("popped_apart");
                setback "mov {frame}, {setback}", "jmp 6b";
                area = in(reg) self.offset(),
                slots = in(reg) slots,
                loaded = out(reg) _,
                frame = out(reg) frame,
                out("r8") _,
                gate_mask = const GATE_MASK,
                word = const WORD,
                entry_base = const ENTRY_BASE,
                popped = const POPPED,
                popped_apart = const POPPED_APART,
                setback = const SETBACK,
            );
        }
        if frame < 0 { Err(Setback) } else { Ok(frame as FrameNumber) }
    }

    /// Puts a frame into the loaded magazine of this CPU's slot, if there is room, the gate is open and the frame not wanted
    /// elsewhere.
    #[inline(always)]
    pub(crate) fn push(self, slots: &Slots, frame: FrameNumber, wanted: &Wanted) -> Result<(), Setback> {
        // SAFETY: up to the commit, only the counter and a free entry are stored to; the abort label as in `pop`. The entry's position is
        // below the size, and its magazine ours as long as the sequence is not aborted (raw/rseq.rs).
        unsafe {
            restartable!(
                // In the sequence, so that whoever has shut the gate since it began is seen to want it.
                "cmp qword ptr [{wanted}], 0",
                "jne 8f",
                // The gate before the word, as in `pop`.
                "mov {gate}, qword ptr [r8 + {gate_mask}]",
                "mov {loaded:e}, dword ptr [r8 + {word}]",
                "mov {armed:e}, {gate:e}",
                "and {armed:e}, {loaded:e}",
                "shr {gate}, 32",
                // The length is below the size, or nothing passes.
                "cmp {gate:e}, {armed:e}",
                "jbe 8f",
                "mov {armed}, qword ptr [{slots} + {entry_base}]",
                "sub qword ptr [r8 + {pushed}], -1",
                "mov dword ptr [{armed} + {loaded} * 4], {frame:e}",
                "inc {loaded:e}";
                commit "mov dword ptr [r8 + {word}], {loaded:e}";
                uncount uncount!("pushed_apart");
                setback "jmp {setback}";
                area = in(reg) self.offset(),
                slots = in(reg) slots,
                frame = in(reg) frame,
                wanted = in(reg) wanted.word(),
                gate = out(reg) _,
                loaded = out(reg) _,
                out("r8") _,
                gate_mask = const GATE_MASK,
                word = const WORD,
                entry_base = const ENTRY_BASE,
                pushed = const PUSHED,
                pushed_apart = const PUSHED_APART,
                setback = label { return Err(Setback) },
            );
        }
        Ok(())
    }

    /// Takes frames out of the loaded magazine of this CPU's slot, the last first; how many, at least one.
    pub(crate) fn pop_many(self, slots: &Slots, frames: &mut [FrameNumber]) -> Result<usize, Setback> {
        if frames.is_empty() {
            return Err(Setback);
        }
        let (count, slot): (isize, *const Slot);
        // SAFETY: up to the commit, nothing is stored but what the caller gave room for: the smaller of the length and its room,
        // which is not 0. The entries are filled, and ours if the commit happens (raw/rseq.rs).
        unsafe {
            restartable!(
                // The gate before the word, as in `pop`.
                "mov {gate:e}, dword ptr [r8 + {gate_mask}]",
                "mov {loaded:e}, dword ptr [r8 + {word}]",
                "and {gate:e}, {loaded:e}",
                "jz 8f",
                "cmp {gate}, {room}",
                "cmova {gate}, {room}",
                "mov {armed}, qword ptr [{slots} + {entry_base}]",
                "lea {armed}, [{armed} + {loaded} * 4]",
                "xor {count:e}, {count:e}",
                "4:",
                "sub {armed}, 4",
                "mov {entry:e}, dword ptr [{armed}]",
                "mov dword ptr [{frames} + {count} * 4], {entry:e}",
                "inc {count}",
                "cmp {count}, {gate}",
                "jb 4b",
                "sub {loaded:e}, {count:e}";
                commit "mov dword ptr [r8 + {word}], {loaded:e}";
                setback "mov {count}, {setback}", "jmp 6b";
                area = in(reg) self.offset(),
                slots = in(reg) slots,
                frames = in(reg) frames.as_mut_ptr(),
                room = in(reg) frames.len(),
                out("r8") slot,
                gate = out(reg) _,
                loaded = out(reg) _,
                entry = out(reg) _,
                count = out(reg) count,
                gate_mask = const GATE_MASK,
                word = const WORD,
                entry_base = const ENTRY_BASE,
                setback = const SETBACK,
            );
        }
        if count < 0 {
            return Err(Setback);
        }
        // SAFETY: a sequence that committed had found its slot.
        unsafe { &*slot }.popped_apart.add(count as u64);
        Ok(count as usize)
    }

    /// Puts frames into the loaded magazine of this CPU's slot, unless they are wanted elsewhere, the first first; how many, at least
    /// one.
    pub(crate) fn push_many(
        self,
        slots: &Slots,
        frames: &[FrameNumber],
        wanted: &Wanted,
    ) -> Result<usize, Setback> {
        if frames.is_empty() {
            return Err(Setback);
        }
        let (count, slot): (isize, *const Slot);
        // SAFETY: up to the commit, only free entries are stored to, the smaller of the room in the magazine and the frames
        // there are, which is not 0. The magazine is ours as long as the sequence is not aborted (raw/rseq.rs).
        unsafe {
            restartable!(
                // As in `push`.
                "cmp qword ptr [{wanted}], 0",
                "jne 8f",
                // The gate before the word, as in `pop`.
                "mov {gate}, qword ptr [r8 + {gate_mask}]",
                "mov {loaded:e}, dword ptr [r8 + {word}]",
                "mov {entry:e}, {gate:e}",
                "and {entry:e}, {loaded:e}",
                "shr {gate}, 32",
                "sub {gate:e}, {entry:e}",
                "jbe 8f",
                "cmp {gate}, {available}",
                "cmova {gate}, {available}",
                "mov {armed}, qword ptr [{slots} + {entry_base}]",
                "lea {armed}, [{armed} + {loaded} * 4]",
                "xor {count:e}, {count:e}",
                "4:",
                "mov {entry:e}, dword ptr [{frames} + {count} * 4]",
                "mov dword ptr [{armed} + {count} * 4], {entry:e}",
                "inc {count}",
                "cmp {count}, {gate}",
                "jb 4b",
                "add {loaded:e}, {count:e}";
                commit "mov dword ptr [r8 + {word}], {loaded:e}";
                setback "mov {count}, {setback}", "jmp 6b";
                area = in(reg) self.offset(),
                slots = in(reg) slots,
                frames = in(reg) frames.as_ptr(),
                available = in(reg) frames.len(),
                wanted = in(reg) wanted.word(),
                out("r8") slot,
                gate = out(reg) _,
                loaded = out(reg) _,
                entry = out(reg) _,
                count = out(reg) count,
                gate_mask = const GATE_MASK,
                word = const WORD,
                entry_base = const ENTRY_BASE,
                setback = const SETBACK,
            );
        }
        if count < 0 {
            return Err(Setback);
        }
        // SAFETY: a sequence that committed had found its slot.
        unsafe { &*slot }.pushed_apart.add(count as u64);
        Ok(count as usize)
    }

    /// Stores `after` into the word of `slot` if that is this CPU's, its gate is open, and its word is `before`.
    pub(crate) fn commit(self, slots: &Slots, slot: &Slot, before: u64, after: u64) -> Result<(), Setback> {
        // SAFETY: nothing is stored but the commit.
        unsafe {
            restartable!(
                "cmp r8, {wanted}",
                "jne 8f",
                // The gate before the word, as in `pop`.
                "cmp dword ptr [r8 + {gate_mask}], 0",
                "je 8f",
                "cmp qword ptr [r8 + {word}], {before}",
                "jne 8f";
                commit "mov qword ptr [r8 + {word}], {after}";
                setback "jmp {setback}";
                area = in(reg) self.offset(),
                slots = in(reg) slots,
                wanted = in(reg) slot,
                before = in(reg) before,
                after = in(reg) after,
                out("r8") _,
                gate_mask = const GATE_MASK,
                word = const WORD,
                setback = label { return Err(Setback) },
            );
        }
        Ok(())
    }
}
